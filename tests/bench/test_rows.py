"""Every row of `nacre bench` on a nacrefs mount and, next to it, on the local filesystem of the same disk.

`NACRE_BENCH_SCALE` sets the amount of work (1 = a full run). No figure makes a test fail: the machine may be busy.
"""

import os
from collections.abc import Callable
from typing import Any, Protocol

import pytest

from nacrefs.client.bench.report import Row
from nacrefs.client.bench.workloads import SCENARIOS, Sizes, Target

SIZES = Sizes(float(os.environ.get("NACRE_BENCH_SCALE", "0.02")))
NAMES = [name for name in SCENARIOS if not name.startswith("mounts-")]  # there is one mount


class Benchmark(Protocol):
    """What is used here of pytest-benchmark's fixture, which has no types."""

    group: str
    extra_info: dict[str, Any]

    def pedantic(self, target: Callable[[], None]) -> None:
        """Call `target` once and keep how long it took."""
        ...


@pytest.mark.parametrize("filesystem", ["local", "nacrefs"])  # varies fastest: one after the other in each row
@pytest.mark.parametrize("name", NAMES)
def test_row(
    benchmark: Benchmark,
    targets: dict[str, Target],
    record: Callable[[list[Row]], None],
    filesystem: str,
    name: str,
) -> None:
    benchmark.group = name
    rows: list[Row] = []
    benchmark.pedantic(lambda: rows.extend(SCENARIOS[name](targets[filesystem], SIZES)))
    record(rows)
    benchmark.extra_info |= {f"{row.name}, {row.unit}": round(row.figure, 1) for row in rows}
    assert rows
