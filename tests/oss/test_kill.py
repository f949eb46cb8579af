"""kill -9 of a real OSS process in the middle of writing: the client goes on, and every byte is right."""

import asyncio
import random
import signal
import socket
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from nacrefs.common.auth import save_keyring
from nacrefs.common.checksum import block_sums
from nacrefs.common.observe import Meter
from nacrefs.common.remote import Remote
from nacrefs.common.wire import Read, Role, Write
from tests.oss.test_server import FID, SESSION, Cluster

CHUNK = 150_001
"""No multiple of anything."""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@asynccontextmanager
async def process(cluster: Cluster, mds: str, port: int) -> AsyncGenerator[asyncio.subprocess.Process, None]:
    keyring = cluster.root / "keyring"
    if not keyring.exists():
        save_keyring(keyring, cluster.keyring)
    options = ["--mds", mds, "--keyring", str(keyring), "--listen", f"tcp://127.0.0.1:{port}", "--ost", cluster.osts[0]]
    program = [sys.executable, "-m", "nacrefs.client.cli", "oss", "serve", "--log-level", "warning", *options]
    oss = await asyncio.create_subprocess_exec(*program, stdout=asyncio.subprocess.PIPE)
    try:
        assert oss.stdout is not None
        assert (await oss.stdout.readline()).startswith(b"serving 1 OSTs")
        yield oss
    finally:
        if oss.returncode is None:
            oss.kill()
        await oss.wait()


async def test_killed_in_the_middle_of_writing(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, "tcp")
    port = free_port()
    chunks = [random.Random(index).randbytes(CHUNK) for index in range(40)]
    killed_after = 17

    async def write(client: Remote, index: int) -> None:
        data, offset = chunks[index], index * CHUNK
        sums = block_sums(memoryview(data), offset)
        request = Write(4, FID, 0, 0, cluster.capability(), ((offset, CHUNK),), sums, sync=index % 5 == 0)
        await client.call(request, data=[memoryview(data)])

    async with cluster.mds() as (standin, mds):
        async with process(cluster, mds, port) as oss:
            await standin.heartbeats.get()  # so it knows its OST's index by now
            credentials = cluster.keyring.credentials(Role.CLIENT)
            client = Remote(f"tcp://127.0.0.1:{port}", credentials, f"{SESSION}.kill", {}, Meter())
            await client.open()
            writers = [asyncio.create_task(write(client, index)) for index in range(len(chunks))]
            await asyncio.gather(*writers[:killed_after])
            oss.send_signal(signal.SIGKILL)
            await oss.wait()
        try:
            async with process(cluster, mds, port):
                await asyncio.gather(*writers)
                for index, data in enumerate(chunks):
                    into = memoryview(bytearray(CHUNK))
                    got = await client.call(
                        Read(4, FID, 0, 0, cluster.capability(), ((index * CHUNK, CHUNK),)), into=[into]
                    )
                    assert got.lengths == (CHUNK,)
                    assert into == data
                    assert got.sums == block_sums(into, index * CHUNK)
        finally:
            await client.aclose()
