"""Sessions: the clients as the MDS knows them, how they are reached, and when they are given up."""

import asyncio
import errno
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from nacrefs.common.clock import Clock
from nacrefs.common.rpc import Peer
from nacrefs.common.wire import Create, Holding, Mode, Open, Recall, Recalled, RecallItem, Request
from nacrefs.mds.access.exports import Limits
from nacrefs.mds.records import SessionRecord

log = logging.getLogger("nacre.mds")

Answered = Callable[[Sequence[Holding]], None]


class _Recall(NamedTuple):
    """A recall that has not been answered; `asked_s` is when it was last sent."""

    request: Recall
    answered: Answered
    asked_s: float


def _opened(request: Any, reply: Any, fid: int) -> Mode:
    if type(request) is Open and request.fid == fid:
        return request.mode
    if type(request) is Create and reply.node is not None and reply.node.attr.fid == fid:
        return request.open_mode
    return Mode.CLOSED


class Session:
    """One client. `peer` is None while it is not connected; recalls then wait for it."""

    __slots__ = (
        "client", "deferred", "first_xid", "gone", "host", "id", "in_flight", "key", "last_heard_s", "limits", "oldest",
        "overtaking", "peer", "principal", "recalls", "recalls_sent", "reclaimed", "root", "stored_replies", "trimmed",
    )  # fmt: skip

    def __init__(self, record: SessionRecord, now_s: float, reclaimed: bool) -> None:
        self.id = record.id
        self.client, _, self.principal = record.client.rpartition("@")
        """The client's own id, and whose key it has shown: nobody else may take the session up."""
        self.key = ""
        """The name of that key."""
        self.limits: Limits | None = None
        """What that key may not do; None if there is nothing."""
        self.host = record.host
        self.root = record.root
        self.gone = False
        """Evicted or detached: nothing is done for it any more."""
        self.peer: Peer | None = None
        self.last_heard_s = now_s
        self.reclaimed = reclaimed
        """False after a restart, until the client has said what it holds."""
        self.first_xid = 0
        """Requests with a lower xid were first asked in an earlier session of the client."""
        self.oldest = 1
        """The lowest xid that the client still waits for."""
        self.trimmed = 0
        self.stored_replies = 0
        self.in_flight: dict[int, Any] = {}
        """Requests in service that must happen once, by xid."""
        self.recalls: dict[int, _Recall] = {}
        """Recalls that have not been answered, by number."""
        self.deferred: list[tuple[int, Callable[[], None]]] = []
        """Recalls of leases that come with answers which have not left yet, by fid."""
        self.recalls_sent = 0
        """Grows whenever something is taken from the session."""
        self.overtaking: list[tuple[int, int, tuple[bytes, ...]]] = []
        """What was taken while requests were in service: `recalls_sent` after it, fid, names (none: all of it)."""

    def is_of(self, client: str, principal: str) -> bool:
        """Whether it is this client's, who has shown a key of this principal."""
        return self.client == client and self.principal == principal

    def overtake(self, fid: int, names: tuple[bytes, ...] = ()) -> None:
        """Something of a fid is taken from the session: answers that were worked out before must not bring it back."""
        self.recalls_sent += 1
        if self.in_flight:
            self.overtaking.append((self.recalls_sent, fid, names))

    def overtaken_since(self, seen: int) -> dict[int, set[bytes] | None]:
        """What was taken since `recalls_sent` was `seen`: the names by fid, None for all."""
        found: dict[int, set[bytes] | None] = {}
        for number, fid, names in self.overtaking:
            if number > seen:
                known = found.setdefault(fid, set())
                if not names:
                    found[fid] = None
                elif known is not None:
                    known.update(names)
        return found

    def answered(self, xid: int) -> None:
        """A request has its answer."""
        self.in_flight.pop(xid, None)
        overtaking = self.overtaking
        if overtaking:
            executed = [work.seen for work in self.in_flight.values() if work.reply is not None]
            oldest = min(executed) if executed else self.recalls_sent
            if overtaking[0][0] <= oldest:
                self.overtaking = [item for item in overtaking if item[0] > oldest]

    def recall_deferred(self) -> None:
        """Send the recalls that had to wait for an answer, if that has left."""
        deferred, self.deferred = self.deferred, []
        for fid, send in deferred:
            if not self.gone and self.opening(fid):
                self.deferred.append((fid, send))
            else:
                send()

    def opening(self, fid: int) -> Mode:
        """How the session has a file open by answers that have not left yet, so that it may not know."""
        mode = Mode.CLOSED
        for work in self.in_flight.values():
            if work.reply is not None:
                mode |= _opened(work.request, work.reply, fid)
        return mode


class Sessions:
    """All sessions of an MDT, and the recalls that are under way to them."""

    def __init__(self, clock: Clock, term_s: float) -> None:
        self.term_s = term_s
        self._clock = clock
        self._recall_number = 0
        self.by_id: dict[int, Session] = {}
        self.evict: Callable[[Session, str], None] = lambda session, reason: None
        """What to do with a session that must be given up."""
        self.removed: Callable[[Session], None] = lambda session: None
        """Told when a session is forgotten."""

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
        peer.absorb = partial(self._absorb, peer)
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
        self.removed(session)
        session.recall_deferred()
        recalls, session.recalls = session.recalls, {}
        for recall in recalls.values():
            recall.answered(())
        if session.peer is not None:
            session.peer.state = None

    def recall(self, session: Session, items: tuple[RecallItem, ...], answered: Answered) -> None:
        """Recall leases; `answered` is called once, with what the client still holds, or nothing if it was evicted."""
        self._recall_number += 1
        number = self._recall_number
        for item in items:
            session.overtake(item.fid, item.names)
        session.recalls[number] = _Recall(Recall(items), answered, self._clock.monotonic_s())
        if session.peer is not None:
            self._send(session, number)

    def resend_recalls(self, session: Session) -> None:
        """Repeat what a client that was away has not answered; it has a term for it, from now on."""
        now_s = self._clock.monotonic_s()
        for number, recall in list(session.recalls.items()):
            session.recalls[number] = recall._replace(asked_s=now_s)
            if session.peer is not None:
                self._send(session, number)

    def _send(self, session: Session, number: int) -> None:
        assert session.peer is not None
        future = session.peer.call(session.recalls[number].request)
        future.add_done_callback(partial(self._replied, session))

    def _absorb(self, peer: Peer, request: Request[Any], reply: Any) -> None:
        """Apply an answer when it arrives: what the client asks next is asked by one who holds no more than it said."""
        session = peer.state
        if type(request) is Recall and isinstance(session, Session):
            for number, recall in session.recalls.items():
                if recall.request is request:
                    del session.recalls[number]
                    recall.answered(reply.holdings)
                    return

    def _replied(self, session: Session, done: "asyncio.Future[Recalled]") -> None:
        error = None if done.cancelled() else done.exception()
        if error is None:
            return
        if isinstance(error, ConnectionError) or (isinstance(error, OSError) and error.errno == errno.ESHUTDOWN):
            pass  # the client connects again and is asked again, or detaches, or its term ends
        else:
            self.evict(session, f"answered a recall with an error: {error}")

    def put_off(self, is_stuck: Callable[[int], bool]) -> None:
        """Who was asked to give back a fid that is stuck, because what is dirty cannot be written, has a term for it
        from now on."""
        now_s = self._clock.monotonic_s()
        for session in self.by_id.values():
            for number, recall in session.recalls.items():
                if any(is_stuck(item.fid) for item in recall.request.items):
                    session.recalls[number] = recall._replace(asked_s=now_s)

    def overdue(self) -> list[tuple[Session, str]]:
        """Sessions that have been silent, or have not answered a recall, for longer than their term, and which of
        it."""
        before = self._clock.monotonic_s() - self.term_s
        found: list[tuple[Session, str]] = []
        for session in self.by_id.values():
            if session.last_heard_s < before:
                found.append((session, f"was silent for {self.term_s:g} s"))
            elif any(recall.asked_s < before for recall in session.recalls.values()):
                found.append((session, f"did not answer a recall within {self.term_s:g} s"))
        return found

    def heard(self, peer: Peer) -> Session:
        """The session that a request of this peer belongs to; OSError (ESTALE) if it has none (any more)."""
        session = peer.state
        if not isinstance(session, Session) or session.gone:
            raise OSError(errno.ESTALE, "this connection has no session: it was evicted, or never attached")
        session.last_heard_s = self._clock.monotonic_s()
        return session
