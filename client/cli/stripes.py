"""`nacre setstripe` and `nacre getstripe`. Layouts travel as the attribute `nacre.layout`, so no key is needed."""

import errno
import os
from collections.abc import Iterator, Sequence
from typing import Any, Final

import click

from nacrefs.client.cli.outcome import EXIT_CODES, json_option, print_json
from nacrefs.common.config import format_size, parse_size
from nacrefs.common.fid import format_fid
from nacrefs.common.layout import CopyState, LayoutSpec
from nacrefs.common.layoutspec import format_spec

ATTRIBUTE: Final = "nacre.layout"


@click.command("setstripe", epilog=EXIT_CODES)
@click.argument("paths", nargs=-1, required=True, metavar="PATH…")
@click.option("-c", "--stripe-count", type=int, default=0, help="Over how many OSTs; -1: all. [default: as usual]")
@click.option(
    "-S", "--stripe-size", default="0", metavar="SIZE", help="Bytes on one OST before the next, as in 1M, 64K."
)
@click.option("-i", "--first-ost", type=int, default=-1, metavar="OST", help="The OST of the first stripe. [any]")
@click.option("-p", "--pool", default="", help="Only OSTs of this pool.")
@click.option(
    "-m", "--mirrors", type=int, default=1, help="How many copies (1 to 3), each on other OSTs: see `nacre mirror`. [1]"
)
@click.option(
    "--inline", metavar="SIZE", help="Files up to this size (at most 64K) live in the MDT; 0: none. [default: as usual]"
)
@click.option("-d", "--delete", is_flag=True, help="Remove a directory's default: it inherits again.")
@json_option
def setstripe_command(
    paths: Sequence[str],
    stripe_count: int,
    stripe_size: str,
    first_ost: int,
    pool: str,
    mirrors: int,
    inline: str | None,
    delete: bool,
    as_json: bool,
) -> None:
    """Give PATH a layout.

    A directory hands it to new files in it, an empty file gets it, and a file that is not there is made with it. A file
    that has contents keeps the layout it has.
    """
    try:
        inline_bytes = -1 if inline is None else parse_size(inline)
        spec = LayoutSpec(stripe_count, parse_size(stripe_size), first_ost, pool, mirrors, inline_bytes)
        spec.check()
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if delete and spec != LayoutSpec():
        raise click.UsageError("-d goes without a layout")
    for path in paths:
        set_layout(path, None if delete else spec)
    if as_json:
        print_json([describe(path) for path in paths])


def set_layout(path: str, spec: LayoutSpec | None) -> None:
    """Set the layout of a file, made if need be, or a directory's default (None: remove that). OSError that says why
    not."""
    from nacrefs.client.mount.daemon import mounted_at

    mounted_at(path)
    made = False
    try:
        if spec is None:
            os.removexattr(path, ATTRIBUTE)
            return
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
            made = True
        except FileExistsError:
            pass
        os.setxattr(path, ATTRIBUTE, format_spec(spec).encode())
    except OSError as error:
        if made:
            os.unlink(path)
        if spec is None and error.errno == errno.ENODATA:
            return
        raise _explained(error, path, spec) from None


def _explained(error: OSError, path: str, spec: LayoutSpec | None) -> OSError:
    """The error in the words that the kernel does not carry."""
    if error.errno == errno.EEXIST:
        return OSError(errno.EEXIST, "it has contents, so its layout stays: copy it to a new file instead", path)
    if error.errno == errno.EBUSY:
        return OSError(errno.EBUSY, "another client has it open", path)
    if error.errno == errno.EINVAL and spec is not None:
        wanted = [f"OST {spec.first_ost}"] if spec.first_ost >= 0 else []
        wanted += [f"pool {spec.pool!r}"] if spec.pool else []
        reason = f"there is no {' or no '.join(wanted)}, or the OST is not of the pool" if wanted else "not a file"
        return OSError(errno.EINVAL, f"{reason} (`nacre df`, `nacre pool list` show what there is)", path)
    if error.errno == errno.ENOSPC:
        return OSError(errno.ENOSPC, "not enough OSTs have room (`nacre df` shows them)", path)
    return OSError(error.errno, error.strerror, path)


@click.command("getstripe", epilog=EXIT_CODES)
@click.argument("paths", nargs=-1, required=True, metavar="PATH…")
@click.option("-r", "--recursive", is_flag=True, help="Also what is below a directory.")
@json_option
def getstripe_command(paths: Sequence[str], recursive: bool, as_json: bool) -> None:
    """Show the layout of files, and what directories give to new files."""
    from nacrefs.client.mount.daemon import mounted_at

    found: list[dict[str, Any]] = []
    for path in paths:
        mounted_at(path, follow=False)
        os.lstat(path)
        for below in _walk(path) if recursive else (path,):
            one = describe(below)
            if as_json:
                found.append(one)
            else:
                click.echo(_line(one))
    if as_json:
        print_json(found)


def _walk(path: str) -> Iterator[str]:
    """The path and, if it is a directory, all files and directories below it."""
    yield path
    if not os.path.isdir(path) or os.path.islink(path):
        return
    with os.scandir(path) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(entry.path)
            elif entry.is_file(follow_symlinks=False):
                yield entry.path


def describe(path: str) -> dict[str, Any]:
    """A file's or directory's layout as `--json` prints it."""
    try:
        text = os.getxattr(path, ATTRIBUTE, follow_symlinks=False).decode()
    except OSError as error:
        raise OSError(
            error.errno, "it has no layout" if error.errno == errno.ENODATA else error.strerror, path
        ) from None
    fields = dict(word.split("=", 1) for word in text.split())
    stat = os.lstat(path)
    return {
        "path": path,
        "kind": "directory" if os.path.isdir(path) else "file",
        "fid": format_fid(stat.st_ino),
        "stripe_count": int(fields.get("stripe_count", 0)),
        "stripe_size": int(fields.get("stripe_size", 0)),
        "mirrors": int(fields.get("mirrors", 1)),
        "first_ost": int(fields.get("first_ost", -1)),
        "pool": fields.get("pool", ""),
        "osts": [int(ost) for ost in fields["osts"].split(",")] if fields.get("osts") else [],
        "generation": int(fields.get("generation", 0)),
        "inline": int(fields.get("inline", -1)),
        "copies": _copies(fields),
    }


def _copies(fields: dict[str, str]) -> list[str]:
    """The state of each object of a file that has copies (docs/mirrors.md)."""
    if "osts" not in fields or fields.get("mirrors", "1") == "1":
        return []
    states = [CopyState.GOOD.name.lower()] * len(fields["osts"].split(","))
    for state in CopyState:
        for number in filter(None, fields.get(state.name.lower(), "").split(",")):
            states[int(number)] = state.name.lower()
    return states


def _line(one: dict[str, Any]) -> str:
    count = "all OSTs" if one["stripe_count"] == -1 else f"{one['stripe_count']} × {format_size(one['stripe_size'])}"
    words = [f"{one['path']}: {count}"]
    if one["mirrors"] > 1:
        words.append(f"{one['mirrors']} mirrors")
    if one["osts"]:
        words.append(f"OSTs {','.join(map(str, one['osts']))}")
    words += [
        f"object {number} on OST {one['osts'][number]} is {state}"
        for number, state in enumerate(one["copies"])
        if state != "good"
    ]
    if one["first_ost"] >= 0:
        words.append(f"from OST {one['first_ost']}")
    if one["pool"]:
        words.append(f"pool {one['pool']}")
    if one["inline"] >= 0:
        words.append(f"in the MDT up to {format_size(one['inline'])}")
    return ", ".join(words) + (" for new files" if one["kind"] == "directory" else "")
