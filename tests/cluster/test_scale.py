"""A larger tree costs no more per entry. `make scale` measures the same with a million entries."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.process import need_mounts

SMALL, LARGE = 5_000, 100_000


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_cost_per_entry_stays_flat_and_memory_is_bounded(tmp_path: Path) -> None:
    need_mounts()
    script = Path(__file__).parents[1] / "bench" / "scale.py"
    words = ["--small", str(SMALL), "--count", str(LARGE), "--dir", str(tmp_path), "--json", str(tmp_path / "figures")]
    subprocess.run([sys.executable, script, *words], check=True, timeout=800)
    figures = json.loads((tmp_path / "figures").read_text())
    ratios: dict[str, float] = {}
    for operation, costs in figures["costs"].items():
        small, large = (costs[str(size)] for size in (SMALL, LARGE))
        ratios[operation] = (large["mds_us"] + large["daemon_us"]) / (small["mds_us"] + small["daemon_us"])
    assert max(ratios.values()) < 2, ratios
    memory: dict[str, int] = figures["memory"]
    assert memory[f"mount daemon, at most, listing {LARGE:,}"] - memory["mount daemon, before listing"] < 128 << 20
    assert memory[f"MDS, {LARGE:,}"] - memory["MDS, empty"] < 512 << 20
