"""Peers over connections: a server that accepts them, and remotes that never give up."""

import asyncio
import errno
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from nacrefs.common.auth import CredentialSource, Keyring, current, is_revoked, revoked
from nacrefs.common.authority import allowed
from nacrefs.common.buffers import BufferPool
from nacrefs.common.framing import FramingError, Kind
from nacrefs.common.handshake import HANDSHAKE_S, Greeted, Refused, greet_client, greet_server
from nacrefs.common.observe import Meter
from nacrefs.common.rpc import IN_SERVICE_MAX, Peer, Service, again
from nacrefs.common.transport import address as transport
from nacrefs.common.transport.link import Link, Listener
from nacrefs.common.wire import Request, Role

log = logging.getLogger("nacre.rpc")
ReplyT = TypeVar("ReplyT")

GREETINGS_MAX: Final = 1024
"""Strangers that may be in their handshake at a time."""
GREETING_S: Final = 30.0
"""How long each answer may take that a greeting waits for."""
_BACKOFF_S: Final = (0.02, 0.05, *[0.1] * 8, 0.2, 0.3, 0.5, 1.0)
_REFUSED_BACKOFF_S: Final = 5.0


class Server:
    """Accepts peers and serves them; with `tickets`, programs that a mount has given one, too. `on_peer` and `on_gone`
    tell the application who comes and goes."""

    def __init__(
        self,
        service: Service,
        keyring: Keyring,
        name: str,
        meter: Meter,
        pool: BufferPool | None = None,
        handshake_s: float = HANDSHAKE_S,
        in_service_max: int = IN_SERVICE_MAX,
        *,
        tickets: bool = False,
    ) -> None:
        self.service = service
        self.meter = meter
        self.name = name
        self.peers: set[Peer] = set()
        self.on_peer: Callable[[Peer], None] | None = None
        self.on_gone: Callable[[Peer], None] | None = None
        self.refused = 0
        self.keyring = keyring
        self.service_of: Callable[[Greeted], Service] = self._allowed
        """The requests that a peer may ask; the rest is refused."""
        self._services: dict[Role, Service] = {}
        self._pool = pool
        self._handshake_s = handshake_s
        self._in_service_max = in_service_max
        self._tickets = tickets
        self._listeners: list[Listener] = []
        self._greetings: dict[asyncio.Task[None], Link] = {}
        self._left: set[Peer] = set()
        """Peers that are gone, and for which handlers ran on."""

    async def listen(self, address: str) -> str:
        """Accept peers at an address too; the address to connect to."""
        for other in self._listeners:
            if other.address.replace("rdma://", "tcp://", 1) == address:
                return address  # an rdma:// listener serves TCP at its port, too
        listener = await transport.listen(address, self._accept, self.keyring.tls)
        self._listeners.append(listener)
        return listener.address

    def _accept(self, link: Link) -> None:
        if len(self._greetings) >= GREETINGS_MAX:
            self._refuse(link, f"{GREETINGS_MAX} others are in their handshake")
            return
        task = asyncio.get_running_loop().create_task(self._greet(link))
        self._greetings[task] = link
        task.add_done_callback(self._greeted)

    def _greeted(self, task: "asyncio.Task[None]") -> None:
        link = self._greetings.pop(task)
        if task.cancelled():  # perhaps before its first step
            link.close("server is shutting down")
        elif (error := task.exception()) is not None:
            log.error("greeting %s failed", link.peername, exc_info=error)
            link.close("internal error")

    def _refuse(self, link: Link, reason: str) -> None:
        self.refused += 1
        log.warning("refused a connection from %s: %s", link.peername, reason)
        link.close("refused")

    async def _greet(self, link: Link) -> None:
        try:
            who = await greet_client(link, self.keyring, self.name, self._handshake_s, tickets=self._tickets)
        except OSError as error:
            self._refuse(link, (error.strerror or str(error)).removeprefix(f"{link.peername}: "))
            return
        link = who.link
        if is_revoked(who.key, self.keyring.keys.get(who.key_name)):
            self._refuse(link, f"its key {who.key_name!r} was revoked meanwhile")
            return
        peer = Peer(self.service_of(who), self.meter, self._pool)
        peer.in_service_max = self._in_service_max
        peer.name, peer.role, peer.key = who.client, who.role, who.key_name
        peer.export = who.key.export
        if who.role is not Role.SERVER:  # among those nobody is somebody in particular
            peer.principal = who.key.principal or who.key_name
        peer.on_closed = self._gone
        peer.attach(link)
        self.peers.add(peer)
        if self.on_peer is not None:
            self.on_peer(peer)
        link.start(peer)

    def _allowed(self, who: Greeted) -> Service:
        service = self._services.get(who.role)
        if service is None:
            service = self._services[who.role] = allowed(self.service, who.role)
        return service

    def change_keyring(self, keyring: Keyring) -> set[str]:
        """Go by another keyring from now on. The names of keys that are gone, or are not what they were: peers that
        have one are dropped."""
        before, self.keyring = self.keyring, keyring
        gone = revoked(before, keyring)
        for peer in [peer for peer in self.peers if peer.key in gone]:
            log.warning("dropping %s: its key %r was revoked or changed", peer.name, peer.key)
            peer.close("its key was revoked or changed")
        return gone

    def _gone(self, peer: Peer, error: OSError) -> None:
        self.peers.discard(peer)
        self._left = {other for other in (*self._left, peer) if other.serving}
        log.log(logging.WARNING if isinstance(error, FramingError) else logging.DEBUG, "%s has gone: %s", peer, error)
        if self.on_gone is not None:
            self.on_gone(peer)

    def drop(self, reason: str) -> None:
        """Stop listening and drop all peers, at once."""
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        for peer in list(self.peers):
            peer.close(reason)

    async def close(self) -> None:
        """Stop listening, drop all peers, and wait for their handlers."""
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        greetings = list(self._greetings)
        for task in greetings:
            task.cancel()
        await asyncio.gather(*greetings, return_exceptions=True)
        peers = [*self.peers, *self._left]
        for peer in peers:
            peer.close("server is shutting down")
        for peer in peers:
            await peer.drain()
        await transport.settle()


class Remote(Peer):
    """A peer that we connect to, and go on connecting to until `aclose`.

    `greet`, if set, runs on each new connection before anything else is sent; it asks with `ask_now`. When it has
    returned, the requests that had no reply are sent again. `call` therefore waits for as long as the other side is
    away, unless it has a deadline. `generation` counts connections.
    """

    def __init__(
        self,
        address: str,
        credentials: CredentialSource,
        client: str,
        service: Service,
        meter: Meter,
        pool: BufferPool | None = None,
        handshake_s: float = HANDSHAKE_S,
    ) -> None:
        super().__init__(service, meter, pool)
        self.name = self.address = address
        self.generation = 0
        self.greet: Callable[[], Awaitable[None]] | None = None
        self.on_lost: Callable[[OSError], None] | None = None
        self.server = ""
        self._credentials = credentials
        self._client = client
        self._handshake_s = handshake_s
        self._greeting: Link | None = None
        self._connecting: asyncio.Task[None] | None = None
        self.closing = False
        """`aclose` has been called."""

    @property
    def connected(self) -> bool:
        """Whether requests are going out now."""
        return self.link is not None

    async def open(self) -> None:
        """Connect for the first time; OSError (Refused, if there is no point in trying again) if that does not work."""
        await self._connect()

    def open_later(self) -> None:
        """Connect in the background, for as long as it takes."""
        idle = self._connecting is None or self._connecting.done()
        if idle and self.link is None and not self.closing:
            self._connecting = self._loop.create_task(self._reconnect())

    def ask_now(self, request: Request[ReplyT]) -> "asyncio.Future[ReplyT]":
        """Ask on the connection that is being greeted (from within `greet` only). ETIMEDOUT after `GREETING_S`, upon
        which the greeting fails and begins anew on another connection."""
        return self._call(request, (), None, GREETING_S, self._greeting or self.link)

    async def _connect(self) -> None:
        credentials = current(self._credentials)
        link = await transport.connect(self.address, credentials.tls)
        try:
            self.server, self.role, link = await greet_server(link, credentials, self._client, self._handshake_s)
            self._carrier = self._greeting = link
            link.start(self)
            if self._overloaded:
                link.pause()
            if self.greet is not None:
                await self.greet()
            if self._carrier is not link:
                raise ConnectionResetError(errno.ECONNRESET, f"{self.address}: closed while it was greeted")
        except BaseException as error:
            link.close("greeting failed")
            given_up = ConnectionAbortedError(errno.ECONNABORTED, f"{self.address}: greeting failed")
            self._forget_greeting(link, error if isinstance(error, OSError) else given_up)
            raise
        self._greeting = None
        self.generation += 1
        self._resend(link)

    def _forget_greeting(self, link: Link, error: OSError) -> None:
        """A connection ended before it had been greeted: what the greeting asked fails and is not asked again."""
        if self._greeting is not link:
            return
        self._greeting = None
        self._let_go()
        for xid, pending in list(self._pending.items()):
            if pending.link is link:
                del self._pending[xid]
                if not pending.future.done():
                    pending.future.set_exception(again(error))

    def _resend(self, link: Link) -> None:
        """Ask on a new connection what had no reply on the last one, or had to wait for it."""
        self.link = link
        for xid, pending in list(self._pending.items()):
            if pending.link is link:
                continue
            if pending.future.done():
                del self._pending[xid]
            else:
                self._send(xid, pending, Kind.REQUEST if pending.link is None else Kind.RESENT, link)

    async def _reconnect(self) -> None:
        attempt = 0
        told = ""
        while not self.closing:
            try:
                await self._connect()
                return
            except Exception as error:
                refused = isinstance(error, Refused)
                text = (error.strerror if isinstance(error, OSError) else None) or str(error)
                if not isinstance(error, OSError):
                    log.exception("greeting %s failed", self.address)
                elif text != told and (refused or attempt >= 3):
                    log.warning("cannot reach %s yet: %s", self.address, text)
                    told = text
                delay = _REFUSED_BACKOFF_S if refused else _BACKOFF_S[min(attempt, len(_BACKOFF_S) - 1)]
                attempt += 1
                await asyncio.sleep(delay * random.uniform(0.8, 1.2))

    def closed(self, link: Link, error: OSError) -> None:
        """A link is gone: connect again, and keep what waits for a reply. What the greeting asked fails."""
        if link is self._greeting:
            self._forget_greeting(link, error)
        elif link is self.link:
            self.link = None
            self._let_go()
            if self.closing:
                self._fail_pending(error)
                return
            log.info("lost %s (%s), reconnecting", self.address, error.strerror or error)
            if self.on_lost is not None:
                self.on_lost(error)
            self.open_later()

    async def aclose(self) -> None:
        """Disconnect for good; whatever waits for a reply fails."""
        self.closing = True
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
        self.close("closed")
        await self.drain()
        await transport.settle()
        self._fail_pending(ConnectionAbortedError(errno.ECONNABORTED, f"{self.address}: closed"))
