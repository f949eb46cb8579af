"""The Python SDK."""

import asyncio
import errno
import io
import os
import stat
from collections.abc import Coroutine, Iterator
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

import pytest

from nacrefs.client.sdk import AsyncClient, Client, connect
from nacrefs.common.auth import save_keyring
from nacrefs.common.wire import RenameFlag
from tests.client.world import CRED, Counting, World, cluster

T = TypeVar("T")


@pytest.fixture
async def fs(world: World) -> AsyncClient:
    return await world.sdk()


async def test_a_small_file_is_written_and_read_in_one_request_each(world: World, fs: AsyncClient) -> None:
    other = await world.sdk()
    await fs.listdir("/")
    sent = Counting(fs.vfs)
    assert await fs.write_bytes("/small", b"contents") == 8
    assert sent() == {"Create": 1}
    assert await fs.read_bytes("/small") == b"contents"
    assert sent() == {}
    sent = Counting(other.vfs)
    assert await other.read_bytes("small") == b"contents"
    assert sent() == {"Lookup": 1}


async def test_replacing_a_file_replaces_all_of_it(fs: AsyncClient) -> None:
    for data in (b"a" * 100_000, b"short", b"", os.urandom(3 << 20)):
        await fs.write_bytes("/f", data)
        assert await fs.read_bytes("/f") == data


async def test_a_tree_is_made_walked_and_removed(fs: AsyncClient) -> None:
    await fs.makedirs("/a/b/c")
    await fs.makedirs("/a/b/c", exist_ok=True)
    with pytest.raises(FileExistsError):
        await fs.makedirs("/a/b/c")
    await fs.write_bytes("/a/b/f", b"x" * 10)
    await fs.symlink("b/f", "/a/link")
    await fs.symlink("/a/../a/./b", "/a/way")
    assert await fs.read_bytes("/a/link") == b"x" * 10
    assert await fs.read_bytes("/a/way/c/../f") == b"x" * 10
    assert await fs.readlink("/a/link") == "b/f"
    assert stat.S_ISLNK((await fs.stat("/a/link", follow_symlinks=False)).st_mode)
    assert (await fs.stat("/a/link")).st_size == 10
    assert await fs.listdir("/a") == ["b", "link", "way"]
    assert [entry.is_dir() for entry in await fs.scandir("/a")] == [True, False, False]
    await fs.link("/a/b/f", "/a/hard")
    assert (await fs.stat("/a/hard")).st_nlink == 2
    await fs.rename("/a/hard", "/a/b/g")
    with pytest.raises(FileExistsError):
        await fs.rename("/a/b/f", "/a/link", RenameFlag.NOREPLACE)
    for name in ("/a/b/f", "/a/b/g", "/a/link", "/a/way"):
        await fs.remove(name)
    with pytest.raises(OSError, match=".+") as caught:
        await fs.rmdir("/a/b")
    assert caught.value.errno == errno.ENOTEMPTY
    for name in ("/a/b/c", "/a/b", "/a"):
        await fs.rmdir(name)
    assert not await fs.exists("/a")


async def test_attributes_are_set_as_asked(fs: AsyncClient) -> None:
    await fs.write_bytes("/f", b"x" * 100)
    await fs.chmod("/f", 0o4711)
    await fs.chown("/f", 5, -1)
    await fs.utime("/f", ns=(1_000_000_001, 2_000_000_002))
    await fs.truncate("/f", 7)
    await fs.utime("/f", ns=(1_000_000_001, 2_000_000_002))
    result = await fs.stat("/f")
    assert stat.S_IMODE(result.st_mode) == 0o4711
    assert (result.st_uid, result.st_gid, result.st_size) == (5, CRED.gid, 7)
    assert (result.st_atime_ns, result.st_mtime_ns) == (1_000_000_001, 2_000_000_002)
    await fs.setxattr("/f", "user.k", b"v")
    assert await fs.getxattr("/f", "user.k") == b"v"
    assert await fs.listxattr("/f") == ["user.k"]
    await fs.removexattr("/f", "user.k")
    with pytest.raises(OSError, match="no such extended attribute"):
        await fs.getxattr("/f", "user.k")
    assert (await fs.statvfs()).f_bavail > 0


async def test_a_small_file_is_written_whatever_the_directory_s_inline_limit(fs: AsyncClient) -> None:
    for limit in (0, 100, 65536):
        name = f"/d{limit}"
        await fs.mkdir(name)
        await fs.setxattr(name, "nacre.layout", f"inline={limit}".encode())
        for size in (99, 101, 20_000):
            data = os.urandom(size)
            await fs.write_bytes(f"{name}/{size}", data)
            assert await fs.read_bytes(f"{name}/{size}") == data
            inline = (await fs.getxattr(f"{name}/{size}", "nacre.layout")).endswith(f"inline={limit}".encode())
            assert inline


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/none", errno.ENOENT),
        ("/none/x", errno.ENOENT),
        ("/f/x", errno.ENOTDIR),
        ("/loop", errno.ELOOP),
        ("/f/", errno.ENOTDIR),
    ],
)
async def test_paths_that_lead_nowhere_say_why(fs: AsyncClient, path: str, expected: int) -> None:
    await fs.write_bytes("/f", b"")
    await fs.symlink("loop", "/loop")
    with pytest.raises(OSError, match=".+") as caught:
        await fs.read_bytes(path)
    assert caught.value.errno == expected
    assert caught.value.filename == path


class Served:
    """A cluster in a thread of its own, for blocking clients."""

    def __init__(self, root: Path) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = Thread(target=self.loop.run_forever)
        self.thread.start()
        self.world = self.run(self._start(root))

    async def _start(self, root: Path) -> World:
        self.cluster = cluster(root, scheme="tcp")
        return await self.cluster.__aenter__()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def stop(self) -> None:
        self.run(self.cluster.__aexit__())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    served = Served(tmp_path)
    keyring = tmp_path / "keyring"
    save_keyring(keyring, served.world.keyring)
    with connect(served.world.mds.url, keyring=str(keyring)) as fs:
        yield fs
    served.stop()


def test_files_of_a_blocking_client_work_as_pythons_own(client: Client) -> None:
    client.mkdir("/d")
    with client.open("/d/text", "w", encoding="utf-8") as file:
        print("eins", "zwei", "drei\u2026", sep="\n", file=file)
    with client.open("/d/text", encoding="utf-8") as file:
        assert file.readlines() == ["eins\n", "zwei\n", "drei\u2026\n"]
    with client.open("/d/text", "ab") as file:
        file.write(b"vier\n")
    data = os.urandom(5_000_000)
    with client.open("/d/data", "wb") as file:
        for at in range(0, len(data), 70_000):
            file.write(data[at : at + 70_000])
    with client.open("/d/data", "rb") as file:
        assert isinstance(file, io.BufferedReader)
        assert file.read() == data
        file.seek(-10, os.SEEK_END)
        assert file.read(4) == data[-10:-6]
    with client.open("/d/data", "r+b") as file:
        file.seek(1000)
        file.write(b"changed")
        file.seek(998)
        assert file.read(11) == data[998:1000] + b"changed" + data[1007:1009]
    with client.open("/d/data", "rb", buffering=0) as file:
        target = bytearray(100)
        assert file.readinto(target) == 100  # type: ignore[attr-defined]
        assert target == data[:100]
    assert list(client.walk("/")) == [("/", ["d"], []), ("/d", [], ["data", "text"])]
    with pytest.raises(FileExistsError):
        client.open("/d/data", "xb")
    with pytest.raises(ValueError, match="invalid mode"):
        client.open("/d/data", "rw")


def test_a_wrong_keyring_is_explained(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="keyring"):
        connect("tcp://127.0.0.1:1", keyring=str(tmp_path / "none"))
