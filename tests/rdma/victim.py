"""A process that will be killed: a server, or a client in the middle of its calls. What is checked is the other side.

The victim's file memory is shared memory of the kernel's, which whoever may open it through /proc still sees when the
process is gone: a write that comes after its death would show there.
"""

import asyncio
import ctypes
import mmap
import os
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from nacrefs.common import arena, faults
from nacrefs.common.auth import Keyring
from nacrefs.common.observe import Meter
from nacrefs.common.remote import Remote
from tests.common.endpoints import ends, read, results, write

GUARD = b"\x9d"
"""No byte of `guards` is ever offered to anybody."""
BULK_BYTES = 260_000
AT_ONCE = 4


class Place(NamedTuple):
    """A victim's registered memory, and which parts of it nobody may touch."""

    address: int
    size: int
    guards: tuple[tuple[int, int], ...]
    url: str


class Memory:
    """A victim's memory, seen from outside for as long as this is open."""

    def __init__(self, pid: int, place: Place) -> None:
        name = f"/proc/{pid}/map_files/{place.address:x}-{place.address + place.size:x}"
        descriptor = os.open(name, os.O_RDONLY)
        try:
            self._map = mmap.mmap(descriptor, place.size, prot=mmap.PROT_READ)
        finally:
            os.close(descriptor)
        self._guards = place.guards

    def contents(self) -> bytes:
        return self._map[:]

    def guarded(self) -> bool:
        """Whether what was never offered is as it was."""
        return all(self._map[start : start + size] == GUARD * size for start, size in self._guards)

    def close(self) -> None:
        self._map.close()


def guards(count: int) -> list[memoryview]:
    """Pieces of registered memory full of the pattern."""
    found: list[memoryview] = []
    for _ in range(count):
        view = arena.share().take(BULK_BYTES)
        assert view is not None
        view[:] = GUARD * BULK_BYTES
        found.append(view)
    return found


def buffers(filler: bytes) -> tuple[list[memoryview], list[memoryview], list[memoryview]]:
    """Memory to read into, to write from, and guards between them."""
    reading: list[memoryview] = []
    writing: list[memoryview] = []
    between: list[memoryview] = []
    for _ in range(AT_ONCE):
        for views in (reading, writing):
            view = arena.share().take(BULK_BYTES)
            assert view is not None
            view[:] = filler * BULK_BYTES
            views.append(view)
        between += guards(1)
    return reading, writing, between


def calls(remote: Remote, reading: list[memoryview], writing: list[memoryview]) -> list["asyncio.Future[Any]"]:
    """Reads and writes, all at once."""
    asked: list[asyncio.Future[Any]] = []
    for into, data in zip(reading, writing, strict=True):
        asked.append(remote.call(read(BULK_BYTES), into=[into]))
        asked.append(remote.call(write(BULK_BYTES), data=[data]))
    return asked


def _place(between: list[memoryview], url: str) -> Place:
    (segment,) = arena.share().segments
    starts = [ctypes.addressof(ctypes.c_char.from_buffer(view)) - segment.address for view in between]
    return Place(segment.address, segment.size, tuple((start, BULK_BYTES) for start in starts), url)


async def _serve(pipe: Connection, keyring: Keyring) -> None:
    async with ends("rdma", devices=True, keyring=keyring) as both:
        pipe.send(_place(guards(AT_ONCE), both.url))
        await asyncio.Event().wait()


async def _ask(pipe: Connection, keyring: Keyring, url: str) -> None:
    reading, writing, between = buffers(b"v")
    pipe.send(_place(between, url))
    assert pipe.recv() == "go"
    remote = Remote(url, keyring.best_credentials(), "victim", {}, Meter())
    await remote.open()
    while True:
        await results(calls(remote, reading, writing))
        pipe.send("answered")
        assert pipe.recv() == "go"


def live(pipe: Connection, keyring: Keyring, url: str, fault: str) -> None:
    """A server, or with a `url` a client of that server, until it is killed; `fault` (as in NACRE_FAULTS) may do it."""
    faults.arm_from(fault)
    asyncio.run(_ask(pipe, keyring, url) if url else _serve(pipe, keyring))
