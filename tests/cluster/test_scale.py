"""A larger tree costs no more per entry. `make scale` measures the same with a million entries."""

from pathlib import Path

import pytest

from tests.bench.scale import measure, render
from tests.harness.process import need_mounts

SMALL, LARGE = 5_000, 100_000


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_cost_per_entry_stays_flat_and_memory_is_bounded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    need_mounts()
    said: list[str] = []
    figures = measure(tmp_path, (SMALL, LARGE), said.append)
    with capsys.disabled():
        print(f"\n{render(figures)}")  # noqa: T201
    ratios = {operation: figures.ratio(operation) for operation in figures.costs}
    assert max(ratios.values()) < 2, ratios
    before = figures.memory["mount daemon, before listing"]
    assert figures.memory[f"mount daemon, at most, listing {LARGE:,}"] - before < 128 << 20
    assert figures.memory[f"MDS, {LARGE:,}"] - figures.memory["MDS, empty"] < 512 << 20
