"""Mounts under limited keys, as programs see them through the kernel: root squash, all squashed, read-only subtrees;
and a key that is revoked in the file while servers run."""

import errno
import os
import stat
import subprocess
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nacrefs.client.cli.outcome import ExitCode
from tests.harness.process import ProcessCluster, fail, process_cluster, succeed, succeed_json

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can be squashed, and be others in turn"),
]
USER, GROUP, OTHER_GROUP = 1234, 1235, 1236


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Generator[ProcessCluster]:
    with process_cluster(tmp_path_factory.mktemp("exports")) as running:
        (running.mount / "proj").mkdir()
        (running.mount / "proj" / "file").write_text("hello")
        (running.mount / "pub").mkdir()
        (running.mount / "pub").chmod(0o1777)
        yield running


@contextmanager
def mounted(cluster: ProcessCluster, directory: Path, name: str, *limits: str) -> Generator[Path]:
    """A mount under a key of its own; the servers notice the key by themselves."""
    key, mount = directory / f"{name}.toml", directory / name
    succeed("key", "new", name, *limits, "--keyring", cluster.keyring)
    succeed("key", "extract", name, "-o", key, "--keyring", cluster.keyring)
    mount.mkdir()
    for folder in (directory, *directory.parents):  # others than root must get there
        if folder != Path("/") and folder.stat().st_uid == 0:
            folder.chmod(folder.stat().st_mode | 0o111)
    deadline_s = time.monotonic() + 30
    while True:
        try:
            succeed("mount", cluster.url, mount, "--keyring", key)
            break
        except AssertionError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.2)
    try:
        yield mount
    finally:
        succeed("umount", mount)


def refused(number: int, work: Callable[[], object]) -> None:
    with pytest.raises(OSError, match=r".") as caught:
        work()
    assert caught.value.errno == number, caught.value


def as_user(script: str, *groups: int) -> str:
    """What a shell of an ordinary user says."""
    named = ",".join(map(str, groups)) or str(GROUP)
    done = subprocess.run(
        ["setpriv", f"--reuid={USER}", f"--regid={GROUP}", f"--groups={named}", "bash", "-c", script],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout + done.stderr


def test_root_is_nobody_and_users_are_themselves(cluster: ProcessCluster, tmp_path: Path) -> None:
    with mounted(cluster, tmp_path, "squashed", "--squash", "root") as mount:
        mine = mount / "pub" / "mine"
        mine.touch()
        assert (mine.stat().st_uid, mine.stat().st_gid) == (65534, 65534)
        assert (mount / "proj" / "file").read_text() == "hello"
        refused(errno.EACCES, lambda: (mount / "proj" / "new").touch())
        refused(errno.EPERM, lambda: os.chown(mine, 0, 0))
        refused(errno.EPERM, lambda: os.mknod(mount / "pub" / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3)))
        theirs = mount / "pub" / "theirs"
        assert as_user(f"echo private > {theirs}; chmod 600 {theirs}; cat {theirs}; ls {theirs.parent}") == (
            "private\nmine\ntheirs\n"
        )
        assert theirs.stat().st_uid == USER
        refused(errno.EACCES, theirs.read_text)  # although it is cached here
        refused(errno.EACCES, lambda: theirs.write_text("x"))
        refused(errno.EACCES, lambda: os.truncate(theirs, 0))
        refused(errno.EPERM, theirs.unlink)
        assert (cluster.mount / "pub" / "theirs").read_text() == "private\n"


def test_supplementary_groups_count(cluster: ProcessCluster, tmp_path: Path) -> None:
    shared = cluster.mount / "pub" / "shared"
    shared.write_text("for the group")
    os.chown(shared, 0, OTHER_GROUP)
    shared.chmod(0o640)
    with mounted(cluster, tmp_path, "grouped", "--squash", "root") as mount:
        path = mount / "pub" / "shared"
        assert as_user(f"cat {path}", OTHER_GROUP) == "for the group"
        assert "Permission denied" in as_user(f"cat {path}", GROUP)


def test_everybody_is_the_same_nobody(cluster: ProcessCluster, tmp_path: Path) -> None:
    limits = ("--squash", "all", "--anon-uid", "77", "--anon-gid", "78")
    with mounted(cluster, tmp_path, "anonymous", *limits) as mount:
        path = mount / "pub" / "anybodys"
        said = as_user(f"echo one > {path}; chmod 600 {path}; echo two >> {path}; cat {path}; stat -c %u:%g {path}")
        assert said == "one\ntwo\n77:78\n"
        assert path.read_text() == "one\ntwo\n"
        refused(errno.EACCES, lambda: (mount / "proj" / "file").write_text("x"))


def test_a_read_only_subtree(cluster: ProcessCluster, tmp_path: Path) -> None:
    with mounted(cluster, tmp_path, "part", "--path", "/proj", "--read-only") as mount:
        assert os.listdir(mount) == ["file"]
        assert (mount / "file").read_text() == "hello"
        assert os.stat(mount / "..").st_dev != os.stat(mount).st_dev
        refused(errno.EROFS, lambda: (mount / "new").touch())
        refused(errno.EROFS, lambda: (mount / "file").write_text("x"))
        refused(errno.EROFS, lambda: (mount / "file").rename(mount / "other"))
        refused(errno.EROFS, (mount / "file").unlink)
        key = tmp_path / "part.toml"
        (tmp_path / "elsewhere").mkdir()
        said = fail(ExitCode.REFUSED, "mount", f"{cluster.url}/pub", tmp_path / "elsewhere", "--keyring", key)
        assert "this key may mount /proj and what is below it" in said
        assert "about the whole filesystem" in fail(ExitCode.REFUSED, "status", cluster.url, "--keyring", key)
        said = fail(ExitCode.REFUSED, "pool", "set", cluster.url, "fast", "0", "--keyring", key)
        assert "needs an administrator's key" in said


def test_a_key_that_is_revoked_in_the_file_is_not_greeted_any_more(cluster: ProcessCluster, tmp_path: Path) -> None:
    key = tmp_path / "short.toml"
    succeed("key", "new", "short", "--keyring", cluster.keyring)
    succeed("key", "extract", "short", "-o", key, "--keyring", cluster.keyring)
    deadline_s = time.monotonic() + 30
    while True:  # until the servers have noticed the key
        try:
            assert succeed_json("status", cluster.url, "--keyring", key)
            break
        except AssertionError:
            assert time.monotonic() < deadline_s
            time.sleep(0.2)
    succeed("key", "revoke", "short", "--keyring", cluster.keyring)
    while True:
        try:
            assert "does not have our key 'short'" in fail(ExitCode.REFUSED, "status", cluster.url, "--keyring", key)
            break
        except AssertionError:
            assert time.monotonic() < deadline_s
            time.sleep(0.2)
