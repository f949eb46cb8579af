"""Making a copy equal to another: `RaiseFloors`, `SyncObject` (the MDS asks), `ReadSums` (another OSS asks).

A piece of the object is compared block by block with the sums that the good copy has: the block's stored sum and its
bytes must both fit. What differs is read from there, verified, and written over, except where somebody has changed the
object since the resync began (`copies.Tracker`): that is newer, and reaches the good copy by itself.
"""

import errno
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from nacrefs.common.buffers import page_aligned
from nacrefs.common.checksum import SUM_BYTES, block_sums, first_mismatch
from nacrefs.common.layout import BLOCK_BYTES
from nacrefs.common.remote import Remote
from nacrefs.common.wire import NO_CHANGE_NS, Done, RaiseFloors, Read, ReadSums, Right, Sums, Synced, SyncObject
from nacrefs.oss import blockio
from nacrefs.oss.admission import check_object, invalid
from nacrefs.oss.changes import Changes, Step
from nacrefs.oss.copies import Tracker
from nacrefs.oss.durability import unpin
from nacrefs.oss.gate import Call, Gate, check_generation
from nacrefs.oss.object import Cold, Segment, StoredObject
from nacrefs.oss.pace import Pace
from nacrefs.oss.sums import ZERO_SUM
from nacrefs.oss.target import Target
from nacrefs.oss.writtenblocks import WrittenBlocks

PIECE_BYTES: Final = 16 << 20
"""How much one `SyncObject` looks at."""
_CHUNK_BYTES: Final = 1 << 20
_BLOCKS_MAX: Final = 1 << 16
_TRACKED_MAX: Final = 100_000
_DEADLINE_S: Final = 30.0
_READ: Final = int(Right.READ)

Run = tuple[int, int, bool]
"""Bytes `[start, end)` that differ; whether the good copy has only zeros there."""


class Resync:
    """Handlers. `connect(address)` is the connection to another OSS."""

    def __init__(
        self,
        gate: Gate,
        changes: Changes,
        threads: blockio.IoThreads,
        connect: Callable[[str], Remote],
        bytes_per_s: int,
    ) -> None:
        self._gate = gate
        self._changes = changes
        self._threads = threads
        self._connect = connect
        self._pace = Pace(bytes_per_s)

    def raise_floors(self, request: RaiseFloors, call: Call) -> Done:
        """I/O of older layout generations is over."""
        for floor in request.floors:
            target = self._gate.target(floor.ost)
            check_object(floor.fid, floor.number)
            key = (floor.fid, floor.number)
            target.copies.raise_floor(key, floor.generation)
            if request.track:
                target.track(key, Tracker(floor.generation))
        return Done()

    async def read_sums(self, request: ReadSums, call: Call) -> Sums:
        """Stored sums of an object's blocks."""
        target = self._gate.admit(request, call, _READ)
        if request.offset % BLOCK_BYTES or request.offset < 0 or not 0 < request.blocks <= _BLOCKS_MAX:
            raise invalid(f"blocks: {request.blocks} from offset {request.offset} on")
        await self._gate.until_open()
        stored = await target.usable(request.fid, request.number)
        if stored is None:
            return Sums(0, 0, b"")
        check_generation(target, stored, request.generation)
        first = request.offset // BLOCK_BYTES
        count = min(request.blocks, -(-stored.size // BLOCK_BYTES) - first)
        sums = stored.sums.get(first, count) if count > 0 else b""
        return Sums(stored.size, stored.version, sums, stored.mtime_ns)

    # ------------------------------------------------------------------------------------------------------------ piece

    async def sync_object(self, request: SyncObject, call: Call) -> Synced:
        """Make a piece of an object equal to another copy."""
        target = self._gate.target(request.ost)
        check_object(request.fid, request.number)
        if request.offset % PIECE_BYTES or request.offset < 0:
            raise invalid(f"offset {request.offset} is not where a piece begins")
        key = (request.fid, request.number)
        tracker = _tracker(target, key, request.generation)
        source = self._connect(request.address)
        theirs = await source.call(
            ReadSums(
                request.source_ost,
                request.fid,
                request.source_number,
                request.generation,
                request.capability,
                request.offset,
                PIECE_BYTES // BLOCK_BYTES,
            ),
            deadline_s=_DEADLINE_S,
        )
        tracker = await self._ensure(target, key, tracker)
        end = min(request.offset + PIECE_BYTES, theirs.size)
        copied = 0
        for start in range(request.offset, end, _CHUNK_BYTES):
            stop = min(start + _CHUNK_BYTES, end)
            at = (start - request.offset) // BLOCK_BYTES * SUM_BYTES
            sums = theirs.sums[at : at + -(-(stop - start) // BLOCK_BYTES) * SUM_BYTES]
            await self._pace.take(stop - start)
            stored = await _object(target, key, request.generation)
            for run in await self._differing(stored, start, stop, sums):
                view = None if run[2] else await self._fetch(source, request, run)
                await self._apply(target, key, tracker, run, view, theirs.mtime_ns)
                copied += run[1] - run[0]
        checked = max(0, end - request.offset)
        if theirs.size > request.offset + PIECE_BYTES:
            return Synced(request.offset + PIECE_BYTES, checked, copied, theirs.size)
        _tracker(target, key, request.generation)
        step = partial(_end_at, theirs.size, theirs.mtime_ns, tracker, target.written_blocks)
        stored = await self._change(target, key, step)
        target.durability.changed(stored, 0)
        stored.pins += 1
        try:
            await target.durability.sync(stored)
        finally:
            unpin(stored)
        target.untrack(key)
        return Synced(-1, checked, copied, theirs.size)

    async def _ensure(self, target: Target, key: tuple[int, int], tracker: Tracker) -> Tracker:
        """There is an object to be made equal; one that cannot be used at all is made anew."""
        try:
            await _object(target, key, tracker.generation)
        except OSError as error:
            if error.errno != errno.EBADMSG:
                raise
            await target.destroy([key])
            tracker = Tracker(tracker.generation)
            target.track(key, tracker)
        return tracker

    async def _differing(self, stored: StoredObject, start: int, stop: int, theirs: bytes) -> list[Run]:
        """Where the object is not what the sums say. A change meanwhile may look like a difference: no harm in that."""
        first, count = start // BLOCK_BYTES, len(theirs) // SUM_BYTES
        held = max(0, min(stop, stored.size) - start)
        own = stored.sums.get(first, count)
        stored.pins += 1
        try:
            actual = await self._threads.run(_actual_sums, stored.fd, start, held)
        finally:
            unpin(stored)
        size = stored.size
        runs: list[Run] = []
        for block in range(count):
            low = start + block * BLOCK_BYTES
            high = min(low + BLOCK_BYTES, stop)
            part = slice(block * SUM_BYTES, (block + 1) * SUM_BYTES)
            wanted = theirs[part]
            zeros = wanted == ZERO_SUM and high - low == BLOCK_BYTES
            length = max(0, min(BLOCK_BYTES, size - low))
            if (zeros and not length) or (length == high - low and actual[part] == wanted == own[part]):
                continue
            if runs and runs[-1][1] == low and runs[-1][2] == zeros:
                runs[-1] = (runs[-1][0], high, zeros)
            else:
                runs.append((low, high, zeros))
        return runs

    async def _fetch(self, source: Remote, request: SyncObject, run: Run) -> memoryview:
        """Bytes of the good copy, verified."""
        start, end, _ = run
        view = memoryview(bytearray(end - start))
        data = await source.call(
            Read(
                request.source_ost,
                request.fid,
                request.source_number,
                request.generation,
                request.capability,
                ((start, end - start),),
            ),
            into=[view],
            deadline_s=_DEADLINE_S,
        )
        length = data.lengths[0]
        bad = first_mismatch(view[:length], start, data.sums)
        if bad is not None:
            raise OSError(errno.EBADMSG, f"bytes at {bad} of OST {request.source_ost} do not match their checksum")
        return view

    async def _apply(
        self,
        target: Target,
        key: tuple[int, int],
        tracker: Tracker,
        run: Run,
        view: memoryview | None,
        mtime_ns: int,
    ) -> None:
        if not target.space.has_room(run[1] - run[0]):
            raise target.space.full()
        if len(tracker.changed) > _TRACKED_MAX:
            raise OSError(errno.EAGAIN, f"{target.where}: the object is changed in too many places meanwhile")
        await target.durability.relief()
        _tracker(target, key, tracker.generation)
        step = partial(_overwrite, run, view, tracker, mtime_ns, target.written_blocks)
        stored = await self._change(target, key, step)
        target.durability.changed(stored, run[1] - run[0])

    async def _change(self, target: Target, key: tuple[int, int], step: Step) -> StoredObject:
        """Carry out one change; ESTALE if the object has been destroyed meanwhile."""
        stored = await self._changes.change(target, key, step)
        if stored is None:
            raise _over(target)
        return stored


def _tracker(target: Target, key: tuple[int, int], generation: int) -> Tracker:
    tracker = target.copies.trackers.get(key)
    if tracker is None or tracker.generation != generation:
        raise _over(target)
    return tracker


def _over(target: Target) -> OSError:
    return OSError(
        errno.ESTALE, f"{target.where}: no resync of this object under that generation has begun, or it was destroyed"
    )


async def _object(target: Target, key: tuple[int, int], generation: int) -> StoredObject:
    """The object, made if there is none. ESTALE if it has been destroyed since the resync began: made again, it would
    belong to no file."""
    while True:
        stored = await target.usable(*key)
        _tracker(target, key, generation)
        if stored is not None:
            return stored
        target.find(*key, create=True)


def _actual_sums(fd: int, start: int, length: int) -> bytes:
    """The sums of the bytes that are there, block by block; for threads."""
    buffer = memoryview(page_aligned(length))[:length]
    short = blockio.load(fd, [blockio.Load(start, buffer)]) if length else None
    if short is not None:
        return b""
    return block_sums(buffer, start)


def _overwrite(
    run: Run,
    view: memoryview | None,
    tracker: Tracker,
    mtime_ns: int,
    blocks: WrittenBlocks,
    stored: StoredObject,
    blocking: bool,
) -> Cold | None:
    """Bring what the good copy has where nobody has changed anything meanwhile."""
    start, end, _ = run
    written_ns = _time(stored, mtime_ns)
    tracker.paused = True
    try:
        for low, high in tracker.changed.gaps(start, end):
            if view is None:
                cold = stored.punch_now([(low, high - low)], blocks, blocking, written_ns)
            else:
                cold = _write(stored, low, view[low - start : high - start], blocks, blocking, written_ns)
            if cold is not None:
                return cold
    finally:
        tracker.paused = False
    return None


def _time(stored: StoredObject, good_ns: int) -> int:
    """The mtime of a copy that becomes equal to a good one: what is copied is no change of the file."""
    return max(stored.mtime_ns, good_ns, NO_CHANGE_NS)


def _write(
    stored: StoredObject, offset: int, view: memoryview, blocks: WrittenBlocks, blocking: bool, written_ns: int
) -> Cold | None:
    segments: Sequence[Segment] = [Segment(offset, view, block_sums(view, offset))]
    return stored.write_now(segments, blocks, blocking, written_ns)


def _end_at(
    size: int, mtime_ns: int, tracker: Tracker, blocks: WrittenBlocks, stored: StoredObject, blocking: bool
) -> Cold | None:
    """Let the object end where the good copy does, unless somebody has lengthened it meanwhile."""
    written_ns = _time(stored, mtime_ns)
    tracker.paused = True
    try:
        wanted = max(size, tracker.written_end)
        if stored.size > wanted and (cold := stored.truncate_now(wanted, blocks, blocking)) is not None:
            return cold
        if stored.size > size:  # what lies between the good copy's end and what was written behind it is a hole
            return stored.punch_now(
                [(low, high - low) for low, high in tracker.changed.gaps(size, stored.size)],
                blocks,
                blocking,
                written_ns,
            )
        if stored.size < size and any(tracker.changed.gaps(size - 1, size)):
            return _write(stored, size - 1, memoryview(bytes(1)), blocks, blocking, written_ns)
    finally:
        tracker.paused = False
    return None
