"""Many requests at once on one object, with its bytes in and out of the page cache: sums always fit bytes."""

import asyncio
import os
import random
import resource
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nacrefs.common.answer import is_later, settle
from nacrefs.common.layout import BLOCK_BYTES
from nacrefs.common.wire import Read
from nacrefs.oss.object import State, StoredObject
from nacrefs.oss.target import Limits
from tests.oss.local import FID, LocalCall, LocalOss, local_oss

SIZE = 16 * BLOCK_BYTES + 777


@pytest.fixture
async def oss(tmp_path: Path) -> AsyncIterator[LocalOss]:
    async with local_oss(tmp_path / "ost") as oss:
        yield oss


def stored_object(oss: LocalOss, fid: int = FID) -> StoredObject:
    stored = oss.target.find(fid, 0)
    assert stored is not None
    return stored


async def make_cold(oss: LocalOss) -> None:
    """Take the object's bytes out of the page cache."""
    await oss.sync()
    os.posix_fadvise(stored_object(oss).fd, 0, 0, os.POSIX_FADV_DONTNEED)


async def test_cold_bytes_are_read_by_a_thread_and_then_at_once(oss: LocalOss) -> None:
    data = random.Random(1).randbytes(SIZE)
    await oss.write((0, data))
    await make_cold(oss)
    request = Read(0, FID, 0, 0, oss.capability(), ((100, SIZE),))
    for cold in (True, False):
        call = LocalCall(oss.peer)
        answer = oss.handlers[Read](request, call)
        assert is_later(answer) == cold
        assert (await settle(answer)).lengths == (SIZE - 100,)
        assert call.received() == data[100:]
    assert oss.pool.used_bytes == 0


async def test_what_is_changed_after_a_first_part_was_read_is_read_again(oss: LocalOss) -> None:
    """The rest is read in a later step of the event loop, and another request may come first."""
    data = bytearray(random.Random(1).randbytes(SIZE))
    await oss.write((0, bytes(data)))
    await oss.sync()
    os.posix_fadvise(stored_object(oss).fd, 4 * BLOCK_BYTES, 0, os.POSIX_FADV_DONTNEED)
    call = LocalCall(oss.peer)
    answer = oss.handlers[Read](Read(0, FID, 0, 0, oss.capability(), ((100, SIZE),)), call)
    assert is_later(answer)
    data[100:103] = b"new"
    await oss.write((100, b"new"))
    assert (await settle(answer)).lengths == (SIZE - 100,)
    assert call.received() == data[100:]
    assert oss.pool.used_bytes == 0


async def test_partial_write_of_a_cold_block(oss: LocalOss) -> None:
    await oss.write((0, b"a" * SIZE))
    await make_cold(oss)
    await oss.write((BLOCK_BYTES + 5, b"b" * 10))
    assert await oss.read((BLOCK_BYTES, 20)) == [b"a" * 5 + b"b" * 10 + b"a" * 5]


async def test_object_that_changes_while_a_thread_reads_it(oss: LocalOss) -> None:
    await oss.write((0, b"a" * SIZE))
    await make_cold(oss)
    reads = [asyncio.create_task(oss.read((0, SIZE))) for _ in range(4)]
    await asyncio.sleep(0)  # their threads are reading now, or have
    await oss.write((0, b"b" * SIZE))
    for read in reads:
        [data] = await read
        assert data in (b"a" * SIZE, b"b" * SIZE)


async def test_everything_at_once(oss: LocalOss) -> None:
    """Each writer fills its own block; blocks are whole, sums right, and at the end each has its writer's last word."""
    last: dict[int, bytes] = {}

    async def writer(block: int) -> None:
        source = random.Random(block)
        for step in range(12):
            data = bytes([block * 16 + step]) * BLOCK_BYTES
            cut = source.randrange(1, BLOCK_BYTES)
            start = block * BLOCK_BYTES
            if source.random() < 0.5:
                await oss.write((start, data))
            else:  # both parts are one request and one step
                await oss.write((start, data[:cut]), (start + cut, data[cut:]), sync=source.random() < 0.2)
            last[block] = data
            if source.random() < 0.2:
                os.posix_fadvise(stored_object(oss).fd, 0, 0, os.POSIX_FADV_DONTNEED)
            await asyncio.sleep(0)

    async def reader(seed: int) -> None:
        source = random.Random(seed)
        for _ in range(25):
            [data] = await oss.read((source.randrange(BLOCK_BYTES), 6 * BLOCK_BYTES))
            for start in range(0, len(data) - 2 * BLOCK_BYTES, BLOCK_BYTES):
                assert len(set(data[start : start + 2 * BLOCK_BYTES])) <= 3, "a torn block"

    async def syncer() -> None:
        for _ in range(10):
            await oss.sync()

    await oss.write((6 * BLOCK_BYTES, b"end"))
    await asyncio.gather(*map(writer, range(6)), *map(reader, range(3)), syncer())
    for block, data in last.items():
        assert await oss.read((block * BLOCK_BYTES, BLOCK_BYTES)) == [data]


async def test_write_that_the_file_system_refuses_half_way_leaves_right_sums(oss: LocalOss) -> None:
    await oss.write((0, b"a" * 900_000))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            await oss.write((800_000, b"b" * 400_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    [data] = await oss.read((0, 2_000_000))
    assert data[:800_000] == b"a" * 800_000
    assert set(data[900_000:]) <= {ord("b")}
    await oss.write((len(data), b"c"))
    assert await oss.read((len(data), 5)) == [b"c"]


async def test_objects_become_clean_by_themselves(tmp_path: Path) -> None:
    async with local_oss(tmp_path / "quick", Limits(0, 0, flush_s=0.05)) as oss:
        for fid in range(1, 60):
            await oss.write((0, b"x"), fid=fid)
        async with asyncio.timeout(10):
            while any(stored.state is not State.CLEAN for stored in oss.target.open_objects()):
                await asyncio.sleep(0.01)
        await oss.write((1, b"y"), fid=7)
        assert stored_object(oss, 7).state is State.DIRTY
