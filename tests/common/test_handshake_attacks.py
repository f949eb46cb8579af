"""Who has listened to handshakes, or sits in the middle of one, gets no further than who has not."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import msgspec
import pytest

from nacrefs.common.auth import proof
from nacrefs.common.codec import decode_failure, encode
from nacrefs.common.framing import Decoder, Frame, Kind, encode_frame
from nacrefs.common.wire import PROTOCOL_VERSION, Challenge, Hello, Message, Proof, Role, Welcome
from tests.common.endpoints import KEYRING, Ends, ends

SECRET = KEYRING.keys["client"].secret_bytes
NONCE = bytes(range(32))
HELLO = Hello(PROTOCOL_VERSION, KEYRING.cluster, "client", "honest", NONCE)


class Talker:
    """Speaks frames of a handshake as the test says, and hears what comes back."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder = Decoder(lambda frame: None)

    def say(self, kind: Kind, message: Message) -> None:
        self._writer.write(encode_frame(kind, 0, 0, encode(message)))

    async def hear(self) -> Frame | None:
        """The next frame; None if the server hung up."""
        while (frame := self._decoder.next_frame()) is None:
            try:
                data = await asyncio.wait_for(self._reader.read(4096), 30)
            except ConnectionResetError:  # something that we have said was still unread
                data = b""
            if not data:
                return None
            self._decoder.buffers()[0][: len(data)] = data
            self._decoder.received(len(data))
        return frame._replace(body=bytes(frame.body))

    async def challenge(self, hello: Hello = HELLO) -> Challenge:
        self.say(Kind.HELLO, hello)
        frame = await self.hear()
        assert frame is not None
        assert frame.kind is Kind.CHALLENGE
        return msgspec.msgpack.decode(frame.body, type=Challenge)

    async def refusal(self) -> str:
        frame = await self.hear()
        assert frame is not None
        assert frame.kind is Kind.FAILURE
        assert await self.hear() is None
        return str(decode_failure(frame.body))


@asynccontextmanager
async def talking(both: Ends) -> AsyncGenerator[Talker]:
    host, port = both.url.removeprefix("tcp://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield Talker(reader, writer)
    finally:
        writer.close()


def answer(challenge: Challenge, side: bytes = b"client", hello: Hello = HELLO) -> Proof:
    nonces = hello.nonce + challenge.nonce
    return Proof(proof(SECRET, side, hello.cluster, hello.key, hello.client, nonces))


async def test_the_honest_way_works() -> None:
    async with ends("tcp") as both, talking(both) as one:
        one.say(Kind.PROOF, answer(await one.challenge()))
        frame = await one.hear()
        assert frame is not None
        assert frame.kind is Kind.WELCOME
        assert msgspec.msgpack.decode(frame.body, type=Welcome).role is Role.CLIENT


async def test_a_recorded_handshake_cannot_be_replayed() -> None:
    async with ends("tcp") as both:
        async with talking(both) as one:
            recorded = answer(await one.challenge())
            one.say(Kind.PROOF, recorded)
            assert await one.hear()
        async with talking(both) as replayer:
            await replayer.challenge()
            replayer.say(Kind.PROOF, recorded)
            assert "unknown or wrong" in await replayer.refusal()


async def test_a_server_s_own_proof_is_not_a_client_s() -> None:
    """Neither sent back as it is, nor got from another connection whose nonce we choose."""
    async with ends("tcp") as both, talking(both) as one, talking(both) as other:
        challenge = await one.challenge()
        mirrored = await other.challenge(Hello(PROTOCOL_VERSION, KEYRING.cluster, "client", "honest", challenge.nonce))
        one.say(Kind.PROOF, Proof(challenge.proof))
        assert "unknown or wrong" in await one.refusal()
        other.say(Kind.PROOF, Proof(mirrored.proof))
        assert "unknown or wrong" in await other.refusal()


@pytest.mark.parametrize("version", [0, PROTOCOL_VERSION - 1, PROTOCOL_VERSION + 1, 255])
async def test_nobody_is_talked_into_another_version(version: int) -> None:
    async with ends("tcp") as both, talking(both) as one:
        one.say(Kind.HELLO, Hello(version, KEYRING.cluster, "client", "honest", NONCE))
        assert "is not spoken here" in await one.refusal()


async def test_what_was_claimed_cannot_be_changed_afterwards() -> None:
    async with ends("tcp") as both, talking(both) as one:
        challenge = await one.challenge()
        somebody_else = Hello(PROTOCOL_VERSION, KEYRING.cluster, "client", "other", NONCE)
        one.say(Kind.PROOF, answer(challenge, hello=somebody_else))
        assert "unknown or wrong" in await one.refusal()


async def test_nothing_is_served_before_the_proof(caplog: pytest.LogCaptureFixture) -> None:
    async with ends("tcp") as both, talking(both) as one:
        await one.challenge()
        one.say(Kind.REQUEST, HELLO)
        assert await one.hear() is None
        assert not both.server.peers


async def test_who_says_one_byte_at_a_time_is_gone_when_the_time_is_over(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    async with ends("tcp", handshake_s=0.2) as both, talking(both) as one:
        words = encode_frame(Kind.HELLO, 0, 0, encode(HELLO))

        async def drip() -> None:
            for byte in words[:-1]:
                one._writer.write(bytes((byte,)))  # pyright: ignore[reportPrivateUsage]
                await asyncio.sleep(0.02)

        dripping = asyncio.create_task(drip())
        assert await one.hear() is None
        dripping.cancel()
        await asyncio.gather(dripping, return_exceptions=True)
        assert "no HELLO in 0.2 s" in caplog.text


async def test_no_secret_stands_in_what_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with ends("tcp") as both:
        remote = await both.connected()
        await remote.aclose()
        async with talking(both) as one:
            await one.challenge()
    for key in KEYRING.keys.values():
        assert key.secret not in caplog.text
        assert repr(key.secret_bytes)[2:-1] not in caplog.text
