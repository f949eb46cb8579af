"""Writers under a quota: EDQUOT at write or close, nothing lost, and how far a limit is overrun."""

import asyncio
import errno
import os
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

import pytest

from nacrefs.client.filesystem import Changes, Cred
from nacrefs.client.vfs import Vfs
from nacrefs.common.answer import settle
from nacrefs.common.wire import GetQuota, QuotaInfo, QuotaKind, QuotaLimits, Set, SetQuota
from tests.client.world import World, close, cluster, names, open_file, quiet, read_file

KIB, MIB = 1024, 1 << 20
OVERRUN = 64 * KIB
"""What docs/operations.md promises, for each client."""
USER, GROUP = 1234, 4321
CRED = Cred(USER, GROUP, 1)
ROUNDING = 8 * KIB
"""What a local file system may take for an object beside its bytes."""


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with cluster(tmp_path) as running:
        yield running


async def limit(vfs: Vfs, **limits: int) -> QuotaInfo:
    return await vfs.session.mds.call(SetQuota(QuotaKind.USER, USER, QuotaLimits(**limits)))


async def used(vfs: Vfs) -> int:
    return (await vfs.session.mds.call(GetQuota(QuotaKind.USER, USER))).used_bytes


async def create(vfs: Vfs, name: bytes) -> int:
    _, handle = await settle(vfs.create(vfs.root, name, 0o644, os.O_RDWR | os.O_CREAT, CRED))
    return handle.number


async def filling(vfs: Vfs, number: int, start: int = 0, unit: int = 128 * KIB) -> AsyncGenerator[int]:
    """Write until it fails, which must be with EDQUOT; after each write, where the file ends."""
    end = start
    while True:
        try:
            end += await settle(vfs.write(number, end, memoryview(os.urandom(unit))))
        except OSError as error:
            assert error.errno == errno.EDQUOT, error
            return
        yield end


async def fill(vfs: Vfs, number: int, start: int = 0, unit: int = 128 * KIB) -> int:
    """Write until it fails; where the file ends."""
    return max([end async for end in filling(vfs, number, start, unit)], default=start)


async def in_step(*writers: AsyncGenerator[int]) -> list[int]:
    """Let them write at the same time; where each one's file ends. None is held up by more than one write of the
    others: what he may still write when they have reached the limit would be overrun."""
    ends = dict.fromkeys(writers, 0)
    going: list[AsyncGenerator[int]] = list(writers)
    while going:
        told: list[int | None] = await asyncio.gather(*(anext(one, None) for one in going))
        ends.update({one: end for one, end in zip(going, told, strict=True) if end is not None})
        going = [one for one, end in zip(going, told, strict=True) if end is not None]
    return list(ends.values())


async def test_a_large_file_ends_where_the_quota_does_and_goes_on_when_there_is_room(world: World) -> None:
    vfs = await world.vfs()
    await limit(vfs, hard_bytes=4 * MIB)
    number = await create(vfs, b"big")
    end = await fill(vfs, number)
    assert 4 * MIB - ROUNDING <= end <= 4 * MIB
    await settle(vfs.fsync(number, False))
    assert await used(vfs) <= 4 * MIB + ROUNDING
    assert await settle(vfs.write(number, 0, memoryview(b"over what is there"))) == 18
    await limit(vfs, hard_bytes=6 * MIB)
    assert await fill(vfs, number, end) >= 6 * MIB - 2 * ROUNDING
    await close(vfs, number)
    assert (await settle(vfs.lookup(vfs.root, b"big"))).attr.size >= 6 * MIB - 2 * ROUNDING  # type: ignore[union-attr]
    await settle(vfs.unlink(vfs.root, b"big"))
    number = await create(vfs, b"again")
    assert await settle(vfs.write(number, 0, memoryview(bytes(MIB)))) == MIB
    await close(vfs, number)


async def test_many_small_files_end_exactly(world: World) -> None:
    vfs = await world.vfs()
    await limit(vfs, hard_bytes=64 * KIB)
    made = 0
    while True:
        number = await create(vfs, b"%d" % made)
        written = await settle(vfs.write(number, 0, memoryview(os.urandom(5000))))
        await close(vfs, number)
        if written < 5000:
            break
        made += 1
    number = await create(vfs, b"more")
    assert await fill(vfs, number, unit=1) == 0
    await close(vfs, number)
    await quiet(vfs)
    assert made == 64 * KIB // 5120
    assert await used(vfs) == 64 * KIB
    for name in range(made):
        assert len(await read_file(vfs, vfs.root, b"%d" % name)) == 5000


@pytest.mark.parametrize("clients", [1, 4])
async def test_clients_together_overrun_a_limit_by_no_more_than_is_promised(world: World, clients: int) -> None:
    limits = 8 * MIB
    writers = [await world.vfs() for _ in range(clients)]
    await limit(writers[0], hard_bytes=limits)

    async def write(vfs: Vfs, which: int) -> AsyncGenerator[int]:
        for name in range(3):
            number = await create(vfs, b"%d-%d" % (which, name))
            async for end in filling(vfs, number, unit=200_000):
                yield end
            await close(vfs, number)

    await in_step(*(write(vfs, which) for which, vfs in enumerate(writers)))
    for vfs in writers:
        await quiet(vfs)
    total = await used(writers[0])
    assert limits - ROUNDING <= total <= limits + clients * OVERRUN + 3 * clients * 2 * ROUNDING


async def test_a_shared_file_is_limited_too(world: World) -> None:
    one, two = await world.vfs(), await world.vfs()
    await limit(one, hard_bytes=4 * MIB)
    first = await create(one, b"shared")
    await settle(one.write(first, 0, memoryview(bytes(100 * KIB))))
    fid = (await settle(two.lookup(two.root, b"shared"))).attr.fid  # type: ignore[union-attr]
    second = await open_file(two, fid, os.O_RDWR)
    ends = await in_step(filling(one, first, 100 * KIB, 16 * KIB), filling(two, second, 100 * MIB, 16 * KIB))
    written = ends[0] + ends[1] - 100 * MIB
    assert 4 * MIB - 4 * ROUNDING <= written <= 4 * MIB + 2 * OVERRUN + 4 * ROUNDING
    await close(one, first)
    await close(two, second)
    await world.mds.mds.journal.drain()
    assert await used(one) <= 4 * MIB + 2 * OVERRUN + 4 * ROUNDING


async def test_a_limit_that_is_set_while_somebody_writes_is_noticed_with_the_next_keepalive(world: World) -> None:
    vfs = await world.vfs()
    number = await create(vfs, b"f")
    await settle(vfs.write(number, 0, memoryview(bytes(MIB))))
    await limit(vfs, hard_bytes=2 * MIB)
    await vfs.session.keepalive()
    assert await fill(vfs, number, MIB) <= 2 * MIB
    await close(vfs, number)


async def test_close_says_that_a_small_file_has_no_room_and_keeps_its_contents_until_there_is(world: World) -> None:
    one, two = await world.vfs(), await world.vfs()
    await limit(one, hard_bytes=20 * KIB)
    first, second = await create(one, b"first"), await create(two, b"second")
    for vfs, number in ((one, first), (two, second)):
        assert await settle(vfs.write(number, 0, memoryview(bytes(12 * KIB)))) == 12 * KIB
    await close(one, first)
    with pytest.raises(OSError, check=lambda error: error.errno == errno.EDQUOT):
        await close(two, second)
    assert await used(one) == 12 * KIB
    await limit(one, hard_bytes=40 * KIB)
    await quiet(two)
    assert await used(one) == 24 * KIB
    assert await read_file(one, one.root, b"second") == bytes(12 * KIB)


async def test_what_nobody_limits_costs_no_request_more(world: World) -> None:
    vfs = await world.vfs()
    await vfs.session.mds.call(SetQuota(QuotaKind.USER, USER + 1, QuotaLimits(hard_bytes=1)))
    number = await create(vfs, b"f")
    before = vfs.meter.tallies["Commit"].count if "Commit" in vfs.meter.tallies else 0
    for at in range(64):
        await settle(vfs.write(number, at * 512 * KIB, memoryview(bytes(512 * KIB))))
    await close(vfs, number)
    await quiet(vfs)
    assert vfs.meter.tallies["Commit"].count == before + 1


async def test_st_blocks_of_a_striped_file_that_grows_in_turns_is_right(world: World) -> None:
    vfs = await world.vfs()
    number = await create(vfs, b"f")
    await settle(vfs.write(number, 0, memoryview(bytes(MIB))))
    await close(vfs, number)
    await quiet(vfs)
    fid = (await settle(vfs.lookup(vfs.root, b"f"))).attr.fid  # type: ignore[union-attr]
    for turn in range(1, 5):
        number = await open_file(vfs, fid, os.O_RDWR)
        await settle(vfs.write(number, MIB + turn * 128 * KIB, memoryview(bytes(128 * KIB))))
        await close(vfs, number)
        await quiet(vfs)
    layout = vfs.cache.inode(fid).layout
    assert layout is not None
    _, allocated, _ = await world.mds.mds.targets.glimpse(fid, layout)
    attr = (await settle(vfs.getattr(fid, None))).attr
    assert attr.blocks == allocated // 512
    number = await open_file(vfs, fid, os.O_RDWR)
    await settle(vfs.setattr(fid, Changes(Set.SIZE, size=200 * KIB), number))
    await settle(vfs.write(number, 200 * KIB, memoryview(bytes(128 * KIB))))
    await close(vfs, number)
    await quiet(vfs)
    _, allocated, _ = await world.mds.mds.targets.glimpse(fid, layout)
    assert abs((await settle(vfs.getattr(fid, None))).attr.blocks - allocated // 512) <= 2 * ROUNDING // 512
    assert await names(vfs, vfs.root) == [b"f"]
