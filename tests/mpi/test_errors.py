"""The classes of errors that MPI programs meet, on every engine; and nobody waits for the dead."""

import os
import subprocess
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.harness.process import succeed
from tests.mpi.conftest import Native
from tests.mpi.engines import Engine, scratch_environment
from tests.mpi.test_mpi import compiled, folder, run

MIB = 1 << 20
PROJECT = "77"


@pytest.fixture
def program(native: Native, engine: Engine) -> Path:
    return compiled(native, engine, "errors.c")


def test_a_file_of_somebody_else_is_an_access_error(native: Native, engine: Engine, program: Path) -> None:
    at = folder(native, engine, "private")
    (at / "private").write_bytes(b"mine")
    (at / "private").chmod(0o600)
    assert "open: MPI_ERR_ACCESS\n" in run(native, engine, 2, program, f"nacre:{at}", "a")


@pytest.fixture
def limited(native: Native, engine: Engine) -> Generator[Path]:
    """A directory that may hold 8 MiB."""
    at = folder(native, engine, "limited")
    succeed("quota", "project", "--id", PROJECT, at)
    succeed("quota", "set", "-p", PROJECT, "--hard", "8MiB", native.mount)
    yield at
    succeed("quota", "rm", "-p", PROJECT, native.mount)


def test_a_job_over_its_quota_is_told_so(native: Native, engine: Engine, program: Path, limited: Path) -> None:
    told = run(native, engine, 1, program, f"nacre:{limited}", "q")
    if engine.name.endswith("ompio"):  # says so on standard error only, whatever the filesystem
        assert "Disk quota exceeded" in told
    else:  # ROMIO has no class for EDQUOT
        assert "open: success\nwrite: MPI_ERR_IO\n" in told
    assert (limited / "large").stat().st_size <= 8 * MIB


def tell_and_ask_again(native: Native, job: "subprocess.Popen[str]") -> None:
    assert job.stdin is not None
    assert job.stdout is not None
    assert [job.stdout.readline() for _ in range(2)] == ["open: success\n", "write: MPI_ERR_IO\n"]
    native.cluster.up()
    job.stdin.write("again\n")
    job.stdin.flush()
    assert job.stdout.read() == "write: success\nclose: success\n"


def test_an_oss_that_is_away_is_an_io_error_and_a_second_try_succeeds(
    native: Native,
    engine: Engine,
    program: Path,
) -> None:
    if engine.name.endswith("ompio"):
        pytest.skip("OMPIO takes a write that failed for one that succeeded, whatever the filesystem")
    at = folder(native, engine, "away")
    (at / "twice").touch()
    os.setxattr(at / "twice", "nacre.layout", b"stripe_count=4 stripe_size=64K")
    with (at / "twice").open("wb") as file:
        file.write(bytes(MIB))
        file.flush()
        os.fsync(file.fileno())  # else the mount still has to write it, and that waits for the OSS
    given = {"LD_PRELOAD": str(native.library), "NACRE_IO_TIMEOUT_S": "3"}
    native.cluster.kill("oss0")
    try:
        with subprocess.Popen(
            [*engine.mpirun(1, given), str(program), f"nacre:{at}", "d"],
            env=scratch_environment(native.folder),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as job:
            try:
                tell_and_ask_again(native, job)
            finally:
                job.kill()
    finally:
        native.cluster.up()
    assert (at / "twice").read_bytes() == b"m" * MIB


def test_the_lock_of_a_rank_that_was_killed_is_free(native: Native, engine: Engine, program: Path) -> None:
    at = folder(native, engine, "dead")
    job = subprocess.run(
        [*engine.mpirun(2, {"LD_PRELOAD": str(native.library)}), str(program), f"nacre:{at}", "l"],
        env=scratch_environment(native.folder),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    assert job.returncode != 0
    assert "lock: success\n" in job.stdout
    assert "atomic write" not in job.stdout
    told = run(native, engine, 2, program, f"nacre:{at}", "t", timeout_s=60)
    assert told.endswith("open: success\nlock: success\natomic write: success\nclose: success\n")
    assert (at / "locked").read_bytes() == b"m" * 2000
