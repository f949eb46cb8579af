"""Frames over TCP: bulk follows its frame in the stream, sent with scatter/gather and received in place.

Frames that are queued in one turn of the event loop go out in one `sendmsg`; one `recv` takes in as many small
frames as have come. The socket is driven directly (`add_reader`), which works alike on asyncio's own loop and uvloop.
"""

import asyncio
import errno
import logging
import socket
from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import Final

from nacrefs.common import faults
from nacrefs.common.framing import Decoder, Frame, FramingError, Kind, encode_frame
from nacrefs.common.transport.link import Accept, Done, Listener, Receiver, Upgrade, scratch
from nacrefs.common.wire import BODY_BYTES_MAX

log = logging.getLogger("nacre.rpc")

CONNECT_S: Final = 10.0
SEND_BUFFER_BYTES: Final = 576 * 1024
"""The kernel takes twice that. Left to itself it queues so much on loopback that the bytes have left the CPU's cache
when they are received: eight reads of 1 MiB in flight cost the receiver 370 µs of CPU each, 140 to 230 µs with this.
A MiB and what goes with it fit in: with 512 KiB the last 1030 bytes had to wait, which woke both sides once more."""
_IOV_MAX: Final = 512
_RECEIVES_PER_TURN: Final = 4
_ACCEPTS_PER_TURN: Final = 64
GONE_S: Final = 30
"""A host that does not acknowledge what is sent to it, or that answers no probe of an idle connection, is gone after
this time, not after a quarter of an hour, or two hours. (A process that does not read for so long is taken for gone,
too, once the kernel can store no more for it; it is connected to again, and nothing is lost by that.)"""
_WATCHED: Final = (
    (socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 4),
    (socket.TCP_USER_TIMEOUT, GONE_S * 1000),
)  # fmt: skip


class TcpLink:
    """A link over a connected socket, which it owns."""

    transport = "tcp"

    def __init__(self, sock: socket.socket, peername: str) -> None:
        self.upgrade: Upgrade | None = None
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in _WATCHED:
                sock.setsockopt(socket.IPPROTO_TCP, option, value)
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

    @property
    def backlog_bytes(self) -> int:
        return self._queued_bytes - self._sent_bytes

    @property
    def own_address(self) -> str:
        """This side's IP address."""
        host: str = self._sock.getsockname()[0]
        return host

    def start(self, receiver: Receiver, body_bytes_max: int = BODY_BYTES_MAX) -> None:
        self._receiver = receiver
        self._decoder.body_bytes_max = body_bytes_max
        if self._closed is not None:
            self._loop.call_soon(receiver.closed, self, self._closed)
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
            self._loop.call_soon(self._deliver)  # what has come before the pause

    def withdraw(self, xid: int) -> None:
        self._decoder.redirect(xid, Kind.REPLY, scratch)
        # Rare, so it need not be known which of the queued buffers belong to this request.
        self._out = deque(bytes(item) if isinstance(item, memoryview) else item for item in self._out)

    # ------------------------------------------------------------------------------------------------------ receiving

    def _sink(self, frame: Frame) -> Sequence[memoryview] | None:
        assert self._receiver is not None
        return self._receiver.sink(frame)

    def _readable(self) -> None:
        decoder = self._decoder
        for _ in range(_RECEIVES_PER_TURN):
            if decoder.blocked and not self._deliver():
                return
            buffers = decoder.buffers()
            try:
                if len(buffers) == 1:
                    room = len(buffers[0])
                    count = self._sock.recv_into(buffers[0])
                else:
                    room = sum(map(len, buffers))
                    count = self._sock.recvmsg_into(buffers)[0]
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self._drop(error)
                return
            if not count:
                self._drop(ConnectionResetError(errno.ECONNRESET, f"{self.peername}: closed by peer"))
                return
            decoder.received(count)
            if not self._deliver() or count < room or decoder.idle:
                return

    def _deliver(self) -> bool:
        """Hand over the frames that have come; whether reading goes on. What is sent meanwhile goes out together."""
        planned, self._flush_planned = self._flush_planned, True
        try:
            while self._reading and self._receiver is not None:
                frame = self._decoder.next_frame()
                if frame is None:
                    if self._decoder.blocked:
                        self.pause()
                    break
                self._receiver.frame(frame)
        except FramingError as error:
            self._drop(FramingError(error.errno, f"{self.peername}: {error.strerror}"))
        finally:
            self._flush_planned = planned
            if self._out and not self._writing and not planned:
                self._flush()
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
        if faults.on and faults.hit("rpc.frame.send", kind.name):
            self._cut(len(head) + bulk_bytes)
        if not self._flush_planned and not self._writing:
            self._flush_planned = True
            self._loop.call_soon(self._planned_flush)

    def _cut(self, frame_bytes: int) -> None:
        """End the connection in the middle of the frame that was queued last (a fault)."""
        whole = b"".join(self._out)
        self._out = deque((whole[: len(whole) - frame_bytes // 2],))
        self.close("a fault was injected")

    def _planned_flush(self) -> None:
        self._flush_planned = False
        if not self._writing:
            self._flush()

    def _flush(self) -> None:
        full = False
        while self._out and not full and self._closed is None:
            out = self._out
            try:
                sent = self._sock.send(out[0]) if len(out) == 1 else self._sock.sendmsg(islice(out, _IOV_MAX))
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                self._drop(error)
                return
            self._sent_bytes += sent
            if self._sent_bytes == self._queued_bytes:
                out.clear()
            else:
                full = self._trim(sent)
            while self._done and self._done[0][0] <= self._sent_bytes:
                self._done.popleft()[1]()
        if self._out and self._closed is None:
            if not self._writing:
                self._writing = True
                self._loop.add_writer(self._fd, self._flush)
        elif self._writing:
            self._writing = False
            self._loop.remove_writer(self._fd)

    def _trim(self, sent: int) -> bool:
        """Forget what has been sent; whether that ended within an item, since the kernel takes no more."""
        out = self._out
        while out:
            head = out[0]
            size = len(head)
            if sent < size:
                if sent:
                    out[0] = memoryview(head)[sent:]
                return sent > 0
            sent -= size
            out.popleft()
        return False

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
        self._sent_bytes = self._queued_bytes
        while self._done:
            self._done.popleft()[1]()
        if self._receiver is not None:
            self._loop.call_soon(self._receiver.closed, self, error)


class TcpListener:
    """Accepts connections on a listening socket, which it owns."""

    scheme = "tcp"

    def __init__(self, sock: socket.socket, accept: Accept) -> None:
        host, port = sock.getsockname()[:2]
        self.address = f"{self.scheme}://[{host}]:{port}" if ":" in host else f"{self.scheme}://{host}:{port}"
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._accept = accept
        self._loop.add_reader(sock.fileno(), self._readable)

    def _readable(self) -> None:
        for _ in range(_ACCEPTS_PER_TURN):
            try:
                sock, peer = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # out of descriptors: leave the backlog alone for a moment
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                    raise
                log.warning("%s accepts nothing for a second: %s", self.address, error.strerror)
                self._loop.remove_reader(self._sock.fileno())
                self._loop.call_later(1.0, self._retry)
                return
            self.took(sock, f"{peer[0]}:{peer[1]}")

    def took(self, sock: socket.socket, peername: str) -> None:
        """Hand on a connection."""
        self._accept(TcpLink(sock, peername))

    def _retry(self) -> None:
        if self._sock.fileno() >= 0:
            self._loop.add_reader(self._sock.fileno(), self._readable)

    def close(self) -> None:
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()


def _split(place: str, scheme: str) -> tuple[str, int]:
    host, _, port = place.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise OSError(errno.EINVAL, f"address {scheme}://{place} is not {scheme}://HOST:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)


def host_of(place: str, scheme: str) -> str:
    """The host of `HOST:PORT`; OSError (EINVAL) if it is none."""
    return _split(place, scheme)[0]


async def connect(place: str, scheme: str = "tcp") -> TcpLink:
    """A link to `HOST:PORT`; OSError, naming it as an address of `scheme`, if nobody answers there."""
    sock = await connected(place, scheme)
    return TcpLink(sock, place.replace("[", "").replace("]", ""))


async def connected(place: str, scheme: str) -> socket.socket:
    """A socket that is connected to `HOST:PORT`; OSError, naming it as an address of `scheme`, if nobody answers."""
    host, port = _split(place, scheme)
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
            async with asyncio.timeout(CONNECT_S):
                await loop.sock_connect(sock, address)
        except TimeoutError:
            sock.close()
            failure = TimeoutError(errno.ETIMEDOUT, f"no answer in {CONNECT_S:.0f} s")
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    assert failure is not None
    raise OSError(
        failure.errno or errno.ECONNREFUSED, f"cannot connect to {scheme}://{place}: {failure.strerror or failure}"
    )


async def listen(place: str, accept: Accept, scheme: str = "tcp") -> Listener:
    """Accept links at `HOST:PORT` (port 0: any free one); OSError naming the address if it is taken."""
    return TcpListener(await listening(place, scheme), accept)


async def listening(place: str, scheme: str) -> socket.socket:
    """A socket that listens at `HOST:PORT`; OSError naming the address, as one of `scheme`, if it is taken."""
    host, port = _split(place, scheme)
    loop = asyncio.get_running_loop()
    try:
        infos = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise OSError(
            errno.EADDRNOTAVAIL, f"cannot listen at {scheme}://{place}: host {host!r} is unknown ({error.strerror})"
        ) from None
    family, _, _, _, where = infos[0]
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(where)
        sock.listen(1024)
    except OSError as error:
        sock.close()
        hint = "; is another server running there?" if error.errno == errno.EADDRINUSE else ""
        raise OSError(
            error.errno or errno.EINVAL, f"cannot listen at {scheme}://{place}: {error.strerror}{hint}"
        ) from None
    return sock
