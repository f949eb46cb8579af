"""A process beside a mount daemon that ends the mount's connection if the daemon dies and leaves it open.

A daemon that is killed while one of its threads waits in the kernel (dropping a name waits for the lock of its
directory) does not end: the thread waits for a program, the program for an answer of the daemon, and the thread keeps
`/dev/fuse` open, so that the kernel goes on waiting for that answer. No pipe tells of such a death, since the thread
keeps all descriptors; the kernel's parent-death signal does, for it is sent when the *thread* dies that made a process.
Hence the guard is made by the main thread. It is another program (`guardian`) rather than a fork that stays as it is:
that would keep a copy of what the daemon changes later.
"""

import contextlib
import ctypes
import os
import signal
import sys
from typing import Final, NoReturn

from nacrefs.client.fuse import guardian
from nacrefs.client.fuse.mounting import MountEntry

_PR_SET_PDEATHSIG: Final = 1
_libc = ctypes.CDLL(None, use_errno=True)


class Guard:
    """To be made by the main thread, before there is any other; `dismiss` ends it, once there is no mount any more."""

    def __init__(self, directory: str) -> None:
        told, self._tell = os.pipe2(os.O_CLOEXEC)
        self.pid = os.fork()
        if not self.pid:
            _become_guardian(told, directory)
        os.close(told)

    def watch(self, mount: MountEntry) -> None:
        """What is mounted: from now on the end of the main thread ends its connection."""
        with contextlib.suppress(BrokenPipeError):  # somebody has killed it
            os.write(self._tell, f"{mount.number} {mount.device}".encode())
        self._close()

    def dismiss(self) -> None:
        """The guard ends, without doing anything."""
        self._close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)

    def _close(self) -> None:
        if self._tell >= 0:
            os.close(self._tell)
            self._tell = -1


def _become_guardian(told: int, directory: str) -> NoReturn:
    """In the child: nothing of the daemon stays but the pipe, as standard input."""
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        _libc.prctl(_PR_SET_PDEATHSIG, guardian.DEATH)
        os.setsid()
        os.chdir("/")
        null = os.open(os.devnull, os.O_RDWR)
        for number, source in enumerate((told, null, null)):
            os.dup2(source, number)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        os.execv(sys.executable, [sys.executable, "-I", "-S", "-B", guardian.__file__, directory])
    finally:
        os._exit(1)
