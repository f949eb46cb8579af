"""Every command on a real cluster with a real mount: what it does, what `--json` promises, how its errors end."""

import json
import os
import select
import signal
import subprocess
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest

from nacrefs.client.cli.outcome import ExitCode
from nacrefs.client.dev.process import start_time
from nacrefs.client.fuse import mounting
from tests.harness.process import (
    NACRE,
    ProcessCluster,
    fail,
    nacre,
    process_cluster,
    processes_under,
    succeed,
    succeed_json,
)

pytestmark = pytest.mark.timeout(120)

OST_KEYS = {
    "index", "up", "address", "total_bytes", "free_bytes", "used_bytes", "objects", "pools", "uuid",
}  # fmt: skip
LAYOUT_KEYS = {
    "path", "kind", "fid", "stripe_count", "stripe_size", "mirrors", "first_ost", "pool", "osts", "generation",
    "inline", "copies",
}  # fmt: skip


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Generator[ProcessCluster]:
    with process_cluster(tmp_path_factory.mktemp("cli")) as running:
        yield running


@pytest.fixture
def folder(cluster: ProcessCluster) -> Path:
    """A directory of the test's own in the mount."""
    return Path(tempfile.mkdtemp(dir=cluster.mount))


@pytest.fixture
def other(tmp_path: Path) -> Path:
    path = tmp_path / "other"
    path.mkdir()
    return path


# ------------------------------------------------------------------------------------------------------------ mounting


def test_mount_says_what_it_did_and_umount_too(cluster: ProcessCluster, other: Path) -> None:
    mounted = succeed_json("mount", cluster.url, other, "--keyring", cluster.keyring)
    assert mounted.keys() == {"source", "directory", "pid"}
    assert mounted["directory"] == str(other)
    told = json.loads(os.getxattr(other, "nacre.mount"))
    assert told["pid"] == mounted["pid"]
    assert told.keys() >= {
        "url",
        "subtree",
        "directory",
        "session",
        "client",
        "pid",
        "version",
        "transports",
        "options",
    }
    assert succeed_json("umount", other) == {"unmounted": [str(other)]}
    assert start_time(mounted["pid"]) is None, "the daemon has ended"


def test_umount_stores_what_was_written(cluster: ProcessCluster, other: Path) -> None:
    succeed("mount", cluster.url, other, "--keyring", cluster.keyring)
    contents = os.urandom(5 << 20)
    (other / "large").write_bytes(contents)
    (other / "small").write_bytes(contents[:100])
    succeed("umount", other)
    assert (cluster.mount / "large").read_bytes() == contents
    assert (cluster.mount / "small").read_bytes() == contents[:100]


def test_terminated_daemon_stores_what_was_written_and_unmounts(cluster: ProcessCluster, other: Path) -> None:
    pid = succeed_json("mount", cluster.url, other, "--keyring", cluster.keyring)["pid"]
    watch = os.pidfd_open(pid)
    (other / "terminated").write_bytes(b"x" * 3_000_000)
    os.kill(pid, 15)
    _wait_end(watch)
    assert not os.path.ismount(other)
    assert (cluster.mount / "terminated").read_bytes() == b"x" * 3_000_000


def test_busy_mount_is_not_taken_away_unless_lazily(cluster: ProcessCluster, other: Path) -> None:
    succeed("mount", cluster.url, other, "--keyring", cluster.keyring)
    with open(other / "open", "wb") as file:
        assert "in use" in fail(ExitCode.BUSY, "umount", other)
        succeed("umount", "--lazy", other)
        assert not os.path.ismount(other)
        file.write(b"still mine")
    assert (cluster.mount / "open").read_bytes() == b"still mine"


def test_read_only_mount_refuses_to_write(cluster: ProcessCluster, other: Path) -> None:
    succeed("mount", cluster.url, other, "-o", f"ro,keyring={cluster.keyring}")
    try:
        with pytest.raises(OSError, match="Read-only"):
            (other / "new").touch()
    finally:
        succeed("umount", other)


def test_mount_in_the_foreground_serves_until_unmounted(cluster: ProcessCluster, other: Path) -> None:
    command: list[str | Path] = [
        NACRE,
        "mount",
        cluster.url,
        other,
        "--keyring",
        cluster.keyring,
        "--foreground",
        "--json",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as running:
        assert running.stdout is not None
        assert json.loads(running.stdout.readline())["directory"] == str(other)
        assert os.path.ismount(other)
        succeed("umount", other)
        assert running.wait(20) == 0


def test_mount_errors_say_what_to_do(cluster: ProcessCluster, other: Path, tmp_path: Path) -> None:
    url, key = cluster.url, ("--keyring", cluster.keyring)
    assert "nothing" in fail(ExitCode.USAGE, "mount", url, other, "--keyring", tmp_path / "nothing")
    assert "mkdir" in fail(ExitCode.NOT_FOUND, "mount", url, tmp_path / "nowhere", *key)
    assert "mounted here already" in fail(ExitCode.BUSY, "mount", url, cluster.mount, *key)
    assert "tcp://127.0.0.1:1" in fail(ExitCode.UNREACHABLE, "mount", "tcp://127.0.0.1:1", other, *key)
    assert "nothing of nacrefs" in fail(ExitCode.NOT_FOUND, "umount", other)
    assert not os.path.ismount(other)


def test_wrong_key_is_refused(cluster: ProcessCluster, other: Path, tmp_path: Path) -> None:
    words = cluster.keyring.read_text().splitlines()
    wrong = tmp_path / "wrong.toml"
    wrong.touch(0o600)
    wrong.write_text("\n".join('secret = "' + "ab" * 32 + '"' if line.startswith("secret") else line for line in words))
    assert str(wrong) in fail(ExitCode.REFUSED, "mount", cluster.url, other, "--keyring", wrong)
    assert str(wrong) in fail(ExitCode.REFUSED, "status", cluster.url, "--keyring", wrong)
    wrong.chmod(0o644)
    assert "chmod 600" in fail(ExitCode.USAGE, "status", cluster.url, "--keyring", wrong)
    assert not os.path.ismount(other)


def test_mount_helper_serves_mount_8(cluster: ProcessCluster, other: Path) -> None:
    helper: list[str | Path] = [
        "mount.nacre",
        cluster.url,
        other,
        "-s",
        "-v",
        "-o",
        f"rw,noatime,_netdev,keyring={cluster.keyring}",
    ]
    subprocess.run(helper, check=True)
    assert os.path.ismount(other)
    subprocess.run(["umount", other], check=True)
    done = subprocess.run(["mount.nacre", "nonsense", other], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    done = subprocess.run(
        ["mount.nacre", "tcp://127.0.0.1:1", other, "-o", f"keyring={cluster.keyring}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 32
    assert done.stderr.startswith("mount.nacre: cannot reach")


def test_dead_mount_is_told_and_taken_away(cluster: ProcessCluster, other: Path) -> None:
    for again in (False, True):
        pid = succeed_json("mount", cluster.url, other, "--keyring", cluster.keyring)["pid"]
        watch = os.pidfd_open(pid)
        os.kill(pid, 9)
        _wait_end(watch)
        if not again:
            assert "has died" in fail(ExitCode.NOT_FOUND, "stats", other)
    succeed("umount", other)
    assert not os.path.ismount(other)


@pytest.mark.parametrize("end", ["umount", "SIGTERM", "SIGKILL"])
def test_a_mount_has_one_guard_that_ends_with_it(cluster: ProcessCluster, other: Path, end: str) -> None:
    pid = succeed_json("mount", cluster.url, other, "--keyring", cluster.keyring)["pid"]
    (guard,) = (child for child in processes_under(other) if _is_child(child, pid))
    watches = [os.pidfd_open(pid), os.pidfd_open(guard)]
    os.kill(guard, signal.SIGTERM)  # as when all of a service are told to end
    if end == "umount":
        succeed("umount", other)
    else:
        os.kill(pid, signal.Signals[end])
    for watch in watches:
        _wait_end(watch)
    assert bool(mounting.mounts_at(str(other))) == (end == "SIGKILL")
    if end == "SIGKILL":
        succeed("umount", other)


def _is_child(pid: int, parent: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1] == str(parent)


def _wait_end(watch: int) -> None:
    poll = select.poll()
    poll.register(watch, select.POLLIN)
    assert poll.poll(20_000)
    os.close(watch)


# ------------------------------------------------------------------------------------------------------------- looking


def test_df_tells_each_ost_and_the_total(cluster: ProcessCluster) -> None:
    report = succeed_json("df", cluster.mount)
    assert report.keys() == {"total_bytes", "free_bytes", "used_bytes", "files", "files_free", "osts"}
    assert [ost.keys() for ost in report["osts"]] == [OST_KEYS] * 4
    assert {ost["total_bytes"] for ost in report["osts"]} == {report["total_bytes"]}  # they share one disk
    direct = succeed_json("df", cluster.url, "--keyring", cluster.keyring)
    assert direct.keys() == report.keys()
    text = succeed("df", cluster.mount)
    assert "OST 3" in text
    assert "total" in text


def test_status_tells_sessions_leases_and_queues(cluster: ProcessCluster) -> None:
    report = succeed_json("status", cluster.mount)
    assert report.keys() >= {
        "role",
        "mdt",
        "cluster",
        "database",
        "inodes",
        "in_grace",
        "sessions",
        "osts",
        "leases",
        "queues",
    }
    session = json.loads(os.getxattr(cluster.mount, "nacre.mount"))["session"]
    assert session in [one["session"] for one in report["sessions"]]
    direct = succeed_json("status", cluster.url, "--keyring", cluster.keyring)
    assert direct.keys() == report.keys()
    text = succeed("status", cluster.mount)
    for title in ("OSTs", "Sessions", "Leases", "Queues"):
        assert title in text


def test_stats_count_what_is_done(cluster: ProcessCluster, folder: Path) -> None:
    before = succeed_json("stats", cluster.mount)
    assert before.keys() >= {"uptime_s", "cpu_s", "rss_bytes", "requests", "counters", "fuse", "cache", "memory", "pid"}
    for number in range(5):
        (folder / str(number)).mkdir()
    after = succeed_json("stats", cluster.mount)
    assert after["requests"]["Mkdir"].keys() == {"count", "failed", "mean_us", "p50_us", "p99_us"}
    earlier = before["requests"].get("Mkdir", {"count": 0})["count"]
    assert after["requests"]["Mkdir"]["count"] == earlier + 5
    assert after["fuse"]["mkdir"] == before["fuse"].get("mkdir", 0) + 5
    mds = succeed_json("stats", cluster.mount, "--mds")
    assert mds["requests"]["Mkdir"]["count"] >= 5
    direct = succeed_json("stats", cluster.url, "--keyring", cluster.keyring)
    assert direct.keys() == mds.keys()
    assert "Mkdir" in succeed("stats", cluster.mount)


def test_stats_are_watched_by_their_differences(cluster: ProcessCluster) -> None:
    done = nacre("stats", cluster.mount, "--watch", "--interval", "0.05", "--count", "3", "--json")
    documents = [json.loads(line) for line in done.stdout.splitlines()]
    assert [document["interval_s"] > 0 for document in documents] == [True] * 3
    assert "CPU" in succeed("stats", cluster.mount, "-w", "-n", "0.05", "--count", "1")


def test_control_attributes_need_no_key_and_are_not_listed(cluster: ProcessCluster, folder: Path) -> None:
    for name in ("mount", "stats", "df", "status", "mds"):
        assert json.loads(os.getxattr(folder, f"nacre.{name}"))
    assert os.getxattr(folder, "nacre.sync") == b""
    assert os.listxattr(folder) == []
    with pytest.raises(OSError, match="No data"):
        os.getxattr(folder, "nacre.nonsense")
    whole = os.getxattr(folder, "nacre.mount")
    assert os.getxattr(folder, "nacre.mount:0") == whole
    assert os.getxattr(folder, "nacre.mount:1") == b""


def test_fids_and_paths_lead_to_each_other(cluster: ProcessCluster, folder: Path) -> None:
    (folder / "name").touch()
    [found] = succeed_json("path2fid", folder / "name")
    assert found.keys() == {"path", "fid", "number"}
    assert found["number"] == (folder / "name").stat().st_ino
    path = f"/{folder.name}/name"
    assert succeed("fid2path", cluster.mount, found["fid"]) == f"{path}\n"
    [back] = succeed_json("fid2path", cluster.mount, str(found["number"]))
    assert back == {"fid": found["fid"], "number": found["number"], "path": path}
    fail(ExitCode.NOT_FOUND, "fid2path", cluster.mount, "[0x0:0xfffff]")
    fail(ExitCode.NOT_FOUND, "path2fid", folder / "absent")


# ------------------------------------------------------------------------------------------------------------- layouts


def test_new_file_gets_the_layout_that_was_set(folder: Path) -> None:
    succeed("setstripe", "-c", "4", "-S", "128K", folder / "file")
    [layout] = succeed_json("getstripe", folder / "file")
    assert layout.keys() == LAYOUT_KEYS
    assert (layout["kind"], layout["stripe_count"], layout["stripe_size"]) == ("file", 4, 131072)
    assert layout["copies"] == []  # it has but one of each
    assert sorted(layout["osts"]) == [0, 1, 2, 3]
    contents = os.urandom(1_000_003)
    (folder / "file").write_bytes(contents)
    assert (folder / "file").read_bytes() == contents


def test_directory_hands_its_layout_down_until_it_is_deleted(folder: Path) -> None:
    succeed("setstripe", "-c", "-1", folder)
    (folder / "wide").write_bytes(b"x" * 100_000)
    succeed("setstripe", "-d", folder)
    (folder / "narrow").write_bytes(b"x" * 100_000)
    counts = {Path(one["path"]).name: one["stripe_count"] for one in succeed_json("getstripe", "-r", folder)}
    assert counts == {folder.name: 1, "narrow": 1, "wide": 4}
    succeed("setstripe", "-d", folder)
    assert "for new files" in succeed("getstripe", folder)


def test_first_ost_is_taken(folder: Path) -> None:
    succeed("setstripe", "-i", "2", folder / "file")
    assert succeed_json("getstripe", folder / "file")[0]["osts"] == [2]


def test_a_directory_may_have_an_inline_limit_of_its_own(folder: Path) -> None:
    succeed("setstripe", "--inline", "4K", folder)
    assert "in the MDT up to 4" in succeed("getstripe", folder)
    (folder / "file").touch()
    assert succeed_json("getstripe", folder / "file")[0]["inline"] == 4096
    assert "64 KiB" in fail(ExitCode.USAGE, "setstripe", "--inline", "65K", folder)


def test_layout_attribute_is_readable_and_writable(folder: Path) -> None:
    (folder / "file").touch()
    os.setxattr(folder / "file", "nacre.layout", b"stripe_count=2 stripe_size=64K")
    assert os.getxattr(folder / "file", "nacre.layout").startswith(b"stripe_count=2 stripe_size=65536 ")


def test_setstripe_errors_say_why(folder: Path, tmp_path: Path) -> None:
    (folder / "full").write_bytes(b"x" * 100_000)
    assert "has contents" in fail(ExitCode.BUSY, "setstripe", "-c", "2", folder / "full")
    assert "OST 99" in fail(ExitCode.USAGE, "setstripe", "-i", "99", folder / "new")
    assert "'nope'" in fail(ExitCode.USAGE, "setstripe", "-p", "nope", folder / "new")
    assert not (folder / "new").exists(), "a file that could not get its layout is not left"
    assert "not on a nacrefs mount" in fail(ExitCode.NOT_FOUND, "setstripe", "-c", "2", tmp_path / "x")
    os.symlink("full", folder / "link")
    assert "no layout" in fail(ExitCode.NOT_FOUND, "getstripe", folder / "link")


def test_pools_name_osts(cluster: ProcessCluster, folder: Path) -> None:
    succeed("pool", "set", cluster.mount, "fast", "1", "3")
    assert succeed_json("pool", "list", cluster.mount) == {"pools": {"fast": [1, 3]}}
    succeed("setstripe", "-p", "fast", "-c", "2", folder / "file")
    assert sorted(succeed_json("getstripe", folder / "file")[0]["osts"]) == [1, 3]
    assert [one["path"] for one in succeed_json("find", folder, "--pool", "fast")] == [str(folder / "file")]
    assert succeed_json("pool", "rm", cluster.url, "fast", "--keyring", cluster.keyring) == {"pool": "fast", "osts": []}
    assert succeed_json("pool", "list", cluster.mount) == {"pools": {}}
    assert "OST 77" in fail(ExitCode.USAGE, "pool", "set", cluster.mount, "x", "77")


# ---------------------------------------------------------------------------------------------------------------- find


@pytest.fixture
def tree(folder: Path) -> Path:
    (folder / "sub" / "deep").mkdir(parents=True)
    (folder / "a.txt").write_bytes(b"x" * 10)
    (folder / "sub" / "b.txt").write_bytes(b"x" * 70_000)
    (folder / "sub" / "deep" / "c.dat").write_bytes(b"")
    os.utime(folder / "a.txt", (1_000_000_000, 1_000_000_000))
    os.symlink("a.txt", folder / "link")
    succeed("setstripe", "-c", "3", folder / "sub" / "wide")
    return folder


@pytest.mark.parametrize(
    ("tests", "names"),
    [
        (("-name", "*.txt"), {"a.txt", "b.txt"}),
        (("--name", "*.dat", "--name", "link"), {"c.dat", "link"}),
        (("-type", "d"), {"", "sub", "deep"}),
        (("-type", "l"), {"link"}),
        (("-type", "f", "-size", "+1K"), {"b.txt"}),
        (("-type", "f", "-size", "-1K", "-name", "a*"), {"a.txt"}),
        (("-type", "f", "-mtime", "+365"), {"a.txt"}),
        (("-type", "f", "-mtime", "-1d"), {"b.txt", "c.dat", "wide"}),
        (("-stripe-count", "3"), {"wide"}),
        (("--stripe-count", "+1"), {"wide"}),
        (("-maxdepth", "1", "-name", "*.txt"), {"a.txt"}),
        (("-maxdepth", "0"), {""}),
        (("-uid", "root", "-type", "l"), {"link"}),
        (("--not", "-type", "fl"), {"", "sub", "deep"}),
    ],
)
def test_find(tree: Path, tests: tuple[str, ...], names: set[str]) -> None:
    found = succeed("find", tree, *tests).splitlines()
    assert {Path(path).name if Path(path) != tree else "" for path in found} == names


def test_find_speaks_json_and_nul(tree: Path) -> None:
    [one] = succeed_json("find", tree, "-name", "a.txt")
    assert one.keys() == {"path", "type", "size", "mode", "uid", "gid", "mtime_ns", "inode"}
    assert (one["type"], one["size"], one["mtime_ns"]) == ("f", 10, 10**18)
    assert succeed("find", tree, "-name", "a.txt", "-print0") == f"{tree}/a.txt\0"
    assert "absent" in fail(ExitCode.NOT_FOUND, "find", tree / "absent")


# --------------------------------------------------------------------------------------------------------------- bench


def test_bench_measures_the_mount_next_to_a_local_directory(folder: Path, tmp_path: Path) -> None:
    report = succeed_json("bench", folder, "--rows", "files-1", "--scale", "0.001", "--local", tmp_path)
    assert report.keys() == {"machine", "rows"}
    assert {row["filesystem"] for row in report["rows"]} == {"local", "nacrefs"}
    create = next(row for row in report["rows"] if row["filesystem"] == "nacrefs" and row["name"].startswith("create"))
    assert create["requests_per_operation"]["Create"] == 1
    assert create["cpu_us_per_operation"].keys() == {"workers", "mount", "mds", "oss"}
    assert os.listdir(folder) == []
    assert os.listdir(tmp_path) == []
    assert "files-1" in succeed("bench", folder, "--list").split()
    assert "no benchmark" in fail(ExitCode.USAGE, "bench", folder, "--rows", "nonsense")
