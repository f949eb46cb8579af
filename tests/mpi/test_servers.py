"""The library against servers in the test's own event loop, where their state can be seen and set."""

import asyncio
import errno
import os
import sys
import textwrap
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from nacrefs.client.fuse.session import Session as FuseSession
from nacrefs.client.programs import Programs
from nacrefs.client.vfs import Vfs
from nacrefs.common.wire import Role
from tests.client.world import World, cluster
from tests.harness.process import need_mounts

_SETTINGS = {"NACRE_IO": "all", "NACRE_IO_TIMEOUT_S": "20"}


@asynccontextmanager
async def mounted(tmp_path: Path) -> AsyncGenerator[tuple[World, Vfs, Path]]:
    need_mounts()
    at = tmp_path / "mnt"
    at.mkdir()
    async with cluster(tmp_path, scheme="tcp", stripe_count=4, stripe_size=64 << 10) as world:
        vfs = await world.vfs()
        programs = Programs(vfs, world.keyring.credentials(Role.CLIENT))
        try:
            async with FuseSession(vfs, "test", str(at), root=vfs.root):
                yield world, vfs, at
        finally:
            await programs.close()


async def program(library: Path, code: str, *words: str | Path, **environment: str) -> str:
    """Run a Python program with the library; what it printed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-c", textwrap.dedent(code), *map(str, words),
        env={**os.environ, **_SETTINGS, **environment, "LD_PRELOAD": str(library)},
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    told, _ = await asyncio.wait_for(process.communicate(), 40)
    assert process.returncode == 0, told
    return told.decode()


def requests(world: World, name: str) -> int:
    """How often all OSSes have been asked this."""
    return sum(oss.meter.tallies[name].count for oss in world.oss if name in oss.meter.tallies)


async def test_full_osts_say_so_and_take_more_when_there_is_room(library: Path, tmp_path: Path) -> None:
    code = """
        import os, sys
        fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
        try:
            print(os.pwrite(fd, b"x" * 1_000_000, int(sys.argv[2])))
            os.fsync(fd)
        except OSError as error:
            print(error.errno)
    """
    async with mounted(tmp_path) as (world, _, at):
        assert await program(library, code, at / "f", "0") == "1000000\n"
        spaces = [target.space for oss in world.oss for target in oss.targets]
        before = [space.reserve_bytes for space in spaces]
        for space in spaces:
            space.reserve_bytes = 1 << 60
            space._asked_s = float("-inf")  # pyright: ignore[reportPrivateUsage]
        assert await program(library, code, at / "f", "2000000") == f"{errno.ENOSPC}\n"
        for space, reserve_bytes in zip(spaces, before, strict=True):
            space.reserve_bytes = reserve_bytes
            space._asked_s = float("-inf")  # pyright: ignore[reportPrivateUsage]
        assert await program(library, code, at / "f", "2000000") == "1000000\n"


async def test_one_transfer_is_one_request_to_each_object_and_none_to_the_mds(library: Path, tmp_path: Path) -> None:
    code = """
        import os, sys
        fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
        print("open", file=sys.stderr)
        os.pwrite(fd, bytes(1 << 20), 0)
        os.pwritev(fd, [b"v" * 100] * 1000, 10)
        os.preadv(fd, [bytearray(100) for _ in range(1000)], 10)
        os.fsync(fd)
    """
    async with mounted(tmp_path) as (world, _, at):
        await program(library, code, at / "f")
        assert requests(world, "Write") == 4 + 2  # 1 MiB over 4 objects, then 100 kB in 1000 pieces of memory
        assert requests(world, "Read") == 2
        assert world.mds.meter.tallies["OpenDirect"].count == 1


async def test_a_capability_that_runs_out_is_renewed(library: Path, tmp_path: Path) -> None:
    code = """
        import os, sys
        fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
        for number in range(3):
            os.pwrite(fd, b"x" * 100_000, 0)
            print(len(os.pread(fd, 100_000, 0)))
    """
    async with mounted(tmp_path) as (world, _, at):
        mds = world.mds.mds
        mds.settings = mds.settings._replace(capability_s=5)  # the library renews what has ten seconds left
        assert await program(library, code, at / "f") == "100000\n" * 3
        assert world.mds.meter.tallies["OpenDirect"].count >= 6
