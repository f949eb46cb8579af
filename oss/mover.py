"""Movers: bytes from OSTs to archives and back, at the MDS's word.

A part is collected from this server's OSTs and from its peers, every byte checked against its sum, and sent with a
checksum; what comes back is checked against what was archived before a byte of it is written. Memory is bounded by one
pool. Moves end when the connection to the MDS does: it orders them anew.
"""

import asyncio
import errno
from collections.abc import Coroutine, Sequence
from typing import Any, Final

import msgspec
import xxhash
from msgspec.structs import replace

from nacrefs.common import faults
from nacrefs.common.auth import CredentialSource
from nacrefs.common.buffers import BufferPool
from nacrefs.common.checksum import block_sums
from nacrefs.common.wire import (
    BODY_BYTES_MAX,
    ArchiveEntry,
    ArchiveListing,
    Bytes,
    Done,
    Glimpsed,
    Inspection,
    MoveAbort,
    MoveBegin,
    MoveClass,
    MoveComplete,
    Moved,
    MoveDelete,
    MovedMany,
    MoveGet,
    MoveHead,
    MoveList,
    MoveMany,
    MovePart,
    MoveProbe,
    MovePut,
    MoveRead,
    MoveResult,
    MoveStop,
    MoveSync,
    MoveThaw,
    ObjectId,
    Thaw,
    Upload,
)
from nacrefs.oss.gate import Call, Gate
from nacrefs.oss.store.matching import expected, put_matching
from nacrefs.oss.store.opening import Archives
from nacrefs.oss.store.protocol import ArchiveStore, abort_uploads
from nacrefs.oss.striped import Handlers, StripedFiles

_ENDING_S: Final = 5.0
"""How long a stopped move waits for the archive's answer."""


class Mover:
    """All moves of one OSS."""

    def __init__(
        self, gate: Gate, handlers: Handlers, credentials: CredentialSource, name: str, bytes_max: int
    ) -> None:
        self._gate = gate
        self._files = StripedFiles(gate, handlers, credentials, name)
        self._pool = BufferPool(bytes_max, min(bytes_max, 32 << 20))
        self._jobs: dict[int, set[asyncio.Task[Any]]] = {}
        self._sending: dict[asyncio.Task[str], int] = {}
        """Objects on their way, of which files: an archive may have one although its move was stopped."""
        self.archives = Archives()

    def for_mds(self) -> Handlers:
        """Handlers of the MDS's orders."""
        return {
            MovePut: lambda request, call: self._job(_fid_of(request), self._put(request)),
            MoveBegin: self._begin,
            MovePart: lambda request, call: self._job(request.stripes.fid, self._part(request)),
            MoveComplete: self._complete,
            MoveAbort: self._abort,
            MoveGet: lambda request, call: self._job(request.stripes.fid, self._get(request)),
            MoveMany: self._many,
            MoveSync: self._sync,
            MoveDelete: self._delete,
            MoveList: self._list,
            MoveProbe: self._probe,
            MoveHead: self._head,
            MoveRead: self._read,
            MoveThaw: self._thaw,
            MoveClass: self._class,
            MoveStop: self._stop,
        }

    # ------------------------------------------------------------------------------------------------------------ jobs

    async def _job(self, fid: int, work: Coroutine[Any, Any, Moved]) -> Moved:
        """Carry out a move that can be stopped."""
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

    async def _many(self, request: MoveMany, call: Call) -> MovedMany:
        """Orders about small files, all at once; what came back is made durable together."""

        async def one(order: MovePut | MoveGet) -> MoveResult:
            work = self._put(order) if isinstance(order, MovePut) else self._fetch(order)
            try:
                return MoveResult(await self._job(_fid_of(order), work))
            except OSError as error:
                return MoveResult(None, error.errno or errno.EIO, error.strerror or str(error))

        results = await asyncio.gather(*map(one, request.orders))
        synced: dict[int, list[ObjectId]] = {
            number: self._files.own_objects(order.stripes)
            for number, order in enumerate(request.orders)
            if isinstance(order, MoveGet) and order.sync and results[number].moved is not None
        }
        try:
            stats = iter(await self._files.sync([item for objects in synced.values() for item in objects]))
        except OSError as error:
            failed = MoveResult(None, error.errno or errno.EIO, error.strerror or str(error))
            return MovedMany(tuple(failed if number in synced else one for number, one in enumerate(results)))
        for number, objects in synced.items():
            moved = results[number].moved
            assert moved is not None
            allocated = moved.allocated_bytes + sum(next(stats).allocated_bytes for _ in objects)
            results[number] = MoveResult(replace(moved, allocated_bytes=allocated))
        return MovedMany(tuple(results))

    async def stop(self, fids: Sequence[int]) -> None:
        """Stop the moves of files; returns when none is under way."""
        tasks = [task for fid in fids for task in self._jobs.get(fid, ())]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def stop_all(self) -> None:
        """The MDS is lost: what it ordered ends, since it will order it anew."""
        for tasks in (*self._jobs.values(), list(self._sending)):
            for task in tasks:
                task.cancel()

    async def close(self) -> None:
        """End."""
        await self.stop(list(self._jobs))
        await self._end_sending(list(self._sending))
        await self._files.close()
        await self.archives.close()

    async def _stop(self, request: MoveStop, call: Call) -> Done:
        await self.stop(request.fids)
        sending = [task for task, fid in self._sending.items() if fid in request.fids]
        if sending:
            await asyncio.wait(sending, timeout=_ENDING_S)  # so that what is deleted then does not come back
            await self._end_sending(sending)
        return Done()

    async def _send(self, fid: int, put: Coroutine[Any, Any, str]) -> str:
        task = asyncio.get_running_loop().create_task(put)
        self._sending[task] = fid
        task.add_done_callback(self._sent)
        return await asyncio.shield(task)

    def _sent(self, task: "asyncio.Task[str]") -> None:
        del self._sending[task]
        if not task.cancelled():
            task.exception()

    async def _end_sending(self, tasks: "Sequence[asyncio.Task[str]]") -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ----------------------------------------------------------------------------------------------------------- moves

    async def _put(self, request: MovePut) -> Moved:
        if request.data is not None:
            return await self._put_bytes(request, memoryview(request.data))
        if not request.size or request.stripes is None:
            return await self._put_bytes(request, memoryview(b""))
        buffer = await self._buffer(request.size)
        try:
            await self._files.collect(request.stripes, 0, buffer)
            return await self._put_bytes(request, buffer)
        finally:
            self._pool.give(buffer)

    async def _put_bytes(self, request: MovePut, view: memoryview) -> Moved:
        digest = _digest(view, 0)
        meta = {**dict(request.meta), "nacre-checksum": digest.hex()}
        if faults.on:
            faults.hit("oss.move.collected")
        store = await self._store(request)
        put = put_matching(store, request.key, [view] if len(view) else [], meta, request.match)
        etag = await self._send(_fid_of(request), put)
        if faults.on:
            faults.hit("oss.move.stored")
        return Moved(etag, digest)

    async def _part(self, request: MovePart) -> Moved:
        buffer = await self._buffer(request.end - request.start)
        try:
            await self._files.collect(request.stripes, request.start, buffer)
            digest = _digest(buffer, request.start)
            if faults.on:
                faults.hit("oss.move.collected")
            store = await self._store(request)
            etag = await store.part(request.key, request.upload, request.number, buffer)
            if faults.on:
                faults.hit("oss.move.stored")
            return Moved(etag, digest)
        finally:
            self._pool.give(buffer)

    async def _get(self, request: MoveGet) -> Moved:
        moved = await self._fetch(request)
        if not request.sync:
            return moved
        stats = await self._files.sync(self._files.own_objects(request.stripes))
        return replace(moved, allocated_bytes=moved.allocated_bytes + sum(stat.allocated_bytes for stat in stats))

    async def _fetch(self, request: MoveGet) -> Moved:
        """Copy bytes to the OSTs; what is on this server's is not durable yet."""
        start, end = request.start, request.end
        buffer = await self._buffer(end - start)  # small objects arrive in as much memory of their own
        try:
            data, sums = await self._archived(request, buffer)
            if faults.on:
                faults.hit("oss.move.fetched")
            allocated = await self._files.spread(request.stripes, start, data, sums, request.sync)
            if faults.on:
                faults.hit("oss.move.written")
            return Moved(request.etag, xxhash.xxh3_64_digest(sums), allocated)
        finally:
            self._pool.give(buffer)

    async def _archived(self, request: MoveGet, buffer: memoryview) -> tuple[memoryview, bytes]:
        """The bytes that were archived, and their sums. EBADMSG if they are others; ENOENT if there is no such object,
        EREMCHG if it is another one: the copy is lost then."""
        store = await self._store(request)
        start, end = request.start, request.end
        if request.digest:  # says more than size and ETag, which cost a small object a third of its GET's CPU
            try:
                data = await store.get(request.key, start, end, into=buffer)
                sums = block_sums(data, start)
                if xxhash.xxh3_64_digest(sums) == request.digest:
                    return data, sums
            except OSError as error:
                if error.errno not in (errno.EBADMSG, errno.ESTALE):
                    raise
        try:
            data = await store.get(request.key, start, end, request.size, request.etag, buffer)
        except OSError as error:
            if error.errno == errno.ESTALE:  # which other servers say of layouts
                raise OSError(errno.EREMCHG, error.strerror) from None
            raise
        if not request.digest and end - start == request.size:
            await store.check_whole(request.key, data, request.etag)
        sums = block_sums(data, start)
        if request.digest and xxhash.xxh3_64_digest(sums) != request.digest:
            raise OSError(
                errno.EBADMSG,
                f"archive {request.archive.name}, object {request.key!r}: bytes from {start} on are not those that "
                "were archived",
            )
        return data, sums

    async def _buffer(self, size: int) -> memoryview:
        while (buffer := self._pool.take(size)) is None:
            free = asyncio.Event()
            self._pool.when_free(free.set)
            await free.wait()
        return buffer

    async def _sync(self, request: MoveSync, call: Call) -> Glimpsed:
        if not request.begin:
            return Glimpsed(tuple(await self._files.sync(request.objects)))
        for target, key in self._gate.find(request.objects):
            stored = await target.usable(*key)
            if stored is not None:
                await target.durability.begin(stored)
        return Glimpsed(())

    # -------------------------------------------------------------------------------------------------------- archives

    async def _store(self, request: Any) -> ArchiveStore:
        return await self.archives.of(request.archive)

    async def _begin(self, request: MoveBegin, call: Call) -> Upload:
        store = await self._store(request)
        meta = dict(request.meta)
        await expected(store, request.key, meta.get("nacre-fid", ""), request.match)
        return Upload(await store.begin(request.key, meta))

    async def _complete(self, request: MoveComplete, call: Call) -> Moved:
        store = await self._store(request)
        await expected(store, request.key, f"{request.fid:x}", request.match)
        etag = await store.complete(request.key, request.upload, request.etags)
        about = await store.head(request.key)
        if about.size != request.size:
            raise OSError(
                errno.EBADMSG, f"archive {request.archive.name}: {about.size} bytes arrived, not {request.size}"
            )
        return Moved(etag or about.etag, b"")

    async def _abort(self, request: MoveAbort, call: Call) -> Done:
        store = await self._store(request)
        if request.upload:
            await store.abort(request.key, request.upload)
        else:  # its name was never heard
            await abort_uploads(store, request.key)
        return Done()

    async def _delete(self, request: MoveDelete, call: Call) -> Done:
        await (await self._store(request)).delete(request.keys)
        return Done()

    async def _list(self, request: MoveList, call: Call) -> ArchiveListing:
        store = await self._store(request)
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
        return Inspection(msgspec.json.encode(await (await self._store(request)).probe()))

    async def _head(self, request: MoveHead, call: Call) -> ArchiveEntry:
        return await (await self._store(request)).head(request.key)

    async def _read(self, request: MoveRead, call: Call) -> Bytes:
        store = await self._store(request)
        size = (await store.head(request.key)).size
        if size > BODY_BYTES_MAX // 2:
            raise OSError(errno.EFBIG, f"archive {request.archive.name}, object {request.key!r}: {size} bytes")
        return Bytes(bytes(await store.get(request.key, 0, size, size)))

    async def _thaw(self, request: MoveThaw, call: Call) -> Thaw:
        return Thaw(await (await self._store(request)).thaw(request.key, request.days, request.tier))

    async def _class(self, request: MoveClass, call: Call) -> ArchiveEntry:
        return await (await self._store(request)).set_class(request.key, request.storage_class, request.size)


def _fid_of(order: MovePut | MoveGet) -> int:
    return order.stripes.fid if order.stripes is not None else int(dict(order.meta)["nacre-fid"], 16)


def _digest(view: memoryview, start: int) -> bytes:
    return xxhash.xxh3_64_digest(block_sums(view, start))
