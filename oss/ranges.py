"""A set of byte ranges: what has been changed of an object, and what has not."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator


class Ranges:
    """Disjoint half-open ranges in order; ranges that touch are joined."""

    __slots__ = ("_ends", "_starts")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def __len__(self) -> int:
        return len(self._starts)

    @property
    def end(self) -> int:
        """End of the last range; 0 if there is none."""
        return self._ends[-1] if self._ends else 0

    def add(self, start: int, end: int) -> None:
        """Add `[start, end)`."""
        if start >= end:
            return
        first = bisect_left(self._ends, start)
        last = bisect_right(self._starts, end)
        if first < last:
            start, end = min(start, self._starts[first]), max(end, self._ends[last - 1])
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]

    def gaps(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The parts of `[start, end)` that are not in the set, in order."""
        at = bisect_right(self._ends, start)
        while start < end and at < len(self._starts):
            low, high = self._starts[at], self._ends[at]
            if low >= end:
                break
            if start < low:
                yield start, low
            start = high
            at += 1
        if start < end:
            yield start, end
