"""Reading objects to see whether they still are what was written: `VerifyObject`, and what a scrub is made of.

Bytes are read past the page cache, so from the medium; where the file system cannot do that, as usual. They are
compared with the stored sums as they are in the same step of the event loop, if the object has not changed since before
the read; otherwise it is read again. Objects that nobody uses are not opened for the table of open objects.
"""

import contextlib
import errno
import mmap
import os
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import xxhash

from nacrefs.common.checksum import SUM_BYTES, block_sums
from nacrefs.common.layout import BLOCK_BYTES
from nacrefs.common.wire import Damage, Verified, VerifyObject
from nacrefs.oss.admission import check_object, invalid
from nacrefs.oss.blockio import IoThreads
from nacrefs.oss.durability import unpin
from nacrefs.oss.gate import Call, Gate
from nacrefs.oss.idle import step_back
from nacrefs.oss.inventory import look
from nacrefs.oss.object import CLEANING, StoredObject
from nacrefs.oss.pace import Pace
from nacrefs.oss.sums import ZERO_SUM, BlockSums
from nacrefs.oss.target import Target

PIECE_BYTES: Final = 64 << 20
"""How much one `VerifyObject` looks at."""
CHUNK_BYTES: Final = 1 << 20
_PAGE_BYTES: Final = 4096
_TRIES: Final = 5
"""So often a chunk is read again because it was changed meanwhile; then it is in use, and its readers verify it."""


class Compared(NamedTuple):
    """A chunk: what was read of it, its stored sums, and the extents that do not match."""

    checked_bytes: int
    sums: bytes
    bad: list[tuple[int, int]]


class Verifier:
    """Reads with low priority, at most `bytes_per_s`."""

    def __init__(self, gate: Gate, bytes_per_s: int) -> None:
        self._gate = gate
        self.thread = IoThreads(1, "oss-scrub", step_back)
        self.bytes_per_s = bytes_per_s
        self.pace = Pace(bytes_per_s)

    async def verify_object(self, request: VerifyObject, call: Call) -> Verified:
        """A piece of an object, for the MDS."""
        target = self._gate.target(request.ost)
        check_object(request.fid, request.number)
        if request.offset < 0 or request.offset % BLOCK_BYTES:
            raise invalid(f"offset {request.offset} is not where a block begins")
        return await self.piece(target, request.fid, request.number, request.offset)

    async def piece(self, target: Target, fid: int, number: int, offset: int, length: int = PIECE_BYTES) -> Verified:
        """Compare a piece of an object, which may be missing, with its sums."""
        fact = look(target, fid, number)
        if fact is None:
            return Verified(-1, 0, 0, b"")
        if fact.problem:
            return Verified(-1, 0, fact.size, b"", (Damage(fid, number, 0, fact.size, fact.problem),))
        stop = min(fact.size, offset + length)
        digest = xxhash.xxh3_64()
        damages: list[Damage] = []
        checked = 0
        with _Reader(target.path_of(fid, number)) as reader:
            for start in range(offset, stop, CHUNK_BYTES):
                chunk = await self._chunk(target, fid, number, reader, start, min(start + CHUNK_BYTES, stop))
                if chunk is None:
                    return Verified(-1, checked, 0, b"", tuple(damages))
                checked += chunk.checked_bytes
                digest.update(chunk.sums)
                damages += _merged(damages, (Damage(fid, number, low, high) for low, high in chunk.bad))
        return Verified(stop if stop < fact.size else -1, checked, fact.size, digest.digest(), tuple(damages))

    async def _chunk(
        self, target: Target, fid: int, number: int, reader: "_Reader", start: int, stop: int
    ) -> Compared | None:
        """Compare `[start, stop)`; None if the object is gone. Nothing is bad before it was so twice."""
        before: Compared | None = None
        for _ in range(_TRIES):
            stored = target.opened(fid, number)
            if stored.state < CLEANING if stored is not None else not _is_clean(target, fid, number):
                if await target.usable(fid, number) is None:  # re-hashed, if that is due
                    return None
                continue
            seen = await self._compare(target, fid, number, reader, start, stop, stored)
            if seen is None:
                if look(target, fid, number) is None:
                    return None
                continue
            if not seen.bad or (before is not None and before.bad == seen.bad):
                return seen
            before = seen
        return Compared(0, b"", [])

    async def _compare(
        self,
        target: Target,
        fid: int,
        number: int,
        reader: "_Reader",
        start: int,
        stop: int,
        stored: StoredObject | None,
    ) -> Compared | None:
        """One try; None if the object was changed meanwhile."""
        version, size = _version(target, fid, number, stored)
        stop = min(stop, size)
        if stop <= start:
            return Compared(0, b"", [])
        sums = stored.sums if stored is not None else BlockSums(target.index, fid, number)
        if stored is not None:
            stored.pins += 1
        try:
            actual, read = await self.thread.run(reader.sums, start, stop)
        finally:
            if stored is not None:
                unpin(stored)
        if read:
            await self.pace.take(read)
        now = target.opened(fid, number)
        if (now is not stored and now is not None) or _version(target, fid, number, now) != (version, size):
            return None
        wanted = sums.get(start // BLOCK_BYTES, len(actual) // SUM_BYTES)
        return Compared(stop - start, wanted, list(_differing(wanted, actual, start, stop)))


def _is_clean(target: Target, fid: int, number: int) -> bool:
    record = target.index.record(fid, number)
    return record is not None and not record.dirty


def _version(target: Target, fid: int, number: int, stored: StoredObject | None) -> tuple[int, int]:
    """Version and size of an object, as its sums fit to."""
    if stored is not None:
        return stored.version, stored.size
    record = target.index.record(fid, number)
    return (record.version, record.size) if record is not None and not record.dirty else (0, 0)


def _differing(wanted: bytes, actual: bytes, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """The extents of blocks whose sums differ; neighbours are one."""
    low = high = -1
    for at in range(0, len(actual), SUM_BYTES):
        if wanted[at : at + SUM_BYTES] == actual[at : at + SUM_BYTES]:
            continue
        begin = start + at // SUM_BYTES * BLOCK_BYTES
        end = min(begin + BLOCK_BYTES, stop)
        if begin == high:
            high = end
            continue
        if low >= 0:
            yield low, high
        low, high = begin, end
    if low >= 0:
        yield low, high


def _merged(before: list[Damage], more: Iterator[Damage]) -> Sequence[Damage]:
    """What is to be added to `before`, whose last one is lengthened where it goes on."""
    added: list[Damage] = []
    for damage in more:
        if before and not added and before[-1].end == damage.start:
            last = before.pop()
            added.append(Damage(last.fid, last.number, last.start, damage.end))
        else:
            added.append(damage)
    return added


class _Reader:
    """An object's file, read past the page cache where that is possible; for one thread at a time."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1
        self._direct = True
        self._buffer = mmap.mmap(-1, CHUNK_BYTES)

    def __enter__(self) -> "_Reader":
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._buffer.close()

    def sums(self, start: int, stop: int) -> tuple[bytes, int]:
        """The sums of the blocks in `[start, stop)` as they are on the disk, and how much was read for that."""
        if self._fd < 0:
            self._open()
        if self._is_hole(start, stop):
            whole, rest = divmod(stop - start, BLOCK_BYTES)
            return ZERO_SUM * whole + (block_sums(memoryview(bytes(rest)), 0) if rest else b""), 0
        try:
            size = self._read(start, stop)
        except OSError as error:
            if error.errno != errno.EINVAL or not self._direct:
                raise
            self._direct = False
            os.close(self._fd)
            self._open()
            size = self._read(start, stop)
        with memoryview(self._buffer) as view, view[:size] as part:
            # What the file lacks is not what was written, whatever that was.
            return block_sums(part, start).ljust(-(-(stop - start) // BLOCK_BYTES) * SUM_BYTES, b"\0"), size

    def _open(self) -> None:
        flags = os.O_RDONLY | os.O_CLOEXEC
        if self._direct:
            with contextlib.suppress(OSError):
                self._fd = os.open(self._path, flags | os.O_DIRECT)
                return
            self._direct = False
        self._fd = os.open(self._path, flags)

    def _is_hole(self, start: int, stop: int) -> bool:
        try:
            return os.lseek(self._fd, start, os.SEEK_DATA) >= stop
        except OSError as error:
            if error.errno == errno.ENXIO:
                return True
            raise

    def _read(self, start: int, stop: int) -> int:
        """Fill the buffer; how many of the bytes are there."""
        wanted, got = stop - start, 0
        while got < wanted:
            end = -(-wanted // _PAGE_BYTES) * _PAGE_BYTES if self._direct else wanted
            with memoryview(self._buffer) as view, view[got:end] as part:
                more = os.preadv(self._fd, (part,), start + got)
            if not more:
                break
            got += more
            if self._direct and got % _PAGE_BYTES:
                break  # the end of the file
        return min(got, wanted)
