"""Requests and replies over a link: typed calls both ways.

`Peer` is one side of an authenticated link; `common.remote` has the peers that connect and the server that accepts
them. A request that may have arrived before is marked as sent again and keeps its xid, so that a server can answer it
once.

A service maps request types to handlers. A handler is a plain function `(request, call) -> reply`; it may also return
a coroutine, which then runs as a task, or `LATER`, having arranged that `call.reply` or `call.fail` is called.
"""

import asyncio
import errno
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from nacrefs.common import faults
from nacrefs.common.answer import is_later
from nacrefs.common.buffers import BufferPool
from nacrefs.common.codec import decode_failure, decode_reply, decode_request, encode
from nacrefs.common.export import Export
from nacrefs.common.framing import Frame, Kind
from nacrefs.common.observe import Meter
from nacrefs.common.transport.link import Done, Link, scratch
from nacrefs.common.wire import Failure, Message, Request, Role

log = logging.getLogger("nacre.rpc")

ReplyT = TypeVar("ReplyT")

Handler = Callable[[Any, "Call"], Any]
Service = Mapping[type[Request[Any]], Handler]
Absorb = Callable[[Request[Any], Any], None]

IN_SERVICE_MAX: Final = 256
"""Requests of one peer that may be in service, unless `Peer.in_service_max` says otherwise; a peer with more is not
read from."""
BACKLOG_BYTES_MAX: Final = 16 << 20
"""Answers that may be queued for one peer; a peer that does not fetch them is not read from."""
_SWEEP_S: Final = 0.25
# Looking up `Kind.REPLY` takes Python 3.11 0.1 µs, nine times per call.
_REQUEST: Final = Kind.REQUEST
_RESENT: Final = Kind.RESENT
_REPLY: Final = Kind.REPLY
_FAILURE: Final = Kind.FAILURE


class _Later:
    """The type of `LATER`."""


LATER: Final = _Later()
"""A handler's answer that says: I will call `call.reply` or `call.fail` myself."""


class Call:
    """One request in service: who asked, the bytes that came with it, and the way to answer."""

    __slots__ = ("_done", "_push", "answered", "bulk", "kind", "link", "oldest", "peer", "resent", "started_ns", "xid")

    def __init__(self, peer: "Peer", frame: Frame, kind: type[Request[Any]], link: Link) -> None:
        self.peer = peer
        self.link = link
        self.xid = frame.xid
        self.oldest = frame.oldest
        self.resent = frame.kind is _RESENT
        self.kind = kind
        self.bulk: memoryview | None = frame.bulk[0] if frame.bulk else None
        self.started_ns = time.perf_counter_ns()
        self.answered = False
        self._push: Sequence[memoryview] = ()
        self._done: Done | None = None

    def pull(self) -> memoryview:
        """The request's bulk bytes; valid until the request has been answered. Empty if it brought none."""
        return self.bulk if self.bulk is not None else memoryview(b"")

    def push(self, buffers: Sequence[memoryview], release: Done | None = None) -> None:
        """Send these bytes with the reply; `release` is called, once, when they may change again."""
        self._push = buffers
        self._done = release

    def decode_reply(self, body: bytes) -> Message:
        """An answer to a request of this kind, from its encoding; OSError EPROTO if it is none."""
        return decode_reply(self.kind, body)

    def reply(self, reply: Message) -> None:
        """Answer, once. A reply that cannot be encoded is a failure."""
        try:
            body = encode(reply)
        except Exception as error:
            self.fail(error)
        else:
            self._answer(_REPLY, body, self._push)

    def fail(self, error: BaseException) -> None:
        """Answer with an errno; anything but an OSError is EIO and logged."""
        if isinstance(error, OSError) and error.errno:
            failure = Failure(error.errno, error.strerror or str(error))
        else:
            failure = Failure(errno.EIO, f"internal error, see the server's log for {self.peer.name}/{self.xid}")
            log.error("%s %s/%s failed", self.kind.__name__, self.peer.name, self.xid, exc_info=error)
        release, self._done = self._done, None
        if release is not None:
            release()
        self._answer(_FAILURE, encode(failure), ())

    def _answer(self, kind: Kind, body: bytes, push: Sequence[memoryview]) -> None:
        release, self._done = self._done, None
        if not self.answered:
            self.answered = True
            self.peer.answer(self, kind, body, push, release)
            return
        log.error("%s %s/%s was answered twice", self.kind.__name__, self.peer.name, self.xid)
        if release is not None:
            release()


class _Pending:
    """A request that waits for its reply."""

    __slots__ = ("body", "data", "deadline_s", "future", "into", "link", "request", "started_ns")

    def __init__(
        self,
        future: "asyncio.Future[Any]",
        request: Request[Any],
        data: Sequence[memoryview],
        into: Sequence[memoryview] | None,
        deadline_s: float | None,
    ) -> None:
        self.future = future
        self.request = request
        self.body = encode(request)
        self.data = data
        self.into = into
        self.deadline_s = deadline_s
        self.started_ns = time.perf_counter_ns()
        self.link: Link | None = None


class Peer:
    """One side of an authenticated link.

    `session` and `state` are free for the application; `role`, `name`, `key` (its name), `principal` (whose it is) and
    `export` (what it may see) are what the handshake proved. `link` is None while no requests can go out. `absorb`, if
    set, sees every (request, reply) at the moment when the reply arrives, before any later frame is handled. `wrap`, if
    set, makes what is sent of a request and its encoding.
    """

    def __init__(self, service: Service, meter: Meter, pool: BufferPool | None = None) -> None:
        self.name = ""
        self.role = Role.CLIENT
        self.key = self.principal = ""
        self.export = Export()
        self.session = 0
        self.state: Any = None
        self.absorb: Absorb | None = None
        self.wrap: Callable[[Request[Any], bytes], bytes] | None = None
        self.service = service
        self.meter = meter
        self.link: Link | None = None
        self.in_service_max = IN_SERVICE_MAX
        self.closed_error: OSError | None = None
        self.on_closed: Callable[[Peer, OSError], None] | None = None
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._pending: dict[int, _Pending] = {}
        self._xids = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._sweeping = False
        # What follows is about the link that frames come from: `link`, or one that is still being greeted.
        self._carrier: Link | None = None
        self._receiving: deque[memoryview] = deque()
        self._short_of_buffers = False
        self._in_service = 0
        self._unfetched = False
        self._overloaded = False

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
            future.set_exception(again(self.closed_error))
            return future
        xid = next(self._xids)
        if deadline_s is not None:
            self._sweep_in(deadline_s)
            deadline_s += time.monotonic()
        pending = _Pending(future, request, data, into, deadline_s)
        if self.wrap is not None:
            pending.body = self.wrap(request, pending.body)
        self._pending[xid] = pending
        if into is not None or data:
            future.add_done_callback(partial(self._ended, xid))
        if link is not None:
            self._send(xid, pending, _REQUEST, link)
        return future

    def _send(self, xid: int, pending: _Pending, kind: Kind, link: Link) -> None:
        pending.link = link
        oldest = next(iter(self._pending))
        if faults.on and faults.hit("rpc.request.send", type(pending.request).__name__):
            link.close("a fault was injected")
        link.send(kind, xid, oldest, pending.body, pending.data, None, pending.into)

    def _ended(self, xid: int, future: "asyncio.Future[Any]") -> None:
        if future.cancelled():
            self._withdraw(xid)

    def _withdraw(self, xid: int) -> None:
        """Nobody waits for this reply any more. It stays pending, if it may come, so that it is recognised."""
        pending = self._pending.get(xid)
        if pending is None:
            return
        if pending.link is None or self._carrier is None:
            del self._pending[xid]
        elif pending.into is not None or pending.data:
            pending.into, pending.data = None, ()
            pending.link.withdraw(xid)

    @property
    def transport(self) -> str:
        """What carries requests to the other side now: tcp, rdma, mem; empty while there is no connection."""
        return self.link.transport if self.link is not None else ""

    @property
    def outstanding(self) -> int:
        """Requests that wait for a reply."""
        return len(self._pending)

    def _sweep_in(self, delay_s: float) -> None:
        if not self._sweeping:
            self._sweeping = True
            self._loop.call_later(min(delay_s, _SWEEP_S), self._sweep)

    def _sweep(self) -> None:
        """Fail requests whose deadline is over."""
        self._sweeping = False
        now = time.monotonic()
        for xid, pending in list(self._pending.items()):
            if pending.deadline_s is None or pending.future.done():
                continue
            if pending.deadline_s > now:
                self._sweep_in(pending.deadline_s - now)
            else:
                self._withdraw(xid)
                name = type(pending.request).__name__
                pending.future.set_exception(TimeoutError(errno.ETIMEDOUT, f"{self.name}: no reply to {name} in time"))

    # ------------------------------------------------------------------------------------------------------- receiving

    def attach(self, link: Link) -> None:
        """Ask over this link from now on. `link.start(peer)` comes next."""
        self.link = self._carrier = link

    def sink(self, frame: Frame) -> Sequence[memoryview] | None:
        """Buffers for bulk: the caller's own for a reply, pooled ones for a request."""
        if frame.kind is _REQUEST or frame.kind is _RESENT:
            return self._request_buffers(frame.bulk_bytes)
        pending = self._pending.get(frame.xid)
        if pending is None or pending.into is None or pending.future.done() or frame.kind is not _REPLY:
            return scratch(frame.bulk_bytes)
        buffers = _first_bytes(pending.into, frame.bulk_bytes)
        if sum(map(len, buffers)) < frame.bulk_bytes:
            name = type(pending.request).__name__
            text = f"{self.name}: reply to {name} brings {frame.bulk_bytes} bytes, more than were asked for"
            pending.future.set_exception(OSError(errno.EPROTO, text))
            return scratch(frame.bulk_bytes)
        return buffers

    def _request_buffers(self, size: int) -> Sequence[memoryview] | None:
        if self._pool is None:
            return [memoryview(bytearray(size))]
        buffer = self._pool.take(size)
        if buffer is None:
            if not self._short_of_buffers:
                self._short_of_buffers = True
                self._pool.when_free(self._buffers_free)
            return None
        self._receiving.append(buffer)
        return [buffer]

    def _buffers_free(self) -> None:
        self._short_of_buffers = False
        if self._carrier is not None and not self._overloaded:
            self._carrier.resume()

    def frame(self, frame: Frame) -> None:
        """Handle one frame."""
        kind = frame.kind
        link = self._carrier
        if kind is _REPLY or kind is _FAILURE:
            self._replied(frame)
        elif link is None:
            return
        elif kind is _REQUEST or kind is _RESENT:
            if frame.bulk and self._receiving:
                self._receiving.popleft()
            self._serve(frame, link)
        else:
            log.warning("%s sent a %s frame out of place, connection closed", self.name, kind.name)
            link.close(f"unexpected {kind.name} frame")

    def _replied(self, frame: Frame) -> None:
        if faults.on and self._reply_is_lost(frame):
            return
        pending = self._pending.pop(frame.xid, None)
        if pending is None:
            return
        request, future = pending.request, pending.future
        kind = type(request)
        failed = frame.kind is _FAILURE
        self.meter.record(kind, time.perf_counter_ns() - pending.started_ns, failed)
        try:
            if failed:
                raise decode_failure(frame.body)
            reply = decode_reply(kind, frame.body)
            if self.absorb is not None:
                self.absorb(request, reply)
        except OSError as error:
            if not future.done():
                future.set_exception(error)
        except Exception as error:
            log.exception("reply to %s from %s could not be taken in", kind.__name__, self.name)
            if not future.done():
                future.set_exception(error)
        else:
            if not future.done():
                future.set_result(reply)

    def _reply_is_lost(self, frame: Frame) -> bool:
        """Whether a fault wants this answer to be lost; the connection is then, too."""
        pending = self._pending.get(frame.xid)
        if pending is None or not faults.hit("rpc.reply.receive", type(pending.request).__name__):
            return False
        if self._carrier is not None:
            self._carrier.close("a fault was injected")
        return True

    def _serve(self, frame: Frame, link: Link) -> None:
        try:
            request = decode_request(frame.body)
            handler = self.service.get(type(request))
            if handler is None:
                raise OSError(errno.ENOSYS, f"{type(request).__name__} is not a request for this server")
        except OSError as error:
            self._refuse(frame, link, error)
            return
        if faults.on and faults.hit("rpc.request.receive", type(request).__name__):
            link.close("a fault was injected")
            self._give_back(frame)
            return
        call = Call(self, frame, type(request), link)
        self._in_service += 1
        if self._in_service >= self.in_service_max:
            self._balance()
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
            task.add_done_callback(partial(self._finished, call, answer))
        else:
            call.reply(answer)

    async def _finish(self, call: Call, answer: Coroutine[Any, Any, Message]) -> None:
        """Answer in the very step in which the handler returns: nothing that is asked later may overtake the answer."""
        try:
            reply = await answer
        except asyncio.CancelledError:
            call.fail(OSError(errno.ESHUTDOWN, "server is shutting down"))
            raise
        except Exception as error:
            call.fail(error)
        else:
            call.reply(reply)

    def _finished(self, call: Call, answer: Coroutine[Any, Any, Message], task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not call.answered:  # cancelled before its first step
            answer.close()
            call.fail(OSError(errno.ESHUTDOWN, "server is shutting down"))

    def _refuse(self, frame: Frame, link: Link, error: OSError) -> None:
        log.warning("%s: %s", self.name, error.strerror)
        self._give_back(frame)
        link.send(_FAILURE, frame.xid, 0, encode(Failure(error.errno or errno.EIO, error.strerror or "")))

    def _give_back(self, frame: Frame) -> None:
        if self._pool is not None:
            for buffer in frame.bulk:
                self._pool.give(buffer)

    def answer(self, call: Call, kind: Kind, body: bytes, bulk: Sequence[memoryview], release: Done | None) -> None:
        """Send an answer (`Call` does). It goes out on the link that the request came from, or nowhere."""
        self._in_service -= 1
        self.meter.record(call.kind, time.perf_counter_ns() - call.started_ns, kind is _FAILURE)
        if call.bulk is not None:
            buffer, call.bulk = call.bulk, None
            if self._pool is not None:
                self._pool.give(buffer)
        link = call.link
        if link is self._carrier and link.backlog_bytes > BACKLOG_BYTES_MAX and not self._unfetched:
            self._unfetched = True
            release = partial(self._fetched, release)
        if faults.on and faults.hit("rpc.reply.send", call.kind.__name__):
            link.close("a fault was injected")
        link.send(kind, call.xid, 0, body, bulk, release)
        if self._overloaded or self._unfetched:
            self._balance()

    def _fetched(self, release: Done | None) -> None:
        self._unfetched = False
        if release is not None:
            release()
        self._balance()

    def _balance(self) -> None:
        """Stop reading while the other side asks for more than it gets, or does not fetch what it gets."""
        if not self._overloaded:
            if self._unfetched or self._in_service >= self.in_service_max:
                self._overloaded = True
                if self._carrier is not None:
                    self._carrier.pause()
        elif not self._unfetched and self._in_service <= self.in_service_max // 2:
            self._overloaded = False
            if self._carrier is not None:
                self._carrier.resume()

    # --------------------------------------------------------------------------------------------------------- closing

    def closed(self, link: Link, error: OSError) -> None:
        """The link is gone: every outstanding request fails."""
        self.link = None
        self._let_go()
        self._fail_pending(error)
        if self.on_closed is not None:
            self.on_closed(self, error)

    def _let_go(self) -> None:
        """The carrier is gone: give back the buffers of requests whose bulk will not be complete any more."""
        self._carrier = None
        while self._receiving:
            assert self._pool is not None
            self._pool.give(self._receiving.popleft())

    def _fail_pending(self, error: OSError) -> None:
        if self.closed_error is None:
            self.closed_error = error
        pending, self._pending = self._pending, {}
        for waiting in pending.values():
            if not waiting.future.done():
                waiting.future.set_exception(again(error))

    @property
    def serving(self) -> bool:
        """Whether any handler's task is running."""
        return bool(self._tasks)

    async def drain(self) -> None:
        """Wait until no handler's task is running."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def close(self, reason: str = "closed") -> None:
        """Drop the link; handlers that still run lose their reply."""
        if self._carrier is not None:
            self._carrier.close(reason)
        for task in self._tasks:
            task.cancel()


def again(error: OSError) -> OSError:
    """The same error as a new object, since each waiter gets a traceback of its own."""
    return type(error)(error.errno or errno.ECONNRESET, error.strerror or str(error))


def _first_bytes(buffers: Sequence[memoryview], size: int) -> Sequence[memoryview]:
    """The first `size` bytes of some buffers (fewer if they are not that long)."""
    if len(buffers) == 1 and len(buffers[0]) == size:
        return buffers
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
