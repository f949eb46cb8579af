"""`mount.nacre`, which mount(8) calls for `mount -t nacre` and for fstab lines; and mounting in the background.

    mount.nacre SOURCE DIRECTORY [-fnsv] [-o OPTIONS]

Exit codes are mount(8)'s: 0 mounted, 1 wrong usage, 32 it did not work.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from nacrefs.client.mount import background as daemon
from nacrefs.client.mount.spec import MountSpec, make_spec
from nacrefs.common.config import ConfigError

USAGE: Final = 1
FAILED: Final = 32


def mount_in_background(spec: MountSpec) -> int:
    """Mount with a daemon of its own; its pid, once the mount can be used. Errors are those of `client.mount.run`."""
    from nacrefs.client.mount import daemon as mount

    log_file = os.path.abspath(spec.log_file) if spec.log_file else mount.default_log(spec.directory)
    kept = replace(spec, log_file=log_file)
    return daemon.detach(lambda ready: mount.run(kept, ready), "the mount daemon", log_file)


def main() -> None:
    """The command."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Mount as the arguments say; the exit code. An error is one line on standard error."""
    places: list[str] = []
    options: list[str] = []
    pretend = False
    words = iter(arguments)
    for word in words:
        if word == "-o":
            options.append(next(words, ""))
        elif word.startswith("-o"):
            options.append(word[2:])
        elif word.startswith("-") and len(word) > 1:
            pretend = pretend or "f" in word
        else:
            places.append(word)
    if len(places) != 2:
        print("usage: mount.nacre tcp://HOST:PORT[/SUBTREE] DIRECTORY [-o OPTIONS]", file=sys.stderr)  # noqa: T201
        return USAGE
    try:
        spec = make_spec(places[0], places[1], options)
        if not pretend:
            mount_in_background(spec)
    except ConfigError as error:
        return _failed(str(error), USAGE)
    except OSError as error:
        about = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        return _failed(f"{about}{error.strerror or error}", FAILED)
    return 0


def _failed(text: str, code: int) -> int:
    print(f"mount.nacre: {text}", file=sys.stderr)  # noqa: T201
    return code
