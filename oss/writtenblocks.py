"""The blocks that were written in part last: who writes the next part need not read and verify them again.

A block's sum covers 64 KiB, so a part of one is written by reading the block, verifying it, laying the part over it and
hashing the whole. Who writes a file in small steps comes back to a block many times, and so do several clients with
interleaved records. What is remembered is believed only while it is what the block's sum says now, so
nothing needs to be forgotten when an object changes in another way. Few blocks, for they are to stay in the processor's
cache. docs/adr/0019-small-requests.md.
"""

from typing import Final

from nacrefs.common.buffers import page_aligned
from nacrefs.common.layout import BLOCK_BYTES

_BLOCKS: Final = 4

Key = tuple[int, int, int]
"""fid, object number, number of the block"""


class WrittenBlocks:
    """Memory of one OST for blocks that are being put together; one step of the event loop at a time."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[Key, tuple[bytes, memoryview]] = {}

    def take(self, key: Key, block_sum: bytes) -> tuple[memoryview, bool]:
        """Memory for a block, to be given to `keep` once it has been put together; whether the bytes that have this
        sum stand there already."""
        known = self._known
        found = known.pop(key, None)
        if found is not None:
            return found[1], found[0] == block_sum
        if len(known) < _BLOCKS:
            return memoryview(page_aligned(BLOCK_BYTES)), False
        return known.pop(next(iter(known)))[1], False

    def keep(self, key: Key, block_sum: bytes, memory: memoryview) -> None:
        """`memory` begins with the bytes that have this sum, whether they are the block's in the end or not."""
        self._known[key] = (block_sum, memory)
