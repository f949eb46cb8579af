"""Soft mounts: whatever is asked of a server that is away or silent fails with EIO in bounded time; hard ones wait."""

import asyncio
import errno
import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from nacrefs.client.config import CacheConfig, ClientConfig, WriteConfig
from nacrefs.client.vfs import Vfs
from nacrefs.common.answer import settle
from nacrefs.common.config import Duration, Size
from nacrefs.common.wire import Role
from tests.client.world import CRED, World, cluster, open_file, quiet, read, read_file, write_file

PATIENCE_S = 1.0
BOUND_S = 10.0
"""Many times the patience; what takes longer hangs."""


async def soft(world: World, memory_bytes: int = 64 << 20) -> Vfs:
    """Another client, which is soft."""
    config = ClientConfig(
        mds=world.mds.url,
        patience_s=Duration(PATIENCE_S),
        cache=CacheConfig(memory_bytes=Size(memory_bytes)),
        write=WriteConfig(retry_s=0.05),
    )
    vfs = Vfs(config, world.keyring.credentials(Role.CLIENT))
    await vfs.attach()
    world.clients.append(vfs)
    return vfs


async def fails(work: Coroutine[Any, Any, Any]) -> None:
    """It fails with EIO, soon."""
    async with asyncio.timeout(BOUND_S):
        try:
            await work
        except OSError as error:
            assert error.errno == errno.EIO, error
            return
    raise AssertionError("it did not fail")


async def fill(vfs: Vfs, number: int) -> None:
    for at in range(0, 64 << 20, 1 << 20):
        await settle(vfs.write(number, at, memoryview(bytes(1 << 20))))


async def stored(vfs: Vfs) -> None:
    """Wait until the servers have all that was written behind."""
    async with asyncio.timeout(BOUND_S):
        while vfs.store.dirty:
            await asyncio.sleep(0.05)


async def stop_oss(world: World) -> int:
    """Stop all OSSes; how many there were."""
    servers, world.oss = world.oss, []
    for server in servers:
        await server.stop()
    return len(servers)


async def test_requests_to_an_mds_that_is_away_fail_and_work_again_when_it_is_back(world: World) -> None:
    patient, vfs = await world.vfs(), await soft(world)
    await world.mds.stop()
    waiting = asyncio.ensure_future(settle(patient.mkdir(patient.root, b"hard", 0o755, CRED)))
    await fails(settle(vfs.mkdir(vfs.root, b"soft", 0o755, CRED)))
    for _ in range(20):  # nobody waits again for one of whom it is known
        async with asyncio.timeout(0):
            await fails(settle(vfs.lookup(vfs.root, b"x")))
    assert not waiting.done()
    await world.start_mds()
    await waiting
    async with asyncio.timeout(BOUND_S):
        while True:
            try:
                await settle(vfs.mkdir(vfs.root, b"back", 0o755, CRED))
                break
            except OSError as error:
                assert error.errno == errno.EIO
                await asyncio.sleep(0.05)


async def test_reads_and_writes_to_an_oss_that_is_away_fail_and_what_was_written_is_not_lost(world: World) -> None:
    vfs = await soft(world)
    data = os.urandom(300_000)
    fid = await write_file(vfs, vfs.root, b"f", data)
    await quiet(vfs)
    number = await open_file(vfs, fid, os.O_RDWR)
    stopped = await stop_oss(world)
    await fails(read(vfs, number))
    new = os.urandom(200_000)
    assert await settle(vfs.write(number, 0, memoryview(new))) == len(new)  # behind the caller's back
    await fails(settle(vfs.fsync(number, False)))
    await fails(settle(vfs.write(number, 0, memoryview(new))))
    with pytest.raises(OSError, match="soft"):
        await settle(vfs.flush(number))
    for oss in range(stopped):
        await world.start_oss(oss)
    await stored(vfs)
    await settle(vfs.flush(number))
    await settle(vfs.release(number))
    assert await read_file(vfs, vfs.root, b"f") == new + data[len(new) :]


async def test_writer_whose_memory_is_full_does_not_wait_for_ever(world: World) -> None:
    vfs = await soft(world, memory_bytes=16 << 20)
    fid = await write_file(vfs, vfs.root, b"f", bytes(100_000))
    other = await write_file(vfs, vfs.root, b"g", bytes(100_000))
    await quiet(vfs)
    number, another = await open_file(vfs, fid, os.O_RDWR), await open_file(vfs, other, os.O_RDWR)
    stopped = await stop_oss(world)
    async with asyncio.timeout(BOUND_S):
        with pytest.raises(OSError, match=r"soft|memory"):
            await fill(vfs, number)
    await fails(settle(vfs.write(another, 0, memoryview(bytes(15 << 20)))))
    for oss in range(stopped):
        await world.start_oss(oss)
    await stored(vfs)


async def test_silent_server_is_given_up_although_its_connection_stands(tmp_path: Path) -> None:
    async with cluster(tmp_path, scheme="tcp") as world:
        vfs = await soft(world)
        data = bytes(300_000)
        fid = await write_file(vfs, vfs.root, b"f", data)
        await quiet(vfs)
        number = await open_file(vfs, fid)
        for server in world.oss:
            for peer in server.clients():
                assert peer.link is not None
                peer.link.pause()
        await fails(read(vfs, number))


async def test_closing_a_soft_client_whose_servers_are_gone_ends(world: World) -> None:
    vfs = await soft(world)
    fid = await write_file(vfs, vfs.root, b"f", bytes(300_000))
    number = await open_file(vfs, fid, os.O_RDWR)
    await settle(vfs.write(number, 0, memoryview(bytes(200_000))))
    await stop_oss(world)
    await world.mds.stop()
    world.clients.remove(vfs)
    await fails(vfs.close())
    await world.start_mds()
