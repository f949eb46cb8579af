"""A real MDS and real OSTs in the test's own event loop, with as many clients as a test wants."""

import asyncio
import os
from pathlib import Path

from nacrefs.client.config import CacheConfig, ClientConfig, ReadConfig, WriteConfig
from nacrefs.client.filesystem import Cred, Dirent
from nacrefs.client.sdk import AsyncClient
from nacrefs.client.vfs import Vfs
from nacrefs.common.answer import settle
from nacrefs.common.clock import Clock
from nacrefs.common.config import Size
from nacrefs.mds.config import LayoutConfig
from tests.harness.cluster import SCHEME, Cluster

CRED = Cred(os.geteuid(), os.getegid(), 1)


class World(Cluster):
    """The harness's cluster, with clients made to measure."""

    async def restart_mds(self) -> None:
        """Stop the MDS and start it again on the same database."""
        await self.mds.stop()
        await self.start_mds()

    async def vfs(
        self,
        *,
        inodes: int = 10_000,
        memory_bytes: int = 64 << 20,
        write: WriteConfig | None = None,
        read: ReadConfig | None = None,
        clock: Clock | None = None,
    ) -> Vfs:
        """Another client."""
        config = ClientConfig(
            mds=self.mds.url,
            cache=CacheConfig(inodes=inodes, memory_bytes=Size(memory_bytes)),
            write=write or WriteConfig(retry_s=0.05),
            read=read or ReadConfig(),
        )
        vfs = Vfs(config, self.keyring.best_credentials(), clock=clock)
        await vfs.attach()
        self.clients.append(vfs)
        return vfs

    async def sdk(self) -> AsyncClient:
        """Another client, by its paths."""
        return AsyncClient(await self.vfs(), CRED)


def cluster(
    directory: Path,
    stripe_count: int = 2,
    stripe_size: int = 128 << 10,
    term_s: float = 30.0,
    scheme: str = SCHEME,
    database: str | None = None,
    clock: Clock | None = None,
) -> World:
    """Four OSTs; files are striped over two of them in small units."""
    layout = LayoutConfig(stripe_count=stripe_count, stripe_size=Size(stripe_size))
    return World(directory, term_s=term_s, layout=layout, scheme=scheme, database=database, clock=clock)


class Counting:
    """Requests that a client has sent since this was made, by name."""

    def __init__(self, vfs: Vfs) -> None:
        self._vfs = vfs
        self._before = self._now()

    def _now(self) -> dict[str, int]:
        sent = {name: tally.count for name, tally in self._vfs.meter.tallies.items()}
        for name in ("Recall", "Keepalive", "Yield", "Attach"):
            sent.pop(name, None)
        return sent

    def __call__(self) -> dict[str, int]:
        """What was sent, and begin anew."""
        before, self._before = self._before, self._now()
        return {
            name: count - before.get(name, 0) for name, count in self._before.items() if count != before.get(name, 0)
        }


async def quiet(vfs: Vfs) -> None:
    """Wait until nothing happens behind the caller's back."""
    while vfs.store.dirty or vfs.session.background:
        for task in list(vfs.session.background):
            await asyncio.wait([task])
        await asyncio.sleep(0)


async def write_file(vfs: Vfs, parent: int, name: bytes, data: bytes, flags: int = 0) -> int:
    """Make a file with these contents and close it; its fid."""
    found, handle = await settle(vfs.create(parent, name, 0o644, os.O_RDWR | os.O_CREAT | flags, CRED))
    assert found.attr is not None
    if data:
        await settle(vfs.write(handle.number, 0, memoryview(data)))
    await close(vfs, handle.number)
    return found.attr.fid


async def close(vfs: Vfs, number: int) -> None:
    """close(2) of the last descriptor."""
    try:
        await settle(vfs.flush(number))
    finally:
        await settle(vfs.release(number))


async def open_file(vfs: Vfs, fid: int, flags: int = os.O_RDONLY) -> int:
    """The number of a new handle."""
    return (await settle(vfs.open(fid, flags))).number


async def read(vfs: Vfs, number: int, offset: int = 0, size: int = 1 << 20) -> bytes:
    """Bytes by handle."""
    return b"".join(await settle(vfs.read(number, offset, size)))


async def read_file(vfs: Vfs, parent: int, name: bytes) -> bytes:
    """A whole file, by name."""
    found = await settle(vfs.lookup(parent, name))
    assert found.attr is not None, f"{name!r} is absent"
    return await contents(vfs, found.attr.fid)


async def contents(vfs: Vfs, fid: int) -> bytes:
    """A whole file, by fid."""
    number = await open_file(vfs, fid)
    try:
        parts: list[bytes] = []
        while part := await read(vfs, number, sum(map(len, parts))):
            parts.append(part)
        return b"".join(parts)
    finally:
        await close(vfs, number)


async def names(vfs: Vfs, fid: int) -> list[bytes]:
    """All names in a directory but the dots."""
    return [entry.name for entry in await entries(vfs, fid)]


async def entries(vfs: Vfs, fid: int) -> list[Dirent]:
    """All entries of a directory but the dots."""
    handle = await settle(vfs.opendir(fid))
    found: list[Dirent] = []
    cookie = 0
    while batch := list(await settle(vfs.readdir(handle.number, cookie))):
        cookie = batch[-1].cookie
        found.extend(batch)
    await settle(vfs.releasedir(handle.number))
    return [entry for entry in found if entry.name not in (b".", b"..")]
