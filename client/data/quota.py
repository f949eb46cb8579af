"""Writing under a quota: how much may be written before the MDS hears of it.

The MDS says with each answer about a file whose owner has a quota how many bytes we may add to such files before we
report them (`Node.quota`). We report, by a `Commit` of what is dirty, when that is used up, and learn how much we
may add now; when it is nothing, writes that need room fail with EDQUOT. What is stored already may be overwritten.
"""

import errno
import time
from typing import Final

from nacrefs.client.cache import WRITE, Inode
from nacrefs.client.data.commit import commit
from nacrefs.client.data.file import File
from nacrefs.client.data.store import Store
from nacrefs.common.wire import GetAttr, Want

NEAR_BYTES: Final = 1 << 20
"""With less than this to go, `close` waits until the MDS has what was written, so that it can fail."""


def has_room(store: Store, inode: Inode, size: int) -> bool:
    """Whether so many bytes may be added to a file whose owner has a quota without a word to the MDS."""
    return store.unreported + size <= inode.quota and time.monotonic() < inode.quota_until_s


def is_near(file: File) -> bool:
    """Whether the quota of a file's owner is so nearly used up that close(2) should tell."""
    return 0 <= file.inode.quota < NEAR_BYTES


async def room_for(store: Store, file: File, offset: int, size: int) -> int:
    """How many bytes of a write of `size` bytes at `offset` (-1: at the end) may be written now, at least one; OSError
    (EDQUOT) if none may."""
    inode = file.inode
    if has_room(store, inode, size) or (offset >= 0 and _is_stored(file, offset + size)):
        return size
    await _report(store, file)
    room = inode.quota - store.unreported
    if inode.quota < 0 or size <= room:
        return size
    if room > 0:
        return room
    raise OSError(errno.EDQUOT, "the quota of the file's owner is used up")


async def _report(store: Store, file: File) -> None:
    """Tell the MDS what it does not know, and learn how much may be written now."""
    others = [other for other in store.dirty.values() if other.unreported and other is not file]
    for other in others:
        await commit(other, WRITE)
    if file.unreported and not file.through:
        await commit(file, WRITE)
        return
    # Of a shared file the MDS asks the OSTs what has been written.
    written = file.unreported
    await store.session.mds.call(GetAttr(file.inode.fid, Want.LEASE))
    file.counted(min(written, file.unreported))  # (others may have written, and reported, meanwhile)


def _is_stored(file: File, end: int) -> bool:
    """Whether a write up to there replaces bytes that have their place already."""
    attr = file.inode.attr
    if attr is None or end > file.size_now:
        return False
    attr = file.attr_now(attr)
    return attr.blocks << 9 >= attr.size
