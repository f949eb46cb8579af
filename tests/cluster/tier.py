"""A cluster with an archive, for tests of the lifecycle tier; and a neighbour of its S3 server who can misbehave."""

import asyncio
import io
import os
from pathlib import Path
from typing import Any, Self

from aiohttp import ClientConnectionError, ClientSession, web
from msgspec.structs import replace
from yarl import URL

from nacrefs.client.vfs import Vfs
from nacrefs.common.answer import settle
from nacrefs.common.wire import ArchiveSpec, HsmAction, HsmFlag, HsmState, SetArchive
from nacrefs.mds.fsck.job import fsck
from nacrefs.mds.hsm.coordinator import Coordinator
from tests.client.world import World, cluster

ROOT = 1
SHORT, WRONG, LOST, RESET, EMPTY, PAGE, CUT, SILENT = range(-1, -9, -1)
"""Faults of a `Proxy`: the connection ends in the middle of the answer, a byte is another one, the request is carried
out and answered with an error, the connection is reset, the answer is empty, or some web page, or half of itself
although it says that it is whole, or never comes."""


class Tier(World):
    """A cluster with one archive."""

    spec: ArchiveSpec
    proxy: "Proxy"

    @property
    def hsm(self) -> Coordinator:
        """The coordinator that runs now."""
        return self.mds.mds.hsm

    async def state(self, fid: int) -> HsmState:
        return self.hsm.state(fid)

    async def act(self, kind: HsmAction, fid: int) -> HsmState:
        """Ask for an action and wait until it is over."""
        await self.hsm.request(kind, fid, 0, 0)
        return await self.over(fid)

    async def over(self, fid: int) -> HsmState:
        async with asyncio.timeout(50):
            while fid in self.hsm.active:
                await asyncio.sleep(0.01)
        return await self.state(fid)

    async def archived(self, fid: int, release: bool = True) -> None:
        state = await self.act(HsmAction.ARCHIVE, fid)
        assert state.flags & HsmFlag.ARCHIVED, state
        if release:
            state = await self.act(HsmAction.RELEASE, fid)
            assert state.flags & HsmFlag.RELEASED, state

    def objects(self) -> list[str]:
        """All object files of all OSTs."""
        return [
            name
            for _, _, names in os.walk(self.directory)
            for name in names
            if "." in name and len(name) > 16 and name[:16].isalnum() and name.rpartition(".")[2].isdigit()
        ]

    async def store(self) -> Any:
        return await self.oss[0].mover.archives.of(self.spec)

    async def whole(self) -> None:
        """Nothing is under way; every object has an owner and every owner his object, in the archive and on OSTs."""
        store, names = self.mds.mds.mdt.store, await self.store()

        def files(column: str) -> set[Any]:
            return {row[0] for row in store.fetchall(f"SELECT {column}")}

        async def left() -> list[Any]:
            under_way = [action.row for action in self.hsm.active.values()]
            unowned = {name.partition(".")[0] for name in self.objects()} - self.stored()
            keys = set(await self.keys()) ^ files("key FROM hsm WHERE key <> ''")
            kinds = {
                "under way": under_way, "objects of OSTs": unowned, "objects": keys,
                "to delete": files("key FROM hsm_gone"), "to destroy": files("fid FROM destroy"),
            }  # fmt: skip
            return [one for one in kinds.items() if one[1]]

        until_s = asyncio.get_running_loop().time() + 50
        while remains := await left():  # what is removed while it is open goes when it is closed
            assert asyncio.get_running_loop().time() < until_s, remains
            await asyncio.sleep(0.05)
        assert await names.uploads() == []
        found = await fsck(self.mds.mds)
        assert found == [], found

    def stored(self) -> set[str]:
        """The files that have objects."""
        rows = self.mds.mds.mdt.store.fetchall("SELECT fid FROM inode WHERE layout IS NOT NULL AND flags & 128 = 0")
        return {f"{row[0]:016x}" for row in rows}

    async def keys(self) -> list[str]:
        return [entry.key for entry in (await (await self.store()).page("", "", 1000)).entries]


def tier_on(directory: Path, database: str | None = None) -> Tier:
    """A cluster of four OSTs over which files are striped in MiB; its archive comes with `add_archive`."""
    directory.mkdir()
    base = cluster(directory, stripe_count=4, stripe_size=1 << 20, database=database)
    base.__class__ = Tier
    return base  # type: ignore[return-value]


async def add_archive(tier: Tier, spec: ArchiveSpec) -> Vfs:
    """Give it an archive; a client."""
    vfs = await tier.vfs()
    await vfs.session.mds.call(SetArchive(replace(spec, id=0)))
    tier.spec = replace(spec, id=1)
    return vfs


async def attr(vfs: Vfs, fid: int) -> Any:
    return (await settle(vfs.getattr(fid))).attr


class Proxy:
    """An S3 server's neighbour, who passes everything on, or answers with a fault instead, or holds requests back."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self.faults: list[tuple[str, int, int, int]] = []
        """(method or LIST, status or one of the faults above, how often, after how many others)"""
        self.full: tuple[int, str] | None = None
        """Status and code with which everything is refused that has bytes to store; None: there is room."""
        self.refused = 0
        self.injected = 0
        self.held = asyncio.Event()
        """A request is being held back."""
        self._holding = ""
        self._holding_from = 0
        self._go_on = asyncio.Event()
        self._closing = asyncio.Event()

    async def __aenter__(self) -> Self:
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
        self._closing.set()
        await self._runner.cleanup()
        await self._session.close()

    def fail(self, method: str, how: int, times: int, after: int = 0) -> None:
        """What becomes of the next requests of a method (or LIST), but for the first `after` of them."""
        self.faults.append((method, how, times, after))

    def hold(self, method: str, start: int = 0) -> None:
        """Hold requests with this method (or LIST) for bytes from `start` on back until `let_go`."""
        self._holding = method
        self._holding_from = start
        self.held.clear()
        self._go_on.clear()

    def let_go(self) -> None:
        """Pass on what was held back."""
        self._holding = ""
        self._go_on.set()

    def _fault(self, method: str) -> int:
        for index, (wanted, how, times, after) in enumerate(self.faults):
            if wanted == method and after:
                self.faults[index] = (wanted, how, times, after - 1)
            elif wanted == method:
                self.faults[index] = (wanted, how, times - 1, 0)
                if times == 1:
                    del self.faults[index]
                self.injected += 1
                return how
        return 0

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        kind = _kind_of(request)
        how = self._fault(kind)
        if how > 0:
            code = {503: "SlowDown", 403: "AccessDenied", 404: "NoSuchKey", 500: "InternalError"}[how]
            await request.read()
            return web.Response(status=how, text=f"<Error><Code>{code}</Code></Error>", content_type="application/xml")
        if how in (EMPTY, PAGE):
            return web.Response(text="" if how == EMPTY else "<html><body>We are back soon.</body></html>")
        if how in (RESET, SILENT):
            if how == SILENT:
                await self._closing.wait()
            assert request.transport is not None
            request.transport.abort()
            return web.Response(status=502)
        body = await request.read()
        if self.full is not None and request.method == "PUT":
            self.refused += 1
            status, code = self.full
            return web.Response(
                status=status, text=f"<Error><Code>{code}</Code></Error>", content_type="application/xml"
            )
        if kind == self._holding and (body or kind == "LIST" or _start_of(request) >= self._holding_from):
            self.held.set()
            await self._go_on.wait()
        headers = {name: value for name, value in request.headers.items() if name.lower() != "expect"}
        url = URL(self._endpoint + request.raw_path, encoded=True)
        if how == WRONG and request.method == "PUT":
            body = body[:-1] + bytes([body[-1] ^ 1]) if body else body
        try:
            asked = await self._session.request(request.method, url, data=io.BytesIO(body), headers=headers)
        except ClientConnectionError:  # the server is away: so is the connection to its neighbour
            assert request.transport is not None
            request.transport.close()
            return web.Response(status=502)
        async with asked as answer:
            data = await answer.read()
            passed = {
                name: value
                for name, value in answer.headers.items()
                if name.lower() not in ("transfer-encoding", "content-length", "connection")
            }
            if how == LOST:
                return web.Response(status=500, text="<Error><Code>InternalError</Code></Error>")
            if how == WRONG and request.method == "GET":
                data = data[:-1] + bytes([data[-1] ^ 1])
            if how == CUT and request.method == "GET":
                data = data[: len(data) // 2]
            if how == SHORT and request.method == "GET":
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


def _kind_of(request: web.Request) -> str:
    """Its method; LIST for one page of a listing."""
    return "LIST" if "list-type" in request.query else request.method


def _start_of(request: web.Request) -> int:
    """Where the range begins that a request asks for; -1: it asks for none."""
    asked = request.headers.get("Range", "")
    return int(asked.removeprefix("bytes=").partition("-")[0]) if asked else -1
