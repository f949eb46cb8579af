"""kill -9 of the MDS and of OSSes at steps of a file's way to an archive and back, with real processes."""

import os
import subprocess
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from nacrefs.client import devs3
from tests.harness.process import ProcessCluster, nacre, process_cluster, succeed, succeed_json
from tests.s3 import boto3_client

SMALL, LARGE = 300_000, 24 << 20

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def tier(tmp_path_factory: pytest.TempPathFactory) -> Generator[ProcessCluster]:
    with process_cluster(tmp_path_factory.mktemp("kills"), "--s3") as cluster:
        s3 = cluster.status()["s3"]
        where = ("--endpoint", s3["endpoint"], "--credentials-file", s3["credentials"])
        succeed("archive", "add", cluster.mount, "cold", f"s3://{s3['bucket']}/tier", *where)
        yield cluster


def arm(cluster: ProcessCluster, victims: tuple[str, ...], fault: str) -> None:
    """Start servers again with a fault in them."""
    for name in victims:
        cluster.kill(name)
    done = nacre("dev", "up", "--dir", cluster.directory, "--mount", cluster.mount, NACRE_FAULTS=fault)
    assert done.returncode == 0, done.stderr


def is_dead(cluster: ProcessCluster, victims: tuple[str, ...]) -> bool:
    """Whether one of them has been killed by its fault."""
    return any(not Path(f"/proc/{cluster.pid(name)}").exists() or _zombie(cluster.pid(name)) for name in victims)


def _zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_for(what: Any, why: str) -> None:
    """Until that is so; a minute at most."""
    for _ in range(600):
        if what():
            return
        time.sleep(0.1)
    raise AssertionError(f"not after a minute: {why}")


def wait_over(path: Path) -> dict[str, Any]:
    """Until nothing is done with the file any more; its state."""
    last: dict[str, Any] = {}

    def over() -> bool:
        nonlocal last
        (last,) = succeed_json("hsm", "state", path)
        return last["state"] in ("SUCCEED", "FAILED", "CANCELED", "")

    wait_for(over, f"{path} is at rest")
    return last


def no_object_without_owner(cluster: ProcessCluster) -> None:
    """The bucket has one object for each copy, no upload is left, and the filesystem is whole."""
    s3 = cluster.status()["s3"]
    keys = devs3.credentials_of(cluster.directory / "s3")
    client = boto3_client(
        "s3",
        endpoint_url=s3["endpoint"],
        aws_access_key_id=keys[0],
        aws_secret_access_key=keys[1],
        region_name="us-east-1",
    )
    try:

        def clean() -> bool:
            found = client.list_objects_v2(Bucket=s3["bucket"], Prefix="tier/").get("Contents", [])
            uploads = client.list_multipart_uploads(Bucket=s3["bucket"]).get("Uploads", [])
            (archive,) = succeed_json("archive", "list", cluster.mount)["archives"]
            return len(found) == archive["files"] and not uploads

        wait_for(clean, "every object has an owner")
    finally:
        client.close()


def a_file(cluster: ProcessCluster, name: str, size: int) -> tuple[Path, bytes]:
    data = os.urandom(size)
    path = cluster.mount / name
    path.write_bytes(data)
    os.sync()
    return path, data


def read_by_somebody_else(path: Path) -> bytes:
    """Without what this process's mount may have in its cache of the file."""
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return file.read()


def disarm(cluster: ProcessCluster, victims: tuple[str, ...]) -> None:
    """Start the killed ones again, and those in which the fault has not happened."""
    for name in victims:
        if not is_dead(cluster, (name,)):
            cluster.kill(name)
    cluster.up()


def victims_of(point: str) -> tuple[str, ...]:
    return ("mds",) if point.startswith("mds") else ("oss0", "oss1")


@pytest.mark.parametrize(
    ("point", "size"),
    [
        ("mds.archive.put", SMALL),
        ("oss.move.stored", SMALL),
        ("mds.archive.part", LARGE),
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
