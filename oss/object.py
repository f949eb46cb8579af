"""One object: a sparse file, its size and the checksum of every 64 KiB block; read, written, cut and punched.

The sum of block `b` covers the object's bytes in `[b * 64 KiB, min((b + 1) * 64 KiB, size))`, so the sums of blocks
that a write covers are the client's own, and a read of whole blocks returns stored sums without hashing a byte; the
object's last, short block included. Blocks that were never written have the sum of 64 KiB of zeros, which is what they
read as. A block that is read or written in part is read and verified as a whole first.

Methods named `…_now` never wait for the disk (they are steps of the event loop: what they see and change cannot be
changed by another request meanwhile; this is what orders overlapping writes, there are no locks). They return
`Cold` if bytes that they need are not in the page cache: the caller has them read in a thread and tries again.
"""

import enum
import errno
import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import xxhash

from nacrefs.common.checksum import SUM_BYTES, block_sums
from nacrefs.common.fid import format_fid
from nacrefs.common.layout import BLOCK_BYTES
from nacrefs.oss import blockio
from nacrefs.oss.index import PAGE_BLOCKS, Index, Record

if TYPE_CHECKING:
    import asyncio

_SHIFT: Final = 16
_MASK: Final = BLOCK_BYTES - 1
_PAGE_BYTES: Final = PAGE_BLOCKS * SUM_BYTES
_hash = xxhash.xxh3_64_intdigest
_ZEROS: Final = memoryview(bytes(BLOCK_BYTES))
ZERO_SUM: Final = _hash(_ZEROS).to_bytes(SUM_BYTES, "little")
"""The sum of a block that was never written."""


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


class Run(NamedTuple):
    """Whole blocks `[start, end)` to be read (cut at the object's end), for extents `[first, last)` of a request."""

    start: int
    end: int
    first: int
    last: int


def plan_runs(extents: Sequence[tuple[int, int]], size: int, run_bytes_max: int) -> list[Run]:
    """What to read of an object of `size` bytes for these extents: neighbours share a run, up to `run_bytes_max`."""
    runs: list[Run] = []
    for index, (offset, length) in enumerate(extents):
        stop = offset + length
        if stop > size:
            stop = size
        if stop <= offset:
            continue
        start = offset & ~_MASK
        end = (stop + _MASK) & ~_MASK
        if end > size:
            end = size
        if runs:
            run = runs[-1]
            if run.start <= start <= run.end and max(end, run.end) - run.start <= run_bytes_max:
                runs[-1] = Run(run.start, max(end, run.end), run.first, index + 1)
                continue
        runs.append(Run(start, end, index, index + 1))
    return runs


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
        "fresh",
        "generation",
        "hot",
        "idle",
        "index",
        "mtime_ns",
        "number",
        "pages",
        "path",
        "pins",
        "record_stale",
        "size",
        "state",
        "turning",
        "version",
    )

    def __init__(self, index: Index, fid: int, number: int, directory: str) -> None:
        self.index = index
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
        self.pages: dict[int, bytearray] = {}
        """pages of sums that the index does not have yet (an empty one is to be removed from it)"""
        self.fresh: set[int] = set()
        """which of them no transaction in flight contains"""
        self.durable_version = 0
        """version of the bytes that are on the disk for certain"""
        self.dirty_bytes = 0
        """about how many bytes fdatasync would write"""
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

    # ------------------------------------------------------------------------------------------------------------- sums

    def sums(self, block: int, count: int) -> bytes:
        """The stored sum string of `count` blocks from `block` on."""
        number, at = divmod(block, PAGE_BLOCKS)
        if at + count <= PAGE_BLOCKS:
            page = self.pages.get(number)
            part = (self.index.page(self.fid, self.number, number) if page is None else page)[
                at * SUM_BYTES : (at + count) * SUM_BYTES
            ]
            lacking = count - len(part) // SUM_BYTES
            return bytes(part) + ZERO_SUM * lacking if lacking else bytes(part)
        parts: list[bytes] = []
        while count:
            take = min(count, PAGE_BLOCKS - block % PAGE_BLOCKS)
            parts.append(self.sums(block, take))
            block += take
            count -= take
        return b"".join(parts)

    def put_sums(self, block: int, sums: bytes) -> None:
        """Store a sum string from `block` on."""
        number, at = divmod(block, PAGE_BLOCKS)
        at *= SUM_BYTES
        if at + len(sums) <= _PAGE_BYTES:
            page = self.pages.get(number)
            if page is None:
                page = self.pages[number] = bytearray(self.index.page(self.fid, self.number, number))
            gap = at - len(page)
            if gap > 0:
                page.extend(ZERO_SUM * (gap // SUM_BYTES))
            page[at : at + len(sums)] = sums
            self.fresh.add(number)
            return
        while sums:
            take = _PAGE_BYTES - block % PAGE_BLOCKS * SUM_BYTES
            self.put_sums(block, sums[:take])
            sums = sums[take:]
            block += take // SUM_BYTES

    def _clear_sums(self, block: int, end: int) -> None:
        """Make blocks `[block, end)` unwritten ones; costs what there is, not what the range spans."""
        first, last = block // PAGE_BLOCKS, -(-end // PAGE_BLOCKS)
        numbers = {number for number in self.pages if first <= number < last}
        numbers.update(self.index.pages(self.fid, self.number, first, last))
        for number in numbers:
            low = max(0, block - number * PAGE_BLOCKS) * SUM_BYTES
            high = min(PAGE_BLOCKS, end - number * PAGE_BLOCKS) * SUM_BYTES
            page = self.pages.get(number)
            if page is None:
                page = self.pages[number] = bytearray(self.index.page(self.fid, self.number, number))
            if high >= len(page):
                del page[low:]
            else:
                page[low:high] = ZERO_SUM * ((high - low) // SUM_BYTES)
            self.fresh.add(number)

    def mismatch(self, offset: int) -> OSError:
        """The error for a block whose bytes are not those that were written."""
        return OSError(errno.EBADMSG, f"checksum mismatch on {self.name}, block at offset {offset}")

    def too_short(self, offset: int) -> OSError:
        """The error for a file that ends before the object does."""
        return OSError(
            errno.EBADMSG, f"{self.name}: its file ends at offset {offset}, the object at {self.size}", self.path
        )

    # ------------------------------------------------------------------------------------------------------------- read

    def take(
        self, extents: Sequence[tuple[int, int]], run: Run, buffer: memoryview, lengths: list[int], sums: list[bytes]
    ) -> list[memoryview]:
        """The bytes of a run's extents, as parts of `buffer`, which holds the run. Verifies blocks that are asked for
        in part. Fills in `lengths`, appends to `sums`. EBADMSG if a block is not what was written."""
        views: list[memoryview] = []
        size = self.size
        origin = run.start
        verified = -1
        for index in range(run.first, run.last):
            offset, length = extents[index]
            stop = offset + length
            if stop > size:
                stop = size
            if stop <= offset:
                continue
            lengths[index] = stop - offset
            views.append(buffer[offset - origin : stop - origin])
            block = offset >> _SHIFT
            last = (stop - 1) >> _SHIFT
            while block <= last:
                start = block << _SHIFT
                end = start + BLOCK_BYTES
                if end > size:
                    end = size
                if offset <= start and stop >= end:
                    # Whole blocks up to the last but perhaps one: as stored.
                    count = last - block + (1 if stop == size or not stop & _MASK else 0)
                    sums.append(self.sums(block, count))
                    block += count
                    continue
                if block != verified:
                    actual = _hash(buffer[start - origin : end - origin]).to_bytes(SUM_BYTES, "little")
                    if actual != self.sums(block, 1):
                        raise self.mismatch(start)
                    verified = block
                part = buffer[max(start, offset) - origin : min(end, stop) - origin]
                sums.append(_hash(part).to_bytes(SUM_BYTES, "little"))
                block += 1
        return views

    # ----------------------------------------------------------------------------------------------------------- change

    def write_now(self, segments: Sequence[Segment], scratch: memoryview, blocking: bool = False) -> Cold | None:
        """Write segments, which ascend and do not overlap. `scratch` is a block's worth of memory. OSError of the file
        system leaves the object SUSPECT. With `blocking` it waits for the disk rather than say `Cold`."""
        size = self.size
        tail = segments[-1]
        new_size = max(size, tail.offset + len(tail.data))
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
            changed = self._overlay(partial, new_size, scratch, blocking)
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
            self.put_sums(block, sums)
        self._changed(new_size, sum(len(segment.data) for segment in segments))
        return None

    def truncate_now(self, size: int, scratch: memoryview, blocking: bool = False) -> Cold | None:
        """Cut the object at `size`; nothing happens if it is not longer."""
        if size >= self.size:
            return None
        cut: dict[int, list[tuple[int, memoryview]]] = {size >> _SHIFT: []} if size & _MASK else {}
        changed = self._overlay(cut, size, scratch, blocking)
        if isinstance(changed, Cold):
            return changed
        try:
            os.ftruncate(self.fd, size)
        except OSError:
            self.state = SUSPECT
            raise
        self._clear_sums(-(-size // BLOCK_BYTES), -(-self.size // BLOCK_BYTES))
        for block, sums in changed:
            self.put_sums(block, sums)
        self._changed(size, 0)
        if not size:
            self.failure = None
        return None

    def punch_now(self, extents: Sequence[tuple[int, int]], scratch: memoryview, blocking: bool = False) -> Cold | None:
        """Make extents holes; what lies past the object's end is ignored."""
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
        changed = self._overlay(partial, size, scratch, blocking)
        if isinstance(changed, Cold):
            return changed
        try:
            for offset, length in holes:
                blockio.punch(self.fd, offset, length)
        except OSError:
            self.state = SUSPECT
            raise
        for block, sums in changed:
            self.put_sums(block, sums)
        for first, last in whole:  # after `changed`: an extent may cover wholly what another covers in part
            self._clear_sums(first, last)
        self._changed(size, 0)
        return None

    def _changed(self, size: int, dirty_bytes: int) -> None:
        self.size = size
        self.version += 1
        self.mtime_ns = time.time_ns()
        self.dirty_bytes += dirty_bytes
        self.allocated_bytes = os.fstat(self.fd).st_blocks * 512

    def _overlay(
        self, partial: dict[int, list[tuple[int, memoryview]]], new_size: int, scratch: memoryview, blocking: bool
    ) -> list[tuple[int, bytes]] | Cold:
        """The sums that blocks will have once pieces `(offset in block, bytes)` lie over what they hold now (verified
        here) and the object ends at `new_size`."""
        changed: list[tuple[int, bytes]] = []
        cold: list[tuple[int, int]] = []
        for block, pieces in partial.items():
            start = block << _SHIFT
            held = min(BLOCK_BYTES, self.size - start)
            covered = min(BLOCK_BYTES, new_size - start)
            if held > 0:
                loads = [blockio.Load(start, scratch[:held])]
                if not blocking and blockio.load_cached(self.fd, loads):
                    cold.append((start, held))
                    continue
                if blocking and (end := blockio.load(self.fd, loads)) is not None:
                    raise self.too_short(end)
                if _hash(scratch[:held]).to_bytes(SUM_BYTES, "little") != self.sums(block, 1):
                    raise self.mismatch(start)
            held = max(held, 0)
            if held < covered:
                scratch[held:covered] = _ZEROS[held:covered]
            for at, data in pieces:
                scratch[at : at + len(data)] = data
            changed.append((block, _hash(scratch[:covered]).to_bytes(SUM_BYTES, "little")))
        return Cold(cold) if cold else changed


def rehash(fd: int) -> tuple[int, dict[int, bytearray]]:
    """Size of a file and the pages of sums of its bytes; skips holes. Waits for the disk: for threads."""
    size = os.fstat(fd).st_size
    pages: dict[int, bytearray] = {}
    buffer = memoryview(bytearray(16 * BLOCK_BYTES))
    offset = 0
    while offset < size:
        try:
            offset = os.lseek(fd, offset, os.SEEK_DATA) & ~_MASK
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            offset = size & ~_MASK  # only a hole is left; a short last block needs a sum of its own
            if not size & _MASK:
                break
        end = min(size, max(os.lseek(fd, offset, os.SEEK_HOLE), offset + 1))
        end = min(size, (end + _MASK) & ~_MASK)
        while offset < end:
            view = buffer[: min(end - offset, len(buffer))]
            if (short := blockio.load(fd, (blockio.Load(offset, view),))) is not None:
                raise OSError(errno.EIO, f"the object file became shorter ({short} bytes) while it was read")
            sums = block_sums(view, offset)
            while sums:
                number, at = divmod(offset >> _SHIFT, PAGE_BLOCKS)
                page = pages.setdefault(number, bytearray())
                page.extend(ZERO_SUM * (at - len(page) // SUM_BYTES))
                part = sums[: _PAGE_BYTES - at * SUM_BYTES]
                page[at * SUM_BYTES : at * SUM_BYTES + len(part)] = part
                sums = sums[len(part) :]
                offset = min(end, ((offset >> _SHIFT) + len(part) // SUM_BYTES) << _SHIFT)
    return size, pages
