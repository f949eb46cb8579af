"""Merged transactions: requests that arrive together are executed in order and committed as one.

    queue → one batch: each request's step against one `Tx` → recalls go out → flush, commit (another thread)
          → publish → replies, each as soon as its recalls have been answered too

While a commit is in flight the next batch forms, and reads of committed state that the batch did not touch are served.
A step that fails before it writes leaves no trace. If one fails after it has written, which is a bug, the batch is run again without it.
A failed commit fails its whole batch with EIO and drops the caches.
"""

import asyncio
import errno
import logging
import queue
import threading
from collections.abc import Callable
from typing import Any, Final

import msgspec

from nacrefs.common.rpc import Call
from nacrefs.common.wire import Lease, Message
from nacrefs.mds import flush
from nacrefs.mds.leases import Busy, Change, LeaseTable, LeaseView
from nacrefs.mds.mdt import Mdt
from nacrefs.mds.records import Intent
from nacrefs.mds.sessions import Session
from nacrefs.mds.step import Blocked, Step
from nacrefs.mds.tx import NeedsBatch, Tx

log = logging.getLogger("nacre.mds")

BATCH_MAX: Final = 128
"""Most requests in one transaction."""
TRIM_EVERY: Final = 64
"""Stored replies of a session that have been received are deleted that many at a time."""

_encode = msgspec.msgpack.Encoder().encode
Operation = Callable[[Step, Any], Any]


class Work:
    """One request on its way: what to do, for whom, and where the answer goes."""

    __slots__ = (
        "after", "call", "changes", "claimed", "error", "intents", "operation", "outstanding", "reply", "request", "session", "settled",
    )  # fmt: skip

    def __init__(self, operation: Operation, request: Any, session: Session | None, call: Call | None) -> None:
        self.operation = operation
        self.request = request
        self.session = session
        self.call = call
        self.changes: list[Change] = []
        """What its step changed."""
        self.intents: list[Intent] = []
        """Truncations of objects that its step wants."""
        self.after: Callable[[Work], bool] | None = None
        """Looks at the reply before it goes out; True if it will call `finish` again itself, later."""
        self.claimed = 0
        """The fid whose leases this request has waited for, and may take now."""
        self.outstanding = 0
        """Recalls and truncations that must end before the reply."""
        self.reply: Message | None = None
        self.error: Exception | None = None
        self.settled: asyncio.Future[Any] | None = None
        """For the MDS's own steps: where the result goes instead of a call."""

    @property
    def session_id(self) -> int:
        """The requester; 0 for the MDS itself."""
        return 0 if self.session is None else self.session.id

    def finish(self) -> None:
        """Give the answer to whoever asked."""
        after, self.after = self.after, None
        if after is not None and self.error is None and after(self):
            return
        session, call = self.session, self.call
        if call is not None:
            if session is not None:
                session.in_flight.pop(call.xid, None)
            if self.error is not None:
                call.fail(self.error)
            else:
                assert self.reply is not None
                call.reply(self.reply)
        elif self.settled is not None and not self.settled.done():
            if self.error is not None:
                self.settled.set_exception(self.error)
            else:
                self.settled.set_result(self.reply)


def _refuse_gone(work: Work) -> None:
    """OSError (ESTALE) if the requester's session has ended meanwhile."""
    if work.session is not None and work.session.gone:
        raise OSError(errno.ESTALE, "the session was evicted")


class Committer:
    """The thread that waits for the disk."""

    def __init__(self, mdt: Mdt, done: Callable[[OSError | None], None]) -> None:
        self._mdt = mdt
        self._done = done
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="mdt-commit")
        self._thread.start()

    def commit(self) -> None:
        """Commit what has been flushed, and report on the event loop."""
        self._jobs.put(True)

    def stop(self) -> None:
        """End the thread after the commit in flight."""
        self._jobs.put(False)
        self._thread.join()

    def _run(self) -> None:
        while self._jobs.get():
            error: OSError | None = None
            try:
                self._mdt.store.commit()
            except OSError as failure:
                error = failure
            self._loop.call_soon_threadsafe(self._done, error)


class Journal:
    """The batches of one MDT.

    `make_step(tx, view, session)` surrounds a request. `on_changes(works)` sends the recalls of a batch and counts them in
    its works' `outstanding`; `on_park(work, blocked)` arranges that a blocked request runs again (by `read`);
    `on_written(tx, works)` hears of each batch that has become durable, before its replies go out.
    """

    def __init__(
        self,
        mdt: Mdt,
        leases: LeaseTable,
        make_step: Callable[[Tx, LeaseView, int], Step],
        on_changes: Callable[[list[Work]], None],
        on_park: Callable[[Work, Blocked], None],
        on_written: Callable[[Tx, list[Work]], None],
    ) -> None:
        self._mdt = mdt
        self._leases = leases
        self._make_step = make_step
        self._on_changes = on_changes
        self._on_park = on_park
        self._on_written = on_written
        self._loop = asyncio.get_running_loop()
        self._queue: list[Work] = []
        self._waiting_reads: list[Work] = []
        self._planned = False
        self._in_flight: tuple[Tx, list[Work], list[tuple[int, int, Lease]]] | None = None
        self._reading = Tx(mdt, writable=False)
        self._committer = Committer(mdt, self._committed)
        self._idle: asyncio.Event = asyncio.Event()
        self._idle.set()
        self.batches = 0
        self.batched = 0

    # -------------------------------------------------------------------------------------------------------- entrance

    def read(self, work: Work) -> None:
        """Run a step that only reads, now if it can be; one that turns out to write joins the next batch."""
        view = LeaseView(self._leases, work.session_id, self._mdt.opens)
        try:
            _refuse_gone(work)
            work.reply = work.operation(self._make_step(self._reading, view, work.session_id), work.request)
        except NeedsBatch:
            self.submit(work)
            return
        except Busy:
            self._waiting_reads.append(work)
            return
        except Blocked as blocked:
            self._release_claim(work)
            self._on_park(work, blocked)
            return
        except Exception as error:
            work.error = error
        self._release_claim(work)
        work.finish()

    def submit(self, work: Work) -> None:
        """Run a step in the next batch."""
        self._queue.append(work)
        self._idle.clear()
        self._plan()

    def submit_own(self, operation: Callable[[Step], Any]) -> "asyncio.Future[Any]":
        """Run a step of the MDS's own in the next batch; a future of its result, there when it is durable."""
        work = Work(lambda step, _: operation(step), None, None, None)
        work.settled = self._loop.create_future()
        self.submit(work)
        return work.settled

    def retry_reads(self) -> None:
        """Something that reads were waiting for has ended."""
        waiting, self._waiting_reads = self._waiting_reads, []
        for work in waiting:
            self.read(work)

    @property
    def queued(self) -> int:
        """Requests that wait for a batch or for a commit."""
        return len(self._queue) + len(self._waiting_reads)

    def _plan(self) -> None:
        if self._in_flight is None and not self._planned:
            self._planned = True
            self._loop.call_soon(self._run_batch)

    # ----------------------------------------------------------------------------------------------------------- batch

    def _run_batch(self) -> None:
        self._planned = False
        if self._in_flight is not None:
            return
        works, self._queue = self._queue[:BATCH_MAX], self._queue[BATCH_MAX:]
        while works:
            tx = Tx(self._mdt)
            undo: list[tuple[int, int, Lease]] = []
            done, culprit = self._execute(tx, works, undo)
            if culprit is None:
                break
            self._undo(undo)
            flush.discard(tx)
            works.remove(culprit)
            self._release_claim(culprit)
            culprit.finish()
        else:
            self._rest()
            return
        parked = [work for work in works if work not in done]
        if not tx.writes:
            for work in done:
                self._release_claim(work)
                work.finish()
            self._after_batch(parked)
            return
        self.batches += 1
        self.batched += len(done)
        try:
            flush.flush(tx)
        except OSError as error:
            self._undo(undo)
            self._fail(tx, done, error, unknown=False)
            self._after_batch(parked)
            return
        self._leases.busy = tx.touched.union(change.fid for work in done for change in work.changes)
        self._in_flight = (tx, done, undo)
        for work in done:
            work.outstanding += 1
        self._on_changes(done)
        self._committer.commit()
        self._park_again(parked)

    def _execute(self, tx: Tx, works: list[Work], undo: list[tuple[int, int, Lease]]) -> tuple[list[Work], Work | None]:
        """Run the steps: those that have an answer now, and the one (if any) that broke after it had written."""
        done: list[Work] = []
        for work in works:
            before, intents = tx.writes, len(tx.new_intents)
            work.reply = work.error = None
            work.changes = []
            view = LeaseView(self._leases, work.session_id, self._mdt.opens, work.changes, undo)
            try:
                _refuse_gone(work)
                reply = work.operation(self._make_step(tx, view, work.session_id), work.request)
            except (Blocked, Busy) as blocked:
                assert tx.writes == before, "a step blocks before it writes"
                work.changes = []
                work.error = blocked
                continue
            except OSError as error:
                work.error = error
                if tx.writes != before:
                    log.error("a step failed after it had written: %r", work.request, exc_info=error)
                    return done, work
                work.changes = []
            except Exception as error:
                work.error = error
                if tx.writes != before:
                    return done, work
                work.changes = []
            else:
                work.reply = reply
                work.intents = tx.new_intents[intents:]
                if tx.writes != before and work.session is not None and work.call is not None:
                    self._keep_reply(tx, work.session, work.call, reply)
            done.append(work)
        return done, None

    def _keep_reply(self, tx: Tx, session: Session, call: Call, reply: Message) -> None:
        tx.store_reply(session.id, call.xid, _encode(reply))
        session.stored_replies += 1
        if session.stored_replies >= TRIM_EVERY and session.oldest > session.trimmed:
            session.stored_replies = 0
            session.trimmed = session.oldest
            tx.trim_replies(session.id, session.oldest)

    def _park_again(self, parked: list[Work]) -> None:
        for work in parked:
            blocked, work.error = work.error, None
            self._release_claim(work)
            if isinstance(blocked, Blocked):
                self._on_park(work, blocked)
            else:
                self._waiting_reads.append(work)  # `read` sends it back here by NeedsBatch once it may run

    def _after_batch(self, parked: list[Work]) -> None:
        self._park_again(parked)
        self._rest()

    def _rest(self) -> None:
        if self._queue:
            self._plan()
        elif self._in_flight is None:
            self._idle.set()

    # ---------------------------------------------------------------------------------------------------------- commit

    def _committed(self, error: OSError | None) -> None:
        assert self._in_flight is not None
        (tx, works, undo), self._in_flight = self._in_flight, None
        self._leases.busy = set()
        if error is not None:
            log.error("commit failed, %d requests fail with it: %s", len(works), error)
            self._undo(undo)
            self._fail(tx, works, OSError(errno.EIO, f"the metadata could not be made durable: {error.strerror}"), True)
        else:
            flush.publish(tx)
            self._on_written(tx, works)
            for work in works:
                self._release_claim(work)
                self.settle(work)
        self.retry_reads()
        self._rest()

    def settle(self, work: Work) -> None:
        """One of the things that a work's reply waits for has ended."""
        work.outstanding -= 1
        if not work.outstanding:
            work.finish()

    def _fail(self, tx: Tx, works: list[Work], error: OSError, unknown: bool) -> None:
        flush.discard(tx, unknown)
        for work in works:
            work.reply, work.error = None, error
            work.outstanding = 0
            self._release_claim(work)
            work.finish()

    def _undo(self, undo: list[tuple[int, int, Lease]]) -> None:
        for fid, session, lease in reversed(undo):
            self._leases.set(fid, session, lease)

    def _release_claim(self, work: Work) -> None:
        if work.claimed:
            self._leases.unclaim(work.claimed, work.session_id)
            work.claimed = 0

    # ------------------------------------------------------------------------------------------------------------ end

    async def drain(self) -> None:
        """Wait until every submitted step has been committed."""
        await self._idle.wait()

    async def stop(self) -> None:
        """Commit what is queued, then end."""
        await self.drain()
        self._committer.stop()
