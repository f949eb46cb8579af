"""Reusable buffers for bulk bytes, under one limit.

A buffer that has been used before costs no page faults: filling a fresh MiB costs about as much CPU as hashing it.
"""

from collections import deque
from collections.abc import Callable
from typing import Final

_SMALLEST: Final = 16 * 1024


class BufferPool:
    """Buffers in power-of-two size classes; never more than `limit_bytes` are out at a time."""

    def __init__(self, limit_bytes: int, keep_bytes: int | None = None) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self._keep_bytes = limit_bytes if keep_bytes is None else keep_bytes
        self._kept_bytes = 0
        self._free: dict[int, list[bytearray]] = {}
        self._waiting: deque[Callable[[], None]] = deque()

    def take(self, size: int) -> memoryview | None:
        """A buffer of exactly `size` bytes, with arbitrary contents; None if that would exceed the limit (unless nothing
        at all is out, so that one large request always fits)."""
        capacity = max(_SMALLEST, 1 << (size - 1).bit_length()) if size else _SMALLEST
        if self.used_bytes + capacity > self.limit_bytes and self.used_bytes:
            return None
        self.used_bytes += capacity
        free = self._free.get(capacity)
        if free:
            self._kept_bytes -= capacity
            return memoryview(free.pop())[:size]
        return memoryview(bytearray(capacity))[:size]

    def give(self, buffer: memoryview) -> None:
        """Give back a buffer that `take` returned. No view of it may be used any more."""
        memory = buffer.obj
        assert isinstance(memory, bytearray)
        capacity = len(memory)
        self.used_bytes -= capacity
        if self._kept_bytes + capacity <= self._keep_bytes:
            self._kept_bytes += capacity
            self._free.setdefault(capacity, []).append(memory)
        while self._waiting and self.used_bytes < self.limit_bytes:
            self._waiting.popleft()()

    def when_free(self, wake: Callable[[], None]) -> None:
        """Call `wake` once, when a buffer has been given back."""
        self._waiting.append(wake)
