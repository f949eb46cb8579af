"""Keys and capabilities at a real MDS and real OSSes: what is forged, over, or somebody else's is refused; keys change
while everybody works."""

import asyncio
import errno
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from nacrefs.client.vfs import Vfs
from nacrefs.common.auth import Credentials, Key, Keyring, make_ticket, sign_capability
from nacrefs.common.checksum import block_sums
from nacrefs.common.export import Export
from nacrefs.common.handshake import Refused
from nacrefs.common.keyedit import rotated, with_new_key, without
from nacrefs.common.observe import Meter
from nacrefs.common.remote import Remote
from nacrefs.common.wire import (
    ArchiveSpec,
    Capability,
    CheckQuota,
    Destroy,
    Fence,
    Fsck,
    HsmFlag,
    ImportArchive,
    ObjectId,
    ProbeArchive,
    Punch,
    Read,
    ReadSums,
    Request,
    Right,
    Role,
    SetArchive,
    SetHsm,
    SetPool,
    SetProject,
    StatObject,
    Sync,
    Truncate,
    TruncateObjects,
    Write,
)
from tests.client.world import World, cluster, open_file, quiet, read, read_file, write_file
from tests.common.endpoints import until
from tests.harness.clock import SettableClock

SIZE = 300_000
READ_WRITE = Right.READ | Right.WRITE


@pytest.fixture
async def world(tmp_path: Path) -> AsyncGenerator[World]:
    async with cluster(tmp_path, stripe_count=1, stripe_size=1 << 20, clock=SettableClock()) as made:
        made.keyring = with_new_key(with_new_key(made.keyring, "one", "client", Export()), "two", "client", Export())
        change(made, made.keyring)
        yield made


def change(world: World, keyring: Keyring) -> None:
    """All servers have another keyring from now on."""
    world.keyring = keyring
    world.mds.change_keyring(keyring)
    for oss in world.oss:
        oss.change_keyring(keyring)


def credentials(world: World, name: str) -> Credentials:
    return Credentials(world.keyring.cluster, name, world.keyring.keys[name].secret_bytes)


async def client(world: World, name: str = "one") -> Vfs:
    if not world.clients:
        await world.vfs()
    vfs = await Vfs(world.clients[0].config, credentials(world, name)).attach()
    world.clients.append(vfs)
    return vfs


class File:
    """A file with objects, of a client under the key `one`, and what its requests look like."""

    def __init__(self, vfs: Vfs, fid: int) -> None:
        inode = vfs.cache.inodes[fid]
        assert inode.layout is not None
        assert inode.capability is not None
        self.fid, self.ost, self.capability = fid, inode.layout.osts[0], inode.capability
        self.generation = inode.layout.generation
        self.session = vfs.session.number
        self.address = vfs.session.osts[self.ost].address

    def requests(self, capability: Capability, fid: int = 0) -> list[Request[Any]]:
        """One of each that needs a capability."""
        where = (self.ost, fid or self.fid, 0, self.generation, capability)
        return [
            Read(*where, ((0, 10),)),
            Write(*where, ((0, 4),), block_sums(memoryview(b"evil"), 0)),
            Punch(*where, ((0, 10),)),
            Truncate(*where, 0),
            StatObject(*where),
            Sync(*where),
            ReadSums(*where, 0, 1),
        ]


async def planted(world: World) -> tuple[Vfs, File]:
    vfs = await client(world)
    fid = await write_file(vfs, vfs.root, b"file", bytes(range(250)) * (SIZE // 250))
    await vfs.store.write_out_all()
    await quiet(vfs)
    number = await open_file(vfs, fid)
    assert len(await read(vfs, number)) == SIZE
    return vfs, File(vfs, fid)


@asynccontextmanager
async def connected(file: File, who: Credentials, name: str) -> AsyncGenerator[Remote]:
    remote = Remote(file.address, who, name, {}, Meter())
    await remote.open()
    try:
        yield remote
    finally:
        await remote.aclose()


async def all_refused(remote: Remote, requests: Sequence[Request[Any]], *numbers: int) -> None:
    for request in requests:
        data = [memoryview(b"evil")] if isinstance(request, Write) else []
        into = [memoryview(bytearray(10))] if isinstance(request, Read) else None
        with pytest.raises(OSError, match=r".") as caught:
            await remote.call(request, data=data, into=into)
        assert caught.value.errno in numbers, (request, caught.value)


async def unharmed(world: World) -> None:
    fresh = await world.vfs()
    assert await read_file(fresh, fresh.root, b"file") == bytes(range(250)) * (SIZE // 250)


async def test_a_capability_is_good_for_its_holder(world: World) -> None:
    _, file = await planted(world)
    async with connected(file, credentials(world, "one"), f"{file.session}.x") as remote:
        assert (await remote.call(StatObject(file.ost, file.fid, 0, file.generation, file.capability))).size == SIZE


async def test_a_forged_capability_is_refused(world: World) -> None:
    _, file = await planted(world)
    good = file.capability
    own = world.keyring.keys["one"].secret_bytes
    forged = [
        replace(good, mac=bytes(16)),
        replace(good, mac=good.mac[:-1]),
        replace(good, mac=b""),
        replace(good, rights=good.rights | 8),
        replace(good, expires_s=good.expires_s + 1),
        replace(good, expires_s=1 << 70),
        replace(good, rights=-1),
        sign_capability(own, file.fid, file.generation, file.session, READ_WRITE, 1 << 40, "one"),
        sign_capability(bytes(32), file.fid, file.generation, file.session, READ_WRITE, 1 << 40, "one"),
    ]
    async with connected(file, credentials(world, "one"), f"{file.session}.x") as remote:
        for capability in forged:
            try:
                requests = file.requests(capability)
                await all_refused(remote, requests, errno.EACCES, errno.EPROTO)
            except OverflowError:
                continue  # it cannot even be sent
    await unharmed(world)


async def test_an_expired_capability_is_refused(world: World) -> None:
    _, file = await planted(world)
    key = world.keyring.capability_key()
    over = sign_capability(key, file.fid, file.generation, file.session, READ_WRITE, int(time.time()) - 2, "one")
    async with connected(file, credentials(world, "one"), f"{file.session}.x") as remote:
        await all_refused(remote, file.requests(over), errno.EKEYEXPIRED)
    await unharmed(world)


async def test_a_capability_is_for_one_file_generation_and_mode(world: World) -> None:
    vfs, file = await planted(world)
    other = await write_file(vfs, vfs.root, b"other", bytes(SIZE))
    key = world.keyring.capability_key()
    async with connected(file, credentials(world, "one"), f"{file.session}.x") as remote:
        await all_refused(remote, file.requests(file.capability, other), errno.EACCES)
        await all_refused(remote, [replace(one, generation=9) for one in file.requests(file.capability)], errno.EACCES)
        until = int(time.time()) + 100
        read_only = sign_capability(key, file.fid, file.generation, file.session, Right.READ, until, "one")
        changing = [one for one in file.requests(read_only) if isinstance(one, Write | Punch | Truncate)]
        assert len(changing) == 3
        await all_refused(remote, changing, errno.EACCES)
        none = sign_capability(key, file.fid, file.generation, file.session, Right(0), until, "one")
        await all_refused(remote, file.requests(none), errno.EACCES)
    await unharmed(world)


async def test_a_capability_that_somebody_else_replays_is_refused(world: World) -> None:
    """He may have his own session, call himself as its holder does, or both; the key tells them apart."""
    _, file = await planted(world)
    two = await client(world, "two")
    for name in (f"{two.session.number}.x", f"{file.session}.x", f"{file.session}.{two.session.client}", "0.x", "x"):
        async with connected(file, credentials(world, "two"), name) as remote:
            await all_refused(remote, file.requests(file.capability), errno.EACCES)
    async with connected(file, credentials(world, "one"), f"{file.session + 1000}.x") as remote:
        await all_refused(remote, file.requests(file.capability), errno.EACCES)
    ticket = make_ticket(credentials(world, "two"), file.session, int(time.time()) + 60)
    stolen = Credentials(world.keyring.cluster, ticket.key, ticket.secret)
    async with connected(file, stolen, f"{file.session}.program") as remote:
        await all_refused(remote, file.requests(file.capability), errno.EACCES)
    await unharmed(world)


async def test_an_evicted_session_s_capability_is_refused(world: World) -> None:
    _, file = await planted(world)
    sessions = world.mds.mds.sessions
    async with connected(file, credentials(world, "one"), f"{file.session}.x") as remote:
        world.mds.mds.evict(sessions.by_id[file.session], "is a test")
        while file.session in sessions.by_id:
            await asyncio.sleep(0.01)
        await all_refused(remote, file.requests(file.capability), errno.ESHUTDOWN)
    await unharmed(world)


@pytest.mark.parametrize("role", [Role.CLIENT, Role.ADMIN, Role.SERVER])
async def test_orders_for_osts_are_taken_from_the_mds_only(world: World, role: Role) -> None:
    """Whoever connects to an OSS, even with a server's key: orders come over the connection that it has made."""
    _, file = await planted(world)
    object_id = ObjectId(file.ost, file.fid, 0)
    who = world.keyring.credentials(role)
    async with connected(file, who, f"{file.session}.x") as remote:
        orders = [Destroy((object_id,)), TruncateObjects((object_id,), 0), Fence((file.session,))]
        await all_refused(remote, orders, errno.ENOSYS)
    await unharmed(world)


async def test_what_is_an_administrator_s_is_refused_to_others(world: World) -> None:
    vfs, file = await planted(world)
    orders: list[Request[Any]] = [
        SetPool("p", (0,)), SetProject(file.fid, 7), CheckQuota(True), ProbeArchive("a"), ImportArchive("a", 1),
        SetArchive(ArchiveSpec(0, "a", "dir", "file:///tmp")), Fsck("job"), SetHsm((file.fid,), int(HsmFlag.LOST)),
    ]  # fmt: skip
    await all_refused(vfs.session.mds, orders, errno.EACCES)


# ------------------------------------------------------------------------------------------------------------- rotation


async def test_a_client_s_key_is_rotated_while_it_works(world: World) -> None:
    vfs, file = await planted(world)
    number = vfs.session.number
    ring, second = rotated(world.keyring, "one", time.time() - 10, 0, 60)
    change(world, ring)
    assert await read_file(vfs, vfs.root, b"file")
    assert (vfs.session.number, vfs.session.mds.generation) == (number, 1)
    # The first key's time is over: who has shown it works on, and nobody is greeted with it any more.
    over = replace(ring.keys["one"], not_after=ring.keys[second].not_before)
    change(world, replace(ring, keys={**ring.keys, "one": over}))
    await write_file(vfs, vfs.root, b"new", b"x")
    assert vfs.session.number == number
    with pytest.raises(Refused, match="'one' is not good now: until") as caught:
        await Remote(world.mds.url, credentials(world, "one"), "late", {}, Meter()).open()
    assert caught.value.errno == errno.EKEYEXPIRED
    # It connects again with the second one and goes on in its session.
    vfs.session.mds._credentials = credentials(world, second)  # pyright: ignore[reportPrivateUsage]
    assert vfs.session.mds.link is not None
    vfs.session.mds.link.close("cut by the test")
    await write_file(vfs, vfs.root, b"newer", b"x")
    assert vfs.session.number == number
    assert file.session == number


async def test_a_server_s_key_is_rotated_while_everybody_works(world: World) -> None:
    vfs, file = await planted(world)
    ring, second = rotated(world.keyring, "server", time.time() - 10, 0, 60)
    change(world, ring)
    await unharmed(world)  # under a capability of the new key
    async with connected(file, credentials(world, "one"), f"{file.session}.x") as remote:
        known = await remote.call(StatObject(file.ost, file.fid, 0, file.generation, file.capability))
        assert known.size == SIZE
        # What was signed under the old key is refused once that is gone, remembered or not.
        change(world, without(ring, ["server"]))
        await all_refused(remote, file.requests(file.capability), errno.EKEYEXPIRED)
    assert second in world.keyring.keys
    for oss in world.oss:  # they had the old key, connect again with the new one, and serve
        await oss.registered.wait()
    assert len(await read_file(vfs, vfs.root, b"file")) == SIZE


async def test_a_revoked_key_s_sessions_are_evicted_and_its_connections_dropped(world: World) -> None:
    _, file = await planted(world)
    two = await client(world, "two")
    before = two.session.number
    async with connected(file, credentials(world, "one"), f"{file.session}.x") as remote:
        sessions = world.mds.mds.sessions.by_id
        assert sum(session.principal == "one" for session in sessions.values()) == 1
        change(world, without(world.keyring, ["one"]))
        assert all(session.gone for session in sessions.values() if session.principal == "one")
        # Links say soon that they are closed; those over RDMA, when their queue pairs have been flushed.
        await until(
            lambda: not any(peer.key == "one" for oss in world.oss for peer in oss.clients() if peer.link is not None)
        )
        with pytest.raises(OSError, match=r"no reply|closed|lost"):
            await remote.call(StatObject(file.ost, file.fid, 0, file.generation, file.capability), deadline_s=0.1)
    # It cannot be told that its session has ended: what it holds is others' when it must have dropped it by itself.
    assert isinstance(world.clock, SettableClock)
    world.clock.ahead_s += world.mds.mds.sessions.term_s / 2
    async with asyncio.timeout(20):
        while file.session in sessions:
            world.mds.mds.tick()
            await asyncio.sleep(0.01)
    await write_file(two, two.root, b"still", b"here")
    assert two.session.number == before
    revoked = world.clients.pop(1)
    await revoked.session.close()
    fresh = Key("client", "ab" * 32)
    change(world, replace(world.keyring, keys={**world.keyring.keys, "one": fresh}))
    await unharmed(world)
