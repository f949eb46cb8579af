"""Reading a file is a use of it, looking at it is not; who reads says so with the next keepalive."""

import os
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from nacrefs.client.filesystem import Changes
from nacrefs.client.vfs import Vfs
from nacrefs.common.answer import settle
from nacrefs.common.wire import Set
from nacrefs.mds.config import LayoutConfig
from tests.client.world import Counting, World, close, open_file, read, read_file, write_file

ROOT = 1
LONG_AGO_NS = 10**18


@pytest.fixture
async def world(tmp_path: Path) -> AsyncGenerator[World]:
    async with World(tmp_path, layout=LayoutConfig()) as made:
        yield made


async def old_file(vfs: Vfs, name: bytes, data: bytes) -> int:
    fid = await write_file(vfs, ROOT, name, data)
    await vfs.session.keepalive()
    changes = Changes(Set.ATIME | Set.MTIME, atime_ns=LONG_AGO_NS, mtime_ns=LONG_AGO_NS)
    await settle(vfs.setattr(fid, changes))
    return fid


async def atime(world: World, fid: int) -> int:
    """As the MDS knows it, when all that was reported has been noted."""
    await world.mds.mds.uses.settled()
    inode: Any = world.mds.mds.journal.reading.inode(fid)
    return int(inode.attr.atime_ns)


@pytest.mark.parametrize("size", [100, 300_000])
async def test_reading_is_a_use(world: World, size: int) -> None:
    one, two = await world.vfs(), await world.vfs()
    fid = await old_file(one, b"file", os.urandom(size))
    assert await atime(world, fid) == LONG_AGO_NS
    await read_file(two, ROOT, b"file")
    await two.session.keepalive()
    assert await atime(world, fid) > LONG_AGO_NS
    seen: Any = await settle((await world.vfs()).getattr(fid))
    assert seen.attr.atime_ns > seen.attr.mtime_ns == LONG_AGO_NS


async def test_looking_is_not_a_use(world: World) -> None:
    one, two = await world.vfs(), await world.vfs()
    fid = await old_file(one, b"file", b"data")
    await settle(two.lookup(ROOT, b"file"))
    await settle(two.getattr(fid))
    handle = await open_file(one, fid, os.O_WRONLY)
    await close(one, handle)
    for vfs in (one, two):
        await vfs.session.keepalive()
    assert await atime(world, fid) == LONG_AGO_NS


async def test_uses_cost_no_request_and_none_is_lost_when_a_client_goes(world: World) -> None:
    one, two = await world.vfs(), await world.vfs()
    fid = await old_file(one, b"file", os.urandom(300_000))
    handle = await open_file(two, fid)
    count = Counting(two)
    await read(two, handle)
    assert set(count()) == {"Read"}
    await close(two, handle)
    world.clients.remove(two)
    await two.close()
    assert await atime(world, fid) > LONG_AGO_NS


async def test_a_use_is_noted_once_in_a_while(world: World) -> None:
    one, two = await world.vfs(), await world.vfs()
    fid = await old_file(one, b"file", b"data")
    await read_file(two, ROOT, b"file")
    await two.session.keepalive()
    first = await atime(world, fid)
    batches = world.mds.mds.journal.batches
    await read_file(two, ROOT, b"file")
    await two.session.keepalive()
    assert await atime(world, fid) == first
    assert world.mds.mds.journal.batches == batches


async def test_a_writer_does_not_take_the_access_time_back(world: World) -> None:
    one, two = await world.vfs(), await world.vfs()
    fid = await old_file(one, b"file", b"data")
    await read_file(two, ROOT, b"file")
    await two.session.keepalive()
    noted = await atime(world, fid)
    handle = await open_file(one, fid, os.O_WRONLY)
    await settle(one.write(handle, 0, memoryview(b"more")))
    await close(one, handle)
    seen: Any = await settle(two.getattr(fid))
    assert seen.attr.atime_ns >= noted
