"""`nacre find`, after `lfs find` and find(1)."""

import fnmatch
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import click

from nacrefs.client.cli.outcome import EXIT_CODES, ExitCode, json_option, print_json
from nacrefs.client.cli.stripes import describe
from nacrefs.common.config import parse_duration, parse_size

_TYPES: Final = {
    "f": stat.S_ISREG, "d": stat.S_ISDIR, "l": stat.S_ISLNK, "b": stat.S_ISBLK, "c": stat.S_ISCHR, "p": stat.S_ISFIFO,
    "s": stat.S_ISSOCK,
}  # fmt: skip


@dataclass(frozen=True)
class Found:
    """A file that is looked at."""

    path: str
    name: str
    stat: os.stat_result


Test = Callable[[Found], bool]


Bound = tuple[str, float]
"""`+N` (more), `-N` (less) or `N`: the sign, `+`, `-` or empty, and the number."""


def _bound(parse: Callable[[str], float]) -> Callable[[click.Context, click.Parameter, str | None], Bound | None]:
    """What turns the text of an option into a bound."""

    def convert(ctx: click.Context, param: click.Parameter, value: str | None) -> Bound | None:
        if value is None:
            return None
        sign = value[0] if value[:1] in ("+", "-") else ""
        try:
            return sign, parse(value[len(sign) :])
        except ValueError as error:
            raise click.BadParameter(str(error), ctx, param) from None

    return convert


_size: Final = _bound(parse_size)
_age: Final = _bound(lambda text: parse_duration(f"{text}d" if text.isdigit() else text))
_count: Final = _bound(int)


@click.command("find", epilog=EXIT_CODES)
@click.argument("paths", nargs=-1, required=True, metavar="PATH…")
@click.option("--name", "-name", multiple=True, metavar="PATTERN", help="Name matches a shell pattern; repeatable: or.")
@click.option("--type", "-type", "kinds", metavar="fdlbcps", help="One of these kinds, as in find(1).")
@click.option("--size", "-size", metavar="[+-]SIZE", callback=_size, help="More, less or just so large: +1M, -4K, 0.")
@click.option(
    "--mtime",
    "-mtime",
    metavar="[+-]AGE",
    callback=_age,
    help="Changed longer or shorter ago: +30d, -12h; a bare number is days.",
)
@click.option("--atime", "-atime", metavar="[+-]AGE", callback=_age, help="The same of the last access.")
@click.option("--newer", "-newer", metavar="FILE", help="Changed after FILE was.")
@click.option("--uid", "-uid", "-u", metavar="USER", help="Of this user, by name or number.")
@click.option("--gid", "-gid", "-g", metavar="GROUP", help="Of this group, by name or number.")
@click.option("--links", "-links", metavar="[+-]N", callback=_count, help="With so many names.")
@click.option(
    "--stripe-count", "-stripe-count", "-c", metavar="[+-]N", callback=_count, help="Files with so many stripes."
)
@click.option(
    "--stripe-size", "-stripe-size", "-S", metavar="[+-]SIZE", callback=_size, help="Files with stripes of this size."
)
@click.option("--ost", "-ost", "-i", type=int, multiple=True, help="Files with an object on this OST; repeatable: or.")
@click.option("--pool", "-pool", "-p", metavar="POOL", help="Files all whose objects are on OSTs of this pool.")
@click.option("--maxdepth", "-maxdepth", type=click.IntRange(min=0), help="Go down so far at most.")
@click.option("--not", "invert", is_flag=True, help="Show what does not fit instead.")
@click.option("--print0", "-print0", "-0", is_flag=True, help="End each path with NUL instead of a new line.")
@json_option
def find_command(
    paths: Sequence[str],
    maxdepth: int | None,
    invert: bool,
    print0: bool,
    as_json: bool,
    **wanted: Any,
) -> None:
    """Show the files below each PATH that fit all that is asked.

    Options may also be written as in find(1): -name -type -size.

    Ends with 1 if some directory could not be read; the others are shown nevertheless.
    """
    tests = _tests(wanted, paths[0])
    failed = False

    def complain(error: OSError) -> None:
        nonlocal failed
        failed = True
        click.echo(f"nacre: {error.filename}: {error.strerror}", err=True)

    end = b"\0" if print0 else b"\n"
    shown: list[dict[str, Any]] = []
    out = sys.stdout.buffer
    for path in paths:
        os.lstat(path)
        for one in walk(path, maxdepth, complain):
            try:
                fits = all(test(one) for test in tests)
            except FileNotFoundError:
                continue  # gone meanwhile
            if fits == invert:
                continue
            if as_json:
                shown.append(_document(one))
            else:
                out.write(os.fsencode(one.path) + end)
    out.flush()
    if as_json:
        print_json(shown)
    click.get_current_context().exit(ExitCode.FAILED if failed else ExitCode.OK)


def walk(path: str, maxdepth: int | None, complain: Callable[[OSError], None]) -> Iterator[Found]:
    """The path and everything below it, parents first. What cannot be read is told to `complain`."""
    yield Found(path, os.path.basename(path.rstrip("/")) or path, os.lstat(path))
    below: list[tuple[str, int]] = [(path, 1)] if os.path.isdir(path) and not os.path.islink(path) else []
    while below:
        directory, depth = below.pop()
        if maxdepth is not None and depth > maxdepth:
            continue
        deeper: list[tuple[str, int]] = []
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    try:
                        yield Found(entry.path, entry.name, entry.stat(follow_symlinks=False))
                    except FileNotFoundError:
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        deeper.append((entry.path, depth + 1))
        except OSError as error:
            complain(error)
        below += reversed(deeper)


def _document(one: Found) -> dict[str, Any]:
    kind = next((letter for letter, is_kind in _TYPES.items() if is_kind(one.stat.st_mode)), "?")
    return {
        "path": one.path,
        "type": kind,
        "size": one.stat.st_size,
        "mode": stat.S_IMODE(one.stat.st_mode),
        "uid": one.stat.st_uid,
        "gid": one.stat.st_gid,
        "mtime_ns": one.stat.st_mtime_ns,
        "inode": one.stat.st_ino,
    }


# ---------------------------------------------------------------------------------------------------------------- tests


def _tests(wanted: dict[str, Any], where: str) -> list[Test]:
    """What every file must pass, the cheap ones first: only the layout costs a request per file."""
    tests: list[Test] = []
    if names := wanted["name"]:
        tests.append(lambda one: any(fnmatch.fnmatchcase(one.name, pattern) for pattern in names))
    if kinds := wanted["kinds"]:
        if unknown := set(kinds) - set(_TYPES):
            raise click.UsageError(f"there is no type {sorted(unknown)[0]!r} (f d l b c p s)")
        tests.append(lambda one: any(_TYPES[kind](one.stat.st_mode) for kind in kinds))
    if wanted["size"] is not None:
        tests.append(_bounded(wanted["size"], lambda one: one.stat.st_size))
    if wanted["links"] is not None:
        tests.append(_bounded(wanted["links"], lambda one: one.stat.st_nlink))
    now = time.time()
    if wanted["mtime"] is not None:
        tests.append(_bounded(wanted["mtime"], lambda one: now - one.stat.st_mtime))
    if wanted["atime"] is not None:
        tests.append(_bounded(wanted["atime"], lambda one: now - one.stat.st_atime))
    if wanted["newer"] is not None:
        than_ns = os.stat(wanted["newer"]).st_mtime_ns
        tests.append(lambda one: one.stat.st_mtime_ns > than_ns)
    if wanted["uid"] is not None:
        uid = _id_of(wanted["uid"], "user")
        tests.append(lambda one: one.stat.st_uid == uid)
    if wanted["gid"] is not None:
        gid = _id_of(wanted["gid"], "group")
        tests.append(lambda one: one.stat.st_gid == gid)
    if layout := _layout_tests(wanted, where):
        tests.append(lambda one: _passes(one, layout))
    return tests


def _bounded(bound: tuple[str, float], value: Callable[[Found], float]) -> Test:
    sign, limit = bound
    if sign == "+":
        return lambda one: value(one) > limit
    if sign == "-":
        return lambda one: value(one) < limit
    return lambda one: value(one) == limit


def _id_of(text: str, what: str) -> int:
    if text.isdigit():
        return int(text)
    import grp
    import pwd

    try:
        return pwd.getpwnam(text).pw_uid if what == "user" else grp.getgrnam(text).gr_gid
    except KeyError:
        raise click.UsageError(f"there is no {what} {text!r}") from None


def _layout_tests(wanted: dict[str, Any], where: str) -> list[Callable[[dict[str, Any]], bool]]:
    tests: list[Callable[[dict[str, Any]], bool]] = []
    for key in ("stripe_count", "stripe_size"):
        if wanted[key] is not None:
            sign, limit = wanted[key]
            tests.append(_layout_bounded(key, sign, limit))
    if osts := set(wanted["ost"]):
        tests.append(lambda layout: bool(osts.intersection(layout["osts"])))
    if wanted["pool"] is not None:
        from nacrefs.client.mount.daemon import ask_json

        members = {ost["index"] for ost in ask_json(where, "df")["osts"] if wanted["pool"] in ost["pools"]}
        if not members:
            raise click.UsageError(f"there is no pool {wanted['pool']!r}")
        tests.append(lambda layout: bool(layout["osts"]) and members.issuperset(layout["osts"]))
    return tests


def _layout_bounded(key: str, sign: str, limit: float) -> Callable[[dict[str, Any]], bool]:
    return lambda layout: {"+": layout[key] > limit, "-": layout[key] < limit, "": layout[key] == limit}[sign]


def _passes(one: Found, tests: Sequence[Callable[[dict[str, Any]], bool]]) -> bool:
    if not stat.S_ISREG(one.stat.st_mode):
        return False
    layout = describe(one.path)
    return all(test(layout) for test in tests)
