"""Unmodified MPI programs on every MPI and I/O engine that is installed: data, hints, sizes, and no byte through FUSE.

MPICH's short form runs in `make test`, everything in `make test-mpi`.
"""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.mpi.conftest import Native
from tests.mpi.engines import Engine, scratch_environment
from tests.mpi.native import PROGRAMS

HINTS = ("striping_factor=3", "striping_unit=131072", "start_iodevice=1")
UNIT = 131072


def compiled(native: Native, engine: Engine, source: str, *more: str, compiler: str = "mpicc") -> Path:
    """A program of tests/mpi/programs, compiled for an MPI."""
    target = native.folder / f"{source.split('.')[0]}{'-linked' if more else ''}.{engine.mpi}"
    if not target.exists():
        words = [engine.command(compiler), "-O1", "-g", "-pthread", "-w", "-o", str(target)]
        words += [str(PROGRAMS / source), *more]
        subprocess.run(words, check=True)
    return target


def run(
    native: Native,
    engine: Engine,
    ranks: int,
    *words: str | Path,
    preload: bool = True,
    environment: dict[str, str] | None = None,
    timeout_s: float = 100,
) -> str:
    """Run ranks of a program, which must succeed; what they printed."""
    given = {**({"LD_PRELOAD": str(native.library)} if preload else {}), **(environment or {})}
    done = subprocess.run(
        [*engine.mpirun(ranks, given), *map(str, words)],
        env=scratch_environment(native.folder),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def folder(native: Native, engine: Engine, name: str) -> Path:
    path = native.mount / f"{engine.name}-{name}"
    path.mkdir()
    return path


def layout(path: Path) -> dict[str, str]:
    """What the MDS says about a file's layout."""
    return dict(word.split("=") for word in os.getxattr(path, "nacre.layout").decode().split())


@pytest.mark.parametrize("prefix", ["nacre:", ""])
def test_everything_that_mpi_io_can_do(native: Native, engine: Engine, prefix: str) -> None:
    program, at = compiled(native, engine, "collective.c"), folder(native, engine, f"all{len(prefix)}")
    told = run(native, engine, 3, program, f"{prefix}{at}", "cinpst", *HINTS)
    assert f"striping_factor=3 striping_unit={UNIT}\npassed" in told
    for name in ("interleaved", "independent", "nonblocking", "pointers", "striping", "threads"):
        found = layout(at / name)
        assert (found["stripe_count"], found["stripe_size"], found["osts"]) == ("3", str(UNIT), "1,2,3"), name
    assert not (at / "sizes").exists()
    assert (at / "interleaved").stat().st_size == 3 * 200 * 96 * 4


def test_a_program_that_is_linked_with_the_library_needs_no_preload(native: Native, engine: Engine) -> None:
    library = native.library.parent
    words = ("-Wl,--no-as-needed", f"-L{library}", "-lnacre_io", f"-Wl,-rpath,{library}")
    program, at = compiled(native, engine, "collective.c", *words), folder(native, engine, "linked")
    assert "passed" in run(native, engine, 2, program, f"nacre:{at}", "cnp", *HINTS, preload=False)
    assert layout(at / "interleaved")["stripe_count"] == "3"


def test_no_byte_passes_through_the_mount(native: Native, engine: Engine) -> None:
    program, at = compiled(native, engine, "collective.c"), folder(native, engine, "bypass")
    before = native.fuse_requests()
    run(native, engine, 4, program, at, "cn", *HINTS)
    assert native.fuse_requests() == before


def test_aggregators_write_few_extents_along_stripes(native: Native, engine: Engine) -> None:
    """4 ranks interleave 800 pieces; what reaches the OSTs begins at stripe borders."""
    if engine.is_open_mpi and "ompio" in engine.name:
        pytest.skip("OMPIO looks at no striping")
    program, at = compiled(native, engine, "collective.c"), folder(native, engine, "aggregated")
    told = run(native, engine, 4, program, at, "c", *HINTS, environment={"NACRE_IO_LOG": "1"})
    writes = [(int(start), int(size)) for start, size in re.findall(r"write (\d+)\+(\d+)", told)]
    assert 1 <= len(writes) <= 12
    assert sum(size for _, size in writes) == 4 * 200 * 96 * 4
    assert [start % UNIT for start, _ in writes] == [0] * len(writes)


def test_hints_come_from_a_file_too(native: Native, engine: Engine) -> None:
    hints = native.folder / "hints"
    hints.write_text("# for ROMIO\nstriping_factor 2\nstriping_unit 100000\nromio_cb_write enable\n")
    program, at = compiled(native, engine, "collective.c"), folder(native, engine, "hints")
    told = run(native, engine, 2, program, at, "c", environment={"ROMIO_HINTS": str(hints)})
    found = layout(at / "interleaved")
    assert (found["stripe_count"], found["stripe_size"]) == ("2", str(UNIT))  # a multiple of 64 KiB
    assert f"striping_factor=2 striping_unit={UNIT}" in told


def test_without_hints_the_directory_decides_and_the_truth_is_reported(native: Native, engine: Engine) -> None:
    program, at = compiled(native, engine, "collective.c"), folder(native, engine, "default")
    os.setxattr(at, "nacre.layout", b"stripe_count=4 stripe_size=192K")
    told = run(native, engine, 2, program, at, "c")
    assert "striping_factor=4 striping_unit=196608" in told
    more = run(native, engine, 2, program, at, "c", "striping_factor=90")
    assert "striping_factor=4" in more  # it was there


def test_more_stripes_than_osts_are_as_many_as_there_are(native: Native, engine: Engine) -> None:
    program, at = compiled(native, engine, "collective.c"), folder(native, engine, "many")
    assert "striping_factor=4 striping_unit=131072" in run(
        native, engine, 2, program, at, "c", "striping_factor=90", f"striping_unit={UNIT}"
    )


@pytest.mark.slow
def test_fortran(native: Native, engine: Engine) -> None:
    if "wheel" in engine.name:
        pytest.skip("the wheels bring no mpi_f08 module for this compiler")
    program = compiled(native, engine, "strided.f90", compiler="mpif90")
    at = folder(native, engine, "fortran")
    before = native.fuse_requests()
    assert "passed" in run(native, engine, 3, program, f"nacre:{at}")
    assert layout(at / "fortran")["stripe_size"] == "196608"
    assert native.fuse_requests() == before


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["nacre:", "", "ufs:"])
def test_mpi4py(native: Native, engine: Engine, prefix: str) -> None:
    if engine.name == "mpich":
        pytest.skip("Debian has mpi4py for Open MPI only")
    if engine.name.endswith("ompio") and prefix == "ufs:":
        pytest.skip("ufs: is ROMIO's")
    python = engine.bin / "python" if "wheel" in engine.name else Path("/usr/bin/python3")
    at = folder(native, engine, f"mpi4py{len(prefix)}{prefix[:1]}")
    script = PROGRAMS / "with_mpi4py.py"
    before = native.fuse_requests()
    assert "passed" in run(native, engine, 3, python, script, f"{prefix}{at}/f", *HINTS)
    assert layout(at / "f")["stripe_count"] == "3"
    assert native.fuse_requests() == before
    data = (at / "f").read_bytes()  # by a reader through FUSE
    assert len(data) == 256 * 128 * 3 * 8


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["nacre:", ""])
def test_parallel_hdf5(native: Native, engine: Engine, prefix: str) -> None:
    if engine.mpi != "openmpi":
        pytest.skip("Debian has h5py for its Open MPI only")
    at = folder(native, engine, f"h5py{len(prefix)}")
    script = PROGRAMS / "with_h5py.py"
    assert "passed" in run(native, engine, 3, "/usr/bin/python3", script, f"{prefix}{at}/f.h5")
    code = "import h5py, sys; f = h5py.File(sys.argv[1]); print(f['whole'][191, 999], f['chunked'][0, 0])"
    done = subprocess.run(
        ["/usr/bin/python3", "-c", code, at / "f.h5"], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "2.5 0.5\n"


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["nacre:", ""])
def test_pnetcdf(native: Native, engine: Engine, prefix: str) -> None:
    if engine.mpi != "openmpi":
        pytest.skip("Debian has PnetCDF for its Open MPI only")
    program = compiled(native, engine, "pnetcdf.c", "-lpnetcdf")
    at = folder(native, engine, f"pnetcdf{len(prefix)}")
    assert "passed" in run(native, engine, 3, program, f"{prefix}{at}/f.nc")
