"""Sizes that only the OSTs know: what was written without a WRITE lease and not reported, or not all of it."""

from functools import partial

from msgspec.structs import replace

from nacrefs.common.wire import Attr, Mode
from nacrefs.mds.journal import Journal, Work
from nacrefs.mds.leases import LeaseTable
from nacrefs.mds.mdt import Mdt
from nacrefs.mds.step import Step
from nacrefs.mds.targets import Targets
from nacrefs.mds.tx import Tx


class Sizes:
    """Keeps `LeaseTable.unreported`, and settles it when a request needs to know."""

    def __init__(self, mdt: Mdt, journal: Journal, leases: LeaseTable, targets: Targets) -> None:
        self._mdt = mdt
        self._journal = journal
        self._leases = leases
        self._targets = targets
        self._reading = Tx(mdt, writable=False)
        for fid in mdt.opens:
            if self._is_written(fid):
                leases.unreported.add(fid)

    def _is_written(self, fid: int) -> bool:
        """Whether somebody writes the file's objects without a lease (of an inline file nobody can)."""
        inode = self._reading.inode(fid)
        if inode is None or inode.is_inline:
            return False
        return any(mode & Mode.WRITE for mode in self._mdt.opens.get(fid, {}).values())

    def written(self, tx: Tx) -> None:
        """A batch is durable: from now on these files are written without a lease."""
        for (_, fid), mode in tx.open_writes.items():
            if mode & Mode.WRITE and self._is_written(fid):
                self._leases.unreported.add(fid)

    async def learn(self, work: Work, fid: int) -> None:
        """Ask the OSTs how long a file is, keep that, and let the request run that waits for it."""
        inode = self._reading.inode(fid)
        try:
            if inode is not None and inode.layout is not None and not inode.is_inline:
                size, allocated, mtime_ns = await self._targets.glimpse(fid, inode.layout)
                if size > inode.attr.size or mtime_ns > inode.attr.mtime_ns:
                    await self._journal.submit_own(partial(keep_size, fid, size, allocated, mtime_ns))
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
