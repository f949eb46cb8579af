"""A full MDT disk: ENOSPC where the program looks, nothing that was answered is lost, it goes on when there is room
(CONTRACT 10)."""

import errno
import os
import shutil
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.harness.process import ProcessCluster, nacre, process_cluster

MIB = 1 << 20
DISK_MIB = 64
ROOM_MIB = 3
FILE = 12_000
"""Bytes of a file that stays in the MDT."""

pytestmark = pytest.mark.timeout(240)


@contextmanager
def small_disk(running: ProcessCluster, base: Path) -> Generator[Path]:
    """The MDT on a file system of its own; the directory where that is."""
    running.down()
    disk, kept, image = running.directory / "mdt", base / "kept", base / "image"
    shutil.copytree(disk, kept)
    with open(image, "wb") as file:
        file.truncate(DISK_MIB * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", image], check=True)
    if subprocess.run(["mount", "-o", "loop", image, disk], check=False).returncode:
        pytest.skip("there are no loop devices here")
    try:
        shutil.copytree(kept, disk, dirs_exist_ok=True)
        running.up()
        yield disk
    finally:
        running.down()
        subprocess.run(["umount", "-l", disk], check=True)


def free_bytes(disk: Path) -> int:
    space = os.statvfs(disk)
    return space.f_bavail * space.f_frsize


def make(path: Path, data: bytes) -> int:
    """Make a file and sync it; the errno of what failed, 0 if nothing did."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    except OSError as error:
        return error.errno or -1
    try:
        os.write(descriptor, data)
        os.fsync(descriptor)
    except OSError as error:
        return error.errno or -1
    finally:
        try:
            os.close(descriptor)
        except OSError as error:
            assert error.errno == errno.ENOSPC
    return 0


def test_full_mdt_disk_says_so_loses_nothing_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    with process_cluster(tmp_path, "--osts", "1") as running, small_disk(running, tmp_path) as disk:
        place = running.mount / "d"
        place.mkdir()
        ballast = disk / "ballast"
        size = free_bytes(disk) - ROOM_MIB * MIB
        with open(ballast, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
        made: dict[str, bytes] = {}
        for number in range(20 * MIB // FILE):
            name, data = f"{number}", os.urandom(FILE)
            if code := make(place / name, data):
                break
            made[name] = data
        else:
            raise AssertionError("the disk did not become full: this shows nothing")
        assert code == errno.ENOSPC
        assert len(made) > 10
        try:
            os.rename(place / "0", place / "moved")  # a small transaction may still have room
        except OSError as error:
            assert error.errno == errno.ENOSPC
        moved = "moved" if (place / "moved").exists() else "0"
        made[moved] = made.pop("0")
        for name, data in made.items():
            assert (place / name).read_bytes() == data
        ballast.unlink()
        deadline_s = time.monotonic() + 60
        while code := make(place / "after", b"room"):
            assert code in (errno.ENOSPC, errno.EEXIST)
            (place / "after").unlink(missing_ok=True)
            assert time.monotonic() < deadline_s, "there is room, and still ENOSPC"
            time.sleep(0.1)
        running.kill("mds")
        running.up()
        for name, data in made.items():
            assert (place / name).read_bytes() == data
        assert (place / "after").read_bytes() == b"room"
        done = nacre("fsck", running.mount, "--grace", "0s")
        assert done.returncode == 0, done
