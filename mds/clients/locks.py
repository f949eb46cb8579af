"""The lock table: who has which lock on which file, who waits for one, and who would wait for ever.

Pure: no clock, no socket, no SQL. Locks are kept in memory; after a restart the clients say which they have.

A lock is taken when nobody else's conflicts with it. What waits is looked at in the order in which it came, each time a
lock in its way shrinks; so an unlock hands over to the one who has waited longest, before its former owner can ask
again.

Deadlock, for POSIX locks: an owner waits for those whose locks are in its way. A request that would close a circle of
waiting owners fails with EDEADLK, as in Linux, across all sessions.
"""

import errno
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from nacrefs.common.lockranges import TO_EOF, Ranges
from nacrefs.common.wire import HeldLock, LockHolder, LockKind, LockStyle

HELD_MAX: Final = 1_000_000
"""Most spans that one session may have locked."""
WAITING_MAX: Final = 8192
"""Most requests of one session that may wait: below what the connection lets be in service, so that unlocks get
through."""


class Owner(NamedTuple):
    """Who has a lock: a session, and the number by which it knows the process or open file."""

    session: int
    number: int


class Demand(NamedTuple):
    """A lock that somebody wants."""

    owner: Owner
    fid: int
    style: LockStyle
    kind: LockKind
    start: int
    end: int
    pid: int


Key = tuple[int, LockStyle]
"""A file (its fid), and a style."""


class Waiter:
    """A demand that waits. `answered` is called once: with None when it has its lock, or with the error."""

    __slots__ = ("answered", "demand")

    def __init__(self, demand: Demand, answered: Callable[[OSError | None], None]) -> None:
        self.demand = demand
        self.answered = answered


class _Holder:
    """What one owner has on one file."""

    __slots__ = ("pid", "ranges")

    def __init__(self) -> None:
        self.ranges = Ranges()
        self.pid = 0


class _File:
    """Locks of one style on one file."""

    __slots__ = ("holders", "waiting")

    def __init__(self) -> None:
        self.holders: dict[Owner, _Holder] = {}
        self.waiting: dict[Waiter, None] = {}


class LockTable:
    """All locks of an MDT."""

    def __init__(self) -> None:
        self._files: dict[Key, _File] = {}
        self._waits: dict[Owner, dict[Waiter, None]] = {}
        self._of_session: dict[int, dict[Key, int]] = {}  # on how many counts (holders, waiters) it is there
        self._waiting_of: dict[int, int] = {}
        self._held_of: dict[int, int] = {}
        self.waiting = 0
        """How many requests wait."""

    # ---------------------------------------------------------------------------------------------------------- asking

    def set(self, demand: Demand, answered: Callable[[OSError | None], None] | None = None) -> Waiter | None:
        """Take, change or give up a lock: done when this returns None. With `answered` it waits if it has to, as the
        waiter that is returned. OSError: EAGAIN if it would have to wait, EDEADLK if for ever, ENOLCK beyond limits."""
        key = (demand.fid, demand.style)
        file = self._files.get(key)
        if demand.kind == LockKind.UNLOCK:
            if file is not None:
                self._apply(key, file, demand)
                self._wake(key, file)
                self._tidy(key, file)
            return None
        if self._held_of.get(demand.owner.session, 0) >= HELD_MAX:
            raise OSError(errno.ENOLCK, f"this client has {HELD_MAX} locks, no more are given")
        if file is None:
            file = self._files[key] = _File()
        try:
            if demand.style == LockStyle.FLOCK:
                self._give_up_other_kind(key, file, demand)
            if not self._in_the_way(file, demand):
                self._take(key, file, demand)
                return None
            if answered is None:
                raise BlockingIOError(errno.EAGAIN, "somebody else has a lock there")
            return self._wait(file, Waiter(demand, answered))
        finally:
            self._tidy(key, file)

    def test(self, demand: Demand) -> LockHolder:
        """The lock that is in the way of one."""
        file = self._files.get((demand.fid, demand.style))
        if file is not None:
            for owner, holder in file.holders.items():
                if owner != demand.owner:
                    span = holder.ranges.conflict(demand.start, demand.end, demand.kind)
                    if span is not None:
                        return LockHolder(span.kind, span.start, span.end, holder.pid, owner.session)
        return LockHolder(LockKind.UNLOCK)

    def cancel(self, waiter: Waiter) -> bool:
        """Wait no longer; False if it does not (any more). `answered` is not called."""
        key = (waiter.demand.fid, waiter.demand.style)
        file = self._files.get(key)
        if file is None or waiter not in file.waiting:
            return False
        self._unwait(file, waiter)
        self._tidy(key, file)
        return True

    def reclaim(self, session: int, lock: HeldLock) -> bool:
        """Take a lock back that a session had before a restart; False if it conflicts with somebody else's."""
        owner = Owner(session, lock.owner)
        try:
            self.set(Demand(owner, lock.fid, lock.style, lock.kind, lock.start, lock.end, lock.pid))
        except OSError:
            return False
        return True

    def drop_session(self, session: int) -> None:
        """A session is over: its locks and waits end. Its waiters are not answered."""
        keys = list(self._of_session.get(session, ()))
        for key in keys:
            file = self._files[key]
            for waiter in [waiter for waiter in file.waiting if waiter.demand.owner.session == session]:
                self._unwait(file, waiter)
        for key in keys:
            if key not in self._files:
                continue
            file = self._files[key]
            for owner in [owner for owner in file.holders if owner.session == session]:
                del file.holders[owner]
                self._leave(session, key)
            self._wake(key, file)
            self._tidy(key, file)
        self._held_of.pop(session, None)

    # --------------------------------------------------------------------------------------------------------- counting

    @property
    def held(self) -> int:
        """How many spans are locked."""
        return sum(self._held_of.values())

    def locks_of(self, session: int) -> int:
        """How many spans a session has locked."""
        return self._held_of.get(session, 0)

    def all_held(self) -> Iterator[tuple[Owner, HeldLock]]:
        """Every lock."""
        for (fid, style), file in self._files.items():
            for owner, holder in file.holders.items():
                for span in holder.ranges.spans:
                    yield owner, HeldLock(fid, owner.number, style, span.kind, span.start, span.end, holder.pid)

    def all_waiting(self) -> Iterator[Demand]:
        """Every demand that waits, of each file in the order in which they came."""
        for file in self._files.values():
            for waiter in file.waiting:
                yield waiter.demand

    # --------------------------------------------------------------------------------------------------------- granting

    @staticmethod
    def _in_the_way(file: _File, demand: Demand) -> list[Owner]:
        start, end, kind = demand.start, demand.end, demand.kind
        return [
            owner
            for owner, holder in file.holders.items()
            if owner != demand.owner and holder.ranges.conflict(start, end, kind) is not None
        ]

    def _apply(self, key: Key, file: _File, demand: Demand) -> None:
        """Change what an owner has."""
        session = demand.owner.session
        holder = file.holders.get(demand.owner)
        if holder is None:
            if demand.kind == LockKind.UNLOCK:
                return
            holder = file.holders[demand.owner] = _Holder()
            self._enter(session, key)
        before = len(holder.ranges.spans)
        holder.ranges.set(demand.start, demand.end, demand.kind)
        if demand.kind != LockKind.UNLOCK:
            holder.pid = demand.pid
        self._held_of[session] = self._held_of.get(session, 0) + len(holder.ranges.spans) - before
        if not holder.ranges:
            del file.holders[demand.owner]
            self._leave(session, key)

    def _take(self, key: Key, file: _File, demand: Demand) -> None:
        self._apply(key, file, demand)
        self._break_circles(demand.owner)
        self._wake(key, file)  # it may have become less: a write lock that is a read lock now

    def _wake(self, key: Key, file: _File) -> None:
        """Give waiters their locks where nothing is in the way any more, the oldest first."""
        again = bool(file.waiting)
        while again:
            again = False
            for waiter in list(file.waiting):
                if waiter in file.waiting and not self._in_the_way(file, waiter.demand):
                    again = again or waiter.demand.owner in file.holders  # it may have less now than it had
                    self._unwait(file, waiter)
                    self._apply(key, file, waiter.demand)
                    waiter.answered(None)
                    self._break_circles(waiter.demand.owner)

    def _break_circles(self, owner: Owner) -> None:
        """An owner has got a lock; another thread of it that waits may now do so for ever."""
        for waiter in list(self._waits.get(owner, ())):
            file = self._files[waiter.demand.fid, waiter.demand.style]
            if waiter in file.waiting and self._for_ever(file, waiter.demand):
                self._unwait(file, waiter)
                waiter.answered(_deadlock())

    def _give_up_other_kind(self, key: Key, file: _File, demand: Demand) -> None:
        """flock(2): a change of kind is not atomic; the old lock is given up first, and not taken again on failure."""
        holder = file.holders.get(demand.owner)
        if holder is not None and holder.ranges.spans[0].kind != demand.kind:
            self._apply(key, file, demand._replace(kind=LockKind.UNLOCK, start=0, end=TO_EOF))
            if self._in_the_way(file, demand):
                self._wake(key, file)

    # ---------------------------------------------------------------------------------------------------------- waiting

    def _wait(self, file: _File, waiter: Waiter) -> Waiter:
        demand = waiter.demand
        session = demand.owner.session
        if demand.style == LockStyle.POSIX and self._for_ever(file, demand):
            raise _deadlock()
        if self._waiting_of.get(session, 0) >= WAITING_MAX:
            raise OSError(errno.ENOLCK, f"{WAITING_MAX} requests of this client wait for locks, no more can")
        file.waiting[waiter] = None
        self._waits.setdefault(demand.owner, {})[waiter] = None
        self._enter(session, (demand.fid, demand.style))
        self._waiting_of[session] = self._waiting_of.get(session, 0) + 1
        self.waiting += 1
        return waiter

    def _unwait(self, file: _File, waiter: Waiter) -> None:
        owner = waiter.demand.owner
        del file.waiting[waiter]
        waits = self._waits[owner]
        del waits[waiter]
        if not waits:
            del self._waits[owner]
        self._waiting_of[owner.session] -= 1
        if not self._waiting_of[owner.session]:
            del self._waiting_of[owner.session]
        self._leave(owner.session, (waiter.demand.fid, waiter.demand.style))
        self.waiting -= 1

    def _for_ever(self, file: _File, demand: Demand) -> bool:
        """Whether an owner that waited for this would, through others that wait, wait for itself."""
        if demand.style != LockStyle.POSIX:
            return False
        look = self._in_the_way(file, demand)
        seen: set[Owner] = set()
        while look:
            owner = look.pop()
            if owner == demand.owner:
                return True
            if owner in seen:
                continue
            seen.add(owner)
            for waiter in self._waits.get(owner, ()):
                if waiter.demand.style == LockStyle.POSIX:
                    look.extend(self._in_the_way(self._files[waiter.demand.fid, LockStyle.POSIX], waiter.demand))
        return False

    def _enter(self, session: int, key: Key) -> None:
        there = self._of_session.setdefault(session, {})
        there[key] = there.get(key, 0) + 1

    def _leave(self, session: int, key: Key) -> None:
        there = self._of_session[session]
        there[key] -= 1
        if not there[key]:
            del there[key]
            if not there:
                del self._of_session[session]
                self._held_of.pop(session, None)

    def _tidy(self, key: Key, file: _File) -> None:
        """Forget a file on which nobody has or wants a lock."""
        if not file.holders and not file.waiting and self._files.get(key) is file:
            del self._files[key]


def _deadlock() -> OSError:
    return OSError(errno.EDEADLK, "waiting for this lock would never end: its owner waits for one of ours")
