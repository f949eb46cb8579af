"""Whatever crosses on the wire, the MDS knows of each open file: if removed, it stays until it is closed."""

import asyncio
import errno
import os
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

from nacrefs.client.vfs import Vfs
from nacrefs.common.answer import settle
from nacrefs.common.wire import RenameFlag, Unlink
from tests.client.world import CRED, Counting, World, close, open_file, quiet, read, write_file


class Kernel:
    """A cache above a filesystem. When it has forgotten an inode, `then` happens, once."""

    def __init__(self) -> None:
        self.then: Callable[[], object] = lambda: None

    async def forget_inode(self, fid: int, offset: int = 0, length: int = 0) -> None:
        then, self.then = self.then, lambda: None
        then()

    async def forget_entries(self, parent: int, names: Sequence[bytes]) -> None: ...


def exists(world: World, fid: int) -> bool:
    """Whether the MDT has the inode."""
    return world.mds.mds.journal.reading.inode(fid) is not None


async def stays_until_closed(world: World, vfs: Vfs, number: int, fid: int) -> None:
    """A file that has been removed and is open in one client only."""
    await asyncio.gather(*(quiet(client) for client in world.clients))
    assert exists(world, fid)
    assert await read(vfs, number) == b"contents"
    await close(vfs, number)
    await quiet(vfs)
    assert not exists(world, fid)


async def leased(vfs: Vfs, fid: int) -> None:
    """Look at a file, so that the client may cache it."""
    await settle(vfs.lookup(vfs.root, b"f"))
    assert vfs.session.cache.inodes[fid].lease


async def test_an_open_that_crosses_the_giving_back_of_its_lease_is_known(world: World) -> None:
    one, two = await world.vfs(), await world.vfs()
    fid = await write_file(two, two.root, b"f", b"contents")
    await quiet(two)
    await leased(one, fid)
    kernel = one.kernel = Kernel()
    opening: list[asyncio.Task[int]] = []
    # The lease is given back when the kernel has forgotten: while the answer to this Open is on its way.
    kernel.then = lambda: opening.append(asyncio.create_task(open_file(one, fid)))
    cache = one.session.cache
    cache.inodes.move_to_end(fid, last=False)
    cache.limit = 1
    sent = Counting(one)
    one.recaller.evict()
    await quiet(one)
    assert sent() == {"Open": 1}
    (number,) = [await task for task in opening]
    one.kernel = None
    await two.unlink(two.root, b"f")
    await stays_until_closed(world, one, number, fid)


async def test_who_has_lost_its_session_has_its_files_open_in_the_next(world: World) -> None:
    one, two = await world.vfs(), await world.vfs()
    fid = await write_file(two, two.root, b"f", b"contents")
    await quiet(two)
    await leased(one, fid)
    number, before = await open_file(one, fid), one.session.number
    sessions = world.mds.mds.sessions
    sessions.evict(sessions.by_id[before], "the test says so")
    while one.session.number in (0, before):
        await asyncio.sleep(0.01)
    await quiet(one)
    await two.unlink(two.root, b"f")
    await stays_until_closed(world, one, number, fid)


async def test_a_file_that_is_created_again_while_its_close_is_reported_is_open(world: World) -> None:
    one, two = await world.vfs(), await world.vfs()
    fid = await write_file(two, two.root, b"f", b"contents")
    await quiet(two)
    others = await open_file(two, fid, os.O_RDWR)  # so that nobody has a lease, and all opens are registered
    first = await open_file(one, fid, os.O_RDWR)
    await settle(one.write(first, 0, memoryview(b"contents")))
    await settle(one.flush(first))
    creating = asyncio.create_task(settle(one.create(one.root, b"f", 0o644, os.O_RDWR | os.O_CREAT, CRED)))
    await settle(one.release(first))
    _, handle = await creating
    await quiet(one)
    await two.unlink(two.root, b"f")
    await close(two, others)
    await stays_until_closed(world, one, handle.number, fid)


async def test_an_inode_that_is_dropped_before_its_open_begins_is_one_inode_after_it(world: World) -> None:
    one, two = await world.vfs(), await world.vfs()
    fid = await write_file(two, two.root, b"f", b"contents" * 10_000)
    await quiet(two)
    await settle(one.lookup(one.root, b"f"))
    one.session.cache.inodes[fid].lower(0)
    one.session.cache.inodes[fid].lowered()
    opening = one.open(fid, os.O_RDONLY)
    one.session.cache.drop(one.session.cache.inodes[fid])
    handle = await settle(opening)
    assert one.handles.get(handle.number).inode is one.session.cache.inodes[fid]
    await close(one, handle.number)


async def unlink(vfs: Vfs) -> None:
    await vfs.unlink(vfs.root, b"f")


async def rename_over(vfs: Vfs) -> None:
    await vfs.rename(vfs.root, b"g", vfs.root, b"f", RenameFlag(0))


async def known_file(vfs: Vfs) -> int:
    """A file that is not open, and of which the client knows all: its name, and that it has it for itself (for a moment
    still, in case it is opened again)."""
    fid = await write_file(vfs, vfs.root, b"f", b"contents")
    await quiet(vfs)
    await settle(vfs.lookup(vfs.root, b"f"))
    await close(vfs, await open_file(vfs, fid, os.O_RDWR))
    inodes = vfs.session.cache.inodes
    assert inodes[vfs.root].stands_for(b"f") == fid
    assert inodes[fid].lease == 2
    return fid


Remove = Callable[[Vfs], Coroutine[Any, Any, None]]
removing = pytest.mark.parametrize("remove", [unlink, rename_over])


@removing
@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR])
async def test_who_opens_a_file_that_is_being_removed_here_learns_that_it_is_gone(
    world: World, remove: Remove, flags: int
) -> None:
    """Both are asked for at one moment: an open under the lease would be one of a file that is no more."""
    vfs = await world.vfs()
    await write_file(vfs, vfs.root, b"g", b"other")
    fid = await known_file(vfs)
    gone = asyncio.create_task(remove(vfs))
    await asyncio.sleep(0)
    with pytest.raises(OSError, match="does not exist") as error:
        await open_file(vfs, fid, flags)
    assert error.value.errno == errno.ESTALE
    await gone
    await quiet(vfs)
    assert not exists(world, fid)


@removing
async def test_a_file_with_another_name_is_opened_once_its_first_name_is_gone(world: World, remove: Remove) -> None:
    vfs = await world.vfs()
    await write_file(vfs, vfs.root, b"g", b"other")
    fid = await known_file(vfs)
    await settle(vfs.link(fid, vfs.root, b"h"))
    gone = asyncio.create_task(remove(vfs))
    await asyncio.sleep(0)
    number = await open_file(vfs, fid, os.O_RDWR)
    await gone
    await vfs.unlink(vfs.root, b"h")
    await stays_until_closed(world, vfs, number, fid)


async def test_a_file_that_is_created_while_it_is_being_removed_is_a_new_one(world: World) -> None:
    vfs = await world.vfs()
    fid = await known_file(vfs)
    gone = asyncio.create_task(vfs.unlink(vfs.root, b"f"))
    await asyncio.sleep(0)
    found, handle = await settle(vfs.create(vfs.root, b"f", 0o644, os.O_RDWR | os.O_CREAT, CRED))
    await gone
    assert found.attr is not None
    assert found.attr.fid != fid
    assert not exists(world, fid)
    await close(vfs, handle.number)


async def test_a_removed_file_that_is_closed_before_that_is_noticed_has_sent_its_data_first(world: World) -> None:
    """The reply to the removal has come, and who asked for it has not woken yet: the file counts as open."""
    vfs = await world.vfs()
    fid = await write_file(vfs, vfs.root, b"f", b"contents")
    number = await open_file(vfs, fid, os.O_RDWR)
    inode = vfs.session.cache.inodes[fid]
    seen: list[int] = []

    def watch(request: Any, reply: Any) -> None:
        vfs.session.cache.absorb(request, reply)
        if type(request) is Unlink:
            seen.append(int(inode.registered))

    vfs.session.mds.absorb = watch
    await vfs.unlink(vfs.root, b"f")
    assert seen == [3]
    await stays_until_closed(world, vfs, number, fid)
