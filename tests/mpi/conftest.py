"""One cluster with a mount, and one library, for all tests of native I/O."""

import os
import subprocess
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from nacrefs.client.mount import daemon as mount
from tests.harness.process import ProcessCluster, process_cluster
from tests.mpi.engines import ENGINES, Engine
from tests.mpi.native import FLAGS, PROGRAMS, build_library, build_program

LIBASAN_SETTINGS = "detect_leaks=0:handle_segv=0:abort_on_error=1"


class Native:
    """A mount, and programs that use it with the library."""

    def __init__(self, cluster: ProcessCluster, library: Path, folder: Path) -> None:
        self.cluster = cluster
        self.mount = cluster.mount
        self.library = library
        self.folder = folder
        """a place on a local disk"""

    def environment(self, **more: str) -> dict[str, str]:
        """What makes a program use the library."""
        return {**os.environ, "LD_PRELOAD": str(self.library), **more}

    def run(
        self, *words: str | Path, timeout_s: float = 60, environment: dict[str, str] | None = None
    ) -> "subprocess.CompletedProcess[str]":
        """Run a program with the library to its end."""
        return subprocess.run(
            [str(word) for word in words],
            env=self.environment(**(environment or {})),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def program(self, name: str) -> Path:
        """A program of tests/mpi/programs, compiled."""
        target = self.folder / name
        return target if target.exists() else build_program(PROGRAMS / f"{name}.c", target, flags=FLAGS)

    def fuse_requests(self) -> dict[str, int]:
        """How many reads and writes the mount has carried."""
        fuse: dict[str, Any] = mount.ask_json(str(self.mount), "stats")["fuse"]
        return {name: fuse.get(name, 0) for name in ("read", "write")}


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`libnacre_io.so`, built."""
    return build_library(tmp_path_factory.mktemp("library"))


@pytest.fixture(scope="session")
def native(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[Native]:
    """The library, and a cluster of real processes that is mounted."""
    with process_cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield Native(cluster, library, tmp_path_factory.mktemp("native"))


@pytest.fixture(
    params=[pytest.param(name, marks=() if name == "mpich" else pytest.mark.slow) for name in ENGINES],
    scope="session",
)
def engine(request: pytest.FixtureRequest) -> Engine:
    """One after the other, the I/O engines that are installed; in a short run MPICH's only."""
    found = ENGINES[request.param]
    if not found.is_here:
        pytest.skip(f"{found.name} is not installed (make test-mpi)")
    return found
