"""The whole way over RDMA, as an administrator goes it: format, serve, mount, copy, compare; and the servers killed."""

import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest

from tests.rdma.forked import Nacre

pytestmark = pytest.mark.timeout(3000)

MIB = 1 << 20
MDS, OSS = "rdma://127.0.0.1:19600", "rdma://127.0.0.1:19610"
ROOM_S = 1200
"""For whatever is waited for; this machine is slow."""


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Nacre:
    return Nacre(tmp_path_factory.mktemp("commands"))


def eventually(condition: Callable[[], object]) -> None:
    """Wait until something is so."""
    until_s = time.monotonic() + ROOM_S
    while not condition():
        assert time.monotonic() < until_s, "it did not happen"
        time.sleep(0.2)


def listening(port: int) -> bool:
    """Whether somebody accepts connections there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Place:
    """A cluster of one MDS and one OSS, each a process, in a directory of a real file system; and its mount."""

    def __init__(self, root: Path, nacre: Nacre) -> None:
        self.root, self.mount, self.keyring = root, root / "mnt", root / "keyring"
        self.mount.mkdir()
        self._nacre = nacre
        self._servers: dict[str, ForkServerProcess] = {}
        keyring = ("--keyring", str(self.keyring))
        database = ("--database", f"sqlite:///{root}/mdt.sqlite", *keyring)
        ost = str(root / "ost0")
        self.run("mds", "format", "--new-keyring", *database)
        self.run("oss", "format", ost, *keyring)
        self._commands = {
            "mds": ["mds", "serve", "--listen", MDS, "--metrics", "", *database],
            "oss": ["oss", "serve", "--ost", ost, "--mds", MDS, "--listen", OSS, *keyring],
        }

    def run(self, *words: str | Path) -> str:
        """What a command prints; it must succeed."""
        return self._nacre.run(*words, room_s=ROOM_S)

    def serve(self, name: str) -> None:
        self._servers[name] = self._nacre.start(self._commands[name], self.root / f"{name}.log")

    def _end(self, name: str) -> None:
        server = self._servers.pop(name)
        server.join(ROOM_S)
        server.close()

    def kill(self, name: str) -> None:
        self._servers[name].kill()
        self._end(name)

    def attach(self) -> None:
        """Mount, and wait until there is room for files."""
        self.run("mount", MDS, self.mount, "--keyring", self.keyring, "-o", "retry=20m")
        eventually(lambda: json.loads(os.getxattr(self.mount, "nacre.df"))["osts"])

    def stop(self) -> None:
        if os.path.ismount(self.mount):
            subprocess.run(["fusermount3", "-u", "-z", self.mount], check=False)
        for server in self._servers.values():
            server.terminate()
        for name in list(self._servers):
            self._end(name)

    def log(self, name: str) -> str:
        file = self.root / f"{name}.log"
        return file.read_text() if file.exists() else ""

    def stats(self) -> Any:
        return json.loads(os.getxattr(self.mount, "nacre.stats"))

    def transports(self) -> list[str]:
        """What the mount's connections go over."""
        return [each["transport"] for each in self.stats()["connections"]]


@pytest.fixture
def place(tmp_path: Path, commands: Nacre) -> Generator[Place]:
    made = Place(tmp_path, commands)
    try:
        made.serve("mds")
        made.serve("oss")
        eventually(lambda: listening(19600))
        made.attach()
        yield made
    except BaseException:
        for name in ("mds", "oss"):
            sys.stderr.write(f"---- {name}\n{made.log(name)[-3000:]}\n")
        raise
    finally:
        made.stop()


def test_files_copied_in_are_the_same_on_the_way_out_and_nothing_went_over_tcp(place: Place) -> None:
    source = place.root / "source"
    source.mkdir()
    for name, size in (("empty", 0), ("small", 100), ("odd", 70_001), ("large", 5 * MIB + 7)):
        (source / name).write_bytes(random.Random(name).randbytes(size))
    subprocess.run(["cp", "-r", source, place.mount / "copy"], check=True)
    os.getxattr(place.mount, "nacre.sync")
    Path("/proc/sys/vm/drop_caches").write_text("3")
    subprocess.run(["diff", "-r", source, place.mount / "copy"], check=True)
    assert place.transports() == ["rdma", "rdma"]
    assert "rdma" in place.run("stats", place.mount)
    assert json.loads(place.run("status", place.mount, "--json"))["sessions"][0]["transport"] == "rdma"
    place.run("umount", place.mount)
    assert not os.path.ismount(place.mount)


def test_servers_that_are_killed_and_come_again_are_found_again_over_rdma(place: Place) -> None:
    (place.mount / "before").write_bytes(b"b" * MIB)
    place.kill("oss")
    place.serve("oss")
    (place.mount / "after").write_bytes(b"x" * MIB)
    with (place.mount / "after").open("rb") as file:
        os.fsync(file.fileno())
    place.kill("mds")
    place.serve("mds")
    (place.mount / "renamed").write_bytes(b"y")
    os.rename(place.mount / "renamed", place.mount / "again")
    assert (place.mount / "again").read_bytes() == b"y"
    assert (place.mount / "after").read_bytes() == b"x" * MIB
    assert set(place.transports()) == {"rdma"}
    place.run("umount", place.mount)
