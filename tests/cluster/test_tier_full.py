"""A full archive: what is to go there waits, says why, and goes on by itself when there is room; nobody else waits."""

import asyncio
import errno
import os
import subprocess
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from msgspec.structs import replace

from nacrefs.common.wire import ArchiveSpec, GetArchives, HsmAction, HsmFlag, SetArchive
from nacrefs.mds.hsm.coordinator import RUNNING_MAX
from nacrefs.mds.report import queue_report
from tests.client.world import read_file, write_file
from tests.cluster.test_link_export import ALL, Sent
from tests.cluster.test_links import Bucket, linked
from tests.cluster.tier import ROOT, Proxy, Tier, add_archive, tier_on
from tests.harness.process import need_mounts
from tests.s3 import S3Server

pytestmark = pytest.mark.timeout(180)

SMALL, LARGE = 50_000, (11 << 20) + 12_345
ROOM = 48 << 20


class Limited(Tier):
    """A cluster whose archive can be made full."""

    disk: Path | None = None
    """The file system of a directory archive; None: an S3 server behind a proxy."""
    refusal: tuple[int, str] = (507, "InsufficientStorage")

    def fill(self) -> None:
        if self.disk is None:
            self.proxy.full = self.refusal
            return
        with open(self.disk / "others", "wb") as file:
            free = os.statvfs(self.disk)
            os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize)

    def make_room(self) -> None:
        if self.disk is None:
            self.proxy.full = None
        else:
            (self.disk / "others").unlink()


@pytest.fixture(params=["dir", "507", "quota"])
async def tier(
    request: pytest.FixtureRequest, s3: S3Server, s3_archive: ArchiveSpec, tmp_path: Path, mdt_url: str | None
) -> AsyncGenerator[Limited]:
    disk = tmp_path / "disk"
    disk.mkdir()
    if request.param == "dir":
        need_mounts()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "full", disk], check=True)
    try:
        async with Proxy(s3.endpoint) as proxy, tier_on(tmp_path / "c", mdt_url) as made:
            made.__class__ = Limited
            limited: Limited = made  # type: ignore[assignment]
            limited.proxy = proxy
            spec = replace(s3_archive, endpoint=proxy.url)
            if request.param == "dir":
                limited.disk = disk
                (disk / "archive").mkdir()
                spec = ArchiveSpec(0, "cold", "dir", f"file://{disk}/archive")
            elif request.param == "quota":
                limited.refusal = (403, "QuotaExceeded")
            await add_archive(limited, replace(spec, part_bytes=5 << 20))
            yield limited
    finally:
        if request.param == "dir":
            subprocess.run(["umount", disk], check=True)


async def test_what_is_to_go_there_waits_and_nothing_else_does(tier: Limited, tmp_path: Path) -> None:
    vfs = tier.clients[0]
    (tmp_path / "other").mkdir()
    await vfs.session.mds.call(SetArchive(ArchiveSpec(0, "other", "dir", f"file://{tmp_path}/other")))
    cold = os.urandom(SMALL)
    released = await write_file(vfs, ROOT, b"cold", cold)
    await tier.archived(released)
    contents = {b"f%d" % n: os.urandom(LARGE if n == 3 else SMALL) for n in range(RUNNING_MAX + 20)}
    fids = [await write_file(vfs, ROOT, name, data) for name, data in contents.items()]

    tier.fill()
    for fid in fids:
        await tier.hsm.request(HsmAction.ARCHIVE, fid, 1, 0)
    async with asyncio.timeout(60):
        while not tier.hsm.full.why(1) or tier.hsm.waits_for_room(1) < len(fids) - 1:
            await asyncio.sleep(0.01)
    assert await read_file(await tier.vfs(), ROOT, b"cold") == cold
    elsewhere = await write_file(vfs, ROOT, b"elsewhere", os.urandom(SMALL))
    await tier.hsm.request(HsmAction.ARCHIVE, elsewhere, 2, 0)
    assert (await tier.over(elsewhere)).flags & HsmFlag.ARCHIVED
    assert (await tier.act(HsmAction.REMOVE, elsewhere)).flags == 0

    seen = [await tier.state(fid) for fid in fids]
    assert {one.state for one in seen} <= {"WAITING", "STARTED"}
    assert all("archive cold" in one.reason for one in seen if one.state == "WAITING")
    (full,) = queue_report(tier.mds.mds)["full"]
    assert (full["name"], full["reason"]) == ("cold", tier.hsm.full.why(1))
    assert full["waiting"] >= len(fids) - 1
    archives = await vfs.session.mds.call(GetArchives())
    assert [bool(why) for why in archives.full] == [True, False]

    attempts = tier.hsm.full.refusals(1)
    async with asyncio.timeout(60):
        while tier.hsm.full.refusals(1) == attempts:  # it is tried again by itself, by one action
            await asyncio.sleep(0.01)
    assert tier.hsm.full.refusals(1) <= attempts + 2
    await tier.restart_mds()
    async with asyncio.timeout(60):
        while not tier.hsm.full.why(1):
            await asyncio.sleep(0.01)
    assert set(fids) <= tier.hsm.active.keys()

    tier.make_room()
    for fid in fids:
        assert (await tier.over(fid)).flags & HsmFlag.ARCHIVED
    assert tier.hsm.full.why(1) == ""
    assert queue_report(tier.mds.mds)["full"] == []
    await tier.archived(fids[3])
    assert await read_file(await tier.vfs(), ROOT, b"f3") == contents[b"f3"]
    await tier.over(fids[3])
    await tier.over(released)
    await tier.whole()


async def test_a_flush_of_a_link_says_that_the_bucket_is_full(s3: S3Server, tmp_path: Path) -> None:
    async with Proxy(s3.endpoint) as proxy:
        spec = ArchiveSpec(0, "", "s3", f"s3://{s3.bucket()}/p", proxy.url, credentials=s3.credentials)
        async with linked(Bucket(spec, s3.client(), tmp_path), tmp_path) as made:
            made.__class__ = Sent
            world: Sent = made  # type: ignore[assignment]
            vfs = await world.vfs()
            await world.link(vfs, auto_export=ALL)
            proxy.full = (507, "InsufficientStorage")
            await write_file(vfs, world.directory_fid, b"file", b"x" * 100_000)
            for _ in range(2):
                with pytest.raises(OSError, match="full") as caught:
                    await world.flush(vfs)
                assert caught.value.errno == errno.ENOSPC
            assert await world.get("file") is None
            proxy.full = None
            await world.flush(vfs)
            assert await world.get("file") == b"x" * 100_000
