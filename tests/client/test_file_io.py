"""One file against a bytearray: any sequence of operations, on one handle or on those of two clients."""

import asyncio
import errno
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nacrefs.client.config import ReadConfig, WriteConfig
from nacrefs.client.filesystem import Changes
from nacrefs.client.vfs import Vfs
from nacrefs.common import faults
from nacrefs.common.answer import is_later, settle
from nacrefs.common.wire import Set
from tests.client.world import CRED, World, close, cluster, open_file, quiet, read, read_file, write_file

MOST = 700_000


class Op(NamedTuple):
    """One operation: what, by which client, where, how much, and the seed of its bytes."""

    kind: str
    client: int
    offset: int
    size: int
    seed: int


KINDS = ["write", "write", "write", "read", "read", "truncate", "punch", "zero", "allocate", "fsync", "reopen", "stat"]
offsets = st.one_of(st.integers(0, MOST), st.sampled_from([0, 4096, 16384, 65536, 131072, 262144, 524288]))
sizes = st.one_of(st.integers(1, 200), st.sampled_from([4096, 16384, 65536, 131072, 300_000]))
operations = st.lists(
    st.builds(Op, st.sampled_from(KINDS), st.integers(0, 1), offsets, sizes, st.integers(0, 255)), max_size=25
)


class Shared:
    """A cluster with two clients for many examples, in a loop of its own."""

    def __init__(self, root: Path) -> None:
        self.runner = asyncio.Runner()
        self.files = 0
        self.world: World = cluster(root)
        self.clients: tuple[Vfs, Vfs] = self.runner.run(self._start())

    async def _start(self) -> tuple[Vfs, Vfs]:
        await self.world.__aenter__()
        write = WriteConfig(behind_bytes=type(WriteConfig().behind_bytes)(64 << 10))
        return await self.world.vfs(write=write), await self.world.vfs(write=write)

    def stop(self) -> None:
        self.runner.run(self.world.__aexit__())
        self.runner.close()


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Shared]:
    started = Shared(tmp_path)
    yield started
    started.stop()


class Subject:
    """One file, open at some clients, next to the bytes that it should have."""

    def __init__(self, clients: list[Vfs], fid: int) -> None:
        self.clients = clients
        self.fid = fid
        self.model = bytearray()
        self.numbers: list[int] = []

    async def apply(self, op: Op) -> None:
        model = self.model
        client = op.client % len(self.clients)
        vfs, number = self.clients[client], self.numbers[client]
        start, end = op.offset, op.offset + op.size
        if op.kind == "write":
            data = random.Random(op.seed).randbytes(op.size)
            assert await settle(vfs.write(number, start, memoryview(data))) == op.size
            if start > len(model):
                model.extend(bytes(start - len(model)))
            model[start:end] = data
        elif op.kind == "read":
            assert await read(vfs, number, start, op.size) == model[start:end]
        elif op.kind == "truncate":
            await settle(vfs.setattr(self.fid, Changes(Set.SIZE, size=start)))
            del model[start:]
            model.extend(bytes(start - len(model)))
        elif op.kind in ("punch", "zero"):
            await settle(vfs.fallocate(number, 3 if op.kind == "punch" else 16, start, op.size))
            if op.kind == "zero" and end > len(model):
                model.extend(bytes(end - len(model)))
            inside = max(0, min(end, len(model)) - start)
            model[start : start + inside] = bytes(inside)
        elif op.kind == "allocate":
            await settle(vfs.fallocate(number, 0, start, op.size))
            model.extend(bytes(max(0, end - len(model))))
        elif op.kind == "fsync":
            await settle(vfs.fsync(number, False))
        elif op.kind == "stat":
            assert (await settle(vfs.getattr(self.fid))).attr.size == len(model)
        else:
            await close(vfs, number)
            self.numbers[client] = await open_file(vfs, self.fid, os.O_RDWR)


async def scenario(shared: Shared, clients: list[Vfs], ops: list[Op]) -> None:
    shared.files += 1
    name = b"f%d" % shared.files
    first = clients[0]
    fid = await write_file(first, first.root, name, b"")
    subject = Subject(clients, fid)
    subject.numbers = [await open_file(vfs, fid, os.O_RDWR) for vfs in clients]
    for op in ops:
        await subject.apply(op)
    for vfs, number in zip(clients, subject.numbers, strict=True):
        assert await read(vfs, number, 0, 2 * MOST) == subject.model
    for vfs, number in zip(clients, subject.numbers, strict=True):
        await close(vfs, number)
    for vfs in clients:
        assert await read_file(vfs, vfs.root, name) == subject.model
        await quiet(vfs)
        await asyncio.sleep(0)
        assert vfs.memory.used_bytes == 0
    await settle(first.unlink(first.root, name))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(ops=operations)
def test_any_sequence_on_one_handle_reads_as_a_bytearray(shared: Shared, ops: list[Op]) -> None:
    shared.runner.run(asyncio.wait_for(scenario(shared, [shared.clients[0]], ops), 30))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(ops=operations)
def test_any_sequence_by_two_clients_reads_as_a_bytearray(shared: Shared, ops: list[Op]) -> None:
    shared.runner.run(asyncio.wait_for(scenario(shared, list(shared.clients), ops), 30))


async def test_sequential_reads_are_read_ahead_and_fetched_once(world: World) -> None:
    writer = await world.vfs()
    data = os.urandom(6 << 20)
    fid = await write_file(writer, writer.root, b"f", data)
    await quiet(writer)
    reader = await world.vfs()
    number = await open_file(reader, fid)
    at = 0
    while at < len(data):
        part = await read(reader, number, at, 256 << 10)
        assert part == data[at : at + len(part)]
        at += len(part)
    # 6 MiB in units of 1 MiB over two stripes, and a few smaller ones at the beginning
    assert reader.meter.tallies["Read"].count <= 24
    await close(reader, number)
    await asyncio.sleep(0)
    assert reader.memory.used_bytes == 0


async def test_strided_reads_are_found_out_and_right(world: World) -> None:
    vfs = await world.vfs(read=ReadConfig())
    data = os.urandom(3 << 20)
    fid = await write_file(vfs, vfs.root, b"f", data)
    await quiet(vfs)
    number = await open_file(vfs, fid)
    for at in range(0, len(data), 100_000):
        assert await read(vfs, number, at, 30_000) == data[at : at + 30_000]
    await close(vfs, number)
    await quiet(vfs)
    await asyncio.sleep(0)
    assert vfs.memory.used_bytes == 0


async def test_memory_stays_within_its_limit_whatever_is_written(world: World) -> None:
    limit = 16 << 20
    vfs = await world.vfs(memory_bytes=limit)

    async def copy(index: int) -> None:
        data = memoryview(os.urandom(1 << 20))
        _, handle = await settle(vfs.create(vfs.root, b"f%d" % index, 0o644, os.O_RDWR | os.O_CREAT, CRED))
        for at in range(0, 12 << 20, 1 << 20):
            await settle(vfs.write(handle.number, at, data))
        assert await read(vfs, handle.number, 5 << 20, 1 << 20) == data
        await close(vfs, handle.number)

    await asyncio.gather(*(copy(index) for index in range(4)))
    await quiet(vfs)
    await asyncio.sleep(0)
    assert vfs.memory.peak_bytes <= limit
    assert vfs.memory.used_bytes == 0


async def test_a_write_waits_when_memory_is_short_and_goes_on(world: World) -> None:
    vfs = await world.vfs(memory_bytes=16 << 20)
    _, handle = await settle(vfs.create(vfs.root, b"f", 0o644, os.O_WRONLY | os.O_CREAT, CRED))
    await vfs.memory.take(16 << 20)
    writing = vfs.write(handle.number, 0, memoryview(b"later"))
    assert is_later(writing)
    task = asyncio.ensure_future(settle(writing))
    await asyncio.sleep(0)
    assert not task.done()
    vfs.memory.give(16 << 20)
    assert await task == 5
    await close(vfs, handle.number)


async def test_seek_finds_data_and_holes_of_a_fresh_sparse_file(world: World) -> None:
    vfs = await world.vfs(write=WriteConfig(behind_bytes=type(WriteConfig().behind_bytes)(4 << 20)))
    _, handle = await settle(vfs.create(vfs.root, b"f", 0o644, os.O_RDWR | os.O_CREAT, CRED))
    await settle(vfs.write(handle.number, 1 << 20, memoryview(bytes(4096))))
    assert vfs.lseek(handle.number, 0, os.SEEK_DATA) == 1 << 20
    assert vfs.lseek(handle.number, 0, os.SEEK_HOLE) == 0
    assert vfs.lseek(handle.number, 1 << 20, os.SEEK_HOLE) == (1 << 20) + 4096
    with pytest.raises(OSError, match="end of the file") as caught:
        await settle(vfs.lseek(handle.number, 2 << 20, os.SEEK_DATA))
    assert caught.value.errno == errno.ENXIO
    await close(vfs, handle.number)


async def test_copy_file_range_copies_up_to_the_end(world: World) -> None:
    vfs = await world.vfs()
    data = os.urandom(300_000)
    source = await open_file(vfs, await write_file(vfs, vfs.root, b"a", data))
    target = await open_file(vfs, await write_file(vfs, vfs.root, b"b", b""), os.O_RDWR)
    assert await settle(vfs.copy_file_range(source, 1000, target, 5, 1 << 30)) == len(data) - 1000
    await close(vfs, source)
    await close(vfs, target)
    assert await read_file(vfs, vfs.root, b"b") == bytes(5) + data[1000:]


async def test_unsupported_fallocate_modes_are_refused(world: World) -> None:
    vfs = await world.vfs()
    number = await open_file(vfs, await write_file(vfs, vfs.root, b"a", b"x"), os.O_RDWR)
    for mode, offset, length, expected in (
        (8, 0, 1, errno.EOPNOTSUPP),
        (0, -1, 1, errno.EINVAL),
        (0, 0, 0, errno.EINVAL),
    ):
        with pytest.raises(OSError, match=".+") as caught:
            await settle(vfs.fallocate(number, mode, offset, length))
        assert caught.value.errno == expected
    await close(vfs, number)


async def test_contents_that_leave_the_mdt_are_durable_on_osts_before_it_forgets_them(world: World) -> None:
    """They may have been promised by fsync when they were in the MDT, and an OST may lose power just then."""
    vfs = await world.vfs()
    fid = await write_file(vfs, vfs.root, b"f", b"x" * 5000)
    await quiet(vfs)
    number = await open_file(vfs, fid, os.O_RDWR)
    await settle(vfs.write(number, 5000, memoryview(b"y" * 100_000)))
    durable: list[bool] = []

    def look() -> faults.Outcome:
        stored = [one for oss in world.oss for target in oss.targets for one in target.open_objects()]
        durable.append(bool(stored) and all(one.durable_version >= one.version for one in stored))
        return faults.PASS

    with faults.armed("client.commit.before", look):
        await settle(vfs.release(number))
        await quiet(vfs)
    assert durable == [True]
    assert await read_file(await world.vfs(), vfs.root, b"f") == b"x" * 5000 + b"y" * 100_000


async def small_on_its_way(vfs: Vfs, name: bytes) -> int:
    """A handle of a small file that was closed before, whose contents are on their way to the MDS."""
    fid = await write_file(vfs, vfs.root, name, b"small")
    number = await open_file(vfs, fid, os.O_RDWR)
    file = vfs.handles.get(number).file
    while not file.pending.flights:
        assert file.dirty, "they have arrived: this shows nothing"
        await asyncio.sleep(0)
    return number


async def test_a_small_file_that_grows_while_its_contents_are_on_their_way_keeps_them(world: World) -> None:
    vfs, other = await world.vfs(), await world.vfs()
    number = await small_on_its_way(vfs, b"f")
    await settle(vfs.write(number, 100, memoryview(b"x" * 100_000)))
    await close(vfs, number)
    assert await read_file(other, other.root, b"f") == b"small" + bytes(95) + b"x" * 100_000


async def test_a_hole_is_punched_into_contents_that_are_on_their_way(world: World) -> None:
    vfs, other = await world.vfs(), await world.vfs()
    number = await small_on_its_way(vfs, b"f")
    await settle(vfs.fallocate(number, 3, 1, 2))
    await close(vfs, number)
    assert await read_file(other, other.root, b"f") == b"s\0\0ll"
