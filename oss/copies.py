"""What an OST knows of its copies of mirrored files beyond their bytes (docs/mirrors.md).

`floors`: the oldest layout generation whose I/O an object may see. They come from the MDS: when a copy stops being
good, and all of them when the OSS registers. `trackers`: what has been changed of objects that are being made equal.
"""

import errno
import time
from typing import Final

from nacrefs.common.fid import format_fid
from nacrefs.oss.ranges import Ranges

_OFFSET_END: Final = 1 << 63
"""Behind every offset."""

Key = tuple[int, int]
"""fid and object number"""


class Tracker:
    """What clients and the MDS have changed of an object since a resync of it began under `generation`."""

    __slots__ = ("changed", "generation", "paused", "written_end")

    def __init__(self, generation: int) -> None:
        self.generation = generation
        self.changed = Ranges()
        self.written_end = 0
        """End of the last byte that was written since and is still there."""
        self.paused = False
        """The resync's own changes do not count."""

    def wrote(self, start: int, end: int) -> None:
        """These bytes were written."""
        if not self.paused:
            self.changed.add(start, end)
            self.written_end = max(self.written_end, end)

    def punched(self, start: int, end: int) -> None:
        """These bytes were made a hole."""
        if not self.paused:
            self.changed.add(start, end)

    def cut(self, size: int) -> None:
        """The object was cut at `size`, if it was longer."""
        if not self.paused:
            self.changed.add(size, _OFFSET_END)
            self.written_end = min(self.written_end, size)


class Copies:
    """Floors and trackers of one OST."""

    __slots__ = ("floors", "trackers")

    def __init__(self) -> None:
        self.floors: dict[Key, int] = {}
        self.trackers: dict[Key, Tracker] = {}

    def raise_floor(self, key: Key, generation: int) -> None:
        """No I/O of an older generation from now on."""
        if self.floors.get(key, 0) < generation:
            self.floors[key] = generation

    def check(self, fid: int, number: int, generation: int, where: str) -> None:
        """ESTALE if I/O of this generation must not see the object."""
        floor = self.floors.get((fid, number))
        if floor is not None and generation < floor:
            raise OSError(
                errno.ESTALE,
                f"{where}: layout generation {generation} of {format_fid(fid)} is outdated, {floor} is the MDS's; "
                f"ask it again",
            )


class MdsTime:
    """The MDS's clock, by which capabilities expire: what this machine's own says, or jumps to, does not count."""

    __slots__ = ("_ahead_s",)

    def __init__(self) -> None:
        self._ahead_s = time.time() - Trust.now_s()

    def heard(self, now_s: float) -> None:
        """The MDS has said what time it is (0: it does not say)."""
        if now_s:
            self._ahead_s = now_s - Trust.now_s()

    def now_s(self) -> float:
        """Seconds since 1970."""
        return Trust.now_s() + self._ahead_s


class Trust:
    """How long this OSS may rely on what the MDS has told it: an MDS that does not hear of it for that long decides
    without it, and cannot tell it."""

    __slots__ = ("fences_until_s", "until_s")

    def __init__(self) -> None:
        self.until_s = 0.0
        """For which copies of mirrored files are good; over when the connection is lost."""
        self.fences_until_s = 0.0
        """For who is fenced. (Not over with the connection, so that I/O goes on while the MDS is restarted.)"""

    def heard(self, asked_s: float, silence_s: float) -> None:
        """The MDS has answered what it was asked at `asked_s`."""
        self.until_s = self.fences_until_s = asked_s + silence_s

    def lost(self) -> None:
        """The connection to the MDS is gone."""
        self.until_s = 0.0

    @staticmethod
    def now_s() -> float:
        """Seconds since boot, also while the machine was suspended."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def check(self) -> None:
        """EHOSTDOWN if the MDS has not been heard for too long."""
        if self.now_s() >= self.until_s:
            raise OSError(
                errno.EHOSTDOWN, "this OSS is cut off from the MDS and does not know which of its copies are good"
            )
