"""Which transport an address means: the one place where schemes are known."""

import asyncio
import errno
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from nacrefs.common.tlsfiles import Tls
from nacrefs.common.transport import mem, rdma, tcp, tls
from nacrefs.common.transport.link import Accept, Link, Listener


class Transport(NamedTuple):
    """How to connect to, and listen at, what follows `scheme://`, with which certificates."""

    connect: Callable[[str, Tls | None], Awaitable[Link]]
    listen: Callable[[str, Accept, Tls | None], Awaitable[Listener]]


def _plain(
    connect: Callable[[str], Awaitable[Link]], listen: Callable[[str, Accept], Awaitable[Listener]]
) -> Transport:
    """A transport that has no use for certificates."""

    def connect_without(place: str, _: Tls | None) -> Awaitable[Link]:
        return connect(place)

    def listen_without(place: str, accept: Accept, _: Tls | None) -> Awaitable[Listener]:
        return listen(place, accept)

    return Transport(connect_without, listen_without)


TRANSPORTS: dict[str, Transport] = {
    "mem": _plain(mem.connect, mem.listen),
    "rdma": _plain(rdma.connect, rdma.listen),
    "tcp": _plain(tcp.connect, tcp.listen),
    "tls": Transport(tls.connect, tls.listen),
}


def _transport(address: str) -> tuple[Transport, str]:
    scheme, separator, place = address.partition("://")
    if not separator or scheme not in TRANSPORTS:
        known = ", ".join(f"{name}://" for name in sorted(TRANSPORTS))
        raise OSError(errno.EINVAL, f"address {address!r} does not begin with one of {known}")
    return TRANSPORTS[scheme], place.rstrip("/")


async def connect(addresses: str, certificates: Tls | None = None) -> Link:
    """A link to the first of these addresses (URLs separated by commas, best first) that answers. Where TCP is among
    them, RDMA is left out if it cannot be used, and the log says why, once."""
    wanted = [address.strip() for address in addresses.split(",")]
    optional = any(address.startswith("tcp://") for address in wanted)
    failure: OSError | None = None
    for address in wanted:
        transport, place = _transport(address)
        try:
            link = await transport.connect(place, certificates)
        except OSError as error:
            if isinstance(error, rdma.Unavailable) and optional:
                rdma.say_once(f"{error.strerror}; going on over TCP")
            failure = error
            continue
        if link.upgrade is not None:
            link.upgrade.optional = optional
        return link
    assert failure is not None
    if isinstance(failure, rdma.Unavailable) and not optional:
        raise rdma.Unavailable(failure.errno, f"{failure.strerror} ({rdma.ADD_TCP})") from None
    raise failure


async def listen(address: str, accept: Accept, certificates: Tls | None = None) -> Listener:
    """Accept links at one address."""
    transport, place = _transport(address)
    return await transport.listen(place, accept, certificates)


async def settle() -> None:
    """Wait until links that were closed have told their receivers so."""
    await asyncio.sleep(0)
    await rdma.settle()
