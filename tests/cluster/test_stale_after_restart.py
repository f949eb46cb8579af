"""The MDS dies when a change is committed and those who cache what was changed have not been told: what they take up
again after the restart is not what was there before."""

import asyncio
import errno
import stat
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from nacrefs.client.filesystem import Changes
from nacrefs.client.vfs import Vfs
from nacrefs.common import faults
from nacrefs.common.answer import is_later, settle
from nacrefs.common.wire import Lease, Set
from tests.client.world import CRED, World, cluster, names, quiet, write_file
from tests.harness.clock import SettableClock
from tests.harness.pace import SLOWER


@asynccontextmanager
async def killed_after_commit(world: World, keeper: Vfs, *, cut_off: bool = False) -> AsyncGenerator[None]:
    """What is begun within is committed, and neither who asked for it nor `keeper` hears of it before the MDS has been
    started again; `keeper` not even then, if it is `cut_off`."""
    loop = asyncio.get_running_loop()
    committed, go_on = asyncio.Event(), threading.Event()

    def die() -> faults.Outcome:
        """On the committing thread: it stays here until the event loop has ended the server."""
        assert threading.current_thread() is not threading.main_thread(), "nobody is to be recalled meanwhile"
        loop.call_soon_threadsafe(committed.set)
        assert go_on.wait(10 * SLOWER)
        return faults.PASS

    assert keeper.session.mds.link is not None
    keeper.session.mds.link.pause()
    with faults.armed("mds.commit.after", die):
        yield
        await asyncio.wait_for(committed.wait(), 10 * SLOWER)
    if not cut_off:
        keeper.session.mds.link.close("lost, with what was on it")
    world.mds.mds.on_lost(OSError(errno.EIO, "killed by the test"))
    go_on.set()
    await world.restart_mds()


async def two(world: World, clock: SettableClock | None = None) -> tuple[Vfs, Vfs]:
    """Who caches (and looks at this clock), and who changes: they have nothing to do with each other before."""
    keeper, changer = await world.vfs(clock=clock), await world.vfs()
    await write_file(changer, changer.root, b"f", b"contents")
    await settle(changer.mkdir(changer.root, b"d", 0o755, CRED))
    await quiet(changer)
    return keeper, changer


async def cached_directory(keeper: Vfs) -> int:
    """The empty directory `d`, once all its names are in this client's cache."""
    found = await settle(keeper.lookup(keeper.root, b"d"))
    assert found.attr is not None
    directory = found.attr.fid
    assert await names(keeper, directory) == []
    assert not is_later(keeper.lookup(directory, b"new")), "it is not cached: this shows nothing"
    return directory


async def test_attributes_that_were_changed_are_not_taken_up_again(tmp_path: Path) -> None:
    async with cluster(tmp_path) as world:
        keeper, changer = await two(world)
        found = await settle(keeper.lookup(keeper.root, b"f"))
        assert found.attr is not None
        fid = found.attr.fid
        assert not is_later(keeper.getattr(fid)), "it is not cached: this shows nothing"
        async with killed_after_commit(world, keeper):
            changing = asyncio.ensure_future(settle(changer.setattr(fid, Changes(Set.MODE, mode=0o600))))
            await asyncio.sleep(0)
        await changing
        assert stat.S_IMODE((await settle(keeper.getattr(fid))).attr.mode) == 0o600


async def test_names_that_were_changed_are_not_taken_up_again(tmp_path: Path) -> None:
    async with cluster(tmp_path) as world:
        keeper, changer = await two(world)
        directory = await cached_directory(keeper)
        async with killed_after_commit(world, keeper):
            making = asyncio.ensure_future(settle(changer.mkdir(directory, b"new", 0o755, CRED)))
            await asyncio.sleep(0)
        await making
        assert (await settle(keeper.lookup(directory, b"new"))).attr is not None
        assert await names(keeper, directory) == [b"new"]


async def test_what_was_not_changed_is_taken_up_again(tmp_path: Path) -> None:
    async with cluster(tmp_path) as world:
        keeper, _ = await two(world)
        directory = await cached_directory(keeper)
        await world.restart_mds()
        await settle(keeper.statfs(keeper.root))
        assert world.mds.mds.leases.held(directory, keeper.session.number) == Lease.READ
        assert not is_later(keeper.lookup(directory, b"new")), "it is asked for although nothing has happened"


async def test_who_changed_it_is_answered_when_those_who_cache_it_have_come_back_or_must_have_dropped_it(
    tmp_path: Path,
) -> None:
    clock = SettableClock()
    async with cluster(tmp_path, clock=clock) as world:
        keeper, changer = await two(world, clock)
        found = await settle(keeper.lookup(keeper.root, b"f"))
        assert found.attr is not None
        fid = found.attr.fid
        async with killed_after_commit(world, keeper, cut_off=True):
            changing = asyncio.ensure_future(settle(changer.setattr(fid, Changes(Set.MODE, mode=0o600))))
            await asyncio.sleep(0)
        assert not is_later(keeper.getattr(fid)), "it has dropped its cache: this shows nothing"
        async with asyncio.timeout(20 * SLOWER):
            await changer.session.keepalive()  # it has come back
            assert not changing.done()
            while not changing.done():
                clock.ahead_s += 1
                world.mds.mds.tick()
                await changer.session.keepalive()
                await asyncio.sleep(0.01)
        await changing
        assert not keeper.session.live, "it may serve from its cache what was changed"
        assert keeper.session.mds.link is not None
        keeper.session.mds.link.close("it is heard again")
        assert stat.S_IMODE((await settle(keeper.getattr(fid))).attr.mode) == 0o600
