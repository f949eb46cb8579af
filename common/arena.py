"""Memory that RDMA devices may read and write: reserved once, handed out in pieces, never registered per request.

`Buddy` is the arithmetic: which pieces of a segment are free. `Arena` grows by segments, each of which every open
device registers when it is made. A piece is free again when nobody refers to it any more, neither its owner nor a
link whose peer may still write into it: a late write can therefore never land in memory that has a new owner.

Without RDMA there is no arena and buffers are ordinary memory.
"""

import ctypes
import errno
import logging
import mmap
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final, cast

log = logging.getLogger("nacre.rdma")

SMALLEST_BYTES: Final = 16 * 1024
SEGMENT_BYTES: Final = 16 << 20
"""Also the largest piece."""
LIMIT_BYTES: Final = 256 << 20
"""Most memory that is registered, unless `rdma.memory_bytes` says otherwise."""


def piece_bytes(size: int) -> int:
    """How much memory a piece of `size` bytes takes up: a power of two."""
    return max(SMALLEST_BYTES, 1 << (size - 1).bit_length()) if size else SMALLEST_BYTES


class Buddy:
    """Free pieces of `total` bytes (a power of two): a buddy system. Of several that fit, the one freed last."""

    def __init__(self, total: int, smallest: int = SMALLEST_BYTES) -> None:
        self.total = total
        self._smallest = smallest
        self._free: dict[int, dict[int, None]] = {total: {0: None}}
        self.used_bytes = 0

    def take(self, size: int) -> int | None:
        """The offset of a free piece of `size` bytes (a power of two); None if there is none."""
        larger = size
        while not self._free.get(larger):
            larger <<= 1
            if larger > self.total:
                return None
        offset, _ = self._free[larger].popitem()
        while larger > size:
            larger >>= 1
            self._free.setdefault(larger, {})[offset + larger] = None
        self.used_bytes += size
        return offset

    def give(self, offset: int, size: int) -> None:
        """A piece is free again; neighbours that are free are joined."""
        self.used_bytes -= size
        while size < self.total:
            buddy = offset ^ size
            peers = self._free.get(size)
            if peers is None or buddy not in peers:
                break
            del peers[buddy]
            offset = min(offset, buddy)
            size <<= 1
        self._free.setdefault(size, {})[offset] = None


class Segment:
    """One mapping."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.memory = mmap.mmap(-1, size)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.buddy = Buddy(size)
        self.returned: deque[tuple[int, int]] = deque()


def _returned(piece: Any) -> None:
    # Any thread may drop the last view, also while it holds the arena's lock: only note it here.
    piece.segment.returned.append((piece.offset, len(piece)))


_kinds: dict[int, Any] = {}


def _piece(segment: Segment, offset: int, size: int) -> memoryview:
    """A piece of a segment: a ctypes array, which stays in use for as long as any view of it exists."""
    kind: Any = _kinds.get(size)
    if kind is None:
        array: Any = ctypes.c_ubyte * size
        kind = _kinds[size] = type("Piece", (array,), {"__del__": _returned})
    piece = kind.from_buffer(segment.memory, offset)
    piece.segment, piece.offset = segment, offset
    return memoryview(piece).cast("B")


class Arena:
    """Registered memory of this process, up to a limit. May be used from several threads."""

    def __init__(self, limit_bytes: int = LIMIT_BYTES, segment_bytes: int = SEGMENT_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self.segments: list[Segment] = []
        self._segment_bytes = segment_bytes
        self._registrars: list[Callable[[Segment], None]] = []
        self._lock = threading.Lock()

    @property
    def used_bytes(self) -> int:
        """Bytes that are handed out."""
        with self._lock:
            for segment in self.segments:
                self._collect(segment)
            return sum(segment.buddy.used_bytes for segment in self.segments)

    @property
    def held_bytes(self) -> int:
        """Bytes that are registered."""
        return sum(segment.size for segment in self.segments)

    def take(self, size: int) -> memoryview | None:
        """A piece of `size` bytes with arbitrary contents; None if it would exceed the limit, or is too large.

        It is given back when the last view of it is gone, and in no other way.
        """
        whole = piece_bytes(size)
        if whole > self._segment_bytes:
            return None
        with self._lock:
            for segment in self.segments:
                if segment.returned:
                    self._collect(segment)
                offset = segment.buddy.take(whole)
                if offset is not None:
                    return _piece(segment, offset, whole)[:size]
            grown = self._grow()
            if grown is None:
                return None
            offset = grown.buddy.take(whole)
            assert offset is not None
            return _piece(grown, offset, whole)[:size]

    @staticmethod
    def _collect(segment: Segment) -> None:
        while segment.returned:
            segment.buddy.give(*segment.returned.popleft())

    def _grow(self) -> Segment | None:
        if self.held_bytes + self._segment_bytes > self.limit_bytes:
            return None
        segment = Segment(self._segment_bytes)
        try:
            for register in self._registrars:
                register(segment)
        except OSError as error:
            self.limit_bytes = self.held_bytes
            log.warning("no more memory for RDMA than %d MiB: %s", self.held_bytes >> 20, error.strerror)
            return None
        self.segments.append(segment)
        return segment

    def attach(self, register: Callable[[Segment], None]) -> None:
        """Have all segments registered, those that exist now and those to come; OSError if that is not possible."""
        with self._lock:
            for segment in self.segments:
                register(segment)
            self._registrars.append(register)

    def detach(self, register: Callable[[Segment], None]) -> None:
        """Segments to come are not to be registered there any more."""
        with self._lock:
            self._registrars.remove(register)


def locate(view: memoryview) -> tuple[Segment, int] | None:
    """The segment that a view lies in, and its address; None for other memory, or if it cannot be written."""
    segment = getattr(view.obj, "segment", None)
    if segment is None or view.readonly or not len(view):
        return None
    return segment, ctypes.addressof(ctypes.c_char.from_buffer(view))


def capacity(view: memoryview) -> int:
    """How much memory a view keeps in use."""
    memory: object = view.obj
    if isinstance(memory, bytes | bytearray | mmap.mmap) or hasattr(memory, "segment"):
        return len(cast("bytes", memory))
    return view.nbytes


class _Process:
    """The process's arena, while it has an RDMA device open."""

    arena: Arena | None = None


def share(limit_bytes: int = 0) -> Arena:
    """The process's arena, made if there is none yet."""
    if _Process.arena is None:
        _Process.arena = Arena(limit_bytes or LIMIT_BYTES)
    return _Process.arena


def unshare() -> None:
    """The last device has been closed: buffers are ordinary memory again. What is out stays valid."""
    _Process.arena = None


def buffer(size: int) -> memoryview | None:
    """Registered memory for `size` bytes that will be sent or received; None if there is no RDMA, or no room."""
    arena = _Process.arena
    return arena.take(size) if arena is not None else None


def too_little(limit_bytes: int, wanted_bytes: int) -> OSError:
    """The error of who may not lock as much memory as RDMA needs."""
    return OSError(
        errno.ENOMEM,
        f"cannot register {wanted_bytes >> 20} MiB with the RDMA device: this process may lock {limit_bytes >> 10} KiB "
        "of memory only. Put '* - memlock unlimited' into /etc/security/limits.conf and log in again, or "
        "'LimitMEMLOCK=infinity' into the systemd unit",
    )
