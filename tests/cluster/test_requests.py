"""What each operation costs in requests through a kernel mount: the table of ARCHITECTURE §7, exactly.

`near` makes what is looked at; `far` is a second mount, which is cold for it. Requests are counted by the daemon itself
(the attribute `nacre.stats`). Not counted is what is paid once for many operations: keepalives, and leases given back
in bulk, at most every half second for all files together.
"""

import json
import os
import time
from collections.abc import Callable, Generator, Iterable
from pathlib import Path

import pytest

from tests.harness.process import process_cluster, succeed

pytestmark = pytest.mark.timeout(120)

OVERHEAD = {"Keepalive", "Yield", "GetOsts", "Attach", "Recall"}
FILES = 40


class Mount:
    """A mount whose daemon's requests are counted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._before: dict[str, int] = {}
        self.sent()

    def sent(self) -> dict[str, int]:
        """Requests by kind since the last call."""
        report = json.loads(os.getxattr(self.path, "nacre.stats"))
        now = {kind: tally["count"] for kind, tally in report["requests"].items() if kind not in OVERHEAD}
        new = {kind: count - self._before.get(kind, 0) for kind, count in now.items()}
        self._before = now
        return {kind: count for kind, count in new.items() if count}

    def store(self) -> None:
        """Wait until the servers have all that was written."""
        os.getxattr(self.path, "nacre.sync")

    def costs(self, act: Callable[[], object]) -> dict[str, int]:
        """Requests that `act` takes, with what it leaves to be done behind its back."""
        self.store()
        self.sent()
        act()
        self.store()
        return self.sent()


@pytest.fixture(scope="module")
def mounts(tmp_path_factory: pytest.TempPathFactory) -> Generator[tuple[Mount, Mount]]:
    base = tmp_path_factory.mktemp("requests")
    with process_cluster(base) as cluster:
        far = base / "far"
        far.mkdir()
        succeed("mount", cluster.url, far, "--keyring", cluster.keyring)
        try:
            yield Mount(cluster.mount), Mount(far)
        finally:
            succeed("umount", far)


@pytest.fixture
def near(mounts: tuple[Mount, Mount]) -> Mount:
    return mounts[0]


@pytest.fixture
def far(mounts: tuple[Mount, Mount]) -> Mount:
    return mounts[1]


@pytest.fixture
def folder(near: Mount, far: Mount, tmp_path: Path) -> str:
    """The name of a new directory that both mounts know."""
    name = tmp_path.name
    os.mkdir(near.path / name)
    os.stat(far.path / name)
    return name


def fill(near: Mount, far: Mount, folder: str, names: Iterable[str], size: int = 100) -> None:
    """Make files of which `far` knows nothing, but it knows the directory, whose attributes have changed."""
    for name in names:
        (near.path / folder / name).write_bytes(bytes(size))
    near.store()
    os.stat(far.path / folder)


def read(path: Path, size: int = 1 << 16) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.read(descriptor, size)
    finally:
        os.close(descriptor)


def test_stat_is_one_request_cold_and_none_leased(near: Mount, far: Mount, folder: str) -> None:
    fill(near, far, folder, ["f"])
    assert far.costs(lambda: os.stat(far.path / folder / "f")) == {"Lookup": 1}
    assert far.costs(lambda: os.stat(far.path / folder / "f")) == {}
    # `near` has lost its WRITE lease to that, but what it may keep of the file it has.
    assert near.costs(lambda: os.stat(near.path / folder / "f")) == {}


def test_absent_name_is_one_request_cold_and_none_leased(far: Mount, folder: str) -> None:
    def ask() -> None:
        assert not os.path.lexists(far.path / folder / "absent")

    assert far.costs(ask) == {"Lookup": 1}
    assert far.costs(ask) == {}


def test_kernel_itself_answers_what_is_leased(far: Mount, folder: str) -> None:
    def asked() -> dict[str, int]:
        counts: dict[str, int] = json.loads(os.getxattr(far.path, "nacre.stats"))["fuse"]
        return {kind: counts.get(kind, 0) for kind in ("lookup", "getattr", "open", "read")}

    (far.path / folder / "f").write_bytes(b"x")
    far.store()
    for _ in range(2):
        os.stat(far.path / folder / "f")
        os.path.lexists(far.path / folder / "absent")
    before = asked()
    for _ in range(10):
        os.stat(far.path / folder / "f")
        os.path.lexists(far.path / folder / "absent")
    assert asked() == before


def test_path_is_one_request_per_component_that_is_cold(near: Mount, far: Mount, folder: str) -> None:
    os.makedirs(near.path / folder / "a" / "b" / "c")
    os.stat(far.path / folder)
    assert far.costs(lambda: os.stat(far.path / folder / "a" / "b" / "c")) == {"Lookup": 3}
    assert far.costs(lambda: os.stat(far.path / folder / "a" / "b" / "c")) == {}


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "leased"])
def test_each_change_is_one_request(near: Mount, far: Mount, folder: str, warm: bool) -> None:
    """What is looked up before the change counts as well, if it is cold; that a name is absent can be known, too."""
    fill(near, far, folder, ["chmod", "utime", "unlink", "rename", "over", "link", "truncate", "setxattr"])
    os.mkdir(near.path / folder / "rmdir")
    os.stat(far.path / folder)
    here = far.path / folder
    if warm:
        for entry in os.scandir(here):
            entry.stat()
    lookup = {} if warm else {"Lookup": 1}

    def cost(act: Callable[[], object]) -> dict[str, int]:
        return far.costs(act)

    assert cost(lambda: os.mkdir(here / "mkdir")) == {"Mkdir": 1} | lookup
    assert cost(lambda: os.mknod(here / "mknod")) == {"Mknod": 1} | lookup
    assert cost(lambda: os.symlink("target", here / "symlink")) == {"Symlink": 1} | lookup
    assert cost(lambda: os.chmod(here / "chmod", 0o600)) == {"SetAttr": 1} | lookup
    assert cost(lambda: os.chmod(here / "chmod", 0o640)) == {"SetAttr": 1}
    assert cost(lambda: os.utime(here / "utime", (1, 2))) == {"SetAttr": 1} | lookup
    assert cost(lambda: os.truncate(here / "truncate", 10)) == {"SetAttr": 1} | lookup
    assert cost(lambda: os.unlink(here / "unlink")) == {"Unlink": 1} | lookup
    assert cost(lambda: os.rmdir(here / "rmdir")) == {"Rmdir": 1} | lookup
    both = {} if warm else {"Lookup": 2}
    assert cost(lambda: os.rename(here / "rename", here / "renamed")) == {"Rename": 1} | both
    assert cost(lambda: os.rename(here / "renamed", here / "over")) == {"Rename": 1} | lookup
    assert cost(lambda: os.link(here / "link", here / "linked")) == {"Link": 1} | both
    assert cost(lambda: os.setxattr(here / "setxattr", "user.a", b"1")) == {"SetXattr": 1} | lookup
    for name in ("mkdir", "mknod", "chmod", "renamed", "linked", "unlink", "rmdir"):
        assert cost(lambda name=name: os.path.lexists(here / name)) == {}, name  # type: ignore[misc]


def test_create_is_one_request(far: Mount, folder: str) -> None:
    """The kernel looks a name up before it creates it, unless it is known to be absent."""
    here = far.path / folder
    list(os.scandir(here))
    assert far.costs(lambda: os.close(os.open(here / "f", os.O_CREAT | os.O_EXCL | os.O_WRONLY))) == {"Create": 1}
    assert far.costs(lambda: os.stat(here / "f")) == {}


def test_small_file_is_one_request_after_the_create(far: Mount, folder: str) -> None:
    here = far.path / folder
    list(os.scandir(here))

    def write() -> None:
        descriptor = os.open(here / "f", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        os.write(descriptor, bytes(2000))
        os.write(descriptor, bytes(1900))
        os.close(descriptor)

    assert far.costs(write) == {"Create": 1, "Commit": 1}
    assert far.costs(lambda: read(here / "f")) == {}


def test_first_create_in_a_directory_that_was_made_here_is_one_request_too(far: Mount, folder: str) -> None:
    here = far.path / folder / "new"
    os.mkdir(here)
    assert far.costs(lambda: os.close(os.open(here / "f", os.O_CREAT | os.O_WRONLY))) == {"Create": 1}


def test_open_after_stat_is_one_request_cold_and_none_leased(near: Mount, far: Mount, folder: str) -> None:
    fill(near, far, folder, ["small"], 4000)
    fill(near, far, folder, ["big"], 100_000)
    for name, reads in (("small", 0), ("big", 1)):
        path = far.path / folder / name
        os.stat(path)
        far.sent()
        descriptor = os.open(path, os.O_RDONLY)
        opened = far.sent()
        assert opened in ({"Open": 1}, {}), name  # {}: recent lookups were followed by an open, so it brought all along
        os.read(descriptor, 1000)
        assert far.sent().get("Read", 0) == reads, name
        os.close(descriptor)
        assert far.costs(lambda path=path: os.close(os.open(path, os.O_RDONLY))) == {}, name  # type: ignore[misc]


def test_cold_open_and_read_of_many_files_is_one_request_each(near: Mount, far: Mount, folder: str) -> None:
    """FUSE looks a name up before it opens it; once lookups are seen to be followed by opens, they bring all along."""
    names = [f"f{number:02d}" for number in range(FILES)]
    fill(near, far, folder, names, 3900)
    for name in names[:4]:
        read(far.path / folder / name)
    rest = names[:3:-1]  # in name order the next ones would come ahead
    assert far.costs(lambda: [read(far.path / folder / name) for name in rest]) == {"Lookup": FILES - 4}
    assert far.costs(lambda: [read(far.path / folder / name) for name in names]) == {}


def test_walk_in_name_order_is_a_request_per_window(near: Mount, far: Mount, folder: str) -> None:
    names = [f"f{number:03d}" for number in range(5 * FILES)]
    fill(near, far, folder, names, 3900)
    sent = far.costs(lambda: [read(far.path / folder / name) for name in names])
    assert set(sent) <= {"Lookup", "Open", "Readdir"}
    assert sum(sent.values()) <= 20 + len(names) // 16


def test_read_of_one_stripe_is_one_request_to_an_oss(near: Mount, far: Mount, folder: str) -> None:
    size = 128 << 10
    fill(near, far, folder, ["f"], size)
    descriptor = os.open(far.path / folder / "f", os.O_RDONLY)
    try:
        assert far.costs(lambda: os.pread(descriptor, size, 0)) == {"Read": 1}
        assert far.costs(lambda: os.pread(descriptor, size, 0)) == {}, "the kernel has the pages"
    finally:
        os.close(descriptor)


def test_fsync_is_one_request_to_the_oss_and_one_to_the_mds(far: Mount, folder: str) -> None:
    here = far.path / folder
    list(os.scandir(here))
    descriptor = os.open(here / "f", os.O_CREAT | os.O_WRONLY)
    try:
        os.write(descriptor, bytes(100_000))
        far.sent()
        os.fsync(descriptor)
        cost = far.sent()
        assert cost.pop("Commit") == 1
        assert cost in ({"Write": 1}, {"Write": 1, "Sync": 1})
        os.fsync(descriptor)
        assert far.sent() == {}, "nothing was written since"
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("count", [10, 2500])
def test_listing_with_attributes_is_one_request_per_thousand(near: Mount, far: Mount, folder: str, count: int) -> None:
    fill(near, far, folder, (f"n{number:04d}" for number in range(count)))
    here = far.path / folder

    def entries() -> list[tuple[str, int]]:
        return sorted((entry.name, entry.stat(follow_symlinks=False).st_ino) for entry in os.scandir(here))

    assert far.costs(entries) == {"Readdir": -(-count // 1000)}
    assert far.costs(entries) == {}
    assert far.costs(lambda: [os.stat(here / f"n{number:04d}") for number in range(count)]) == {}
    assert far.costs(lambda: os.path.lexists(here / "absent")) == {}, "what is not in a complete listing is not there"
    assert len(entries()) == count


def test_remote_change_costs_its_reader_one_request(near: Mount, far: Mount, folder: str) -> None:
    fill(near, far, folder, ["f", "other"])
    os.stat(far.path / folder / "f")
    os.stat(far.path / folder / "other")
    os.chmod(near.path / folder / "f", 0o600)
    assert far.costs(lambda: os.stat(far.path / folder / "f")) in ({"GetAttr": 1}, {"Lookup": 1})
    assert far.costs(lambda: os.stat(far.path / folder / "other")) == {}, "what has not changed is still leased"
    (near.path / folder / "third").touch()
    far.costs(lambda: os.path.lexists(far.path / folder / "third"))
    assert far.costs(lambda: os.stat(far.path / folder / "f")) == {}, "a new name does not take the others away"


def test_idle_mount_asks_nothing(far: Mount) -> None:
    """Not even for what the kernel may want to know by itself."""
    far.store()
    far.sent()
    time.sleep(0.7)  # longer than leases wait to be given back
    assert far.sent() == {}
