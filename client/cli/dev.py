"""`nacre dev`: a whole cluster on this machine."""

import os
import signal
import sys
import time
from typing import TYPE_CHECKING

import click

from nacrefs.client.cli.outcome import EXIT_CODES, ExitCode, json_option, print_json, print_table
from nacrefs.client.dev.s3 import BUCKET
from nacrefs.common.config import format_size

if TYPE_CHECKING:
    from nacrefs.client.dev.cluster import DevCluster

_directory = click.option(
    "--dir", "directory", required=True, metavar="DIR", help="The cluster's directory; up makes it if it is not there."
)


@click.group("dev")
def dev_command() -> None:
    """A whole cluster on this machine: an MDS, OSSes and a mount, all in one directory."""


@dev_command.command("up", epilog=EXIT_CODES)
@_directory
@click.option("--osts", type=click.IntRange(min=1), help="How many OSTs, two to an OSS. [first start: 4]")
@click.option("--mount", metavar="MNT", help="Mount it there, now and at the next starts.")
@click.option("--engine", metavar="sqlite|postgresql://…", help="Where the MDT is. [first start: sqlite]")
@click.option(
    "--transport",
    type=click.Choice(["tcp", "rdma"]),
    help="What everything goes over; rdma needs a device (docs/rdma.md). [first start: tcp]",
)
@click.option("--s3", is_flag=True, help="An S3 server, too (SeaweedFS), now and at the next starts.")
@click.option("--foreground", is_flag=True, help="Keep everything running until interrupted, then stop it.")
@json_option
def up_command(
    directory: str,
    osts: int | None,
    mount: str | None,
    engine: str | None,
    transport: str | None,
    s3: bool,
    foreground: bool,
    as_json: bool,
) -> None:
    """Start the cluster in DIR, or what of it is not running; returns when it can be used.

    The first time, keyring, MDT and OSTs are made. A mount whose daemon has died is replaced.
    """
    from nacrefs.client.dev.cluster import DevCluster, Wish

    cluster = DevCluster.prepare(directory, Wish(osts, mount, engine, s3, transport))
    if foreground:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _up(cluster, as_json)
        if foreground:
            _stay(cluster)
    except KeyboardInterrupt:
        if not foreground:
            raise
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        _warn(cluster.down())


def _up(cluster: "DevCluster", as_json: bool) -> None:
    began = time.monotonic()
    started = cluster.up()
    seconds = round(time.monotonic() - began, 3)
    if as_json:
        print_json({**cluster.status(), "started": started, "seconds": seconds})
    else:
        click.echo(_told(cluster, started, seconds))
    sys.stdout.flush()


def _told(cluster: "DevCluster", started: list[str], seconds: float) -> str:
    what = f"started {', '.join(started)} in {seconds:.1f} s" if started else "everything was running"
    if cluster.config.s3:
        what += (
            f"\nS3: --endpoint {cluster.config.s3_endpoint}"
            f" --credentials-file {cluster.s3_directory / 'credentials'} s3://{BUCKET}\n"
        )
    if cluster.config.mount:
        return f"{what}; mounted on {cluster.config.mount}".replace("\n; ", "\n")
    return f"{what}; mount it: nacre mount {cluster.config.url} MNT --keyring {cluster.keyring}"


def _stay(cluster: "DevCluster") -> None:
    """Start again what ends, until interrupted."""
    while True:
        time.sleep(0.5)
        _reap()
        if gone := [process.name for process in cluster.processes if not process.pid]:
            click.echo(f"nacre: {', '.join(gone)} ended: starting again", err=True)
            cluster.up()


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _warn(warnings: list[str]) -> None:
    for warning in warnings:
        click.echo(f"nacre: {warning}", err=True)


@dev_command.command("down", epilog=EXIT_CODES)
@_directory
@click.option("--purge", is_flag=True, help="Remove DIR with all data afterwards (a PostgreSQL database is left).")
@json_option
def down_command(directory: str, purge: bool, as_json: bool) -> None:
    """Unmount and stop the cluster in DIR."""
    from nacrefs.client.dev.cluster import DevCluster

    cluster = DevCluster.open(directory)
    warnings = cluster.down()
    if purge:
        cluster.purge()
    _warn(warnings)
    if as_json:
        print_json({"directory": str(cluster.directory), "warnings": warnings, "purged": purge})


@dev_command.command("status", epilog=EXIT_CODES + "\n\n  `dev status` ends with 1 if something is not running.")
@_directory
@json_option
@click.pass_context
def status_command(ctx: click.Context, directory: str, as_json: bool) -> None:
    """Show the processes of the cluster in DIR, its OSTs and its mount."""
    from nacrefs.client.dev.cluster import DevCluster

    report = DevCluster.open(directory).status()
    if as_json:
        print_json(report)
    else:
        click.echo(f"{report['url']}, cluster {report['cluster']}, MDT in {report['engine']}")
        print_table(
            "\nProcesses",
            ("", "pid", "metrics", "log"),
            [
                (one["name"], str(one["pid"] or "not running"), one["metrics"], one["log"])
                for one in report["processes"]
            ],
            left=4,
        )
        rows = [
            (str(one["index"]), "up" if one["up"] else "DOWN", format_size(one["free_bytes"]), one["address"])
            for one in report["osts"]
        ]
        if rows:
            print_table("\nOSTs", ("", "state", "free", "address"), rows, left=2)
        if mount := report["mount"]:
            click.echo(f"\n{mount['directory']} is {'mounted' if mount['mounted'] else 'NOT mounted'}")
    ctx.exit(ExitCode.OK if report["healthy"] else ExitCode.FAILED)
