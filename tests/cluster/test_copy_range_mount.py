"""cp(1) and copy_file_range(2) on a real mount: the bytes go from OST to OST."""

import filecmp
import os
import random
import signal
import subprocess
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.process import ProcessCluster, process_cluster, succeed, succeed_json

pytestmark = pytest.mark.timeout(300)

MIB = 1 << 20


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Generator[ProcessCluster]:
    with process_cluster(tmp_path_factory.mktemp("copies")) as running:
        succeed("setstripe", "-c", "2", "-S", "1M", running.mount)
        yield running


def plant(path: Path, size: int) -> None:
    """A file whose bytes are all on OSTs."""
    with path.open("wb") as file:
        file.write(random.Random(size).randbytes(size))
        os.fsync(file.fileno())


def requests(cluster: ProcessCluster) -> dict[str, int]:
    """What the mount has asked so far."""
    report: Any = succeed_json("stats", cluster.mount)
    return {name: tally["count"] for name, tally in report["requests"].items()}


@pytest.mark.parametrize("how", ["--reflink=auto", "--sparse=never"])
def test_cp_moves_no_byte_through_the_mount(cluster: ProcessCluster, how: str) -> None:
    source, target = cluster.mount / f"a{how}", cluster.mount / f"b{how}"
    plant(source, 20 * MIB + 4321)
    os.close(os.open(source, os.O_RDONLY))
    before = requests(cluster)
    subprocess.run(["cp", how, source, target], check=True)
    after = requests(cluster)
    sent = {name: count - before.get(name, 0) for name, count in after.items() if count != before.get(name, 0)}
    assert sent.get("CopyRange"), sent
    assert not {"Read", "Write"} & sent.keys(), sent
    assert filecmp.cmp(source, target, shallow=False)
    assert os.stat(target).st_size == 20 * MIB + 4321


def test_pages_of_the_target_that_the_kernel_has_are_dropped(cluster: ProcessCluster) -> None:
    source, target = cluster.mount / "new", cluster.mount / "old"
    plant(source, 3 * MIB)
    plant(target, 2 * MIB)
    old = target.read_bytes()
    with source.open("rb") as one, target.open("r+b") as two:
        assert os.copy_file_range(one.fileno(), two.fileno(), 2 * MIB, 777, 1 * MIB + 5) == 2 * MIB
        wanted = old[: MIB + 5] + source.read_bytes()[777 : 777 + 2 * MIB]
        assert os.pread(two.fileno(), 4 * MIB, 0) == wanted
        assert os.fstat(two.fileno()).st_size == len(wanted)
    assert target.read_bytes() == wanted


def test_copy_goes_on_after_kill_of_the_osses(cluster: ProcessCluster) -> None:
    source, target = cluster.mount / "before", cluster.mount / "after"
    plant(source, 64 * MIB)
    for name in ("oss0", "oss1"):  # so that the copy cannot end before they are killed
        os.kill(cluster.pid(name), signal.SIGSTOP)
    copying = subprocess.Popen(["cp", source, target])
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            copying.wait(0.5)
        for name in ("oss0", "oss1"):
            cluster.kill(name)
        cluster.up()
        assert copying.wait(120) == 0
    finally:
        copying.kill()
        copying.wait()
    assert filecmp.cmp(source, target, shallow=False)
