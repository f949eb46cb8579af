"""Locks of this client: asked of the MDS, remembered so that they can be given up at close and claimed after a restart
of the MDS.

An owner is a number: of a process or an open file as the kernel names it, or of an open file of the SDK. POSIX locks
end when their owner closes any descriptor of the file (`flush`); those that are left when the last descriptor of the
open file they were taken through is gone belong to that open file (OFD locks, flock) and end then (`release`).
"""

import asyncio
import errno
import itertools
import logging
from collections import Counter
from functools import partial
from typing import Final

from nacrefs.client.filesystem import LockWait
from nacrefs.client.handle import Handles, OpenFile
from nacrefs.client.opening import Opening
from nacrefs.client.session import Session
from nacrefs.common.answer import Answer, is_later, settle
from nacrefs.common.lockranges import TO_EOF, Ranges
from nacrefs.common.wire import CancelLock, GetLock, HeldLock, Locked, LockHolder, LockKind, LockStyle, SetLock

log = logging.getLogger("nacre.client")

Key = tuple[int, LockStyle, int]
"""A file (its fid), a style, an owner."""
_RETRY_S: Final = 0.5


class _Held:
    """What one owner has on one file."""

    __slots__ = ("pid", "ranges")

    def __init__(self) -> None:
        self.ranges = Ranges()
        self.pid = 0


class Locks:
    """All locks of a client. `handles` are its open files."""

    def __init__(self, session: Session, handles: Handles[OpenFile], opening: Opening) -> None:
        self._session = session
        self._handles = handles
        self._opening = opening
        self._held: dict[Key, _Held] = {}
        self._through: dict[int, set[Key]] = {}
        """What was locked through an open file, as far as its owner has not closed it."""
        self._by_key: dict[Key, set[int]] = {}
        """The same the other way round."""
        self._lost: dict[Key, Ranges] = {}
        """Locks that were lost and that their owners have not given up yet."""
        self._asking: Counter[Key] = Counter()
        """Requests that are unanswered."""
        self._tickets = itertools.count(1)

    # ---------------------------------------------------------------------------------------------------------- locking

    async def set_lock(
        self,
        number: int,
        owner: int,
        style: LockStyle,
        kind: LockKind,
        start: int,
        end: int,
        pid: int,
        wait: LockWait | None = None,
    ) -> None:
        """Take, change or give up a lock on bytes `[start, end)`. OSError: EAGAIN if somebody else's is in the way and
        there is no `wait`, EDEADLK if waiting would never end, EINTR if `wait` was interrupted, EIO if another lock of
        this owner is lost and he has not given it up."""
        handle = self._handles.get(number)
        key = (handle.inode.fid, style, owner)
        if kind == LockKind.UNLOCK:
            if key in self._lost:
                self._lost[key].set(start, end, kind)
                if not self._lost[key]:
                    self._forgive(key)
        elif handle.lost is not None and key in handle.lost:
            raise handle.refusal("")
        else:
            self._through.setdefault(number, set()).add(key)
            self._by_key.setdefault(key, set()).add(number)
        if wait is None or kind == LockKind.UNLOCK:
            await asyncio.shield(self._call(key, kind, start, end, pid, 0))
            return
        ticket = next(self._tickets)
        while True:
            asked = self._call(key, kind, start, end, pid, ticket)
            if wait.interrupted:
                return await self._interrupt(asked, key, kind, start, end, pid, ticket)
            wait.on_interrupt = partial(self._cancel, ticket)
            try:
                granted = (await asyncio.shield(asked)).granted
            except asyncio.CancelledError:
                self._session.spawn(self._abandon(asked, key, kind, start, end, pid, ticket))
                raise
            if granted:
                return

    def _cancel(self, ticket: int) -> None:
        self._session.mds.call(CancelLock(ticket)).add_done_callback(_retrieve)

    async def _interrupt(
        self, asked: "asyncio.Future[Locked]", key: Key, kind: LockKind, start: int, end: int, pid: int, ticket: int
    ) -> None:
        """A signal came between two askings: the lock may have been taken meanwhile."""
        cancelled = self._session.mds.call(CancelLock(ticket))
        try:
            granted = (await asked).granted
        finally:
            granted_then = (await cancelled).granted
        if granted:
            return
        if granted_then:
            self._note(key, kind, start, end, pid)
            return
        raise InterruptedError(errno.EINTR, "a signal ended the wait for a lock")

    async def _abandon(
        self, asked: "asyncio.Future[Locked]", key: Key, kind: LockKind, start: int, end: int, pid: int, ticket: int
    ) -> None:
        """Nobody waits any more (its process is being killed): what it may get nevertheless is given up."""
        try:
            await self._interrupt(asked, key, kind, start, end, pid, ticket)
        except OSError:
            return
        await self._give_up(key)

    def _call(self, key: Key, kind: LockKind, start: int, end: int, pid: int, ticket: int) -> "asyncio.Future[Locked]":
        fid, style, owner = key
        self._asking[key] += 1
        asked = self._session.mds.call(SetLock(fid, owner, style, kind, start, end, pid, ticket))
        asked.add_done_callback(partial(self._answered, key, kind, start, end, pid))
        return asked

    def _answered(
        self, key: Key, kind: LockKind, start: int, end: int, pid: int, asked: "asyncio.Future[Locked]"
    ) -> None:
        """Answers come in the order in which the MDS has executed the requests. Whoever asked may be gone: a process
        that is killed does not wait, but what it asked has happened (so what `_call` returns is never cancelled)."""
        self._asking[key] -= 1
        if not self._asking[key]:
            del self._asking[key]
        if asked.cancelled():
            return
        if asked.exception() is None and asked.result().granted:
            self._note(key, kind, start, end, pid)
        elif key[1] == LockStyle.FLOCK:
            held = self._held.get(key)
            if held is not None and held.ranges.spans[0].kind != kind:
                del self._held[key]  # flock gives the old lock up before it asks for one of another kind

    def _note(self, key: Key, kind: LockKind, start: int, end: int, pid: int) -> None:
        held = self._held.get(key)
        if held is None:
            if kind == LockKind.UNLOCK:
                return
            held = self._held[key] = _Held()
        held.ranges.set(start, end, kind)
        if kind != LockKind.UNLOCK:
            held.pid = pid
        if not held.ranges:
            del self._held[key]

    async def get_lock(self, number: int, owner: int, kind: LockKind, start: int, end: int) -> LockHolder:
        """The POSIX lock that is in the way of one; its `pid` is 0 if another client has it."""
        fid = self._handles.get(number).inode.fid
        holder = await self._session.mds.call(GetLock(fid, owner, kind, start, end))
        if holder.session != self._session.number:
            return LockHolder(holder.kind, holder.start, holder.end, 0, holder.session)
        return holder

    # ---------------------------------------------------------------------------------------------------------- closing

    def flush(self, number: int, owner: int = 0) -> Answer[None]:
        """A descriptor was closed by a process: its POSIX locks on the file end, whatever they were taken through."""
        if not self._through:
            return self._opening.flush(number)
        key = (self._handles.get(number).inode.fid, LockStyle.POSIX, owner)
        numbers = self._by_key.pop(key, None)
        if numbers is None:
            return self._opening.flush(number)
        for through in numbers:
            if key in self._lost:
                self._handles.get(through).forgive(key)
            self._through[through].discard(key)
            if not self._through[through]:
                del self._through[through]
        self._lost.pop(key, None)
        return self._flush_locked(number, key)

    async def _flush_locked(self, number: int, key: Key) -> None:
        try:
            flushed = self._opening.flush(number)
            if is_later(flushed):
                await settle(flushed)
        finally:
            await self._give_up(key)

    def release(self, number: int) -> Answer[None]:
        """The last descriptor of an open file is gone: so are the locks that are the open file's."""
        released = self._opening.release(number)
        keys = self._through.pop(number, None)
        return released if keys is None else self._release_locked(number, keys, released)

    async def _release_locked(self, number: int, keys: set[Key], released: Answer[None]) -> None:
        for key in keys:
            numbers = self._by_key[key]
            numbers.discard(number)
            if not numbers:
                del self._by_key[key]
                self._lost.pop(key, None)
            await self._give_up(key)
        await settle(released)

    async def _give_up(self, key: Key) -> None:
        if key in self._held or key in self._asking:
            try:
                await asyncio.shield(self._call(key, LockKind.UNLOCK, 0, TO_EOF, 0, 0))
            except OSError as error:
                log.warning("giving up a lock on inode %#x failed: %s", key[0], error.strerror)

    # ------------------------------------------------------------------------------------------------ loss and reclaim

    def claims(self) -> list[HeldLock]:
        """All locks, for an MDS that has been restarted."""
        return [
            HeldLock(fid, owner, style, span.kind, span.start, span.end, held.pid)
            for (fid, style, owner), held in self._held.items()
            for span in held.ranges.spans
        ]

    def lost(self, lock: HeldLock) -> None:
        """The MDS, restarted, has given a lock to somebody else."""
        log.error("the lock of process %d on inode %#x is lost", lock.pid, lock.fid)
        key = (lock.fid, lock.style, lock.owner)
        self._note(key, LockKind.UNLOCK, lock.start, lock.end, 0)
        self._forfeit(key, lock.kind, lock.start, lock.end)

    def all_lost(self) -> None:
        """The session is over, and with it its locks."""
        if self._held:
            log.error("locks on %d files are lost with the session", len({key[0] for key in self._held}))
        for key, held in self._held.items():
            for span in held.ranges.spans:
                self._forfeit(key, span.kind, span.start, span.end)
        self._held.clear()

    # Who has lost a lock believes to be alone, and somebody else may be, too: nothing is read or written through that
    # open file until the lock's owner gives it up, by unlocking or closing, as with NFS.

    def _forfeit(self, key: Key, kind: LockKind, start: int, end: int) -> None:
        numbers = self._by_key.get(key)
        if not numbers:  # whoever had it is closing
            return
        self._lost.setdefault(key, Ranges()).set(start, end, kind)
        for number in numbers:
            self._handles.get(number).forfeit(key)

    def _forgive(self, key: Key) -> None:
        del self._lost[key]
        for number in self._by_key.get(key, ()):
            self._handles.get(number).forgive(key)


def _retrieve(done: "asyncio.Future[Locked]") -> None:
    if not done.cancelled():
        done.exception()
