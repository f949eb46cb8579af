"""A cluster of real processes with a real mount, run by the real `nacre` command, and nothing left of it afterwards."""

import json
import os
import select
import signal
import subprocess
import sysconfig
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from nacrefs.client.dev.config import MARKER, write_toml

NACRE = str(Path(sysconfig.get_path("scripts")) / "nacre")
"""The console script of the environment that runs the tests."""
COMMAND_S = 90.0
DEV: dict[str, Any] = {}
"""What is in dev.toml before a cluster's first start: how its processes differ from the usual (tests/rdma)."""


def nacre(*arguments: str | Path, cwd: Path | None = None, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run the command to its end; what it printed and its exit code, whatever that is."""
    return subprocess.run(
        [NACRE, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"COLUMNS": "100"} | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
        check=False,
    )


def succeed(*arguments: str | Path, cwd: Path | None = None) -> str:
    """Run the command, which must succeed without a word on standard error; what it printed."""
    done = nacre(*arguments, cwd=cwd)
    assert (done.returncode, done.stderr) == (0, ""), (arguments, done)
    return done.stdout


def succeed_json(*arguments: str | Path, cwd: Path | None = None) -> Any:
    """Run the command with `--json`; the one document that it printed."""
    return json.loads(succeed(*arguments, "--json", cwd=cwd))


def fail(code: int, *arguments: str | Path, cwd: Path | None = None) -> str:
    """Run the command, which must end with `code`, one line on standard error and nothing else; that line."""
    done = nacre(*arguments, cwd=cwd)
    assert done.returncode == code, (arguments, done)
    assert done.stderr.startswith("nacre: "), done.stderr
    assert done.stderr.count("\n") == 1, f"more than one line:\n{done.stderr}"
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    return done.stderr


def processes_under(directory: Path) -> dict[int, str]:
    """Command lines of the processes whose arguments name something under a directory, by process id."""
    found: dict[int, str] = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{entry}/cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if any(str(directory) in word for word in words) and int(entry) != os.getpid():
            found[int(entry)] = " ".join(words)
    return found


def processes_left(directory: Path) -> dict[int, str]:
    """`processes_under`, once the guards of mounts have ended: they do so by themselves, a moment after their mounts,
    when they have seen to it that nobody hangs."""
    for _ in range(200):
        if not any("guardian.py" in words for words in processes_under(directory).values()):
            break
        time.sleep(0.05)
    return processes_under(directory)


class ProcessCluster:
    """What `nacre dev` has made in `directory` and mounted at `mount`."""

    def __init__(self, directory: Path, mount: Path) -> None:
        self.directory = directory
        self.mount = mount

    @property
    def keyring(self) -> Path:
        """The cluster's keyring."""
        return self.directory / "keyring.toml"

    def up(self, *options: str) -> Any:
        """Start what is not running; the JSON of `dev up`."""
        return succeed_json("dev", "up", "--dir", self.directory, "--mount", self.mount, *options)

    def down(self, *options: str) -> None:
        """Stop it."""
        succeed("dev", "down", "--dir", self.directory, *options)

    def status(self) -> Any:
        """The JSON of `dev status`, whether all is well or not."""
        return json.loads(nacre("dev", "status", "--dir", self.directory, "--json").stdout)

    @property
    def url(self) -> str:
        """What is mounted."""
        return str(self.status()["url"])

    def pid(self, name: str) -> int:
        """The process id of mds, oss0, oss1 or mount."""
        return int((self.directory / "run" / f"{name}.pid").read_text().split()[0])

    def kill(self, name: str) -> None:
        """`kill -9`, and wait until it is gone."""
        watch = os.pidfd_open(self.pid(name))
        try:
            signal.pidfd_send_signal(watch, signal.SIGKILL)
            poll = select.poll()
            poll.register(watch, select.POLLIN)
            assert poll.poll(60_000), f"{name} is not gone after a minute"
        finally:
            os.close(watch)


def need_mounts() -> None:
    """Skip the test where nothing can be mounted."""
    if not os.path.exists("/dev/fuse"):
        pytest.skip("there is no /dev/fuse (modprobe fuse, or docker run --device /dev/fuse --cap-add SYS_ADMIN)")
    if os.geteuid() != 0:
        pytest.skip("mounting for other users needs root")


@contextmanager
def process_cluster(base: Path, *options: str) -> Generator[ProcessCluster]:
    """A cluster that runs, with a mount; afterwards no process, no mount and no file of it is left."""
    need_mounts()
    cluster = ProcessCluster(base / "cluster", base / "mnt")
    try:
        if DEV:
            cluster.directory.mkdir()
            write_toml(cluster.directory / MARKER, DEV, "")
        cluster.up(*options)
        yield cluster
    finally:
        done = nacre("dev", "down", "--dir", cluster.directory, "--purge")
        left = processes_left(base)
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f" {base}/" in line]
        for line in mounts:
            subprocess.run(["umount", "-l", line.split()[4]], check=False)
    assert not left, f"processes were left: {left}"
    assert not mounts, f"mounts were left: {mounts}"
    assert done.returncode == 0, done
    assert not cluster.directory.exists()
