"""The benchmark's own machinery, on a local directory: workers, scenarios, comparison, report."""

import errno
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nacrefs.client.bench.report import Report, Row, describe_machine, medians, ratios_of, render, render_costs
from nacrefs.client.bench.workers import Run, run_together
from nacrefs.client.bench.workloads import SCENARIOS, Sizes, Target, compare, scenarios

SMALL = Sizes(0.001)


def target(*directories: Path, name: str = "local", counters: Callable[[], dict[str, int]] = dict[str, int]) -> Target:
    return Target(name, directories, cold=lambda: None, counters=counters)


def row(filesystem: str, seconds: float, name: str = "stat") -> Row:
    return Row(name, filesystem, 1, "op/s", operations=1000, bytes=0, seconds=seconds)


class TestRunTogether:
    def test_no_worker_begins_before_all_are_ready(self, tmp_path: Path) -> None:
        def prepare(worker: int) -> Run:
            (tmp_path / f"ready-{worker}").touch()

            def run() -> int:
                (tmp_path / f"begun-{worker}").touch()
                return 10

            return run

        seen: list[list[str]] = []

        def look() -> None:
            seen.append(sorted(os.listdir(tmp_path)))

        burst = run_together(3, prepare, at_start=look, at_end=look)
        assert seen[0] == ["ready-0", "ready-1", "ready-2"]
        assert len(seen[1]) == 6
        assert burst.bytes == 30
        assert burst.seconds > 0

    def test_an_error_of_a_worker_is_raised_with_errno_and_path(self, tmp_path: Path) -> None:
        missing = tmp_path / "missing"
        with pytest.raises(FileNotFoundError) as raised:
            run_together(2, lambda worker: lambda: os.stat(missing).st_size if worker else 0)
        assert raised.value.filename == str(missing)

    def test_an_error_while_preparing_is_raised_before_anybody_begins(self, tmp_path: Path) -> None:
        def prepare(worker: int) -> Run:
            os.stat(tmp_path / "missing")
            return lambda: 0

        with pytest.raises(FileNotFoundError):
            run_together(2, prepare, at_start=lambda: pytest.fail("a worker was started"))

    def test_a_worker_that_dies_is_an_error(self) -> None:
        with pytest.raises(OSError, match="died") as raised:
            run_together(2, lambda worker: lambda: os._exit(1) if worker else 0)
        assert raised.value.errno == errno.EIO

    def test_a_worker_that_hangs_is_killed_at_the_deadline(self) -> None:
        def hang() -> int:
            signal.pause()
            return 0

        with pytest.raises(TimeoutError):
            run_together(2, lambda _: hang, deadline_seconds=0.1)


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_gives_rows_and_removes_its_files(name: str, tmp_path: Path) -> None:
    rows = list(compare([target(tmp_path)], scenarios([name]), SMALL))
    assert bool(rows) != name.startswith("mounts-")  # one mount is not several
    assert all(one.figure > 0 and one.operations > 0 for one in rows)
    assert os.listdir(tmp_path) == []


def test_several_mounts_share_the_work(tmp_path: Path) -> None:
    real, other = tmp_path / "real", tmp_path / "other"
    real.mkdir()
    other.symlink_to(real)  # another way to the same files, as a second mount is
    rows = list(compare([target(real, other)], scenarios(["mounts-4"]), SMALL))
    assert [one.name for one in rows] == [
        "create 3.9 KB, one directory, 2 mounts",
        "unlink, one directory, 2 mounts",
    ]


def test_each_row_is_measured_on_all_filesystems_before_the_next(tmp_path: Path) -> None:
    targets = [target(tmp_path, name=name) for name in ("a", "b")]
    rows = list(compare(targets, scenarios(["files-1"]), SMALL))
    assert [one.filesystem for one in rows] == ["a", "b"] * 6
    assert all(first.key == second.key for first, second in zip(rows[::2], rows[1::2], strict=True))


def test_a_comparison_that_is_broken_off_removes_its_files(tmp_path: Path) -> None:
    running = compare([target(tmp_path, name=name) for name in ("a", "b")], scenarios(["files-4"]), SMALL)
    next(running)
    assert len(os.listdir(tmp_path)) == 2
    running.close()
    assert os.listdir(tmp_path) == []


def test_an_unknown_row_is_refused_with_the_known_ones() -> None:
    with pytest.raises(OSError, match=r"no benchmark is called nonsense; there are: files-1 "):
        scenarios(["files-1", "nonsense"])


def test_rows_keep_the_usual_order() -> None:
    assert scenarios(["random-1", "files-1"]) == [SCENARIOS["files-1"], SCENARIOS["random-1"]]


def test_requests_and_processor_time_are_divided_by_the_operations(tmp_path: Path) -> None:
    sent: Iterator[dict[str, int]] = iter([{"MDS": 1000}, {"MDS": 1000 + 2 * SMALL.files}])
    measured = target(tmp_path, counters=lambda: next(sent))
    running = SCENARIOS["shared-1"](measured, SMALL)
    first = next(running)
    running.close()
    assert first.requests_per_operation == {"MDS": 2.0}
    assert first.cpu_us_per_operation["workers"] > 0


def test_the_median_repetition_is_kept_with_the_spread_of_all() -> None:
    kept = medians([row("a", 1.0), row("b", 1.0), row("a", 4.0), row("a", 2.0)])
    assert [(one.filesystem, one.figure, one.spread) for one in kept] == [
        ("a", 500.0, (250.0, 1000.0)),
        ("b", 1000.0, (1000.0, 1000.0)),
    ]


def test_the_table_has_a_ratio_to_each_other_filesystem_and_to_the_best_peer() -> None:
    rows = [row("local", 0.1), row("x", 1.0), row("y", 0.5), row("nacrefs", 0.25), row("x", 1.0, "only x")]
    names = ["local", "x", "y", "nacrefs"]
    assert render(rows, ratios_of("nacrefs", names)).splitlines() == [
        "row     processes  unit   local      x      y  nacrefs  nacrefs/local  nacrefs/x  nacrefs/y  nacrefs/best",
        "stat            1  op/s  10,000  1,000  2,000    4,000           0.40       4.00       2.00          2.00",
        "only x          1  op/s       -  1,000      -        -              -          -          -             -",
    ]


def test_costs_are_shown_only_where_they_were_measured() -> None:
    assert render_costs([row("a", 1.0)]) == ""
    measured = Row("stat", "a", 1, "op/s", 10, 0, 1.0, {"mds": 12.4, "oss": 0.0}, {"MDS": 1.0})
    assert render_costs([measured]).splitlines()[1].split() == ["stat", "1", "a", "mds", "12", "MDS", "1.00"]


def test_a_report_is_json() -> None:
    report = Report(describe_machine(1.0, 1), medians([row("a", 2.0)]))
    again = json.loads(json.dumps(report.to_json()))
    assert again["rows"][0]["operations_per_second"] == 500.0
    assert again["rows"][0]["spread"] == [500.0, 500.0]
