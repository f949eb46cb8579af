"""`nacre hsm`: files in the lifecycle tier, with the words of Lustre's `lfs hsm_…`."""

import errno
import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, TypeVar

import click

from nacrefs.client.cli.outcome import EXIT_CODES, ExitCode, json_option, print_json, print_table, words_of
from nacrefs.common.config import format_size

F = TypeVar("F", bound=Callable[..., Any])
ATTRIBUTE: Final = "nacre.hsm"
_THREADS: Final = 16
_AT_A_TIME: Final = 64
_LOOK_S: Final = 0.02
"""Least time between two looks at files that are not done yet."""
_OVER: Final = ("SUCCEED", "FAILED", "CANCELED", "")
_ASKERS: Final = {-1: "reader", -2: "rule"}
_FLAGS: Final = ("norelease", "noarchive", "dirty", "exists", "archived", "lost")


@click.group("hsm", epilog=EXIT_CODES)
def hsm_command() -> None:
    """Move files to an archive and back, and see where they are."""


def _files(command: F) -> F:
    for decorate in (
        click.option("-0", "--null", "null", is_flag=True, help="Names in LIST end with NUL, not with a newline."),
        click.option("-f", "--files-from", "listed", metavar="LIST", help="A file with names; - is standard input."),
        click.argument("paths", nargs=-1, metavar="FILE…"),
    ):
        command = decorate(command)
    return command


def _names(paths: Sequence[str], listed: str | None, null: bool) -> Iterator[str]:
    yield from paths
    if listed is None:
        if not paths:
            raise click.UsageError("name files, or a list of them with -f")
        return
    stream = sys.stdin.buffer if listed == "-" else open(listed, "rb")  # noqa: SIM115
    try:
        for name in stream.read().split(b"\0" if null else b"\n"):
            if name:
                yield os.fsdecode(name)
    finally:
        if listed != "-":
            stream.close()


def state_of(path: str) -> dict[str, Any]:
    """A file's state as `--json` prints it. OSError if it is none of a mount of ours."""
    try:
        return {"path": path, **json.loads(os.getxattr(path, ATTRIBUTE, follow_symlinks=False))}
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            raise OSError(errno.ENODATA, "it is not a file in a mount of nacrefs", path) from None
        raise OSError(error.errno, error.strerror, path) from None


def _line(one: dict[str, Any]) -> str:
    """What `lfs hsm_state` prints."""
    words = "".join(f" {name}" for name in one["names"])
    archive = f", archive_id:{one['archive']}" if one["archive"] else ""
    return f"{one['path']}: (0x{one['flags']:08x}){words}{archive}"


@hsm_command.command("state", epilog=EXIT_CODES)
@_files
@json_option
def state_command(paths: Sequence[str], listed: str | None, null: bool, as_json: bool) -> None:
    """Show where the contents of files are."""
    _show(_names(paths, listed, null), as_json, _line)


@hsm_command.command("action", epilog=EXIT_CODES)
@_files
@json_option
def action_command(paths: Sequence[str], listed: str | None, null: bool, as_json: bool) -> None:
    """Show what is being done with files, and what became of the last thing that was."""

    def line(one: dict[str, Any]) -> str:
        if one["action"] == "none":
            return f"{one['path']}: NOOP"
        words = f"{one['path']}: {one['action'].upper()} {one['state'].lower()}"
        if one["state"] == "STARTED" and one["total"]:
            words += f" [0 to {one['done']} of {one['total']} bytes]"
        return words + (f": {one['reason']}" if one["reason"] else "")

    _show(_names(paths, listed, null), as_json, line)


def _show(names: Iterator[str], as_json: bool, line: Callable[[dict[str, Any]], str]) -> None:
    found: list[dict[str, Any]] = []
    for path in names:
        one = state_of(path)
        if as_json:
            found.append(one)
        else:
            click.echo(line(one))
    if as_json:
        print_json(found)


def _ask(order: str, path: str) -> str:
    """Have something done; why not, or nothing. The queue being full is waited for."""
    delay_s = 0.1
    while True:
        try:
            os.setxattr(path, ATTRIBUTE, order.encode(), follow_symlinks=False)
            return ""
        except OSError as error:
            if error.errno == errno.EAGAIN and delay_s < 60:
                time.sleep(delay_s)
                delay_s *= 2
                continue
            why = ""
            try:
                why = str(state_of(path)["refused"])
            except OSError:
                pass
            return why or words_of(OSError(error.errno, error.strerror))


def _do(ctx: click.Context, names: Iterable[str], order: str, wait: bool, as_json: bool) -> None:
    """Order something for many files, and perhaps wait for it."""
    done, failed = 0, dict[str, str]()
    pending: list[str] = []
    watched = sys.stderr.isatty() and not as_json
    with ThreadPoolExecutor(_THREADS) as threads:
        asked = list(names)
        for path, why in zip(asked, threads.map(partial(_ask, order), asked), strict=True):
            if why:
                failed[path] = why
            else:
                done += 1
                pending.append(path)
        if wait:
            _wait(pending, order.split()[0], failed, watched)
    if as_json:
        print_json({"done": done - (len(failed) if wait else 0), "failed": failed})
    else:
        for path, why in failed.items():
            click.echo(f"nacre: {' '.join(f'{path}: {why}'.split())}", err=True)
    ctx.exit(ExitCode.FAILED if failed else ExitCode.OK)


def _wait(paths: Sequence[str], verb: str, failed: dict[str, str], watched: bool) -> None:
    """Wait until what was ordered is over. Files are looked at in the order in which they are done, some at a time:
    while the first ones are not over, nobody asks about the others. Between two looks about half of them come to their
    end, so that a file is not asked about more than twice or so, and at most a tenth of the time so far passes."""
    total, delay_s, began_s = len(paths), _LOOK_S, time.monotonic()
    left = deque(paths)
    with ThreadPoolExecutor(_THREADS) as threads:
        while left:
            some = [left.popleft() for _ in range(min(len(left), _AT_A_TIME))]
            unfinished: list[str] = []
            for path, one in zip(some, threads.map(_state_or_error, some), strict=True):
                if isinstance(one, str):
                    failed[path] = one
                elif one["state"] not in _OVER:
                    unfinished.append(path)
                elif one["state"] in ("FAILED", "CANCELED") and one["action"] == verb:
                    failed[path] = one["reason"]
            left.extendleft(reversed(unfinished))
            if watched:
                click.echo(f"\r{total - len(left):,} of {total:,} ", nl=False, err=True)
            delay_s = delay_s / 2 if 2 * len(unfinished) <= len(some) else delay_s * 2
            delay_s = max(_LOOK_S, min(delay_s, 1.0, (time.monotonic() - began_s) / 10))
            if unfinished:
                time.sleep(delay_s)
    if watched:
        click.echo(err=True)


def _state_or_error(path: str) -> dict[str, Any] | str:
    try:
        return state_of(path)
    except OSError as error:
        return words_of(error)


_wait_option = click.option("-w", "--wait", is_flag=True, help="Return when it is done; fail if anything could not be.")


def _archive_number(paths: Sequence[str], archive: str | None) -> str:
    """What an order says of the archive that is called so in the mount of these files."""
    if archive is None or not paths:
        return ""
    if archive.isdigit():
        return f" {archive}"
    from nacrefs.client.cli.archive import _archives  # pyright: ignore[reportPrivateUsage]
    from nacrefs.client.mount.daemon import mounted_at

    where = str(mounted_at(paths[0]))
    for one in _archives(where, None):
        if one["name"] == archive:
            return f" {one['id']}"
    raise OSError(errno.ENOENT, f"there is no archive {archive!r}")


@hsm_command.command("archive", epilog=EXIT_CODES)
@_files
@click.option("-a", "--archive", metavar="NAME|NUMBER", help="To which archive. [the first]")
@_wait_option
@json_option
@click.pass_context
def archive_command(
    ctx: click.Context,
    paths: Sequence[str],
    listed: str | None,
    null: bool,
    archive: str | None,
    wait: bool,
    as_json: bool,
) -> None:
    """Copy files to an archive; they stay where they are, too."""
    names = list(_names(paths, listed, null))
    _do(ctx, names, "archive" + _archive_number(names, archive), wait, as_json)


def _verb(name: str, text: str) -> None:
    @hsm_command.command(name, epilog=EXIT_CODES, help=text)
    @_files
    @_wait_option
    @json_option
    @click.pass_context
    def command(
        ctx: click.Context, paths: Sequence[str], listed: str | None, null: bool, wait: bool, as_json: bool
    ) -> None:
        _do(ctx, _names(paths, listed, null), name, wait, as_json)

    del command


_verb("release", "Give up the bytes of archived files on the OSTs; they come back when they are read.")
_verb("restore", "Bring released files back now.")
_verb("remove", "Delete the archive's copies of files that are not released.")
_verb("cancel", "Stop what is queued or under way for files.")


def _flags(name: str, text: str) -> None:
    @hsm_command.command(name, epilog=EXIT_CODES, help=text)
    @_files
    @click.option("--norelease", "norelease", is_flag=True, help="Never released: a pin.")
    @click.option("--noarchive", "noarchive", is_flag=True, help="Never archived.")
    @click.option("--dirty", "dirty", is_flag=True, help="Changed since it was archived.")
    @click.option("--exists", "exists", is_flag=True, help="The archive has a copy.")
    @click.option("--archived", "archived", is_flag=True, help="The copy is complete.")
    @click.option("--lost", "lost", is_flag=True, help="The archive has lost the copy.")
    @json_option
    @click.pass_context
    def command(
        ctx: click.Context, /, paths: Sequence[str], listed: str | None, null: bool, as_json: bool, **given: bool
    ) -> None:
        words = [flag for flag in _FLAGS if given[flag]]
        if not words:
            raise click.UsageError(f"which flags? {' '.join('--' + flag for flag in _FLAGS)}")
        _do(ctx, _names(paths, listed, null), " ".join((name, *words)), False, as_json)

    del command


_flags("set", "Set flags of files.")
_flags("clear", "Clear flags of files.")


@hsm_command.command("queue", epilog=EXIT_CODES)
@click.argument("where", metavar="MNT|URL")
@click.option("--keyring", metavar="FILE", help="For a URL: the cluster's client key.")
@json_option
def queue_command(where: str, keyring: str | None, as_json: bool) -> None:
    """Show what waits and what is under way."""
    if "://" in where:
        from nacrefs.client import admin

        report = admin.ask(where, keyring, lambda mds: admin.inspect(mds, "hsm"))
    else:
        from nacrefs.client.mount import daemon as mount

        report = mount.ask_json(where, "hsmqueue")
    if as_json:
        print_json(report)
        return
    click.echo(f"{report['started']:,} under way, {report['waiting']:,} waiting, {report['to_delete']:,} to delete")
    for one in report["full"]:
        click.echo(
            f"archive {one['name']} is full, since {one['since_s']:.0f} s; {one['waiting']:,} wait: {one['reason']}"
        )
    if report["actions"]:
        print_table(
            "",
            ("id", "action", "state", "fid", "archive", "uid", "tries", "age", "done", "reason"),
            [
                (
                    str(one["id"]), one["action"], one["state"].lower(), f"{one['fid']:#x}", str(one["archive"]),
                    _ASKERS.get(one["uid"], str(one["uid"])), str(one["attempts"]), f"{one['age_s']:.0f} s",
                    f"{format_size(one['done'])} of {format_size(one['total'])}", one["reason"],
                )
                for one in report["actions"]
            ],
            left=4,
        )  # fmt: skip
