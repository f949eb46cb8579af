"""Having files read on the OSTs, and what was found: shared by `nacre scrub` and `nacre mirror verify`."""

import os
import stat
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import click

from nacrefs.client.cli.checks import CLEAN, FAILED, LEFT, MENDED
from nacrefs.client.cli.outcome import print_json
from nacrefs.client.cli.progress import Update
from nacrefs.common.config import format_size
from nacrefs.common.fid import format_fid
from nacrefs.common.remote import Remote
from nacrefs.common.wire import FoundDamage, Repair, VerifyFile

STATES: Final = {Repair.POSSIBLE: "mending", Repair.MENDED: "mended", Repair.LEFT: "left"}


class Outcome(NamedTuple):
    """What reading some files has shown."""

    files: int
    checked_bytes: int
    found: list[FoundDamage]
    unchecked: list[str]

    @property
    def code(self) -> int:
        """The exit code."""
        return damage_code(self.found) | (FAILED if self.unchecked else CLEAN)


def damage_code(found: Sequence[FoundDamage]) -> int:
    """The exit code for damages."""
    code = CLEAN
    if any(one.repair is Repair.MENDED for one in found):
        code |= MENDED
    if any(one.repair is not Repair.MENDED for one in found):
        code |= LEFT
    return code


def regular_files(paths: Sequence[str], recursive: bool) -> Iterator[tuple[str, os.stat_result]]:
    """The files at (with `recursive`: and below) these paths; OSError for what is not there or not on a mount."""
    from nacrefs.client.mount.daemon import mounted_at

    for path in paths:
        mounted_at(path, follow=False)
        status = os.lstat(path)
        if stat.S_ISREG(status.st_mode):
            yield path, status
        elif stat.S_ISDIR(status.st_mode):
            if not recursive:
                raise click.UsageError(f"{path} is a directory: -r takes what is below it")
            for directory, _, names in os.walk(path):
                for name in sorted(names):
                    below = os.path.join(directory, name)
                    status = os.lstat(below)
                    if stat.S_ISREG(status.st_mode):
                        yield below, status


async def verify(mds: Remote, files: Sequence[tuple[str, os.stat_result]], update: Update) -> Outcome:
    """Have the files read, one after the other."""
    total = sum(status.st_size for _, status in files)
    checked, done = 0, 0
    found: list[FoundDamage] = []
    unchecked: list[str] = []
    for path, status in files:
        stripe = offset = 0
        while stripe >= 0:
            update("reading", min(checked, total), total)
            piece = await mds.call(VerifyFile(status.st_ino, stripe, offset))
            stripe, offset = piece.stripe, piece.offset
            checked += piece.checked_bytes
            found.extend(piece.found)
            unchecked.extend(f"{path}: {why}" for why in piece.unchecked)
        done += 1
    return Outcome(done, checked, found, sorted(set(unchecked)))


def damage_document(one: FoundDamage) -> dict[str, Any]:
    """A damage as every JSON document has it."""
    damage = one.damage
    return {
        "path": os.fsdecode(one.path) or None,
        "fid": format_fid(damage.fid),
        "ost": one.ost,
        "object": damage.number,
        "start": damage.start,
        "end": damage.end,
        "problem": words_of(one),
        "state": STATES[one.repair],
        "mend": one.mend,
    }


def words_of(one: FoundDamage) -> str:
    """What is wrong."""
    return one.damage.problem or "the bytes do not match their checksums"


def show_damages(found: Sequence[FoundDamage]) -> None:
    """A line for each."""
    for one in found:
        damage = one.damage
        name = os.fsdecode(one.path) or "(no name)"
        click.echo(
            f"{name} {format_fid(damage.fid)}, bytes {damage.start} to {damage.end}, object {damage.number} on"
            f" OST {one.ost}: {words_of(one)}: {STATES[one.repair].upper()} ({one.mend})"
        )


def show_outcome(outcome: Outcome, as_json: bool) -> int:
    """Print what was found; the exit code."""
    if as_json:
        print_json(
            {
                "files": outcome.files,
                "bytes": outcome.checked_bytes,
                "damages": [damage_document(one) for one in outcome.found],
                "unchecked": outcome.unchecked,
                "exit_code": outcome.code,
            }
        )
        return outcome.code
    show_damages(outcome.found)
    for why in outcome.unchecked:
        click.echo(f"not everything was read: {why}", err=True)
    wrong = f"{len(outcome.found)} damages" if outcome.found else "nothing is wrong"
    click.echo(f"{outcome.files:,} files, {format_size(outcome.checked_bytes)} read: {wrong}")
    return outcome.code
