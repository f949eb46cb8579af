"""What programs do with files, through the kernel."""

import asyncio
import ctypes
import errno
import logging
import mmap
import os
import random
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from nacrefs.client.filesystem import Cred
from nacrefs.client.fuse.abi import Op
from nacrefs.common.answer import Answer
from nacrefs.common.wire import StatfsReply
from tests.client.fuse.memory import MemoryFilesystem
from tests.fuse.conftest import Mount, errno_of

off_loop = asyncio.to_thread
NOBODY = 65534
_libc = ctypes.CDLL(None, use_errno=True)


def renameat2(old: Path, new: Path, flags: int) -> None:
    if _libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags):
        raise OSError(ctypes.get_errno(), "renameat2")


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 65536, (1 << 20) + 3, 5 << 20])
async def test_bytes_come_back_as_they_were_written(mount: Mount, size: int) -> None:
    data = random.Random(size).randbytes(size)

    def copy() -> None:
        (mount.path / "f").write_bytes(data)
        assert (mount.path / "f").read_bytes() == data
        assert (mount.path / "f").stat().st_size == size

    await off_loop(copy)
    assert b"".join(mount.fs.inode("f").read(0, size + 1)) == data


async def test_writes_and_reads_at_random_places_agree_with_a_local_file(mount: Mount, tmp_path: Path) -> None:
    rng = random.Random(4)

    def compare() -> None:
        with open(mount.path / "f", "w+b", buffering=0) as ours, open(tmp_path / "f", "w+b", buffering=0) as local:
            for _ in range(150):
                offset, size = rng.randrange(3 << 20), rng.choice((1, 100, 4096, 70000, 300000, 1 << 20))
                if rng.random() < 0.5:
                    data = rng.randbytes(size)
                    assert os.pwrite(ours.fileno(), data, offset) == os.pwrite(local.fileno(), data, offset)
                elif rng.random() < 0.1:
                    ours.truncate(offset)
                    local.truncate(offset)
                else:
                    assert os.pread(ours.fileno(), size, offset) == os.pread(local.fileno(), size, offset)

    await off_loop(compare)


async def test_data_of_big_writes_reaches_the_filesystem_uncopied_and_stays(mount: Mount) -> None:
    pattern = [bytes([number]) * (1 << 20) for number in range(6)]

    def write() -> None:
        with open(mount.path / "f", "wb", buffering=0) as file, mmap.mmap(-1, 1 << 20) as aligned:
            for data in pattern:
                aligned[:] = data
                file.write(aligned)

    await off_loop(write)
    assert [bytes(data) for data in mount.fs.written] == pattern
    assert all(isinstance(data.obj, bytearray) for data in mount.fs.written)


async def test_buffers_are_used_again_once_the_filesystem_let_go_of_them(mount: Mount) -> None:
    seen: set[int] = set()

    class Forgetful(MemoryFilesystem):
        def write(self, handle: int, offset: int, data: memoryview, flags: int = -1) -> Answer[int]:
            seen.add(id(data.obj))
            return len(data)

    mount.fs.__class__ = Forgetful

    def write() -> None:
        with open(mount.path / "f", "wb", buffering=0) as file, mmap.mmap(-1, 1 << 20) as aligned:
            for _ in range(50):
                file.write(aligned)

    await off_loop(write)
    assert len(seen) <= 3


async def test_small_writes_do_not_pin_a_big_buffer(mount: Mount) -> None:
    await off_loop((mount.path / "f").write_bytes, b"little")
    (data,) = mount.fs.written
    assert isinstance(data.obj, bytes)
    assert len(data.obj) == 6


async def test_rename_replaces_refuses_or_exchanges(mount: Mount) -> None:
    def act() -> None:
        one, two = mount.path / "one", mount.path / "two"
        one.write_text("1")
        two.write_text("2")
        assert errno_of(lambda: renameat2(one, two, 1)) == errno.EEXIST
        renameat2(one, two, 2)
        assert (one.read_text(), two.read_text()) == ("2", "1")
        one.rename(two)
        assert two.read_text() == "2"
        assert not one.exists()
        assert errno_of(lambda: renameat2(two, one, 4)) == errno.EINVAL

    await off_loop(act)


async def test_rename_moves_between_directories(mount: Mount) -> None:
    def act() -> None:
        (mount.path / "a").mkdir()
        (mount.path / "a/d").mkdir()
        (mount.path / "a/d/f").write_text("x")
        (mount.path / "a/d").rename(mount.path / "moved")
        assert (mount.path / "moved/f").read_text() == "x"
        (mount.path / "moved/f").rename(mount.path / "a/g")
        assert os.listdir(mount.path / "a") == ["g"]

    await off_loop(act)


async def test_an_unlinked_open_file_stays_readable(mount: Mount) -> None:
    def act() -> None:
        with open(mount.path / "f", "w+b") as file:
            file.write(b"still here")
            file.flush()
            os.unlink(mount.path / "f")
            assert os.fstat(file.fileno()).st_nlink == 0
            assert os.pread(file.fileno(), 100, 0) == b"still here"
        assert os.listdir(mount.path) == []

    await off_loop(act)


async def test_a_big_directory_lists_each_name_once(mount: Mount) -> None:
    names = {f"{number:05d}-{'x' * (number % 80)}" for number in range(5000)}

    def act() -> None:
        for name in names:
            os.mknod(mount.path / name)
        listed = os.listdir(mount.path)
        assert len(listed) == len(names)
        assert set(listed) == names
        with os.scandir(mount.path) as entries:
            assert {entry.name for entry in entries if entry.stat().st_mode & stat.S_IFREG} == names
        done = subprocess.run(["ls", "-af", str(mount.path)], capture_output=True, check=True)
        assert done.stdout.split()[:2] == [b".", b".."]

    await off_loop(act)


async def test_listing_with_attributes_needs_no_lookups(mount: Mount) -> None:
    for number in range(300):
        mount.fs.mknod(1, b"%d" % number, stat.S_IFREG | 0o644, 0, Cred(0, 0, 0))

    def act() -> None:
        with os.scandir(mount.path) as entries:
            assert sum(entry.stat().st_nlink for entry in entries) == 300

    await off_loop(act)
    assert mount.session.requests[Op.READDIRPLUS] > 0
    assert mount.session.requests[Op.LOOKUP] + mount.session.requests[Op.GETATTR] <= 300 // 10


async def test_links_nodes_and_symlinks(mount: Mount) -> None:
    def act() -> None:
        (mount.path / "f").write_text("x")
        os.link(mount.path / "f", mount.path / "g")
        assert (mount.path / "g").stat().st_nlink == 2
        target = "t" * 4000
        os.symlink(target, mount.path / "l")
        assert os.readlink(mount.path / "l") == target
        os.mkfifo(mount.path / "p", 0o600)
        assert stat.S_ISFIFO((mount.path / "p").stat().st_mode)
        os.mknod(mount.path / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        assert (mount.path / "null").stat().st_rdev == os.makedev(1, 3)
        (mount.path / "null").write_text("gone")

    await off_loop(act)


async def test_the_umask_is_applied_once(mount: Mount) -> None:
    command = ["sh", "-c", "umask 027; touch f; mkdir d; stat -c %a f d"]
    done = await off_loop(subprocess.run, command, cwd=mount.path, capture_output=True, check=True)
    assert done.stdout.split() == [b"640", b"750"]


async def test_extended_attributes(mount: Mount) -> None:
    def act() -> None:
        path = mount.path / "f"
        path.touch()
        os.setxattr(path, "user.a", b"1" * 5000)
        os.setxattr(path, "user.empty", b"")
        assert os.getxattr(path, "user.a") == b"1" * 5000
        assert os.listxattr(path) == ["user.a", "user.empty"]
        assert errno_of(lambda: os.setxattr(path, "user.a", b"no", os.XATTR_CREATE)) == errno.EEXIST
        assert errno_of(lambda: os.setxattr(path, "user.b", b"no", os.XATTR_REPLACE)) == errno.ENODATA
        os.setxattr(path, "user.a", b"\0two\0")
        assert os.getxattr(path, "user.a") == b"\0two\0"
        os.removexattr(path, "user.a")
        assert errno_of(lambda: os.getxattr(path, "user.a")) == errno.ENODATA

    await off_loop(act)


async def test_holes_are_found(mount: Mount) -> None:
    def act() -> None:
        with open(mount.path / "f", "w+b", buffering=0) as file:
            os.pwrite(file.fileno(), b"x", 1 << 20)
            assert os.lseek(file.fileno(), 0, os.SEEK_DATA) == 1 << 20
            assert os.lseek(file.fileno(), 0, os.SEEK_HOLE) == 0
            assert os.pread(file.fileno(), 10, 1000) == bytes(10)
            os.posix_fallocate(file.fileno(), 0, 3 << 20)
            assert os.fstat(file.fileno()).st_size == 3 << 20

    await off_loop(act)


async def test_copy_file_range_stays_in_the_filesystem(mount: Mount) -> None:
    def act() -> None:
        (mount.path / "a").write_bytes(b"0123456789" * 100_000)
        with open(mount.path / "a", "rb") as source, open(mount.path / "b", "wb") as target:
            assert os.copy_file_range(source.fileno(), target.fileno(), 1_000_000) == 1_000_000
        assert (mount.path / "b").read_bytes() == (mount.path / "a").read_bytes()

    await off_loop(act)


MAPPING = """
import mmap
with open("f", "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
    assert mapped[9990:] == b"a" * 10
with open("f", "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
    mapped[5000:5005] = b"hello"
    mapped.flush()
"""


async def test_mapped_files_read_and_write(mount: Mount) -> None:
    """In a process of its own: a page fault is served with the interpreter lock held."""

    def act() -> None:
        (mount.path / "f").write_bytes(b"a" * 10000)
        subprocess.run([sys.executable, "-c", MAPPING], cwd=mount.path, check=True)
        assert (mount.path / "f").read_bytes()[4999:5006] == b"ahelloa"

    await off_loop(act)
    assert b"".join(mount.fs.inode("f").read(5000, 5)) == b"hello"


async def test_o_direct_bypasses_the_page_cache(mount: Mount) -> None:
    def act() -> None:
        (mount.path / "f").write_bytes(b"b" * (1 << 20))
        fd = os.open(mount.path / "f", os.O_RDONLY | os.O_DIRECT)
        try:
            with mmap.mmap(-1, 1 << 20) as buffer:
                for _ in range(3):
                    assert os.preadv(fd, [buffer], 0) == 1 << 20
                assert buffer[:] == b"b" * (1 << 20)
        finally:
            os.close(fd)

    await off_loop(act)
    assert mount.session.requests[Op.READ] >= 3


async def test_sequential_reads_come_as_big_requests(mount: Mount) -> None:
    await off_loop((mount.path / "f").write_bytes, bytes(32 << 20))
    before = mount.session.requests[Op.READ]

    def act() -> None:
        with open(mount.path / "f", "rb", buffering=0) as file:
            while file.read(1 << 17):
                pass

    await off_loop(act)
    assert mount.session.requests[Op.READ] - before <= 48


async def test_opening_with_truncation_is_one_request(mount: Mount) -> None:
    def act() -> None:
        (mount.path / "f").write_text("old")
        os.close(os.open(mount.path / "f", os.O_WRONLY | os.O_TRUNC))
        assert (mount.path / "f").stat().st_size == 0

    await off_loop(act)
    assert mount.session.requests[Op.SETATTR] == 0


async def test_times_and_time_of_birth(mount: Mount) -> None:
    def act() -> bytes:
        (mount.path / "f").touch()
        os.utime(mount.path / "f", ns=(1_500_000_000_123_456_789, -7_000_000_001))
        found = (mount.path / "f").stat()
        assert (found.st_atime_ns, found.st_mtime_ns) == (1_500_000_000_123_456_789, -7_000_000_001)
        return subprocess.run(["stat", "-c", "%W", str(mount.path / "f")], capture_output=True, check=True).stdout

    birth = await off_loop(act)
    assert int(birth) == mount.fs.inode("f").btime_ns // 1_000_000_000


async def test_space_is_reported(mount: Mount) -> None:
    space = await off_loop(os.statvfs, mount.path)
    assert space.f_blocks * space.f_frsize == 1 << 40
    assert space.f_bavail * space.f_frsize == 1 << 39
    assert space.f_namemax == 255


async def test_errors_keep_their_errno(mount: Mount) -> None:
    def act() -> None:
        (mount.path / "d").mkdir()
        (mount.path / "d/f").touch()
        assert errno_of((mount.path / "d").mkdir) == errno.EEXIST
        assert errno_of((mount.path / "d").rmdir) == errno.ENOTEMPTY
        assert errno_of((mount.path / "none").stat) == errno.ENOENT
        assert errno_of((mount.path / ("n" * 256)).touch) == errno.ENAMETOOLONG
        assert errno_of((mount.path / "d/f/g").touch) == errno.ENOTDIR
        assert errno_of(lambda: os.open(mount.path, os.O_TMPFILE | os.O_RDWR)) == errno.EOPNOTSUPP

    await off_loop(act)


async def test_a_defect_is_eio_and_logged_once(mount: Mount, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(MemoryFilesystem):
        def statfs(self, fid: int = 0) -> Answer[StatfsReply]:
            raise RuntimeError("a defect")

    mount.fs.__class__ = Broken

    def act() -> None:
        for _ in range(3):
            assert errno_of(lambda: os.statvfs(mount.path)) == errno.EIO

    with caplog.at_level(logging.ERROR):
        await off_loop(act)
    (record,) = caplog.records
    assert "STATFS" in record.getMessage()


async def test_a_write_by_an_ordinary_user_ends_setuid(mount: Mount) -> None:
    def act() -> None:
        path = mount.path / "f"
        path.touch()
        path.chmod(0o6777)
        with open(path, "ab") as file:  # root may
            file.write(b"x")
        assert path.stat().st_mode & 0o7777 == 0o6777
        # pytest's directories are private: an ordinary user gets in through a descriptor only
        fd = os.open(mount.path, os.O_RDONLY)
        try:
            child = subprocess.Popen(
                ["/bin/sh", "-c", "echo y >> f"], user=NOBODY, group=NOBODY, extra_groups=[], cwd=f"/proc/self/fd/{fd}",
                pass_fds=(fd,),
            )  # fmt: skip
            assert child.wait() == 0
        finally:
            os.close(fd)

    await off_loop(act)
    assert mount.fs.inode("f").mode & 0o7777 == 0o777


async def test_modes_are_checked_by_the_kernel(mount: Mount) -> None:
    def act() -> int:
        (mount.path / "secret").write_text("x")
        (mount.path / "secret").chmod(0o600)
        fd = os.open(mount.path, os.O_RDONLY)
        try:
            return subprocess.run(
                ["/bin/cat", "secret"], user=NOBODY, group=NOBODY, extra_groups=[], cwd=f"/proc/self/fd/{fd}",
                pass_fds=(fd,), capture_output=True, check=False,
            ).returncode  # fmt: skip
        finally:
            os.close(fd)

    assert await off_loop(act) == 1


async def test_a_source_tree_is_copied_in_and_out(mount: Mount, tmp_path: Path) -> None:
    source = os.path.dirname(os.path.dirname(sys.modules["json"].__file__ or "")) + "/email"

    def act() -> None:
        subprocess.run(["cp", "-a", source, str(mount.path / "tree")], check=True)
        subprocess.run(["tar", "-C", str(mount.path), "-cf", str(tmp_path / "t.tar"), "tree"], check=True)
        subprocess.run(["tar", "-C", str(tmp_path), "-xf", str(tmp_path / "t.tar")], check=True)
        subprocess.run(["diff", "-r", source, str(tmp_path / "tree")], check=True)
        subprocess.run(["rm", "-r", str(mount.path / "tree")], check=True)

    await off_loop(act)
    assert list(mount.fs.inodes) == [1]
