"""Buckets follow the files of their links: what is written, renamed and removed here, read by other clients."""

import asyncio
import errno
import os
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from nacrefs.client.vfs import Vfs
from nacrefs.common.answer import settle
from nacrefs.common.wire import ArchiveSpec, OrderLink, RenameFlag, Set, SetAttr
from tests.client.world import CRED, close, open_file, write_file
from tests.cluster.test_links import Bucket, Linked, linked
from tests.cluster.tier import Proxy
from tests.s3 import S3Server

ALL = ("new", "changed", "deleted")
NONE = RenameFlag(0)


class Sent(Linked):
    """A link whose bucket follows."""

    proxy: Proxy

    async def flush(self, vfs: Vfs) -> None:
        await vfs.session.mds.call(OrderLink((await self.report(vfs))["id"], "flush"))

    async def gone(self, *keys: str) -> None:
        """Wait until objects are deleted, which `flush` does not."""
        async with asyncio.timeout(30):
            while any([await self.get(key) is not None for key in keys]):
                await asyncio.sleep(0.05)

    async def get(self, key: str) -> bytes | None:
        return await asyncio.to_thread(self.bucket.get, key)

    async def change(self, vfs: Vfs, path: str, offset: int, data: bytes) -> None:
        handle = await open_file(vfs, (await self.at(vfs, path)).fid, os.O_RDWR)
        await settle(vfs.write(handle, offset, memoryview(data)))
        await close(vfs, handle)


@pytest.fixture(params=["dir", "s3"])
async def world(request: pytest.FixtureRequest, tmp_path: Path, s3: S3Server) -> AsyncGenerator[Sent]:
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(Proxy(s3.endpoint))
        if request.param == "dir":
            (tmp_path / "archive").mkdir()
            bucket = Bucket(ArchiveSpec(0, "", "dir", f"file://{tmp_path}/archive"), None, tmp_path / "archive")
        else:
            url = f"s3://{s3.bucket()}/some/prefix"
            spec = ArchiveSpec(0, "", "s3", url, proxy.url, credentials=s3.credentials)
            bucket = Bucket(spec, s3.client(), tmp_path)
        made: Any = await stack.enter_async_context(linked(bucket, tmp_path))
        made.__class__ = Sent
        made.proxy = proxy
        yield made
        store = made.mds.mds.mdt.store
        assert dict(store.fetchall(store.statements.link_dirties)) == made.mds.mds.mdt.dirty


async def test_files_are_plain_objects_after_a_flush(world: Sent) -> None:
    vfs, other = await world.vfs(), await world.vfs()
    await world.link(vfs, auto_export=ALL)
    below = (await settle(vfs.mkdir(world.directory_fid, b"d", 0o755, CRED))).attr
    assert below is not None
    contents = {"small": b"abc", "empty": b"", "d/large": os.urandom(20 * (1 << 20) + 5), "d/\u00e9 %~": b"x" * 70_000}
    for path, data in contents.items():
        parent = below.fid if "/" in path else world.directory_fid
        await write_file(vfs, parent, path.rpartition("/")[2].encode(), data)
    outside = await write_file(vfs, 1, b"outside", b"not in the link")
    await world.flush(other)
    for path, data in contents.items():
        assert await world.get(path) == data
    assert (await world.report(vfs))["unsent"] == 0
    assert outside not in world.mds.mds.mdt.dirty
    last = (await world.refresh(vfs))["last"]
    assert (last["keys"], last["new"], last["changed"], last["deleted"], last["conflicts"]) == (4, 0, 0, 0, 0)
    for path, data in contents.items():
        assert await world.contents(other, path) == data


async def test_what_is_changed_here_is_changed_there_by_itself(world: Sent) -> None:
    world.bucket.put("file", b"before" * 1000)
    world.bucket.put("untouched", b"x")
    vfs = await world.vfs()
    await world.link(vfs, auto_export=ALL)
    await world.change(vfs, "file", 6, b"AFTER!")
    async with asyncio.timeout(30):
        while await world.get("file") != b"before" + b"AFTER!" + b"before" * 998:
            await asyncio.sleep(0.1)
    last = (await world.refresh(vfs))["last"]
    assert (last["changed"], last["conflicts"]) == (0, 0)


async def test_files_that_are_open_are_sent_when_they_are_closed(world: Sent) -> None:
    vfs, other = await world.vfs(), await world.vfs()
    await world.link(vfs, auto_export=ALL)
    _, handle = await settle(vfs.create(world.directory_fid, b"open", 0o644, os.O_RDWR | os.O_CREAT, CRED))
    await settle(vfs.write(handle.number, 0, memoryview(b"not closed yet" * 5000)))
    await write_file(vfs, world.directory_fid, b"closed", b"closed")
    with pytest.raises(OSError, match="1 files are open for writing"):
        await world.flush(other)
    assert await world.get("closed") == b"closed"
    await settle(vfs.write(handle.number, 0, memoryview(b"NOT")))
    await close(vfs, handle.number)
    await world.flush(other)
    assert await world.get("open") == b"NOT closed yet" + b"not closed yet" * 4999


async def test_names_that_move_or_go(world: Sent) -> None:
    for key in ("a", "b", "c", "tree/x/1", "tree/2", "away", "gone"):
        world.bucket.put(key, key.encode() * 9000)
    vfs = await world.vfs()
    await world.link(vfs, auto_export=ALL)
    root = world.directory_fid
    await settle(vfs.rename(root, b"a", root, b"a2", NONE))
    await settle(vfs.rename(root, b"b", root, b"c", NONE))
    await settle(vfs.rename(root, b"tree", root, b"wood", NONE))
    await settle(vfs.rename(root, b"away", 1, b"away", NONE))
    await settle(vfs.unlink(root, b"gone"))
    await world.flush(vfs)
    await world.gone("a", "b", "tree/x/1", "tree/2", "away", "gone")
    assert await world.get("a2") == b"a" * 9000
    assert await world.get("c") == b"b" * 9000
    assert await world.get("wood/x/1") == b"tree/x/1" * 9000
    assert await world.get("wood/2") == b"tree/2" * 9000
    last = (await world.refresh(vfs))["last"]
    assert (last["keys"], last["new"], last["changed"], last["deleted"]) == (4, 0, 0, 0)
    found = (await settle(vfs.lookup(1, b"away"))).attr
    assert found is not None
    assert world.mds.mds.hsm.state(found.fid).flags == 0


async def test_writing_to_another_name_and_renaming_it(world: Sent) -> None:
    world.bucket.put("file", b"old")
    vfs = await world.vfs()
    await world.link(vfs, auto_export=ALL)
    for turn in range(3):
        await write_file(vfs, world.directory_fid, b"file.tmp", b"new %d" % turn)
        await settle(vfs.rename(world.directory_fid, b"file.tmp", world.directory_fid, b"file", NONE))
    await world.flush(vfs)
    await world.gone("file.tmp")
    assert await world.get("file") == b"new 2"
    await settle(vfs.unlink(world.directory_fid, b"file"))
    await write_file(vfs, world.directory_fid, b"file", b"again")
    await world.flush(vfs)
    assert await world.get("file") == b"again"
    await asyncio.sleep(0.5)
    assert await world.get("file") == b"again"


async def test_only_what_is_followed_is_sent(world: Sent) -> None:
    world.bucket.put("old", b"old")
    world.bucket.put("kept", b"kept")
    vfs = await world.vfs()
    await world.link(vfs, auto_export=("new",))
    await write_file(vfs, world.directory_fid, b"new", b"new")
    await world.change(vfs, "old", 0, b"OLD")
    await settle(vfs.unlink(world.directory_fid, b"kept"))
    await world.flush(vfs)
    assert (await world.get("new"), await world.get("old"), await world.get("kept")) == (b"new", b"old", b"kept")
    await world.until(vfs, lambda report: report["unsent"] == 0)


async def test_nothing_is_lost_over_restarts(world: Sent) -> None:
    vfs = await world.vfs()
    await world.link(vfs, auto_export=ALL)
    number = (await world.report(vfs))["id"]
    await vfs.session.mds.call(OrderLink(number, "pause"))
    contents = {b"f%d" % n: b"%d" % n * 40_000 for n in range(20)}
    for name, data in contents.items():
        await write_file(vfs, world.directory_fid, name, data)
    with pytest.raises(OSError, match="paused"):
        await world.flush(vfs)
    await world.restart_mds()
    assert (await world.report(vfs))["unsent"] == 20
    await vfs.session.mds.call(OrderLink(number, "resume"))
    await asyncio.sleep(1.2)
    await world.restart_mds()
    await world.flush(vfs)
    for name, data in contents.items():
        assert await world.get(name.decode()) == data
    assert world.mds.mds.mdt.dirty == {}


async def test_modes_and_owners_go_along(world: Sent) -> None:
    vfs = await world.vfs()
    await world.link(vfs, auto_export=ALL)
    fid = await write_file(vfs, world.directory_fid, b"file", b"abc")
    await world.flush(vfs)
    await vfs.session.mds.call(SetAttr(fid, Set.MODE | Set.UID, mode=0o640, uid=77))
    await world.flush(vfs)
    number = (await world.report(vfs))["id"]
    store = world.oss[0].mover.archives.of(world.mds.mds.hsm.archives[number])
    meta = dict((await store.head("file")).meta)
    assert (meta["file-permissions"], meta["file-owner"]) == ("0100640", "77")


async def test_a_server_that_fails_is_tried_again_and_one_that_refuses_is_told(world: Sent) -> None:
    if world.bucket.spec.kind == "dir":
        pytest.skip("no server")
    vfs = await world.vfs()
    await world.link(vfs, auto_export=ALL)
    world.proxy.fail("PUT", 503, 8)
    await write_file(vfs, world.directory_fid, b"one", b"1" * 1000)
    await world.flush(vfs)
    assert await world.get("one") == b"1" * 1000
    assert world.proxy.injected == 8
    world.proxy.fail("PUT", 403, 1)
    await write_file(vfs, world.directory_fid, b"two", b"2" * 1000)
    with pytest.raises(OSError, match="access denied") as caught:
        await world.flush(vfs)
    assert caught.value.errno == errno.EIO
    report = await world.report(vfs)
    assert report["unsent"] == 1
    assert "access denied" in next(iter(report["unsent_reasons"].values()))
    assert any("access denied" in line for line in await world.log(vfs))
    await world.flush(vfs)
    assert await world.get("two") == b"2" * 1000
