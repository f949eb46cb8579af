"""What the kernel remembers under a lease, and that it forgets when told, whatever is in service."""

import asyncio
import os
import stat
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from nacrefs.client.filesystem import Cred, Stat
from nacrefs.client.fuse import notify
from nacrefs.client.fuse.abi import MINOR_EPOCH, Op
from nacrefs.client.fuse.notify import Notifier
from nacrefs.common.answer import Answer
from tests.client.fuse.memory import BLOCK, ROOT, MemoryFilesystem
from tests.fuse.conftest import Mount

off_loop = asyncio.to_thread
CRED = Cred(0, 0, 0)
Until = Callable[[Callable[[], bool]], Awaitable[None]]


def kernel(mount: Mount) -> Notifier:
    assert isinstance(mount.fs.kernel, Notifier)
    return mount.fs.kernel


async def test_leased_attributes_and_names_are_asked_once(mount: Mount) -> None:
    def act() -> None:
        for _ in range(20):
            (mount.path / "f").stat()
            assert not (mount.path / "absent").exists()

    await off_loop((mount.path / "f").touch)
    await off_loop(act)
    before = list(mount.session.requests)
    await off_loop(act)
    assert mount.session.requests == before


async def test_without_lease_everything_is_asked_each_time(uncached: Mount) -> None:
    def act() -> None:
        for _ in range(5):
            assert not (uncached.path / "absent").exists()

    await off_loop(act)
    assert uncached.session.requests[Op.LOOKUP] == 5


async def test_attributes_are_stale_until_forgotten(mount: Mount) -> None:
    await off_loop((mount.path / "f").touch)
    await off_loop((mount.path / "f").stat)
    inode = mount.fs.inode("f")
    inode.mode = stat.S_IFREG | 0o600
    assert (await off_loop((mount.path / "f").stat)).st_mode & 0o777 == 0o644
    await kernel(mount).forget_inode(inode.fid, offset=-1)
    assert (await off_loop((mount.path / "f").stat)).st_mode & 0o777 == 0o600


async def test_pages_are_stale_until_forgotten(mount: Mount) -> None:
    await off_loop((mount.path / "f").write_bytes, b"old")
    assert await off_loop((mount.path / "f").read_bytes) == b"old"
    inode = mount.fs.inode("f")
    inode.write(0, memoryview(b"new"))
    assert await off_loop((mount.path / "f").read_bytes) == b"old"
    await kernel(mount).forget_inode(inode.fid, offset=-1)
    assert await off_loop((mount.path / "f").read_bytes) == b"old"
    await kernel(mount).forget_inode(inode.fid)
    assert await off_loop((mount.path / "f").read_bytes) == b"new"


async def test_names_present_and_absent_are_stale_until_forgotten(mount: Mount) -> None:
    await off_loop((mount.path / "gone").touch)
    assert not await off_loop((mount.path / "new").exists)
    mount.fs.unlink(ROOT, b"gone")
    mount.fs.mknod(ROOT, b"new", stat.S_IFREG | 0o644, 0, CRED)
    assert await off_loop((mount.path / "gone").exists)
    assert not await off_loop((mount.path / "new").exists)
    await kernel(mount).forget_entries(ROOT, [b"gone", b"new"])
    assert not await off_loop((mount.path / "gone").exists)
    assert await off_loop((mount.path / "new").exists)


async def test_listings_are_kept_until_their_directory_is_forgotten(mount: Mount) -> None:
    await off_loop((mount.path / "a").touch)
    assert await off_loop(os.listdir, mount.path) == ["a"]
    asked = mount.session.requests[Op.READDIR] + mount.session.requests[Op.READDIRPLUS]
    assert await off_loop(os.listdir, mount.path) == ["a"]
    assert mount.session.requests[Op.READDIR] + mount.session.requests[Op.READDIRPLUS] == asked
    mount.fs.mknod(ROOT, b"b", stat.S_IFREG | 0o644, 0, CRED)
    await kernel(mount).forget_entries(ROOT, [b"b"])
    assert await off_loop(os.listdir, mount.path) == ["a", "b"]


async def test_forgetting_what_the_kernel_never_knew_succeeds(mount: Mount) -> None:
    await kernel(mount).forget_inode(123456789)
    await kernel(mount).forget_entries(987654321, [b"x", b"y"])
    await kernel(mount).forget_entries(ROOT, [b"never"])


async def test_a_getattr_may_wait_until_its_own_inode_is_forgotten(uncached: Mount) -> None:
    """What makes reads of a shared file coherent: before each cached read the kernel asks for the attributes."""
    forgets = 0

    class Sharing(MemoryFilesystem):
        def getattr(self, fid: int, handle: int | None = None) -> Answer[Stat]:
            return self._forget_first(fid)

        async def _forget_first(self, fid: int) -> Stat:
            nonlocal forgets
            assert self.kernel is not None
            await self.kernel.forget_inode(fid)
            forgets += 1
            return Stat(self.inodes[fid].attr(), False)

    await off_loop((uncached.path / "f").write_bytes, b"old")
    uncached.fs.__class__ = Sharing
    inode = uncached.fs.inode("f")
    fd = await off_loop(os.open, uncached.path / "f", os.O_RDONLY)
    try:
        for text in (b"one", b"two", b"six"):
            inode.write(0, memoryview(text))  # neither size nor mtime tells the kernel of the change
            assert await off_loop(os.pread, fd, 10, 0) == text
        assert forgets >= 3
    finally:
        await off_loop(os.close, fd)


async def test_forgetting_pages_waits_for_a_read_in_service_and_holds_up_nothing_else(mount: Mount) -> None:
    data = bytes(8 * BLOCK)
    await off_loop((mount.path / "f").write_bytes, data)
    await off_loop((mount.path / "g").touch)
    gate = mount.fs.hold("read")
    reading = asyncio.create_task(off_loop((mount.path / "f").read_bytes))
    await mount.fs.entered["read"].wait()
    forgetting = asyncio.create_task(kernel(mount).forget_inode(mount.fs.inode("f").fid))
    # Neither requests nor other notifications wait behind it.
    mount.fs.inode("g").mode = stat.S_IFREG | 0o600
    await kernel(mount).forget_inode(mount.fs.inode("g").fid)
    assert (await off_loop((mount.path / "g").stat)).st_mode & 0o777 == 0o600
    assert not forgetting.done()
    gate.set()
    assert await reading == data
    await forgetting


async def test_names_are_forgotten_while_a_lookup_of_their_directory_waits(mount: Mount) -> None:
    """The look-up may be waiting for the very recall that wants the name forgotten."""
    await off_loop((mount.path / "f").touch)
    gate = mount.fs.hold("lookup")
    looking = asyncio.create_task(off_loop((mount.path / "other").exists))
    await mount.fs.entered["lookup"].wait()
    mount.fs.unlink(ROOT, b"f")
    forgetting = asyncio.create_task(kernel(mount).forget_entries(ROOT, [b"f"]))
    if mount.session.minor >= MINOR_EPOCH:
        await forgetting
        assert kernel(mount).epochs == 1
    gate.set()
    assert not await looking
    await forgetting
    assert not await off_loop((mount.path / "f").exists)


async def test_names_are_forgotten_while_a_create_in_their_directory_waits(mount: Mount) -> None:
    await off_loop((mount.path / "d").mkdir)
    await off_loop((mount.path / "d/f").touch)
    gate = mount.fs.hold("mkdir")
    making = asyncio.create_task(off_loop((mount.path / "d/new").mkdir))
    await mount.fs.entered["mkdir"].wait()
    directory = mount.fs.inode("d").fid
    mount.fs.unlink(directory, b"f")
    forgetting = asyncio.create_task(kernel(mount).forget_entries(directory, [b"f"]))
    if mount.session.minor >= MINOR_EPOCH:
        await forgetting
    gate.set()
    await making
    await forgetting
    assert await off_loop(os.listdir, mount.path / "d") == ["new"]
    assert not await off_loop((mount.path / "d/f").exists)


async def test_what_is_queued_behind_a_stuck_name_is_taken_up_by_an_idle_worker(mount: Mount) -> None:
    await off_loop((mount.path / "d").mkdir)
    await off_loop((mount.path / "d/f").touch)
    await off_loop((mount.path / "g").touch)
    directory, other = mount.fs.inode("d").fid, mount.fs.inode("g").fid
    for name in ("d/a", "d/b"):  # the first time there is one worker, then one is idle
        gate = mount.fs.hold("mkdir")
        making = asyncio.create_task(off_loop((mount.path / name).mkdir))
        await mount.fs.entered["mkdir"].wait()
        stuck = asyncio.create_task(kernel(mount).forget_entries(directory, [b"f"]))
        behind = asyncio.create_task(kernel(mount).forget_inode(other))
        try:
            await asyncio.wait_for(behind, 10)
        finally:
            gate.set()
            await making
            await stuck


async def test_a_bumped_epoch_leaves_working_directories_and_open_files_alone(mount: Mount) -> None:
    def prepare() -> int:
        (mount.path / "d").mkdir()
        (mount.path / "d/f").write_text("x")
        return os.open(mount.path / "d", os.O_RDONLY)

    fd = await off_loop(prepare)
    try:
        gate = mount.fs.hold("lookup")
        looking = asyncio.create_task(off_loop((mount.path / "other").exists))
        await mount.fs.entered["lookup"].wait()
        forgetting = asyncio.create_task(kernel(mount).forget_entries(ROOT, [b"d"]))
        if mount.session.minor >= MINOR_EPOCH:
            await forgetting
        gate.set()
        await looking
        await forgetting

        def check() -> None:
            inside = os.open("f", os.O_RDONLY, dir_fd=fd)
            assert os.read(inside, 10) == b"x"
            os.close(inside)
            assert (mount.path / "d/f").read_text() == "x"

        await off_loop(check)
    finally:
        await off_loop(os.close, fd)


async def test_many_notifications_at_once_are_all_carried_out_by_one_thread(
    mount: Mount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "STUCK_S", 60.0)  # who was not let run for a moment gets no colleague either

    def make() -> None:
        for number in range(300):
            (mount.path / str(number)).touch()

    await off_loop(make)
    for inode in mount.fs.inodes.values():
        inode.uid = 7
    await asyncio.gather(*(kernel(mount).forget_inode(fid) for fid in mount.fs.inodes))
    assert sum(thread.name.startswith("nacre-forget") for thread in threading.enumerate()) == 1

    def check(path: Path) -> bool:
        return all((path / str(number)).stat().st_uid == 7 for number in range(300))

    assert await off_loop(check, mount.path)


async def test_the_filesystem_hears_what_the_kernel_gave_up(mount: Mount, until: Until) -> None:
    def act() -> int:
        (mount.path / "f").touch()
        fid = (mount.path / "f").stat().st_ino
        (mount.path / "f").unlink()
        return fid

    fid = await off_loop(act)
    await until(lambda: mount.fs.forgotten.get(fid) == 1)
