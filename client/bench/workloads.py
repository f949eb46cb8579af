"""Workloads of `nacre bench` and `make bench-peers`: the same rows on any directories, step by step.

A scenario is a generator that measures one row after the other on one filesystem and removes its files at the end.
`compare` advances the scenarios of several filesystems in turns, so that each row is measured on all of them within
seconds and a noisy machine is noisy to all. Only the standard library is used. docs/benchmarks.md says what each row
does and what "cold" means.
"""

import contextlib
import errno
import itertools
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nacrefs.client.bench.loops import (
    RANDOM_BLOCK_BYTES,
    create_files,
    list_directory,
    random_blocks,
    read_files,
    read_stream,
    stat_files,
    touch_files,
    unlink_files,
    write_stream,
)
from nacrefs.client.bench.report import Row
from nacrefs.client.bench.workers import Prepare, run_together

SMALL_FILE_BYTES = 3900
"""mdtest-hard's file size, as used by IO500."""


def drop_kernel_caches() -> None:
    """Make the kernel forget names and attributes (root only; otherwise nothing happens and cold rows are warm)."""
    with contextlib.suppress(PermissionError), open("/proc/sys/vm/drop_caches", "w") as control:
        control.write("2")


@dataclass(frozen=True)
class Target:
    """A filesystem to be measured: one directory, or one directory seen through several mounts.

    `cold` makes the client forget everything it has cached. `processes` gives the process ids by name whose processor
    time is to be reported; `counters` gives request counters by name that only grow.
    """

    name: str
    directories: Sequence[Path]
    cold: Callable[[], None] = drop_kernel_caches
    processes: Callable[[], Mapping[str, Sequence[int]]] = dict[str, Sequence[int]]
    counters: Callable[[], Mapping[str, int]] = dict[str, int]


@dataclass(frozen=True)
class Sizes:
    """How much work a row is. `scale` 1 is a full run (minutes), 0.02 a quick one (seconds)."""

    scale: float = 1.0

    @property
    def files(self) -> int:
        """Small files of one row, all workers together."""
        return max(160, int(4000 * self.scale))

    @property
    def entries(self) -> int:
        """Entries of the large directory."""
        return max(200, int(100_000 * self.scale))

    @property
    def random_operations(self) -> int:
        """Random 4 KiB operations of one row, all workers together."""
        return max(128, int(10_000 * self.scale))

    def stream_bytes(self, block_bytes: int) -> int:
        """Bytes of a sequential row, all workers together: less for small blocks, a multiple of 4 blocks."""
        full = min(1024 << 20, 32768 * block_bytes) * self.scale
        return max(4, int(full) // (4 * block_bytes) * 4) * block_bytes


Scenario = Callable[[Target, Sizes], Generator[Row, None, None]]


def compare(targets: Sequence[Target], scenarios: Iterable[Scenario], sizes: Sizes) -> Generator[Row, None, None]:
    """Measure every row of `scenarios` on every target, row by row; the targets take turns."""
    for scenario in scenarios:
        with contextlib.ExitStack() as stack:
            runs = [scenario(target, sizes) for target in targets]
            for run in runs:
                stack.callback(run.close)  # removes its files, also when another target failed
            for step in itertools.zip_longest(*runs):
                yield from (row for row in step if row is not None)  # a target may have no such row


def scenarios(names: Iterable[str] = ()) -> list[Scenario]:
    """The scenarios called `names`, in the usual order; all of them if none is named. EINVAL for an unknown name."""
    wanted = set(names)
    if unknown := wanted - SCENARIOS.keys():
        raise OSError(
            errno.EINVAL, f"no benchmark is called {', '.join(sorted(unknown))}; there are: {' '.join(SCENARIOS)}"
        )
    return [scenario for name, scenario in SCENARIOS.items() if not wanted or name in wanted]


def _measure(target: Target, name: str, processes: int, operations: int, prepare: Prepare, unit: str = "op/s") -> Row:
    """Run the workers and account for what they and the filesystem's processes spent."""
    snapshots: list[tuple[dict[tuple[str, int], float], dict[str, int]]] = []

    def snapshot() -> None:
        snapshots.append((_cpu_seconds(target.processes()), dict(target.counters())))

    burst = run_together(processes, prepare, at_start=snapshot, at_end=snapshot)
    (cpu_before, count_before), (cpu_after, count_after) = snapshots
    cpu = {"workers": burst.worker_cpu_seconds}
    for process, seconds in cpu_after.items():
        cpu[process[0]] = cpu.get(process[0], 0.0) + seconds - cpu_before.get(process, 0.0)
    return Row(
        name=name,
        filesystem=target.name,
        processes=processes,
        unit=unit,
        operations=operations,
        bytes=burst.bytes,
        seconds=burst.seconds,
        cpu_us_per_operation={one: round(seconds * 1e6 / operations, 1) for one, seconds in cpu.items()},
        requests_per_operation={
            one: round((count - count_before.get(one, 0)) / operations, 3) for one, count in count_after.items()
        },
    )


def _cpu_seconds(processes: Mapping[str, Sequence[int]]) -> dict[tuple[str, int], float]:
    """User and system time by name and process id, all threads of a process (in the kernel's ticks of 10 ms)."""
    ticks = os.sysconf("SC_CLK_TCK")
    spent: dict[tuple[str, int], float] = {}
    for name, process_ids in processes.items():
        for process_id in process_ids:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                # The command name may hold blanks and brackets; the figures begin after the last bracket.
                fields = Path(f"/proc/{process_id}/stat").read_bytes().rpartition(b")")[2].split()
                spent[name, process_id] = (int(fields[11]) + int(fields[12])) / ticks
    return spent


@contextlib.contextmanager
def _work_directory(target: Target) -> Generator[Path, None, None]:
    """A fresh directory on the first mount; removed afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="nacre-bench-", dir=target.directories[0]))
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


def _names(root: Path, worker: int, count: int) -> list[str]:
    return [f"{root}/{worker:02d}.{number:06d}" for number in range(count)]


def small_files(processes: int) -> Scenario:
    """Create, stat, read and remove 3.9 KB files; every worker in a directory of its own."""

    def scenario(target: Target, sizes: Sizes) -> Generator[Row, None, None]:
        each = max(1, sizes.files // processes)
        content = os.urandom(SMALL_FILE_BYTES)
        with _work_directory(target) as root:
            paths: list[list[str]] = []
            for worker in range(processes):
                directory = root / str(worker)
                directory.mkdir()
                paths.append(_names(directory, worker, each))

            def row(name: str, prepare: Prepare) -> Row:
                return _measure(target, name, processes, each * processes, prepare)

            yield row("create 3.9 KB", lambda worker: create_files(paths[worker], content))
            target.cold()
            yield row("stat, cold", lambda worker: stat_files(paths[worker]))
            yield row("stat, warm", lambda worker: stat_files(paths[worker]))
            target.cold()
            yield row("open-read-close, cold", lambda worker: read_files(paths[worker], len(content)))
            yield row("open-read-close, warm", lambda worker: read_files(paths[worker], len(content)))
            yield row("unlink", lambda worker: unlink_files(paths[worker]))

    return scenario


def shared_directory(processes: int, every_mount: bool = False) -> Scenario:
    """Create and remove 3.9 KB files, all workers in one directory (mdtest-hard's shape).

    `every_mount`: they are spread over the target's mounts; a target that has only one gives no rows.
    """

    def scenario(target: Target, sizes: Sizes) -> Generator[Row, None, None]:
        mounts = target.directories if every_mount else target.directories[:1]
        if every_mount and len(mounts) == 1:
            return
        where = f"one directory, {len(mounts)} mounts" if every_mount else "one directory"
        each = max(1, sizes.files // processes)
        content = os.urandom(SMALL_FILE_BYTES)
        with _work_directory(target) as root:
            paths = [_names(mounts[worker % len(mounts)] / root.name, worker, each) for worker in range(processes)]

            def row(name: str, prepare: Prepare) -> Row:
                return _measure(target, f"{name}, {where}", processes, each * processes, prepare)

            yield row("create 3.9 KB", lambda worker: create_files(paths[worker], content))
            yield row("unlink", lambda worker: unlink_files(paths[worker]))

    return scenario


def large_directory(processes: int, few: bool = False) -> Scenario:
    """Fill one directory with empty files, list it with attributes, empty it.

    `few`: with 4 times as many as other rows have files, for filesystems on which a large one takes minutes to fill.
    """

    def scenario(target: Target, sizes: Sizes) -> Generator[Row, None, None]:
        each = max(1, (4 * sizes.files if few else sizes.entries) // processes)
        entries = each * processes
        with _work_directory(target) as root:
            paths = [_names(root, worker, each) for worker in range(processes)]
            label = f"{entries:,} entries"
            yield _measure(target, f"fill, {label}", processes, entries, lambda worker: touch_files(paths[worker]))
            target.cold()
            for state in "cold", "warm":
                name = f"list with attributes, {label}, {state}"
                yield _measure(target, name, 1, entries, lambda _: list_directory(str(root), entries))
            yield _measure(target, f"empty, {label}", processes, entries, lambda worker: unlink_files(paths[worker]))

    return scenario


def _size_name(size: int) -> str:
    return f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"


def sequential(block_bytes: int, streams: int) -> Scenario:
    """Write with and without fsync, read cold and warm, each stream a file of its own."""

    def scenario(target: Target, sizes: Sizes) -> Generator[Row, None, None]:
        total = sizes.stream_bytes(block_bytes)
        each = total // streams
        block = memoryview(os.urandom(block_bytes))
        label = _size_name(block_bytes)
        with _work_directory(target) as root:
            paths = [f"{root}/{stream}" for stream in range(streams)]

            def row(name: str, prepare: Prepare) -> Row:
                return _measure(target, name, streams, total // block_bytes, prepare, "MiB/s")

            yield row(f"write {label} + fsync", lambda stream: write_stream(paths[stream], each, block, True))
            target.cold()
            yield row(f"read {label}, cold", lambda stream: read_stream(paths[stream], each, block_bytes))
            yield row(f"read {label}, warm", lambda stream: read_stream(paths[stream], each, block_bytes))
            for path in paths:
                os.unlink(path)
            yield row(f"write {label}, no fsync", lambda stream: write_stream(paths[stream], each, block, False))

    return scenario


def random_access(processes: int) -> Scenario:
    """4 KiB reads, then writes, at random offsets that are never hit twice; each worker in a file of its own."""

    def scenario(target: Target, sizes: Sizes) -> Generator[Row, None, None]:
        each = max(1, sizes.random_operations // processes)
        file_bytes = each * 8 * RANDOM_BLOCK_BYTES
        order = random.Random(each)
        offsets = [
            [block * RANDOM_BLOCK_BYTES for block in order.sample(range(each * 8), each)] for _ in range(processes)
        ]
        block = os.urandom(RANDOM_BLOCK_BYTES)
        fill = memoryview(os.urandom(1 << 20))
        with _work_directory(target) as root:
            paths = [f"{root}/{worker}" for worker in range(processes)]
            run_together(processes, lambda worker: write_stream(paths[worker], file_bytes, fill, True))

            def row(name: str, prepare: Prepare) -> Row:
                return _measure(target, name, processes, each * processes, prepare)

            target.cold()
            yield row("random read 4 KiB, cold", lambda worker: random_blocks(paths[worker], offsets[worker], None))
            yield row("random write 4 KiB + fsync", lambda worker: random_blocks(paths[worker], offsets[worker], block))

    return scenario


SCENARIOS: Mapping[str, Scenario] = {
    **{f"files-{processes}": small_files(processes) for processes in (1, 4, 8, 16)},
    **{f"shared-{processes}": shared_directory(processes) for processes in (1, 4, 8, 16)},
    "mounts-4": shared_directory(4, every_mount=True),
    "mounts-16": shared_directory(16, every_mount=True),
    "list-few": large_directory(4, few=True),
    "list": large_directory(4),
    **{
        f"stream-{_size_name(size).replace(' ', '')}-{streams}": sequential(size, streams)
        for size, streams in ((4096, 1), (65536, 1), (1 << 20, 1), (4 << 20, 1), (1 << 20, 4))
    },
    "random-1": random_access(1),
    "random-4": random_access(4),
}
"""Every scenario by the name that `--rows` takes."""
