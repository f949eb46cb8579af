"""Byte-range locks of one owner on one file: how they replace each other, split and merge. No I/O, no waiting.

The rules are fcntl(2)'s: an owner has at most one kind of lock on each byte; a new lock or an unlock replaces what it
covers, and locks of one kind that touch are one lock.
"""

from typing import Final, NamedTuple

from nacrefs.common.wire import LockKind

TO_EOF: Final = 1 << 63
"""The end of a lock that reaches to the end of every file (`l_len` 0)."""


class Span(NamedTuple):
    """Bytes `[start, end)` and what they are locked for."""

    start: int
    end: int
    kind: LockKind


class Ranges:
    """One owner's locks: disjoint spans in order."""

    __slots__ = ("spans",)

    def __init__(self) -> None:
        self.spans: list[Span] = []

    def __bool__(self) -> bool:
        return bool(self.spans)

    def set(self, start: int, end: int, kind: LockKind) -> bool:
        """Lock `[start, end)` for `kind`, or unlock it; whether some byte is locked less than before."""
        unlock = kind == LockKind.UNLOCK
        less = False
        kept: list[Span] = []
        at = 0
        for span in self.spans:
            if span.end < start or (span.end == start and (unlock or span.kind != kind)):
                kept.append(span)
                at = len(kept)
            elif span.start > end or (span.start == end and (unlock or span.kind != kind)):
                kept.append(span)
            elif span.kind == kind:  # touches or overlaps, and means the same
                start, end = min(start, span.start), max(end, span.end)
            else:
                less = less or kind != LockKind.WRITE
                if span.start < start:
                    kept.append(Span(span.start, start, span.kind))
                    at = len(kept)
                if span.end > end:
                    kept.append(Span(end, span.end, span.kind))
        if not unlock:
            kept.insert(at, Span(start, end, kind))
        self.spans = kept
        return less

    def conflict(self, start: int, end: int, kind: LockKind) -> Span | None:
        """The first span that keeps somebody else from locking `[start, end)` for `kind`."""
        for span in self.spans:
            if span.start >= end:
                return None
            if span.end > start and (kind == LockKind.WRITE or span.kind == LockKind.WRITE):
                return span
        return None
