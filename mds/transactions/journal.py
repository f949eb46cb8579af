"""Merged transactions: requests that arrive together are executed in order and committed as one.

    queue → one batch: each request's step against one `Tx` → flush → recalls go out → commit (another thread)
          → publish → replies, each as soon as its recalls have been answered too

While a commit is in flight the next batch forms, and reads of committed state that the batch did not touch are served.
A step that fails before it writes leaves no trace. If one fails after it has written, which is a bug, the batch is run
again without it. If SQL refuses a batch, its requests are run again one by one, so that each gets the answer it
deserves. A failed commit fails its whole batch with EIO and drops the caches. A database that is lost, or another
server's, ends all service: nobody gets an answer, so clients ask again where it is served next (docs/adr/0007).
"""

import asyncio
import errno
import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import msgspec

from nacrefs.common import faults
from nacrefs.common.rpc import Call
from nacrefs.common.wire import Attr, Entry, Lease, Message, Mode, Node
from nacrefs.mds.clients.leases import Busy, Change, LeaseTable, LeaseView
from nacrefs.mds.clients.sessions import Session
from nacrefs.mds.engine import NotTheOwner
from nacrefs.mds.mdt import Mdt
from nacrefs.mds.transactions import flush
from nacrefs.mds.transactions.committer import Committer
from nacrefs.mds.transactions.late import corrected, mode_of, open_again
from nacrefs.mds.transactions.step import Blocked, Step
from nacrefs.mds.transactions.tx import NeedsBatch, Tx
from nacrefs.mds.transactions.work import Work

log = logging.getLogger("nacre.mds")

BATCH_MAX: Final = 128
"""Most requests in one transaction."""
LONE_READS: Final = 4
"""Who changes something all alone reads no more than this many times in between (a look-up, an open)."""
TRIM_EVERY: Final = 64
"""Stored replies of a session that have been received are deleted that many at a time."""

_encode = msgspec.msgpack.Encoder().encode
Undo = list[tuple[int, int, Lease]]


class Journal:
    """The batches of one MDT.

    `make_step(tx, view, session)` surrounds a request. `on_changes(works)` sends the recalls of a batch and counts
    them in its works' `outstanding`; `on_park(work, blocked)` arranges that a blocked request runs `again`;
    `on_written(tx, works)` hears of each batch that has become durable, before its replies go out; `on_lost(error)`
    hears, once, that nothing can be served any more.
    """

    def __init__(
        self,
        mdt: Mdt,
        leases: LeaseTable,
        make_step: Callable[[Tx, LeaseView, int], Step],
        on_changes: Callable[[list[Work]], None],
        on_park: Callable[[Work, Blocked], None],
        on_written: Callable[[Tx, list[Work]], None],
        on_lost: Callable[[OSError], None],
    ) -> None:
        self._mdt = mdt
        self._leases = leases
        self._make_step = make_step
        self._on_changes = on_changes
        self._on_park = on_park
        self._on_written = on_written
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._queue: list[Work] = []
        self._singly = 0
        """How many requests at the head of the queue are executed in a batch of their own."""
        self._waiting: list[Work] = []
        self._planned = False
        self._in_flight: tuple[Tx, list[Work], Undo] | None = None
        self._reading = Tx(mdt, writable=False)
        self._committer = Committer(mdt, self._committed)
        self._idle: asyncio.Event = asyncio.Event()
        self._idle.set()
        self._closed: OSError | None = None
        self._reads = 0
        """Requests that were read only since the last batch."""
        self.batches = 0
        self.batched = 0

    # -------------------------------------------------------------------------------------------------------- entrance

    def read(self, work: Work) -> None:
        """Run a step that only reads, now if it can be; one that turns out to write joins the next batch."""
        undo: Undo = []
        self._reads += 1
        view = LeaseView(self._leases, work.session_id, self._mdt.opens, None, undo, work.reported)
        session = work.session
        try:
            if session is not None:
                if session.gone:
                    work.refuse_gone()
                work.seen = session.recalls_sent
            work.reply = work.operation(self._make_step(self._reading, view, work.session_id), work.request)
        except NeedsBatch:
            self._undo(undo)
            self.submit(work)
            return
        except Busy:
            self._undo(undo)
            self._waiting.append(work)
            return
        except Blocked as blocked:
            self._undo(undo)
            self._release_claim(work)
            self._on_park(work, blocked)
            return
        except Exception as error:
            self._undo(undo)
            if self._mdt.store.lost:
                self._lose(error, [work])
                return
            work.error = error
        if work.claimed:
            self._release_claim(work)
        self.finish(work)

    def submit(self, work: Work, first: bool = False) -> None:
        """Run a step in the next batch; `first`: before all others that wait."""
        if self._closed is not None:
            self._drop(work, self._closed)
            return
        self._queue.insert(0 if first else len(self._queue), work)
        self._idle.clear()
        self._plan()

    def again(self, work: Work) -> None:
        """Run a request that had to wait, from its start."""
        if work.reads:
            self.read(work)
        else:
            self.submit(work)

    def submit_own(
        self, operation: Callable[[Step], Any], first: bool = False, aside: bool = False
    ) -> "asyncio.Future[Any]":
        """Run a step of the MDS's own in the next batch; a future of its result, there when it is durable. `first`:
        before all others that wait, so that what it reads from SQL is all there is (but if it has to wait for leases,
        it comes later). `aside`: no request waits for it, so none is to wait for its commit."""
        work = Work(lambda step, _: operation(step), None, None, None)
        work.aside = aside
        work.settled = self._loop.create_future()
        self.submit(work, first)
        return work.settled

    def submit_slow(self, sql: str) -> "asyncio.Future[Any]":
        """Run SQL that takes long in a transaction of its own, in the committing thread: meanwhile what only reads is
        served, and changes wait. A future that is done when it is durable."""
        work = Work(lambda step, _: step.tx.run_slowly(sql), None, None, None)
        work.settled = self._loop.create_future()
        self.submit(work, first=True)
        self._singly += 1
        return work.settled

    @property
    def reading(self) -> Tx:
        """Committed state, to be read outside of batches."""
        return self._reading

    def retry(self) -> None:
        """Something that requests were waiting for has ended."""
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            for work in waiting:
                self.again(work)

    @property
    def queued(self) -> int:
        """Requests that wait for a batch or for a commit."""
        return len(self._queue) + len(self._waiting)

    def check_owner(self) -> None:
        """Notice that another server has taken the MDT over, or that the database is gone, although nothing is
        written."""
        if self._closed is None:
            store = self._mdt.store
            try:
                row = store.fetchone(store.statements.mdt)
                if row is not None and row[-1] != store.epoch:
                    raise NotTheOwner(errno.ESTALE, f"another MDS has taken over this MDT ({store.name})")
            except OSError as error:
                if isinstance(error, NotTheOwner) or store.lost:
                    self.lose(error)

    def lose(self, error: OSError) -> None:
        """The MDT is not to be had any more: nothing that is not in flight happens, and nobody gets an answer."""
        self._lose(error, [])

    @property
    def closed(self) -> bool:
        """Whether nothing is executed any more."""
        return self._closed is not None

    def _plan(self) -> None:
        if self._in_flight is None and not self._planned:
            self._planned = True
            self._loop.call_soon(self._run_batch)

    # ----------------------------------------------------------------------------------------------------------- batch

    def _run_batch(self) -> None:
        self._planned = False
        if self._in_flight is not None or self._closed is not None:
            return
        size = 1 if self._singly else BATCH_MAX
        works, self._queue = self._queue[:size], self._queue[size:]
        self._singly = max(0, self._singly - len(works))
        while works:
            tx = Tx(self._mdt)
            undo: Undo = []
            done, parked, culprit = self._execute(tx, works, undo)
            if culprit is None:
                self._to_commit(tx, done, parked, undo)
                return
            self._take_back(tx, works, undo)
            works.remove(culprit)
            self._release_claim(culprit)
            self.finish(culprit)
        self._rest()

    def _to_commit(self, tx: Tx, done: list[Work], parked: list[Work], undo: Undo) -> None:
        """What was executed becomes durable; what could not be waits."""
        if any(work.error is not None for work in done) and self._mdt.store.lost:
            self._lose(OSError(errno.EIO, f"cannot reach the MDT database {self._mdt.store.name}"), done)
            return
        if not tx.writes:
            for work in done:
                self._release_claim(work)
                self.finish(work)
            self._park(parked)
            self._rest()
            return
        try:
            flush.flush(tx)
        except Exception as error:
            self._refused(tx, done, undo, error)
            self._park(parked)
            self._rest()
            return
        self.batches += 1
        self.batched += len(done)
        busy = {change.fid for work in done if work.changes for change in work.changes}
        busy |= tx.touched
        busy.update(fid for fid, session, before in undo if before > self._leases.held(fid, session))
        self._leases.busy = busy
        self._in_flight = (tx, done, undo)
        for work in done:
            work.outstanding += 1
        self._on_changes(done)
        self._park(parked)
        if faults.on:
            self._committer.subject = _subject(tx)
        self._committer.slow = tx.slow
        if not tx.slow and self._is_lone(done):
            self._committer.commit_here()
        else:
            self._committer.commit()
        self._reads = 0

    def _is_lone(self, done: list[Work]) -> bool:
        """Whether nobody else has anything to do while this batch becomes durable, as far as can be seen, and that is
        soon. (For what is done `aside` nobody is to wait.)"""
        return (
            len(done) == 1
            and not done[0].aside
            and done[0].outstanding == 1
            and not self._queue
            and not self._waiting
            and self._reads <= LONE_READS
            and self._committer.quick
        )

    def _execute(self, tx: Tx, works: list[Work], undo: Undo) -> tuple[list[Work], list[Work], Work | None]:
        """Run the steps: those that have an answer now, those that must wait, and the one (if any) that broke after it
        had written."""
        done: list[Work] = []
        parked: list[Work] = []
        leases, opens = self._leases, self._mdt.opens
        for work in works:
            before, intents, undone = tx.writes, len(tx.new_intents), len(undo)
            session = work.session
            work.reply = work.error = None
            changes: list[Change] = []
            work.changes = changes
            work.intents = None
            view = LeaseView(leases, work.session_id, opens, changes, undo, work.reported)
            try:
                if session is not None:
                    if session.gone:
                        work.refuse_gone()
                    work.seen = session.recalls_sent
                reply = work.reply = work.operation(self._make_step(tx, view, work.session_id), work.request)
                if tx.writes != before:
                    if len(tx.new_intents) != intents:
                        work.intents = tx.new_intents[intents:]
                        for intent in work.intents:
                            leases.begin_truncation(intent.fid)
                    if session is not None and work.call is not None and not work.again:
                        self.keep_reply(tx, session, work.call, reply)
                done.append(work)
                continue
            except Exception as error:
                work.error = error
                work.changes = None
                if tx.writes != before:
                    log.error("a step failed after it had written: %r", work.request, exc_info=error)
                    return done, parked, work
            self._undo(undo, undone)
            if isinstance(work.error, Blocked | Busy):
                parked.append(work)
            else:
                done.append(work)
        return done, parked, None

    def keep_reply(self, tx: Tx, session: Session, call: Call, reply: Message) -> None:
        """Store an answer in this transaction, for the request that comes again."""
        tx.store_reply(session.id, call.xid, _encode(reply))
        session.stored_replies += 1
        if session.stored_replies >= TRIM_EVERY and session.oldest > session.trimmed:
            session.stored_replies = 0
            session.trimmed = session.oldest
            tx.trim_replies(session.id, session.oldest)

    def _park(self, parked: list[Work]) -> None:
        for work in parked:
            blocked, work.error = work.error, None
            self._release_claim(work)
            if isinstance(blocked, Blocked):
                self._on_park(work, blocked)
            else:
                self._waiting.append(work)
            self._release_deferred(work)

    def _release_deferred(self, work: Work) -> None:
        """This request has no answer (any more): recalls that wait for it to leave must not."""
        session = work.session
        if session is not None and session.deferred:
            session.recall_deferred()

    def _rest(self) -> None:
        if self._queue and self._closed is None:
            self._plan()
        elif self._in_flight is None:
            self._idle.set()

    # ---------------------------------------------------------------------------------------------------------- commit

    def _committed(self, error: OSError | None) -> None:
        assert self._in_flight is not None
        (tx, works, undo), self._in_flight = self._in_flight, None
        self._leases.busy = set()
        if error is None:
            flush.publish(tx)
            self._on_written(tx, works)
            for work in works:
                self._release_claim(work)
                self.settle(work)
        elif self._mdt.store.lost:
            self._lose(error, works)
        else:
            self._uncommitted(tx, works, undo, error)
        self.retry()
        self._rest()

    def _uncommitted(self, tx: Tx, works: list[Work], undo: Undo, error: OSError) -> None:
        log.error("commit failed, %d requests fail with it: %s", len(works), error.strerror)
        # Only what was taken from a session is given back to it: what it was given, later answers may have told it of.
        for fid, session, before in reversed(undo):
            if before > self._leases.held(fid, session):
                self._leases.set(fid, session, before)
        self._end_truncations(works)
        number = errno.ENOSPC if error.errno == errno.ENOSPC else errno.EIO
        failure = OSError(number, f"the metadata could not be made durable: {error.strerror}")
        try:
            flush.discard(tx, unknown=True)
        except OSError as unreadable:
            self._lose(unreadable, works)
            return
        self._fail(works, failure)

    def settle(self, work: Work) -> None:
        """One of the things that a work's reply waits for has ended."""
        work.outstanding -= 1
        if not work.outstanding:
            self.finish(work)

    def _refused(self, tx: Tx, done: list[Work], undo: Undo, error: Exception) -> None:
        """SQL does not take this batch: each of its requests is tried alone, the one that is at fault fails."""
        self._take_back(tx, done, undo)
        if isinstance(error, NotTheOwner) or self._mdt.store.lost:
            self._lose(error, done)
        elif len(done) > 1:
            log.warning("a batch of %d requests was refused, trying them one by one: %s", len(done), error)
            self._queue[:0] = done
            self._singly = len(done)
        else:
            if not isinstance(error, OSError):
                log.error("a request could not be written: %r", done[0].request, exc_info=error)
                error = OSError(errno.EINVAL, f"the request holds a value that cannot be stored: {error}")
            self._fail(done, error)

    def _take_back(self, tx: Tx, works: list[Work], undo: Undo) -> None:
        """A batch that nobody has heard of does not happen."""
        self._undo(undo)
        self._end_truncations(works)
        flush.discard(tx)

    def _undo(self, undo: Undo, start: int = 0) -> None:
        while len(undo) > start:
            fid, session, lease = undo.pop()
            self._leases.set(fid, session, lease)

    def _end_truncations(self, works: list[Work]) -> None:
        for work in works:
            for intent in work.intents or ():
                self._leases.end_truncation(intent.fid)
            work.intents = None

    def _fail(self, works: list[Work], error: OSError) -> None:
        for work in works:
            work.reply, work.error = None, error
            work.outstanding = 0
            self._release_claim(work)
            self.finish(work)

    def _release_claim(self, work: Work) -> None:
        if work.claimed:
            self._leases.unclaim(work.claimed, work.session_id)
            work.claimed = 0
            if self._waiting:
                self._loop.call_soon(self.retry)

    # --------------------------------------------------------------------------------------------------------- answers

    def finish(self, work: Work) -> None:
        """Give the answer to whoever asked."""
        after, work.after = work.after, None
        if after is not None and work.error is None and after(work):
            return
        session, call = work.session, work.call
        if call is not None:
            reply = work.reply
            if session is not None:
                if work.error is None and (work.seen != session.recalls_sent or self._lost_leases(work)):
                    reply = self._corrected(work, session)
                    if reply is None:
                        return
                session.answered(call.xid)
            if work.error is not None:
                call.fail(work.error)
            else:
                assert reply is not None
                call.reply(reply)
            self._release_deferred(work)
        elif work.settled is not None and not work.settled.done():
            if work.error is not None:
                work.settled.set_exception(work.error)
            else:
                work.settled.set_result(work.reply)

    def _lost_leases(self, work: Work) -> list[int]:
        """The fids whose leases the answer brings and the requester has given back meanwhile."""
        if work.changes is None:  # it was answered at once
            return []
        reply, held, session = work.reply, self._leases.held, work.session_id
        node = reply.node if isinstance(reply, Entry) else reply
        lost: list[int] = []
        if isinstance(node, Node) and node.lease and held(node.attr.fid, session) < node.lease:
            lost.append(node.attr.fid)
        parent = reply.parent if isinstance(reply, Entry) and reply.parent_lease else None
        if parent is not None and held(parent.fid, session) < reply.parent_lease:  # type: ignore[union-attr]
            lost.append(parent.fid)
        return lost

    def _corrected(self, work: Work, session: Session) -> Message | None:
        """The answer without what the requester has lost since it was worked out; None if it is worked out again
        because what it lost had covered an open."""
        reply, leases = work.reply, self._leases
        assert reply is not None
        overtaken = session.overtaken_since(work.seen)
        for fid in self._lost_leases(work):
            overtaken[fid] = None
        if not overtaken:
            return reply

        def committed(fid: int) -> Attr | None:
            inode = None if fid in leases.busy else self._reading.inode(fid)
            return None if inode is None else inode.attr

        def lease_now(fid: int) -> Lease:
            return Lease.NONE if (fid, session.id) in leases.recalling else leases.held(fid, session.id)

        corrected_reply: Message = corrected(reply, work.request, overtaken, committed, lease_now)
        node = corrected_reply.node if isinstance(corrected_reply, Entry) else corrected_reply
        if isinstance(node, Node) and not work.again:
            mode, fid = mode_of(work.request), node.attr.fid
            needed = Lease.WRITE if mode & Mode.WRITE else Lease.READ
            if mode and node.lease < needed and self._mdt.opens.get(fid, {}).get(session.id) != mode:
                work.operation, work.again, work.reads = partial(open_again, corrected_reply, fid), True, True
                work.reply = None
                self._release_deferred(work)
                self.again(work)
                return None
        return corrected_reply

    # ------------------------------------------------------------------------------------------------------------ end

    def _drop(self, work: Work, error: OSError) -> None:
        """A request that comes too late. Clients get no answer: they ask again when the MDT is served again."""
        if work.settled is not None and not work.settled.done():
            work.settled.set_exception(error)
            work.settled.exception()  # often nobody waits for it any more

    def _lose(self, error: Exception, works: list[Work]) -> None:
        """Nothing can be served any more; `works` are those at hand."""
        first = self._closed is None
        if self._closed is None:
            self._closed = error if isinstance(error, OSError) else OSError(errno.EIO, str(error))
        dropped, self._queue = works + self._queue, []
        for work in dropped:
            self._drop(work, self._closed)
        self._rest()
        if first:
            self._on_lost(self._closed)

    async def drain(self) -> None:
        """Wait until every submitted step has been committed."""
        await self._idle.wait()

    async def stop(self) -> None:
        """Commit what is queued, then end."""
        await self.drain()
        if self._closed is None:
            self._closed = OSError(errno.ESHUTDOWN, "the MDS is shutting down")
        self._committer.stop()


def _subject(tx: Tx) -> str:
    """What a batch does in the lifecycle tier, for faults."""
    names = [name for name, _ in tx.side]
    return next((name for name in ("put_action", "put_link_object") if name in names), names[0] if names else "")
