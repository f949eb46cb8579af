"""What a user may try has the same outcome on a mount as on the local ext4: through one mount and through two at
once."""

import json
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.posix_cases import CASES
from tests.harness.process import process_cluster, succeed

pytestmark = pytest.mark.timeout(180)

Outcomes = dict[str, dict[str, Any]]


def _run(first: Path, second: Path) -> dict[str, Any]:
    script = Path(__file__).with_name("posix_cases.py")
    done = subprocess.run(
        [sys.executable, script, first, second], capture_output=True, text=True, timeout=150, check=False
    )
    assert done.returncode == 0, done.stderr
    outcomes: dict[str, Any] = json.loads(done.stdout)
    return outcomes


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Generator[Outcomes]:
    base = tmp_path_factory.mktemp("posix")
    for folder in (base, *base.parents[:-1]):  # other users walk through it
        folder.chmod(folder.stat().st_mode | 0o011)
    local = base / "local"
    local.mkdir()
    kind = subprocess.run(["stat", "-f", "-c", "%T", local], capture_output=True, text=True, check=True).stdout.strip()
    if kind != "ext2/ext3":
        pytest.skip(f"{local} is on {kind}, not on ext4")
    with process_cluster(base) as cluster:
        far = base / "far"
        far.mkdir()
        succeed("mount", cluster.url, far, "--keyring", cluster.keyring, "-o", "allow_other")
        try:
            for name in ("one", "two"):
                (cluster.mount / name).mkdir()
            yield {
                "local": _run(local, local),
                "one": _run(cluster.mount / "one", cluster.mount / "one"),
                "two": _run(cluster.mount / "two", far / "two"),
            }
        finally:
            succeed("umount", far)


@pytest.mark.parametrize("name", CASES)
def test_through_one_mount(outcomes: Outcomes, name: str) -> None:
    assert outcomes["one"][name] == outcomes["local"][name]


@pytest.mark.parametrize("name", CASES)
def test_through_two_mounts(outcomes: Outcomes, name: str) -> None:
    assert outcomes["two"][name] == outcomes["local"][name]


def test_every_case_ran_on_the_reference(outcomes: Outcomes) -> None:
    assert {name: value for name, value in outcomes["local"].items() if "raised" in value} == {}
