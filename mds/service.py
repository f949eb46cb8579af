"""The MDS at work: what it does with each request, and what it does by itself.

Requests about the namespace become `Work` for the journal (`mds/transactions/journal.py`); what they mean stands in
`mds/namespace`. Here are eviction and the exactly-once rule; other requests go to desks (`handlers`).
"""

import asyncio
import errno
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final

import msgspec

from nacrefs.common import wire
from nacrefs.common.auth import sign_capability
from nacrefs.common.authority import allowed
from nacrefs.common.clock import Clock
from nacrefs.common.fid import make_fid
from nacrefs.common.handshake import Greeted
from nacrefs.common.observe import Meter
from nacrefs.common.rpc import LATER, Call, Handler, Peer, Service, check_service
from nacrefs.common.wire import Capability, Entry, Node, Right, Role
from nacrefs.mds.access.exports import Limits
from nacrefs.mds.access.limited import LimitedService, served_plainly
from nacrefs.mds.access.quotas import QUOTA_REQUESTS, QuotaDesk
from nacrefs.mds.clients.appends import APPEND_REQUESTS, AppendDesk
from nacrefs.mds.clients.desk import SESSION_REQUESTS, SessionDesk
from nacrefs.mds.clients.eviction import Evictor
from nacrefs.mds.clients.grace import Grace
from nacrefs.mds.clients.leases import LeaseTable, LeaseView
from nacrefs.mds.clients.locking import Locking, locks_report
from nacrefs.mds.clients.recalls import Recalls
from nacrefs.mds.clients.sessions import Session, Sessions
from nacrefs.mds.clients.uses import Uses
from nacrefs.mds.fsck.desk import FSCK_REQUESTS, FsckDesk
from nacrefs.mds.hsm.coordinator import Coordinator
from nacrefs.mds.hsm.desk import HSM_REQUESTS, HsmDesk
from nacrefs.mds.lifecycle.desk import LIFECYCLE_REQUESTS, LifecycleDesk
from nacrefs.mds.lifecycle.engine import Lifecycle
from nacrefs.mds.links.desk import LINK_REQUESTS, LinkDesk
from nacrefs.mds.links.service import Links
from nacrefs.mds.mdt import Mdt
from nacrefs.mds.namespace.files import append
from nacrefs.mds.namespace.nodes import MIRRORED
from nacrefs.mds.namespace.operations import READS, WRITES
from nacrefs.mds.once import Once
from nacrefs.mds.osts.desk import OST_REQUESTS, OstDesk
from nacrefs.mds.osts.mirrors import Mirrors
from nacrefs.mds.osts.reaper import Reaper
from nacrefs.mds.osts.resync import Resyncer
from nacrefs.mds.osts.sizes import Sizes
from nacrefs.mds.osts.targets import Targets
from nacrefs.mds.records import Intent
from nacrefs.mds.report import queue_report, status_report
from nacrefs.mds.settings import Settings
from nacrefs.mds.transactions.journal import Journal
from nacrefs.mds.transactions.late import mode_of, open_again, unremembered
from nacrefs.mds.transactions.step import Blocked, Doubtful, Released, Restoring, Step, Unreported
from nacrefs.mds.transactions.tx import Tx
from nacrefs.mds.transactions.work import Work
from nacrefs.mds.warmup.desk import WARMUP_REQUESTS, WarmupDesk
from nacrefs.mds.warmup.jobs import Warmups

log = logging.getLogger("nacre.mds")

READ_FIRST: Final = frozenset({wire.Open})
"""Writing operations that usually need not write, so they are tried as reads."""
GLIMPSED: Final = frozenset({wire.GetAttr, wire.Lookup, wire.Open, wire.SetAttr, wire.Create, wire.Link, wire.Append})
"""Requests whose answer about a shared file must ask the OSTs for its size."""
RETRY_S: Final = 0.5
FENCED_MAX: Final = 4096
"""Sessions of earlier runs that OSTs are told to refuse."""
ADDRESSED: Final[tuple[type[wire.Request[Any]], ...]] = (
    wire.Inspect, wire.As, wire.SetLock, wire.GetLock, wire.CancelLock,
    *SESSION_REQUESTS, *OST_REQUESTS, *APPEND_REQUESTS, *QUOTA_REQUESTS, *HSM_REQUESTS, *LINK_REQUESTS,
    *WARMUP_REQUESTS, *FSCK_REQUESTS, *LIFECYCLE_REQUESTS, *READS, *WRITES,
)  # fmt: skip
"""All requests that an MDS answers."""


class Mds:
    """One MDT being served."""

    def __init__(self, mdt: Mdt, settings: Settings, capability_key: bytes, clock: Clock, meter: Meter) -> None:
        self.mdt = mdt
        self.settings = settings
        self.meter = meter
        self.clock = clock
        self._began_s = clock.now_ns() / 1e9 - clock.monotonic_s()
        self._key = capability_key
        self.leases = LeaseTable(settings.leases_per_session)
        self.sessions = Sessions(clock, settings.term_s)
        self.sessions.evict = self.evict
        self.grace = Grace(self.sessions, clock, self._reclaimed)
        self.locking = Locking(self.sessions, clock, lambda: self.grace.running)
        self.sessions.removed = self._session_removed
        self.targets = Targets(clock, settings.heartbeat_s, settings.reserve_bytes)
        self.targets.load(mdt.osts(), mdt.pools())
        self.recalls = Recalls(self.leases, self.sessions)
        self.on_lost: Callable[[OSError], None] = lambda error: None
        """Told, once, that the MDT cannot be served any more."""
        self.journal = self.recalls.journal = Journal(
            mdt, self.leases, self._step, self.recalls.after_batch, self._park, self._written, self._lost
        )
        self.reaper = Reaper(mdt, self.journal, self.targets)
        self.mirrors = Mirrors(mdt, self.journal, self.leases, self.targets)
        self.resyncer = Resyncer(mdt, self.journal, self.targets, self.mirrors, self._server_capability)
        self.mirrors.changed = self.resyncer.wake
        self.targets.on_up = self._osts_up
        self._sizes = Sizes(mdt, self.journal, self.leases, self.targets)
        self._evictor = Evictor(mdt, self.journal, self.leases, self.sessions, self.targets, self.mirrors, clock)
        self.once = Once(self)
        self.quotas = QuotaDesk(self)
        self.appends = AppendDesk(self, append)
        self._fsck = FsckDesk(self)
        self.hsm = Coordinator(self)
        self.limits: dict[int, Limits] = {}
        """What limited sessions may do, by session."""
        self._hsm_desk = HsmDesk(self)
        self.links = Links(self)
        self._link_desk = LinkDesk(self, self._hsm_desk)
        self.lifecycle = Lifecycle(self)
        self.uses = Uses(self.journal, settings.access_s)
        self._lifecycle_desk = LifecycleDesk(self)
        self.warmups = Warmups(self)
        self._warmup_desk = WarmupDesk(self, self.warmups)
        self._evictor.on_evicted = self.session_ended
        self._reading = Tx(mdt, writable=False)
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._services: dict[Role, Service] = {}
        self._limited: Service = {}

    # ------------------------------------------------------------------------------------------------------- life cycle

    def start(self) -> None:
        """Take up what an earlier run has left: sessions (with a grace term), truncations, objects to destroy."""
        for record in self.mdt.sessions():
            self.sessions.add(record, reclaimed=False)
        newest = self.mdt.next_session
        ended = set(range(max(1, newest - FENCED_MAX), newest)) - self.sessions.by_id.keys()
        self.targets.fence_ended(ended)  # some of them may have been evicted
        if self.sessions.by_id:
            self.grace.begin(self.settings.term_s)
        else:
            self._settle_orphans()
        for intent in list(self.mdt.intents.values()):
            self.leases.begin_truncation(intent.fid)
            self.spawn(self._carry_out(intent, None))
        self.reaper.start()
        self.hsm.start()
        self.links.start()
        self.lifecycle.start()
        self.warmups.start()
        self.resyncer.start()
        self.spawn(self._watch())

    async def stop(self) -> None:
        """Commit what is queued and end."""
        self._stopping = True
        await self._fsck.stop()
        await self.warmups.stop()
        await self.links.stop()
        await self.lifecycle.stop()
        await self.uses.stop()
        await self.hsm.stop()
        await self.reaper.stop()
        await self.resyncer.stop()
        await self._end_tasks()
        await self.journal.stop()
        await self._end_tasks()  # the last commit has started some

    async def _end_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run something in the background; `stop` ends it."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a background task of the MDS failed", exc_info=task.exception())

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(min(self.settings.term_s / 6, self.settings.heartbeat_s))
            self.watch_once()

    def watch_once(self) -> None:
        """`tick`, which must happen again and again, whatever happens in it."""
        try:
            self.tick()
        except Exception:
            log.exception("looking after sessions and OSTs failed")

    def tick(self) -> None:
        """Time has passed: evict sessions whose term is over, notice OSTs that have fallen silent, and a new owner."""
        self.sessions.put_off(self._is_stuck)
        for session, reason in self.sessions.overdue():
            self.evict(session, reason)
        for session in self.grace.missed():
            self.evict(session, "did not reclaim in the grace term")
        self._evictor.tick()
        self.locking.tick()
        self._fsck.tick()
        self.targets.drop_silent()
        self.targets.refresh()
        self.journal.check_owner()
        self.lifecycle.tick()
        if self.mdt.mirror_writers and not self.grace.running:
            self.spawn(self.mirrors.forget_writers())

    def _is_stuck(self, fid: int) -> bool:
        """Part of a file can be written by nobody at present: the OSTs of all its copies are away."""
        inode = self._reading.inode(fid)
        layout = inode.layout if inode is not None else None
        return layout is not None and any(
            all(self.targets.serving(layout.osts[number]) is None for number in layout.objects_of(stripe))
            for stripe in range(layout.stripe_count)
        )

    def _osts_up(self) -> None:
        self.reaper.ost_is_up()
        self.resyncer.wake()

    def _lost(self, error: OSError) -> None:
        self._stopping = True
        self.on_lost(error)

    def _step(self, tx: Tx, view: LeaseView, session: int) -> Step:
        settings = self.settings
        now_ns = self.clock.now_ns()
        step = Step(tx, view, self.targets, self._capability, session, now_ns, settings.layout)
        if self.limits and session in self.limits:
            self.limits[session].attach(step)
        return step

    @staticmethod
    def is_glimpsed(kind: type[wire.Request[Any]]) -> bool:
        """Whether the OSTs must be asked before such a request is answered about a shared file."""
        return kind in GLIMPSED

    @staticmethod
    def is_read_first(kind: type[wire.Request[Any]]) -> bool:
        """Whether such a request, which may write, is tried as one that does not."""
        return kind in READ_FIRST

    def glance(self, session: Session) -> Step:
        """What a request sees that is looked at before it is served: committed state, and the requester's leases."""
        return self._step(self.journal.reading, LeaseView(self.leases, session.id, self.mdt.opens), session.id)

    def capability(self, fid: int, generation: int, session: int, rights: Right) -> Capability:
        """The right to do I/O on a file."""
        return self._capability(fid, generation, session, rights)

    def now_s(self) -> float:
        """The time by which capabilities expire, seconds since 1970: the clock's when this run began, and on from there
        however that is set meanwhile."""
        return self._began_s + self.clock.monotonic_s()

    def _capability(self, fid: int, generation: int, session: int, rights: Right) -> Capability:
        expires_s = int(self.now_s()) + self.settings.capability_s
        known = self.sessions.by_id.get(session)
        holder = "" if known is None else known.principal
        return sign_capability(self._key, fid, generation, session, rights, expires_s, holder)

    def _server_capability(self, fid: int, generation: int) -> Capability:
        """What lets one OST read a copy from another."""
        return self._capability(fid, generation, 0, MIRRORED)

    # -------------------------------------------------------------------------------------------------------- requests

    def service(self) -> Service:
        """The table of all requests."""
        table: dict[type[wire.Request[Any]], Handler] = {
            wire.Inspect: self._inspect,
            wire.As: served_plainly,
            **SessionDesk(self).handlers(),
            **OstDesk(self).handlers(),
            **self.locking.handlers(),
            **self.quotas.handlers(),
            **self.appends.handlers(),
            **self._fsck.handlers(),
        }
        for kind, operation in READS.items():
            table[kind] = partial(self.read, operation, kind in GLIMPSED)
        for kind, operation in WRITES.items():
            table[kind] = partial(self.mutate, operation, kind in READ_FIRST, kind in GLIMPSED)
        table.update(self._hsm_desk.handlers())
        table.update(self._link_desk.handlers())
        table.update(self._lifecycle_desk.handlers())
        table.update(self._warmup_desk.handlers())
        check_service(table, ADDRESSED)
        return table

    def service_of(self, who: Greeted) -> Service:
        """The table as a peer has it that has shown this key."""
        if not self._services:
            plain = self.service()
            self._services = {role: allowed(plain, role) for role in Role}
            self._limited = LimitedService(self, self._services[Role.CLIENT]).table()
        return self._limited if who.key.export.limits else self._services[who.role]

    def read(self, operation: Callable[[Step, Any], Any], glimpsed: bool, request: Any, call: Call) -> Any:
        """Serve a request that only reads."""
        session = self.sessions.heard(call.peer)
        session.oldest = call.oldest
        work = Work(operation, request, session, call, True)
        if glimpsed:
            work.after = self._glimpse
        elif self.leases.doubts and type(request) is wire.Readdir and request.lease:
            work.after = self._look_at_listed
        if not self.grace.keeps(work):
            self.journal.read(work)
        return LATER

    def mutate(
        self, operation: Callable[[Step, Any], Any], read_first: bool, glimpsed: bool, request: Any, call: Call
    ) -> Any:
        """Serve a request that must happen once."""
        session = self.sessions.heard(call.peer)
        session.oldest = call.oldest
        if call.resent and self._answer_again(session, request, call):
            return LATER
        self._accept(Work(operation, request, session, call, read_first), glimpsed)
        return LATER

    def _accept(self, work: Work, glimpsed: bool) -> None:
        """A request that must happen once is on its way."""
        assert work.session is not None
        assert work.call is not None
        if glimpsed:
            work.after = self._glimpse
        work.session.in_flight[work.call.xid] = work
        if not self.grace.keeps(work):
            self.journal.again(work)

    def accept_once(
        self,
        operation: Callable[[Step, Any], Any],
        request: Any,
        call: Call,
        after: Callable[[Work], bool] | None = None,
        reads: bool = False,
    ) -> None:
        """A request whose answer is not stored, since it can be worked out again; asked again while it is in service,
        it is the same one."""
        session = self.sessions.heard(call.peer)
        session.oldest = call.oldest
        before = session.in_flight.get(call.xid)
        if before is not None:
            before.call = call
            return
        work = Work(operation, request, session, call, reads)
        work.again = True
        work.after = after
        self._accept(work, type(request) in GLIMPSED)

    def _answer_again(self, session: Session, request: Any, call: Call) -> bool:
        """A request comes a second time: give the answer of the first, or see to it that it will be given.

        The leases of the first answer may be gone, and with them what covered an open; so an open is done again.
        """
        work = session.in_flight.get(call.xid)
        if work is not None:
            work.call = call
            return True
        reply = self.stored_answer(session, call)
        if reply is None:
            return False
        node = reply.node if isinstance(reply, Entry) else reply
        if isinstance(node, Node) and mode_of(request):
            work = Work(partial(open_again, reply, node.attr.fid), request, session, call, True)
            work.again = True
            self._accept(work, True)
        elif type(request) is wire.SetAttr and request.valid & wire.Set.SIZE:
            work = Work(partial(_cut_again, reply), request, session, call, True)
            work.again = True
            self._accept(work, True)
        elif self.grace.running:  # who cached what it has changed may not have been told: not before all are back
            work = Work(lambda step, request: unremembered(reply), request, session, call, True)
            work.again = True
            self._accept(work, False)
        else:
            call.reply(unremembered(reply))
        return True

    def stored_answer(self, session: Session, call: Call) -> wire.Message | None:
        """The answer that a request had that is asked again, None if it had none. OSError (EIO) if nobody knows."""
        if call.xid < session.first_xid:
            raise OSError(errno.EIO, "the session in which this was asked is over: it may have happened or not")
        body = self._reading.reply(session.id, call.xid)
        if body is None:
            return None
        self.meter.add("replies_again")
        return call.decode_reply(body)

    def _look_at_listed(self, work: Work) -> bool:
        """If a listing shows files whose objects must be looked at, have that done for all of them at once; whether it
        is under way."""
        assert isinstance(work.reply, wire.Listing)
        doubtful = self._sizes.in_doubt(work.reply)
        if doubtful:
            self.spawn(self._sizes.settle_listed(work, doubtful))
        return bool(doubtful)

    def _glimpse(self, work: Work) -> bool:
        """If an answer is about a shared file, complete it with what the OSTs say; whether that is under way."""
        reply = work.reply
        node = reply.node if isinstance(reply, Entry) else reply
        if not isinstance(node, Node) or not node.shared:
            return False
        self.spawn(self._complete(work, node))
        return True

    async def _complete(self, work: Work, node: Node) -> None:
        try:
            node = await self._sizes.complete(node, work.session_id)
        except OSError as error:
            work.error = error
        else:
            work.reply = msgspec.structs.replace(work.reply, node=node) if isinstance(work.reply, Entry) else node
        self.journal.finish(work)

    def _park(self, work: Work, blocked: Blocked) -> None:
        """A request cannot run yet: see to it that it will."""
        if isinstance(blocked, Released | Restoring):
            self.hsm.park(work, blocked.fid, isinstance(blocked, Restoring))
        elif isinstance(blocked, Unreported):
            self.spawn(self._sizes.learn(work, blocked.fid))
        elif isinstance(blocked, Doubtful):
            self.spawn(self._sizes.settle_doubt(work, blocked.fid, blocked.look))
        else:
            self.recalls.park(work, blocked)

    def _written(self, tx: Tx, works: list[Work]) -> None:
        """A batch is durable: start what follows from it."""
        for fid in self._sizes.written(tx):
            self.spawn(self._sizes.settle(fid))
        if tx.mirrors:
            for fid in {fid for fid, _, _ in tx.mirrors}:
                self.spawn(self.mirrors.announce(fid))
        self.recalls.written(tx)
        if tx.new_destructions:
            self.reaper.add(tx.new_destructions)
        if tx.side:
            self.hsm.written(tx)
        if tx.new_intents:
            for work in works:
                for intent in work.intents or ():
                    work.outstanding += 1
                    self.spawn(self._carry_out(intent, work))

    async def _carry_out(self, intent: Intent, work: Work | None) -> None:
        """Cut a file's objects; its fid is busy until that is done everywhere, and the MDT knows. (If it did not, it
        would cut them again after a restart, and with them what was written since.)"""
        if intent.size < 0:
            await self.targets.destroy_durably(intent.fid, intent.layout)
        elif intent.layout.mirrors > 1:
            await self.mirrors.truncate(intent.fid, intent.size)
        else:
            await self.targets.truncate(intent.fid, intent.layout, intent.size)
        while True:
            try:
                await self.journal.submit_own(lambda step: step.tx.finish_intent(intent))
                break
            except OSError as error:
                if self.journal.closed:
                    return
                log.warning("truncation of %#x: %s", intent.fid, error.strerror)
                await asyncio.sleep(RETRY_S)
        self.leases.end_truncation(intent.fid)
        if work is not None:
            self.journal.settle(work)
        self.journal.retry()

    # -------------------------------------------------------------------------------------------------------- sessions

    def _session_removed(self, session: Session) -> None:
        self.limits.pop(session.id, None)
        self.locking.session_ended(session)

    def session_ended(self) -> None:
        """A session is over: what waited for it goes on."""
        self.recalls.session_ended()
        self.journal.retry()
        self.grace.progress()

    def change_key(self, key: bytes) -> None:
        """Sign capabilities with this key from now on."""
        self._key = key

    def revoke(self, keys: set[str]) -> None:
        """These keys are not good any more: whoever has shown one must go."""
        for session in list(self.sessions.by_id.values()):
            if session.key in keys:
                self.evict(session, f"has a key, {session.key!r}, that was revoked or changed")

    def evict(self, session: Session, reason: str, knows: bool = False) -> None:
        """Give up a session. `knows`: its client has dropped it by itself."""
        if session.gone or self._stopping:
            return
        session.gone = True
        if self.grace.running and not session.reclaimed:  # nobody remembers which files it had for itself
            self.leases.doubtful = make_fid(self.mdt.number, self.mdt.next_counter)
        log.warning("evicting session %d (%s on %s): it %s", session.id, session.client, session.host, reason)
        self.meter.add("evictions")
        self.spawn(self._evictor.evict(session, reason, knows))

    def _reclaimed(self, waiting: list[Work]) -> None:
        """The grace term is over."""
        self._settle_orphans()
        for work in waiting:
            self.journal.again(work)
        self.locking.go_on()
        self.hsm.pump()

    def _settle_orphans(self) -> None:
        for fid in self.mdt.orphans():
            self.recalls.orphan(fid)

    # -------------------------------------------------------------------------------------------------- OSTs and admin

    def _inspect(self, request: wire.Inspect, call: Call) -> wire.Inspection:
        if request.what == "status":
            return wire.Inspection(msgspec.json.encode(status_report(self)))
        if request.what == "stats":
            return wire.Inspection(msgspec.json.encode(self.meter.report()))
        if request.what == "locks":
            return wire.Inspection(msgspec.json.encode(locks_report(self)))
        if request.what == "hsm":
            return wire.Inspection(msgspec.json.encode(queue_report(self)))
        raise OSError(errno.EINVAL, f"there is no report {request.what[:80]!r}: ask for status, stats, locks or hsm")

    def gone(self, peer: Peer) -> None:
        """A connection is gone."""
        if peer.role is Role.SERVER:
            self.targets.lost(peer)
        self.sessions.disconnect(peer)


def _cut_again(reply: Any, step: Step, request: wire.SetAttr) -> Any:
    """The answer to a truncation that has happened, once the objects have been cut too."""
    step.leases.truth(request.fid)
    return unremembered(reply)
