"""fcntl, OFD and flock locks between processes on two real mounts, and what becomes of them when something dies."""

import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from nacrefs.client.mount import daemon as mounts
from tests.harness.process import ProcessCluster, process_cluster, succeed, succeed_json

pytestmark = pytest.mark.timeout(240)
RW = os.O_RDWR | os.O_CREAT
ANSWER_S = 30.0


class Locker:
    """A process that locks files as told (`tests/cluster/locker.py`)."""

    def __init__(self, mount: Path) -> None:
        self.mount = mount
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.cluster.locker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        self.pid = self._process.pid

    def tell(self, *words: Any) -> None:
        """Ask for something, and do not wait for it."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()

    def answered(self, within_s: float = ANSWER_S) -> bool:
        """Whether an answer comes in time."""
        assert self._process.stdout is not None
        return bool(select.select([self._process.stdout], [], [], within_s)[0])

    def answer(self) -> Any:
        """The answer to what was told; it must come."""
        assert self._process.stdout is not None
        assert self.answered(), "no answer"
        return json.loads(self._process.stdout.readline())

    def do(self, *words: Any) -> Any:
        """Ask for something; its answer."""
        self.tell(*words)
        return self.answer()

    def open(self, name: str, flags: int = RW, as_: str = "f") -> None:
        assert self.do("open", as_, str(self.mount / name), flags) is None

    def lockf(self, kind: str, start: int = 0, length: int = 0, wait: bool = False, name: str = "f") -> Any:
        return self.do("lockf", name, kind, start, length, wait)

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


class Mounts(NamedTuple):
    """A cluster with two mounts, and processes on them."""

    cluster: ProcessCluster
    one: Path
    two: Path

    def mount_two(self) -> None:
        succeed("mount", self.cluster.url, self.two, "--keyring", self.cluster.keyring)

    def report(self, path: Path | None = None) -> Any:
        return succeed_json("locks", self.one, *([] if path is None else [path]))

    def waiting(self, count: int) -> None:
        """Wait until so many requests wait for locks."""
        for _ in range(600):
            if mounts.ask_json(str(self.one), "locks")["waiting_count"] == count:
                return
            time.sleep(0.02)
        raise AssertionError(f"never {count} waiting: {self.report()}")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Generator[Mounts]:
    base = tmp_path_factory.mktemp("locks")
    with process_cluster(base) as cluster:
        made = Mounts(cluster, cluster.mount, base / "two")
        made.two.mkdir()
        made.mount_two()
        try:
            yield made
        finally:
            subprocess.run(["umount", "-l", made.two], check=False)


Start = Callable[[int], Locker]


@pytest.fixture
def start(both: Mounts) -> Generator[Start]:
    """Start a process on mount 1 or 2; in the end all are gone, and no lock is left."""
    lockers: list[Locker] = []

    def begin(number: int) -> Locker:
        lockers.append(Locker(both.one if number == 1 else both.two))
        return lockers[-1]

    yield begin
    for locker in lockers:
        locker.end()
    report = None
    for _ in range(1500):
        report = mounts.ask_json(str(both.one), "locks")
        if not report["held_count"] and not report["waiting_count"]:
            return
        time.sleep(0.02)
    raise AssertionError(f"locks were left: {report}")


@pytest.fixture(params=["one mount", "two mounts"])
def pair(request: pytest.FixtureRequest, start: Start) -> tuple[Locker, Locker]:
    """Two processes with the same file open, on one mount and on two."""
    lockers = start(1), start(1 if request.param == "one mount" else 2)
    name = f"pair-{time.monotonic_ns()}"
    for locker in lockers:
        locker.open(name)
    return lockers


Pair = tuple[Locker, Locker]


def test_ranges_conflict_only_where_they_meet(pair: Pair) -> None:
    one, two = pair
    assert one.lockf("w", 0, 10) is None
    assert two.lockf("w", 10, 10) is None
    assert two.lockf("r", 9, 1) == "EAGAIN"
    assert one.lockf("w", 19, 1) == "EAGAIN"
    assert one.lockf("r", 100, 0) is None
    assert two.lockf("r", 1 << 62, 0) is None
    assert two.lockf("w", (1 << 62) + 5, 1) == "EAGAIN"
    assert one.lockf("u", (1 << 62) + 5, 1) is None
    assert two.lockf("w", (1 << 62) + 5, 1) is None


def test_unlocking_the_middle_splits_and_locking_it_again_merges(pair: Pair) -> None:
    one, two = pair
    assert one.lockf("w", 0, 30) is None
    assert one.lockf("u", 10, 10) is None
    assert two.lockf("w", 10, 10) is None
    assert two.do("getlk", "f", "w", 0, 0)[:3] == ["w", 0, 10]
    assert two.do("getlk", "f", "r", 15, 0)[:3] == ["w", 20, 10]
    assert two.lockf("u") is None
    assert one.lockf("w", 10, 10) is None
    assert two.do("getlk", "f", "r", 0, 0)[:3] == ["w", 0, 30]
    assert one.lockf("r", 10, 10) is None  # downgrade of the middle
    assert two.lockf("r", 10, 10) is None
    assert two.lockf("r", 9, 10) == "EAGAIN"
    assert one.lockf("w", 10, 10) == "EAGAIN"  # upgrade: the other reads
    assert two.lockf("u", 0, 0) is None
    assert one.lockf("w", 10, 10) is None
    assert one.lockf("u", 0, 0) is None
    assert two.do("getlk", "f", "w", 0, 0) == ["u"]


def test_getlk_tells_the_range_and_the_process_where_that_means_something(both: Mounts, start: Start) -> None:
    one, near, far = start(1), start(1), start(2)
    for locker in (one, near, far):
        locker.open("getlk")
    assert one.lockf("w", 5, 0) is None
    assert near.do("getlk", "f", "w", 0, 0) == ["w", 5, 0, one.pid]
    assert far.do("getlk", "f", "w", 0, 0) == ["w", 5, 0, 0], "a process of another mount has no number here"
    assert one.do("getlk", "f", "w", 0, 0) == ["u"], "one's own lock is not in one's way"
    assert far.do("getlk", "f", "w", 0, 5) == ["u"]


def test_waiting_ends_when_the_lock_is_given_up(both: Mounts, pair: Pair) -> None:
    one, two = pair
    assert one.lockf("w") is None
    two.tell("lockf", "f", "w", 0, 0, True)
    both.waiting(1)
    assert one.lockf("u") is None
    assert two.answer() is None
    assert one.lockf("r") == "EAGAIN"


def test_what_was_written_under_a_lock_is_read_under_the_next(both: Mounts, pair: Pair) -> None:
    one, two = pair
    for turn in range(40):
        writer, reader = (one, two) if turn % 2 else (two, one)
        assert writer.lockf("w", wait=True) is None
        reader.tell("lockf", "f", "r", 0, 0, True)
        text = f"turn {turn:04d}"
        writer.do("write", "f", turn * 3, text)
        assert writer.lockf("u") is None
        assert reader.answer() is None
        assert reader.do("read", "f", turn * 3, 100) == text
        assert reader.lockf("u") is None


def test_closing_any_descriptor_gives_up_the_process_s_posix_locks(pair: Pair) -> None:
    one, two = pair
    path = os.readlink(f"/proc/{one.pid}/fd/3")
    assert one.lockf("w") is None
    one.open(Path(path).name, os.O_RDONLY, as_="other")
    assert two.lockf("w") == "EAGAIN"
    assert one.do("close", "other") is None
    assert two.lockf("w") is None
    assert two.lockf("u") is None
    assert one.lockf("r") is None
    one.do("dup", "f", "copy")
    assert one.do("close", "copy") is None
    assert two.lockf("w") is None


def test_lock_through_a_read_only_descriptor_ends_at_its_close_although_a_child_has_it_too(start: Start) -> None:
    one, two = start(1), start(2)
    two.open("read-only")
    one.open("read-only", os.O_RDONLY)
    assert one.lockf("w") == "EBADF"
    assert one.lockf("r") is None
    child = one.do("fork")
    try:
        assert two.lockf("w") == "EAGAIN"
        assert one.do("close", "f") is None
        assert two.lockf("w") is None
    finally:
        os.kill(child, signal.SIGKILL)


def test_ofd_lock_is_the_open_file_s(start: Start) -> None:
    one, two = start(1), start(2)
    one.open("ofd")
    one.open("ofd", as_="again")
    two.open("ofd")
    assert one.do("ofd", "f", "w", 0, 10, False) is None
    assert one.do("ofd", "again", "w", 5, 10, False) == "EAGAIN"
    assert two.lockf("r", 5, 1) == "EAGAIN"
    one.do("dup", "f", "copy")
    assert one.do("close", "copy") is None
    assert one.do("close", "again") is None
    assert two.lockf("r", 5, 1) == "EAGAIN", "only the end of the open file ends it"
    two.tell("lockf", "f", "w", 0, 0, True)
    assert one.do("close", "f") is None
    assert two.answer() is None


def test_flock_is_the_open_file_s_and_can_change_its_kind(both: Mounts, start: Start) -> None:
    one, two = start(1), start(2)
    for locker in (one, two):
        locker.open("flock")
    assert one.do("flock", "f", fcntl.LOCK_SH) is None
    assert two.do("flock", "f", fcntl.LOCK_SH) is None
    assert one.do("flock", "f", fcntl.LOCK_EX | fcntl.LOCK_NB) == "EAGAIN"
    assert two.do("flock", "f", fcntl.LOCK_EX | fcntl.LOCK_NB) is None, "a failed change has given up the old lock"
    assert two.lockf("w") is None, "flock and fcntl know nothing of each other"
    child = two.do("fork")
    try:
        assert two.do("close", "f") is None
        assert one.do("flock", "f", fcntl.LOCK_SH | fcntl.LOCK_NB) == "EAGAIN", "the child still has the open file"
        one.tell("flock", "f", fcntl.LOCK_EX)
        both.waiting(1)
    finally:
        os.kill(child, signal.SIGKILL)
    assert one.answer() is None
    assert one.do("flock", "f", fcntl.LOCK_UN) is None


def test_signal_ends_a_wait_and_leaves_nothing(both: Mounts, pair: Pair) -> None:
    one, two = pair
    assert one.lockf("w") is None
    two.tell("lockf", "f", "w", 0, 0, True)
    both.waiting(1)
    two.signal(signal.SIGUSR1)
    assert two.answer() == "EINTR"
    both.waiting(0)
    assert one.lockf("u") is None
    assert one.lockf("w") is None


def test_signal_without_a_handler_that_matters_does_not_end_a_wait(both: Mounts, pair: Pair) -> None:
    one, two = pair
    assert one.lockf("w") is None
    two.tell("lockf", "f", "w", 0, 0, True)
    both.waiting(1)
    for number in (signal.SIGCHLD, signal.SIGWINCH, signal.SIGSTOP, signal.SIGCONT):
        two.signal(number)
    both.waiting(1)
    assert one.lockf("u") is None
    assert two.answer() is None


def test_deadlock_between_two_processes_is_told_to_one_of_them(both: Mounts, pair: Pair) -> None:
    one, two = pair
    assert one.lockf("w", 0, 1) is None
    assert two.lockf("w", 1, 1) is None
    one.tell("lockf", "f", "w", 1, 1, True)
    both.waiting(1)
    assert two.lockf("w", 0, 1, wait=True) == "EDEADLOCK"
    assert two.lockf("u") is None
    assert one.answer() is None


def test_killed_process_frees_its_locks_and_its_place_in_the_queue(both: Mounts, start: Start) -> None:
    one, two, three = start(1), start(2), start(1)
    for locker in (one, two, three):
        locker.open("killed")
    assert one.lockf("w") is None
    two.tell("lockf", "f", "w", 0, 0, True)
    both.waiting(1)
    three.tell("lockf", "f", "w", 0, 0, True)
    both.waiting(2)
    two.end()
    both.waiting(1)
    one.end()
    assert three.answer() is None


def test_killed_daemon_frees_its_locks_after_its_term(both: Mounts, start: Start) -> None:
    one, two = start(1), start(2)
    for locker in (one, two):
        locker.open("daemon")
    assert two.lockf("w") is None
    one.tell("lockf", "f", "w", 0, 0, True)
    os.kill(succeed_json("status", both.one)["sessions"] and mounts.ask_json(str(both.two), "mount")["pid"], 9)
    assert one.answer() is None
    two.end()
    both.mount_two()


def test_locks_and_waits_outlive_a_restart_of_the_mds(both: Mounts, start: Start) -> None:
    one, two, three = start(1), start(2), start(2)
    for locker in (one, two, three):
        locker.open("restart")
    assert one.lockf("w", 0, 10) is None
    assert two.do("flock", "f", fcntl.LOCK_EX) is None
    two.tell("lockf", "f", "r", 5, 1, True)
    both.waiting(1)
    both.cluster.kill("mds")
    both.cluster.up()
    assert three.lockf("w", 0, 1) == "EAGAIN"
    assert three.do("flock", "f", fcntl.LOCK_SH | fcntl.LOCK_NB) == "EAGAIN"
    assert not two.answered(0)
    assert one.lockf("u") is None
    assert two.answer() is None


def test_holders_and_waiters_are_listed(both: Mounts, start: Start) -> None:
    one, two = start(1), start(2)
    for locker in (one, two):
        locker.open("listed")
    assert one.lockf("w", 7, 3) is None
    assert one.do("flock", "f", fcntl.LOCK_SH) is None
    two.tell("lockf", "f", "r", 0, 0, True)
    both.waiting(1)
    report = both.report(both.two / "listed")
    host = os.uname().nodename
    shown = [(one["path"], one["style"], one["kind"], one["start"], one["end"], one["host"]) for one in report["held"]]
    assert shown == [("/listed", "posix", "write", 7, 10, host), ("/listed", "flock", "read", 0, None, host)]
    assert report["held"][0]["pid"] == one.pid
    assert [(one["kind"], one["pid"]) for one in report["waiting"]] == [("read", two.pid)]
    assert both.report(both.one)["held"] == []
    table = succeed("locks", both.one)
    assert "posix write" in table
    assert "7–9" in table
    assert succeed_json("status", both.one)["locks"] == {"held": 2, "waiting": 1}
    assert "Locks: held 2, waiting 1" in succeed("status", both.one)
    assert one.lockf("u") is None
    assert two.answer() is None
