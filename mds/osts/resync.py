"""Making copies equal: the worker that looks after every copy that is not good until it is (docs/mirrors.md).

One attempt, in this order, each step a precondition of the next:

    the copy's OST refuses older generations and remembers what is changed from now on   RaiseFloors(track)
    the layout has the new generation; LOST becomes SYNCING, so clients write it          begin_resync, durable
    the other copies of the stripe refuse older generations: every write reaches both     RaiseFloors
    the OST compares itself with a good copy and takes what differs, piece by piece       SyncObject
    the copy is GOOD, if nothing has happened to the layout meanwhile                     end_resync, durable

An attempt that fails leaves the copy as it is; the next one begins at the first step, with another generation. Equal
blocks are not sent again.
"""

import asyncio
import errno
import itertools
import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from nacrefs.common.layout import CopyState, Layout
from nacrefs.common.wire import Capability, Floor, MirrorCopy, ObjectId, RaiseFloors, Resync, Resynced, SyncObject
from nacrefs.mds.mdt import Mdt
from nacrefs.mds.namespace.copies import begin_resync, doubt_copies, end_resync, mirrored, replace_copies
from nacrefs.mds.osts.mirrors import PAGE, Mirrors
from nacrefs.mds.osts.spread import substitute
from nacrefs.mds.osts.targets import Ost, Targets
from nacrefs.mds.records import DISCARDED, MirrorRecord
from nacrefs.mds.transactions.journal import Journal
from nacrefs.mds.transactions.step import Step

log = logging.getLogger("nacre.mds")

AT_ONCE: Final = 4
"""Copies that are made equal at the same time."""
RETRY_S: Final = 1.0
RETRY_MOST_S: Final = 30.0
PIECE_S: Final = 120.0
"""So long an OSS may take over one piece."""
_REMEMBERED: Final = 10_000


class Resyncer:
    """The worker. `capability(fid, generation)` signs what an OST needs to read from another."""

    def __init__(
        self,
        mdt: Mdt,
        journal: Journal,
        targets: Targets,
        mirrors: Mirrors,
        capability: Callable[[int, int], Capability],
    ) -> None:
        self._mdt = mdt
        self._journal = journal
        self._targets = targets
        self._mirrors = mirrors
        self._capability = capability
        self._wake = asyncio.Event()
        self._retry: asyncio.TimerHandle | None = None
        self._retry_s = RETRY_S
        self._running: dict[int, asyncio.Task[bool]] = {}
        """by fid: attempts at two copies of one file would be in each other's way"""
        self._task: asyncio.Task[None] | None = None
        self.resynced = 0

    def start(self) -> None:
        """Begin, with what an earlier run has left."""
        self._wake.set()
        self._task = asyncio.get_running_loop().create_task(self._run(), name="mirror-resync")

    def wake(self) -> None:
        """There may be something to do, or an OST that can be reached again."""
        self._retry_s = RETRY_S
        self._wake.set()

    async def stop(self) -> None:
        """End; what is left is left in the database."""
        if self._retry is not None:
            self._retry.cancel()
        tasks: list[asyncio.Task[Any]] = [*self._running.values(), *([self._task] if self._task else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def asked(self, request: Resync, keep: Callable[[Step, Resynced], None]) -> Resynced:
        """What `nacre mirror resync` asks for. `keep` is told the answer in the last step that changes anything."""
        if request.lost_ost >= 0:
            return await self._replace(request, keep)
        count = 0
        if request.fid:
            layout = self._mirrors.layout(request.fid)
            if layout is None:
                raise OSError(errno.EINVAL, "the file has no copies")
            count = await self._journal.submit_own(partial(_compare, request.fid, keep))
            await self._mirrors.announce(request.fid)
        self.wake()
        return Resynced(count)

    async def _replace(self, request: Resync, keep: Callable[[Step, Resynced], None]) -> Resynced:
        """Give the copies on an OST that is lost for good new places, a page of files at a time."""
        lost = request.lost_ost
        if lost not in self._targets.osts:
            raise OSError(errno.EINVAL, f"there is no OST {lost}")
        if self._targets.serving(lost) is not None:
            raise OSError(errno.EBUSY, f"OST {lost} is up: its copies are not lost; stop its server first")
        table = sorted((info for info in self._targets.table() if info.up), key=lambda info: -info.free_bytes)
        server_of = {info.index: info.address for info in self._targets.table()}
        files = self._mdt.layouts(request.after, PAGE)
        next_fid = files[-1][0] if len(files) == PAGE else 0
        moves: list[tuple[int, dict[int, int]]] = []
        for fid, layout in files:
            if layout.mirrors == 1 or lost not in layout.osts:
                continue
            places: dict[int, int] = {}
            for number in (number for number, ost in enumerate(layout.osts) if ost == lost):
                place = substitute(layout, number, [info.index for info in table], server_of)
                if place is None:
                    raise OSError(errno.ENOSPC, f"no other OST can take the copies of OST {lost}")
                places[number] = place
            moves.append((fid, places))
        moved = 0

        def move(fid: int, places: dict[int, int], step: Step) -> int:
            count = replace_copies(step, fid, lost, places)
            if fid == moves[-1][0]:
                keep(step, Resynced(moved + count, next_fid))
            return count

        for fid, places in moves:
            moved += await self._journal.submit_own(partial(move, fid, places))
        self.wake()
        return Resynced(moved, next_fid)

    async def _run(self) -> None:
        while not self._journal.closed:
            await self._wake.wait()
            self._wake.clear()
            try:
                left = await self._look()
            except OSError as error:
                log.warning("mirrors: %s", error.strerror)
                left = True
            if left:
                self._try_later()

    async def _look(self) -> bool:
        """One look at every copy that is not good; whether some are left that might be mended later."""
        left = False
        after = (-1, -1, -1)
        while rows := self._mdt.mirrors(after, PAGE):
            after = rows[-1][:3]
            for fid, copies in itertools.groupby(rows, lambda row: row.fid):
                while len(self._running) >= AT_ONCE or fid in self._running:
                    left |= await self._one_done()
                self._running[fid] = asyncio.get_running_loop().create_task(self._mend(list(copies)))
        while self._running:
            left |= await self._one_done()
        return left

    async def _one_done(self) -> bool:
        done, _ = await asyncio.wait(self._running.values(), return_when=asyncio.FIRST_COMPLETED)
        self._running = {key: task for key, task in self._running.items() if task not in done}
        return not all(task.result() for task in done)

    def _try_later(self) -> None:
        if self._retry is None:
            self._retry = asyncio.get_running_loop().call_later(self._retry_s, self._retry_now)
            self._retry_s = min(2 * self._retry_s, RETRY_MOST_S)

    def _retry_now(self) -> None:
        self._retry = None
        self._wake.set()

    # ---------------------------------------------------------------------------------------------------------- attempt

    async def _mend(self, rows: list[MirrorRecord]) -> bool:
        """Try to mend copies of one file, one after the other; False if some are to be tried again."""
        return all([await self._attempt(row) for row in rows])

    async def _attempt(self, row: MirrorRecord) -> bool:
        """Try to mend one copy; False if that is to be tried again."""
        key = row[:3]
        try:
            if row.state == DISCARDED:
                return await self._discard(row)
            layout = self._mirrors.layout(row.fid)
            if (
                layout is None
                or not layout.lies_on(row.number, row.ost)
                or layout.state_of(row.number) == CopyState.GOOD
            ):
                return await self._drop(row)
            problem = await self._resync(row, layout)
        except OSError as error:
            problem = error.strerror or str(error)
        progress = self._mirrors.progress
        if not problem:
            progress.pop(key, None)
            self.resynced += 1
            return True
        log.info("mirrors: object %d of %#x on OST %d: %s", row.number, row.fid, row.ost, problem)
        if len(progress) < _REMEMBERED or key in progress:
            progress[key] = MirrorCopy(*row[:4], problem=problem)
        return False

    async def _discard(self, row: MirrorRecord) -> bool:
        if self._targets.serving(row.ost) is None:
            return True  # it wakes us when it comes
        await self._targets.destroy(row.ost, (ObjectId(row.ost, row.fid, row.number),))
        return await self._drop(row)

    async def _drop(self, row: MirrorRecord) -> bool:
        """Forget a copy, if that is right; False if it is not."""
        dropped: bool = await self._journal.submit_own(partial(_drop, row))
        return dropped

    async def _resync(self, row: MirrorRecord, layout: Layout) -> str:
        """One attempt; why it failed, or nothing."""
        fid, number = row.fid, row.number
        if fid in self._mdt.intents:
            return "the file is being cut"
        if layout.state_of(number) == CopyState.UNSURE and self._mirrors.several_write(fid):
            return "several clients are writing the file"
        target = self._serving(row.ost)
        stripe = number % layout.stripe_count
        source_number = next((good for good in layout.readable(stripe)), None)
        if source_number is None:
            return "there is no good copy"
        source = self._serving(layout.osts[source_number])
        generation = layout.generation + 1
        assert target.peer is not None
        floor = Floor(row.ost, fid, number, generation)
        await target.peer.call(RaiseFloors((floor,), track=True), deadline_s=PIECE_S)
        if not await self._journal.submit_own(partial(begin_resync, fid=fid, number=number, generation=generation)):
            return "the file is busy"
        await self._raise_others(fid, number, layout, stripe, generation)
        offset = copied = 0
        while offset >= 0:
            target, source = self._serving(row.ost), self._serving(layout.osts[source_number])
            assert target.peer is not None
            answer = await target.peer.call(
                SyncObject(
                    row.ost,
                    fid,
                    number,
                    generation,
                    source.record.address,
                    layout.osts[source_number],
                    source_number,
                    self._capability(fid, generation),
                    offset,
                ),
                deadline_s=PIECE_S,
            )
            offset, copied = answer.offset, copied + answer.copied_bytes
            checked = answer.size if offset < 0 else offset
            self._mirrors.progress[row[:3]] = MirrorCopy(*row[:4], checked, copied, answer.size)
        if not await self._journal.submit_own(partial(end_resync, fid=fid, number=number, generation=generation)):
            return "the layout has changed meanwhile"
        log.info("mirrors: object %d of %#x on OST %d is equal, %d bytes copied", number, fid, row.ost, copied)
        return ""

    def _serving(self, ost: int) -> Ost:
        serving = self._targets.serving(ost)
        if serving is None:
            raise OSError(errno.EHOSTDOWN, f"OST {ost} is down")
        return serving

    async def _raise_others(self, fid: int, number: int, layout: Layout, stripe: int, generation: int) -> None:
        """From now on every write of the stripe is of the new generation, so it reaches the copy that is made equal."""
        others = [other for other in layout.writable(stripe) if other != number]
        await asyncio.gather(
            *(
                self._targets.settle(ost, RaiseFloors((Floor(ost, fid, other, generation),)))
                for other, ost in ((other, layout.osts[other]) for other in others)
            )
        )


def _compare(fid: int, keep: Callable[[Step, Resynced], None], step: Step) -> int:
    doubt_copies(step, fid)
    layout = step.tx.need(fid).layout
    assert layout is not None
    count = sum(1 for state in layout.states if state)
    keep(step, Resynced(count))
    return count


def _drop(row: MirrorRecord, step: Step) -> bool:
    """Forget a copy that is good or no part of its file any more; False if that is not so. (A row is seen as soon as it
    is committed, which is before the layout that it belongs to is known.)"""
    layout = mirrored(step.tx.inode(row.fid))
    if layout is not None and layout.lies_on(row.number, row.ost) and layout.state_of(row.number) != CopyState.GOOD:
        return False
    step.tx.drop_mirror(*row[:3])
    return True
