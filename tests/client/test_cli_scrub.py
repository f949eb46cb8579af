"""`nacre scrub` and `nacre mirror` on a real cluster with a real mount."""

import json
import os
import time
from collections.abc import Generator
from pathlib import Path

import pytest

from nacrefs.client.cli.outcome import ExitCode
from tests.harness.process import ProcessCluster, fail, nacre, process_cluster, succeed, succeed_json

pytestmark = pytest.mark.timeout(180)
MIB = 1 << 20
CLEAN, LEFT, USAGE = 0, 4, 16


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Generator[ProcessCluster]:
    with process_cluster(tmp_path_factory.mktemp("scrub")) as running:
        yield running


def objects_of(cluster: ProcessCluster, path: Path) -> list[Path]:
    """The object files of a file."""
    name = f"{path.stat().st_ino:016x}."
    return sorted(one for one in cluster.directory.glob("ost*/objects/*/*/*") if one.name.startswith(name))


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))


def synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def test_a_flipped_bit_is_named_with_path_and_extent(cluster: ProcessCluster) -> None:
    mount = Path(cluster.mount)
    (mount / "dir").mkdir()
    synced(mount / "dir" / "file", os.urandom(300_000))
    done = nacre("scrub", "start", mount, "--wait", "--rate", "0", "--json")
    assert done.returncode == CLEAN, done
    report = json.loads(done.stdout)
    assert report["damages"] == []
    assert {one["state"] for one in report["osts"]} == {"done"}
    (path,) = objects_of(cluster, mount / "dir" / "file")
    flip(path, 70_000)
    done = nacre("scrub", "start", mount, "--wait", "--json")
    assert done.returncode == LEFT, done
    (damage,) = json.loads(done.stdout)["damages"]
    assert (damage["path"], damage["start"], damage["end"]) == ("/dir/file", 65536, 131072)
    assert damage["state"] == "left"
    done = nacre("scrub", "files", "-r", mount / "dir")
    assert done.returncode == LEFT, done
    assert "/dir/file" in done.stdout
    assert "bytes 65536 to 131072" in done.stdout
    flip(path, 70_000)
    assert nacre("scrub", "files", mount / "dir" / "file").returncode == CLEAN
    assert "done" in nacre("scrub", "status", mount).stdout
    assert nacre("scrub", "files", mount / "dir").returncode == USAGE
    assert nacre("scrub", "start", mount, "--ost", "99").returncode == 8


def test_copies_are_shown_verified_and_mended(cluster: ProcessCluster) -> None:
    mount = Path(cluster.mount)
    (mount / "safe").mkdir()
    succeed("setstripe", "-m", "2", mount / "safe")
    assert "2 mirrors" in succeed("getstripe", mount / "safe")
    contents = os.urandom(2 * MIB)
    file = mount / "safe" / "file"
    synced(file, contents)
    (described,) = succeed_json("getstripe", file)
    assert described["mirrors"] == 2
    assert len(described["osts"]) == 2
    assert described["copies"] == ["good", "good"]
    assert succeed("mirror", "status", mount) == "all copies are good\n"
    assert nacre("mirror", "verify", "-r", mount / "safe").returncode == CLEAN
    one, other = objects_of(cluster, file)
    flip(one, MIB)
    done = nacre("mirror", "verify", file, "--json")
    assert done.returncode == LEFT, done
    assert [damage["state"] for damage in json.loads(done.stdout)["damages"]] == ["mending"]
    assert succeed_json("mirror", "status", mount, "--wait") == {"copies": []}
    assert one.read_bytes() == other.read_bytes() == contents
    assert succeed_json("mirror", "resync", file, "--wait") == {"copies": []}


def test_an_ost_is_lost_while_files_are_written_and_returns(cluster: ProcessCluster) -> None:
    mount = Path(cluster.mount)
    file = mount / "safe" / "busy"
    contents = bytearray(os.urandom(4 * MIB))
    synced(file, bytes(contents))
    server = next(name for name in ("oss0", "oss1") if _serves(cluster, name, objects_of(cluster, file)[0]))
    with file.open("r+b", buffering=0) as written:
        for number in range(40):
            if number == 10:
                cluster.kill(server)
            at = number * 97_001
            contents[at : at + 50_000] = piece = os.urandom(50_000)
            os.pwrite(written.fileno(), piece, at)
            if number % 8 == 7:
                os.fsync(written.fileno())
        os.fsync(written.fileno())
    copies = succeed_json("mirror", "status", file)["copies"]
    assert [copy["state"] for copy in copies] == ["lost"]
    assert copies[0]["path"] == "/safe/busy"
    assert "LOST" in succeed("getstripe", file).upper()
    assert file.read_bytes() == contents
    cluster.up()
    assert succeed_json("mirror", "status", mount, "--wait") == {"copies": []}
    assert nacre("mirror", "verify", file).returncode == CLEAN
    assert {path.read_bytes() for path in objects_of(cluster, file)} == {bytes(contents)}


def test_copies_of_an_ost_that_is_lost_for_good_move_to_others(cluster: ProcessCluster) -> None:
    mount = Path(cluster.mount)
    file = mount / "safe" / "moved"
    contents = os.urandom(MIB)
    synced(file, contents)
    (described,) = succeed_json("getstripe", file)
    lost = described["osts"][0]
    first = next(path for path in objects_of(cluster, file) if path.name.endswith(".0"))
    cluster.kill(next(name for name in ("oss0", "oss1") if _serves(cluster, name, first)))
    while any(ost["index"] == lost and ost["up"] for ost in succeed_json("df", mount)["osts"]):
        time.sleep(0.1)
    succeed("mirror", "replace", mount, str(lost), "--wait")
    (described,) = succeed_json("getstripe", file)
    assert lost not in described["osts"]
    assert described["copies"] == ["good", "good"]
    assert file.read_bytes() == contents
    cluster.up()
    assert nacre("mirror", "verify", file).returncode == CLEAN
    assert nacre("fsck", mount, "--grace", "0").returncode == CLEAN


def _serves(cluster: ProcessCluster, name: str, path: Path) -> bool:
    """Whether a server has the OST on which an object lies."""
    configuration = (cluster.directory / "conf" / f"{name}.toml").read_text()
    return str(path.parents[3]) in configuration


def test_mistakes_are_named(cluster: ProcessCluster) -> None:
    mount = Path(cluster.mount)
    assert "stop its server first" in fail(ExitCode.BUSY, "mirror", "replace", mount, "0")
    assert "no OST 99" in fail(ExitCode.USAGE, "mirror", "replace", mount, "99")
    plain = mount / "plain"
    plain.write_bytes(b"x")
    assert "no copies" in fail(ExitCode.USAGE, "mirror", "resync", plain)
