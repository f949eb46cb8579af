"""These tests run in the VM (`tests/rdma/rdma-vm`), where a missing device is a failure; elsewhere they are skipped."""

import os

import pytest

from tests.common.test_rdma import both, devices, links, nothing_said_yet
from tests.common.test_transport import connect, pair
from tests.conftest import _no_task_left as _no_task_left  # pyright: ignore[reportPrivateUsage]
from tests.conftest import no_task_left_behind, nothing_left_behind, pytest_fixture_setup

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, unless this is the VM."""
    if not os.environ.get("RDMA_VM"):
        for item in items:
            if "tests/rdma" in str(item.path):
                item.add_marker(pytest.mark.skip(reason="needs the VM: make test-rdma"))
