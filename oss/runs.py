"""Which whole blocks a read needs, and the bytes and sums of its extents out of them."""

from collections.abc import Sequence
from typing import Final, NamedTuple

import xxhash

from nacrefs.common.checksum import SUM_BYTES
from nacrefs.common.layout import BLOCK_BYTES
from nacrefs.oss.object import StoredObject

_SHIFT: Final = 16
_MASK: Final = BLOCK_BYTES - 1
_hash = xxhash.xxh3_64_intdigest


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


def take(
    stored: StoredObject,
    extents: Sequence[tuple[int, int]],
    run: Run,
    buffer: memoryview,
    lengths: list[int],
    sums: list[bytes],
) -> list[memoryview]:
    """The bytes of a run's extents, as parts of `buffer`, which holds the run. Verifies blocks that are asked for
    in part. Fills in `lengths`, appends to `sums`. EBADMSG if a block is not what was written."""
    views: list[memoryview] = []
    size = stored.size
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
                sums.append(stored.sums.get(block, count))
                block += count
                continue
            if block != verified:
                actual = _hash(buffer[start - origin : end - origin]).to_bytes(SUM_BYTES, "little")
                if actual != stored.sums.get(block, 1):
                    raise stored.mismatch(start)
                verified = block
            part = buffer[max(start, offset) - origin : min(end, stop) - origin]
            sums.append(_hash(part).to_bytes(SUM_BYTES, "little"))
            block += 1
    return views
