"""What a pass of a lifecycle rule costs: `python tests/bench/policy.py --count 1000000`.

The MDT is filled by SQL: files in directories of a thousand, one in a hundred of them not used for 40 days. Then an MDS
serves it, and a rule about files that were not used for 30 days is tried out: once for its CPU time, then with clients
beside it that stat and mkdir one after the other, whose latencies are compared with those without a pass. At last the
files that match are queued, with the queue held. CPU time is that of the whole process (MDS, and the clients if any).
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from nacrefs.common.auth import new_keyring
from nacrefs.common.layout import Layout
from nacrefs.common.observe import Meter
from nacrefs.common.remote import Remote
from nacrefs.common.rpc import Call, Service
from nacrefs.common.wire import (
    ArchiveSpec,
    Attach,
    Detach,
    Done,
    Evicted,
    GetAttr,
    Mkdir,
    Recall,
    Recalled,
    Role,
    SetLifecycle,
    Want,
)
from nacrefs.mds.config import MdsConfig
from nacrefs.mds.database import format_mdt, open_store
from nacrefs.mds.inode import encode_layout
from nacrefs.mds.lifecycle.run import Run
from nacrefs.mds.server import MdsServer

DAY_NS = 86400 * 10**9
PER_DIRECTORY = 1000
FIRST = 1_000_000
ROOT = 1
RULE = {
    "ID": "cold",
    "Directory": "/",
    "Transitions": [{"DaysAfterLastAccess": 30, "Archive": "cold"}],
}


def fill(url: str, count: int, now_ns: int) -> None:
    """An MDT with that many files."""
    store = open_store(url)
    layout = encode_layout(Layout(1 << 20, 1, (0,)))
    insert, name = store.statements.insert_inode, store.statements.insert_dentry
    try:
        for start in range(0, count, 50_000):
            store.begin()
            numbers = range(start, min(count, start + 50_000))
            parents = range(start // PER_DIRECTORY, (numbers[-1]) // PER_DIRECTORY + 1)
            at = [now_ns - (40 if number % 100 == 0 else 1) * DAY_NS - number for number in numbers]
            store.writer.executemany(
                insert,
                [
                    (2000 + one, 0o040755, 2, 0, 0, 0, 4096, 8, 1, 1, 1, 1, 1, 0, PER_DIRECTORY, ROOT, None, None, 0, 0)
                    for one in parents
                ],
            )
            store.writer.executemany(name, [(ROOT, b"d%06d" % one, 2000 + one) for one in parents])
            store.writer.executemany(
                insert,
                [
                    (
                        FIRST + one,
                        0o100644,
                        1,
                        0,
                        0,
                        0,
                        1 << 20,
                        2048,
                        used,
                        used,
                        used,
                        used,
                        1,
                        0,
                        0,
                        0,
                        layout,
                        None,
                        0,
                        1,
                    )
                    for one, used in zip(numbers, at, strict=True)
                ],
            )
            store.writer.executemany(
                name, [(2000 + one // PER_DIRECTORY, b"f%07d" % one, FIRST + one) for one in numbers]
            )
            store.commit()
        store.begin()
        store.writer.execute(f"UPDATE mdt SET next_counter = {FIRST + count + 1}")
        store.commit()
    finally:
        store.close()


async def latencies(mds: Remote, label: str, count: int, seconds: float) -> dict[str, list[float]]:
    """Milliseconds of stat, on files that this client has not seen, and mkdir, one after the other."""
    took: dict[str, list[float]] = {"stat": [], "mkdir": []}
    until_s = time.monotonic() + seconds
    number = ord(label) * 1_000_000  # others than before: what is in memory is quicker
    while time.monotonic() < until_s:
        number += 1
        for what, request in (
            ("stat", GetAttr(FIRST + (number * 7919) % count, Want(0))),
            ("mkdir", Mkdir(2000, f"{label}{number}".encode(), 0o755, 0, 0)),
        ):
            begun_s = time.perf_counter()
            await mds.call(request)
            took[what].append((time.perf_counter() - begun_s) * 1000)
    return took


def said(what: str, took: list[float]) -> str:
    """Median and the 99th percentile."""
    quantiles = statistics.quantiles(took, n=100)
    return f"{what} {statistics.median(took):.3f} ms (p99 {quantiles[98]:.2f})"


async def cpu_of(work: Callable[[], Awaitable[Any]]) -> tuple[float, float, Any]:
    """CPU and wall seconds of some work, and what it returns."""
    cpu_s, wall_s = time.process_time(), time.monotonic()
    result = await work()
    return time.process_time() - cpu_s, time.monotonic() - wall_s, result


async def measure(directory: Path, count: int, seconds: float) -> None:
    """All rows, printed."""
    keyring = new_keyring("bench")
    url = f"sqlite:///{directory}/mdt.sqlite"
    now_ns = time.time_ns()
    format_mdt(url, "bench", 0, now_ns)
    fill(url, count, now_ns)
    server = MdsServer(MdsConfig(database=url, listen="mem://policy", metrics=""), keyring)
    await server.start()
    rules = server.mds.lifecycle
    service: Service = {Recall: give_back, Evicted: leave}
    mds = Remote("mem://policy", keyring.credentials(Role.ADMIN), "bench", service, Meter())
    try:
        await mds.open()
        await mds.call(Attach("bench", "here"))
        server.mds.hsm.archives[1] = ArchiveSpec(1, "cold", "dir", f"file://{directory}")
        await mds.call(SetLifecycle(json.dumps({"Rules": [RULE]})))
        for _ in range(2):
            cpu_s, wall_s, run = await cpu_of(lambda: rules.try_out("cold", 0))
            print(
                f"pass over {count:,} files: {run.tally.looked_at:,} looked at, {run.tally.matched:,} match,"
                f" {cpu_s:.2f} s of CPU, {wall_s:.2f} s"
            )
        plain = await latencies(mds, "a", count, seconds)
        passing = asyncio.get_running_loop().create_task(forever(rules))
        beside = await latencies(mds, "b", count, seconds)
        passing.cancel()
        await asyncio.gather(passing, return_exceptions=True)
        for what in plain:
            ratio = statistics.median(beside[what]) / statistics.median(plain[what])
            print(f"{said(what, plain[what])}; with passes {said(what, beside[what])}: {ratio:.2f}x")
        server.mds.hsm.hold()
        run = Run(server.mds, rules.need("cold").rule, rules.judge(), 0, False)
        rules.runs["cold"] = run
        pages = asyncio.get_running_loop().create_task(run.go())
        cpu_s = time.process_time()
        while len(run.pending) < min(1975, run.tally.matched or 1) and not pages.done():
            await asyncio.sleep(0.01)
        queued = len(run.pending)
        print(f"finding and queueing: {(time.process_time() - cpu_s) / max(1, queued) * 1e6:.0f} us of CPU per file")
        pages.cancel()
        await asyncio.gather(pages, return_exceptions=True)
        await mds.call(Detach())
    finally:
        await mds.aclose()
        await server.stop()


def give_back(request: Recall, call: Call) -> Recalled:
    """A client that keeps nothing."""
    return Recalled(())


def leave(request: Evicted, call: Call) -> Done:
    """A client that is told to go."""
    return Done()


async def forever(rules: Any) -> None:
    """Pass after pass."""
    while True:
        await rules.try_out("cold", 0)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000, help="files")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each row of latencies")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nacre-policy-", dir="/var/tmp") as directory:
        asyncio.run(measure(Path(directory), arguments.count, arguments.seconds))


if __name__ == "__main__":
    main()
