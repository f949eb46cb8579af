"""One object: a sparse file, its size and the checksum of every 64 KiB block; read, written, cut and punched.

The sum of block `b` covers the object's bytes in `[b * 64 KiB, min((b + 1) * 64 KiB, size))`, so the sums of blocks
that a write covers are the client's own, and a read of whole blocks returns stored sums without hashing a byte; the
object's last, short block included. Blocks that were never written have the sum of 64 KiB of zeros, which is what they
read as. A block that is read or written in part is read and verified as a whole first.

Methods named `…_now` never wait for the disk (they are steps of the event loop: what they see and change cannot be
changed by another request meanwhile; this is what orders overlapping writes, there are no locks). They return
`Cold` if bytes that they need are not in the page cache: the caller has them read in a thread and tries again.
"""

import contextlib
import enum
import errno
import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import xxhash

from nacrefs.common.checksum import SUM_BYTES
from nacrefs.common.fid import format_fid
from nacrefs.common.layout import BLOCK_BYTES
from nacrefs.oss import blockio
from nacrefs.oss.copies import Tracker
from nacrefs.oss.index import Index, Record
from nacrefs.oss.sums import BlockSums
from nacrefs.oss.writtenblocks import WrittenBlocks

if TYPE_CHECKING:
    import asyncio

_SHIFT: Final = 16
_MASK: Final = BLOCK_BYTES - 1
_hash = xxhash.xxh3_64_intdigest
_UNKNOWN: Final = b""
_ZEROS: Final = memoryview(bytes(BLOCK_BYTES))


class State(enum.IntEnum):
    """How far sums and bytes of an object can be trusted after a crash; the order is used."""

    DEAD = 0
    """being destroyed"""
    SUSPECT = 1
    """sums may not fit the bytes: re-hash before use"""
    CLEANING = 2
    """the index is being told that all is well: no change until it has been"""
    MARKING = 3
    """the index is being told that a change is coming"""
    CLEAN = 4
    """bytes and index are durable and fit: a change must be announced in the index first"""
    DIRTY = 5
    """the index, if it knows the object at all, knows that it is changing: changes are free"""


DEAD: Final = State.DEAD
SUSPECT: Final = State.SUSPECT
CLEANING: Final = State.CLEANING
CLEAN: Final = State.CLEAN
DIRTY: Final = State.DIRTY


class Segment(NamedTuple):
    """Bytes to be written at `offset`, and their sum string."""

    offset: int
    data: memoryview
    sums: bytes


class Cold(NamedTuple):
    """Ranges `(offset, length)` that must be in the page cache first."""

    ranges: list[tuple[int, int]]


class StoredObject:
    """An object in use. Plain state; `Target` opens and closes it, `Durability` moves it between states."""

    __slots__ = (
        "allocated_bytes",
        "cleaned_at",
        "directory",
        "dirty_bytes",
        "dirty_since",
        "durable_version",
        "failure",
        "fd",
        "fid",
        "flushing",
        "generation",
        "hot",
        "idle",
        "index",
        "mtime_ns",
        "number",
        "path",
        "pins",
        "record_stale",
        "size",
        "state",
        "sums",
        "tracker",
        "turning",
        "version",
        "waiting_bytes",
    )

    def __init__(self, index: Index, fid: int, number: int, directory: str) -> None:
        self.fid = fid
        self.number = number
        self.directory = directory
        self.path = f"{directory}/{fid:016x}.{number}"
        self.fd = -1
        self.state = SUSPECT
        self.size = 0
        """end of the last byte; the file's size"""
        self.version = 0
        """grows with every change"""
        self.mtime_ns = 0
        self.generation = 0
        """highest layout generation seen"""
        self.allocated_bytes = 0
        self.record_stale = False
        """the generation in the index is older"""
        self.index = index
        self.sums = BlockSums(index, fid, number)
        self.tracker: Tracker | None = None
        """notes what is changed while the object is being made equal to another copy"""
        self.durable_version = 0
        """version of the bytes that are on the disk for certain"""
        self.dirty_bytes = 0
        """about how many bytes fdatasync would write"""
        self.waiting_bytes = 0
        """about how many bytes the disk has not been told to begin with"""
        self.dirty_since = 0.0
        """loop time of the first change since the object was clean"""
        self.cleaned_at = float("-inf")
        """loop time at which it became clean"""
        self.hot = False
        """it was changed again soon after it was made clean, so fsync leaves it marked dirty"""
        self.failure: OSError | None = None
        """writing back failed: what was written may not be on the disk, and no later fsync may say otherwise"""
        self.pins = 0
        """requests that hold on to the object while they wait"""
        self.idle: asyncio.Future[None] | None = None
        """somebody waits until `pins` is 0"""
        self.flushing: asyncio.Future[None] | None = None
        """a flush is under way"""
        self.turning: asyncio.Future[None] | None = None
        """a change of state is under way (SUSPECT, CLEANING, MARKING, DEAD)"""

    @property
    def name(self) -> str:
        """The object as error texts call it."""
        return f"{self.index.where}, object {format_fid(self.fid)}.{self.number}"

    def is_allocated(self, extents: Sequence[tuple[int, int]]) -> bool:
        """Whether all these bytes have room on the disk already."""
        for offset, length in extents:
            if offset + length > self.size or os.lseek(self.fd, offset, os.SEEK_HOLE) < offset + length:
                return False
        return True

    def record(self, dirty: bool) -> Record:
        """What the index is to know."""
        return Record(dirty, self.size, self.version, self.mtime_ns, self.generation, self.allocated_bytes)

    def mismatch(self, offset: int) -> OSError:
        """The error for a block whose bytes are not those that were written."""
        return OSError(errno.EBADMSG, f"checksum mismatch on {self.name}, block at offset {offset}")

    def too_short(self, offset: int) -> OSError:
        """The error for a file that ends before the object does."""
        return OSError(
            errno.EBADMSG, f"{self.name}: its file ends at offset {offset}, the object at {self.size}", self.path
        )

    # ----------------------------------------------------------------------------------------------------------- change

    def write_now(
        self, segments: Sequence[Segment], blocks: WrittenBlocks, blocking: bool = False, mtime_ns: int = 0
    ) -> Cold | None:
        """Write segments, which ascend and do not overlap. OSError of the file
        system leaves the object SUSPECT. With `blocking` it waits for the disk rather than say `Cold`. `mtime_ns` is
        the new time of change, 0: now."""
        size = self.size
        tail = segments[-1]
        new_size = max(size, tail.offset + len(tail.data))
        if len(segments) == 1 and self._is_part(tail.offset, len(tail.data), new_size):
            return self._write_part(tail.offset, tail.data, new_size, blocks, blocking, mtime_ns)
        partial: dict[int, list[tuple[int, memoryview]]] = {}
        whole: list[tuple[int, bytes]] = []
        tail_block = size >> _SHIFT if size & _MASK and new_size > size else -1
        for offset, data, sums in segments:
            end = offset + len(data)
            first, last = offset >> _SHIFT, (end - 1) >> _SHIFT
            low, high = 0, last - first + 1
            if offset & _MASK:
                partial.setdefault(first, []).append((offset & _MASK, data[: BLOCK_BYTES - (offset & _MASK)]))
                low = 1
            if high > low and end & _MASK and end < new_size:
                partial.setdefault(last, []).append((0, data[(last << _SHIFT) - offset :]))
                high -= 1
            if high > low:
                whole.append((first + low, sums[low * SUM_BYTES : high * SUM_BYTES]))
                if first + low <= tail_block < first + high:
                    tail_block = -1
        if tail_block >= 0:
            partial.setdefault(tail_block, [])  # what lies behind the old end belongs to the block from now on
        if partial:
            changed = self._overlay(partial, new_size, blocks, blocking)
            if isinstance(changed, Cold):
                return changed
            whole.extend(changed)
        try:
            for offset, data, _ in segments:
                blockio.store(self.fd, data, offset)
        except OSError:
            self.state = SUSPECT
            raise
        for block, sums in whole:
            self.sums.put(block, sums)
        if self.tracker is not None:
            for offset, data, _ in segments:
                self.tracker.wrote(offset, offset + len(data))
        self._changed(new_size, sum(len(segment.data) for segment in segments), mtime_ns)
        return None

    def _is_part(self, offset: int, length: int, new_size: int) -> bool:
        """Whether bytes are less than one block, and that block's sum is the only one that they change."""
        block = offset >> _SHIFT
        covered = min(BLOCK_BYTES, new_size - (block << _SHIFT))
        at = offset & _MASK
        return length < covered and at + length <= covered and (new_size == self.size or block == self.size >> _SHIFT)

    def _write_part(
        self, offset: int, data: memoryview, new_size: int, blocks: WrittenBlocks, blocking: bool, mtime_ns: int
    ) -> Cold | None:
        """`write_now` of a part of one block: what small writes are, with little ado."""
        block = offset >> _SHIFT
        changed = self._overlaid(block, ((offset & _MASK, data),), new_size, blocks, blocking)
        if changed is None:
            start = block << _SHIFT
            return Cold([(start, min(BLOCK_BYTES, self.size - start))])
        try:
            blockio.store(self.fd, data, offset)
        except OSError:
            self.state = SUSPECT
            raise
        self.sums.put(block, changed)
        if self.tracker is not None:
            self.tracker.wrote(offset, offset + len(data))
        self._changed(new_size, len(data), mtime_ns)
        return None

    def truncate_now(self, size: int, blocks: WrittenBlocks, blocking: bool = False) -> Cold | None:
        """Cut the object at `size`; nothing happens if it is not longer. Its time of change stays: whoever cuts a file
        tells the MDS when."""
        if self.tracker is not None:
            self.tracker.cut(size)
        if size >= self.size:
            return None
        cut: dict[int, list[tuple[int, memoryview]]] = {size >> _SHIFT: []} if size & _MASK else {}
        changed = self._overlay(cut, size, blocks, blocking)
        if isinstance(changed, Cold):
            return changed
        try:
            blockio.cut(self.fd, size)
        except OSError:
            self.state = SUSPECT
            raise
        self.sums.clear(-(-size // BLOCK_BYTES), -(-self.size // BLOCK_BYTES))
        for block, sums in changed:
            self.sums.put(block, sums)
        self._changed(size, 0, self.mtime_ns)
        if not size:
            self.failure = None
        return None

    def punch_now(
        self, extents: Sequence[tuple[int, int]], blocks: WrittenBlocks, blocking: bool = False, mtime_ns: int = 0
    ) -> Cold | None:
        """Make extents holes; what lies past the object's end is ignored. `mtime_ns` is as in `write_now`."""
        if self.tracker is not None:
            for offset, length in extents:
                self.tracker.punched(offset, offset + length)
        size = self.size
        whole: list[tuple[int, int]] = []
        holes: list[tuple[int, int]] = []
        partial: dict[int, list[tuple[int, memoryview]]] = {}
        for offset, length in extents:
            stop = min(offset + length, size)
            if stop <= offset:
                continue
            holes.append((offset, stop - offset))
            first, last = -(-offset // BLOCK_BYTES), stop >> _SHIFT
            if first > last:  # within one block
                partial.setdefault(last, []).append((offset & _MASK, _ZEROS[: stop - offset]))
                continue
            if offset & _MASK:
                partial.setdefault(first - 1, []).append((offset & _MASK, _ZEROS[: -offset & _MASK]))
            if stop & _MASK:
                partial.setdefault(last, []).append((0, _ZEROS[: stop & _MASK]))
            if first < last:
                whole.append((first, last))
        if not holes:
            return None
        changed = self._overlay(partial, size, blocks, blocking)
        if isinstance(changed, Cold):
            return changed
        try:
            for offset, length in holes:
                blockio.punch(self.fd, offset, length)
        except OSError:
            self.state = SUSPECT
            raise
        for block, sums in changed:
            self.sums.put(block, sums)
        for first, last in whole:  # after `changed`: an extent may cover wholly what another covers in part
            self.sums.clear(first, last)
        self._changed(size, 0, mtime_ns)
        return None

    def _changed(self, size: int, dirty_bytes: int, mtime_ns: int) -> None:
        self.size = size
        self.version += 1
        self.mtime_ns = mtime_ns or time.time_ns()
        self.dirty_bytes += dirty_bytes
        # A file with as much room as it is long has no hole to fill, unless it lies in hundreds of pieces and the hole
        # is as small as the blocks that list them: `measure` finds that out. (fstat also makes the next write dearer:
        # ext4 then gives it a time of its own, and logs that.)
        if not dirty_bytes or self.allocated_bytes < size:
            self.measure()
        if mtime_ns:
            # A time that was said, perhaps one that a user has set, outlives a kill: who hashes the file anew knows no
            # other than the file's own.
            with contextlib.suppress(OSError):
                os.utime(self.fd, ns=(mtime_ns, mtime_ns))

    def measure(self) -> None:
        """See how much room the file has now."""
        self.allocated_bytes = os.fstat(self.fd).st_blocks * 512

    def _overlay(
        self, partial: dict[int, list[tuple[int, memoryview]]], new_size: int, blocks: WrittenBlocks, blocking: bool
    ) -> list[tuple[int, bytes]] | Cold:
        """The sums that blocks will have once pieces `(offset in block, bytes)` lie over what they hold now (verified
        here) and the object ends at `new_size`."""
        changed: list[tuple[int, bytes]] = []
        cold: list[tuple[int, int]] = []
        for block, pieces in partial.items():
            sums = self._overlaid(block, pieces, new_size, blocks, blocking)
            if sums is None:
                start = block << _SHIFT
                cold.append((start, min(BLOCK_BYTES, self.size - start)))
            else:
                changed.append((block, sums))
        return Cold(cold) if cold else changed

    def _overlaid(
        self, block: int, pieces: Sequence[tuple[int, memoryview]], new_size: int, blocks: WrittenBlocks, blocking: bool
    ) -> bytes | None:
        """The same for one block; None if it is not in the page cache."""
        start = block << _SHIFT
        held = max(0, min(BLOCK_BYTES, self.size - start))
        covered = min(BLOCK_BYTES, new_size - start)
        key = (self.fid, self.number, block)
        block_sum = self.sums.get(block, 1)
        memory, known = blocks.take(key, block_sum)
        if held and not known:
            whole = memory[:held]
            loads = (blockio.Load(start, whole),)
            if not blocking and blockio.load_cached(self.fd, loads):
                blocks.keep(key, _UNKNOWN, memory)
                return None
            if blocking and (end := blockio.load(self.fd, loads)) is not None:
                raise self.too_short(end)
            if _hash(whole).to_bytes(SUM_BYTES, "little") != block_sum:
                raise self.mismatch(start)
        if held < covered:
            memory[held:covered] = _ZEROS[held:covered]
        for at, data in pieces:
            memory[at : at + len(data)] = data
        new_sum = _hash(memory[:covered]).to_bytes(SUM_BYTES, "little")
        blocks.keep(key, new_sum, memory)
        return new_sum
