"""Random I/O on one file ends as its model says: through one mount, and through two in turn."""

from collections.abc import Generator
from pathlib import Path

import pytest

from tests.harness.process import process_cluster, succeed
from tests.posix.fsx import Difference, Fsx, run

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def mounts(tmp_path_factory: pytest.TempPathFactory) -> Generator[tuple[Path, Path]]:
    """Two mounts of one cluster; in their directory `wide` files have four small stripes."""
    base = tmp_path_factory.mktemp("fsx")
    with process_cluster(base) as cluster:
        far = base / "far"
        far.mkdir()
        succeed("mount", cluster.url, far, "--keyring", cluster.keyring)
        try:
            (cluster.mount / "wide").mkdir()
            succeed("setstripe", "-c", "4", "-S", "64K", cluster.mount / "wide")
            yield cluster.mount, far
        finally:
            succeed("umount", far)


def paths(mounts: tuple[Path, Path], name: str, count: int) -> list[str]:
    return [str(mount / name) for mount in mounts[:count]]


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name", ["f", "wide/f"])
def test_a_few_hundred_calls(mounts: tuple[Path, Path], name: str, count: int) -> None:
    assert run(paths(mounts, name, count), 7 + count, 250) is None


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(100, 106))
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name", ["f", "wide/f"])
def test_thousands_of_calls(mounts: tuple[Path, Path], name: str, count: int, seed: int) -> None:
    assert run(paths(mounts, name, count), seed, 2000, most=1 << 20 if seed % 2 else 100_000) is None


def test_a_model_that_is_wrong_is_noticed(tmp_path: Path) -> None:
    file = Fsx([str(tmp_path / "f")], 1, 100_000, direct=False, mapped=True, refuses=False)
    try:
        file.run(30)
        file.model.extend(b"more")
        with pytest.raises(Difference, match="bytes instead of"):
            file.run(1)
    finally:
        file.close()
