"""`nacre mirror`."""

import asyncio
import errno
import os
from collections.abc import Sequence
from typing import Any, Final

import click

from nacrefs.client.cli.checks import CHECK_CODES, CheckCommand
from nacrefs.client.cli.outcome import EXIT_CODES, json_option, print_json, print_table
from nacrefs.client.cli.progress import Update, progress_bar
from nacrefs.client.cli.verifying import regular_files, show_outcome, verify
from nacrefs.common.config import format_size
from nacrefs.common.fid import format_fid
from nacrefs.common.layout import CopyState
from nacrefs.common.remote import Remote
from nacrefs.common.wire import GetXattr, ListCopies, MirrorCopy, Resync

POLL_S: Final = 0.5
_DISCARDED: Final = 4
"""State of a copy that has a new place: what is left of it is destroyed when its OST returns."""
_STATES: Final = {int(state): state.name.lower() for state in CopyState} | {_DISCARDED: "discarded"}
_keyring = click.option(
    "--keyring", metavar="FILE", help="The cluster's key; `verify` needs an administrator's. [the mount's]"
)
_wait = click.option("--wait", is_flag=True, help="Wait until all copies are equal.")


@click.group("mirror")
def mirror_command() -> None:
    """Files with copies (`nacre setstripe -m`): which copies are not good, and making them so.

    Copies become equal by themselves when an OST returns; docs/mirrors.md explains the states.
    """


@mirror_command.command("status", epilog=EXIT_CODES)
@click.argument("where", metavar="PATH|URL")
@_wait
@_keyring
@json_option
def status_command(where: str, wait: bool, keyring: str | None, as_json: bool) -> None:
    """Show the copies that are not good, of the filesystem at a mount or URL, or of one file, and how far they are."""
    fid = 0 if "://" in where or os.path.isdir(where) else os.lstat(where).st_ino
    _show(where, keyring, fid, wait, as_json)


@mirror_command.command("resync", epilog=EXIT_CODES)
@click.argument("where", metavar="PATH…|URL", nargs=-1, required=True)
@_wait
@_keyring
@json_option
def resync_command(where: Sequence[str], wait: bool, keyring: str | None, as_json: bool) -> None:
    """Make copies equal now: those of files, which are all compared with the first good one, or, with a mount or URL,
    those that are known not to be good."""
    from nacrefs.client import admin

    fids = [0 if "://" in one or os.path.isdir(one) else _file(one) for one in where]

    async def resync(mds: Remote) -> int:
        return sum([(await mds.call(Resync(fid))).copies for fid in fids])

    count = admin.ask_attached(where[0], keyring, resync)
    if wait or not as_json:
        _show(where[0], keyring, fids[0] if len(fids) == 1 else 0, wait, as_json)
    else:
        print_json({"compared": count})


def _file(path: str) -> int:
    from nacrefs.client.mount.daemon import mounted_at

    mounted_at(path)
    return os.stat(path).st_ino


@mirror_command.command("verify", cls=CheckCommand, epilog=CHECK_CODES)
@click.argument("paths", nargs=-1, required=True, metavar="PATH…")
@click.option("-r", "--recursive", is_flag=True, help="Also what is below a directory.")
@_keyring
@json_option
def verify_command(paths: Sequence[str], recursive: bool, keyring: str | None, as_json: bool) -> int:
    """Have all copies of files read, and compared with their checksums and with each other. What differs is mended."""
    from nacrefs.client import admin
    from nacrefs.client.mount.daemon import mounted_at

    files = list(regular_files(paths, recursive))
    with progress_bar() as update:
        outcome = admin.ask_attached(mounted_at(paths[0]), keyring, lambda mds: verify(mds, files, update))
    return show_outcome(outcome, as_json)


@mirror_command.command("replace", epilog=EXIT_CODES)
@click.argument("where", metavar="MNT|URL")
@click.argument("ost", type=int)
@_wait
@_keyring
@json_option
def replace_command(where: str, ost: int, wait: bool, keyring: str | None, as_json: bool) -> None:
    """OST is lost for good: give the copies that it had new places on other OSTs, and make them there. It must be down.
    Files without another copy stay as they are: `nacre find --ost` names them."""
    from nacrefs.client import admin

    async def replace(mds: Remote, update: Update) -> int:
        moved, after = 0, 0
        while True:
            answer = await mds.call(Resync(lost_ost=ost, after=after))
            moved, after = moved + answer.copies, answer.next_fid
            update("copies with new places", moved, 0)
            if not after:
                return moved

    with progress_bar() as update:
        moved = admin.ask_attached(where, keyring, lambda mds: replace(mds, update))
    if as_json and not wait:
        print_json({"ost": ost, "moved": moved})
        return
    if not as_json:
        click.echo(f"{moved} copies have new places")
    if wait:
        _show(where, keyring, 0, True, as_json)


# -------------------------------------------------------------------------------------------------------------- status


def _show(where: str, keyring: str | None, fid: int, wait: bool, as_json: bool) -> None:
    from nacrefs.client import admin

    place = where if "://" in where else _mount_of(where)
    with progress_bar() as update:
        copies = admin.ask_attached(place, keyring, lambda mds: _copies(mds, fid, wait, update))
    documents = [_document(copy, path) for copy, path in copies]
    if as_json:
        print_json({"copies": documents})
        return
    if not documents:
        click.echo("all copies are good")
        return
    rows = [
        (
            one["path"] or one["fid"], str(one["object"]), str(one["ost"]), one["state"],
            _progress(one),
            one["problem"] or "",
        )
        for one in documents
    ]  # fmt: skip
    print_table("", ("file", "object", "OST", "state", "compared", "why not yet"), rows)


def _progress(one: dict[str, Any]) -> str:
    if one["checked_bytes"] is None:
        return "-"
    return f"{format_size(one['checked_bytes'])} of {format_size(one['size'])}"


def _mount_of(path: str) -> str:
    from nacrefs.client.mount.daemon import mounted_at

    return mounted_at(path)


async def _copies(mds: Remote, fid: int, wait: bool, update: Update) -> list[tuple[MirrorCopy, bytes]]:
    """The copies that are not good, with their files' paths; with `wait` there are none, in the end."""
    most = 0
    while True:
        copies: list[MirrorCopy] = []
        end = False
        after = (fid, -1, -1) if fid else (0, -1, -1)
        while not end:
            page = await mds.call(ListCopies(*after, only=bool(fid)))
            copies.extend(page.copies)
            end = page.end or not page.copies
            if copies:
                after = (copies[-1].fid, copies[-1].number, copies[-1].ost)
        left = sum(copy.state != _DISCARDED for copy in copies)
        if not wait or not left:
            break
        most = max(most, left)
        update("copies that are equal", most - left, most)
        await asyncio.sleep(POLL_S)
    return [(copy, await _path(mds, copy.fid)) for copy in copies]


async def _path(mds: Remote, fid: int) -> bytes:
    try:
        return (await mds.call(GetXattr(fid, b"nacre.path"))).value
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESTALE):
            return b""
        raise


def _document(copy: MirrorCopy, path: bytes) -> dict[str, Any]:
    return {
        "path": os.fsdecode(path) or None,
        "fid": format_fid(copy.fid),
        "object": copy.number,
        "ost": copy.ost,
        "state": _STATES.get(copy.state, str(copy.state)),
        "checked_bytes": None if copy.checked_bytes < 0 else copy.checked_bytes,
        "copied_bytes": copy.copied_bytes,
        "size": copy.size,
        "problem": copy.problem or None,
    }
