"""The buffer that programs may ask for: few requests, the same bytes, and no error that nobody hears of."""

import asyncio
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

from tests.client.world import World
from tests.mpi.conftest import LIBASAN_SETTINGS, Native
from tests.mpi.engines import Engine
from tests.mpi.native import FLAGS, PROGRAMS, SANITIZE, build_program
from tests.mpi.test_failures import Writer, restart, writer
from tests.mpi.test_mpi import HINTS, compiled, folder, run
from tests.mpi.test_posix import python
from tests.mpi.test_servers import mounted, program, requests

BUFFER = {"NACRE_IO": "all", "NACRE_IO_BUFFER": "1M"}


# ------------------------------------------------------------------------------------------------------- what it holds


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_what_is_collected_and_fetched_is_what_a_plain_array_has(tmp_path: Path, seed: int) -> None:
    parts = ("pieces", "blocks", "memory")
    built = build_program(PROGRAMS / "buffer_check.c", tmp_path / "check", *parts, flags=[*FLAGS, *SANITIZE])
    done = subprocess.run(
        [built, str(seed)],
        env={**os.environ, "ASAN_OPTIONS": LIBASAN_SETTINGS},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "passed\n")


@pytest.mark.parametrize("eagerness", ["all", pytest.param("", marks=pytest.mark.slow)])
def test_every_call_does_what_it_does_on_a_local_disk(native: Native, eagerness: str) -> None:
    ours, local = native.mount / f"buffered{eagerness}", native.folder / "buffered"
    subprocess.run(["nacre", "setstripe", "-c", "3", "-S", "64K", ours], check=True)
    settings = {"NACRE_IO": eagerness, "NACRE_IO_BUFFER": "512K"}
    done = native.run(native.program("posix_check"), ours, local, "3", "250", environment=settings)
    assert (done.returncode, done.stderr) == (0, "")
    assert ours.read_bytes() == local.read_bytes()


# ------------------------------------------------------------------------------------------------------------- requests


async def test_small_transfers_become_few_requests(library: Path, tmp_path: Path) -> None:
    code = """
        import os, random, sys
        fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
        order = list(range(400))
        random.Random(1).shuffle(order)
        for number in order:
            os.pwrite(fd, number.to_bytes(4, "little") * 250, number * 2048)
        os.fsync(fd)
        random.Random(2).shuffle(order)
        for number in order:
            assert os.pread(fd, 1000, number * 2048) == number.to_bytes(4, "little") * 250
    """
    async with mounted(tmp_path) as (world, _, at):
        await program(library, code, at / "plain")
        assert (requests(world, "Write"), requests(world, "Read")) == (400, 400)
        await program(library, code, at / "f", NACRE_IO_BUFFER="8M")
        assert requests(world, "Write") - 400 == 4  # one for each object
        assert requests(world, "Read") - 400 <= 1 + 2 * 4  # one read, and then all of it, twice because it ends there
        same = [await asyncio.to_thread((at / name).read_bytes) for name in ("plain", "f")]
        assert same[0] == same[1]


# --------------------------------------------------------------------------------------------------------------- errors


@contextmanager
def full(world: World) -> Generator[None]:
    """OSTs that have no room."""
    spaces = [target.space for oss in world.oss for target in oss.targets]
    before = [space.reserve_bytes for space in spaces]

    def reserve(amounts: list[int]) -> None:
        for space, amount in zip(spaces, amounts, strict=True):
            space.reserve_bytes = amount
            space._asked_s = float("-inf")  # pyright: ignore[reportPrivateUsage]

    reserve([1 << 60] * len(spaces))
    try:
        yield
    finally:
        reserve(before)


async def test_what_cannot_be_sent_is_an_error_of_the_next_calls_and_never_forgotten(
    library: Path, tmp_path: Path
) -> None:
    code = """
        import errno, os, sys
        fd = os.open(sys.argv[1], os.O_RDWR)
        def attempt(name, call, *words):
            try:
                call(*words)
                print(name, "ok")
            except OSError as error:
                print(name, errno.errorcode[error.errno])
        attempt("write", os.pwrite, fd, b"a" * 1000, 300_000)
        attempt("fsync", os.fsync, fd)
        attempt("write", os.pwrite, fd, b"b" * 1000, 400_000)
        attempt("read", os.pread, fd, 10, 0)
        attempt("stat", os.fstat, fd)
        attempt("truncate", os.ftruncate, fd, 0)
        os.lockf(fd, os.F_LOCK, 1)
        os.lockf(fd, os.F_ULOCK, 1)
        attempt("exec", os.execv, "/bin/true", ["true"])
        attempt("close", os.close, fd)
        attempt("close", os.close, fd)
    """
    async with mounted(tmp_path) as (world, _, at):
        await asyncio.to_thread((at / "f").write_bytes, b"." * 200_000)
        with full(world):
            told = await program(library, code, at / "f", NACRE_IO_BUFFER="1M")
    calls = ("fsync", "write", "read", "stat", "truncate", "exec", "close")
    wanted = ["write ok", *(f"{call} ENOSPC" for call in calls), "close EBADF"]
    assert told.splitlines() == wanted


async def test_a_program_goes_on_once_there_is_room(library: Path, tmp_path: Path) -> None:
    code = """
        import os, sys, time
        fd = os.open(sys.argv[1], os.O_RDWR)
        os.pwrite(fd, b"first", 300_000)
        try:
            os.fsync(fd)
        except OSError as error:
            os.mkdir(sys.argv[2])  # now somebody makes room
        while not os.path.exists(sys.argv[2] + "/room"):
            time.sleep(0.01)
        os.pwrite(fd, b"then", 100)
        os.close(fd)
    """
    async with mounted(tmp_path) as (world, _, at):
        await asyncio.to_thread((at / "f").write_bytes, b"." * 200_000)
        sign = tmp_path / "sign"
        running = asyncio.ensure_future(program(library, code, at / "f", sign, NACRE_IO_BUFFER="1M"))
        with full(world):
            while not sign.exists():
                await asyncio.sleep(0.01)
        (sign / "room").touch()
        await running
        found = await asyncio.to_thread((at / "f").read_bytes)
        assert (found[100:104], found[300_000:], len(found)) == (b"then", b"first", 300_005)


async def test_bytes_that_are_lost_when_a_program_ends_are_spoken_of(library: Path, tmp_path: Path) -> None:
    code = """
        import os, sys
        fd = os.open(sys.argv[1], os.O_RDWR)
        os.dup2(1, 2)
        os.pwrite(fd, b"a" * 1000, 300_000)
    """
    async with mounted(tmp_path) as (world, _, at):
        await asyncio.to_thread((at / "f").write_bytes, b"." * 200_000)
        with full(world):
            told = await program(library, code, at / "f", NACRE_IO_BUFFER="1M")
    assert told == f"libnacre_io: 1000 bytes that were written to a file are lost: {os.strerror(errno.ENOSPC)}\n"


def test_a_buffer_is_sent_over_a_restart_of_an_oss(native: Native) -> None:
    path = native.mount / "buffer-killed"
    with writer(native, path, NACRE_IO_BUFFER="1M") as program:
        for number in range(20):
            program.write(number * 40_000, 20_000, "a")
        native.cluster.kill("oss0")
        program.write(500_000, 20_000, "b")  # nobody is asked
        program.ask(0, 10, "s")
        restart(native)
        program.answer()
    wanted = bytearray((b"a" * 20_000 + bytes(20_000)) * 20)[:780_000]
    wanted[500_000:520_000] = b"b" * 20_000
    wanted[:10] = b"s" * 10
    assert path.read_bytes() == wanted


@pytest.mark.slow
def test_what_an_oss_that_stays_away_has_not_taken_it_is_given_later(native: Native) -> None:
    path = native.mount / "buffer-deadline"
    with writer(native, path, NACRE_IO_TIMEOUT_S="1", NACRE_IO_BUFFER="1M") as program:
        program.write(0, 50_000, "a")
        native.cluster.kill("oss0")
        native.cluster.kill("oss1")
        try:
            program.ask(50_000, 50_000, "s")
            program.answer(str(errno.EIO))
        finally:
            restart(native)
        program.write(100_000, 50_000, "s")
    assert path.read_bytes() == b"a" * 50_000 + b"s" * 100_000


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_buffer_is_sent_in_the_session_that_follows_a_fenced_one(native: Native) -> None:
    path = native.mount / "buffer-fenced"
    with writer(native, path, NACRE_IO_BUFFER="1M") as program:
        program.write(0, 20_000, "a")
        pid = native.cluster.pid("mount")
        os.kill(pid, signal.SIGSTOP)
        time.sleep(25)  # more than two terms of a dev cluster
        program.write(20_000, 20_000, "b")
        program.ask(40_000, 20_000, "s")
        os.kill(pid, signal.SIGCONT)
        program.answer()
    assert path.read_bytes() == b"a" * 20_000 + b"b" * 20_000 + b"s" * 20_000


# ------------------------------------------------------------------------------------------------------- who sees it


def test_others_see_it_after_each_call_that_says_so(native: Native) -> None:
    path = native.mount / "buffer-seen"
    code = """
        import fcntl, os, sys
        path = sys.argv[1]
        fd = os.open(path, os.O_RDWR | os.O_CREAT)
        def written(text):
            os.pwrite(fd, text, 0)
            os.pwrite(fd, text, 100)
        def seen(text):
            with open(path, "rb") as other:  # stdio and Python's own reader: through the mount
                assert other.read() == text + bytes(100 - len(text)) + text, text
        def child():
            pid = os.fork()
            if pid == 0:
                seen(b"fork")
                os.pwrite(fd, b"child", 0)
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
        calls = dict(
            fsync=lambda: os.fsync(fd), data=lambda: os.fdatasync(fd), stat=lambda: os.fstat(fd),
            end=lambda: os.lseek(fd, 0, os.SEEK_END), hole=lambda: os.lseek(fd, 0, os.SEEK_HOLE),
            flock=lambda: fcntl.flock(fd, fcntl.LOCK_EX), unflock=lambda: fcntl.flock(fd, fcntl.LOCK_UN),
            lockf=lambda: fcntl.lockf(fd, fcntl.LOCK_EX), unlock=lambda: fcntl.lockf(fd, fcntl.LOCK_UN),
            dup2=lambda: os.dup2(os.dup(fd), fd), allocate=lambda: os.posix_fallocate(fd, 0, 10), fork=child,
        )
        for name, call in calls.items():
            os.ftruncate(fd, 0)
            written(name.encode())
            call()
            if name != "fork":
                seen(name.encode())
        assert os.pread(fd, 5, 0) == b"child"
        os.ftruncate(fd, 0)
        written(b"range")
        os.closerange(fd, fd + 1)
        seen(b"range")
        fd = os.open(path, os.O_RDWR | os.O_TRUNC)
        written(b"exec")
        os.execv("/bin/cat", ["cat", path])
    """
    assert python(native, code, path, **BUFFER) == "exec" + "\0" * 96 + "exec"
    for end in ("", "os._exit(0)"):
        code = f"""
            import os, sys
            fd = os.open(sys.argv[1], os.O_RDWR | os.O_TRUNC)
            os.pwrite(fd, b"end", 0)
            {end}
        """
        python(native, code, path, **BUFFER)
        assert path.read_bytes() == b"end"


def test_a_reader_sees_what_others_have_written_after_its_own_sync_or_lock(native: Native) -> None:
    path = native.mount / "buffer-reader"
    path.write_bytes(b"1" * 200_000)
    code = """
        import fcntl, os, sys
        fd = os.open(sys.argv[1], os.O_RDWR)
        for line in sys.stdin:
            if line == "sync\\n":
                os.fsync(fd)
            if line == "lock\\n":
                fcntl.lockf(fd, fcntl.LOCK_EX)
            if line == "unlock\\n":
                fcntl.lockf(fd, fcntl.LOCK_UN)
            print(*{os.pread(fd, 10, at).decode() for at in range(0, 190_000, 10_000)}, flush=True)
    """
    reader = subprocess.Popen(
        [sys.executable, "-I", "-c", textwrap.dedent(code), path],
        env=native.environment(**BUFFER),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert reader.stdin is not None
    assert reader.stdout is not None
    with reader:
        seen = [b"1"]
        for turn, how in enumerate(("sync", "lock", "unlock", "sync"), ord("2")):
            reader.stdin.write("look\n")
            reader.stdin.flush()
            assert reader.stdout.readline().strip() == seen[-1].decode() * 10
            path.write_bytes(bytes([turn]) * 200_000)
            seen.append(bytes([turn]))
            reader.stdin.write(f"{how}\n")
            reader.stdin.flush()
            assert reader.stdout.readline().strip() == seen[-1].decode() * 10
        reader.stdin.close()


def test_a_program_reads_what_it_has_written_itself(native: Native) -> None:
    code = """
        import os, random, sys
        dice = random.Random(4)
        fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
        model = bytearray(400_000)
        os.ftruncate(fd, len(model))
        for turn in range(1500):
            size = dice.choice((1, 700, 4096, 90_000 if turn % 50 == 0 else 10))
            at = dice.randrange(len(model) - size)
            if dice.random() < 0.5:
                data = dice.randbytes(size)
                assert os.pwrite(fd, data, at) == size
                model[at : at + size] = data
            else:
                assert os.pread(fd, size, at) == model[at : at + size]
        os.close(fd)
        assert open(sys.argv[1], "rb").read() == model
    """
    python(native, code, native.mount / "buffer-own", **BUFFER)


def test_a_file_that_was_opened_with_o_sync_has_no_buffer(native: Native) -> None:
    path = native.mount / "buffer-sync"
    code = """
        import os, sys
        fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT | os.O_SYNC)
        os.pwrite(fd, b"at once", 0)
        assert open(sys.argv[1], "rb").read() == b"at once"
    """
    python(native, code, path, **BUFFER)


def test_a_size_that_is_none_is_named(native: Native) -> None:
    code = """
        import os, sys
        os.dup2(1, 2)
        os.close(os.open(sys.argv[1], os.O_RDWR | os.O_CREAT))
    """
    told = python(native, code, native.mount / "buffer-none", NACRE_IO="all", NACRE_IO_BUFFER="16X")
    assert told == "libnacre_io: NACRE_IO_BUFFER=16X is no size: give bytes, or a number with K or M\n"


def test_a_killed_program_takes_nothing_with_it_but_its_own(native: Native) -> None:
    path = native.mount / "buffer-kill"
    path.touch()
    program = Writer(native, path, NACRE_IO_BUFFER="1M")
    with program.process:
        program.write(0, 1000, "s")
        program.write(1000, 1000, "a")
        program.process.kill()
    assert path.read_bytes() == b"s" * 1000


# ----------------------------------------------------------------------------------------------------------------- MPI


@pytest.mark.parametrize(
    ("parts", "ranks"), [("mx", 2), pytest.param("cimnpstx", 3, marks=pytest.mark.slow)], ids=["short", "all"]
)
def test_everything_that_mpi_io_can_do_with_a_buffer(native: Native, engine: Engine, parts: str, ranks: int) -> None:
    built, at = compiled(native, engine, "collective.c"), folder(native, engine, f"buffered{ranks}")
    if engine.name.endswith("ompio"):
        parts = parts.replace("m", "")  # it does not wait for the others' part of a collective write (docs/mpi.md)
    told = run(native, engine, ranks, built, f"nacre:{at}", parts, *HINTS, "nacre_buffer_size=1M")
    assert "nacre_buffer_size=1048576\n" in told
    assert "passed" in told
