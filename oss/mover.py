"""Movers: bytes from OSTs to archives and back, at the MDS's word.

A part is collected from this server's OSTs and from its peers, every byte checked against its sum, and sent with a
checksum; what comes back is checked against what was archived before a byte of it is written. Memory is bounded by one
pool. Moves end when the connection to the MDS does: it orders them anew.
"""

import asyncio
import errno
import itertools
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final

import msgspec
import xxhash

from nacrefs.common.answer import settle
from nacrefs.common.auth import Credentials
from nacrefs.common.buffers import BufferPool
from nacrefs.common.checksum import SUM_BYTES, block_sums, first_mismatch
from nacrefs.common.layout import BLOCK_BYTES, block_count, blocks, by_stripe
from nacrefs.common.observe import Meter
from nacrefs.common.remote import Remote
from nacrefs.common.wire import (
    ArchiveEntry,
    ArchiveListing,
    Data,
    Done,
    Glimpsed,
    Inspection,
    MoveAbort,
    MoveBegin,
    MoveClass,
    MoveComplete,
    Moved,
    MoveDelete,
    MoveGet,
    MoveHead,
    MoveList,
    MovePart,
    MoveProbe,
    MovePut,
    MoveStop,
    MoveSync,
    MoveThaw,
    Read,
    Stripes,
    Thaw,
    Upload,
    Write,
)
from nacrefs.oss.gate import Call, Gate
from nacrefs.oss.store.opening import Archives

FRAME_BYTES: Final = 8 << 20
"""Most bytes in one read or write of an object."""
_ZERO_SUM: Final = block_sums(memoryview(bytes(BLOCK_BYTES)), 0)
_EXTENTS: Final = 1024
_numbers = itertools.count(1)
Handlers = Mapping[type[Any], Callable[[Any, Any], Any]]


class _Own:
    """Who asks this server's own handlers: the mover."""

    name = "0.mover"
    session = 0
    state: Any = None


class _OwnCall:
    """A request that did not come over a network."""

    def __init__(self, peer: _Own, bulk: memoryview) -> None:
        self.peer = peer
        self.xid = self.oldest = next(_numbers)
        self.resent = False
        self.pushed: Sequence[memoryview] = ()
        self.release: Callable[[], None] | None = None
        self._bulk = bulk

    def pull(self) -> memoryview:
        """The bytes to be written."""
        return self._bulk

    def push(self, buffers: Sequence[memoryview], release: Callable[[], None] | None = None) -> None:
        """The bytes that were read."""
        self.pushed = buffers
        self.release = release


class Mover:
    """All moves of one OSS."""

    def __init__(self, gate: Gate, handlers: Handlers, credentials: Credentials, name: str, bytes_max: int) -> None:
        self._gate = gate
        self._handlers = handlers
        self._credentials = credentials
        self._name = name
        self._pool = BufferPool(bytes_max, min(bytes_max, 32 << 20))
        self._own = _Own()
        self._meter = Meter()
        self._peers: dict[str, Remote] = {}
        self._jobs: dict[int, set[asyncio.Task[Any]]] = {}
        self.archives = Archives()

    def for_mds(self) -> Handlers:
        """Handlers of the MDS's orders."""
        return {
            MovePut: lambda request, call: self._job(request.stripes, self._put(request)),
            MoveBegin: self._begin,
            MovePart: lambda request, call: self._job(request.stripes, self._part(request)),
            MoveComplete: self._complete,
            MoveAbort: self._abort,
            MoveGet: lambda request, call: self._job(request.stripes, self._get(request)),
            MoveSync: self._sync,
            MoveDelete: self._delete,
            MoveList: self._list,
            MoveProbe: self._probe,
            MoveHead: self._head,
            MoveThaw: self._thaw,
            MoveClass: self._class,
            MoveStop: self._stop,
        }

    # ------------------------------------------------------------------------------------------------------------ jobs

    async def _job(self, stripes: Stripes | None, work: Coroutine[Any, Any, Moved]) -> Moved:
        """Carry out a move that can be stopped."""
        fid = 0 if stripes is None else stripes.fid
        task = asyncio.get_running_loop().create_task(work)
        self._jobs.setdefault(fid, set()).add(task)
        try:
            return await task
        except asyncio.CancelledError:
            if task.cancelled():
                raise OSError(errno.ECANCELED, "the move was stopped") from None
            task.cancel()
            raise
        finally:
            jobs = self._jobs.get(fid)
            if jobs is not None:
                jobs.discard(task)
                if not jobs:
                    del self._jobs[fid]

    async def stop(self, fids: Sequence[int]) -> None:
        """Stop the moves of files; returns when none is under way."""
        tasks = [task for fid in fids for task in self._jobs.get(fid, ())]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def stop_all(self) -> None:
        """The MDS is lost: what it ordered ends, since it will order it anew."""
        for tasks in self._jobs.values():
            for task in tasks:
                task.cancel()

    async def close(self) -> None:
        """End."""
        await self.stop(list(self._jobs))
        for peer in self._peers.values():
            await peer.aclose()
        await self.archives.close()

    async def _stop(self, request: MoveStop, call: Call) -> Done:
        await self.stop(request.fids)
        return Done()

    # ----------------------------------------------------------------------------------------------------------- moves

    async def _put(self, request: MovePut) -> Moved:
        store = self.archives.of(request.archive)
        if request.data is not None:
            view = memoryview(request.data)
            return await self._put_bytes(request, view)
        if not request.size or request.stripes is None:
            return await self._put_bytes(request, memoryview(b""))
        buffer = await self._buffer(request.size)
        try:
            await self._collect(request.stripes, 0, buffer)
            return await self._put_bytes(request, buffer)
        finally:
            del store
            self._pool.give(buffer)

    async def _put_bytes(self, request: MovePut, view: memoryview) -> Moved:
        digest = _digest(view, 0)
        meta = {**dict(request.meta), "nacre-checksum": digest.hex()}
        etag = await self.archives.of(request.archive).put(request.key, [view] if len(view) else [], meta)
        return Moved(etag, digest)

    async def _part(self, request: MovePart) -> Moved:
        buffer = await self._buffer(request.end - request.start)
        try:
            await self._collect(request.stripes, request.start, buffer)
            digest = _digest(buffer, request.start)
            etag = await self.archives.of(request.archive).part(request.key, request.upload, request.number, buffer)
            return Moved(etag, digest)
        finally:
            self._pool.give(buffer)

    async def _get(self, request: MoveGet) -> Moved:
        start, end = request.start, request.end
        buffer = await self._buffer(end - start)  # what arrives has as much memory of its own
        try:
            store = self.archives.of(request.archive)
            data = await store.get(request.key, start, end, request.size, request.etag)
            sums = block_sums(data, start)
            digest = xxhash.xxh3_64_digest(sums)
            if request.digest and digest != request.digest:
                raise OSError(
                    errno.EBADMSG,
                    f"archive {request.archive.name}, object {request.key!r}: bytes from {start} on are not those that "
                    "were archived",
                )
            await self._spread(request.stripes, start, data, sums)
            return Moved(request.etag, digest)
        finally:
            self._pool.give(buffer)

    async def _buffer(self, size: int) -> memoryview:
        while (buffer := self._pool.take(size)) is None:
            free = asyncio.Event()
            self._pool.when_free(free.set)
            await free.wait()
        return buffer

    # --------------------------------------------------------------------------------------------------------- objects

    async def _collect(self, stripes: Stripes, start: int, buffer: memoryview) -> None:
        """Fill the buffer with the file's bytes from `start` on; what no object has is zero."""
        for low in range(0, len(buffer), FRAME_BYTES):
            part = buffer[low : low + FRAME_BYTES]
            extents = by_stripe(stripes.layout, start + low, start + low + len(part))
            await _together(
                [self._collect_stripe(stripes, stripe, some, start + low, part) for stripe, some in extents.items()]
            )

    async def _collect_stripe(
        self, stripes: Stripes, stripe: int, extents: list[tuple[int, int]], base: int, buffer: memoryview
    ) -> None:
        layout = stripes.layout
        copies = layout.readable(stripe)
        for at in range(0, len(extents), _EXTENTS):
            some = extents[at : at + _EXTENTS]
            targets = [buffer[low - base : high - base] for low, high in some]
            for number in copies:
                ost = layout.osts[number]
                wanted = tuple((low, high - low) for low, high in some)
                request = Read(ost, stripes.fid, number, layout.generation, stripes.capability, wanted)
                try:
                    data = await self._read(ost, stripes.addresses[number], request, targets)
                    _verify(request, data, targets)
                    break
                except OSError:
                    if number == copies[-1]:
                        raise

    async def _read(self, ost: int, address: str, request: Read, targets: list[memoryview]) -> Data:
        if ost not in self._gate.targets:
            return await self._peer(address).call(request, into=targets)
        call = _OwnCall(self._own, memoryview(b""))
        try:
            data: Data = await settle(self._handlers[Read](request, call))
            source = _joined(call.pushed)
            at = 0
            for target, length in zip(targets, data.lengths, strict=True):
                for piece in source(length):
                    target[at : at + len(piece)] = piece
                    at += len(piece)
                at = 0
            return data
        finally:
            if call.release is not None:
                call.release()

    async def _spread(self, stripes: Stripes, start: int, data: memoryview, sums: bytes) -> None:
        """Write bytes to their objects, all copies; blocks of zeros stay holes."""
        layout = stripes.layout
        works: list[Coroutine[Any, Any, None]] = []
        first = start // BLOCK_BYTES
        for stripe, extents in by_stripe(layout, start, start + len(data)).items():
            wanted: list[tuple[int, int]] = []
            for low, high in extents:
                for a, b in blocks(low, high):
                    index = (a // BLOCK_BYTES - first) * SUM_BYTES
                    if b - a == BLOCK_BYTES and sums[index : index + SUM_BYTES] == _ZERO_SUM:
                        continue
                    if wanted and wanted[-1][1] == a:
                        wanted[-1] = (wanted[-1][0], b)
                    else:
                        wanted.append((a, b))
            works += [self._write_stripe(stripes, number, wanted, start, data) for number in layout.objects_of(stripe)]
        await _together(works)

    async def _write_stripe(
        self, stripes: Stripes, number: int, extents: list[tuple[int, int]], base: int, data: memoryview
    ) -> None:
        layout = stripes.layout
        ost = layout.osts[number]
        batch: list[tuple[int, int]] = []
        size = 0
        batches = [batch]
        for low, high in extents:
            while low < high:
                if size >= FRAME_BYTES or len(batch) >= _EXTENTS:
                    batch, size = [], 0
                    batches.append(batch)
                end = min(high, low + FRAME_BYTES - size)
                batch.append((low, end))
                size += end - low
                low = end
        for some in batches:
            if not some:
                continue
            views = [data[low - base : high - base] for low, high in some]
            request = Write(
                ost,
                stripes.fid,
                number,
                layout.generation,
                stripes.capability,
                tuple((low, high - low) for low, high in some),
                b"".join(block_sums(view, low) for view, (low, _) in zip(views, some, strict=True)),
            )
            if ost in self._gate.targets:
                bulk = views[0] if len(views) == 1 else memoryview(b"".join(views))
                await settle(self._handlers[Write](request, _OwnCall(self._own, bulk)))
            else:
                await self._peer(stripes.addresses[number]).call(request, data=views)

    def _peer(self, address: str) -> Remote:
        if not address:
            raise OSError(errno.EAGAIN, "an OST of the file is away")
        peer = self._peers.get(address)
        if peer is None:
            peer = self._peers[address] = Remote(address, self._credentials, f"0.{self._name}", {}, self._meter)
            peer.open_later()
        return peer

    async def _sync(self, request: MoveSync, call: Call) -> Glimpsed:
        for target, key in self._gate.find(request.objects):
            stored = await target.usable(*key)
            if stored is not None:
                await target.durability.sync(stored)
        return Glimpsed(tuple(target.stat(*key) for target, key in self._gate.find(request.objects)))

    # -------------------------------------------------------------------------------------------------------- archives

    async def _begin(self, request: MoveBegin, call: Call) -> Upload:
        return Upload(await self.archives.of(request.archive).begin(request.key, dict(request.meta)))

    async def _complete(self, request: MoveComplete, call: Call) -> Moved:
        store = self.archives.of(request.archive)
        etag = await store.complete(request.key, request.upload, request.etags)
        about = await store.head(request.key)
        if about.size != request.size:
            raise OSError(
                errno.EBADMSG, f"archive {request.archive.name}: {about.size} bytes arrived, not {request.size}"
            )
        return Moved(etag or about.etag, b"")

    async def _abort(self, request: MoveAbort, call: Call) -> Done:
        store = self.archives.of(request.archive)
        if request.upload:
            await store.abort(request.key, request.upload)
        else:  # its name was never heard
            for key, upload in await store.uploads():
                if key == request.key:
                    await store.abort(key, upload)
        return Done()

    async def _delete(self, request: MoveDelete, call: Call) -> Done:
        await self.archives.of(request.archive).delete(request.keys)
        return Done()

    async def _list(self, request: MoveList, call: Call) -> ArchiveListing:
        store = self.archives.of(request.archive)
        page = await store.page(request.prefix, request.after, request.limit)
        entries = page.entries
        if request.details:
            describe: Any = getattr(store, "describe", None)
            limit = asyncio.Semaphore(16)

            async def detailed(entry: ArchiveEntry) -> ArchiveEntry:
                async with limit:
                    found: ArchiveEntry = await (describe(entry) if describe is not None else store.head(entry.key))
                    return found

            entries = list(await asyncio.gather(*map(detailed, entries)))
        return ArchiveListing(tuple(entries), page.after)

    async def _probe(self, request: MoveProbe, call: Call) -> Inspection:
        self.archives.forget(request.archive)
        return Inspection(msgspec.json.encode(await self.archives.of(request.archive).probe()))

    async def _head(self, request: MoveHead, call: Call) -> ArchiveEntry:
        return await self.archives.of(request.archive).head(request.key)

    async def _thaw(self, request: MoveThaw, call: Call) -> Thaw:
        return Thaw(await self.archives.of(request.archive).thaw(request.key, request.days, request.tier))

    async def _class(self, request: MoveClass, call: Call) -> ArchiveEntry:
        return await self.archives.of(request.archive).set_class(request.key, request.storage_class)


async def _together(works: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Do all; nothing is under way any more when this ends."""
    if len(works) == 1:
        await works[0]
        return
    for result in await asyncio.gather(*works, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result


def _digest(view: memoryview, start: int) -> bytes:
    return xxhash.xxh3_64_digest(block_sums(view, start))


def _verify(request: Read, data: Data, targets: list[memoryview]) -> None:
    """Check sums, and make zero what is missing."""
    at = 0
    for (start, size), target, length in zip(request.extents, targets, data.lengths, strict=True):
        if length:
            count = block_count(start, start + length) * SUM_BYTES
            bad = first_mismatch(target[:length], start, data.sums[at : at + count])
            if bad is not None:
                raise OSError(errno.EBADMSG, f"bytes at {bad} of OST {request.ost} do not match their checksum")
            at += count
        if length < size:
            target[length:] = bytes(size - length)


def _joined(buffers: Sequence[memoryview]) -> Callable[[int], list[memoryview]]:
    """The bytes of several buffers, taken in order."""
    left = [view for view in buffers if len(view)]

    def take(size: int) -> list[memoryview]:
        taken: list[memoryview] = []
        while size:
            view = left.pop(0)
            if len(view) > size:
                left.insert(0, view[size:])
                view = view[:size]
            taken.append(view)
            size -= len(view)
        return taken

    return take
