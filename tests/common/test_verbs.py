"""What a user is told whose machine, Python or pyverbs is not up to RDMA. (With a device: tests/rdma.)"""

import enum
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from nacrefs.common import arena
from nacrefs.common.transport import verbs

MODULES = ("device", "pd", "mr", "cq", "qp", "addr", "wr", "pyverbs_error", "enums")
ASK = """
import sys
from nacrefs.common.transport.verbs import VerbsFabric
if sys.argv[1:] == ["without"]:
    sys.modules["pyverbs"] = None
try:
    print(VerbsFabric().ports())
except OSError as error:
    print(error.strerror)
"""


def told(path: Path, *words: str) -> str:
    """What a process with the modules of `path` says about its RDMA ports."""
    code = f"import sys; sys.path.insert(0, {str(path)!r})\n{ASK}"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def installed(path: Path, contents: str) -> Path:
    """A directory with a package pyverbs of empty modules, and `contents` in the one that libibverbs is linked to."""
    package = path / "pyverbs"
    package.mkdir()
    for name in ("__init__", *MODULES):
        (package / f"{name}.py").write_text(contents if name == "device" else "")
    return path


def test_without_pyverbs_its_package_is_named(tmp_path: Path) -> None:
    text = told(tmp_path, "without")
    assert text.startswith("Python cannot import pyverbs (")
    assert "apt-get install python3-pyverbs" in text


def test_pyverbs_of_another_rdma_core_is_not_taken_for_a_missing_one(tmp_path: Path) -> None:
    reason = "libibverbs.so.1: version `IBVERBS_PRIVATE_59' not found"
    text = told(installed(tmp_path, f"raise ImportError({reason!r})"))
    assert text.startswith("pyverbs is not of this machine's rdma-core (libibverbs.so.1: version `IBVERBS_PRIVATE_59'")


@pytest.mark.skipif(Path("/sys/class/infiniband").exists(), reason="this machine may have an RDMA device")
def test_without_a_device_the_command_that_shows_them_is_named(tmp_path: Path) -> None:
    assert told(installed(tmp_path, "")) == "this machine has no RDMA device (`rdma link` shows none)"


def test_importing_pyverbs_does_not_change_what_is_logged(tmp_path: Path) -> None:
    noisy = "import logging\nlogging.basicConfig(level=logging.DEBUG)"
    path = installed(tmp_path, noisy)
    code = (
        f"import sys, logging; sys.path.insert(0, {str(path)!r})\n{ASK}\n"
        "print(len(logging.getLogger().handlers), logging.getLogger().level == logging.WARNING)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 True"


def test_the_error_of_a_low_limit_says_what_to_put_where() -> None:
    text = str(arena.too_little(8 << 20, 16 << 20))
    assert "cannot register 16 MiB" in text
    assert "may lock 8192 KiB" in text
    assert "'* - memlock unlimited' into /etc/security/limits.conf" in text
    assert "'LimitMEMLOCK=infinity' into the systemd unit" in text


def test_constants_are_found_in_the_module_and_in_its_classes() -> None:
    module = ModuleType("enums")
    ibv_qp_state = enum.IntEnum("ibv_qp_state", {"IBV_QPS_RTS": 3, "IBV_QPS_ERR": 6})
    vars(module).update(ibv_qp_state=ibv_qp_state, IBV_SEND_INLINE=8, other="x")
    assert vars(verbs.enumerators(module)) == {"IBV_QPS_RTS": 3, "IBV_QPS_ERR": 6, "IBV_SEND_INLINE": 8}
