"""Copying on the OSTs: which OST is to copy what from which, and asking them all.

A range of a file is cut where a stripe of either file ends, and what goes from one object to one other is gathered into
orders of limited size (`CopyRange`). The target's OST carries them out; no byte comes here.
"""

import asyncio
from collections.abc import Awaitable
from functools import partial
from typing import Final, NamedTuple

from nacrefs.client.cache import Inode
from nacrefs.client.data.mirrors import Part
from nacrefs.client.data.objects import Objects
from nacrefs.common.layout import BLOCK_BYTES, Layout, pieces
from nacrefs.common.wire import COPY_BYTES_MAX, Capability, CopyRange, Request, Right, Written

_EXTENTS: Final = 1024
"""Most extents in one order."""


class Order(NamedTuple):
    """Extents `(offset in the source, offset, length)` that one stripe gets from one stripe of another file."""

    source: int
    stripe: int
    extents: tuple[tuple[int, int, int], ...]


class Source(NamedTuple):
    """A file that is copied from."""

    fid: int
    layout: Layout
    capability: Capability


def plan(source: Layout, start: int, target: Layout, at: int, size: int) -> list[Order]:
    """The orders for `size` bytes from `start` on in the source, to `at` on in the target."""
    extents: list[tuple[int, int, int]]
    done: list[tuple[int, int, list[tuple[int, int, int]]]] = []
    current: dict[tuple[int, int], tuple[list[tuple[int, int, int]], int]] = {}
    shift = at - start
    for stripe, low, high in pieces(target, at, at + size):
        for from_stripe, begin, end in pieces(source, low - shift, high - shift):
            key = (from_stripe, stripe)
            while begin < end:
                extents, room = current.get(key, ([], 0))
                if not room or len(extents) >= _EXTENTS:
                    extents = []
                    room = COPY_BYTES_MAX
                    done.append((from_stripe, stripe, extents))
                length = min(end - begin, room)
                past = (begin + shift + length) % BLOCK_BYTES
                if length < end - begin and past < length:  # the next order is to begin at a block's border
                    length -= past
                    room = length
                extents.append((begin, begin + shift, length))
                current[key] = (extents, room - length)
                begin += length
    return [Order(from_stripe, stripe, tuple(extents)) for from_stripe, stripe, extents in done]


async def copy(
    objects: Objects, origin: Inode, start: int, inode: Inode, at: int, size: int, mtime_ns: int = 0
) -> dict[int, Written]:
    """Have `size` bytes of `origin` from `start` on copied to `at` on of `inode`; the answers by object, as of
    `Objects.write`. EREMOTEIO if an OST cannot get at the source; then, as after any other error, some of it may have
    been copied. EIO if the session ends before all has been ordered."""
    source = Source(origin.fid, *(await objects.granted(origin, Right.READ)))
    written: dict[int, Written] = {}
    session = objects.session.number

    def orders(layout: Layout) -> list[Order]:
        return plan(source.layout, start, layout, at, size)

    def request(layout: Layout, capability: Capability, order: Order, number: int) -> Request[Written]:
        ost = layout.osts[number]
        from_number = _nearest(objects, source.layout, order.source, ost)
        return CopyRange(
            ost, inode.fid, number, layout.generation, capability, source.layout.osts[from_number], source.fid,
            from_number, source.layout.generation, source.capability, order.extents, mtime_ns,
        )  # fmt: skip

    if await objects.has_copies(inode):
        return await objects.copies.change(
            inode,
            lambda layout, capability: [
                Part(order.stripe, partial(request, layout, capability, order)) for order in orders(layout)
            ],
        )

    async def work(layout: Layout, capability: Capability) -> None:
        calls: list[Awaitable[Written]] = []
        some = orders(layout)
        for order in some:
            server = await objects.session.server_of(layout.osts[order.stripe])
            objects.session.check_still(session, "everything was copied")
            calls.append(server.call(request(layout, capability, order, order.stripe)))
        for order, result in zip(some, await asyncio.gather(*calls, return_exceptions=True), strict=True):
            if isinstance(result, BaseException):
                raise result
            written[order.stripe] = _later(written.get(order.stripe), result)

    await objects.granting(inode, Right.WRITE, work)
    return written


def _nearest(objects: Objects, layout: Layout, stripe: int, ost: int) -> int:
    """The copy of a stripe to read for an OST: one of its own, or of its server's, if there is one."""
    numbers = layout.readable(stripe)
    osts = objects.session.osts
    here = osts.get(ost)

    def distance(number: int) -> int:
        other = layout.osts[number]
        if other == ost:
            return 0
        there = osts.get(other)
        return 1 if here is not None and there is not None and here.address == there.address else 2

    return min(numbers, key=distance)


def _later(known: Written | None, answer: Written) -> Written:
    """Two answers about one object as one."""
    if known is None:
        return answer
    last = answer if answer.version > known.version else known
    return Written(
        max(known.size, answer.size), last.allocated_bytes, last.version, known.grown_bytes + answer.grown_bytes
    )
