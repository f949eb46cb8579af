"""What a pass of a lifecycle rule costs: `python tests/bench/policy.py --count 1000000`.

The MDT is filled by SQL: files in directories of a thousand, one in a hundred of them not used for 40 days. Then an MDS
serves it, and a rule about files that were not used for 30 days is tried out: once for its CPU time, then with clients
beside it that stat and mkdir one after the other, whose latencies are compared with those without a pass. At last the
files that match are queued, with the queue held, alone and with such clients. CPU time is that of the whole process
(MDS, and the clients if any).

Then all files count as copied: a rule that moves copies to a colder class is tried out, with one in a hundred old
enough and in a warmer class; and one of sixteen OSTs is full, and as many files are found that have bytes there. At
last the indexes are dropped and made again, while a client asks and changes: how long that has to wait; and one client
makes and removes names one after the other, with and without such indexes.
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
    Create,
    Destroy,
    Detach,
    Done,
    Evicted,
    Fence,
    GetAttr,
    Heartbeat,
    Mkdir,
    Mode,
    RaiseFloors,
    Recall,
    Recalled,
    Register,
    Role,
    SetLifecycle,
    TargetInfo,
    Unlink,
    Want,
)
from nacrefs.mds.config import MdsConfig
from nacrefs.mds.database import format_mdt, open_store
from nacrefs.mds.engine import Store
from nacrefs.mds.inode import encode_layout
from nacrefs.mds.lifecycle.candidates import on_osts
from nacrefs.mds.lifecycle.indexes import OSTS_BY_USE, needed, needed_by
from nacrefs.mds.lifecycle.pace import give_turn
from nacrefs.mds.lifecycle.places import class_place
from nacrefs.mds.lifecycle.queries import queries_of
from nacrefs.mds.lifecycle.run import TOGETHER, WINDOW, Run
from nacrefs.mds.lifecycle.watermarks import freed_bytes
from nacrefs.mds.server import MdsServer

DAY_NS = 86400 * 10**9
PER_DIRECTORY = 1000
FIRST = 1_000_000
ROOT = 1
OSTS = 16
QUEUEING_S = 0.7
"""In this time a run fills the window of its actions."""
RULE = {
    "ID": "cold",
    "Directory": "/",
    "Transitions": [{"DaysAfterLastAccess": 30, "Archive": "cold"}],
}
COLDER = {**RULE, "Transitions": [*RULE["Transitions"], {"DaysAfterLastAccess": 35, "StorageClass": "GLACIER"}]}


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
    number = (
        ord(label) * 1_000_000 + time.monotonic_ns() % 1_000_000
    )  # others than before: what is in memory is quicker
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


def compare(beside_what: str, plain: dict[str, list[float]], beside: dict[str, list[float]]) -> None:
    """Print latencies, and how much longer than alone."""
    for what in plain:
        ratio = statistics.median(beside[what]) / statistics.median(plain[what])
        print(f"{said(what, plain[what])}; with {beside_what} {said(what, beside[what])}: {ratio:.2f}x")


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
        await rules.indexes.have(needed_by(rules.need("cold").rule))
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
        compare("passes", plain, beside)
        server.mds.hsm.hold()
        for disturbed in (False, True):
            run = Run(server.mds, rules.need("cold").rule, rules.judge(), 0, False)
            rules.runs["cold"] = run
            pages = asyncio.get_running_loop().create_task(run.go())
            cpu_s = time.process_time()
            if disturbed:
                compare("queueing", plain, await latencies(mds, "c", count, QUEUEING_S))
            while len(run.pending) < min(WINDOW, count // 100) - 2 * TOGETHER and not pages.done():
                await asyncio.sleep(0.01)
            if not disturbed:
                cpu_us = (time.process_time() - cpu_s) / max(1, len(run.pending)) * 1e6
                print(f"finding and queueing: {cpu_us:.0f} us of CPU per file")
            pages.cancel()
            await asyncio.gather(pages, return_exceptions=True)
            for fid in list(server.mds.hsm.active):
                await server.mds.hsm.cancel(fid)
        copy_all(server.mds.mdt.store, count, now_ns)
        server.mds.mdt.cache.clear()
        server.mds.hsm.classes.learned(1, {"class_change": True})
        await mds.call(SetLifecycle(json.dumps({"Rules": [COLDER]})))
        await rules.indexes.have(needed_by(rules.need("cold").rule))
        cpu_s, wall_s, run = await cpu_of(lambda: rules.try_out("cold", 0))
        print(
            f"class transitions over {count:,} copies: {run.tally.looked_at:,} looked at, {run.tally.matched:,} match,"
            f" {cpu_s:.2f} s of CPU, {wall_s:.2f} s"
        )
        await mds.call(SetLifecycle(json.dumps({"Rules": [COLDER], "Watermarks": {"High": 99, "Low": 98}})))
        await rules.indexes.have({OSTS_BY_USE})
        cpu_s, wall_s, (looked, found) = await cpu_of(lambda: find_on_ost(server, count // 100))
        print(
            f"one OST of {OSTS} is full, {count:,} copies: {looked:,} looked at, {found:,} found, {cpu_s:.2f} s of CPU,"
            f" {wall_s:.2f} s"
        )
        await remake(server, mds, count)
        kept: Service = {Destroy: destroyed, Fence: destroyed, RaiseFloors: destroyed}
        oss = Remote("mem://policy", keyring.credentials(Role.SERVER), "bench-oss", kept, Meter())
        try:
            oss.greet = lambda: greet(oss)
            await oss.open()
            await lone(server, mds, oss, 3000)
        finally:
            await oss.aclose()
        await mds.call(Detach())
    finally:
        await mds.aclose()
        await server.stop()


def copy_all(store: Store, count: int, now_ns: int) -> None:
    """Every file has a copy, those that were not used for long in the archive's own class, others in GLACIER too; and
    is on one of several OSTs."""
    store.begin()
    glacier, own = class_place(1, "GLACIER"), class_place(1, "")
    old = f"atime_ns < {now_ns - 35 * DAY_NS}"
    store.writer.execute(
        f"UPDATE inode SET flags = 320, copy_class = CASE WHEN {old} OR fid % 2 = 0 THEN {own} ELSE {glacier} END,"
        f" copy_osts = -1 - fid % {OSTS} WHERE fid >= {FIRST}"
    )
    for ost in range(OSTS):
        layout = encode_layout(Layout(1 << 20, 1, (ost,)))
        where = f"fid >= {FIRST} AND fid % {OSTS} = {ost}"
        store.writer.execute(f"UPDATE inode SET layout = ? WHERE {where}", (layout,))
    store.writer.execute(
        "INSERT INTO hsm SELECT fid, 9, 1, 'key', data_version, size, '', 0, x'', x'',"
        f" CASE WHEN copy_class = {own} THEN '' ELSE 'GLACIER' END, 1, 0, 0 FROM inode WHERE fid >= {FIRST}"
    )
    store.commit()


async def find_on_ost(server: MdsServer, wanted: int) -> tuple[int, int]:
    """As many files as a full OST must lose, those not used for longest: how many were looked at, and are there."""
    store, reading = server.mds.mdt.store, server.mds.journal.reading
    looked = found = 0
    for page in on_osts(store, queries_of(store.backend), {3}, time.time_ns()):
        begun_s = time.perf_counter()
        for one in page:
            looked += 1
            inode = reading.inode(one.fid)
            found += inode is not None and freed_bytes(inode, frozenset({3})) > 0
        await give_turn(begun_s)
        if found >= wanted:
            break
    return looked, found


async def lone(server: MdsServer, mds: Remote, oss: Remote, count: int) -> None:
    """Names made and removed by one client that does nothing else, with and without indexes for rules."""
    rules = server.mds.lifecycle
    both = {**RULE, "Expiration": {"DaysAfterModification": 3650}}
    for what, document in (("no rule", '{"Rules": []}'), ("two indexes", json.dumps({"Rules": [both]}))) * 2:
        await mds.call(SetLifecycle(document, keep=True))
        await rules.indexes.have(needed(rules.rules(), None))
        while rules.indexes.busy:
            await asyncio.sleep(0.01)
        for verb in ("create", "unlink"):
            await oss.call(Heartbeat((TargetInfo("bench", 0, 1 << 40, 1 << 40, 0),)))
            before, cpu_s, begun_s = written(), time.process_time(), time.monotonic()
            for number in range(count):
                name = b"lone%d" % number
                if verb == "create":
                    await mds.call(Create(2000, name, 0o644, 0, 0, Mode.CLOSED))
                else:
                    await mds.call(Unlink(2000, name))
            cpu_us, took_us = (time.process_time() - cpu_s) / count * 1e6, (time.monotonic() - begun_s) / count * 1e6
            pages = (written() - before) / count / (4096 + 24)
            print(f"{what}: {verb} {cpu_us:.0f} us of CPU, {took_us:.0f} us, {pages:.1f} pages written")


def written() -> int:
    """Bytes that this process has written so far."""
    line = next(line for line in Path("/proc/self/io").read_text().splitlines() if line.startswith("wchar"))
    return int(line.split()[1])


async def remake(server: MdsServer, mds: Remote, count: int) -> None:
    """Drop the indexes and make them again."""
    indexes = server.mds.lifecycle.indexes
    names = needed_by(server.mds.lifecycle.need("cold").rule)
    for what, document in (("dropped", '{"Rules": []}'), ("made", json.dumps({"Rules": [COLDER]}))):
        beside = asyncio.get_running_loop().create_task(latencies(mds, what[0], count, 8.0))
        begun_s, cpu_s = time.monotonic(), time.process_time()
        await mds.call(SetLifecycle(document, keep=True))
        while (names <= indexes.there) == (what == "dropped") or indexes.busy:
            await asyncio.sleep(0.001)
        took_s, cpu_s = time.monotonic() - begun_s, time.process_time() - cpu_s
        took = await beside
        print(
            f"{len(names)} indexes {what} in {took_s:.2f} s ({cpu_s:.2f} s of CPU, clients included); longest"
            f" stat {max(took['stat']):.1f} ms, mkdir {max(took['mkdir']):.1f} ms"
        )


def give_back(request: Recall, call: Call) -> Recalled:
    """A client that keeps nothing."""
    return Recalled(())


async def greet(oss: Remote) -> None:
    """An OSS says which OST it has."""
    await oss.ask_now(Register("mem://nowhere", (TargetInfo("bench", -1, 1 << 40, 1 << 40, 0),)))


def destroyed(request: Any, call: Call) -> Done:
    """An OSS that has no objects."""
    return Done()


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
