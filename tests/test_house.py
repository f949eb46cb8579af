"""The house: packaging and habits that a machine can check."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
FOLDERS = ("client", "common", "conf", "mds", "oss")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PROJECT["tool"]["setuptools"]


def sources() -> list[str]:
    """Every file that an installation must bring, relative to the checkout: all but READMEs and what was built."""
    files = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file())
    kept = (path for path in files if "__pycache__" not in path.parts and path.suffix not in {".md", ".so", ".o"})
    return sorted(str(path.relative_to(ROOT)) for path in kept)


def test_package_list_names_every_folder_with_an_init_file() -> None:
    found = {
        f"nacrefs.{os.path.dirname(name).replace('/', '.')}" for name in sources() if name.endswith("/__init__.py")
    }
    assert sorted(found) == SETUPTOOLS["packages"], "put the packages into [tool.setuptools] packages, in order"


def test_every_python_file_lies_in_a_listed_package() -> None:
    listed = {package.removeprefix("nacrefs.").replace(".", "/") for package in SETUPTOOLS["packages"]}
    stray = {os.path.dirname(name) for name in sources() if name.endswith(".py")} - listed
    assert not stray, "these folders lack an __init__.py, or their package is not listed in pyproject.toml"


def test_wheel_brings_every_file_of_the_packages_and_nothing_else(tmp_path: Path) -> None:
    copy = tmp_path / "checkout"
    for name in ["pyproject.toml", "setup.py", "README.md", *sources()]:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, copy / name)
    build = "from setuptools import build_meta; build_meta.build_wheel('.')"
    environment = {**os.environ, "NACRE_WITHOUT_NATIVE": "1"}  # tests/mpi/test_build.py looks at that part
    done = subprocess.run(
        [sys.executable, "-c", build], cwd=copy, env=environment, capture_output=True, text=True, check=False
    )
    assert not done.returncode, done.stderr
    (wheel,) = copy.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = [name for name in archive.namelist() if not name.startswith("nacrefs-")]
    assert sorted(packed) == [f"nacrefs/{name}" for name in sources()], "see [tool.setuptools.package-data]"


def test_packages_are_typed_and_come_from_this_checkout() -> None:
    for folder in ("client", "common", "mds", "oss"):
        (ROOT / folder / "py.typed").stat()
        module = __import__(f"nacrefs.{folder}", fromlist=["__path__"])
        assert Path(module.__path__[0]).resolve() == ROOT / folder


@pytest.mark.parametrize(
    "entry", importlib.metadata.distribution("nacrefs").entry_points, ids=lambda entry: f"{entry.group}-{entry.name}"
)
def test_console_scripts_and_commands_exist(entry: importlib.metadata.EntryPoint) -> None:
    assert callable(entry.load())


def test_pyverbs_is_never_needed_to_develop_or_test() -> None:
    extras: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]
    (named,) = map(Requirement, extras["rdma"])
    assert named.name == "pyverbs"
    assert named.marker is not None
    assert not named.marker.evaluate(), "pip would compile PyPI's, which hides the distribution's"
    assert not [need for extra in ("dev", "test") for need in extras[extra] if re.search(r"pyverbs|rdma", need)]


def test_every_test_that_the_guarantees_name_is_there() -> None:
    named = re.findall(r"`((?:\w+/)*\w+(?:\.py)?)(?:::(test_\w+))?`", (ROOT / "docs/guarantees.md").read_text())
    files = [(ROOT / "tests" / path, test) for path, test in named if "/" in path]
    assert len(files) > 40
    assert not [str(path) for path, _ in files if not path.exists()]
    assert not [test for path, test in files if test and f"def {test}(" not in path.read_text()]


LEAVERS = """
import asyncio, os, subprocess, threading

kept = []

async def test_tidy():
    await asyncio.to_thread(lambda: None)

async def test_task():
    kept.append(asyncio.create_task(asyncio.sleep(60)))

def test_descriptor():
    os.open("/dev/null", os.O_RDONLY)

def test_thread():
    threading.Thread(target=threading.Event().wait, daemon=True).start()

def test_process():
    kept.append(subprocess.Popen(["true"]))
"""


def test_test_that_leaves_something_behind_fails(tmp_path: Path) -> None:
    shutil.copyfile(ROOT / "tests/conftest.py", tmp_path / "conftest.py")
    (tmp_path / "test_leavers.py").write_text(LEAVERS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nasyncio_mode = auto\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--basetemp", str(tmp_path / "base")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    errors = re.findall(r"^ERROR test_leavers.py::test_(\w+)", done.stdout, re.MULTILINE)
    assert errors == ["task", "descriptor", "thread", "process"]
    assert "5 passed, 4 errors" in done.stdout
