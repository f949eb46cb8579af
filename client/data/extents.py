"""Dirty data of one file: extents in order that never overlap, the newest bytes for every offset.

Bytes stay where the caller put them; only small writes that follow each other are gathered in a buffer of their own.
Bytes of an extent never change once they are in (a later write cuts the extent, it does not write into it), so
whoever took a view of them (a read, a request under way) may keep it.
"""

from bisect import bisect_right
from collections.abc import Iterator
from typing import Final

GATHER_BYTES: Final = 64 * 1024
"""Writes smaller than this are gathered with what they follow."""
_BUFFER_BYTES: Final = 256 * 1024


class Extent:
    """Bytes `[start, end)` of a file. `room` is the buffer that they can go on growing in, if they are gathered."""

    __slots__ = ("end", "room", "start", "view")

    def __init__(self, start: int, view: memoryview, room: bytearray | None = None) -> None:
        self.start = start
        self.end = start + len(view)
        self.view = view
        self.room = room

    def part(self, start: int, end: int) -> memoryview:
        """The bytes `[start, end)`, which lie within the extent."""
        if start == self.start and end == self.end:
            return self.view
        return self.view[start - self.start : end - self.start]


class Extents:
    """A sorted set of extents. `bytes` is how many bytes they have together."""

    __slots__ = ("_list", "_starts", "bytes")

    def __init__(self) -> None:
        self._list: list[Extent] = []
        self._starts: list[int] = []
        self.bytes = 0

    def __bool__(self) -> bool:
        return bool(self._list)

    def __len__(self) -> int:
        return len(self._list)

    def __iter__(self) -> Iterator[Extent]:
        return iter(self._list)

    @property
    def end(self) -> int:
        """End of the last extent; 0 if there is none."""
        return self._list[-1].end if self._list else 0

    def put(self, start: int, data: memoryview) -> None:
        """New bytes, which replace what was there."""
        size = len(data)
        if not size:
            return
        if self._list:
            last = self._list[-1]
            if start == last.end:  # the common case: the file is written in order
                if size >= GATHER_BYTES or not self._gather(last, data):
                    self._list.append(Extent(start, data))
                    self._starts.append(start)
                self.bytes += size
                return
            if start < last.end:
                self.cut(start, start + size)
        index = bisect_right(self._starts, start)
        if size < GATHER_BYTES and index:
            before = self._list[index - 1]
            if before.end == start and self._gather(before, data):
                self.bytes += size
                return
        self._list.insert(index, Extent(start, data))
        self._starts.insert(index, start)
        self.bytes += size

    @staticmethod
    def _gather(extent: Extent, data: memoryview) -> bool:
        """Append small data to an extent's own buffer; False if it has to be an extent of its own."""
        length, size = len(extent.view), len(data)
        if extent.room is None or length + size > len(extent.room):
            if (extent.room is None and length >= GATHER_BYTES) or length + size > _BUFFER_BYTES:
                return False
            room = bytearray(min(_BUFFER_BYTES, 4 * (length + size)))
            room[:length] = extent.view
            extent.room = room
        extent.room[length : length + size] = data
        extent.view = memoryview(extent.room)[: length + size]
        extent.end += size
        return True

    def append(self, extent: Extent) -> None:
        """An extent that begins at or after the end of the last one."""
        self._list.append(extent)
        self._starts.append(extent.start)
        self.bytes += extent.end - extent.start

    def put_below(self, start: int, data: memoryview) -> None:
        """Bytes that are older than all that is here: they fill only the gaps."""
        end = start + len(data)
        gaps: list[tuple[int, int]] = []
        at = start
        for extent in self.within(start, end):
            if extent.start > at:
                gaps.append((at, extent.start))
            at = max(at, extent.end)
        if at < end:
            gaps.append((at, end))
        for gap_start, gap_end in gaps:
            index = bisect_right(self._starts, gap_start)
            self._list.insert(index, Extent(gap_start, data[gap_start - start : gap_end - start]))
            self._starts.insert(index, gap_start)
            self.bytes += gap_end - gap_start

    def within(self, start: int, end: int) -> list[Extent]:
        """The extents that have bytes of `[start, end)`."""
        low = self._first(start)
        high = low
        while high < len(self._list) and self._list[high].start < end:
            high += 1
        return self._list[low:high]

    def _first(self, start: int) -> int:
        """Index of the first extent that ends after `start`."""
        index = bisect_right(self._starts, start)
        if index and self._list[index - 1].end > start:
            index -= 1
        return index

    def cut(self, start: int, end: int) -> int:
        """Drop the bytes `[start, end)`; how many of them there were."""
        low = self._first(start)
        high = low
        kept: list[Extent] = []
        gone = 0
        while high < len(self._list) and self._list[high].start < end:
            extent = self._list[high]
            gone += min(end, extent.end) - max(start, extent.start)
            if extent.start < start:
                kept.append(Extent(extent.start, extent.part(extent.start, start)))
            if extent.end > end:
                kept.append(Extent(end, extent.part(end, extent.end)))
            high += 1
        if gone:
            self._list[low:high] = kept
            self._starts[low:high] = [extent.start for extent in kept]
            self.bytes -= gone
        return gone

    def take(self, most_bytes: int, start: int = 0) -> list[Extent]:
        """Remove and return extents from `start` on (in order), until they have about `most_bytes`."""
        low = high = self._first(start)
        total = 0
        while high < len(self._list) and (not total or total + len(self._list[high].view) <= most_bytes):
            total += len(self._list[high].view)
            high += 1
        taken = self._list[low:high]
        del self._list[low:high]
        del self._starts[low:high]
        self.bytes -= total
        return taken

    def clear(self) -> int:
        """Drop everything; how many bytes that were."""
        gone = self.bytes
        self._list.clear()
        self._starts.clear()
        self.bytes = 0
        return gone

    def runs(self, start: int, end: int) -> list[tuple[int, int]]:
        """The parts of `[start, end)` that are here, adjacent ones merged."""
        merged: list[tuple[int, int]] = []
        for extent in self.within(start, end):
            low, high = max(start, extent.start), min(end, extent.end)
            if merged and merged[-1][1] == low:
                merged[-1] = (merged[-1][0], high)
            else:
                merged.append((low, high))
        return merged


def overlay(extents: list[Extent], start: int, target: memoryview) -> None:
    """Copy the bytes that `extents` have of `[start, start + len(target))` over `target`."""
    end = start + len(target)
    for extent in extents:
        low, high = max(start, extent.start), min(end, extent.end)
        if low < high:
            target[low - start : high - start] = extent.part(low, high)
