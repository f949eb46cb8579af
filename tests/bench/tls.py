"""CPU of both sides together, per MiB read and per small request, plain and under TLS (docs/adr/0015).

python -m tests.bench.tls [ROUNDS]
"""

import asyncio
import sys
import tempfile
import time
from pathlib import Path

from msgspec.structs import replace

from nacrefs.common.auth import new_keyring
from nacrefs.common.buffers import BufferPool
from nacrefs.common.observe import Meter
from nacrefs.common.remote import Remote, Server
from nacrefs.common.rpc import Call
from nacrefs.common.wire import Data, Lookup, Read
from tests.common.certificates import Authority
from tests.common.endpoints import HANDLERS, read

MIB = 1 << 20
_CONTENTS = memoryview(bytearray(MIB))


def data_read(request: Read, call: Call) -> Data:
    """A MiB that costs nothing to make."""
    call.push([_CONTENTS])
    return Data((MIB,), b"", 1)


async def measured(url_scheme: str, authority: Authority) -> tuple[float, float]:
    """µs of CPU per MiB, and per look-up."""
    keyring = replace(new_keyring("bench"), tls=authority.sign("host"))
    server = Server({**HANDLERS, Read: data_read}, keyring, "server", Meter(), BufferPool(32 << 20))
    url = await server.listen(f"{url_scheme}://127.0.0.1:0")
    remote = Remote(url, keyring.best_credentials(), "client", {}, Meter())
    await remote.open()
    rooms = [memoryview(bytearray(MIB)) for _ in range(4)]
    began = time.process_time()
    for _ in range(40):
        await asyncio.gather(*(remote.call(read(MIB), into=[room]) for room in rooms))
    per_mib = (time.process_time() - began) / 160 * 1e6
    began = time.process_time()
    for _ in range(100):
        await asyncio.gather(*(remote.call(Lookup(1, b"x")) for _ in range(32)))
    per_lookup = (time.process_time() - began) / 3200 * 1e6
    await remote.aclose()
    await server.close()
    return per_mib, per_lookup


async def main(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        authority = Authority(Path(directory), "ca")
        best: dict[str, tuple[float, float]] = {}
        for _ in range(rounds):
            for scheme in ("tcp", "tls"):
                seen = await measured(scheme, authority)
                known = best.get(scheme, seen)
                best[scheme] = min(known[0], seen[0]), min(known[1], seen[1])
    for scheme, (per_mib, per_lookup) in best.items():
        print(f"{scheme}  read 1 MiB {per_mib:6.0f} µs  lookup {per_lookup:5.1f} µs")


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 4))
