"""Committed state in memory: inodes and names that were used lately, bounded in bytes.

Only what is committed enters. The least recently used goes first. Sizes are estimates (measured on CPython 3.11, with
the dictionaries' share), good enough to keep the process within its setting.
"""

from collections import OrderedDict
from typing import Final

from nacrefs.mds.inode import Inode

INODE_BYTES: Final = 900
"""An Inode with its Attr, integers and place in the cache, without contents."""
DENTRY_BYTES: Final = 350
"""A name with its key and place in the cache, without the name's own bytes."""
ABSENT: Final = 0
"""What a name stands for that is known not to exist."""


class Cache:
    """Inodes by fid and fids by (parent, name); `limit_bytes` bounds them together."""

    def __init__(self, limit_bytes: int = 256 << 20) -> None:
        self.limit_bytes = limit_bytes
        self.bytes = 0
        self._inodes: OrderedDict[int, Inode] = OrderedDict()
        self._dentries: OrderedDict[tuple[int, bytes], int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._inodes) + len(self._dentries)

    def inode(self, fid: int) -> Inode | None:
        """The inode, if it is here."""
        inode = self._inodes.get(fid)
        if inode is not None:
            self._inodes.move_to_end(fid)
        return inode

    def dentry(self, key: tuple[int, bytes]) -> int | None:
        """The fid that a name stands for, ABSENT if it stands for nothing, None if that is not known here."""
        fid = self._dentries.get(key)
        if fid is not None:
            self._dentries.move_to_end(key)
        return fid

    def put_inode(self, inode: Inode) -> None:
        """Remember an inode in place of what was known of it."""
        fid = inode.attr.fid
        old = self._inodes.pop(fid, None)
        if old is not None:
            self.bytes -= _inode_bytes(old)
        self._inodes[fid] = inode
        self.bytes += _inode_bytes(inode)
        if self.bytes > self.limit_bytes:
            self._shrink()

    def put_dentry(self, key: tuple[int, bytes], fid: int) -> None:
        """Remember what a name stands for (ABSENT: nothing)."""
        if key not in self._dentries:
            self.bytes += DENTRY_BYTES + len(key[1])
        self._dentries[key] = fid
        self._dentries.move_to_end(key)
        if self.bytes > self.limit_bytes:
            self._shrink()

    def drop_inode(self, fid: int) -> None:
        """Forget an inode, because it is gone."""
        old = self._inodes.pop(fid, None)
        if old is not None:
            self.bytes -= _inode_bytes(old)

    def clear(self) -> None:
        """Forget everything."""
        self._inodes.clear()
        self._dentries.clear()
        self.bytes = 0

    def _shrink(self) -> None:
        """Forget the least recently used until there is room: a name and an inode in turn."""
        while self.bytes > self.limit_bytes and (self._inodes or self._dentries):
            if self._dentries:
                key, _ = self._dentries.popitem(last=False)
                self.bytes -= DENTRY_BYTES + len(key[1])
            if self._inodes:
                _, inode = self._inodes.popitem(last=False)
                self.bytes -= _inode_bytes(inode)


def _inode_bytes(inode: Inode) -> int:
    size = INODE_BYTES
    if inode.data is not None:
        size += len(inode.data)
    if inode.xattrs:
        size += sum(len(name) + len(value) + 200 for name, value in inode.xattrs.items())
    if inode.layout is not None:
        size += 8 * len(inode.layout.osts)
    return size
