"""Locks of the SDK's files, what they cost, and what the client remembers of them."""

import asyncio
import errno
import fcntl
import os
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest

from nacrefs.client.filesystem import LockWait
from nacrefs.client.sdk import AsyncClient
from nacrefs.common.lockranges import TO_EOF
from nacrefs.common.wire import LockKind, LockStyle
from tests.client.world import Counting, World, cluster, open_file, write_file

EX, SH, UN, NB = fcntl.LOCK_EX, fcntl.LOCK_SH, fcntl.LOCK_UN, fcntl.LOCK_NB


async def test_uncontended_lock_and_unlock_are_one_request_each_and_close_none(world: World) -> None:
    fs = await world.sdk()
    await fs.write_bytes("/f", b"x")
    file = await fs.open("/f", os.O_RDWR)
    sent = Counting(fs.vfs)
    await file.lockf(EX)
    assert sent() == {"SetLock": 1}
    await file.lockf(UN)
    assert sent() == {"SetLock": 1}
    await file.close()
    assert sent() == {}
    file = await fs.open("/f", os.O_RDWR)
    await file.lockf(EX, 10, 5)
    await file.lockf(SH, 10, 20)
    sent()
    await file.close()
    assert sent() == {"SetLock": 1}
    file = await fs.open("/f")
    await file.flock(SH)
    sent()
    await file.close()
    assert sent() == {"SetLock": 1}
    assert world.mds.mds.locking.table.held == 0


async def test_locks_of_two_clients_exclude_each_other(world: World) -> None:
    one, two = await world.sdk(), await world.sdk()
    await one.write_bytes("/f", b"0123456789")
    async with await one.open("/f", os.O_RDWR) as mine, await two.open("/f", os.O_RDWR) as other:
        await mine.lockf(EX, 4, 2)
        with pytest.raises(BlockingIOError):
            await other.lockf(SH | NB, 1, 5)
        await other.lockf(EX | NB, -2, 2)
        with pytest.raises(OSError, match="would begin before the file"):
            await other.lockf(EX, -3, 2)
        with pytest.raises(OSError, match="say one of LOCK_SH"):
            await other.lockf(NB)
        waiting = asyncio.create_task(other.lockf(EX))
        await asyncio.sleep(0)
        await mine.pwrite(b"new", 0)
        await mine.lockf(UN)
        await waiting
        assert await other.pread(4, 0) == b"new3"
        await mine.flock(EX)
        with pytest.raises(BlockingIOError):
            await other.flock(SH | NB)
    assert world.mds.mds.locking.table.held == 0


async def test_deadlock_of_two_clients_is_told(world: World) -> None:
    one, two = await world.sdk(), await world.sdk()
    await one.write_bytes("/f", b"")
    async with await one.open("/f", os.O_RDWR) as mine, await two.open("/f", os.O_RDWR) as other:
        await mine.lockf(EX, 1, 0)
        await other.lockf(EX, 1, 1)
        waiting = asyncio.create_task(mine.lockf(EX, 1, 1))
        while not world.mds.mds.locking.table.waiting:
            await asyncio.sleep(0)
        with pytest.raises(OSError, match="would never end") as caught:
            await other.lockf(EX, 1, 0)
        assert caught.value.errno == errno.EDEADLK
        await other.lockf(UN)
        await waiting


async def test_interrupted_wait_fails_and_leaves_nothing(world: World) -> None:
    one, two = await world.vfs(), await world.vfs()
    fid = await write_file(one, one.root, b"f", b"x")
    mine, other = await open_file(one, fid, os.O_RDWR), await open_file(two, fid, os.O_RDWR)
    await one.set_lock(mine, 1, LockStyle.POSIX, LockKind.WRITE, 0, TO_EOF, 1)
    for turns in (0, 1, 2, 5, 50):
        wait = LockWait()
        waiting = asyncio.create_task(two.set_lock(other, 1, LockStyle.POSIX, LockKind.WRITE, 0, TO_EOF, 1, wait))
        for _ in range(turns):
            await asyncio.sleep(0)
        wait.interrupt()
        with pytest.raises(InterruptedError):
            await waiting
        assert not world.mds.mds.locking.table.waiting
    await one.flush(mine, 1)  # type: ignore[misc]
    assert world.mds.mds.locking.table.held == 0


async def test_abandoned_wait_leaves_nothing_even_if_it_gets_its_lock(world: World) -> None:
    one, two = await world.vfs(), await world.vfs()
    fid = await write_file(one, one.root, b"f", b"x")
    mine, other = await open_file(one, fid, os.O_RDWR), await open_file(two, fid, os.O_RDWR)
    for turns in (1, 3, 10, 60):
        await one.set_lock(mine, 1, LockStyle.POSIX, LockKind.WRITE, 0, TO_EOF, 1)
        waiting = asyncio.create_task(two.set_lock(other, 1, LockStyle.POSIX, LockKind.WRITE, 0, TO_EOF, 1, LockWait()))
        for _ in range(turns):
            await asyncio.sleep(0)
        unlocking = asyncio.create_task(one.set_lock(mine, 1, LockStyle.POSIX, LockKind.UNLOCK, 0, TO_EOF, 1))
        await asyncio.sleep(0)
        waiting.cancel()
        await unlocking
        await asyncio.gather(waiting, return_exceptions=True)
        while two.session.background:
            await asyncio.wait(list(two.session.background))
        assert world.mds.mds.locking.table.held == 0
        assert not world.mds.mds.locking.table.waiting


async def test_locks_survive_a_restart_of_the_mds_and_end_with_the_session(world: World) -> None:
    one, two = await world.sdk(), await world.sdk()
    await one.write_bytes("/f", b"x")
    mine, other = await one.open("/f", os.O_RDWR), await two.open("/f", os.O_RDWR)
    await mine.lockf(EX, 10)
    await mine.flock(SH)
    await world.restart_mds()
    with pytest.raises(BlockingIOError):
        await other.lockf(SH | NB, 1, 9)
    await other.flock(SH | NB)
    assert world.mds.mds.locking.table.held == 3
    mds = world.mds.mds
    mds.evict(mds.sessions.by_id[one.vfs.session.number], "is evicted by the test", knows=True)
    await other.lockf(EX)
    await mine.close()
    assert world.mds.mds.locking.table.held == 2
    await other.close()


def evict(world: World, fs: AsyncClient) -> None:
    mds = world.mds.mds
    mds.evict(mds.sessions.by_id[fs.vfs.session.number], "is evicted by the test", knows=True)


async def refused(work: Awaitable[Any]) -> None:
    with pytest.raises(OSError, match="lost: unlock or close") as caught:
        await work
    assert caught.value.errno == errno.EIO


async def test_who_has_lost_a_lock_is_told_by_what_he_does_next_until_he_gives_it_up(world: World) -> None:
    one, two = await world.sdk(), await world.sdk()
    await one.write_bytes("/f", bytes(200_000))
    mine, other = await one.open("/f", os.O_RDWR), await two.open("/f", os.O_RDWR)
    bystander = await one.open("/f", os.O_RDWR)
    await mine.lockf(EX, 10, 5)
    await mine.lockf(EX, 10, 100)
    before = one.vfs.session.number
    evict(world, one)
    await other.lockf(EX)  # it is somebody else's by now
    async with asyncio.timeout(20):
        while one.vfs.session.number == before:
            await asyncio.sleep(0.01)
    await refused(mine.pread(10, 0))
    await refused(mine.pwrite(b"x", 0))
    await refused(mine.truncate(5))
    await refused(mine.allocate(0, 0, 10))
    await refused(mine.lockf(EX | NB, 1, 50))
    assert await bystander.pread(1, 0) == b"\0"
    await bystander.pwrite(b"b", 0)
    await mine.lockf(UN, 10, 5)
    await refused(mine.pread(10, 0))
    await mine.lockf(UN, 10, 100)
    assert await mine.pread(1, 0) == b"b"
    await mine.pwrite(b"m", 0)
    with pytest.raises(BlockingIOError):
        await mine.lockf(EX | NB, 10, 5)
    await other.close()
    await mine.lockf(EX | NB, 10, 5)
    for file in (mine, bystander):
        await file.close()
    assert world.mds.mds.locking.table.held == 0


async def lock_and_write(fs: AsyncClient) -> None:
    """A file that is opened anew is as good as new."""
    again = await fs.open("/f", os.O_RDWR)
    await again.flock(EX | NB)
    await again.pwrite(b"y", 0)
    await again.close()
    assert await fs.read_bytes("/f") == b"y"


async def test_flock_that_is_lost_is_forgiven_when_the_file_is_closed(world: World) -> None:
    fs = await world.sdk()
    await fs.write_bytes("/f", b"x")
    mine, other = await fs.open("/f", os.O_RDWR), await fs.open("/f")
    await mine.flock(EX)
    before = fs.vfs.session.number
    evict(world, fs)
    async with asyncio.timeout(20):
        while fs.vfs.session.number == before:
            await asyncio.sleep(0.01)
    await refused(mine.pread(1, 0))
    await mine.close()
    assert await other.pread(1, 0) == b"x"
    await other.close()
    await lock_and_write(fs)


async def test_file_that_is_opened_while_the_one_before_is_still_being_given_up_stays_usable(world: World) -> None:
    fs = await world.sdk()
    await fs.write_bytes("/f", b"x")
    mine, other = await fs.open("/f", os.O_RDWR), await fs.open("/f")
    await mine.flock(EX)
    before, mds, greeted = fs.vfs.session.number, fs.vfs.session.mds, asyncio.Event()
    greet = mds.greet
    assert greet is not None

    async def greet_slowly() -> None:  # requests wait, although the session has begun
        await greet()
        await greeted.wait()

    mds.greet = greet_slowly
    evict(world, fs)
    async with asyncio.timeout(20):
        while fs.vfs.session.number in (0, before):
            await asyncio.sleep(0.01)
        await refused(mine.pread(1, 0))
        await mine.close()
        reading = asyncio.create_task(other.pread(1, 0))
        await asyncio.sleep(0)
        greeted.set()
        assert await reading == b"x"
        await other.close()
        await lock_and_write(fs)


async def test_over_tcp_a_lock_orders_writes_of_two_clients(tmp_path: Path) -> None:
    async with cluster(tmp_path, scheme="tcp") as world:
        clients = [await world.sdk() for _ in range(3)]
        await clients[0].write_bytes("/counter", b"0")
        files = [await fs.open("/counter", os.O_RDWR) for fs in clients]

        async def count(number: int) -> None:
            for _ in range(30):
                await files[number].lockf(EX)
                value = int(await files[number].pread(20, 0))
                await files[number].pwrite(str(value + 1).encode(), 0)
                await files[number].lockf(UN)

        await asyncio.gather(*map(count, range(3)))
        assert await files[0].pread(20, 0) == b"90"
        for file in files:
            await file.close()
