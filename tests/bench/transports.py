"""CPU of client and server together, user and system, per operation over a transport; medians of rounds in turns.

python tests/bench/transports.py [--rounds N] [--scale F] [--best] SCHEME…          SCHEME: mem, tcp, rdma

`--best` shows the best round instead, for a machine whose other work makes rounds dearer.

rdma needs a device; `make bench-rdma` has one, in a VM whose times mean nothing: there, look at the ratios only. What a
software device does in the kernel on its own threads is not this process's, and not counted.
"""

import asyncio
import statistics
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager

from nacrefs.common.rpc import Call
from nacrefs.common.wire import Data, Inspect, Read, Write, Written
from tests.common.endpoints import HANDLERS, Ends, ends, read, write

KIB, MIB = 1 << 10, 1 << 20
Operation = Callable[[], Awaitable[object]]


def memory(scheme: str, size: int) -> memoryview:
    """Where file data is: registered memory if the transport has any."""
    if scheme == "rdma":
        from nacrefs.common import arena

        registered = arena.buffer(size)
        assert registered is not None
        return registered
    return memoryview(bytearray(size))


@asynccontextmanager
async def operations(scheme: str) -> AsyncGenerator[tuple[Ends, dict[str, tuple[int, int, Operation]]]]:
    """A connection of this scheme; what is measured on it: how often, calls each time, and what to do."""
    async with ends(scheme) as both:
        remote = await both.connected()
        contents = memory(scheme, MIB)

        def data_read(request: Read, call: Call) -> Data:
            size = request.extents[0][1]
            call.push([contents[:size]])
            return Data((size,), b"", 1)

        def data_written(request: Write, call: Call) -> Written:
            return Written(len(call.pull()), 0, 0)

        both.peer.service = {**HANDLERS, Read: data_read, Write: data_written}
        room = memory(scheme, MIB)

        def reading(size: int) -> Operation:
            return lambda: remote.call(read(size), into=[room[:size]])

        def writing(size: int) -> Operation:
            return lambda: remote.call(write(size), data=[room[:size]])

        async def many() -> None:
            await asyncio.gather(*(remote.call(Inspect("x")) for _ in range(100)))

        yield (
            both,
            {
                "call and reply": (1000, 1, lambda: remote.call(Inspect("x"))),
                "call, 100 in flight": (20, 100, many),
                "read 4 KiB": (500, 1, reading(4 * KIB)),
                "read 64 KiB": (300, 1, reading(64 * KIB)),
                "read 1 MiB": (100, 1, reading(MIB)),
                "write 4 KiB": (500, 1, writing(4 * KIB)),
                "write 1 MiB": (100, 1, writing(MIB)),
            },
        )


async def round_of(scheme: str, scale: float) -> dict[str, float]:
    """µs of CPU per operation."""
    found: dict[str, float] = {}
    async with operations(scheme) as (_, wanted):
        for name, (times, calls, operation) in wanted.items():
            times = max(2, round(times * scale))
            await operation()
            began = time.process_time()
            for _ in range(times):
                await operation()
            found[name] = (time.process_time() - began) / times / calls * 1e6
    return found


def main(words: list[str]) -> None:
    rounds, scale = 7, 1.0
    chosen: Callable[[Iterable[float]], float] = statistics.median
    schemes: list[str] = []
    values = iter(words)
    for word in values:
        if word == "--rounds":
            rounds = int(next(values))
        elif word == "--scale":
            scale = float(next(values))
        elif word == "--best":
            chosen = min
        else:
            schemes.append(word)
    schemes = schemes or ["tcp"]
    seen: dict[str, list[dict[str, float]]] = {scheme: [] for scheme in schemes}
    for _ in range(rounds):
        for scheme in schemes:
            seen[scheme].append(asyncio.run(round_of(scheme, scale)))
    print(f"{'µs of CPU':22}", *(f"{scheme:>8}" for scheme in schemes), f"  {schemes[-1]} / {schemes[0]}")
    for name in seen[schemes[0]][0]:
        figures = [chosen(each[name] for each in seen[scheme]) for scheme in schemes]
        print(f"{name:22}", *(f"{figure:8.1f}" for figure in figures), f"{figures[-1] / figures[0]:8.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])
