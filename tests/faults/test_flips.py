"""Bits that flip on the wire: nobody reads or stores them, and nobody sees an error for them."""

import asyncio
import os
import random
from pathlib import Path

from nacrefs.common.fid import ROOT
from tests.client.world import cluster, quiet, read_file, write_file

MIB = 1 << 20
EVERY_BYTES = 3 * MIB
"""A bit flips about so often."""


class FlippingProxy:
    """A relay before a TCP server that flips a bit of what passes now and then, in both directions, once `on`."""

    def __init__(self, address: str, seed: int) -> None:
        host, _, port = address.removeprefix("tcp://").rpartition(":")
        self._where = host, int(port)
        self._chance = random.Random(seed)
        self._tasks: set[asyncio.Task[None]] = set()
        self._left = EVERY_BYTES
        self.on = False
        self.flips = 0
        self.address = ""

    async def __aenter__(self) -> "FlippingProxy":
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.address = f"tcp://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(*self._where)
        for task in (
            asyncio.ensure_future(self._relay(reader, back)),
            asyncio.ensure_future(self._relay(there, writer)),
        ):
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _relay(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(64 << 10):
                self._left -= len(data)
                if self.on and self._left < 0:
                    self._left = self._chance.randrange(EVERY_BYTES, 2 * EVERY_BYTES)
                    self.flips += 1
                    bad = bytearray(data)
                    bad[self._chance.randrange(len(bad))] ^= 1 << self._chance.randrange(8)
                    data = bytes(bad)
                sink.write(data)
                await sink.drain()
        except OSError:
            pass
        finally:
            sink.close()


async def test_bits_that_flip_on_the_wire_are_noticed_and_sent_again(tmp_path: Path) -> None:
    async with cluster(tmp_path, scheme="tcp") as world:
        targets = world.mds.mds.targets
        addresses = sorted({ost.record.address for ost in targets.osts.values()})
        one, other = (FlippingProxy(address, seed) for seed, address in enumerate(addresses))
        async with one, other:
            by_address = dict(zip(addresses, (one, other), strict=True))
            for ost in targets.osts.values():
                ost.record = ost.record._replace(address=by_address[ost.record.address].address)
            targets.refresh()
            writer, reader = await world.vfs(), await world.vfs()
            one.on = other.on = True
            for number in range(8):
                contents = os.urandom(4 * MIB + number)
                await write_file(writer, ROOT, b"f%d" % number, contents)
                await quiet(writer)
                assert await read_file(reader, ROOT, b"f%d" % number) == contents
            one.on = other.on = False
            assert one.flips + other.flips >= 8
            for vfs in (writer, reader):
                await vfs.close()
                world.clients.remove(vfs)
