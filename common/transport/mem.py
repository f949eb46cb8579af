"""Links inside one process, for tests: the same rules as TCP, without a socket.

Bulk is copied when it is delivered, so that a sender that reuses a buffer too early is found out.
"""

import asyncio
import errno
from collections import deque
from collections.abc import Sequence

from nacrefs.common import faults
from nacrefs.common.framing import Frame, FramingError, Kind
from nacrefs.common.transport.link import Accept, Done, Link, Listener, Receiver
from nacrefs.common.wire import BODY_BYTES_MAX

_listeners: dict[str, "MemListener"] = {}


class MemLink:
    """One end of a pair."""

    transport = "mem"
    upgrade = None

    def __init__(self, peername: str) -> None:
        self.peername = peername
        self._loop = asyncio.get_running_loop()
        self._receiver: Receiver | None = None
        self._body_bytes_max = BODY_BYTES_MAX
        self._other: MemLink | None = None
        self._inbox: deque[tuple[Frame, Sequence[memoryview], Done | None]] = deque()
        self._inbox_bytes = 0
        self._inbox_ends = False
        self._paused = False
        self._delivering = False
        self._closed: OSError | None = None

    @staticmethod
    def pair(name: str) -> tuple["MemLink", "MemLink"]:
        """Two ends, connected."""
        near, far = MemLink(f"mem://{name}"), MemLink(f"mem://{name} (client)")
        near._other, far._other = far, near
        return near, far

    @property
    def backlog_bytes(self) -> int:
        return self._other._inbox_bytes if self._other is not None else 0

    def start(self, receiver: Receiver, body_bytes_max: int = BODY_BYTES_MAX) -> None:
        self._receiver = receiver
        self._body_bytes_max = body_bytes_max
        if self._closed is not None:
            self._loop.call_soon(receiver.closed, self, self._closed)
        else:
            self.resume()

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
        if faults.on and faults.hit("rpc.frame.send", kind.name):
            self.close("a fault was injected")
        other = self._other
        if other is None:
            if done is not None:
                done()
            return
        frame = Frame(kind, xid, oldest, bytes(body), sum(map(len, bulk)))
        other._inbox.append((frame, bulk, done))
        other._inbox_bytes += len(body) + frame.bulk_bytes
        other._wake()

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self._wake()

    def withdraw(self, xid: int) -> None:
        if self._other is not None:
            self._other._copy_inbox()

    def close(self, reason: str = "closed") -> None:
        self._drop(ConnectionResetError(errno.ECONNRESET, f"{self.peername}: {reason}"))

    def _drop(self, error: OSError) -> None:
        if self._closed is not None:
            return
        self._closed = error
        other, self._other = self._other, None
        if other is not None:
            other._other = None
            other._inbox_ends = True
            other._copy_inbox()
            other._wake()
        self._copy_inbox()
        self._inbox.clear()
        self._inbox_bytes = 0
        if self._receiver is not None:
            self._loop.call_soon(self._receiver.closed, self, error)

    def _copy_inbox(self) -> None:
        """Let the sender have its buffers back, as TCP does once the bytes are the kernel's."""
        inbox, self._inbox = self._inbox, deque()
        for frame, bulk, done in inbox:
            self._inbox.append((frame, [memoryview(b"".join(bulk))], None))
            if done is not None:
                done()

    def _wake(self) -> None:
        if not self._delivering and (self._inbox or self._inbox_ends):
            self._delivering = True
            self._loop.call_soon(self._deliver)

    def _deliver(self) -> None:
        self._delivering = False
        try:
            while self._inbox and not self._paused and self._receiver is not None:
                if not self._deliver_first(self._receiver):
                    return
        except FramingError as error:
            self._drop(FramingError(error.errno, f"{self.peername}: {error.strerror}"))
        if self._inbox_ends and not self._inbox and not self._paused and self._receiver is not None:
            self._drop(ConnectionResetError(errno.ECONNRESET, f"{self.peername}: closed by peer"))

    def _deliver_first(self, receiver: Receiver) -> bool:
        """Hand over the first frame, if the receiver has room for its bulk."""
        frame, bulk, done = self._inbox[0]
        size = len(frame.body)
        if size > self._body_bytes_max:
            raise FramingError(
                errno.EPROTO, f"message body of {size} bytes is above the limit of {self._body_bytes_max}"
            )
        if frame.bulk_bytes:
            targets = receiver.sink(frame)
            if targets is None:
                self._paused = True
                return False
            _copy(bulk, targets)
            frame = frame._replace(bulk=targets)
        self._inbox.popleft()
        self._inbox_bytes -= size + frame.bulk_bytes
        if done is not None:
            done()
        receiver.frame(frame)
        return True


def _copy(sources: Sequence[memoryview], targets: Sequence[memoryview]) -> None:
    """Copy bytes from some buffers into others of the same total size."""
    data = memoryview(b"".join(sources))
    if sum(map(len, targets)) != len(data):
        raise FramingError(errno.EPROTO, f"nobody wants {len(data)} bytes of bulk here")
    for target in targets:
        target[:] = data[: len(target)]
        data = data[len(target) :]


class MemListener:
    """Accepts `mem://NAME` in this process."""

    def __init__(self, name: str, accept: Accept) -> None:
        if name in _listeners:
            raise OSError(errno.EADDRINUSE, f"address mem://{name} is in use")
        self.address = f"mem://{name}"
        self._name = name
        self._accept = accept
        _listeners[name] = self

    def connected(self, link: MemLink) -> None:
        self._accept(link)

    def close(self) -> None:
        _listeners.pop(self._name, None)


async def connect(name: str) -> Link:
    """A link to the listener of this name; ConnectionRefusedError if there is none."""
    listener = _listeners.get(name)
    if listener is None:
        raise ConnectionRefusedError(errno.ECONNREFUSED, f"nobody listens at mem://{name}")
    near, far = MemLink.pair(name)
    listener.connected(far)
    return near


async def listen(name: str, accept: Accept) -> Listener:
    """Accept links for `mem://name`."""
    return MemListener(name, accept)
