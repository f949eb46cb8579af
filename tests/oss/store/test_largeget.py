"""Large ranges that arrive in memory of the caller's."""

import asyncio
import os
import socket
from collections.abc import AsyncGenerator

import pytest
from msgspec.structs import replace

from nacrefs.common.wire import ArchiveSpec
from nacrefs.oss.store.s3 import S3Store
from tests.cluster.tier import Proxy
from tests.s3 import S3Server

DATA = os.urandom(5 << 20)
START, END = 1000, 1000 + (4 << 20)


@pytest.fixture
async def proxy(s3: S3Server) -> AsyncGenerator[Proxy]:
    async with Proxy(s3.endpoint) as made:
        yield made


@pytest.fixture
async def store(proxy: Proxy, s3_archive: ArchiveSpec) -> AsyncGenerator[S3Store]:
    made = S3Store(replace(s3_archive, endpoint=proxy.url))
    await made.put("key", [memoryview(DATA)], {})
    yield made
    await made.close()


async def test_they_are_written_where_they_are_wanted(store: S3Store) -> None:
    into = memoryview(bytearray(5 << 20))
    for _ in range(2):  # over one connection
        into[:] = bytes(len(into))
        got = await store.get("key", START, END, len(DATA), into=into)
        assert got.obj is into.obj
        assert got == DATA[START:END]
        assert into[: END - START] == got


async def test_short_ranges_have_memory_of_their_own(store: S3Store) -> None:
    into = memoryview(bytearray(1000))
    got = await store.get("key", 0, 1000, into=into)
    assert got.obj is not into.obj
    assert got == DATA[:1000]


@pytest.mark.parametrize("how", [503, 500, -1])
async def test_what_does_not_go_smoothly_is_asked_for_again(store: S3Store, proxy: Proxy, how: int) -> None:
    into = memoryview(bytearray(5 << 20))
    proxy.fail("GET", how, 1)
    assert await store.get("key", START, END, into=into) == DATA[START:END]
    assert proxy.injected == 1


async def test_an_idle_connection_that_the_server_has_closed_is_not_missed(store: S3Store) -> None:
    into = memoryview(bytearray(5 << 20))
    await store.get("key", START, END, into=into)
    ((_, connection),) = store.large.idle
    connection.sock.shutdown(socket.SHUT_RDWR)
    got = await store.get("key", START, END, into=into)
    assert got.obj is into.obj
    assert got == DATA[START:END]


async def test_whoever_gives_up_does_not_wait_for_the_server(store: S3Store, proxy: Proxy) -> None:
    into = memoryview(bytearray(5 << 20))
    proxy.hold("GET")
    getting = asyncio.ensure_future(store.get("key", START, END, into=into))
    async with asyncio.timeout(30):
        await proxy.held.wait()
        getting.cancel()
        await asyncio.wait([getting])
    assert getting.cancelled()
    proxy.let_go()
