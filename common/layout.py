"""Striping: which object of which OST holds which bytes of a file. Pure arithmetic.

A file of `stripe_count` stripes is cut into units of `stripe_bytes`; unit `n` belongs to stripe `n % stripe_count`
(RAID-0, as in Lustre's `lfs setstripe`). The object of a stripe is a sparse file in which every byte stands at its
*file* offset, so no offset is ever translated. With mirrors, copy `m` of stripe `s` is object number
`m * stripe_count + s`; `osts[number]` is the OST that holds it.
"""

import enum
from collections.abc import Iterator
from typing import Final, NamedTuple

import msgspec

BLOCK_BYTES: Final = 64 * 1024
"""Checksum block: every stored xxh3-64 covers one block of this size; stripe sizes are multiples of it."""

STRIPES_MAX: Final = 2000
"""As many OSTs as one file may be spread over (Lustre's own limit)."""

STRIPE_BYTES_MAX: Final = 1 << 31

INLINE_BYTES_MAX: Final = 64 * 1024
"""Largest inline limit: what lies in the MDT is committed as one piece."""


MIRRORS_MAX: Final = 3
"""Most copies of a stripe."""


class CopyState(enum.IntEnum):
    """What is known of one copy of a stripe (docs/mirrors.md). The order is used: a lower one is better."""

    GOOD = 0
    """it has every acknowledged byte: may be read, is written"""
    UNSURE = 1
    """it has every acknowledged byte, but perhaps others where writes were under way when their client died, or where
    clients wrote the same place at once: is written, and becomes GOOD when no GOOD one is left"""
    SYNCING = 2
    """it lacks bytes and is being made equal: is written, not read"""
    LOST = 3
    """it lacks bytes: neither written nor read"""


class Layout(msgspec.Struct, frozen=True, array_like=True):
    """Where a file's bytes live.

    `osts` has `stripe_count * mirrors` entries, by object number. `generation` grows whenever the set of objects
    changes (release, migration, resync); I/O with an older generation is refused by the OSTs. As long as the file has
    no objects and at most `inline_bytes` (-1: the MDT's default), its contents live in the MDT. `states` is empty while
    all copies are GOOD; otherwise it has a `CopyState` for each object.
    """

    stripe_bytes: int
    stripe_count: int
    osts: tuple[int, ...]
    mirrors: int = 1
    generation: int = 0
    inline_bytes: int = -1
    states: tuple[int, ...] = ()

    def stripe_of(self, offset: int) -> int:
        """The stripe that holds the byte at `offset`."""
        return offset // self.stripe_bytes % self.stripe_count

    def objects_of(self, stripe: int) -> tuple[int, ...]:
        """The object numbers that hold copies of a stripe, first copy first."""
        return tuple(mirror * self.stripe_count + stripe for mirror in range(self.mirrors))

    def lies_on(self, number: int, ost: int) -> bool:
        """Whether there is an object `number`, on this OST."""
        return number < len(self.osts) and self.osts[number] == ost

    def state_of(self, number: int) -> CopyState:
        """What is known of an object."""
        return CopyState(self.states[number]) if self.states else CopyState.GOOD

    def readable(self, stripe: int) -> tuple[int, ...]:
        """The object numbers that a stripe may be read from, the one to prefer first."""
        numbers = self.objects_of(stripe)
        return tuple(number for number in numbers if not self.states[number]) if self.states else numbers

    def writable(self, stripe: int) -> tuple[int, ...]:
        """The object numbers that every change of a stripe must reach."""
        numbers = self.objects_of(stripe)
        if not self.states:
            return numbers
        return tuple(number for number in numbers if self.states[number] != CopyState.LOST)


class LayoutSpec(msgspec.Struct, frozen=True, array_like=True):
    """What a user asks for with `nacre setstripe`; 0, -1 or an empty pool mean "the default".

    `stripe_count` -1 means all OSTs of the pool. `first_ost` -1 lets the MDS choose. `inline_bytes` 0 puts all contents
    on OSTs, -1 means the default.
    """

    stripe_count: int = 0
    stripe_bytes: int = 0
    first_ost: int = -1
    pool: str = ""
    mirrors: int = 1
    inline_bytes: int = -1

    def check(self) -> None:
        """ValueError, saying what is wrong and what is allowed, unless this can be a layout."""
        if self.stripe_bytes and (self.stripe_bytes < BLOCK_BYTES or self.stripe_bytes % BLOCK_BYTES):
            raise ValueError(f"stripe size {self.stripe_bytes} is not a multiple of {BLOCK_BYTES} bytes (64 KiB)")
        if self.stripe_bytes > STRIPE_BYTES_MAX:
            raise ValueError(f"stripe size {self.stripe_bytes} is above {STRIPE_BYTES_MAX} bytes (2 GiB)")
        if not -1 <= self.stripe_count <= STRIPES_MAX:
            raise ValueError(f"stripe count {self.stripe_count} is not -1 (all OSTs), 0 (default) or 1..{STRIPES_MAX}")
        if self.first_ost < -1:
            raise ValueError(f"first OST {self.first_ost} is not -1 (any) or an OST index")
        if not 1 <= self.mirrors <= MIRRORS_MAX:
            raise ValueError(f"mirror count {self.mirrors} is not in 1..{MIRRORS_MAX}")
        if not -1 <= self.inline_bytes <= INLINE_BYTES_MAX:
            raise ValueError(f"inline limit {self.inline_bytes} is not in 0..{INLINE_BYTES_MAX} bytes (64 KiB)")
        if len(self.pool) > 63:
            raise ValueError("pool name is longer than 63 characters")


class Piece(NamedTuple):
    """A run of bytes `[start, end)` of a file that lies in one stripe."""

    stripe: int
    start: int
    end: int


def pieces(layout: Layout, start: int, end: int) -> Iterator[Piece]:
    """The file range `[start, end)` cut at stripe borders, in file order; with one stripe it is never cut."""
    if layout.stripe_count == 1:
        if start < end:
            yield Piece(0, start, end)
        return
    unit = layout.stripe_bytes
    while start < end:
        border = min(end, (start // unit + 1) * unit)
        yield Piece(start // unit % layout.stripe_count, start, border)
        start = border


def by_stripe(layout: Layout, start: int, end: int) -> dict[int, list[tuple[int, int]]]:
    """The file range `[start, end)` as the extents `(start, end)` that each stripe holds of it, in file order."""
    extents: dict[int, list[tuple[int, int]]] = {}
    for stripe, piece_start, piece_end in pieces(layout, start, end):
        extents.setdefault(stripe, []).append((piece_start, piece_end))
    return extents


def blocks(start: int, end: int) -> Iterator[tuple[int, int]]:
    """The range `[start, end)` cut at checksum-block borders; these are the units that checksums cover on the wire."""
    while start < end:
        border = min(end, (start // BLOCK_BYTES + 1) * BLOCK_BYTES)
        yield start, border
        start = border


def block_count(start: int, end: int) -> int:
    """How many checksum blocks the range `[start, end)` touches."""
    return 0 if start >= end else (end - 1) // BLOCK_BYTES - start // BLOCK_BYTES + 1
