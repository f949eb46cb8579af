"""Buckets follow the files of their links: what is written, renamed and removed here, read by other clients."""

import asyncio
import errno
import os
import stat
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from nacrefs.client.vfs import Vfs
from nacrefs.common.answer import settle
from nacrefs.common.wire import ArchiveSpec, LinkSpec, OrderLink, RemoveLink, RenameFlag, Set, SetAttr, SetLink
from nacrefs.mds.fsck.job import fsck
from tests.client.world import CRED, close, names, open_file, write_file
from tests.cluster.test_links import Bucket, Linked, linked
from tests.cluster.tier import LOST, Proxy
from tests.s3 import S3Server

ALL = ("new", "changed", "deleted")
NONE = RenameFlag(0)
SYMLINK = {"file-permissions": "0120777"}
"""What FSx for Lustre says of a symbolic link, among other things."""


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

    async def symlink(self, vfs: Vfs, path: str, target: bytes) -> int:
        """Make a symbolic link; its fid."""
        above, _, name = path.rpartition("/")
        parent = (await self.at(vfs, above)).fid if above else self.directory_fid
        made = (await settle(vfs.symlink(parent, name.encode(), target, CRED))).attr
        assert made is not None
        return made.fid

    async def pointing(self, vfs: Vfs, path: str) -> bytes | None:
        """What a symbolic link points at; None if there is something else, or nothing."""
        found = await self.at(vfs, path)
        return await settle(vfs.readlink(found.fid)) if found is not None and stat.S_ISLNK(found.mode) else None

    async def change(self, vfs: Vfs, path: str, offset: int, data: bytes) -> None:
        handle = await open_file(vfs, (await self.at(vfs, path)).fid, os.O_RDWR)
        await settle(vfs.write(handle, offset, memoryview(data)))
        await close(vfs, handle)


@pytest.fixture(params=["dir", "s3"])
async def world(
    request: pytest.FixtureRequest, s3: S3Server, tmp_path: Path, mdt_url: str | None
) -> AsyncGenerator[Sent]:
    async with AsyncExitStack() as stack:
        proxy: Proxy | None = None
        if request.param == "dir":
            (tmp_path / "archive").mkdir()
            bucket = Bucket(ArchiveSpec(0, "", "dir", f"file://{tmp_path}/archive"), None, tmp_path / "archive")
        else:
            proxy = await stack.enter_async_context(Proxy(s3.endpoint))
            url = f"s3://{s3.place()}"
            spec = ArchiveSpec(0, "", "s3", url, proxy.url, credentials=s3.credentials)
            bucket = Bucket(spec, s3.client(), tmp_path)
        made: Any = await stack.enter_async_context(linked(bucket, tmp_path, mdt_url))
        made.__class__ = Sent
        if proxy is not None:
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


@pytest.mark.both_engines
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


async def test_flush_waits_for_the_files_of_a_directory_that_was_moved(world: Sent) -> None:
    for number in range(5):
        world.bucket.put(f"tree0/{number}", b"%d" % number * 9000)
    vfs = await world.vfs()
    await world.link(vfs, auto_export=ALL)
    for turn in range(6):
        old, new = b"tree%d" % turn, b"tree%d" % (turn + 1)
        await settle(vfs.rename(world.directory_fid, old, world.directory_fid, new, NONE))
        await asyncio.sleep(0.07 * turn)  # wherever the exporter is when it is asked
        await world.flush(vfs)
        assert (await world.report(vfs))["unsent"] == 0
        for number in range(5):
            assert await world.get(f"tree{turn + 1}/{number}") == b"%d" % number * 9000


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
    await world.symlink(vfs, "link", b"f0")
    with pytest.raises(OSError, match="paused"):
        await world.flush(vfs)
    await world.restart_mds()
    assert (await world.report(vfs))["unsent"] == 21
    await vfs.session.mds.call(OrderLink(number, "resume"))
    await asyncio.sleep(1.2)
    await world.restart_mds()
    await world.flush(vfs)
    for name, data in contents.items():
        assert await world.get(name.decode()) == data
    assert await world.get("link") == b"f0"
    assert world.mds.mds.mdt.dirty == {}


async def test_modes_and_owners_go_along(world: Sent) -> None:
    vfs = await world.vfs()
    await world.link(vfs, auto_export=ALL)
    fid = await write_file(vfs, world.directory_fid, b"file", b"abc")
    await world.flush(vfs)
    await vfs.session.mds.call(SetAttr(fid, Set.MODE | Set.UID, mode=0o640, uid=77))
    await world.flush(vfs)
    number = (await world.report(vfs))["id"]
    store = await world.oss[0].mover.archives.of(world.mds.mds.hsm.archives[number])
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


@pytest.mark.parametrize("conflict", ["fail", "skip", "overwrite-if-dirty"])
async def test_what_others_have_written_since_is_not_overwritten(world: Sent, conflict: str) -> None:
    for key in ("file", "large"):
        world.bucket.put(key, b"first")
    vfs = await world.vfs()
    await world.link(vfs, auto_export=ALL, conflict=conflict)
    for key in ("file", "large"):
        await world.contents(vfs, key)
    await world.back(vfs)
    contents = {"file": b"theirs now", "large": b"theirs, too", "new": b"theirs as well"}
    for key, data in contents.items():  # before ours, which go out by themselves after a while
        world.bucket.put(key, data)
    await world.change(vfs, "file", 0, b"OURS!")
    await world.change(vfs, "large", 0, b"OURS!" * 4_000_000)
    await write_file(vfs, world.directory_fid, b"new", b"OURS!")
    if conflict == "fail":
        with pytest.raises(OSError, match="somebody else has (replaced|made) it since"):
            await world.flush(vfs)
        assert (await world.report(vfs))["unsent"] == 3
    else:
        await world.flush(vfs)
        assert (await world.report(vfs))["unsent"] == 0
    for key, data in contents.items():
        assert await world.get(key) == data
        here = await world.contents(vfs, key)
        assert here == data if conflict == "overwrite-if-dirty" else here.startswith(b"OURS!")
    if conflict == "fail":  # who wants his own version to stay deletes the object
        for key in contents:
            world.bucket.delete(key)
        await world.flush(vfs)
        assert [(await world.get(key) or b"")[:5] for key in contents] == [b"OURS!"] * 3


async def test_an_object_whose_answer_was_lost_is_our_own(world: Sent) -> None:
    if world.bucket.spec.kind == "dir":
        pytest.skip("no server")
    world.bucket.put("file", b"first")
    vfs = await world.vfs()
    await world.link(vfs, auto_export=ALL)
    world.proxy.fail("PUT", LOST, 8)
    await world.change(vfs, "file", 0, b"SECOND")
    await write_file(vfs, world.directory_fid, b"new", b"new")
    await world.flush(vfs)
    assert world.proxy.injected == 8
    assert (await world.get("file"), await world.get("new")) == (b"SECOND", b"new")
    assert (await world.refresh(vfs))["last"]["conflicts"] == 0


async def test_what_is_no_file_is_not_sent_and_a_refresh_leaves_it(world: Sent) -> None:
    vfs = await world.vfs()
    await world.link(vfs, auto_export=ALL)
    await settle(vfs.mknod(world.directory_fid, b"pipe", stat.S_IFIFO | 0o600, 0, CRED))
    await write_file(vfs, world.directory_fid, b"was", b"a file")
    await world.flush(vfs)
    assert await world.get("was") == b"a file"
    await settle(vfs.mknod(world.directory_fid, b"new", stat.S_IFIFO | 0o600, 0, CRED))
    await settle(vfs.rename(world.directory_fid, b"new", world.directory_fid, b"was", NONE))
    await world.gone("was")
    await settle(vfs.mkdir(world.directory_fid, b"empty", 0o755, CRED))
    await write_file(vfs, world.directory_fid, b"file", b"abc")
    await world.flush(vfs)
    assert (await world.refresh(vfs))["last"]["keys"] == 1
    assert [await world.get(key) for key in ("file", "pipe", "empty/")] == [b"abc", None, None]
    assert sorted(await names(vfs, world.directory_fid)) == [b"empty", b"file", b"pipe", b"was"]


async def test_symbolic_links_are_objects_with_their_targets_and_come_back_as_links(world: Sent) -> None:
    vfs, other = await world.vfs(), await world.vfs()
    number = (await world.link(vfs, auto_export=ALL))["id"]
    await settle(vfs.mkdir(world.directory_fid, b"d", 0o755, CRED))
    targets = {"link": b"d/up", "d/up": b"../\xc3\xa9 x", "d/dangling": b"/\xff/" + b"x" * 4000}
    for path, target in targets.items():
        await world.symlink(vfs, path, target)
    await world.flush(other)
    assert {path: await world.get(path) for path in targets} == targets
    store = await world.oss[0].mover.archives.of(world.mds.mds.hsm.archives[number])
    meta = dict((await store.head("link")).meta)
    assert (meta["file-permissions"], meta["file-owner"]) == ("0120777", str(CRED.uid))
    last = (await world.refresh(vfs))["last"]
    assert (last["keys"], last["new"], last["changed"], last["deleted"], last["conflicts"]) == (3, 0, 0, 0, 0)
    assert await fsck(world.mds.mds) == []
    await vfs.session.mds.call(RemoveLink(number))
    await settle(vfs.rename(1, b"data", 1, b"before", NONE))
    report = await world.link(vfs, details=True)
    assert (report["last"]["new"], report["released"]) == (3, 0)
    assert {path: await world.pointing(other, path) for path in targets} == targets


async def test_symbolic_links_that_move_or_go_or_are_replaced(world: Sent) -> None:
    vfs = await world.vfs()
    await world.link(vfs, auto_export=ALL)
    root = world.directory_fid
    tree = (await settle(vfs.mkdir(root, b"tree", 0o755, CRED))).attr
    assert tree is not None
    before = ("a", "gone", "away", "again", "becomes", "tree/x")
    fids = {path: await world.symlink(vfs, path, b"to " + path.encode()) for path in before}
    await write_file(vfs, root, b"was", b"a file")
    await world.flush(vfs)
    assert [await world.get(path) for path in before] == [b"to " + path.encode() for path in before]
    await settle(vfs.rename(root, b"a", root, b"a2", NONE))
    await settle(vfs.unlink(root, b"gone"))
    await settle(vfs.rename(root, b"away", 1, b"away", NONE))
    await settle(vfs.rename(root, b"tree", root, b"wood", NONE))
    await settle(vfs.unlink(root, b"again"))
    await world.symlink(vfs, "again", b"elsewhere")
    await write_file(vfs, root, b"file", b"a file now")
    await settle(vfs.rename(root, b"file", root, b"becomes", NONE))
    await world.symlink(vfs, "link", b"a link now")
    await settle(vfs.rename(root, b"link", root, b"was", NONE))
    await world.flush(vfs)
    await world.gone("a", "gone", "away", "tree/x", "file", "link")
    after = {
        "a2": b"to a", "wood/x": b"to tree/x", "again": b"elsewhere", "becomes": b"a file now", "was": b"a link now",
    }  # fmt: skip
    assert {path: await world.get(path) for path in after} == after
    last = (await world.refresh(vfs))["last"]
    assert (last["keys"], last["new"], last["changed"], last["deleted"], last["conflicts"]) == (5, 0, 0, 0, 0)
    assert await world.contents(vfs, "becomes") == b"a file now"
    assert await world.pointing(vfs, "was") == b"a link now"
    assert world.mds.mds.hsm.state(fids["away"]).flags == 0
    assert await settle(vfs.readlink(fids["away"])) == b"to away"
    assert await fsck(world.mds.mds) == []


@pytest.mark.parametrize("conflict", ["fail", "skip", "overwrite-if-dirty"])
async def test_symbolic_links_replace_nothing_of_others(world: Sent, conflict: str) -> None:
    vfs = await world.vfs()
    await world.link(vfs, auto_export=ALL, conflict=conflict)
    paths = ["new", "sent", "link"] if world.bucket.has_metadata else ["new"]
    if "sent" in paths:
        fid = await world.symlink(vfs, "sent", b"ours")
        await world.flush(vfs)
        world.bucket.put("sent", b"theirs")
        world.bucket.put("link", b"theirs", Metadata=SYMLINK)
        await vfs.session.mds.call(SetAttr(fid, Set.UID, uid=77))
        await world.symlink(vfs, "link", b"ours")
    world.bucket.put("new", b"theirs")
    await world.symlink(vfs, "new", b"ours")
    if conflict == "fail":
        with pytest.raises(OSError, match="somebody else has (replaced|made) it since"):
            await world.flush(vfs)
        assert (await world.report(vfs))["unsent"] == len(paths)
    else:
        await world.flush(vfs)
        assert (await world.report(vfs))["unsent"] == 0
    for path in paths:
        assert await world.get(path) == b"theirs"
        if conflict != "overwrite-if-dirty":
            assert await world.pointing(vfs, path) == b"ours"
        elif path == "link":
            assert await world.pointing(vfs, path) == b"theirs"
        else:
            assert await world.contents(vfs, path) == b"theirs"
    if conflict == "fail":
        for path in paths:
            world.bucket.delete(path)
        await world.flush(vfs)
        assert {await world.get(path) for path in paths} == {b"ours"}
    if conflict != "skip":
        last = (await world.refresh(vfs))["last"]
        assert (last["new"], last["changed"], last["deleted"], last["conflicts"]) == (0, 0, 0, 0)
    assert await fsck(world.mds.mds) == []


@pytest.mark.parametrize("details", [False, True])
async def test_symbolic_links_follow_what_others_do_to_their_objects(world: Sent, details: bool) -> None:
    vfs = await world.vfs()
    await world.link(vfs, auto_export=ALL, details=details)
    for path in ("file", "gone", "link"):
        await world.symlink(vfs, path, b"ours")
    await world.flush(vfs)
    world.bucket.put("file", b"a file now")
    world.bucket.delete("gone")
    if world.bucket.has_metadata:
        world.bucket.put("link", b"theirs", Metadata=SYMLINK)
    await world.refresh(vfs)
    assert await world.contents(vfs, "file") == b"a file now"
    assert await world.at(vfs, "gone") is None
    assert await world.pointing(vfs, "link") == (b"theirs" if world.bucket.has_metadata else b"ours")
    last = (await world.refresh(vfs))["last"]
    assert (last["new"], last["changed"], last["deleted"], last["conflicts"]) == (0, 0, 0, 0)
    await world.flush(vfs)
    assert await world.get("file") == b"a file now"


async def test_a_limit_bounds_what_goes_out_and_can_be_changed(world: Sent) -> None:
    vfs = await world.vfs()
    await world.link(vfs)
    report = await world.report(vfs)
    spec = LinkSpec(report["id"], 0, auto_export=ALL)
    await vfs.session.mds.call(SetLink(spec, ArchiveSpec(0, "", "", "", rate_mibps=2.0)))
    await world.restart_mds()
    pace = world.mds.mds.hsm.movers
    assert pace.rate_of(report["id"]) == 2 << 20
    assert (await world.report(vfs))["limit_mibps"] == 2.0
    await vfs.session.mds.call(SetLink(spec, ArchiveSpec(0, "", "", "")))
    assert pace.rate_of(report["id"]) == 0
