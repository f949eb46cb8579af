"""What was promised survives a power cut (CONTRACT 4), and the disk of these tests loses what was not synced."""

import os
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.faults.power import EVERYTHING, PowerDisk, power_rig
from tests.harness.process import need_mounts


@pytest.fixture(autouse=True)
def can_mount() -> None:
    need_mounts()


@pytest.fixture
def disk(tmp_path: Path) -> Generator[PowerDisk]:
    disk = PowerDisk(tmp_path / "disk")
    yield disk
    disk.close()


def store(path: Path, data: bytes, sync: bool, flags: int = 0) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o644)
    try:
        os.pwrite(descriptor, data, 0)
        if sync:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def test_disk_loses_what_was_not_synced(disk: PowerDisk) -> None:
    place = disk.directory
    store(place / "synced", b"a" * 200_000, sync=True)
    store(place / "dsync", b"d" * 5000, sync=False, flags=os.O_DSYNC)
    store(place / "unsynced", b"u" * 5000, sync=False)
    (place / "renamed").write_bytes(b"")
    (place / "removed").write_bytes(b"")
    disk.sync_directory()
    store(place / "synced", b"b" * 100_000, sync=False)
    os.truncate(place / "dsync", 10)
    store(place / "no-name", b"n", sync=True)
    (place / "renamed").rename(place / "new-name")
    (place / "removed").unlink()
    assert disk.cut(1) > 0
    assert sorted(os.listdir(place)) == ["dsync", "removed", "renamed", "synced", "unsynced"]
    assert (place / "synced").read_bytes() == b"a" * 200_000
    assert (place / "dsync").read_bytes() == b"d" * 5000
    assert (place / "unsynced").read_bytes() == b""
    assert disk.cut(2) == 0, "all that is there is durable"


def test_disk_may_keep_some_of_what_was_not_synced(disk: PowerDisk) -> None:
    path = disk.directory / "f"
    store(path, b"a" * (64 << 16), sync=True)
    disk.sync_directory()
    store(path, b"b" * (64 << 16), sync=False)
    lost = disk.cut(3, 0.5)
    data = path.read_bytes()
    assert 0 < lost < 64
    assert data.count(b"a" * 65536) == lost
    assert len(data) == 64 << 16


@pytest.mark.timeout(240)
def test_what_was_promised_survives_power_cuts(tmp_path: Path) -> None:
    with power_rig(tmp_path, seed=30) as (rig, disk):
        for _ in range(3):
            before = disk.lost
            rig.round([EVERYTHING])
            assert disk.lost > before, "nothing was lost: this shows nothing"
    assert rig.report.violations == []
    assert rig.report.synced > 10, rig.report.line()


@pytest.mark.timeout(240)
def test_rig_notices_an_ost_that_does_not_sync(tmp_path: Path) -> None:
    with power_rig(tmp_path, seed=31) as (rig, _):
        rig.faults = "oss.sync=skip times=1000000"
        rig.kill(("oss0", "oss1"))
        rig.revive()
        for _ in range(4):
            rig.round([EVERYTHING])
            if rig.report.violations:
                break
    assert rig.report.violations, rig.report.line()


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_what_was_promised_survives_many_power_cuts(tmp_path: Path) -> None:
    with power_rig(tmp_path, seed=32) as (rig, _):
        for _ in range(25):
            rig.round([EVERYTHING])
    assert rig.report.violations == []
