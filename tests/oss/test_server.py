"""A whole OSS against a stand-in for the MDS, over memory and TCP."""

import asyncio
import errno
import json
import shutil
import urllib.request
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from nacrefs.common.auth import Keyring, new_keyring, sign_capability
from nacrefs.common.checksum import block_sums
from nacrefs.common.config import Size, load_config
from nacrefs.common.observe import Meter
from nacrefs.common.remote import Remote, Server
from nacrefs.common.rpc import Call, Peer
from nacrefs.common.wire import (
    Alive,
    Capability,
    Destroy,
    Done,
    Fence,
    Heartbeat,
    ObjectId,
    Read,
    Register,
    Registered,
    Right,
    Role,
    StatObject,
    Sync,
    Write,
)
from nacrefs.oss.config import LogConfig, OssConfig, OstConfig
from nacrefs.oss.label import format_target, read_label
from nacrefs.oss.server import OssServer
from tests.harness.fabric import rdma_devices

FID = 0x2A
SESSION = 3


class StandInMds:
    """Takes registrations and heartbeats, gives indices in the order of uuids that it has seen."""

    def __init__(self, keyring: Keyring) -> None:
        self.indices: dict[str, int] = {}
        self.fenced: tuple[int, ...] = ()
        self.registrations: asyncio.Queue[tuple[Register, Peer]] = asyncio.Queue()
        self.heartbeats: asyncio.Queue[Heartbeat] = asyncio.Queue()
        self.server = Server({Register: self.register, Heartbeat: self.heartbeat}, keyring, "mds", Meter())

    def register(self, request: Register, call: Call) -> Registered:
        if call.peer.role is not Role.SERVER:
            raise OSError(errno.EACCES, "only servers register")
        for target in request.targets:
            self.indices.setdefault(target.uuid, len(self.indices) + 4)
        self.registrations.put_nowait((request, call.peer))
        return Registered(tuple(self.indices[target.uuid] for target in request.targets), self.fenced, 0.01)

    def heartbeat(self, request: Heartbeat, call: Call) -> Alive:
        self.heartbeats.put_nowait(request)
        return Alive(1)


class Cluster:
    """Addresses for one transport, a keyring, OST directories."""

    def __init__(self, root: Path, scheme: str) -> None:
        self.root = root
        self.keyring = new_keyring("c1")
        self.place: Callable[[str], str] = lambda name: (
            f"mem://{name}" if scheme == "mem" else f"{scheme}://127.0.0.1:0"
        )
        self.osts = tuple(str(root / f"ost{number}") for number in range(2))
        for directory in self.osts:
            format_target(directory, "c1")

    def config(self, mds: str, **other: Any) -> OssConfig:
        return OssConfig(
            mds=mds,
            listen=(self.place("oss"),),
            osts=self.osts,
            name="oss-a",
            threads=2,
            ost=OstConfig(reserve_bytes=Size(0), reserve_percent=0),
            **other,
        )

    def capability(self, session: int = SESSION) -> Capability:
        return sign_capability(
            self.keyring.capability_key(), FID, 0, session, Right.READ | Right.WRITE, 1 << 40, "client"
        )

    @asynccontextmanager
    async def mds(self, at: str = "") -> AsyncGenerator[tuple[StandInMds, str], None]:
        mds = StandInMds(self.keyring)
        address = await mds.server.listen(at or self.place("mds"))
        try:
            yield mds, address
        finally:
            await mds.server.close()

    @asynccontextmanager
    async def oss(self, config: OssConfig) -> AsyncGenerator[OssServer, None]:
        server = OssServer(config, self.keyring)
        await server.start()
        try:
            yield server
        finally:
            await server.stop()

    @asynccontextmanager
    async def client(self, server: OssServer, session: int = SESSION) -> AsyncGenerator[Remote, None]:
        remote = Remote(server.addresses[0], self.keyring.credentials(Role.CLIENT), f"{session}.abc", {}, Meter())
        await remote.open()
        try:
            yield remote
        finally:
            await remote.aclose()


@pytest.fixture(params=["mem", "tcp", "rdma"])
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Generator[Cluster]:
    with rdma_devices() if request.param == "rdma" else nullcontext():
        yield Cluster(tmp_path, request.param)


def write(cluster: Cluster, data: bytes, offset: int = 0, sync: bool = False, ost: int = 4) -> Write:
    sums = block_sums(memoryview(data), offset)
    return Write(ost, FID, 0, 0, cluster.capability(), ((offset, len(data)),), sums, sync)


async def test_client_writes_reads_and_syncs(cluster: Cluster) -> None:
    data = bytes(range(256)) * 1000
    async with cluster.mds() as (mds, address), cluster.oss(cluster.config(address)) as server:
        request, _ = await mds.registrations.get()
        assert [target.index for target in request.targets] == [-1, -1]
        assert request.address == ",".join(server.addresses)
        await server.registered.wait()
        async with cluster.client(server) as client:
            written = await client.call(write(cluster, data, 77), data=[memoryview(data)])
            assert written.size == 77 + len(data)
            into = memoryview(bytearray(len(data) + 100))
            got = await client.call(Read(4, FID, 0, 0, cluster.capability(), ((0, len(into)),)), into=[into])
            assert got.lengths == (77 + len(data),)
            assert into[: got.lengths[0]] == bytes(77) + data
            assert got.sums == block_sums(into[: got.lengths[0]], 0)
            assert (await client.call(Sync(4, FID, 0, 0, cluster.capability()))).version == written.version
            with pytest.raises(OSError, match="OST 9 is not served here") as caught:
                await client.call(StatObject(9, FID, 0, 0, cluster.capability()))
            assert caught.value.errno == errno.ENXIO
        async with cluster.client(server, session=99) as other:
            with pytest.raises(PermissionError, match="capability"):
                await other.call(StatObject(4, FID, 0, 0, cluster.capability()))
    assert [read_label(directory).index for directory in cluster.osts] == [4, 5]


async def test_what_an_old_connection_still_holds_is_not_served_after_the_client_has_connected_again(
    cluster: Cluster,
) -> None:
    """A write waits unread; its sender connects again, sends it again, and goes on to write something else."""
    async with cluster.mds() as (_, address), cluster.oss(cluster.config(address)) as server:
        await server.registered.wait()
        async with cluster.client(server) as client:
            await client.call(write(cluster, b"first"), data=[memoryview(b"first")])
            (old,) = server.clients()
            link = old.link
            assert link is not None
            link.pause()
            again = client.call(write(cluster, b"again"), data=[memoryview(b"again")])
            await asyncio.sleep(0.01)
            assert client.link is not None
            client.link.close("cut by the test")
            await again
            await client.call(write(cluster, b"newer"), data=[memoryview(b"newer")])
            link.resume()
            await asyncio.sleep(0.01)
            into = memoryview(bytearray(5))
            await client.call(Read(4, FID, 0, 0, cluster.capability(), ((0, 5),)), into=[into])
            assert bytes(into) == b"newer"


async def test_orders_of_the_mds_come_over_the_servers_own_connection(cluster: Cluster) -> None:
    async with cluster.mds() as (mds, address), cluster.oss(cluster.config(address)) as server:
        _, oss = await mds.registrations.get()
        await server.registered.wait()
        async with cluster.client(server) as client:
            await client.call(write(cluster, b"x"), data=[memoryview(b"x")])
            assert await oss.call(Destroy((ObjectId(4, FID, 0),))) == Done()
            assert (await client.call(StatObject(4, FID, 0, 0, cluster.capability()))).size == 0
            await oss.call(Fence((SESSION,)))
            with pytest.raises(OSError, match="fenced") as caught:
                await client.call(StatObject(4, FID, 0, 0, cluster.capability()))
            assert caught.value.errno == errno.ESHUTDOWN
            with pytest.raises(OSError, match="not a request for this server"):
                await client.call(Fence((SESSION,)))
        heartbeat = await mds.heartbeats.get()
        assert [target.index for target in heartbeat.targets] == [4, 5]


async def test_server_registers_again_when_the_mds_comes_back_and_learns_who_is_fenced(cluster: Cluster) -> None:
    async with cluster.mds() as (first, address):
        server = OssServer(cluster.config(address), cluster.keyring)
        await server.start()
        try:
            await first.registrations.get()
            await first.server.close()
            async with cluster.mds(address) as (second, _):
                second.indices, second.fenced = first.indices, (SESSION,)
                request, _ = await second.registrations.get()
                assert sorted(target.index for target in request.targets) == [4, 5]
                await second.heartbeats.get()
                async with cluster.client(server) as client:
                    with pytest.raises(OSError, match="fenced"):
                        await client.call(StatObject(4, FID, 0, 0, cluster.capability()))
        finally:
            await server.stop()


async def test_io_waits_for_the_first_registration(cluster: Cluster) -> None:
    async with cluster.mds() as (_, address):
        pass  # there is none now
    for directory in cluster.osts:
        shutil.rmtree(directory)
    format_target(cluster.osts[0], "c1", index=4)
    format_target(cluster.osts[1], "c1", index=5)
    async with cluster.oss(cluster.config(address)) as server:
        assert server.problems() == [f"not registered with the MDS at {address}"]
        async with cluster.client(server) as client:
            waiting = client.call(write(cluster, b"early"), data=[memoryview(b"early")])
            async with cluster.mds(address) as (mds, _):
                mds.indices = {target.label.uuid: target.label.index for target in server.targets}
                assert (await waiting).size == 5


async def test_stop_in_the_middle_of_io_leaves_a_clean_ost(cluster: Cluster) -> None:
    data = bytes(1 << 20)
    async with cluster.mds() as (_, address):
        async with cluster.oss(cluster.config(address)) as server:
            await server.registered.wait()
            async with cluster.client(server) as client:
                calls = [
                    client.call(write(cluster, data, step << 20, step % 2 == 0), data=[memoryview(data)])
                    for step in range(8)
                ]
                await calls[0]
                await server.stop()
                for call in calls:
                    call.cancel()
                await asyncio.gather(*calls, return_exceptions=True)
            await server.stop()
        again = OssServer(cluster.config(address), cluster.keyring)
        await again.start()
        assert all(target.recovery is None for target in again.targets)
        await again.stop()


async def test_bad_start_says_why_and_leaves_nothing(cluster: Cluster, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="osts is empty"):
        OssServer(OssConfig(mds="mem://x"), cluster.keyring)
    config = cluster.config("mem://nobody")
    foreign = OssServer(config, new_keyring("c2"))
    with pytest.raises(OSError, match="belongs to cluster 'c1', not to 'c2'"):
        await foreign.start()
    async with cluster.oss(config):
        second = OssServer(config, cluster.keyring)
        with pytest.raises(OSError, match="in use by another process"):
            await second.start()


async def test_health_and_metrics(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, "tcp")
    async with cluster.mds() as (_, address), cluster.oss(cluster.config(address, metrics="127.0.0.1:0")) as server:
        await server.registered.wait()

        def get(path: str) -> bytes:
            with urllib.request.urlopen(server.metrics_url + path) as answer:
                body: bytes = answer.read()
                return body

        assert json.loads(await asyncio.to_thread(get, "/health")) == {"healthy": True, "problems": []}
        assert b"nacre_ost4_free_bytes" in await asyncio.to_thread(get, "/metrics")


def test_conf_file_is_complete_and_equal_to_the_defaults() -> None:
    path = Path(__file__).parents[2] / "conf" / "oss.toml"
    assert load_config(path, OssConfig) == OssConfig()
    text = path.read_text()
    for struct in (OssConfig, OstConfig, LogConfig):
        for field in struct.__struct_fields__:
            assert f"\n{field} = " in text or f"[{field}]" in text
