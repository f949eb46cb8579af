"""Builds libnacre_io.so (client/native) on the way into a wheel, where there is a compiler. The rest: pyproject.toml.

Without a compiler, or without xxhash.h, the wheel is complete but for that library, and says so while it is built.
"""

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
LIBRARY = "libnacre_io.so"


def build_library(folder: Path) -> bool:
    """Build the library into a folder; False, having said why, if that does not work."""
    words = ["make", "-s", "-C", str(ROOT / "client" / "native"), f"BUILD={folder.resolve()}"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, env={**os.environ, "MAKEFLAGS": ""})
    except OSError as error:
        reason = f"make: {error.strerror}"
    else:
        if not done.returncode:
            return True
        reason = next(iter(done.stderr.splitlines()), "make failed")
    sys.stderr.write(f"nacrefs is built without {LIBRARY} (MPI-IO past the mount): {reason}\n")
    return False


class BuildPackages(build_py):
    """Packages, and the library beside its sources."""

    def run(self) -> None:
        super().run()
        if self.editable_mode or os.environ.get("NACRE_WITHOUT_NATIVE"):
            return
        objects = Path(self.build_lib).parent / "native"
        if build_library(objects):
            target = Path(self.build_lib) / "nacrefs" / "client" / "native" / LIBRARY
            target.parent.mkdir(parents=True, exist_ok=True)
            self.copy_file(str(objects / LIBRARY), str(target))


class Wheel(bdist_wheel):
    """A wheel for any Python, on this platform: the library knows no Python."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.root_is_pure = False

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


class Platform(Distribution):
    """It holds machine code, so it goes into platlib."""

    def has_ext_modules(self) -> bool:
        return True


setup(cmdclass={"build_py": BuildPackages, "bdist_wheel": Wheel}, distclass=Platform)
