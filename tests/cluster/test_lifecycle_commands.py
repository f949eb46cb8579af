"""`nacre lifecycle` on real processes and a real mount."""

from collections.abc import Generator
from pathlib import Path

import pytest
import yaml

from tests.harness.process import ProcessCluster, fail, nacre, process_cluster, succeed, succeed_json

RULES = """\
Rules:
  - ID: tidy
    Directory: /data
    Filter: {NamePattern: "*.bin"}
    Transitions:
      - {DaysAfterLastAccess: 0s, Archive: cold}
    Release: {DaysAfterLastAccess: 0s}
    Schedule: "0 3 * * *"
Watermarks: {High: 95, Low: 90}
"""


@pytest.fixture(scope="module")
def ruled(tmp_path_factory: pytest.TempPathFactory) -> Generator[ProcessCluster]:
    base = tmp_path_factory.mktemp("ruled")
    (base / "archive").mkdir()
    with process_cluster(base) as cluster:
        succeed("archive", "add", cluster.mount, "cold", f"file://{base}/archive")
        (cluster.mount / "data").mkdir()
        yield cluster


@pytest.mark.timeout(240)  # two dozen commands, each a process
def test_rules_from_a_file_to_released_files_and_back(ruled: ProcessCluster, tmp_path: Path) -> None:
    mount = ruled.mount
    rules = tmp_path / "rules.yaml"
    rules.write_text(RULES)
    assert succeed("lifecycle", "put", mount, rules) == "1 rule\n"
    assert yaml.safe_load(succeed("lifecycle", "get", mount)) == yaml.safe_load(RULES)
    assert succeed_json("lifecycle", "get", mount) == yaml.safe_load(RULES)
    path, other = mount / "data" / "cold.bin", mount / "data" / "other.txt"
    path.write_bytes(b"x" * 300_000)
    other.write_text("never")
    assert "archive" in succeed("lifecycle", "run", mount, "tidy", "--dry-run", "--now", "+1d")
    assert "would be: nothing" in succeed("lifecycle", "run", mount, "tidy", "--dry-run", "--now", "2001-01-01")
    assert "1 archived (293.0 KiB)" in succeed("lifecycle", "run", mount, "tidy", "--wait")
    assert "1 released (293.0 KiB)" in succeed("lifecycle", "run", mount, "tidy", "--wait")
    assert "released" in succeed("hsm", "state", path)
    assert "active" in succeed("lifecycle", "list", mount)
    assert "1 released" in succeed("lifecycle", "status", mount)
    assert "cold" in succeed("lifecycle", "report", mount)
    explained = succeed("lifecycle", "explain", path, other)
    assert "rule tidy (active): nothing now: all is done" in explained
    assert "its name does not match '*.bin'" in explained
    (one,) = succeed_json("lifecycle", "explain", path)
    assert one["names"][0]["path"] == "/data/cold.bin"
    assert "--recall brings them back first" in fail(6, "lifecycle", "rm", mount, "tidy")
    assert path.read_bytes() == b"x" * 300_000
    succeed("lifecycle", "pause", mount, "tidy", "--reason", "holidays")
    assert "paused (holidays)" in succeed("lifecycle", "list", mount)
    assert "rule tidy is paused" in fail(6, "lifecycle", "run", mount, "tidy")
    succeed("lifecycle", "resume", mount, "tidy")
    succeed("lifecycle", "rm", mount, "tidy")
    assert succeed("lifecycle", "list", mount) == "there are no rules\n"


def test_mistakes_are_shown_with_their_lines(ruled: ProcessCluster, tmp_path: Path) -> None:
    rules = tmp_path / "wrong.yaml"
    rules.write_text(RULES.replace("0 3 * * *", "daily").replace("Release:", "Releases:"))
    done = nacre("lifecycle", "put", ruled.mount, rules)
    assert done.returncode == 2
    first, second = done.stderr.splitlines()
    assert first.startswith(f"nacre: {rules}:7: Rules[0].Releases: there is no such field here")
    assert second.startswith(f"nacre: {rules}:8: Rules[0].Schedule: 'daily' is not a schedule")
    assert "there is no lifecycle rule 'nobody'" in fail(3, "lifecycle", "run", ruled.mount, "nobody")
    assert "is not a time" in fail(2, "lifecycle", "run", ruled.mount, "nobody", "--now", "later")
    assert "nowhere" not in succeed("lifecycle", "get", ruled.mount)
