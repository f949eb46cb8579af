"""A link over a queue pair. docs/adr/0012-rdma.md says why it is as it is, docs/protocol.md what travels.

It is negotiated inside a TCP connection, which stays open without a byte and whose end says that the other process is
gone. Of bulk, the connecting side's memory is exposed, never the accepting side's: replies are WRITTEN into what their
request offered, requests' bulk is READ, and whatever cannot go so (ordinary memory, many small places, a server's own
requests) goes through the stream of messages, as on TCP.

Life: OPEN → CLOSING (what was sent still leaves, CLOSE last) → DRAINING (the queue pair has failed and is being
flushed) → CLOSED (nobody touches our memory any more: now the receiver hears of it).
"""

import asyncio
import enum
import errno
import secrets
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from nacrefs.common import faults
from nacrefs.common.framing import Frame, FramingError, Kind
from nacrefs.common.transport.credits import Credits
from nacrefs.common.transport.fabric import Completion, Port, Status, meaning
from nacrefs.common.transport.link import Done, Link, Receiver, scratch
from nacrefs.common.transport.rdmaarrivals import Arrivals
from nacrefs.common.transport.rdmadepartures import Departures
from nacrefs.common.transport.rdmamemory import Exposures, Registered
from nacrefs.common.transport.rdmaqueue import (
    CREDITS,
    INLINE_BYTES,
    KIND_MASK,
    PIECES_MAX,
    RECEIVED,
    RECEIVES,
    SLOT_BYTES,
    SLOTS_BYTES,
    WORK_MAX,
    WorkQueue,
)
from nacrefs.common.transport.rdmawire import Place, What, parse, pulled
from nacrefs.common.wire import BODY_BYTES_MAX, RdmaEnd

VERSION: Final = 1
CLOSE_S: Final = 2.0
"""How long what was sent before `close` may take to leave."""
FLUSH_S: Final = 10.0
"""A device that has not flushed a failed queue pair after this time loses it."""
_RETRY_S: Final = 0.01
_INSIDE: Final = frozenset((What.BYTES, What.OFFER, What.PULL, What.PULL_AND_SAY, What.PUSHED, What.CLOSE))
_RESERVED: Final = (What.CREDITS, What.CLOSE)


class State(enum.Enum):
    """How far a link is in its life."""

    OPEN = enum.auto()
    CLOSING = enum.auto()
    DRAINING = enum.auto()
    CLOSED = enum.auto()


class Home(Protocol):
    """Who owns the device and brings its completions: `rdma.Endpoint`."""

    port: Port

    def adopt(self, link: "RdmaLink") -> None: ...
    def forget(self, link: "RdmaLink") -> None: ...
    def poll(self) -> None: ...
    async def news(self) -> None: ...


class _Watch:
    """Receives what must not come: TCP is silent, until it ends."""

    def __init__(self, gone: Callable[[OSError], None]) -> None:
        self._gone = gone

    def sink(self, frame: Frame) -> Sequence[memoryview]:
        return ()

    def frame(self, frame: Frame) -> None:
        self._gone(FramingError(errno.EPROTO, f"a {frame.kind.name} frame came over TCP after the switch to RDMA"))

    def closed(self, link: Link, error: OSError) -> None:
        self._gone(ConnectionResetError(errno.ECONNRESET, "closed by peer"))


class RdmaLink:
    """A link over a queue pair and the TCP link (`tcp`) that it was negotiated in, both of which it owns.

    `near` describes it to the other side; after `connect` with the other side's description it can be used.
    `exposes`: the other side may be given keys to our memory.
    """

    transport = "rdma"
    upgrade = None

    def __init__(self, tcp: Link, home: Home, registered: Registered, *, exposes: bool) -> None:
        memory = registered.arena.take(SLOTS_BYTES)
        place = registered.piece(memory) if memory is not None else None
        if memory is None or place is None:
            raise OSError(errno.ENOMEM, f"all {registered.arena.limit_bytes >> 20} MiB of RDMA memory are in use")
        pair = registered.domain.queue_pair(WORK_MAX + 1, RECEIVES, PIECES_MAX, INLINE_BYTES)
        port = home.port
        self.peername = tcp.peername
        self.near = RdmaEnd(
            VERSION,
            port.gid,
            port.lid,
            port.ethernet,
            pair.number,
            secrets.randbelow(1 << 24),
            port.mtu,
            SLOT_BYTES,
            CREDITS,
        )
        self.work = WorkQueue(pair, memory, place.address, place.key)
        self.tcp = tcp
        self._home = home
        self.registered = registered
        self._exposures = Exposures(registered, self._cut_off)
        self._exposes = exposes
        self._loop = asyncio.get_running_loop()
        self._credits = Credits(CREDITS, CREDITS)
        rooms: dict[int, Sequence[Place]] = {}
        self._departures = Departures(self.work, self._credits, registered, self._exposures, rooms, exposes=exposes)
        self._arrivals = Arrivals(
            self.work,
            self._credits,
            registered,
            self._exposures,
            rooms,
            self._say_pulled,
            self._departures.answered,
        )
        self._state = State.OPEN
        self._reading = False
        self._timer: asyncio.TimerHandle | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._said_close = False
        self._error: OSError | None = None
        self._closed_here = False
        self._told = False
        self._watching = False
        home.adopt(self)
        try:
            self.work.post_receives()
        except OSError:
            self.abandon()
            raise

    # ------------------------------------------------------------------------------------------------------- connecting

    def connect(self, far: RdmaEnd) -> None:
        """Be ready for a peer at `far`; OSError saying why that cannot be."""
        if far.version != VERSION:
            raise OSError(errno.EPROTO, f"the other side speaks version {far.version} of RDMA, this side {VERSION}")
        if far.ethernet != self.near.ethernet:
            raise OSError(errno.EHOSTUNREACH, "one side is on InfiniBand, the other on Ethernet")
        if far.credits < 2 or far.slot_bytes < 1024:
            raise OSError(errno.EPROTO, f"{far.credits} receives of {far.slot_bytes} bytes are too few")
        self._departures.message_bytes = min(SLOT_BYTES, far.slot_bytes)
        self._credits = self._arrivals.credits = self._departures.credits = Credits(CREDITS, far.credits)
        self.work.pair.connect(self.near, far)

    async def probe(self, timeout_s: float) -> None:
        """Send one empty message, and wait until the other side's device has it; OSError if it never has."""
        there: list[bool] = []
        self._departures.alone(What.CREDITS, lambda: there.append(True))
        until_s = self._loop.time() + timeout_s
        while not there:
            if self._error is not None:
                raise OSError(errno.EHOSTUNREACH, self._error.strerror or "")
            if self._loop.time() > until_s:
                raise OSError(errno.EHOSTUNREACH, f"the other side's device does not answer in {timeout_s:g} s")
            await self._home.news()

    def watch(self) -> None:
        """From now on the TCP link is silent, and its end is ours. The accepting side says so with an empty message."""
        self._watching = True
        self.tcp.start(_Watch(self._gone))
        if not self._exposes and self._state is State.OPEN:
            self._departures.alone(What.CREDITS)

    async def heard(self, timeout_s: float) -> None:
        """Wait for the first message of the other side; OSError if none comes."""
        until_s = self._loop.time() + timeout_s
        while not self.work.receives:
            if self._error is not None:
                raise OSError(errno.EHOSTUNREACH, self._error.strerror or "")
            if self._loop.time() > until_s:
                raise OSError(errno.EHOSTUNREACH, f"nothing comes from the other side's device in {timeout_s:g} s")
            await self._home.news()

    def abandon(self) -> None:
        """It will not be used; the TCP link stays as it is."""
        self._told = self._closed_here = True
        self._fail(OSError(errno.ECONNABORTED, "not used"))

    # --------------------------------------------------------------------------------------------------------- the seam

    @property
    def backlog_bytes(self) -> int:
        return self._departures.queued_bytes

    @property
    def state(self) -> State:
        """How far it is in its life."""
        return self._state

    def start(self, receiver: Receiver, body_bytes_max: int = BODY_BYTES_MAX) -> None:
        self._arrivals.receiver = receiver
        self._arrivals.decoder.body_bytes_max = body_bytes_max
        if self._told or (self._state is State.CLOSED and self._closed_here):
            self._told = True
            self._loop.call_soon(receiver.closed, self, self._ended_by())
        else:
            self.resume()

    def pause(self) -> None:
        self._reading = False

    def resume(self) -> None:
        if (not self._reading or self._arrivals.blocked) and not self._closed_here:
            self._reading = True
            self._arrivals.blocked = False
            self._loop.call_soon(self.progress)

    def withdraw(self, xid: int) -> None:
        self._arrivals.decoder.redirect(xid, Kind.REPLY, scratch)
        self._exposures.withdraw(xid)
        self._departures.withdraw(xid)

    def send(
        self,
        kind: Kind,
        xid: int,
        oldest: int,
        body: bytes,
        bulk: Sequence[memoryview] = (),
        done: Done | None = None,
        offer: Sequence[memoryview] | None = None,
    ) -> None:
        if self._state is not State.OPEN:
            if done is not None:
                done()
            return
        self._departures.add(kind, xid, oldest, body, bulk, done, offer)
        if kind is Kind.REPLY or kind is Kind.FAILURE:
            self._arrivals.rooms.pop(xid, None)
        if faults.on and faults.hit("rpc.frame.send", kind.name):
            self._closed_here = True
            self._fail(ConnectionResetError(errno.ECONNRESET, f"{self.peername}: a fault was injected"))
            return
        self._flush()

    # ------------------------------------------------------------------------------------------------------- sending

    def _flush(self) -> None:
        """Post what there is credit and room for; last of all, that this was all."""
        if self._state is not State.OPEN and self._state is not State.CLOSING:
            return
        try:
            self._departures.post()
            if self._state is State.CLOSING and not self._departures and not self._said_close and self.work.room():
                self._said_close = True
                error = self._ended_by()
                self._departures.alone(What.CLOSE, lambda: self._fail(error))
        except OSError as error:
            self._fail(error)

    def _say_pulled(self, xid: int) -> None:
        if self._state is State.OPEN:
            self._departures.say_pulled(xid)
            self._flush()

    # ----------------------------------------------------------------------------------------------------- receiving

    def completed(self, completion: Completion) -> None:
        """Work has ended, well or badly."""
        kind = completion.work & KIND_MASK
        if completion.status != Status.SUCCESS:
            if self._state is State.OPEN or self._state is State.CLOSING:
                text = f"{self.peername}: {meaning(completion.status)}"
                self._fail(ConnectionResetError(errno.ECONNRESET, text))
            self.work.flushed(completion)
        elif kind == RECEIVED:
            self._received(completion)
        else:
            self.work.ended(completion)
        if self._state is State.DRAINING and self.work.drained:
            self._flushed()

    def _received(self, completion: Completion) -> None:
        slot, message = self.work.message(completion)
        if self._closed_here and self._state is not State.CLOSING:
            return
        try:
            prefix = parse(message)
            self._credits.granted(prefix.credits)
            ordinary = prefix.what not in _RESERVED
            if prefix.what == What.PULLED:
                self._departures.answered(pulled(message))
            elif prefix.what in _INSIDE and not self._closed_here:
                self._arrivals.add(slot, message, prefix)
                return
            if self._state is not State.DRAINING:
                self.work.post_receive(slot)
                if ordinary:
                    self._credits.freed()
        except OSError as error:
            self._fail(FramingError(errno.EPROTO, f"{self.peername}: {error.strerror}"))

    def progress(self) -> None:
        """After completions, or when the receiver has room again: hand over, send, return credits."""
        if self._state is not State.CLOSED or not self._closed_here:
            self._deliver()
        if self._departures or self._state is State.CLOSING:
            self._flush()
        if self._credits.due and self._state is State.OPEN and self.work.room():
            try:
                self._departures.alone(What.CREDITS)
            except OSError as error:
                self._fail(error)

    def _deliver(self) -> None:
        arrivals = self._arrivals
        try:
            while self._reading and arrivals.receiver is not None:
                frame = arrivals.next()
                if frame is None:
                    break
                arrivals.receiver.frame(frame)
        except FramingError as error:
            arrivals.clear()
            self._fail(FramingError(error.errno, f"{self.peername}: {error.strerror}"))
        if arrivals.short and self._retry is None and self._state is State.OPEN:
            self._retry = self._loop.call_later(_RETRY_S, self._try_again)
        elif arrivals.closed and not arrivals.busy:
            self._fail(ConnectionResetError(errno.ECONNRESET, f"{self.peername}: closed by peer"))
        if self._state is State.CLOSED and self._reading and not arrivals.blocked:
            self._tell()

    def _try_again(self) -> None:
        self._retry = None
        self.progress()

    # ------------------------------------------------------------------------------------------------------- closing

    def close(self, reason: str = "closed") -> None:
        if self._closed_here:
            return
        self._closed_here = True
        self._reading = False
        self._arrivals.clear()
        error = ConnectionResetError(errno.ECONNRESET, f"{self.peername}: {reason}")
        if self._state is not State.OPEN:
            if self._state is State.CLOSED:
                self._tell()
            return
        self._error = error
        self._state = State.CLOSING
        self._departures.linger()
        self._timer = self._loop.call_later(CLOSE_S, self._fail, error)
        self._flush()

    def _cut_off(self) -> None:
        """The other side must not touch our memory any more, not even on its way out."""
        self._fail(ConnectionResetError(errno.ECONNRESET, f"{self.peername}: a request was given up and asked again"))

    def _gone(self, error: OSError) -> None:
        """TCP says that the other side has gone: take what it had sent before."""
        if self._state is State.DRAINING or self._state is State.CLOSED:
            return
        self._home.poll()
        self._fail(type(error)(error.errno, f"{self.peername}: {error.strerror}"))

    def _fail(self, error: OSError) -> None:
        if self._state is State.DRAINING or self._state is State.CLOSED:
            return
        if self._error is None:
            self._error = error
        if self._timer is not None:
            self._timer.cancel()
        self._state = State.DRAINING
        self._arrivals.flowing = False
        self._timer = self._loop.call_later(FLUSH_S, self._flushed)
        try:
            self.work.fail()
        except OSError:  # the device itself is gone
            self._loop.call_soon(self._flushed)

    def _flushed(self) -> None:
        """Nobody touches our memory any more."""
        if self._state is State.CLOSED:
            return
        self._state = State.CLOSED
        for timer in (self._timer, self._retry):
            if timer is not None:
                timer.cancel()
        self._timer = self._retry = None
        self._home.forget(self)
        self.work.pair.close()
        self.work.forget()
        self._departures.clear()
        self._arrivals.give_up()
        if self._watching:
            self.tcp.close()
        if self._closed_here:
            self._tell()
        else:
            self._loop.call_soon(self.progress)

    def _ended_by(self) -> OSError:
        return self._error or ConnectionResetError(errno.ECONNRESET, f"{self.peername}: closed")

    def _tell(self) -> None:
        """The receiver hears that it is over, once."""
        if self._told or self._arrivals.receiver is None:
            return
        self._told = True
        self._loop.call_soon(self._arrivals.receiver.closed, self, self._ended_by())
