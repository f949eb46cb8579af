"""Connecting: the handshake from both sides, servers that accept peers, and remotes that never give up.

Handshake (docs/protocol.md): Hello → Challenge → Proof → Welcome, each in a frame of its kind. Either side drops the link
at the first thing that is wrong, and the server says why in a Failure first, unless the other side did not even speak frames.
"""

import asyncio
import errno
import logging
import random
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

import msgspec

from nacrefs.common import auth
from nacrefs.common.auth import Credentials, Keyring
from nacrefs.common.buffers import BufferPool
from nacrefs.common.framing import Frame, FramingError, Kind
from nacrefs.common.observe import Meter
from nacrefs.common.rpc import Peer, Service
from nacrefs.common.transport import address as transport
from nacrefs.common.transport.link import Link, Listener, scratch
from nacrefs.common.wire import (
    PROTOCOL_VERSION,
    Challenge,
    Failure,
    Hello,
    Message,
    Proof,
    Request,
    Role,
    Welcome,
)

log = logging.getLogger("nacre.rpc")
MessageT = TypeVar("MessageT", bound=Message)
ReplyT = TypeVar("ReplyT")

HANDSHAKE_S: Final = 10.0
_BACKOFF_S: Final = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_encode = msgspec.msgpack.Encoder().encode


class Refused(OSError):
    """The server does not want this peer: wrong key, cluster or version. Trying again will not help."""


class _Greeting:
    """A link during its handshake: frames one at a time, with a deadline."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._inbox: asyncio.Queue[tuple[Kind, bytes] | OSError] = asyncio.Queue()
        link.start(self)

    def sink(self, frame: Frame) -> Sequence[memoryview]:
        return scratch(frame.bulk_bytes)

    def frame(self, frame: Frame) -> None:
        self._link.pause()  # what follows belongs to whoever takes the link over
        self._inbox.put_nowait((frame.kind, bytes(frame.body)))

    def closed(self, link: Link, error: OSError) -> None:
        self._inbox.put_nowait(error)

    def send(self, kind: Kind, message: Message) -> None:
        self._link.send(kind, 0, 0, _encode(message))

    async def receive(self, kind: Kind, message: type[MessageT]) -> MessageT:
        self._link.resume()
        try:
            received = await asyncio.wait_for(self._inbox.get(), HANDSHAKE_S)
        except TimeoutError:
            raise ConnectionError(
                errno.ETIMEDOUT, f"{self._link.peername}: no handshake in {HANDSHAKE_S:.0f} s"
            ) from None
        if isinstance(received, OSError):
            raise received
        try:
            if received[0] is Kind.FAILURE:
                failure = msgspec.msgpack.decode(received[1], type=Failure)
                raise Refused(failure.errno, failure.text)
            if received[0] is kind:
                return msgspec.msgpack.decode(received[1], type=message)
        except msgspec.MsgspecError:
            pass
        raise FramingError(f"{self._link.peername}: no {kind.name} in its handshake")


async def greet_server(link: Link, credentials: Credentials, client: str) -> tuple[str, Role]:
    """The connecting side's handshake: the server's name and the role that the key gives us. Refused, or ConnectionError."""
    greeting = _Greeting(link)
    nonce = secrets.token_bytes(auth.NONCE_BYTES)
    greeting.send(Kind.HELLO, Hello(PROTOCOL_VERSION, credentials.cluster, credentials.key, client, nonce))
    challenge = await greeting.receive(Kind.CHALLENGE, Challenge)
    claims = (credentials.cluster, credentials.key, client, nonce + challenge.nonce)
    if not auth.same(challenge.proof, auth.proof(credentials.secret, b"server", *claims)):
        raise Refused(errno.EACCES, f"{link.peername} does not have our key {credentials.key!r}")
    greeting.send(Kind.PROOF, Proof(auth.proof(credentials.secret, b"client", *claims)))
    welcome = await greeting.receive(Kind.WELCOME, Welcome)
    return challenge.server, welcome.role


async def greet_client(link: Link, keyring: Keyring, name: str) -> tuple[str, Role]:
    """The accepting side's handshake: the client's id and role. ConnectionError after having told the client why."""
    greeting = _Greeting(link)
    hello = await greeting.receive(Kind.HELLO, Hello)

    def refuse(number: int, reason: str) -> ConnectionError:
        greeting.send(Kind.FAILURE, Failure(number, reason))
        return ConnectionError(number, reason)

    if hello.version != PROTOCOL_VERSION:
        raise refuse(errno.EPROTO, f"protocol version {hello.version} is not spoken here, {PROTOCOL_VERSION} is")
    if hello.cluster != keyring.cluster:
        raise refuse(errno.EACCES, f"this server belongs to cluster {keyring.cluster}, not to {hello.cluster[:64]}")
    if len(hello.nonce) != auth.NONCE_BYTES or not 0 < len(hello.client) <= 128:
        raise refuse(errno.EPROTO, "malformed Hello")
    key = keyring.keys.get(hello.key)
    # An unknown key gets a challenge too, so that key names cannot be found out.
    secret = key.secret_bytes if key is not None else secrets.token_bytes(auth.SECRET_BYTES)
    nonce = secrets.token_bytes(auth.NONCE_BYTES)
    claims = (hello.cluster, hello.key, hello.client, hello.nonce + nonce)
    greeting.send(Kind.CHALLENGE, Challenge(PROTOCOL_VERSION, name, nonce, auth.proof(secret, b"server", *claims)))
    shown = await greeting.receive(Kind.PROOF, Proof)
    if key is None or not auth.same(shown.proof, auth.proof(secret, b"client", *claims)):
        raise refuse(errno.EACCES, f"key {hello.key[:64]!r} is unknown or wrong")
    role = Role[key.role.upper()]
    greeting.send(Kind.WELCOME, Welcome(role))
    return hello.client, role


class Server:
    """Accepts peers and serves them. `on_peer` and `on_gone` tell the application who comes and goes."""

    def __init__(
        self, service: Service, keyring: Keyring, name: str, meter: Meter, pool: BufferPool | None = None
    ) -> None:
        self.service = service
        self.meter = meter
        self.name = name
        self.peers: set[Peer] = set()
        self.on_peer: Callable[[Peer], None] | None = None
        self.on_gone: Callable[[Peer], None] | None = None
        self.refused = 0
        self._keyring = keyring
        self._pool = pool
        self._listeners: list[Listener] = []
        self._greetings: set[asyncio.Task[None]] = set()

    async def listen(self, address: str) -> str:
        """Accept peers at an address too; the address to connect to."""
        listener = await transport.listen(address, self._accept)
        self._listeners.append(listener)
        return listener.address

    def _accept(self, link: Link) -> None:
        task = asyncio.get_running_loop().create_task(self._greet(link))
        self._greetings.add(task)
        task.add_done_callback(self._greetings.discard)

    async def _greet(self, link: Link) -> None:
        try:
            client, role = await greet_client(link, self._keyring, self.name)
        except OSError as error:
            self.refused += 1
            log.warning("refused a connection from %s: %s", link.peername, error.strerror or error)
            link.close("refused")
            return
        except asyncio.CancelledError:
            link.close("shutting down")
            raise
        peer = Peer(self.service, self.meter, self._pool)
        peer.name, peer.role, peer.link = client, role, link
        peer.on_closed = self._gone
        self.peers.add(peer)
        if self.on_peer is not None:
            self.on_peer(peer)
        link.start(peer)

    def _gone(self, peer: Peer, error: OSError) -> None:
        self.peers.discard(peer)
        log.debug("%s has gone: %s", peer.name, error)
        if self.on_gone is not None:
            self.on_gone(peer)

    async def close(self) -> None:
        """Stop listening, drop all peers, and wait for their handlers."""
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        for task in self._greetings:
            task.cancel()
        await asyncio.gather(*self._greetings, return_exceptions=True)
        peers = list(self.peers)
        for peer in peers:
            peer.close("server is shutting down")
        for peer in peers:
            await peer.drain()
        await asyncio.sleep(0)  # links report that they are closed in the next turn


class Remote(Peer):
    """A peer that we connect to, and go on connecting to until `close`.

    `greet`, if set, runs on each new connection before anything else is sent; it asks with `ask_now`. When it has returned, the
    requests that had no reply are sent again. `call` therefore waits for as long as the other side is away, unless it
    has a deadline. `generation` counts connections.
    """

    def __init__(
        self,
        address: str,
        credentials: Credentials,
        client: str,
        service: Service,
        meter: Meter,
        pool: BufferPool | None = None,
    ) -> None:
        super().__init__(service, meter, pool)
        self.name = self.address = address
        self.generation = 0
        self.greet: Callable[[], Awaitable[None]] | None = None
        self.on_lost: Callable[[OSError], None] | None = None
        self.server = ""
        self._credentials = credentials
        self._client = client
        self._new_link: Link | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._closing = False

    @property
    def connected(self) -> bool:
        """Whether requests are going out now."""
        return self.link is not None

    async def open(self) -> None:
        """Connect for the first time; OSError (Refused, if there is no point in trying again) if that does not work."""
        await self._connect()

    def open_later(self) -> None:
        """Connect in the background, for as long as it takes."""
        if self._connecting is None and self.link is None and not self._closing:
            self._connecting = self._loop.create_task(self._reconnect())

    def ask_now(self, request: Request[ReplyT]) -> "asyncio.Future[ReplyT]":
        """Ask on the connection that is being greeted (from within `greet` only)."""
        return self._call(request, (), None, None, self._new_link or self.link)

    async def _connect(self) -> None:
        link = await transport.connect(self.address)
        try:
            self.server, self.role = await greet_server(link, self._credentials, self._client)
            self._new_link = link
            link.start(self)
            if self.greet is not None:
                await self.greet()
        except BaseException:
            self._new_link = None
            link.close("handshake failed")
            raise
        if self._new_link is not link:
            raise ConnectionResetError(errno.ECONNRESET, f"{self.address}: closed during the handshake")
        self._new_link = None
        self.link = link
        self.generation += 1
        for xid, pending in list(self._pending.items()):
            if pending.link is link:
                continue
            if pending.future.done():
                del self._pending[xid]
            else:
                self._send(xid, pending, Kind.REQUEST if pending.link is None else Kind.RESENT, link)

    async def _reconnect(self) -> None:
        attempt = 0
        try:
            while not self._closing:
                try:
                    await self._connect()
                    return
                except OSError as error:
                    if attempt in (3, 30) or isinstance(error, Refused):
                        log.warning("cannot reach %s yet: %s", self.address, error.strerror or error)
                    delay = 5.0 if isinstance(error, Refused) else _BACKOFF_S[min(attempt, len(_BACKOFF_S) - 1)]
                    attempt += 1
                    await asyncio.sleep(delay * random.uniform(0.8, 1.2))
        finally:
            self._connecting = None

    def closed(self, link: Link, error: OSError) -> None:
        """A link is gone: connect again, and keep what waits for a reply. What the greeting asked fails."""
        if link is self._new_link:
            self._new_link = None
            for xid, pending in list(self._pending.items()):
                if pending.link is link:
                    del self._pending[xid]
                    if not pending.future.done():
                        pending.future.set_exception(ConnectionResetError(error.errno, error.strerror))
        elif link is self.link:
            self.link = None
            self._give_receiving()
            if self._closing:
                self._fail_pending(error)
                return
            log.info("lost %s (%s), reconnecting", self.address, error.strerror or error)
            if self.on_lost is not None:
                self.on_lost(error)
            self.open_later()

    async def aclose(self) -> None:
        """Disconnect for good; whatever waits for a reply fails."""
        self._closing = True
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
        link = self.link
        self.close("closed")
        await self.drain()
        if link is None:
            self._fail_pending(ConnectionAbortedError(errno.ECONNABORTED, f"{self.address}: closed"))
        else:
            await asyncio.sleep(0)
