"""These tests run in the VM (`tests/rdma/rdma-vm`), where a missing device is a failure; elsewhere they are skipped."""

import asyncio
import inspect
import os
import sys

import pytest

import tests.harness.process
from tests.common.test_rdma import both, devices, links, nothing_said_yet
from tests.common.test_transport import connect, pair
from tests.conftest import _no_task_left as _no_task_left  # pyright: ignore[reportPrivateUsage]
from tests.conftest import no_task_left_behind, nothing_left_behind, pytest_fixture_setup
from tests.harness.pace import SLOWER

__all__ = [
    "both",
    "connect",
    "devices",
    "links",
    "no_task_left_behind",
    "nothing_left_behind",
    "nothing_said_yet",
    "pair",
    "pytest_fixture_setup",
]


timeout = asyncio.timeout


def _patient(delay: float | None) -> asyncio.Timeout:
    """`asyncio.timeout`; what tests mean by it (not the code that they test) is that something hangs."""
    frame = inspect.currentframe()
    assert frame is not None
    assert frame.f_back is not None
    tests_own = str(frame.f_back.f_globals.get("__name__")).startswith("tests.")
    return timeout(SLOWER * delay if tests_own and delay is not None else delay)


if os.environ.get("RDMA_VM"):  # starting an MDS takes half a minute there
    tests.harness.process.COMMAND_S = 1200.0
    tests.harness.process.DEV |= {"transport": "rdma", "ready_s": 1200.0}
    asyncio.timeout = _patient


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Show at once why a test failed: the VM may be out of time before the summary."""
    if report.failed:
        sys.stdout.write(f"\n{report.longreprtext}\n")
        sys.stdout.flush()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Outside of the VM skip what needs it; in there, give tests with a limit of their own so much more of it."""
    for item in items:
        ours = "tests/rdma" in str(item.path)
        if not os.environ.get("RDMA_VM"):
            if ours:
                item.add_marker(pytest.mark.skip(reason="needs the VM: make test-rdma"))
        elif not ours and (limit := item.get_closest_marker("timeout")) is not None:
            item.add_marker(pytest.mark.timeout(SLOWER * limit.args[0]), append=False)
