"""`CopyRange`: what an OSS copies, from where, and for whom."""

import asyncio
import errno
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from nacrefs.common.auth import sign_capability
from nacrefs.common.checksum import block_sums
from nacrefs.common.layout import BLOCK_BYTES
from nacrefs.common.wire import COPY_BYTES_MAX, Capability, CopyRange, Read, Right, Write
from nacrefs.oss.target import Limits
from tests.oss.local import FID, KEY, SESSION, LocalCall, LocalOss, local_oss

SOURCE = FID + 1
SIZE = 300_000


def data_of(oss: LocalOss) -> bytes:
    return bytes((n * 7 + oss.target.label.index) % 251 for n in range(SIZE))


async def plant(oss: LocalOss) -> bytes:
    """A source on this OST; its bytes."""
    data = data_of(oss)
    index = oss.target.label.index
    request = Write(index, SOURCE, 0, 0, oss.capability(SOURCE), ((0, SIZE),), block_sums(memoryview(data), 0))
    await oss.ask(request, LocalCall(oss.peer, data))
    return data


def order(
    oss: LocalOss,
    *extents: tuple[int, int, int],
    ost: int = 0,
    capability: Capability | None = None,
    fid: int = SOURCE,
    generation: int = 0,
) -> CopyRange:
    source = capability or oss.capability(SOURCE, rights=Right.READ)
    return CopyRange(0, FID, 0, 0, oss.capability(), ost, fid, 0, generation, source, extents)


@asynccontextmanager
async def two(root: Path) -> AsyncGenerator[tuple[LocalOss, LocalOss]]:
    """OSTs 0 and 1 on two OSSes, each with a source."""
    async with local_oss(root / "0") as oss, local_oss(root / "1", index=1) as other:
        await plant(oss)
        await plant(other)
        oss.others[1] = other
        yield oss, other


async def refused(oss: LocalOss, request: CopyRange, number: int) -> OSError:
    """The error, which must leave no trace."""
    before = await oss.stat()
    with pytest.raises(OSError, match=".+") as caught:
        await oss.ask(request)
    assert caught.value.errno == number, caught.value
    assert await oss.stat() == before
    return caught.value


@pytest.mark.parametrize("ost", [0, 1], ids=["here", "elsewhere"])
@pytest.mark.parametrize(
    "extents",
    [
        [(0, 0, SIZE)],
        [(1, 0, 200_000)],
        [(BLOCK_BYTES, 2 * BLOCK_BYTES, 2 * BLOCK_BYTES), (0, 10 * BLOCK_BYTES, 10)],
        [(100, 7, 100_000), (150_000, 100_007, 50_000), (0, 400_000, 1)],
        [(SIZE - 10, 0, 100_000)],  # behind its end there are zeros
        [(SIZE + 10, 5, 70_000)],
    ],
    ids=["all", "shifted", "aligned", "joined", "over the end", "behind the end"],
)
async def test_bytes_are_those_of_the_source_and_sums_fit(
    extents: list[tuple[int, int, int]], ost: int, tmp_path: Path
) -> None:
    async with two(tmp_path) as (oss, other):
        wanted = bytearray(b"x" * 90_000)
        await oss.write((0, bytes(wanted)))
        source = data_of(other if ost else oss)
        written = await oss.ask(order(oss, *extents, ost=ost))
        for start, at, length in extents:
            wanted.extend(bytes(max(0, at + length - len(wanted))))
            wanted[at : at + length] = source[start : start + length].ljust(length, b"\0")
        assert written.size == len(wanted)
        assert (await oss.read((0, 1 << 20)))[0] == wanted


async def test_object_is_copied_within_itself(tmp_path: Path) -> None:
    async with local_oss(tmp_path) as oss:
        data = await plant(oss)
        request = CopyRange(
            0, SOURCE, 0, 0, oss.capability(SOURCE), 0, SOURCE, 0, 0, oss.capability(SOURCE), ((0, SIZE, 100_000),)
        )
        await oss.ask(request)
        assert await oss.read((0, 1 << 20), fid=SOURCE) == [data + data[:100_000]]


@pytest.mark.parametrize("ost", [0, 1], ids=["here", "elsewhere"])
async def test_flipped_bit_of_the_source_is_found_and_nothing_is_changed(ost: int, tmp_path: Path) -> None:
    async with two(tmp_path) as (oss, other):
        with (other if ost else oss).object_file(SOURCE).open("r+b") as file:
            os.pwrite(file.fileno(), b"\xff", 70_000)
        error = await refused(oss, order(oss, (65_536, 0, 65_536), ost=ost), errno.EREMOTEIO)
        assert "checksum" in str(error)
        await oss.ask(order(oss, (0, 0, 65_536), ost=ost))  # the other blocks are good


@pytest.mark.parametrize("ost", [0, 1], ids=["here", "elsewhere"])
async def test_source_needs_a_capability_to_read_it(ost: int, tmp_path: Path) -> None:
    async with two(tmp_path) as (oss, _):
        extent = (0, 0, 100_000)
        for capability in (
            oss.capability(SOURCE, rights=Right.WRITE),
            oss.capability(FID),  # of another file
            oss.capability(SOURCE, session=SESSION + 1),
            oss.capability(SOURCE, generation=1),
            sign_capability(bytes(31) + b"1", SOURCE, 0, SESSION, Right.READ, 1 << 40),
            sign_capability(KEY, SOURCE, 0, SESSION, Right.READ, 1 << 40, "somebody"),
        ):
            await refused(oss, order(oss, extent, ost=ost, capability=capability), errno.EACCES)
        expired = sign_capability(KEY, SOURCE, 0, SESSION, Right.READ, 1)
        await refused(oss, order(oss, extent, ost=ost, capability=expired), errno.EREMOTEIO)


@pytest.mark.parametrize("ost", [0, 1], ids=["here", "elsewhere"])
async def test_source_under_an_outdated_layout_is_not_copied(ost: int, tmp_path: Path) -> None:
    async with two(tmp_path) as (oss, other):
        holder = other if ost else oss
        newer = Read(ost, SOURCE, 0, 1, oss.capability(SOURCE, generation=1), ((0, 10),))
        await holder.ask(newer)
        await refused(oss, order(oss, (0, 0, 100_000), ost=ost), errno.EREMOTEIO)


async def test_source_on_an_ost_that_nobody_has_is_said_to_be_out_of_reach(tmp_path: Path) -> None:
    async with two(tmp_path) as (oss, _):
        error = await refused(oss, order(oss, (0, 0, 100_000), ost=9), errno.EREMOTEIO)
        assert "OST 9" in str(error)


@pytest.mark.parametrize(
    "extents",
    [
        [],
        [(0, 0, 0)],
        [(-1, 0, 10)],
        [(0, -1, 10)],
        [(0, 0, COPY_BYTES_MAX + 1)],
        [(0, 100, 10), (0, 50, 10)],
        [(0, 100, 10), (20, 109, 10)],
        [(0, (1 << 63) - 5, 10)],
    ],
)
async def test_extents_that_cannot_be_are_refused(extents: list[tuple[int, int, int]], tmp_path: Path) -> None:
    async with local_oss(tmp_path) as oss:
        await plant(oss)
        await refused(oss, order(oss, *extents), errno.EINVAL)


async def test_full_ost_says_so(tmp_path: Path) -> None:
    async with local_oss(tmp_path / "1", index=1) as other:
        await plant(other)
        async with local_oss(tmp_path / "0", Limits(reserve_bytes=1 << 60, reserve_percent=0)) as oss:
            oss.others[1] = other
            await refused(oss, order(oss, (0, 0, 100_000), ost=1), errno.ENOSPC)


async def test_fence_does_not_wait_for_another_server_and_nothing_is_changed_after_it(tmp_path: Path) -> None:
    async with two(tmp_path) as (oss, other):
        other.held = asyncio.Event()
        copying: asyncio.Task[Any] = asyncio.create_task(oss.ask(order(oss, (0, 0, 100_000), ost=1)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not copying.done()
        await oss.gate.admission.fence([SESSION])
        assert not copying.done()
        other.held.set()
        with pytest.raises(OSError, match="fenced") as caught:
            await copying
        assert caught.value.errno == errno.ESHUTDOWN
        assert oss.target.find(FID, 0) is None
