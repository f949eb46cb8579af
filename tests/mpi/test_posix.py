"""Unmodified programs with the library preloaded: every call behaves as on a local disk, and passes the mount by."""

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from nacrefs.client.mount import daemon as mount
from tests.mpi.conftest import LIBASAN_SETTINGS, Native
from tests.mpi.native import FLAGS, PROGRAMS, SANITIZE, SOURCE, build_program


def python(native: Native, code: str, *words: str | Path, **environment: str) -> str:
    """Run a Python program with the library; what it printed."""
    done = native.run(sys.executable, "-I", "-c", textwrap.dedent(code), *words, environment=environment)
    assert done.returncode == 0, done
    return done.stdout


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("eagerness", ["all", ""])
def test_every_call_does_what_it_does_on_a_local_disk(native: Native, seed: int, eagerness: str) -> None:
    ours, local = native.mount / f"random{seed}{eagerness}", native.folder / "random"
    program = native.program("posix_check")
    subprocess.run(["nacre", "setstripe", "-c", "3", "-S", "64K", ours], check=False)
    done = native.run(program, ours, local, str(seed), "250", environment={"NACRE_IO": eagerness})
    assert (done.returncode, done.stderr) == (0, "")
    assert ours.read_bytes() == local.read_bytes()


@pytest.mark.parametrize("buffer", ["", "512K"])
def test_nothing_is_wrong_in_memory_while_it_runs(native: Native, buffer: str) -> None:
    """All of the library linked into the program, with the sanitizers of the compiler."""
    parts = [path.stem for path in SOURCE.glob("*.c") if not path.stem.startswith("ad_")]
    program = native.folder / "posix_check_asan"
    if not program.exists():
        build_program(PROGRAMS / "posix_check.c", program, *parts, flags=[*FLAGS, *SANITIZE])
    ours, local = native.mount / f"sanitized{buffer}", native.folder / "sanitized"
    done = subprocess.run(
        [program, ours, local, "7", "150"],
        env={**os.environ, "ASAN_OPTIONS": LIBASAN_SETTINGS, "NACRE_IO": "all", "NACRE_IO_BUFFER": buffer or "0"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert ours.read_bytes() == local.read_bytes()


def test_bytes_do_not_pass_through_the_mount(native: Native) -> None:
    before = native.fuse_requests()
    code = """
        import os, sys
        fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
        data = os.urandom(3 << 20)
        assert os.pwrite(fd, data, 100) == len(data)
        assert os.pread(fd, len(data), 100) == data
        print(os.getxattr(fd, "nacre.io").decode())
    """
    told = python(native, code, native.mount / "direct")
    assert '"writers": 1' in told
    assert native.fuse_requests() == before
    # The kernel says a little later that it is closed.
    while mount.ask_json(str(native.mount / "direct"), "io")["writers"]:
        time.sleep(0.01)


def test_a_reader_with_a_warm_cache_sees_each_write_at_once(native: Native) -> None:
    path = native.mount / "warm"
    path.write_bytes(b"a" * 200_000)
    code = """
        import os, sys
        fd = os.open(sys.argv[1], os.O_RDWR)
        for line in sys.stdin:
            offset, letter = line.split()
            os.pwrite(fd, letter.encode() * 50_000, int(offset))
            print("written", flush=True)
    """
    with open(path, "rb", buffering=0) as reader:
        assert reader.read() == b"a" * 200_000
        writer = subprocess.Popen(
            [sys.executable, "-I", "-c", textwrap.dedent(code), path],
            env=native.environment(NACRE_IO="all"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert writer.stdin is not None
        assert writer.stdout is not None
        with writer:
            for offset, letter in ((100_000, "b"), (0, "c"), (100_000, "d"), (190_000, "e"), (240_000, "f")):
                writer.stdin.write(f"{offset} {letter}\n")
                writer.stdin.flush()
                assert writer.stdout.readline() == "written\n"
                assert os.pread(reader.fileno(), 50_000, offset) == letter.encode() * 50_000
                assert os.fstat(reader.fileno()).st_size >= offset + 50_000
            assert path.stat().st_size == 290_000
            assert reader.seek(0, os.SEEK_END) == 290_000
            writer.stdin.close()
        assert writer.returncode == 0


def test_what_others_write_through_the_mount_is_read_at_once(native: Native) -> None:
    path = native.mount / "other"
    path.write_bytes(b"1" * 100_000)
    code = """
        import os, sys
        fd = os.open(sys.argv[1], os.O_RDONLY)
        for line in sys.stdin:
            print(os.pread(fd, 3, int(line)).decode(), flush=True)
    """
    reader = subprocess.Popen(
        [sys.executable, "-I", "-c", textwrap.dedent(code), path],
        env=native.environment(NACRE_IO="all"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert reader.stdin is not None
    assert reader.stdout is not None
    with reader, open(path, "r+b", buffering=0) as writer:
        for offset, text in ((5, b"abc"), (99_998, b"def"), (5, b"ghi")):
            os.pwrite(writer.fileno(), text, offset)
            reader.stdin.write(f"{offset}\n")
            reader.stdin.flush()
            assert reader.stdout.readline().encode().strip() == text
        reader.stdin.close()


def test_a_small_file_that_is_just_written_stays_in_the_mdt(native: Native) -> None:
    code = """
        import os, sys
        fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
        os.write(fd, b"a few bytes")
        assert os.pread(fd, 100, 0) == b"a few bytes"
    """
    python(native, code, native.mount / "small")
    assert (native.mount / "small").read_bytes() == b"a few bytes"
    assert mount.ask_json(str(native.mount / "small"), "io")["session"] >= 0


def test_a_read_only_descriptor_gets_no_right_to_write(native: Native) -> None:
    path = native.mount / "guarded"
    path.write_bytes(b"x" * 100_000)
    code = """
        import errno, os, sys
        fd = os.open(sys.argv[1], os.O_RDONLY)
        assert os.pread(fd, 50_000, 0) == b"x" * 50_000
        try:
            os.pwrite(fd, b"y" * 50_000, 0)
        except OSError as error:
            print(errno.errorcode[error.errno])
    """
    assert python(native, code, path) == "EBADF\n"


def test_programs_that_close_every_descriptor_and_run_others_are_left_alone(native: Native) -> None:
    code = """
        import os, subprocess, sys
        fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
        os.pwrite(fd, b"z" * 100_000, 0)
        assert subprocess.run(["cat", sys.argv[1]], capture_output=True, check=True).stdout == b"z" * 100_000
        os.closerange(fd + 1, 5000)
        assert os.pread(fd, 100_000, 0) == b"z" * 100_000
        os.closerange(fd, 70_000)
        fd = os.open(sys.argv[1], os.O_RDWR)
        assert os.pread(fd, 100_000, 0) == b"z" * 100_000
    """
    python(native, code, native.mount / "closed", NACRE_IO="all")
