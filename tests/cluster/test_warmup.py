"""Warmup jobs over a real cluster: what they bring, in which order, and that readers come first."""

import asyncio
import errno
import json
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from nacrefs.client.vfs import Vfs
from nacrefs.common.answer import settle
from nacrefs.common.wire import (
    AddWarmup,
    ArchiveSpec,
    CancelWarmup,
    GetWarmups,
    HsmAction,
    HsmFlag,
    SetArchive,
    XattrFlag,
)
from nacrefs.mds.check import check
from nacrefs.mds.hsm.movers import MOVES_PER_OSS
from tests.client.world import close, open_file, read, write_file
from tests.cluster.test_links import Bucket, Linked, linked
from tests.cluster.tier import Proxy
from tests.s3 import S3Server


class Counting(Proxy):
    """Counts what goes to the server, and can hold up bodies."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(endpoint)
        self.requests: list[tuple[str, str]] = []
        self.open = asyncio.Event()
        self.open.set()

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.method, request.path))
        if request.method == "GET" and "list-type" not in request.query:
            await self.open.wait()
        return await super()._pass(request)

    def bodies(self) -> list[str]:
        """Of the bodies that were asked for, in order."""
        return [path.rpartition("/")[2] for method, path in self.requests if method == "GET"]


class Warm(Linked):
    """A linked bucket behind a proxy."""

    proxy: Counting

    async def job(self, vfs: Vfs, *fids: int, **options: Any) -> int:
        return int(json.loads((await vfs.session.mds.call(AddWarmup(fids, **options))).report)["id"])

    async def look(self, vfs: Vfs, number: int) -> dict[str, Any]:
        (job,) = json.loads((await vfs.session.mds.call(GetWarmups(number))).report)
        return dict(job)

    async def over(self, vfs: Vfs, number: int) -> dict[str, Any]:
        async with asyncio.timeout(50):
            while (job := await self.look(vfs, number))["state"] not in ("done", "failed", "canceled"):
                await asyncio.sleep(0.01)
        return job


@pytest.fixture
async def world(s3: S3Server, tmp_path: Path, mdt_url: str | None) -> AsyncGenerator[Warm]:
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(Counting(s3.endpoint))
        spec = ArchiveSpec(
            0, "", "s3", f"s3://{s3.place()}", proxy.url, credentials=s3.credentials
        )  # fmt: skip
        made = await stack.enter_async_context(linked(Bucket(spec, s3.client(), tmp_path), tmp_path, mdt_url))
        made.__class__ = Warm
        warm: Warm = made  # type: ignore[assignment]
        warm.proxy = proxy
        yield warm
        assert check(warm.mds.mds.mdt.store) == []


CONTENTS = {f"d{n % 3}/e{n % 2}/f{n}": bytes([n]) * (40_000 + n) for n in range(30)} | {"large": b"xyz" * 4_000_000}


async def filled(world: Warm) -> Vfs:
    for key, data in CONTENTS.items():
        world.bucket.put(key, data)
    vfs = await world.vfs()
    await world.link(vfs)
    return vfs


async def test_a_second_epoch_makes_no_requests_to_s3(world: Warm) -> None:
    one = await filled(world)
    job = await world.over(one, await world.job(one, world.directory_fid, uid=7))
    assert (job["state"], job["files"], job["moved"], job["here"], job["failed"]) == ("done", 31, 31, 0, 0)
    assert job["bytes"] == sum(map(len, CONTENTS.values()))
    assert (await world.report(one))["released"] == 0
    before = len(world.proxy.requests)
    assert before > 31
    for vfs in (one, await world.vfs()):
        for key, data in CONTENTS.items():
            assert await world.contents(vfs, key) == data
    again = await world.over(one, await world.job(one, world.directory_fid))
    assert (again["state"], again["moved"], again["here"]) == ("done", 0, 31)
    checked = await world.over(one, await world.job(one, world.directory_fid, verb="check"))
    assert (checked["state"], checked["files"], checked["here"]) == ("done", 31, 31)
    assert len(world.proxy.requests) == before


async def test_check_and_evict_tell_the_truth(world: Warm) -> None:
    vfs = await filled(world)
    large = (await world.at(vfs, "large")).fid
    assert (await world.over(vfs, await world.job(vfs, large)))["moved"] == 1
    checked = await world.over(vfs, await world.job(vfs, world.directory_fid, verb="check"))
    assert (checked["state"], checked["here"], checked["failed"]) == ("failed", 1, 30)
    assert checked["reasons"]["/data/d0/e0/f0"] == "it is in the bucket only"
    evicted = await world.over(vfs, await world.job(vfs, world.directory_fid, verb="evict"))
    assert (evicted["state"], evicted["moved"], evicted["here"]) == ("done", 1, 30)
    assert (await world.report(vfs))["released"] == 31
    # An object of a file that is lost behind the MDS's back is noticed.
    await world.over(vfs, await world.job(vfs, large))
    for path in world.directory.rglob(f"{large:016x}.*"):
        path.unlink()
    for number in (1, 0):
        await world.oss.pop(number).stop()
    for number in (0, 1):
        await world.start_oss(number)
    checked = await world.over(vfs, await world.job(vfs, large, verb="check"))
    assert checked["failed"] == 1
    assert "its file is missing" in checked["reasons"]["/data/large"]


async def test_jobs_wait_for_the_one_before_and_can_be_canceled(world: Warm) -> None:
    vfs = await filled(world)
    world.proxy.open.clear()
    first = await world.job(vfs, (await world.at(vfs, "large")).fid)
    second = await world.job(vfs, (await world.at(vfs, "d0")).fid, after=first)
    third = await world.job(vfs, (await world.at(vfs, "d1")).fid, after=second)
    with pytest.raises(FileNotFoundError):
        await world.job(vfs, 1, after=99)
    while not world.proxy.bodies():
        await asyncio.sleep(0.01)
    assert [(await world.look(vfs, number))["state"] for number in (first, second, third)] == [
        "running", "waiting", "waiting",
    ]  # fmt: skip
    await vfs.session.mds.call(CancelWarmup(second))
    world.proxy.open.set()
    assert (await world.over(vfs, first))["state"] == "done"
    job = await world.over(vfs, third)
    assert (job["state"], job["files"]) == ("done", 10)
    assert (await world.look(vfs, second))["state"] == "canceled"
    assert (await world.look(vfs, second))["files"] == 0
    assert {key for key in world.proxy.bodies() if key.startswith("f")} == {f"f{n}" for n in range(1, 30, 3)}


@pytest.mark.both_engines
async def test_a_job_goes_on_after_a_restart_and_one_half_named_does_not(world: Warm) -> None:
    vfs = await filled(world)
    world.proxy.open.clear()
    running = await world.job(vfs, world.directory_fid)
    half = await world.job(vfs, world.directory_fid, more=True)
    later = await world.job(vfs, world.directory_fid, verb="check", after=running)
    while not world.proxy.bodies():
        await asyncio.sleep(0.01)
    stopping = asyncio.ensure_future(world.restart_mds())
    await asyncio.sleep(0.05)
    world.proxy.open.set()
    await stopping
    job = await world.over(vfs, running)
    assert (job["state"], job["files"], job["failed"]) == ("done", 31, 0)
    assert (await world.look(vfs, half))["state"] == "canceled"
    with pytest.raises(OSError, match="canceled") as caught:
        await world.job(vfs, 1, job=half)
    assert caught.value.errno == errno.EBUSY
    assert (await world.over(vfs, later))["here"] == 31


async def test_failures_are_counted_with_their_reasons(world: Warm) -> None:
    vfs = await filled(world)
    world.bucket.delete("d0/e0/f0")
    gone = (await world.at(vfs, "d1/e1/f1")).fid
    parent = (await world.at(vfs, "d1/e1")).fid
    await settle(vfs.unlink(parent, b"f1"))
    job = await world.over(vfs, await world.job(vfs, world.directory_fid, gone))
    assert (job["state"], job["moved"], job["failed"]) == ("failed", 29, 2)
    assert "no such object" in job["reasons"]["/data/d0/e0/f0"]
    assert job["reasons"][f"{gone:#x}"] == "the file was removed"


async def test_who_reads_does_not_wait_for_a_warmup(world: Warm) -> None:
    size = (1 << 20) + 1  # these go one by one, as many at a time as two OSSes take; smaller ones would go together
    for number in range(40):
        world.bucket.put(f"f{number:02}", bytes([number]) * size)
    vfs = await world.vfs()
    await world.link(vfs)
    hsm, held = world.mds.mds.hsm, 2 * MOVES_PER_OSS

    def fetched() -> list[str]:
        return [key for key in world.proxy.bodies() if key.startswith("f")]

    world.proxy.open.clear()
    number = await world.job(vfs, world.directory_fid, width=32)
    async with asyncio.timeout(50):
        while len(hsm.active) < 32 or len(fetched()) < held:
            await asyncio.sleep(0.01)
    fid = (await world.at(vfs, "f31")).fid
    assert "f31" not in fetched()
    reading = asyncio.ensure_future(world.contents(vfs, "f31"))
    async with asyncio.timeout(50):
        while hsm.active[fid].row.uid >= 0:
            await asyncio.sleep(0.01)
    world.proxy.open.set()
    assert await reading == bytes([31]) * size
    # The slots that are free at once may all be filled before the first of these requests reaches the server.
    assert "f31" in fetched()[: 2 * held]
    assert (await world.over(vfs, number))["failed"] == 0


async def test_a_job_with_a_limit_brings_no_more_and_who_reads_does_not_wait_for_it(world: Warm) -> None:
    for number in range(4):
        world.bucket.put(f"f{number}", bytes([number]) * 1000)
    large = b"large " * 3_000_000  # parts
    world.bucket.put("large", large)
    vfs = await world.vfs()
    await world.link(vfs)
    job_number = await world.job(vfs, world.directory_fid, rate_bytes=1)
    keys, first = {"large", *(f"f{number}" for number in range(4))}, set[str]()
    async with asyncio.timeout(50):
        while len(world.mds.mds.hsm.active) < 4 or not (first := keys.intersection(world.proxy.bodies())):
            await asyncio.sleep(0.01)
    assert await world.contents(vfs, "large") == large
    assert await world.contents(vfs, "f2") == bytes([2]) * 1000
    assert keys.intersection(world.proxy.bodies()) == first | {"large", "f2"}
    job = await world.look(vfs, job_number)
    assert (job["state"], job["rate_bytes"]) == ("running", 1)
    await world.restart_mds()
    assert await world.contents(vfs, "f1") == bytes([1]) * 1000
    assert (await world.look(vfs, job_number))["rate_bytes"] == 1


async def test_links_that_import_data_bring_it(world: Warm) -> None:
    for key in ("a", "b"):
        world.bucket.put(key, b"data" * 10_000)
    vfs = await world.vfs()
    await world.link(vfs, imports="data")
    await world.until(vfs, lambda report: report["files"] == 2)
    await world.back(vfs)
    world.bucket.put("a", b"other")
    await world.refresh(vfs)
    await world.back(vfs)
    assert await world.contents(vfs, "a") == b"other"
    assert any("warmup job" in line for line in await world.log(vfs))


async def test_a_file_of_an_archive_is_warmed_too(world: Warm, tmp_path: Path) -> None:
    vfs = await world.vfs()
    (tmp_path / "cold").mkdir()
    await vfs.session.mds.call(SetArchive(ArchiveSpec(0, "cold", "dir", f"file://{tmp_path}/cold")))
    fid = await write_file(vfs, 1, b"file", b"data" * 5000)
    await settle(vfs.setxattr(fid, b"nacre.hsm", b"archive", XattrFlag(0)))
    hsm = world.mds.mds.hsm
    for kind in (HsmAction.ARCHIVE, HsmAction.RELEASE):
        await hsm.request(kind, fid, 0, 0)
        while fid in hsm.active:
            await asyncio.sleep(0.01)
    assert (await world.over(vfs, await world.job(vfs, 1)))["moved"] == 1
    handle = await open_file(vfs, fid)
    assert await read(vfs, handle) == b"data" * 5000
    await close(vfs, handle)
    assert hsm.state(fid).flags == HsmFlag.EXISTS | HsmFlag.ARCHIVED
