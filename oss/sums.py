"""The checksums of an object's blocks: those that the index has, under those that it does not have yet."""

from typing import Final

import xxhash

from nacrefs.common.checksum import SUM_BYTES
from nacrefs.common.layout import BLOCK_BYTES
from nacrefs.oss.index import PAGE_BLOCKS, Index

PAGE_BYTES: Final = PAGE_BLOCKS * SUM_BYTES
"""A full page of sums."""
ZERO_SUM: Final = xxhash.xxh3_64_intdigest(bytes(BLOCK_BYTES)).to_bytes(SUM_BYTES, "little")
"""The sum of a block that was never written."""


class BlockSums:
    """The sums of one object.

    Changed pages stay in memory until a transaction of the index has them; an empty one is to be removed there. `fresh`
    are those that no transaction in flight contains.
    """

    __slots__ = ("_fid", "_fresh", "_index", "_number", "_pages")

    def __init__(self, index: Index, fid: int, number: int) -> None:
        self._index = index
        self._fid = fid
        self._number = number
        self._pages: dict[int, bytearray] = {}
        self._fresh: set[int] = set()

    def get(self, block: int, count: int) -> bytes:
        """The sum string of `count` blocks from `block` on."""
        number, at = divmod(block, PAGE_BLOCKS)
        if at + count <= PAGE_BLOCKS:
            page = self._pages.get(number)
            part = (self._index.page(self._fid, self._number, number) if page is None else page)[
                at * SUM_BYTES : (at + count) * SUM_BYTES
            ]
            lacking = count - len(part) // SUM_BYTES
            return bytes(part) + ZERO_SUM * lacking if lacking else bytes(part)
        parts: list[bytes] = []
        while count:
            take = min(count, PAGE_BLOCKS - block % PAGE_BLOCKS)
            parts.append(self.get(block, take))
            block += take
            count -= take
        return b"".join(parts)

    def put(self, block: int, sums: bytes) -> None:
        """Store a sum string from `block` on."""
        number, at = divmod(block, PAGE_BLOCKS)
        at *= SUM_BYTES
        if at + len(sums) <= PAGE_BYTES:
            page = self._own(number)
            gap = at - len(page)
            if gap > 0:
                page.extend(ZERO_SUM * (gap // SUM_BYTES))
            page[at : at + len(sums)] = sums
            return
        while sums:
            take = PAGE_BYTES - block % PAGE_BLOCKS * SUM_BYTES
            self.put(block, sums[:take])
            sums = sums[take:]
            block += take // SUM_BYTES

    def clear(self, block: int, end: int) -> None:
        """Make blocks `[block, end)` unwritten ones; costs what there is, not what the range spans."""
        first, last = block // PAGE_BLOCKS, -(-end // PAGE_BLOCKS)
        numbers = {number for number in self._pages if first <= number < last}
        numbers.update(self._index.pages(self._fid, self._number, first, last))
        for number in numbers:
            low = max(0, block - number * PAGE_BLOCKS) * SUM_BYTES
            high = min(PAGE_BLOCKS, end - number * PAGE_BLOCKS) * SUM_BYTES
            page = self._own(number)
            if high >= len(page):
                del page[low:]
            else:
                page[low:high] = ZERO_SUM * ((high - low) // SUM_BYTES)

    def replace(self, pages: dict[int, bytearray]) -> None:
        """Take these pages for all there are."""
        for number in self._index.pages(self._fid, self._number, 0, 1 << 63):
            pages.setdefault(number, bytearray())
        self._pages = pages
        self._fresh = set(pages)

    def take_fresh(self) -> dict[int, bytes]:
        """The pages that the index is to be given now. Then `kept` or `not_kept` must be called with them."""
        numbers, self._fresh = self._fresh, set()
        return {number: bytes(self._pages[number]) for number in numbers}

    def kept(self, pages: dict[int, bytes]) -> None:
        """The index has these pages: those that did not change meanwhile need no memory any more."""
        for number in pages:
            if number not in self._fresh:
                del self._pages[number]

    def not_kept(self, pages: dict[int, bytes]) -> None:
        """The index does not have them after all."""
        self._fresh.update(pages)

    def _own(self, number: int) -> bytearray:
        """A page that is about to change."""
        self._fresh.add(number)
        page = self._pages.get(number)
        if page is None:
            page = self._pages[number] = bytearray(self._index.page(self._fid, self._number, number))
        return page
