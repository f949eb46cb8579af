"""What this client knows of a file's objects: how much room they take, and which writes to them are not durable."""

from collections.abc import Mapping

from nacrefs.client.cache import INLINE, Inode
from nacrefs.common.layout import Layout
from nacrefs.common.wire import Written


class Stored:
    """The objects of one file."""

    __slots__ = ("allocated", "grown", "unsynced", "versions")

    def __init__(self) -> None:
        self.unsynced: set[int] | None = None
        """objects written since they were made durable; None: nobody knows, so all"""
        self.versions: dict[int, int] = {}
        """of objects that were written and not made durable since: the version after the last write"""
        self.allocated: dict[int, int] = {}
        """bytes that objects take which we have written"""
        self.grown = 0
        """by how many bytes its objects have grown of which the MDS has not heard"""

    def wrote(self, written: Mapping[int, Written]) -> None:
        """These objects have been written."""
        for number, answer in written.items():
            if self.unsynced is not None:
                self.unsynced.add(number)
            self.versions[number] = answer.version
            self.allocated[number] = answer.allocated_bytes
            self.grown += answer.grown_bytes

    def was_cut(self) -> None:
        """What they take now is not known."""
        self.allocated.clear()
        self.grown = 0

    def blocks(self, inode: Inode) -> int:
        """What they take, in units of 512 bytes: all of them if we have written all, else what the MDS knows and what
        has grown since."""
        attr, layout = inode.attr, inode.layout
        blocks = sum(self.allocated.values()) // 512
        if attr is None or attr.flags & INLINE or (layout is not None and len(self.allocated) >= len(layout.osts)):
            return blocks
        return max(blocks, attr.blocks + self.grown // 512)

    def touched(self, layout: Layout | None, size: int) -> set[int]:
        """Objects that may have bytes that are not durable, of a file of this size."""
        if self.unsynced is not None:
            return self.unsynced
        if layout is None:
            return set()
        stripes = min(layout.stripe_count, -(-size // layout.stripe_bytes))
        return {number for stripe in range(stripes) for number in layout.objects_of(stripe)}

    def begin_sync(self, layout: Layout | None, size: int) -> tuple[dict[int, int], set[int] | None]:
        """What is to be made durable now: versions by object. From now on only what is written later is not durable;
        the second value is what `sync_failed` needs."""
        versions = {number: self.versions.pop(number, 0) for number in self.touched(layout, size)}
        before, self.unsynced = self.unsynced, set()
        return versions, before

    def sync_failed(self, before: set[int] | None, versions: Mapping[int, int]) -> None:
        """It is not durable after all. `versions`: of those that may still be."""
        self.unsynced = None if before is None else before | (self.unsynced or set())
        self.versions = dict(versions) | self.versions
