"""`nacre link` and `nacre warmup` on real processes, a real mount and a real S3 server."""

import os
from collections.abc import Generator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.harness.process import ProcessCluster, fail, nacre, process_cluster, succeed, succeed_json

boto3_client: Any = import_module("boto3").client
DATA = os.urandom(3_000_000)


class Bucket:
    """What others do in the bucket of a cluster's S3 server."""

    def __init__(self, s3: dict[str, str]) -> None:
        lines = Path(s3["credentials"]).read_text().splitlines()
        keys = dict(line.split(" = ") for line in lines if " = " in line)
        self.name = s3["bucket"]
        self.where = ("--endpoint", s3["endpoint"], "--credentials-file", s3["credentials"])
        self.client = boto3_client("s3", endpoint_url=s3["endpoint"], region_name="us-east-1", **keys)

    def put(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.name, Key=key, Body=data)
        self.client.close()  # until the next request


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Generator[ProcessCluster]:
    with process_cluster(tmp_path_factory.mktemp("links"), "--s3") as made:
        yield made


@pytest.fixture(scope="module")
def bucket(cluster: ProcessCluster) -> Bucket:
    return Bucket(cluster.status()["s3"])


def test_a_day_with_a_link(cluster: ProcessCluster, bucket: Bucket) -> None:
    for number in range(5):
        bucket.put(f"train/set/{number}", DATA[number:])
    directory = cluster.mount / "train"
    text = succeed("link", "create", directory, f"s3://{bucket.name}/train", *bucket.where)
    assert text == "link 1: 5 keys, 5 new, 0 changed, 0 deleted\n"
    assert sorted(os.listdir(directory / "set")) == list("01234")
    assert (directory / "set" / "3").stat().st_size == len(DATA) - 3
    assert (directory / "set" / "3").read_bytes() == DATA[3:]
    assert "released exists archived" in succeed("hsm", "state", directory / "set" / "0")
    done = nacre("warmup", directory, "--check")
    assert done.returncode == 1
    assert "nacre: /train/set/0: it is in the bucket only\n" in done.stderr
    assert "5 files, 1 are here, 4 missing" in done.stdout
    job = succeed_json("warmup", "--limit-mibps", "1000", directory)
    assert job["rate_bytes"] == 1000 << 20
    assert "not with --check" in fail(2, "warmup", "--limit-mibps", "1", "--check", directory)
    assert (job["state"], job["files"], job["moved"], job["failed"]) == ("done", 5, 4, 0)
    assert "5 are here" in succeed("warmup", "--check", directory)
    bucket.put("train/set/0", b"new contents")
    bucket.put("train/more", b"")
    assert "6 keys, 1 new, 1 changed" in succeed("link", "refresh", directory)
    assert (directory / "set" / "0").read_bytes() == b"new contents"
    (one,) = succeed_json("link", "list", cluster.mount)["links"]
    assert (one["path"], one["files"], one["state"], one["released"]) == ("/train", 6, "active", 0)
    assert "/train" in succeed("link", "list", cluster.mount)
    assert "files: 6 of" in succeed("link", "show", directory)
    assert len(succeed("link", "log", directory).splitlines()) == 3
    assert succeed("link", "log", "--problems", directory) == ""
    assert "link-1" not in succeed("archive", "list", cluster.mount)


def test_schedules_pausing_and_the_end_of_a_link(cluster: ProcessCluster, bucket: Bucket) -> None:
    bucket.put("other/file", b"x")
    directory = cluster.mount / "other"
    link = succeed_json(
        "link", "create", directory, f"s3://{bucket.name}/other", *bucket.where, "--every", "1h", "--async"
    )
    assert (link["every_s"], link["cron"]) == (3600, "")
    link = succeed_json("link", "refresh", directory, "--cron", "0 3 * * *", "--conflict", "skip")
    assert (link["every_s"], link["cron"], link["conflict"]) == (0, "0 3 * * *", "skip")
    assert succeed_json("link", "refresh", directory, "--every", "never", "--now")["cron"] == ""
    succeed("link", "pause", directory)
    assert "paused" in fail(6, "link", "refresh", directory)
    succeed("link", "resume", directory)
    assert "overlap" in fail(6, "link", "create", cluster.mount / "again", f"s3://{bucket.name}/other", *bucket.where)
    assert "no bucket is linked" in fail(3, "link", "show", cluster.mount)
    assert "not a cron expression" in fail(2, "link", "refresh", directory, "--cron", "often")
    assert "--purge" in fail(6, "link", "rm", directory)
    (directory / "file").read_bytes()
    succeed("warmup", directory)
    succeed("link", "rm", directory)
    assert (directory / "file").read_bytes() == b"x"
    assert "no bucket is linked" in fail(3, "link", "show", directory)


def test_names_are_there_and_bytes_come_after_every_server_was_killed(cluster: ProcessCluster, bucket: Bucket) -> None:
    for number in range(40):
        bucket.put(f"killed/{number}", DATA[number : number + 100_000])
    directory = cluster.mount / "killed"
    succeed("link", "create", directory, f"s3://{bucket.name}/killed", *bucket.where, "--async", "--every", "1s")
    number = succeed_json("warmup", "--async", directory)["id"]
    for name in ("mds", "oss0", "oss1", "mds"):
        cluster.kill(name)
        cluster.up()
    assert "keys" in succeed("link", "refresh", directory)
    assert len(os.listdir(directory)) == 40
    succeed("warmup", "status", cluster.mount, str(number), "--wait")
    assert succeed_json("warmup", directory)["failed"] == 0
    for number in range(40):
        assert (directory / str(number)).read_bytes() == DATA[number : number + 100_000]


def test_what_is_written_is_read_by_others_and_outlives_kills(cluster: ProcessCluster, bucket: Bucket) -> None:
    directory = cluster.mount / "sent"
    export = ("--auto-export", "new,changed,deleted")
    succeed("link", "create", directory, f"s3://{bucket.name}/sent", *bucket.where, *export)
    contents = {f"d{number % 3}/{number}": DATA[number : number + 200_000] for number in range(30)}
    for number in range(3):
        (directory / f"d{number}").mkdir()
    for name, data in contents.items():
        (directory / name).write_bytes(data)
    for name in ("mds", "oss0", "oss1"):
        cluster.kill(name)
        cluster.up()
    (directory / "d0").rename(directory / "moved")
    succeed("link", "flush", directory)
    for name, data in contents.items():
        key = f"sent/{name.replace('d0/', 'moved/')}"
        assert bucket.client.get_object(Bucket=bucket.name, Key=key)["Body"].read() == data
    bucket.client.close()
    link = succeed_json("link", "show", directory)
    assert (link["unsent"], link["auto_export"], link["files"]) == (0, ["new", "changed", "deleted"], 30)
    assert "0 are to be sent" in succeed("link", "show", directory)


def test_jobs_are_listed_and_wrong_usage_is_told(cluster: ProcessCluster, tmp_path: Path) -> None:
    path = cluster.mount / "plain"
    path.write_text("x")
    number = succeed_json("warmup", "--async", path)["id"]
    assert f"job {number} done: 1 files" in succeed("warmup", "status", cluster.mount, str(number), "--wait")
    assert any(line.split()[0] == str(number) for line in succeed("warmup", "list", cluster.mount).splitlines()[1:])
    succeed("warmup", "cancel", cluster.mount, str(number))
    assert succeed_json("warmup", "status", cluster.mount, str(number))["state"] == "done"
    listing = tmp_path / "list"
    listing.write_bytes(os.fsencode(path) + b"\0")
    assert succeed_json("warmup", "-0", "-f", listing)["here"] == 1
    assert "there is no warmup job 99" in fail(3, "warmup", "--after", "99", path)
    assert nacre("warmup", tmp_path).returncode == 3
    assert nacre("warmup").returncode == 2
