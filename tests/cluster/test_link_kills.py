"""kill -9 of the MDS and of OSSes at steps of links, exports and warmups, with real processes.

Afterwards directory and bucket have the same, and what was asked for is there once.
"""

import json
import os
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.cluster.killing import killed
from tests.cluster.test_link_commands import Bucket
from tests.cluster.test_tier_kills import commits
from tests.harness.process import NACRE, ProcessCluster, process_cluster, succeed, succeed_json

pytestmark = pytest.mark.timeout(400)
SIZE = 200_000


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, engine: str) -> Generator[ProcessCluster]:
    with process_cluster(tmp_path_factory.mktemp("linkkills"), "--s3", "--engine", engine) as made:
        yield made


@pytest.fixture(scope="module")
def bucket(cluster: ProcessCluster) -> Bucket:
    return Bucket(cluster.status()["s3"])


def steps(short: str, *faults: str) -> pytest.MarkDecorator:
    """All of these; one of them in `make test`, too."""
    return pytest.mark.parametrize(
        "fault", [pytest.param(fault, marks=[] if fault == short else pytest.mark.slow) for fault in faults]
    )


def named(fault: str) -> str:
    return "".join(char if char.isalnum() else "-" for char in fault)


def filled(bucket: Bucket, prefix: str) -> dict[str, bytes]:
    """Some objects."""
    contents = {f"d{number % 2}/{number}": os.urandom(SIZE) for number in range(6)}
    for key, data in contents.items():
        bucket.put(f"{prefix}/{key}", data)
    return contents


def read_all(directory: Path) -> dict[str, bytes]:
    """What is below a directory."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


CREATE = [*commits("put_archive", 0), *commits("put_link_object", 0)]


@steps(CREATE[1], *CREATE)
def test_killed_while_a_link_is_made(cluster: ProcessCluster, bucket: Bucket, fault: str) -> None:
    prefix = f"create-{named(fault)}"
    contents = filled(bucket, prefix)
    directory = cluster.mount / prefix
    target = f"s3://{bucket.name}/{prefix}"
    code, printed = killed(cluster, fault, NACRE, "link", "create", directory, target, *bucket.where, "--json")
    assert code == 0  # as if nothing had happened
    (link,) = [one for one in succeed_json("link", "list", cluster.mount)["links"] if one["url"] == target]
    assert json.loads(printed)["id"] == link["id"]
    succeed("link", "refresh", directory)
    assert read_all(directory) == contents
    succeed("link", "rm", directory)


EXPORT = [
    *commits("put_action", 0, 1, 2), "mds.archive.put=kill", "oss.move.collected=kill", "oss.move.stored=kill",
]  # fmt: skip


@steps("oss.move.stored=kill", *EXPORT)
def test_killed_while_files_are_sent(cluster: ProcessCluster, bucket: Bucket, fault: str) -> None:
    prefix = f"export-{named(fault)}"
    directory = cluster.mount / prefix
    export = ("--auto-export", "new,changed,deleted")
    succeed("link", "create", directory, f"s3://{bucket.name}/{prefix}", *bucket.where, *export)
    contents = {str(number): os.urandom(SIZE) for number in range(4)}
    script = "".join(f"cp {cluster.directory.parent}/{prefix}-{name} {directory}/{name};" for name in contents)
    for name, data in contents.items():
        (cluster.directory.parent / f"{prefix}-{name}").write_bytes(data)
    killed(cluster, fault, "sh", "-c", f"ln -s 0 {directory}/link; {script} {NACRE} link flush {directory}")
    succeed("link", "flush", directory)
    (directory / "0").unlink()
    del contents["0"]
    succeed("link", "flush", directory)
    refreshed = succeed_json("link", "refresh", directory)["last"]
    assert (refreshed["changed"], refreshed["conflicts"], refreshed["new"]) == (0, 0, 0)
    assert read_all(directory) == contents
    assert os.readlink(directory / "link") == "0"
    for name, data in (contents | {"link": b"0"}).items():
        answer = bucket.client.get_object(Bucket=bucket.name, Key=f"{prefix}/{name}")
        assert answer["Body"].read() == data
    bucket.client.close()
    assert succeed_json("link", "show", directory)["unsent"] == 0


WARMUP = [*commits("put_warmup", 0), "mds.restore.part=kill after=2", "oss.move.written=kill after=2"]


@steps(WARMUP[2], *WARMUP)
def test_killed_while_a_warmup_runs(cluster: ProcessCluster, bucket: Bucket, fault: str) -> None:
    prefix = f"warmup-{named(fault)}"
    contents = filled(bucket, prefix)
    directory = cluster.mount / prefix
    succeed("link", "create", directory, f"s3://{bucket.name}/{prefix}", *bucket.where)
    killed(cluster, fault, NACRE, "warmup", directory)
    assert succeed_json("warmup", directory)["failed"] == 0
    assert "6 are here" in succeed("warmup", "--check", directory)
    assert read_all(directory) == contents
