"""Directories that are, or are not, OSTs; their room; bounded descriptors, dirty bytes and buffers."""

import asyncio
import errno
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from nacrefs.oss.blockio import IoThreads
from nacrefs.oss.label import format_target, read_label
from nacrefs.oss.space import Space
from nacrefs.oss.target import Limits, Target
from tests.oss.local import CLUSTER, FID, LIMITS, LocalOss, local_oss


async def open_fails(root: Path, number: int, text: str, cluster: str = CLUSTER) -> None:
    threads = IoThreads(1)
    try:
        with pytest.raises(OSError, match=text) as caught:
            Target.open(str(root), cluster, LIMITS, threads)
        assert caught.value.errno == number
        assert "\n" not in str(caught.value)
    finally:
        threads.close()


async def test_directory_that_is_not_an_ost(tmp_path: Path) -> None:
    await open_fails(tmp_path, errno.ENOENT, "nacre oss format")
    await open_fails(tmp_path / "absent", errno.ENOENT, "nacre oss format")


async def test_ost_of_another_cluster_or_a_newer_format_or_damaged(tmp_path: Path) -> None:
    root = tmp_path / "ost"
    format_target(str(root), "other")
    await open_fails(root, errno.EXDEV, "belongs to cluster 'other', not to 'test'")
    label = root / "ost.toml"
    text = label.read_text()
    label.write_text(text.replace("format = 1", "format = 2\nnews = true"))
    await open_fails(root, errno.EPROTONOSUPPORT, "format 2, this program knows up to 1")
    label.write_text(text.replace("index = -1", "index = 'a'"))
    await open_fails(root, errno.EINVAL, "damaged")
    label.write_text("{")
    await open_fails(root, errno.EINVAL, "damaged")


def test_format_refuses_what_holds_anything(tmp_path: Path) -> None:
    root = tmp_path / "ost"
    first = format_target(str(root), CLUSTER)
    with pytest.raises(FileExistsError, match=first.uuid):
        format_target(str(root), CLUSTER)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").touch()
    with pytest.raises(OSError, match=r"not empty \(thesis.tex"):
        format_target(str(tmp_path / "home"), CLUSTER)
    with pytest.raises(ValueError, match="cluster id"):
        format_target(str(tmp_path / "new"), 'a"b')
    assert read_label(str(root)) == first


async def test_ost_is_served_by_one_process_only(tmp_path: Path) -> None:
    root = tmp_path / "ost"
    async with local_oss(root):
        program = (
            "import asyncio, sys\n"
            "from nacrefs.oss.blockio import IoThreads\n"
            "from nacrefs.oss.target import Limits, Target\n"
            "async def main():\n"
            "    Target.open(sys.argv[1], sys.argv[2], Limits(), IoThreads(1))\n"
            "asyncio.run(main())\n"
        )
        other = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, root, CLUSTER, stderr=asyncio.subprocess.PIPE
        )
        _, said = await other.communicate()
        assert other.returncode == 1
        assert b"in use by another process" in said.splitlines()[-1]


async def test_index_from_the_mds_is_remembered(tmp_path: Path) -> None:
    root = tmp_path / "ost"
    format_target(str(root), CLUSTER)
    async with local_oss(root, fresh=False) as oss:
        assert oss.target.info().index == -1
        oss.target.set_index(12)
        assert oss.target.info().index == 12
        assert oss.target.where == "OST 12"
        with pytest.raises(OSError, match="is OST 13 to the MDS"):
            oss.target.set_index(13)
    assert read_label(str(root)).index == 12


async def test_full_ost_refuses_new_bytes_and_takes_overwrites(tmp_path: Path) -> None:
    async with local_oss(tmp_path / "ost") as oss:
        await oss.write((0, b"a" * 8192))
        roomy = oss.target.space
        oss.target.space = Space(str(tmp_path), 1 << 60, 0, oss.target.where)
        assert oss.target.info().free_bytes == 0
        for attempt in (oss.write((8192, b"b" * 4096)), oss.write((0, b"b"), fid=FID + 1)):
            with pytest.raises(OSError, match="OST 0 is full but for its reserve") as caught:
                await attempt
            assert caught.value.errno == errno.ENOSPC
        await oss.write((4096, b"c" * 4096))
        assert await oss.read((0, 9000)) == [b"a" * 4096 + b"c" * 4096]
        oss.target.space = roomy
        await oss.write((8192, b"b" * 4096))


def test_reserve_is_the_larger_of_bytes_and_percent(tmp_path: Path) -> None:
    async def body(limits: Limits, name: str) -> int:
        async with local_oss(tmp_path / name, limits) as oss:
            return oss.target.space.reserve_bytes

    stat = os.statvfs(tmp_path)
    total = stat.f_blocks * stat.f_frsize
    assert asyncio.run(body(Limits(reserve_bytes=5, reserve_percent=2), "a")) == int(total * 2 / 100)
    assert asyncio.run(body(Limits(reserve_bytes=total, reserve_percent=2), "b")) == total


async def test_open_files_are_bounded(tmp_path: Path) -> None:
    async with local_oss(tmp_path / "ost", Limits(0, 0, open_objects=32, flush_s=3600)) as oss:
        before = len(os.listdir("/proc/self/fd"))
        for fid in range(1, 200):
            await oss.write((0, b"%d" % fid), fid=fid)
        for fid in range(1, 200):
            assert await oss.read((0, 9), fid=fid) == [b"%d" % fid]
        assert len(os.listdir("/proc/self/fd")) <= before + 32 + 8
        assert len(oss.target.open_objects()) <= 32 + 8


async def test_writers_wait_when_too_many_bytes_are_dirty(tmp_path: Path) -> None:
    async with local_oss(tmp_path / "ost", Limits(0, 0, dirty_bytes=1 << 20, flush_s=3600)) as oss:
        high = 0
        for step in range(24):
            await oss.write((step << 18, bytes([step]) * (1 << 18)))
            high = max(high, oss.target.durability.dirty_bytes)
        assert high <= (1 << 20) + (1 << 18)
        assert await oss.read((23 << 18, 4)) == [bytes([23]) * 4]


async def test_reads_wait_for_buffers_and_all_are_served(tmp_path: Path) -> None:
    async with local_oss(tmp_path / "ost") as oss:
        oss.pool.limit_bytes = 1 << 20
        await oss.write((0, b"a" * (1 << 20)))
        found = await asyncio.gather(*(oss.read((0, 1 << 20)) for _ in range(8)))
        assert all(data == [b"a" * (1 << 20)] for data in found)
        assert oss.pool.used_bytes == 0


class BadDisk(IoThreads):
    """A disk that refuses to write back, for a while."""

    broken = True

    async def run(self, call: Any, *args: Any, **kwargs: Any) -> Any:
        if call is os.fdatasync and self.broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return await super().run(call, *args, **kwargs)


async def test_fsync_that_failed_never_succeeds_later(tmp_path: Path) -> None:
    """The kernel says it once and may have dropped the bytes."""
    format_target(str(tmp_path / "ost"), CLUSTER, index=0)
    threads = BadDisk(1)
    target = Target.open(str(tmp_path / "ost"), CLUSTER, LIMITS, threads)
    oss = LocalOss(target, threads)
    try:
        await oss.write((0, b"lost"))
        for broken in (True, False):
            threads.broken = broken
            with pytest.raises(OSError, match="the disk refused bytes") as caught:
                await oss.sync()
            assert caught.value.errno == errno.EIO
        assert target.durability.failures() == [f"OST 0, object [0x1:{FID & 0xFFFF:#x}].0"]
        await oss.truncate(0)
        await oss.write((0, b"anew"), sync=True)
    finally:
        await target.close()
        threads.close()
