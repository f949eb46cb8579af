"""`nacre fsck`."""

import asyncio
import os
import uuid
from typing import Any, Final

import click

from nacrefs.client.cli.checks import CHECK_CODES, CLEAN, FAILED, LEFT, MENDED, CheckCommand
from nacrefs.client.cli.outcome import CheckError, json_option, print_json
from nacrefs.client.cli.progress import Update, progress_bar
from nacrefs.common.config import parse_duration
from nacrefs.common.fid import ROOT, format_fid, parse_fid
from nacrefs.common.remote import Remote
from nacrefs.common.wire import Fsck, FsckReport, Problem, Repair, WatchFsck

POLL_S: Final = 0.2


@click.command("fsck", cls=CheckCommand, epilog=CHECK_CODES)
@click.argument("where", metavar="PATH|URL")
@click.option("--repair", is_flag=True, help="Mend what can be mended. [only tell]")
@click.option(
    "--orphans",
    type=click.Choice(["save", "destroy"]),
    default="save",
    show_default=True,
    help="What --repair does with objects that belong to no file: make each a file in /lost+found, or destroy them.",
)
@click.option(
    "--grace", default="30s", show_default=True, metavar="TIME", help="Leave objects alone that are younger than this."
)
@click.option("--keyring", metavar="FILE", help="An administrator's key. [the mount's]")
@json_option
def fsck_command(where: str, repair: bool, orphans: str, grace: str, keyring: str | None, as_json: bool) -> int:
    """Check a filesystem while it is used: names, link counts, sizes, objects on the OSTs, usage.

    PATH is a mount, for all of the filesystem, or something in it, for what is at and below PATH; then objects without
    a file and usage are left out. Nothing is changed without --repair. docs/fsck.md lists what is looked for, and what
    mends it.
    """
    try:
        grace_s = float(parse_duration(grace))
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    from nacrefs.client import admin

    fid = 0 if "://" in where else _fid(where)
    request = Fsck(uuid.uuid4().hex, fid, repair, grace_s, orphans == "destroy")
    with progress_bar() as update:
        report, problems = admin.ask_attached(where, keyring, lambda mds: _run(mds, request, update))
    code = exit_code(report, problems)
    if as_json:
        print_json(document(report, problems, code))
    else:
        show(report, problems)
    return code


def _fid(path: str) -> int:
    """What is to be checked: 0 for all."""
    from nacrefs.client.mount.daemon import mounted_at

    mounted_at(path, follow=False)
    os.lstat(path)
    fid = parse_fid(os.getxattr(path, "nacre.fid", follow_symlinks=False).decode())
    return 0 if fid == ROOT else fid


async def _run(mds: Remote, request: Fsck, update: Update) -> tuple[FsckReport, list[Problem]]:
    """The last report, and all problems."""
    report = await mds.call(request)
    try:
        while not report.ended:
            update(report.phase, report.done, report.total)
            await asyncio.sleep(POLL_S)
            report = await mds.call(WatchFsck(request.job))
    except asyncio.CancelledError:
        await mds.call(WatchFsck(request.job, stop=True))
        raise
    problems: list[Problem] = []
    while len(problems) < report.count:
        page = await mds.call(WatchFsck(request.job, len(problems)))
        if not page.problems:
            break
        problems.extend(page.problems)
    return report, problems


def exit_code(report: FsckReport, problems: list[Problem]) -> int:
    """What e2fsck would end with."""
    code = FAILED if report.error or report.unchecked else CLEAN
    if any(problem.repair is Repair.MENDED for problem in problems):
        code |= MENDED
    if any(problem.repair is not Repair.MENDED for problem in problems):
        code |= LEFT
    return code


def document(report: FsckReport, problems: list[Problem], code: int) -> dict[str, Any]:
    """The report as `--json` prints it."""
    return {
        "clean": code == CLEAN,
        "exit_code": code,
        "inodes": report.inodes,
        "objects": report.objects,
        "error": report.error or None,
        "unchecked": list(report.unchecked),
        "problems": [
            {
                "kind": problem.kind,
                "fid": format_fid(problem.fid) if problem.fid else None,
                "path": os.fsdecode(problem.path) or None,
                "text": problem.text,
                "repair": problem.repair.name.lower(),
                "mend": problem.mend,
            }
            for problem in problems
        ],
    }


_STATES: Final = {Repair.POSSIBLE: "can be mended", Repair.MENDED: "MENDED", Repair.LEFT: "LEFT"}


def show(report: FsckReport, problems: list[Problem]) -> None:
    """The report for a person."""
    for problem in problems:
        name = os.fsdecode(problem.path) if problem.path else ""
        about = f"{name} {format_fid(problem.fid)}".strip() if problem.fid else ""
        mend = f" ({problem.mend})" if problem.mend else ""
        click.echo(f"{about} {problem.text}: {_STATES[problem.repair]}{mend}".strip())
    for why in report.unchecked:
        click.echo(f"not everything was looked at: {why}", err=True)
    if report.error:
        raise CheckError(report.error, exit_code(report, problems))
    mended = sum(problem.repair is Repair.MENDED for problem in problems)
    left = len(problems) - mended
    looked = f"{report.inodes:,} files and {report.objects:,} objects looked at"
    if not problems:
        click.echo(f"{looked}: nothing is wrong")
        return
    possible = sum(problem.repair is Repair.POSSIBLE for problem in problems)
    hint = f", {possible} of them can be mended with --repair" if possible else ""
    click.echo(f"{looked}: {len(problems)} problems, {mended} mended, {left} left{hint}")
