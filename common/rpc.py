"""Requests and replies over a link: typed calls both ways, reconnection, and resending under the same xid.

`Peer` is one side of an authenticated link. `Remote` is a peer that connects, and reconnects, by itself: requests that
had no reply are sent again under their old xid and marked as such, so that a server can answer them once. `Server` accepts peers.

A service maps request types to handlers. A handler is a plain function `(request, call) -> reply`; it may also return
a coroutine, which then runs as a task, or `LATER`, having arranged that `call.reply` or `call.fail` is called.
"""

import asyncio
import errno
import itertools
import logging
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final, TypeVar, Union, cast, get_args

import msgspec

from nacrefs.common.answer import is_later
from nacrefs.common.buffers import BufferPool
from nacrefs.common.framing import Frame, Kind
from nacrefs.common.observe import Meter
from nacrefs.common.transport.link import Done, Link, scratch
from nacrefs.common.wire import Failure, Message, Request, Role

log = logging.getLogger("nacre.rpc")

ReplyT = TypeVar("ReplyT")
RequestT = TypeVar("RequestT", bound="Request[Any]")

Handler = Callable[[Any, "Call"], Any]
Service = Mapping[type[Request[Any]], Handler]
Absorb = Callable[[Request[Any], Any], None]

_encode = msgspec.msgpack.Encoder().encode
_failure_decoder = msgspec.msgpack.Decoder(Failure)
IN_SERVICE_MAX: Final = 256
"""Requests of one peer that may be in service; a peer with more is not read from."""


class _Later:
    """The type of `LATER`."""


LATER: Final = _Later()
"""A handler's answer that says: I will call `call.reply` or `call.fail` myself."""


def request_types() -> list[type[Request[Any]]]:
    """Every request class of the wire."""
    return cast("list[type[Request[Any]]]", Request.__subclasses__())


def reply_type(request: type[Request[Any]]) -> type[Message]:
    """What a request class says it is answered with."""
    for base in getattr(request, "__orig_bases__", ()):
        for argument in get_args(base):
            return cast("type[Message]", argument)
    raise TypeError(f"{request.__name__} does not name its reply type")


_request_decoder: msgspec.msgpack.Decoder[Request[Any]] = msgspec.msgpack.Decoder(Union[tuple(request_types())])  # type: ignore[arg-type]
_reply_decoders = {kind: msgspec.msgpack.Decoder(reply_type(kind)) for kind in request_types()}


class Call:
    """One request in service: who asked, the bytes that came with it, and the way to answer."""

    __slots__ = ("_done", "_push", "bulk", "kind", "oldest", "peer", "resent", "started_ns", "xid")

    def __init__(self, peer: "Peer", frame: Frame, kind: type[Request[Any]]) -> None:
        self.peer = peer
        self.xid = frame.xid
        self.oldest = frame.oldest
        self.resent = frame.kind is Kind.RESENT
        self.kind = kind
        self.bulk: memoryview | None = frame.bulk[0] if frame.bulk else None
        self.started_ns = time.perf_counter_ns()
        self._push: Sequence[memoryview] = ()
        self._done: Done | None = None

    def pull(self) -> memoryview:
        """The request's bulk bytes; valid until the request has been answered. Empty if it brought none."""
        return self.bulk if self.bulk is not None else memoryview(b"")

    def push(self, buffers: Sequence[memoryview], release: Done | None = None) -> None:
        """Send these bytes with the reply; `release` is called when they may change again."""
        self._push = buffers
        self._done = release

    def reply(self, reply: Message) -> None:
        """Answer, once."""
        self.peer._answer(self, Kind.REPLY, _encode(reply), self._push, self._done)

    def fail(self, error: BaseException) -> None:
        """Answer with an errno; anything but an OSError is EIO and logged."""
        if isinstance(error, OSError) and error.errno:
            failure = Failure(error.errno, error.strerror or str(error))
        else:
            failure = Failure(errno.EIO, f"internal error, see the server's log for {self.peer.name}/{self.xid}")
            log.error("%s %s/%s failed", self.kind.__name__, self.peer.name, self.xid, exc_info=error)
        if self._done is not None:
            self._done()
        self.peer._answer(self, Kind.FAILURE, _encode(failure), (), None)


class _Pending:
    """A request that waits for its reply."""

    __slots__ = ("body", "data", "deadline_s", "future", "into", "link", "request", "started_ns")

    def __init__(
        self,
        future: "asyncio.Future[Any]",
        request: Request[Any],
        body: bytes,
        data: Sequence[memoryview],
        into: Sequence[memoryview] | None,
        deadline_s: float | None,
    ) -> None:
        self.future = future
        self.request = request
        self.body = body
        self.data = data
        self.into = into
        self.deadline_s = deadline_s
        self.started_ns = time.perf_counter_ns()
        self.link: Link | None = None


class Peer:
    """One side of an authenticated link.

    `session` is free for the application; `role` and `name` are what the handshake proved. `absorb`, if set, sees every
    (request, reply) at the moment when the reply arrives, before any later frame is handled.
    """

    def __init__(self, service: Service, meter: Meter, pool: BufferPool | None = None) -> None:
        self.name = ""
        self.role = Role.CLIENT
        self.session = 0
        self.state: Any = None
        self.absorb: Absorb | None = None
        self.service = service
        self.meter = meter
        self.link: Link | None = None
        self.closed_error: OSError | None = None
        self.on_closed: Callable[[Peer, OSError], None] | None = None
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._pending: dict[int, _Pending] = {}
        self._xids = itertools.count(1)
        self._in_service = 0
        self._paused = False
        self._receiving: memoryview | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._sweeping = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} {self.role.name} session {self.session}>"

    # ---------------------------------------------------------------------------------------------------------- asking

    def call(
        self,
        request: Request[ReplyT],
        *,
        data: Sequence[memoryview] = (),
        into: Sequence[memoryview] | None = None,
        deadline_s: float | None = None,
    ) -> "asyncio.Future[ReplyT]":
        """Ask the other side; a future of its reply, or OSError.

        `data` goes along as bulk and must not change until the reply is there. The reply's bulk is received into
        `into`. With `deadline_s`, ETIMEDOUT after that many seconds. Cancelling the future gives the buffers back.
        """
        return self._call(request, data, into, deadline_s, self.link)

    def _call(
        self,
        request: Request[ReplyT],
        data: Sequence[memoryview],
        into: Sequence[memoryview] | None,
        deadline_s: float | None,
        link: Link | None,
    ) -> "asyncio.Future[ReplyT]":
        future: asyncio.Future[ReplyT] = self._loop.create_future()
        if self.closed_error is not None:
            future.set_exception(_again(self.closed_error))
            return future
        xid = next(self._xids)
        if deadline_s is not None:
            deadline_s += time.monotonic()
            self._sweep_later()
        pending = _Pending(future, request, _encode(request), data, into, deadline_s)
        self._pending[xid] = pending
        if into is not None:
            future.add_done_callback(lambda done: self._withdraw(xid) if done.cancelled() else None)
        if link is not None:
            self._send(xid, pending, Kind.REQUEST, link)
        return future

    def _send(self, xid: int, pending: _Pending, kind: Kind, link: Link) -> None:
        pending.link = link
        oldest = next(iter(self._pending))
        link.send(kind, xid, oldest, pending.body, pending.data, None, pending.into)

    def _withdraw(self, xid: int) -> None:
        pending = self._pending.get(xid)
        if pending is not None:
            pending.into = None
            if pending.link is not None:
                pending.link.withdraw(xid)

    @property
    def outstanding(self) -> int:
        """Requests that wait for a reply."""
        return len(self._pending)

    def _sweep_later(self) -> None:
        if not self._sweeping:
            self._sweeping = True
            self._loop.call_later(0.25, self._sweep)

    def _sweep(self) -> None:
        """Fail requests whose deadline is over. They stay pending, so that a late reply is recognised."""
        self._sweeping = False
        now = time.monotonic()
        for xid, pending in list(self._pending.items()):
            if pending.deadline_s is None or pending.future.done():
                continue
            if pending.deadline_s > now:
                self._sweep_later()
            else:
                self._withdraw(xid)
                name = type(pending.request).__name__
                pending.future.set_exception(TimeoutError(errno.ETIMEDOUT, f"{self.name}: no reply to {name} in time"))

    # ------------------------------------------------------------------------------------------------------- receiving

    def sink(self, frame: Frame) -> Sequence[memoryview] | None:
        """Buffers for bulk: the caller's own for a reply, pooled ones for a request."""
        if frame.kind is Kind.REPLY or frame.kind is Kind.FAILURE:
            pending = self._pending.get(frame.xid)
            if pending is None or pending.into is None or pending.future.done():
                return scratch(frame.bulk_bytes)
            return _first_bytes(pending.into, frame.bulk_bytes)
        if self._pool is None:
            return [memoryview(bytearray(frame.bulk_bytes))]
        buffer = self._pool.take(frame.bulk_bytes)
        if buffer is None:
            if self.link is not None:
                self._pool.when_free(self.link.resume)
            return None
        self._receiving = buffer
        return [buffer]

    def frame(self, frame: Frame) -> None:
        """Handle one frame."""
        kind = frame.kind
        if kind is Kind.REPLY or kind is Kind.FAILURE:
            self._replied(frame)
        elif kind is Kind.REQUEST or kind is Kind.RESENT:
            self._receiving = None
            self._serve(frame)
        elif self.link is not None:
            self.link.close(f"unexpected {kind.name} frame")

    def _replied(self, frame: Frame) -> None:
        pending = self._pending.pop(frame.xid, None)
        if pending is None:
            return
        request = pending.request
        kind = type(request)
        try:
            if frame.kind is Kind.FAILURE:
                failure = _failure_decoder.decode(frame.body)
                if not pending.future.done():
                    pending.future.set_exception(OSError(failure.errno, failure.text))
                self.meter.record(kind, time.perf_counter_ns() - pending.started_ns, failed=True)
                return
            reply = _reply_decoders[kind].decode(frame.body)
        except msgspec.MsgspecError as error:
            if not pending.future.done():
                pending.future.set_exception(OSError(errno.EPROTO, f"{self.name}: reply to {kind.__name__}: {error}"))
            return
        self.meter.record(kind, time.perf_counter_ns() - pending.started_ns)
        if self.absorb is not None:
            self.absorb(request, reply)
        if not pending.future.done():
            pending.future.set_result(reply)

    def _serve(self, frame: Frame) -> None:
        try:
            request = _request_decoder.decode(frame.body)
        except msgspec.MsgspecError as error:
            self._refuse(frame, errno.EPROTO, f"request not understood: {error}")
            return
        kind = type(request)
        handler = self.service.get(kind)
        if handler is None:
            self._refuse(frame, errno.ENOSYS, f"{kind.__name__} is not a request for this server")
            return
        call = Call(self, frame, kind)
        self._in_service += 1
        if self._in_service >= IN_SERVICE_MAX and self.link is not None:
            self._paused = True
            self.link.pause()
        try:
            answer = handler(request, call)
        except Exception as error:
            call.fail(error)
            return
        if answer is LATER:
            return
        if is_later(answer):
            task = self._loop.create_task(self._finish(call, answer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            call.reply(answer)

    async def _finish(self, call: Call, answer: Coroutine[Any, Any, Message]) -> None:
        try:
            reply = await answer
        except Exception as error:
            call.fail(error)
        except asyncio.CancelledError:
            call.fail(OSError(errno.ESHUTDOWN, "server is shutting down"))
            raise
        else:
            call.reply(reply)

    def _refuse(self, frame: Frame, number: int, text: str) -> None:
        log.warning("%s: %s", self.name, text)
        if self._pool is not None:
            for buffer in frame.bulk:
                self._pool.give(buffer)
        if self.link is not None:
            self.link.send(Kind.FAILURE, frame.xid, 0, _encode(Failure(number, text)))

    def _answer(self, call: Call, kind: Kind, body: bytes, bulk: Sequence[memoryview], done: Done | None) -> None:
        self._in_service -= 1
        self.meter.record(call.kind, time.perf_counter_ns() - call.started_ns, failed=kind is Kind.FAILURE)
        if call.bulk is not None and self._pool is not None:
            buffer, call.bulk = call.bulk, None
            self._pool.give(buffer)
        link = self.link
        if link is None:
            if done is not None:
                done()
            return
        link.send(kind, call.xid, 0, body, bulk, done)
        if self._paused and self._in_service <= IN_SERVICE_MAX // 2:
            self._paused = False
            link.resume()

    # --------------------------------------------------------------------------------------------------------- closing

    def closed(self, link: Link, error: OSError) -> None:
        """The link is gone: every outstanding request fails."""
        self.link = None
        self._give_receiving()
        self._fail_pending(error)
        if self.on_closed is not None:
            self.on_closed(self, error)

    def _give_receiving(self) -> None:
        """Give back the buffer of a request whose bulk will not be complete any more."""
        if self._receiving is not None and self._pool is not None:
            self._pool.give(self._receiving)
        self._receiving = None

    def _fail_pending(self, error: OSError) -> None:
        if self.closed_error is None:
            self.closed_error = error
        pending, self._pending = self._pending, {}
        for waiting in pending.values():
            if not waiting.future.done():
                waiting.future.set_exception(_again(error))

    async def drain(self) -> None:
        """Wait until no handler's task is running."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def close(self, reason: str = "closed") -> None:
        """Drop the link; handlers that still run lose their reply."""
        if self.link is not None:
            self.link.close(reason)
        for task in self._tasks:
            task.cancel()


def _again(error: OSError) -> OSError:
    """The same error as a new object, since each waiter gets a traceback of its own."""
    return type(error)(error.errno or errno.ECONNRESET, error.strerror or str(error))


def _first_bytes(buffers: Sequence[memoryview], size: int) -> list[memoryview]:
    """The first `size` bytes of some buffers (fewer if they are not that long)."""
    chosen: list[memoryview] = []
    for buffer in buffers:
        if size <= 0:
            break
        chosen.append(buffer[:size])
        size -= len(chosen[-1])
    return chosen


def check_service(service: Service, wanted: Sequence[type[Request[Any]]]) -> None:
    """RuntimeError at start-up unless a service handles exactly the requests it is meant to."""
    missing = [kind.__name__ for kind in wanted if kind not in service]
    extra = [kind.__name__ for kind in service if kind not in wanted]
    if missing or extra:
        raise RuntimeError(f"service lacks {missing} and has no business with {extra}")
