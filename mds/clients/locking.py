"""Lock requests served: who asked, what to do when it comes again, grace after a restart, answers to those who wait.

A lock costs no transaction. Each happens once although its answer is not stored in SQL: as long as this MDS runs it
remembers what it answered until the client has the answer; after a restart there are no locks but those that clients
say they have, and a request whose answer was lost is asked again and executed then.

Who waits asks again every few seconds and keeps its place, which goes by ticket.
"""

import errno
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from nacrefs.common import wire
from nacrefs.common.clock import Clock
from nacrefs.common.lockranges import TO_EOF
from nacrefs.common.rpc import LATER, Call, Handler
from nacrefs.common.wire import CancelLock, GetLock, HeldLock, Locked, LockKind, LockStyle, SetLock
from nacrefs.mds.clients.locks import Demand, LockTable, Owner, Waiter
from nacrefs.mds.clients.sessions import Session, Sessions

if TYPE_CHECKING:
    from nacrefs.mds.service import Mds

REPORT_MAX: Final = 10_000
"""Most locks in one report."""
ASK_AGAIN_S: Final = 5.0
"""So long a request waits before it is to be asked again (its place is kept)."""
_GRANTED: Final = Locked(True)
_WAITING: Final = Locked(False)


class _Ticket:
    """A demand that may wait. `call` is where an answer is waited for just now, since `asked_s`."""

    __slots__ = ("asked_s", "call", "decided", "error", "waiter")

    def __init__(self) -> None:
        self.call: Call | None = None
        self.asked_s = 0.0
        self.waiter: Waiter | None = None
        self.decided = False
        self.error: OSError | None = None


class _Client:
    """What one session has asked."""

    __slots__ = ("done", "tickets")

    def __init__(self) -> None:
        self.done: dict[int, Locked | OSError] = {}
        """Answers that the client may not have yet, by xid."""
        self.tickets: dict[int, _Ticket] = {}
        """What waits, or has been decided while nobody was asking."""


class Locking:
    """Serves lock requests. While `held_up()` says so, they wait for `go_on` (grace after a restart)."""

    def __init__(self, sessions: Sessions, clock: Clock, held_up: Callable[[], bool]) -> None:
        self.table = LockTable()
        self._sessions = sessions
        self._clock = clock
        self._held_up = held_up
        self._clients: dict[int, _Client] = {}
        self._parked: dict[tuple[int, int], tuple[Session, Any, Call]] = {}

    def handlers(self) -> dict[type[wire.Request[Any]], Handler]:
        """What the service table needs."""
        return {SetLock: self._set, GetLock: self._get, CancelLock: self._cancel}

    # ---------------------------------------------------------------------------------------------------------- serving

    def _set(self, request: SetLock, call: Call) -> Any:
        session = self._sessions.heard(call.peer)
        if not 0 <= request.start < request.end <= TO_EOF:
            raise OSError(errno.EINVAL, f"[{request.start}, {request.end}) is not a range of bytes")
        if self._held_up():
            self._parked[session.id, call.xid] = (session, request, call)
        else:
            self._ask(session, request, call)
        return LATER

    def _ask(self, session: Session, request: SetLock, call: Call) -> None:
        client = self._clients.get(session.id)
        if client is None:
            client = self._clients[session.id] = _Client()
        done = client.done
        if done:
            for xid in [xid for xid in done if xid < call.oldest]:
                del done[xid]
            if call.resent and call.xid in done:
                _tell(call, done[call.xid])
                return
        demand = Demand(
            Owner(session.id, request.owner), request.fid, request.style, request.kind, request.start, request.end,
            request.pid,
        )  # fmt: skip
        if request.ticket:
            self._ask_with_ticket(client, request.ticket, demand, call)
        else:
            try:
                self.table.set(demand)
            except OSError as error:
                _answer(client, call, error)
            else:
                _answer(client, call, _GRANTED)

    def _ask_with_ticket(self, client: _Client, number: int, demand: Demand, call: Call) -> None:
        ticket = client.tickets.get(number)
        if ticket is None:
            ticket = client.tickets[number] = _Ticket()
            try:
                ticket.waiter = self.table.set(demand, partial(self._decided, client, number))
            except OSError as error:
                ticket.error = error
            ticket.decided = ticket.waiter is None
        ticket.call, ticket.asked_s = call, self._clock.monotonic_s()
        if ticket.decided:
            self._settle(client, number, ticket)

    def _decided(self, client: _Client, number: int, error: OSError | None) -> None:
        """A demand that waited has its lock, or must not wait any more."""
        ticket = client.tickets[number]
        ticket.decided, ticket.error, ticket.waiter = True, error, None
        if ticket.call is not None:
            self._settle(client, number, ticket)

    @staticmethod
    def _settle(client: _Client, number: int, ticket: _Ticket) -> None:
        assert ticket.call is not None
        del client.tickets[number]
        _answer(client, ticket.call, ticket.error or _GRANTED)

    def _get(self, request: GetLock, call: Call) -> Any:
        session = self._sessions.heard(call.peer)
        if self._held_up():
            self._parked[session.id, call.xid] = (session, request, call)
            return LATER
        return self._test(session, request)

    def _test(self, session: Session, request: GetLock) -> wire.LockHolder:
        owner = Owner(session.id, request.owner)
        return self.table.test(Demand(owner, request.fid, LockStyle.POSIX, request.kind, request.start, request.end, 0))

    def _cancel(self, request: CancelLock, call: Call) -> Locked:
        session = self._sessions.heard(call.peer)
        interrupted = InterruptedError(errno.EINTR, "a signal ended the wait for a lock")
        for key, (owner, parked, parked_call) in self._parked.items():
            if owner is session and isinstance(parked, SetLock) and parked.ticket == request.ticket:
                del self._parked[key]
                parked_call.fail(interrupted)
                return _WAITING
        client = self._clients.get(session.id)
        ticket = client.tickets.pop(request.ticket, None) if client is not None else None
        if client is None or ticket is None:
            return _WAITING  # it is decided: the client has the answer, or will
        if ticket.waiter is not None:
            self.table.cancel(ticket.waiter)
        if ticket.call is not None:
            _answer(client, ticket.call, interrupted)
        return _GRANTED if ticket.decided and ticket.error is None else _WAITING

    def tick(self) -> None:
        """Time has passed: let those who wait ask again. An unanswered request would keep its client's later answers
        from being forgotten."""
        before_s = self._clock.monotonic_s() - ASK_AGAIN_S
        for client in self._clients.values():
            for ticket in client.tickets.values():
                if ticket.call is not None and ticket.asked_s <= before_s:
                    call, ticket.call = ticket.call, None
                    _answer(client, call, _WAITING)

    # ----------------------------------------------------------------------------------------------- sessions and grace

    def reclaim(self, session: Session, locks: Iterable[HeldLock]) -> tuple[HeldLock, ...]:
        """Take back what a session had before the restart; those that somebody else has."""
        return tuple(lock for lock in locks if not self.table.reclaim(session.id, lock))

    def go_on(self) -> None:
        """The grace term is over: do what had to wait for it."""
        parked, self._parked = self._parked, {}
        for session, request, call in parked.values():
            if session.gone:
                continue
            if isinstance(request, SetLock):
                self._ask(session, request, call)
            else:
                call.reply(self._test(session, request))

    def session_ended(self, session: Session) -> None:
        """A session is over, fenced, and forgotten: so are its locks."""
        self._clients.pop(session.id, None)
        self._parked = {key: item for key, item in self._parked.items() if item[0] is not session}
        self.table.drop_session(session.id)


def _answer(client: _Client, call: Call, answer: Locked | OSError) -> None:
    client.done[call.xid] = answer
    _tell(call, answer)


def _tell(call: Call, answer: Locked | OSError) -> None:
    if isinstance(answer, Locked):
        call.reply(answer)
    else:
        call.fail(answer)


def locks_report(mds: "Mds") -> dict[str, Any]:
    """All locks and all who wait, as plain data; at most `REPORT_MAX` of each."""
    table = mds.locking.table
    hosts = {session.id: session.host for session in mds.sessions.by_id.values()}
    shown = partial(_shown, hosts)
    held = [shown(owner, lock) for owner, lock in _first(table.all_held())]
    waiting = [
        shown(
            demand.owner,
            HeldLock(demand.fid, demand.owner.number, demand.style, demand.kind, demand.start, demand.end, demand.pid),
        )
        for demand in _first(table.all_waiting())
    ]
    return {"held": held, "waiting": waiting, "held_count": table.held, "waiting_count": table.waiting}


def _first(items: Iterable[Any]) -> Iterable[Any]:
    return (item for _, item in zip(range(REPORT_MAX), items, strict=False))


def _shown(hosts: dict[int, str], owner: Owner, lock: HeldLock) -> dict[str, Any]:
    return {
        "fid": lock.fid,
        "style": lock.style.name.lower(),
        "kind": "write" if lock.kind == LockKind.WRITE else "read",
        "start": lock.start,
        "end": None if lock.end == TO_EOF else lock.end,
        "pid": lock.pid,
        "session": owner.session,
        "host": hosts.get(owner.session, ""),
        "owner": f"{owner.number:016x}",
    }
