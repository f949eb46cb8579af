"""What programs with the library see when servers die, sessions end, disks lie or are full: an errno, or nothing."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nacrefs.common.fid import parse_fid
from tests.mpi.conftest import Native

WRITER = """
    import os, sys
    fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
    print("open", flush=True)
    for line in sys.stdin:
        offset, size, letter = line.split()
        try:
            os.pwrite(fd, letter.encode() * int(size), int(offset))
            if letter == "s":
                os.fsync(fd)
            print("done", flush=True)
        except OSError as error:
            print(error.errno, flush=True)
"""


class Writer:
    """A program that writes when it is told to."""

    def __init__(self, native: Native, path: Path, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-c", textwrap.dedent(WRITER), path],
            env=native.environment(NACRE_IO="all", **environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.answer("open")

    def ask(self, offset: int, size: int, letter: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{offset} {size} {letter}\n")
        self.process.stdin.flush()

    def answer(self, wanted: str = "done") -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline().strip() == wanted

    def write(self, offset: int, size: int, letter: str) -> None:
        self.ask(offset, size, letter)
        self.answer()


@contextmanager
def writer(native: Native, path: Path, **environment: str) -> Generator[Writer]:
    path.touch()
    os.setxattr(path, "nacre.layout", b"stripe_count=4 stripe_size=64K")
    made = Writer(native, path, **environment)
    with made.process:
        yield made
        assert made.process.stdin is not None
        made.process.stdin.close()
    assert made.process.returncode == 0


def restart(native: Native) -> None:
    native.cluster.up()


def test_a_write_waits_for_an_oss_that_is_killed_and_comes_back(native: Native) -> None:
    path = native.mount / "killed"
    with writer(native, path) as program:
        program.write(0, 1 << 20, "a")
        native.cluster.kill("oss0")
        program.ask(0, 1 << 20, "b")
        restart(native)
        program.answer()
        program.write(1 << 20, 1 << 20, "s")
    assert path.read_bytes() == b"b" * (1 << 20) + b"s" * (1 << 20)


def test_a_write_meets_its_deadline_while_an_oss_is_away_and_succeeds_afterwards(native: Native) -> None:
    path = native.mount / "deadline"
    with writer(native, path, NACRE_IO_TIMEOUT_S="3") as program:
        program.write(0, 1 << 20, "a")
        native.cluster.kill("oss1")
        try:
            program.ask(0, 1 << 20, "b")
            program.answer(str(errno.EIO))
        finally:
            restart(native)
        program.write(0, 1 << 20, "c")
    assert path.read_bytes() == b"c" * (1 << 20)


def test_an_mds_that_is_killed_and_comes_back_is_not_noticed(native: Native) -> None:
    path = native.mount / "mds"
    with writer(native, path) as program:
        program.write(0, 300_000, "a")
        native.cluster.kill("mds")
        program.write(0, 200_000, "b")
        restart(native)
        program.write(400_000, 100_000, "s")
    assert path.read_bytes() == b"b" * 200_000 + b"a" * 100_000 + bytes(100_000) + b"s" * 100_000


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_fenced_session_is_followed_by_another(native: Native) -> None:
    """The mount stands still for longer than its sessions live. What it had open is lost to it; the program goes on."""
    path = native.mount / "fenced"
    with writer(native, path) as program:
        program.write(0, 200_000, "a")
        pid = native.cluster.pid("mount")
        os.kill(pid, signal.SIGSTOP)
        time.sleep(25)  # more than two terms of a dev cluster
        program.ask(0, 200_000, "b")
        os.kill(pid, signal.SIGCONT)
        program.answer()
    assert path.read_bytes() == b"b" * 200_000


def test_a_block_that_went_bad_on_the_disk_is_an_error_and_never_bytes(native: Native) -> None:
    path = native.mount / "rotten"
    with writer(native, path) as program:
        program.write(0, 262_144, "s")
    fid = parse_fid(os.getxattr(path, "nacre.fid").decode())
    found = [file for file in native.cluster.directory.rglob(f"{fid:016x}.*") if b"ssss" in file.read_bytes()]
    assert found, "no object of the file was found"
    with found[0].open("r+b") as damaged:
        where = damaged.read().index(b"ssss")
        damaged.seek(where + 1)
        damaged.write(b"X")
    code = """
        import os, sys
        fd = os.open(sys.argv[1], os.O_RDONLY)
        try:
            os.pread(fd, 262144, 0)
        except OSError as error:
            print(error.errno)
    """
    done = native.run(sys.executable, "-I", "-c", textwrap.dedent(code), path, environment={"NACRE_IO": "all"})
    assert done.stdout == f"{errno.EIO}\n", done


def test_a_program_that_is_killed_leaves_nothing_open(native: Native) -> None:
    path = native.mount / "left"
    path.touch()
    program = Writer(native, path)
    with program.process:
        program.write(0, 100_000, "a")
        program.process.kill()
    while b'"writers": 0' not in os.getxattr(path, "nacre.io"):  # the kernel's last word about it comes a little later
        time.sleep(0.01)
    path.write_bytes(b"somebody else's")
    assert path.read_bytes() == b"somebody else's"
