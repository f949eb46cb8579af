"""The bucket alone is enough, as people see it through a mount, also if servers are killed at steps of the import.

One cluster fills a bucket; others, empty ones, import it. Every name is there once, with what it was, and no object has
two files.
"""

import json
import os
import stat
import subprocess
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.killing import arm, disarm, is_dead, killed, wait_for
from tests.cluster.test_tier_kills import commits
from tests.harness.process import NACRE, ProcessCluster, process_cluster, succeed, succeed_json

pytestmark = [pytest.mark.timeout(400), pytest.mark.slow]
ACL = bytes.fromhex("0200000001000600ffffffff02000400d204000004000400ffffffff10000600ffffffff20000000ffffffff")
LONG = b"l" * 200 + b"\xc3\xa9" * 27
NAMES: dict[bytes, bytes] = {
    b"plain": os.urandom(70_000),
    b"-dash": os.urandom(70_000),
    b"new\nline": os.urandom(70_000),
    b"not utf8 \xff\xfe": os.urandom(70_000),
    b"%41 ~ff \\ #?&+": os.urandom(70_000),
    b"~": os.urandom(70_000),
    b" ": b"a blank",
    b"...": b"three dots",
    b"name~1a": b"looks like a fid",
    LONG: os.urandom(70_000),
    b"nothing": b"",
    b"inline": b"small enough for the MDT",
    b"large": os.urandom((9 << 20) + 3),
}
SPARSE = (40 << 20) + 5


def seen(path: bytes) -> tuple[Any, ...]:
    """What `stat` says of it, but for what a new filesystem gives anew."""
    stats = os.lstat(path)
    size = stats.st_size if stat.S_ISREG(stats.st_mode) or stat.S_ISLNK(stats.st_mode) else 0
    return stats.st_mode, stats.st_nlink, stats.st_uid, stats.st_gid, size, stats.st_mtime_ns


def described(top: Path) -> dict[bytes, tuple[Any, ...]]:
    """All names below a directory, without reading a file."""
    found: dict[bytes, tuple[Any, ...]] = {}
    root = os.fsencode(top)
    for place, directories, files in os.walk(root):
        for name in (*directories, *files):
            path = os.path.join(place, name)
            target = os.readlink(path) if os.path.islink(path) else b""
            xattrs = {} if target else {one: os.getxattr(path, one) for one in os.listxattr(path)}
            found[os.path.relpath(path, root)] = (*seen(path), target, xattrs)
    return found


def fill(top: Path) -> None:
    """One of each."""
    root = os.fsencode(top)
    for directory in (b"d", b"d/empty", b"d/empty/below \xff", b"d/sticky", b"later"):
        os.mkdir(os.path.join(root, directory))
    for number, (name, data) in enumerate(NAMES.items()):
        path = os.path.join(root, b"d", name)
        Path(os.fsdecode(path)).write_bytes(data)
        os.chown(path, 1000 + number, 2000 + number)
        os.chmod(path, 0o4755 if number % 3 == 0 else 0o600 + number)
        os.utime(path, ns=(10**18 + number, 10**18 + 7 * number))
    with open(top / "d" / "sparse", "wb") as file:
        file.seek(20 << 20)
        file.write(b"middle")
        file.truncate(SPARSE)
    os.link(top / "d" / "large", top / "second name")
    os.link(top / "d" / "large", top / "d" / "empty" / "third name")
    os.symlink(b"../where \xff", os.path.join(root, b"d", b"symlink"))
    os.symlink("d/plain", top / "good link")
    os.mkfifo(top / "pipe", 0o640)
    os.setxattr(top / "d" / "plain", "user.colour", b"gr\0n")
    os.setxattr(top / "d" / "inline", "system.posix_acl_access", ACL)
    os.setxattr(top / "d", "user.of", b"a directory")
    os.setxattr(top / "d" / "empty", "system.posix_acl_default", ACL)
    os.chmod(top / "d" / "sticky", 0o1777)
    os.chown(top / "d" / "empty", 7, 8)
    os.sync()


class Filled:
    """A bucket, and what was where."""

    def __init__(self, cluster: ProcessCluster) -> None:
        self.cluster = cluster
        s3 = cluster.status()["s3"]
        self.where = ("--endpoint", s3["endpoint"], "--credentials-file", s3["credentials"])
        self.url = f"s3://{s3['bucket']}/tier"
        top = cluster.mount / "top"
        succeed("archive", "add", cluster.mount, "cold", self.url, *self.where)
        top.mkdir()
        fill(top)
        self._archive(top)
        for number, directory in enumerate((b"d", b"d/empty", b"d/empty/below \xff", b"d/sticky", b"later")):
            path = os.path.join(os.fsencode(top), directory)
            os.utime(path, ns=(10**18, 9 * 10**17 + number))
        self.written = succeed_json("archive", "catalogue", cluster.mount, "cold")
        self.names = described(top)
        # After the catalogue: what only its object knows of.
        (top / "later" / "new").write_bytes(b"n" * 70_000)
        self._archive(top / "later")
        self.names[b"later/new"] = (*seen(os.fsencode(top / "later" / "new")), b"", {})
        self.inodes = len({os.lstat(path).st_ino for path in [top, *top.rglob("*")]})

    def _archive(self, top: Path) -> None:
        listed = top.parent.parent / "names"
        files = [path for path in top.rglob("*") if path.is_file() and not path.is_symlink()]
        listed.write_bytes(b"\0".join(os.fsencode(path) for path in files))
        succeed("hsm", "archive", "--wait", "-0", "-f", listed)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Generator[Filled]:
    with process_cluster(tmp_path_factory.mktemp("filled"), "--s3") as cluster:
        yield Filled(cluster)


@pytest.fixture
def target(filled: Filled, tmp_path: Path) -> Generator[ProcessCluster]:
    with process_cluster(tmp_path) as cluster:
        succeed("archive", "add", cluster.mount, "cold", filled.url, *filled.where)
        yield cluster


def check(filled: Filled, target: ProcessCluster) -> None:
    """All is there, once, and nothing was fetched; then it is read."""
    top = target.mount / "top"
    assert described(top) == filled.names
    (archive,) = succeed_json("archive", "list", target.mount)["archives"]
    files = len({os.lstat(path).st_ino for path in top.rglob("*") if path.is_file() and not path.is_symlink()})
    assert archive["files"] == files
    assert archive["released"] == files - 1  # but for the empty one
    assert len({os.lstat(path).st_ino for path in [top, *top.rglob("*")]}) == filled.inodes
    again = succeed_json("archive", "import", target.mount, "cold")
    assert (again["made"], again["problems"]) == (0, [])
    for name, data in NAMES.items():
        with open(os.path.join(os.fsencode(top), b"d", name), "rb") as file:
            assert file.read() == data, name
    with open(top / "d" / "sparse", "rb") as file:
        data = file.read()
    assert (len(data), data[20 << 20 :][:6], data.count(0)) == (SPARSE, b"middle", SPARSE - 6)
    assert (top / "second name").read_bytes() == NAMES[b"large"]
    assert (top / "later" / "new").read_bytes() == b"n" * 70_000
    succeed("fsck", target.mount)


def test_the_bucket_alone_is_enough(filled: Filled, target: ProcessCluster) -> None:
    assert filled.written["uncopied"] == 0
    done = succeed_json("archive", "import", target.mount, "cold")
    assert (done["problems"], done["skipped"]) == ([], 0)
    check(filled, target)
    elsewhere = target.mount / "elsewhere"
    elsewhere.mkdir()
    succeed("archive", "import", elsewhere, "cold")
    assert [path for path in elsewhere.rglob("*") if path.is_file() and not path.is_symlink()] == []


IMPORT = commits("put_hsm", 0, 1)


@pytest.mark.parametrize(
    "fault", [pytest.param(one, marks=[] if one == IMPORT[1] else pytest.mark.slow) for one in IMPORT]
)
def test_killed_while_it_is_imported(filled: Filled, target: ProcessCluster, fault: str) -> None:
    code, printed = killed(target, fault, NACRE, "archive", "import", target.mount, "cold", "--json")
    assert (code, json.loads(printed)["problems"]) == (0, [])
    check(filled, target)


@pytest.mark.parametrize(
    "fault",
    [
        f"rpc.{point}=kill match={request} after={after}"
        for request, after in (("MoveList", 0), ("MoveRead", 1), ("MoveHead", 0))
        for point in ("request.receive", "reply.send")
    ],
)
def test_an_oss_is_killed_while_it_is_imported(filled: Filled, target: ProcessCluster, fault: str) -> None:
    victims = ("oss0", "oss1")
    arm(target, victims, fault)
    command = (NACRE, "archive", "import", str(target.mount), "cold", "--json")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        wait_for(lambda: is_dead(target, victims), f"the fault at {fault}")
        disarm(target, victims)
        printed, complaints = process.communicate(timeout=120)
    assert (process.returncode, complaints) == (0, b"")
    assert json.loads(printed)["problems"] == []
    check(filled, target)


def said(cluster: ProcessCluster, name: str, words: str) -> bool:
    """Whether a server has logged this."""
    return words in (cluster.directory / "log" / f"{name}.log").read_text(errors="replace")


@pytest.mark.parametrize("order", ["MoveList", "MoveRead", "MoveHead"])
def test_the_s3_server_is_killed_while_it_is_imported(filled: Filled, target: ProcessCluster, order: str) -> None:
    servers = ("oss0", "oss1")
    arm(target, servers, f"rpc.request.receive=delay match={order} s=3")
    command = (NACRE, "archive", "import", str(target.mount), "cold", "--json")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        reached = f"fault at rpc.request.receive ({order})"
        wait_for(lambda: any(said(target, name, reached) for name in servers), f"{order} is asked")
        filled.cluster.kill("s3")
        wait_for(lambda: said(target, "mds", "an import waits"), "it is noticed")
        filled.cluster.up()
        printed, complaints = process.communicate(timeout=120)
    assert (process.returncode, complaints) == (0, b"")
    assert json.loads(printed)["problems"] == []
    check(filled, target)
