"""RDMA devices in memory: a second implementation of `common.transport.fabric`, which obeys the rules that bugs break.

Work of one queue pair is carried out in order and later than it was posted; what was sent without a posted receive,
with a wrong key or beyond the end of a region fails with the status that Soft-RoCE gives, and takes the queue pair
with it; an error flushes all that is queued; a queue holds no more than it was made for, and unsignaled work leaves it
only with a later completion. All devices belong to one process, so memory is moved by its address.
"""

import asyncio
import ctypes
import errno
import ipaddress
import os
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from nacrefs.common.transport import rdma
from nacrefs.common.transport.fabric import Completion, Fabric, Piece, Port, Status
from nacrefs.common.transport.verbs import VerbsFabric
from nacrefs.common.wire import RdmaEnd

MTU_4096 = 5


class MemoryFabric:
    """The devices: one that has the given addresses. While `held`, no work is carried out."""

    def __init__(self, addresses: Sequence[str] = ("127.0.0.1",), failure: OSError | None = None) -> None:
        self.addresses = addresses
        self.failure = failure
        self.held = False
        self.gone = False
        """the device was taken out: nothing can be asked of it any more"""
        self.stuck = False
        """queue pairs that fail do not give back their work"""
        self.inline_bytes = 256
        self.lockable_bytes = 1 << 40
        self.deaf: set[int] = set()
        """queue pairs whose messages get lost"""
        self.deaf_accepting = False
        """what accepting sides send gets lost"""
        self.queue_pairs: dict[int, MemoryQueuePair] = {}
        self.regions: dict[int, MemoryRegion] = {}
        self.devices: set[MemoryDevice] = set()
        self.domains = 0
        self.sends = self.inline_sends = self.writes = self.reads = 0
        self._next = 16

    def number(self) -> int:
        """A number that was never used."""
        self._next += 1
        return self._next

    def ports(self) -> list[Port]:
        if self.failure is not None:
            raise self.failure
        return [
            Port("mem0", 1, str(_gid(address)), index, 0, MTU_4096, True)
            for index, address in enumerate(self.addresses)
        ]

    def open(self, port: Port) -> "MemoryDevice":
        return MemoryDevice(self)

    def let_go(self) -> None:
        """Carry out what was held."""
        self.held = False
        for pair in list(self.queue_pairs.values()):
            pair.wake()

    @property
    def locked_bytes(self) -> int:
        """Registered memory."""
        return sum(region.size for region in self.regions.values()) // 2  # under two keys each

    @property
    def left(self) -> list[str]:
        """What has not been closed."""
        counts = {
            "devices": len(self.devices),
            "domains": self.domains,
            "regions": len(self.regions),
            "queue pairs": len(self.queue_pairs),
        }
        return [f"{count} {name}" for name, count in counts.items() if count]


def _gid(address: str) -> ipaddress.IPv6Address:
    parsed = ipaddress.ip_address(address)
    return parsed if isinstance(parsed, ipaddress.IPv6Address) else ipaddress.IPv6Address(f"::ffff:{parsed}")


class MemoryRegion:
    """Registered memory."""

    def __init__(self, domain: "MemoryDomain", address: int, size: int) -> None:
        self.domain = domain
        self.address, self.size = address, size
        fabric = domain.fabric
        self.local_key, self.remote_key = fabric.number(), fabric.number()
        fabric.regions[self.local_key] = fabric.regions[self.remote_key] = self

    def holds(self, address: int, size: int) -> bool:
        """Whether a range lies within."""
        return self.address <= address and address + size <= self.address + self.size

    def close(self) -> None:
        del self.domain.fabric.regions[self.local_key], self.domain.fabric.regions[self.remote_key]


class MemoryDevice:
    """A device with its completion queue."""

    def __init__(self, fabric: MemoryFabric) -> None:
        self.fabric = fabric
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.loop = asyncio.get_running_loop()
        self._completions: deque[Completion] = deque()
        self._armed = False
        fabric.devices.add(self)

    def arm(self) -> None:
        try:
            os.eventfd_read(self.fd)
        except BlockingIOError:
            pass
        self._armed = True

    def add(self, completion: Completion) -> None:
        """Work has ended."""
        if self.fd < 0:
            return
        self._completions.append(completion)
        if self._armed:
            self._armed = False
            os.eventfd_write(self.fd, 1)

    def poll(self, most: int) -> list[Completion]:
        found = [self._completions.popleft() for _ in range(min(most, len(self._completions)))]
        for completion in found:
            pair = self.fabric.queue_pairs.get(completion.queue_pair)
            if pair is not None:
                pair.polled(completion.work)
        return found

    def domain(self, exposed: bool) -> "MemoryDomain":
        return MemoryDomain(self, exposed)

    def close(self) -> None:
        os.close(self.fd)
        self.fd = -1
        self.fabric.devices.remove(self)


class MemoryDomain:
    """A protection domain."""

    def __init__(self, device: MemoryDevice, exposed: bool) -> None:
        self.device, self.fabric, self.exposed = device, device.fabric, exposed
        self.fabric.domains += 1

    def register(self, address: int, size: int) -> MemoryRegion:
        if self.fabric.locked_bytes + size > self.fabric.lockable_bytes:
            raise OSError(errno.ENOMEM, "no more memory may be locked")
        return MemoryRegion(self, address, size)

    def queue_pair(self, sends: int, receives: int, pieces: int, inline_bytes: int) -> "MemoryQueuePair":
        return MemoryQueuePair(self, sends, receives, pieces, min(inline_bytes, self.fabric.inline_bytes))

    def close(self) -> None:
        assert not any(region.domain is self for region in self.fabric.regions.values()), "regions are left"
        assert not any(pair.domain is self for pair in self.fabric.queue_pairs.values()), "queue pairs are left"
        self.fabric.domains -= 1


class _Work(NamedTuple):
    """Something to send, write or read."""

    kind: str
    work: int
    pieces: Sequence[Piece]
    signaled: bool
    inline: bytes | None = None
    address: int = 0
    key: int = 0


class MemoryQueuePair:
    """One end of a connection."""

    def __init__(self, domain: MemoryDomain, sends: int, receives: int, pieces: int, inline_bytes: int) -> None:
        self.domain, self.fabric, self.device = domain, domain.fabric, domain.device
        self.number = self.fabric.number()
        self.inline_bytes = inline_bytes
        self._most_sends, self._most_receives, self._most_pieces = sends, receives, pieces
        self._far = 0
        self._state = "INIT"
        self._queue: deque[_Work] = deque()
        self._receives: deque[tuple[int, Piece]] = deque()
        self._posted: deque[int] = deque()
        self._planned = False
        self.fabric.queue_pairs[self.number] = self

    def connect(self, near: RdmaEnd, far: RdmaEnd) -> None:
        assert self._state == "INIT"
        assert near.queue_pair == self.number
        self._far = far.queue_pair
        self._state = "READY"

    def receive(self, work: int, piece: Piece) -> None:
        if self.fabric.gone:
            raise OSError(errno.EIO, "the device is gone")
        self._local(piece)
        if self._state == "ERROR":
            self.device.add(Completion(work, Status.FLUSHED, self.number, 0))
            return
        assert len(self._receives) < self._most_receives, "receive queue overflows"
        self._receives.append((work, piece))

    def send(self, work: int, piece: Piece, *, inline: bool, signaled: bool) -> None:
        data = None
        if inline:
            assert piece.size <= self.inline_bytes
            data = ctypes.string_at(piece.address, piece.size)
        self.fabric.sends += 1
        self.fabric.inline_sends += inline
        self._post(_Work("SEND", work, (piece,), signaled, data))

    def write(self, work: int, pieces: Sequence[Piece], address: int, key: int, *, signaled: bool) -> None:
        self.fabric.writes += 1
        self._post(_Work("WRITE", work, pieces, signaled, None, address, key))

    def read(self, work: int, pieces: Sequence[Piece], address: int, key: int) -> None:
        self.fabric.reads += 1
        self._post(_Work("READ", work, pieces, True, None, address, key))

    def _post(self, item: _Work) -> None:
        assert self._state in ("READY", "ERROR"), self._state
        assert 0 < len(item.pieces) <= self._most_pieces
        for piece in item.pieces:
            self._local(piece)
        if self._state == "ERROR":
            self.device.add(Completion(item.work, Status.FLUSHED, self.number, 0))
            return
        assert len(self._posted) < self._most_sends, "send queue overflows"
        self._posted.append(item.work)
        self._queue.append(item)
        self.wake()

    def polled(self, work: int) -> None:
        """A completion of this work has been taken: it and all before it leave the queue."""
        if work in self._posted:
            while self._posted.popleft() != work:
                pass

    def wake(self) -> None:
        """Carry out what is queued, soon."""
        if not self._planned and not self.device.loop.is_closed():
            self._planned = True
            self.device.loop.call_soon(self._work)

    def _work(self) -> None:
        self._planned = False
        while self._queue and self._state == "READY" and not (self.fabric.held or self.fabric.gone):
            item = self._queue.popleft()
            status = self._carry_out(item)
            if status != Status.SUCCESS:
                self.device.add(Completion(item.work, status, self.number, 0))
                self.fail()
            elif item.signaled:
                self.device.add(Completion(item.work, status, self.number, 0))

    def _carry_out(self, item: _Work) -> Status:
        far = self.fabric.queue_pairs.get(self._far)
        if far is None or far._state != "READY" or self._unheard or far._far != self.number:
            return Status.RETRIES_EXCEEDED
        if item.kind == "SEND":
            if not far._receives:
                return Status.NO_RECEIVE
            work, room = far._receives.popleft()
            piece = item.pieces[0]
            data = item.inline if item.inline is not None else ctypes.string_at(piece.address, piece.size)
            assert len(data) <= room.size
            ctypes.memmove(room.address, data, len(data))
            far.device.add(Completion(work, Status.SUCCESS, far.number, len(data)))
            return Status.SUCCESS
        if not far.domain.exposed:
            far.fail()
            return Status.REMOTE_INVALID
        size = sum(piece.size for piece in item.pieces)
        region = self.fabric.regions.get(item.key)
        allowed = (
            region is not None
            and region.remote_key == item.key
            and region.domain is far.domain
            and region.holds(item.address, size)
        )
        if not allowed:
            far.fail()
            return Status.REMOTE_ACCESS
        at = item.address
        for piece in item.pieces:
            if item.kind == "WRITE":
                ctypes.memmove(at, piece.address, piece.size)
            else:
                ctypes.memmove(piece.address, at, piece.size)
            at += piece.size
        return Status.SUCCESS

    @property
    def _unheard(self) -> bool:
        return self.number in self.fabric.deaf or (self.fabric.deaf_accepting and not self.domain.exposed)

    def _local(self, piece: Piece) -> None:
        region = self.fabric.regions.get(piece.key)
        assert region is not None and region.local_key == piece.key and region.domain is self.domain, "wrong local key"
        assert region.holds(piece.address, piece.size), "beyond the region"

    def fail(self) -> None:
        if self.fabric.gone:
            raise OSError(errno.EIO, "the device is gone")
        if self._state == "ERROR":
            return
        self._state = "ERROR"
        if self.fabric.stuck:
            return
        for item in self._queue:
            self.device.add(Completion(item.work, Status.FLUSHED, self.number, 0))
        self._queue.clear()
        if not self.device.loop.is_closed():  # the two queues are flushed in no particular order: this one late
            self.device.loop.call_later(0.001, self._flush_receives)

    def _flush_receives(self) -> None:
        for work, _ in self._receives:
            self.device.add(Completion(work, Status.FLUSHED, self.number, 0))
        self._receives.clear()

    def close(self) -> None:
        self._state = "CLOSED"
        del self.fabric.queue_pairs[self.number]


@contextmanager
def memory_fabric(fabric: MemoryFabric | None = None) -> Generator[MemoryFabric]:
    """RDMA over these devices, for as long as it lasts; at its end nothing may be left open."""
    fabric = fabric or MemoryFabric()
    rdma.use(fabric)
    try:
        yield fabric
    finally:
        rdma.use(None)
    assert not fabric.left, fabric.left


@contextmanager
def rdma_devices() -> Generator[Fabric]:
    """Whatever RDMA devices there are to test with: in the VM of tests/rdma its own, real one, elsewhere devices in
    memory."""
    if os.environ.get("RDMA_VM"):
        real = VerbsFabric()
        assert real.ports(), "the VM has no RDMA device"
        yield real
    else:
        with memory_fabric() as made:
            yield made
