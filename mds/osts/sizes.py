"""Sizes that only the OSTs know: what was written without a WRITE lease and not reported, or not all of it."""

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple
from weakref import WeakValueDictionary

from msgspec.structs import replace

from nacrefs.common.wire import Attr, Listing, Mode, Node
from nacrefs.mds.clients.leases import LeaseTable
from nacrefs.mds.inode import Inode
from nacrefs.mds.mdt import Mdt
from nacrefs.mds.namespace.quotas import allowance, note_growth
from nacrefs.mds.osts.targets import Targets
from nacrefs.mds.transactions.journal import Journal
from nacrefs.mds.transactions.step import Step
from nacrefs.mds.transactions.tx import Tx
from nacrefs.mds.transactions.work import Work

log = logging.getLogger("nacre.mds")
SETTLED_MAX: Final = 1_000_000
"""Files that are remembered to have been looked at."""

_TOGETHER: Final = 128
"""Files of a listing that an OST is asked about in one request."""
RETURN_S: Final = 60.0
"""So long, from its own start or from the end of a file's writer, the MDS lets those wait who look at a file of which
only the OSTs know how long it is, while one of them is away; after that it tells them what it knows."""


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
        self._counting: WeakValueDictionary[int, asyncio.Lock] = WeakValueDictionary()
        """Files of which what was written through is being counted."""
        self._patient_until_s = asyncio.get_running_loop().time() + RETURN_S
        leases.has_objects = self._has_objects
        for fid in mdt.opens:
            if self._is_written(fid):
                leases.unreported[fid] = self._reading.need(fid).attr.mtime_ns

    def _has_objects(self, fid: int) -> bool:
        inode = self._reading.inode(fid)
        return inode is not None and inode.layout is not None and not inode.is_inline

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
        for fid in tx.destroyed:
            self._leases.forget(fid)
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

    async def _keep(self, fid: int, still: Callable[[Step], bool] | None = None, until_s: float | None = None) -> bool:
        """Ask the OSTs and keep what they say, unless it is not so any more by then; False if the file was changed at
        the MDS meanwhile (cut, perhaps), so that it is not known whether that is still so. Waits for OSTs that are
        away, or raises OSError after `until_s` (loop time)."""
        inode = self._reading.inode(fid)
        patient = until_s is None or asyncio.get_running_loop().time() < until_s
        async with asyncio.timeout_at(until_s if patient else None):
            told = await self._ask(inode, patient)
        if inode is None or told is None:
            return True
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

    async def complete(self, node: Node, session: int) -> Node:
        """An answer to a session about a shared file, with what the OSTs say. What was written through counts against
        the owner's quota from now on."""
        fid = node.attr.fid
        if node.quota < 0:
            told = await self._ask(self._reading.inode(fid))
            return node if told is None else self._completed(node, told)
        # One after the other: of two that are asked about at once, the one would be allowed what it has written and
        # reported, but only the OSTs' answer for the other is kept, which may have come before that.
        async with self._counting.setdefault(fid, asyncio.Lock()):
            while (told := await self._ask(self._reading.inode(fid))) is not None:
                answer = self._completed(node, told)
                quota: int | None = await self._journal.submit_own(partial(self._count, fid, told, session))
                if quota is not None:
                    return replace(answer, quota=quota)
        return node

    def _count(self, fid: int, told: "Told", session: int, step: Step) -> int | None:
        """`Node.quota` for a session that writes a file, once what its objects say is kept; None: ask them again."""
        if not keep_size(self._leases, fid, told, step):
            return None
        inode = step.tx.inode(fid)
        return -1 if inode is None else allowance(step, inode, session, True)

    async def _ask(self, inode: Inode | None, patient: bool = True) -> "Told | None":
        """What a file's objects say, waiting for OSTs that are away if `patient`; None if it has none."""
        if inode is None or inode.layout is None or inode.is_inline:
            return None
        return Told(*await self._targets.glimpse(inode.attr.fid, inode.layout, patient), inode.data_version)

    def _completed(self, node: Node, told: "Told") -> Node:
        return replace(node, attr=with_objects(node.attr, told, counted_until(self._leases, node.attr)))

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

    async def settle_doubt(self, work: Work, fid: int, look: bool) -> None:
        """Whoever wrote a file may have died together with an earlier run of the MDS, which knew of it: it is as long
        as its objects, and those of a file whose contents are in the MDT are cut. Then let the request run that waits
        for it; a `look` is answered with what is known if an OST stays away."""
        inode, leases = self._reading.inode(fid), self._leases
        known = True
        try:
            if look:
                known = await self._keep(fid, until_s=leases.unasked.get(fid, self._patient_until_s))
            elif inode is not None and inode.layout is not None and inode.is_inline:
                size, _, _ = await self._targets.glimpse(fid, inode.layout)
                if size:
                    await self._journal.submit_own(partial(forget_unless_written, leases, fid))
            else:
                known = await self._keep(fid)
        except OSError as error:
            if not look:
                work.error = error
                self._journal.finish(work)
                return
            work.reported, known = fid, False
        if known:
            self._is_settled(fid)
        self._journal.again(work)

    def in_doubt(self, listing: Listing) -> list[int]:
        """The files of a listing that came without a lease only because their objects must be looked at first, so many
        as can be asked about together."""
        leases, opens = self._leases, self._mdt.opens
        return [
            entry.attr.fid
            for entry in listing.entries
            if not entry.lease
            and leases.is_doubtful(entry.attr.fid)
            and not leases.writer(entry.attr.fid)
            and entry.attr.fid not in opens
            and leases.has_objects(entry.attr.fid)
        ]

    async def settle_listed(self, work: Work, doubtful: list[int]) -> None:
        """Ask about all these files of a listing, so that each need not be asked about by itself, and list them again.
        Nobody waits for an OST that is away: its files stay as they were."""
        try:
            for at in range(0, len(doubtful), _TOGETHER):
                await self._settle_several(doubtful[at : at + _TOGETHER])
        except OSError as error:
            log.info("sizes of listed files: %s", error.strerror)
        self._journal.again(work)

    async def _settle_several(self, fids: list[int]) -> None:
        inodes = {fid: inode for fid in fids if (inode := self._reading.inode(fid)) is not None}
        layouts = [
            (fid, inode.layout)
            for fid, inode in inodes.items()
            if inode.layout is not None and inode.layout.mirrors == 1 and not inode.is_inline
        ]
        leases = self._leases
        news: dict[int, Told] = {}
        for fid, stats in (await self._targets.glimpse_several(layouts)).items():
            inode = inodes[fid]
            told = Told(*stats, inode.data_version)
            if told.is_news(inode.attr, counted_until(leases, inode.attr)):
                news[fid] = told
            else:
                self._is_settled(fid)

        def keep(step: Step) -> list[int]:
            return [fid for fid, told in news.items() if leases.is_doubtful(fid) and keep_size(leases, fid, told, step)]

        if news:
            for fid in await self._journal.submit_own(keep):
                self._is_settled(fid)

    def _is_settled(self, fid: int) -> None:
        """A file has been looked at."""
        leases = self._leases
        if len(leases.settled) >= SETTLED_MAX:
            leases.settled.clear()
        leases.settled.add(fid)
        leases.unasked.pop(fid, None)


def forget_unless_written(leases: LeaseTable, fid: int, step: Step) -> None:
    """Forget what a dead writer has spilled; unless somebody has looked at the file before, and has it for writing by
    now: what is there may be his."""
    if not leases.writer(fid):
        forget_spilled(fid, step)


def forget_spilled(fid: int, step: Step) -> None:
    """What a writer had moved to the OSTs without a commit never became an inline file's contents. The file is busy
    until the OSTs have confirmed."""
    inode = step.tx.inode(fid)
    if inode is not None and inode.is_inline and inode.layout is not None:
        step.tx.add_intent(fid, -1, inode.layout)  # (cut to nothing they would stay when the file is removed)


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
    before = edited.attr
    edited.data_version += 1  # who wrote it may not have said so
    counted_ns = counted_until(leases, before)
    edited.attr = replace(with_objects(before, told, counted_ns), change=before.change + 1)
    note_growth(step, before, edited)
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
