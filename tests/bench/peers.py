"""`make bench-peers`: nacrefs next to GlusterFS, MooseFS and the local disk, the same rows in the same run.

The script starts itself again in PID, mount and network namespaces of its own: when it ends, however it ends, the
kernel ends every server and mount that it started. Its files are in a temporary directory on the disk to be measured.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from nacrefs.client.bench.report import Report, Row, describe_machine, medians, ratios_of, render, render_costs
from nacrefs.client.bench.workloads import SCENARIOS, Sizes, Target, compare, scenarios
from tests.bench.systems import Gluster, Local, Moose, Mount, Nacre, System, target_of

ROWS = (
    *("files-1", "files-4", "files-8", "files-16", "shared-1", "shared-8", "list-few"),
    *("stream-4KiB-1", "stream-64KiB-1", "stream-1MiB-1", "stream-4MiB-1", "stream-1MiB-4", "random-1", "random-4"),
    *("mounts-4", "mounts-16"),
)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure nacrefs, GlusterFS, MooseFS and the local disk side by side.")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/peers.json"), help="and .txt")
    parser.add_argument(
        "--rows", nargs="+", choices=list(SCENARIOS), default=ROWS, metavar="ROW", help=" ".join(SCENARIOS)
    )
    parser.add_argument("--scale", type=float, default=0.25, help="1 = 4,000 files and 1 GiB per row")
    parser.add_argument("--repetitions", type=int, default=3, help="the table shows the median")
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp"), help="a directory on the disk to be measured")
    parser.add_argument("--skip", nargs="+", default=[], choices=["local", "glusterfs", "moosefs", "nacrefs"])
    parser.add_argument("--skip-nacre", action="store_true", help="the same as --skip nacrefs")
    parser.add_argument("--nacre", type=Path, metavar="MNT", help="measure this nacrefs mount instead of a new cluster")
    parser.add_argument("--no-install", action="store_true", help="never call apt-get")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.skip_nacre:
        arguments.skip.append("nacrefs")
    return arguments


def _supervise(arguments: argparse.Namespace) -> int:
    """Install what is missing, run the benchmark in namespaces, remove its files."""
    if os.geteuid() != 0:
        raise SystemExit("the peers' servers and mounts need root: run this with sudo")
    if "nacrefs" not in arguments.skip and not arguments.nacre and not shutil.which("nacre"):
        raise SystemExit("the command nacre is not there: run `make dev`, or leave nacrefs out with --skip-nacre")
    _install(arguments)
    # A closed terminal or `kill` ends this script like Ctrl-C does, with its cleaning up.
    for number in signal.SIGTERM, signal.SIGHUP:
        signal.signal(number, _end)
    directory = Path(tempfile.mkdtemp(prefix="nacre-bench-peers-", dir=arguments.dir))
    namespaces = ["unshare", "--mount", "--propagation=private", "--pid", "--kill-child", "--mount-proc"]
    run: subprocess.Popen[bytes] | None = None
    try:
        command = [sys.executable, __file__, *sys.argv[1:], "--inside", str(directory)]
        run = subprocess.Popen(["setpriv", "--pdeathsig=KILL", *namespaces, "--", *command])
        try:
            return run.wait()
        except KeyboardInterrupt:  # the benchmark has had it too
            run.wait(timeout=30)
            return 130
    finally:
        if run is not None:
            run.kill()
            run.wait()
        _remove(directory)


def _remove(directory: Path) -> None:
    """Remove the run's files; servers that the kernel is ending may write for a moment yet."""
    for _ in range(100):
        with contextlib.suppress(OSError):
            shutil.rmtree(directory)
        if not directory.exists():
            return
        time.sleep(0.1)
    raise SystemExit(f"cannot remove {directory}")


def _install(arguments: argparse.Namespace) -> None:
    """Install the peers' Debian packages if they are missing."""
    systems = [system for system in (Gluster, Moose) if system.name not in arguments.skip]
    wanted = [package for system in systems for package in system.packages]
    if not wanted:
        return
    known = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Package} ${Status}\n", *wanted], check=False, capture_output=True, text=True
    )
    missing = [package for package in wanted if f"{package} install ok installed" not in known.stdout]
    if missing and arguments.no_install:
        raise SystemExit(f"not installed: {' '.join(missing)}")
    if missing:
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "update", "-q"], check=True)
        install = ["apt-get", "install", "-q", "-y", "--no-install-recommends", "iproute2", *missing]
        subprocess.run(install, check=True, env=environment)


def _benchmark(arguments: argparse.Namespace, directory: Path) -> None:
    """Start the systems, measure, write the report."""
    signal.signal(signal.SIGTERM, _end)
    rows: list[Row] = []
    with contextlib.ExitStack() as stack:
        targets: list[Target] = []
        for system in _systems(arguments, directory):
            stack.callback(system.stop)
            begin = time.monotonic()
            targets.append(target_of(system, system.start()))
            _say(f"{system.name} is up after {time.monotonic() - begin:.1f} s")
        machine = describe_machine(arguments.scale, arguments.repetitions)
        for repetition in range(arguments.repetitions):
            for row in compare(targets, scenarios(arguments.rows), Sizes(arguments.scale)):
                rows.append(row)
                figure = f"{row.filesystem} {row.figure:,.0f} {row.unit}"
                _say(f"{repetition + 1}/{arguments.repetitions} {row.name}, {row.processes} processes: {figure}")
    _write(Report(machine, medians(rows)), arguments.out)


def _systems(arguments: argparse.Namespace, directory: Path) -> Iterator[System]:
    """The systems that were asked for; each is made when the one before has been started."""
    for kind in (Local, Gluster, Moose):
        if kind.name not in arguments.skip:
            yield kind(directory / kind.name)
    if Nacre.name not in arguments.skip:
        yield Mount(arguments.nacre) if arguments.nacre else Nacre(directory / Nacre.name)


def _write(report: Report, out: Path) -> None:
    """The report as JSON, and as a text that is printed too."""
    filesystems = list(dict.fromkeys(row.filesystem for row in report.rows))
    ratios = ratios_of(Nacre.name, filesystems) if Nacre.name in filesystems else []
    where = ", ".join(f"{name} {value}" for name, value in report.machine.items())
    text = f"{where}\n\n{render(report.rows, ratios)}\n\n{render_costs(report.rows)}\n"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report.to_json(), indent=1) + "\n")
    out.with_suffix(".txt").write_text(text)
    print(text)


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Run the benchmark; returns the exit code."""
    arguments = _arguments()
    if arguments.inside is None:
        return _supervise(arguments)
    try:
        _benchmark(arguments, arguments.inside)
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
