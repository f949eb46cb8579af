"""An OSS that is away for longer than a client's term: everybody waits, and what was written is there afterwards."""

import asyncio
import os
from pathlib import Path

from nacrefs.common.answer import settle
from tests.client.world import close, cluster, open_file, quiet, read_file, write_file
from tests.harness.clock import SettableClock

OLD, NEW = b"o" * 300_000, b"n" * 300_000


async def test_data_that_waits_for_an_oss_is_not_lost_when_somebody_else_wants_the_file(tmp_path: Path) -> None:
    clock = SettableClock()
    async with cluster(tmp_path, clock=clock) as world:
        writer, reader = await world.vfs(), await world.vfs()
        fid = await write_file(writer, writer.root, b"f", OLD)
        await quiet(writer)
        number = await open_file(writer, fid, os.O_RDWR)
        servers, world.oss = world.oss, []
        for server in servers:
            await server.stop()
        await settle(writer.write(number, 0, memoryview(NEW)))
        session = writer.session.number
        reading = asyncio.ensure_future(read_file(reader, reader.root, b"f"))
        mds = world.mds.mds
        async with asyncio.timeout(20):
            while not mds.sessions.by_id[session].recalls:
                await asyncio.sleep(0.01)
        for _ in range(8):  # a quarter of a term each
            clock.ahead_s += mds.sessions.term_s / 4
            mds.tick()
            for vfs in (writer, reader):
                await vfs.session.keepalive()
        assert not reading.done()
        for oss in range(len(servers)):
            await world.start_oss(oss)
        async with asyncio.timeout(20):
            assert await reading == NEW
        assert writer.session.number == session, "the writer was evicted"
        await close(writer, number)
