"""Links over a real device: the behaviours of the transport suite and of the RDMA suite that a device can break."""

import pytest

from nacrefs.common import arena
from nacrefs.common.transport.verbs import VerbsFabric
from tests.common.endpoints import Ends
from tests.common.test_rdma import (
    connect_again_and_again,
    test_a_server_shows_its_memory_to_nobody,
    test_a_wrong_key_writes_nothing_and_ends_the_link,
    test_an_access_past_the_end_of_what_is_registered_ends_the_link,
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
    "test_a_server_shows_its_memory_to_nobody",
    "test_a_wrong_key_writes_nothing_and_ends_the_link",
    "test_an_access_past_the_end_of_what_is_registered_ends_the_link",
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


async def test_forty_connections_leave_nothing_behind(both: Ends) -> None:
    await connect_again_and_again(both, 40)


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_a_thousand_connections_leave_nothing_behind(both: Ends) -> None:
    await connect_again_and_again(both, 1000)
    assert arena.share().held_bytes == arena.SEGMENT_BYTES
