"""The native library and C programs, built as tests want them."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "client" / "native"
PROGRAMS = Path(__file__).parent / "programs"
FLAGS = ["-std=gnu11", "-D_GNU_SOURCE", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread"]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]


def need_compiler() -> None:
    """Skip the test where nothing can be compiled."""
    if shutil.which("cc") is None or not os.path.exists("/usr/include/xxhash.h"):
        pytest.skip("needs a C compiler and xxhash.h (apt-get install gcc libxxhash-dev)")


def build_library(folder: Path, *, sanitize: bool = False) -> Path:
    """`libnacre_io.so`, built into a folder."""
    need_compiler()
    words = ["make", "-s", "-C", str(SOURCE), f"BUILD={folder}", *(["SANITIZE=1"] if sanitize else [])]
    subprocess.run(words, check=True, env={**os.environ, "MAKEFLAGS": ""})
    return folder / "libnacre_io.so"


def build_program(
    source: Path, target: Path, *parts: str, compiler: str = "cc", flags: list[str] | None = None
) -> Path:
    """A C program, with these parts of the library linked into it."""
    need_compiler()
    objects = [str(SOURCE / f"{part}.c") for part in parts]
    words = [compiler, *(FLAGS if flags is None else flags), f"-I{SOURCE}", f"-I{target.parent}"]
    subprocess.run([*words, "-o", str(target), str(source), *objects, "-ldl"], check=True)
    return target
