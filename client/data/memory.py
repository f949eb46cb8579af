"""One limit for all file data that a client holds: dirty extents, read-ahead, buffers in transfer.

Who needs memory takes it before using it. When none is left, whoever can free some is asked to (`on_pressure`) and
takers wait in line; nobody waits while holding memory that only he could free.
"""

import asyncio
import errno
from collections import deque
from collections.abc import Callable
from typing import Final

from nacrefs.common import arena

_SMALLEST: Final = 16 * 1024
_LARGEST_KEPT: Final = 8 << 20


class Memory:
    """Counts bytes under a limit, and keeps used buffers: filling a fresh MiB costs as much CPU as hashing it."""

    def __init__(self, limit_bytes: int, patience_s: float = 0) -> None:
        self.limit_bytes = limit_bytes
        self.patience_s = patience_s
        """how long a taker waits while nobody gives any back before it fails with EIO; 0: for ever"""
        self._given = 0
        self.used_bytes = 0
        self.peak_bytes = 0
        self.on_pressure: Callable[[], None] | None = None
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._pressing = False
        self._kept: dict[int, list[bytearray]] = {}
        self._kept_bytes = 0

    def try_take(self, size: int) -> bool:
        """Take `size` bytes if they are to be had at once. More than the limit is granted only when nothing is out."""
        used = self.used_bytes + size
        if self._waiting or (used > self.limit_bytes and self.used_bytes):
            return False
        self.used_bytes = used
        if used > self.peak_bytes:
            self.peak_bytes = used
        return True

    async def take(self, size: int) -> None:
        """Take `size` bytes, waiting in line for them."""
        if self.try_take(size):
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        self._press()
        try:
            if self.patience_s:
                await self._wait_patiently(turn)
            else:
                await turn
        except (asyncio.CancelledError, OSError):
            if turn.done() and not turn.cancelled():
                self.give(size)
            else:
                self._serve()
            raise

    async def _wait_patiently(self, turn: "asyncio.Future[None]") -> None:
        while not turn.done():
            given = self._given
            await asyncio.wait([turn], timeout=self.patience_s)
            if not turn.done() and given == self._given:
                turn.cancel()
                raise OSError(errno.EIO, "memory is full of data that servers which are away do not take")

    def must_take(self, size: int) -> None:
        """Take a few bytes that cannot be waited for, even beyond the limit."""
        self.used_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.used_bytes)

    def give(self, size: int) -> None:
        """Give `size` bytes back."""
        self.used_bytes -= size
        self._given += 1
        if self._waiting:
            self._serve()

    def _serve(self) -> None:
        while self._waiting:
            size, turn = self._waiting[0]
            if not turn.done():
                used = self.used_bytes + size
                if used > self.limit_bytes and self.used_bytes:
                    self._press()
                    return
                self.used_bytes = used
                self.peak_bytes = max(self.peak_bytes, used)
                turn.set_result(None)
            self._waiting.popleft()

    def _press(self) -> None:
        """Ask for memory to be freed; what is freed at once comes in through `give`."""
        if self.on_pressure is not None and not self._pressing:
            self._pressing = True
            try:
                self.on_pressure()
            finally:
                self._pressing = False

    @property
    def short(self) -> bool:
        """Somebody waits for memory."""
        return bool(self._waiting)

    def buffer(self, size: int) -> memoryview:
        """A buffer of `size` bytes with arbitrary contents, for memory that has been taken."""
        registered = arena.buffer(size)
        if registered is not None:
            return registered
        capacity = max(_SMALLEST, 1 << (size - 1).bit_length()) if size else _SMALLEST
        kept = self._kept.get(capacity)
        if kept:
            self._kept_bytes -= capacity
            return memoryview(kept.pop())[:size]
        return memoryview(bytearray(capacity))[:size]

    def release(self, buffer: memoryview) -> None:
        """Give back a buffer, to be used again, and its bytes. No view of it may be used any more."""
        memory: object = buffer.obj
        if isinstance(memory, bytearray):  # otherwise it is the arena's, and goes back when nobody refers to it
            capacity = len(memory)
            if capacity <= _LARGEST_KEPT and self._kept_bytes + capacity <= self.limit_bytes // 8:
                self._kept_bytes += capacity
                self._kept.setdefault(capacity, []).append(memory)
        self.give(len(buffer))
