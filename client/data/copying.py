"""copy_file_range: on the OSTs where both files lie there, through this client otherwise.

Under a WRITE lease on the target the copy holds the file's lock, as a commit does: a recall or a truncation waits for
it, for one wave. What is dirty of either file is sent first. Holes of the source are looked for, and stay holes.

What goes through the client: contents in the MDT, released files (reading them recalls them), short copies, and what an
OST cannot get at (EREMOTEIO), whose errors are then those of reading and writing.
"""

import errno
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

from nacrefs.client.cache import INLINE, RELEASED, WRITE
from nacrefs.client.data import copyorders
from nacrefs.client.data.commit import commit
from nacrefs.client.data.extents import Extent
from nacrefs.client.data.file import File
from nacrefs.client.data.filecaps import end_capabilities
from nacrefs.client.data.fileio import SIZE_MAX, FileIO
from nacrefs.client.data.quota import room_for
from nacrefs.client.data.store import Store
from nacrefs.client.data.writebehind import write_out
from nacrefs.client.handle import O_SYNC_ANY, OpenFile
from nacrefs.client.opening import is_inline
from nacrefs.common.answer import settle
from nacrefs.common.wire import GetAttr, Mode, Open, Want

log = logging.getLogger("nacre.client")

LEAST_BYTES: Final = 64 * 1024
"""Less is copied through the client: it is cheaper to keep it as dirty data."""
CALL_BYTES: Final = 1 << 30
"""Most that one call copies."""
WAVE_BYTES: Final = 64 << 20
"""So much is ordered at a time; the target's recalls wait for that."""
PART_BYTES: Final = 4 << 20
"""So much is read and written at a time through the client."""
_ELSEWHERE: Final = (errno.EREMOTEIO, errno.ENOSYS)
"""The OSTs cannot do it. (ENOSYS: an OSS of an older version.)"""


class Data:
    """What is known of the source: that all is data up to `end`."""

    __slots__ = ("end",)

    def __init__(self) -> None:
        self.end = -1


class Copying:
    """copy_file_range by handle."""

    def __init__(self, store: Store, io: FileIO) -> None:
        self._store = store
        self._session = store.session
        self._io = io

    def copy_file_range(
        self, number_in: int, offset_in: int, number_out: int, offset_out: int, length: int
    ) -> Coroutine[Any, Any, int]:
        """Copy up to `length` bytes; the bytes copied (fewer at the end of the source, or if there was an error behind
        them). EINVAL if the ranges overlap in one file."""
        source, target = self._io.handles.get(number_in), self._io.handles.get(number_out)
        if not source.readable:
            raise source.refusal("the source is not open for reading")
        if not target.writable or target.flags & os.O_APPEND:
            raise target.refusal("the target is not open for writing at any place")
        if offset_in < 0 or offset_out < 0 or length < 0:
            raise OSError(errno.EINVAL, "an offset or the length is negative")
        if offset_out + length > SIZE_MAX or offset_in + length > SIZE_MAX:
            length = max(0, SIZE_MAX - max(offset_in, offset_out))
        return self._copy_file_range(source, offset_in, target, offset_out, min(length, CALL_BYTES))

    async def _copy_file_range(
        self, source: OpenFile, offset_in: int, target: OpenFile, offset_out: int, length: int
    ) -> int:
        size, _ = await self._extent_of(source)
        length = min(length, size - offset_in)
        if length <= 0:
            return 0
        if source.inode is target.inode and abs(offset_in - offset_out) < length:
            raise OSError(errno.EINVAL, "the ranges overlap")
        if target.file.error is not None:
            raise target.file.take_error()
        copied = 0
        data = Data()
        try:
            while copied < length:
                left = length - copied
                done = await self._wave(source, offset_in + copied, target, offset_out + copied, left, data, length)
                if not done:
                    break
                copied += done
            if target.flags & O_SYNC_ANY:
                await commit(target.file, sync=True)
        except OSError as error:
            if not copied or target.flags & O_SYNC_ANY:
                raise
            log.info("copying ended early: %s", error.strerror or error)
        return copied

    async def _wave(
        self, source: OpenFile, start: int, target: OpenFile, at: int, size: int, data: Data, whole: int
    ) -> int:
        """Copy some of `size` bytes of a copy of `whole` bytes; 0 at the end of the source."""
        end, on_osts = await self._extent_of(source)
        size = min(size, end - start)
        if size <= 0:
            return 0
        attr = target.inode.attr
        if not on_osts or whole < LEAST_BYTES or (attr is not None and attr.flags & RELEASED):
            return await self._through(source, start, target, at, min(size, PART_BYTES))
        objects = self._store.objects
        if start >= data.end:
            data.end = await objects.seek(source.inode, start, start + size, hole=False)
            if data.end > start:
                return await self._hole(target, at, data.end - start)
            data.end = await objects.seek(source.inode, start, start + size, hole=True)
        size = min(size, data.end - start, WAVE_BYTES)
        if size <= 0:  # it has just become a hole
            return await self._through(source, start, target, at, PART_BYTES)
        if target.inode.quota >= 0:
            size = await room_for(self._store, target.file, at, size)
        try:
            await self._ordered(source, start, target, at, size)
        except OSError as error:
            if error.errno not in _ELSEWHERE:
                raise
            log.info("copying through this client: %s", error.strerror or error)
            return await self._through(source, start, target, at, size)
        if target.inode.quota >= 0:
            target.file.count(size)
        return size

    async def _extent_of(self, handle: OpenFile) -> tuple[int, bool]:
        """The size of a source, and whether all its contents are on OSTs now: what was dirty has been sent there."""
        file, inode, session = handle.file, handle.inode, self._session
        session.used.add(inode.fid)
        if not session.live:
            await session.wait_live()
        if not inode.lease:
            closed = inode.registered == Mode.CLOSED
            ask = Open(inode.fid, file.mode) if closed else GetAttr(inode.fid, Want.LEASE | Want.LAYOUT)
            node = await session.mds.call(ask)
            if not inode.lease:
                return node.attr.size, not node.attr.flags & (INLINE | RELEASED)
        if file.dirty and not file.through and not file.inline:
            async with file.lock:
                await write_out(file)
        attr = inode.attr
        return file.size_now, attr is not None and not is_inline(file) and not attr.flags & RELEASED

    # -------------------------------------------------------------------------------------------------------- one wave

    async def _through(self, source: OpenFile, start: int, target: OpenFile, at: int, size: int) -> int:
        """Read and write, here."""
        copied = 0
        while copied < size:
            part = min(PART_BYTES, size - copied)
            try:
                buffers = await settle(self._io.read(source.number, start + copied, part))
                data = memoryview(b"".join(buffers))
                done = await settle(self._io.write(target.number, at + copied, data)) if data else 0
            except OSError:
                if copied:
                    break
                raise
            copied += done
            if done < part:
                break
        return copied

    async def _ordered(self, source: OpenFile, start: int, target: OpenFile, at: int, size: int) -> None:
        """Have the OSTs copy data."""
        objects, file, inode = self._store.objects, target.file, target.inode

        async def under_lease(mtime_ns: int) -> None:
            file.stored.wrote(await copyorders.copy(objects, source.inode, start, inode, at, size, mtime_ns))

        if not await self._owned(file, at, at + size, under_lease):
            await end_capabilities(self._store, file)
            file.stored.wrote(await copyorders.copy(objects, source.inode, start, inode, at, size))
            file.reported(at + size)

    async def _hole(self, target: OpenFile, at: int, size: int) -> int:
        """Make a hole where the source has one; how long."""
        objects, file, inode = self._store.objects, target.file, target.inode

        async def under_lease(mtime_ns: int) -> None:
            if at < file.size:
                file.stored.wrote(await objects.punch(inode, at, min(at + size, file.size), mtime_ns))

        if not await self._owned(file, at, at + size, under_lease):
            await end_capabilities(self._store, file)
            file.stored.wrote(await objects.punch(inode, at, at + size))
            node = await self._session.mds.call(GetAttr(inode.fid, Want.LEASE))
            if node.attr.size < at + size:  # where a shared file ends the OSTs say
                file.stored.wrote(await objects.write(inode, [Extent(at + size - 1, memoryview(b"\0"))]))
            file.reported(at + size)
        return size

    async def _owned(self, file: File, at: int, end: int, work: Callable[[int], Awaitable[None]]) -> bool:
        """Change bytes `[at, end)` on the OSTs under the WRITE lease (`work` is given the time of the change); False if
        the file is shared."""
        inode, session = file.inode, self._session
        while await self._io.writable(file):
            async with file.lock:
                if inode.lease < WRITE or file.frozen or not session.live:
                    continue
                number = session.number
                file.own()
                if file.inline:
                    file.leave_inline()
                file.touch()
                await write_out(file)
                try:
                    await work(file.mtime_ns)
                except OSError:
                    await self._forget(file, max(at, file.size), end)
                    raise
                if session.number != number:
                    raise OSError(errno.EIO, "the session ended while the file was copied")
                file.size = max(file.size, end)
                inode.epoch += 1
                file.touch()
                return True
        return False

    async def _forget(self, file: File, start: int, end: int) -> None:
        """Bytes behind the end of the file that were copied before something went wrong must not reappear when it is
        lengthened."""
        if start >= end:
            return
        try:
            file.stored.wrote(await self._store.objects.punch(file.inode, start, end, file.written_ns))
        except OSError as error:
            log.warning("inode %#x: what a copy left behind its end stays: %s", file.inode.fid, error.strerror or error)
