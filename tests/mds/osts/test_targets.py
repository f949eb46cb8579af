"""The OSTs as the MDS knows them, and what it asks of them."""

import asyncio

import pytest

from nacrefs.common.wire import (
    Commit,
    GetAttr,
    GetOsts,
    Glimpse,
    Heartbeat,
    Holding,
    Lease,
    Mode,
    ObjectId,
    Open,
    Register,
    Set,
    SetAttr,
    SetPool,
    Statfs,
    TargetInfo,
    TruncateObjects,
)
from tests.mds.served import ROOT, Client, Oss, Served, turns

BOTH = Mode.READ | Mode.WRITE


async def shared(served: Served, one: Client, two: Client) -> int:
    """A file with objects that both have open for writing."""
    made = await one.create(b"f")
    assert made.node is not None
    fid = made.node.attr.fid
    await one.call(Commit(fid, Lease.NONE, BOTH, True, 100, 1, 8))
    assert (await two.call(Open(fid, BOTH))).shared
    return fid


async def test_ost_keeps_its_index_whoever_serves_it_and_whatever_restarts(served: Served) -> None:
    second = await served.oss(2)
    assert (*served.first.indices, *second.indices) == (0, 1, 2, 3)
    await served.restart()
    client = await served.client()
    while not all(info.up for info in (await client.call(GetOsts())).osts):
        await asyncio.sleep(0.01)
    assert (*served.first.indices, *second.indices) == (0, 1, 2, 3)


async def test_contradictory_registrations_are_refused(served: Served) -> None:
    other = Oss(served, 1)
    served.oss_list.append(other)
    await other.start()
    info = TargetInfo(other.uuids[0], 0, 1, 1, 0)
    for targets, reason in (
        ((), "at least one"),
        ((info,), "but it is 2 here"),
        ((TargetInfo("unknown", 7, 1, 1, 0),), "does not know it"),
        ((TargetInfo("twice", -1, 1, 1, 0), TargetInfo("twice", -1, 1, 1, 0)), "twice"),
    ):
        with pytest.raises(OSError, match=reason):
            await other.remote.call(Register("mem://x", targets))


async def test_clients_may_not_pose_as_oss(served: Served) -> None:
    client = await served.client()
    for request in (Register("mem://x", (TargetInfo("u", -1, 1, 1, 0),)), Heartbeat(())):
        with pytest.raises(OSError, match="needs a server's key"):
            await client.call(request)


async def test_heartbeat_of_another_oss_s_ost_is_refused(served: Served) -> None:
    second = await served.oss()
    with pytest.raises(OSError, match="not registered here by this OSS"):
        await second.remote.call(Heartbeat((TargetInfo(served.first.uuids[0], 0, 1, 1, 0),)))


async def test_heartbeats_say_how_full_osts_are(served: Served) -> None:
    client = await served.client()
    infos = tuple(TargetInfo(uuid, index, 1000, 10, 3) for index, uuid in enumerate(served.first.uuids))
    await served.first.remote.call(Heartbeat(infos))
    space = await client.call(Statfs())
    assert (space.total_bytes, space.free_bytes) == (2000, 20)


async def test_osts_on_one_disk_have_its_room_once(served: Served) -> None:
    client = await served.client()
    infos = tuple(TargetInfo(uuid, -1, 1000, 10, 3, "disk") for uuid in served.first.uuids)
    await served.first.remote.call(Register("mem://elsewhere", infos))
    space = await client.call(Statfs())
    assert (space.total_bytes, space.free_bytes) == (1000, 10)
    assert [info.total_bytes for info in (await client.call(GetOsts())).osts] == [1000, 1000]


async def test_silent_oss_is_dropped_and_registers_again(served: Served) -> None:
    client = await served.client()
    before = (await client.call(GetOsts())).version
    served.clock.advance(31)
    served.mds.sessions.by_id[client.number].last_heard_s = served.clock.monotonic_s()
    served.mds.tick()
    assert not any(info.up for info in served.mds.targets.table())
    while not all(info.up for info in served.mds.targets.table()):
        await asyncio.sleep(0.01)
    assert (await client.call(GetOsts())).version > before


async def test_new_connection_of_an_oss_ends_its_dead_one(served: Served) -> None:
    """What was asked on the dead one is asked again."""
    client = await served.client()
    made = await client.create(b"f")
    assert made.node is not None
    fid = made.node.attr.fid
    await client.call(Commit(fid, Lease.NONE, Mode.CLOSED, True, 1 << 20, 1, 2048))
    served.first.gate.shut()
    cut = client.call(SetAttr(fid, Set.SIZE, size=10))
    await served.first.gate.arrived.wait()
    again = Oss(served, 0)
    again.uuids, again.indices = served.first.uuids, served.first.indices
    served.oss_list.append(again)
    await again.start()
    assert (await cut).attr.size == 10
    assert again.of(TruncateObjects)
    await served.first.stop()


async def test_getattr_of_a_shared_file_asks_the_osts(served: Served) -> None:
    one, two = await served.client(), await served.client()
    fid = await shared(served, one, two)
    served.first.sizes[fid] = 5000
    node = await two.call(GetAttr(fid))
    assert (node.attr.size, node.shared, node.lease) == (5000, True, Lease.NONE)
    assert (await two.call(SetAttr(fid, Set.MODE, mode=0o600))).attr.size == 5000
    served.first.sizes[fid] = 7
    assert (await one.call(GetAttr(fid))).attr.size == 100, "committed sizes count too"


async def test_getattr_of_a_shared_file_waits_for_an_ost_that_is_away(served: Served) -> None:
    one, two = await served.client(), await served.client()
    fid = await shared(served, one, two)
    await served.first.remote.aclose()
    await turns()
    asked = two.call(GetAttr(fid))
    await served.settle()
    assert not asked.done()
    served.first.sizes[fid] = 5000
    await served.first.start()
    assert (await asked).attr.size == 5000


async def test_file_is_busy_until_every_ost_has_cut_its_objects(served: Served) -> None:
    one, two = await served.client(), await served.client()
    made = await one.create(b"f")
    assert made.node is not None
    fid = made.node.attr.fid
    await one.call(Commit(fid, Lease.NONE, Mode.CLOSED, True, 1 << 20, 1, 2048))
    served.first.gate.shut()
    # In one batch: who comes second must not get at the file before its objects are cut either.
    cut, opened = one.call(SetAttr(fid, Set.SIZE, size=10)), asyncio.ensure_future(two.create(b"f"))
    await served.first.gate.arrived.wait()
    looked = two.call(GetAttr(fid))
    await served.settle()
    assert not (cut.done() or opened.done() or looked.done())
    served.first.gate.open()
    assert (await cut).attr.size == 10
    assert (await opened).node is not None
    two.holds[fid] = Holding(fid, Lease.READ, BOTH)
    assert (await looked).attr.size == 10


async def test_truncation_that_an_ost_refuses_is_tried_again(served: Served) -> None:
    client = await served.client()
    made = await client.create(b"f")
    assert made.node is not None
    fid = made.node.attr.fid
    await client.call(Commit(fid, Lease.NONE, Mode.CLOSED, True, 1 << 20, 1, 2048))
    served.first.failing = OSError(5, "the disk is broken")
    cut = client.call(SetAttr(fid, Set.SIZE, size=10))
    while not served.first.asked:
        await turns()
    served.first.failing = None
    assert (await cut).attr.size == 10


async def test_pools(served: Served) -> None:
    client = await served.client()
    await client.call(SetPool("fast", (1,)))
    assert [info.pools for info in (await client.call(GetOsts())).osts] == [(), ("fast",)]
    for pool, osts, reason in (
        ("", (0,), "not a pool name"),
        ("a b", (0,), "not a pool name"),
        ("x", (9,), "no OST 9"),
    ):
        with pytest.raises(OSError, match=reason):
            await client.call(SetPool(pool, osts))
    await client.call(SetPool("fast", ()))
    await client.call(SetPool("never", ()))
    assert served.mds.targets.pools == {}


async def test_glimpse_names_the_objects(served: Served) -> None:
    one, two = await served.client(), await served.client()
    fid = await shared(served, one, two)
    await two.call(GetAttr(fid))
    (request, *_) = served.first.of(Glimpse)
    assert request.objects == (ObjectId(request.objects[0].ost, fid, 0),)
    assert ROOT == 1
