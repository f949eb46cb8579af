"""`nacre` commands in processes forked from one that has imported everything: in the VM that takes half a minute.

The one they are forked from has opened no RDMA device and runs no event loop.
"""

import multiprocessing
import os
import sys
import time
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from typing import Final

_NEEDED: Final = (
    "alembic.command",
    "nacrefs.client.cli.mounts",
    "nacrefs.client.cli.servers",
    "nacrefs.client.mount.daemon",
    "nacrefs.client.mount.helper",
    "nacrefs.mds.cli",
    "nacrefs.mds.database",
    "nacrefs.mds.server",
    "nacrefs.oss.cli",
    "nacrefs.oss.server",
    "tests.rdma.victim",
    "uvloop",
    __name__,
)


def forkserver() -> ForkServerContext:
    """What forks processes of the one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_NEEDED))
    ensure_running()
    return context


class Nacre:
    """Runs commands; what they print goes to files in `directory`."""

    def __init__(self, directory: Path) -> None:
        self._context = forkserver()
        self._directory = directory
        self._count = 0

    def start(self, words: list[str], output: Path) -> ForkServerProcess:
        """A command that goes on; the caller ends and joins it."""
        process = self._context.Process(target=_command, args=(words, str(output)))
        process.start()
        return process

    def run(self, *words: str | Path, room_s: float) -> str:
        """What a command prints; it must succeed, in `room_s`. How long it took goes to standard error."""
        self._count += 1
        output = self._directory / f"output{self._count}"
        began_s = time.monotonic()
        process = self.start([str(word) for word in words], output)
        process.join(room_s)
        code = process.exitcode
        if code is None:
            process.kill()
            process.join()
        process.close()
        sys.stderr.write(f"{time.monotonic() - began_s:6.1f} s: nacre {' '.join(map(str, words[:2]))}\n")
        printed = output.read_text()
        assert code == 0, (words, code, printed)
        return printed


def _command(words: list[str], output: str) -> None:
    """The life of a forked process."""
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    from nacrefs.client.cli import main

    main(words)
