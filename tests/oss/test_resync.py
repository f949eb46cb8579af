"""`SyncObject`: a copy is made equal to another, also if the OSS is killed meanwhile, and unless it is destroyed."""

import asyncio
import errno
import math
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from nacrefs.common import faults
from nacrefs.common.checksum import block_sums
from nacrefs.common.wire import Destroy, Floor, ObjectId, RaiseFloors, Read, Right, Synced, SyncObject, Write
from tests.oss.local import FID, LocalCall, LocalOss, crash_copy, local_oss

GOOD = bytes(range(256)) * 1000
OLD = b"old" * 100_000
GENERATION = 1
TRACK = RaiseFloors((Floor(0, FID, 0, GENERATION),), track=True)


@asynccontextmanager
async def good_copy(root: Path) -> AsyncGenerator[LocalOss]:
    """OST 1, which has the copy that is good."""
    async with local_oss(root, index=1) as oss:
        oss.gate.trust.heard(math.inf, 0)
        write = Write(1, FID, 1, 0, oss.capability(), ((0, len(GOOD)),), block_sums(memoryview(GOOD), 0))
        await oss.ask(write, LocalCall(oss.peer, GOOD))
        yield oss


def sync(oss: LocalOss) -> SyncObject:
    capability = oss.capability(generation=GENERATION, session=0, rights=Right.READ)
    return SyncObject(0, FID, 0, GENERATION, "1", 1, 1, capability, 0)


async def contents(oss: LocalOss) -> bytes:
    call = LocalCall(oss.peer)
    await oss.ask(Read(0, FID, 0, GENERATION, oss.capability(generation=GENERATION), ((0, 1 << 20),)), call)
    return call.received()


async def made_equal(oss: LocalOss) -> Synced:
    await oss.order(TRACK)
    synced: Synced = await oss.order(sync(oss))
    assert synced.offset == -1
    assert await contents(oss) == GOOD
    return synced


@pytest.mark.parametrize("point", ["oss.change.before", "oss.change.after", "oss.index.before", "oss.index.after"])
async def test_resync_that_a_kill_interrupts_begins_anew_and_makes_the_copy_equal(point: str, tmp_path: Path) -> None:
    left = tmp_path / "left"
    async with good_copy(tmp_path / "1") as good:
        async with local_oss(tmp_path / "0") as oss:
            oss.others[1] = good
            await oss.write((0, OLD))
            await oss.sync()

            def leave() -> None:
                crash_copy(tmp_path / "0", left)

            with faults.armed(point, leave):
                assert (await made_equal(oss)).copied_bytes
        async with local_oss(left, fresh=False) as oss:
            oss.others[1] = good
            with pytest.raises(OSError, match="has begun") as error:
                await oss.order(sync(oss))  # what was changed meanwhile is not known any more
            assert error.value.errno == errno.ESTALE
            await made_equal(oss)


async def test_resync_whose_answer_was_lost_finds_the_copy_equal(tmp_path: Path) -> None:
    async with good_copy(tmp_path / "1") as good, local_oss(tmp_path / "0") as oss:
        oss.others[1] = good
        await oss.write((0, OLD))
        await made_equal(oss)
        with pytest.raises(OSError, match="has begun") as error:
            await oss.order(sync(oss))
        assert error.value.errno == errno.ESTALE
        assert not (await made_equal(oss)).copied_bytes


@pytest.mark.parametrize("answers", [1, 2], ids=["sums are on their way", "bytes are on their way"])
@pytest.mark.parametrize("there", [True, False])
async def test_copy_that_is_destroyed_while_it_is_made_equal_does_not_come_back(
    there: bool, answers: int, tmp_path: Path
) -> None:
    async with good_copy(tmp_path / "1") as good, local_oss(tmp_path / "0") as oss:
        oss.others[1] = good
        if there:
            await oss.write((0, OLD))
        await oss.order(TRACK)
        good.held, good.free = asyncio.Event(), answers - 1
        syncing = asyncio.ensure_future(oss.order(sync(oss)))
        while good.answers < answers:
            await asyncio.sleep(0.001)
        await oss.order(Destroy((ObjectId(0, FID, 0),)))
        good.held.set()
        with pytest.raises(OSError, match="destroyed") as error:
            await syncing
        assert error.value.errno == errno.ESTALE
        assert oss.target.find(FID, 0) is None
