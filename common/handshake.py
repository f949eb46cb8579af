"""The handshake from both sides: Hello → Challenge → Proof → Welcome (→ Switch), each in a frame of its kind
(docs/protocol.md).

Either side drops the link at the first thing that is wrong; the server says why in a Failure first, unless the other
side did not even speak frames. Until it is over, little is read and nothing is kept of a stranger's words.
"""

import asyncio
import errno
import secrets
import time
from collections.abc import Sequence
from typing import Final, NamedTuple, TypeVar

import msgspec

from nacrefs.common import auth
from nacrefs.common.auth import Credentials, Key, Keyring
from nacrefs.common.codec import decode_failure, encode
from nacrefs.common.framing import Frame, FramingError, Kind
from nacrefs.common.transport.link import Link
from nacrefs.common.wire import (
    PROTOCOL_VERSION,
    Challenge,
    Failure,
    Hello,
    Message,
    Proof,
    RdmaEnd,
    Role,
    Switch,
    Welcome,
)

MessageT = TypeVar("MessageT", bound=Message)

HANDSHAKE_S: Final = 10.0
"""How long each side waits for each of the other's frames."""
HANDSHAKE_BYTES_MAX: Final = 4096
"""Longest body of a handshake's frame."""
_CLIENT_CHARACTERS_MAX: Final = 128


class Refused(OSError):
    """The server does not want this peer: wrong key, cluster or version. Trying again will not help."""


class Greeted(NamedTuple):
    """Who has shown that he has a key, or (a client) a ticket made from one: the client's id, what he may be, the key's
    name, the key, and the link to go on with."""

    client: str
    role: Role
    key_name: str
    key: Key
    link: Link


class _Greeting:
    """A link during its handshake: frames one at a time, with a deadline."""

    def __init__(self, link: Link, handshake_s: float) -> None:
        self._link = link
        self._handshake_s = handshake_s
        self._inbox: asyncio.Queue[tuple[Kind, bytes] | OSError] = asyncio.Queue()
        link.start(self, HANDSHAKE_BYTES_MAX)

    def sink(self, frame: Frame) -> Sequence[memoryview]:
        return ()  # a handshake has no bulk; framing takes this as an error

    def frame(self, frame: Frame) -> None:
        self._link.pause()  # what follows belongs to whoever takes the link over
        self._inbox.put_nowait((frame.kind, bytes(frame.body)))

    def closed(self, link: Link, error: OSError) -> None:
        self._inbox.put_nowait(error)

    def send(self, kind: Kind, message: Message) -> None:
        self._link.send(kind, 0, 0, encode(message))

    async def receive(self, kind: Kind, message: type[MessageT]) -> MessageT:
        self._link.resume()
        try:
            received = await asyncio.wait_for(self._inbox.get(), self._handshake_s)
        except TimeoutError:
            raise ConnectionError(
                errno.ETIMEDOUT, f"{self._link.peername}: no {kind.name} in {self._handshake_s:g} s"
            ) from None
        if isinstance(received, OSError):
            raise received
        if received[0] is Kind.FAILURE:
            failure = decode_failure(received[1])
            raise Refused(failure.errno, failure.strerror)
        if received[0] is kind:
            try:
                return msgspec.msgpack.decode(received[1], type=message)
            except (msgspec.MsgspecError, ValueError, RecursionError):
                pass
        raise FramingError(errno.EPROTO, f"{self._link.peername}: no proper {kind.name} in its handshake")


def _validity(key: Key) -> str:
    """When a key is good, in words."""
    parts = (("from", key.not_before), ("until", key.not_after))
    return " ".join(f"{word} {when.isoformat()}" for word, when in parts if when is not None)


async def greet_server(
    link: Link, credentials: Credentials, client: str, handshake_s: float = HANDSHAKE_S
) -> tuple[str, Role, Link]:
    """The connecting side: the server's name, the role that the key gives us, and the link to go on with. Refused, or
    ConnectionError."""
    greeting = _Greeting(link, handshake_s)
    nonce = secrets.token_bytes(auth.NONCE_BYTES)
    greeting.send(Kind.HELLO, Hello(PROTOCOL_VERSION, credentials.cluster, credentials.key, client, nonce))
    challenge = await greeting.receive(Kind.CHALLENGE, Challenge)
    claims = (credentials.cluster, credentials.key, client, nonce + challenge.nonce)
    if not auth.same(challenge.proof, auth.proof(credentials.secret, b"server", *claims)):
        raise Refused(
            errno.EACCES,
            f"{link.peername} does not have our key {credentials.key!r}: is the keyring the one of its cluster?",
        )
    proof = auth.proof(credentials.secret, b"client", *claims)
    upgrade = link.upgrade
    if upgrade is None:
        greeting.send(Kind.PROOF, Proof(proof))
        welcome = await greeting.receive(Kind.WELCOME, Welcome)
        return challenge.server, welcome.role, link
    try:
        offer = upgrade.offer()
        greeting.send(Kind.PROOF, Proof(proof, offer))
        welcome = await greeting.receive(Kind.WELCOME, Welcome)
        if offer is not None:
            reason = await upgrade.accepted(welcome.rdma, welcome.declined)
            if welcome.rdma is not None:
                greeting.send(Kind.SWITCH, Switch(reason))
        final = upgrade.switched()
        await upgrade.confirmed()
        return challenge.server, welcome.role, final
    except BaseException:
        upgrade.drop()
        raise


async def greet_client(
    link: Link, keyring: Keyring, name: str, handshake_s: float = HANDSHAKE_S, *, tickets: bool = False
) -> Greeted:
    """The accepting side: who the client is, and the link to go on with. With `tickets`, a ticket is as good as a
    client's key. ConnectionError after having told the client why."""
    greeting = _Greeting(link, handshake_s)
    hello = await greeting.receive(Kind.HELLO, Hello)

    def refuse(number: int, reason: str) -> ConnectionError:
        greeting.send(Kind.FAILURE, Failure(number, reason))
        return ConnectionError(number, reason)

    if hello.version != PROTOCOL_VERSION:
        raise refuse(errno.EPROTO, f"protocol version {hello.version} is not spoken here, {PROTOCOL_VERSION} is")
    if hello.cluster != keyring.cluster:
        raise refuse(errno.EACCES, f"this server belongs to cluster {keyring.cluster}, not to {hello.cluster[:64]!r}")
    # Printable: names go into logs, and a NUL would blur where one claim ends and the next begins.
    proper = 0 < len(hello.client) <= _CLIENT_CHARACTERS_MAX and hello.client.isprintable() and hello.key.isprintable()
    if not proper or len(hello.nonce) != auth.NONCE_BYTES:
        raise refuse(errno.EPROTO, "malformed Hello")
    key_name, known = auth.base_key(hello.key), None
    key = keyring.keys.get(key_name)
    if key_name != hello.key:
        if tickets:
            known = auth.ticket_secret(keyring, hello.key, hello.client, time.time())
    elif key is not None:
        known = key.secret_bytes
    # An unknown key gets a challenge too, so that key names cannot be found out.
    secret = known if known is not None else secrets.token_bytes(auth.SECRET_BYTES)
    nonce = secrets.token_bytes(auth.NONCE_BYTES)
    claims = (hello.cluster, hello.key, hello.client, hello.nonce + nonce)
    greeting.send(Kind.CHALLENGE, Challenge(PROTOCOL_VERSION, name, nonce, auth.proof(secret, b"server", *claims)))
    try:
        shown = await greeting.receive(Kind.PROOF, Proof)
    except ConnectionResetError:
        raise ConnectionError(
            errno.EACCES,
            f"it left when it saw our proof: its key {hello.key[:64]!r} is unknown or wrong",
        ) from None
    if key is None or known is None or not auth.same(shown.proof, auth.proof(secret, b"client", *claims)):
        raise refuse(errno.EACCES, f"key {hello.key[:64]!r} is unknown or wrong")
    if not key.is_valid(time.time()):  # said only to who has it
        raise refuse(errno.EKEYEXPIRED, f"key {key_name!r} is not good now: {_validity(key)}")
    role = key.wire_role if key_name == hello.key else Role.CLIENT
    if shown.rdma is None:
        greeting.send(Kind.WELCOME, Welcome(role))
    else:
        link = await _upgraded(link, greeting, role, shown.rdma)
    return Greeted(hello.client, role, key_name, key, link)


async def _upgraded(link: Link, greeting: _Greeting, role: Role, offer: RdmaEnd) -> Link:
    """Answer a client's offer to go on over RDMA; the link to go on with."""
    upgrade = link.upgrade
    if upgrade is None:
        greeting.send(Kind.WELCOME, Welcome(role, None, "the server does not listen at an rdma:// address"))
        return link
    try:
        answer = upgrade.answer(offer)
    except OSError as error:
        greeting.send(Kind.WELCOME, Welcome(role, None, f"the server declines: {error.strerror}"))
        return link
    try:
        greeting.send(Kind.WELCOME, Welcome(role, answer))
        switch = await greeting.receive(Kind.SWITCH, Switch)
    except BaseException:
        upgrade.drop()
        raise
    if switch.error:
        upgrade.drop()
    return upgrade.switched()
