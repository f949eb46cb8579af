"""Which transport an address means: the one place where schemes are known."""

import errno
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from nacrefs.common.transport import mem, tcp
from nacrefs.common.transport.link import Accept, Link, Listener


class Transport(NamedTuple):
    """How to connect to, and listen at, what follows `scheme://`."""

    connect: Callable[[str], Awaitable[Link]]
    listen: Callable[[str, Accept], Awaitable[Listener]]


TRANSPORTS: dict[str, Transport] = {
    "mem": Transport(mem.connect, mem.listen),
    "tcp": Transport(tcp.connect, tcp.listen),
}


def _transport(address: str) -> tuple[Transport, str]:
    scheme, separator, place = address.partition("://")
    if not separator or scheme not in TRANSPORTS:
        known = ", ".join(f"{name}://" for name in sorted(TRANSPORTS))
        raise OSError(errno.EINVAL, f"address {address!r} does not begin with one of {known}")
    return TRANSPORTS[scheme], place.rstrip("/")


async def connect(addresses: str) -> Link:
    """A link to the first of these addresses (URLs separated by commas, best first) that answers."""
    failure: OSError | None = None
    for address in addresses.split(","):
        transport, place = _transport(address.strip())
        try:
            return await transport.connect(place)
        except OSError as error:
            failure = error
    assert failure is not None
    raise failure


async def listen(address: str, accept: Accept) -> Listener:
    """Accept links at one address."""
    transport, place = _transport(address)
    return await transport.listen(place, accept)
