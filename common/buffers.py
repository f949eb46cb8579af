"""Reusable buffers for bulk bytes, under one limit.

A buffer that has been used before costs no page faults: filling a fresh MiB costs about as much CPU as hashing it.
With RDMA they come from the registered arena, which keeps them itself.
"""

import mmap
from collections import deque
from collections.abc import Callable
from typing import Final

from nacrefs.common import arena

_SMALLEST: Final = 16 * 1024


def page_aligned(size: int) -> mmap.mmap:
    """Memory of at least `size` bytes that begins with a page, for what is read from files. `malloc` gives large blocks
    that begin 16 bytes behind a page, and processors that copy with `rep movsb` (AMD EPYC) take five times as
    long from a page of the page cache to 1 to 31 bytes behind one: docs/adr/0020-large-requests.md."""
    return mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


class BufferPool:
    """Buffers in power-of-two size classes; never more than `limit_bytes` are out at a time, and never more than that
    are in memory: out, or kept for reuse."""

    def __init__(self, limit_bytes: int, keep_bytes: int | None = None) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self._keep_bytes = limit_bytes if keep_bytes is None else keep_bytes
        self.kept_bytes = 0
        self._free: dict[int, list[mmap.mmap]] = {}
        self._out: set[int] = set()
        self._waiting: deque[Callable[[], None]] = deque()

    def take(self, size: int) -> memoryview | None:
        """A buffer of exactly `size` bytes, with arbitrary contents; None if that would exceed the limit.

        When nothing at all is out, any size is granted, so that one large request always fits.
        """
        capacity = max(_SMALLEST, 1 << (size - 1).bit_length()) if size else _SMALLEST
        if self.used_bytes + capacity > self.limit_bytes and self.used_bytes:
            return None
        self.used_bytes += capacity
        registered = arena.buffer(capacity)
        if registered is not None:
            self._out.add(id(registered.obj))
            return registered[:size]
        free = self._free.get(capacity)
        if free:
            self.kept_bytes -= capacity
            memory = free.pop()
        else:
            self._forget_kept()
            memory = page_aligned(capacity)
        self._out.add(id(memory))
        return memoryview(memory)[:size]

    def _forget_kept(self) -> None:
        """Make room in memory for a new buffer: free ones of other sizes go, the largest first."""
        while self.kept_bytes and self.used_bytes + self.kept_bytes > self.limit_bytes:
            capacity = max(capacity for capacity, free in self._free.items() if free)
            self._free[capacity].pop()
            self.kept_bytes -= capacity

    def give(self, buffer: memoryview) -> None:
        """Give back a buffer that `take` returned (any view of it), once. No view of it may be used any more."""
        memory: object = buffer.obj
        if id(memory) not in self._out:
            raise ValueError("this buffer is not out")
        self._out.remove(id(memory))
        capacity = arena.capacity(buffer)
        self.used_bytes -= capacity
        if isinstance(memory, mmap.mmap) and self.kept_bytes + capacity <= self._keep_bytes:
            self.kept_bytes += capacity
            self._free.setdefault(capacity, []).append(memory)
        for _ in range(len(self._waiting)):
            if self.used_bytes >= self.limit_bytes:
                break
            self._waiting.popleft()()

    def when_free(self, wake: Callable[[], None]) -> None:
        """Call `wake` once, when a buffer has been given back (it may be taken already when `wake` looks)."""
        self._waiting.append(wake)
