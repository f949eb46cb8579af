"""Room and holes: fallocate and lseek's SEEK_DATA and SEEK_HOLE."""

import errno
import os
from collections.abc import Coroutine
from typing import Any, Final

from nacrefs.client.file import File, Store
from nacrefs.client.fileio import SIZE_MAX, FileIO
from nacrefs.client.handle import OpenFile
from nacrefs.common.answer import Answer
from nacrefs.common.wire import GetAttr, Set, SetAttr, Want

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
            raise OSError(errno.EBADF, "the file is not open for writing")
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
        elif not mode & (PUNCH_HOLE | ZERO_RANGE):
            return
        file.inode.epoch += 1
        file.touch()

    async def _zero(self, file: File, start: int, end: int) -> None:
        """Make a range read as zeros, as a hole where it can be."""
        if start >= end:
            return
        if file.inline:
            end = min(end, max(len(file.inode.data or b""), file.extents.end))
            if start < end:
                await self._store.memory.take(end - start)
                file.put(start, memoryview(bytes(end - start)))
            return
        file.freeze()
        try:
            async with file.lock:
                file.punch_dirty(start, end)
                await file.land()
                file.punch_dirty(start, end)
                file.wrote(await self._store.objects.punch(file.inode, start, end))
        finally:
            file.thaw()

    async def _fallocate_shared(self, file: File, mode: int, start: int, end: int) -> None:
        inode = file.inode
        node = await self._session.mds.call(GetAttr(inode.fid, Want.LEASE))
        size = node.attr.size
        if mode & (PUNCH_HOLE | ZERO_RANGE) and start < min(end, size):
            file.wrote(await self._store.objects.punch(inode, start, min(end, size)))
            file.reported(0)
        if not mode & KEEP_SIZE and end > size:
            await self._session.mds.call(SetAttr(inode.fid, Set.SIZE, size=end))

    def lseek(self, number: int, offset: int, whence: int) -> Answer[int]:
        """The next data or hole; only what is certain counts as a hole: what was written or lengthened over here
        and not yet sent, and the end of the file. Elsewhere everything is data, as lseek(2) allows."""
        handle = self._io.handles.get(number)
        if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            raise OSError(errno.EINVAL, "whence is not SEEK_DATA or SEEK_HOLE")
        if handle.inode.lease and self._session.live:
            return self._seek(handle.file, offset, whence, handle.file.size_now)
        return self._lseek(handle, offset, whence)

    async def _lseek(self, handle: OpenFile, offset: int, whence: int) -> int:
        node = await self._session.mds.call(GetAttr(handle.inode.fid, Want.LEASE))
        size = handle.file.size_now if handle.inode.lease else node.attr.size
        return self._seek(handle.file, offset, whence, size)

    @staticmethod
    def _seek(file: File, offset: int, whence: int, size: int) -> int:
        if not 0 <= offset < size:
            raise OSError(errno.ENXIO, "the offset is beyond the end of the file")
        attr = file.inode.attr
        fresh = file.dirty and not file.through and attr is not None and not attr.size and not attr.blocks
        if not fresh or file.allocated:
            return offset if whence == os.SEEK_DATA else size
        # Nothing of it has been anywhere but here: what is dirty is all its data.
        at = offset
        for extent in sorted(file.newest(offset, size), key=lambda extent: extent.start):
            if extent.start > at:
                return extent.start if whence == os.SEEK_DATA else at
            if whence == os.SEEK_DATA:
                return at
            at = max(at, extent.end)
        if whence == os.SEEK_HOLE:
            return min(at, size)
        raise OSError(errno.ENXIO, "there is no data beyond the offset")
