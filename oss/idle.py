"""Threads that read only while nobody else wants the disk.

Their priority for the processor stays: what holds Python's lock must not be kept from running by other processes, or
all of this one waits.
"""

import ctypes
import platform
from typing import Final

_IOPRIO_SET: Final = {"x86_64": 251, "aarch64": 30}
"""The system call's number; libc has no function for it (ioprio_set(2))."""
_THIS_THREAD: Final = (1, 0)
"""IOPRIO_WHO_PROCESS, which means a thread; 0: the calling one"""
_IDLE: Final = 3 << 13
"""IOPRIO_CLASS_IDLE"""
_libc = ctypes.CDLL(None, use_errno=True)


def step_back() -> None:
    """Let everybody else read before this thread. Where that cannot be, it is just one more."""
    number = _IOPRIO_SET.get(platform.machine())
    if number is not None:
        _libc.syscall(ctypes.c_long(number), *_THIS_THREAD, _IDLE)
