"""Programs with I/O of their own: what a mount grants them, and that nobody caches what they write."""

import errno
import os
import time

import msgspec
import pytest

from nacrefs.client.programs import ASK, GIVE_BACK, GRANT, PART, Programs
from nacrefs.client.vfs import Vfs
from nacrefs.common.answer import settle
from nacrefs.common.auth import Credentials
from nacrefs.common.checksum import block_sums
from nacrefs.common.remote import Remote
from nacrefs.common.wire import IoGrant, Mode, QuotaKind, QuotaLimits, Read, Right, Role, SetQuota, Write
from tests.client.world import CRED, World, close, open_file, quiet, read, read_file, write_file

ROOM = 8192


class Program:
    """What client/native does, in Python: grants by ioctl, I/O over a connection of its own."""

    def __init__(self, world: World, vfs: Vfs) -> None:
        self.programs = Programs(vfs, world.keyring.credentials(Role.CLIENT))
        self.vfs = vfs
        self.remotes: list[Remote] = []

    async def grant(self, number: int, room: int = ROOM) -> IoGrant:
        found, part = b"", 0
        while True:
            answer = await settle(self.programs.ioctl(number, GRANT, ASK.pack(1, part, 0), room))
            total, size = PART.unpack_from(answer)
            found += answer[PART.size : PART.size + size]
            if len(found) == total:
                return msgspec.msgpack.decode(found, type=IoGrant)
            part += 1

    def connect(self, grant: IoGrant, ost: int, name: str = "") -> Remote:
        ticket = grant.ticket
        address = next(info.address for info in grant.osts if info.index == ost)
        credentials = Credentials(grant.cluster, ticket.key, ticket.secret)
        remote = Remote(address, credentials, name or f"{ticket.session}.program", {}, self.vfs.meter)
        self.remotes.append(remote)
        return remote

    async def write(self, grant: IoGrant, offset: int, data: bytes) -> None:
        layout = grant.layout
        number = layout.stripe_of(offset)
        remote = self.connect(grant, layout.osts[number])
        await remote.open()
        extents, sums = ((offset, len(data)),), block_sums(memoryview(data), offset)
        await remote.call(
            Write(layout.osts[number], grant.fid, number, layout.generation, grant.capability, extents, sums),
            data=[memoryview(data)],
        )

    async def close(self) -> None:
        for remote in self.remotes:
            await remote.aclose()
        await self.programs.close()


@pytest.fixture
async def two(world: World) -> tuple[Vfs, Vfs]:
    return await world.vfs(), await world.vfs()


async def new_file(vfs: Vfs, name: bytes = b"f") -> tuple[int, int]:
    found, handle = await settle(vfs.create(vfs.root, name, 0o644, os.O_RDWR | os.O_CREAT, CRED))
    assert found.attr is not None
    return found.attr.fid, handle.number


async def test_bytes_of_a_program_are_seen_by_its_mount_and_by_another_at_once(
    world: World, two: tuple[Vfs, Vfs]
) -> None:
    one, other = two
    program = Program(world, one)
    fid, number = await new_file(one)
    grant = await program.grant(number)
    assert grant.capability.rights == Right.READ | Right.WRITE
    await program.write(grant, 0, b"first")
    assert (await settle(one.getattr(fid))).attr.size == 5
    assert await read(one, number, 0, 10) == b"first"
    assert await read_file(other, other.root, b"f") == b"first"
    await program.write(grant, 0, b"SECOND")
    assert await read(one, number, 0, 10) == b"SECOND"
    assert await read_file(other, other.root, b"f") == b"SECOND"
    await close(one, number)
    await quiet(one)
    assert await read_file(one, one.root, b"f") == b"SECOND"
    await program.close()


@pytest.mark.parametrize("size", [100, 300_000])
async def test_what_was_dirty_in_the_mount_lies_on_the_osts_before_the_program_begins(
    world: World, two: tuple[Vfs, Vfs], size: int
) -> None:
    one, _ = two
    program = Program(world, one)
    _, number = await new_file(one)
    data = os.urandom(size)
    await settle(one.write(number, 0, memoryview(data)))
    grant = await program.grant(number)
    remote = program.connect(grant, grant.layout.osts[0])
    await remote.open()
    wanted = min(size, grant.layout.stripe_bytes)
    into = memoryview(bytearray(wanted))
    layout = grant.layout
    request = Read(layout.osts[0], grant.fid, 0, layout.generation, grant.capability, ((0, wanted),))
    answer = await remote.call(request, into=[into])
    assert answer.lengths == (wanted,)
    assert into == data[:wanted]
    await close(one, number)
    await program.close()


async def test_a_reader_is_given_the_right_to_read_even_if_another_writes(world: World, two: tuple[Vfs, Vfs]) -> None:
    one, _ = two
    program = Program(world, one)
    fid, number = await new_file(one)
    await program.write(await program.grant(number), 0, b"x")
    reader = await open_file(one, fid, os.O_RDONLY)
    grant = await program.grant(reader)
    assert grant.capability.rights == Right.READ
    with pytest.raises(OSError, match="does not allow WRITE") as refused:
        await program.write(grant, 0, b"y")
    assert refused.value.errno == errno.EACCES
    await close(one, reader)
    await close(one, number)
    await program.close()


async def test_after_the_last_close_the_file_is_cached_again(world: World, two: tuple[Vfs, Vfs]) -> None:
    one, _ = two
    program = Program(world, one)
    fid, number = await new_file(one)
    await program.write(await program.grant(number), 0, b"bytes")
    session = program.programs._session  # pyright: ignore[reportPrivateUsage]
    assert session is not None
    opens = world.mds.mds.mdt.opens
    assert opens[fid][session.number] == Mode.READ | Mode.WRITE
    await close(one, number)
    await quiet(one)
    while session.background:
        await next(iter(session.background))
    assert fid not in opens
    assert await read_file(one, one.root, b"f") == b"bytes"
    assert one.cache.inodes[fid].lease
    await program.close()


async def test_a_grant_given_back_leaves_the_file_to_the_mount(world: World, two: tuple[Vfs, Vfs]) -> None:
    one, _ = two
    program = Program(world, one)
    fid, number = await new_file(one)
    await program.write(await program.grant(number), 0, b"bytes")
    await settle(program.programs.ioctl(number, GIVE_BACK, bytes(16), 0))
    assert program.programs.report(fid)["writers"] == 0
    await settle(one.write(number, 5, memoryview(b" more")))
    assert await read(one, number, 0, 20) == b"bytes more"
    await close(one, number)
    await program.close()


async def test_small_contents_in_the_mdt_are_not_granted_to_a_reader(world: World, two: tuple[Vfs, Vfs]) -> None:
    one, _ = two
    program = Program(world, one)
    fid = await write_file(one, one.root, b"small", b"tiny")
    number = await open_file(one, fid, os.O_RDONLY)
    with pytest.raises(OSError, match="in the MDT") as refused:
        await program.grant(number)
    assert refused.value.errno == errno.EOPNOTSUPP
    assert await read(one, number, 0, 10) == b"tiny"
    await close(one, number)
    await program.close()


async def test_a_long_grant_comes_in_parts(world: World, two: tuple[Vfs, Vfs]) -> None:
    one, _ = two
    program = Program(world, one)
    _, number = await new_file(one)
    assert (await program.grant(number, 40)).layout == (await program.grant(number)).layout
    await close(one, number)
    await program.close()


async def test_foreign_ioctls_and_protocols_are_refused(world: World, two: tuple[Vfs, Vfs]) -> None:
    one, _ = two
    program = Program(world, one)
    _, number = await new_file(one)
    with pytest.raises(OSError, match="no such ioctl") as unknown:
        program.programs.ioctl(number, 0x5401, b"", 100)
    assert unknown.value.errno == errno.ENOTTY
    with pytest.raises(OSError, match="protocol 2") as newer:
        program.programs.ioctl(number, GRANT, ASK.pack(2, 0, 0), ROOM)
    assert newer.value.errno == errno.EPROTO
    await close(one, number)
    await program.close()


async def test_a_ticket_is_good_for_its_session_on_oss_only(world: World, two: tuple[Vfs, Vfs]) -> None:
    one, _ = two
    program = Program(world, one)
    _, number = await new_file(one)
    grant = await program.grant(number)
    ost = grant.layout.osts[0]
    with pytest.raises(OSError, match="our key") as other_session:
        await program.connect(grant, ost, "1.somebody").open()
    assert other_session.value.errno == errno.EACCES
    ticket = grant.ticket
    key = ticket.key.replace(str(ticket.expires_s), str(ticket.expires_s + 1))
    for forged in (
        Credentials(grant.cluster, key, ticket.secret),
        Credentials(grant.cluster, ticket.key, bytes(32)),
    ):
        remote = Remote(grant.osts[0].address, forged, f"{ticket.session}.x", {}, one.meter)
        with pytest.raises(OSError, match="our key") as refused:
            await remote.open()
        assert refused.value.errno == errno.EACCES
        await remote.aclose()
    honest = Credentials(grant.cluster, ticket.key, ticket.secret)
    remote = Remote(world.mds.url, honest, f"{ticket.session}.x", {}, one.meter)
    with pytest.raises(OSError, match="our key") as at_mds:
        await remote.open()
    assert at_mds.value.errno == errno.EACCES
    await remote.aclose()
    assert ticket.expires_s > time.time()
    assert "secret=…" in repr(ticket)
    await close(one, number)
    await program.close()


async def test_opens_of_programs_survive_a_restart_of_the_mds(world: World, two: tuple[Vfs, Vfs]) -> None:
    one, other = two
    program = Program(world, one)
    fid, number = await new_file(one)
    grant = await program.grant(number)
    await program.write(grant, 0, b"before")
    await world.restart_mds()
    await program.write(grant, 6, b" after")
    assert (await settle(other.getattr(fid))).attr.size == 12
    assert await read_file(other, other.root, b"f") == b"before after"
    await program.grant(number)
    await close(one, number)
    await program.close()


async def test_files_of_an_owner_with_a_quota_are_written_through_the_mount(world: World, two: tuple[Vfs, Vfs]) -> None:
    one, _ = two
    program = Program(world, one)
    fid, number = await new_file(one)
    await program.write(await program.grant(number), 0, b"before")
    await one.session.mds.call(SetQuota(QuotaKind.USER, CRED.uid, QuotaLimits(hard_bytes=1 << 20)))
    with pytest.raises(OSError, match="quota") as refused:
        await program.grant(number)
    assert refused.value.errno == errno.EOPNOTSUPP
    await settle(one.write(number, 0, memoryview(b"after!")))
    reader = await open_file(one, fid, os.O_RDONLY)
    assert (await program.grant(reader)).capability.rights == Right.READ
    await close(one, reader)
    await close(one, number)
    await program.close()
