"""Sizes that only the OSTs know: what was written without a WRITE lease and not reported, or not all of it."""

import logging
from collections.abc import Callable
from typing import NamedTuple

from msgspec.structs import replace

from nacrefs.common.wire import Attr, Mode
from nacrefs.mds.journal import Journal
from nacrefs.mds.leases import LeaseTable
from nacrefs.mds.mdt import Mdt
from nacrefs.mds.step import Step
from nacrefs.mds.targets import Targets
from nacrefs.mds.tx import Tx
from nacrefs.mds.work import Work

log = logging.getLogger("nacre.mds")


class Sizes:
    """Keeps `LeaseTable.unreported`, and settles it when a request needs to know."""

    def __init__(self, mdt: Mdt, journal: Journal, leases: LeaseTable, targets: Targets) -> None:
        self._mdt = mdt
        self._journal = journal
        self._leases = leases
        self._targets = targets
        self._reading = Tx(mdt, writable=False)
        self._settling: dict[int, int] = {}
        """The latest `settle` of each file that is under way."""
        self._turns = 0
        for fid in mdt.opens:
            if self._is_written(fid):
                leases.unreported[fid] = self._reading.need(fid).attr.mtime_ns

    def _is_written(self, fid: int) -> bool:
        """Whether somebody writes the file's objects without a lease (of an inline file nobody can)."""
        inode = self._reading.inode(fid)
        if inode is None or inode.is_inline:
            return False
        return any(mode & Mode.WRITE for mode in self._mdt.opens.get(fid, {}).values())

    def written(self, tx: Tx) -> list[int]:
        """A batch is durable: from now on these files are written without a lease. The files, of those that were
        before, that nobody writes any more."""
        ended: list[int] = []
        unreported = self._leases.unreported
        for (_, fid), mode in tx.open_writes.items():
            if mode & Mode.WRITE:
                if fid not in unreported and self._is_written(fid):
                    unreported[fid] = self._reading.need(fid).attr.ctime_ns
            elif fid in unreported and fid not in ended and not self._is_written(fid):
                if self._leases.writer(fid):  # it was told the size with its lease, and may have cut the file since
                    del unreported[fid]
                else:
                    ended.append(fid)
        return ended

    async def settle(self, fid: int) -> None:
        """The last who wrote without a lease has closed the file: keep what the OSTs say, which is what quotas
        count."""
        self._turns += 1
        turn = self._settling[fid] = self._turns

        def still(step: Step) -> bool:
            """Whether nobody has learned the size meanwhile, who may have changed it since."""
            return self._settling.get(fid) == turn and fid in self._leases.unreported and not self._is_written(fid)

        try:
            await self._keep(fid, still)
        except OSError as error:
            log.info("size of file %#x: %s", fid, error.strerror)
        if self._settling.get(fid) == turn:
            del self._settling[fid]

    async def _keep(self, fid: int, still: Callable[[Step], bool] | None = None) -> bool:
        """Ask the OSTs and keep what they say, unless it is not so any more by then; False if the file was changed at
        the MDS meanwhile (cut, perhaps), so that it is not known whether that is still so."""
        inode = self._reading.inode(fid)
        if inode is None or inode.layout is None or inode.is_inline:
            return True
        told = Told(*await self._targets.glimpse(fid, inode.layout), inode.data_version)
        leases = self._leases

        def keep(step: Step) -> bool:
            if still is None:
                return keep_size(leases, fid, told, step)
            if still(step) and keep_size(leases, fid, told, step):
                leases.unreported.pop(fid, None)
            return True

        if still is not None or told.is_news(inode.attr, counted_until(leases, inode.attr)):
            return bool(await self._journal.submit_own(keep))
        return True

    async def learn(self, work: Work, fid: int) -> None:
        """Ask the OSTs how long a file is, keep that, and let the request run that waits for it."""
        try:
            known = await self._keep(fid)
        except OSError as error:
            work.error = error
            self._journal.finish(work)
            return
        if known:
            if not self._is_written(fid):
                self._leases.unreported.pop(fid, None)
            work.reported = fid
        self._journal.again(work)


class Told(NamedTuple):
    """What the objects of a file said (`Targets.glimpse`), and the version of its data at the MDS before they did."""

    size: int
    allocated_bytes: int
    mtime_ns: int
    data_version: int

    def is_news(self, attr: Attr, counted_ns: int) -> bool:
        """Whether the MDT does not know it; `counted_ns`: `counted_until`."""
        return self.size > attr.size or self.allocated_bytes >> 9 > attr.blocks or self.mtime_ns > counted_ns


def counted_until(leases: LeaseTable, attr: Attr) -> int:
    """A change of a file's objects after this time is not in its committed times yet."""
    return leases.unreported.get(attr.fid, attr.ctime_ns)


def keep_size(leases: LeaseTable, fid: int, told: Told, step: Step) -> bool:
    """A file is at least as long as its objects say. Who wrote it has no lease any more, and nobody else has one. False
    if it was changed after they were asked."""
    inode = step.tx.inode(fid)
    if inode is None or inode.is_inline:
        return True
    if inode.data_version != told.data_version:
        return False
    edited = step.tx.edit(fid)
    edited.data_version += 1  # who wrote it may not have said so
    counted_ns = counted_until(leases, edited.attr)
    edited.attr = replace(with_objects(edited.attr, told, counted_ns), change=edited.attr.change + 1)
    step.leases.timed(fid, max(told.mtime_ns, counted_ns))
    return True


def with_objects(attr: Attr, told: Told, counted_ns: int) -> Attr:
    """Committed attributes, completed by what the objects say; `counted_ns`: `counted_until`."""
    news = told.mtime_ns > counted_ns
    return replace(
        attr,
        size=max(told.size, attr.size),
        blocks=max(told.allocated_bytes >> 9, attr.blocks),
        mtime_ns=told.mtime_ns if news else attr.mtime_ns,
        ctime_ns=max(told.mtime_ns, attr.ctime_ns) if news else attr.ctime_ns,
    )
