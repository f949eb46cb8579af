"""Copying a file to an archive: a version is chosen, copied under a key of its own, and becomes the file's copy if the
file is still the same.
"""

import asyncio
import errno
import logging
from typing import TYPE_CHECKING

import xxhash

from nacrefs.common import faults, wire
from nacrefs.common.wire import ArchiveSpec
from nacrefs.mds.hsm import steps
from nacrefs.mds.hsm.movers import Movers
from nacrefs.mds.hsm.queue import Action, move_all
from nacrefs.mds.hsm.rows import HsmRow
from nacrefs.mds.hsm.steps import Plan

if TYPE_CHECKING:
    from nacrefs.mds.service import Mds

log = logging.getLogger("nacre.mds")


class Archiver:
    """Carries out ARCHIVE."""

    def __init__(self, mds: "Mds", movers: Movers) -> None:
        self._mds = mds
        self._movers = movers

    async def run(self, action: Action, spec: ArchiveSpec) -> None:
        """Copy the file; its action has succeeded then. `Gone` if it was removed, EAGAIN if it was changed meanwhile.
        After a failure nothing of it is under way; what it left is known by `action.row`."""
        journal = self._mds.journal
        row = action.row
        plan: Plan = await journal.submit_own(action.unless_canceled(lambda step: steps.plan_archive(step, row, spec)))
        action.row = plan.action
        action.total, action.done = plan.attr.size, 0
        try:
            etag, digests = await (self._parts if plan.in_parts else self._whole)(action, spec, plan)
        except BaseException as error:
            stopped = isinstance(error, asyncio.CancelledError) or (
                isinstance(error, OSError) and error.errno == errno.ECANCELED
            )  # by somebody else, when the file's objects were destroyed; what was being sent goes on until it is there
            if plan.in_parts or stopped:
                await self.quiesce(action.row.fid)
            raise
        copy = HsmRow(
            row.fid, 0, spec.id, plan.key, plan.version, plan.attr.size, etag, plan.part_bytes, digests,
            xxhash.xxh3_64_digest(digests), spec.storage_class, self._mds.clock.now_ns(),
        )  # fmt: skip
        ended = action.succeeded(copy.archived_ns)
        end = action.unless_canceled(lambda step: steps.end_archive(step, plan, copy, ended))
        if not await journal.submit_own(end):
            raise OSError(errno.EAGAIN, "it was changed while it was copied")
        action.row = ended

    async def quiesce(self, fid: int) -> None:
        """Nothing of a file is under way any more; unless the MDS ends, for then the movers stop by themselves."""
        if self._mds.hsm.stopping:
            return
        try:
            await asyncio.shield(self._movers.stop(fid))
        except OSError as error:
            log.warning("moves of %#x: %s", fid, error.strerror)

    async def _whole(self, action: Action, spec: ArchiveSpec, plan: Plan) -> tuple[str, bytes]:
        size = plan.attr.size
        stripes = None if plan.data is not None else self._movers.stripes(action.row.fid, plan.layout)
        order = wire.MovePut(spec, plan.key, plan.meta, size, stripes, plan.data, plan.match)
        moved = await self._movers.whole(None if plan.data is not None else plan.layout, size, order)
        action.done = size
        if faults.on:
            faults.hit("mds.archive.put")
        return moved.etag, moved.digest

    async def _parts(self, action: Action, spec: ArchiveSpec, plan: Plan) -> tuple[str, bytes]:
        size, unit = plan.attr.size, plan.part_bytes
        stripes = self._movers.stripes(action.row.fid, plan.layout)
        begun: wire.Upload = await self._movers.ask_one(wire.MoveBegin(spec, plan.key, plan.meta, plan.match))
        upload = begun.upload
        action.row = action.row._replace(upload=upload)
        started = action.row
        await self._mds.journal.submit_own(lambda step: steps.put_action(step, started))
        if faults.on:
            faults.hit("mds.archive.begun")
        moved: dict[int, wire.Moved] = {}

        async def send(part: int) -> None:
            start, end = part * unit, min(size, (part + 1) * unit)
            moved[part] = await self._movers.move(
                plan.layout, start, end, wire.MovePart(spec, plan.key, upload, part + 1, start, end, stripes)
            )
            action.done += end - start
            if faults.on:
                faults.hit("mds.archive.part")

        count = -(-size // unit)
        await move_all(range(count), send)
        etags = tuple(moved[part].etag for part in range(count))
        order = wire.MoveComplete(spec, plan.key, upload, etags, size, plan.match, action.row.fid)
        whole: wire.Moved = await self._movers.ask_one(order)
        if faults.on:
            faults.hit("mds.archive.put")
        return whole.etag, b"".join(moved[part].digest for part in range(count))
