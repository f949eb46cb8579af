"""CPU of one request, client and MDS together in one process over `mem://`, for each kind of key (docs/adr/0015).

    python -m tests.bench.exports [ROUNDS]

Runs on a commit without exports, too: then there is one row. Shared machines are noisy: each row is the best of its
rounds, which are interleaved.
"""

import asyncio
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from nacrefs.common.auth import Credentials
from nacrefs.common.observe import Meter
from nacrefs.common.remote import Remote
from nacrefs.common.rpc import Call
from nacrefs.common.wire import Attach, Create, Lookup, Mkdir, Mode, Recall, Recalled, Request, Role, Set, SetAttr
from tests.harness.cluster import Cluster

LOOKUPS = 4000
CREATES = 2000
SECRET = "5e" * 32


def keys(cluster: Cluster) -> dict[str, Credentials]:
    """Credentials by the name of the row."""
    found = {"no export": cluster.keyring.credentials(Role.CLIENT)}
    try:
        from nacrefs.common.auth import Key
        from nacrefs.common.export import Export
    except ImportError:
        return found
    exports = {"subtree": Export(path="/tree"), "root squash": Export(squash="root")}
    made = {name: Key("client", SECRET, export=export) for name, export in exports.items()}
    cluster.keyring = msgspec.structs.replace(cluster.keyring, keys={**cluster.keyring.keys, **made})
    cluster.mds.change_keyring(cluster.keyring)
    return found | {name: Credentials(cluster.keyring.cluster, name, bytes.fromhex(SECRET)) for name in exports}


def recalled(request: Recall, call: Call) -> Recalled:
    """Nothing is held."""
    return Recalled(())


async def connected(cluster: Cluster, name: str, credentials: Credentials) -> Remote:
    service: dict[type[Request[Any]], Any] = {Recall: recalled}
    remote = Remote(cluster.mds.url, credentials, name, service, Meter())
    await remote.open()
    await remote.call(Attach(name, "bench"))
    if name == "root squash":
        from nacrefs.client.identity import Caller, asking, in_the_name_of

        asking.set(Caller(1000, 1000, 0))
        remote.wrap = in_the_name_of
    return remote


async def cpu_us(count: int, ask: Callable[[int], Awaitable[Any]]) -> float:
    """CPU of one call, 32 being under way at a time."""
    began = time.process_time()
    for first in range(0, count, 32):
        await asyncio.gather(*(ask(number) for number in range(first, min(first + 32, count))))
    return (time.process_time() - began) / count * 1e6


async def main(rounds: int) -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        async with Cluster(Path(directory), oss=1, osts=1) as cluster:
            remotes: dict[str, Remote] = {}
            parent = 0
            for name, credentials in keys(cluster).items():
                if name == "no export":
                    first = remotes[name] = await connected(cluster, name, credentials)
                    tree = (await first.call(Mkdir(1, b"tree", 0o777, 0, 0))).node
                    assert tree is not None
                    parent = tree.attr.fid
                    await first.call(SetAttr(parent, Set.MODE, 0o777))
                    for number in range(100):
                        await first.call(Create(parent, b"f%d" % number, 0o644, 0, 0, Mode.CLOSED))
                else:
                    remotes[name] = await connected(cluster, name, credentials)
            best: dict[tuple[str, str], float] = {}
            for turn in range(rounds):
                for name, remote in remotes.items():

                    def look(number: int, remote: Remote = remote) -> Awaitable[Any]:
                        return remote.call(Lookup(parent, b"f%d" % (number % 100)))

                    def make(number: int, remote: Remote = remote, new: str = f"{name} {turn}") -> Awaitable[Any]:
                        made = f"{new} {number}".encode()
                        return remote.call(Create(parent, made, 0o644, 0, 0, Mode.CLOSED))

                    for what, count, ask in (("lookup", LOOKUPS, look), ("create", CREATES, make)):
                        best[name, what] = min(best.get((name, what), 1e9), await cpu_us(count, ask))
            for name in remotes:
                print(f"{name:12}  lookup {best[name, 'lookup']:6.1f} µs  create {best[name, 'create']:6.1f} µs")
            for remote in remotes.values():
                await remote.aclose()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 5))
