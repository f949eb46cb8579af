"""Links and warmups when S3 fails: in the middle of a listing, of an export, of a warmup.

A proxy stands between the movers and a real server; a test tells it what to do with the next requests, and counts that
it was done. No listing that fails, or is none, removes a name; no byte is lost; no upload is left.
"""

import asyncio
import errno
import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from nacrefs.client.vfs import Vfs
from nacrefs.common.answer import settle
from nacrefs.common.wire import ArchiveSpec, HsmFlag, OrderLink, RenameFlag
from tests.client.world import names, write_file
from tests.cluster.test_link_export import ALL, Sent
from tests.cluster.test_links import Bucket, linked
from tests.cluster.test_warmup import Counting, Warm
from tests.cluster.tier import CUT, EMPTY, LOST, PAGE, RESET, SHORT, SILENT, WRONG
from tests.s3 import S3Server, s3_server

KEYS = 1040  # more than one page
LARGE = os.urandom((11 << 20) + 7)


class World(Warm, Sent):  # type: ignore[misc]  # pyright: ignore[reportIncompatibleVariableOverride]
    """A linked bucket behind a proxy."""

    async def fill(self, keys: int) -> None:
        """Many small objects."""

        def put(number: int) -> None:
            self.bucket.put(f"d{number % 3}/{number:04}", b"%d" % number)

        with ThreadPoolExecutor(8) as threads:
            await asyncio.to_thread(lambda: list(threads.map(put, range(keys))))

    async def tree(self, vfs: Vfs) -> dict[tuple[bytes, bytes], int]:
        """Which file each name stands for."""
        found: dict[tuple[bytes, bytes], int] = {}
        for directory in await names(vfs, self.directory_fid):
            parent = await self.at(vfs, directory.decode())
            for name in await names(vfs, parent.fid):
                found[directory, name] = (await self.at(vfs, f"{directory.decode()}/{name.decode()}")).fid
        return found

    async def no_uploads(self) -> None:
        """No object is being sent in parts, and none that was begun is left."""
        hsm = self.mds.mds.hsm
        number = min(hsm.archives)
        store = await self.oss[0].mover.archives.of(hsm.archives[number])
        async with asyncio.timeout(50):
            while hsm.active or await store.uploads():
                await asyncio.sleep(0.05)


@asynccontextmanager
async def world_on(server: S3Server, directory: Path) -> AsyncGenerator[World]:
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(Counting(server.endpoint))
        spec = ArchiveSpec(
            0, "", "s3", f"s3://{server.place()}", proxy.url, credentials=server.credentials,
            part_bytes=5 << 20,
        )  # fmt: skip
        made = await stack.enter_async_context(linked(Bucket(spec, server.client(), directory), directory))
        made.__class__ = World
        world: World = made  # type: ignore[assignment]
        world.proxy = proxy
        yield world


@pytest.fixture
async def world(s3: S3Server, tmp_path: Path) -> AsyncGenerator[World]:
    async with world_on(s3, tmp_path) as made:
        yield made


LISTS = [(CUT, 2), (EMPTY, 1), (503, 2)]
MORE_LISTS = [(PAGE, 1), (500, 2), (403, 1), (404, 1), (SHORT, 2), (RESET, 2)]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("faults", [LISTS, pytest.param(MORE_LISTS, marks=pytest.mark.slow)])
async def test_a_listing_that_fails_in_the_middle_removes_nothing_and_is_made_again(
    world: World, faults: list[tuple[int, int]]
) -> None:
    await world.fill(KEYS)
    vfs = await world.vfs()
    await world.link(vfs)
    before = await world.tree(vfs)
    assert len(before) == KEYS
    for number, (how, times) in enumerate(faults):
        gone = f"{number * 3:04}"
        world.bucket.delete(f"d0/{gone}")
        del before[b"d0", gone.encode()]
        injected = world.proxy.injected
        world.proxy.fail("LIST", how, times, number % 3 and 1)
        report = await world.refresh(vfs)
        assert world.proxy.injected == injected + times, how
        assert report["reason"].startswith("archive link-"), how
        assert report["files"] == len(before) + 1, how
        report = await world.until(vfs, lambda one: not one["reason"])  # it is tried again by itself
        assert (report["files"], report["last"]["deleted"]) == (len(before), 1), how
        assert any(line.startswith("refresh failed: archive link-") for line in await world.log(vfs))
    assert await world.tree(vfs) == before


EXPORTS = [
    ("PUT", 503, 8), ("PUT", LOST, 8), ("PUT", RESET, 5), ("PUT", WRONG, 3), ("HEAD", 503, 4), ("HEAD", RESET, 4),
    ("POST", 503, 4), ("POST", LOST, 5), ("POST", RESET, 4),
]  # fmt: skip


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("method", "how", "times"),
    [pytest.param(*one, marks=[] if one[:2] == ("PUT", RESET) else pytest.mark.slow)
     for one in EXPORTS],
)  # fmt: skip
async def test_an_export_goes_on_after_what_passes(world: World, method: str, how: int, times: int) -> None:
    vfs = await world.vfs()
    await world.link(vfs, auto_export=ALL)
    contents = {"small": b"abc", "middle": os.urandom(300_000), "large": LARGE}
    world.proxy.fail(method, how, times)
    for name, data in contents.items():
        await write_file(vfs, world.directory_fid, name.encode(), data)
    await world.flush(vfs)
    assert world.proxy.injected == times
    for name, data in contents.items():
        assert await world.get(name) == data
    await world.no_uploads()
    last = (await world.refresh(vfs))["last"]
    assert (last["keys"], last["new"], last["changed"], last["conflicts"], last["problems"]) == (3, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("method", "how"),
    [
        ("PUT", 403),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in (("POST", 403), ("HEAD", 403), ("POST", 404))),
    ],
)
async def test_an_export_that_is_refused_says_so_and_can_be_made_later(world: World, method: str, how: int) -> None:
    vfs = await world.vfs()
    await world.link(vfs, auto_export=ALL)
    world.proxy.fail(method, how, 1)
    await write_file(vfs, world.directory_fid, b"large", LARGE)
    with pytest.raises(OSError, match="archive link-") as caught:
        await world.flush(vfs)
    assert caught.value.errno == errno.EIO
    assert world.proxy.injected == 1
    assert (await world.report(vfs))["unsent"] == 1
    await world.flush(vfs)
    assert await world.get("large") == LARGE
    await world.no_uploads()


@pytest.mark.parametrize(
    "then",
    [
        "replaced",
        "removed after a restart",
        *(pytest.param(then, marks=pytest.mark.slow) for then in ("removed", "renamed", "moved away")),
    ],
)
async def test_an_upload_whose_answer_was_lost_has_no_object_left_when_its_file_goes(world: World, then: str) -> None:
    vfs = await world.vfs()
    await world.link(vfs, auto_export=ALL)
    root = world.directory_fid
    world.proxy.fail("PUT", LOST, 1000)
    await write_file(vfs, root, b"file", b"abc" * 1000)
    async with asyncio.timeout(50):
        while await world.get("file") is None or not any(one.row.reason for one in world.mds.mds.hsm.active.values()):
            await asyncio.sleep(0.02)
    if then == "renamed":
        await settle(vfs.rename(root, b"file", root, b"other", RenameFlag(0)))
    elif then == "moved away":
        await settle(vfs.rename(root, b"file", 1, b"other", RenameFlag(0)))
    else:
        if "restart" in then:
            await world.restart_mds()
        await settle(vfs.unlink(root, b"file"))
    world.proxy.faults.clear()
    assert world.proxy.injected > 0
    kept = {"renamed": "other", "replaced": "file"}.get(then, "")
    if then == "replaced":
        await write_file(vfs, root, b"file", b"new")
    await world.flush(vfs)
    if then == "replaced":
        assert await world.get("file") == b"new"
    else:
        await world.gone("file")
    if then == "renamed":
        assert await world.get("other") == b"abc" * 1000
    last = (await world.refresh(vfs))["last"]
    assert (last["keys"], last["new"], last["deleted"], last["conflicts"]) == (bool(kept), 0, 0, 0)
    assert await names(vfs, root) == ([kept.encode()] if kept else [])


WARMUPS = [(503, 8), (500, 8), (SHORT, 4), (CUT, 3), (WRONG, 2), (RESET, 8)]


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("how", "times"),
    [pytest.param(*one, marks=[] if one[0] in (SHORT, WRONG) else pytest.mark.slow) for one in WARMUPS],
)
async def test_a_warmup_goes_on_after_what_passes(world: World, how: int, times: int) -> None:
    large = LARGE[: 5 << 20] if how == WRONG else LARGE  # of more than 8 MiB nobody could tell
    contents = {"small": b"abc", "middle": os.urandom(300_000), "large": large}
    for key, data in contents.items():
        world.bucket.put(key, data)
    vfs = await world.vfs()
    await world.link(vfs)
    world.proxy.fail("GET", how, times)
    job = await world.over(vfs, await world.job(vfs, world.directory_fid))
    assert world.proxy.injected == times
    assert (job["state"], job["moved"], job["failed"]) == ("done", 3, 0), job
    for key, data in contents.items():
        assert await world.contents(vfs, key) == data


@pytest.mark.parametrize("how", [403, 404])
async def test_a_warmup_says_what_is_refused_and_brings_it_later(world: World, how: int) -> None:
    world.bucket.put("small", b"abc")
    vfs = await world.vfs()
    await world.link(vfs)
    world.proxy.fail("GET", how, 1)
    job = await world.over(vfs, await world.job(vfs, world.directory_fid))
    assert world.proxy.injected == 1
    assert (job["state"], job["moved"], job["failed"]) == ("failed", 0, 1), job
    assert "archive link-" in job["reasons"]["/data/small"]
    if how == 404:  # it is believed until the object is seen again
        fid = (await world.at(vfs, "small")).fid
        assert world.mds.mds.hsm.state(fid).flags & HsmFlag.LOST
        await world.refresh(vfs)
        assert not world.mds.mds.hsm.state(fid).flags & HsmFlag.LOST
    job = await world.over(vfs, await world.job(vfs, world.directory_fid))
    assert (job["state"], job["moved"]) == ("done", 1)
    assert await world.contents(vfs, "small") == b"abc"


Middle = Callable[[World, Callable[[str, Awaitable[object]], Awaitable[object]]], Awaitable[None]]


async def refreshed(world: World, killed: Callable[[str, Awaitable[object]], Awaitable[object]]) -> None:
    for key in ("one", "two", "d/three"):
        world.bucket.put(key, b"first")
    vfs = await world.vfs()
    await world.link(vfs)
    kept = await world.at(vfs, "one")
    world.bucket.delete("two")
    world.bucket.put("d/three", b"the second")
    await killed("LIST", world.refresh(vfs))
    report = await world.until(vfs, lambda one: one["last"]["deleted"] == 1)
    assert (report["last"]["changed"], report["reason"], report["files"]) == (1, "", 2)
    assert (await world.at(vfs, "one")).fid == kept.fid
    assert await world.contents(vfs, "d/three") == b"the second"


async def exported(world: World, killed: Callable[[str, Awaitable[object]], Awaitable[object]]) -> None:
    vfs = await world.vfs()
    await world.link(vfs, auto_export=ALL)
    await write_file(vfs, world.directory_fid, b"large", LARGE)
    await write_file(vfs, world.directory_fid, b"small", b"abc")
    await killed("PUT", world.flush(vfs))
    assert (await world.get("large"), await world.get("small")) == (LARGE, b"abc")
    assert (await world.report(vfs))["unsent"] == 0
    await world.no_uploads()


async def warmed(world: World, killed: Callable[[str, Awaitable[object]], Awaitable[object]]) -> None:
    contents = {"small": b"abc", "large": LARGE}
    for key, data in contents.items():
        world.bucket.put(key, data)
    vfs = await world.vfs()
    await world.link(vfs)
    number = await world.job(vfs, world.directory_fid)
    await killed("GET", asyncio.sleep(0))
    job = await world.over(vfs, number)
    assert (job["state"], job["moved"], job["failed"]) == ("done", 2, 0), job
    for key, data in contents.items():
        assert await world.contents(vfs, key) == data


@pytest.mark.usefixtures("s3")  # obstore has begun before
@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "middle", [refreshed, pytest.param(exported, marks=pytest.mark.slow), pytest.param(warmed, marks=pytest.mark.slow)]
)
async def test_a_killed_s3_server_holds_things_up_and_nothing_more(tmp_path: Path, middle: Middle) -> None:
    with s3_server() as server:
        async with world_on(server, tmp_path) as world:

            async def killed(method: str, coming: Awaitable[object]) -> object:
                """Kill the server in the middle of a request with this method, and start it again a little later."""
                world.proxy.hold(method)
                doing = asyncio.ensure_future(coming)
                async with asyncio.timeout(50):
                    await world.proxy.held.wait()
                await asyncio.to_thread(server.kill)
                world.proxy.let_go()
                await asyncio.sleep(0.5)
                await asyncio.to_thread(server.start)
                async with asyncio.timeout(100):
                    return await doing

            await middle(world, killed)


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_a_server_that_does_not_answer_is_given_up_and_asked_again(world: World) -> None:
    world.bucket.put("d/one", b"1" * 300_000)
    vfs = await world.vfs()
    await world.link(vfs, auto_export=ALL)
    for method in ("LIST", "GET", "PUT"):
        world.proxy.fail(method, SILENT, 1)
    await write_file(vfs, world.directory_fid, b"two", b"2" * 300_000)
    number = await world.job(vfs, (await world.at(vfs, "d")).fid)
    world.bucket.put("three", b"3")
    report = await world.report(vfs)
    await vfs.session.mds.call(OrderLink(report["id"], "refresh"))
    async with asyncio.timeout(300):
        while (await world.look(vfs, number))["state"] != "done" or await world.get("two") is None:
            await asyncio.sleep(0.5)
        while await world.at(vfs, "three") is None:
            await asyncio.sleep(0.5)
    assert world.proxy.injected == 3
    assert await world.contents(vfs, "d/one") == b"1" * 300_000
