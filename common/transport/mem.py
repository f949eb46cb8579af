"""Links inside one process, for tests: the same rules as TCP, without a socket.

Bulk is copied when it is delivered, so that a sender that reuses a buffer too early is found out.
"""

import asyncio
from collections import deque
from collections.abc import Sequence

from nacrefs.common.framing import Frame, Kind
from nacrefs.common.transport.link import Accept, Done, Link, Listener, Receiver

_listeners: dict[str, "MemListener"] = {}


class MemLink:
    """One end of a pair."""

    def __init__(self, peername: str) -> None:
        self.peername = peername
        self._loop = asyncio.get_running_loop()
        self._receiver: Receiver | None = None
        self._other: MemLink | None = None
        self._inbox: deque[tuple[Frame, Sequence[memoryview], Done | None]] = deque()
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
        return sum(len(frame.body) + frame.bulk_bytes for frame, _, _ in self._other._inbox) if self._other else 0

    def start(self, receiver: Receiver) -> None:
        self._receiver = receiver
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
        other = self._other
        if other is None:
            if done is not None:
                done()
            return
        frame = Frame(kind, xid, oldest, bytes(body), sum(map(len, bulk)))
        other._inbox.append((frame, bulk, done))
        other._wake()

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self._wake()

    def withdraw(self, xid: int) -> None:
        """Nothing to do: delivery is one step."""

    def close(self, reason: str = "closed") -> None:
        other, self._other = self._other, None
        self._drop(ConnectionResetError(f"{self.peername}: {reason}"))
        if other is not None:
            other._other = None
            other._drop(ConnectionResetError(f"{other.peername}: closed by peer"))

    def _drop(self, error: OSError) -> None:
        if self._closed is not None:
            return
        self._closed = error
        for _, _, done in self._inbox:
            if done is not None:
                done()
        self._inbox.clear()
        if self._receiver is not None:
            self._loop.call_soon(self._receiver.closed, self, error)

    def _wake(self) -> None:
        if not self._delivering and self._inbox:
            self._delivering = True
            self._loop.call_soon(self._deliver)

    def _deliver(self) -> None:
        self._delivering = False
        while self._inbox and not self._paused and self._receiver is not None:
            frame, bulk, done = self._inbox[0]
            if frame.bulk_bytes:
                targets = self._receiver.sink(frame)
                if targets is None:
                    self._paused = True
                    return
                _copy(bulk, targets)
                frame = frame._replace(bulk=targets)
            self._inbox.popleft()
            if done is not None:
                done()
            self._receiver.frame(frame)


def _copy(sources: Sequence[memoryview], targets: Sequence[memoryview]) -> None:
    """Copy bytes from one list of buffers into another of the same total size."""
    data = memoryview(b"".join(sources))
    for target in targets:
        target[:] = data[: len(target)]
        data = data[len(target) :]


class MemListener:
    """Accepts `mem://NAME` in this process."""

    def __init__(self, name: str, accept: Accept) -> None:
        if name in _listeners:
            raise OSError(98, f"address mem://{name} is in use")
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
        raise ConnectionRefusedError(111, f"nobody listens at mem://{name}")
    near, far = MemLink.pair(name)
    listener.connected(far)
    return near


async def listen(name: str, accept: Accept) -> Listener:
    """Accept links for `mem://name`."""
    return MemListener(name, accept)
