"""Recalls: taking leases back before a step may run, and after a step has made copies stale."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial

from nacrefs.common.wire import Holding, Lease, Mode, RecallItem
from nacrefs.mds.journal import Journal, Work
from nacrefs.mds.leases import LeaseTable
from nacrefs.mds.namespace.files import settle_orphan
from nacrefs.mds.sessions import Sessions
from nacrefs.mds.step import Blocked, Step
from nacrefs.mds.tx import Tx

log = logging.getLogger("nacre.mds")

Then = Callable[[], None]


class _Asked:
    """A recall before a step, to one session for one fid, and what happens when it has been answered."""

    __slots__ = ("keep", "spill", "then")

    def __init__(self, keep: Lease, spill: bool) -> None:
        self.keep = keep
        self.spill = spill
        self.then: list[Then] = []


class Recalls:
    """Sends recalls, applies their answers to the lease table, and lets the requests go on that waited."""

    def __init__(self, leases: LeaseTable, sessions: Sessions) -> None:
        self.journal: Journal
        self._leases = leases
        self._sessions = sessions
        self._asked: dict[tuple[int, int], _Asked] = {}
        self._orphans: set[int] = set()

    # ------------------------------------------------------------------------------------------------- before the step

    def park(self, work: Work, blocked: Blocked) -> None:
        """Recall what stands in a request's way and run it again."""
        fid = blocked.fid
        self._leases.claim(fid, work.session_id)
        work.claimed = fid
        holders = [
            holder
            for holder, lease in self._leases.holders(fid).items()
            if holder != work.session_id and lease > blocked.keep
        ]
        left = len(holders)
        retry = partial(self.journal.read, work)
        if not left:
            asyncio.get_running_loop().call_soon(retry)
            return

        def one_answered() -> None:
            nonlocal left
            left -= 1
            if not left:
                retry()

        for holder in holders:
            self._ask(fid, holder, blocked, one_answered)

    def _ask(self, fid: int, holder: int, blocked: Blocked, then: Then) -> None:
        asked = self._asked.get((fid, holder))
        if asked is not None and asked.keep <= blocked.keep and asked.spill >= blocked.spill:
            asked.then.append(then)
            return
        asked = self._asked[fid, holder] = _Asked(blocked.keep, blocked.spill)
        asked.then.append(then)
        self._recall(holder, (RecallItem(fid, blocked.keep, (), blocked.spill),), partial(self._unblock, holder, asked))

    def _unblock(self, holder: int, asked: _Asked) -> None:
        for key in [key for key, value in self._asked.items() if value is asked]:
            del self._asked[key]
        for then in asked.then:
            then()

    # -------------------------------------------------------------------------------------------------- after the step

    def after_batch(self, works: list[Work]) -> None:
        """Recall the copies that the steps of a batch have made stale, one message to each session."""
        items: dict[int, dict[int, set[bytes] | None]] = {}
        waiting: dict[int, list[Work]] = {}
        for work in works:
            requester = work.session_id
            for fid, name in work.changes:
                for holder in self._leases.other_holders(fid, requester):
                    stale = items.setdefault(holder, {})
                    names = stale.setdefault(fid, set())
                    if name is None:
                        stale[fid] = None
                    elif names is not None:
                        names.add(name)
                    works_of = waiting.setdefault(holder, [])
                    if not works_of or works_of[-1] is not work:
                        works_of.append(work)
                        work.outstanding += 1
        for holder, stale in items.items():
            recall = tuple(
                RecallItem(fid, Lease.NONE) if names is None else RecallItem(fid, Lease.READ, tuple(sorted(names)))
                for fid, names in stale.items()
            )
            self._recall(holder, recall, partial(self._settle, waiting[holder]))

    def _settle(self, works: list[Work]) -> None:
        for work in works:
            self.journal.settle(work)

    # --------------------------------------------------------------------------------------------------------- answers

    def _recall(self, holder: int, items: tuple[RecallItem, ...], then: Then) -> None:
        session = self._sessions.by_id.get(holder)
        recalling = self._leases.recalling
        for item in items:
            recalling[item.fid, holder] = recalling.get((item.fid, holder), 0) + 1
        answered = partial(self._answered, holder, items, then)
        if session is None:
            answered(())
        else:
            self._sessions.recall(session, items, answered)

    def _answered(self, holder: int, items: tuple[RecallItem, ...], then: Then, holdings: Sequence[Holding]) -> None:
        """Apply an answer; opens that no lease covers any more are registered before anybody goes on."""
        leases = self._leases
        opens: list[Holding] = []
        for index, item in enumerate(items):
            key = (item.fid, holder)
            count = leases.recalling.get(key, 0) - 1
            if count > 0:
                leases.recalling[key] = count
            else:
                leases.recalling.pop(key, None)
            holding = holdings[index] if index < len(holdings) else Holding(item.fid, Lease.NONE, Mode.CLOSED)
            held = min(leases.held(item.fid, holder), holding.lease, item.lease)
            leases.set(item.fid, holder, held)
            needed = Lease.WRITE if holding.mode & Mode.WRITE else Lease.READ
            if holding.mode and (held < needed or item.fid in self._orphans):
                opens.append(Holding(item.fid, held, holding.mode))
        orphans = [item.fid for item in items if item.fid in self._orphans]
        if not opens and not orphans:
            then()
            return
        future = self.journal.submit_own(partial(_register, holder, opens, orphans))
        

        def registered(done: "asyncio.Future[None]") -> None:
            if not done.cancelled() and done.exception() is not None:
                log.error("opens of session %d could not be registered: %s", holder, done.exception())
            then()

        future.add_done_callback(registered)

    def orphan(self, fid: int) -> None:
        """A file without a name that an earlier run has left."""
        self._orphans.add(fid)
        self.ended(fid)

    def ended(self, fid: int) -> None:
        """A lease on this fid, or an open, has ended without a recall: that may be the end of a file without a name."""
        if fid in self._orphans:
            self.journal.submit_own(partial(_register, 0, (), (fid,)))

    def written(self, tx: Tx) -> None:
        """A batch is durable: files that it left without a name are settled once nobody may have them open."""
        self._orphans.difference_update(tx.touched)
        for fid in tx.touched:
            inode = tx.inodes.get(fid)
            if inode is not None and inode.is_regular and not inode.attr.nlink:
                self._orphans.add(fid)
                if not self._leases.holders(fid) and not tx.opens(fid):
                    self.journal.submit_own(partial(_register, 0, (), (fid,)))


def _register(session: int, opens: Sequence[Holding], orphans: Sequence[int], step: Step) -> None:
    """Register opens that came to light by a recall, and destroy files without a name that nobody has open."""
    for holding in opens:
        if step.tx.inode(holding.fid) is not None:
            step.tx.set_open(session, holding.fid, holding.mode)
    for fid in orphans:
        settle_orphan(step, fid)
