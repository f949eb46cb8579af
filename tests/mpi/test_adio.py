"""Our driver inside ROMIO, in an MPICH that `make ad-nacre` has built: no preloading, and no byte through FUSE."""

from pathlib import Path

import pytest

from tests.mpi.conftest import Native
from tests.mpi.engines import Engine
from tests.mpi.native import ROOT
from tests.mpi.test_mpi import HINTS, UNIT, compiled, layout, run

OURS = Engine("mpich_with_driver", ROOT / "build" / "mpich" / "installed" / "bin", "")


@pytest.mark.slow
def test_everything_that_mpi_io_can_do(native: Native) -> None:
    if not OURS.is_here:
        pytest.skip("make ad-nacre has not been run")
    program, at = compiled(native, OURS, "collective.c"), native.mount / "driver"
    at.mkdir()
    before = native.fuse_requests()
    told = run(native, OURS, 3, program, f"nacre:{at}", "cinpst", *HINTS, preload=False)
    assert f"striping_factor=3 striping_unit={UNIT}\npassed" in told
    assert native.fuse_requests() == before
    assert layout(at / "interleaved")["osts"] == "1,2,3"
    # A file that is not ours is read and written as ROMIO does it.
    local: Path = native.folder / "driver"
    local.mkdir()
    assert "passed" in run(native, OURS, 2, program, f"nacre:{local}", "cins", preload=False)
