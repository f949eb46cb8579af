"""Killing servers at fault points, and what must be true afterwards: for tests of the lifecycle tier and of links."""

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nacrefs.client.dev import s3 as devs3
from tests.harness.process import ProcessCluster, nacre, succeed_json
from tests.s3 import boto3_client


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


def wait_for(what: Callable[[], Any], why: str) -> None:
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
    """A new file in the mount, stored."""
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
    """Whose fault point it is."""
    return ("mds",) if point.startswith("mds") else ("oss0", "oss1")


def killed(cluster: ProcessCluster, fault: str, *command: str | Path) -> tuple[int, bytes]:
    """Run a command with a fault in the servers, which are started again once it has happened; the command's exit code
    and what it printed."""
    victims = victims_of(fault)
    arm(cluster, victims, fault)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        wait_for(lambda: is_dead(cluster, victims), f"the fault at {fault}")
        disarm(cluster, victims)
        printed = process.communicate(timeout=120)[0]
    return process.returncode, printed
