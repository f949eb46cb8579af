"""Which transport an address means: the one place where schemes are known."""

import asyncio
import errno
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from nacrefs.common.transport import mem, rdma, tcp
from nacrefs.common.transport.link import Accept, Link, Listener


class Transport(NamedTuple):
    """How to connect to, and listen at, what follows `scheme://`."""

    connect: Callable[[str], Awaitable[Link]]
    listen: Callable[[str, Accept], Awaitable[Listener]]


TRANSPORTS: dict[str, Transport] = {
    "mem": Transport(mem.connect, mem.listen),
    "rdma": Transport(rdma.connect, rdma.listen),
    "tcp": Transport(tcp.connect, tcp.listen),
}


def _transport(address: str) -> tuple[Transport, str]:
    scheme, separator, place = address.partition("://")
    if not separator or scheme not in TRANSPORTS:
        known = ", ".join(f"{name}://" for name in sorted(TRANSPORTS))
        raise OSError(errno.EINVAL, f"address {address!r} does not begin with one of {known}")
    return TRANSPORTS[scheme], place.rstrip("/")


async def connect(addresses: str) -> Link:
    """A link to the first of these addresses (URLs separated by commas, best first) that answers. Where TCP is among
    them, RDMA is left out if it cannot be used, and the log says why, once."""
    wanted = [address.strip() for address in addresses.split(",")]
    optional = any(address.startswith("tcp://") for address in wanted)
    failure: OSError | None = None
    for address in wanted:
        transport, place = _transport(address)
        try:
            link = await transport.connect(place)
        except OSError as error:
            if isinstance(error, rdma.Unavailable) and optional:
                rdma.say_once(f"{error.strerror}; going on over TCP")
            failure = error
            continue
        if link.upgrade is not None:
            link.upgrade.optional = optional
        return link
    assert failure is not None
    raise failure


async def listen(address: str, accept: Accept) -> Listener:
    """Accept links at one address."""
    transport, place = _transport(address)
    return await transport.listen(place, accept)


async def settle() -> None:
    """Wait until links that were closed have told their receivers so."""
    await asyncio.sleep(0)
    await rdma.settle()
