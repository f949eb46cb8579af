"""Whose turn it is to append to a shared file: one at a time, so that each append begins where the file ends.

Who has a file for itself appends without asking. Where several write, an append is `Append` (wait for the turn, learn
the end), the write to the OSTs, and `Appended`, for which its writer does not wait. A turn ends with its session, after
the OSTs have fenced that, and outlives a restart of the MDS (`Reclaim.appends`). While somebody has it nobody cuts the
file and no lease on it is given (`mds/clients/leases.py`).
"""

import errno
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from nacrefs.common.rpc import LATER, Call, Handler
from nacrefs.common.wire import Append, Appended, Done, Request

if TYPE_CHECKING:
    from nacrefs.mds.service import Mds
    from nacrefs.mds.transactions.step import Step

APPEND_REQUESTS: Final[tuple[type[Request[Any]], ...]] = (Append, Appended)


class Turn(NamedTuple):
    """Who appends: `ticket` is the client's own number, never used again."""

    session: int
    ticket: int


class Turns:
    """The turns that are taken, by fid."""

    def __init__(self) -> None:
        self.taken: dict[int, Turn] = {}

    def begin(self, fid: int, turn: Turn) -> bool:
        """Take the turn, unless somebody else has it."""
        return self.taken.setdefault(fid, turn) == turn

    def end(self, fid: int, turn: Turn) -> bool:
        """Give it up; whether it was taken."""
        if self.taken.get(fid) != turn:
            return False
        del self.taken[fid]
        return True

    def drop_session(self, session: int) -> None:
        """A session is over."""
        for fid in [fid for fid, turn in self.taken.items() if turn.session == session]:
            del self.taken[fid]


class AppendDesk:
    """Serves `APPEND_REQUESTS` for one MDS; `append` is the step that takes the turn."""

    def __init__(self, mds: "Mds", append: "Callable[[Step, Append], Any]") -> None:
        self._mds = mds
        self._append = append
        self._turns = mds.leases.turns

    def handlers(self) -> Mapping[type[Request[Any]], Handler]:
        """What the service table needs."""
        return {Append: self._begin, Appended: self._end}

    def _begin(self, request: Append, call: Call) -> Any:
        self._mds.accept_once(self._append, request, call, reads=True)
        return LATER

    def _end(self, request: Appended, call: Call) -> Done:
        session = self._mds.sessions.heard(call.peer)
        session.oldest = call.oldest
        for work in session.in_flight.values():  # its client does not wait for it any more
            if type(work.request) is Append and work.request.ticket == request.ticket:
                work.operation = _given_up
        if self._turns.end(request.fid, Turn(session.id, request.ticket)):
            self._mds.journal.retry()
        return Done()

    def reclaim(self, session: int, appends: Iterable[tuple[int, int]]) -> None:
        """Take back the turns that a session had before the restart."""
        for fid, ticket in appends:
            self._turns.begin(fid, Turn(session, ticket))


def _given_up(step: "Step", request: Append) -> Any:
    raise InterruptedError(errno.EINTR, "the append was given up")
