"""`Read`: bytes of an object with the sums of what is sent.

If the bytes are in the page cache the answer is there in the same step of the event loop. Otherwise a thread reads
them; if the object has changed meanwhile (bytes and sums might not fit) the read starts again.
"""

import asyncio
import errno
from collections.abc import Sequence
from functools import partial
from typing import Final

import xxhash

from nacrefs.common.answer import Answer
from nacrefs.common.buffers import BufferPool, page_aligned
from nacrefs.common.checksum import SUM_BYTES
from nacrefs.common.layout import BLOCK_BYTES
from nacrefs.common.wire import Data, Read, Right
from nacrefs.oss import blockio
from nacrefs.oss.admission import check_extents
from nacrefs.oss.durability import unpin
from nacrefs.oss.gate import Call, Gate, check_generation
from nacrefs.oss.object import State, StoredObject
from nacrefs.oss.pagesums import PAGE_BYTES
from nacrefs.oss.runs import Run, plan_runs, take
from nacrefs.oss.target import Target

_RUN_BYTES_MAX: Final = 1 << 20
"""Neighbouring extents are read together up to this much."""
_DIRECT_BYTES_MAX: Final = (8 << 20) + 2 * BLOCK_BYTES
"""Whole blocks of a request up to this much are read into one buffer and sent from there; more is read piecemeal."""
_SHIFT: Final = 16
_READ: Final = int(Right.READ)
_TRIES: Final = 4
"""So often a read is started again before it holds everybody up."""
_hash = xxhash.xxh3_64_intdigest


class Reads:
    """Handlers of requests that read."""

    def __init__(self, gate: Gate, threads: blockio.IoThreads, pool: BufferPool) -> None:
        self._gate = gate
        self._threads = threads
        self._pool = pool

    def read(self, request: Read, call: Call) -> Answer[Data]:
        """Bytes of extents, with the sums of what is sent."""
        extents = request.extents
        check_extents(extents)
        if self._gate.holds(request):
            return self._gate.when_open(self.read, request, call)
        target = self._gate.admit(request, call, _READ)
        stored = target.find(request.fid, request.number)
        if stored is None:
            return Data((0,) * len(extents), b"", 0)
        if stored.state >= State.CLEANING:
            check_generation(target, stored, request.generation)
            if len(extents) == 1 and (data := _read_part(call, target, stored, *extents[0])) is not None:
                return data
            runs = plan_runs(extents, stored.size, _RUN_BYTES_MAX)
            if not runs:
                return Data((0,) * len(extents), b"", stored.version)
            size = sum([run.end - run.start for run in runs])
            buffer = self._pool.take(size) if size <= _DIRECT_BYTES_MAX else None
            if buffer is not None:
                return self._read_direct(call, target, stored, extents, runs, buffer)
        return self._gate.counted(call, self._read_later, request, call, target)

    def _read_direct(
        self,
        call: Call,
        target: Target,
        stored: StoredObject,
        extents: Sequence[tuple[int, int]],
        runs: list[Run],
        buffer: memoryview,
    ) -> Answer[Data]:
        missing = blockio.load_cached(stored.fd, _loads(runs, buffer))
        if missing:
            begun = stored, stored.version
            return self._gate.counted(call, self._read_missing, call, target, begun, extents, runs, buffer, missing)
        return self._send(call, stored, extents, runs, buffer)

    def _send(
        self,
        call: Call,
        stored: StoredObject,
        extents: Sequence[tuple[int, int]],
        runs: list[Run],
        buffer: memoryview,
    ) -> Data:
        lengths = [0] * len(extents)
        sums: list[bytes] = []
        views: list[memoryview] = []
        at = 0
        try:
            for run in runs:
                views += take(stored, extents, run, buffer[at:], lengths, sums)
                at += run.end - run.start
        except OSError:
            self._pool.give(buffer)
            raise
        call.push(views, partial(self._pool.give, buffer))
        return Data(tuple(lengths), b"".join(sums), stored.version)

    async def _read_missing(
        self,
        call: Call,
        target: Target,
        begun: tuple[StoredObject, int],
        extents: Sequence[tuple[int, int]],
        runs: list[Run],
        buffer: memoryview,
        missing: list[blockio.Load],
    ) -> Data:
        """Finish a direct read in a thread; start again if the object changed since it was `begun`, at a version. (This
        is a later step of the event loop than that was.)"""
        stored, version = begun
        short, changed = None, True
        try:
            if target.find(stored.fid, stored.number) is stored and stored.version == version:
                stored.pins += 1
                try:
                    short = await self._threads.run(blockio.load, stored.fd, missing)
                finally:
                    unpin(stored)
                changed = stored.version != version or stored.state < State.CLEANING
        except BaseException:
            self._pool.give(buffer)
            raise
        if changed:
            self._pool.give(buffer)
            return await self._read_again(call, target, stored.fid, stored.number, extents)
        if short is not None:
            self._pool.give(buffer)
            raise stored.too_short(short)
        return self._send(call, stored, extents, runs, buffer)

    async def _read_later(self, request: Read, call: Call, target: Target) -> Data:
        stored = await target.usable(request.fid, request.number)
        if stored is not None:
            check_generation(target, stored, request.generation)
        return await self._read_again(call, target, request.fid, request.number, request.extents)

    async def _read_again(
        self, call: Call, target: Target, fid: int, number: int, extents: Sequence[tuple[int, int]]
    ) -> Data:
        """A read that nothing is assumed of: any object state, any pattern of extents, no buffer at hand."""
        for attempt in range(_TRIES + 1):
            stored = await target.usable(fid, number)
            if stored is None:
                return Data((0,) * len(extents), b"", 0)
            runs = plan_runs(extents, stored.size, _RUN_BYTES_MAX)
            size = sum(run.end - run.start for run in runs)
            direct = size <= _DIRECT_BYTES_MAX
            buffer = await self._buffer(size if direct else sum(length for _, length in extents))
            version = stored.version
            keep = False
            stored.pins += 1
            try:
                if direct and stored.state >= State.CLEANING:
                    loads = _loads(runs, buffer)
                    if attempt == _TRIES:  # somebody changes it all the time: hold everybody up for once
                        short = blockio.load(stored.fd, loads)
                    else:
                        short = await self._threads.run(blockio.load, stored.fd, loads)
                    if stored.version == version and stored.state >= State.CLEANING:
                        if short is not None:
                            raise stored.too_short(short)
                        keep = True
                        return self._send(call, stored, extents, runs, buffer)
                elif stored.state >= State.CLEANING:
                    data = await self._read_piecemeal(call, stored, extents, runs, buffer, attempt == _TRIES)
                    if data is not None:
                        keep = True
                        return data
            finally:
                unpin(stored)
                if not keep:
                    self._pool.give(buffer)
        raise OSError(
            errno.EAGAIN, f"{target.where}: object {fid:#x}.{number} is being changed all the time; try again"
        )

    async def _read_piecemeal(
        self,
        call: Call,
        stored: StoredObject,
        extents: Sequence[tuple[int, int]],
        runs: list[Run],
        out: memoryview,
        blocking: bool,
    ) -> Data | None:
        """Read scattered extents, whose whole blocks together are too much, run by run; None if the object changed."""
        version = stored.version
        lengths = [0] * len(extents)
        sums: list[bytes] = []
        at = 0
        scratch = memoryview(page_aligned(max(run.end - run.start for run in runs)))
        for run in runs:
            view = scratch[: run.end - run.start]
            loads = [blockio.Load(run.start, view)]
            missing = blockio.load_cached(stored.fd, loads)
            short = None
            if missing and blocking:
                short = blockio.load(stored.fd, missing)
            elif missing:
                short = await self._threads.run(blockio.load, stored.fd, missing)
            if stored.version != version or stored.state < State.CLEANING:
                return None
            if short is not None:
                raise stored.too_short(short)
            for part in take(stored, extents, run, view, lengths, sums):
                out[at : at + len(part)] = part
                at += len(part)
        call.push([out[:at]], partial(self._pool.give, out))
        return Data(tuple(lengths), b"".join(sums), version)

    async def _buffer(self, size: int) -> memoryview:
        while (buffer := self._pool.take(size)) is None:
            free = asyncio.Event()
            self._pool.when_free(free.set)
            await free.wait()
        return buffer


def _read_part(call: Call, target: Target, stored: StoredObject, offset: int, length: int) -> Data | None:
    """An extent that is a part of one block which the page cache has: what small reads are, with little ado. None if it
    is something else. EBADMSG if the block is not what was written."""
    block = offset >> _SHIFT
    start = block << _SHIFT
    end = min(start + BLOCK_BYTES, stored.size)
    stop = min(offset + length, stored.size)
    if not offset < stop <= end or stop - offset == end - start:
        return None
    block_sum = stored.sums.get(block, 1)
    if stop - offset == PAGE_BYTES and not offset % PAGE_BYTES:
        page_sum = target.page_sums.of(block_sum, offset - start)
        if page_sum is not None:
            page = memoryview(bytearray(PAGE_BYTES))
            if blockio.load_cached(stored.fd, (blockio.Load(offset, page),)):
                return None
            if _hash(page).to_bytes(SUM_BYTES, "little") == page_sum:
                call.push((page,))
                return Data((PAGE_BYTES,), page_sum, stored.version)
    whole = target.scratch[: end - start]
    if blockio.load_cached(stored.fd, (blockio.Load(start, whole),)):
        return None
    if _hash(whole).to_bytes(SUM_BYTES, "little") != block_sum:
        raise stored.mismatch(start)
    if len(whole) == BLOCK_BYTES:
        target.page_sums.learn(block_sum, whole)
    part = bytes(whole[offset - start : stop - start])
    call.push((memoryview(part),))
    return Data((len(part),), _hash(part).to_bytes(SUM_BYTES, "little"), stored.version)


def _loads(runs: Sequence[Run], buffer: memoryview) -> list[blockio.Load]:
    if len(runs) == 1:
        return [blockio.Load(runs[0].start, buffer)]
    loads: list[blockio.Load] = []
    at = 0
    for run in runs:
        loads.append(blockio.Load(run.start, buffer[at : at + run.end - run.start]))
        at += run.end - run.start
    return loads
