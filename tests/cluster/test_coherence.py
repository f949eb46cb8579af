"""Two and three clients of one cluster never disagree (CONTRACT 1): over memory and TCP, through the vfs."""

import asyncio
import os
import random
import stat
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from nacrefs.client.filesystem import Changes, Cred
from nacrefs.client.vfs import Vfs
from nacrefs.common.answer import settle
from nacrefs.common.wire import RenameFlag, Set
from nacrefs.mds.check import check
from tests.harness.cluster import Cluster

CRED = Cred(0, 0, 1)
RW = os.O_RDWR | os.O_CREAT


@pytest.fixture(params=["mem", "tcp", "rdma"])
async def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[Cluster]:
    async with Cluster(tmp_path, scheme=request.param, oss=1) as made:
        yield made
        for client in made.clients:
            await client.close()
        made.clients.clear()
        mds = made.mds.mds
        await mds.journal.drain()
        assert not mds.leases.claims
        assert not mds.leases.recalling
        assert len(mds.leases) == 0
        assert not mds.mdt.opens
        assert check(mds.mdt.store) == []


class Process:
    """What a process would do on a mount: by name in the root, with everything closed in the end."""

    def __init__(self, vfs: Vfs) -> None:
        self.vfs = vfs
        self.root = vfs.session.root

    async def fid(self, name: bytes) -> int:
        found = await settle(self.vfs.lookup(self.root, name))
        if found.attr is None:
            raise FileNotFoundError(2, "no such name")
        return found.attr.fid

    async def exists(self, name: bytes) -> bool:
        return (await settle(self.vfs.lookup(self.root, name))).attr is not None

    async def size(self, name: bytes) -> int:
        return (await settle(self.vfs.getattr(await self.fid(name)))).attr.size

    async def mode(self, name: bytes) -> int:
        return stat.S_IMODE((await settle(self.vfs.getattr(await self.fid(name)))).attr.mode)

    async def open(self, name: bytes, flags: int = os.O_RDWR) -> int:
        return (await settle(self.vfs.open(await self.fid(name), flags))).number

    async def create(self, name: bytes, flags: int = RW) -> int:
        _, handle = await self.vfs.create(self.root, name, 0o644, flags, CRED)
        return handle.number

    async def write(self, number: int, offset: int, data: bytes) -> None:
        await settle(self.vfs.write(number, offset, memoryview(data)))

    async def read(self, number: int, offset: int = 0, size: int = 1 << 20) -> bytes:
        buffers = await settle(self.vfs.read(number, offset, size))
        return b"".join(bytes(buffer) for buffer in buffers)

    async def close(self, number: int) -> None:
        await settle(self.vfs.flush(number))
        await settle(self.vfs.release(number))

    async def put(self, name: bytes, data: bytes) -> None:
        number = await self.create(name, RW | os.O_TRUNC)
        await self.write(number, 0, data)
        await self.close(number)

    async def get(self, name: bytes) -> bytes:
        number = await self.open(name, os.O_RDONLY)
        try:
            return await self.read(number)
        finally:
            await self.close(number)

    async def names(self) -> set[bytes]:
        found: set[bytes] = set()
        number = (await settle(self.vfs.opendir(self.root))).number
        try:
            offset = 0
            while True:
                entries = list(await settle(self.vfs.readdir(number, offset)))
                if not entries:
                    return found - {b".", b".."}
                for entry in entries:
                    found.add(entry.name)
                    offset = entry.cookie
        finally:
            self.vfs.releasedir(number)


async def processes(cluster: Cluster, count: int) -> list[Process]:
    return [Process(await cluster.client()) for _ in range(count)]


@pytest.mark.parametrize("size", [10, 100_000], ids=["inline", "striped"])
async def test_what_one_has_written_the_other_reads_though_it_is_still_open(cluster: Cluster, size: int) -> None:
    one, two = await processes(cluster, 2)
    data = random.Random(1).randbytes(size)
    number = await one.create(b"f")
    await one.write(number, 0, data)
    assert await two.size(b"f") == size
    assert await two.get(b"f") == data
    await one.write(number, size, b"more")
    assert await two.get(b"f") == data + b"more"
    assert await two.size(b"f") == size + 4
    await one.close(number)
    assert await two.get(b"f") == data + b"more"


async def test_cached_absence_ends_with_creation_and_cached_presence_with_removal(cluster: Cluster) -> None:
    one, two = await processes(cluster, 2)
    for _ in range(3):
        assert not await two.exists(b"f")
        await one.put(b"f", b"x")
        assert await two.exists(b"f")
        await one.vfs.unlink(one.root, b"f")
        assert not await two.exists(b"f")


async def test_attributes_change_everywhere_at_once(cluster: Cluster) -> None:
    one, two = await processes(cluster, 2)
    await one.put(b"f", b"x")
    for mode in (0o600, 0o640, 0o644):
        assert await two.mode(b"f") == await one.mode(b"f")
        await settle(one.vfs.setattr(await one.fid(b"f"), Changes(Set.MODE, mode=mode)))
        assert await two.mode(b"f") == mode


async def test_rename_over_is_seen_everywhere_and_an_open_victim_stays_readable(cluster: Cluster) -> None:
    one, two = await processes(cluster, 2)
    await one.put(b"old", b"old")
    await one.put(b"new", b"new")
    number = await two.open(b"old", os.O_RDONLY)
    await one.vfs.rename(one.root, b"new", one.root, b"old", RenameFlag(0))
    assert await two.get(b"old") == b"new"
    assert not await two.exists(b"new")
    assert await two.read(number) == b"old"
    await two.close(number)


@pytest.mark.parametrize("size", [10, 100_000], ids=["inline", "striped"])
async def test_file_that_another_removes_stays_readable_and_writable_while_it_is_open(
    cluster: Cluster, size: int
) -> None:
    one, two = await processes(cluster, 2)
    await one.put(b"f", b"a" * size)
    number = await one.open(b"f")
    await one.write(number, 0, b"b")
    await two.vfs.unlink(two.root, b"f")
    assert await one.read(number, 0, 2) == b"ba"
    await one.write(number, 0, b"c")
    assert await one.read(number, 0, 2) == b"ca"
    await one.close(number)
    await asyncio.sleep(0.01)


@pytest.mark.parametrize("size", [10, 100_000], ids=["inline", "striped"])
async def test_writer_goes_on_after_another_has_changed_the_mode(cluster: Cluster, size: int) -> None:
    """The change takes the writer's lease while the file stays open and, if it is small, stays in the MDT."""
    one, two = await processes(cluster, 2)
    number = await one.create(b"f")
    await one.write(number, 0, b"a" * size)
    await settle(two.vfs.setattr(await two.fid(b"f"), Changes(Set.MODE, mode=0o600)))
    await one.write(number, size, b"end")
    await settle(one.vfs.fsync(number, False))
    assert await two.get(b"f") == b"a" * size + b"end"
    await one.close(number)
    assert await two.get(b"f") == b"a" * size + b"end"


async def test_two_writers_of_one_file_see_each_other(cluster: Cluster) -> None:
    one, two = await processes(cluster, 2)
    first = await one.create(b"f")
    await one.write(first, 0, b"1" * 1000)
    second = await two.open(b"f")
    await two.write(second, 1000, b"2" * 1000)
    assert await one.read(first, 0, 2000) == b"1" * 1000 + b"2" * 1000
    await one.write(first, 2000, b"3")
    assert await two.size(b"f") == 2001
    assert await two.read(second, 1999, 10) == b"23"
    await one.close(first)
    await two.write(second, 0, b"x")
    await two.close(second)
    assert (await one.get(b"f"))[:2] == b"x1"


async def test_truncation_by_one_is_seen_by_the_other_who_writes(cluster: Cluster) -> None:
    one, two = await processes(cluster, 2)
    number = await one.create(b"f")
    await one.write(number, 0, b"a" * 200_000)
    await settle(two.vfs.setattr(await two.fid(b"f"), Changes(Set.SIZE, size=100)))
    assert await one.size(b"f") == 100
    assert await one.read(number) == b"a" * 100
    await one.write(number, 150, b"z")
    assert await two.get(b"f") == b"a" * 100 + bytes(50) + b"z"
    await one.close(number)


async def test_exclusive_create_succeeds_for_exactly_one(cluster: Cluster) -> None:
    everyone = await processes(cluster, 3)
    for round_number in range(10):
        name = b"lock%d" % round_number
        results = await asyncio.gather(
            *(process.create(name, RW | os.O_EXCL) for process in everyone), return_exceptions=True
        )
        assert sorted(isinstance(result, FileExistsError) for result in results) == [False, True, True]
        for process, result in zip(everyone, results, strict=True):
            if isinstance(result, int):
                await process.close(result)


async def test_creates_by_all_in_one_directory_are_listed_by_all(cluster: Cluster) -> None:
    everyone = await processes(cluster, 3)

    async def fill(process: Process, label: bytes) -> None:
        for number in range(20):
            name = b"%s%d" % (label, number)
            assert not await process.exists(name)
            await process.put(name, label)
            assert await process.exists(name)

    await asyncio.gather(*(fill(process, label) for process, label in zip(everyone, (b"a", b"b", b"c"), strict=True)))
    expected = {b"%s%d" % (label, number) for label in (b"a", b"b", b"c") for number in range(20)}
    for process in everyone:
        assert await process.names() == expected


async def test_attributes_of_a_shared_directory_agree(cluster: Cluster) -> None:
    everyone = await processes(cluster, 3)

    async def churn(process: Process, label: bytes) -> None:
        for number in range(15):
            name = b"%s%d" % (label, number)
            await settle(process.vfs.mkdir(process.root, name, 0o755, CRED))
            if number % 3 == 0:
                await process.vfs.rmdir(process.root, name)

    await asyncio.gather(*(churn(process, b"%d" % number) for number, process in enumerate(everyone)))
    attrs = [(await settle(process.vfs.getattr(process.root))).attr for process in everyone]
    assert {attr.nlink for attr in attrs} == {2 + 3 * 10}
    assert len({attr.mtime_ns for attr in attrs}) == 1


async def test_three_at_random_in_five_names_agree_with_a_dictionary(cluster: Cluster) -> None:
    """Each step by another client, each answer compared: whatever is cached anywhere, nobody ever sees it stale."""
    everyone = await processes(cluster, 3)
    dice = random.Random(7)
    model: dict[bytes, bytes] = {}
    names = [b"n%d" % number for number in range(5)]
    for _ in range(250):
        process, name = dice.choice(everyone), dice.choice(names)
        match dice.randrange(6):
            case 0:
                data = dice.randbytes(dice.choice([0, 5, 3000, 30_000]))
                await process.put(name, data)
                model[name] = data
            case 1 if name in model:
                await process.vfs.unlink(process.root, name)
                del model[name]
            case 2 if name in model:
                other = dice.choice(names)
                await process.vfs.rename(process.root, name, process.root, other, RenameFlag(0))
                model[other] = model.pop(name)
            case 3:
                assert await process.names() == set(model)
            case _:
                assert await process.exists(name) == (name in model)
                if name in model:
                    assert await process.size(name) == len(model[name])
                    assert await process.get(name) == model[name]


@pytest.mark.parametrize("first_seed", [0, 6, 324])  # these have once hung, or left files that nobody had
async def test_all_at_once_in_three_names_leaves_one_truth(cluster: Cluster, first_seed: int) -> None:
    """No order is promised between concurrent changes; what is promised is that all agree in the end, and nothing
    hangs."""
    everyone = await processes(cluster, 3)

    async def rush(process: Process, seed: int) -> None:
        dice = random.Random(seed)
        for _ in range(60):
            name = dice.choice([b"x", b"y", b"z"])
            try:
                match dice.randrange(5):
                    case 0:
                        await process.put(name, dice.randbytes(dice.choice([3, 3000, 40_000])))
                    case 1:
                        await process.vfs.unlink(process.root, name)
                    case 2:
                        await process.vfs.rename(
                            process.root, name, process.root, dice.choice([b"x", b"y"]), RenameFlag(0)
                        )
                    case 3:
                        await process.get(name)
                    case _:
                        await process.size(name)
            except FileNotFoundError:
                pass
            except OSError as error:
                assert error.errno == 116, error  # ESTALE: removed between finding and opening it

    await asyncio.wait_for(
        asyncio.gather(*(rush(process, seed) for seed, process in enumerate(everyone, first_seed))), 40
    )
    seen = [{name: await process.get(name) for name in sorted(await process.names())} for process in everyone]
    assert seen[0] == seen[1] == seen[2]
