"""copy_file_range between files on OSTs: what comes of it is what a local file system makes of it, and the bytes do not
pass through the client (docs/adr/0018).
"""

import asyncio
import errno
import os
import random
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nacrefs.client.filesystem import Cred
from nacrefs.client.vfs import Vfs
from nacrefs.common.answer import settle
from nacrefs.common.layout import LayoutSpec
from nacrefs.common.wire import ArchiveSpec, QuotaKind, QuotaLimits, SetLayout, SetQuota
from tests.client.world import (
    CRED,
    Counting,
    World,
    close,
    cluster,
    contents,
    open_file,
    quiet,
    read,
    read_file,
    write_file,
)
from tests.cluster.test_links import Bucket, linked

KIB = 1 << 10
MIB = 1 << 20
BYTES = frozenset({"Read", "Write"})
"""Requests that carry file bytes."""
LAYOUTS = (
    LayoutSpec(1, 64 * KIB),
    LayoutSpec(2, 64 * KIB),
    LayoutSpec(3, 128 * KIB),
    LayoutSpec(4, 64 * KIB),
    LayoutSpec(2, 64 * KIB, mirrors=2),
    LayoutSpec(1, 256 * KIB, mirrors=2),
)


def noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


async def make(vfs: Vfs, name: bytes, spec: LayoutSpec | None = None) -> int:
    """The fid of a new, empty file with a layout (then in a directory of its own)."""
    if spec is None:
        return await write_file(vfs, vfs.root, name, b"")
    found = await settle(vfs.mkdir(vfs.root, b"of " + name, 0o755, CRED))
    assert found.attr is not None
    await vfs.session.mds.call(SetLayout(found.attr.fid, spec))
    return await write_file(vfs, found.attr.fid, name, b"")


async def put(vfs: Vfs, name: bytes, pieces: list[tuple[int, bytes]], spec: LayoutSpec | None = None) -> int:
    """A file that has bytes in some places; its fid."""
    fid = await make(vfs, name, spec)
    number = await open_file(vfs, fid, os.O_RDWR)
    for offset, data in pieces:
        await settle(vfs.write(number, offset, memoryview(data)))
    await settle(vfs.fsync(number, False))
    await close(vfs, number)
    return fid


async def size_of(vfs: Vfs, fid: int) -> int:
    return (await settle(vfs.getattr(fid))).attr.size


async def copy(vfs: Vfs, source: int, target: int, start: int = 0, at: int = 0, length: int = 1 << 30) -> int:
    """copy_file_range by fid."""
    one, two = await open_file(vfs, source), await open_file(vfs, target, os.O_RDWR)
    try:
        return await settle(vfs.copy_file_range(one, start, two, at, length))
    finally:
        await close(vfs, one)
        await close(vfs, two)


def served(world: World, kind: str) -> int:
    """How many requests of a kind all OSSes have asked others or answered."""
    return sum(tally.count for oss in world.oss for name, tally in oss.meter.tallies.items() if name == kind)


places = st.tuples(st.integers(0, 700 * KIB), st.integers(20 * KIB, 400 * KIB))  # not in the MDT
ranges = st.tuples(
    st.one_of(st.integers(0, 16).map(lambda n: n * 64 * KIB), st.integers(0, MIB)),
    st.one_of(st.integers(0, 16).map(lambda n: n * 64 * KIB), st.integers(0, MIB)),
    st.integers(64 * KIB, MIB),
)


async def as_on_a_local_file_system(directory: Path, examples: int) -> None:
    """Random ranges between files of random layouts, compared with the same on local files."""
    async with cluster(directory) as world:
        vfs = await world.vfs()
        loop = asyncio.get_running_loop()
        numbers = iter(range(1 << 30))

        async def compare(
            layouts: tuple[LayoutSpec, LayoutSpec],
            held: tuple[list[tuple[int, int]], list[tuple[int, int]]],
            copies: list[tuple[int, int, int]],
        ) -> None:
            number = next(numbers)
            fids: list[int] = []
            locals_: list[Path] = []
            for which in range(2):
                pieces = [(at, noise(at + size + which, size)) for at, size in held[which]]
                name = b"%d.%d" % (number, which)
                fids.append(await put(vfs, name, pieces, layouts[which]))
                path = directory / name.decode()
                locals_.append(path)
                with path.open("wb") as file:
                    for at, data in pieces:
                        os.pwrite(file.fileno(), data, at)
            await quiet(vfs)
            counting = Counting(vfs)
            with locals_[0].open("rb") as source, locals_[1].open("r+b") as target:
                for start, at, length in copies:
                    data = os.pread(source.fileno(), length, start)
                    small = 0 < os.fstat(target.fileno()).st_size < 20 * KIB
                    os.pwrite(target.fileno(), data, at)
                    assert await copy(vfs, fids[0], fids[1], start, at, length) == len(data)
                    await quiet(vfs)
                    sent = counting()
                    if len(data) >= 64 * KIB:
                        # (What a small target had in the MDT goes to an OST, too.)
                        ours: set[str] = {"Write"} if small else set()
                        assert BYTES & sent.keys() <= ours, sent
            wanted = locals_[1].read_bytes()
            assert await contents(vfs, fids[1]) == wanted
            assert await size_of(vfs, fids[1]) == len(wanted)
            assert await contents(vfs, fids[0]) == locals_[0].read_bytes()
            for path in locals_:
                path.unlink()

        @settings(
            max_examples=examples,
            suppress_health_check=[
                HealthCheck.function_scoped_fixture,
                HealthCheck.too_slow,
                HealthCheck.data_too_large,
            ],
            derandomize=True,
            database=None,
        )
        @given(
            st.tuples(st.sampled_from(LAYOUTS), st.sampled_from(LAYOUTS)),
            st.tuples(st.lists(places, min_size=1, max_size=3), st.lists(places, max_size=2)),
            st.lists(ranges, min_size=1, max_size=3),
        )
        def check(
            layouts: tuple[LayoutSpec, LayoutSpec],
            held: tuple[list[tuple[int, int]], list[tuple[int, int]]],
            copies: list[tuple[int, int, int]],
        ) -> None:
            run(compare(layouts, held, copies))

        def run(work: Coroutine[Any, Any, None]) -> None:
            asyncio.run_coroutine_threadsafe(work, loop).result(60)

        await asyncio.to_thread(check)


async def test_ranges_of_all_layouts_are_copied_as_on_a_local_file_system(tmp_path: Path) -> None:
    await as_on_a_local_file_system(tmp_path, 40)


@pytest.mark.slow
async def test_many_ranges_of_all_layouts_are_copied_as_on_a_local_file_system(tmp_path: Path) -> None:
    await as_on_a_local_file_system(tmp_path, 600)


async def test_no_byte_passes_through_the_client_and_aligned_sums_are_carried_over(tmp_path: Path) -> None:
    async with cluster(tmp_path) as world:
        vfs = await world.vfs()
        data = noise(1, 9 * MIB + 12_345)
        source = await put(vfs, b"a", [(0, data)], LayoutSpec(2, MIB))
        target = await make(vfs, b"b", LayoutSpec(2, MIB))
        await quiet(vfs)
        counting = Counting(vfs)
        assert await copy(vfs, source, target) == len(data)
        await quiet(vfs)
        sent = counting()
        assert not BYTES & sent.keys(), sent
        assert sent["CopyRange"] == 4, sent  # 2 stripes of 5 and 4 MiB and a bit, up to 4 MiB each
        assert await contents(vfs, target) == data


async def test_bytes_go_from_one_oss_to_the_other_where_the_files_lie_apart(tmp_path: Path) -> None:
    async with cluster(tmp_path) as world:
        vfs = await world.vfs()
        data = noise(2, 3 * MIB)
        source = await put(vfs, b"a", [(0, data)], LayoutSpec(1, MIB, first_ost=0))
        near = await make(vfs, b"near", LayoutSpec(1, MIB, first_ost=1))
        far = await make(vfs, b"far", LayoutSpec(1, MIB, first_ost=3))
        before = served(world, "Read")
        assert await copy(vfs, source, near) == len(data)
        assert served(world, "Read") == before
        assert await copy(vfs, source, far) == len(data)
        assert served(world, "Read") == before + 2  # asked by one, answered by the other
        for fid in (near, far):
            assert await contents(vfs, fid) == data


async def test_dirty_bytes_of_both_files_count(tmp_path: Path) -> None:
    async with cluster(tmp_path) as world:
        vfs = await world.vfs()
        source = await open_file(vfs, await make(vfs, b"a"), os.O_RDWR)
        target = await open_file(vfs, await make(vfs, b"b"), os.O_RDWR)
        await settle(vfs.write(source, 0, memoryview(b"s" * 300_000)))
        await settle(vfs.write(target, 0, memoryview(b"t" * 300_000)))
        assert await settle(vfs.copy_file_range(source, 100_000, target, 50_000, 150_000)) == 150_000
        await settle(vfs.write(target, 60_000, memoryview(b"u" * 10)))
        wanted = bytearray(b"t" * 50_000 + b"s" * 150_000 + b"t" * 100_000)
        wanted[60_000:60_010] = b"u" * 10
        assert await read(vfs, target) == wanted
        await close(vfs, source)
        await close(vfs, target)
        other = await world.vfs()
        assert await read_file(other, other.root, b"b") == wanted


async def test_small_contents_in_the_mdt_move_out_when_more_is_copied_behind_them(tmp_path: Path) -> None:
    async with cluster(tmp_path) as world:
        vfs = await world.vfs()
        source = await put(vfs, b"a", [(0, noise(3, 200_000))])
        await write_file(vfs, vfs.root, b"b", b"small")
        found = await settle(vfs.lookup(vfs.root, b"b"))
        assert found.attr is not None
        assert await copy(vfs, source, found.attr.fid, 0, 10) == 200_000
        await quiet(vfs)
        other = await world.vfs()
        assert await read_file(other, other.root, b"b") == b"small" + bytes(5) + noise(3, 200_000)


async def test_small_contents_in_the_mdt_are_copied_through_the_client(tmp_path: Path) -> None:
    async with cluster(tmp_path) as world:
        vfs = await world.vfs()
        source = await write_file(vfs, vfs.root, b"a", b"small")
        target = await write_file(vfs, vfs.root, b"b", b"")
        assert await copy(vfs, source, target) == 5
        assert await read_file(vfs, vfs.root, b"b") == b"small"


async def test_shared_files_are_copied_as_everybody_sees_them(tmp_path: Path) -> None:
    async with cluster(tmp_path) as world:
        one, two = await world.vfs(), await world.vfs()
        source, target = await put(one, b"a", [(0, b"a" * 400_000)]), await put(one, b"b", [(0, b"b" * 1000)])
        mine = [await open_file(one, fid, os.O_RDWR) for fid in (source, target)]
        theirs = [await open_file(two, fid, os.O_RDWR) for fid in (source, target)]
        await settle(two.write(theirs[0], 400_000, memoryview(b"z" * 100_000)))
        await settle(two.write(theirs[1], 0, memoryview(b"c" * 1000)))
        assert await settle(one.copy_file_range(mine[0], 300_000, mine[1], 1000, 1 << 30)) == 200_000
        wanted = b"c" * 1000 + b"a" * 100_000 + b"z" * 100_000
        assert await read(two, theirs[1]) == wanted
        assert await size_of(two, target) == len(wanted)
        for vfs, numbers in ((one, mine), (two, theirs)):
            for number in numbers:
                await close(vfs, number)


async def test_hole_at_the_end_of_a_shared_file_counts_for_its_size(tmp_path: Path) -> None:
    async with cluster(tmp_path) as world:
        one, two = await world.vfs(), await world.vfs()
        source = await put(one, b"a", [(0, b"a" * 100_000), (900_000, b"a")])
        target = await put(one, b"b", [(0, b"b" * 100_000)])
        mine = await open_file(one, target, os.O_RDWR)
        theirs = await open_file(two, target, os.O_RDWR)
        number = await open_file(one, source)
        assert await settle(one.copy_file_range(number, 0, mine, 50_000, 800_000)) == 800_000
        assert await size_of(two, target) == 850_000
        assert await read(two, theirs) == b"b" * 50_000 + b"a" * 100_000 + bytes(700_000)
        await close(one, number)
        await close(one, mine)
        await close(two, theirs)


async def test_holes_stay_holes(tmp_path: Path) -> None:
    async with cluster(tmp_path) as world:
        vfs = await world.vfs()
        end = 1 << 40
        source = await put(vfs, b"a", [(0, b"a" * 100_000), (end - 70_000, b"z" * 70_000)])
        target = await put(vfs, b"b", [(0, b"b" * 400_000)])
        copied = 0
        while done := await copy(vfs, source, target, copied, copied, 1 << 40):
            copied += done
            if copied == 1 << 30:
                break
        await quiet(vfs)
        assert copied == 1 << 30
        found = await settle(vfs.getattr(target))
        assert found.attr.size == 1 << 30
        assert found.attr.blocks * 512 <= 512 * KIB
        number = await open_file(vfs, target)
        assert await read(vfs, number, 0, 500_000) == b"a" * 100_000 + bytes(400_000)
        await close(vfs, number)


async def test_ranges_that_overlap_in_one_file_are_refused(tmp_path: Path) -> None:
    async with cluster(tmp_path) as world:
        vfs = await world.vfs()
        data = noise(4, 600_000)
        fid = await put(vfs, b"a", [(0, data)])
        with pytest.raises(OSError, match="overlap") as caught:
            await copy(vfs, fid, fid, 0, 100_000, 200_000)
        assert caught.value.errno == errno.EINVAL
        assert await copy(vfs, fid, fid, 0, 300_000, 200_000) == 200_000
        assert await read_file(vfs, vfs.root, b"a") == data[:300_000] + data[:200_000] + data[500_000:]


async def test_flipped_bit_of_the_source_is_found_and_not_copied(tmp_path: Path) -> None:
    async with cluster(tmp_path) as world:
        vfs = await world.vfs()
        source = await put(vfs, b"a", [(0, noise(5, 400_000))], LayoutSpec(1, 256 * KIB))
        target = await put(vfs, b"b", [(0, noise(6, 300_000))], LayoutSpec(1, 256 * KIB))
        await quiet(vfs)
        [file] = list(world.directory.rglob(f"{source:016x}.0"))
        with file.open("r+b") as flipped:
            byte = os.pread(flipped.fileno(), 1, 210_000)
            os.pwrite(flipped.fileno(), bytes([byte[0] ^ 4]), 210_000)
        with pytest.raises(OSError, match=r"checksum|damaged|not match"):
            await copy(vfs, source, target, 150_000, 100_000, 240_000)
        await quiet(vfs)
        assert await contents(vfs, target) == noise(6, 300_000)
        assert await size_of(vfs, target) == 300_000


async def test_bytes_behind_the_end_of_a_failed_copy_do_not_reappear(tmp_path: Path) -> None:
    async with cluster(tmp_path) as world:
        vfs = await world.vfs()
        source = await put(vfs, b"a", [(0, noise(7, 6 * MIB))], LayoutSpec(1, MIB))
        target = await put(vfs, b"b", [(0, b"b" * 100_000)], LayoutSpec(1, MIB))
        await quiet(vfs)
        [file] = list(world.directory.rglob(f"{source:016x}.0"))
        with file.open("r+b") as flipped:
            os.pwrite(flipped.fileno(), b"?" * 100, MIB)  # in the first order: the second is carried out
        with pytest.raises(OSError, match=r"checksum|damaged|not match"):
            await copy(vfs, source, target, 0, 100_000)
        number = await open_file(vfs, target, os.O_RDWR)
        [file] = list(world.directory.rglob(f"{target:016x}.0"))
        assert file.stat().st_size > 4 * MIB
        await settle(vfs.fallocate(number, 0, 0, 7 * MIB))
        assert await read(vfs, number, 0, 7 * MIB) == (b"b" * 100_000).ljust(7 * MIB, b"\0")
        await close(vfs, number)


async def test_mirrored_source_with_a_damaged_copy_is_read_from_the_other(tmp_path: Path) -> None:
    async with cluster(tmp_path) as world:
        vfs = await world.vfs()
        data = noise(8, 300_000)
        source = await put(vfs, b"a", [(0, data)], LayoutSpec(1, 256 * KIB, mirrors=2))
        target = await make(vfs, b"b")
        await quiet(vfs)
        for file in world.directory.rglob(f"{source:016x}.0"):
            with file.open("r+b") as flipped:
                os.pwrite(flipped.fileno(), b"?" * 10, 100_000)
        assert await copy(vfs, source, target) == len(data)
        await quiet(vfs)
        assert await contents(vfs, target) == data


async def test_descriptors_that_are_open_for_the_wrong_thing_are_refused(tmp_path: Path) -> None:
    async with cluster(tmp_path) as world:
        vfs = await world.vfs()
        fid = await put(vfs, b"a", [(0, noise(9, 200_000))])
        _, handle = await settle(vfs.create(vfs.root, b"b", 0o644, os.O_WRONLY | os.O_CREAT, CRED))
        reading = await open_file(vfs, fid)
        appending = await open_file(vfs, fid, os.O_WRONLY | os.O_APPEND)
        for source, target in ((reading, reading), (handle.number, handle.number), (reading, appending)):
            with pytest.raises(OSError, match="not open") as caught:
                await settle(vfs.copy_file_range(source, 0, target, 0, 100_000))
            assert caught.value.errno == errno.EBADF
        for number in (handle.number, reading, appending):
            await close(vfs, number)


async def test_source_that_is_away_is_copied_through_the_client_when_it_is_back(tmp_path: Path) -> None:
    async with cluster(tmp_path) as world:
        vfs = await world.vfs()
        data = noise(10, 300_000)
        source = await put(vfs, b"a", [(0, data)], LayoutSpec(1, MIB, first_ost=0))
        target = await make(vfs, b"b", LayoutSpec(1, MIB, first_ost=3))
        await quiet(vfs)
        one, two = await open_file(vfs, source), await open_file(vfs, target, os.O_RDWR)
        away = next(server for server in world.oss if server.config.name == "oss0")
        world.oss.remove(away)
        copying = asyncio.create_task(settle(vfs.copy_file_range(one, 0, two, 0, 1 << 30)))
        await away.stop()
        await world.start_oss(0)
        assert await copying == len(data)
        await close(vfs, one)
        await close(vfs, two)
        assert await contents(vfs, target) == data


async def test_copy_ends_where_the_quota_of_the_targets_owner_does(tmp_path: Path) -> None:
    async with cluster(tmp_path) as world:
        vfs = await world.vfs()
        data = noise(11, 3 * MIB)
        one = await open_file(vfs, await put(vfs, b"a", [(0, data)]))
        await vfs.session.mds.call(SetQuota(QuotaKind.USER, 1234, QuotaLimits(hard_bytes=2 * MIB)))
        found, handle = await settle(vfs.create(vfs.root, b"b", 0o644, os.O_RDWR | os.O_CREAT, Cred(1234, 1234, 1)))
        copied = 0
        failure: OSError | None = None
        while failure is None:
            try:
                done = await settle(vfs.copy_file_range(one, copied, handle.number, copied, 1 << 30))
                assert done, "all was copied"
                copied += done
            except OSError as error:
                failure = error
        assert failure.errno == errno.EDQUOT
        assert MIB < copied <= 2 * MIB + 64 * KIB
        await close(vfs, one)
        await close(vfs, handle.number)
        assert found.attr is not None
        assert await contents(vfs, found.attr.fid) == data[:copied]


async def test_every_copy_of_a_mirrored_target_has_the_bytes(tmp_path: Path) -> None:
    async with cluster(tmp_path) as world:
        vfs = await world.vfs()
        data = noise(12, 500_000)
        source = await put(vfs, b"a", [(0, data)], LayoutSpec(1, MIB))
        target = await make(vfs, b"b", LayoutSpec(1, MIB, mirrors=2))
        counting = Counting(vfs)
        assert await copy(vfs, source, target) == len(data)
        await quiet(vfs)
        assert counting()["CopyRange"] == 2
        copies = list(world.directory.rglob(f"{target:016x}.*"))
        assert len(copies) == 2
        assert all(path.read_bytes() == data for path in copies)


async def test_mirrored_target_is_copied_to_although_an_ost_of_it_is_away(tmp_path: Path) -> None:
    async with cluster(tmp_path) as world:
        vfs = await world.vfs()
        data = noise(13, 500_000)
        source = await put(vfs, b"a", [(0, data)], LayoutSpec(1, MIB, first_ost=2))
        target = await put(vfs, b"b", [(0, noise(14, 100_000))], LayoutSpec(1, MIB, first_ost=0, mirrors=2))
        one, two = await open_file(vfs, source), await open_file(vfs, target, os.O_RDWR)
        away = next(server for server in world.oss if server.config.name == "oss0")
        world.oss.remove(away)
        await away.stop()
        assert await settle(vfs.copy_file_range(one, 0, two, 0, 1 << 30)) == len(data)
        assert await read(vfs, two) == data
        await close(vfs, one)
        await close(vfs, two)
        await world.start_oss(0)
        assert await contents(await world.vfs(), target) == data


async def test_released_file_is_brought_back_when_it_is_copied(tmp_path: Path) -> None:
    (tmp_path / "archive").mkdir()
    spec = ArchiveSpec(0, "", "dir", f"file://{tmp_path}/archive")
    async with linked(Bucket(spec, None, tmp_path / "archive"), tmp_path) as world:
        data = noise(15, 700_000)
        world.bucket.put("a", data)
        vfs = await world.vfs()
        await world.link(vfs)
        source = (await world.at(vfs, "a")).fid
        target = await make(vfs, b"b")
        copied = 0
        while done := await copy(vfs, source, target, copied, copied):
            copied += done
        assert await contents(vfs, target) == data
