"""Sums of the 4 KiB pages of blocks that were verified as a whole, so that reading one page again reads one page.

A block is verified as a whole before a part of it is served: for 4 KiB that is 64 KiB read and hashed, and that much
driven out of the processor's cache. What is remembered is found by the block's own sum: when the block changes, its sum
does, and nobody finds what is not true any more. A page that does not match proves nothing; then the whole block is
looked at. docs/adr/0019-small-requests.md.
"""

import struct
from typing import Final

import xxhash

from nacrefs.common.checksum import SUM_BYTES
from nacrefs.common.layout import BLOCK_BYTES

PAGE_BYTES: Final = 4096
_BLOCKS_MAX: Final = 16384
"""A GiB of blocks: 5 MiB of memory."""
_SUMS: Final = struct.Struct(f"<{BLOCK_BYTES // PAGE_BYTES}Q")
_hash = xxhash.xxh3_64_intdigest


class PageSums:
    """What is known of one OST's blocks. The oldest goes first."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[bytes, bytes] = {}

    def of(self, block_sum: bytes, start: int) -> bytes | None:
        """The sum of the page that begins at `start` in the block that has this sum; None if it is not known."""
        sums = self._known.get(block_sum)
        if sums is None:
            return None
        at = start // PAGE_BYTES * SUM_BYTES
        return sums[at : at + SUM_BYTES]

    def learn(self, block_sum: bytes, block: memoryview) -> None:
        """A whole block's bytes have this sum."""
        known = self._known
        if len(known) >= _BLOCKS_MAX:
            del known[next(iter(known))]
        known[block_sum] = _SUMS.pack(*[_hash(block[at : at + PAGE_BYTES]) for at in range(0, BLOCK_BYTES, PAGE_BYTES)])
