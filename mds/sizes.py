"""Sizes that only the OSTs know: what was written without a WRITE lease and not reported, or not all of it."""

import logging
from collections.abc import Callable

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
                leases.unreported.add(fid)

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
                if self._is_written(fid):
                    unreported.add(fid)
            elif fid in unreported and fid not in ended and not self._is_written(fid):
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

    async def _keep(self, fid: int, still: Callable[[Step], bool] | None = None) -> None:
        """Ask the OSTs and keep what they say, unless it is not so any more by then."""
        inode = self._reading.inode(fid)
        if inode is None or inode.layout is None or inode.is_inline:
            return
        size, allocated, mtime_ns = await self._targets.glimpse(fid, inode.layout)
        attr = inode.attr

        def keep(step: Step) -> None:
            if still is None:
                keep_size(fid, size, allocated, mtime_ns, step)
            elif still(step):
                keep_size(fid, size, allocated, mtime_ns, step)
                self._leases.unreported.discard(fid)

        if still is not None or size > attr.size or mtime_ns > attr.mtime_ns or allocated >> 9 > attr.blocks:
            await self._journal.submit_own(keep)

    async def learn(self, work: Work, fid: int) -> None:
        """Ask the OSTs how long a file is, keep that, and let the request run that waits for it."""
        try:
            await self._keep(fid)
        except OSError as error:
            work.error = error
            self._journal.finish(work)
            return
        if not self._is_written(fid):
            self._leases.unreported.discard(fid)
        work.reported = fid
        self._journal.again(work)


def keep_size(fid: int, size: int, allocated: int, mtime_ns: int, step: Step) -> None:
    """A file is at least as long as its objects say. Who wrote it has no lease any more, and nobody else has one."""
    inode = step.tx.inode(fid)
    if inode is None or inode.is_inline:
        return
    edited = step.tx.edit(fid)
    edited.data_version += 1  # who wrote it may not have said so
    attr = with_objects(edited.attr, size, allocated, mtime_ns)
    edited.attr = replace(attr, change=attr.change + 1)


def with_objects(attr: Attr, size: int, allocated: int, mtime_ns: int) -> Attr:
    """Committed attributes, completed by what the objects say (`Targets.glimpse`)."""
    return replace(
        attr,
        size=max(size, attr.size),
        blocks=max(allocated >> 9, attr.blocks),
        mtime_ns=max(mtime_ns, attr.mtime_ns),
    )
