"""`CopyRange`: bytes of one object written to another, without passing through the client (docs/adr/0018).

The client's two capabilities are checked here, by the target's OSS: that it may write the target, and that it may read
the source. The bytes are then read in this server's own name, by its own `Read` handler if the source is on one of its
OSTs, else from the OSS that has it. They are verified before anything is changed. Where source and target lie alike in
their blocks, the sums that were verified become the target's; elsewhere they are made anew.

One request is one change, made in one step of the event loop like a `Write` of the same bytes, and noted as such
(`applied`): what a kill interrupts is settled in the same way, and nobody sees half of it. A fence does not wait for
bytes from another server.
"""

import asyncio
import errno
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Final, NamedTuple

from nacrefs.common.answer import Answer, settle
from nacrefs.common.buffers import BufferPool
from nacrefs.common.checksum import SUM_BYTES, block_sums, first_mismatch
from nacrefs.common.layout import BLOCK_BYTES, block_count
from nacrefs.common.remote import Remote
from nacrefs.common.wire import COPY_BYTES_MAX, CopyRange, Data, Read, Right, Written
from nacrefs.oss import applied
from nacrefs.oss.admission import check_extents, check_object, invalid
from nacrefs.oss.changes import Changes, Note, store, written
from nacrefs.oss.gate import Call, Gate
from nacrefs.oss.object import Segment
from nacrefs.oss.own import Own, OwnCall
from nacrefs.oss.reads import Reads
from nacrefs.oss.target import Target

log = logging.getLogger("nacre.oss")
DEADLINE_S: Final = 10.0
"""So long another server may take; then the client copies through itself, as long as it takes."""
_AT_ONCE: Final = 8
"""Copies from other servers that are under way at a time: each has a buffer."""
_READ: Final = Right.READ
_WRITE: Final = int(Right.WRITE)
_MIRRORED: Final = int(Right.MIRRORED)
_ZEROS: Final = memoryview(bytes(COPY_BYTES_MAX))


class Fetched(NamedTuple):
    """A piece of the source: its bytes, verified, and their sum string as the source has it."""

    view: memoryview
    sums: bytes


class Copying:
    """The handler. `reach(ost)` is the connection to the OSS that has an OST."""

    def __init__(self, gate: Gate, changes: Changes, reads: Reads, reach: Callable[[int], Awaitable[Remote]]) -> None:
        self._gate = gate
        self._changes = changes
        self._reads = reads
        self._reach = reach
        self._own = Own("0.copies")
        self._room = asyncio.Semaphore(_AT_ONCE)
        self._pool = BufferPool(_AT_ONCE * COPY_BYTES_MAX)

    def copy(self, request: CopyRange, call: Call) -> Answer[Written]:
        """Copy extents of another object to this one."""
        _check(request)
        if self._gate.holds(request):
            return self._gate.when_open(self.copy, request, call)
        target = self._gate.admit(request, call, _WRITE)
        replies, known = self._changes.once(request, call, target)
        if known is not None:
            return known
        return self._gate.counted(call, replies.serve, call.xid, self._copy, request, call, target)

    async def _copy(self, request: CopyRange, call: Call, target: Target) -> Written:
        read = self._read_request(request, call)
        await target.durability.relief()
        total = sum(length for _, _, length in request.extents)
        stored = await target.usable(request.fid, request.number)
        places = [(offset, length) for _, offset, length in request.extents]
        if not target.space.has_room(total) and not (stored is not None and stored.is_allocated(places)):
            raise target.space.full()
        if request.source_ost in self._gate.targets:
            return await self._copy_own(request, call, target, read)
        async with self._room:
            buffer = self._pool.take(total)
            assert buffer is not None
            try:
                return await self._copy_other(request, call, target, read, buffer)
            finally:
                self._pool.give(buffer)

    def _read_request(self, request: CopyRange, call: Call) -> Read:
        """What is to be asked of the source, if the client may; OSError if not."""
        peer, capability = call.peer, request.source_capability
        fid, generation = request.source_fid, request.source_generation
        try:
            self._gate.admission.check(capability, fid, generation, peer.session, int(_READ), peer.principal)
        except OSError as error:
            if error.errno != errno.EKEYEXPIRED:
                raise
            with _reading(request):
                raise
        rights = _READ | (capability.rights & _MIRRORED)
        own = self._gate.admission.own_capability(fid, generation, rights)
        extents = tuple((offset, length) for offset, _, length in request.extents)
        return Read(request.source_ost, fid, request.source_number, generation, own, extents)

    async def _copy_own(self, request: CopyRange, call: Call, target: Target, read: Read) -> Written:
        own = OwnCall(self._own)

        async def fetch() -> list[list[Fetched]]:
            with _reading(request):
                data = await settle(self._reads.read(read, own))
                return _verified(read, data, _cut(own.pushed, data.lengths))

        try:
            return await self._store(request, call, target, await self._gate.aside(call, fetch()))
        finally:
            own.end()

    async def _copy_other(
        self, request: CopyRange, call: Call, target: Target, read: Read, buffer: memoryview
    ) -> Written:
        views: list[memoryview] = []
        at = 0
        for _, length in read.extents:
            views.append(buffer[at : at + length])
            at += length

        async def fetch() -> list[list[Fetched]]:
            with _reading(request):
                server = await self._reach(read.ost)
                data = await server.call(read, into=views, deadline_s=DEADLINE_S)
                received = [view[:length] for view, length in zip(views, data.lengths, strict=True) if length]
                return _verified(read, data, received)

        return await self._store(request, call, target, await self._gate.aside(call, fetch()))

    async def _store(
        self, request: CopyRange, call: Call, target: Target, fetched: Sequence[Sequence[Fetched]]
    ) -> Written:
        segments: list[Segment] = []
        for (source, offset, _), parts in zip(request.extents, fetched, strict=True):
            aligned = not (source - offset) % BLOCK_BYTES
            for view, sums in parts:
                segments.append(Segment(offset, view, sums if aligned else block_sums(view, offset)))
                offset += len(view)
        extents = [(segment.offset, len(segment.data)) for segment in segments]
        sums = b"".join([segment.sums for segment in segments])
        note = Note(target.applied, call, applied.WRITE, request.fid, request.number, extents, sums)
        grown: list[int] = []
        step = partial(note.around, partial(store, segments, target.written_blocks, grown, request.mtime_ns))
        key = (request.fid, request.number)
        stored = await self._changes.change(target, key, step, call, generation=request.generation, create=True)
        assert stored is not None
        target.durability.changed(stored, sum(length for _, length in extents))
        return written(stored, sum(grown))


def _check(request: CopyRange) -> None:
    """EINVAL unless it can be."""
    check_object(request.source_fid, request.source_number)
    check_extents([(offset, length) for offset, _, length in request.extents], COPY_BYTES_MAX)
    check_extents([(offset, length) for _, offset, length in request.extents], COPY_BYTES_MAX)
    end = -1
    for _, offset, length in request.extents:
        if not length or offset < end:
            raise invalid(f"extents: ({offset}, {length}) is empty, or begins before the end of the one before")
        end = offset + length
    if end < 0:
        raise invalid("extents: there are none")


def _verified(read: Read, data: Data, views: list[memoryview]) -> list[list[Fetched]]:
    """The bytes of each extent, which have been compared with their sums; zeros where the source ends before."""
    fetched: list[list[Fetched]] = []
    at = 0
    for (start, size), length in zip(read.extents, data.lengths, strict=True):
        parts: list[Fetched] = []
        if length:
            view = views.pop(0)
            sums = data.sums[at : at + block_count(start, start + length) * SUM_BYTES]
            bad = first_mismatch(view, start, sums)
            if bad is not None:
                raise OSError(errno.EBADMSG, f"bytes at {bad} of OST {read.ost} do not match their checksum")
            at += len(sums)
            parts.append(Fetched(view, sums))
        if length < size:
            rest = _ZEROS[: size - length]
            parts.append(Fetched(rest, block_sums(rest, start + length)))
        fetched.append(parts)
    return fetched


def _cut(pushed: Sequence[memoryview], lengths: Sequence[int]) -> list[memoryview]:
    """The bytes of each extent that has any; several may lie in one buffer."""
    left = deque(pushed)
    views: list[memoryview] = []
    for length in lengths:
        if length:
            view = left.popleft()
            if len(view) > length:
                left.appendleft(view[length:])
            views.append(view[:length])
    return views


@contextmanager
def _reading(request: CopyRange) -> Generator[None]:
    """What goes wrong here is about the source: EREMOTEIO."""
    try:
        yield
    except OSError as error:
        text = f"cannot copy from OST {request.source_ost}: {error.strerror or error}"
        log.info("%s", text)
        raise OSError(errno.EREMOTEIO, text) from None
