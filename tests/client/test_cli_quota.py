"""`nacre quota` on a real cluster with a real mount."""

import errno
import os
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from nacrefs.client.cli.outcome import ExitCode
from tests.harness.process import ProcessCluster, fail, process_cluster, succeed, succeed_json

pytestmark = pytest.mark.timeout(120)
MIB = 1 << 20
KEYS = {
    "kind", "id", "name", "used_bytes", "soft_bytes", "hard_bytes", "grace_bytes_s", "bytes_until", "used_inodes",
    "soft_inodes", "hard_inodes", "grace_inodes_s", "inodes_until",
}  # fmt: skip


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Generator[ProcessCluster]:
    with process_cluster(tmp_path_factory.mktemp("quota")) as running:
        yield running


def _until_full(work: Callable[[int], int]) -> int:
    """The sum of what `work` returns until it fails, which must be with EDQUOT."""
    done = 0
    while True:
        try:
            done += work(done)
        except OSError as error:
            assert error.errno == errno.EDQUOT, error
            return done


def test_limits_are_set_shown_listed_and_removed(cluster: ProcessCluster) -> None:
    mount = cluster.mount
    done = succeed_json("quota", "set", mount, "-u", "4711", "--soft", "10GiB", "--hard", "1T", "--grace", "30d")
    assert done.keys() == KEYS
    assert (done["soft_bytes"], done["hard_bytes"], done["grace_bytes_s"]) == (10 << 30, 1 << 40, 30 * 86400)
    done = succeed_json("quota", "set", mount, "-u", "4711", "--hard-inodes", "1000", "--soft", "0")
    assert (done["soft_bytes"], done["hard_bytes"], done["hard_inodes"]) == (None, 1 << 40, 1000)
    assert succeed_json("quota", "get", cluster.url, "-u", "4711", "--keyring", cluster.keyring) == done
    assert done in succeed_json("quota", "list", mount)["quotas"]
    assert done not in succeed_json("quota", "list", mount, "-g", "-p")["quotas"]
    assert "4711" in succeed("quota", "list", mount, "-u")
    assert succeed_json("quota", "rm", mount, "-u", "4711")["hard_bytes"] is None
    assert done["id"] not in [one["id"] for one in succeed_json("quota", "list", mount, "-u")["quotas"]]


def test_a_projects_directory_ends_where_its_quota_does_and_df_shows_it(cluster: ProcessCluster) -> None:
    home = Path(cluster.mount) / "home"
    home.mkdir()
    (home / "before").write_bytes(bytes(MIB))
    assert succeed_json("quota", "project", home)["project"] == 0
    assert succeed_json("quota", "project", home, "--id", "9", "-r")["changed"] == 2
    succeed("quota", "set", cluster.mount, "-p", "9", "--hard", "4M", "--hard-inodes", "10")
    space = os.statvfs(home)
    assert space.f_blocks * space.f_bsize == 4 * MIB
    assert space.f_favail + succeed_json("quota", "get", cluster.mount, "-p", "9")["used_inodes"] == 10
    with (home / "big").open("wb", buffering=0) as file:
        written = _until_full(lambda _: file.write(bytes(100_000)))
    assert 3 * MIB - 65536 <= written <= 3 * MIB
    used = succeed_json("quota", "get", cluster.mount, "-p", "9")["used_bytes"]
    assert used <= 4 * MIB + 65536
    made = _until_full(lambda number: (home / f"empty{number}").write_bytes(b"") + 1)
    assert 0 < made < 10
    outside = Path(cluster.mount) / "outside"
    outside.touch()
    with pytest.raises(OSError, match=os.strerror(errno.EXDEV)):
        outside.rename(home / "outside")
    (home / "big").unlink()
    (home / "small").write_bytes(b"there is room again")


def test_check_counts_again(cluster: ProcessCluster) -> None:
    assert succeed_json("quota", "check", cluster.mount) == {"drifts": [], "repaired": False}
    assert succeed("quota", "check", cluster.mount, "--repair") == "nothing is wrong\n"


def test_mistakes_are_named(cluster: ProcessCluster, tmp_path: Path) -> None:
    mount = cluster.mount
    assert "one of --user" in fail(ExitCode.USAGE, "quota", "get", mount)
    assert "one of --user" in fail(ExitCode.USAGE, "quota", "get", mount, "-u", "1", "-g", "1")
    assert "no user 'nobody-here'" in fail(ExitCode.USAGE, "quota", "get", mount, "-u", "nobody-here")
    assert "say which limit" in fail(ExitCode.USAGE, "quota", "set", mount, "-u", "1")
    assert "not a size" in fail(ExitCode.USAGE, "quota", "set", mount, "-u", "1", "--hard", "much")
    assert "above the hard" in fail(ExitCode.USAGE, "quota", "set", mount, "-u", "1", "--hard", "1", "--soft", "2")
    assert "not on a nacrefs mount" in fail(ExitCode.NOT_FOUND, "quota", "project", tmp_path)
