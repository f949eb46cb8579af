"""Reads and writes of one object: every byte and every sum, whatever the extents look like."""

import errno
import os
import random
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nacrefs.common.layout import BLOCK_BYTES
from tests.oss.local import LocalCall, LocalOss, local_oss

SPAN = 5 * BLOCK_BYTES
NEAR = st.sampled_from([0, 1, 100, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 2 * BLOCK_BYTES, 3 * BLOCK_BYTES - 7])
OFFSETS = NEAR | st.integers(0, SPAN)
EXTENTS = st.lists(
    st.tuples(OFFSETS, st.sampled_from([0, 1, 17, 4096, BLOCK_BYTES, BLOCK_BYTES + 5]) | OFFSETS), max_size=5
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), EXTENTS),
        st.tuples(st.just("punch"), EXTENTS),
        st.tuples(st.just("truncate"), OFFSETS),
        st.tuples(st.just("sync"), st.none()),
        st.tuples(st.just("read"), EXTENTS),
    ),
    max_size=12,
)


@pytest.fixture
async def oss(tmp_path: Path) -> AsyncIterator[LocalOss]:
    async with local_oss(tmp_path / "ost") as oss:
        yield oss


class Model:
    """An object as a bytearray."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, offset: int, data: bytes) -> None:
        if data:
            self.data.extend(bytes(max(0, offset + len(data) - len(self.data))))
            self.data[offset : offset + len(data)] = data

    def punch(self, offset: int, length: int) -> None:
        end = min(offset + length, len(self.data))
        if end > offset:
            self.data[offset:end] = bytes(end - offset)


async def run_steps(oss: LocalOss, steps: list[tuple[str, Any]], fid: int, seed: int) -> None:
    model = Model()
    source = random.Random(seed)
    for kind, argument in steps:
        if kind == "write":
            pieces = [(offset, source.randbytes(length)) for offset, length in argument]
            await oss.write(*pieces, fid=fid)
            for offset, data in pieces:
                model.write(offset, data)
        elif kind == "punch":
            await oss.punch(*argument, fid=fid)
            for offset, length in argument:
                model.punch(offset, length)
        elif kind == "truncate":
            await oss.truncate(argument, fid=fid)
            del model.data[argument:]
        elif kind == "sync":
            await oss.sync(fid=fid)
        else:
            found = await oss.read(*argument, fid=fid)
            assert found == [bytes(model.data[offset : offset + length]) for offset, length in argument]
        assert (await oss.stat(fid=fid)).size == len(model.data)
    assert await oss.read((0, 2 * SPAN + 2 * BLOCK_BYTES), fid=fid) == [bytes(model.data)]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(steps=STEPS, seed=st.integers(0, 1 << 32))
def test_any_sequence_of_changes_reads_back_with_right_sums(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, Any]], seed: int
) -> None:
    import asyncio

    async def body() -> None:
        root = tmp_path_factory.mktemp("ost") / "ost"
        async with local_oss(root) as oss:
            await run_steps(oss, steps, 77, seed)
            expected = await oss.read((0, 2 * SPAN + 2 * BLOCK_BYTES), fid=77)
        async with local_oss(root, fresh=False) as oss:  # and from the index, with nothing in memory
            assert await oss.read((0, 2 * SPAN + 2 * BLOCK_BYTES), fid=77) == expected

    asyncio.run(body())


async def test_absent_object_has_no_bytes(oss: LocalOss) -> None:
    assert await oss.read((0, 10), (100, 5)) == [b"", b""]
    assert (await oss.stat()).size == 0
    assert (await oss.truncate(5)).size == 0
    assert (await oss.punch((0, 5))).size == 0
    assert (await oss.sync()).size == 0


async def test_bytes_past_4_GiB_and_holes_before_them(oss: LocalOss) -> None:
    far = (5 << 30) + 12345
    written = await oss.write((far, b"x" * 5000))
    assert written.size == far + 5000
    assert written.allocated_bytes < 1 << 20
    assert await oss.read((far - 10, 20), (0, 3), (far + 4990, 100)) == [bytes(10) + b"x" * 10, bytes(3), b"x" * 10]
    assert (await oss.truncate(4 << 30)).size == 4 << 30
    assert await oss.read(((4 << 30) - 5, 10)) == [bytes(5)]


async def test_whole_blocks_are_read_with_the_sums_that_were_written(oss: LocalOss) -> None:
    """The file is changed behind the OST's back: a read of whole blocks does not hash, so its sums are the old ones."""
    await oss.write((0, b"a" * BLOCK_BYTES * 2))
    with oss.object_file().open("r+b") as file:
        file.write(b"b")
    with pytest.raises(AssertionError, match="sums of extent"):
        await oss.read((0, BLOCK_BYTES))


async def test_bit_flip_is_found_when_a_block_is_read_or_written_in_part(oss: LocalOss) -> None:
    await oss.write((0, b"a" * BLOCK_BYTES * 2))
    with oss.object_file().open("r+b") as file:
        file.seek(BLOCK_BYTES + 9)
        file.write(b"b")
    assert await oss.read((5, 100)) == [b"a" * 100]
    for attempt in (oss.read((BLOCK_BYTES + 500, 10)), oss.write((BLOCK_BYTES + 500, b"c"))):
        with pytest.raises(OSError, match=f"checksum mismatch on OST 0, .*block at offset {BLOCK_BYTES}") as caught:
            await attempt
        assert caught.value.errno == errno.EBADMSG


async def test_page_of_a_block_that_was_verified_is_verified_by_itself(oss: LocalOss) -> None:
    """The second read looks at its own page only, and notices what has happened to that."""
    block = b"".join(bytes([index]) * 4096 for index in range(16))
    await oss.write((0, block))
    assert await oss.read((4096, 4096)) == [block[4096:8192]]
    with oss.object_file().open("r+b") as file:
        file.seek(3 * 4096 + 9)
        file.write(b"x")
    assert await oss.read((4096, 4096)) == [block[4096:8192]], "the damage is elsewhere"
    with pytest.raises(OSError, match="checksum mismatch") as caught:
        await oss.read((3 * 4096, 4096))
    assert caught.value.errno == errno.EBADMSG
    await oss.write((0, block))
    await oss.write((4096, b"new" * 1000))
    assert await oss.read((4096, 4096)) == [b"new" * 1000 + block[7096:8192]]
    assert await oss.read((3 * 4096, 4096)) == [block[3 * 4096 : 4 * 4096]]


async def test_damage_on_the_way_is_refused_and_changes_nothing(oss: LocalOss) -> None:
    await oss.write((0, b"old"))
    request, _ = oss.write_request([(0, b"new")])
    with pytest.raises(OSError, match="between client and server") as caught:
        await oss.ask(request, LocalCall(oss.peer, b"nEw"))
    assert caught.value.errno == errno.EBADMSG
    assert await oss.read((0, 10)) == [b"old"]


async def test_thousands_of_scattered_extents(oss: LocalOss) -> None:
    """More whole blocks than one buffer can hold are read piecemeal."""
    pieces = [(index * (BLOCK_BYTES + 1111), bytes([index % 251]) * 100) for index in range(400)]
    await oss.write(*pieces)
    assert await oss.read(*[(offset, 100) for offset, _ in pieces]) == [data for _, data in pieces]
    backwards = await oss.read(*[(offset + 50, 60) for offset, _ in reversed(pieces)])
    assert backwards == [pieces[-1][1][50:]] + [data[50:] + bytes(10) for _, data in reversed(pieces[:-1])]
    assert oss.pool.used_bytes == 0


async def test_overlapping_extents_of_one_write_are_applied_in_order(oss: LocalOss) -> None:
    await oss.write((0, b"a" * 100), (50, b"b" * 100), (20, b"c" * 10))
    assert await oss.read((0, 200)) == [b"a" * 20 + b"c" * 10 + b"a" * 20 + b"b" * 100]


async def test_a_resent_write_is_not_carried_out_twice(oss: LocalOss) -> None:
    request, bulk = oss.write_request([(0, b"first")])
    reply = await oss.ask(request, LocalCall(oss.peer, bulk, xid=5))
    await oss.write((0, b"other"), fid=request.fid)
    again = await oss.ask(request, LocalCall(oss.peer, bulk, xid=5, resent=True))
    assert again == reply
    assert await oss.read((0, 5)) == [b"other"]


async def test_an_ost_may_lie_in_memory() -> None:
    """tmpfs cannot say whether a read would wait."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        probe = Path(directory) / "probe"
        probe.write_bytes(b"x")
        with probe.open("rb") as file, pytest.raises(OSError, match="not supported"):
            os.preadv(file.fileno(), [bytearray(1)], 0, os.RWF_NOWAIT)
        changes = [("write", [(0, 100_000), (300_000, 5000)]), ("sync", None), ("punch", [(10, 70_000)])]
        async with local_oss(Path(directory) / "ost") as oss:
            await run_steps(oss, [*changes, ("truncate", 301_000)], 1, 1)
