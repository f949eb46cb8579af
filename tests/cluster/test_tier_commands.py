"""`nacre archive` and `nacre hsm` on real processes, a real mount and a real S3 server."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.cluster.killing import wait_for
from tests.harness.process import ProcessCluster, fail, nacre, process_cluster, succeed, succeed_json

SIZE = 24 << 20


@pytest.fixture(scope="module")
def tier(tmp_path_factory: pytest.TempPathFactory) -> Generator[ProcessCluster]:
    with process_cluster(tmp_path_factory.mktemp("tier"), "--s3") as cluster:
        s3 = cluster.status()["s3"]
        where = ("--endpoint", s3["endpoint"], "--credentials-file", s3["credentials"])
        succeed("archive", "add", cluster.mount, "cold", f"s3://{s3['bucket']}/tier", *where)
        yield cluster


def released(cluster: ProcessCluster, name: str, data: bytes) -> Path:
    """A file whose bytes are in S3 only."""
    path = cluster.mount / name
    path.write_bytes(data)
    succeed("hsm", "archive", "--wait", path)
    succeed("hsm", "release", "--wait", path)
    assert succeed("hsm", "state", path) == f"{path}: (0x0000000d) released exists archived, archive_id:1\n"
    return path


def test_mapping_brings_it_back(tier: ProcessCluster) -> None:
    data = os.urandom(SIZE)
    path = released(tier, "mapped", data)
    script = (
        "import mmap, os, sys, hashlib\n"
        "with open(sys.argv[1], 'rb') as f, mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) as m:\n"
        "    print(hashlib.sha256(m).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == hashlib.sha256(data).hexdigest()
    assert "RESTORE" in succeed("hsm", "action", path)


def test_executing_brings_it_back(tier: ProcessCluster) -> None:
    path = released(tier, "program", Path("/bin/true").read_bytes())
    path.chmod(0o755)
    assert "released" in succeed("hsm", "state", path)
    subprocess.run([path], check=True, timeout=60)
    assert "released" not in succeed("hsm", "state", path)


def test_what_runs_or_is_mapped_is_not_released(tier: ProcessCluster) -> None:
    program, mapped = tier.mount / "running", tier.mount / "held"
    program.write_bytes(Path("/bin/sleep").read_bytes())
    program.chmod(0o755)
    mapped.write_bytes(os.urandom(300_000))
    succeed("hsm", "archive", "--wait", program, mapped)
    script = (
        "import mmap, sys\n"
        "with open(sys.argv[1], 'rb') as f:\n"
        "    m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)\n"
        "print('mapped', flush=True)\n"
        "sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(mapped)]
    with (
        subprocess.Popen([program, "600"]) as running,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder,
    ):
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"mapped\n"
            done = nacre("hsm", "release", "--wait", program, mapped)
        finally:
            running.kill()
            holder.kill()
    assert (done.returncode, done.stderr.count("it is open")) == (1, 2)
    wait_for(lambda: nacre("hsm", "release", "--wait", program, mapped).returncode == 0, "their being closed")


def test_the_mds_is_killed_while_it_comes_back(tier: ProcessCluster) -> None:
    data = os.urandom(SIZE)
    path = released(tier, "killed", data)
    with subprocess.Popen(["cat", path], stdout=subprocess.PIPE) as reader:
        tier.kill("mds")
        tier.up()
        assert reader.communicate(timeout=60)[0] == data
    assert reader.returncode == 0


def test_an_oss_is_killed_while_it_goes_out_and_comes_back(tier: ProcessCluster) -> None:
    data = os.urandom(SIZE)
    path = tier.mount / "oss-killed"
    path.write_bytes(data)
    os.sync()
    succeed("hsm", "archive", path)
    tier.kill("oss0")
    tier.up()
    succeed("hsm", "archive", "--wait", path)
    succeed("hsm", "release", "--wait", path)
    with subprocess.Popen(["cat", path], stdout=subprocess.PIPE) as reader:
        tier.kill("oss1")
        tier.up()
        assert reader.communicate(timeout=60)[0] == data


def test_lists_of_files_and_what_cannot_be_done(tier: ProcessCluster, tmp_path: Path) -> None:
    paths = [tier.mount / f"list {number}\n" for number in range(5)]
    for path in paths:
        path.write_text("small")
    listing = tmp_path / "list"
    listing.write_bytes(b"\0".join(os.fsencode(path) for path in paths))
    succeed("hsm", "archive", "--wait", "-0", "-f", listing)
    states = succeed_json("hsm", "state", "-0", "-f", listing)
    assert {tuple(one["names"]) for one in states} == {("exists", "archived")}
    succeed("hsm", "set", "--norelease", paths[0])
    done = nacre("hsm", "release", "--wait", *paths)
    assert done.returncode == 1
    assert "it is marked norelease" in done.stderr
    assert paths[1].read_text() == "small"
    assert "there is no archive 9" in fail(1, "hsm", "archive", "-a", "9", paths[0])
    assert "there is no archive" in fail(3, "hsm", "archive", "-a", "nowhere", paths[0])
    plain = tier.mount / "plain"
    plain.write_text("x")
    assert "it is not archived" in fail(1, "hsm", "release", plain)
    assert "not a file in a mount" in fail(3, "hsm", "state", listing)


def test_secrets_are_nowhere(tier: ProcessCluster) -> None:
    keys = [
        line.split(" = ")[1]
        for line in (tier.directory / "s3" / "credentials").read_text().splitlines()
        if " = " in line
    ]
    shown = succeed("archive", "list", tier.mount) + succeed("archive", "show", tier.mount, "cold")
    places = [shown.encode(), *(path.read_bytes() for path in (tier.directory / "mdt").iterdir())]
    places += [path.read_bytes() for path in (tier.directory / "log").iterdir() if path.name != "s3.log"]
    places += [Path(f"/proc/{tier.pid(name)}/cmdline").read_bytes() for name in ("mds", "oss0", "s3", "mount")]
    for key in keys:
        assert not any(key.encode() in place for place in places)
