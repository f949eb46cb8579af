"""A server and a client in one event loop, for tests of calls between them."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from nacrefs.common.auth import Keyring, new_keyring
from nacrefs.common.buffers import BufferPool
from nacrefs.common.observe import Meter
from nacrefs.common.remote import Remote, Server
from nacrefs.common.rpc import Call, Peer
from nacrefs.common.wire import (
    Attr,
    Capability,
    Data,
    Entry,
    Inspect,
    Inspection,
    Lookup,
    Node,
    Read,
    Request,
    Write,
    Written,
)
from tests.harness.fabric import rdma_devices

ATTR = Attr(*range(12))
NO_CAPABILITY = Capability(0, 0, b"")
KEYRING = new_keyring("test-cluster")
Handlers = dict[type[Request[Any]], Callable[[Any, Call], Any]]

_names = itertools.count()


def read(length: int) -> Read:
    return Read(0, 1, 0, 0, NO_CAPABILITY, ((0, length),))


def write(length: int) -> Write:
    return Write(0, 1, 0, 0, NO_CAPABILITY, ((0, length),), b"")


def looked_up(request: Lookup, call: Call) -> Entry:
    return Entry(Node(ATTR) if request.name != b"absent" else None)


def inspected(request: Inspect, call: Call) -> Inspection:
    return Inspection(request.what.encode())


def data_read(request: Read, call: Call) -> Data:
    """As many bytes as asked for, each the low byte of its place."""
    size = request.extents[0][1]
    call.push([memoryview((bytes(range(256)) * (size // 256 + 1))[:size])])
    return Data((size,), b"", 1)


def data_written(request: Write, call: Call) -> Written:
    """The number of bytes that came, and their sum."""
    return Written(len(call.pull()), 0, sum(call.pull()))


HANDLERS: Handlers = {Lookup: looked_up, Inspect: inspected, Read: data_read, Write: data_written}


class Ends:
    """A server, and the clients that were made for it."""

    def __init__(self, server: Server, url: str, pool: BufferPool) -> None:
        self.server = server
        self.url = url
        self.pool = pool
        self.remotes: list[Remote] = []

    def remote(
        self,
        service: Handlers | None = None,
        keyring: Keyring = KEYRING,
        name: str = "client-1",
        address: str = "",
    ) -> Remote:
        """A client that is not connected yet."""
        remote = Remote(
            address or self.url,
            keyring.best_credentials(),
            name,
            service or {},
            Meter(),
            self.pool,
            handshake_s=5,
        )
        self.remotes.append(remote)
        return remote

    async def connected(self, service: Handlers | None = None, name: str = "client-1") -> Remote:
        """A client that is."""
        remote = self.remote(service, name=name)
        await remote.open()
        return remote

    @property
    def peer(self) -> Peer:
        """The only client, as the server sees it."""
        (peer,) = self.server.peers
        return peer


@asynccontextmanager
async def ends(
    scheme: str,
    handlers: Handlers = HANDLERS,
    pool_bytes: int = 16 << 20,
    handshake_s: float = 5.0,
    devices: bool = False,
    keyring: Keyring = KEYRING,
) -> AsyncGenerator[Ends]:
    """A server at an address of this scheme; when it ends, no buffer may be out. With `devices`, RDMA has
    its devices already."""
    pool = BufferPool(pool_bytes)
    server = Server(handlers, keyring, "server-1", Meter(), pool, handshake_s)
    with contextlib.ExitStack() as stack:
        if scheme == "rdma" and not devices:
            stack.enter_context(rdma_devices())
        url = await server.listen(f"mem://rpc-{next(_names)}" if scheme == "mem" else f"{scheme}://127.0.0.1:0")
        both = Ends(server, url, pool)
        try:
            yield both
        finally:
            for remote in both.remotes:
                await remote.aclose()
            await server.close()
    assert pool.used_bytes == 0
    assert not server.peers


async def until(condition: Callable[[], object], turns: int = 20_000) -> None:
    """Let the event loop turn until something is so."""
    for _ in range(turns):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it did not happen")


async def results(calls: Sequence[Any]) -> list[Any]:
    """What calls ended with: replies, or errors."""
    return await asyncio.gather(*calls, return_exceptions=True)
