"""The tier when S3 fails: answers with errors, short and wrong bodies, hangs, and a server that is killed.

A small proxy stands between the movers and a real server; a test tells it what to do with the next requests. Each test
also counts that the fault did happen.
"""

import asyncio
import errno
import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Protocol, TypeVar

import pytest
from msgspec.structs import replace

from nacrefs.client.vfs import Vfs
from nacrefs.common.answer import settle
from nacrefs.common.wire import ArchiveSpec, HsmAction, HsmFlag, XattrFlag
from tests.client.world import close, open_file, read_file, write_file
from tests.cluster.tier import ROOT, SHORT, WRONG, Proxy, Tier, add_archive, tier_on
from tests.s3 import S3Server, s3_server

DATA = os.urandom(300_000)
LARGE = os.urandom((11 << 20) + 12_345)
T = TypeVar("T")


class Held(Protocol):
    """Does something, in the middle of which the S3 server is killed."""

    async def __call__(self, method: str, coming: Awaitable[T]) -> T: ...


Middle = Callable[[Tier, Held], Awaitable[None]]


@pytest.fixture
async def world(s3: S3Server, s3_archive: ArchiveSpec, tmp_path: Path, mdt_url: str | None) -> AsyncGenerator[Tier]:
    async with Proxy(s3.endpoint) as proxy, tier_on(tmp_path / "c", mdt_url) as made:
        made.proxy = proxy
        await add_archive(made, replace(s3_archive, endpoint=proxy.url))
        yield made


async def _released(world: Tier) -> tuple[Vfs, int]:
    vfs = await world.vfs()
    fid = await write_file(vfs, ROOT, b"file", DATA)
    assert (await world.act(HsmAction.ARCHIVE, fid)).state == "SUCCEED"
    assert (await world.act(HsmAction.RELEASE, fid)).flags & HsmFlag.RELEASED
    return vfs, fid


@pytest.mark.parametrize(("how", "times"), [(503, 8), (500, 6), (SHORT, 4), (WRONG, 3)])
async def test_a_reader_never_hears_of_what_passes(world: Tier, how: int, times: int) -> None:
    vfs, _ = await _released(world)
    world.proxy.fail("GET", how, times)
    assert await read_file(vfs, ROOT, b"file") == DATA
    assert world.proxy.injected == times


@pytest.mark.parametrize(("how", "lost"), [(403, False), (404, True)])
async def test_what_does_not_pass_is_eio_with_the_reason_and_can_be_tried_again(
    world: Tier, how: int, lost: bool
) -> None:
    vfs, fid = await _released(world)
    world.proxy.fail("GET", how, 1)
    with pytest.raises(OSError, match=".") as caught:
        await read_file(vfs, ROOT, b"file")
    assert caught.value.errno == errno.EIO
    state = await world.over(fid)
    assert bool(state.flags & HsmFlag.LOST) == lost
    assert "archive cold" in state.reason
    if lost:
        await vfs.setxattr(fid, b"nacre.hsm", b"clear lost", XattrFlag(0))
    assert await read_file(vfs, ROOT, b"file") == DATA
    assert world.proxy.injected == 1


@pytest.mark.parametrize(("how", "times"), [(503, 7), (500, 4), (507, 3), (WRONG, 3)])
async def test_archiving_goes_on_after_what_passes(world: Tier, how: int, times: int) -> None:
    vfs = await world.vfs()
    fid = await write_file(vfs, ROOT, b"file", DATA)
    world.proxy.fail("PUT", how, times)
    state = await world.act(HsmAction.ARCHIVE, fid)
    assert state.flags & HsmFlag.ARCHIVED, state
    await world.act(HsmAction.RELEASE, fid)
    assert await read_file(vfs, ROOT, b"file") == DATA
    assert world.proxy.injected == times


async def test_what_is_refused_is_not_archived(world: Tier) -> None:
    vfs = await world.vfs()
    fid = await write_file(vfs, ROOT, b"file", DATA)
    world.proxy.fail("PUT", 403, 1)
    state = await world.act(HsmAction.ARCHIVE, fid)
    assert (state.state, state.flags) == ("FAILED", 0)
    assert "access denied" in state.reason
    assert world.proxy.injected == 1


async def archived_in_the_middle(world: Tier, held: Held) -> None:
    vfs = await world.vfs()
    fid = await write_file(vfs, ROOT, b"file", LARGE)
    await held("PUT", world.act(HsmAction.ARCHIVE, fid))
    await world.archived(fid)
    assert await read_file(vfs, ROOT, b"file") == LARGE


async def recalled_in_the_middle(world: Tier, held: Held) -> None:
    vfs = await world.vfs()
    await world.archived(await write_file(vfs, ROOT, b"file", LARGE))
    assert await held("GET", read_file(vfs, ROOT, b"file")) == LARGE


async def removed_in_the_middle(world: Tier, held: Held) -> None:
    vfs = await world.vfs()
    fid = await write_file(vfs, ROOT, b"file", DATA)
    await world.archived(fid, release=False)
    await held("POST", world.act(HsmAction.REMOVE, fid))
    await world.whole()
    assert await world.keys() == []


async def replaced_in_the_middle(world: Tier, held: Held) -> None:
    vfs = await world.vfs()
    fid = await write_file(vfs, ROOT, b"file", DATA)
    await world.archived(fid, release=False)
    handle = await open_file(vfs, fid, os.O_WRONLY)
    await settle(vfs.write(handle, 0, memoryview(b"changed")))
    await close(vfs, handle)
    await held("PUT", world.act(HsmAction.ARCHIVE, fid))
    await world.archived(fid)
    assert await read_file(vfs, ROOT, b"file") == b"changed" + DATA[7:]


MIDDLES = [archived_in_the_middle, recalled_in_the_middle, removed_in_the_middle, replaced_in_the_middle]


@pytest.mark.usefixtures("s3")  # obstore has begun before
@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "middle",
    [pytest.param(one, marks=[] if one in (archived_in_the_middle, removed_in_the_middle) else pytest.mark.slow)
     for one in MIDDLES],
)  # fmt: skip
async def test_a_killed_s3_server_holds_things_up_and_nothing_more(tmp_path: Path, middle: Middle) -> None:
    with s3_server() as server:
        spec = ArchiveSpec(0, "cold", "s3", f"s3://{server.bucket()}", credentials=server.credentials)
        async with Proxy(server.endpoint) as proxy, tier_on(tmp_path / "c") as world:
            world.proxy = proxy
            await add_archive(world, replace(spec, endpoint=proxy.url, part_bytes=5 << 20))

            async def held(method: str, coming: Awaitable[T]) -> T:
                """Kill the server in the middle of a request with this method, and start it again a little later."""
                proxy.hold(method)
                doing = asyncio.ensure_future(coming)
                async with asyncio.timeout(50):
                    await proxy.held.wait()
                await asyncio.to_thread(server.kill)
                proxy.let_go()
                await asyncio.sleep(0.5)
                await asyncio.to_thread(server.start)
                async with asyncio.timeout(100):
                    return await doing

            await middle(world, held)
            await world.whole()


async def test_an_oss_that_restarts_in_the_middle(world: Tier) -> None:
    vfs = await world.vfs()
    data = os.urandom(30 << 20)
    fid = await write_file(vfs, ROOT, b"file", data)
    await world.mds.mds.hsm.request(HsmAction.ARCHIVE, fid, 0, 0)
    await asyncio.sleep(0.1)
    await world.oss.pop(0).stop()
    await world.start_oss(0)
    state = await world.over(fid)
    assert state.flags & HsmFlag.ARCHIVED, state
    await world.act(HsmAction.RELEASE, fid)
    reading = asyncio.ensure_future(read_file(vfs, ROOT, b"file"))
    await asyncio.sleep(0.1)
    await world.oss.pop(-1).stop()
    await world.start_oss(0)
    assert await reading == data
