"""The tier when S3 fails: answers with errors, short and wrong bodies, hangs, and a server that is killed.

A small proxy stands between the movers and a real server; a test tells it what to do with the next requests. Each test
also counts that the fault did happen.
"""

import asyncio
import errno
import io
import os
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from aiohttp import ClientSession, web
from msgspec.structs import replace
from yarl import URL

from nacrefs.client.vfs import Vfs
from nacrefs.common.wire import ArchiveSpec, HsmAction, HsmFlag, HsmState, SetArchive, XattrFlag
from tests.client.world import World, cluster, read_file, write_file
from tests.s3 import S3Server, s3_server

ROOT = 1
DATA = os.urandom(300_000)


class Proxy:
    """Passes everything on, unless `fault` answers instead (request, the server's body)."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self.faults: list[tuple[str, int, int]] = []
        """(method, status or -1 short, -2 wrong bytes, how often)"""
        self.injected = 0

    async def __aenter__(self) -> "Proxy":
        self._session = ClientSession(auto_decompress=False)
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{tail:.*}", self._pass)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()
        await self._session.close()

    def fail(self, method: str, how: int, times: int) -> None:
        """What becomes of the next requests of a method."""
        self.faults.append((method, how, times))

    def _fault(self, method: str) -> int:
        for index, (wanted, how, times) in enumerate(self.faults):
            if wanted == method:
                self.faults[index] = (wanted, how, times - 1)
                if times == 1:
                    del self.faults[index]
                self.injected += 1
                return how
        return 0

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        how = self._fault(request.method)
        if how > 0:
            code = {503: "SlowDown", 403: "AccessDenied", 404: "NoSuchKey", 500: "InternalError"}[how]
            await request.read()
            return web.Response(status=how, text=f"<Error><Code>{code}</Code></Error>", content_type="application/xml")
        body = await request.read()
        headers = {name: value for name, value in request.headers.items() if name.lower() != "expect"}
        url = URL(self._endpoint + request.raw_path, encoded=True)
        if how and request.method == "PUT":
            body = body[:-1] + bytes([body[-1] ^ 1]) if body else body
        async with self._session.request(request.method, url, data=io.BytesIO(body), headers=headers) as answer:
            data = await answer.read()
            passed = {
                name: value
                for name, value in answer.headers.items()
                if name.lower() not in ("transfer-encoding", "content-length", "connection")
            }
            if how == -2 and request.method == "GET":
                data = data[:-1] + bytes([data[-1] ^ 1])
            if how == -1 and request.method == "GET":
                response = web.StreamResponse(
                    status=answer.status, headers={**passed, "Content-Length": str(len(data))}
                )
                await response.prepare(request)
                await response.write(data[: len(data) // 2])
                assert request.transport is not None
                request.transport.close()
                return response
            if request.method == "HEAD":
                passed["Content-Length"] = answer.headers.get("Content-Length", "0")
                return web.Response(status=answer.status, headers=passed)
            return web.Response(status=answer.status, headers=passed, body=data)


class Faulty(World):
    """A cluster whose archive is behind a proxy."""

    proxy: Proxy

    async def over(self, fid: int) -> HsmState:
        async with asyncio.timeout(50):
            while fid in self.mds.mds.hsm.active:
                await asyncio.sleep(0.01)
        return self.mds.mds.hsm.state(fid)

    async def act(self, kind: HsmAction, fid: int) -> HsmState:
        await self.mds.mds.hsm.request(kind, fid, 0, 0)
        return await self.over(fid)


@pytest.fixture
async def world(s3: S3Server, s3_archive: ArchiveSpec, tmp_path: Path) -> AsyncGenerator[Faulty]:
    base = cluster(tmp_path)
    base.__class__ = Faulty
    made: Faulty = base  # type: ignore[assignment]
    async with Proxy(s3.endpoint) as proxy, made:
        made.proxy = proxy
        vfs = await made.vfs()
        await vfs.session.mds.call(SetArchive(replace(s3_archive, id=0, endpoint=proxy.url)))
        yield made


async def _released(world: Faulty) -> tuple[Vfs, int]:
    vfs = await world.vfs()
    fid = await write_file(vfs, ROOT, b"file", DATA)
    assert (await world.act(HsmAction.ARCHIVE, fid)).state == "SUCCEED"
    assert (await world.act(HsmAction.RELEASE, fid)).flags & HsmFlag.RELEASED
    return vfs, fid


@pytest.mark.parametrize(("how", "times"), [(503, 8), (500, 6), (-1, 4), (-2, 3)])
async def test_a_reader_never_hears_of_what_passes(world: Faulty, how: int, times: int) -> None:
    vfs, _ = await _released(world)
    world.proxy.fail("GET", how, times)
    assert await read_file(vfs, ROOT, b"file") == DATA
    assert world.proxy.injected == times


@pytest.mark.parametrize(("how", "lost"), [(403, False), (404, True)])
async def test_what_does_not_pass_is_eio_with_the_reason_and_can_be_tried_again(
    world: Faulty, how: int, lost: bool
) -> None:
    vfs, fid = await _released(world)
    world.proxy.fail("GET", how, 1)
    with pytest.raises(OSError, match=".") as caught:
        await read_file(vfs, ROOT, b"file")
    assert caught.value.errno == errno.EIO
    state = await world.over(fid)
    assert bool(state.flags & HsmFlag.LOST) == lost
    assert "archive cold" in state.reason
    if lost:
        await vfs.setxattr(fid, b"nacre.hsm", b"clear lost", XattrFlag(0))
    assert await read_file(vfs, ROOT, b"file") == DATA
    assert world.proxy.injected == 1


@pytest.mark.parametrize(("how", "times"), [(503, 7), (500, 4), (-2, 3)])
async def test_archiving_goes_on_after_what_passes(world: Faulty, how: int, times: int) -> None:
    vfs = await world.vfs()
    fid = await write_file(vfs, ROOT, b"file", DATA)
    world.proxy.fail("PUT", how, times)
    state = await world.act(HsmAction.ARCHIVE, fid)
    assert state.flags & HsmFlag.ARCHIVED, state
    await world.act(HsmAction.RELEASE, fid)
    assert await read_file(vfs, ROOT, b"file") == DATA
    assert world.proxy.injected == times


async def test_what_is_refused_is_not_archived(world: Faulty) -> None:
    vfs = await world.vfs()
    fid = await write_file(vfs, ROOT, b"file", DATA)
    world.proxy.fail("PUT", 403, 1)
    state = await world.act(HsmAction.ARCHIVE, fid)
    assert (state.state, state.flags) == ("FAILED", 0)
    assert "access denied" in state.reason
    assert world.proxy.injected == 1


async def test_a_killed_s3_server_holds_things_up_and_nothing_more(tmp_path: Path) -> None:
    with s3_server() as server:
        async with cluster(tmp_path) as world:
            vfs = await world.vfs()
            spec = ArchiveSpec(
                0, "cold", "s3", f"s3://{server.bucket()}", endpoint=server.endpoint, credentials=server.credentials
            )
            await vfs.session.mds.call(SetArchive(spec))
            fid = await write_file(vfs, ROOT, b"file", DATA)
            hsm = world.mds.mds.hsm
            await hsm.request(HsmAction.ARCHIVE, fid, 0, 0)
            while fid in hsm.active:
                await asyncio.sleep(0.01)
            await hsm.request(HsmAction.RELEASE, fid, 0, 0)
            while fid in hsm.active:
                await asyncio.sleep(0.01)
            server.kill()
            reading = asyncio.ensure_future(read_file(vfs, ROOT, b"file"))
            while not hsm.state(fid).attempts:
                await asyncio.sleep(0.01)
            await asyncio.to_thread(server.start)
            assert await reading == DATA


async def test_an_oss_that_restarts_in_the_middle(world: Faulty) -> None:
    vfs = await world.vfs()
    data = os.urandom(30 << 20)
    fid = await write_file(vfs, ROOT, b"file", data)
    await world.mds.mds.hsm.request(HsmAction.ARCHIVE, fid, 0, 0)
    await asyncio.sleep(0.1)
    await world.oss.pop(0).stop()
    await world.start_oss(0)
    state = await world.over(fid)
    assert state.flags & HsmFlag.ARCHIVED, state
    await world.act(HsmAction.RELEASE, fid)
    reading = asyncio.ensure_future(read_file(vfs, ROOT, b"file"))
    await asyncio.sleep(0.1)
    await world.oss.pop(-1).stop()
    await world.start_oss(0)
    assert await reading == data
