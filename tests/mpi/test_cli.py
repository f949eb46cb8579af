"""`nacre mpi-env`, `nacre run`, and what pip builds."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.harness.process import fail, nacre, succeed, succeed_json
from tests.mpi.conftest import Native
from tests.mpi.engines import ENGINES
from tests.mpi.native import ROOT, need_compiler


@pytest.fixture
def chosen(native: Native, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NACRE_IO_LIBRARY", str(native.library))
    return native.library


def test_mpi_env_is_one_word_for_env_and_mpirun(chosen: Path) -> None:
    assert succeed("mpi-env") == f"LD_PRELOAD={chosen}\n"
    assert succeed_json("mpi-env")["environment"] == {"LD_PRELOAD": str(chosen)}


def test_what_is_preloaded_already_stays(chosen: Path) -> None:
    done = nacre("mpi-env", LD_PRELOAD=f"{chosen}:libm.so.6")
    assert done.stdout == f"LD_PRELOAD={chosen}:libm.so.6\n"


def test_a_missing_library_is_said_to_be_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NACRE_IO_LIBRARY", str(tmp_path / "none.so"))
    assert "make native" in fail(3, "mpi-env")
    assert "make native" in fail(3, "run", "true")


def test_run_gives_the_library_to_a_command_and_ends_as_it_does(chosen: Path) -> None:
    assert nacre("run", "--", "sh", "-c", "echo $LD_PRELOAD; exit 7").returncode == 7
    assert str(chosen) in nacre("run", "sh", "-c", "echo $LD_PRELOAD").stdout
    assert "no-such-command" in fail(3, "run", "no-such-command")


@pytest.mark.parametrize("name", ["mpich", "openmpi-ompio"])
def test_run_knows_both_kinds_of_mpirun(chosen: Path, name: str) -> None:
    engine = ENGINES[name]
    if not engine.is_here:
        pytest.skip(f"{name} is not installed")
    more = ["--allow-run-as-root", "--oversubscribe"] if engine.is_open_mpi else []
    done = nacre("run", "--", engine.command("mpirun"), "-n", "2", *more, "sh", "-c", "echo $LD_PRELOAD")
    assert done.stdout == f"{chosen}\n" * 2, done


def wheel(tmp_path: Path, **environment: str) -> tuple[Path, str]:
    """Build one from a copy of the checkout; what was said meanwhile."""
    copy = tmp_path / "checkout"
    skipped = shutil.ignore_patterns("build", ".*", "__pycache__", "tests", "docs")
    shutil.copytree(ROOT, copy, ignore=skipped)
    build = "from setuptools import build_meta; build_meta.build_wheel('.')"
    done = subprocess.run(
        [sys.executable, "-c", build],
        cwd=copy,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    (found,) = copy.glob("*.whl")
    return found, done.stderr


def test_pip_builds_the_library_where_it_can(tmp_path: Path) -> None:
    need_compiler()
    found, _ = wheel(tmp_path)
    with zipfile.ZipFile(found) as archive:
        archive.extract("nacrefs/client/native/libnacre_io.so", tmp_path)
    assert "-py3-none-linux_" in found.name
    library = tmp_path / "nacrefs/client/native/libnacre_io.so"
    subprocess.run(["cat", os.devnull], env={**os.environ, "LD_PRELOAD": str(library)}, check=True)


def test_pip_does_without_a_compiler(tmp_path: Path) -> None:
    found, words = wheel(tmp_path, CC="no-such-compiler")
    assert "built without libnacre_io.so" in words
    with zipfile.ZipFile(found) as archive:
        assert not [name for name in archive.namelist() if name.endswith(".so")]
