"""Leases that go: recalls with dirty data and with a kernel above, a full cache, errors behind a close, lost
sessions."""

import asyncio
import errno
import os
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

from nacrefs.client.cache import NONE, READ, Inode
from nacrefs.client.data.extents import Extent
from nacrefs.client.data.objects import Objects
from nacrefs.client.filesystem import Changes
from nacrefs.client.vfs import Vfs
from nacrefs.common.answer import is_later, settle
from nacrefs.common.clock import ManualClock
from nacrefs.common.wire import RenameFlag, Set, Written, XattrFlag
from tests.client.world import (
    CRED,
    Counting,
    World,
    close,
    open_file,
    quiet,
    read,
    read_file,
    write_file,
)


class Kernel:
    """A cache above a filesystem that notes what it was told, and forgets when it is let."""

    def __init__(self, locked: int = 0) -> None:
        """`locked`: the only directory whose names it does not forget before it is let (0: it forgets nothing)."""
        self.locked = locked
        self.inodes: list[int] = []
        self.entries: list[tuple[int, tuple[bytes, ...]]] = []
        self.free = asyncio.Event()
        self.free.set()

    async def forget_inode(self, fid: int, offset: int = 0, length: int = 0) -> None:
        self.inodes.append(fid)
        await self.free.wait()

    async def forget_entries(self, parent: int, names: Sequence[bytes]) -> None:
        self.entries.append((parent, tuple(names)))
        if self.locked in (0, parent):
            await self.free.wait()


class Failing(Objects):
    """Objects that cannot be written for a while."""

    failure: OSError | None = None

    async def write(
        self, inode: Inode, extents: Sequence[Extent], sync: bool = False, mtime_ns: int = 0
    ) -> dict[int, Written]:
        if self.failure is not None:
            raise OSError(self.failure.errno, self.failure.strerror)
        return await super().write(inode, extents, sync, mtime_ns)


def make_failing(vfs: Vfs) -> Failing:
    vfs.objects = vfs.store.objects = failing = Failing(vfs.session, 4 << 20)
    return failing


async def test_the_kernel_has_forgotten_before_another_client_goes_on(world: World) -> None:
    one, two = await world.vfs(), await world.vfs()
    fid = await write_file(one, one.root, b"f", b"old")
    await quiet(one)
    kernel = two.kernel = Kernel()
    await read_file(two, two.root, b"f")
    kernel.free.clear()
    changing = asyncio.create_task(write_file(one, one.root, b"f", b"new"))
    while fid not in kernel.inodes:
        await asyncio.sleep(0)
    assert not changing.done()
    found = await settle(two.getattr(fid))
    assert not found.cacheable
    kernel.free.set()
    await changing
    assert await read_file(two, two.root, b"f") == b"new"


async def test_a_recalled_name_reaches_the_kernel_only_if_it_was_told(world: World) -> None:
    one, two = await world.vfs(), await world.vfs()
    kernel = two.kernel = Kernel()
    await settle(two.lookup(two.root, b"known"))
    await settle(one.mkdir(one.root, b"unknown", 0o755, CRED))
    await settle(one.mkdir(one.root, b"known", 0o755, CRED))
    told = [name for fid, names in kernel.entries if fid == two.root for name in names]
    assert told == [b"known"]
    assert (await settle(two.lookup(two.root, b"known"))).attr is not None


async def test_two_clients_that_create_in_one_directory_do_not_wait_for_each_others_kernels(world: World) -> None:
    """The kernel can forget a name only when the create in service in that directory has been answered."""
    one, two = await world.vfs(), await world.vfs()
    for vfs in (one, two):
        for name in (b"a", b"b"):
            await settle(vfs.lookup(vfs.root, name))
        kernel = vfs.kernel = Kernel()
        kernel.free.clear()
    creating = [
        asyncio.create_task(settle(one.mkdir(one.root, b"a", 0o755, CRED))),
        asyncio.create_task(settle(two.mkdir(two.root, b"b", 0o755, CRED))),
    ]
    made = await asyncio.wait_for(asyncio.gather(*creating), 10)
    assert all(found.attr is not None for found in made)
    for vfs in (one, two):
        assert isinstance(vfs.kernel, Kernel)
        vfs.kernel.free.set()


async def chmod(vfs: Vfs, fid: int) -> None:
    await settle(vfs.setattr(fid, Changes(Set.MODE, mode=0o700)))


async def setxattr(vfs: Vfs, fid: int) -> None:
    await settle(vfs.setxattr(fid, b"user.a", b"1", XattrFlag(0)))


async def move(vfs: Vfs, fid: int) -> None:
    await settle(vfs.rename(vfs.root, b"d", vfs.root, b"e", RenameFlag(0)))


async def move_unknown(vfs: Vfs, fid: int) -> None:
    vfs.cache.inodes[vfs.root].forget_names((b"d", b"e"))
    await move(vfs, fid)


@pytest.mark.parametrize("change", [chmod, setxattr, move, move_unknown])
async def test_a_directory_that_is_changed_while_another_makes_names_in_it_is_locked_in_the_kernel(
    world: World, change: Callable[[Vfs, int], Coroutine[Any, Any, None]]
) -> None:
    """Each of the two waits for the other's recall, and neither's kernel can forget before its change has been
    answered."""
    one, two = await world.vfs(), await world.vfs()
    made = await settle(one.mkdir(one.root, b"d", 0o755, CRED))
    assert made.attr is not None
    fid = made.attr.fid
    for vfs in (one, two):
        for parent, name in ((vfs.root, b"d"), (vfs.root, b"e"), (fid, b"a"), (fid, b"b")):
            await settle(vfs.lookup(parent, name))
        kernel = vfs.kernel = Kernel(fid)
        kernel.free.clear()
    changing = asyncio.create_task(change(one, fid))
    making = asyncio.create_task(settle(two.mkdir(fid, b"a", 0o755, CRED)))
    await asyncio.wait_for(asyncio.gather(changing, making), 10)
    for vfs in (one, two):
        assert isinstance(vfs.kernel, Kernel)
        vfs.kernel.free.set()


@pytest.mark.parametrize("size", [100, 300_000])
async def test_dirty_data_is_written_before_a_lease_is_given_back(world: World, size: int) -> None:
    one, two = await world.vfs(), await world.vfs()
    data = os.urandom(size)
    found, handle = await settle(one.create(one.root, b"f", 0o644, os.O_RDWR | os.O_CREAT, CRED))
    assert found.attr is not None
    await settle(one.write(handle.number, 0, memoryview(data)))
    there = await open_file(two, found.attr.fid, os.O_RDWR)
    inode = one.cache.inodes[found.attr.fid]
    assert inode.lease == NONE
    assert inode.file is not None
    assert not inode.file.dirty
    assert await read(two, there) == data
    await close(two, there)
    await close(one, handle.number)


async def test_a_look_by_another_leaves_the_writer_a_read_lease(world: World) -> None:
    one, two = await world.vfs(), await world.vfs()
    found, handle = await settle(one.create(one.root, b"f", 0o644, os.O_RDWR | os.O_CREAT, CRED))
    assert found.attr is not None
    await settle(one.write(handle.number, 0, memoryview(b"x")))
    assert (await settle(two.lookup(two.root, b"f"))).attr is not None
    assert one.cache.inodes[found.attr.fid].lease == READ
    await settle(one.write(handle.number, 1, memoryview(b"y")))
    assert (await settle(two.getattr(found.attr.fid))).attr.size == 2
    await close(one, handle.number)


async def test_a_full_cache_gives_leases_back_in_bulk_and_stays_right(world: World) -> None:
    one, two = await world.vfs(), await world.vfs(inodes=64)
    two.kernel = Kernel()
    for index in range(300):
        await settle(one.mknod(one.root, b"n%d" % index, 0o100644, 0, CRED))
    for index in range(300):
        assert (await settle(two.lookup(two.root, b"n%d" % index))).attr is not None
        await asyncio.sleep(0)
    await quiet(two)
    assert len(two.cache.inodes) <= 64
    assert two.meter.tallies["Yield"].count <= 60
    assert len(two.kernel.inodes) >= 200
    sent = Counting(one)
    await settle(one.lookup(one.root, b"n0"))
    assert sent() == {}


async def test_an_error_behind_a_write_is_raised_by_fsync_and_nothing_is_lost(world: World) -> None:
    vfs = await world.vfs()
    failing = make_failing(vfs)
    _, handle = await settle(vfs.create(vfs.root, b"f", 0o644, os.O_RDWR | os.O_CREAT, CRED))
    data = os.urandom(3 << 20)
    failing.failure = OSError(errno.ENOSPC, "OST 1 is full")
    await settle(vfs.write(handle.number, 0, memoryview(data)))
    with pytest.raises(OSError, match="OST 1 is full") as caught:
        await settle(vfs.fsync(handle.number, False))
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(OSError, match="OST 1 is full"):
        await settle(vfs.write(handle.number, len(data), memoryview(b"more")))
    assert await read(vfs, handle.number, 1 << 20, 1 << 20) == data[1 << 20 : 2 << 20]
    failing.failure = None
    await settle(vfs.fsync(handle.number, False))
    await settle(vfs.write(handle.number, len(data), memoryview(b"more")))
    await close(vfs, handle.number)
    await quiet(vfs)
    assert await read_file(await world.vfs(), vfs.root, b"f") == data + b"more"


async def test_an_error_behind_a_close_is_tried_again_until_it_is_gone(world: World) -> None:
    vfs = await world.vfs()
    failing = make_failing(vfs)
    _, handle = await settle(vfs.create(vfs.root, b"f", 0o644, os.O_RDWR | os.O_CREAT, CRED))
    failing.failure = OSError(errno.EIO, "no answer")
    await settle(vfs.write(handle.number, 0, memoryview(bytes(100_000))))
    await close(vfs, handle.number)
    fid = next(iter(vfs.store.dirty))
    while vfs.store.dirty[fid].error is None:
        await asyncio.sleep(0.01)
    again = await open_file(vfs, fid, os.O_WRONLY)
    with pytest.raises(OSError, match="no answer"):
        await close(vfs, again)
    failing.failure = None
    while vfs.store.dirty:
        await asyncio.sleep(0.01)
    assert await read_file(await world.vfs(), vfs.root, b"f") == bytes(100_000)


async def test_a_client_that_has_not_heard_from_the_mds_serves_nothing_from_its_cache(world: World) -> None:
    clock = ManualClock()
    vfs = await world.vfs(clock=clock)
    fid = await write_file(vfs, vfs.root, b"f", b"x")
    await quiet(vfs)
    assert not is_later(vfs.lookup(vfs.root, b"f"))
    number = await open_file(vfs, fid, os.O_RDWR)
    clock.advance(vfs.session.term_s / 2 + 1)
    assert not vfs.session.live
    looking = vfs.getattr(fid)
    assert is_later(looking)
    assert (await settle(looking)).cacheable is False
    writing = asyncio.ensure_future(settle(vfs.write(number, 0, memoryview(b"y"))))
    await asyncio.sleep(0.01)
    assert not writing.done()
    await vfs.session.keepalive()
    assert vfs.session.live
    assert await writing == 1
    assert not is_later(vfs.getattr(fid))
    await close(vfs, number)


async def test_a_restarted_mds_gives_back_what_was_held(world: World) -> None:
    vfs = await world.vfs()
    fid = await write_file(vfs, vfs.root, b"f", b"before")
    number = await open_file(vfs, fid, os.O_RDWR)
    await settle(vfs.write(number, 6, memoryview(b" and after")))
    await world.restart_mds()
    await settle(vfs.fsync(number, False))
    assert await read(vfs, number) == b"before and after"
    await close(vfs, number)
    assert await read_file(await world.vfs(), vfs.root, b"f") == b"before and after"


async def test_an_evicted_client_begins_anew_and_says_what_is_lost(world: World) -> None:
    vfs, other = await world.vfs(), await world.vfs()
    fid = await write_file(vfs, vfs.root, b"f", b"kept")
    await quiet(vfs)
    number = await open_file(vfs, fid, os.O_RDWR)
    await settle(vfs.write(number, 0, memoryview(b"lost")))
    before = vfs.session.number
    sessions = world.mds.mds.sessions
    sessions.evict(sessions.by_id[before], "the test says so")
    while vfs.session.number in (0, before):
        await asyncio.sleep(0.01)
    with pytest.raises(OSError, match="lost with the session"):
        await settle(vfs.fsync(number, False))
    assert await read(vfs, number) == b"kept"
    await settle(vfs.write(number, 4, memoryview(b"!")))
    await settle(vfs.fsync(number, False))
    await close(vfs, number)
    assert await read_file(other, other.root, b"f") == b"kept!"


async def test_an_oss_is_not_connected_to_between_two_sessions(world: World) -> None:
    """The connection would be nobody's for ever, and every read and write through it refused."""
    vfs = await world.vfs()
    data = os.urandom(300_000)
    await write_file(vfs, vfs.root, b"f", data)
    await quiet(vfs)
    sessions = world.mds.mds.sessions
    sessions.evict(sessions.by_id[vfs.session.number], "the test says so")
    async with asyncio.timeout(20):
        while vfs.session.number:
            await asyncio.sleep(0)
        for ost in range(4):
            await vfs.session.server_of(ost)
    assert vfs.session.number
    assert await read_file(vfs, vfs.root, b"f") == data


async def test_each_open_file_is_told_once_of_a_loss_by_fsync_and_closes_do_not_take_that_away(world: World) -> None:
    """A child process closes its copies of all descriptors when it begins another program, and looks at no error."""
    vfs = await world.vfs()
    fid = await write_file(vfs, vfs.root, b"f", b"x" * 100_000)
    one, two = await open_file(vfs, fid, os.O_RDWR), await open_file(vfs, fid, os.O_RDWR)
    await settle(vfs.write(one, 0, memoryview(b"y" * 100_000)))
    session = world.mds.mds.sessions.by_id[vfs.session.number]
    world.mds.mds.evict(session, "is tested", knows=False)
    async with asyncio.timeout(20):
        while vfs.session.number in (0, session.id):
            await asyncio.sleep(0.01)
    late = await open_file(vfs, fid, os.O_RDWR)
    for handle in (one, one, two, late):
        with pytest.raises(OSError, match="lost with the session"):
            await settle(vfs.flush(handle))
    for handle in (one, two):
        with pytest.raises(OSError, match="lost with the session"):
            await settle(vfs.fsync(handle, False))
        await settle(vfs.fsync(handle, False))
        await settle(vfs.flush(handle))
    after = await open_file(vfs, fid, os.O_RDWR)
    await settle(vfs.fsync(after, False))
    for handle in (one, two, late, after):
        await settle(vfs.release(handle))
