"""The descriptor of `/dev/fuse`: requests come out of it, replies go into it.

The descriptor does not block; the event loop says when there is something to read. One read brings one whole request,
so the buffer is always as long as the longest WRITE. The bytes of a big WRITE are handed to the filesystem where they
lie and the channel takes another buffer; a small one is copied, because keeping a 1 MiB buffer for 4 KiB costs more.
"""

import asyncio
import errno
import logging
import os
import sys
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from nacrefs.client.fuse import abi
from nacrefs.common import arena

log = logging.getLogger(__name__)

_REQUESTS_PER_WAKEUP: Final = 32
"""After so many requests other callbacks of the event loop have their turn."""
_LENT_MAX: Final = 64
"""How many handed-over buffers are remembered so as to use them again."""
_GONE: Final = (errno.ENODEV, errno.ECONNABORTED, errno.EBADF)
"""What reading says once the file system is not mounted any more."""


def _memory(size: int) -> bytearray | memoryview:
    """Memory for requests: the RDMA device's, if there is one, so that what is written is sent from where it lies."""
    registered = arena.buffer(size)
    return registered if registered is not None else bytearray(size)


class Channel:
    """Requests and replies of one mount. `serve(request, view)` is called for each request; `view` is the whole
    request and is valid during the call only. `gone()` is called once, when the kernel has unmounted."""

    def __init__(
        self,
        fd: int,
        max_write_bytes: int,
        serve: Callable[[abi.Request, memoryview], None],
        gone: Callable[[], None],
    ) -> None:
        self.fd = fd
        self._serve = serve
        self._gone = gone
        self._loop: asyncio.AbstractEventLoop | None = None
        self._size = max_write_bytes + abi.READ_BUFFER_EXTRA
        self._hand_over_from = max(65536, max_write_bytes // 4)
        self._lent: deque[bytearray] = deque()
        self._use(_memory(self._size))

    def _use(self, buffer: bytearray | memoryview) -> None:
        self._buffer = buffer
        self._view = memoryview(buffer)
        self._vector = [buffer]

    def start(self) -> None:
        """Begin to serve on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self.fd, self._readable)

    def stop(self) -> None:
        """Stop serving and close the descriptor, which makes the kernel fail whatever is still asked."""
        if self._loop is not None:
            self._loop.remove_reader(self.fd)
            self._loop = None
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _readable(self) -> None:
        """Serve what is there."""
        readv, make, unpack, serve = os.readv, abi.Request._make, abi.IN_HEADER.unpack_from, self._serve
        for _ in range(_REQUESTS_PER_WAKEUP):
            try:
                length = readv(self.fd, self._vector)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno == errno.ENOENT:
                    continue  # the caller was killed before we got its request
                if error.errno not in _GONE:
                    log.exception("reading from %s failed", "/dev/fuse")
                self._leave()
                return
            view = self._view
            request = make(unpack(view))
            if request.length != length:
                log.error("request of %d bytes says that it has %d: dropped", length, request.length)
                continue
            serve(request, view)
            if self.fd < 0:
                return

    def _leave(self) -> None:
        if self._loop is not None:
            self._loop.remove_reader(self.fd)
            self._loop = None
        self._gone()

    def take(self, start: int, size: int) -> memoryview:
        """The bytes `[start, start + size)` of the request in service, as a buffer that its receiver may keep."""
        if size < self._hand_over_from:
            return memoryview(bytes(self._view[start : start + size]))
        data = self._view[start : start + size]
        if not isinstance(self._buffer, bytearray):  # the arena has it back when nobody refers to it
            self._use(_memory(self._size))
            return data
        lent = self._lent
        lent.append(self._buffer)
        if len(lent) > _LENT_MAX:
            lent.popleft()  # whoever still has it keeps it alive
        # A lent buffer to which nobody but `lent` (and the argument of getrefcount) refers has come back: views hold
        # a reference. The oldest comes back first, mostly.
        for _ in range(min(2, len(lent) - 1)):
            oldest = lent.popleft()
            if sys.getrefcount(oldest) == 2:
                self._use(oldest)
                return data
            lent.append(oldest)
        self._use(_memory(self._size))
        return data

    def send(self, unique: int, reply: bytes | Sequence[abi.Buffer]) -> None:
        """Answer a request. It may have been given up meanwhile (its caller killed, the mount gone): no error."""
        try:
            if isinstance(reply, bytes):
                os.write(self.fd, reply)
            else:
                os.writev(self.fd, reply)
        except OSError as error:
            if error.errno == errno.ENOENT or error.errno in _GONE:
                return
            log.exception("the kernel refused the reply to request %d", unique)
            try:
                os.write(self.fd, abi.error_reply(unique, errno.EIO))
            except OSError:
                log.warning("request %d stays without an answer", unique)
