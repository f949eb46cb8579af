"""The closing of a real device, inside pyverbs: its objects from the inside out, each by its own `close`, once.

pyverbs closes what belongs to an object together with it, in an order of its own, and forgives who forgets something.
(Its classes do not bear subclasses, so the profiler says what is called.)
"""

import sys
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest

from nacrefs.common.transport.verbs import VerbsFabric
from nacrefs.common.wire import Inspect
from tests.common.endpoints import ends, read
from tests.common.test_rdma import registered
from tests.common.test_rdma_closing import (
    notes,
    test_a_client_without_the_key_never_gets_a_queue_pair_of_the_server,
    test_a_queue_pair_that_fails_is_replaced_by_a_new_connection,
    test_closing_again_in_any_state_does_nothing,
    test_queue_pairs_are_closed_before_memory_domain_and_device,
    test_the_device_is_opened_anew_after_it_was_closed,
)
from tests.common.test_rdma_closing import (
    test_closing_while_transfers_run_leaves_nothing_and_writes_nothing_afterwards as closing_while_transfers_run,
)
from tests.harness.closings import Closings
from tests.rdma.test_links import held

__all__ = [
    "notes",
    "test_a_client_without_the_key_never_gets_a_queue_pair_of_the_server",
    "test_a_queue_pair_that_fails_is_replaced_by_a_new_connection",
    "test_closing_again_in_any_state_does_nothing",
    "test_queue_pairs_are_closed_before_memory_domain_and_device",
    "test_the_device_is_opened_anew_after_it_was_closed",
]

pytestmark = pytest.mark.timeout(300)

OURS = {"Context", "PD", "MR", "CompChannel", "CQ", "QP"}


@pytest.mark.parametrize("first", ["client", "server"])
async def test_closing_while_transfers_run_leaves_nothing_and_writes_nothing(first: str, notes: Closings) -> None:
    await closing_while_transfers_run(first, 5, notes)


@contextmanager
def closed_by_us() -> Generator[list[str]]:
    """What is closed from Python meanwhile, in order (not what pyverbs itself closes)."""
    names: list[str] = []

    def called(frame: FrameType, event: str, function: Any) -> None:
        if event == "c_call" and function.__name__ == "close" and type(function.__self__).__name__ in OURS:
            names.append(type(function.__self__).__name__)

    sys.setprofile(called)
    try:
        yield names
    finally:
        sys.setprofile(None)


async def test_a_device_is_closed_from_the_inside_out() -> None:
    assert VerbsFabric().ports()
    before = held()
    async with ends("rdma") as both:
        remote = await both.connected()
        await remote.call(Inspect("x"))
        await remote.call(read(100_000), into=[registered(100_000)])
        during = held()
        with closed_by_us() as names:
            await remote.aclose()
            await both.server.close()
    assert names == ["QP", "QP", "MR", "PD", "MR", "PD", "CQ", "CompChannel", "Context"]
    assert {name: during[name] - before[name] for name in before} == {"pd": 2, "cq": 1, "qp": 2, "mr": 2, "ctx": 1}
    assert held() == before
