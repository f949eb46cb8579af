"""Sessions: the clients as the MDS knows them, how they are reached, and when they are given up."""

import asyncio
import errno
import logging
from collections.abc import Callable, Sequence
from typing import Any

from nacrefs.common.clock import Clock
from nacrefs.common.rpc import Peer
from nacrefs.common.wire import Holding, Recall, Recalled, RecallItem
from nacrefs.mds.records import SessionRecord

log = logging.getLogger("nacre.mds")

Answered = Callable[[Sequence[Holding]], None]


class Session:
    """One client. `peer` is None while it is not connected; recalls then wait for it."""

    __slots__ = (
        "client", "gone", "host", "id", "in_flight", "last_heard_s", "oldest", "peer", "recalls", "reclaimed", "root",
        "stored_replies", "trimmed",
    )  # fmt: skip

    def __init__(self, record: SessionRecord, now_s: float, reclaimed: bool) -> None:
        self.id = record.id
        self.client = record.client
        self.host = record.host
        self.root = record.root
        self.gone = False
        """Evicted or detached: nothing is done for it any more."""
        self.peer: Peer | None = None
        self.last_heard_s = now_s
        self.reclaimed = reclaimed
        """False after a restart, until the client has said what it holds."""
        self.oldest = 1
        """The lowest xid that the client still waits for."""
        self.trimmed = 0
        self.stored_replies = 0
        self.in_flight: dict[int, Any] = {}
        """Requests in service that must happen once, by xid."""
        self.recalls: dict[int, tuple[tuple[RecallItem, ...], Answered]] = {}
        """Recalls that have not been answered, by number."""


class Sessions:
    """All sessions of an MDT, and the recalls that are under way to them."""

    def __init__(self, clock: Clock, term_s: float) -> None:
        self.term_s = term_s
        self._clock = clock
        self._recall_number = 0
        self.by_id: dict[int, Session] = {}
        self.evict: Callable[[Session, str], None] = lambda session, reason: None
        """What to do with a session that must be given up."""

    def add(self, record: SessionRecord, reclaimed: bool = True) -> Session:
        """Know a session."""
        session = self.by_id[record.id] = Session(record, self._clock.monotonic_s(), reclaimed)
        return session

    def connect(self, session: Session, peer: Peer) -> None:
        """The session's client is at the other end of this peer. `resend_recalls` follows once it has been told."""
        if session.peer is not None and session.peer is not peer:
            session.peer.state = None
            session.peer.close("the client has connected again")
        session.peer = peer
        session.last_heard_s = self._clock.monotonic_s()
        peer.state = session
        peer.session = session.id

    def disconnect(self, peer: Peer) -> None:
        """The peer is gone; its session may come back within its term."""
        session = peer.state
        if isinstance(session, Session) and session.peer is peer:
            session.peer = None

    def remove(self, session: Session) -> None:
        """Forget a session; its unanswered recalls count as answered with nothing held."""
        self.by_id.pop(session.id, None)
        session.gone = True
        recalls, session.recalls = session.recalls, {}
        for _, answered in recalls.values():
            answered(())
        if session.peer is not None:
            session.peer.state = None

    def recall(self, session: Session, items: tuple[RecallItem, ...], answered: Answered) -> None:
        """Recall leases; `answered` is called once, with what the client still holds, or nothing if it was evicted."""
        self._recall_number += 1
        number = self._recall_number
        session.recalls[number] = (items, answered)
        if session.peer is not None:
            self._send(session, number)

    def resend_recalls(self, session: Session) -> None:
        """Repeat what a client that was away has not answered."""
        for number in list(session.recalls):
            self._send(session, number)

    def _send(self, session: Session, number: int) -> None:
        assert session.peer is not None
        future = session.peer.call(Recall(session.recalls[number][0]), deadline_s=self.term_s)
        future.add_done_callback(lambda done: self._replied(session, number, done))

    def _replied(self, session: Session, number: int, done: "asyncio.Future[Recalled]") -> None:
        if done.cancelled():
            return
        error = done.exception()
        if error is None:
            recall = session.recalls.pop(number, None)
            if recall is not None:
                recall[1](done.result().holdings)
        elif isinstance(error, TimeoutError):
            self.evict(session, f"did not answer a recall within {self.term_s:g} s")
        elif not isinstance(error, ConnectionError):
            self.evict(session, f"answered a recall with an error: {error}")
        # A lost connection: the client reconnects and is asked again, or its term ends.

    def overdue(self) -> list[Session]:
        """Sessions that have been silent for longer than their term."""
        before = self._clock.monotonic_s() - self.term_s
        return [session for session in self.by_id.values() if session.last_heard_s < before]

    def heard(self, peer: Peer) -> Session:
        """The session that a request of this peer belongs to; OSError (ESTALE) if it has none (any more)."""
        session = peer.state
        if not isinstance(session, Session):
            raise OSError(errno.ESTALE, "this connection has no session: it was evicted, or never attached")
        session.last_heard_s = self._clock.monotonic_s()
        return session
