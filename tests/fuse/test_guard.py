"""A daemon that dies with a thread stuck in the kernel: its mount does not hang, because a guard aborts it."""

import asyncio
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nacrefs.client.fuse import guardian, mounting
from nacrefs.client.fuse.guard import Guard
from tests.fuse.conftest import Mount

REPOSITORY = Path(__file__).parents[2]
LOOKING = "import os, sys\ntry: os.stat(sys.argv[1])\nexcept OSError as error: print(error.errno)"


def wait_for(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline_s, "it does not happen"
        time.sleep(0.01)


def state_of(pid: int) -> str:
    """The letter that ps shows; empty if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1]
    except OSError:
        return ""


def guards_of(pid: int) -> list[int]:
    """The guards among the children of a process's main thread."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if Path(f"/proc/{child}/comm").read_text() == "nacre-guard\n"]


@contextmanager
def stuck_daemon(directory: Path, guarded: str, *wrapped: str) -> Generator["subprocess.Popen[str]"]:
    command = [*wrapped, sys.executable, "-m", "tests.fuse.stuck", str(directory), guarded]
    daemon = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    try:
        assert daemon.stdout is not None
        assert daemon.stdout.readline() == "mounted\n"
        yield daemon
    finally:
        subprocess.run(["umount", "-f", str(directory)], check=False, stderr=subprocess.DEVNULL)
        daemon.kill()
        daemon.communicate(timeout=20)
        subprocess.run(["umount", "-l", str(directory)], check=False, stderr=subprocess.DEVNULL)


@contextmanager
def program(path: Path, *wrapped: str) -> Generator["subprocess.Popen[str]"]:
    """Looks at something, and says with which error that failed."""
    command = [*wrapped, sys.executable, "-c", LOOKING, str(path)]
    looking = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    with looking:
        yield looking


def test_a_program_that_waits_for_a_dead_daemon_gets_an_error(mount_point: Path) -> None:
    with stuck_daemon(mount_point, "guarded") as daemon, program(mount_point / "d/absent") as waiting:
        assert daemon.stdout is not None
        assert daemon.stdout.readline() == "stuck\n"
        (guard,) = guards_of(daemon.pid)
        daemon.kill()
        assert int(waiting.communicate(timeout=20)[0]) in (errno.ENOTCONN, errno.ECONNABORTED)
        daemon.wait(20)
        wait_for(lambda: state_of(guard) in ("", "Z"))
        with pytest.raises(OSError, match="not connected"):
            os.listdir(mount_point)
        assert len(mounting.mounts_at(str(mount_point))) == 1, "it stays until somebody takes it away"


def test_without_a_guard_it_hangs(mount_point: Path) -> None:
    """Or the test above shows nothing."""
    with stuck_daemon(mount_point, "unguarded") as daemon, program(mount_point / "d/absent") as waiting:
        assert daemon.stdout is not None
        assert daemon.stdout.readline() == "stuck\n"
        daemon.kill()
        wait_for(lambda: state_of(daemon.pid) == "Z")  # its main thread is dead …
        time.sleep(0.3)
        assert len(os.listdir(f"/proc/{daemon.pid}/task")) > 1  # … and another one is not
        assert waiting.poll() is None
        subprocess.run(["umount", "-f", str(mount_point)], check=False, stderr=subprocess.DEVNULL)
        assert waiting.wait(20) == 0


@pytest.mark.parametrize("change", ["mount -t fusectl none {}", "umount -q {}"])
def test_it_does_with_and_without_the_file_of_the_connection(mount_point: Path, change: str) -> None:
    prepared = f'{change.format(guardian.CONTROL)}; exec "$@"'
    with stuck_daemon(mount_point, "guarded", "unshare", "-m", "sh", "-c", prepared, "sh") as daemon:
        with program(mount_point / "d/absent", "nsenter", "-t", str(daemon.pid), "-m") as waiting:
            assert daemon.stdout is not None
            assert daemon.stdout.readline() == "stuck\n"
            daemon.kill()
            assert int(waiting.communicate(timeout=20)[0]) in (errno.ENOTCONN, errno.ECONNABORTED)
            daemon.wait(20)


def test_the_guard_ends_with_its_parent_though_nothing_was_mounted(tmp_path: Path) -> None:
    code = "import sys, time; from nacrefs.client.fuse.guard import Guard"
    code += "; print(Guard(sys.argv[1]).pid, flush=True); time.sleep(60)"
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    with parent:
        assert parent.stdout is not None
        guard = int(parent.stdout.readline())
        parent.kill()
    wait_for(lambda: state_of(guard) in ("", "Z"))


def test_a_guard_is_named_small_deaf_and_holds_nothing(tmp_path: Path) -> None:
    with open(tmp_path / "open", "w") as held:
        os.set_inheritable(held.fileno(), True)
        guard = Guard(str(tmp_path))
        try:
            folder = Path(f"/proc/{guard.pid}")
            wait_for(lambda: (folder / "comm").read_text() == "nacre-guard\n")
            guard.watch(mounting.all_mounts()[0])
            wait_for(lambda: state_of(guard.pid) == "S")
            wait_for(lambda: os.listdir(folder / "fd") == ["1", "2"])
            assert {os.readlink(folder / "fd" / number) for number in ("1", "2")} == {"/dev/null"}
            assert (folder / "cwd").readlink() == Path("/")
            assert os.getsid(guard.pid) == guard.pid
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                os.kill(guard.pid, number)
            words = (folder / "smaps_rollup").read_text().split()
            assert int(words[words.index("Private_Dirty:") + 1]) < 8000
            time.sleep(0.1)
            wait_for(lambda: state_of(guard.pid) == "S")  # not dead, though perhaps about to wait
        finally:
            guard.dismiss()
    assert state_of(guard.pid) == ""


async def test_only_the_very_mount_is_forced(mount: Mount) -> None:
    """Another mount at the same place is none of the guard's business."""
    place = str(mount.path)
    (here,) = mounting.mounts_at(place)
    for number, device in (("1", here.device), (here.number, "0:1")):
        await asyncio.to_thread(guardian.force, place, number, device)
    assert await asyncio.to_thread(os.listdir, place) == []
    await asyncio.to_thread(guardian.force, place, here.number, here.device)
    with pytest.raises(OSError, match="not connected"):
        await asyncio.to_thread(os.listdir, place)
    assert mounting.mounts_at(place) == [here]
    await asyncio.to_thread(mounting.unmount, place)
