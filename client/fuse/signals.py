"""Whether a thread of another process is about to be ended by a signal."""

from signal import Signals
from typing import Final

_HARMLESS: Final = (
    Signals.SIGCHLD, Signals.SIGCONT, Signals.SIGURG, Signals.SIGWINCH, Signals.SIGSTOP, Signals.SIGTSTP,
    Signals.SIGTTIN, Signals.SIGTTOU,
)  # fmt: skip
"""Signals whose default action does not end a process (signal(7))."""
_DEADLY: Final = (1 << 64) - 1 - sum(1 << (number - 1) for number in _HARMLESS)
_SIGKILL: Final = 1 << (Signals.SIGKILL - 1)
_FIELDS: Final = ("SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt")


def is_dying(thread: int) -> bool:
    """Whether a pending signal will end this thread (by its id, in our pid namespace). False if it cannot be known.

    The kernel turns a deadly signal without handler into a pending SIGKILL for each thread, except those that dump
    core; proc(5) tells the sets.
    """
    if not thread:
        return False
    try:
        with open(f"/proc/{thread}/status", encoding="ascii", errors="replace") as lines:
            fields = dict(line.rstrip("\n").split(":", 1) for line in lines)
        pending, shared, blocked, ignored, caught = (int(fields[name], 16) for name in _FIELDS)
    except FileNotFoundError:
        return True
    except (OSError, KeyError, ValueError):
        return False
    pending |= shared
    return bool(pending & (_SIGKILL | (_DEADLY & ~(blocked | ignored | caught))))
