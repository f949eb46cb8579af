"""What objects say of their times is never taken for a change of the file that the MDS has not heard of."""

import asyncio
import os
from pathlib import Path

from nacrefs.client.data.writebehind import land, press
from nacrefs.client.filesystem import Changes
from nacrefs.client.vfs import Vfs
from nacrefs.common.answer import settle
from nacrefs.common.wire import ArchiveSpec, Attr, Glimpse, HsmFlag, ObjectId, Set
from tests.client.world import World, close, cluster, contents, open_file, quiet, read_file, write_file
from tests.cluster import test_mirrors as mirrors
from tests.cluster.tier import ROOT, add_archive, attr, tier_on

DATA = b"a" * 300_000
PAST_NS, TO_COME_NS = 10**18, 4 * 10**18


async def looked_at(world: World, fid: int) -> Attr:
    """The file as the MDS shows it once it had to ask the OSTs, as after a restart that some writer did not outlive."""
    leases = world.mds.mds.leases
    leases.settled.clear()
    leases.doubtful = fid + 1
    vfs = await world.vfs()
    found: Attr = await attr(vfs, fid)
    assert fid in leases.settled, "the OSTs were not asked: this shows nothing"
    return found


async def set_mtime(vfs: Vfs, fid: int, mtime_ns: int) -> None:
    await settle(vfs.setattr(fid, Changes(Set.MTIME, mtime_ns=mtime_ns)))


async def test_a_time_to_come_that_was_set_and_taken_back_does_not_return(tmp_path: Path) -> None:
    async with cluster(tmp_path) as world:
        vfs = await world.vfs()
        fid = await write_file(vfs, ROOT, b"f", DATA)
        await quiet(vfs)
        number = await open_file(vfs, fid, os.O_RDWR)
        file = vfs.handles.get(number).file
        await settle(vfs.write(number, 0, memoryview(b"b" * 100_000)))
        assert file.pending.extents
        await set_mtime(vfs, fid, TO_COME_NS)
        press(file)
        await land(file)
        await set_mtime(vfs, fid, PAST_NS)
        await close(vfs, number)
        await quiet(vfs)
        before = await attr(vfs, fid)
        assert before.mtime_ns == PAST_NS
        after = await looked_at(world, fid)
        assert (after.mtime_ns, after.ctime_ns) == (PAST_NS, before.ctime_ns)


async def test_contents_that_leave_the_mdt_for_another_writer_leave_the_times(tmp_path: Path) -> None:
    async with cluster(tmp_path) as world:
        one, two = await world.vfs(), await world.vfs()
        fid = await write_file(one, ROOT, b"f", b"small")
        await set_mtime(one, fid, PAST_NS)
        before = await attr(one, fid)
        first = await open_file(one, fid, os.O_RDWR)
        second = await open_file(two, fid, os.O_RDWR)
        for vfs in (one, two):
            now = await attr(vfs, fid)
            assert (now.mtime_ns, now.ctime_ns) == (PAST_NS, before.ctime_ns)
        await close(one, first)
        await close(two, second)
        await quiet(one)
        after = await looked_at(world, fid)
        assert (after.mtime_ns, after.ctime_ns) == (PAST_NS, before.ctime_ns)
        assert await contents(two, fid) == b"small"


async def test_a_file_that_came_back_from_an_archive_has_not_changed(tmp_path: Path) -> None:
    (tmp_path / "archive").mkdir()
    async with tier_on(tmp_path / "c") as world:
        vfs = await add_archive(world, ArchiveSpec(0, "cold", "dir", f"file://{tmp_path}/archive"))
        fid = await write_file(vfs, ROOT, b"f", DATA)
        await quiet(vfs)
        before = await attr(vfs, fid)
        await world.archived(fid)
        assert await read_file(vfs, ROOT, b"f") == DATA
        await world.over(fid)
        after = await looked_at(world, fid)
        assert (after.mtime_ns, after.ctime_ns) == (before.mtime_ns, before.ctime_ns)
        assert (await world.state(fid)).flags == HsmFlag.EXISTS | HsmFlag.ARCHIVED


async def test_a_copy_that_was_made_equal_is_not_newer_than_the_file(tmp_path: Path) -> None:
    async with mirrors.cluster(tmp_path) as world:
        vfs = await world.vfs()
        fid = await mirrors.write_file(vfs, ROOT, b"f", DATA)
        await mirrors.stop_oss(world, 1)
        number = await open_file(vfs, fid, os.O_RDWR)
        await mirrors.write_at(vfs, number, 0, b"b" * len(DATA))
        await close(vfs, number)
        await quiet(vfs)
        assert mirrors.layout_of(world, fid).states, "both copies are good: this shows nothing"
        await (await world.start_oss(1)).registered.wait()
        await mirrors.all_good(world, fid)
        changed_ns = (await attr(vfs, fid)).ctime_ns
        layout, targets = mirrors.layout_of(world, fid), world.mds.mds.targets
        calls = [targets.ask(ost, Glimpse((ObjectId(ost, fid, number),))) for number, ost in enumerate(layout.osts)]
        stats = [reply.stats[0] for reply in await asyncio.gather(*calls)]
        assert len({stat.size for stat in stats}) == layout.stripe_count
        assert all(0 < stat.mtime_ns <= changed_ns for stat in stats)
