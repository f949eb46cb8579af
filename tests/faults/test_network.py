"""Parties that cannot reach each other while everybody else can (CONTRACT 8, 9)."""

import errno
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.network import PARTIES, TERM_S, NetworkCluster, address, network_cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
OLD, NEW = b"o" * 100_000, b"n" * 100_000
WAIT_S = 60.0


class Doing:
    """Something that may wait, in a thread of its own."""

    def __init__(self, work: Callable[[], object]) -> None:
        self.error: OSError | None = None
        self._work = work
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._work()
        except OSError as error:
            self.error = error

    def waits(self, seconds: float) -> bool:
        """Whether it is still not done after so long."""
        self._thread.join(seconds)
        return self._thread.is_alive()

    def done(self) -> None:
        """Wait for its end; raise what it raised."""
        assert not self.waits(WAIT_S), f"it hangs for {WAIT_S:.0f} s"
        if self.error is not None:
            raise self.error


def store(path: Path, data: bytes) -> None:
    """Write from the start and make durable; the file keeps its other bytes."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        os.pwrite(descriptor, data, 0)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def rogue(cluster: NetworkCluster, name: str) -> Generator[tuple[str, Callable[[], None], Callable[[float], str]]]:
    """A client that writes whatever it has lost: the party of the OSS that it writes to, `send()`, `answer(seconds)`,
    which is empty if there is none in that time."""
    command = [sys.executable, "-m", "tests.faults.rogue", cluster.url, str(cluster.keyring), name]
    with subprocess.Popen(
        cluster.network.within("rogue", command),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        bufsize=0,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout
        buffered: list[str] = []

        def answer(seconds: float) -> str:
            while not buffered:
                ready, _, _ = select.select([stdout], [], [], seconds)
                if not ready:
                    return ""
                buffered.extend(os.read(stdout.fileno(), 4096).decode().splitlines())
            return buffered.pop(0)

        def send() -> None:
            stdin.write(b"\n")
            assert answer(WAIT_S) == "sent"

        word, _, url = answer(WAIT_S).partition(" ")
        assert word == "ready"
        try:
            yield next(party for party in PARTIES if f"//{address(party)}:" in url), send, answer
        finally:
            process.kill()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Generator[NetworkCluster]:
    with network_cluster(tmp_path_factory.mktemp("network")) as started:
        yield started


@pytest.fixture
def cluster(running: NetworkCluster) -> Generator[NetworkCluster]:
    """The same, with no cut left by the test before."""
    yield running
    running.network.heal()


def test_mount_that_is_cut_off_from_the_mds_only_does_not_write_over_its_successor(cluster: NetworkCluster) -> None:
    one, two = cluster.place("one") / "f", cluster.place("two") / "f"
    store(one, b"first")
    file = os.open(one, os.O_RDWR)
    os.pwrite(file, OLD, 0)
    cluster.network.cut("one", "mds")
    began_s = time.monotonic()
    store(two, NEW)
    assert time.monotonic() - began_s > TERM_S / 2, "nobody had to be given up: this shows nothing"
    late = Doing(lambda: os.pwrite(file, b"late", len(NEW)))
    assert late.waits(1), "a mount that is cut off takes writes"
    cluster.network.heal()
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        os.fsync(file)
    late.waits(WAIT_S)
    os.close(file)
    assert two.read_bytes()[: len(NEW)] == NEW
    assert one.read_bytes()[: len(NEW)] == NEW


def test_mount_that_is_cut_off_from_the_osts_waits_and_goes_on(cluster: NetworkCluster) -> None:
    one, two = cluster.place("one"), cluster.place("two")
    for oss in ("oss0", "oss1"):
        cluster.network.cut("one", oss)
    data = os.urandom(3 << 20)
    writing = Doing(lambda: store(one / "big", data))
    store(two / "other", NEW)
    assert writing.waits(2 * TERM_S), "it was stored without an OST: this shows nothing"
    cluster.network.heal()
    writing.done()
    assert (two / "big").read_bytes() == data
    assert (one / "other").read_bytes() == NEW


def test_holder_that_cannot_reach_the_osts_does_not_hold_up_others_for_ever(cluster: NetworkCluster) -> None:
    one, two = cluster.place("one") / "held", cluster.place("two") / "held"
    store(one, OLD)
    file = os.open(one, os.O_RDWR)
    for oss in ("oss0", "oss1"):
        cluster.network.cut("one", oss)
    os.pwrite(file, NEW, 0)
    reading: list[bytes] = []
    Doing(lambda: reading.append(two.read_bytes())).done()
    assert reading == [OLD]
    cluster.network.heal()
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        os.fsync(file)
    os.close(file)
    assert one.read_bytes() == two.read_bytes() == OLD


def test_oss_that_is_cut_off_from_the_mds_serves_nobody_before_it_knows_who_is_fenced(cluster: NetworkCluster) -> None:
    """The MDS cannot tell it that a session is over, and ends that all the same. Who wants to write the file next waits
    for the OSS, which knows alone how long it is (so not in this thread, which heals the network)."""
    path = cluster.place("two") / "wanted"
    store(path, OLD)
    with rogue(cluster, "wanted") as (oss, send, answer):
        send()
        assert answer(WAIT_S) == "accepted", "it cannot write even while it may: this shows nothing"
        cluster.network.cut(oss, "mds")
        cluster.network.cut("rogue", "mds")
        begun = cluster.said("mds")
        writing = Doing(lambda: store(path, NEW))
        deadline_s = time.monotonic() + WAIT_S
        while "is looked at when somebody uses it" not in cluster.said("mds")[len(begun) :]:
            assert time.monotonic() < deadline_s, "the session has not been ended"
            time.sleep(0.1)
        assert not cluster.network.reaches(oss, "mds")
        send()
        assert answer(1) == "", "an OSS that does not know who is fenced serves"
        assert writing.waits(1), "it was written without the OSS: this shows nothing"
        assert answer(0) == ""
        cluster.network.heal()
        assert answer(WAIT_S) == "ESHUTDOWN"
        writing.done()
    assert path.read_bytes() == NEW
    assert (cluster.place("one") / "wanted").read_bytes() == NEW


def test_mds_that_is_away_for_several_terms_is_waited_for(tmp_path: Path) -> None:
    """Nobody is given up for that: what was written and not stored before is there afterwards."""
    with network_cluster(tmp_path) as cluster:
        be_without_mds(cluster)


def be_without_mds(cluster: NetworkCluster) -> None:
    one, two = cluster.place("one") / "waiting", cluster.place("two") / "waiting"
    store(one, OLD)
    file = os.open(one, os.O_RDWR)
    os.pwrite(file, NEW, 0)
    cluster.kill("mds")
    syncing = Doing(lambda: os.fsync(file))
    making = Doing(lambda: os.mkdir(cluster.place("two") / "made"))
    assert making.waits(2.5 * TERM_S), "a directory was made without an MDS: this shows nothing"
    cluster.start_mds()
    making.done()
    syncing.done()
    os.close(file)
    assert two.read_bytes() == NEW
    assert (cluster.place("one") / "made").is_dir()
