"""A full OST: ENOSPC where the program looks, nothing stored is lost, it goes on when there is room (CONTRACT 10)."""

import errno
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.harness.process import process_cluster

MIB = 1 << 20
DISK_MIB = 400

pytestmark = pytest.mark.timeout(150)


def write_until_full(path: Path) -> int | None:
    """Write and fsync MiB after MiB, more than the disk has; the errno that ends it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        for number in range(2 * DISK_MIB):
            os.pwrite(descriptor, bytes([number % 251]) * MIB, number * MIB)
            if number % 8 == 7:
                os.fsync(descriptor)
    except OSError as error:
        return error.errno
    finally:
        try:
            os.close(descriptor)
        except OSError as error:
            assert error.errno == errno.ENOSPC
    return None


def test_full_ost_says_so_loses_nothing_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    with process_cluster(tmp_path, "--osts", "1") as running:
        running.down()
        disk, kept = running.directory / "ost0", tmp_path / "kept"
        shutil.copytree(disk, kept, symlinks=True)
        image = tmp_path / "image"
        with open(image, "wb") as file:
            file.truncate(DISK_MIB * MIB)
        subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
        if subprocess.run(["mount", "-o", "loop", image, disk], check=False).returncode:
            pytest.skip("there are no loop devices here")
        try:
            shutil.copytree(kept, disk, symlinks=True, dirs_exist_ok=True)
            running.up()
            before = running.mount / "before"
            data = os.urandom(4 * MIB)
            before.write_bytes(data)
            os.sync()
            big = running.mount / "big"
            assert write_until_full(big) == errno.ENOSPC
            assert before.read_bytes() == data
            assert set(os.listdir(running.mount)) == {"before", "big"}
            big.unlink()
            after = running.mount / "after"
            for _ in range(300):
                try:
                    after.write_bytes(data)
                    descriptor = os.open(after, os.O_RDWR)
                    try:
                        os.fsync(descriptor)
                    finally:
                        os.close(descriptor)
                    break
                except OSError as error:
                    assert error.errno == errno.ENOSPC
                    time.sleep(0.1)
            else:
                raise AssertionError("there is room, and still ENOSPC")
            assert after.read_bytes() == data
            assert before.read_bytes() == data
        finally:
            running.down()
            subprocess.run(["umount", "-l", disk], check=True)
