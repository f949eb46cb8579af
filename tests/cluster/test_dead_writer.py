"""A client dies together with the MDS: what it wrote, and nobody remembers, does not reappear where zeros should be."""

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from nacrefs.client.data.writebehind import land, press
from nacrefs.client.filesystem import Changes
from nacrefs.client.vfs import Vfs
from nacrefs.common.answer import settle
from nacrefs.common.wire import Set
from nacrefs.mds.check import check
from nacrefs.mds.fsck.job import fsck
from tests.client.world import Counting, World, close, cluster, entries, open_file, quiet, read, write_file
from tests.harness.clock import SettableClock

HELD = b"a" * 100_000
WRITTEN = b"b" * 300_000


@asynccontextmanager
async def dead_writer(directory: Path, data: bytes, others: int = 0) -> AsyncGenerator[tuple[World, Vfs, int]]:
    """A world after both have died, another client, and the file: it had `data`, `WRITTEN` was added, and that has
    reached the OSTs but not the MDT. Beside it there are so many `others`."""
    clock = SettableClock()
    async with cluster(directory, clock=clock) as world:
        writer = await world.vfs()
        fid = await write_file(writer, writer.root, b"f", data)
        for number in range(others):
            await write_file(writer, writer.root, b"o%d" % number, HELD)
        await quiet(writer)
        number = await open_file(writer, fid, os.O_RDWR)
        await settle(writer.write(number, len(data), memoryview(WRITTEN)))
        file = writer.handles.get(number).file
        press(file)
        await land(file)
        assert file.dirty
        await world.mds.stop()
        await writer.session.close()
        world.clients.remove(writer)
        await world.start_mds()
        mds = world.mds.mds
        clock.ahead_s += mds.sessions.term_s
        mds.tick()
        async with asyncio.timeout(30):
            while mds.grace.running or not all(ost.up for ost in mds.targets.table()):
                await asyncio.sleep(0.02)
        other = await world.vfs()
        yield world, other, fid
        await other.close()
        world.clients.remove(other)
        async with asyncio.timeout(30):
            while world.mds.mds.mdt.intents:
                await asyncio.sleep(0.02)
        assert check(world.mds.mds.mdt.store) == []


async def contents(vfs: Vfs, fid: int) -> bytes:
    number = await open_file(vfs, fid)
    try:
        return await read(vfs, number)
    finally:
        await close(vfs, number)


@pytest.mark.parametrize("size", [1000, 100_000, 250_000, 600_000])
async def test_file_that_is_cut_or_lengthened_has_what_was_written_or_zeros(tmp_path: Path, size: int) -> None:
    async with dead_writer(tmp_path, HELD) as (_, vfs, fid):
        await settle(vfs.setattr(fid, Changes(Set.SIZE, size=size)))
        assert await contents(vfs, fid) == (HELD + WRITTEN)[:size].ljust(size, b"\0")
        await settle(vfs.setattr(fid, Changes(Set.SIZE, size=700_000)))
        assert await contents(vfs, fid) == (HELD + WRITTEN)[:size].ljust(700_000, b"\0")


async def test_file_that_is_written_far_behind_its_end_has_what_was_written_before_that(
    tmp_path: Path,
) -> None:
    async with dead_writer(tmp_path, HELD) as (_, vfs, fid):
        number = await open_file(vfs, fid, os.O_RDWR)
        await settle(vfs.write(number, 500_000, memoryview(b"c" * 1000)))
        await close(vfs, number)
        await quiet(vfs)
        assert await contents(vfs, fid) == (HELD + WRITTEN).ljust(500_000, b"\0") + b"c" * 1000


@pytest.mark.parametrize("held", [b"", b"small"])
async def test_file_whose_contents_are_in_the_mdt_gets_none_of_it(tmp_path: Path, held: bytes) -> None:
    async with dead_writer(tmp_path, held) as (_, vfs, fid):
        assert await contents(vfs, fid) == held
        number = await open_file(vfs, fid, os.O_RDWR)
        await settle(vfs.write(number, 0, memoryview(b"c" * 30_000)))
        await settle(vfs.write(number, 250_000, memoryview(b"d")))
        await close(vfs, number)
        await quiet(vfs)
        await settle(vfs.setattr(fid, Changes(Set.SIZE, size=400_000)))
        wanted = b"c" * 30_000 + bytes(220_000) + b"d"
        assert await contents(vfs, fid) == wanted.ljust(400_000, b"\0")


@pytest.mark.parametrize("looked_at", [True, False])
async def test_nothing_is_left_of_it_when_it_is_removed(tmp_path: Path, looked_at: bool) -> None:
    async with dead_writer(tmp_path, b"small") as (world, vfs, fid):
        if looked_at:
            assert await contents(vfs, fid) == b"small"
        await settle(vfs.unlink(vfs.root, b"f"))
        await nothing_left(world)


@pytest.mark.parametrize("by_itself", [True, False])
@pytest.mark.parametrize("is_open", [True, False])
async def test_nothing_is_left_of_a_small_file_that_grows_while_it_is_removed(
    tmp_path: Path, by_itself: bool, is_open: bool
) -> None:
    async with cluster(tmp_path) as world:
        writer, other = await world.vfs(), await world.vfs()
        fid = await write_file(writer, writer.root, b"f", b"small")
        await quiet(writer)
        await settle(other.lookup(other.root, b"f"))
        number = await open_file(writer, fid, os.O_RDWR)
        await settle(writer.write(number, 5, memoryview(WRITTEN)))
        file = writer.handles.get(number).file
        press(file)
        await land(file)
        assert file.dirty
        if not is_open:
            await settle(writer.release(number))
        remover = writer if by_itself else other
        await settle(remover.unlink(remover.root, b"f"))
        if is_open:
            assert (await read(writer, number)).startswith(b"small" + WRITTEN[:1000])
            await close(writer, number)
        await quiet(writer)
        await nothing_left(world)


async def nothing_left(world: World) -> None:
    """Wait until the reaper has done its work; then no object is left that belongs to no file."""
    mds = world.mds.mds
    async with asyncio.timeout(30):
        while mds.mdt.intents or mds.mdt.store.fetchall("SELECT fid FROM destroy"):
            await asyncio.sleep(0.02)
    assert await fsck(mds) == []


async def test_each_file_is_looked_at_once_and_new_ones_never(tmp_path: Path) -> None:
    async with dead_writer(tmp_path, HELD) as (world, vfs, fid):
        leases = world.mds.mds.leases
        assert leases.doubtful > fid
        new = await write_file(vfs, vfs.root, b"new", HELD)
        await settle(vfs.setattr(new, Changes(Set.MODE, mode=0o600)))
        assert new >= leases.doubtful
        for mode in (0o600, 0o640):
            await settle(vfs.setattr(fid, Changes(Set.MODE, mode=mode)))
            assert fid in leases.settled
        assert new not in leases.settled


async def test_what_somebody_has_seen_of_it_does_not_change_by_itself(tmp_path: Path) -> None:
    """Whoever looks first, in whatever way, is told what whoever changes it later finds."""
    async with dead_writer(tmp_path, HELD) as (world, vfs, fid):
        leases = world.mds.mds.leases
        assert fid not in leases.settled
        (listed,) = await entries(vfs, vfs.root)
        assert listed.attr.size == len(HELD + WRITTEN)
        found = await settle(vfs.lookup(vfs.root, b"f"))
        assert found.attr is not None
        assert found.attr.size == len(HELD + WRITTEN)
        assert await contents(vfs, fid) == HELD + WRITTEN
        number = await open_file(vfs, fid, os.O_RDWR)
        assert await read(vfs, number) == HELD + WRITTEN
        await close(vfs, number)
        assert fid in leases.settled
        assert vfs.root not in leases.settled, "a directory has no objects"


async def test_a_listing_asks_each_ost_once_about_all_its_files_and_brings_leases_on_them(tmp_path: Path) -> None:
    async with dead_writer(tmp_path, HELD, others=20) as (world, vfs, fid):
        before = glimpses(world)
        listed = await entries(vfs, vfs.root)
        assert len(listed) == 21
        assert 0 < glimpses(world) - before <= 4, "there are four OSTs"
        sent = Counting(vfs)
        for entry in listed:
            found = await settle(vfs.lookup(vfs.root, entry.name))
            assert found.attr is not None
            assert found.attr.size == len(HELD + WRITTEN if entry.name == b"f" else HELD)
        assert not sent()
        assert await contents(vfs, fid) == HELD + WRITTEN


async def test_a_listing_does_not_wait_for_an_ost_that_is_away(tmp_path: Path) -> None:
    async with dead_writer(tmp_path, HELD, others=8) as (world, vfs, _):
        await world.oss.pop().stop()
        listed = await entries(vfs, vfs.root)
        leases, session = world.mds.mds.leases, vfs.session.number
        held = [entry for entry in listed if leases.held(entry.attr.fid, session)]
        assert len(listed) == 9
        assert len(held) < 9, "what nobody knows may not be kept"
        await (await world.start_oss(1)).registered.wait()


def glimpses(world: World) -> int:
    """How often OSTs were asked how long objects are."""
    return sum(oss.meter.tallies["Glimpse"].count for oss in world.oss if "Glimpse" in oss.meter.tallies)


async def test_a_look_at_it_does_not_wait_forever_for_an_ost_that_stays_away(tmp_path: Path) -> None:
    async with dead_writer(tmp_path, HELD) as (world, vfs, fid):
        mds = world.mds.mds
        mds.leases.doubtful = 0
        mds.leases.unasked[fid] = 0.0  # the time in which it may come back is over
        for oss in world.oss:
            await oss.stop()
        world.oss.clear()
        found = await settle(vfs.lookup(vfs.root, b"f"))
        assert found.attr is not None
        assert found.attr.size == len(HELD)
        assert not mds.leases.held(fid, vfs.session.number), "nobody may rely on it"
        for number in (0, 1):
            await (await world.start_oss(number)).registered.wait()
        assert await contents(vfs, fid) == HELD + WRITTEN
        assert fid not in mds.leases.unasked
