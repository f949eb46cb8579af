"""A file that comes back while it is read: first bytes after first parts, and nobody is asked more than is needed."""

import asyncio
import os
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from msgspec.structs import replace

from nacrefs.client.vfs import Vfs
from nacrefs.common.wire import ArchiveSpec, HsmFlag
from nacrefs.mds.hsm.steps import PART_BYTES
from tests.client.world import close, open_file, read, write_file
from tests.cluster.tier import ROOT, Proxy, Tier, add_archive, tier_on
from tests.s3 import S3Server

PARTS = 4
SIZE = (PARTS - 1) * PART_BYTES + 12345
MIB = 1 << 20


@pytest.fixture
async def tier(s3: S3Server, s3_archive: ArchiveSpec, tmp_path: Path, mdt_url: str | None) -> AsyncGenerator[Tier]:
    async with Proxy(s3.endpoint) as proxy, tier_on(tmp_path / "c", mdt_url) as made:
        made.proxy = proxy
        await add_archive(made, replace(s3_archive, endpoint=proxy.url))
        yield made


async def released(tier: Tier) -> tuple[Vfs, int, bytes]:
    """A file in the archive only, and a client who has nothing of it."""
    data = os.urandom(SIZE)
    fid = await write_file(await tier.vfs(), ROOT, b"file", data)
    await tier.archived(fid)
    assert tier.objects() == []
    return await tier.vfs(), fid, data


def asked(tier: Tier) -> int:
    """How often the MDS was asked for bytes of a released file."""
    tally = tier.mds.meter.tallies.get("Restore")
    return 0 if tally is None else tally.count


async def test_the_first_bytes_come_before_later_parts_do(tier: Tier) -> None:
    vfs, fid, data = await released(tier)
    tier.proxy.hold("GET", PART_BYTES)
    handle = await open_file(vfs, fid)
    async with asyncio.timeout(50):
        assert await read(vfs, handle, 0, 4096) == data[:4096]
        assert await read(vfs, handle, 3 * MIB, MIB) == data[3 * MIB : 4 * MIB]
        await tier.proxy.held.wait()  # a later part was asked for, and is still held back
        state = await tier.state(fid)
        assert state.flags & HsmFlag.RELEASED
        assert state.done == PART_BYTES
        later = asyncio.ensure_future(read(vfs, handle, SIZE - 100, 100))
        await asyncio.sleep(0.05)
        assert not later.done()
        tier.proxy.let_go()
        assert await later == data[-100:]
    await close(vfs, handle)
    assert not (await tier.over(fid)).flags & HsmFlag.RELEASED


async def test_who_reads_on_asks_the_mds_once_for_a_part(tier: Tier) -> None:
    vfs, fid, data = await released(tier)
    handle = await open_file(vfs, fid)
    async with asyncio.timeout(50):
        assert await read(vfs, handle, 0, 4096) == data[:4096]
        await tier.over(fid)
        before = asked(tier)
        for at in range(0, SIZE, 256 << 10):
            assert await read(vfs, handle, at, 256 << 10) == data[at : at + (256 << 10)]
    assert asked(tier) - before <= PARTS
    await close(vfs, handle)


@pytest.mark.both_engines
async def test_what_was_back_is_asked_for_again_when_the_lease_is_gone(tier: Tier) -> None:
    vfs, fid, data = await released(tier)
    tier.proxy.hold("GET", PART_BYTES)
    handle = await open_file(vfs, fid)
    async with asyncio.timeout(50):
        assert await read(vfs, handle, 0, 4096) == data[:4096]
        before = asked(tier)
        vfs.session.cache.inode(fid).epoch += 1
        assert await read(vfs, handle, 5 * MIB, 4096) == data[5 * MIB : 5 * MIB + 4096]
        assert asked(tier) > before
        tier.proxy.let_go()
        await tier.over(fid)
    await close(vfs, handle)
