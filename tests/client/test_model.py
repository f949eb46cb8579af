"""Two clients that take turns, against a local directory: the same outcome of every operation, and the same tree."""

import asyncio
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nacrefs.client.sdk import AsyncClient
from tests.client.world import World, cluster

NAMES = ["a", "b", "d", "d/a", "d/b", "d/e", "d/e/a", "s", "s/a"]
KINDS = [
    "mkdir", "mkdir", "rmdir", "write", "write", "write", "append", "remove", "rename", "rename", "symlink", "link",
    "truncate", "chmod", "listdir", "read", "stat", "readlink",
]  # fmt: skip


class Op(NamedTuple):
    """One operation by one client on one or two paths."""

    client: int
    kind: str
    path: str
    other: str
    size: int


operations = st.lists(
    st.builds(
        Op,
        st.integers(0, 1),
        st.sampled_from(KINDS),
        st.sampled_from(NAMES),
        st.sampled_from(NAMES),
        st.sampled_from([0, 1, 100, 16384, 16385, 70_000]),
    ),
    max_size=40,
)


def data_of(op: Op) -> bytes:
    return (op.path + op.other).encode() * (op.size // 2) + b"!" * (op.size % 2)


def facts(result: os.stat_result) -> tuple[int, int, int]:
    """What must agree; the size of directories and symlinks' modes are a file system's own business."""
    regular = stat.S_ISREG(result.st_mode)
    return (result.st_mode, result.st_size if regular else 0, result.st_nlink)


def locally(op: Op, root: str) -> Any:
    path, other = f"{root}/{op.path}", f"{root}/{op.other}"
    match op.kind:
        case "mkdir":
            return os.mkdir(path)
        case "rmdir":
            return os.rmdir(path)
        case "write" | "append":
            with open(path, "wb" if op.kind == "write" else "ab") as file:
                file.write(data_of(op))
        case "remove":
            return os.remove(path)
        case "rename":
            return os.rename(path, other)
        case "symlink":
            return os.symlink(os.path.basename(op.other), path)
        case "link":
            return os.link(path, other, follow_symlinks=False)
        case "truncate":
            return os.truncate(path, op.size)
        case "chmod":
            return os.chmod(path, 0o700 | op.size % 64)
        case "listdir":
            return sorted(os.listdir(path))
        case "read":
            with open(path, "rb") as file:
                return file.read()
        case "readlink":
            return os.readlink(path)
        case _:
            return facts(os.stat(path))


async def remotely(op: Op, fs: AsyncClient, root: str) -> Any:
    path, other = f"{root}/{op.path}", f"{root}/{op.other}"
    match op.kind:
        case "mkdir":
            return await fs.mkdir(path)
        case "rmdir":
            return await fs.rmdir(path)
        case "write":
            await fs.write_bytes(path, data_of(op))
        case "append":
            async with await fs.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND) as file:
                await file.write(data_of(op))
        case "remove":
            return await fs.remove(path)
        case "rename":
            return await fs.rename(path, other)
        case "symlink":
            return await fs.symlink(os.path.basename(op.other), path)
        case "link":
            return await fs.link(path, other)
        case "truncate":
            return await fs.truncate(path, op.size)
        case "chmod":
            return await fs.chmod(path, 0o700 | op.size % 64)
        case "listdir":
            return await fs.listdir(path)
        case "read":
            return await fs.read_bytes(path)
        case "readlink":
            return await fs.readlink(path)
        case _:
            return facts(await fs.stat(path))


async def tree(fs: AsyncClient, path: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for entry in await fs.scandir(path):
        place = f"{path}/{entry.name}"
        if entry.is_dir():
            found[entry.name] = await tree(fs, place)
        else:
            contents = await fs.readlink(place) if entry.is_symlink() else await fs.read_bytes(place)
            found[entry.name] = (facts(await fs.stat(place, follow_symlinks=False)), contents)
    return found


def local_tree(path: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for entry in os.scandir(path):
        if entry.is_dir(follow_symlinks=False):
            found[entry.name] = local_tree(entry.path)
        else:
            contents = os.readlink(entry.path) if entry.is_symlink() else Path(entry.path).read_bytes()
            found[entry.name] = (facts(entry.stat(follow_symlinks=False)), contents)
    return found


class Shared:
    """A cluster with two clients and a local directory for many examples, in a loop of its own."""

    def __init__(self, root: Path) -> None:
        self.runner = asyncio.Runner()
        self.local = str(root / "local")
        self.examples = 0
        self.world: World = cluster(root)
        self.clients: list[AsyncClient] = self.runner.run(self._start())

    async def _start(self) -> list[AsyncClient]:
        await self.world.__aenter__()
        clients = [await self.world.sdk(), await self.world.sdk()]
        for fs in clients:
            fs.umask = 0o022
        return clients

    def stop(self) -> None:
        self.runner.run(self.world.__aexit__())
        self.runner.close()

    async def example(self, ops: list[Op]) -> None:
        self.examples += 1
        root = f"/{self.examples}"
        await self.clients[0].mkdir(root)
        os.mkdir(self.local)
        try:
            for op in ops:
                await self.step(op, root)
            expected = local_tree(self.local)
            for fs in self.clients:
                assert await tree(fs, root) == expected
        finally:
            shutil.rmtree(self.local)

    async def step(self, op: Op, root: str) -> None:
        try:
            expected: Any = locally(op, self.local)
        except OSError as error:
            expected = ("fails with", error.errno)
        try:
            found: Any = await remotely(op, self.clients[op.client], root)
        except OSError as error:
            found = ("fails with", error.errno)
        assert found == expected, op


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Shared]:
    before = os.umask(0o022)
    started = Shared(tmp_path)
    yield started
    started.stop()
    os.umask(before)


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(ops=operations)
def test_any_sequence_by_two_clients_ends_as_on_a_local_file_system(shared: Shared, ops: list[Op]) -> None:
    shared.runner.run(asyncio.wait_for(shared.example(ops), 10))
