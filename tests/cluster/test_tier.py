"""The lifecycle tier over a real cluster: out to an archive and back, on every kind of archive."""

import asyncio
import errno
import json
import os
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from nacrefs.client.vfs import Vfs
from nacrefs.common.answer import settle
from nacrefs.common.wire import (
    ArchiveSpec,
    HsmAction,
    HsmFlag,
    HsmRequest,
    ImportArchive,
    RenameFlag,
    SaveCatalogue,
    Set,
    SetArchive,
    SetAttr,
    XattrFlag,
)
from nacrefs.mds.check import check
from tests.client.world import CRED, close, cluster, open_file, read, read_file, write_file
from tests.cluster.tier import ROOT, Tier, add_archive, attr, tier_on

SIZE = 20 * (1 << 20) + 12345


@pytest.fixture(params=["dir", "s3"])
async def tier(
    request: pytest.FixtureRequest, s3_archive: ArchiveSpec, tmp_path: Path, mdt_url: str | None
) -> AsyncGenerator[Tier]:
    (tmp_path / "archive").mkdir()
    spec = s3_archive if request.param == "s3" else ArchiveSpec(0, "cold", "dir", f"file://{tmp_path}/archive")
    async with tier_on(tmp_path / "c", mdt_url) as made:
        await add_archive(made, spec)
        yield made


@pytest.mark.parametrize("size", [0, 1, 5000, 100_000, 8 << 20, SIZE])
async def test_a_file_goes_out_and_comes_back_by_being_read(tier: Tier, size: int) -> None:
    one, two = await tier.vfs(), await tier.vfs()
    data = os.urandom(size)
    fid = await write_file(one, ROOT, b"file", data)
    before = await attr(two, fid)
    await tier.archived(fid, release=size > 0)
    after = await attr(two, fid)
    assert (after.size, after.mtime_ns, after.mode) == (before.size, before.mtime_ns, before.mode)
    if size:
        assert tier.objects() == []
        assert after.blocks == 1
    assert await read_file(two, ROOT, b"file") == data
    assert await read_file(one, ROOT, b"file") == data
    state = await tier.over(fid)
    assert state.flags == HsmFlag.EXISTS | HsmFlag.ARCHIVED
    assert check(tier.mds.mds.mdt.store) == []


async def test_metadata_operations_do_not_bring_it_back(tier: Tier) -> None:
    vfs = await tier.vfs()
    fid = await write_file(vfs, ROOT, b"file", os.urandom(300_000))
    await tier.archived(fid)
    await attr(vfs, fid)
    await vfs.session.mds.call(SetAttr(fid, Set.MODE, mode=0o600))
    await settle(vfs.rename(ROOT, b"file", ROOT, b"other", RenameFlag(0)))
    await settle(vfs.lookup(ROOT, b"other"))
    handle = await open_file(vfs, fid)
    await close(vfs, handle)
    assert (await tier.state(fid)).flags & HsmFlag.RELEASED
    await settle(vfs.unlink(ROOT, b"other"))
    async with asyncio.timeout(20):
        while await tier.keys():
            await asyncio.sleep(0.05)
    assert tier.objects() == []


async def test_opening_with_truncation_does_not_bring_it_back(tier: Tier) -> None:
    vfs = await tier.vfs()
    fid = await write_file(vfs, ROOT, b"file", os.urandom(300_000))
    await tier.archived(fid)
    handle = await open_file(vfs, fid, os.O_WRONLY | os.O_TRUNC)
    await settle(vfs.write(handle, 0, memoryview(b"new")))
    await close(vfs, handle)
    assert await read_file(await tier.vfs(), ROOT, b"file") == b"new"
    state = await tier.state(fid)
    assert state.action != HsmAction.RESTORE
    assert state.flags == HsmFlag.EXISTS | HsmFlag.ARCHIVED | HsmFlag.DIRTY


async def test_writing_and_cutting_wait_until_it_is_back(tier: Tier) -> None:
    one, two = await tier.vfs(), await tier.vfs()
    data = bytearray(os.urandom(3_000_000))
    fid = await write_file(one, ROOT, b"file", bytes(data))
    await tier.archived(fid)
    handle = await open_file(two, fid, os.O_RDWR)
    await settle(two.write(handle, 1_500_000, memoryview(b"changed")))
    await close(two, handle)
    data[1_500_000:1_500_007] = b"changed"
    assert await read_file(one, ROOT, b"file") == bytes(data)
    assert (await tier.over(fid)).flags & HsmFlag.DIRTY
    await tier.archived(fid)
    await one.session.mds.call(SetAttr(fid, Set.SIZE, size=2_000_001))
    assert await read_file(two, ROOT, b"file") == bytes(data[:2_000_001])


async def test_dirty_open_and_pinned_files_are_not_released(tier: Tier) -> None:
    vfs = await tier.vfs()
    fid = await write_file(vfs, ROOT, b"file", b"x" * 100_000)
    await tier.archived(fid, release=False)
    handle = await open_file(vfs, fid)
    state = await tier.act(HsmAction.RELEASE, fid)
    assert (state.state, state.reason) == ("FAILED", "it is open")
    await close(vfs, handle)
    await settle(vfs.setxattr(fid, b"nacre.hsm", b"set norelease", XattrFlag(0)))
    with pytest.raises(OSError, match="norelease"):
        await settle(vfs.setxattr(fid, b"nacre.hsm", b"release", XattrFlag(0)))
    await settle(vfs.setxattr(fid, b"nacre.hsm", b"clear norelease", XattrFlag(0)))
    handle = await open_file(vfs, fid, os.O_WRONLY)
    await settle(vfs.write(handle, 5, memoryview(b"y")))
    await close(vfs, handle)
    state = await tier.act(HsmAction.RELEASE, fid)
    assert "changed since" in state.reason
    report = json.loads(await settle(vfs.getxattr(fid, b"nacre.hsm")))
    assert report["names"] == ["exists", "dirty", "archived"]


async def test_nonblocking_opens_get_eagain_and_the_file_comes(tier: Tier) -> None:
    vfs = await tier.vfs()
    fid = await write_file(vfs, ROOT, b"file", b"z" * 200_000)
    await tier.archived(fid)
    await attr(vfs, fid)
    with pytest.raises(BlockingIOError):
        await open_file(vfs, fid, os.O_RDONLY | os.O_NONBLOCK)
    await tier.over(fid)
    handle = await open_file(vfs, fid, os.O_RDONLY | os.O_NONBLOCK)
    assert await read(vfs, handle) == b"z" * 200_000
    await close(vfs, handle)


async def test_a_sparse_file_stays_sparse(tier: Tier) -> None:
    vfs = await tier.vfs()
    fid = await write_file(vfs, ROOT, b"file", b"start")
    handle = await open_file(vfs, fid, os.O_RDWR)
    await settle(vfs.write(handle, 12 << 20, memoryview(b"end")))
    await close(vfs, handle)
    await tier.archived(fid)
    assert await read_file(vfs, ROOT, b"file") == b"start".ljust(12 << 20, b"\0") + b"end"
    await tier.over(fid)
    assert (await attr(await tier.vfs(), fid)).blocks < 2000


@pytest.mark.both_engines
async def test_removing_while_it_comes_back_leaves_nothing(tier: Tier) -> None:
    one = await tier.vfs()
    fid = await write_file(one, ROOT, b"file", os.urandom(SIZE))
    await tier.archived(fid)
    reading = asyncio.ensure_future(read_file(one, ROOT, b"file"))
    await asyncio.sleep(0.02)
    two = await tier.vfs()
    await settle(two.unlink(ROOT, b"file"))
    await asyncio.gather(reading, return_exceptions=True)
    async with asyncio.timeout(30):
        while tier.objects() or await tier.keys() or tier.mds.mds.hsm.active:
            await asyncio.sleep(0.05)


async def test_a_file_that_changes_while_it_is_copied_is_copied_again(tier: Tier) -> None:
    vfs = await tier.vfs()
    data = bytearray(os.urandom(SIZE))
    fid = await write_file(vfs, ROOT, b"file", bytes(data))
    await tier.mds.mds.hsm.request(HsmAction.ARCHIVE, fid, 0, 0)
    handle = await open_file(vfs, fid, os.O_RDWR)
    for turn in range(5):
        await settle(vfs.write(handle, turn * 1000, memoryview(b"turn")))
        data[turn * 1000 : turn * 1000 + 4] = b"turn"
        await settle(vfs.fsync(handle, False))
    await close(vfs, handle)
    state = await tier.over(fid)
    assert state.state == "SUCCEED", state
    if state.flags & HsmFlag.DIRTY:
        await tier.archived(fid, release=False)
    await tier.archived(fid)
    assert await read_file(await tier.vfs(), ROOT, b"file") == bytes(data)
    assert len(await tier.keys()) == 1


async def test_what_is_canceled_at_any_moment_has_ended_and_the_file_is_free(tier: Tier) -> None:
    vfs = await tier.vfs()
    fid = await write_file(vfs, ROOT, b"file", b"x" * 20_000)
    for turns in range(60):  # more of them than may be under way at a time
        await tier.hsm.request(HsmAction.ARCHIVE, fid, 0, 0)
        for _ in range(turns):
            await asyncio.sleep(0)
        async with asyncio.timeout(20):
            await tier.hsm.cancel(fid)
        assert fid not in tier.hsm.active
        await tier.act(HsmAction.REMOVE, fid)
    await tier.archived(fid)
    assert await read_file(vfs, ROOT, b"file") == b"x" * 20_000
    await tier.over(fid)
    await tier.whole()


async def test_what_has_failed_is_over_also_if_it_is_canceled_while_that_is_written_down(tier: Tier) -> None:
    vfs = await tier.vfs()
    fid = await write_file(vfs, ROOT, b"file", b"x" * 100_000)
    await tier.archived(fid, release=False)
    handle = await open_file(vfs, fid)
    action = await tier.hsm.request(HsmAction.RELEASE, fid, 0, 0)
    assert action is not None
    while not action.row.attempts or action.stoppable:
        await asyncio.sleep(0)
    assert tier.hsm.active[fid] is action
    async with asyncio.timeout(20):
        await tier.hsm.cancel(fid)
    assert fid not in tier.hsm.active
    assert (await tier.state(fid)).reason == "it is open"
    await close(vfs, handle)


async def test_what_two_ask_for_at_the_same_time_is_one_action(tier: Tier) -> None:
    vfs = await tier.vfs()
    fid = await write_file(vfs, ROOT, b"file", b"x" * 100_000)
    await tier.archived(fid)
    one, two = await asyncio.gather(*(tier.hsm.request(HsmAction.RESTORE, fid, 0, uid) for uid in (0, 7)))
    assert one is two
    state = await tier.over(fid)
    assert (state.action, state.state, state.reason) == (HsmAction.RESTORE, "SUCCEED", "")


async def test_the_mds_restarts_in_the_middle(tier: Tier) -> None:
    vfs = await tier.vfs()
    data = os.urandom(SIZE)
    fid = await write_file(vfs, ROOT, b"file", data)
    await tier.mds.mds.hsm.request(HsmAction.ARCHIVE, fid, 0, 0)
    await asyncio.sleep(0.05)
    await tier.restart_mds()
    async with asyncio.timeout(40):
        while not (await tier.state(fid)).flags & HsmFlag.ARCHIVED:
            await asyncio.sleep(0.05)
    await tier.archived(fid)
    reading = asyncio.ensure_future(read_file(vfs, ROOT, b"file"))
    await asyncio.sleep(0.05)
    await tier.restart_mds()
    assert await reading == data
    assert await (await tier.store()).uploads() == []


async def test_a_lost_copy_is_an_error_with_a_reason(tier: Tier) -> None:
    vfs = await tier.vfs()
    fid = await write_file(vfs, ROOT, b"file", b"q" * 100_000)
    await tier.archived(fid)
    await (await tier.store()).delete(await tier.keys())
    with pytest.raises(OSError, match=".") as caught:
        await read_file(vfs, ROOT, b"file")
    assert caught.value.errno == errno.EIO
    state = await tier.over(fid)
    assert state.flags & HsmFlag.LOST
    assert "object" in state.reason or "No such file" in state.reason


async def test_wrong_bytes_are_never_served(tier: Tier) -> None:
    vfs = await tier.vfs()
    fid = await write_file(vfs, ROOT, b"file", b"q" * 100_000)
    await tier.archived(fid)
    (key,) = await tier.keys()
    store = await tier.store()
    about = await store.head(key)
    await store.put(key, [memoryview(b"q" * 99_999 + b"!")], dict(about.meta))
    with pytest.raises(OSError, match=".") as caught:
        await read_file(vfs, ROOT, b"file")
    assert caught.value.errno == errno.EIO


async def test_the_bucket_alone_is_enough(tier: Tier, tmp_path: Path) -> None:
    vfs = await tier.vfs()
    directory = (await settle(vfs.mkdir(ROOT, b"dir", 0o750, CRED))).attr
    assert directory is not None
    contents = {
        b"small": b"abc",
        b"large": os.urandom(9_000_000),
        b"odd %\xff name~x": os.urandom(70_000),
        b"empty": b"",
    }
    want: dict[bytes, tuple[int, int, int, int, int]] = {}
    for name, data in contents.items():
        fid = await write_file(vfs, directory.fid, name, data)
        valid = Set.MODE | Set.UID | Set.GID | Set.MTIME
        request = SetAttr(fid, valid, mode=0o640, uid=7, gid=8, mtime_ns=123_456_789_012)
        await vfs.session.mds.call(request)
        now = await attr(vfs, fid)
        want[name] = (now.mode, now.uid, now.gid, now.size, now.mtime_ns)
        await tier.archived(fid, release=False)
    (tmp_path / "d").mkdir()
    other = cluster(tmp_path / "d")
    async with other:
        again = await other.vfs()
        await again.session.mds.call(SetArchive(replace(tier.spec, id=0)))
        done = await again.session.mds.call(ImportArchive("cold", ROOT))
        assert (done.made, done.problems, done.after) == (4, (), "")
        assert (await again.session.mds.call(ImportArchive("cold", ROOT))).made == 0
        found = (await settle(again.lookup(ROOT, b"dir"))).attr
        assert found is not None
        for name, data in contents.items():
            now = (await settle(again.lookup(found.fid, name))).attr
            assert now is not None
            assert (now.mode, now.uid, now.gid, now.size, now.mtime_ns) == want[name]
            assert await read_file(again, found.fid, name) == data
        while other.mds.mds.hsm.active:
            await asyncio.sleep(0.01)


async def test_the_bucket_has_directories_links_and_what_changed_since(tier: Tier, tmp_path: Path) -> None:
    vfs = await tier.vfs()
    mds = vfs.session.mds

    def seen(one: Any) -> tuple[Any, ...]:
        return one.mode, one.nlink, one.uid, one.gid, one.size, one.mtime_ns, one.atime_ns

    async def make(parent: int, name: bytes, mode: int) -> int:
        made = (await settle(vfs.mkdir(parent, name, mode, CRED))).attr
        assert made is not None
        return made.fid

    top = await make(ROOT, b"top", 0o750)
    empty = await make(top, b"empty \xff", 0o711)
    large = os.urandom(19_000_000)
    fids = {
        name: await write_file(vfs, top, name, data)
        for name, data in {
            b"kept": b"k" * 70_000,
            b"large": large,
            b"gone": b"g" * 70_000,
            b"anew": b"a" * 70_000,
        }.items()
    }
    await settle(vfs.symlink(top, b"link", b"../some where", CRED))
    await settle(vfs.link(fids[b"kept"], empty, b"second"))
    for fid in fids.values():
        await tier.archived(fid, release=False)
    acl = bytes.fromhex("0200000001000600ffffffff02000400d204000004000400ffffffff10000600ffffffff20000000ffffffff")
    await vfs.setxattr(fids[b"kept"], b"user.colour", b"gr\0n", XattrFlag(0))
    await vfs.setxattr(fids[b"large"], b"system.posix_acl_access", acl, XattrFlag(0))
    await vfs.setxattr(top, b"user.of", b"a directory", XattrFlag(0))
    await mds.call(SetAttr(fids[b"large"], Set.UID | Set.GID | Set.MTIME, uid=17, gid=18, mtime_ns=5_000_000_001))
    await settle(vfs.rename(top, b"large", ROOT, b"moved", RenameFlag(0)))
    await mds.call(SetAttr(top, Set.MTIME | Set.ATIME, mtime_ns=77_000_000_000, atime_ns=78_000_000_000))
    directories = [seen(await attr(vfs, fid)) for fid in (top, empty)]
    saved = json.loads((await mds.call(SaveCatalogue("cold"))).report)
    assert (saved["records"], saved["uncopied"]) == (9, 0)
    assert json.loads((await mds.call(SaveCatalogue("cold"))).report)["records"] == 9
    # After the catalogue: one is removed, one is copied anew, one is new.
    await settle(vfs.unlink(top, b"gone"))
    handle = await open_file(vfs, fids[b"anew"], os.O_RDWR)
    await settle(vfs.write(handle, 0, memoryview(b"A")))
    await close(vfs, handle)
    await tier.archived(fids[b"anew"], release=False)
    await tier.archived(await write_file(vfs, top, b"new", b"n" * 70_000), release=False)
    async with asyncio.timeout(30):
        while tier.mds.mds.mdt.store.fetchall("SELECT key FROM hsm_gone"):
            await asyncio.sleep(0.05)

    async def found(some: Vfs, parent: int, name: bytes) -> Any:
        entry = (await settle(some.lookup(parent, name))).attr
        assert entry is not None, name
        return entry

    (tmp_path / "d").mkdir()
    async with cluster(tmp_path / "d") as other:
        again = await other.vfs()
        await again.session.mds.call(SetArchive(replace(tier.spec, id=0)))
        after, made = "", 0
        while True:
            done = await again.session.mds.call(ImportArchive("cold", ROOT, "", after))
            assert done.problems == ()
            made, after = made + done.made, done.after
            if not after:
                break
        assert made == 8
        new_top = await found(again, ROOT, b"top")
        new_empty = await found(again, new_top.fid, b"empty \xff")
        assert [seen(await attr(again, fid)) for fid in (new_top.fid, new_empty.fid)] == directories
        moved = await found(again, ROOT, b"moved")
        assert seen(moved) == seen(await attr(vfs, fids[b"large"]))
        assert await settle(again.getxattr(moved.fid, b"system.posix_acl_access")) == acl
        kept = await found(again, new_top.fid, b"kept")
        assert seen(kept) == seen(await attr(vfs, fids[b"kept"]))
        assert kept.fid == (await found(again, new_empty.fid, b"second")).fid
        assert await settle(again.getxattr(kept.fid, b"user.colour")) == b"gr\0n"
        assert await settle(again.getxattr(new_top.fid, b"user.of")) == b"a directory"
        link = await found(again, new_top.fid, b"link")
        assert await settle(again.readlink(link.fid)) == b"../some where"
        assert (await settle(again.lookup(new_top.fid, b"gone"))).attr is None
        assert await read_file(again, ROOT, b"moved") == large
        assert await read_file(again, new_top.fid, b"anew") == b"A" + b"a" * 69_999
        assert await read_file(again, new_top.fid, b"new") == b"n" * 70_000
        row = other.mds.mds.mdt.store.fetchall(f"SELECT digests FROM hsm WHERE fid = {moved.fid}")[0]
        assert len(row[0]) == 8 * 3
        while other.mds.mds.hsm.active:
            await asyncio.sleep(0.01)
        assert check(other.mds.mds.mdt.store) == []


async def test_many_small_files(tier: Tier) -> None:
    vfs = await tier.vfs()
    fids = [await write_file(vfs, ROOT, b"f%d" % n, b"%d" % n * 5000) for n in range(60)]
    answer = await vfs.session.mds.call(HsmRequest(HsmAction.ARCHIVE, tuple(fids)))
    assert all(number == 0 for number, _ in answer.errors)
    for fid in fids:
        await tier.over(fid)
        await tier.act(HsmAction.RELEASE, fid)
    assert tier.objects() == []
    parts = await asyncio.gather(*(read_file(vfs, ROOT, b"f%d" % n) for n in range(60)))
    assert parts == [b"%d" % n * 5000 for n in range(60)]
