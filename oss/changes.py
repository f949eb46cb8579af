"""`Write`, `Punch`, `Truncate`, `Sync`: requests that change an object or make its changes durable.

A write to an object that is dirty already, whose partly written blocks are in the page cache, is one step of the
event loop. Otherwise a coroutine waits for what is missing and then takes the same step.
"""

import errno
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Final

from nacrefs.common.answer import Answer
from nacrefs.common.fid import format_fid
from nacrefs.common.wire import CopyRange, Punch, Right, Sync, Truncate, Write, Written
from nacrefs.oss import applied, blockio
from nacrefs.oss.admission import check_extents, check_size, invalid
from nacrefs.oss.applied import Applied
from nacrefs.oss.durability import unpin
from nacrefs.oss.gate import Call, Gate, check_generation
from nacrefs.oss.incoming import segments
from nacrefs.oss.object import DIRTY, Cold, Segment, StoredObject
from nacrefs.oss.replies import ClientReplies, Replies
from nacrefs.oss.target import Target
from nacrefs.oss.writtenblocks import WrittenBlocks

_WRITE: Final = int(Right.WRITE)
_ANY: Final = int(Right.READ | Right.WRITE)
_TRIES: Final = 4
"""So often bytes are fetched in a thread before a step waits for the disk itself."""
_NOTHING: Final = Written(0, 0, 0)

Step = Callable[[StoredObject, bool], Cold | None]
"""A change of an object, in one step of the event loop; with True it waits for the disk rather than be `Cold`."""


class Note:
    """What `Applied` is to know of the change that a request asks for."""

    __slots__ = ("_applied", "_call", "_extents", "_fid", "_kind", "_number", "_size", "_sums")

    def __init__(
        self,
        notes: Applied,
        call: Call,
        kind: int,
        fid: int,
        number: int,
        extents: Sequence[tuple[int, int]] = (),
        sums: bytes = b"",
        size: int = 0,
    ) -> None:
        self._applied = notes
        self._call = call
        self._kind = kind
        self._fid = fid
        self._number = number
        self._extents = extents
        self._sums = sums
        self._size = size

    def around(self, step: Step, stored: StoredObject, blocking: bool) -> Cold | None:
        """Make the change, with a note before and after it."""
        notes, call = self._applied, self._call
        at = notes.begin(
            call.peer.name, call.xid, self._fid, self._number, self._kind, self._extents, self._sums, self._size
        )
        try:
            cold = step(stored, blocking)
        except BaseException:
            notes.not_made()
            raise
        if cold is None:
            notes.made(at, call.xid)
        else:
            notes.not_made()
        return cold


class Changes:
    """Handlers of requests that change."""

    def __init__(self, gate: Gate, threads: blockio.IoThreads) -> None:
        self._gate = gate
        self._threads = threads
        self._replies = Replies()

    def write(self, request: Write, call: Call) -> Answer[Written]:
        """Store bytes whose sums are right."""
        return self._write(request, call, True)

    def write_checked(self, request: Write, call: Call) -> Answer[Written]:
        """As `write`, for who has made the sums of these very bytes in this process."""
        return self._write(request, call, False)

    def _write(self, request: Write, call: Call, check: bool) -> Answer[Written]:
        total = check_extents(request.extents)
        if self._gate.holds(request):
            return self._gate.when_open(self.write if check else self.write_checked, request, call)
        target = self._gate.admit(request, call, _WRITE)
        replies, known = self.once(request, call, target)
        if known is not None:
            return known
        bulk = call.pull()
        if len(bulk) != total:
            raise invalid(f"extents: {total} bytes together, but {len(bulk)} bytes came")
        batches = segments(request, bulk, target.where, check)
        if len(batches) == 1 and not request.sync and not target.durability.overfull() and target.space.has_room(total):
            stored = target.find(request.fid, request.number, create=True)
            if stored is not None and stored.state is DIRTY:
                check_generation(target, stored, request.generation)
                note = Note(
                    target.applied, call, applied.WRITE, request.fid, request.number, request.extents, request.sums
                )
                grown: list[int] = []
                step = partial(store, batches[0], target.written_blocks, grown, request.mtime_ns)
                if note.around(step, stored, False) is None:
                    target.durability.changed(stored, total)
                    return replies.keep(call.xid, written(stored, grown[0]))
        return self._gate.counted(
            call, replies.serve, call.xid, self._write_later, request, call, target, batches, total
        )

    async def _write_later(
        self, request: Write, call: Call, target: Target, batches: list[list[Segment]], total: int
    ) -> Written:
        await target.durability.relief()
        stored = await target.usable(request.fid, request.number)
        if not target.space.has_room(total) and not (stored is not None and stored.is_allocated(request.extents)):
            raise target.space.full()
        key = (request.fid, request.number)
        grown: list[int] = []
        last = batches[-1] if batches else ()
        extents = [(segment.offset, len(segment.data)) for segment in last]
        sums = b"".join([segment.sums for segment in last])
        note = Note(target.applied, call, applied.WRITE, request.fid, request.number, extents, sums)
        for batch in batches:
            step = partial(store, batch, target.written_blocks, grown, request.mtime_ns)
            if batch is batches[-1]:
                step = partial(note.around, step)
            stored = await self.change(target, key, step, call, generation=request.generation, create=True)
            if stored is not None:
                target.durability.changed(stored, sum(len(segment.data) for segment in batch))
        if stored is None:
            return _NOTHING
        if request.sync:
            await _pinned(stored, target.durability.sync(stored))
        return written(stored, sum(grown))

    def punch(self, request: Punch, call: Call) -> Answer[Written]:
        """Make holes."""
        check_extents(request.extents, total_max=1 << 75)
        if self._gate.holds(request):
            return self._gate.when_open(self.punch, request, call)
        target = self._gate.admit(request, call, _WRITE)
        replies, known = self.once(request, call, target)
        if known is not None:
            return known
        note = Note(target.applied, call, applied.PUNCH, request.fid, request.number, request.extents)
        step = partial(note.around, partial(_punch, request.extents, target.written_blocks, request.mtime_ns))
        return self._gate.counted(call, replies.serve, call.xid, self._alter, request, call, target, step)

    def truncate(self, request: Truncate, call: Call) -> Answer[Written]:
        """Cut an object."""
        check_size(request.size)
        if self._gate.holds(request):
            return self._gate.when_open(self.truncate, request, call)
        target = self._gate.admit(request, call, _WRITE)
        replies, known = self.once(request, call, target)
        if known is not None:
            return known
        note = Note(target.applied, call, applied.TRUNCATE, request.fid, request.number, size=request.size)
        step = partial(note.around, partial(_truncate, request.size, target.written_blocks))
        return self._gate.counted(call, replies.serve, call.xid, self._alter, request, call, target, step)

    async def _alter(self, request: Punch | Truncate, call: Call, target: Target, step: Step) -> Written:
        stored = await self.change(target, (request.fid, request.number), step, call, generation=request.generation)
        if stored is None:
            return _NOTHING
        target.durability.changed(stored, 0)
        return written(stored)

    def sync(self, request: Sync, call: Call) -> Answer[Written]:
        """Make an object durable."""
        if self._gate.holds(request):
            return self._gate.when_open(self.sync, request, call)
        target = self._gate.admit(request, call, _ANY)
        return self._gate.counted(call, self._sync, target, request)

    async def _sync(self, target: Target, request: Sync) -> Written:
        stored = await target.usable(request.fid, request.number)
        # Objects that were in doubt when the machine came back have versions that are higher than that moment, and so
        # have those that were made after it; all others are as they were.
        if 0 < request.version < target.power_lost_ns and (stored is None or stored.version >= target.power_lost_ns):
            raise OSError(
                errno.ENOTRECOVERABLE,
                f"the machine of {target.where} went down before bytes of object {format_fid(request.fid)}."
                f"{request.number} were made durable: they may be lost, write them again",
            )
        if stored is None:
            return _NOTHING
        check_generation(target, stored, request.generation)
        await _pinned(stored, target.durability.sync(stored))
        return written(stored)

    async def truncate_durably(self, target: Target, key: tuple[int, int], size: int) -> None:
        """Cut an object on behalf of the MDS."""
        stored = await self.change(target, key, partial(_truncate, size, target.written_blocks))
        if stored is not None:
            target.durability.changed(stored, 0)
            await _pinned(stored, target.durability.sync(stored))

    async def change(
        self,
        target: Target,
        key: tuple[int, int],
        step: Step,
        call: Call | None = None,
        *,
        generation: int | None = None,
        create: bool = False,
    ) -> StoredObject | None:
        """Carry out one change of an object, for a client's `call` or the MDS, waiting for whatever it needs; None if
        there is none to be changed. The caller reports the change to `Durability` in the same step."""
        attempt = 0
        while True:
            if call is not None:
                await self._gate.stay(call)
            stored = await target.usable(*key, create=create)
            if stored is None:
                return None
            if generation is not None:
                check_generation(target, stored, generation)
            stored.pins += 1
            try:
                await target.durability.prepare(stored)
                if stored.state is not DIRTY or (call is not None and not self._gate.is_open()):
                    continue  # it is to be re-hashed, or the session may have lost its right meanwhile
                if generation is not None and target.copies.floors:
                    target.copies.check(*key, generation, target.where)  # a resync may have begun meanwhile
                cold = step(stored, attempt >= _TRIES)
                if cold is None:
                    return stored
                attempt += 1
                await self._threads.run(blockio.warm, stored.fd, cold.ranges)
            finally:
                unpin(stored)

    def once(
        self, request: Write | Punch | Truncate | CopyRange, call: Call, target: Target
    ) -> tuple[ClientReplies, Answer[Written] | None]:
        """The client's kept answers, and the answer to this very request if it has been, or is being, served: by this
        process, or by one before it that did not come to answer."""
        replies: ClientReplies | None = call.peer.state
        if replies is None:
            replies = call.peer.state = self._replies.of(call.peer.name)
        replies.trim(call.oldest)
        if not call.resent:
            return replies, None
        known = replies.again(call.xid)
        if known is None and target.applied.has(call.peer.name, call.xid):
            known = self._gate.counted(call, replies.serve, call.xid, self._was_made, request, target)
        return replies, known

    async def _was_made(self, request: Write | Punch | Truncate | CopyRange, target: Target) -> Written:
        """The answer to a change that was made before the OSS was restarted."""
        stored = await target.usable(request.fid, request.number)
        if stored is None:
            return _NOTHING
        if isinstance(request, Write) and request.sync:
            await _pinned(stored, target.durability.sync(stored))
        return written(stored)


def store(
    batch: Sequence[Segment],
    blocks: WrittenBlocks,
    grown: list[int],
    mtime_ns: int,
    stored: StoredObject,
    blocking: bool,
) -> Cold | None:
    """A step that writes segments; appends by how many bytes the object has grown to `grown`."""
    before = stored.allocated_bytes
    cold = stored.write_now(batch, blocks, blocking, mtime_ns)
    if cold is None:
        grown.append(stored.allocated_bytes - before)
    return cold


def _punch(
    extents: Sequence[tuple[int, int]], blocks: WrittenBlocks, mtime_ns: int, stored: StoredObject, blocking: bool
) -> Cold | None:
    return stored.punch_now(extents, blocks, blocking, mtime_ns)


def _truncate(size: int, blocks: WrittenBlocks, stored: StoredObject, blocking: bool) -> Cold | None:
    return stored.truncate_now(size, blocks, blocking)


def written(stored: StoredObject, grown_bytes: int = 0) -> Written:
    """The answer about an object as it is now."""
    return Written(stored.size, stored.allocated_bytes, stored.version, grown_bytes)


async def _pinned(stored: StoredObject, work: Coroutine[Any, Any, None]) -> None:
    stored.pins += 1
    try:
        await work
    finally:
        unpin(stored)
