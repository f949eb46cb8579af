"""Bringing a file back: parts in the order in which they are waited for, readable one by one, durable in the end."""

import asyncio
import errno
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from nacrefs.common import faults, wire
from nacrefs.common.layout import Layout
from nacrefs.common.wire import ArchiveSpec
from nacrefs.mds.hsm import steps
from nacrefs.mds.hsm.movers import Movers
from nacrefs.mds.hsm.queue import Action, move_all
from nacrefs.mds.hsm.steps import PART_BYTES, Gone, Return
from nacrefs.mds.osts.targets import objects_by_ost
from nacrefs.mds.transactions.tx import Tx

if TYPE_CHECKING:
    from nacrefs.mds.service import Mds

_BEGIN_BYTES: Final = 64 << 20
"""The disks begin with what has come back that often, so that they have little left to do in the end."""


class Restorer:
    """Carries out RESTORE."""

    def __init__(self, mds: "Mds", movers: Movers) -> None:
        self._mds = mds
        self._movers = movers
        self._reading = Tx(mds.mdt, writable=False)

    async def run(self, action: Action, back: Return, spec: ArchiveSpec) -> None:
        """Bring all of it back; the action has succeeded then. `Gone` if the file was removed."""
        row, layout, size = back
        fid = action.row.fid
        unit = row.part_bytes or PART_BYTES
        action.total, action.unit, action.done = size, unit, 0
        action.ready.clear()
        if size != row.size:
            raise OSError(errno.EIO, f"the copy has {row.size} bytes, the file {size}")
        if size <= unit:
            await action.turn(size)
            order = self._order(back, spec, 0, size, True)
            allocated = (await self._movers.whole(layout, size, order, action.in_a_hurry)).allocated_bytes
            self._arrived(action, 0, size)
        else:
            await self._parts(action, back, spec)
            calls = [
                self._movers.ask_ost(ost, wire.MoveSync(objects))
                for ost, objects in objects_by_ost([(fid, layout)]).items()
            ]
            synced: list[wire.Glimpsed] = await asyncio.gather(*calls)
            allocated = sum(stat.allocated_bytes for reply in synced for stat in reply.stats)
        if faults.on:
            faults.hit("mds.restore.synced")
        ended = action.succeeded(self._mds.clock.now_ns())
        await self._mds.journal.submit_own(lambda step: steps.end_restore(step, fid, allocated, ended))
        action.row = ended

    def _order(self, back: Return, spec: ArchiveSpec, start: int, end: int, sync: bool) -> wire.MoveGet:
        row = back.row
        part = start // (row.part_bytes or PART_BYTES)
        digest = row.digests[part * 8 : part * 8 + 8]
        stripes = self._movers.stripes(row.fid, back.layout)
        return wire.MoveGet(spec, row.key, start, end, row.size, stripes, digest, row.etag, sync)

    def _arrived(self, action: Action, part: int, size: int) -> None:
        action.done += size
        action.arrived(part)
        if faults.on:
            faults.hit("mds.restore.part")

    async def _parts(self, action: Action, back: Return, spec: ArchiveSpec) -> None:
        fid, layout, size, unit = action.row.fid, back.layout, back.size, action.unit
        begun = 0

        async def fetch(part: int) -> None:
            nonlocal begun
            start, end = part * unit, min(size, (part + 1) * unit)
            await action.turn(end - start)
            if self._reading.inode(fid) is None:
                raise Gone
            order = self._order(back, spec, start, end, False)
            await self._movers.move(layout, start, end, order, action.in_a_hurry)
            self._arrived(action, part, end - start)
            if action.done - begun >= _BEGIN_BYTES:
                begun = action.done
                await self._begin(fid, layout)

        await move_all(_wanted(action, size), fetch)

    async def _begin(self, fid: int, layout: Layout) -> None:
        """Have the disks begin."""
        calls = [
            self._movers.ask_ost(ost, wire.MoveSync(objects, True))
            for ost, objects in objects_by_ost([(fid, layout)]).items()
        ]
        await asyncio.gather(*calls)


def _wanted(action: Action, size: int) -> Iterable[int]:
    """The parts of a file, those first for which somebody waits."""
    unit = action.unit
    left = dict.fromkeys(range(-(-size // unit)))
    while left:
        asked = next(
            (
                part
                for start, end, future in action.waiters
                if not future.done() and end - start < size
                for part in range(start // unit, -(-end // unit))
                if part in left
            ),
            -1,
        )
        part = asked if asked >= 0 else next(iter(left))
        del left[part]
        yield part
