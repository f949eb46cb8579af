"""A real cluster in the running event loop: one MDS, some OSSes, any number of clients, over `mem://`, `tcp://` or
`rdma://`.

async with Cluster(tmp_path) as cluster:
    vfs = await cluster.client()
"""

import contextlib
import itertools
import os
from pathlib import Path
from typing import Any, Self

import msgspec

from nacrefs.client.config import ClientConfig
from nacrefs.client.vfs import Vfs
from nacrefs.common.auth import Keyring, new_keyring
from nacrefs.common.clock import Clock
from nacrefs.common.config import Duration
from nacrefs.common.remote import Remote
from nacrefs.common.wire import Role
from nacrefs.mds.config import LeaseConfig, MdsConfig, OstConfig
from nacrefs.mds.server import MdsServer
from nacrefs.oss.config import OssConfig
from nacrefs.oss.label import format_target
from nacrefs.oss.server import OssServer
from tests.harness.fabric import rdma_devices
from tests.mdt import make_mdt

_numbers = itertools.count()

SCHEME = os.environ.get("NACRE_TEST_SCHEME", "mem")
"""What connects clusters of which no test says it: `NACRE_TEST_SCHEME=rdma` runs their tests over RDMA."""


class Cluster:
    """The servers, and everything that was connected to them; `async with` starts and stops it."""

    def __init__(
        self,
        directory: Path,
        *,
        scheme: str = SCHEME,
        oss: int = 2,
        osts: int = 2,
        database: str | None = None,
        clock: Clock | None = None,
        term_s: float = 30.0,
        **mds: Any,
    ) -> None:
        self.directory = directory
        self.keyring: Keyring = new_keyring("test-cluster")
        self.clock = clock
        self._scheme = scheme
        self._number = next(_numbers)
        self._devices = contextlib.ExitStack()
        listen = f"mem://mds{self._number}" if scheme == "mem" else f"{scheme}://127.0.0.1:0"
        self.mds_config = MdsConfig(
            database=database or f"sqlite:///{directory}/mdt.sqlite",
            listen=listen,
            metrics="",
            lease=LeaseConfig(term_s=Duration(term_s)),
            ost=OstConfig(heartbeat_s=Duration(min(5.0, term_s))),
            **mds,
        )
        self._oss_count = oss
        self._osts = osts
        self.mds: MdsServer
        self.oss: list[OssServer] = []
        self.clients: list[Vfs] = []
        self._addresses: dict[int, str] = {}

    async def __aenter__(self) -> Self:
        make_mdt(self.mds_config.database, self.keyring.cluster)
        try:
            if self._scheme == "rdma":
                self._devices.enter_context(rdma_devices())
            await self.start_mds()
            for number in range(self._oss_count):
                for ost in range(self._osts):
                    format_target(str(self.ost_directory(number, ost)), self.keyring.cluster)
                await self.start_oss(number)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        for client in self.clients:
            await client.close()
        self.clients.clear()
        for oss in self.oss:
            await oss.stop()
        self.oss.clear()
        if hasattr(self, "mds"):
            await self.mds.stop()
        self._devices.close()

    def ost_directory(self, oss: int, ost: int) -> Path:
        """Where an OST lives."""
        return self.directory / f"oss{oss}-ost{ost}"

    async def start_mds(self) -> None:
        """Start the MDS (again, at the same address)."""
        self.mds = MdsServer(self.mds_config, self.keyring, self.clock)
        await self.mds.start()
        self.mds_config = msgspec.structs.replace(self.mds_config, listen=self.mds.url)

    async def start_oss(self, number: int) -> OssServer:
        """Start an OSS (again, at the same address) and wait until the MDS knows it."""
        listen = f"mem://oss{self._number}.{number}" if self._scheme == "mem" else f"{self._scheme}://127.0.0.1:0"
        config = OssConfig(
            mds=self.mds.url,
            name=f"oss{number}",
            listen=(self._addresses.get(number, listen),),
            osts=tuple(str(self.ost_directory(number, ost)) for ost in range(self._osts)),
        )
        server = OssServer(config, self.keyring)
        await server.start()
        self._addresses[number] = server.addresses[0]
        self.oss.append(server)
        await server.registered.wait()
        return server

    async def client(self, **config: Any) -> Vfs:
        """A new client, attached."""
        vfs = Vfs(ClientConfig(mds=self.mds.url, **config), self.keyring.best_credentials())
        await vfs.attach()
        self.clients.append(vfs)
        return vfs

    async def remote(self, role: Role = Role.ADMIN, name: str = "") -> Remote:
        """A bare connection to the MDS, for tests that speak the protocol themselves; the caller closes it."""
        remote = Remote(
            self.mds.url, self.keyring.credentials(role), name or f"bare{next(_numbers)}", {}, self.mds.meter
        )
        await remote.open()
        return remote
