"""Real mounts of a filesystem in memory. What touches the mount runs in a thread (`off_loop`) or another process: the
event loop of the test serves it."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from nacrefs.client.fuse.session import Session
from tests.client.fuse.memory import MemoryFilesystem


def errno_of(act: Callable[[], object]) -> int | None:
    """The errno with which `act` fails; it must fail."""
    try:
        act()
    except OSError as error:
        return error.errno
    raise AssertionError("it succeeded")


class Mount(NamedTuple):
    """A mounted filesystem: where, what serves it, what is behind it."""

    path: Path
    session: Session
    fs: MemoryFilesystem


@pytest.fixture(autouse=True)
def can_mount() -> None:
    if not os.path.exists("/dev/fuse"):
        pytest.skip("there is no /dev/fuse (modprobe fuse, or docker run --device /dev/fuse --cap-add SYS_ADMIN)")
    if os.geteuid() != 0:
        pytest.skip("mounting and looking at the kernel's caches needs root")


@pytest.fixture
def mount_point(tmp_path: Path) -> Path:
    path = tmp_path / "mnt"
    path.mkdir()
    return path


@pytest.fixture
async def mount(mount_point: Path) -> AsyncIterator[Mount]:
    """A mount whose names and attributes the kernel may keep."""
    fs = MemoryFilesystem()
    async with Session(fs, "memory", str(mount_point)) as session:
        yield Mount(mount_point, session, fs)


@pytest.fixture
async def uncached(mount_point: Path) -> AsyncIterator[Mount]:
    """A mount whose names and attributes the kernel asks for each time; files open for writing use the page cache."""
    fs = MemoryFilesystem(cacheable=False, direct=False)
    async with Session(fs, "memory", str(mount_point)) as session:
        yield Mount(mount_point, session, fs)


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], Awaitable[None]]:
    """Wait for what no event tells."""

    async def wait(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.001)

    return wait
