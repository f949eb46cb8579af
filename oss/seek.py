"""`Seek`: where an object has data and where holes, as its file system knows it."""

import errno
import os
from typing import Final

from nacrefs.common.answer import Answer
from nacrefs.common.wire import Right, Seek, Sought
from nacrefs.oss import blockio
from nacrefs.oss.admission import check_size, invalid
from nacrefs.oss.durability import unpin
from nacrefs.oss.gate import Call, Gate, check_generation
from nacrefs.oss.target import Target

_READ: Final = int(Right.READ)
PIECES_MOST: Final = 100_000
"""Stripe units that are looked at for one request; what comes after them is said to be data."""


class Seeks:
    """Handler of `Seek`."""

    def __init__(self, gate: Gate, threads: blockio.IoThreads) -> None:
        self._gate = gate
        self._threads = threads

    def seek(self, request: Seek, call: Call) -> Answer[Sought]:
        """The next data or hole."""
        check_size(request.start)
        check_size(request.end)
        if request.start > request.end:
            raise invalid(f"[{request.start}, {request.end}) is not a range")
        if request.stripe_bytes <= 0 or not 0 < request.stripe_count <= 1 << 16:
            raise invalid(f"{request.stripe_count} stripes of {request.stripe_bytes} bytes")
        target = self._gate.admit(request, call, _READ)
        if not self._gate.is_open():
            return self._gate.when_open(self.seek, request, call)
        return self._gate.counted(call, self._seek, request, target)

    async def _seek(self, request: Seek, target: Target) -> Sought:
        stored = await target.usable(request.fid, request.number)
        stripe, count, unit = request.number % request.stripe_count, request.stripe_count, request.stripe_bytes
        if stored is None:
            first = of_stripe(request.start, unit, count, stripe)
            return Sought(min(first, request.end) if request.hole else request.end)
        check_generation(target, stored, request.generation)
        stored.pins += 1
        try:
            if not request.hole:
                found = await self._threads.run(_data, stored.fd, request.start)
            else:
                found = await self._threads.run(find_hole, stored.fd, request.start, request.end, unit, count, stripe)
        finally:
            unpin(stored)
        return Sought(min(found, request.end))


def of_stripe(offset: int, unit: int, count: int, stripe: int) -> int:
    """The first byte from `offset` on that belongs to a stripe."""
    behind = (stripe - offset // unit) % count
    return offset if not behind else (offset // unit + behind) * unit


def _data(fd: int, start: int) -> int:
    try:
        return os.lseek(fd, start, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return 1 << 63


def find_hole(fd: int, start: int, end: int, unit: int, count: int, stripe: int) -> int:
    """The first byte of a stripe in `[start, end)` that lies in a hole of the file, or past its end; `end` or more if
    there is none."""
    at = of_stripe(start, unit, count, stripe)
    for _ in range(PIECES_MOST):
        if at >= end:
            return at
        try:
            hole = os.lseek(fd, at, os.SEEK_HOLE)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return at
        after = of_stripe(hole, unit, count, stripe)
        if after == hole:
            return hole
        at = after
    return end
