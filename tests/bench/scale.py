"""Whether cost per entry stays flat as the tree grows: `make scale`, or `python tests/bench/scale.py --count 1000000`.

Files are made by pipelined clients that speak to a real MDS process; they are looked up, renamed and listed through a
real mount. Each operation is measured as CPU time per entry of the MDS and of the mount's daemon, which is steady on a
busy machine: in a tree and in a directory of `--small` entries, then in ones of `--count`.
"""

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import uvloop

from nacrefs.common.auth import Credentials, load_keyring
from nacrefs.common.observe import Meter
from nacrefs.common.remote import Remote
from nacrefs.common.rpc import Call
from nacrefs.common.wire import (
    Attach,
    Detach,
    Done,
    Evicted,
    Holding,
    Keepalive,
    Lease,
    Mkdir,
    Mknod,
    Mode,
    Recall,
    Recalled,
    Role,
    Yield,
)

PER_FOLDER = 1000
CLIENTS = 4
IN_FLIGHT = 32
"""Requests of one client that are under way at a time."""
SAMPLE = 5000
"""How many entries are looked up or renamed at most."""
WINDOW = 100_000


class Cost(NamedTuple):
    """What one entry took, in µs of CPU, and in wall time."""

    mds_us: float
    daemon_us: float
    wall_us: float


class Figures(NamedTuple):
    """Costs by (operation, size), and memory in bytes by name."""

    costs: dict[str, dict[int, Cost]]
    memory: dict[str, int]

    def ratio(self, operation: str) -> float:
        """CPU per entry, MDS and daemon together, at the largest size over that at the smallest."""
        sizes = self.costs[operation]
        first, last = sizes[min(sizes)], sizes[max(sizes)]
        return (last.mds_us + last.daemon_us) / (first.mds_us + first.daemon_us)


class Cluster:
    """A cluster of processes without a mount, in a directory of its own, that is removed afterwards."""

    def __init__(self, base: Path) -> None:
        self.directory = base / "cluster"
        self.up = json.loads(_nacre("dev", "up", "--dir", self.directory, "--osts", "1", "--json"))
        self.url: str = self.up["url"]
        self.credentials: Credentials = load_keyring(Path(self.up["keyring"])).credentials(Role.CLIENT)
        self.mds_pid = next(one["pid"] for one in self.up["processes"] if one["role"] == "mds")

    def down(self) -> None:
        _nacre("dev", "down", "--dir", self.directory, "--purge")

    @contextmanager
    def mount(self, base: Path) -> Generator[tuple[Path, int]]:
        """A new mount: where it is and its daemon's process id."""
        point = base / f"mnt-{uuid.uuid4().hex[:6]}"
        point.mkdir()
        told = _nacre("mount", self.url, point, "--keyring", self.up["keyring"], "--json")
        try:
            yield point, int(json.loads(told)["pid"])
        finally:
            _nacre("umount", point)
            point.rmdir()


def _nacre(*arguments: str | Path) -> str:
    command = [sys.executable, "-P", "-m", "nacrefs.client.cli", *map(str, arguments)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr}")
    return done.stdout


# ------------------------------------------------------------------------------------------------------------ measuring


def cpu_s(pid: int) -> float:
    """CPU seconds of a process so far, all its threads, user and system."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def memory_bytes(pid: int, what: str) -> int:
    """`VmRSS` (now) or `VmHWM` (the most so far) of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(what)


class Watch:
    """Takes CPU time and wall time around something; `daemon` is a mount's process id, if one takes part."""

    def __init__(self, mds: int, daemon: int | None = None) -> None:
        self._pids = (mds, daemon)
        self._before = self._now()

    def _now(self) -> tuple[float, float, float]:
        mds, daemon = self._pids
        assert mds is not None
        return cpu_s(mds), cpu_s(daemon) if daemon is not None else 0.0, time.monotonic()

    def per(self, entries: int) -> Cost:
        """What each of so many entries took since the beginning."""
        return Cost(
            *(round((now - before) * 1e6 / entries, 1) for before, now in zip(self._before, self._now(), strict=True))
        )


# ------------------------------------------------------------------------------------------------------------- creating


class Maker:
    """One client that makes files as fast as the MDS takes them, and gives its leases back as a mount does."""

    def __init__(self, cluster: Cluster) -> None:
        self.client = uuid.uuid4().hex
        service: dict[Any, Any] = {Recall: self._recalled, Evicted: self._evicted}
        self.mds = Remote(cluster.url, cluster.credentials, self.client, service, Meter())
        self._held: list[Holding] = []
        self.root = 0

    def _recalled(self, request: Recall, call: Call) -> Recalled:
        return Recalled(tuple(Holding(item.fid, Lease.NONE, Mode.CLOSED) for item in request.items))

    def _evicted(self, request: Evicted, call: Call) -> Done:
        return Done()

    async def open(self) -> "Maker":
        await self.mds.open()
        self.root = (await self.mds.call(Attach(self.client, "scale"))).root
        return self

    async def close(self) -> None:
        await self.mds.call(Detach())
        await self.mds.aclose()

    async def mkdir(self, parent: int, name: str) -> int:
        made = await self.mds.call(Mkdir(parent, name.encode(), 0o755, 0, 0))
        assert made.node is not None
        return made.node.attr.fid

    async def make(self, jobs: Iterator[tuple[int, bytes]]) -> None:
        """Make files (directory, name), `IN_FLIGHT` at a time."""

        async def work() -> None:
            for parent, name in jobs:
                made = await self.mds.call(Mknod(parent, name, 0o100644, 0, 0, 0))
                assert made.node is not None
                self._held.append(Holding(made.node.attr.fid, Lease.NONE, Mode.CLOSED))
                if len(self._held) >= 1000:
                    held, self._held = self._held, []
                    await self.mds.call(Yield(tuple(held)))

        await asyncio.gather(*(work() for _ in range(IN_FLIGHT)), self.mds.call(Keepalive()))


async def fill(cluster: Cluster, name: str, count: int, per_folder: int, tell: Callable[[str], None]) -> Cost:
    """Make `count` files below the directory `name`, `per_folder` in each of its directories (0: all in itself); what
    each of the last ones took."""
    makers = [await Maker(cluster).open() for _ in range(CLIENTS)]
    try:
        top = await makers[0].mkdir(makers[0].root, name)
        folders = [top]
        if per_folder:
            folders = [await makers[0].mkdir(top, f"d{number:04d}") for number in range(-(-count // per_folder))]
        cost = Cost(0, 0, 0)
        for start in range(0, count, WINDOW):
            end = min(count, start + WINDOW)
            jobs = ((folders[n // per_folder if per_folder else 0], b"f%07d" % n) for n in range(start, end))
            watch = Watch(cluster.mds_pid)
            await asyncio.gather(*(maker.make(jobs) for maker in makers))
            cost = watch.per(end - start)
            rss = memory_bytes(cluster.mds_pid, "VmRSS") >> 20
            tell(f"  {name}: {end:,} files, {cost.mds_us:.0f} µs of MDS CPU, {cost.wall_us:.0f} µs each; MDS {rss} MiB")
    finally:
        for maker in makers:
            await maker.close()
    return cost


# ------------------------------------------------------------------------------------------------------ through a mount


def path_of(number: int, per_folder: int) -> str:
    """Where file `number` is, below its top directory."""
    return f"d{number // per_folder:04d}/f{number:07d}" if per_folder else f"f{number:07d}"


def look_up(cluster: Cluster, base: Path, name: str, count: int, per_folder: int, costs: dict[str, Cost]) -> None:
    """Cold `stat`, leased `stat` and `rename` of files at random."""
    chosen = random.Random(count).sample(range(count), min(count, SAMPLE))
    with cluster.mount(base) as (point, daemon):
        paths = [f"{point}/{name}/{path_of(number, per_folder)}" for number in chosen]
        for folder in {os.path.dirname(path) for path in paths}:
            os.stat(folder)
        watch = Watch(cluster.mds_pid, daemon)
        for path in paths:
            os.stat(path)
        costs["stat, cold"] = watch.per(len(paths))
        watch = Watch(cluster.mds_pid, daemon)
        for path in paths:
            os.rename(path, path + "x")
        costs["rename"] = watch.per(len(paths))
        for path in paths:
            os.rename(path + "x", path)


def list_all(cluster: Cluster, base: Path, name: str, count: int, memory: dict[str, int]) -> Cost:
    """List the directory with attributes, holding nothing of it here."""
    with cluster.mount(base) as (point, daemon):
        os.stat(point / name)
        memory["mount daemon, before listing"] = memory_bytes(daemon, "VmRSS")
        watch = Watch(cluster.mds_pid, daemon)
        listed = 0
        with os.scandir(point / name) as entries:
            for _ in entries:
                listed += 1
        cost = watch.per(count)
        memory[f"mount daemon, at most, listing {count:,}"] = memory_bytes(daemon, "VmHWM")
    assert listed == count, f"{listed} of {count} entries were listed"
    return cost


def measure(base: Path, sizes: tuple[int, ...], tell: Callable[[str], None]) -> Figures:
    """All figures, with trees and directories of these sizes; `tell` hears how it goes."""
    figures = Figures({}, {})
    cluster = Cluster(base)
    try:
        figures.memory["MDS, empty"] = memory_bytes(cluster.mds_pid, "VmRSS")
        for count in sizes:
            for shape, per_folder in (("directory", 0), ("tree", PER_FOLDER)):
                name = f"{shape}-{count}"
                costs: dict[str, Cost] = {}
                with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                    costs["create"] = runner.run(fill(cluster, name, count, per_folder, tell))
                look_up(cluster, base, name, count, per_folder, costs)
                if not per_folder:
                    costs["list"] = list_all(cluster, base, name, count, figures.memory)
                for operation, cost in costs.items():
                    figures.costs.setdefault(f"{operation}, one {shape}", {})[count] = cost
                    tell(f"  {name}: {operation} {cost.mds_us} µs MDS, {cost.daemon_us} µs daemon, {cost.wall_us} µs")
            figures.memory[f"MDS, {count:,}"] = memory_bytes(cluster.mds_pid, "VmRSS")
        database = cluster.directory / "mdt"
        figures.memory["database on disk"] = sum(path.stat().st_size for path in database.rglob("*") if path.is_file())
    finally:
        cluster.down()
    return figures


def render(figures: Figures) -> str:
    """The figures as Markdown tables."""
    sizes = sorted(next(iter(figures.costs.values())))
    head = " | ".join(f"{size:,}: MDS + daemon µs" for size in sizes)
    lines = [f"| operation | {head} | ratio |", "|---|" + "---|" * (len(sizes) + 1)]
    for operation, costs in figures.costs.items():
        cells = " | ".join(f"{costs[size].mds_us:.0f} + {costs[size].daemon_us:.0f}" for size in sizes)
        lines.append(f"| {operation} | {cells} | {figures.ratio(operation):.2f} |")
    lines += ["", "| memory | MiB |", "|---|---|"]
    lines += [f"| {name} | {size / (1 << 20):,.0f} |" for name, size in figures.memory.items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000, help="entries of the large tree and directory")
    parser.add_argument("--small", type=int, default=10_000, help="entries of the small ones")
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp"), help="where the cluster is made, and removed")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nacre-scale-", dir=options.dir) as base:
        figures = measure(Path(base), (options.small, options.count), lambda text: print(text, flush=True))
    print(render(figures))
    if options.json:
        costs = {name: {str(size): cost._asdict() for size, cost in by.items()} for name, by in figures.costs.items()}
        options.json.write_text(json.dumps({"costs": costs, "memory": figures.memory}, indent=1) + "\n")


if __name__ == "__main__":
    main()
