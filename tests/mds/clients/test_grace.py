"""After a restart: known sessions say what they hold before anything that could contradict it happens."""

import asyncio

import pytest
from msgspec.structs import replace

from nacrefs.common.wire import (
    Commit,
    Destroy,
    Detach,
    Fence,
    GetAttr,
    Holding,
    Keepalive,
    Lease,
    Mkdir,
    Mode,
    Open,
    Reclaim,
    Role,
    Set,
    SetAttr,
    TruncateObjects,
    Unlink,
)
from tests.mds.served import ROOT, TERM_S, Served, turns

BOTH = Mode.READ | Mode.WRITE


async def test_reclaimed_leases_and_opens_are_back(served: Served) -> None:
    client = await served.client()
    fids: list[int] = []
    changes: list[int] = []
    for name in (b"written", b"read", b"open", b"changed", b"changed and open"):
        made = await client.create(name)
        assert made.node is not None
        fids.append(made.node.attr.fid)
        changes.append(made.node.attr.change)
    number = client.number
    client.reclaims = [
        Reclaim(
            (
                Holding(fids[0], Lease.WRITE, Mode.CLOSED),
                Holding(fids[1], Lease.READ, Mode.READ, changes[1]),
                Holding(fids[2], Lease.NONE, BOTH),
                Holding(fids[3], Lease.READ, Mode.CLOSED, changes[3] - 1),
                Holding(fids[4], Lease.READ, Mode.READ, changes[4] - 1),
                Holding(12345, Lease.READ, Mode.CLOSED),
            )
        )
    ]
    await served.restart()
    await client.call(Keepalive())
    await served.settle()
    assert client.number == number
    assert not served.mds.grace.running
    held = [served.mds.leases.held(fid, number) for fid in fids]
    assert held == [Lease.WRITE, Lease.READ, Lease.NONE, Lease.NONE, Lease.NONE]
    assert served.mds.mdt.opens == {fids[2]: {number: BOTH}, fids[4]: {number: Mode.READ}}
    assert served.mds.leases.held(12345, number) == Lease.NONE


async def test_requests_wait_for_sessions_that_have_not_reclaimed(served: Served) -> None:
    quick, slow = await served.client(), await served.client()
    made = await slow.create(b"f")
    assert made.node is not None
    fid = made.node.attr.fid
    await served.server.stop()
    quick.reclaims = [Reclaim(())]
    slow.reclaims = [Reclaim((Holding(fid, Lease.WRITE, Mode.CLOSED),))]
    await served.start()
    # `slow` connects by itself; hold its greeting up by not letting it in before `quick` has asked.
    asked = quick.call(Open(fid, Mode.READ))
    slow.holds[fid] = Holding(fid, Lease.READ, Mode.CLOSED)
    node = await asyncio.wait_for(asked, 30)
    assert node.lease == Lease.READ
    assert [item.fid for item in slow.recalled] == [fid], "the reclaimed WRITE lease was not respected"


async def test_reclaim_in_parts_ends_the_grace_term_with_the_last_part_only(served: Served) -> None:
    client = await served.client()
    fids: list[int] = []
    for name in (b"a", b"b"):
        made = await client.create(name)
        assert made.node is not None
        fids.append(made.node.attr.fid)
    client.reclaims = [
        Reclaim((Holding(fids[0], Lease.WRITE, Mode.CLOSED),), more=True),
        Reclaim((Holding(fids[1], Lease.WRITE, Mode.CLOSED),)),
    ]
    await served.restart()
    await client.call(Keepalive())
    assert [served.mds.leases.held(fid, client.number) for fid in fids] == [Lease.WRITE] * 2


async def test_client_that_does_not_come_back_is_evicted_after_the_term(served: Served) -> None:
    here, gone = await served.client(), await served.client()
    made = await gone.create(b"f")
    assert made.node is not None
    fid = made.node.attr.fid
    await gone.call(Commit(fid, Lease.NONE, BOTH))
    number = gone.number
    assert served.mds.mdt.opens == {fid: {number: BOTH}}
    await gone.vanish()
    here.reclaims = [Reclaim(())]
    await served.restart()
    await here.call(Keepalive())
    waiting = here.call(Mkdir(ROOT, b"d", 0o755, 0, 0))
    await served.pass_s(TERM_S - 1, here)
    assert served.mds.grace.running
    assert not waiting.done()
    await served.pass_s(2, here)
    await served.pass_s(TERM_S / 2, here)
    await waiting
    assert number not in served.mds.sessions.by_id
    assert served.mds.mdt.opens == {}


async def test_who_had_a_key_that_went_meanwhile_is_fenced_before_others_have_its_files(served: Served) -> None:
    """The MDS ended when the key had been revoked and nobody evicted yet."""
    here, gone = await served.client(), await served.client(served.keyring.credentials(Role.CLIENT))
    made = await gone.create(b"f")
    assert made.node is not None
    fid, number = made.node.attr.fid, gone.number
    gone.reclaims = [Reclaim((Holding(fid, Lease.WRITE, BOTH, made.node.attr.change),))]
    here.reclaims = [Reclaim(())]
    keys = {name: key for name, key in served.keyring.keys.items() if key.role != "client"}
    served.keyring = replace(served.keyring, keys=keys)
    gone.comes_back = False
    await served.restart()
    await here.call(Keepalive())
    opening = here.call(Open(fid, BOTH))
    await served.pass_s(TERM_S - 1, here)
    assert not opening.done()
    served.first.gate.shut()
    passing = asyncio.ensure_future(served.pass_s(2, here))
    await served.first.gate.arrived.wait()
    assert [fence.sessions for fence in served.first.of(Fence)] == [(number,)]
    assert not opening.done()
    served.first.gate.open()
    await passing
    assert not (await opening).shared
    assert number not in served.mds.sessions.by_id


async def test_detached_session_is_not_waited_for(served: Served) -> None:
    client = await served.client()
    await client.call(Detach())
    await client.vanish()
    await served.restart()
    assert not served.mds.grace.running


async def test_orphan_that_nobody_reclaims_is_destroyed(served: Served) -> None:
    keeper, gone = await served.client(), await served.client()
    fids: list[int] = []
    for client, name in ((keeper, b"kept"), (gone, b"lost")):
        made = await client.create(name)
        assert made.node is not None
        fid = made.node.attr.fid
        fids.append(fid)
        assert (await client.call(Unlink(ROOT, name, fid, True))).orphan
    assert sorted(served.mds.mdt.orphans()) == fids
    keeper.reclaims = [Reclaim((Holding(fids[0], Lease.NONE, BOTH),))]
    await gone.vanish()
    await served.restart()
    await keeper.call(Keepalive())
    await served.pass_s(1.6 * TERM_S, keeper)
    await keeper.call(GetAttr(ROOT))
    await served.settle()
    assert served.mds.mdt.orphans() == fids[:1]
    await keeper.call(Commit(fids[0], Lease.NONE, Mode.CLOSED))
    assert served.mds.mdt.orphans() == []


async def test_truncation_that_was_not_confirmed_is_carried_out_after_a_restart(served: Served) -> None:
    client = await served.client()
    made = await client.create(b"f")
    assert made.node is not None
    fid = made.node.attr.fid
    await client.call(Commit(fid, Lease.NONE, Mode.CLOSED, True, 1 << 20, 1, 2048))
    served.first.gate.shut()
    cut = client.call(SetAttr(fid, Set.SIZE, size=10))
    await served.first.gate.arrived.wait()
    assert not cut.done()
    client.reclaims = [Reclaim(())]
    await served.server.stop()
    served.first.asked.clear()
    served.first.gate.shut()
    await served.start()
    await served.first.gate.arrived.wait()
    await client.call(Keepalive())
    await served.settle()
    assert not cut.done(), "what is written after the answer would be cut"
    served.first.gate.open()
    assert (await cut).attr.size == 10
    await served.settle()
    assert {request.size for request in served.first.of(TruncateObjects)} == {10}
    assert served.mds.mdt.intents == {}


async def test_objects_are_destroyed_after_a_restart(served: Served) -> None:
    client = await served.client()
    made = await client.create(b"f")
    assert made.node is not None
    fid = made.node.attr.fid
    await client.call(Commit(fid, Lease.NONE, Mode.CLOSED, True, 1 << 20, 1, 2048))
    served.first.gate.shut()
    await client.call(Unlink(ROOT, b"f", fid))
    await served.first.gate.arrived.wait()
    assert len(served.mds.mdt.destructions(9)) == 1
    client.reclaims = [Reclaim(())]
    await served.server.stop()
    served.first.asked.clear()
    served.first.gate.open()
    await served.start()
    await client.call(GetAttr(ROOT))
    while served.mds.mdt.destructions(9):
        await asyncio.sleep(0.005)
    assert [request.objects[0].fid for request in served.first.of(Destroy)] == [fid]


async def test_evicted_sessions_stay_fenced_over_a_restart(served: Served) -> None:
    """An OST that was away when it happened learns of it from the MDS that serves then."""
    gone, here = await served.client(), await served.client()
    number = gone.number
    await gone.vanish()
    await served.pass_s(TERM_S + 1, here)
    await served.pass_s(TERM_S / 2, here)
    assert number not in served.mds.sessions.by_id
    here.reclaims = [Reclaim(())]
    await served.restart()
    await here.call(GetAttr(ROOT))
    late = await served.oss()
    assert number in late.told
    assert here.number not in late.told


async def test_reclaim_outside_a_grace_term_is_refused(served: Served) -> None:
    client = await served.client()
    with pytest.raises(OSError, match="nothing to reclaim"):
        await client.call(Reclaim(()))
    await turns()
