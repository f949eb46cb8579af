"""Mirrored files between the MDT and the OSTs: who must know before anybody is answered (docs/mirrors.md).

A change of copies (`namespace/copies.py`) is durable first, then every OST that has a copy that is not good learns of
its new layout generation (`announce`), then the answer leaves. An OST that cannot be told does not serve mirrored files
any more (`Targets.settle`), and asks when it is back (`join`).
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final

from nacrefs.common.layout import CopyState, Layout
from nacrefs.common.wire import (
    CopyLayout,
    Floor,
    Floors,
    JoinMirrors,
    ListCopies,
    MirrorCopies,
    MirrorCopy,
    Mode,
    ObjectId,
    RaiseFloors,
    TruncateObjects,
)
from nacrefs.mds.clients.leases import LeaseTable
from nacrefs.mds.mdt import Mdt
from nacrefs.mds.namespace.copies import doubt_copies, fail_copies, mirrored
from nacrefs.mds.osts.targets import Targets
from nacrefs.mds.transactions.journal import Journal
from nacrefs.mds.transactions.step import Step
from nacrefs.mds.transactions.tx import Tx
from nacrefs.mds.transactions.work import Work

log = logging.getLogger("nacre.mds")

PAGE: Final = 1000
AWAY_S: Final = 2.0
"""So long an OST may be away before a truncation goes on without it."""
_RETRY_S: Final = 0.2


class Mirrors:
    """What the MDS does for mirrored files beside their steps."""

    def __init__(self, mdt: Mdt, journal: Journal, leases: LeaseTable, targets: Targets) -> None:
        self._mdt = mdt
        self._journal = journal
        self._leases = leases
        self._targets = targets
        self._reading = Tx(mdt, writable=False)
        self.changed: Callable[[], None] = lambda: None
        """Told when there may be copies to be made equal."""
        self.progress: dict[tuple[int, int, int], MirrorCopy] = {}
        """What is known of resyncs that are, or were, under way, by (fid, number, ost)."""

    def layout(self, fid: int) -> Layout | None:
        """The committed layout of a mirrored file, or None."""
        return mirrored(self._reading.inode(fid))

    def several_write(self, fid: int) -> bool:
        """Whether several sessions are registered as writing a file."""
        return sum(1 for mode in self._mdt.opens.get(fid, {}).values() if mode & Mode.WRITE) > 1

    # ---------------------------------------------------------------------------------------------------- announcements

    async def announce(self, fid: int) -> None:
        """Every OST with a copy that is not good serves no I/O of older generations on it when this returns."""
        layout = self.layout(fid)
        if layout is None or not layout.states:
            return
        floors: dict[int, list[Floor]] = {}
        for number, state in enumerate(layout.states):
            if state:
                ost = layout.osts[number]
                floors.setdefault(ost, []).append(Floor(ost, fid, number, layout.generation))
        await asyncio.gather(*(self._targets.settle(ost, RaiseFloors(tuple(some))) for ost, some in floors.items()))
        self.changed()

    def announced(self, work: Work, spawn: Callable[[Any], None]) -> bool:
        """Hold back the answer to `CopiesFailed` until the OSTs know."""
        if not isinstance(work.reply, CopyLayout) or not work.reply.layout.states:
            return False
        spawn(self._announce_for(work))
        return True

    async def _announce_for(self, work: Work) -> None:
        await self.announce(work.request.fid)
        self._journal.finish(work)

    def join(self, request: JoinMirrors) -> Floors:
        """What OSTs must know of their copies before they serve any; also those of other OSTs."""
        rows = self._mdt.mirrors((request.fid, request.number, request.ost), PAGE)
        found = [Floor(row.ost, row.fid, row.number, row.generation) for row in rows]
        return Floors(tuple(found), len(rows) < PAGE)

    # ------------------------------------------------------------------------------------------------ sessions, damage

    def written_by(self, session: int) -> set[int]:
        """The mirrored files whose copies may differ if this session ends now."""
        opens = self._mdt.opens.items()
        fids = {fid for fid, modes in opens if modes.get(session, 0) & Mode.WRITE}
        fids.update(fid for owner, fid in self._mdt.mirror_writers if owner == session)
        return {fid for fid in fids if self.layout(fid) is not None}

    @staticmethod
    def doubt(fids: Iterable[int], step: Step) -> None:
        """The writer of these files is dead."""
        for fid in fids:
            inode = step.tx.inode(fid)
            if inode is not None and not inode.is_inline:
                doubt_copies(step, fid)

    async def damaged(self, objects: Iterable[ObjectId]) -> None:
        """These objects are to be made equal to another copy, where there is one."""
        items = list(objects)

        def fail(step: Step) -> None:
            for item in items:
                _fail(item.fid, item.number, item.ost, CopyState.SYNCING, step)

        await self._journal.submit_own(fail)
        for fid in {item.fid for item in items}:
            await self.announce(fid)

    async def forget_writers(self) -> None:
        """Forget writers that have neither a lease nor an open any more."""
        done = [
            (session, fid)
            for session, fid in self._mdt.mirror_writers
            if self._leases.writer(fid) != session and not self._mdt.opens.get(fid, {}).get(session, 0) & Mode.WRITE
        ]
        if done:
            await self._journal.submit_own(partial(self._forget, done))

    def _forget(self, done: Iterable[tuple[int, int]], step: Step) -> None:
        for session, fid in done:
            if self._leases.writer(fid) != session and not step.tx.opens(fid).get(session, 0) & Mode.WRITE:
                step.tx.set_mirror_writer(session, fid, False)

    # ------------------------------------------------------------------------------------------------------- truncation

    async def truncate(self, fid: int, size: int) -> None:
        """Cut all copies of a file that are not lost; those whose OST is away are lost, unless they are the last."""
        layout = self.layout(fid)
        if layout is not None:
            await asyncio.gather(*(self._cut(fid, number, size) for number in range(len(layout.osts))))

    async def _cut(self, fid: int, number: int, size: int) -> None:
        loop = asyncio.get_running_loop()
        away_s = loop.time()
        while (layout := self.layout(fid)) is not None and layout.state_of(number) != CopyState.LOST:
            index = layout.osts[number]
            ost = self._targets.serving(index)
            if ost is not None and ost.peer is not None:
                request = TruncateObjects((ObjectId(index, fid, number),), size)
                try:
                    await ost.peer.call(request, deadline_s=self._targets.silence_s)
                    return
                except OSError as error:
                    log.warning("OST %d did not cut object %d of %#x: %s", index, number, fid, error.strerror)
            if loop.time() - away_s >= AWAY_S:
                await self._journal.submit_own(partial(_fail, fid, number, index, CopyState.LOST))
                await self.announce(fid)
            await asyncio.sleep(_RETRY_S)

    # ----------------------------------------------------------------------------------------------------------- report

    def list_copies(self, request: ListCopies) -> MirrorCopies:
        """The copies that are not good."""
        limit = min(max(request.limit, 1), PAGE)
        after = (request.fid, request.number, request.ost)
        rows = self._mdt.mirrors(after, limit)
        if request.only:
            rows = [row for row in rows if row.fid == request.fid]
        copies = [self.progress.get(row[:3], MirrorCopy(*row[:4])) for row in rows]
        return MirrorCopies(
            tuple(MirrorCopy(*row[:4], *_progress(copy)) for row, copy in zip(rows, copies, strict=True)),
            len(rows) < limit,
        )


def _progress(copy: MirrorCopy) -> tuple[int, int, int, str]:
    return copy.checked_bytes, copy.copied_bytes, copy.size, copy.problem


def _fail(fid: int, number: int, ost: int, state: CopyState, step: Step) -> None:
    """The copy that an OST has is not good; unless it is no copy any more, since there is another in its place."""
    layout = mirrored(step.tx.inode(fid))
    if layout is not None and layout.lies_on(number, ost):
        fail_copies(step, fid, (number,), state)
