"""Bits that flip on the disk are found by `nacre scrub`, named with file and extent, never served, and mended where
there is another copy."""

import asyncio
import errno
import os
from collections.abc import Callable
from pathlib import Path

import lmdb
import pytest

from nacrefs.client.vfs import Vfs
from nacrefs.common.fid import ROOT
from nacrefs.common.wire import (
    Attach,
    FileVerified,
    FoundDamage,
    Repair,
    Scrub,
    ScrubOrder,
    ScrubReport,
    VerifyFile,
)
from nacrefs.oss.sums import PAGE_BYTES
from tests.client.world import World, cluster, quiet, read_file, write_file
from tests.cluster.test_mirrors import all_good, layout_of
from tests.cluster.test_mirrors import cluster as mirrored

MIB = 1 << 20
BLOCK = 1 << 16
CONTENTS = os.urandom(3 * MIB + 12_345)


def object_path(world: World, fid: int, number: int) -> Path:
    """Where an object is on the disk."""
    inode = world.mds.mds.journal.reading.need(fid)
    assert inode.layout is not None
    ost = inode.layout.osts[number]
    target = next(target for oss in world.oss for target in oss.targets if target.label.index == ost)
    return Path(target.path_of(fid, number))


def flip(path: Path, offset: int) -> None:
    """Flip a bit of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 16]))


async def ask_scrub(world: World, order: ScrubOrder, osts: tuple[int, ...] = (), rate: int = 0) -> ScrubReport:
    client = await world.remote()
    try:
        await client.call(Attach("scrub", "test"))
        return await client.call(Scrub(order, osts, rate))
    finally:
        await client.aclose()


async def scrub_all(world: World) -> list[FoundDamage]:
    """Scrub all OSTs to their ends; what was found."""
    await ask_scrub(world, ScrubOrder.START)
    async with asyncio.timeout(60):
        while True:
            report = await ask_scrub(world, ScrubOrder.STATUS)
            if all(state.state != "running" for state in report.osts):
                break
            await asyncio.sleep(0.02)
    assert {state.state for state in report.osts} == {"done"}
    return list(report.found)


async def verify_file(world: World, fid: int) -> list[FileVerified]:
    """Verify one file to its end."""
    client = await world.remote()
    pieces: list[FileVerified] = []
    try:
        await client.call(Attach("verify", "test"))
        stripe = offset = 0
        while stripe >= 0:
            piece = await client.call(VerifyFile(fid, stripe, offset))
            pieces.append(piece)
            stripe, offset = piece.stripe, piece.offset
        return pieces
    finally:
        await client.aclose()


async def settled_file(world: World, name: bytes = b"f", contents: bytes = CONTENTS) -> tuple[Vfs, int]:
    """A file whose objects are clean, and a client that remembers nothing of it."""
    vfs = await world.vfs()
    fid = await write_file(vfs, ROOT, name, contents)
    await quiet(vfs)
    await vfs.close()
    world.clients.remove(vfs)
    for oss in world.oss:
        for target in oss.targets:
            assert await target.durability.flush_all()
    return await world.vfs(), fid


async def test_sound_objects_are_all_read_and_nothing_is_found(tmp_path: Path) -> None:
    async with cluster(tmp_path) as world:
        await settled_file(world)
        assert await scrub_all(world) == []
        report = await ask_scrub(world, ScrubOrder.STATUS)
        assert sum(state.objects for state in report.osts) == 2
        units = [CONTENTS[at : at + 128 << 10] for at in range(0, len(CONTENTS), 128 << 10)]
        assert sum(state.bytes for state in report.osts) >= len(CONTENTS)
        assert len(units) > 0


async def test_a_flipped_bit_is_found_and_never_served(tmp_path: Path) -> None:
    async with cluster(tmp_path, stripe_size=BLOCK) as world:
        vfs, fid = await settled_file(world)
        flip(object_path(world, fid, 1), 5 * BLOCK + 77)
        (found,) = await scrub_all(world)
        assert (found.path, found.repair) == (b"/f", Repair.LEFT)
        assert (found.damage.fid, found.damage.number) == (fid, 1)
        assert (found.damage.start, found.damage.end) == (5 * BLOCK, 6 * BLOCK)
        with pytest.raises(OSError, match=r".*") as raised:
            await read_file(vfs, ROOT, b"f")
        assert raised.value.errno in (errno.EBADMSG, errno.EIO)
        pieces = await verify_file(world, fid)
        assert [one.damage.start for piece in pieces for one in piece.found] == [5 * BLOCK]
        assert sum(piece.checked_bytes for piece in pieces) >= len(CONTENTS)
        flip(object_path(world, fid, 1), 5 * BLOCK + 77)
        report = await ask_scrub(world, ScrubOrder.STATUS)
        assert [one.repair for one in report.found] == [Repair.MENDED]


def damage_sums(ost: Path, fid: int, number: int) -> None:
    """Flip a bit in the stored sum of an object's first block."""
    key = fid.to_bytes(8, "big") + number.to_bytes(4, "big") + bytes(8)
    with lmdb.open(str(ost / "index"), max_dbs=3, map_size=1 << 30) as env:
        sums = env.open_db(b"sums")
        with env.begin(write=True, db=sums) as txn:
            value = bytearray(txn.get(key) or b"")
            assert len(value) <= PAGE_BYTES
            value[3] ^= 4
            txn.put(key, bytes(value))


def damage_record(ost: Path, fid: int, number: int) -> None:
    """Flip a bit in the index record of an object."""
    key = fid.to_bytes(8, "big") + number.to_bytes(4, "big")
    with lmdb.open(str(ost / "index"), max_dbs=3, map_size=1 << 30) as env:
        objects = env.open_db(b"objects")
        with env.begin(write=True, db=objects) as txn:
            value = bytearray(txn.get(key) or b"")
            value[3] ^= 4
            txn.put(key, bytes(value))


@pytest.mark.parametrize("damage", [damage_sums, damage_record])
async def test_a_flipped_bit_in_the_index_is_found_and_nothing_is_served(
    tmp_path: Path, damage: Callable[[Path, int, int], None]
) -> None:
    async with cluster(tmp_path) as world:
        vfs, fid = await settled_file(world)
        inode = world.mds.mds.journal.reading.need(fid)
        assert inode.layout is not None
        ost = inode.layout.osts[0]
        numbers = [int(oss.config.name.removeprefix("oss")) for oss in world.oss]
        for oss in world.oss:
            await oss.stop()
        world.oss.clear()
        damage(world.ost_directory(ost // 2, ost % 2), fid, 0)
        for number in numbers:
            await world.start_oss(number)
        (found,) = await scrub_all(world)
        assert (found.path, found.ost, found.repair) == (b"/f", ost, Repair.LEFT)
        assert found.damage.start == 0
        with pytest.raises(OSError, match=r".*") as raised:
            await read_file(vfs, ROOT, b"f")
        assert raised.value.errno in (errno.EBADMSG, errno.EIO)


async def test_a_damaged_copy_is_mended_from_the_good_one(tmp_path: Path) -> None:
    async with mirrored(tmp_path, stripe_count=1) as world:
        _, fid = await settled_file(world)
        for number, offset in ((0, 70_000), (1, 2 * MIB)):
            path = object_path(world, fid, number)
            flip(path, offset)
            found = await scrub_all(world)
            assert [one.damage.number for one in found] == [number]
            assert found[0].repair is not Repair.LEFT
            await all_good(world, fid)
            assert path.read_bytes() == CONTENTS
        report = await ask_scrub(world, ScrubOrder.STATUS)
        assert {one.repair for one in report.found} == {Repair.MENDED}


async def test_copies_that_are_sound_but_differ_are_made_equal(tmp_path: Path) -> None:
    """One copy has an older version of the file, with the right sums: a lost write."""
    async with mirrored(tmp_path, stripe_count=1) as world:
        _, fid = await settled_file(world)
        other = object_path(world, fid, 1)
        target = next(
            target for oss in world.oss for target in oss.targets if target.label.index == layout_of(world, fid).osts[1]
        )
        stored = await target.usable(fid, 1)
        assert stored is not None
        await target.durability.prepare(stored)
        assert stored.truncate_now(MIB, target.written_blocks, True) is None
        target.durability.changed(stored, 0)
        found = [one for piece in await verify_file(world, fid) for one in piece.found]
        assert [one.damage.number for one in found] == [1]
        assert "differs" in found[0].damage.problem
        await all_good(world, fid)
        assert other.read_bytes() == CONTENTS
        assert [one for piece in await verify_file(world, fid) for one in piece.found] == []


async def test_a_scrub_that_was_paused_or_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    async with cluster(tmp_path, stripe_count=1) as world:
        for number in range(12):
            await settled_file(world, b"f%d" % number, os.urandom(200_000))
        await ask_scrub(world, ScrubOrder.START, rate=100_000)  # 2 s for each object of an OST
        async with asyncio.timeout(60):
            while sum(s.objects for s in (await ask_scrub(world, ScrubOrder.STATUS)).osts) < 3:
                await asyncio.sleep(0.02)
        paused = await ask_scrub(world, ScrubOrder.PAUSE)
        before = {state.ost: state.objects for state in paused.osts if state.state == "paused"}
        assert before
        for number in (0, 1):
            await next(oss for oss in world.oss if oss.config.name == f"oss{number}").stop()
        world.oss.clear()
        for number in (0, 1):
            await world.start_oss(number)
        report = await ask_scrub(world, ScrubOrder.STATUS)
        assert {state.ost: state.objects for state in report.osts if state.state == "paused"} == before
        await ask_scrub(world, ScrubOrder.START, tuple(before), rate=400_000)
        await world.oss.pop(0).stop()  # while it runs
        await world.start_oss(0)
        async with asyncio.timeout(60):
            while any(s.state == "running" for s in (await ask_scrub(world, ScrubOrder.STATUS)).osts):
                await asyncio.sleep(0.05)
        report = await ask_scrub(world, ScrubOrder.STATUS)
        assert {state.state for state in report.osts} == {"done"}
        assert sum(state.objects for state in report.osts) == 12


async def test_writing_meanwhile_is_not_damage(tmp_path: Path) -> None:
    async with cluster(tmp_path, stripe_size=BLOCK) as world:
        vfs, fid = await settled_file(world)
        done = False

        async def scribble() -> int:
            count = 0
            while not done:
                await write_file(vfs, ROOT, b"g%d" % (count % 3), os.urandom(300_000), os.O_TRUNC)
                count += 1
            return count

        task = asyncio.create_task(scribble())
        try:
            for _ in range(3):
                assert await scrub_all(world) == []
                assert not [one for piece in await verify_file(world, fid) for one in piece.found]
        finally:
            done = True
        assert await task > 0
