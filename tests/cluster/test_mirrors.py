"""Mirrored files while OSTs come and go: nobody waits long, nobody sees old bytes, copies are equal in the end."""

import asyncio
import os
import random
from pathlib import Path
from typing import Self

import pytest

from nacrefs.client.cache import Inode
from nacrefs.client.data.mirrors import Copies
from nacrefs.client.filesystem import Changes
from nacrefs.client.vfs import Vfs
from nacrefs.common.answer import settle
from nacrefs.common.checksum import block_sums
from nacrefs.common.fid import ROOT
from nacrefs.common.layout import CopyState, Layout, LayoutSpec
from nacrefs.common.wire import Attach, Capability, Detach, Resync, Right, Set, SetLayout
from nacrefs.oss.object import Segment
from tests.client import world as clients
from tests.client.world import World, close, open_file, quiet, read, read_file

MIB = 1 << 20


class Mirrored(World):
    """Four OSTs on two servers; every file has two copies."""

    stripe_count = 2

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        client = await self.remote()
        try:
            await client.call(Attach("setup", "test"))
            await client.call(SetLayout(ROOT, LayoutSpec(self.stripe_count, 128 << 10, mirrors=2)))
            await client.call(Detach())
        finally:
            await client.aclose()
        return self


def cluster(directory: Path, stripe_count: int = 2, oss: int = 2) -> Mirrored:
    """A cluster whose files have so many stripes."""
    world = Mirrored(directory, oss=oss)
    world.stripe_count = stripe_count
    return world


def layout_of(world: World, fid: int) -> Layout:
    """The committed layout of a mirrored file."""
    layout = world.mds.mds.mirrors.layout(fid)
    assert layout is not None
    return layout


async def all_good(world: World, *fids: int) -> None:
    """Wait until every copy of every file is good."""
    async with asyncio.timeout(60):
        while any(layout_of(world, fid).states for fid in fids) or world.mds.mds.mdt.mirrors((-1, -1, -1), 1):
            await asyncio.sleep(0.02)


def object_file(world: World, layout: Layout, fid: int, number: int) -> Path:
    """Where a copy lies on disk."""
    ost = layout.osts[number]
    root = world.ost_directory(ost // 2, ost % 2)
    return root / "objects" / f"{fid >> 16 & 255:02x}" / f"{fid >> 8 & 255:02x}" / f"{fid:016x}.{number}"


async def compare(world: World, fid: int, contents: bytes) -> None:
    """Every copy on disk has just what the file has."""
    layout = layout_of(world, fid)
    for number in range(len(layout.osts)):
        stripe = number % layout.stripe_count
        path = object_file(world, layout, fid, number)
        held = path.read_bytes() if path.exists() else b""
        wanted = bytearray(len(contents))
        for start in range(stripe * layout.stripe_bytes, len(contents), layout.stripe_bytes * layout.stripe_count):
            wanted[start : start + layout.stripe_bytes] = contents[start : start + layout.stripe_bytes]
        assert held.ljust(len(contents), b"\0") == wanted, f"object {number}"


def noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


async def stop_oss(world: World, number: int) -> None:
    """An OSS is gone, with its connections."""
    server = next(one for one in world.oss if one.config.name == f"oss{number}")
    world.oss.remove(server)
    await server.stop()


async def write_file(vfs: Vfs, parent: int, name: bytes, data: bytes) -> int:
    """Make a file, and wait until its bytes are where they belong."""
    fid = await clients.write_file(vfs, parent, name, data)
    await quiet(vfs)
    return fid


async def write_at(vfs: Vfs, handle: int, offset: int, data: bytes) -> None:
    await settle(vfs.write(handle, offset, memoryview(data)))


async def sync(vfs: Vfs, handle: int) -> None:
    await settle(vfs.fsync(handle, False))


async def test_both_copies_get_every_byte_and_lie_on_different_servers(tmp_path: Path) -> None:
    async with cluster(tmp_path) as world:
        vfs = await world.vfs()
        contents = noise(1, 700_001)
        fid = await write_file(vfs, ROOT, b"f", contents)
        layout = layout_of(world, fid)
        for stripe in range(layout.stripe_count):
            assert len({layout.osts[number] // 2 for number in layout.objects_of(stripe)}) == 2
        await compare(world, fid, contents)
        assert not layout.states


async def test_an_ost_is_lost_and_returns(tmp_path: Path) -> None:
    """Writing and reading go on; what was written meanwhile is on both copies in the end."""
    async with cluster(tmp_path) as world:
        vfs, other = await world.vfs(), await world.vfs()
        contents = bytearray(noise(2, MIB))
        fid = await write_file(vfs, ROOT, b"f", bytes(contents))
        handle = await open_file(vfs, fid, os.O_RDWR)
        await stop_oss(world, 1)
        contents[100_000:300_000] = noise(3, 200_000)
        async with asyncio.timeout(20):
            await write_at(vfs, handle, 100_000, bytes(contents[100_000:300_000]))
            await sync(vfs, handle)
        states = layout_of(world, fid).states
        assert sorted(set(states)) == [CopyState.GOOD, CopyState.LOST]
        assert await read_file(other, ROOT, b"f") == contents
        await world.start_oss(1)
        await all_good(world, fid)
        await close(vfs, handle)
        await compare(world, fid, bytes(contents))


async def test_a_client_with_an_old_layout_never_reads_a_stale_copy(tmp_path: Path) -> None:
    """The copy that everybody would read is lost, written past, and back: whoever still has the old layout is refused
    there."""
    async with cluster(tmp_path, stripe_count=1) as world:
        writer, reader = await world.vfs(), await world.vfs()
        fid = await write_file(writer, ROOT, b"f", b"a" * 300_000)
        mine = await open_file(writer, fid, os.O_RDWR)
        theirs = await open_file(reader, fid, os.O_RDWR)  # shared: layouts are kept without a lease
        assert await read(reader, theirs, 0, 10) == b"a" * 10
        old = layout_of(world, fid)
        inode = reader.cache.inodes[fid]
        before = inode.layout, inode.capability
        first = old.osts[old.readable(0)[0]] // 2
        await stop_oss(world, first)
        async with asyncio.timeout(20):
            await write_at(writer, mine, 0, b"b" * 300_000)
        worker = world.mds.mds.resyncer
        await worker.stop()  # the copy stays as it is
        await world.start_oss(first)
        inode.layout, inode.capability = before
        assert await read(reader, theirs, 0, 10) == b"b" * 10
        assert inode.layout is not None
        assert inode.layout.generation > old.generation
        worker.start()
        await close(writer, mine)
        await close(reader, theirs)
        await all_good(world, fid)
        await compare(world, fid, b"b" * 300_000)


async def test_a_resync_under_writing_ends_with_equal_copies(tmp_path: Path) -> None:
    async with cluster(tmp_path) as world:
        vfs = await world.vfs()
        chance = random.Random(5)
        contents = bytearray(noise(5, 4 * MIB))
        fid = await write_file(vfs, ROOT, b"f", bytes(contents))
        handle = await open_file(vfs, fid, os.O_RDWR)
        await stop_oss(world, 0)

        async def scribble() -> None:
            at, size = chance.randrange(4 * MIB - 70_000), chance.randrange(1, 70_000)
            contents[at : at + size] = data = chance.randbytes(size)
            await write_at(vfs, handle, at, data)
            if chance.random() < 0.3:
                await sync(vfs, handle)

        async with asyncio.timeout(60):
            for _ in range(40):
                await scribble()
            await sync(vfs, handle)
            assert layout_of(world, fid).states
            await world.start_oss(0)
            while layout_of(world, fid).states:
                await scribble()
            await sync(vfs, handle)
        await close(vfs, handle)
        await all_good(world, fid)
        await compare(world, fid, bytes(contents))
        assert await read_file(vfs, ROOT, b"f") == contents


async def test_truncation_punch_and_removal_go_on_without_an_ost(tmp_path: Path) -> None:
    async with cluster(tmp_path) as world:
        vfs = await world.vfs()
        contents = bytearray(noise(6, MIB))
        fid = await write_file(vfs, ROOT, b"f", bytes(contents))
        gone = await write_file(vfs, ROOT, b"gone", bytes(contents))
        await stop_oss(world, 0)
        handle = await open_file(vfs, fid, os.O_RDWR)
        async with asyncio.timeout(30):
            await settle(vfs.fallocate(handle, 3, 200_000, 150_000))
            contents[200_000:350_000] = bytes(150_000)
            await settle(vfs.setattr(fid, Changes(Set.SIZE, size=777_777)))
            del contents[777_777:]
            await settle(vfs.unlink(ROOT, b"gone"))
        assert await read_file(vfs, ROOT, b"f") == contents
        await close(vfs, handle)
        await world.start_oss(0)
        await all_good(world, fid)
        await compare(world, fid, bytes(contents))
        async with asyncio.timeout(20):
            while world.mds.mds.mdt.destructions(1):
                await asyncio.sleep(0.02)
        layout = layout_of(world, fid)
        assert not any(
            path.name.startswith(f"{gone:016x}")
            for number in range(len(layout.osts))
            for path in object_file(world, layout, fid, number).parent.iterdir()
        )


async def test_a_damaged_copy_is_never_served_and_mended(tmp_path: Path) -> None:
    async with cluster(tmp_path, stripe_count=1) as world:
        vfs = await world.vfs()
        contents = noise(7, 500_000)
        fid = await write_file(vfs, ROOT, b"f", contents)
        layout = layout_of(world, fid)
        path = object_file(world, layout, fid, layout.readable(0)[0])
        with path.open("r+b") as file:
            file.seek(200_000)
            byte = file.read(1)
            file.seek(200_000)
            file.write(bytes([byte[0] ^ 4]))
        assert path.read_bytes() != contents  # the flip lies where it will be read
        reader = await world.vfs()
        assert await read_file(reader, ROOT, b"f") == contents
        assert reader.meter.counters.get("damaged_copies", 0) > 0
        async with asyncio.timeout(30):
            while path.read_bytes() != contents:
                await asyncio.sleep(0.05)
        await all_good(world, fid)


async def test_a_writer_that_dies_leaves_equal_copies(tmp_path: Path) -> None:
    """Half a write has reached one copy only when the session ends."""
    async with cluster(tmp_path, stripe_count=1) as world:
        vfs, other = await world.vfs(), await world.vfs()
        contents = bytearray(noise(8, 400_000))
        fid = await write_file(vfs, ROOT, b"f", bytes(contents))
        handle = await open_file(vfs, fid, os.O_RDWR)
        await write_at(vfs, handle, 0, bytes(contents[:10]))
        await sync(vfs, handle)
        layout = layout_of(world, fid)
        target = next(
            target
            for oss in world.oss
            for target in oss.targets
            if target.label.index == layout.osts[layout.readable(0)[1]]
        )
        stored = await target.usable(fid, 1)
        assert stored is not None
        await target.durability.prepare(stored)
        data = memoryview(b"x" * 65536)
        assert stored.write_now([Segment(65536, data, block_sums(data, 65536))], target.written_blocks, True) is None
        target.durability.changed(stored, 65536)
        session = world.mds.mds.sessions.by_id[vfs.session.number]
        world.mds.mds.evict(session, "is dead to the test")
        async with asyncio.timeout(30):
            while session.id in world.mds.mds.sessions.by_id:
                await asyncio.sleep(0.02)
        await all_good(world, fid)
        await compare(world, fid, bytes(contents))
        assert await read_file(other, ROOT, b"f") == contents


async def test_an_ost_lost_for_good_is_replaced(tmp_path: Path) -> None:
    async with cluster(tmp_path, oss=3) as world:
        vfs = await world.vfs()
        files = {b"f%d" % number: noise(number, 300_000) for number in range(6)}
        fids = [await write_file(vfs, ROOT, name, data) for name, data in files.items()]
        await stop_oss(world, 2)
        for lost in (4, 5):
            answer = await vfs.session.mds.call(Resync(lost_ost=lost))
            assert answer.next_fid == 0
        async with asyncio.timeout(60):
            while any(layout_of(world, fid).states for fid in fids):
                await asyncio.sleep(0.02)
        for fid, data in zip(fids, files.values(), strict=True):
            assert not {4, 5} & set(layout_of(world, fid).osts)
            await compare(world, fid, data)


async def test_data_of_a_session_that_has_ended_is_not_sent_to_copies_under_the_next(tmp_path: Path) -> None:
    async with cluster(tmp_path) as world:
        vfs = await world.vfs()
        fid = await write_file(vfs, ROOT, b"f", noise(1, 300_000))
        inode, before = vfs.cache.inodes[fid], vfs.session.number

        async def granted(inode: Inode, right: Right) -> tuple[Layout, Capability]:
            """It takes so long that the session is given up meanwhile."""
            sessions = world.mds.mds.sessions
            sessions.evict(sessions.by_id[before], "the test says so")
            async with asyncio.timeout(20):
                while vfs.session.number in (0, before):
                    await asyncio.sleep(0.01)
            return await vfs.objects.granted(inode, right)

        def verify(*arguments: object) -> int:
            raise AssertionError("nothing is read")

        copies = Copies(vfs.session, granted, vfs.objects.refresh, verify)
        with pytest.raises(OSError, match="session ended"):
            await copies.change(inode, lambda layout, capability: [])
