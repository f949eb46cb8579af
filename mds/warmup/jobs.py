"""Warmup jobs: files are brought to the OSTs before somebody needs them, given up there, or looked at.

A job is a row, and what it has still to look at are rows, so it goes on after a restart: from the page of files and
directories at which it was. Its recalls are ordinary actions of the coordinator, so many at a time that readers, who
come first there, hardly notice.
"""

import asyncio
import errno
import logging
import stat
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec

from nacrefs.common.wire import HsmAction
from nacrefs.mds.hsm.queue import work_together
from nacrefs.mds.hsm.rows import ARCHIVED, RELEASED
from nacrefs.mds.inode import Inode
from nacrefs.mds.lifecycle.pace import Pace
from nacrefs.mds.namespace.xattrs import path_of
from nacrefs.mds.transactions.step import Step
from nacrefs.mds.transactions.tx import Tx
from nacrefs.mds.warmup.rows import (
    CANCELED,
    DONE,
    FAILED,
    FILLING,
    HISTORY,
    OVER,
    RUNNING,
    STATES,
    WAITING,
    Counts,
    WarmupRow,
    warmup_of,
)

if TYPE_CHECKING:
    from nacrefs.mds.service import Mds

log = logging.getLogger("nacre.mds")
RUNNING_MAX: Final = 2
"""Jobs that run at a time."""
WAITING_MAX: Final = 1000
"""Jobs that are not over."""
ITEMS_MAX: Final = 1_000_000
"""Files and directories that one job may name."""
WIDTH_MAX: Final = 32
PAGE: Final = 500
"""Items after which what is done is made durable."""
LISTING: Final = 1000
RETRY_S: Final = 1.0


class Job:
    """A job that is not forgotten."""

    def __init__(self, row: WarmupRow) -> None:
        self.row = row
        self.counts = row.counts
        """As they are now; `row.counts` as they are stored."""
        self.items = 0
        """Number of its last item."""
        self.pace = Pace(row.rate_bytes)
        self.task: asyncio.Task[None] | None = None
        self.ended = asyncio.Event()


class Warmups:
    """All warmup jobs of an MDT."""

    def __init__(self, mds: "Mds") -> None:
        self._mds = mds
        self._reading = Tx(mds.mdt, writable=False)
        self.jobs: dict[int, Job] = {}
        self._next_id = 1
        self._stopping = False

    # ------------------------------------------------------------------------------------------------------ life cycle

    def start(self) -> None:
        """Take up what an earlier run has left. Jobs of which not everything was named are over: who named it has
        gone."""
        store = self._mds.mdt.store
        for stored in store.fetchall(store.statements.warmups):
            try:
                job = Job(warmup_of(stored))
            except msgspec.MsgspecError as error:  # the others go on nevertheless; `nacre fsck` tells of this one
                log.error("warmup job %d cannot be read: %s", stored[0], error)
                continue
            self.jobs[job.row.id] = job
            if job.row.state == FILLING:
                job.row = job.row._replace(state=CANCELED)
                job.task = asyncio.get_running_loop().create_task(self._end(job, CANCELED))
            elif job.row.state == RUNNING:
                job.row = job.row._replace(state=WAITING)
            last, _ = store.fetchone(store.statements.warmup_items_left, (job.row.id,)) or (0, 0)
            job.items = last or 0
        self._next_id = 1 + max(self.jobs, default=0)
        self.pump()

    async def stop(self) -> None:
        """End; jobs that are not over go on next time."""
        self._stopping = True
        tasks = [job.task for job in self.jobs.values() if job.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def need(self, number: int) -> Job:
        """The job; OSError (ENOENT) if there is none."""
        job = self.jobs.get(number)
        if job is None:
            raise OSError(errno.ENOENT, f"there is no warmup job {number}")
        return job

    # ----------------------------------------------------------------------------------------------------------- orders

    def make(self, verb: str, after: int = 0, width: int = 16, uid: int = 0, rate_bytes: int = 0) -> Job:
        """A new job, which is stored when something is `add`ed. OSError: ENOENT if there is no job `after`, EAGAIN if
        too many wait."""
        if after:
            self.need(after)
        if sum(job.row.state not in OVER for job in self.jobs.values()) >= WAITING_MAX:
            raise OSError(errno.EAGAIN, f"{WAITING_MAX} warmup jobs are waiting: try again later")
        now_ns = self._mds.clock.now_ns()
        number, self._next_id = self._next_id, self._next_id + 1
        width = max(1, min(width, WIDTH_MAX))
        return Job(WarmupRow(number, verb, FILLING, after, width, uid, now_ns, now_ns, Counts(), rate_bytes))

    async def add(
        self,
        job: Job,
        fids: tuple[int, ...],
        more: bool,
        also: Callable[[Step, dict[str, Any]], None] = lambda step, report: None,
    ) -> None:
        """Name files and directories; without `more` the job can begin. `also` is part of that step, and is told what
        the job is then. OSError: EBUSY if it could before, E2BIG."""
        if job.row.state != FILLING:
            raise OSError(errno.EBUSY, f"warmup job {job.row.id} is {job.row.state}")
        first = job.items + 1
        if first + len(fids) > ITEMS_MAX:
            raise OSError(errno.E2BIG, f"a job names at most {ITEMS_MAX:,} files and directories")
        job.items += len(fids)
        row = job.row if more else job.row._replace(state=WAITING)

        def step_of(step: Step) -> None:
            for number, fid in enumerate(fids, first):
                step.tx.run("put_warmup_item", (row.id, number, fid))
            if not more or row.id not in self.jobs:
                _put(row, step)
            also(step, report(Job(row)))

        await self._mds.journal.submit_own(step_of)
        job.row = row
        self.jobs[row.id] = job
        self.pump()

    async def warm(self, fid: int) -> Job:
        """Bring all files below a directory."""
        job = self.make("warm")
        await self.add(job, (fid,), False)
        return job

    async def cancel(self, job: Job) -> None:
        """End a job; files under way come nevertheless."""
        if job.row.state in OVER:
            return
        if job.task is not None:
            job.task.cancel()
            await asyncio.gather(job.task, return_exceptions=True)
        if job.row.state not in OVER:
            await self._end(job, CANCELED)

    async def settle(self, number: int) -> str:
        """The stored job cannot be read, or makes no sense: store what is in force, or forget it."""
        job = self.jobs.get(number)
        if job is None:

            def forget(step: Step) -> None:
                step.tx.run("delete_warmup_items", (number, ITEMS_MAX))
                step.tx.run("delete_warmup", (number,))

            await self._mds.journal.submit_own(forget)
        elif job.row.state not in STATES:
            await self._end(job, CANCELED)
        else:
            if job.row.after >= number:  # it would wait for ever
                job.row = job.row._replace(after=0)
            await self._mds.journal.submit_own(partial(_put, job.row))
            self.pump()
        return ""

    def pump(self) -> None:
        """Begin what can begin."""
        running = sum(job.row.state == RUNNING for job in self.jobs.values())
        for job in self.jobs.values():
            if running >= RUNNING_MAX or self._stopping:
                return
            before = self.jobs.get(job.row.after)
            if job.row.state == WAITING and (before is None or before.row.state in OVER):
                job.row = job.row._replace(state=RUNNING)
                job.task = asyncio.get_running_loop().create_task(self._run(job))
                running += 1

    # -------------------------------------------------------------------------------------------------------------- run

    async def _run(self, job: Job) -> None:
        while not self._stopping:
            began_s, before_s = time.monotonic(), job.row.counts.seconds
            job.counts = job.row.counts.copy()
            try:
                if await self._page(job):
                    job.counts.seconds = round(before_s + time.monotonic() - began_s, 3)
                    continue
                job.counts.seconds = round(before_s + time.monotonic() - began_s, 3)
                await self._end(job, FAILED if job.counts.failed else DONE)
                return
            except OSError as error:
                if self._mds.journal.closed:
                    return
                log.warning("warmup job %d: %s", job.row.id, error.strerror)
                await asyncio.sleep(RETRY_S)
            except Exception:
                log.exception("warmup job %d", job.row.id)
                job.counts.fail("", "internal error: the MDS's log has it")
                await self._end(job, FAILED)
                return

    async def _page(self, job: Job) -> bool:
        """Do some items, and make that durable; False if there are none."""
        store, number = self._mds.mdt.store, job.row.id
        items = store.fetchall(store.statements.warmup_items, (number, 0, PAGE))
        if not items:
            return False
        coming = self._files(job, [fid for _, fid in items])
        turn = asyncio.Lock()

        async def worker() -> None:
            while True:
                async with turn:
                    fid = await anext(coming, 0)
                if not fid:
                    return
                await self._file(job, fid)

        await work_together(job.row.width, worker)
        counts, last = job.counts.copy(), items[-1][0]
        row = job.row._replace(counts=counts, changed_ns=self._mds.clock.now_ns())

        def step_of(step: Step) -> None:
            step.tx.run("delete_warmup_items", (number, last))
            _put(row, step)

        await self._mds.journal.submit_own(step_of)
        job.row = row
        return True

    async def _files(self, job: Job, fids: list[int]) -> AsyncIterator[int]:
        """Regular files among these, and below those that are directories."""
        for fid in fids:
            inode = self._reading.inode(fid)
            if inode is None:
                job.counts.files += 1
                job.counts.fail(f"{fid:#x}", "the file was removed")
            elif inode.is_regular:
                yield fid
            elif inode.is_directory:
                below = [fid]
                while below:
                    directory, after = below.pop(), b""
                    while entries := self._reading.listing(directory, after, LISTING):
                        after = entries[-1][0]
                        for _, attr in entries:
                            if stat.S_ISDIR(attr.mode):
                                below.append(attr.fid)
                            elif stat.S_ISREG(attr.mode):
                                yield attr.fid
                        await asyncio.sleep(0)

    async def _file(self, job: Job, fid: int) -> None:
        counts = job.counts
        inode = self._reading.inode(fid)
        if inode is None:
            return  # removed while we came
        counts.files += 1
        try:
            work = {"warm": self._warm, "evict": self._evict, "check": self._check}[job.row.verb]
            if await work(job, inode):
                counts.moved += 1
                counts.bytes += inode.attr.size
            else:
                counts.here += 1
        except OSError as error:
            if self._mds.journal.closed or self._stopping:
                raise
            if self._reading.inode(fid) is not None:
                counts.fail(self._path(fid), error.strerror or str(error))

    async def _warm(self, job: Job, inode: Inode) -> bool:
        return bool(inode.attr.flags & RELEASED) and await self._act(job, HsmAction.RESTORE, inode.attr.fid)

    async def _evict(self, job: Job, inode: Inode) -> bool:
        if inode.attr.flags & RELEASED or not inode.attr.size:
            return False
        if not inode.attr.flags & ARCHIVED:
            raise OSError(errno.EPERM, "it is not archived")
        return await self._act(job, HsmAction.RELEASE, inode.attr.fid)

    async def _act(self, job: Job, kind: HsmAction, fid: int) -> bool:
        hsm, cause = self._mds.hsm, f"warmup {job.row.id}"
        while True:
            action = await hsm.request(kind, fid, 0, job.row.uid, cause)
            if action is None:
                return False
            if action.row.cause == cause:  # not somebody else's, who has no such limit
                action.keep_pace(job.pace)
            await hsm.finish(action)
            if action.row.kind == kind:
                return True

    async def _check(self, job: Job, inode: Inode) -> bool:
        """Ask the OSTs; OSError if not everything is there."""
        attr = inode.attr
        if attr.flags & RELEASED:
            raise OSError(errno.ENODATA, "it is in the bucket only")
        if inode.layout is None or inode.is_inline or not attr.size:
            return False
        _, allocated, _ = await self._mds.targets.glimpse(attr.fid, inode.layout, patient=False)
        if allocated < attr.blocks << 9 and self._reading.inode(attr.fid) == inode:
            raise OSError(errno.EIO, f"the OSTs have {allocated:,} bytes of {attr.blocks << 9:,}")
        return False

    def _path(self, fid: int) -> str:
        try:
            return path_of(self._reading, fid).decode(errors="backslashreplace")
        except OSError:
            return f"{fid:#x}"

    async def _end(self, job: Job, state: str) -> None:
        row = job.row._replace(state=state, counts=job.counts.copy(), changed_ns=self._mds.clock.now_ns())
        over = [other.row.id for other in self.jobs.values() if other.row.state in OVER]
        forgotten = over[: max(0, len(over) + 1 - HISTORY)]

        def step_of(step: Step) -> None:
            _put(row, step)
            step.tx.run("delete_warmup_items", (row.id, job.items))
            for number in forgotten:
                step.tx.run("delete_warmup", (number,))

        await self._mds.journal.submit_own(step_of)
        job.row = row
        job.ended.set()
        for number in forgotten:
            self.jobs.pop(number, None)  # another that ended meanwhile may have done so
        self.pump()


def _put(row: WarmupRow, step: Step) -> None:
    step.tx.run("put_warmup", row.columns())


def report(job: Job) -> dict[str, Any]:
    """A job, as plain data."""
    row, counts = job.row, job.counts if job.row.state == RUNNING else job.row.counts
    return {
        "id": row.id,
        "verb": row.verb,
        "state": row.state,
        "after": row.after,
        "width": row.width,
        "rate_bytes": row.rate_bytes,
        "uid": row.uid,
        "created_ns": row.created_ns,
        "changed_ns": row.changed_ns,
        "named": job.items,
        **{name: getattr(counts, name) for name in counts.__struct_fields__},
    }
