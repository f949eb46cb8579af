"""Turns to append to a shared file: one at a time, never lost, never left behind."""

import asyncio
import errno

import pytest

from nacrefs.common import faults
from nacrefs.common.wire import (
    Append,
    Appended,
    Commit,
    GetAttr,
    Holding,
    Keepalive,
    Lease,
    Mode,
    Node,
    Open,
    Reclaim,
    Set,
    SetAttr,
    TruncateObjects,
)
from nacrefs.mds.clients.appends import Turn, Turns
from tests.mds.served import TERM_S, Client, Served, turns

BOTH = Mode.READ | Mode.WRITE


async def shared(served: Served, size: int = 1000) -> tuple[int, Client, Client]:
    """A file with objects that two clients write."""
    one, two = await served.client(), await served.client()
    made = await one.create(b"log")
    assert made.node is not None
    fid = made.node.attr.fid
    await one.call(Commit(fid, Lease.WRITE, BOTH, True, size, 1, 2))
    one.holds[fid] = Holding(fid, Lease.NONE, BOTH)
    served.first.sizes[fid] = size
    node = await two.call(Open(fid, BOTH))
    assert node.shared
    return fid, one, two


def waits(answer: "asyncio.Future[Node]") -> bool:
    return not answer.done()


def test_a_turn_is_one_sessions_and_ends_once() -> None:
    table = Turns()
    assert table.begin(7, Turn(1, 1))
    assert table.begin(7, Turn(1, 1)), "asked again"
    assert not table.begin(7, Turn(1, 2))
    assert not table.begin(7, Turn(2, 1))
    assert table.begin(8, Turn(2, 1))
    assert not table.end(7, Turn(2, 1))
    assert table.end(7, Turn(1, 1))
    assert not table.end(7, Turn(1, 1))
    table.drop_session(2)
    assert not table.taken


async def test_the_next_one_appends_where_the_last_one_ended(served: Served) -> None:
    fid, one, two = await shared(served)
    first = await one.call(Append(fid, 1))
    assert (first.attr.size, first.lease) == (1000, Lease.NONE)
    second = two.call(Append(fid, 1))
    await served.settle()
    assert waits(second)
    served.first.sizes[fid] = 1500
    await one.call(Appended(fid, 1))
    assert (await second).attr.size == 1500
    await two.call(Appended(fid, 1))
    assert not served.mds.leases.turns.taken


async def test_nobody_cuts_the_file_during_an_append(served: Served) -> None:
    fid, one, two = await shared(served)
    await one.call(Append(fid, 1))
    cut = two.call(SetAttr(fid, Set.SIZE, size=10))
    await served.settle()
    assert waits(cut)
    assert (await two.call(GetAttr(fid))).attr.size == 1000, "who only looks does not wait"
    assert not served.first.of(TruncateObjects)
    await one.call(Appended(fid, 1))
    await cut
    assert [request.size for request in served.first.of(TruncateObjects)] == [10]


async def test_a_client_that_dies_during_its_turn_holds_up_nobody(served: Served) -> None:
    fid, one, two = await shared(served)
    await one.call(Append(fid, 1))
    waiting = two.call(Append(fid, 1))
    await one.vanish()
    await served.pass_s(TERM_S / 2)
    await two.call(Keepalive())
    await served.pass_s(TERM_S / 2 + 1)
    await two.call(Keepalive())
    await served.pass_s(TERM_S / 2)
    assert (await asyncio.wait_for(waiting, 30)).attr.size == 1000


async def test_an_append_that_was_given_up_while_it_waited_takes_no_turn(served: Served) -> None:
    fid, one, two = await shared(served)
    await one.call(Append(fid, 1))
    waiting = two.call(Append(fid, 5))
    await served.settle()
    await two.call(Appended(fid, 5))
    await one.call(Appended(fid, 1))
    with pytest.raises(OSError, match="given up") as refused:
        await waiting
    assert refused.value.errno == errno.EINTR
    assert not served.mds.leases.turns.taken


async def test_who_does_not_write_the_file_gets_no_turn(served: Served) -> None:
    fid, _, _ = await shared(served)
    other = await served.client()
    with pytest.raises(OSError, match="lost its right") as refused:
        await other.call(Append(fid, 1))
    assert refused.value.errno == errno.ESTALE


async def test_who_has_the_file_for_itself_is_told_so(served: Served) -> None:
    client = await served.client()
    made = await client.create(b"f")
    assert made.node is not None
    assert (await client.call(Append(made.node.attr.fid, 1))).lease == Lease.WRITE
    assert not served.mds.leases.turns.taken


async def test_no_lease_is_given_during_an_append(served: Served) -> None:
    fid, one, two = await shared(served)
    await one.call(Append(fid, 1))
    await two.call(Commit(fid, Lease.NONE, Mode.CLOSED))
    assert (await one.call(GetAttr(fid))).lease == Lease.NONE
    await one.call(Appended(fid, 1))
    assert (await one.call(GetAttr(fid))).lease == Lease.READ


@pytest.mark.parametrize("what", ["Append", "Appended"])
@pytest.mark.parametrize("point", ["rpc.request.receive", "rpc.reply.send"])
async def test_a_lost_message_neither_loses_nor_doubles_a_turn(served: Served, what: str, point: str) -> None:
    fid, one, two = await shared(served)
    with faults.armed(point, faults.drop, match=what) as fault:
        assert (await one.call(Append(fid, 1))).attr.size == 1000
        second = two.call(Append(fid, 1))
        await served.settle()
        served.first.sizes[fid] = 1200
        await one.call(Appended(fid, 1))
        assert (await second).attr.size == 1200
        await two.call(Appended(fid, 1))
    assert fault.fired
    assert not served.mds.leases.turns.taken


async def test_a_turn_that_was_asked_for_twice_while_it_waited_is_taken_once(served: Served) -> None:
    fid, one, two = await shared(served)
    await one.call(Append(fid, 1))
    waiting = two.call(Append(fid, 3))
    await served.settle()
    two.cut()
    await two.call(Keepalive())
    await served.settle()
    await one.call(Appended(fid, 1))
    await waiting
    await two.call(Appended(fid, 3))
    await served.settle()
    assert not served.mds.leases.turns.taken


async def test_turns_outlive_a_restart(served: Served) -> None:
    fid, one, two = await shared(served)
    await one.call(Append(fid, 1))
    one.reclaims = [Reclaim((Holding(fid, Lease.NONE, BOTH),), appends=((fid, 1),))]
    two.reclaims = [Reclaim((Holding(fid, Lease.NONE, BOTH),))]
    await served.restart()
    second = two.call(Append(fid, 1))
    await one.call(Keepalive())
    await turns()
    await served.settle()
    assert not served.mds.grace.running
    assert waits(second)
    served.first.sizes[fid] = 1100
    await one.call(Appended(fid, 1))
    assert (await second).attr.size == 1100
