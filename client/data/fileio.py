"""Reading and writing open files.

Under a lease, sizes and dirty data are ours: reads are clipped here and laid over with what is dirty, writes are kept
and return at once. Without one (the file is shared), every write goes through to the OSTs before it returns, and every
read comes from them; who appends waits for his turn (`appends`).
"""

import asyncio
import errno
import os
from collections.abc import Sequence
from typing import Final

from nacrefs.client.cache import INLINE, NONE, WRITE
from nacrefs.client.data.appends import Appends
from nacrefs.client.data.commit import commit
from nacrefs.client.data.extents import Extent, overlay
from nacrefs.client.data.file import File
from nacrefs.client.data.filecaps import end_capabilities, may_have_capabilities
from nacrefs.client.data.quota import has_room, room_for
from nacrefs.client.data.store import Store
from nacrefs.client.filesystem import Kernel
from nacrefs.client.handle import O_SYNC_ANY, Handles, OpenFile
from nacrefs.client.opening import is_inline
from nacrefs.common import faults
from nacrefs.common.answer import Answer, settle
from nacrefs.common.arena import capacity
from nacrefs.common.wire import GetAttr, Mode, Node, Open, Want

SIZE_MAX: Final = (1 << 63) - 1
UNMAP_S: Final = 0.002
"""How long a page of a shared file that is mapped stays, about: what another client writes is seen so much later."""
_HOW: Final = os.O_APPEND | O_SYNC_ANY
"""The flags of open(2) that say how to write."""

Buffers = Sequence[memoryview | bytes]


class FileIO:
    """Reads and writes by handle."""

    def __init__(self, store: Store, handles: Handles[OpenFile]) -> None:
        self._store = store
        self._session = store.session
        self._memory = store.memory
        self._appends = Appends(store.session)
        self.kernel: Kernel | None = None
        """who caches above us"""
        self.handles = handles

    # ---------------------------------------------------------------------------------------------------------- reading

    def read(self, number: int, offset: int, size: int, cached: bool = False) -> Answer[Buffers]:
        """The bytes from `offset`: at once if they are here, from the OSTs otherwise. `cached`: the kernel keeps
        them."""
        handle = self.handles.get(number)
        if not handle.readable:
            raise handle.refusal("the file is not open for reading")
        inode, file = handle.inode, handle.file
        self._session.used.add(inode.fid)
        if not inode.lease or not self._session.live:
            if cached and handle.direct and self.kernel is not None:
                return self._read_mapped(self.kernel, handle, offset, size)
            return self._read_shared(handle, offset, size, cached)
        total = file.size_now
        if offset >= total or size <= 0:
            return ()
        end = offset + size
        if end > total:
            end = total
        if cached and inode.recall is not None:
            inode.served += 1
        if is_inline(file):
            if inode.data is None and inode.attr is not None and inode.attr.size:
                return self._read_after_fetch(handle, offset, size, cached)
            return (file.inline_part(offset, end),)
        if file.pending:
            newest = file.pending.newest(offset, end)
            if newest and newest[-1].start <= offset and newest[-1].end >= end:
                return (newest[-1].part(offset, end),)
        return self._read_leased(handle, offset, end, total, cached)

    async def _read_after_fetch(self, handle: OpenFile, offset: int, size: int, cached: bool) -> Buffers:
        """Contents of an inline file that the lease's reply did not bring."""
        node = await self._session.mds.call(GetAttr(handle.inode.fid, Want.LEASE | Want.LAYOUT | Want.DATA))
        if node.lease and handle.inode.lease:
            return await settle(self.read(handle.number, offset, size, cached))
        return await self._read_node(handle, node, offset, size)

    async def _read_leased(self, handle: OpenFile, start: int, end: int, total: int, cached: bool) -> Buffers:
        file, inode, memory = handle.file, handle.inode, self._memory
        dirty = file.pending.newest(start, end)
        ahead = handle.ahead
        windows = ahead.cover(start, end) if ahead is not None and not dirty else []
        if ahead is not None:
            ahead.note(start, end, total)
            if not windows and not dirty and ahead.windows:
                windows = ahead.cover(start, end)
        parts: list[memoryview] = []
        covered = windows[-1].end if windows else start
        tail: memoryview | None = None
        try:
            if covered < end:
                tail = await self._fetch(file, covered, end)
                if dirty:
                    overlay(dirty, covered, tail)
            for window in windows:
                assert ahead is not None
                parts.append(await ahead.bytes_of(window, start, end))
        except BaseException:
            if tail is not None:
                memory.release(tail)
            raise
        finally:
            for window in windows:
                assert ahead is not None
                ahead.finish(window, start, end)
        if cached and inode.recall is not None:
            inode.served += 1
        if tail is not None:
            parts.append(tail)
            asyncio.get_running_loop().call_soon(memory.release, tail)
        if not inode.lease and inode.attr is not None and file.size_now < end:  # it has become shorter meanwhile
            return _first(parts, max(0, file.size_now - start))
        return parts

    async def _fetch(self, file: File, start: int, end: int) -> memoryview:
        """`[start, end)` from the OSTs, in a buffer that the caller releases."""
        memory = self._memory
        size = end - start
        if not memory.try_take(size):
            await memory.take(size)
        buffer = memory.buffer(size)
        try:
            await self._store.objects.read(file.inode, start, buffer)
        except BaseException:
            memory.release(buffer)
            raise
        return buffer

    async def _read_shared(self, handle: OpenFile, offset: int, size: int, cached: bool) -> Buffers:
        """Without a lease: from the OSTs; the MDS is asked only where the end of the file matters."""
        inode, file, memory = handle.inode, handle.file, self._memory
        if not self._session.live:
            await self._session.wait_live()
            return await settle(self.read(handle.number, offset, size, cached))
        attr = inode.attr
        if attr is None or inode.layout is None or attr.flags & INLINE or inode.registered == Mode.CLOSED:
            node = await self._register(handle, Want.LEASE | Want.LAYOUT | Want.DATA)
            if inode.lease:
                return await settle(self.read(handle.number, offset, size, cached))
            return await self._read_node(handle, node, offset, size)
        await memory.take(size)
        buffer = memory.buffer(size)
        try:
            seen = await self._store.objects.read(inode, offset, buffer)
            if file.pending:
                overlay(file.pending.newest(offset, offset + size), offset, buffer)
            end = offset + size
            if seen < end:
                node = await self._session.mds.call(GetAttr(inode.fid, Want.LEASE))
                end = min(end, max(offset, node.attr.size))
        except BaseException:
            memory.release(buffer)
            raise
        asyncio.get_running_loop().call_soon(memory.release, buffer)
        return (buffer[: end - offset],)

    async def _read_mapped(self, kernel: Kernel, handle: OpenFile, offset: int, size: int) -> Buffers:
        """A page of a mapping, without a lease: nobody will tell us when somebody else writes there, so the kernel is
        to ask again soon."""
        buffers = await self._read_shared(handle, offset, size, cached=True)
        if not handle.inode.lease:
            self._session.spawn(self._unmap(kernel, handle.inode.fid, offset, size))
        return buffers

    @staticmethod
    async def _unmap(kernel: Kernel, fid: int, offset: int, size: int) -> None:
        await asyncio.sleep(UNMAP_S)
        await kernel.forget_inode(fid, offset, size)

    async def _register(self, handle: OpenFile, want: Want) -> Node:
        """Ask the MDS about a file without a lease; if it does not know any more that we have it open, open it
        again."""
        inode, file = handle.inode, handle.file
        if inode.registered == Mode.CLOSED:
            return await self._session.mds.call(Open(inode.fid, file.mode))
        return await self._session.mds.call(GetAttr(inode.fid, want))

    async def _read_node(self, handle: OpenFile, node: Node, offset: int, size: int) -> Buffers:
        """A read right after the MDS told about the file, without a lease."""
        end = min(offset + size, node.attr.size)
        if offset >= end:
            return ()
        if node.attr.flags & INLINE:
            return ((node.data or b"")[offset:end].ljust(end - offset, b"\0"),)
        buffer = await self._fetch(handle.file, offset, end)
        asyncio.get_running_loop().call_soon(self._memory.release, buffer)
        return (buffer,)

    # ---------------------------------------------------------------------------------------------------------- writing

    def write(self, number: int, offset: int, data: memoryview, flags: int = -1) -> Answer[int]:
        """Keep the bytes, and return at once, if we have the file for ourselves and there is room. `flags` are
        open(2)'s as they are now, if they may have been changed since the file was opened."""
        handle = self.handles.get(number)
        file, inode = handle.file, handle.inode
        if not handle.writable:
            raise handle.refusal("the file is not open for writing")
        how = (handle.flags if flags < 0 else flags) & _HOW
        if (
            inode.lease >= WRITE
            and not how
            and not file.frozen
            and file.error is None
            and offset + len(data) <= SIZE_MAX
            and self._session.live
            and (inode.quota < 0 or has_room(self._store, inode, len(data)))
            and self._memory.try_take(len(data))
        ):
            file.put(offset, _own(data))
            return len(data)
        write = self._write if inode.quota < 0 else self._write_counted
        return write(handle, offset, data, how)

    async def _write_counted(self, handle: OpenFile, offset: int, data: memoryview, how: int) -> int:
        """A write to a file whose owner has a quota: as much of it as there is room for; EDQUOT if there is none."""
        done = 0
        while done < len(data):
            left = data[done:]
            try:
                room = await room_for(self._store, handle.file, -1 if how & os.O_APPEND else offset + done, len(left))
            except OSError:
                if done:
                    return done
                raise
            done += await self._write(handle, offset + done, left[:room], how)
        return done

    async def _write(self, handle: OpenFile, offset: int, data: memoryview, how: int) -> int:
        file, inode, size = handle.file, handle.inode, len(data)
        append, sync = how & os.O_APPEND, how & O_SYNC_ANY != 0
        if file.error is not None:
            raise file.take_error()
        while True:
            if not await self.writable(file):
                if may_have_capabilities(file):
                    await end_capabilities(self._store, file)
                if not append:
                    await self._write_through(handle, offset, data, sync)
                elif not await self._append_through(handle, data, sync):
                    continue
                break
            if not self._memory.try_take(size):
                await self._memory.take(size)
            if inode.lease >= WRITE and not file.frozen and self._session.live:
                at = file.size_now if append else offset
                if at + size > SIZE_MAX:
                    self._memory.give(size)
                    raise OSError(errno.EFBIG, "a file cannot grow beyond 2^63-1 bytes")
                file.put(at, _own(data))
                break
            self._memory.give(size)
        if sync:
            await commit(file, sync=True)
        return size

    async def writable(self, file: File) -> bool:
        """Wait until this file may be written: True under the WRITE lease, False if it is shared (write through)."""
        inode = file.inode
        # Only what lies on OSTs is shared: who writes inline contents needs the WRITE lease, and asks again if it was
        # recalled before it could be used. A file never becomes inline again.
        inline = inode.attr is None or bool(inode.attr.flags & INLINE)
        while True:
            if file.thawed is not None:
                await file.thawed.wait()
                continue
            if not self._session.live:
                await self._session.wait_live()
                continue
            if inode.lease >= WRITE:
                return True
            if inode.lease == NONE and inode.registered & Mode.WRITE and not inline:
                return False
            recalls = inode.recalls
            node = await self._session.mds.call(Open(inode.fid, file.mode | Mode.WRITE))
            inode.asked = recalls
            inline = bool(node.attr.flags & INLINE)
            if inode.lease >= WRITE and (file.thawed is None):
                return True

    async def _append_through(self, handle: OpenFile, data: memoryview, sync: bool) -> bool:
        """Append to a shared file; False if it is not shared any more, or has been given capabilities, which cannot be
        taken away during a turn."""
        async with self._appends.turn(handle.inode) as end:
            if may_have_capabilities(handle.file):
                return False
            if end >= 0:
                await self._write_through(handle, end, data, sync)
            return end >= 0

    async def _write_through(self, handle: OpenFile, offset: int, data: memoryview, sync: bool) -> None:
        file, inode, size = handle.file, handle.inode, len(data)
        if offset + size > SIZE_MAX:
            raise OSError(errno.EFBIG, "a file cannot grow beyond 2^63-1 bytes")
        await self._memory.take(size)
        try:
            file.stored.wrote(await self._store.objects.write(inode, [Extent(offset, data)], sync=sync))
        finally:
            self._memory.give(size)
        file.reported(offset + size)
        if inode.quota >= 0:
            file.count(size)

    # ------------------------------------------------------------------------------------------------------- durability

    def fsync(self, number: int, datasync: bool) -> Answer[None]:
        """Make all that was written to the file durable, whoever wrote it. What failed behind the caller's back is
        tried again now."""
        handle = self.handles.get(number)
        if handle.told != handle.file.losses:
            raise _tell(handle)
        if faults.on and faults.hit("client.sync") is faults.SKIP:
            return None
        return self._fsync(handle)

    @staticmethod
    async def _fsync(handle: OpenFile) -> None:
        try:
            await commit(handle.file, sync=True)
        except OSError:
            if handle.told != handle.file.losses:
                _tell(handle)
            raise
        if handle.told != handle.file.losses:  # with the session, while this waited: then nothing was dirty any more
            raise _tell(handle)


def _own(data: memoryview) -> memoryview:
    """The bytes without the larger buffer that they may be a small part of."""
    return memoryview(bytes(data)) if capacity(data) > 2 * len(data) + 4096 else data


def _first(parts: list[memoryview], size: int) -> list[memoryview]:
    """The first `size` bytes."""
    kept: list[memoryview] = []
    for part in parts:
        kept.append(part[:size])
        size -= len(kept[-1])
    return kept


def _tell(handle: OpenFile) -> OSError:
    """The error that tells an open file that its data was lost; it is told once of each loss."""
    file = handle.file
    handle.told = file.told = file.losses
    return file.take_error()
