"""`nacre scrub`."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import click

from nacrefs.client.cli.checks import CHECK_CODES, CLEAN, FAILED, CheckCommand
from nacrefs.client.cli.outcome import json_option, print_json, print_table
from nacrefs.client.cli.progress import Update, progress_bar
from nacrefs.client.cli.verifying import (
    damage_code,
    damage_document,
    regular_files,
    show_damages,
    show_outcome,
    verify,
)
from nacrefs.common.config import format_size, parse_size
from nacrefs.common.remote import Remote
from nacrefs.common.wire import FoundDamage, Scrub, ScrubOrder, ScrubReport, ScrubState

F = TypeVar("F", bound=Callable[..., Any])
POLL_S: Final = 0.5
_where = click.argument("where", metavar="MNT|URL")
_keyring = click.option("--keyring", metavar="FILE", help="An administrator's key. [the mount's]")
_osts = click.option("--ost", "osts", type=int, multiple=True, metavar="N", help="This OST; repeatable. [all]")


@click.group("scrub")
def scrub_command() -> None:
    """Read everything that the OSTs have, and find what is not as it was written.

    Every OST reads its own objects, while nobody else wants its disk, and compares them with their checksums. What
    does not match is never served; where there is another copy, it is mended from that.
    """


@scrub_command.command("start", cls=CheckCommand, epilog=CHECK_CODES)
@_where
@_osts
@click.option("--rate", metavar="SIZE", help="Read at most so much a second, 0: no limit. [as configured]")
@click.option("--wait", is_flag=True, help="Wait until all is read. [begin, and return]")
@_keyring
@json_option
def start_command(
    where: str, osts: Sequence[int], rate: str | None, wait: bool, keyring: str | None, as_json: bool
) -> int:
    """Begin to read OSTs, or go on where that was paused. It goes on over restarts, until all is read."""
    try:
        bytes_per_s = -1 if rate is None else int(parse_size(rate))
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    request = Scrub(ScrubOrder.START, tuple(osts), bytes_per_s)
    report = _ask(where, keyring, request, wait)
    return _show(report, as_json)


@scrub_command.command("status", cls=CheckCommand, epilog=CHECK_CODES)
@_where
@_osts
@click.option("--wait", is_flag=True, help="Wait until what is running has ended.")
@_keyring
@json_option
def status_command(where: str, osts: Sequence[int], wait: bool, keyring: str | None, as_json: bool) -> int:
    """Show how far OSTs are, and what was found."""
    return _show(_ask(where, keyring, Scrub(ScrubOrder.STATUS, tuple(osts)), wait), as_json)


def _order(name: str, order: ScrubOrder, text: str) -> None:
    @scrub_command.command(name, cls=CheckCommand, epilog=CHECK_CODES, help=text)
    @_where
    @_osts
    @_keyring
    @json_option
    def command(where: str, osts: Sequence[int], keyring: str | None, as_json: bool) -> int:
        return _show(_ask(where, keyring, Scrub(order, tuple(osts)), False), as_json)

    del command


_order("pause", ScrubOrder.PAUSE, "Stop reading; `start` goes on from there.")
_order("stop", ScrubOrder.STOP, "Stop reading; `start` begins anew.")


@scrub_command.command("files", cls=CheckCommand, epilog=CHECK_CODES)
@click.argument("paths", nargs=-1, required=True, metavar="PATH…")
@click.option("-r", "--recursive", is_flag=True, help="Also what is below a directory.")
@_keyring
@json_option
def files_command(paths: Sequence[str], recursive: bool, keyring: str | None, as_json: bool) -> int:
    """Have files read now, in all their copies, which are compared with each other, too."""
    from nacrefs.client import admin
    from nacrefs.client.mount.daemon import mounted_at

    files = list(regular_files(paths, recursive))
    with progress_bar() as update:
        outcome = admin.ask_attached(mounted_at(paths[0]), keyring, lambda mds: verify(mds, files, update))
    return show_outcome(outcome, as_json)


def _ask(where: str, keyring: str | None, request: Scrub, wait: bool) -> ScrubReport:
    from nacrefs.client import admin

    with progress_bar() as update:
        return admin.ask_attached(where, keyring, lambda mds: _followed(mds, request, wait, update))


async def _followed(mds: Remote, request: Scrub, wait: bool, update: Update) -> ScrubReport:
    """The report after the order, with all damages; with `wait` when nothing runs any more."""
    report = await mds.call(request)
    while wait and any(state.state == "running" for state in report.osts):
        objects = sum(state.objects for state in report.osts)
        update("reading objects", objects, sum(state.total for state in report.osts))
        await asyncio.sleep(POLL_S)
        report = await mds.call(Scrub(ScrubOrder.STATUS, request.osts))
    found: list[FoundDamage] = []
    after = 0
    while True:
        page = await mds.call(Scrub(ScrubOrder.STATUS, request.osts, after=after))
        found.extend(page.found)
        pages = [len(state.damages) for state in page.osts]
        if not any(pages):
            return ScrubReport(page.osts, tuple(found), page.down)
        after += max(pages)


def _show(report: ScrubReport, as_json: bool) -> int:
    failed = [state for state in report.osts if state.state not in _STATES]
    code = damage_code(report.found) | (FAILED if report.down or failed else CLEAN)
    if as_json:
        print_json(
            {
                "osts": [_document(state) for state in report.osts],
                "down": list(report.down),
                "damages": [damage_document(one) for one in report.found],
                "exit_code": code,
            }
        )
        return code
    rows = [
        (str(state.ost), state.state, f"{state.objects:,} of {state.total:,}", format_size(state.bytes),
         _time(state.started_s), _time(state.ended_s), str(state.count))
        for state in report.osts
    ]  # fmt: skip
    rows += [(str(ost), "DOWN", "", "", "", "", "") for ost in report.down]
    print_table("", ("OST", "state", "objects", "read", "started", "ended", "damages"), sorted(rows), left=2)
    show_damages(report.found)
    return code


_STATES: Final = ("never", "running", "paused", "stopped", "done")


def _document(state: ScrubState) -> dict[str, Any]:
    return {
        "ost": state.ost,
        "state": state.state,
        "objects": state.objects,
        "total": state.total,
        "bytes": state.bytes,
        "started": state.started_s or None,
        "ended": state.ended_s or None,
        "damages": state.count,
    }


def _time(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else "-"
