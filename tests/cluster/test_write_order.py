"""A write that is on its way to an OST, and one over part of it that comes later: whatever is lost or restarted in
between, the later one is what remains, also once all that can be sent again has been sent again."""

import asyncio
import os
from pathlib import Path

import pytest

from nacrefs.common import faults
from nacrefs.common.answer import is_later, settle
from tests.client.world import World, close, cluster, open_file, quiet, read_file, write_file

OLD = b"o" * 100_000
FIRST = b"f" * 90_000
LATER = b"l" * 120
LATEST = b"t" * 60

POINTS = ["rpc.request.send", "rpc.request.receive", "rpc.reply.send", "rpc.reply.receive"]


async def restart_osses(world: World) -> None:
    """Stop all OSSes and start them again."""
    for oss in world.oss:
        await oss.stop()
    world.oss.clear()
    for number in range(2):
        await world.start_oss(number)


@pytest.mark.parametrize("restarted", [False, True], ids=["connection lost", "OSS restarted"])
@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("point", POINTS)
async def test_later_write_stays_on_top(point: str, times: int, restarted: bool, tmp_path: Path) -> None:
    async with cluster(tmp_path) as world:
        vfs, other = await world.vfs(), await world.vfs()
        fid = await write_file(vfs, vfs.root, b"f", OLD)
        await quiet(vfs)
        number = await open_file(vfs, fid, os.O_RDWR)
        expected = bytearray(OLD)
        restarts: list[asyncio.Task[None]] = []

        def write(offset: int, data: bytes) -> None:
            done = vfs.write(number, offset, memoryview(data))
            assert not is_later(done), "it waits for something: this shows nothing"
            expected[offset : offset + len(data)] = data

        passes = iter(range(times))

        def lose() -> faults.Outcome:
            """The message is lost, and in that moment there is a later write."""
            write(20_000, LATER)
            write(20_030 + next(passes), LATEST)
            if restarted and not restarts:
                restarts.append(asyncio.create_task(restart_osses(world)))
            return faults.DROP

        write(100, FIRST)
        with faults.armed(point, lose, match="Write", times=times) as fault:
            await settle(vfs.fsync(number, False))
            await asyncio.gather(*restarts)
            await close(vfs, number)
            await quiet(vfs)
        assert fault.fired == times
        assert await read_file(other, other.root, b"f") == expected
