"""The coordinator of the lifecycle tier: what is to be done with which file, in which order, and what became of it.

Every action is a row before it begins, and keeps it, with its reason, after it has ended. A file has one action at a
time. Those who wait for bytes come first, then what was asked for, users in turn. A failure that may pass is tried
again, later each time. After a restart everything that was not over begins anew; movers stop when the MDS is lost.
"""

import asyncio
import errno
import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec.structs import replace

from nacrefs.common import wire
from nacrefs.common.wire import ArchiveSpec, HsmAction, HsmFlag, HsmState
from nacrefs.mds import hsmsteps
from nacrefs.mds.hsmarchive import Archiver
from nacrefs.mds.hsmclasses import Classes
from nacrefs.mds.hsmclean import Cleaner
from nacrefs.mds.hsmqueue import EXPORT, Action, Thawing, Wanted
from nacrefs.mds.hsmrestore import Restorer
from nacrefs.mds.hsmrows import CANCELED, FAILED, RELEASED, STARTED, SUCCEED, WAITING, ActionRow, hsm_of
from nacrefs.mds.hsmsave import Saver
from nacrefs.mds.hsmsteps import Gone, NotDue, Return
from nacrefs.mds.movers import Movers
from nacrefs.mds.step import Step
from nacrefs.mds.tx import Tx
from nacrefs.mds.work import Work

if TYPE_CHECKING:
    from nacrefs.mds.service import Mds

log = logging.getLogger("nacre.mds")

RUNNING_MAX: Final = 48
"""Actions under way at a time."""
QUEUE_MAX: Final = 1_000_000
"""Actions that may wait; more are refused with EAGAIN."""
READER: Final = -1
"""The user of actions that somebody waits for who reads."""
HISTORY: Final = 10_000
"""Actions that are over and still shown."""
ATTEMPTS: Final = {
    HsmAction.RESTORE: 12, HsmAction.ARCHIVE: 40, HsmAction.RELEASE: 10, HsmAction.REMOVE: 40, HsmAction.TRANSITION: 40,
}  # fmt: skip
RETRY_S: Final = 0.2
RETRY_MOST_S: Final = 120.0
TRANSIENT: Final = frozenset(
    {
        errno.EAGAIN, errno.ETIMEDOUT, errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE,
        errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EBADMSG, errno.ECANCELED, errno.ESHUTDOWN, errno.ENOTCONN,
    }
)  # fmt: skip
RULES: Final = -2
"""Who asks for what lifecycle rules want done: a user of their own, for fairness."""
_spec_of = msgspec.msgpack.Decoder(ArchiveSpec).decode


def _may_pass(failure: OSError, kind: int) -> bool:
    """Whether an action that failed is worth another try. A full archive may be given room; a reader does not wait for
    a full OST."""
    return failure.errno in TRANSIENT or (failure.errno == errno.ENOSPC and kind != HsmAction.RESTORE)


class Coordinator:
    """All actions of an MDT."""

    def __init__(self, mds: "Mds") -> None:
        self._mds = mds
        self._journal = mds.journal
        self._reading = Tx(mds.mdt, writable=False)
        self.archives: dict[int, ArchiveSpec] = {}
        self.movers = Movers(mds)
        self._archiver = Archiver(mds, self.movers)
        self._restorer = Restorer(mds, self.movers)
        self.classes = Classes(mds, self.movers)
        self._cleaner = Cleaner(mds, self.movers, self.archives)
        self.saver = Saver(mds, self.movers, self.archives)
        self.active: dict[int, Action] = {}
        """By fid."""
        self._waiting: dict[int, dict[int, list[Action]]] = defaultdict(dict)
        """By kind and user, oldest first."""
        self._turn: dict[int, int] = {}
        self._running = 0
        self._next_id = 1
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self.stopping = False
        self._ends_since_trim = 0
        self._held = 0
        self.guard: Callable[[Step, ActionRow], None] | None = None
        """Raises NotDue for what a rule wanted and would not want any more; asked when the action begins."""
        self.on_end: Callable[[ActionRow], None] = lambda row: None
        """Told of every action that is over."""

    # ------------------------------------------------------------------------------------------------------ life cycle

    def start(self) -> None:
        """Take up what an earlier run has left."""
        store = self._mds.mdt.store
        for number, _, spec, gone in store.fetchall(store.statements.archives):
            if not gone:
                self.archives[number] = _spec_of(spec)
        self.archives_changed()
        newest = store.fetchone(store.statements.newest_action)
        self._next_id = 1 + (newest[0] if newest is not None and newest[0] is not None else 0)
        for row in store.fetchall(store.statements.actions):
            self._enqueue(Action(ActionRow(*row)))
        self._spawn(self._cleaner.run())
        self._spawn(self.saver.run())
        self.pump()

    async def stop(self) -> None:
        """End; what is not over begins anew next time."""
        self.stopping = self._cleaner.stopping = True
        if self._timer is not None:
            self._timer.cancel()
        while self._tasks:  # one that ends may start another
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)
        for action in self.active.values():
            action.over(OSError(errno.ESHUTDOWN, "the MDS is shutting down"))

    def _spawn(self, coming: Any) -> "asyncio.Task[Any]":
        task: asyncio.Task[Any] = asyncio.get_running_loop().create_task(coming)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a task of the coordinator failed", exc_info=task.exception())

    def archives_changed(self) -> None:
        """The table of archives is another one."""
        self._mds.mdt.keeping = {number for number, spec in self.archives.items() if spec.keep}
        self.movers.limit({number: spec.rate_mibps * (1 << 20) for number, spec in self.archives.items()})

    # ----------------------------------------------------------------------------------------------------------- queue

    def _enqueue(self, action: Action) -> None:
        row = action.row
        self.active[row.fid] = action
        self._waiting[row.kind].setdefault(row.uid, []).append(action)
        if row.kind == HsmAction.RESTORE:
            self._mds.mdt.restoring.add(row.fid)

    async def request(self, kind: HsmAction, fid: int, archive: int, uid: int, cause: str = "") -> Action | None:
        """Queue an action, durably; None if nothing is to be done. OSError that says why it cannot be: ESTALE, EINVAL,
        EPERM, EBUSY (another action is under way), EAGAIN (the queue is full), ENODEV (no such archive)."""
        known = self.active.get(fid)
        if known is not None:
            if known.row.kind == kind:
                return known
            if kind != HsmAction.RESTORE:
                raise OSError(errno.EBUSY, f"{HsmAction(known.row.kind).name.lower()} is under way")
        if len(self.active) >= QUEUE_MAX:
            raise OSError(errno.EAGAIN, f"{QUEUE_MAX} actions are waiting: try again later")
        made: ActionRow | None = await self._journal.submit_own(partial(self._request, kind, fid, archive, uid, cause))
        if made is None:
            return None
        known = self.active.get(fid)
        if known is not None:  # somebody else was quicker
            await self._journal.submit_own(partial(_put, made._replace(state=CANCELED, reason="asked for twice")))
            return known
        action = Action(made)
        self._enqueue(action)
        self.pump()
        return action

    async def request_many(self, wanted: Sequence[Wanted]) -> list[str | None]:
        """Queue what a rule wants, in one transaction; for each why it was refused, empty if it is queued, None if
        there is nothing to do."""
        made: list[ActionRow | str | None] = await self._journal.submit_own(partial(self._request_many, wanted))
        answers: list[str | None] = []
        for row in made:
            if not isinstance(row, ActionRow):
                answers.append(row)
            elif row.fid in self.active:  # somebody else was quicker
                twice = row._replace(state=CANCELED, reason="asked for twice")
                await self._journal.submit_own(partial(_put, twice))
                answers.append("something else is being done with it")
            else:
                self._enqueue(Action(row))
                answers.append("")
        self.pump()
        return answers

    def _request_many(self, wanted: Sequence[Wanted], step: Step) -> list[ActionRow | str | None]:
        made: list[ActionRow | str | None] = []
        for one in wanted:
            if one.fid in self.active:
                made.append("something else is being done with it")
            elif len(self.active) >= QUEUE_MAX:
                made.append("the queue is full")
            else:
                try:
                    made.append(
                        self._request(one.kind, one.fid, one.archive, RULES, one.cause, step, one.storage_class)
                    )
                except OSError as error:
                    made.append(error.strerror or str(error))
        return made

    def _request(
        self, kind: HsmAction, fid: int, archive: int, uid: int, cause: str, step: Step, storage_class: str = ""
    ) -> ActionRow | None:
        inode = step.tx.need(fid)
        if not inode.is_regular:
            raise OSError(errno.EINVAL, "only regular files are archived")
        row = hsm_of(step.tx, inode)
        flags = row.flags_now(inode)
        released = inode.attr.flags & RELEASED
        linked = step.tx.mdt.linked
        export = kind == HsmAction.ARCHIVE and cause == EXPORT
        if row.archive in linked and kind in (HsmAction.ARCHIVE, HsmAction.REMOVE) and not export:
            raise OSError(errno.EPERM, "it belongs to a link: its copy is the object in the link's bucket")
        if kind == HsmAction.ARCHIVE:
            archive = self.archive_of(archive).id
            if archive in linked and not export:
                raise OSError(errno.EPERM, f"archive {archive} is the bucket of a link")
            if flags & HsmFlag.NOARCHIVE:
                raise OSError(errno.EPERM, "it is marked noarchive")
            clean = flags & HsmFlag.ARCHIVED and not flags & (HsmFlag.DIRTY | HsmFlag.LOST) and row.archive == archive
            if (clean and not export and not step.tx.opens(fid) and not step.leases.others(fid)) or released:
                return None
        elif kind == HsmAction.RESTORE:
            if not released:
                return None
            archive = row.archive
        elif kind == HsmAction.RELEASE:
            if released:
                return None
            archive = row.archive
            if not flags & HsmFlag.ARCHIVED or flags & (HsmFlag.NORELEASE | HsmFlag.LOST):
                hsmsteps.check_release(inode, row)
        elif kind == HsmAction.REMOVE:
            if released:
                raise OSError(errno.EPERM, "it is released: the copy is all there is; restore it first")
            if not row.key:
                return None
            archive = row.archive
        elif kind == HsmAction.TRANSITION:
            if not storage_class:
                raise OSError(errno.EINVAL, "a rule says to which storage class")
            archive = hsmsteps.good_copy(step, fid).archive
        now_ns = step.now_ns
        number, self._next_id = self._next_id, self._next_id + 1
        action = ActionRow(
            number, fid, int(kind), archive, uid, cause, WAITING, 0, 0, now_ns, now_ns, storage_class=storage_class
        )
        hsmsteps.put_action(step, action)
        return action

    def archive_of(self, number: int) -> ArchiveSpec:
        """An archive by its number; 0: the first. OSError (ENODEV) if there is none."""
        if not number:
            number = min(self.archives.keys() - self._mds.mdt.linked, default=0)
        spec = self.archives.get(number)
        if spec is None:
            text = f"there is no archive {number}" if number else "there is no archive: `nacre archive add` makes one"
            raise OSError(errno.ENODEV, text)
        return spec

    def pump(self) -> None:
        """Begin what can begin."""
        if self.stopping or self._held:
            return
        now_ns = self._mds.clock.now_ns()
        soonest_ns = 0
        for kind in HsmAction:
            users = self._waiting[kind]
            # Those who wait for bytes need not wait for those who only store them.
            limit = RUNNING_MAX * 2 if kind == HsmAction.RESTORE else RUNNING_MAX
            blocked: set[int] = set()
            while self._running < limit and len(blocked) < len(users):
                uid = self._next_user(kind, [uid for uid in users if uid not in blocked])
                queue = users[uid]
                index = next((n for n, one in enumerate(queue) if one.row.not_before_ns <= now_ns), -1)
                if index < 0:
                    blocked.add(uid)
                    first_ns = min(one.row.not_before_ns for one in queue)
                    soonest_ns = min(soonest_ns, first_ns) if soonest_ns else first_ns
                    continue
                action = queue.pop(index)
                if not queue:
                    del users[uid]
                self._running += 1
                action.task = self._spawn(self._run(action))
        if soonest_ns:
            if self._timer is not None:
                self._timer.cancel()
            delay_s = max(0.01, (soonest_ns - now_ns) / 1e9)
            self._timer = asyncio.get_running_loop().call_later(delay_s, self.pump)

    def hold(self) -> Callable[[], None]:
        """Begin nothing until the answer is called: what is queued waits."""
        self._held += 1

        def go_on() -> None:
            self._held -= 1
            self.pump()

        return go_on

    def _next_user(self, kind: int, users: list[int]) -> int:
        """Whose turn it is. Those who read come before those who have files brought for later."""
        if kind == HsmAction.RESTORE and READER in users:
            return READER
        last = self._turn.get(kind, -2)
        chosen = min((uid for uid in users if uid > last), default=min(users))
        self._turn[kind] = chosen
        return chosen

    async def _run(self, action: Action) -> None:
        row = action.row
        failure: OSError | None = None
        thawing = False
        state = SUCCEED
        try:
            action.row = row = row._replace(
                state=STARTED, attempts=row.attempts + 1, changed_ns=self._mds.clock.now_ns()
            )
            work = {
                HsmAction.ARCHIVE: self._archive,
                HsmAction.RELEASE: self._release,
                HsmAction.RESTORE: self._restore,
                HsmAction.REMOVE: self._remove,
                HsmAction.TRANSITION: self._transition,
            }[HsmAction(row.kind)]
            if row.uid == RULES:
                await self._journal.submit_own(partial(self._look_again, row))
            await work(action)
        except asyncio.CancelledError:
            if self.stopping:
                return
            state, failure = CANCELED, OSError(errno.ECANCELED, "it was canceled")
        except Gone:
            state, failure = CANCELED, OSError(errno.ENOENT, "the file was removed")
        except Thawing as why:
            state, failure, thawing = FAILED, OSError(errno.EAGAIN, str(why)), True
            action.row = action.row._replace(attempts=action.row.attempts - 1)
        except NotDue as why:
            state, failure = CANCELED, OSError(errno.ECANCELED, str(why))
        except OSError as error:
            state, failure = FAILED, error
        except Exception as error:
            log.exception("action %d (%s of %#x)", row.id, HsmAction(row.kind).name, row.fid)
            state, failure = FAILED, OSError(errno.EIO, f"internal error: {type(error).__name__}")
        finally:
            self._running -= 1
        if self._journal.closed:
            return
        row, as_stored = action.row, action.row
        now_ns = self._mds.clock.now_ns()
        reason = "" if failure is None else failure.strerror or str(failure)
        again = (
            state == FAILED
            and failure is not None
            and _may_pass(failure, row.kind)
            and row.attempts < ATTEMPTS[HsmAction(row.kind)]
        )
        if again:
            delay_s = min(RETRY_MOST_S, RETRY_S * 2 ** min(row.attempts - 1, 20))
            if row.kind == HsmAction.RESTORE:
                delay_s = self._mds.settings.thaw_poll_s if thawing else min(delay_s, 5.0)
            action.row = row._replace(
                state=WAITING, reason=reason, not_before_ns=now_ns + round(delay_s * 1e9), changed_ns=now_ns,
                key="", upload="",
            )  # fmt: skip
            log.info("%s of %#x is tried again in %.1f s: %s", HsmAction(row.kind).name, row.fid, delay_s, reason)
            await self._end(as_stored, action.row)
            self._waiting[row.kind].setdefault(row.uid, []).append(action)
        else:
            if state == FAILED:
                log.warning("%s of %#x failed: %s", HsmAction(row.kind).name, row.fid, reason)
            if row.state != SUCCEED:
                action.row = row._replace(state=state, reason=reason, changed_ns=now_ns, key="", upload="")
                await self._end(as_stored, action.row)
            if self.active.get(row.fid) is action:
                del self.active[row.fid]
            self._mds.mdt.restoring.discard(row.fid)
            if failure is not None:
                action.failed = failure if state == CANCELED else OSError(errno.EIO, reason)
            action.over(action.failed)
            self.on_end(action.row)
            self._trim()
        self.pump()

    def _look_again(self, row: ActionRow, step: Step) -> None:
        """Raise NotDue unless what a rule wanted is still wanted, by what is true of the file now."""
        if step.tx.inode(row.fid) is None:
            raise Gone
        step.leases.truth(row.fid)
        if self.guard is not None:
            self.guard(step, row)

    async def _end(self, as_stored: ActionRow, ended: ActionRow) -> None:
        """An attempt is over: nothing of it is left in the archive."""
        await self._durably(lambda step: hsmsteps.end_action(step, as_stored, ended))
        if as_stored.key:
            self._cleaner.clean()

    def _trim(self) -> None:
        self._ends_since_trim += 1
        if self._ends_since_trim >= HISTORY // 10:
            self._ends_since_trim = 0
            before = self._next_id - HISTORY
            self._journal.submit_own(partial(_side, "trim_actions", (before,))).add_done_callback(_retrieve)

    async def _durably(self, operation: Callable[[Step], Any]) -> Any:
        while True:
            try:
                return await self._journal.submit_own(operation)
            except OSError as error:
                if self._journal.closed:
                    raise asyncio.CancelledError from error
                log.warning("the queue of actions: %s", error.strerror)
                await asyncio.sleep(0.5)

    async def cancel(self, fid: int) -> bool:
        """Stop what is queued or under way for a file, and wait until it has stopped; whether there was anything."""
        action = self.active.get(fid)
        if action is None:
            return False
        if action.task is None or action.task.done():
            users = self._waiting[action.row.kind]
            queue = users.get(action.row.uid, [])
            if action in queue:
                queue.remove(action)
                if not queue:
                    del users[action.row.uid]
            as_stored = action.row
            action.row = as_stored._replace(state=CANCELED, reason="it was canceled", key="", upload="")
            await self._end(as_stored, action.row)
            if self.active.get(fid) is action:
                del self.active[fid]
            self._mds.mdt.restoring.discard(fid)
            action.over(OSError(errno.ECANCELED, "it was canceled"))
            self.on_end(action.row)
            return True
        action.task.cancel()
        await asyncio.wait({action.task})
        return True

    # --------------------------------------------------------------------------------------------------------- waiting

    async def need(self, fid: int, start: int, end: int) -> None:
        """Wait until bytes `[start, end)` of a file can be read. OSError (EIO) with the reason if that cannot be."""
        while True:
            inode = self._reading.inode(fid)
            if inode is None:
                raise OSError(errno.ESTALE, "the file does not exist any more")
            if not inode.attr.flags & RELEASED:
                return
            end = min(end, inode.attr.size)
            action = await self.request(HsmAction.RESTORE, fid, 0, READER, "read")
            if action is None or action.has(start, end):
                return
            if action.row.kind != HsmAction.RESTORE:
                await self.cancel(fid)
                continue
            if self.active.get(fid) is not action:
                if action.failed is not None:
                    raise OSError(action.failed.errno, action.failed.strerror)
                continue
            self._hurry(action)
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            action.waiters.append((start, end, future))
            await future

    def _hurry(self, action: Action) -> None:
        """Somebody waits for the bytes now: the action is a reader's from now on."""
        row = action.row
        if row.uid == READER:
            return
        action.row = row._replace(uid=READER)
        users = self._waiting[row.kind]
        queue = users.get(row.uid, [])
        if action in queue:
            queue.remove(action)
            if not queue:
                del users[row.uid]
            users.setdefault(READER, []).append(action)
            self.pump()

    async def finish(self, action: Action) -> None:
        """Wait until an action is over, without being in a hurry. OSError (EIO) with the reason if it fails."""
        if self.active.get(action.row.fid) is action:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            action.waiters.append((0, 1 << 62, future))
            await future
        elif action.failed is not None:
            raise OSError(action.failed.errno, action.failed.strerror)

    def park(self, work: Work, fid: int, stop: bool) -> None:
        """A request cannot run before a file is back (`stop`: before that has been given up)."""
        self._spawn(self._let_go_on(work, fid, stop))

    async def _let_go_on(self, work: Work, fid: int, stop: bool) -> None:
        try:
            if stop:
                await self.cancel(fid)
            else:
                await self.need(fid, 0, 1 << 62)
        except OSError as error:
            work.error = error
            self._journal.finish(work)
            return
        self._journal.again(work)

    def state(self, fid: int) -> HsmState:
        """A file as people see it."""
        inode = self._reading.inode(fid)
        if inode is None:
            return HsmState(fid, -1)
        row = hsm_of(self._reading, inode)
        action = self.active.get(fid)
        about: ActionRow | None = None
        done = total = 0
        if action is not None:
            about, done, total = action.row, action.done, action.total
        else:
            store = self._mds.mdt.store
            found = store.fetchone(store.statements.last_action, (fid,))
            about = None if found is None else ActionRow(*found)
        if about is None:
            return HsmState(fid, row.flags_now(inode), row.archive)
        return HsmState(
            fid, row.flags_now(inode), row.archive, about.kind, about.state, done, total, about.attempts, about.reason
        )

    # --------------------------------------------------------------------------------------------------------- actions

    async def _archive(self, action: Action) -> None:
        spec, storage_class = self.archive_of(action.row.archive), action.row.storage_class
        await self._archiver.run(action, replace(spec, storage_class=storage_class) if storage_class else spec)
        self._cleaner.clean()

    async def _transition(self, action: Action) -> None:
        await self.classes.move(action, self.archive_of(action.row.archive))

    async def _release(self, action: Action) -> None:
        fid, up, ended = action.row.fid, self.movers.up(), action.succeeded(self._mds.clock.now_ns())
        if await self._journal.submit_own(lambda step: hsmsteps.release(step, fid, up, ended)):
            action.row = ended

    async def _remove(self, action: Action) -> None:
        fid = action.row.fid
        await self._journal.submit_own(lambda step: hsmsteps.remove_copy(step, fid))
        self._cleaner.clean()

    async def _restore(self, action: Action) -> None:
        fid = action.row.fid
        inode = self._reading.inode(fid)
        if inode is not None and inode.attr.flags & RELEASED:
            copy = hsm_of(self._reading, inode)
            await self.classes.thaw(action, copy, self.archive_of(copy.archive))
        up = self.movers.up()
        back: Return | None = await self._journal.submit_own(lambda step: hsmsteps.begin_restore(step, fid, up))
        if back is None:
            return
        try:
            await self._restorer.run(action, back, self.archive_of(back.row.archive))
        except BaseException as error:
            await self._archiver.quiesce(fid)
            row = back.row
            if isinstance(error, OSError) and error.errno == errno.ESTALE and row.archive in self._mds.mdt.linked:
                readable = bool(action.ready)
                what = await self._mds.links.follow(row, readable)
                raise OSError(errno.EIO if readable else errno.EAGAIN, what) from None
            if isinstance(error, OSError) and error.errno in (errno.ENOENT, errno.ESTALE) and "object" in str(error):
                await self._durably(lambda step: _unless_gone(hsmsteps.lose, step, fid))
                raise OSError(errno.EIO, error.strerror) from None
            raise

    async def ask_everybody(self, request: wire.Request[Any]) -> list[Any]:
        """The answers of all OSSes; OSError (EAGAIN) if there is none, or the first failure."""
        return await self.movers.ask_everybody(request)

    async def ask_one(self, request: wire.Request[Any]) -> Any:
        """The answer of one OSS."""
        return await self.movers.ask_one(request)


def _put(row: ActionRow, step: Step) -> None:
    hsmsteps.put_action(step, row)


def _side(name: str, row: tuple[Any, ...], step: Step) -> None:
    step.tx.run(name, row)


def _unless_gone(work: Callable[[Step, int], None], step: Step, fid: int) -> None:
    try:
        work(step, fid)
    except Gone:
        return


def _retrieve(future: "asyncio.Future[Any]") -> None:
    if not future.cancelled() and (error := future.exception()) is not None:
        log.warning("the queue of actions: %s", error)
