"""`nacre status` and `nacre stats`."""

import time
from typing import Any

import click

from nacrefs.client.cli.outcome import EXIT_CODES, json_option, print_json, print_table, watched
from nacrefs.common.config import format_size

_keyring = click.option("--keyring", metavar="FILE", help="For a URL: the cluster's client key.")


@click.command("status", epilog=EXIT_CODES)
@click.argument("where", metavar="MNT|URL")
@_keyring
@json_option
def status_command(where: str, keyring: str | None, as_json: bool) -> None:
    """Show the MDS, the OSTs, the sessions of clients, leases and queues; of the filesystem at MNT, or of the MDS at
    URL."""
    report = _ask(where, "status", "status", keyring)
    if as_json:
        print_json(report)
        return
    grace = ", waiting for clients to reclaim" if report["in_grace"] else ""
    click.echo(f"MDS of MDT {report['mdt']}, cluster {report['cluster']}{grace}")
    click.echo(f"database {report['database']}, {report['inodes']:,} inodes")
    print_table(
        "\nOSTs",
        ("", "state", "free", "size", "objects", "pools", "address"),
        [
            (
                str(ost["index"]), "up" if ost["up"] else "DOWN", format_size(ost["free_bytes"]),
                format_size(ost["total_bytes"]), f"{ost['objects']:,}", ",".join(ost["pools"]), ost["address"],
            )
            for ost in report["osts"]
        ],
    )  # fmt: skip
    print_table(
        "\nSessions",
        ("session", "host", "state", "over", "leases", "recalls", "in service"),
        [
            (
                str(one["session"]), one["host"], "connected" if one["connected"] else "away",
                one.get("transport") or "-", f"{one['leases']:,}", str(one["recalls"]), str(one["in_flight"]),
            )
            for one in report["sessions"]
        ],
        left=4,
    )  # fmt: skip
    for title, values in (("Leases", report["leases"]), ("Locks", report["locks"]), ("Queues", report["queues"])):
        click.echo(f"\n{title}: " + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in values.items()))


@click.command("stats", epilog=EXIT_CODES)
@click.argument("where", metavar="MNT|URL")
@_keyring
@click.option("-w", "--watch", is_flag=True, help="Show what is new, again and again, until interrupted.")
@click.option("-n", "--interval", default=1.0, show_default=True, type=click.FloatRange(min=0.05), help="Seconds.")
@click.option("--count", type=click.IntRange(min=1), help="With --watch: how often; default: for ever.")
@click.option("--mds", is_flag=True, help="With a mount: show what its MDS has been asked instead.")
@json_option
def stats_command(
    where: str, keyring: str | None, watch: bool, interval: float, count: int | None, mds: bool, as_json: bool
) -> None:
    """Show what the mount at MNT, or the MDS at URL, has been asked since it began: requests by kind with their
    latencies, counters, CPU and memory. With --watch and --json, one document per line."""
    name = "mds" if mds else "stats"
    before = _ask(where, name, "stats", keyring)
    if not watch:
        if as_json:
            print_json(before)
        else:
            _show(before)
        return
    while count is None or count > 0:
        time.sleep(interval)
        now = _ask(where, name, "stats", keyring)
        fresh = difference(before, now)
        if as_json:
            import json

            click.echo(json.dumps(fresh))
        else:
            if watched():
                click.clear()
            _show(fresh)
        before = now
        count = None if count is None else count - 1


def difference(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """What happened between two reports. Mean latencies are of the interval; percentiles stay those of all time."""
    requests: dict[str, Any] = {}
    for kind, tally in now["requests"].items():
        old = before["requests"].get(kind, {"count": 0, "failed": 0, "mean_us": 0.0})
        count = tally["count"] - old["count"]
        if count:
            spent_us = tally["mean_us"] * tally["count"] - old["mean_us"] * old["count"]
            requests[kind] = {
                **tally,
                "count": count,
                "failed": tally["failed"] - old["failed"],
                "mean_us": round(spent_us / count, 1),
            }
    fresh = {
        **now,
        "interval_s": round(now["uptime_s"] - before["uptime_s"], 3),
        "cpu_s": round(now["cpu_s"] - before["cpu_s"], 6),
        "requests": requests,
    }
    for group in ("counters", "fuse"):
        if group in now:
            changes = {name: value - before[group].get(name, 0) for name, value in now[group].items()}
            fresh[group] = {name: value for name, value in changes.items() if value}
    return fresh


def _show(report: dict[str, Any]) -> None:
    seconds = report.get("interval_s", report["uptime_s"])
    cpu, memory = report["cpu_s"], format_size(report["rss_bytes"])
    click.echo(f"in {seconds:.1f} s: CPU {cpu:.3f} s ({100 * cpu / seconds if seconds else 0:.1f}%), memory {memory}")
    if report.get("fuse"):
        counts = sorted(report["fuse"].items(), key=lambda item: -item[1])
        click.echo("FUSE: " + ", ".join(f"{name} {count:,}" for name, count in counts))
    rows = [
        (
            kind, f"{tally['count']:,}", str(tally["failed"]), f"{tally['mean_us']:,.0f}", f"{tally['p50_us']:,.0f}",
            f"{tally['p99_us']:,.0f}",
        )
        for kind, tally in report["requests"].items()
    ]  # fmt: skip
    if rows:
        print_table("", ("request", "count", "failed", "mean µs", "p50 µs ≤", "p99 µs ≤"), rows)
    if report.get("connections"):
        links = [(one["server"], one["transport"] or "(away)", one["address"]) for one in report["connections"]]
        print_table("\nConnections", ("server", "over", "address"), links, left=3)
    for title in ("counters", "cache", "memory"):
        if report.get(title):
            click.echo(f"{title}: " + ", ".join(f"{name} {value:,}" for name, value in report[title].items()))


def _ask(where: str, attribute: str, what: str, keyring: str | None) -> Any:
    if "://" in where:
        from nacrefs.client import admin

        return admin.ask(where, keyring, lambda mds: admin.inspect(mds, what))
    from nacrefs.client.mount import daemon as mount

    return mount.ask_json(where, attribute)
