"""Strangers and members who send anything: the server lives, serves others, keeps its memory, and says what came."""

import asyncio
import contextlib
import itertools
import logging
import os
import random
import resource
import time
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from nacrefs.client.vfs import Vfs
from nacrefs.common.answer import settle
from nacrefs.common.auth import Credentials
from nacrefs.common.codec import encode
from nacrefs.common.export import Export
from nacrefs.common.framing import Frame, Kind, encode_frame
from nacrefs.common.handshake import greet_server
from nacrefs.common.keyedit import with_new_key
from nacrefs.common.transport import address as transport
from nacrefs.common.transport.link import Link, scratch
from nacrefs.common.wire import Attach, Challenge, GetAttr, Hello, Role, Want
from tests.client.world import CRED, World, cluster, read_file, write_file
from tests.fuzz.mutation import GOLDEN, REQUESTS, SECONDS, SEED, mutated

MEMORY_BYTES_MAX = 200 << 20
_numbers = itertools.count()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncGenerator[World]:
    async with cluster(tmp_path, scheme="tcp") as made:
        yield made


def memory_bytes() -> int:
    """What this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


class Bystander:
    """A client that works meanwhile, and must not notice anything."""

    def __init__(self, vfs: Vfs) -> None:
        self.vfs = vfs
        self.rounds = 0

    async def work(self) -> None:
        name = b"honest %d" % self.rounds
        self.rounds += 1
        data = os.urandom(1000) + bytes(70_000)
        await write_file(self.vfs, self.vfs.root, name, data)
        async with asyncio.timeout(30):
            assert await read_file(self.vfs, self.vfs.root, name) == data

    async def look(self) -> None:
        async with asyncio.timeout(30):
            await self.vfs.session.mds.call(GetAttr(self.vfs.root, Want(0)))


def credentials_of(world: World, whose: str) -> Credentials:
    """The credentials of an administrator, a trusted client, or one that is limited in this way."""
    if whose in ("admin", "trusted"):
        return world.keyring.credentials(Role.ADMIN if whose == "admin" else Role.CLIENT)
    export = {
        "subtree": Export(path="/fuzz"), "read-only": Export(read_only=True), "squashed": Export(squash="all"),
    }[whose]  # fmt: skip
    world.keyring = with_new_key(world.keyring, "fuzz", "client", export)
    world.mds.change_keyring(world.keyring)
    return Credentials(world.keyring.cluster, "fuzz", world.keyring.keys["fuzz"].secret_bytes)


async def strange(url: str, words: bytes) -> None:
    """Connect, say this, and stay until the server has had enough, or for a moment."""
    host, port = url.removeprefix("tcp://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    with contextlib.suppress(ConnectionError, TimeoutError):
        writer.write(words)
        async with asyncio.timeout(0.2):
            while await reader.read(65536):
                pass
    writer.close()


class Member:
    """A link that has come through its handshake honestly, and carries whatever it is given."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.answered: set[int] = set()
        self.over = asyncio.Event()
        link.start(self)

    def sink(self, frame: Frame) -> list[memoryview]:
        return scratch(frame.bulk_bytes)

    def frame(self, frame: Frame) -> None:
        if frame.kind in (Kind.REPLY, Kind.FAILURE):
            self.answered.add(frame.xid)

    def closed(self, link: Link, error: OSError) -> None:
        self.over.set()


async def member(url: str, credentials: Credentials, name: str) -> Member:
    link = await transport.connect(url)
    return Member((await greet_server(link, credentials, name))[2])


async def answers(one: Member, xids: range) -> None:
    """All that was asked is answered, or the connection is over."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1.0):
            while not (one.over.is_set() or one.answered.issuperset(xids)):
                await asyncio.sleep(0.005)


def nothing_broke(caplog: pytest.LogCaptureFixture) -> None:
    broken = [record for record in caplog.records if record.exc_info or record.levelno >= logging.ERROR]
    text = "\n".join(f"{record.getMessage()} {record.exc_info}" for record in broken[:5])
    assert not broken, f"FUZZ_SEED={SEED}: {text}"


async def test_strangers_say_anything(world: World, caplog: pytest.LogCaptureFixture) -> None:
    source = random.Random(SEED)
    bystander = Bystander(await world.vfs())
    await bystander.work()
    places = [world.mds.url, world.oss[0].addresses[0]]
    before, until = memory_bytes(), time.monotonic() + SECONDS
    hello = encode(Hello(1, world.keyring.cluster, "client", "someone", bytes(32)))
    while time.monotonic() < until:
        words = [
            source.randbytes(source.randrange(1, 300)),
            encode_frame(Kind(source.randrange(1, 9)), source.getrandbits(64), 0, source.choice(GOLDEN)),
            encode_frame(Kind.HELLO, 0, 0, mutated(source, hello)),
            mutated(source, encode_frame(Kind.HELLO, 0, 0, hello)),
            encode_frame(Kind.HELLO, 0, 0, hello) + encode_frame(Kind.PROOF, 0, 0, encode(Challenge(1, "", b"", b""))),
            encode_frame(Kind.HELLO, 0, 0, bytes(5000)),
            encode_frame(Kind.HELLO, 0, 0, hello, 1 << 20),
            b"GET / HTTP/1.1\r\n\r\n",
        ]
        await asyncio.gather(*(strange(source.choice(places), words) for words in words))
        await bystander.work()
    assert memory_bytes() - before < MEMORY_BYTES_MAX
    assert "refused a connection from" in caplog.text
    nothing_broke(caplog)


@pytest.mark.parametrize("whose", ["admin", "trusted", "subtree", "read-only", "squashed"])
async def test_a_member_says_anything_to_an_mds(world: World, caplog: pytest.LogCaptureFixture, whose: str) -> None:
    """Who is trusted may change what others have, so that these only look; who is limited cannot."""
    source = random.Random(SEED)
    bystander = Bystander(await world.vfs())
    await settle(bystander.vfs.mkdir(bystander.vfs.root, b"fuzz", 0o777, CRED))
    await bystander.work()
    credentials = credentials_of(world, whose)
    limited = whose in ("subtree", "read-only")
    before, until = memory_bytes(), time.monotonic() + SECONDS
    said = 0
    while time.monotonic() < until:
        name = f"fuzz{next(_numbers)}"
        one = await member(world.mds.url, credentials, name)
        one.link.send(Kind.REQUEST, 1, 1, encode(Attach(name, "here")))
        xids = range(2, 60)
        for xid in xids:
            body = mutated(source, source.choice(REQUESTS)) if source.random() < 0.8 else source.choice(REQUESTS)
            one.link.send(source.choice((Kind.REQUEST, Kind.RESENT)), xid, source.choice((1, xid)), body)
            said += 1
        await answers(one, xids)
        one.link.close()
        await (bystander.work() if limited else bystander.look())
    assert said > 100
    assert memory_bytes() - before < MEMORY_BYTES_MAX
    nothing_broke(caplog)


async def test_a_member_says_anything_to_an_oss(world: World, caplog: pytest.LogCaptureFixture) -> None:
    source = random.Random(SEED)
    bystander = Bystander(await world.vfs())
    await bystander.work()
    credentials = world.keyring.credentials(Role.CLIENT)
    before, until = memory_bytes(), time.monotonic() + SECONDS
    while time.monotonic() < until:
        one = await member(world.oss[0].addresses[0], credentials, f"{source.randrange(9)}.fuzz{next(_numbers)}")
        xids = range(1, 60)
        for xid in xids:
            body = mutated(source, source.choice(REQUESTS)) if source.random() < 0.8 else source.choice(REQUESTS)
            bulk = [memoryview(source.randbytes(source.choice((1, 5000, 70_000))))] if source.random() < 0.3 else []
            one.link.send(source.choice((Kind.REQUEST, Kind.RESENT)), xid, 1, body, bulk)
        await answers(one, xids)
        one.link.close()
        await bystander.work()
    assert memory_bytes() - before < MEMORY_BYTES_MAX
    nothing_broke(caplog)
