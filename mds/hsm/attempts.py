"""Attempts at actions: one is made, and what came of it decides whether there is another, and when.

A failure that may pass is tried again, later each time. What finds its archive full is not an attempt: it has all the
time that there is. Whatever ends is written down before anybody hears of it.
"""

import asyncio
import errno
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import replace

from nacrefs.common.wire import HsmAction
from nacrefs.mds.hsm import steps
from nacrefs.mds.hsm.archiving import Archiver
from nacrefs.mds.hsm.full import FILLING
from nacrefs.mds.hsm.queue import Action, Thawing
from nacrefs.mds.hsm.restoring import Restorer
from nacrefs.mds.hsm.rows import CANCELED, FAILED, RELEASED, STARTED, SUCCEED, WAITING, ActionRow, hsm_of
from nacrefs.mds.hsm.steps import Gone, NotDue, Return
from nacrefs.mds.transactions.step import Step
from nacrefs.mds.transactions.tx import Tx

if TYPE_CHECKING:
    from nacrefs.mds.hsm.coordinator import Coordinator
    from nacrefs.mds.service import Mds

log = logging.getLogger("nacre.mds")

ATTEMPTS: Final = {
    HsmAction.RESTORE: 12, HsmAction.ARCHIVE: 40, HsmAction.RELEASE: 10, HsmAction.REMOVE: 40, HsmAction.TRANSITION: 40,
}  # fmt: skip
RETRY_S: Final = 0.2
RETRY_MOST_S: Final = 120.0
READER_MOST_S: Final = 5.0
"""Who reads waits no longer than this for the next attempt."""
TRANSIENT: Final = frozenset(
    {
        errno.EAGAIN, errno.ETIMEDOUT, errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE,
        errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EBADMSG, errno.ECANCELED, errno.ESHUTDOWN, errno.ENOTCONN,
    }
)  # fmt: skip
RULES: Final = -2
"""Who asks for what lifecycle rules want done: a user of their own, for fairness."""


def may_pass(failure: OSError, kind: int) -> bool:
    """Whether an action that failed is worth another try. A reader does not wait for a full OST."""
    return failure.errno in TRANSIENT or (failure.errno == errno.ENOSPC and kind != HsmAction.RESTORE)


def delay_s(kind: int, attempts: int) -> float:
    """How long after a failure, the `attempts`th, the next attempt is made."""
    later_s: float = min(RETRY_MOST_S, RETRY_S * 2 ** min(attempts - 1, 20))
    return min(later_s, READER_MOST_S) if kind == HsmAction.RESTORE else later_s


class Attempts:
    """Makes the attempts of a coordinator's actions."""

    def __init__(self, mds: "Mds", coordinator: "Coordinator") -> None:
        self._mds = mds
        self._journal = mds.journal
        self._coordinator = coordinator
        self._reading = Tx(mds.mdt, writable=False)
        self._archiver = Archiver(mds, coordinator.movers)
        self._restorer = Restorer(mds, coordinator.movers)

    async def make(self, action: Action) -> bool | None:
        """Make one; True if there is to be another (`action.row` says when), False if the action is over (`failed` says
        why, if anybody is to hear of it), None if nothing is to be done about it: the MDS ends, or is lost."""
        row = action.row
        failure: OSError | None = None
        thawing = False
        state = SUCCEED
        action.stoppable = True
        try:
            action.row = row = row._replace(
                state=STARTED, attempts=row.attempts + 1, changed_ns=self._mds.clock.now_ns()
            )
            if row.uid == RULES:
                await self._journal.submit_own(partial(self._look_again, row))
            await self._work(action)
        except asyncio.CancelledError:
            if self._coordinator.stopping:
                return None
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
            action.stoppable = False
        if self._journal.closed:
            return None
        if await self._waits(action, state, failure, thawing):
            return True
        await self._is_over(action, state, failure)
        return False

    async def _waits(self, action: Action, state: str, failure: OSError | None, thawing: bool) -> bool:
        """Whether there is to be another attempt, which is written down then."""
        row, now_ns = action.row, self._mds.clock.now_ns()
        kind = HsmAction(row.kind)
        full = kind in FILLING and self._is_full(row, failure, _reason(failure), now_ns)
        if full:
            await self.end(action, WAITING, _reason(failure), now_ns, row.attempts - 1)
            return True
        if state != FAILED or failure is None or not may_pass(failure, kind) or row.attempts >= ATTEMPTS[kind]:
            return False
        later_s = self._mds.settings.thaw_poll_s if thawing else delay_s(kind, row.attempts)
        log.info("%s of %#x is tried again in %.1f s: %s", kind.name, row.fid, later_s, _reason(failure))
        await self.end(action, WAITING, _reason(failure), now_ns + round(later_s * 1e9))
        return True

    async def _is_over(self, action: Action, state: str, failure: OSError | None) -> None:
        row, reason = action.row, _reason(failure)
        if state == FAILED:
            log.warning("%s of %#x failed: %s", HsmAction(row.kind).name, row.fid, reason)
        if row.state != SUCCEED:
            await self.end(action, state, reason)
        if failure is not None:
            told = state == CANCELED or (failure.errno == errno.ESTALE and row.kind == HsmAction.ARCHIVE)
            action.failed = failure if told else OSError(errno.EIO, reason)

    async def end(
        self, action: Action, state: str, reason: str, not_before_ns: int | None = None, attempts: int | None = None
    ) -> None:
        """An attempt is over, or an action that had none: nothing of it is left in the archive."""
        as_stored = row = action.row
        action.row = row._replace(
            state=state,
            reason=reason,
            not_before_ns=row.not_before_ns if not_before_ns is None else not_before_ns,
            attempts=row.attempts if attempts is None else attempts,
            changed_ns=self._mds.clock.now_ns(),
            key=self._kept_key(row),
            upload="",
        )
        ended = action.row
        await self.durably(lambda step: steps.end_action(step, as_stored, ended))

    def _is_full(self, row: ActionRow, failure: OSError | None, reason: str, now_ns: int) -> bool:
        """Whether the archive had no room for what has just ended; what that means for others."""
        if failure is not None and failure.errno == errno.ENOSPC:
            if self._coordinator.full.refused(row.archive, row.id, reason, now_ns):
                log.warning("what goes to archive %d waits for room: %s", row.archive, reason)
            return True
        if self._coordinator.full.ended(row.archive, row.id, failure is None):
            log.warning("archive %d has room again", row.archive)
        return False

    def _kept_key(self, row: ActionRow) -> str:
        """What the row of an attempt that is over says of its key. In a link's bucket others use it, too, so nothing
        was deleted there, and an upload whose answer was lost may be under it (`steps.doubtful_key`)."""
        return row.key if row.archive in self._mds.mdt.linked else ""

    def _look_again(self, row: ActionRow, step: Step) -> None:
        """Raise NotDue unless what a rule wanted is still wanted, by what is true of the file now."""
        if step.tx.inode(row.fid) is None:
            raise Gone
        step.leases.truth(row.fid)
        if self._coordinator.guard is not None:
            self._coordinator.guard(step, row)

    async def durably(self, operation: Callable[[Step], Any]) -> Any:
        """The result of a step of the queue of actions, tried until it is durable."""
        while True:
            try:
                return await self._journal.submit_own(operation)
            except OSError as error:
                if self._journal.closed:
                    raise asyncio.CancelledError from error
                log.warning("the queue of actions: %s", error.strerror)
                await asyncio.sleep(0.5)

    # ----------------------------------------------------------------------------------------------------------- works

    def _work(self, action: Action) -> Awaitable[None]:
        return {
            HsmAction.ARCHIVE: self._archive,
            HsmAction.RELEASE: self._release,
            HsmAction.RESTORE: self._restore,
            HsmAction.REMOVE: self._remove,
            HsmAction.TRANSITION: self._transition,
        }[HsmAction(action.row.kind)](action)

    async def _archive(self, action: Action) -> None:
        spec, storage_class = self._coordinator.archive_of(action.row.archive), action.row.storage_class
        await self._archiver.run(action, replace(spec, storage_class=storage_class) if storage_class else spec)

    async def _transition(self, action: Action) -> None:
        await self._coordinator.classes.move(action, self._coordinator.archive_of(action.row.archive))

    async def _release(self, action: Action) -> None:
        fid, up, ended = action.row.fid, self._coordinator.movers.up(), action.succeeded(self._mds.clock.now_ns())
        release = action.unless_canceled(lambda step: steps.release(step, fid, up, ended))
        if await self._journal.submit_own(release):
            action.row = ended

    async def _remove(self, action: Action) -> None:
        fid = action.row.fid
        await self._journal.submit_own(action.unless_canceled(lambda step: steps.remove_copy(step, fid)))

    async def _restore(self, action: Action) -> None:
        fid = action.row.fid
        inode = self._reading.inode(fid)
        if inode is not None and inode.attr.flags & RELEASED:
            copy = hsm_of(self._reading, inode)
            await self._coordinator.classes.thaw(action, copy, self._coordinator.archive_of(copy.archive))
        up = self._coordinator.movers.up()
        begin = action.unless_canceled(lambda step: steps.begin_restore(step, fid, up))
        back: Return | None = await self._journal.submit_own(begin)
        if back is None:
            return
        try:
            await self._restorer.run(action, back, self._coordinator.archive_of(back.row.archive))
        except BaseException as error:
            await self._archiver.quiesce(fid)
            if self._reading.inode(fid) is None:
                # It was removed, and its objects with it; what was under way may have made some again.
                await self.durably(lambda step: step.tx.destroy_objects(fid, back.layout))
            row = back.row
            if isinstance(error, OSError) and error.errno == errno.EREMCHG and row.archive in self._mds.mdt.linked:
                readable = bool(action.ready)
                what = await self._mds.links.follow(row, readable)
                raise OSError(errno.EIO if readable else errno.EAGAIN, what) from None
            if isinstance(error, OSError) and error.errno in (errno.ENOENT, errno.EREMCHG):
                await self.durably(lambda step: _unless_gone(steps.lose, step, fid))
                raise OSError(errno.EIO, error.strerror) from None
            raise


def _reason(failure: OSError | None) -> str:
    return "" if failure is None else failure.strerror or str(failure)


def _unless_gone(work: Callable[[Step, int], None], step: Step, fid: int) -> None:
    try:
        work(step, fid)
    except Gone:
        return
