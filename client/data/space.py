"""Room and holes: fallocate and lseek's SEEK_DATA and SEEK_HOLE."""

import errno
import os
from collections.abc import Coroutine
from typing import Any, Final

from nacrefs.client.cache import INLINE, RELEASED
from nacrefs.client.data.file import File
from nacrefs.client.data.filecaps import end_capabilities
from nacrefs.client.data.fileio import SIZE_MAX, FileIO
from nacrefs.client.data.store import Store
from nacrefs.client.data.writebehind import land, write_out
from nacrefs.client.handle import OpenFile
from nacrefs.client.opening import is_inline
from nacrefs.common.answer import Answer
from nacrefs.common.wire import GetAttr, Set, SetAttr, Want

BLOCK: Final = 4096
"""How finely holes of inline contents are told."""
KEEP_SIZE: Final = 1
PUNCH_HOLE: Final = 2
ZERO_RANGE: Final = 16


class Space:
    """fallocate and lseek by handle."""

    def __init__(self, store: Store, io: FileIO) -> None:
        self._store = store
        self._session = store.session
        self._io = io

    def fallocate(self, number: int, mode: int, offset: int, length: int) -> Coroutine[Any, Any, None]:
        """Allocate (the size grows unless KEEP_SIZE; nothing is reserved), punch a hole, or zero a range."""
        handle = self._io.handles.get(number)
        if not handle.writable:
            raise handle.refusal("the file is not open for writing")
        if offset < 0 or length <= 0:
            raise OSError(errno.EINVAL, "offset is negative or length is not positive")
        if offset + length > SIZE_MAX:
            raise OSError(errno.EFBIG, "a file cannot grow beyond 2^63-1 bytes")
        if mode not in (0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE):
            raise OSError(errno.EOPNOTSUPP, "only allocating, punching holes and zeroing ranges is possible")
        return self._fallocate(handle, mode, offset, offset + length)

    async def _fallocate(self, handle: OpenFile, mode: int, start: int, end: int) -> None:
        file = handle.file
        owned = await self._io.writable(file)
        if not owned:
            await self._fallocate_shared(file, mode, start, end)
            return
        file.own()
        if mode & (PUNCH_HOLE | ZERO_RANGE):
            await self._zero(file, start, min(end, file.size_now))
        if not mode & KEEP_SIZE and end > file.size_now:
            file.size = end
        file.inode.epoch += 1
        file.touch()

    async def _zero(self, file: File, start: int, end: int) -> None:
        """Make a range read as zeros, as a hole where it can be."""
        if start >= end:
            return
        if file.inline:
            end = min(end, max(file.inline_end, file.pending.extents.end))
            if start < end:
                await self._store.memory.take(end - start)
                file.put(start, memoryview(bytes(end - start)))
            return
        file.freeze()
        try:
            async with file.lock:
                file.pending.cut(start, end)
                await land(file)
                file.pending.cut(start, end)
                now_ns = self._session.clock.now_ns()
                file.stored.wrote(await self._store.objects.punch(file.inode, start, end, now_ns))
        finally:
            file.thaw()

    async def _fallocate_shared(self, file: File, mode: int, start: int, end: int) -> None:
        inode = file.inode
        node = await self._session.mds.call(GetAttr(inode.fid, Want.LEASE))
        size = node.attr.size
        await end_capabilities(self._store, file)
        if mode & (PUNCH_HOLE | ZERO_RANGE) and start < min(end, size):
            file.stored.wrote(await self._store.objects.punch(inode, start, min(end, size)))
            file.reported(0)
        if not mode & KEEP_SIZE and end > size:
            await self._session.mds.call(SetAttr(inode.fid, Set.SIZE, size=end))
        elif not (mode & (PUNCH_HOLE | ZERO_RANGE) and start < size):
            now_ns = self._session.clock.now_ns()
            await self._session.mds.call(SetAttr(inode.fid, Set.MTIME, mtime_ns=now_ns))

    def lseek(self, number: int, offset: int, whence: int) -> Answer[int]:
        """The next data or hole, as the OSTs' file systems know it; ENXIO beyond the end, or if there is no more data.
        A file that was never anywhere but here is answered at once; what is dirty of another one is sent first."""
        handle = self._io.handles.get(number)
        if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            raise OSError(errno.EINVAL, "whence is not SEEK_DATA or SEEK_HOLE")
        file = handle.file
        if handle.inode.lease and self._session.live and file.dirty and not file.through and _is_new(file):
            return _seek_new(file, offset, whence, file.size_now)
        return self._lseek(handle, offset, whence)

    async def _lseek(self, handle: OpenFile, offset: int, whence: int) -> int:
        file, inode = handle.file, handle.inode
        if file.dirty and not file.through and not file.inline:
            async with file.lock:
                await write_out(file)
        if inode.lease and self._session.live and inode.attr is not None:
            size, inline, data, flags = file.size_now, is_inline(file), inode.data, inode.attr.flags
        else:
            node = await self._session.mds.call(GetAttr(inode.fid, Want.LEASE | Want.LAYOUT | Want.DATA))
            size = file.size_now if inode.lease else node.attr.size
            flags, data, inline = node.attr.flags, node.data, bool(node.attr.flags & INLINE)
        if not 0 <= offset < size:
            raise OSError(errno.ENXIO, "the offset is beyond the end of the file")
        hole = whence == os.SEEK_HOLE
        if flags & RELEASED:
            found = size if hole else offset
        elif not inline:
            found = await self._store.objects.seek(inode, offset, size, hole)
        else:
            if inode.lease and file.dirty:
                contents = bytes(file.inline_part(0, size))
            elif data is not None or not size:
                contents = (data or b"")[:size]
            else:
                node = await self._session.mds.call(GetAttr(inode.fid, Want.LEASE | Want.DATA))
                contents = (node.data or b"")[:size]
            found = seek_contents(contents, offset, size, hole)
        if found >= size and not hole:
            raise OSError(errno.ENXIO, "there is no data beyond the offset")
        return min(found, size)


def _is_new(file: File) -> bool:
    """Nothing of it has been anywhere but here: what is dirty is all its data."""
    attr = file.inode.attr
    return attr is not None and not attr.size and not attr.blocks and not file.stored.allocated


def _seek_new(file: File, offset: int, whence: int, size: int) -> int:
    if not 0 <= offset < size:
        raise OSError(errno.ENXIO, "the offset is beyond the end of the file")
    at = offset
    for extent in sorted(file.pending.newest(offset, size), key=lambda extent: extent.start):
        if extent.start > at:
            return extent.start if whence == os.SEEK_DATA else at
        if whence == os.SEEK_DATA:
            return at
        at = max(at, extent.end)
    if whence == os.SEEK_HOLE:
        return min(at, size)
    raise OSError(errno.ENXIO, "there is no data beyond the offset")


def seek_contents(contents: bytes, offset: int, size: int, hole: bool) -> int:
    """The next hole or data of an inline file: a hole is what follows its contents, and blocks of zeros in them."""
    at = offset
    while at < len(contents):
        end = min((at // BLOCK + 1) * BLOCK, len(contents))
        if any(contents[at // BLOCK * BLOCK : end]) != hole:
            return at
        at = end
    return at if hole else size
