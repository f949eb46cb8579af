"""What RDMA needs of a device, in the terms of the verbs: the seam under `rdma`.

`verbs` implements it with pyverbs; tests have another implementation, in memory, that obeys the same rules: work of
one queue pair is carried out in order, a message without a posted receive is an error at both ends, keys and bounds
are checked, and an error flushes whatever is queued.

Addresses, keys and work ids are integers. `Work` done completes in order with the id that it was posted with;
unsignaled work completes only if it fails.
"""

import enum
import errno
import ipaddress
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

from nacrefs.common.wire import RdmaEnd


class Status(enum.IntEnum):
    """How work ended (`enum ibv_wc_status`; others than these exist)."""

    SUCCESS = 0
    FLUSHED = 5
    REMOTE_INVALID = 9
    REMOTE_ACCESS = 10
    RETRIES_EXCEEDED = 12
    NO_RECEIVE = 13


_MEANINGS: Final = {
    Status.FLUSHED: "the queue pair was closed",
    Status.REMOTE_INVALID: "the other side does not allow its memory to be read or written",
    Status.REMOTE_ACCESS: "the other side does not allow access to that memory (wrong key, or beyond its end)",
    Status.RETRIES_EXCEEDED: "the other side's device does not answer (its process ended, or no route to it)",
    Status.NO_RECEIVE: "the other side had posted no receive: credits were miscounted",
}


def meaning(status: int) -> str:
    """A completion status in words."""
    return _MEANINGS.get(Status(status), "") if status in _MEANINGS else f"RDMA work failed with status {status}"


class Port(NamedTuple):
    """A port of a device under one of its addresses. `ethernet`: RoCE, addressed by GID; otherwise InfiniBand."""

    device: str
    number: int
    gid: str
    """as an IPv6 address; of RoCE it is the network interface's, IPv4 as ::ffff:a.b.c.d"""
    gid_index: int
    lid: int
    mtu: int
    """an `enum ibv_mtu`: 1 is 256 bytes, 5 is 4096"""
    ethernet: bool


class Completion(NamedTuple):
    """Work that ended. If `status` is not SUCCESS, only `work`, `status` and `queue_pair` mean anything."""

    work: int
    status: int
    queue_pair: int
    size: int


class Piece(NamedTuple):
    """Registered memory of our own."""

    address: int
    size: int
    key: int


class Region(Protocol):
    """Memory that is registered, for as long as it is not closed."""

    local_key: int
    remote_key: int

    def close(self) -> None: ...


class QueuePair(Protocol):
    """One end of a reliable connection."""

    number: int
    inline_bytes: int

    def connect(self, near: RdmaEnd, far: RdmaEnd) -> None:
        """Be ready to receive and to send; OSError (EHOSTUNREACH: there is no route)."""
        ...

    def receive(self, work: int, piece: Piece) -> None: ...
    def send(self, work: int, piece: Piece, *, inline: bool, signaled: bool) -> None: ...
    def write(self, work: int, pieces: Sequence[Piece], address: int, key: int, *, signaled: bool) -> None: ...
    def read(self, work: int, pieces: Sequence[Piece], address: int, key: int) -> None: ...

    def fail(self) -> None:
        """Take part in nothing any more: from now on the other side can touch no memory; what is queued is flushed."""
        ...

    def close(self) -> None: ...


class Domain(Protocol):
    """Memory and queue pairs that belong together. `exposed`: the other side may read and write the memory."""

    exposed: bool

    def register(self, address: int, size: int) -> Region: ...
    def queue_pair(self, sends: int, receives: int, pieces: int, inline_bytes: int) -> QueuePair: ...
    def close(self) -> None: ...


class Device(Protocol):
    """An open device with one completion queue, for one event loop."""

    fd: int
    """Readable when work has ended since `arm`."""

    def arm(self) -> None:
        """Make `fd` not readable, and readable again at the next completion. Then poll, for what ended before."""
        ...

    def poll(self, most: int) -> list[Completion]: ...
    def domain(self, exposed: bool) -> Domain: ...

    def close(self) -> None:
        """After all that was made from it."""
        ...


class Fabric(Protocol):
    """The RDMA devices of this machine."""

    def ports(self) -> list[Port]:
        """What can be used; OSError saying why if nothing can."""
        ...

    def open(self, port: Port) -> Device: ...


def choose_port(ports: Sequence[Port], address: str, wanted: str = "") -> Port:
    """The port to use for a peer that TCP reaches from our `address` (an IP address): the one that has it, or the one
    called `wanted`, DEVICE or DEVICE:PORT. OSError that says what there is otherwise."""
    if wanted:
        name, _, number = wanted.partition(":")
        named = [port for port in ports if port.device == name and (not number or str(port.number) == number)]
        if named:
            return _with_address(named, address) or named[0]
        there = ", ".join(sorted({f"{port.device}:{port.number}" for port in ports})) or "none"
        raise OSError(errno.ENODEV, f"rdma.device = {wanted!r}, but the RDMA ports here are: {there}")
    found = _with_address(ports, address)
    if found is None:
        there = ", ".join(sorted({f"{port.device} {_readable(port.gid)}" for port in ports})) or "none"
        raise OSError(
            errno.ENODEV,
            f"no RDMA device has the address {address}, over which TCP goes (there is: {there}); "
            'on InfiniBand name the device: rdma.device = "mlx5_0:1"',
        )
    return found


def _with_address(ports: Sequence[Port], address: str) -> Port | None:
    wanted = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(wanted, ipaddress.IPv4Address):
        wanted = ipaddress.IPv6Address(f"::ffff:{wanted}")
    return next((port for port in ports if ipaddress.ip_address(port.gid) == wanted), None)


def _readable(gid: str) -> str:
    address = ipaddress.IPv6Address(gid)
    return str(address.ipv4_mapped or address)
