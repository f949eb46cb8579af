"""Every call on names and inodes has the same outcome on a mount as on the local ext4: results, errors, and times."""

import subprocess
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.harness.process import need_mounts, process_cluster
from tests.posix.chapters import differences, run
from tests.posix.scene import CHAPTERS

SOME = 23
"""One combination of so many, where it must not take long."""


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Generator[tuple[Path, Path]]:
    """A directory on ext4, and one on a mount."""
    need_mounts()
    base = tmp_path_factory.mktemp("posix")
    for folder in (base, *base.parents[:-1]):  # other users walk through it
        folder.chmod(folder.stat().st_mode | 0o011)
    local = base / "local"
    local.mkdir()
    kind = subprocess.run(["stat", "-f", "-c", "%T", local], capture_output=True, text=True, check=True).stdout.strip()
    if kind != "ext2/ext3":
        pytest.skip(f"{local} is on {kind}, not on ext4")
    with process_cluster(base) as cluster:
        yield local, cluster.mount


def compare(places: tuple[Path, Path], chapter: str, stride: int) -> None:
    local, mount = (run(str(place), [chapter], stride) for place in places)
    assert len(local[chapter]) > 5
    assert differences(local, mount) == []


@pytest.mark.timeout(180)
@pytest.mark.parametrize("chapter", CHAPTERS)
def test_some_calls_of_each_chapter(places: tuple[Path, Path], chapter: str) -> None:
    compare(places, chapter, SOME)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("chapter", CHAPTERS)
def test_all_calls_of_each_chapter(places: tuple[Path, Path], chapter: str) -> None:
    compare(places, chapter, 1)
