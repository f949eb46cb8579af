"""Filesystems for the benchmarks: a nacrefs cluster that `nacre dev up` starts, and the disk that it is on."""

import os
import shutil
import subprocess
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from nacrefs.client.bench.report import Row, ratios_of, render, render_costs
from nacrefs.client.bench.workloads import Target

_ROWS = pytest.StashKey[list[Row]]()


def _nacre(*arguments: str | Path) -> str:
    """Run the `nacre` command; returns what it said if it failed."""
    command = ["nacre", *map(str, arguments)]
    result = subprocess.run(
        command, check=False, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return f"{' '.join(command)}: exit code {result.returncode}\n{result.stdout}" if result.returncode else ""


def _processes_under(directory: Path) -> dict[str, list[int]]:
    """Ids of the cluster's processes by their role: those whose arguments name something under `directory`."""
    found: dict[str, list[int]] = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{entry}/cmdline").read_bytes().decode(errors="replace").split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        role = next((word for word in words if word in ("mds", "oss", "mount")), None)
        if role and any(str(directory) in word for word in words):
            found.setdefault(role, []).append(int(entry))
    return found


@pytest.fixture(scope="session")
def nacre_mount(tmp_path_factory: pytest.TempPathFactory) -> Generator[Path, None, None]:
    """A mount of a new cluster: one MDS, two OSSes with two OSTs each."""
    if shutil.which("nacre") is None:
        pytest.fail("the command nacre is not installed: `make dev` installs it", pytrace=False)
    directory = tmp_path_factory.mktemp("cluster")
    mount = tmp_path_factory.mktemp("mount")
    try:
        if failure := _nacre("dev", "up", "--dir", directory, "--mount", mount):
            pytest.fail(failure, pytrace=False)
        yield mount
    finally:
        failure = _nacre("dev", "down", "--dir", directory, "--purge")
    if failure:
        pytest.fail(failure, pytrace=False)


@pytest.fixture(scope="session")
def targets(nacre_mount: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    """What is measured, by name."""
    base = tmp_path_factory.getbasetemp()
    local = Target("local", [tmp_path_factory.mktemp("local")])
    nacrefs = Target("nacrefs", [nacre_mount], processes=lambda: _processes_under(base))
    return {"local": local, "nacrefs": nacrefs}


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Callable[[list[Row]], None]:
    """Takes rows for the table at the end of the run."""
    return request.config.stash.setdefault(_ROWS, []).extend


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print all rows with their ratios, and what they cost."""
    if rows := config.stash.get(_ROWS, None):
        terminalreporter.section("nacrefs and the local filesystem")
        terminalreporter.write_line(render(rows, ratios_of("nacrefs", ["local", "nacrefs"])))
        terminalreporter.write_line("")
        terminalreporter.write_line(render_costs(rows))
