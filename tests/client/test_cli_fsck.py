"""`nacre fsck` on a real cluster with a real mount."""

import json
import sqlite3
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.harness.process import ProcessCluster, nacre, process_cluster

pytestmark = pytest.mark.timeout(120)
CLEAN, MENDED, LEFT, USAGE, FAILED = 0, 1, 4, 16, 8


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Generator[ProcessCluster]:
    with process_cluster(tmp_path_factory.mktemp("fsck")) as running:
        yield running


def damage(cluster: ProcessCluster, sql: str) -> None:
    """Change the database of the MDS while it is down."""
    cluster.kill("mount")
    cluster.kill("mds")
    (database,) = (cluster.directory / "mdt").glob("*.sqlite")
    with sqlite3.connect(database) as connection:
        connection.execute(sql)
    connection.close()
    cluster.up()


def test_damage_is_told_mended_and_gone(cluster: ProcessCluster) -> None:
    mount = Path(cluster.mount)
    (mount / "dir").mkdir()
    (mount / "dir" / "file").write_text("contents")
    number = (mount / "dir" / "file").stat().st_ino
    damage(cluster, f"UPDATE inode SET nlink = 5 WHERE fid = {number}")
    done = nacre("fsck", mount)
    assert done.returncode == LEFT, done
    assert "/dir/file" in done.stdout
    assert "has link count 5 but 1 names: can be mended" in done.stdout
    assert "1 of them can be mended with --repair" in done.stdout
    done = nacre("fsck", mount / "dir", "--repair", "--json")
    assert done.returncode == MENDED, done
    report = json.loads(done.stdout)
    assert report.keys() == {"clean", "exit_code", "inodes", "objects", "error", "unchecked", "problems"}
    (problem,) = report["problems"]
    assert problem.keys() == {"kind", "fid", "path", "text", "repair", "mend"}
    assert (problem["kind"], problem["path"], problem["repair"]) == ("link-count", "/dir/file", "mended")
    assert (mount / "dir" / "file").stat().st_nlink == 1
    done = nacre("fsck", cluster.url, "--keyring", cluster.keyring)
    assert done.returncode == CLEAN, done
    assert "nothing is wrong" in done.stdout


def test_mistakes_end_as_e2fsck_ends(cluster: ProcessCluster, tmp_path: Path) -> None:
    for arguments, code, words in (
        ((), USAGE, "Missing argument"),
        ((cluster.mount, "--grace", "soon"), USAGE, "soon"),
        ((tmp_path,), FAILED, "not on a nacrefs mount"),
        ((Path(cluster.mount) / "absent",), FAILED, "No such file"),
    ):
        done = nacre("fsck", *arguments)
        assert done.returncode == code, done
        assert words in done.stderr
        assert done.stderr.count("\n") == 1
