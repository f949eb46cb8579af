"""Recalls: taking leases back before a step may run, and after a step has made copies stale."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from nacrefs.common.wire import Holding, Lease, Mode, RecallItem
from nacrefs.mds.clients.leases import LeaseTable
from nacrefs.mds.clients.sessions import Session, Sessions
from nacrefs.mds.namespace.files import settle_orphan
from nacrefs.mds.transactions.journal import Journal
from nacrefs.mds.transactions.step import Blocked, Step
from nacrefs.mds.transactions.tx import Tx
from nacrefs.mds.transactions.work import Work

log = logging.getLogger("nacre.mds")

Then = Callable[[], None]
RETRY_S: Final = 0.5
"""How soon a registration that SQL refused is tried again."""


class _Asked:
    """A recall before a step, to one session for one fid, and what happens when it has been answered."""

    __slots__ = ("keep", "spill", "then")

    def __init__(self, keep: Lease, spill: bool) -> None:
        self.keep = keep
        self.spill = spill
        self.then: list[Then] = []


class _Settlement:
    """What an answer to a recall brings about in the database."""

    __slots__ = ("applied", "holder", "opens", "orphans")

    def __init__(self, holder: int, opens: Sequence[Holding], orphans: Sequence[int]) -> None:
        self.holder = holder
        self.opens = opens
        self.orphans = orphans
        self.applied = False
        """The leases that the opens were under have ended."""


def _nothing() -> None:
    """Nobody waits."""


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
        retry = partial(self.journal.again, work)
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
        item = RecallItem(fid, blocked.keep, (), blocked.spill)
        recall = partial(self._recall, holder, (item,), partial(self._unblock, fid, holder, asked))
        session = self._sessions.by_id.get(holder)
        if session is not None and not session.gone and session.opening(fid):
            # The lease comes with an answer that has not left. It is to be of use to its holder first: several writers
            # of one small file would take it from each other for ever.
            session.deferred.append((fid, recall))
        else:
            recall()

    def _unblock(self, fid: int, holder: int, asked: _Asked) -> None:
        if self._asked.get((fid, holder)) is asked:
            del self._asked[fid, holder]
        for then in asked.then:
            then()

    # -------------------------------------------------------------------------------------------------- after the step

    def after_batch(self, works: list[Work]) -> None:
        """Recall the copies that the steps of a batch have made stale, one message to each session."""
        items: dict[int, dict[int, set[bytes] | None]] = {}
        waiting: dict[int, list[Work]] = {}
        for work in works:
            requester = work.session_id
            for fid, name, told in work.changes or ():
                holders = self._leases.other_holders(fid, requester)
                holders += [session for session in told if session != requester and session not in holders]
                for holder in holders:
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
        """Apply an answer. Where an open loses the lease that covered it, the lease ends in the same step that
        registers the open: in between, the file would seem to be used by nobody."""
        leases, session = self._leases, self._sessions.by_id.get(holder)
        if session is not None and session.gone:
            session = None
        opens: list[Holding] = []
        for index, item in enumerate(items):
            fid = item.fid
            holding = holdings[index] if index < len(holdings) else Holding(fid, Lease.NONE, Mode.CLOSED)
            held = min(leases.held(fid, holder), holding.lease, item.lease)
            mode = holding.mode
            if session is not None and session.in_flight:
                mode |= session.opening(fid)
                if item.names and not held:
                    session.overtake(fid)  # it will not be told any more what changes there
            needed = Lease.WRITE if mode & Mode.WRITE else Lease.READ
            if session is not None and mode and (held < needed or fid in self._orphans):
                opens.append(Holding(fid, held, mode))
            else:
                self._lower(holder, fid, held)
        orphans = [item.fid for item in items if item.fid in self._orphans]
        if opens or orphans:
            self._settle_opens(_Settlement(holder, opens, orphans), then)
        else:
            then()
        self.journal.retry()

    def _lower(self, holder: int, fid: int, lease: Lease) -> None:
        """A recall has been answered: the session holds no more than this."""
        leases = self._leases
        count = leases.recalling.get((fid, holder), 0) - 1
        if count > 0:
            leases.recalling[fid, holder] = count
        else:
            leases.recalling.pop((fid, holder), None)
        leases.set(fid, holder, min(lease, leases.held(fid, holder)))

    def _settle_opens(self, settlement: "_Settlement", then: Then) -> None:
        """Register opens and settle orphans, then go on; again and again until it is durable."""

        def ended(done: "asyncio.Future[None]") -> None:
            error = None if done.cancelled() else done.exception()
            if error is None:
                then()
                self.journal.retry()
            elif not self.journal.closed:
                log.error("opens of session %d could not be registered yet: %s", settlement.holder, error)
                asyncio.get_running_loop().call_later(RETRY_S, self._settle_opens, settlement, then)

        self.journal.submit_own(partial(self._register, settlement)).add_done_callback(ended)

    def _register(self, settlement: "_Settlement", step: Step) -> None:
        holder, opens = settlement.holder, settlement.opens
        if not settlement.applied:
            settlement.applied = True
            for holding in opens:
                self._lower(holder, holding.fid, holding.lease)
        self.register_opens(holder, opens, step)
        for fid in settlement.orphans:
            settle_orphan(step, fid)

    def register_opens(self, holder: int, opens: Sequence[Holding], step: Step) -> None:
        """Register how a session has files open, unless it has ended meanwhile."""
        session = self._sessions.by_id.get(holder)
        if session is not None and not session.gone:
            for holding in opens:
                if step.tx.inode(holding.fid) is not None:
                    step.tx.set_open(holder, holding.fid, holding.mode)

    # ---------------------------------------------------------------------------------------------------- without
    # recall

    def given_back(self, session: Session, holdings: Sequence[Holding]) -> "asyncio.Future[None] | None":
        """Leases given back unasked; a future if opens are to be registered first."""
        leases = self._leases
        opens: list[Holding] = []
        for holding in holdings:
            fid, mode = holding.fid, holding.mode | session.opening(holding.fid)
            lease = min(leases.held(fid, session.id), holding.lease)
            needed = Lease.WRITE if mode & Mode.WRITE else Lease.READ
            if mode and lease < needed:
                opens.append(Holding(fid, lease, mode))
            else:
                leases.set(fid, session.id, lease)
                self.ended(fid)
            if not lease:
                session.overtake(fid)
        if not opens:
            return None

        def step_of(step: Step) -> None:
            for holding in opens:
                leases.set(holding.fid, session.id, min(holding.lease, leases.held(holding.fid, session.id)))
            self.register_opens(session.id, opens, step)

        return self.journal.submit_own(step_of)

    def orphan(self, fid: int) -> None:
        """A file without a name that an earlier run has left."""
        self._orphans.add(fid)
        self.ended(fid)

    def ended(self, fid: int) -> None:
        """A lease on this fid, or an open, has ended without a recall: that may be the end of a file without a name."""
        if fid in self._orphans:
            self._settle_opens(_Settlement(0, (), (fid,)), _nothing)

    def session_ended(self) -> None:
        """So have all its leases: that may be the end of files without a name."""
        if self._orphans:
            self._settle_opens(_Settlement(0, (), tuple(self._orphans)), _nothing)

    def written(self, tx: Tx) -> None:
        """A batch is durable: files that it left without a name are settled once nobody may have them open."""
        self._orphans.difference_update(tx.touched)
        for fid in tx.touched:
            inode = tx.inodes.get(fid)
            if inode is not None and inode.is_regular and not inode.attr.nlink:
                self._orphans.add(fid)
                if not self._leases.holders(fid) and not tx.opens(fid):
                    self._settle_opens(_Settlement(0, (), (fid,)), _nothing)
