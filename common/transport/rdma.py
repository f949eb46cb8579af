"""RDMA beside TCP: `rdma://host:port` is TCP's port, at which both sides may agree to go on over a queue pair.

The offer goes with the client's proof, the answer with the server's welcome (`common.handshake`), so nobody but a
proven peer gets a queue pair. Whoever cannot or will not says why, and the connection stays TCP. docs/rdma.md.
"""

import asyncio
import errno
import logging
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import msgspec

from nacrefs.common import arena, faults
from nacrefs.common.config import Size
from nacrefs.common.transport import tcp
from nacrefs.common.transport.fabric import Device, Fabric, Port, choose_port
from nacrefs.common.transport.link import Accept, Link, Listener
from nacrefs.common.transport.rdmalink import RdmaLink, State
from nacrefs.common.transport.rdmamemory import Registered
from nacrefs.common.transport.verbs import VerbsFabric
from nacrefs.common.wire import RdmaEnd

log = logging.getLogger("nacre.rdma")

ADD_TCP: Final = "add a tcp:// address to go on without"
PROBE_S: Final = 5.0
_NEWS_S: Final = 0.05
_DISTRUST_S: Final = 60.0
"""So long RDMA is not tried again with a server whose messages do not come through."""
_POLL: Final = 64
"""Completions taken at a time; then other callbacks have their turn."""


class Unavailable(OSError):
    """RDMA cannot be used here, or not with this peer; TCP may do."""


class RdmaConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """RDMA, where addresses are rdma://HOST:PORT."""

    device: str = ""
    """DEVICE or DEVICE:PORT, as "mlx5_0:1"; empty: the one that has the address over which TCP goes."""
    memory_bytes: Size = Size(256 << 20)
    """Most memory that is registered (locked) for it, in steps of 16 MiB as it is needed."""

    def check(self) -> None:
        """ValueError, naming the key and what is allowed, unless the values make sense."""
        if self.memory_bytes < arena.SEGMENT_BYTES:
            raise ValueError(f"rdma.memory_bytes = {self.memory_bytes} is below 16 MiB")


class _Settings:
    """What the configuration says (`configure`), and the devices (tests have their own)."""

    fabric: Fabric | None = None
    config = RdmaConfig()


def configure(config: RdmaConfig) -> None:
    """Use RDMA so in this process."""
    _Settings.config = config


def use(fabric: Fabric | None) -> None:
    """Use these devices instead of the machine's; None: the machine's."""
    _Settings.fabric = fabric


def _fabric() -> Fabric:
    if _Settings.fabric is None:
        _Settings.fabric = VerbsFabric()
    return _Settings.fabric


_told: set[str] = set()
_distrusted: dict[str, float] = {}
"""Servers that could not be heard over RDMA, and until when they are not asked for it (the loop's time)."""


def forget() -> None:
    """Say again what was said once, and ask again who was not heard."""
    _told.clear()
    _distrusted.clear()


def say_once(text: str) -> None:
    """Why RDMA is not used: a line in the log, the first time."""
    if text not in _told:
        _told.add(text)
        log.warning("%s", text)


# -------------------------------------------------------------------------------------------------------------- devices


class Endpoint:
    """An open device for one event loop, with its completion queue and the links that share it."""

    def __init__(self, fabric: Fabric, port: Port) -> None:
        self.port = port
        self.links: dict[int, RdmaLink] = {}
        self._arena = arena.share(_Settings.config.memory_bytes)
        self._registered: dict[bool, Registered] = {}
        self._waiting: list[asyncio.Future[None]] = []
        self._again = False
        self._loop = asyncio.get_running_loop()
        self._device: Device = fabric.open(port)
        self._loop.add_reader(self._device.fd, self._readable)
        self._device.arm()

    def link(self, link: Link, *, exposes: bool) -> RdmaLink:
        """A link, not connected yet, beside a TCP link; OSError if memory or the device do not suffice."""
        return RdmaLink(link, self, self.registered(exposes), exposes=exposes)

    def registered(self, exposes: bool) -> Registered:
        """The arena as the other side may, or may not, touch it."""
        registered = self._registered.get(exposes)
        if registered is None:
            if not self._arena.held_bytes:
                self._arena.take(1)
            registered = self._registered[exposes] = Registered(self._device.domain(exposes), self._arena)
        return registered

    def adopt(self, link: RdmaLink) -> None:
        """Completions of its queue pair are the link's."""
        self.links[link.near.queue_pair] = link

    def forget(self, link: RdmaLink) -> None:
        """Its queue pair is about to be closed."""
        self.links.pop(link.near.queue_pair, None)
        self._wake()

    def _readable(self) -> None:
        self._device.arm()  # before polling: what ends after the last poll must make the descriptor readable again
        self.poll()

    def poll(self) -> None:
        """Hand out what has ended."""
        completions = self._device.poll(_POLL)
        touched: dict[RdmaLink, None] = {}
        for completion in completions:
            link = self.links.get(completion.queue_pair)
            if link is not None:
                touched[link] = None
                link.completed(completion)
        if len(completions) == _POLL and not self._again:
            self._again = True
            self._loop.call_soon(self._poll_again)
        for link in touched:
            link.progress()
        if self._waiting:
            self._wake()

    def _poll_again(self) -> None:
        self._again = False
        if self._device.fd >= 0:
            self.poll()

    async def news(self) -> None:
        """Wait for completions, or for a moment."""
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append(waiter)
        await asyncio.wait((waiter,), timeout=_NEWS_S)

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)

    async def quiet(self) -> None:
        """Wait until links that are closing have closed."""
        while any(link.state is not State.OPEN for link in self.links.values()):
            await self.news()

    def close(self) -> None:
        """Give the device up: memory regions, then what they belong to."""
        if not self._loop.is_closed():
            self._loop.remove_reader(self._device.fd)
        for registered in self._registered.values():
            registered.close()
        self._registered.clear()
        self._device.close()


_endpoints: dict[tuple[asyncio.AbstractEventLoop, Port], Endpoint] = {}
_listening: dict[asyncio.AbstractEventLoop, int] = {}


def _endpoint(address: str) -> Endpoint:
    """The endpoint for peers that TCP reaches from our `address`; Unavailable, with the reason."""
    try:
        fabric = _fabric()
        port = choose_port(fabric.ports(), address, _Settings.config.device)
        key = (asyncio.get_running_loop(), port)
        if key not in _endpoints:
            _endpoints[key] = Endpoint(fabric, port)
        return _endpoints[key]
    except OSError as error:
        raise Unavailable(error.errno or errno.ENODEV, error.strerror or str(error)) from None


async def settle() -> None:
    """Wait until links that were closed have ended, and give up devices that nobody uses any more."""
    loop = asyncio.get_running_loop()
    for key, endpoint in list(_endpoints.items()):
        if key[0] is loop:
            await endpoint.quiet()
            if not endpoint.links and not _listening.get(loop) and _endpoints.pop(key, None) is not None:
                endpoint.close()
    if not _endpoints:
        arena.unshare()


# ---------------------------------------------------------------------------------------------------------- negotiation


class Upgrade:
    """One side's part in agreeing on RDMA inside the handshake of a TCP link. `optional`: TCP will do."""

    def __init__(self, link: tcp.TcpLink) -> None:
        self.optional = True
        self._tcp = link
        self._link: RdmaLink | None = None

    # The connecting side.

    def offer(self) -> RdmaEnd | None:
        """What to tell the server; None if there is no RDMA here and TCP will do, Unavailable if it will not."""
        try:
            self._link = _endpoint(self._tcp.own_address).link(self._tcp, exposes=True)
        except OSError as error:
            self._without(error.strerror or str(error))
            return None
        if faults.on:
            faults.hit("rdma.offer")
        return self._link.near

    async def accepted(self, far: RdmaEnd | None, declined: str) -> str:
        """The server has answered; empty if RDMA works now, otherwise why it does not."""
        link = self._link
        if link is None:
            return "not offered"
        reason = declined or "the server does not know RDMA"
        if far is not None:
            try:
                link.connect(far)
                await link.probe(PROBE_S)
                return ""
            except OSError as error:
                reason = error.strerror or str(error)
        self.drop()
        self._without(reason)
        return reason

    async def confirmed(self) -> None:
        """Wait until the server has been heard over the new link. OSError if it is not: then it will not be tried again
        for a while."""
        if self._link is None:
            return
        try:
            await self._link.heard(PROBE_S)
        except OSError:
            loop = asyncio.get_running_loop()
            _distrusted[self._tcp.peername] = loop.time() + _DISTRUST_S
            raise

    def _without(self, reason: str) -> None:
        text = f"{self._tcp.peername}: RDMA cannot be used: {reason}"
        if not self.optional:
            raise Unavailable(errno.EPROTONOSUPPORT, f"{text} ({ADD_TCP})")
        say_once(f"{text}; going on over TCP")

    # The accepting side.

    def answer(self, far: RdmaEnd) -> RdmaEnd:
        """What to tell the client, which offered `far`; OSError saying why not."""
        self._link = _endpoint(self._tcp.own_address).link(self._tcp, exposes=False)
        try:
            self._link.connect(far)
        except OSError:
            self.drop()
            raise
        if faults.on:
            faults.hit("rdma.answer")
        return self._link.near

    # Both.

    def switched(self) -> Link:
        """The link to use from now on."""
        link = self._link
        if link is None:
            return self._tcp
        if faults.on:
            faults.hit("rdma.switch")
        link.watch()
        return link

    def drop(self) -> None:
        """There will be no RDMA on this connection."""
        if self._link is not None:
            self._link.abandon()
            self._link = None


class RdmaListener:
    """Accepts TCP connections whose peers may switch to RDMA."""

    def __init__(self, listener: Listener, closed: Callable[[], None]) -> None:
        self.address = listener.address.replace("tcp://", "rdma://", 1)
        self._listener = listener
        self._closed: Callable[[], None] | None = closed

    def close(self) -> None:
        """Accept no more."""
        self._listener.close()
        if self._closed is not None:
            self._closed()
            self._closed = None


async def _prepare(place: str, *, exposes: bool) -> None:
    """Open the device that leads to a place, and register memory with it, which may take a moment. What does not work
    is told when it is needed."""
    host, _, port = place.rpartition(":")
    with suppress(OSError, ValueError):
        found = await asyncio.get_running_loop().getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_DGRAM)
        family, kind, protocol, _, where = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(where)  # sends nothing, but chooses our address
            _endpoint(str(probe.getsockname()[0])).registered(exposes)


async def connect(place: str) -> Link:
    """A TCP link to `HOST:PORT` that is to become RDMA in its handshake; Unavailable if this machine has none."""
    try:
        _fabric().ports()
    except OSError as error:
        raise Unavailable(error.errno or errno.ENODEV, f"rdma://{place}: {error.strerror}") from None
    await _prepare(place, exposes=True)  # now, while no deadline of a handshake is running
    link = await tcp.connect(place, "rdma")
    if _distrusted.get(link.peername, 0.0) > asyncio.get_running_loop().time():
        link.close()
        raise Unavailable(errno.EHOSTUNREACH, f"rdma://{place}: its messages do not come through")
    link.upgrade = Upgrade(link)
    return link


async def listen(place: str, accept: Accept) -> Listener:
    """Accept links at `HOST:PORT`; without an RDMA device all of them stay TCP, and the log says so."""
    try:
        _fabric().ports()
    except OSError as error:
        say_once(f"rdma://{place}: RDMA cannot be used: {error.strerror}; clients are served over TCP")
    loop = asyncio.get_running_loop()

    def accepted(link: Link) -> None:
        assert isinstance(link, tcp.TcpLink)
        link.upgrade = Upgrade(link)
        accept(link)

    def closed() -> None:
        _listening[loop] -= 1
        if not _listening[loop]:
            del _listening[loop]

    await _prepare(place, exposes=False)
    listener = await tcp.listen(place, accepted, "rdma")
    _listening[loop] = _listening.get(loop, 0) + 1
    return RdmaListener(listener, closed)
