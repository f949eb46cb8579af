"""Mounting, unmounting, dead mount points, interrupts."""

import asyncio
import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from nacrefs.client.filesystem import Cred
from nacrefs.client.fuse import mounting
from nacrefs.client.fuse.abi import Init, Op
from nacrefs.client.fuse.session import LOCKS, Session
from tests.client.fuse.memory import ROOT, MemoryFilesystem
from tests.fuse.conftest import Mount, errno_of

off_loop = asyncio.to_thread
CRED = Cred(0, 0, 0)
REPOSITORY = Path(__file__).parents[2]
Until = Callable[[Callable[[], bool]], Awaitable[None]]


async def test_the_end_of_the_session_unmounts(mount_point: Path) -> None:
    fs = MemoryFilesystem()
    async with Session(fs, "tcp://host:1/sub", str(mount_point)):
        (entry,) = mounting.mounts_at(str(mount_point))
        assert (entry.fstype, entry.source) == ("fuse.nacre", "tcp://host:1/sub")
        assert fs.kernel is not None
    assert mounting.mounts_at(str(mount_point)) == []
    assert fs.kernel is None


async def test_umount_by_somebody_else_ends_the_session(mount_point: Path) -> None:
    async with Session(MemoryFilesystem(), "memory", str(mount_point)) as session:
        await off_loop(subprocess.run, ["umount", str(mount_point)], check=True)
        await asyncio.wait_for(session.unmounted(), 10)


async def test_a_busy_mount_is_detached_when_the_session_ends(mount_point: Path) -> None:
    async with Session(MemoryFilesystem(), "memory", str(mount_point)):
        fd = await off_loop(os.open, mount_point, os.O_RDONLY)
    try:
        assert mounting.mounts_at(str(mount_point)) == []
        assert errno_of(lambda: os.listdir(fd)) in (errno.ENOTCONN, errno.ECONNABORTED)
    finally:
        os.close(fd)


async def test_requests_in_service_finish_before_the_session_ends(mount_point: Path) -> None:
    fs = MemoryFilesystem()
    async with Session(fs, "memory", str(mount_point)):
        gate = fs.hold("mkdir")
        making = asyncio.create_task(off_loop((mount_point / "d").mkdir))
        await fs.entered["mkdir"].wait()
        asyncio.get_running_loop().call_later(0.05, gate.set)
    await asyncio.gather(making, return_exceptions=True)
    assert stat.S_ISDIR(fs.inode("d").mode)
    assert fs.cancelled == []


async def test_kernel_and_session_agree_on_what_matters(mount: Mount) -> None:
    needed = Init.MAX_PAGES | Init.ASYNC_READ | Init.ATOMIC_O_TRUNC | Init.PARALLEL_DIROPS | Init.AUTO_INVAL_DATA
    assert mount.session.granted & needed == needed
    assert not mount.session.granted & (Init.WRITEBACK_CACHE | Init.EXPLICIT_INVAL_DATA | Init.PASSTHROUGH | LOCKS)


async def test_read_ahead_is_raised(mount: Mount) -> None:
    device = mounting.mounts_at(str(mount.path))[0].device
    assert Path(f"/sys/class/bdi/{device}/read_ahead_kb").read_text().strip() == "4096"


async def test_a_subtree_is_mounted_as_root(mount_point: Path) -> None:
    fs = MemoryFilesystem()
    fs.mkdir(ROOT, b"sub", 0o755, CRED)
    sub = fs.inode("sub").fid
    async with Session(fs, "memory", str(mount_point), root=sub):

        def act() -> None:
            assert mount_point.stat().st_ino == sub
            (mount_point / "d").mkdir()
            (mount_point / "d/f").write_text("x")
            (mount_point / "d/f").rename(mount_point / "f")
            os.link(mount_point / "f", mount_point / "g")

        await off_loop(act)
        assert sorted(fs.inode("sub").entries) == [b"d", b"f", b"g"]
        fs.unlink(sub, b"g")
        assert fs.kernel is not None
        await fs.kernel.forget_entries(sub, [b"g"])
        assert not await off_loop((mount_point / "g").exists)


async def test_a_read_only_mount_refuses_writes(mount_point: Path) -> None:
    async with Session(MemoryFilesystem(), "memory", str(mount_point), options=["ro", "nosuid"]):
        assert await off_loop(errno_of, (mount_point / "f").touch) == errno.EROFS


def nothing(path: Path) -> None: ...


@pytest.mark.parametrize(
    ("make", "options", "code", "text"),
    [
        (nothing, [], errno.ENOENT, "mkdir"),
        (Path.touch, [], errno.ENOTDIR, "directory"),
        (Path.mkdir, ["colour"], errno.EINVAL, "'colour'"),
    ],
)
async def test_what_cannot_be_mounted_is_refused_with_a_reason(
    tmp_path: Path, make: Callable[[Path], None], options: list[str], code: int, text: str
) -> None:
    make(tmp_path / "m")
    with pytest.raises(OSError, match=text) as caught:
        async with Session(MemoryFilesystem(), "memory", str(tmp_path / "m"), options=options):
            pass
    assert caught.value.errno == code


async def test_mounting_twice_is_refused(mount: Mount) -> None:
    with pytest.raises(OSError, match="umount") as caught:
        async with Session(MemoryFilesystem(), "memory", str(mount.path)):
            pass
    assert caught.value.errno == errno.EBUSY


async def test_a_dead_mount_point_is_replaced(mount_point: Path) -> None:
    daemon = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.fuse.daemon", str(mount_point), cwd=REPOSITORY, stdout=subprocess.PIPE
    )
    assert daemon.stdout is not None
    assert await daemon.stdout.readline() == b"mounted\n"
    daemon.kill()
    await daemon.wait()
    assert errno_of(mount_point.stat) == errno.ENOTCONN
    fs = MemoryFilesystem()
    async with Session(fs, "memory", str(mount_point)):
        await off_loop((mount_point / "f").touch)
    assert stat.S_ISREG(fs.inode("f").mode)
    assert mounting.mounts_at(str(mount_point)) == []


async def test_ctrl_c_ends_a_program_that_waits(mount: Mount) -> None:
    await off_loop((mount.path / "f").touch)
    mount.fs.hold("open")
    # In the background of a script the tests, and what they start, would ignore it.
    waiting = await asyncio.create_subprocess_exec("env", "--default-signal=INT", "cat", str(mount.path / "f"))
    await mount.fs.entered["open"].wait()
    waiting.send_signal(signal.SIGINT)
    assert await asyncio.wait_for(waiting.wait(), 10) == -signal.SIGINT
    assert mount.fs.cancelled == ["open"]


ALARMED = """
import os, signal, sys
signal.signal(signal.SIGUSR1, lambda *_: None)
os.stat(sys.argv[1])
"""


async def test_a_signal_that_a_program_handles_does_not_break_its_call(mount: Mount, until: Until) -> None:
    """On a disk `stat` never fails with EINTR; the C functions that programs call rely on it."""
    await off_loop((mount.path / "f").touch)
    gate = mount.fs.hold("lookup")
    waiting = await asyncio.create_subprocess_exec(sys.executable, "-c", ALARMED, str(mount.path / "absent"))
    await mount.fs.entered["lookup"].wait()
    mount.fs.mknod(ROOT, b"absent", stat.S_IFREG | 0o644, 0, CRED)
    waiting.send_signal(signal.SIGUSR1)
    await until(lambda: mount.session.requests[Op.INTERRUPT] > 0)
    gate.set()
    assert await asyncio.wait_for(waiting.wait(), 10) == 0
    assert mount.fs.cancelled == []


async def test_an_ordinary_user_mounts_through_fusermount3() -> None:
    if shutil.which("fusermount3") is None or shutil.which("unshare") is None:
        pytest.skip("fusermount3 (package fuse3) or unshare (util-linux) is missing")
    place = Path(tempfile.mkdtemp(prefix="nacre-test-"))
    try:
        place.chmod(0o755)
        (place / "mnt").mkdir()
        os.chown(place / "mnt", 65534, 65534)
        os.mknod(place / "fuse", stat.S_IFCHR | 0o666, os.stat("/dev/fuse").st_rdev)
        (place / "fuse").chmod(0o666)
        command = [
            "unshare",
            "-m",
            sys.executable,
            "-m",
            "tests.fuse.unprivileged",
            str(place / "mnt"),
            str(place / "fuse"),
        ]
        done = await off_loop(subprocess.run, command, cwd=REPOSITORY, capture_output=True, timeout=30, check=False)
        assert (done.returncode, done.stdout, done.stderr.decode()) == (0, b"done\n", "")
    finally:
        shutil.rmtree(place)
