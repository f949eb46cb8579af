"""Clocks that are wrong, or jump: leases count elapsed time, and capabilities expire by the MDS's time on every OST."""

import os
from pathlib import Path

from nacrefs.common.answer import settle
from tests.client.world import close, cluster, open_file, quiet, read_file, write_file
from tests.harness.clock import SettableClock

DAY_NS = 86_400 * 10**9
DATA, MORE = b"x" * 300_000, b"y" * 300_000


async def test_mds_whose_clock_is_years_behind_that_of_osts_and_clients(tmp_path: Path) -> None:
    clock = SettableClock()
    clock.ahead_ns = -7000 * DAY_NS
    async with cluster(tmp_path, clock=clock) as world:
        vfs = await world.vfs()
        await write_file(vfs, vfs.root, b"f", DATA)
        await quiet(vfs)
        assert await read_file(await world.vfs(), vfs.root, b"f") == DATA


async def test_mds_s_clock_jumps_while_files_are_open(tmp_path: Path) -> None:
    clock = SettableClock()
    async with cluster(tmp_path, clock=clock) as world:
        vfs = await world.vfs()
        fid = await write_file(vfs, vfs.root, b"f", DATA)
        number = await open_file(vfs, fid, os.O_RDWR)
        session = vfs.session.number
        for days in (3, -3, 400, -400):
            clock.ahead_ns = days * DAY_NS
            await settle(vfs.write(number, 0, memoryview(MORE)))
            await settle(vfs.fsync(number, False))
            world.mds.mds.tick()
            assert await read_file(await world.vfs(), vfs.root, b"f") == MORE
            await settle(vfs.write(number, 0, memoryview(DATA)))
        await world.restart_mds()
        await settle(vfs.fsync(number, False))
        assert vfs.session.number == session, "a jump of the clock is no silence"
        await close(vfs, number)
        assert await read_file(await world.vfs(), vfs.root, b"f") == DATA
