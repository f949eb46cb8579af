"""RDMA devices of either kind, in memory or real, with notes of what is opened of them and how it is closed.

What must be so is checked where it happens: a queue pair is closed after it has failed and all its work has come back,
a protection domain after its queue pairs and memory regions, a device after its domains, and nothing twice.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager

from nacrefs.common.transport import rdma
from nacrefs.common.transport.fabric import Completion, Device, Domain, Fabric, Piece, Port, QueuePair, Region
from nacrefs.common.wire import RdmaEnd
from tests.harness.fabric import rdma_devices


class Closings:
    """The notes."""

    def __init__(self) -> None:
        self.order: list[str] = []
        """as "queue pair failed", "region closed" """
        self.wrong: list[str] = []
        self.left: set[object] = set()
        """what is open"""
        self.accepting = 0
        """queue pairs that were made in domains which expose nothing: servers'"""
        self.pairs: dict[int, NotedQueuePair] = {}

    def opened(self, thing: object) -> None:
        """Something is there."""
        self.left.add(thing)

    def closed(self, name: str, thing: object, inside: Sequence[object] = ()) -> None:
        """It is about to be closed, which what is `inside` must have been before."""
        if thing not in self.left:
            self.wrong.append(f"{name} closed twice")
        if open_ones := [part for part in inside if part in self.left]:
            self.wrong.append(f"{name} closed before {open_ones}")
        self.left.discard(thing)
        self.order.append(f"{name} closed")


class NotedRegion:
    """Registered memory."""

    def __init__(self, inner: Region, notes: Closings) -> None:
        self._inner, self._notes = inner, notes
        self.local_key, self.remote_key = inner.local_key, inner.remote_key
        notes.opened(self)

    def close(self) -> None:
        self._notes.closed("region", self)
        self._inner.close()


class NotedQueuePair:
    """A queue pair, and which of its work must still come back."""

    def __init__(self, inner: QueuePair, notes: Closings) -> None:
        self._inner, self._notes = inner, notes
        self.number, self.inline_bytes = inner.number, inner.inline_bytes
        self._out: set[int] = set()
        self._failed = False
        notes.opened(self)
        notes.pairs[self.number] = self

    def connect(self, near: RdmaEnd, far: RdmaEnd) -> None:
        self._inner.connect(near, far)

    def receive(self, work: int, piece: Piece) -> None:
        self._inner.receive(work, piece)
        self._out.add(work)

    def send(self, work: int, piece: Piece, *, inline: bool, signaled: bool) -> None:
        self._inner.send(work, piece, inline=inline, signaled=signaled)
        self._out |= {work} if signaled else set()

    def write(self, work: int, pieces: Sequence[Piece], address: int, key: int, *, signaled: bool) -> None:
        self._inner.write(work, pieces, address, key, signaled=signaled)
        self._out |= {work} if signaled else set()

    def read(self, work: int, pieces: Sequence[Piece], address: int, key: int) -> None:
        self._inner.read(work, pieces, address, key)
        self._out.add(work)

    def back(self, work: int) -> None:
        """A completion was taken."""
        self._out.discard(work)

    def fail(self) -> None:
        self._failed = True
        self._notes.order.append("queue pair failed")
        self._inner.fail()

    def close(self) -> None:
        if not self._failed:
            self._notes.wrong.append("queue pair closed that had not failed")
        if self._out:
            self._notes.wrong.append(f"queue pair closed with {len(self._out)} pieces of work under way")
        self._notes.closed("queue pair", self)
        self._inner.close()


class NotedDomain:
    """A protection domain."""

    def __init__(self, inner: Domain, notes: Closings) -> None:
        self._inner, self._notes = inner, notes
        self.exposed = inner.exposed
        self._inside: list[object] = []
        notes.opened(self)

    def register(self, address: int, size: int) -> NotedRegion:
        region = NotedRegion(self._inner.register(address, size), self._notes)
        self._inside.append(region)
        return region

    def queue_pair(self, sends: int, receives: int, pieces: int, inline_bytes: int) -> NotedQueuePair:
        pair = NotedQueuePair(self._inner.queue_pair(sends, receives, pieces, inline_bytes), self._notes)
        self._inside.append(pair)
        self._notes.accepting += not self.exposed
        return pair

    def close(self) -> None:
        self._notes.closed("domain", self, self._inside)
        self._inner.close()


class NotedDevice:
    """An open device."""

    def __init__(self, inner: Device, notes: Closings) -> None:
        self._inner, self._notes = inner, notes
        self.fd = inner.fd
        self._inside: list[object] = []
        notes.opened(self)

    def arm(self) -> None:
        self._inner.arm()

    def poll(self, most: int) -> list[Completion]:
        found = self._inner.poll(most)
        for completion in found:
            if completion.queue_pair in self._notes.pairs:
                self._notes.pairs[completion.queue_pair].back(completion.work)
        return found

    def domain(self, exposed: bool) -> NotedDomain:
        domain = NotedDomain(self._inner.domain(exposed), self._notes)
        self._inside.append(domain)
        return domain

    def close(self) -> None:
        self._notes.closed("device", self, self._inside)
        self._inner.close()
        self.fd = self._inner.fd


class NotedFabric:
    """The devices of another fabric."""

    def __init__(self, inner: Fabric, notes: Closings) -> None:
        self._inner, self._notes = inner, notes

    def ports(self) -> list[Port]:
        return self._inner.ports()

    def open(self, port: Port) -> NotedDevice:
        return NotedDevice(self._inner.open(port), self._notes)


@contextmanager
def noted_devices() -> Generator[Closings]:
    """RDMA with whatever devices there are to test with; at the end all is closed, and everything was in order."""
    notes = Closings()
    with rdma_devices() as fabric:
        rdma.use(NotedFabric(fabric, notes))
        try:
            yield notes
        finally:
            rdma.use(None)
    assert not notes.wrong, notes.wrong
    assert not notes.left, notes.left
