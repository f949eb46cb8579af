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
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from nacrefs.common import faults
from nacrefs.common.framing import Frame, FramingError, Kind, encode_frame
from nacrefs.common.transport.credits import Credits
from nacrefs.common.transport.fabric import Completion, Port, Status, meaning
from nacrefs.common.transport.link import Done, Link, Receiver, scratch
from nacrefs.common.transport.rdmaarrivals import Arrivals
from nacrefs.common.transport.rdmamemory import STREAM_BYTES, Exposures, Registered
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
from nacrefs.common.transport.rdmawire import PREFIX_BYTES, XID_BYTES, Transfer, What, head, parse, pulled, transfers
from nacrefs.common.wire import BODY_BYTES_MAX, RdmaEnd

VERSION: Final = 1
CLOSE_S: Final = 2.0
"""How long what was sent before `close` may take to leave."""
FLUSH_S: Final = 10.0
"""A device that has not flushed a failed queue pair after this time loses it."""
_RETRY_S: Final = 0.01
_LINGER_BYTES: Final = 1 << 20
"""So much of what has been sent and has not left yet still leaves after `close`."""
_CREDITS_AT: Final = 2
_BYTES_HEAD: Final = head(What.BYTES, 0)
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


class _Item:
    """A frame on its way out: `data`, then `stream`, in messages; before the first of them, `writes`."""

    __slots__ = ("data", "done", "kept", "size", "stream", "writes", "xid")

    def __init__(self, xid: int, data: bytes, size: int, done: Done | None) -> None:
        self.xid = xid
        self.data: bytes | memoryview = data
        self.stream: deque[bytes | memoryview] = deque()
        self.writes: Sequence[Transfer] = ()
        self.kept: Sequence[memoryview] = ()
        self.size = size
        self.done = done


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
        self._message_bytes = SLOT_BYTES
        self._arrivals = Arrivals(
            self.work, self._credits, registered, self._exposures, self._say_pulled, self._answered
        )
        self._state = State.OPEN
        self._out: deque[_Item] = deque()
        self._queued_bytes = 0
        self._reading = False
        self._timer: asyncio.TimerHandle | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._said_close = False
        self._error: OSError | None = None
        self._closed_here = False
        self._told = False
        self._watching = False
        self._writing: dict[_Item, None] = {}
        home.adopt(self)
        self.work.post_receives()

    # ------------------------------------------------------------------------------------------------------- connecting

    def connect(self, far: RdmaEnd) -> None:
        """Be ready for a peer at `far`; OSError saying why that cannot be."""
        if far.version != VERSION:
            raise OSError(errno.EPROTO, f"the other side speaks version {far.version} of RDMA, this side {VERSION}")
        if far.ethernet != self.near.ethernet:
            raise OSError(errno.EHOSTUNREACH, "one side is on InfiniBand, the other on Ethernet")
        if far.credits < 2 or far.slot_bytes < 1024:
            raise OSError(errno.EPROTO, f"{far.credits} receives of {far.slot_bytes} bytes are too few")
        self._message_bytes = min(SLOT_BYTES, far.slot_bytes)
        self._credits = self._arrivals.credits = Credits(CREDITS, far.credits)
        self.work.pair.connect(self.near, far)

    async def probe(self, timeout_s: float) -> None:
        """Send one empty message, and wait until the other side's device has it; OSError if it never has."""
        there: list[bool] = []
        self._send_alone(What.CREDITS, lambda: there.append(True))
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
            self._send_alone(What.CREDITS)

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
        return self._queued_bytes

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
        for item in self._out:
            if item.xid == xid:
                item.stream = deque(bytes(part) for part in item.stream)

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
        size = sum(map(len, bulk)) if bulk else 0
        if size:
            item = self._with_bulk(kind, xid, oldest, body, bulk, size, done)
        else:
            prefix = _BYTES_HEAD
            if offer is not None and self._exposes and (room := self._exposures.offer(xid, offer)) is not None:
                prefix = head(What.OFFER, 0, room.pieces)
            item = _Item(xid, prefix + encode_frame(kind, xid, oldest, body), len(body), done)
        if kind is Kind.REPLY or kind is Kind.FAILURE:
            self._arrivals.rooms.pop(xid, None)
        self._out.append(item)
        self._queued_bytes += item.size
        if faults.on and faults.hit("rpc.frame.send", kind.name):
            self._closed_here = True
            self._fail(ConnectionResetError(errno.ECONNRESET, f"{self.peername}: a fault was injected"))
            return
        self._flush()

    # ------------------------------------------------------------------------------------------------------- sending

    def _with_bulk(
        self,
        kind: Kind,
        xid: int,
        oldest: int,
        body: bytes,
        bulk: Sequence[memoryview],
        size: int,
        done: Done | None,
    ) -> _Item:
        room = self._arrivals.rooms.get(xid) if kind is Kind.REPLY else None
        if room is not None and sum(place.size for place in room) >= size:
            pieces, kept = self.registered.pieces(bulk), bulk
            if pieces is None and (copy := self.registered.copy(bulk, size)) is not None:
                pieces, kept = self.registered.pieces([copy]), (copy,)
            if pieces is not None and len(writes := transfers(pieces, room, PIECES_MAX)) < WORK_MAX // 2:
                data = head(What.PUSHED, size) + encode_frame(kind, xid, oldest, body)
                item = _Item(xid, data, len(body) + size, done)
                item.writes, item.kept = writes, kept
                return item
        asks = kind is Kind.REQUEST or kind is Kind.RESENT
        if asks and self._exposes and size > STREAM_BYTES:
            exposure = self._exposures.bulk(xid, bulk, size, done)
            if exposure is not None:
                what = What.PULL if done is None else What.PULL_AND_SAY
                data = head(what, size, exposure.pieces) + encode_frame(kind, xid, oldest, body)
                self._queued_bytes += exposure.size
                return _Item(xid, data, len(body), None)
        item = _Item(xid, _BYTES_HEAD + encode_frame(kind, xid, oldest, body, size), len(body) + size, done)
        item.stream.extend(bulk)
        return item

    def _flush(self) -> None:
        """Post what there is credit and room for."""
        try:
            self._post_all()
        except OSError as error:
            self._fail(error)

    def _post_all(self) -> None:
        while self._out and (self._state is State.OPEN or self._state is State.CLOSING):
            item = self._out[0]
            if not self.work.room(len(item.writes)) or not self._credits.take():
                break
            if item.writes:
                self.work.write(item.writes)
            self._post(item)
        if self._state is State.CLOSING and not self._out and not self._said_close and self.work.room():
            self._said_close = True
            error = self._error
            assert error is not None
            self._send_alone(What.CLOSE, lambda: self._fail(error))

    def _post(self, item: _Item) -> None:
        """Send one message of a frame."""
        slot, limit = self.work.slot(), self._message_bytes
        data, stream = item.data, item.stream
        if len(data) <= limit:
            filled = len(data)
            slot[:filled] = data
            # The tail of a long body is not followed by bulk in one message: the decoder would have to stop there.
            whole = not isinstance(data, memoryview)
            item.data = _BYTES_HEAD
            while stream and filled < limit and whole:
                part = stream.popleft()
                count = min(len(part), limit - filled)
                slot[filled : filled + count] = part[:count]
                filled += count
                if count < len(part):
                    stream.appendleft(memoryview(part)[count:])
        else:
            filled = limit
            slot[:filled] = data[:filled]
            item.data = memoryview(_BYTES_HEAD + data[filled:])
        slot[_CREDITS_AT : _CREDITS_AT + 2] = self._credits.collect().to_bytes(2, "little")
        if stream or len(item.data) > PREFIX_BYTES:
            self.work.send(filled)
            return
        self._out.popleft()
        if item.writes:
            self._writing[item] = None
            self.work.send(filled, lambda: self._left(item), item.kept)
        else:
            self.work.send(filled)
            self._left(item)

    def _left(self, item: _Item) -> None:
        """A frame is the device's business now, or its bytes have been written."""
        self._writing.pop(item, None)
        self._queued_bytes -= item.size
        item.size = 0
        done, item.done = item.done, None
        if done is not None:
            done()

    def _send_alone(self, what: What, ended: Callable[[], None] | None = None) -> None:
        """A message for which a receive is always reserved."""
        slot = self.work.slot()
        slot[:PREFIX_BYTES] = head(what, 0)
        slot[_CREDITS_AT : _CREDITS_AT + 2] = self._credits.collect().to_bytes(2, "little")
        self.work.send(PREFIX_BYTES, ended, signal=True)

    def _say_pulled(self, xid: int) -> None:
        if self._state is State.OPEN:
            self._out.append(_Item(0, head(What.PULLED, 0) + xid.to_bytes(XID_BYTES, "little"), 0, None))
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
                self._answered(pulled(message))
            elif prefix.what in _INSIDE and not self._closed_here:
                self._arrivals.add(slot, message, prefix)
                return
            if self._state is not State.DRAINING:
                self.work.post_receive(slot)
                if ordinary:
                    self._credits.freed()
        except OSError as error:
            self._fail(FramingError(errno.EPROTO, f"{self.peername}: {error.strerror}"))

    def _answered(self, xid: int) -> None:
        """The other side will not touch the memory of this request any more."""
        self._queued_bytes -= self._exposures.end(xid)

    def progress(self) -> None:
        """After completions, or when the receiver has room again: hand over, send, return credits."""
        if self._state is not State.CLOSED or not self._closed_here:
            self._deliver()
        if self._out or self._state is State.CLOSING:
            self._flush()
        if self._credits.due and self._state is State.OPEN and self.work.room():
            try:
                self._send_alone(What.CREDITS)
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
        self._linger()
        self._timer = self._loop.call_later(CLOSE_S, self._fail, error)
        self._flush()

    def _linger(self) -> None:
        """Everybody has his buffers back; a little of what has not left yet is copied and still leaves."""
        kept = 0
        waiting, self._out = self._out, deque()
        for item in waiting:
            kept += item.size
            if kept <= _LINGER_BYTES:
                item.stream = deque(bytes(part) for part in item.stream)
                self._out.append(item)
            if (done := item.done) is not None:
                item.done = None
                done()
        for item in list(self._writing):
            self._left(item)
        self._exposures.tell()
        self._queued_bytes = 0

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
        self._exposures.clear()
        for item in (*self._writing, *self._out):
            self._left(item)
        self._out.clear()
        self._queued_bytes = 0
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
