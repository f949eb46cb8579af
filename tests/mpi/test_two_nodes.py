"""Ranks on two nodes: each sees a mount of its own under the same name (a mount namespace stands for a node)."""

import subprocess
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.harness.process import succeed
from tests.mpi.conftest import Native
from tests.mpi.engines import Engine, scratch_environment
from tests.mpi.test_mpi import compiled


@pytest.fixture(scope="session")
def second(native: Native, tmp_path_factory: pytest.TempPathFactory) -> Generator[Path]:
    """Another mount of the same filesystem."""
    at = tmp_path_factory.mktemp("second")
    succeed("mount", native.cluster.url, at, "--keyring", native.cluster.keyring)
    yield at
    succeed("umount", at)


@pytest.mark.parametrize(
    ("parts", "hints"),
    [
        ("cn", ()),
        ("ip", ()),
        pytest.param("ipx", ("nacre_buffer_size=1M",), marks=pytest.mark.slow),
    ],
    ids=["data", "locks", "buffer"],
)
def test_ranks_on_two_nodes_share_files_locks_and_pointers(
    native: Native, engine: Engine, second: Path, parts: str, hints: tuple[str, ...]
) -> None:
    """`i`, `p` and `x` need locks that hold between the nodes."""
    program = compiled(native, engine, "collective.c")
    at = native.mount / f"{engine.name}-nodes-{parts}"
    at.mkdir()
    node = native.folder / "node.sh"
    node.write_text(
        "#!/bin/sh\n"
        "rank=${PMI_RANK:-${OMPI_COMM_WORLD_RANK:-0}}\n"
        'if [ $((rank % 2)) = 1 ]; then exec unshare -m sh -c \'mount --bind "$0" "$1" && shift && exec "$@"\' '
        f'"{second}" "{native.mount}" "$@"; fi\n'
        'exec "$@"\n'
    )
    node.chmod(0o755)
    given = {"LD_PRELOAD": str(native.library)}
    done = subprocess.run(
        [*engine.mpirun(4, given), str(node), str(program), f"nacre:{at}", parts, "striping_factor=4", *hints],
        env=scratch_environment(native.folder),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout
