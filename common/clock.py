"""Time as something that is handed in, so that tests can turn it by hand."""

import os
import time
from pathlib import Path
from typing import Protocol


class Clock(Protocol):
    """Where a server or client reads the time."""

    def now_ns(self) -> int:
        """Wall-clock time, nanoseconds since the epoch: what goes into inodes and capabilities."""
        ...

    def monotonic_s(self) -> float:
        """Seconds that only ever advance: what terms and deadlines are measured with."""
        ...


class SystemClock:
    """The machine's clocks."""

    now_ns = staticmethod(time.time_ns)
    monotonic_s = staticmethod(time.monotonic)


class ManualClock:
    """A clock that stands still until it is advanced."""

    def __init__(self, now_ns: int = 1_000_000_000_000_000_000) -> None:
        self._now_ns = now_ns
        self._monotonic_s = 0.0

    def now_ns(self) -> int:
        return self._now_ns

    def monotonic_s(self) -> float:
        return self._monotonic_s

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._now_ns += round(seconds * 1e9)
        self._monotonic_s += seconds


def boot_id() -> bytes:
    """What the machine's run since its last start is called: while it is the same, all that was written is in memory at
    least. `NACRE_BOOT_ID` in the environment says otherwise (tests that cut the power)."""
    told = os.environ.get("NACRE_BOOT_ID", "")
    return told.encode() or Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
