"""The coordinator of the lifecycle tier: what is to be done with which file, in which order, and what became of it.

Every action is a row before it begins, and keeps it, with its reason, after it has ended. A file has one action at a
time. Those who wait for bytes come first, then what was asked for, users in turn. A failure that may pass is tried
again, later each time. After a restart everything that was not over begins anew; movers stop when the MDS is lost.
"""

import asyncio
import errno
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec

from nacrefs.common import wire
from nacrefs.common.wire import ArchiveSpec, HsmAction, HsmFlag, HsmState
from nacrefs.mds.hsm import steps
from nacrefs.mds.hsm.attempts import RULES, Attempts
from nacrefs.mds.hsm.classes import Classes
from nacrefs.mds.hsm.cleaning import Cleaner
from nacrefs.mds.hsm.full import FILLING, FullArchives
from nacrefs.mds.hsm.movers import Movers
from nacrefs.mds.hsm.queue import EXPORT, Action, Wanted
from nacrefs.mds.hsm.rows import CANCELED, RELEASED, WAITING, ActionRow, hsm_of
from nacrefs.mds.hsm.saving import Saver
from nacrefs.mds.hsm.waiting import READER, Waiting
from nacrefs.mds.transactions.step import Step
from nacrefs.mds.transactions.tx import Tx
from nacrefs.mds.transactions.work import Work

if TYPE_CHECKING:
    from nacrefs.mds.service import Mds

log = logging.getLogger("nacre.mds")

RUNNING_MAX: Final = 48
"""Actions under way at a time."""
QUEUE_MAX: Final = 1_000_000
"""Actions that may wait; more are refused with EAGAIN."""
HISTORY: Final = 10_000
"""Actions that are over and still shown."""
# Plain numbers: what an enum's members make of `&` and `|` takes a microsecond, and rules ask for many files.
_ARCHIVED, _NOARCHIVE = int(HsmFlag.ARCHIVED), int(HsmFlag.NOARCHIVE)
_IS_CLEAN: Final = int(HsmFlag.ARCHIVED | HsmFlag.DIRTY | HsmFlag.LOST)
_IS_RELEASABLE: Final = int(HsmFlag.ARCHIVED | HsmFlag.NORELEASE | HsmFlag.LOST)
_spec_of = msgspec.msgpack.Decoder(ArchiveSpec).decode


class Coordinator:
    """All actions of an MDT."""

    def __init__(self, mds: "Mds") -> None:
        self._mds = mds
        self._journal = mds.journal
        self._reading = Tx(mds.mdt, writable=False)
        self.archives: dict[int, ArchiveSpec] = {}
        self.movers = Movers(mds)
        self.classes = Classes(mds, self.movers)
        self._cleaner = Cleaner(mds, self.movers, self.archives)
        self.saver = Saver(mds, self.movers, self.archives)
        self.active: dict[int, Action] = {}
        """By fid."""
        self._waiting = Waiting()
        self.full = FullArchives()
        self._attempts = Attempts(mds, self)
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
        for action in (Action(ActionRow(*row)) for row in store.fetchall(store.statements.actions)):
            if action.row.fid in self.active:  # asked for twice at once, and a kill came before the second was undone
                self._spawn(self._attempts.durably(partial(_side, "delete_action", (action.row.id,))))
            else:
                self._enqueue(action)
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

    def written(self, tx: Tx) -> None:
        """A batch is durable: objects that nobody needs any more are deleted now."""
        if any(name == "put_gone" for name, _ in tx.side):
            self._cleaner.clean()

    def archives_changed(self) -> None:
        """The table of archives is another one."""
        self._mds.mdt.keeping = {number for number, spec in self.archives.items() if spec.keep}
        self.movers.limit({number: spec.rate_mibps * (1 << 20) for number, spec in self.archives.items()})

    # ----------------------------------------------------------------------------------------------------------- queue

    def _enqueue(self, action: Action) -> None:
        row = action.row
        self.active[row.fid] = action
        self._waiting.add(action)
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
            await self._journal.submit_own(partial(_side, "delete_action", (made.id,)))
            return known
        action = Action(made)
        self._enqueue(action)
        self.pump()
        return action

    async def request_many(self, wanted: Sequence[Wanted]) -> list[str | None]:
        """Queue what a rule wants, in one transaction; for each why it was refused, empty if it is queued, None if
        there is nothing to do."""
        made: list[ActionRow | str | None] = await self._journal.submit_own(
            partial(self._request_many, wanted), aside=True
        )
        answers: list[str | None] = []
        for row in made:
            if not isinstance(row, ActionRow):
                answers.append(row)
            elif row.fid in self.active:  # somebody else was quicker
                await self._journal.submit_own(partial(_side, "delete_action", (row.id,)))
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
        export = kind == HsmAction.ARCHIVE and cause == EXPORT
        if not inode.is_regular and not (export and inode.is_symlink):
            raise OSError(errno.EINVAL, "only regular files are archived")
        row = hsm_of(step.tx, inode)
        flags = row.flags_now(inode)
        released = inode.attr.flags & RELEASED
        linked = step.tx.mdt.linked
        if row.archive in linked and kind in (HsmAction.ARCHIVE, HsmAction.REMOVE) and not export:
            raise OSError(errno.EPERM, "it belongs to a link: its copy is the object in the link's bucket")
        if kind == HsmAction.ARCHIVE:
            archive = self.archive_of(archive).id
            if archive in linked and not export:
                raise OSError(errno.EPERM, f"archive {archive} is the bucket of a link")
            if flags & _NOARCHIVE:
                raise OSError(errno.EPERM, "it is marked noarchive")
            clean = flags & _IS_CLEAN == _ARCHIVED and row.archive == archive
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
            if flags & _IS_RELEASABLE != _ARCHIVED:
                steps.check_release(inode, row)
        elif kind == HsmAction.REMOVE:
            if released:
                raise OSError(errno.EPERM, "it is released: the copy is all there is; restore it first")
            if not row.key:
                return None
            archive = row.archive
        elif kind == HsmAction.TRANSITION:
            if not storage_class:
                raise OSError(errno.EINVAL, "a rule says to which storage class")
            archive = steps.good_copy(step, fid).archive
        now_ns = step.now_ns
        number, self._next_id = self._next_id, self._next_id + 1
        before = steps.doubtful_key(step, fid, archive) if export else ""
        action = ActionRow(
            number, fid, int(kind), archive, uid, cause, WAITING, 0, 0, now_ns, now_ns, key=before,
            storage_class=storage_class,
        )  # fmt: skip
        steps.put_action(step, action)
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
        """Begin what can begin; nothing in the grace term (`Grace.ended`)."""
        if self.stopping or self._held or self._mds.grace.running:
            return
        now_ns = self._mds.clock.now_ns()
        self._waiting.soonest_ns = 0
        for kind in HsmAction:
            # Those who wait for bytes need not wait for those who only store them.
            limit = RUNNING_MAX * 2 if kind == HsmAction.RESTORE else RUNNING_MAX
            held = partial(self.full.holds, now_ns=now_ns) if kind in FILLING else _never
            due = self._waiting.due(kind, now_ns, held)
            while self._running < limit and (action := next(due, None)) is not None:
                if kind in FILLING:
                    self.full.begins(action.row.archive, action.row.id, now_ns)
                self._running += 1
                action.task = self._spawn(self._run(action))
        soonest = [at_ns for at_ns in (self._waiting.soonest_ns, self.full.soonest_ns(now_ns)) if at_ns]
        if soonest:
            if self._timer is not None:
                self._timer.cancel()
            delay_s = max(0.01, (min(soonest) - now_ns) / 1e9)
            self._timer = asyncio.get_running_loop().call_later(delay_s, self.pump)

    def hold(self) -> Callable[[], None]:
        """Begin nothing until the answer is called: what is queued waits."""
        self._held += 1

        def go_on() -> None:
            self._held -= 1
            self.pump()

        return go_on

    async def _run(self, action: Action) -> None:
        try:
            again = await self._attempts.make(action)
        finally:
            self._running -= 1
        if again is None:  # the MDS ends, or is lost
            return
        if again:
            self._waiting.add(action)
        else:
            self._forget(action, action.failed)
            self._trim()
        self.pump()

    def _forget(self, action: Action, failure: OSError | None) -> None:
        """An action is over."""
        fid = action.row.fid
        if self.active.get(fid) is action:
            del self.active[fid]
        self._mds.mdt.restoring.discard(fid)
        action.over(failure)
        self.on_end(action.row)

    def waits_for_room(self, archive: int) -> int:
        """How many actions wait for room in an archive."""
        return sum(self._waiting.count(kind, archive) for kind in FILLING) if self.full.why(archive) else 0

    def reason_of(self, row: ActionRow) -> str:
        """Why an action is not over, or failed."""
        waits = not row.reason and row.state == WAITING and row.kind in FILLING
        return self.full.why(row.archive) if waits else row.reason

    def try_again(self, archive: int) -> None:
        """There may be room in an archive that was full."""
        self.full.try_now(archive)
        self.pump()

    def _trim(self) -> None:
        self._ends_since_trim += 1
        if self._ends_since_trim >= HISTORY // 10:
            self._ends_since_trim = 0
            before = self._next_id - HISTORY
            self._journal.submit_own(partial(_side, "trim_actions", (before,))).add_done_callback(_retrieve)

    async def cancel(self, fid: int) -> bool:
        """Stop what is queued or under way for a file, and wait until it has stopped; whether there was anything."""
        action = self.active.get(fid)
        if action is None:
            return False
        while self.active.get(fid) is action:
            task = action.task
            if task is None or task.done():
                await self._cancel_queued(action)
                break
            if not action.stoppable:
                await asyncio.sleep(0)  # before its first step it would leave no trace of itself
            if action.stoppable and not action.canceled:
                action.canceled = True
                task.cancel()
            await asyncio.wait({task})  # (what has ended is to be written down first)
        return True

    async def _cancel_queued(self, action: Action) -> None:
        row = action.row
        self._waiting.remove(action, row)
        await self._attempts.end(action, CANCELED, "it was canceled")
        self._forget(action, OSError(errno.ECANCELED, "it was canceled"))

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
        if action.hurried is not None:
            action.hurried.set()
        if self._waiting.remove(action, row):
            self._waiting.add(action)
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
            fid, row.flags_now(inode), row.archive, about.kind, about.state, done, total, about.attempts,
            self.reason_of(about),
        )  # fmt: skip

    async def ask_everybody(self, request: wire.Request[Any]) -> list[Any]:
        """The answers of all OSSes; OSError (EAGAIN) if there is none, or the first failure."""
        return await self.movers.ask_everybody(request)

    async def ask_one(self, request: wire.Request[Any]) -> Any:
        """The answer of one OSS."""
        return await self.movers.ask_one(request)


def _never(archive: int) -> bool:
    return False


def _side(name: str, row: tuple[Any, ...], step: Step) -> None:
    step.tx.run(name, row)


def _retrieve(future: "asyncio.Future[Any]") -> None:
    if not future.cancelled() and (error := future.exception()) is not None:
        log.warning("the queue of actions: %s", error)
