"""kill -9 of the MDS, of OSSes and of a mount at steps of a file's way to an archive and back, with real processes.

A step is a fault point (`common/faults.py`); `after=N` passes it N times. Afterwards no byte is lost, every object has
an owner, and no file is stuck: what was asked for can be asked for again, and is done.
"""

import subprocess
from collections.abc import Generator

import pytest

from tests.cluster.killing import (
    a_file,
    arm,
    disarm,
    is_dead,
    killed,
    no_object_without_owner,
    read_by_somebody_else,
    victims_of,
    wait_for,
    wait_over,
)
from tests.harness.process import NACRE, ProcessCluster, nacre, process_cluster, succeed, succeed_json

SMALL, LARGE = 300_000, 24 << 20

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def tier(tmp_path_factory: pytest.TempPathFactory, engine: str) -> Generator[ProcessCluster]:
    with process_cluster(tmp_path_factory.mktemp("kills"), "--s3", "--engine", engine) as cluster:
        s3 = cluster.status()["s3"]
        where = ("--endpoint", s3["endpoint"], "--credentials-file", s3["credentials"])
        succeed("archive", "add", cluster.mount, "cold", f"s3://{s3['bucket']}/tier", *where)
        yield cluster


@pytest.mark.parametrize(
    ("point", "size"),
    [
        ("mds.archive.put", SMALL),
        ("oss.move.stored", SMALL),
        pytest.param("mds.archive.part", LARGE, marks=pytest.mark.slow),
        pytest.param("mds.archive.put", LARGE, marks=pytest.mark.slow),
        pytest.param("oss.move.collected", LARGE, marks=pytest.mark.slow),
        pytest.param("mds.archive.begun", LARGE, marks=pytest.mark.slow),
    ],
)
def test_killed_while_it_goes_out(tier: ProcessCluster, point: str, size: int) -> None:
    path, data = a_file(tier, f"out-{point}-{size}", size)
    victims = victims_of(point)
    arm(tier, victims, f"{point}=kill")
    nacre("hsm", "archive", path)
    wait_for(lambda: is_dead(tier, victims), f"the fault at {point}")
    if point == "oss.move.stored":  # the next attempt has another name to make a key of
        path = path.rename(path.with_suffix(".renamed"))
    disarm(tier, victims)
    state = wait_over(path)
    if "archived" not in state["names"]:  # the order was lost with the MDS, or it was given up: it is told
        succeed("hsm", "archive", "--wait", path)
    succeed("hsm", "release", "--wait", path)
    assert read_by_somebody_else(path) == data
    wait_over(path)
    no_object_without_owner(tier)


@pytest.mark.parametrize(
    ("point", "size"),
    [
        ("mds.restore.part", LARGE),
        ("oss.move.written", SMALL),
    ],
)
def test_killed_while_it_comes_back(tier: ProcessCluster, point: str, size: int) -> None:
    path, data = a_file(tier, f"back-{point}-{size}", size)
    succeed("hsm", "archive", "--wait", path)
    victims = victims_of(point)
    arm(tier, victims, f"{point}=kill")
    succeed("hsm", "release", "--wait", path)
    with subprocess.Popen(["cat", path], stdout=subprocess.PIPE) as reader:
        wait_for(lambda: is_dead(tier, victims), f"the fault at {point}")
        disarm(tier, victims)
        assert reader.communicate(timeout=120)[0] == data
    assert reader.returncode == 0
    assert wait_over(path)["names"] == ["exists", "archived"]
    assert read_by_somebody_else(path) == data
    no_object_without_owner(tier)


def commits(subject: str, *numbers: int) -> list[str]:
    """Before and after some commits."""
    return [f"mds.commit.{when}=kill match={subject} after={n}" for when in ("before", "after") for n in numbers]


ARCHIVE, RELEASE, RECALL, REMOVE = "archive", "release", "recall", "remove"
STEPS: dict[tuple[str, int], list[str]] = {
    (ARCHIVE, SMALL): [*commits("put_action", 0, 1, 2), "oss.move.collected=kill"],
    (ARCHIVE, LARGE): [*commits("put_action", 2), "oss.move.collected=kill after=1", "oss.move.stored=kill after=1"],
    (RELEASE, SMALL): commits("put_action", 0, 1),
    (RECALL, SMALL): [
        *commits("put_action", 0, 1), *commits("put_hsm", 0), "oss.move.fetched=kill", "mds.restore.synced=kill",
    ],
    (RECALL, LARGE): ["oss.move.fetched=kill after=1", "oss.move.written=kill after=1", "mds.restore.synced=kill"],
    (REMOVE, SMALL): [*commits("put_action", 0, 1), *commits("put_gone", 0)],
}  # fmt: skip
SHORT = {(ARCHIVE, LARGE, "oss.move.stored=kill after=1"), (RECALL, SMALL, commits("put_action", 1)[1])}


@pytest.mark.parametrize(
    ("verb", "size", "fault"),
    [
        pytest.param(verb, size, fault, marks=[] if (verb, size, fault) in SHORT else pytest.mark.slow)
        for (verb, size), faults in STEPS.items()
        for fault in faults
    ],
)
def test_killed_at_every_step(tier: ProcessCluster, verb: str, size: int, fault: str) -> None:
    name = "".join(char if char.isalnum() else "-" for char in f"{verb}-{size}-{fault}")
    path, data = a_file(tier, name, size)
    if verb != ARCHIVE:
        succeed("hsm", "archive", "--wait", path)
    if verb == RECALL:
        succeed("hsm", "release", "--wait", path)
        assert killed(tier, fault, "cat", path) == (0, data)
    else:
        killed(tier, fault, NACRE, "hsm", verb, "--wait", path)
        wait_over(path)
        succeed("hsm", verb, "--wait", path)  # there is nothing left to do, or it can be done
    wait_over(path)
    (state,) = succeed_json("hsm", "state", path)
    wanted = {ARCHIVE: ["exists", "archived"], RELEASE: ["released", "exists", "archived"], REMOVE: []}
    assert state["names"] == wanted.get(verb, ["exists", "archived"])
    assert read_by_somebody_else(path) == data
    wait_over(path)
    no_object_without_owner(tier)


@pytest.mark.slow
def test_a_mount_that_is_killed_while_it_waits_for_a_recall(tier: ProcessCluster) -> None:
    path, data = a_file(tier, "waiting", SMALL)
    succeed("hsm", "archive", "--wait", path)
    succeed("hsm", "release", "--wait", path)
    tier.kill("s3")
    with subprocess.Popen(["cat", path], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as reader:
        wait_for(lambda: succeed_json("hsm", "state", path)[0]["action"] == "restore", "it is read")
        tier.kill("mount")
        tier.up()
        reader.communicate(timeout=120)
    assert reader.returncode != 0
    assert read_by_somebody_else(path) == data
    assert wait_over(path)["names"] == ["exists", "archived"]
    no_object_without_owner(tier)
