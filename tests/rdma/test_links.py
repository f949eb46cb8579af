"""Links over a real device: the behaviours of the transport suite and of the RDMA suite that a device can break."""

import asyncio
import errno
import json
import subprocess
import sys

import pytest
from msgspec.structs import replace

from nacrefs.common import arena
from nacrefs.common.transport import address
from nacrefs.common.transport.link import Link
from nacrefs.common.transport.verbs import VerbsFabric
from nacrefs.common.wire import Inspect
from tests.common.endpoints import Ends
from tests.common.test_rdma import (
    connect_again_and_again,
    test_a_list_with_both_schemes_listens_at_one_port,
    test_a_server_shows_its_memory_to_nobody,
    test_a_server_without_rdma_declines_and_this_is_said_once,
    test_a_wrong_key_writes_nothing_and_ends_the_link,
    test_an_access_past_the_end_of_what_is_registered_ends_the_link,
    test_another_version_of_rdma_is_declined,
    test_memory_of_a_cancelled_read_that_is_offered_again_cuts_the_old_link_first,
    test_more_messages_than_credits_are_an_error_at_once,
    test_one_send_each_way_for_a_request_and_not_a_byte_of_tcp,
    test_one_write_for_a_read_and_one_read_for_a_write,
    test_ordinary_memory_works_too,
    test_requests_beyond_all_credits_wait_and_all_are_answered,
    test_scattered_room_takes_one_write_for_each_place,
    test_the_buffer_of_a_cancelled_read_belongs_to_nobody_until_the_answer_is_there,
    test_the_death_of_either_side_ends_the_other,
    test_what_had_been_sent_before_the_other_side_died_still_arrives,
)
from tests.common.test_transport import (
    test_bulk_goes_both_ways_from_and_into_many_buffers,
    test_done_is_called_exactly_once_whatever_happens,
    test_frames_arrive_in_order_both_ways,
    test_what_was_sent_before_close_arrives,
)

__all__ = [
    "test_a_list_with_both_schemes_listens_at_one_port",
    "test_a_server_shows_its_memory_to_nobody",
    "test_a_server_without_rdma_declines_and_this_is_said_once",
    "test_a_wrong_key_writes_nothing_and_ends_the_link",
    "test_an_access_past_the_end_of_what_is_registered_ends_the_link",
    "test_another_version_of_rdma_is_declined",
    "test_bulk_goes_both_ways_from_and_into_many_buffers",
    "test_done_is_called_exactly_once_whatever_happens",
    "test_frames_arrive_in_order_both_ways",
    "test_memory_of_a_cancelled_read_that_is_offered_again_cuts_the_old_link_first",
    "test_more_messages_than_credits_are_an_error_at_once",
    "test_one_send_each_way_for_a_request_and_not_a_byte_of_tcp",
    "test_one_write_for_a_read_and_one_read_for_a_write",
    "test_ordinary_memory_works_too",
    "test_requests_beyond_all_credits_wait_and_all_are_answered",
    "test_scattered_room_takes_one_write_for_each_place",
    "test_the_buffer_of_a_cancelled_read_belongs_to_nobody_until_the_answer_is_there",
    "test_the_death_of_either_side_ends_the_other",
    "test_what_had_been_sent_before_the_other_side_died_still_arrives",
    "test_what_was_sent_before_close_arrives",
]

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def place(devices: None) -> str:
    return "rdma://127.0.0.1:0"


def test_the_device_is_found_under_its_addresses() -> None:
    ports = VerbsFabric().ports()
    assert {port.device for port in ports} == {"rxe0"}
    assert {"::1", "::ffff:7f00:1"} <= {port.gid for port in ports}
    assert all(port.ethernet for port in ports)


async def test_an_address_without_a_route_is_named(devices: None) -> None:
    accepted: asyncio.Queue[Link] = asyncio.Queue()
    listener = await address.listen("rdma://127.0.0.1:0", accepted.put_nowait)
    near, far = await address.connect(listener.address), await accepted.get()
    assert near.upgrade is not None
    assert far.upgrade is not None
    offer = near.upgrade.offer()
    assert offer is not None
    with pytest.raises(OSError, match="no route from rxe0 ::ffff:7f00:1 to ::ffff:192.0.2.1: ") as caught:
        far.upgrade.answer(replace(offer, gid="::ffff:192.0.2.1"))
    assert caught.value.errno == errno.EHOSTUNREACH
    near.upgrade.drop()
    for part in (near, far, listener):
        part.close()
    await address.settle()


LOCKED = """
import os, resource
from nacrefs.common import arena
from nacrefs.common.transport.rdmamemory import Registered
from nacrefs.common.transport.verbs import VerbsFabric
fabric = VerbsFabric()
port = fabric.ports()[0]
resource.setrlimit(resource.RLIMIT_MEMLOCK, (1 << 20, 1 << 20))
os.setresuid(65534, 65534, 65534)
device = fabric.open(port)
memory = arena.Arena()
memory.take(1)
try:
    Registered(device.domain(True), memory)
except OSError as error:
    print(error.errno, error.strerror)
device.close()
"""


def test_who_may_not_lock_enough_memory_is_told_what_to_put_where() -> None:
    done = subprocess.run([sys.executable, "-c", LOCKED], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    begins = (
        f"{errno.ENOMEM} cannot register 16 MiB with the RDMA device: this process may lock 1024 KiB of memory only"
    )
    assert done.stdout.startswith(begins)


def held() -> dict[str, int]:
    """What the kernel says is in use of the device: protection domains, completion queues, queue pairs, regions."""
    shown = subprocess.run(["rdma", "-j", "resource", "show", "rxe0"], capture_output=True, check=True)
    (counts,) = json.loads(shown.stdout)
    return {name: counts[name] for name in ("pd", "cq", "qp", "mr", "ctx")}


async def connected_again_and_again(both: Ends, times: int) -> None:
    await (await both.connected(name="before")).call(Inspect("x"))
    before = held()
    await connect_again_and_again(both, times)
    assert held() == {**before, "qp": before["qp"] + 2}, "two are of its first connection, which goes on"


async def test_forty_connections_leave_nothing_behind(both: Ends) -> None:
    await connected_again_and_again(both, 40)


@pytest.mark.slow
@pytest.mark.timeout(3000)
async def test_a_thousand_connections_leave_nothing_behind(both: Ends) -> None:
    await connected_again_and_again(both, 1000)
    assert arena.share().held_bytes == arena.SEGMENT_BYTES
