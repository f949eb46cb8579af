"""The coordinator of the lifecycle tier: what is to be done with which file, in which order, and what became of it.

Every action is a row before it begins, and keeps it, with its reason, after it has ended. A file has one action at a
time. Those who wait for bytes come first, then what was asked for, users in turn. A failure that may pass is tried
again, later each time. After a restart everything that was not over begins anew; movers stop when the MDS is lost.
"""

import asyncio
import errno
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec
import xxhash

from nacrefs.common import wire
from nacrefs.common.layout import Layout, by_stripe
from nacrefs.common.wire import ArchiveSpec, HsmAction, HsmFlag, HsmState, Right, Stripes
from nacrefs.mds import hsmsteps
from nacrefs.mds.hsmrows import CANCELED, FAILED, RELEASED, STARTED, SUCCEED, WAITING, ActionRow, HsmRow, hsm_of
from nacrefs.mds.hsmsteps import Gone, Plan, Return
from nacrefs.mds.journal import Work
from nacrefs.mds.step import Step
from nacrefs.mds.targets import objects_by_ost
from nacrefs.mds.tx import Tx

if TYPE_CHECKING:
    from nacrefs.mds.service import Mds

log = logging.getLogger("nacre.mds")

RUNNING_MAX: Final = 48
"""Actions under way at a time."""
QUEUE_MAX: Final = 1_000_000
"""Actions that may wait; more are refused with EAGAIN."""
MOVES_PER_OSS: Final = 4
"""Parts that one OSS moves at a time."""
PART_BYTES: Final = 8 << 20
PARTS_MAX: Final = 10_000
"""As many parts as an S3 object may have."""
HISTORY: Final = 10_000
"""Actions that are over and still shown."""
ATTEMPTS: Final = {HsmAction.RESTORE: 12, HsmAction.ARCHIVE: 40, HsmAction.RELEASE: 10, HsmAction.REMOVE: 40}
RETRY_S: Final = 0.2
RETRY_MOST_S: Final = 120.0
TRANSIENT: Final = frozenset(
    {
        errno.EAGAIN, errno.ETIMEDOUT, errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE,
        errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EBADMSG, errno.ECANCELED, errno.ESHUTDOWN, errno.ENOTCONN,
    }
)  # fmt: skip
_spec_of = msgspec.msgpack.Decoder(ArchiveSpec).decode


class Action:
    """One action that is not over."""

    __slots__ = ("canceled", "done", "failed", "ready", "row", "task", "total", "unit", "waiters")

    def __init__(self, row: ActionRow) -> None:
        self.row = row
        self.task: asyncio.Task[None] | None = None
        self.done = 0
        self.total = 0
        self.canceled = False
        self.failed: OSError | None = None
        self.ready: set[int] = set()
        """Parts that are back."""
        self.unit = 0
        self.waiters: list[tuple[int, int, asyncio.Future[None]]] = []

    def has(self, start: int, end: int) -> bool:
        """Whether these bytes are back."""
        unit = self.unit
        return unit > 0 and all(part in self.ready for part in range(start // unit, -(-end // unit)))

    def arrived(self, part: int) -> None:
        """One part is back."""
        self.ready.add(part)
        left: list[tuple[int, int, asyncio.Future[None]]] = []
        for start, end, future in self.waiters:
            if future.done():
                continue
            if self.has(start, end):
                future.set_result(None)
            else:
                left.append((start, end, future))
        self.waiters = left

    def over(self, error: OSError | None) -> None:
        """It has ended: everybody goes on, or hears why not."""
        for _, _, future in self.waiters:
            if not future.done():
                if error is None:
                    future.set_result(None)
                else:
                    future.set_exception(OSError(error.errno, error.strerror))
        self.waiters = []


class Coordinator:
    """All actions of an MDT."""

    def __init__(self, mds: "Mds") -> None:
        self._mds = mds
        self._journal = mds.journal
        self._targets = mds.targets
        self._reading = Tx(mds.mdt, writable=False)
        self.archives: dict[int, ArchiveSpec] = {}
        self.active: dict[int, Action] = {}
        """By fid."""
        self._waiting: dict[int, dict[int, list[Action]]] = defaultdict(dict)
        """By kind and user, oldest first."""
        self._turn: dict[int, int] = {}
        self._running = 0
        self._next_id = 1
        self._timer: asyncio.TimerHandle | None = None
        self._moving: dict[int, int] = {}
        self._moved = asyncio.Event()
        self._cleaning: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stopping = False
        self._ends_since_trim = 0

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
        self._cleaning = self._spawn(self._clean())
        self.pump()

    async def stop(self) -> None:
        """End; what is not over begins anew next time."""
        self._stopping = True
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

    def _request(self, kind: HsmAction, fid: int, archive: int, uid: int, cause: str, step: Step) -> ActionRow | None:
        inode = step.tx.need(fid)
        if not inode.is_regular:
            raise OSError(errno.EINVAL, "only regular files are archived")
        row = hsm_of(step.tx, inode)
        flags = row.flags_now(inode)
        released = inode.attr.flags & RELEASED
        if kind == HsmAction.ARCHIVE:
            archive = self.archive_of(archive).id
            if flags & HsmFlag.NOARCHIVE:
                raise OSError(errno.EPERM, "it is marked noarchive")
            clean = flags & HsmFlag.ARCHIVED and not flags & (HsmFlag.DIRTY | HsmFlag.LOST) and row.archive == archive
            if (clean and not step.tx.opens(fid) and not step.leases.others(fid)) or released:
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
        now_ns = step.now_ns
        number, self._next_id = self._next_id, self._next_id + 1
        action = ActionRow(number, fid, int(kind), archive, uid, cause, WAITING, 0, 0, now_ns, now_ns)
        _put(action, step)
        return action

    def archive_of(self, number: int) -> ArchiveSpec:
        """An archive by its number; 0: the first. OSError (ENODEV) if there is none."""
        if not number and self.archives:
            number = min(self.archives)
        spec = self.archives.get(number)
        if spec is None:
            text = f"there is no archive {number}" if number else "there is no archive: `nacre archive add` makes one"
            raise OSError(errno.ENODEV, text)
        return spec

    def pump(self) -> None:
        """Begin what can begin."""
        if self._stopping:
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

    def _next_user(self, kind: int, users: list[int]) -> int:
        """Whose turn it is."""
        last = self._turn.get(kind, -2)
        chosen = min((uid for uid in users if uid > last), default=min(users))
        self._turn[kind] = chosen
        return chosen

    async def _run(self, action: Action) -> None:
        row = action.row
        failure: OSError | None = None
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
            }[HsmAction(row.kind)]
            await work(action)
        except asyncio.CancelledError:
            if self._stopping:
                return
            state, failure = CANCELED, OSError(errno.ECANCELED, "it was canceled")
        except Gone:
            state, failure = CANCELED, OSError(errno.ENOENT, "the file was removed")
        except OSError as error:
            state, failure = FAILED, error
        except Exception as error:
            log.exception("action %d (%s of %#x)", row.id, HsmAction(row.kind).name, row.fid)
            state, failure = FAILED, OSError(errno.EIO, f"internal error: {type(error).__name__}")
        finally:
            self._running -= 1
        if self._journal.closed:
            return
        row = action.row
        now_ns = self._mds.clock.now_ns()
        reason = "" if failure is None else failure.strerror or str(failure)
        again = (
            state == FAILED
            and failure is not None
            and failure.errno in TRANSIENT
            and row.attempts < ATTEMPTS[HsmAction(row.kind)]
        )
        if again:
            delay_s = min(RETRY_MOST_S, RETRY_S * 2 ** min(row.attempts - 1, 20))
            if row.kind == HsmAction.RESTORE:
                delay_s = min(delay_s, 5.0)
            action.row = row._replace(
                state=WAITING, reason=reason, not_before_ns=now_ns + round(delay_s * 1e9), changed_ns=now_ns
            )
            log.info("%s of %#x is tried again in %.1f s: %s", HsmAction(row.kind).name, row.fid, delay_s, reason)
            await self._durably(partial(_put, action.row))
            self._waiting[row.kind].setdefault(row.uid, []).append(action)
        else:
            if state == FAILED:
                log.warning("%s of %#x failed: %s", HsmAction(row.kind).name, row.fid, reason)
            action.row = row._replace(state=state, reason=reason, changed_ns=now_ns)
            await self._durably(partial(_put, action.row))
            if self.active.get(row.fid) is action:
                del self.active[row.fid]
            self._mds.mdt.restoring.discard(row.fid)
            if failure is not None:
                action.failed = failure if state == CANCELED else OSError(errno.EIO, reason)
            action.over(action.failed)
            self._trim()
        self.pump()

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
            row = action.row = action.row._replace(state=CANCELED, reason="it was canceled")
            await self._durably(partial(_put, row))
            if self.active.get(fid) is action:
                del self.active[fid]
            self._mds.mdt.restoring.discard(fid)
            action.over(OSError(errno.ECANCELED, "it was canceled"))
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
            action = await self.request(HsmAction.RESTORE, fid, 0, -1, "read")
            if action is None or action.has(start, end):
                return
            if action.row.kind != HsmAction.RESTORE:
                await self.cancel(fid)
                continue
            if self.active.get(fid) is not action:
                if action.failed is not None:
                    raise OSError(action.failed.errno, action.failed.strerror)
                continue
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            action.waiters.append((start, end, future))
            await future

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
        row = action.row
        spec = self.archive_of(row.archive)
        if row.upload:  # of an earlier run
            await self._ask_any(wire.MoveAbort(spec, row.key, row.upload.strip("?")))
            action.row = row = row._replace(key="", upload="")
        plan: Plan = await self._journal.submit_own(lambda step: hsmsteps.plan_archive(step, row.fid, spec.template))
        size = plan.attr.size
        action.total, action.done = size, 0
        if plan.data is None and plan.layout is None:
            raise OSError(errno.EIO, "it has neither contents nor a layout")
        unit = spec.part_bytes or PART_BYTES
        unit = max(unit, -(-size // PARTS_MAX) + (1 << 20) - 1 >> 20 << 20)
        stripes = None if plan.data is not None else self._stripes(row.fid, plan.layout)
        if size <= 2 * unit and (plan.data is not None or size <= unit):
            order = wire.MovePut(spec, plan.key, plan.meta, size, stripes, plan.data)
            moved = await self._move(plan.layout, 0, size, order)
            etag, digests, unit = moved.etag, moved.digest, max(size, 1)
        else:
            assert stripes is not None
            etag, digests = await self._archive_parts(action, spec, plan, stripes, unit)
        copy = HsmRow(
            row.fid, 0, spec.id, plan.key, plan.version, size, etag, unit, digests,
            xxhash.xxh3_64_digest(digests), spec.storage_class, self._mds.clock.now_ns(),
        )  # fmt: skip
        try:
            same = await self._journal.submit_own(lambda step: hsmsteps.end_archive(step, plan, copy))
        except Gone:
            same = None
        if not same:
            await self._durably(partial(_drop, spec.id, plan.key))
            self.clean()
            if same is None:
                raise Gone
            raise OSError(errno.EAGAIN, "it was changed while it was copied")
        self.clean()

    async def _archive_parts(
        self, action: Action, spec: ArchiveSpec, plan: Plan, stripes: Stripes, unit: int
    ) -> tuple[str, bytes]:
        size, fid = plan.attr.size, plan.attr.fid
        action.row = action.row._replace(key=plan.key, upload="?")
        await self._journal.submit_own(partial(_put, action.row))
        upload: str = (await self._ask_any(wire.MoveBegin(spec, plan.key, plan.meta))).upload
        action.row = action.row._replace(key=plan.key, upload=upload)
        finished = False
        try:
            await self._journal.submit_own(partial(_put, action.row))
            count = -(-size // unit)
            moved: list[wire.Moved | None] = [None] * count

            async def send(part: int) -> None:
                start, end = part * unit, min(size, (part + 1) * unit)
                moved[part] = await self._move(
                    plan.layout, start, end, wire.MovePart(spec, plan.key, upload, part + 1, start, end, stripes)
                )
                action.done += end - start

            await self._all(range(count), send)
            etags = tuple(one.etag for one in moved if one is not None)
            whole = await self._ask_any(wire.MoveComplete(spec, plan.key, upload, etags, size))
            finished = True
            action.row = action.row._replace(upload="")
            return whole.etag, b"".join(one.digest for one in moved if one is not None)
        finally:
            if not finished and not self._stopping:
                try:
                    await asyncio.shield(self._ask_any(wire.MoveStop((fid,)), everybody=True))
                    await asyncio.shield(self._ask_any(wire.MoveAbort(spec, plan.key, upload)))
                    action.row = action.row._replace(key="", upload="")
                except OSError as error:
                    log.warning("upload of %#x is aborted later: %s", fid, error.strerror)

    async def _all(self, parts: Iterable[int], move: Callable[[int], Any], most: int = 16) -> None:
        """Move parts, some at a time, in order; the first failure stops the rest."""
        coming = iter(parts)

        async def worker() -> None:
            for part in coming:
                await move(part)

        workers = [asyncio.create_task(worker()) for _ in range(most)]
        try:
            await asyncio.gather(*workers)
        finally:
            for one in workers:
                one.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def _release(self, action: Action) -> None:
        fid = action.row.fid
        await self._journal.submit_own(lambda step: hsmsteps.release(step, fid, self._up()))

    async def _remove(self, action: Action) -> None:
        fid = action.row.fid
        await self._journal.submit_own(lambda step: hsmsteps.remove_copy(step, fid))
        self.clean()

    async def _restore(self, action: Action) -> None:
        fid = action.row.fid
        back: Return | None = await self._journal.submit_own(lambda step: hsmsteps.begin_restore(step, fid, self._up()))
        if back is None:
            return
        row, layout, size = back
        spec = self.archive_of(row.archive)
        unit = row.part_bytes or PART_BYTES
        stripes = self._stripes(fid, layout)
        action.total, action.unit = size, unit
        action.ready.clear()
        action.done = 0
        left = dict.fromkeys(range(-(-size // unit)))

        def wanted() -> Iterable[int]:
            """Parts, those first for which somebody waits."""
            while left:
                asked = next(
                    (
                        part
                        for start, end, future in action.waiters
                        if not future.done() and end - start < size
                        for part in range(start // unit, -(-end // unit))
                        if part in left
                    ),
                    -1,
                )
                part = asked if asked >= 0 else next(iter(left))
                del left[part]
                yield part

        async def fetch(part: int) -> None:
            start, end = part * unit, min(size, (part + 1) * unit)
            if self._reading.inode(fid) is None:
                raise Gone
            digest = row.digests[part * 8 : part * 8 + 8]
            await self._move(
                layout, start, end, wire.MoveGet(spec, row.key, start, end, row.size, stripes, digest, row.etag)
            )
            action.done += end - start
            action.arrived(part)

        try:
            if size != row.size:
                raise OSError(errno.EIO, f"the copy has {row.size} bytes, the file {size}")
            await self._all(wanted(), fetch)
            await self._sync(fid, layout)
        except BaseException as error:
            if not self._stopping:
                await asyncio.shield(self._quiesce(fid))
            if isinstance(error, OSError) and error.errno in (errno.ENOENT, errno.ESTALE) and "object" in str(error):
                await self._durably(lambda step: _unless_gone(hsmsteps.lose, step, fid))
                raise OSError(errno.EIO, error.strerror) from None
            raise

    async def _quiesce(self, fid: int) -> None:
        try:
            await self._ask_any(wire.MoveStop((fid,)), everybody=True)
        except OSError as error:
            log.warning("moves of %#x: %s", fid, error.strerror)

    async def _sync(self, fid: int, layout: Layout) -> None:
        """Everything is there: make it durable, and say that it is back."""
        calls = [self._ask_ost(ost, wire.MoveSync(objects)) for ost, objects in objects_by_ost([(fid, layout)]).items()]
        allocated = sum(stat.allocated_bytes for reply in await asyncio.gather(*calls) for stat in reply.stats)
        await self._journal.submit_own(lambda step: hsmsteps.end_restore(step, fid, allocated))

    # ----------------------------------------------------------------------------------------------------------- moves

    def _up(self) -> list[int]:
        return [info.index for info in self._targets.table() if info.up]

    def _stripes(self, fid: int, layout: Layout | None) -> Stripes:
        assert layout is not None
        capability = self._mds.capability(fid, layout.generation, 0, Right.READ | Right.WRITE)
        addresses = {info.index: info.address for info in self._targets.table()}
        return Stripes(fid, layout, capability, tuple(addresses.get(ost, "") for ost in layout.osts))

    async def _move(self, layout: Layout | None, start: int, end: int, request: wire.Request[Any]) -> Any:
        """Have a move made by the OSS that has most of its bytes, or one with less to do."""
        while True:
            peers = self._movers(layout, start, end)
            if not peers:
                raise OSError(errno.EAGAIN, "no OSS is there")
            free = [peer for peer in peers if self._moving.get(id(peer), 0) < MOVES_PER_OSS]
            if free:
                peer = min(free, key=lambda one: (self._moving.get(id(one), 0), peers.index(one)))
                break
            moved = self._moved
            await moved.wait()
        self._moving[id(peer)] = self._moving.get(id(peer), 0) + 1
        try:
            return await peer.call(request)
        finally:
            self._moving[id(peer)] -= 1
            if not self._moving[id(peer)]:
                del self._moving[id(peer)]
            self._moved.set()
            self._moved = asyncio.Event()

    def _movers(self, layout: Layout | None, start: int, end: int) -> list[Any]:
        """Connected OSSes, the one with most of these bytes first."""
        bytes_of: dict[Any, int] = {}
        for ost in self._targets.osts.values():
            if ost.peer is not None and self._targets.is_up(ost):
                bytes_of.setdefault(ost.peer, 0)
        if layout is not None:
            for stripe, extents in by_stripe(layout, start, end).items():
                holder = self._targets.osts.get(layout.osts[stripe])
                if holder is not None and holder.peer in bytes_of:
                    bytes_of[holder.peer] += sum(high - low for low, high in extents)
        return sorted(bytes_of, key=lambda peer: -bytes_of[peer])

    async def _ask_any(self, request: wire.Request[Any], everybody: bool = False) -> Any:
        """Ask one OSS, or all of them."""
        peers = self._movers(None, 0, 0)
        if not peers:
            if everybody:
                return None
            raise OSError(errno.EAGAIN, "no OSS is there")
        if everybody:
            answers = await asyncio.gather(*(peer.call(request) for peer in peers), return_exceptions=True)
            for answer in answers:
                if isinstance(answer, OSError) and not isinstance(answer, ConnectionError):
                    raise answer
            return answers
        peer = min(peers, key=lambda one: self._moving.get(id(one), 0))
        return await peer.call(request)

    async def ask_everybody(self, request: wire.Request[Any]) -> list[Any]:
        """The answers of all OSSes; OSError (EAGAIN) if there is none, or the first failure."""
        peers = self._movers(None, 0, 0)
        if not peers:
            raise OSError(errno.EAGAIN, "no OSS is there")
        return list(await asyncio.gather(*(peer.call(request) for peer in peers)))

    async def ask_one(self, request: wire.Request[Any]) -> Any:
        """The answer of one OSS."""
        return await self._ask_any(request)

    async def _ask_ost(self, number: int, request: wire.Request[Any]) -> Any:
        ost = self._targets.osts.get(number)
        if ost is None or ost.peer is None:
            raise OSError(errno.EAGAIN, f"OST {number} is away")
        return await ost.peer.call(request)

    # -------------------------------------------------------------------------------------------------------- cleaning

    _dirty: asyncio.Event

    def clean(self) -> None:
        """Objects may be there that nobody needs."""
        self._dirty.set()

    async def _clean(self) -> None:
        """Delete objects that no file needs any more, again and again until the archive has confirmed."""
        self._dirty = asyncio.Event()
        self._dirty.set()
        store = self._mds.mdt.store
        delay_s = RETRY_S
        while not self._stopping and not self._journal.closed:
            try:
                # Not wait_for: Python 3.11's swallows a cancellation that comes when the event is there already.
                async with asyncio.timeout(5.0):
                    await self._dirty.wait()
            except TimeoutError:
                pass
            self._dirty.clear()
            while rows := store.fetchall(store.statements.gone, (500,)):
                by_archive: dict[int, list[str]] = defaultdict(list)
                for number, key in rows:
                    by_archive[number].append(key)
                try:
                    for number, keys in by_archive.items():
                        if number in self.archives:
                            await self._ask_any(wire.MoveDelete(self.archives[number], tuple(keys)))
                    await self._journal.submit_own(partial(_forget_gone, rows))
                    delay_s = RETRY_S
                except OSError as error:
                    log.warning("objects that are not needed any more: %s", error.strerror)
                    await asyncio.sleep(delay_s)
                    delay_s = min(RETRY_MOST_S, 2 * delay_s)

    def report(self) -> dict[str, Any]:
        """The queue, as plain data."""
        now_ns = time.time_ns()
        rows = [action.row for action in self.active.values()]
        store = self._mds.mdt.store
        waiting = store.fetchall(store.statements.gone, (1000,))
        return {
            "waiting": sum(row.state == WAITING for row in rows),
            "started": sum(row.state == STARTED for row in rows),
            "to_delete": len(waiting),
            "actions": [
                {
                    "id": action.row.id,
                    "fid": action.row.fid,
                    "action": HsmAction(action.row.kind).name.lower(),
                    "archive": action.row.archive,
                    "uid": action.row.uid,
                    "cause": action.row.cause,
                    "state": action.row.state,
                    "attempts": action.row.attempts,
                    "age_s": round((now_ns - action.row.created_ns) / 1e9, 3),
                    "done": action.done,
                    "total": action.total,
                    "waiters": len(action.waiters),
                    "reason": action.row.reason,
                }
                for action in list(self.active.values())[:1000]
            ],
        }


def _put(row: ActionRow, step: Step) -> None:
    _side("put_action", tuple(row), step)


def _drop(archive: int, key: str, step: Step) -> None:
    step.tx.drop_object(archive, key)


def _side(name: str, row: tuple[Any, ...], step: Step) -> None:
    step.tx.run(name, row)


def _forget_gone(rows: list[tuple[int, str]], step: Step) -> None:
    for row in rows:
        step.tx.run("delete_gone", row)


def _unless_gone(work: Callable[[Step, int], None], step: Step, fid: int) -> None:
    try:
        work(step, fid)
    except Gone:
        return


def _retrieve(future: "asyncio.Future[Any]") -> None:
    if not future.cancelled() and (error := future.exception()) is not None:
        log.warning("the queue of actions: %s", error)
