"""Frames over TCP: bulk follows its frame in the stream, sent with scatter/gather and received in place.

Frames that are queued in one turn of the event loop go out in one `sendmsg`; one `recv` takes in as many small
frames as have come. The socket is driven directly (`add_reader`), which works alike on asyncio's own loop and on uvloop.
"""

import asyncio
import errno
import socket
from collections import deque
from collections.abc import Sequence
from itertools import islice

from nacrefs.common.framing import Decoder, Frame, FramingError, Kind, encode_frame
from nacrefs.common.transport.link import Accept, Done, Link, Listener, Receiver, scratch

_IOV_MAX = 512
_RECEIVES_PER_TURN = 4


class TcpLink:
    """A link over a connected socket, which it owns."""

    def __init__(self, sock: socket.socket, peername: str) -> None:
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self.peername = peername
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._fd = sock.fileno()
        self._decoder = Decoder(self._sink)
        self._receiver: Receiver | None = None
        self._out: deque[bytes | memoryview] = deque()
        self._done: deque[tuple[int, Done]] = deque()
        self._queued_bytes = 0
        self._sent_bytes = 0
        self._writing = False
        self._flush_planned = False
        self._reading = False
        self._closed: OSError | None = None
        self._told = False

    @property
    def backlog_bytes(self) -> int:
        return self._queued_bytes - self._sent_bytes

    def start(self, receiver: Receiver) -> None:
        self._receiver = receiver
        if self._closed is not None:
            self._tell_closed()
        else:
            self.resume()

    def pause(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._fd)

    def resume(self) -> None:
        if self._closed is None and not self._reading:
            self._reading = True
            self._loop.add_reader(self._fd, self._readable)
            if self._decoder.blocked:
                self._loop.call_soon(self._received, 0)

    def withdraw(self, xid: int) -> None:
        self._decoder.redirect(xid, Kind.REPLY, scratch)

    # ------------------------------------------------------------------------------------------------------ receiving

    def _sink(self, frame: Frame) -> Sequence[memoryview] | None:
        assert self._receiver is not None
        return self._receiver.sink(frame)

    def _readable(self) -> None:
        for _ in range(_RECEIVES_PER_TURN):
            buffers = self._decoder.buffers()
            try:
                if len(buffers) == 1:
                    count = self._sock.recv_into(buffers[0])
                else:
                    count = self._sock.recvmsg_into(buffers)[0]
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self._drop(error)
                return
            if not count:
                self._drop(ConnectionResetError(errno.ECONNRESET, f"{self.peername}: closed by peer"))
                return
            if not self._received(count) or count < sum(map(len, buffers)):
                return

    def _received(self, count: int) -> bool:
        """Handle `count` new bytes; whether reading goes on. What is sent meanwhile goes out together at the end."""
        if self._closed is not None:
            return False
        planned, self._flush_planned = self._flush_planned, True
        try:
            for frame in self._decoder.received(count):
                if self._receiver is not None and self._closed is None:
                    self._receiver.frame(frame)
        except FramingError as error:
            self._drop(error)
            return False
        finally:
            self._flush_planned = planned
        if self._out and not self._writing and not planned:
            self._flush()
        if self._decoder.blocked:
            self.pause()
        return self._reading

    # -------------------------------------------------------------------------------------------------------- sending

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
        if self._closed is not None:
            if done is not None:
                done()
            return
        bulk_bytes = sum(map(len, bulk)) if bulk else 0
        head = encode_frame(kind, xid, oldest, body, bulk_bytes)
        self._out.append(head)
        self._queued_bytes += len(head) + bulk_bytes
        if bulk_bytes:
            self._out.extend(bulk)
        if done is not None:
            self._done.append((self._queued_bytes, done))
        if not self._flush_planned and not self._writing:
            self._flush_planned = True
            self._loop.call_soon(self._planned_flush)

    def _planned_flush(self) -> None:
        self._flush_planned = False
        if not self._writing:
            self._flush()

    def _flush(self) -> None:
        out = self._out
        while out and self._closed is None:
            try:
                if len(out) == 1:
                    sent = self._sock.send(out[0])
                else:
                    sent = self._sock.sendmsg(islice(out, _IOV_MAX))
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                self._drop(error)
                return
            self._sent_bytes += sent
            while sent:
                head = out[0]
                if sent < len(head):
                    out[0] = memoryview(head)[sent:]
                    break
                sent -= len(head)
                out.popleft()
            while out and not len(out[0]):
                out.popleft()
        while self._done and self._done[0][0] <= self._sent_bytes:
            self._done.popleft()[1]()
        if out and self._closed is None:
            if not self._writing:
                self._writing = True
                self._loop.add_writer(self._fd, self._flush)
        elif self._writing:
            self._writing = False
            self._loop.remove_writer(self._fd)

    # -------------------------------------------------------------------------------------------------------- closing

    def close(self, reason: str = "closed") -> None:
        if self._closed is None and self._out and not self._writing:
            self._flush()
        self._drop(ConnectionResetError(errno.ECONNRESET, f"{self.peername}: {reason}"))

    def _drop(self, error: OSError) -> None:
        if self._closed is not None:
            return
        self._closed = error
        self.pause()
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._fd)
        self._sock.close()
        self._out.clear()
        while self._done:
            self._done.popleft()[1]()
        self._tell_closed()

    def _tell_closed(self) -> None:
        if self._receiver is not None and not self._told:
            self._told = True
            assert self._closed is not None
            self._loop.call_soon(self._receiver.closed, self, self._closed)


class TcpListener:
    """Accepts connections on a listening socket, which it owns."""

    def __init__(self, sock: socket.socket, accept: Accept) -> None:
        host, port = sock.getsockname()[:2]
        self.address = f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._accept = accept
        self._loop.add_reader(sock.fileno(), self._readable)

    def _readable(self) -> None:
        for _ in range(64):
            try:
                sock, peer = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # out of descriptors: leave the backlog alone for a moment
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                    raise
                self._loop.remove_reader(self._sock.fileno())
                self._loop.call_later(1.0, self._retry)
                return
            self._accept(TcpLink(sock, f"{peer[0]}:{peer[1]}"))

    def _retry(self) -> None:
        if self._sock.fileno() >= 0:
            self._loop.add_reader(self._sock.fileno(), self._readable)

    def close(self) -> None:
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()


def _split(place: str) -> tuple[str, int]:
    host, _, port = place.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise OSError(errno.EINVAL, f"address tcp://{place} is not tcp://HOST:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)


async def connect(place: str) -> Link:
    """A link to `HOST:PORT`; OSError if nobody answers there."""
    host, port = _split(place)
    loop = asyncio.get_running_loop()
    try:
        infos = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise OSError(errno.EHOSTUNREACH, f"host {host!r} is unknown ({error.strerror})") from None
    failure: OSError | None = None
    for family, kind, proto, _, address in infos:
        sock = socket.socket(family, kind | socket.SOCK_CLOEXEC, proto)
        sock.setblocking(False)
        try:
            await loop.sock_connect(sock, address)
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
        else:
            return TcpLink(sock, f"{host}:{port}")
    assert failure is not None
    raise OSError(
        failure.errno or errno.ECONNREFUSED, f"cannot connect to tcp://{place}: {failure.strerror or failure}"
    )


async def listen(place: str, accept: Accept) -> Listener:
    """Accept links at `HOST:PORT` (port 0: any free one); OSError naming the address if it is taken."""
    host, port = _split(place)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(1024)
    except OSError as error:
        sock.close()
        hint = "; is another server running there?" if error.errno == errno.EADDRINUSE else ""
        raise OSError(error.errno or errno.EINVAL, f"cannot listen at tcp://{place}: {error.strerror}{hint}") from None
    return TcpListener(sock, accept)
