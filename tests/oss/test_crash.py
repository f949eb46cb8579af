"""Killed at any moment: what was synced is there, no sum is wrong, and damage is never blessed."""

import asyncio
import errno
import os
import random
import shutil
from pathlib import Path
from typing import Any

import lmdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from nacrefs.common.layout import BLOCK_BYTES
from nacrefs.common.wire import Destroy, ObjectId
from nacrefs.oss.object import State
from tests.oss.local import FID, LocalCall, crash_copy, local_oss
from tests.oss.test_io import SPAN, STEPS, Model

ALL = (0, 2 * SPAN + 2 * BLOCK_BYTES)


async def after_crash(root: Path, *fids: int) -> list[bytes]:
    """Contents of objects after a start; each read verifies sums. Every block is also read in part, so that the OST
    verifies it itself."""
    async with local_oss(root, fresh=False) as oss:
        found: list[bytes] = []
        for fid in fids:
            [data] = await oss.read(ALL, fid=fid)
            for start in range(0, len(data), BLOCK_BYTES):
                await oss.read((start, 1), fid=fid)
            found.append(data)
        return found


async def test_unsynced_new_object_is_re_hashed(tmp_path: Path) -> None:
    async with local_oss(tmp_path / "ost") as oss:
        await oss.write((5, b"x" * 100_000))
        assert oss.target.index.commits == 0, "a new object costs no transaction"
        copy = crash_copy(tmp_path / "ost", tmp_path / "copy")
    assert await after_crash(copy, FID) == [bytes(5) + b"x" * 100_000]


async def test_time_that_a_writer_has_said_outlives_a_kill(tmp_path: Path) -> None:
    said_ns = 10**18 + 7
    async with local_oss(tmp_path / "ost") as oss:
        for fid in (FID, FID + 1):
            request, bulk = oss.write_request(((0, b"x" * 100_000),), fid)
            await oss.ask(replace(request, mtime_ns=said_ns), LocalCall(oss.peer, bulk))
        await oss.truncate(50_000)
        await oss.write((5, b"later"), fid=FID + 1)
        before_ns = (await oss.stat(FID + 1)).mtime_ns
        copy = crash_copy(tmp_path / "ost", tmp_path / "copy")
    assert await after_crash(copy, FID, FID + 1)
    async with local_oss(copy, fresh=False) as oss:
        assert (await oss.stat()).mtime_ns == said_ns
        assert abs((await oss.stat(FID + 1)).mtime_ns - before_ns) < 10**9, "nobody has said one since"


async def test_change_after_sync_is_announced_before_it_happens(tmp_path: Path) -> None:
    """Power fails: of what was written after the sync, the file has nothing, or all."""
    async with local_oss(tmp_path / "ost") as oss:
        await oss.write((0, b"a" * 200_000))
        await oss.sync()
        path = oss.object_file()
        synced = path.read_bytes()
        await oss.write((70_000, b"b" * 50))
        everything = crash_copy(tmp_path / "ost", tmp_path / "everything")
        nothing = crash_copy(tmp_path / "ost", tmp_path / "nothing")
    (nothing / path.relative_to(tmp_path / "ost")).write_bytes(synced)
    assert await after_crash(nothing, FID) == [b"a" * 200_000]
    assert await after_crash(everything, FID) == [b"a" * 70_000 + b"b" * 50 + b"a" * 129_950]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(steps=STEPS, seed=st.integers(0, 1 << 32))
def test_killed_after_any_sequence_of_changes(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, Any]], seed: int
) -> None:
    async def body() -> None:
        root = tmp_path_factory.mktemp("ost")
        model = Model()
        source = random.Random(seed)
        async with local_oss(root / "ost") as oss:
            for kind, argument in steps:
                if kind == "write":
                    pieces = [(offset, source.randbytes(length)) for offset, length in argument]
                    await oss.write(*pieces)
                    for offset, data in pieces:
                        model.write(offset, data)
                elif kind == "punch":
                    await oss.punch(*argument)
                    for offset, length in argument:
                        model.punch(offset, length)
                elif kind == "truncate":
                    await oss.truncate(argument)
                    del model.data[argument:]
                elif kind == "sync":
                    await oss.sync()
            copy = crash_copy(root / "ost", root / "copy")
        assert await after_crash(copy, FID) == [bytes(model.data)]
        shutil.rmtree(root)

    asyncio.run(body())


async def test_damage_to_a_synced_object_is_found_after_a_crash(tmp_path: Path) -> None:
    async with local_oss(tmp_path / "ost") as oss:
        await oss.write((0, b"a" * 200_000))
        await oss.sync()
        path = oss.object_file().relative_to(tmp_path / "ost")
        copy = crash_copy(tmp_path / "ost", tmp_path / "copy")
    with (copy / path).open("r+b") as file:
        file.seek(150_000)
        file.write(b"?")
    async with local_oss(copy, fresh=False) as oss:
        with pytest.raises(OSError, match="checksum mismatch") as caught:
            await oss.read((140_000, 10))
        assert caught.value.errno == errno.EBADMSG


@pytest.mark.parametrize("damage", ["missing", "short"])
async def test_synced_object_whose_file_is_missing_or_short_is_an_error_not_zeros(tmp_path: Path, damage: str) -> None:
    async with local_oss(tmp_path / "ost") as oss:
        await oss.write((0, b"a" * 200_000))
        path = oss.object_file()
    if damage == "missing":
        path.unlink()
    else:
        os.truncate(path, 100_000)
    async with local_oss(tmp_path / "ost", fresh=False) as oss:
        for attempt in (oss.read((0, 10)), oss.write((0, b"b"))):
            with pytest.raises(OSError, match="missing" if damage == "missing" else "ends at offset 100000") as caught:
                await attempt
            assert caught.value.errno == errno.EBADMSG
        await oss.target.destroy([(FID, 0)])
        assert await oss.read((0, 10)) == [b""]


def change_index(root: Path, database: bytes, at: int) -> None:
    """Flip a bit of the first value in one of the index's databases."""
    with lmdb.open(str(root / "index"), max_dbs=3) as env, env.begin(write=True) as txn:
        handle = env.open_db(database, txn)
        with txn.cursor(handle) as cursor:
            assert cursor.first()
            key, value = bytes(cursor.key()), bytearray(cursor.value())
        value[at] ^= 4
        txn.put(key, bytes(value), db=handle)


@pytest.mark.parametrize(
    ("database", "at", "text"), [(b"objects", 3, "index record of object"), (b"sums", 9, "checksum mismatch")]
)
async def test_damage_to_the_index_is_found(tmp_path: Path, database: bytes, at: int, text: str) -> None:
    async with local_oss(tmp_path / "ost") as oss:
        await oss.write((0, b"a" * 200_000))
    change_index(tmp_path / "ost", database, at)
    async with local_oss(tmp_path / "ost", fresh=False) as oss:
        with pytest.raises(OSError, match=text) as caught:
            await oss.read((BLOCK_BYTES + 5, 10))
        assert caught.value.errno == errno.EBADMSG


async def test_clean_stop_leaves_nothing_to_re_hash(tmp_path: Path) -> None:
    async with local_oss(tmp_path / "ost") as oss:
        for number in range(50):  # enough for one syncfs
            await oss.write((0, b"%d" % number), number=number)
    async with local_oss(tmp_path / "ost", fresh=False) as oss:
        assert oss.target.recovery is None
        stored = oss.target.find(FID, 7)
        assert stored is not None
        assert stored.state is State.CLEAN
        assert await oss.read((0, 9), number=49) == [b"49"]
        assert oss.target.info().objects == 50


async def test_objects_in_doubt_are_re_hashed_in_the_background(tmp_path: Path) -> None:
    async with local_oss(tmp_path / "ost") as oss:
        await oss.write((0, b"known"), fid=1)
        await oss.sync(fid=1)
        await oss.write((0, b"dirty"), fid=1)
        await oss.write((0, b"unknown"), fid=2)
        copy = crash_copy(tmp_path / "ost", tmp_path / "copy")
    async with local_oss(copy, fresh=False) as oss:
        assert oss.target.recovery is not None
        await oss.target.recovery
        assert {stored.fid for stored in oss.target.open_objects()} == {1, 2}
    async with local_oss(copy, fresh=False) as oss:
        assert oss.target.recovery is None
        assert await oss.read((0, 9), fid=1) == [b"dirty"]


async def test_a_log_that_is_synced_after_every_write_costs_no_index_transactions(tmp_path: Path) -> None:
    async with local_oss(tmp_path / "ost") as oss:
        for step in range(20):
            await oss.write((step * 10, b"0123456789"), sync=True)
        assert oss.target.index.commits <= 3
        copy = crash_copy(tmp_path / "ost", tmp_path / "copy")
    assert await after_crash(copy, FID) == [b"0123456789" * 20]


async def test_concurrent_syncs_share_index_transactions(tmp_path: Path) -> None:
    async with local_oss(tmp_path / "ost") as oss:
        for fid in range(1, 25):
            await oss.write((0, b"x"), fid=fid)
        await asyncio.gather(*(oss.sync(fid=fid) for fid in range(1, 25)))
        assert oss.target.index.commits < 24
        copy = crash_copy(tmp_path / "ost", tmp_path / "copy")
    async with local_oss(copy, fresh=False) as oss:
        stored = oss.target.find(3, 0)
        assert stored is not None
        assert stored.state is State.CLEAN, "fsync has made it clean, not only durable"


async def test_destroyed_objects_stay_destroyed_and_may_be_born_again(tmp_path: Path) -> None:
    async with local_oss(tmp_path / "ost") as oss:
        first = await oss.write((0, b"x" * 100))
        await oss.write((0, b"y"), number=1, sync=True)
        await oss.order(Destroy(tuple(ObjectId(0, FID, number) for number in (1, 0, 2, 1))))
        copy = crash_copy(tmp_path / "ost", tmp_path / "copy")
        assert (await oss.write((0, b"z"))).version > first.version
        assert await oss.read((0, 100)) == [b"z"]
    assert await after_crash(copy, FID) == [b""]
    assert not list((copy / "objects").rglob("*.*"))


async def test_an_object_in_use_is_destroyed_after_its_io(tmp_path: Path) -> None:
    async with local_oss(tmp_path / "ost") as oss:
        await oss.write((0, b"x" * 100), sync=True)
        writes = [asyncio.create_task(oss.write((step, b"y"))) for step in range(5)]
        await asyncio.sleep(0)
        destroyed = asyncio.create_task(oss.target.destroy([(FID, 0)]))
        await asyncio.gather(*writes)
        await destroyed
