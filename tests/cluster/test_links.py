"""Links of directories to bucket prefixes over a real cluster and real archives."""

import asyncio
import errno
import json
import os
import stat
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from nacrefs.client.vfs import Vfs
from nacrefs.common.answer import settle
from nacrefs.common.clock import Clock
from nacrefs.common.wire import (
    ArchiveSpec,
    GetLinkLog,
    GetLinks,
    HsmAction,
    HsmFlag,
    HsmRequest,
    LinkSpec,
    OrderLink,
    RemoveLink,
    RenameFlag,
    SetArchive,
    SetLink,
)
from nacrefs.mds.check import check
from nacrefs.mds.fsck.job import fsck
from tests.client.world import CRED, World, close, cluster, names, open_file, read, read_file, write_file
from tests.harness.clock import SettableClock
from tests.s3 import S3Server, boto3_client

ROOT = 1


class Bucket:
    """A bucket prefix, or a directory, as somebody else fills it."""

    def __init__(self, spec: ArchiveSpec, client: Any, directory: Path) -> None:
        self.spec = spec
        self.directory = directory
        self._client = client
        self._bucket, _, self._prefix = spec.url.removeprefix("s3://").partition("/")

    @property
    def has_metadata(self) -> bool:
        """Whether objects are on a server, which keeps others' metadata."""
        return self._client is not None

    def put(self, key: str, data: bytes, **options: Any) -> None:
        if self._client is not None:
            self._client.put_object(Bucket=self._bucket, Key=f"{self._prefix}/{key}", Body=data, **options)
        elif key.endswith("/"):
            (self.directory / key).mkdir(parents=True)
        else:
            path = self.directory / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    def delete(self, key: str) -> None:
        if self._client is not None:
            self._client.delete_object(Bucket=self._bucket, Key=f"{self._prefix}/{key}")
        else:
            (self.directory / key).unlink()

    def get(self, key: str) -> bytes | None:
        if self._client is not None:
            try:
                data: bytes = self._client.get_object(Bucket=self._bucket, Key=f"{self._prefix}/{key}")["Body"].read()
            except self._client.exceptions.NoSuchKey:
                return None
            return data
        path = self.directory / key
        return path.read_bytes() if path.exists() else None

    def close(self) -> None:
        if self._client is not None:
            self._client.close()


class Linked(World):
    """A cluster and a bucket."""

    bucket: Bucket
    directory_fid: int

    async def link(self, vfs: Vfs, **options: Any) -> dict[str, Any]:
        """Bind a new directory `data`, and wait until its names are there."""
        made = (await settle(vfs.mkdir(ROOT, b"data", 0o755, CRED))).attr
        assert made is not None
        self.directory_fid = made.fid
        report = json.loads(
            (await vfs.session.mds.call(SetLink(LinkSpec(0, made.fid, **options), self.bucket.spec))).report
        )
        if options.get("imports") == "none":
            return dict(report)
        return await self.refreshed(vfs, 1)

    async def report(self, vfs: Vfs) -> dict[str, Any]:
        reports = json.loads((await vfs.session.mds.call(GetLinks())).report)
        return next(dict(one) for one in reports if one["fid"] == self.directory_fid)

    async def refreshed(self, vfs: Vfs, number: int) -> dict[str, Any]:
        return await self.until(vfs, lambda one: one["ended"] >= number)

    async def until(self, vfs: Vfs, there: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        async with asyncio.timeout(50):
            while not there(report := await self.report(vfs)):
                await asyncio.sleep(0.02)
        return report

    async def back(self, vfs: Vfs, released: int = 0) -> None:
        """Wait until no more than so many files are in the bucket only, and what brought the others is over: that they
        are back is known a moment before."""
        await self.until(vfs, lambda report: report["released"] == released)
        async with asyncio.timeout(50):
            while self.mds.mds.hsm.active:
                await asyncio.sleep(0.01)

    async def refresh(self, vfs: Vfs) -> dict[str, Any]:
        before = await self.report(vfs)
        await vfs.session.mds.call(OrderLink(before["id"], "refresh"))
        return await self.refreshed(vfs, before["wanted"] + 1)

    async def problems(self, vfs: Vfs) -> dict[str, str]:
        number = (await self.report(vfs))["id"]
        rows = json.loads((await vfs.session.mds.call(GetLinkLog(number, "problems"))).report)
        return {row["key"]: row["reason"] for row in rows}

    async def log(self, vfs: Vfs) -> list[str]:
        number = (await self.report(vfs))["id"]
        return [row["text"] for row in json.loads((await vfs.session.mds.call(GetLinkLog(number))).report)]

    async def at(self, vfs: Vfs, path: str) -> Any:
        """Attributes of what a path below the linked directory stands for."""
        fid = self.directory_fid
        found: Any = None
        for part in path.split("/"):
            found = (await settle(vfs.lookup(fid, part.encode()))).attr
            if found is None:
                return None
            fid = found.fid
        return found

    async def contents(self, vfs: Vfs, path: str) -> bytes:
        above, _, name = path.rpartition("/")
        parent = (await self.at(vfs, above)).fid if above else self.directory_fid
        return await read_file(vfs, parent, name.encode())


@pytest.fixture(params=["dir", "s3"])
async def world(
    request: pytest.FixtureRequest, s3: S3Server, tmp_path: Path, mdt_url: str | None
) -> AsyncGenerator[Linked]:
    if request.param == "dir":
        (tmp_path / "archive").mkdir()
        bucket = Bucket(ArchiveSpec(0, "", "dir", f"file://{tmp_path}/archive"), None, tmp_path / "archive")
    else:
        url = f"s3://{s3.place()}"
        spec = ArchiveSpec(0, "", "s3", url, s3.endpoint, credentials=s3.credentials)
        bucket = Bucket(spec, s3.client(), tmp_path)
    async with linked(bucket, tmp_path, mdt_url) as made:
        yield made


@pytest.fixture
async def exact(s3: S3Server, cold_archive: ArchiveSpec, tmp_path: Path, mdt_url: str | None) -> AsyncGenerator[Linked]:
    """A bucket that takes all keys that S3 takes (SeaweedFS does not)."""
    spec = replace(cold_archive, name="", storage_class="", url=f"{cold_archive.url}/p")
    client = boto3_client(
        "s3", endpoint_url=spec.endpoint, aws_access_key_id="a", aws_secret_access_key="b", region_name="us-east-1"
    )
    async with linked(Bucket(spec, client, tmp_path), tmp_path, mdt_url) as made:
        yield made


@asynccontextmanager
async def linked(
    bucket: Bucket, tmp_path: Path, database: str | None = None, clock: Clock | None = None
) -> AsyncGenerator[Linked]:
    """A cluster beside a bucket."""
    (tmp_path / "c").mkdir()
    base = cluster(tmp_path / "c", stripe_count=4, stripe_size=1 << 20, database=database, clock=clock)
    base.__class__ = Linked
    made: Linked = base  # type: ignore[assignment]
    made.bucket = bucket
    async with made:
        yield made
        assert check(made.mds.mds.mdt.store) == []
    bucket.close()


async def test_names_are_there_at_once_and_bytes_when_they_are_read(world: Linked) -> None:
    contents = {
        "one": os.urandom(70_000),
        "deep/er/two": os.urandom(20 * (1 << 20) + 1),
        "deep/three": b"x",
        "empty": b"",
    }
    for key, data in contents.items():
        world.bucket.put(key, data)
    one, two = await world.vfs(), await world.vfs()
    report = await world.link(one)
    assert (report["last"]["new"], report["files"], report["released"], report["reason"]) == (4, 4, 3, "")
    assert sorted(await names(two, world.directory_fid)) == [b"deep", b"empty", b"one"]
    for key, data in contents.items():
        attr = await world.at(two, key)
        assert (attr.size, attr.mode) == (len(data), 0o100644)
    assert world.mds.mds.hsm.active == {}
    for key, data in contents.items():
        assert await world.contents(two, key) == data
        assert await world.contents(one, key) == data
    await world.back(one)
    report = await world.report(one)
    assert report["bytes"] == sum(map(len, contents.values()))


@pytest.mark.both_engines
async def test_refresh_follows_new_changed_and_deleted_keys(world: Linked) -> None:
    for key in ("same", "changed", "read and changed", "deleted", "d/deleted", "d/e/deleted"):
        world.bucket.put(key, b"before " * 1000)
    one, two = await world.vfs(), await world.vfs()
    await world.link(one)
    for key in ("same", "read and changed", "d/deleted"):
        await world.contents(two, key)
        await world.contents(one, key)
    assert (await world.at(one, "changed")).size == 7000
    for key in ("changed", "read and changed"):
        world.bucket.put(key, b"after it was changed")
    for key in ("deleted", "d/deleted", "d/e/deleted"):
        world.bucket.delete(key)
    world.bucket.put("new/file", b"new")
    await world.back(one, 3)
    inode = world.mds.mds.journal.reading.inode
    same = (await world.at(one, "same")).fid
    before = inode(same)
    report = await world.refresh(one)
    last = report["last"]
    assert (last["keys"], last["new"], last["changed"], last["deleted"]) == (4, 1, 2, 3)
    assert sorted(await names(two, world.directory_fid)) == [b"changed", b"new", b"read and changed", b"same"]
    for vfs in (one, two):
        for key in ("changed", "read and changed"):
            assert (await world.at(vfs, key)).size == 20
            assert await world.contents(vfs, key) == b"after it was changed"
        assert await world.contents(vfs, "same") == b"before " * 1000
        assert await world.contents(vfs, "new/file") == b"new"
    assert inode(same) == before
    again = (await world.refresh(one))["last"]
    assert (again["new"], again["changed"], again["deleted"], again["conflicts"]) == (0, 0, 0, 0)


async def test_what_is_not_followed_stays(world: Linked) -> None:
    world.bucket.put("changed", b"before")
    world.bucket.put("deleted", b"before")
    vfs = await world.vfs()
    await world.link(vfs, auto_import=("new",))
    world.bucket.put("changed", b"after all")
    world.bucket.delete("deleted")
    world.bucket.put("new", b"new")
    last = (await world.refresh(vfs))["last"]
    assert (last["new"], last["changed"], last["deleted"]) == (1, 0, 0)
    assert sorted(await names(vfs, world.directory_fid)) == [b"changed", b"deleted", b"new"]


async def test_files_of_our_own_are_not_touched(world: Linked) -> None:
    vfs = await world.vfs()
    world.bucket.put("ours", b"theirs")
    world.bucket.put("d/x", b"x")
    world.bucket.put("link", b"theirs, too")
    await world.link(vfs, imports="none")
    await write_file(vfs, world.directory_fid, b"ours", b"it is ours")
    await write_file(vfs, world.directory_fid, b"d", b"no directory")
    await settle(vfs.symlink(world.directory_fid, b"link", b"ours", CRED))
    report = await world.refresh(vfs)
    assert report["last"]["problems"] == 3
    assert set(await world.problems(vfs)) == {"ours", "d/x", "link"}
    assert await world.contents(vfs, "ours") == b"it is ours"
    assert await settle(vfs.readlink((await world.at(vfs, "link")).fid)) == b"ours"
    await vfs.session.mds.call(SetLink(LinkSpec(report["id"], 0, conflict="overwrite"), world.bucket.spec))
    report = await world.refresh(vfs)
    assert await world.contents(vfs, "ours") == b"theirs"
    assert await world.contents(vfs, "link") == b"theirs, too"
    assert set(await world.problems(vfs)) == {"d/x"}


@pytest.mark.parametrize("conflict", ["fail", "skip", "overwrite-if-dirty"])
async def test_files_that_were_changed_here_follow_the_conflict_mode(world: Linked, conflict: str) -> None:
    for key in ("both", "deleted", "mine"):
        world.bucket.put(key, b"first")
    one, two = await world.vfs(), await world.vfs()
    await world.link(one, conflict=conflict)
    for key in ("both", "deleted", "mine"):
        handle = await open_file(one, (await world.at(one, key)).fid, os.O_WRONLY)
        await settle(one.write(handle, 0, memoryview(b"local")))
        await close(one, handle)
    await world.back(one)
    world.bucket.put("both", b"their second")
    world.bucket.delete("deleted")
    report = await world.refresh(one)
    last = report["last"]
    wins = conflict == "overwrite-if-dirty"
    assert (last["conflicts"], last["changed"], last["deleted"]) == ((0, 1, 1) if wins else (2, 0, 0))
    assert await world.contents(two, "both") == (b"their second" if wins else b"local")
    assert (await world.at(two, "deleted") is None) == wins
    assert await world.contents(two, "mine") == b"local"
    assert any("both changed" in line for line in await world.log(one)) == (conflict == "fail")


async def test_a_file_in_use_waits_for_the_next_refresh(world: Linked) -> None:
    world.bucket.put("file", b"first " * 20_000)
    one, two = await world.vfs(), await world.vfs()
    await world.link(one)
    fid = (await world.at(two, "file")).fid
    await world.contents(two, "file")
    await world.back(one)
    handle = await open_file(two, fid)
    assert await read(two, handle, 0, 5) == b"first"
    world.bucket.put("file", b"second")
    last = (await world.refresh(one))["last"]
    assert (last["changed"], last["deferred"]) == (0, 1)
    assert await read(two, handle, 6, 5) == b"first"
    await close(two, handle)
    last = (await world.refresh(one))["last"]
    assert (last["changed"], last["deferred"]) == (1, 0)
    assert await world.contents(two, "file") == b"second"


@pytest.mark.parametrize("size", [3, 100_000, 0])
async def test_an_object_that_was_replaced_before_it_is_read_is_read_as_it_is(world: Linked, size: int) -> None:
    world.bucket.put("file", b"a" * 50_000)
    one, two = await world.vfs(), await world.vfs()
    await world.link(one)
    assert (await world.at(two, "file")).size == 50_000
    world.bucket.put("file", b"b" * size)
    # Who asked for 50,000 bytes gets no more of a larger object with the first read.
    assert await world.contents(two, "file") == b"b" * size
    assert (await world.at(one, "file")).size == size
    assert await world.contents(one, "file") == b"b" * size
    assert (await world.refresh(one))["last"]["changed"] == 0


async def test_an_object_that_is_gone_is_an_error_and_then_no_file(world: Linked) -> None:
    world.bucket.put("file", b"a" * 50_000)
    world.bucket.put("other", b"b")
    vfs = await world.vfs()
    await world.link(vfs)
    world.bucket.delete("file")
    with pytest.raises(OSError, match=".") as caught:
        await world.contents(vfs, "file")
    assert caught.value.errno == errno.EIO
    assert (await world.refresh(vfs))["last"]["deleted"] == 1
    assert await names(vfs, world.directory_fid) == [b"other"]


async def test_a_released_file_can_be_written_renamed_and_removed(world: Linked) -> None:
    for key in ("write", "rename", "remove"):
        world.bucket.put(key, b"abc" * 1000)
    vfs = await world.vfs()
    await world.link(vfs)
    handle = await open_file(vfs, (await world.at(vfs, "write")).fid, os.O_RDWR)
    await settle(vfs.write(handle, 1, memoryview(b"X")))
    await close(vfs, handle)
    assert await world.contents(vfs, "write") == b"aXc" + b"abc" * 999
    await settle(vfs.rename(world.directory_fid, b"rename", ROOT, b"elsewhere", RenameFlag(0)))
    assert await read_file(vfs, ROOT, b"elsewhere") == b"abc" * 1000
    await settle(vfs.unlink(world.directory_fid, b"remove"))
    await asyncio.sleep(0.1)
    for key in ("write", "rename", "remove"):
        assert world.bucket.get(key) == b"abc" * 1000
    report = await world.refresh(vfs)
    # What was renamed is known under its new name; what was only removed here is in the bucket still.
    assert report["last"]["new"] == 1
    assert sorted(await names(vfs, world.directory_fid)) == [b"remove", b"write"]


async def test_clean_files_can_be_released_and_no_archive_takes_them(world: Linked, tmp_path: Path) -> None:
    world.bucket.put("file", b"abc" * 1000)
    vfs = await world.vfs()
    (tmp_path / "cold").mkdir()
    await world.link(vfs)
    await vfs.session.mds.call(SetArchive(ArchiveSpec(0, "cold", "dir", f"file://{tmp_path}/cold")))
    await world.contents(vfs, "file")
    await world.back(vfs)
    fid, hsm = (await world.at(vfs, "file")).fid, world.mds.mds.hsm
    for kind, archive in ((HsmAction.ARCHIVE, 0), (HsmAction.ARCHIVE, 1), (HsmAction.REMOVE, 0)):
        ((number, text),) = (await vfs.session.mds.call(HsmRequest(kind, (fid,), archive))).errors
        assert number == errno.EPERM, text
    own = await write_file(vfs, ROOT, b"own", b"x")
    ((number, text),) = (await vfs.session.mds.call(HsmRequest(HsmAction.ARCHIVE, (own,), 1))).errors
    assert (number, text) == (errno.EPERM, "archive 1 is the bucket of a link")
    await hsm.request(HsmAction.RELEASE, fid, 0, 0)
    async with asyncio.timeout(20):
        while fid in hsm.active:
            await asyncio.sleep(0.01)
    assert hsm.state(fid).flags & HsmFlag.RELEASED
    assert await world.contents(await world.vfs(), "file") == b"abc" * 1000


async def test_removing_a_link_keeps_files_that_are_here(world: Linked) -> None:
    world.bucket.put("here", b"here")
    world.bucket.put("there", b"there")
    vfs = await world.vfs()
    number = (await world.link(vfs))["id"]
    await world.contents(vfs, "here")
    await world.back(vfs, 1)
    with pytest.raises(OSError, match="in the bucket only") as caught:
        await vfs.session.mds.call(RemoveLink(number))
    assert caught.value.errno == errno.ENOTEMPTY
    await vfs.session.mds.call(RemoveLink(number, True))
    assert json.loads((await vfs.session.mds.call(GetLinks())).report) == []
    assert await names(vfs, world.directory_fid) == [b"here"]
    assert await world.contents(vfs, "here") == b"here"
    assert world.bucket.get("there") == b"there"
    store = world.mds.mds.mdt.store
    assert store.fetchall("SELECT * FROM link_object") == store.fetchall("SELECT * FROM hsm") == []
    report = json.loads(
        (await vfs.session.mds.call(SetLink(LinkSpec(0, world.directory_fid), world.bucket.spec))).report
    )
    assert report["id"] != number
    await world.refreshed(vfs, 1)
    assert await world.contents(vfs, "there") == b"there"


async def test_links_do_not_overlap(world: Linked, tmp_path: Path) -> None:
    vfs = await world.vfs()
    await world.link(vfs)
    below = (await settle(vfs.mkdir(world.directory_fid, b"below", 0o755, CRED))).attr
    beside = (await settle(vfs.mkdir(ROOT, b"beside", 0o755, CRED))).attr
    assert below is not None and beside is not None
    (tmp_path / "other").mkdir()
    other = ArchiveSpec(0, "", "dir", f"file://{tmp_path}/other")
    inside = replace(world.bucket.spec, url=world.bucket.spec.url + "/inside")
    for fid, archive in ((below.fid, other), (ROOT, other), (beside.fid, world.bucket.spec), (beside.fid, inside)):
        with pytest.raises(FileExistsError, match="link"):
            await vfs.session.mds.call(SetLink(LinkSpec(0, fid), archive))


async def test_links_and_archives_do_not_overlap(world: Linked, tmp_path: Path) -> None:
    vfs = await world.vfs()
    bucket = world.bucket.spec
    if bucket.kind == "dir":
        for place in ("cold/below", "data/x", "data2"):
            (tmp_path / "archive" / place).mkdir(parents=True)
    await vfs.session.mds.call(SetArchive(replace(bucket, name="cold", url=f"{bucket.url}/cold")))
    beside = (await settle(vfs.mkdir(ROOT, b"beside", 0o755, CRED))).attr
    assert beside is not None
    for url in (bucket.url, f"{bucket.url}/cold", f"{bucket.url}/cold/below/"):
        spec = LinkSpec(0, beside.fid)
        with pytest.raises(FileExistsError, match=r"archive cold keeps its copies in .*nacre archive import"):
            await vfs.session.mds.call(SetLink(spec, replace(bucket, url=url)))
    linked = replace(bucket, url=f"{bucket.url}/data")
    await vfs.session.mds.call(SetLink(LinkSpec(0, beside.fid), linked))
    for name, url in (("all", bucket.url), ("same", linked.url), ("below", f"{linked.url}/x"), ("cold", linked.url)):
        with pytest.raises(FileExistsError, match=r"link 2 is bound to .*another prefix.*nacre link rm"):
            await vfs.session.mds.call(SetArchive(replace(bucket, name=name, url=url, endpoint=bucket.endpoint + "/")))
    await vfs.session.mds.call(SetArchive(replace(bucket, name="other", url=f"{bucket.url}/data2")))
    assert sorted(spec.name for spec in world.mds.mds.hsm.archives.values()) == ["cold", "link-2", "other"]


async def test_a_bucket_that_cannot_be_listed_removes_nothing(world: Linked) -> None:
    world.bucket.put("file", b"abc")
    vfs = await world.vfs()
    await world.link(vfs)
    hsm, number = world.mds.mds.hsm, (await world.report(vfs))["id"]
    right = hsm.archives[number]
    hsm.archives[number] = replace(right, url="s3://nothing-here/x" if right.kind == "s3" else "file:///nothing/here")
    report = await world.refresh(vfs)
    assert report["reason"]
    assert "refresh failed" in (await world.log(vfs))[-1]
    assert await names(vfs, world.directory_fid) == [b"file"]
    hsm.archives[number] = right
    report = await world.until(vfs, lambda report: not report["reason"])  # it is tried again by itself
    assert await world.contents(vfs, "file") == b"abc"


async def test_a_directory_that_is_not_mounted_removes_nothing(tmp_path: Path) -> None:
    (tmp_path / "archive").mkdir()
    bucket = Bucket(ArchiveSpec(0, "", "dir", f"file://{tmp_path}/archive"), None, tmp_path / "archive")
    for key in ("one", "d/two"):
        bucket.put(key, b"abc")
    async with linked(bucket, tmp_path) as world:
        vfs = await world.vfs()
        await world.link(vfs)
        (tmp_path / "archive").rename(tmp_path / "away")
        (tmp_path / "archive").mkdir()
        report = await world.refresh(vfs)
        assert "is it mounted" in report["reason"]
        assert sorted(await names(vfs, world.directory_fid)) == [b"d", b"one"]
        (tmp_path / "archive").rmdir()
        (tmp_path / "away").rename(tmp_path / "archive")
        bucket.delete("d/two")
        await world.until(vfs, lambda report: not report["reason"])
        assert sorted(await names(vfs, world.directory_fid)) == [b"one"]
        assert await world.contents(vfs, "one") == b"abc"


async def test_the_schedule_pause_and_a_restart(world: Linked) -> None:
    vfs = await world.vfs()
    await world.link(vfs, every_s=1.0)
    number = (await world.report(vfs))["id"]
    world.bucket.put("first", b"1")
    await world.until(vfs, lambda report: report["files"] == 1)
    await vfs.session.mds.call(OrderLink(number, "pause"))
    with pytest.raises(OSError, match="paused"):
        await vfs.session.mds.call(OrderLink(number, "refresh"))
    await world.restart_mds()
    report = await world.report(vfs)
    assert (report["state"], report["files"]) == ("paused", 1)
    world.bucket.put("second", b"2")
    await vfs.session.mds.call(OrderLink(number, "resume"))
    await world.until(vfs, lambda report: report["files"] == 2)
    assert await world.contents(vfs, "first") == b"1"
    assert [line for line in await world.log(vfs) if line in ("paused", "resumed")] == ["paused", "resumed"]


async def test_nothing_is_changed_after_a_restart_before_clients_have_said_what_they_have_in_their_caches(
    tmp_path: Path,
) -> None:
    (tmp_path / "archive").mkdir()
    bucket = Bucket(ArchiveSpec(0, "", "dir", f"file://{tmp_path}/archive"), None, tmp_path / "archive")
    bucket.put("old", b"x" * 100_000)
    clock = SettableClock()
    async with linked(bucket, tmp_path, clock=clock) as world:
        vfs, lost = await world.vfs(), await world.vfs()
        await world.link(vfs, every_s=1.0)
        fid = (await world.at(vfs, "old")).fid
        await read_file(vfs, world.directory_fid, b"old")
        assert await names(vfs, world.directory_fid) == [b"old"]
        await world.mds.stop()
        bucket.put("new", b"y")
        await lost.session.close()  # never says anything again
        world.clients.remove(lost)
        clock.ahead_ns += 2 * 10**9  # a refresh is due
        await world.start_mds()
        mds = world.mds.mds
        assert mds.grace.running
        for oss in world.oss:
            await oss.registered.wait()
        assert mds.grace.running
        await mds.hsm.request(HsmAction.RELEASE, fid, 0, 0)
        for _ in range(100):
            assert len(mds.mdt.store.fetchall("SELECT key FROM link_object")) == 1
            assert not mds.hsm.state(fid).flags & HsmFlag.RELEASED
            await asyncio.sleep(0.005)
        for _ in range(2):
            await vfs.session.keepalive()
            clock.ahead_s += mds.sessions.term_s / 2
            mds.tick()
        async with asyncio.timeout(50):
            while await names(vfs, world.directory_fid) != [b"new", b"old"]:
                await asyncio.sleep(0.02)
            while mds.hsm.active:
                await asyncio.sleep(0.02)
        assert await read_file(vfs, world.directory_fid, b"new") == b"y"
        assert await read_file(vfs, world.directory_fid, b"old") == b"x" * 100_000


async def test_many_keys_come_in_pages_into_full_directories(world: Linked) -> None:
    total = 2300 if world.bucket.spec.kind == "dir" else 1150
    for number in range(total):
        world.bucket.put(f"n{number % 3}/{number:05}" if number % 2 else f"flat-{number:05}", b"x")
    vfs = await world.vfs()
    report = await world.link(vfs)
    assert (report["last"]["new"], report["files"], report["problems"]) == (total, total, 0)
    for number in range(40):
        world.bucket.put(f"flat-{number:05}-more", b"y")
    last = (await world.refresh(vfs))["last"]
    assert (last["keys"], last["new"], last["changed"], last["deleted"]) == (total + 40, 40, 0, 0)
    assert len(await names(vfs, world.directory_fid)) == total // 2 + total % 2 + 3 + 40


async def test_keys_that_can_be_no_names_are_left_and_told(exact: Linked) -> None:
    long, bucket = "x" * 256, exact.bucket
    bad = {
        long: "a part of it has 256 bytes, a name at most 255",
        "a//b": "a part of it is empty",
        "b/c//d": "a part of it is empty",
    }
    for key in (*bad, "good", "%41 ~\\"):
        bucket.put(key, b"data")
    vfs = await exact.vfs()
    report = await exact.link(vfs)
    assert report["last"]["problems"] == report["problems"] == 3
    assert await exact.problems(vfs) == bad
    assert any("256 bytes" in line for line in await exact.log(vfs))
    assert sorted(await names(vfs, exact.directory_fid)) == [b"%41 ~\\", b"good"]
    assert await exact.contents(vfs, "%41 ~\\") == b"data"
    lines = len(await exact.log(vfs))
    await exact.refresh(vfs)
    assert len(await exact.log(vfs)) == lines
    bucket.delete(long)
    await exact.refresh(vfs)
    assert await exact.problems(vfs) == {key: reason for key, reason in bad.items() if key != long}
    assert bucket.get("a//b") == b"data"


async def test_symbolic_links_of_others_are_links_with_the_details(world: Linked) -> None:
    if not world.bucket.has_metadata:
        pytest.skip("no server")
    vfs, other = await world.vfs(), await world.vfs()

    def put_link(key: str, target: bytes) -> None:  # as FSx for Lustre does
        meta = {"file-permissions": "0120777", "file-owner": "7", "file-group": "8", "file-mtime": "123456789ns"}
        world.bucket.put(key, target, Metadata=meta)

    async def seen(path: str) -> tuple[int, bytes]:
        found = await world.at(other, path)
        return stat.S_IFMT(found.mode), await settle(other.readlink(found.fid)) if stat.S_ISLNK(found.mode) else b""

    world.bucket.put("d/file", b"data")
    put_link("d/link", b"file")
    put_link("up", b"../\xc3\xa9 x")
    put_link("becomes", b"d/file")
    report = await world.link(vfs, details=True)
    assert (report["last"]["new"], report["released"]) == (4, 1)
    assert await seen("d/link") == (stat.S_IFLNK, b"file")
    assert await seen("up") == (stat.S_IFLNK, b"../\xc3\xa9 x")
    found = await world.at(other, "up")
    assert (found.uid, found.gid, found.mtime_ns, found.size, found.nlink) == (7, 8, 123456789, 7, 1)
    assert await world.contents(other, "d/file") == b"data"
    await world.back(vfs)
    assert (await world.refresh(vfs))["last"]["deleted"] == 0
    put_link("d/link", b"elsewhere")
    world.bucket.put("becomes", b"a file now")
    put_link("d/file", b"becomes")
    world.bucket.delete("up")
    last = (await world.refresh(vfs))["last"]
    assert (last["changed"], last["conflicts"], last["deferred"], last["problems"]) == (0, 0, 0, 0)
    assert await seen("d/link") == (stat.S_IFLNK, b"elsewhere")
    assert await seen("d/file") == (stat.S_IFLNK, b"becomes")
    assert await world.contents(other, "becomes") == b"a file now"
    assert await world.at(other, "up") is None
    await settle(other.unlink((await world.at(other, "d")).fid, b"link"))
    assert (await world.refresh(vfs))["last"]["new"] == 1
    assert await seen("d/link") == (stat.S_IFLNK, b"elsewhere")
    assert await fsck(world.mds.mds) == []
    await vfs.session.mds.call(RemoveLink(report["id"]))
    assert await seen("d/link") == (stat.S_IFLNK, b"elsewhere")


@pytest.mark.parametrize("later", [False, True])
async def test_a_directory_wins_over_an_object_of_its_name(exact: Linked, later: bool) -> None:
    vfs = await exact.vfs()
    exact.bucket.put("a", b"object")
    if later:
        await exact.link(vfs)
        assert (await exact.at(vfs, "a")).size == 6
    exact.bucket.put("a/b", b"below")
    await (exact.refresh(vfs) if later else exact.link(vfs))
    for _ in range(2):
        assert await exact.contents(vfs, "a/b") == b"below"
        await exact.back(vfs)
        assert list(await exact.problems(vfs)) == ["a"]
        await exact.refresh(vfs)
    exact.bucket.delete("a/b")
    await exact.refresh(vfs)  # the directory goes
    await exact.refresh(vfs)  # its name is free
    assert await exact.contents(vfs, "a") == b"object"
    assert await exact.problems(vfs) == {}
    assert exact.bucket.get("a") == b"object"


async def test_modes_owners_and_times_come_with_the_details(exact: Linked) -> None:
    meta = {"file-permissions": "0100640", "file-owner": "7", "file-group": "8", "file-mtime": "123456789012ns"}
    exact.bucket.put("file", b"abc", Metadata=meta)
    exact.bucket.put("d/", b"", Metadata={**meta, "file-permissions": "040750"})
    exact.bucket.put("plain", b"abc")
    vfs = await exact.vfs()
    await exact.link(vfs, details=True)
    attr = await exact.at(vfs, "file")
    assert (attr.mode, attr.uid, attr.gid, attr.mtime_ns) == (0o100640, 7, 8, 123456789012)
    attr = await exact.at(vfs, "d")
    assert (attr.mode, attr.uid, attr.gid) == (0o40750, 7, 8)
    assert (await exact.at(vfs, "plain")).mode == 0o100644
    exact.bucket.put("d/file", b"abc")
    await exact.refresh(vfs)
    exact.bucket.delete("d/file")
    await exact.refresh(vfs)
    assert (await exact.at(vfs, "d")).mode == 0o40750  # it is a key of its own
