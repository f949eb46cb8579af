"""The whole way over RDMA, as an administrator goes it: format, serve, mount, copy, compare; and the servers killed."""

import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(3000)

MIB = 1 << 20
MDS, OSS = "rdma://127.0.0.1:19600", "rdma://127.0.0.1:19610"
ROOM_S = 1200


def nacre(*words: str | Path) -> list[str]:
    """The command line of `nacre`, run by this Python."""
    return [sys.executable, "-m", "nacrefs.client.cli", *map(str, words)]


def run(*words: str | Path) -> str:
    """What the command prints; it must succeed."""
    done = subprocess.run(nacre(*words), capture_output=True, text=True, timeout=ROOM_S, check=False)
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return done.stdout


def eventually(condition: Callable[[], object]) -> None:
    """Wait until something is so; this machine is slow."""
    until_s = time.monotonic() + ROOM_S
    while not condition():
        assert time.monotonic() < until_s, "it did not happen"
        time.sleep(0.5)


def listening(port: int) -> bool:
    """Whether somebody accepts connections there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Place:
    """A cluster of one MDS and one OSS, each a process, in a directory of a real file system; and its mount."""

    def __init__(self, root: Path) -> None:
        self.root, self.mount, self.keyring = root, root / "mnt", root / "keyring"
        self.mount.mkdir()
        self._servers: dict[str, subprocess.Popen[bytes]] = {}
        database = ("--database", f"sqlite:///{root}/mdt.sqlite", "--keyring", self.keyring)
        run("mds", "format", "--new-keyring", *database)
        run("oss", "format", root / "ost0", "--keyring", self.keyring)
        self._commands = {
            "mds": nacre("mds", "serve", "--listen", MDS, "--metrics", "", *database),
            "oss": nacre(
                "oss", "serve", "--ost", root / "ost0", "--mds", MDS, "--listen", OSS, "--keyring", self.keyring
            ),
        }

    def serve(self, name: str) -> None:
        with (self.root / f"{name}.log").open("ab") as log:
            self._servers[name] = subprocess.Popen(self._commands[name], stdout=log, stderr=log)

    def kill(self, name: str) -> None:
        server = self._servers.pop(name)
        server.kill()
        server.wait()

    def stop(self) -> None:
        if os.path.ismount(self.mount):
            subprocess.run(["fusermount3", "-u", "-z", self.mount], check=False)
        for server in self._servers.values():
            server.send_signal(signal.SIGTERM)
        for server in self._servers.values():
            server.wait(ROOM_S)

    def log(self, name: str) -> str:
        return (self.root / f"{name}.log").read_text()

    def stats(self) -> Any:
        return json.loads(os.getxattr(self.mount, "nacre.stats"))


@pytest.fixture
def place(tmp_path: Path) -> Generator[Place]:
    made = Place(tmp_path)
    try:
        made.serve("mds")
        made.serve("oss")
        eventually(lambda: listening(19600))
        run("mount", MDS, made.mount, "--keyring", made.keyring, "-o", "retry=20m")
        eventually(lambda: json.loads(os.getxattr(made.mount, "nacre.df"))["osts"])
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
    for name in sorted(os.listdir(source)):
        (place.mount / name).write_bytes((source / name).read_bytes())
    os.sync()
    os.getxattr(place.mount, "nacre.sync")
    Path("/proc/sys/vm/drop_caches").write_text("3")
    for name in sorted(os.listdir(source)):
        ours, theirs = (hashlib.sha256((where / name).read_bytes()).hexdigest() for where in (source, place.mount))
        assert ours == theirs, name
    connections = place.stats()["connections"]
    assert [each["transport"] for each in connections] == ["rdma", "rdma"]
    assert "rdma" in run("stats", place.mount)
    assert json.loads(run("status", place.mount, "--json"))["sessions"][0]["transport"] == "rdma"

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
    assert {each["transport"] for each in place.stats()["connections"]} == {"rdma"}
    run("umount", place.mount)
