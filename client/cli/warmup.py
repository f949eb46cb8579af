"""`nacre warmup`: bring files to the OSTs before a job needs them."""

import json
import math
import os
import sys
from collections.abc import Sequence
from typing import Any, Final, TypeVar

import click

from nacrefs.client.cli.asking import ask, keyring_option
from nacrefs.client.cli.hsm import _names  # pyright: ignore[reportPrivateUsage]
from nacrefs.client.cli.outcome import EXIT_CODES, ExitCode, json_option, print_json, print_table
from nacrefs.common.config import format_size
from nacrefs.common.wire import LISTING_MAX, AddWarmup, CancelWarmup, GetWarmups

T = TypeVar("T")
_OVER: Final = ("done", "failed", "canceled")
_POLL_S: Final = 0.5


class _StartByDefault(click.Group):
    """A group in which `nacre warmup PATH…` is `nacre warmup start PATH…`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put `start` before what is no command of the group."""
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = ["start", *args]
        return super().parse_args(ctx, args)


@click.group("warmup", cls=_StartByDefault, epilog=EXIT_CODES)
def warmup_command() -> None:
    """Bring files to the OSTs before they are needed: `nacre warmup PATH…`, where a directory means all below it. (A
    path that is called like a command below: ./list.)"""


async def _job(mds: Any, number: int) -> dict[str, Any]:
    (job,) = json.loads((await mds.call(GetWarmups(number))).report)
    return dict(job)


@warmup_command.command("start", epilog=EXIT_CODES)
@click.argument("paths", nargs=-1, metavar="PATH…")
@click.option("-f", "--files-from", "listed", metavar="LIST", help="A file with names; - is standard input.")
@click.option("-0", "--null", "null", is_flag=True, help="Names in LIST end with NUL, not with a newline.")
@click.option("-j", "--jobs", "width", type=click.IntRange(1, 32), default=16, help="Files under way at a time. [16]")
@click.option("--after", type=int, default=0, metavar="JOB", help="Begin when that warmup job is over.")
@click.option("--wait/--async", "wait", default=True, help="Wait until it is over, or only print its number. [--wait]")
@click.option(
    "--limit-mibps",
    "limit",
    type=click.FloatRange(min=0),
    default=0,
    metavar="N",
    help="Most MiB per second that the job brings; who reads a file does not wait for that; 0: any. [any]",
)
@click.option("--check", is_flag=True, help="Bring nothing: ask the OSTs whether everything is there.")
@click.option("--evict", is_flag=True, help="Give up on the OSTs what a bucket or archive has, too.")
@keyring_option
@json_option
@click.pass_context
def start_command(
    ctx: click.Context,
    paths: Sequence[str],
    listed: str | None,
    null: bool,
    width: int,
    after: int,
    wait: bool,
    limit: float,
    check: bool,
    evict: bool,
    keyring: str | None,
    as_json: bool,
) -> None:
    """Bring the contents of files, and of all files below directories, to the OSTs. Fails if any is missing then.

    The job lives in the MDS: it goes on when this command is interrupted, and after a restart. Readers come first.
    """
    from nacrefs.client.mount.daemon import mounted_at

    if check and evict:
        raise click.UsageError("--check or --evict, not both")
    if limit and (check or evict):
        raise click.UsageError("--limit-mibps is about what is brought: not with --check or --evict")
    named = list(_names(paths, listed, null))
    if not named:
        raise click.UsageError("the list of names is empty")
    mount = mounted_at(named[0])
    fids: list[int] = []
    for path in named:
        if mounted_at(path) != mount:
            raise OSError(22, f"it is not below {mount}: one job is for one mount", path)
        fids.append(os.stat(path).st_ino)
    verb = "check" if check else "evict" if evict else "warm"
    rate_bytes = math.ceil(limit * (1 << 20))

    async def work(mds: Any) -> dict[str, Any]:
        number, job = 0, dict[str, Any]()
        for at in range(0, len(fids), LISTING_MAX):
            more = at + LISTING_MAX < len(fids)
            some = tuple(fids[at : at + LISTING_MAX])
            order = AddWarmup(some, number, verb, more, after, width, os.geteuid(), rate_bytes)
            job = json.loads((await mds.call(order)).report)
            number = job["id"]
        return await _watch(mds, number, as_json) if wait else job

    job = ask(str(mount), keyring, work)
    _finish(ctx, job, as_json, wait)


async def _watch(mds: Any, number: int, quiet: bool) -> dict[str, Any]:
    """Wait until a job is over, and show meanwhile how far it is."""
    import asyncio

    shown, delay_s = sys.stderr.isatty() and not quiet, 0.02
    while (job := await _job(mds, number))["state"] not in _OVER:
        if shown:
            click.echo(f"\r{_progress(job)} ", nl=False, err=True)
        await asyncio.sleep(delay_s)
        delay_s = min(_POLL_S, delay_s * 1.5)
    if shown:
        click.echo(err=True)
    return job


def _progress(job: dict[str, Any]) -> str:
    if job["state"] == "waiting":
        return f"waiting for job {job['after']}" if job["after"] else "waiting"
    return f"{job['files']:,} files, {format_size(job['bytes'])} moved, {job['failed']:,} failed"


def _finish(ctx: click.Context, job: dict[str, Any], as_json: bool, waited: bool) -> None:
    if as_json:
        print_json(job)
    elif not waited:
        click.echo(f"job {job['id']}")
    else:
        _say(job)
    bad = job["failed"] or job["state"] == "canceled"
    ctx.exit(ExitCode.FAILED if waited and bad else ExitCode.OK)


def _say(job: dict[str, Any]) -> None:
    for path, reason in job["reasons"].items():
        click.echo(f"nacre: {path}: {reason}", err=True)
    if (more := job["failed"] - len(job["reasons"])) > 0:
        click.echo(f"nacre: and {more:,} more", err=True)
    words = {"warm": ("brought", "were here"), "evict": ("given up", "were not here"), "check": ("moved", "are here")}
    moved, here = words[job["verb"]]
    text = f"job {job['id']} {job['state']}: {job['files']:,} files"
    if job["verb"] != "check":
        text += f", {job['moved']:,} {moved} ({format_size(job['bytes'])})"
    missing = f", {job['failed']:,} {'missing' if job['verb'] == 'check' else 'failed'}" if job["failed"] else ""
    click.echo(f"{text}, {job['here']:,} {here}{missing}, {job['seconds']:.1f} s")


@warmup_command.command("list", epilog=EXIT_CODES)
@click.argument("where", metavar="MNT|URL")
@keyring_option
@json_option
def list_command(where: str, keyring: str | None, as_json: bool) -> None:
    """Show jobs: those that are not over, and the last that were."""

    async def work(mds: Any) -> list[dict[str, Any]]:
        jobs: list[dict[str, Any]] = json.loads((await mds.call(GetWarmups())).report)
        return jobs

    jobs = ask(where, keyring, work)
    if as_json:
        print_json({"jobs": jobs})
        return
    print_table(
        "",
        ("job", "what", "state", "after", "files", "moved", "size", "here", "failed", "time"),
        [
            (
                str(one["id"]), one["verb"], one["state"], str(one["after"] or ""), f"{one['files']:,}",
                f"{one['moved']:,}", format_size(one["bytes"]), f"{one['here']:,}", f"{one['failed']:,}",
                f"{one['seconds']:.1f} s",
            )
            for one in jobs
        ],
        left=3,
    )  # fmt: skip


@warmup_command.command("status", epilog=EXIT_CODES)
@click.argument("where", metavar="MNT|URL")
@click.argument("job", type=int)
@click.option("--wait", is_flag=True, help="Until it is over; fail if anything is missing then.")
@keyring_option
@json_option
@click.pass_context
def status_command(ctx: click.Context, where: str, job: int, wait: bool, keyring: str | None, as_json: bool) -> None:
    """Show a job, and why files of it failed."""
    found = ask(where, keyring, lambda mds: _watch(mds, job, as_json) if wait else _job(mds, job))
    if as_json or found["state"] in _OVER:
        _finish(ctx, found, as_json, wait)
    else:
        click.echo(f"job {job}, {found['state']}: {_progress(found)}")


@warmup_command.command("cancel", epilog=EXIT_CODES)
@click.argument("where", metavar="MNT|URL")
@click.argument("job", type=int)
@keyring_option
@json_option
def cancel_command(where: str, job: int, keyring: str | None, as_json: bool) -> None:
    """End a job. Files that are under way come nevertheless."""

    async def work(mds: Any) -> dict[str, Any]:
        await mds.call(CancelWarmup(job))
        return await _job(mds, job)

    found = ask(where, keyring, work)
    if as_json:
        print_json(found)
