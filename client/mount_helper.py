"""`mount.nacre`, which mount(8) runs for `mount -t nacre tcp://host:port/subtree /mnt` and for fstab's lines.

mount(8) looks for it in /sbin, so `ln -s "$(command -v mount.nacre)" /sbin/` once. It turns util-linux's arguments into
`nacre mount`, which goes to the background once the directory can be used. Exit codes are mount(8)'s.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Final, NamedTuple

OK: Final = 0
USAGE: Final = 1
SYSTEM: Final = 2
INTERRUPTED: Final = 8
FAILED: Final = 32

NACRE_MOUNT: Final = (sys.executable, "-m", "nacrefs.client.cli", "mount")

_FOR_MOUNT_ONLY: Final = frozenset(
    ("defaults", "auto", "noauto", "user", "nouser", "users", "owner", "group", "_netdev", "nofail", "rw", "async")
)
"""fstab's words for mount(8) and systemd; the file system has no use for them."""


class UsageError(Exception):
    """The arguments are not those of mount(8); the text says why."""


class Arguments(NamedTuple):
    """What mount(8) asks for. `fake`: check everything but do not mount."""

    source: str
    directory: str
    options: tuple[str, ...]
    fake: bool = False
    verbose: bool = False


def parse(argv: Sequence[str]) -> Arguments:
    """`source directory [-sfnv] [-N namespace] [-o options] [-t type]`, in any order; raises UsageError."""
    places: list[str] = []
    options: list[str] = []
    fake = verbose = False
    words = iter(argv)
    for word in words:
        if not word.startswith("-") or word == "-":
            places.append(word)
            continue
        for at, letter in enumerate(word[1:], 2):
            if letter in "oNt":
                value = word[at:] or next(words, None)
                if value is None:
                    raise UsageError(f"-{letter} needs a value")
                if letter == "o":
                    options += value.split(",")
                elif letter == "N":
                    raise UsageError("-N: mounting into another namespace is not supported; use nsenter(1)")
                break
            if letter not in "sfnv":  # s: be lenient about options, n: no mtab (there is none)
                raise UsageError(f"unknown option -{letter}")
            fake |= letter == "f"
            verbose |= letter == "v"
    if len(places) != 2:
        raise UsageError("usage: mount.nacre URL DIRECTORY [-fnsv] [-o OPTIONS]   (URL: tcp://host:port[/subtree])")
    if "remount" in options:
        raise UsageError("remounting is not supported: unmount, and mount with the new options")
    kept = (
        word for word in options if word and word not in _FOR_MOUNT_ONLY and not word.startswith(("x-", "comment="))
    )
    return Arguments(places[0], places[1], tuple(kept), fake, verbose)


def run(argv: Sequence[str], command: Sequence[str] = NACRE_MOUNT) -> int:
    """Mount as `argv` says by running `command`; the exit code of mount(8)."""
    try:
        wanted = parse(argv)
    except UsageError as error:
        return _say(str(error), USAGE)
    if wanted.fake:
        return OK
    line = [*command, wanted.source, wanted.directory]
    if wanted.options:
        line += ["-o", ",".join(wanted.options)]
    if wanted.verbose:
        print(" ".join(line), file=sys.stderr)  # noqa: T201
    try:
        code = subprocess.run(line, stdin=subprocess.DEVNULL, check=False).returncode
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:
        return _say(f"cannot run {line[0]}: {os.strerror(error.errno or 0)}", SYSTEM)
    return OK if code == 0 else FAILED


def _say(text: str, code: int) -> int:
    print(f"mount.nacre: {text}", file=sys.stderr)  # noqa: T201
    return code


def main() -> None:
    """Entry point of the command `mount.nacre`."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
