"""`nacre bench`."""

import os
import signal
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nacrefs.client.cli.outcome import EXIT_CODES, json_option, print_json, watched

if TYPE_CHECKING:
    from nacrefs.client.bench.workloads import Target


@click.command("bench", epilog=EXIT_CODES)
@click.argument("mount", metavar="MNT")
@click.option("--rows", multiple=True, metavar="NAME", help="Only these scenarios (--list shows them); repeatable.")
@click.option(
    "--scale", default=0.05, show_default=True, type=click.FloatRange(min=0.001, max=10), help="1: a full run."
)
@click.option("--repeat", default=1, show_default=True, type=click.IntRange(1, 20), help="Take the median of so many.")
@click.option("--local", metavar="DIR", help="A local directory to compare with. [a temporary one]")
@click.option("--no-local", is_flag=True, help="Measure the mount only.")
@click.option("--list", "list_rows", is_flag=True, help="Show the names of all scenarios and end.")
@json_option
def bench_command(
    mount: str,
    rows: Sequence[str],
    scale: float,
    repeat: int,
    local: str | None,
    no_local: bool,
    list_rows: bool,
    as_json: bool,
) -> None:
    """Measure the directory MNT in a mount, next to a local directory.

    Create, stat, read, remove, list, streams and random access: operations per second, CPU and requests per operation.
    docs/benchmarks.md explains the rows.

    Its files are in new directories below MNT and the local directory, and are removed.
    """
    from nacrefs.client.bench import workloads as bench
    from nacrefs.client.bench.report import Report, Row, describe_machine, medians, ratios_of, render, render_costs

    if list_rows:
        for name in bench.SCENARIOS:
            click.echo(name)
        return
    scenarios = bench.scenarios(rows)
    if not os.path.isdir(mount):
        raise NotADirectoryError(20, "it is not a directory", mount)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that files are removed
    measured: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="nacre-bench-", dir=local) as directory:
        targets = [_target(mount)]
        if not no_local:
            targets.insert(0, bench.Target("local", [Path(directory)]))
        for _ in range(repeat):
            for row in bench.compare(targets, scenarios, bench.Sizes(scale)):
                measured.append(row)
                if watched() and not as_json:
                    click.echo(
                        f"{row.filesystem:8} {row.name} × {row.processes}: {row.figure:,.0f} {row.unit}", err=True
                    )
    measured = medians(measured) if repeat > 1 else measured
    if as_json:
        print_json(Report(describe_machine(scale, repeat), measured).to_json())
        return
    names = [target.name for target in targets]
    click.echo(render(measured, ratios_of("nacrefs", names) if len(names) > 1 else ()))
    if costs := render_costs(measured):
        click.echo(f"\n{costs}")


def _target(mount: str) -> "Target":
    """The mount, with its daemon's CPU and requests if it is one of ours, and its servers' if they run here."""
    from nacrefs.client.bench import workloads as bench
    from nacrefs.client.mount.daemon import ask_json, mounted_at

    directory = Path(os.path.abspath(mount))
    try:
        mounted_at(mount)
    except OSError:
        return bench.Target("nacrefs", [directory])

    def processes() -> Mapping[str, Sequence[int]]:
        found = _servers(ask_json(mount, "mount")["url"])
        return {"mount": [int(ask_json(mount, "mount")["pid"])], **found}

    def counters() -> Mapping[str, int]:
        requests: dict[str, Any] = ask_json(mount, "stats")["requests"]
        return {kind: tally["count"] for kind, tally in requests.items() if kind not in ("Keepalive", "GetOsts")}

    return bench.Target("nacrefs", [directory], processes=processes, counters=counters)


def _servers(url: str) -> dict[str, list[int]]:
    """Ids of the server processes on this machine whose arguments or configuration name the MDS at `url`."""
    found: dict[str, list[int]] = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{entry}/cmdline").read_bytes().decode(errors="replace").split("\0")
            role = next((word for word in words if word in ("mds", "oss")), None)
            if role is None or not any("nacre" in word for word in words):
                continue
            configs = [word for word in words if word.endswith(".toml")]
            if any(url in word for word in words) or any(url in Path(one).read_text() for one in configs):
                found.setdefault(role, []).append(int(entry))
        except OSError:
            continue
    return found
