"""What happens to a file while it is copied to an archive, released, or brought back.

The S3 server's answers are held back while something is done with the file. Who has no need to wait must not; whatever
is done, the contents are right afterwards, no object is left without an owner, and the file can go out and come back.
"""

import asyncio
import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from nacrefs.client.vfs import Vfs
from nacrefs.common.answer import settle
from nacrefs.common.wire import ArchiveSpec, HsmAction, HsmFlag, RenameFlag, Set, SetArchive, SetAttr
from nacrefs.mds.hsm.movers import MOVES_PER_OSS, SMALL_BYTES
from tests.client.world import close, open_file, read_file, write_file
from tests.cluster.tier import ROOT, Proxy, Tier, add_archive, attr, tier_on
from tests.s3 import S3Server

pytestmark = pytest.mark.timeout(240)  # longer than the waits in here, which end a test cleanly

SMALL, LARGE = 300_000, (11 << 20) + 12_345
PART_BYTES = 5 << 20


class File:
    """A file, two clients, and what the file should have."""

    def __init__(self, tier: Tier, one: Vfs, two: Vfs, fid: int, data: bytes) -> None:
        self.tier, self.one, self.two = tier, one, two
        self.fid = fid
        self.name = b"file"
        self.data: bytearray | None = bytearray(data)
        """None: it is removed."""

    async def put(self, vfs: Vfs, offset: int, text: bytes) -> None:
        """Write."""
        handle = await open_file(vfs, self.fid, os.O_RDWR)
        await settle(vfs.write(handle, offset, memoryview(text)))
        await close(vfs, handle)
        assert self.data is not None
        self.data[offset : offset + len(text)] = text


async def write(file: File) -> None:
    await file.put(file.two, 100_000, b"changed")


async def append(file: File) -> None:
    assert file.data is not None
    await file.put(file.two, len(file.data), b"and more")


async def cut(file: File) -> None:
    await file.two.session.mds.call(SetAttr(file.fid, Set.SIZE, size=70_001))
    assert file.data is not None
    del file.data[70_001:]


async def lengthen(file: File) -> None:
    assert file.data is not None
    size = len(file.data) + 1000
    await file.two.session.mds.call(SetAttr(file.fid, Set.SIZE, size=size))
    file.data += bytes(1000)


async def empty(file: File) -> None:
    handle = await open_file(file.two, file.fid, os.O_WRONLY | os.O_TRUNC)
    await settle(file.two.write(handle, 0, memoryview(b"new")))
    await close(file.two, handle)
    file.data = bytearray(b"new")


async def rename(file: File) -> None:
    await settle(file.two.rename(ROOT, file.name, ROOT, b"other", RenameFlag(0)))
    file.name = b"other"


async def replace_it(file: File) -> None:
    data = os.urandom(5000)
    file.fid = await write_file(file.two, ROOT, b"next", data)
    await settle(file.two.rename(ROOT, b"next", ROOT, file.name, RenameFlag(0)))
    file.data = bytearray(data)


async def unlink(file: File) -> None:
    await settle(file.two.unlink(ROOT, file.name))
    file.data = None


async def chmod(file: File) -> None:
    await file.two.session.mds.call(SetAttr(file.fid, Set.MODE, mode=0o600))
    assert (await attr(file.one, file.fid)).mode & 0o777 == 0o600


async def read(file: File) -> None:
    assert bytearray(await read_file(file.two, ROOT, file.name)) == file.data


async def two_writers(file: File) -> None:
    handles = [(vfs, await open_file(vfs, file.fid, os.O_RDWR)) for vfs in (file.one, file.two)]
    assert file.data is not None
    for turn, (vfs, handle) in enumerate(handles * 2):
        await settle(vfs.write(handle, turn * 60_000, memoryview(b"turn%d" % turn)))
        file.data[turn * 60_000 : turn * 60_000 + 5] = b"turn%d" % turn
    for vfs, handle in handles:
        await close(vfs, handle)


Deed = Callable[[File], Awaitable[None]]
DEEDS: list[Deed] = [
    write, append, cut, lengthen, empty, rename, replace_it, unlink, chmod, read, two_writers,
]  # fmt: skip
WAITING: list[Deed] = [write, append, cut, lengthen, read, two_writers]
"""These need what is in the file, or in the archive of it."""


def cases(*short: tuple[Deed, int]) -> pytest.MarkDecorator:
    """All deeds with both sizes; those that are not `short` are for `make test-slow`."""
    return pytest.mark.parametrize(
        ("deed", "size"),
        [
            pytest.param(deed, size, marks=[] if (deed, size) in short else pytest.mark.slow)
            for size in (SMALL, LARGE)
            for deed in DEEDS
        ],
    )


@pytest.fixture
async def tier(s3: S3Server, s3_archive: ArchiveSpec, tmp_path: Path, mdt_url: str | None) -> AsyncGenerator[Tier]:
    async with Proxy(s3.endpoint) as proxy, tier_on(tmp_path / "c", mdt_url) as made:
        made.proxy = proxy
        await add_archive(made, replace(s3_archive, endpoint=proxy.url, part_bytes=PART_BYTES))
        try:
            yield made
        finally:
            proxy.let_go()


SHORT_RELEASES = [(write, "release"), (two_writers, "deed"), (read, "deed")]


async def a_file(tier: Tier, size: int) -> File:
    data = os.urandom(size)
    one, two = tier.clients[0], await tier.vfs()
    return File(tier, one, two, await write_file(one, ROOT, b"file", data), data)


async def is_right(file: File) -> None:
    """The contents are what they should be; no object is lost or left; out and back it goes once more."""
    tier = file.tier
    await tier.whole()
    if file.data is None:
        async with asyncio.timeout(50):
            while await tier.keys() or tier.objects():
                await asyncio.sleep(0.1)
        return
    assert await read_file(await tier.vfs(), ROOT, file.name) == file.data
    await tier.over(file.fid)
    await tier.archived(file.fid)
    assert await read_file(await tier.vfs(), ROOT, file.name) == file.data
    await tier.over(file.fid)
    await tier.whole()
    assert len(await tier.keys()) == 1


@cases((write, LARGE), (two_writers, SMALL), (rename, SMALL), (unlink, LARGE))
async def test_while_it_is_archived_nobody_waits_and_nothing_is_lost(tier: Tier, deed: Deed, size: int) -> None:
    file = await a_file(tier, size)
    tier.proxy.hold("PUT")
    await tier.hsm.request(HsmAction.ARCHIVE, file.fid, 0, 0)
    async with asyncio.timeout(50):
        await tier.proxy.held.wait()
        await deed(file)
    tier.proxy.let_go()
    await is_right(file)


@cases((cut, SMALL), (empty, LARGE), (replace_it, SMALL), (read, LARGE))
async def test_while_it_comes_back_only_who_needs_its_bytes_waits(tier: Tier, deed: Deed, size: int) -> None:
    file = await a_file(tier, size)
    await tier.archived(file.fid)
    assert tier.objects() == []
    tier.proxy.hold("GET")
    reading = asyncio.ensure_future(read_file(file.one, ROOT, b"file"))
    async with asyncio.timeout(50):
        await tier.proxy.held.wait()
        doing = asyncio.ensure_future(deed(file))
        if deed in WAITING:
            for _ in range(20):
                await asyncio.sleep(0.005)
            assert not doing.done()
        else:
            await asyncio.wait([doing])
        tier.proxy.let_go()
        await doing
        (result,) = await asyncio.gather(reading, return_exceptions=True)
    if deed in (rename, chmod, read):
        assert isinstance(result, bytes)
        assert bytearray(result) == file.data
    await is_right(file)


@pytest.mark.parametrize(
    ("deed", "first"),
    [
        pytest.param(deed, first, marks=[] if (deed, first) in SHORT_RELEASES else pytest.mark.slow)
        for first in ("release", "deed")
        for deed in DEEDS
    ],
)
async def test_at_the_moment_of_its_release(tier: Tier, deed: Deed, first: str) -> None:
    file = await a_file(tier, SMALL)
    fid = file.fid
    await tier.archived(fid, release=False)
    works: list[Awaitable[object]] = [tier.act(HsmAction.RELEASE, fid), deed(file)]
    async with asyncio.timeout(50):
        await asyncio.gather(*(works if first == "release" else reversed(works)))
    await tier.over(fid)
    await is_right(file)


async def test_one_that_is_removed_before_its_turn_to_come_back_leaves_no_objects(tier: Tier) -> None:
    """Its objects are destroyed before the order goes out that makes them again, from an archive that keeps copies."""
    await tier.clients[0].session.mds.call(SetArchive(replace(tier.spec, keep=True)))
    client, moves = tier.clients[0], MOVES_PER_OSS * len(tier.oss)
    fids = [await write_file(client, ROOT, b"%d" % n, os.urandom(SMALL_BYTES + 1)) for n in range(moves + 1)]
    for fid in fids:
        await tier.archived(fid)
    reaped = tier.mds.mds.reaper.reaped
    tier.proxy.hold("GET")
    for fid in fids:
        await tier.hsm.request(HsmAction.RESTORE, fid, 0, 0)
        await asyncio.sleep(0)
    async with asyncio.timeout(50):
        while (await tier.state(fids[-1])).state != "STARTED":
            await asyncio.sleep(0.01)
        await settle(client.unlink(ROOT, b"%d" % moves))
        while tier.mds.mds.reaper.reaped == reaped:
            await asyncio.sleep(0.01)
    tier.proxy.let_go()
    for fid in fids:
        await tier.over(fid)
    async with asyncio.timeout(20):
        while {name.partition(".")[0] for name in tier.objects()} != {f"{fid:016x}" for fid in fids[:-1]}:
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("how", ["restore", pytest.param("archive", marks=pytest.mark.slow)])
async def test_one_that_holds_it_open_and_writes_all_the_time(tier: Tier, how: str) -> None:
    file = await a_file(tier, LARGE)
    await tier.archived(file.fid, release=how == "restore")
    handle = await open_file(file.two, file.fid, os.O_RDWR)
    assert file.data is not None
    tier.proxy.hold("PUT" if how == "archive" else "GET")
    for turn in range(8):
        text = os.urandom(1000)
        doing = asyncio.ensure_future(settle(file.two.write(handle, turn * 1_000_000, memoryview(text))))
        file.data[turn * 1_000_000 : turn * 1_000_000 + 1000] = text
        if not turn:
            await tier.hsm.request(HsmAction.ARCHIVE if how == "archive" else HsmAction.RESTORE, file.fid, 0, 0)
            await asyncio.sleep(0.1)
            tier.proxy.let_go()
        await doing
        await settle(file.two.fsync(handle, False))
        state = await tier.act(HsmAction.RELEASE, file.fid) if file.fid not in tier.hsm.active else None
        assert state is None or not state.flags & HsmFlag.RELEASED
    await close(file.two, handle)
    await is_right(file)
