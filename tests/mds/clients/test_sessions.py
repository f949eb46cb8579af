"""Sessions: how they begin, come back and end, and what an eviction does in which order."""

import asyncio
import errno

import pytest

from nacrefs.common.wire import (
    Attach,
    Commit,
    Create,
    Destroy,
    Detach,
    Fence,
    GetAttr,
    Holding,
    Keepalive,
    Lease,
    Link,
    Lookup,
    Mkdir,
    Mode,
    Open,
    Rename,
    RenameFlag,
    Set,
    SetAttr,
    SetXattr,
    Unlink,
    Yield,
)
from tests.mds.served import ROOT, TERM_S, Client, Served, turns

BOTH = Mode.READ | Mode.WRITE


async def striped(client: Client, name: bytes, size: int = 1 << 20) -> int:
    """A file with objects, which the client has open for writing under a WRITE lease."""
    made = await client.create(name)
    assert made.node is not None
    fid = made.node.attr.fid
    await client.call(Commit(fid, Lease.WRITE, BOTH, True, size, 1, 2048))
    return fid


async def test_session_outlives_its_connection(served: Served) -> None:
    client = await served.client()
    number = client.number
    made = await client.create(b"f")
    assert made.node is not None
    client.cut()
    await client.call(Keepalive())
    assert client.number == number
    assert served.mds.leases.held(made.node.attr.fid, number) == Lease.WRITE


async def test_request_without_a_session_is_refused(served: Served) -> None:
    client = await served.client()
    client.remote.greet = None
    client.cut()
    with pytest.raises(OSError, match="no session") as refused:
        await client.call(GetAttr(ROOT))
    assert refused.value.errno == errno.ESTALE


async def test_mounting_what_is_no_directory_says_so(served: Served) -> None:
    client = await served.client()
    await client.create(b"f")
    for subtree in (b"/nothing", b"/f", b"/f/below"):
        with pytest.raises(OSError, match="has no directory"):
            await client.call(Attach("other", "host", 0, subtree))


async def test_silent_session_is_evicted_after_its_term_and_its_opens_end(served: Served) -> None:
    silent, heard = await served.client(), await served.client()
    made = await silent.create(b"f")
    assert made.node is not None
    fid, number = made.node.attr.fid, silent.number
    await silent.call(Commit(fid, Lease.NONE, BOTH))
    await silent.vanish()
    await served.pass_s(TERM_S - 1, heard)
    assert number in served.mds.sessions.by_id
    await served.pass_s(2, heard)
    assert number not in served.mds.sessions.by_id
    assert served.mds.mdt.opens == {}
    assert served.mds.mdt.replies(number) == []


async def test_leases_are_given_away_only_after_every_ost_has_fenced(served: Served) -> None:
    second = await served.oss()
    dead, waiting = await served.client(), await served.client()
    fid = await striped(dead, b"f")
    number = dead.number
    second.gate.shut()
    await dead.vanish()
    opened = waiting.call(Open(fid, Mode.WRITE))
    await served.pass_s(TERM_S + 1, waiting)
    await second.gate.arrived.wait()
    await turns()
    assert not opened.done()
    second.gate.open()
    await opened
    for oss in served.oss_list:
        assert [request.sessions for request in oss.of(Fence)] == [(number,)]


async def test_leases_wait_for_an_ost_that_is_cut_off_until_it_serves_nobody_by_itself(served: Served) -> None:
    """It cannot be told of the fence, and stops admitting anybody three heartbeats after it was last heard."""
    dead, waiting = await served.client(), await served.client()
    fid = await striped(dead, b"f")
    second = await served.oss()
    await dead.vanish()
    opened = waiting.call(Open(fid, Mode.WRITE))
    await served.pass_s(TERM_S - 1, waiting)
    await second.remote.aclose()
    await turns()
    silence_s = served.mds.targets.silence_s
    await served.pass_s(silence_s - 1, waiting)
    assert served.first.of(Fence), "the session has not been given up: this shows nothing"
    await asyncio.sleep(0.2)
    assert not opened.done()
    await served.pass_s(2, waiting)
    await opened


async def test_leases_wait_for_an_ost_that_comes_back_until_it_has_fenced(served: Served) -> None:
    dead, waiting = await served.client(), await served.client()
    fid = await striped(dead, b"f")
    second = await served.oss()
    await dead.vanish()
    opened = waiting.call(Open(fid, Mode.WRITE))
    await served.pass_s(TERM_S - 1, waiting)
    await second.remote.aclose()
    await turns()
    await served.pass_s(2, waiting)
    second.gate.shut()
    await second.start()
    await second.gate.arrived.wait()
    assert not opened.done()
    assert dead.number in second.told
    second.gate.open()
    await opened


async def test_size_of_what_a_dead_session_wrote_comes_from_the_osts(served: Served) -> None:
    dead, other = await served.client(), await served.client()
    fid = await striped(dead, b"f")
    served.first.sizes[fid] = 3 << 20
    await dead.vanish()
    asked = other.call(GetAttr(fid))
    await served.pass_s(TERM_S + 1, other)
    assert (await asked).attr.size == 3 << 20


async def test_spilled_bytes_of_a_file_that_stayed_inline_are_removed(served: Served) -> None:
    """Somebody who writes the file next must not find them behind its end."""
    dead, other = await served.client(), await served.client()
    made = await dead.create(b"f")
    assert made.node is not None
    await dead.vanish()
    await served.pass_s(TERM_S + 1, other)
    await other.call(GetAttr(made.node.attr.fid))
    destroyed = {item.fid for request in served.first.of(Destroy) for item in request.objects}
    assert destroyed == {made.node.attr.fid}


async def test_ost_that_is_away_does_not_hold_up_an_eviction(served: Served) -> None:
    dead, other = await served.client(), await served.client()
    await striped(dead, b"striped")
    await dead.create(b"inline")
    number = dead.number
    await served.first.remote.aclose()
    await dead.vanish()
    await served.pass_s(TERM_S + 1, other)
    assert number not in served.mds.sessions.by_id
    looking = other.call(Lookup(ROOT, b"striped"))
    await turns()
    assert not looking.done(), "how long it is only the OST knows, which may come back"
    await served.first.start()
    assert number in served.first.told
    assert (await looking).node is not None
    assert (await other.call(Lookup(ROOT, b"inline"))).node is not None


async def test_file_whose_osts_stay_away_can_be_renamed_changed_and_removed(served: Served) -> None:
    """Its writer is gone, and only the OSTs know how long it is: only who wants to write it waits for them."""
    dead, other = await served.client(), await served.client()
    fid, second = await striped(dead, b"one"), await striped(dead, b"two")
    await served.first.remote.aclose()
    await dead.vanish()
    await served.pass_s(TERM_S + 1, other)
    unasked = served.mds.leases.unasked
    assert unasked.keys() == {fid, second}
    unasked.update({fid: 0.0, second: 0.0})  # the time in which they may come back is over
    opening = other.call(Open(fid, BOTH))
    async with asyncio.timeout(10):
        await other.call(SetAttr(fid, Set.MODE, mode=0o600))
        await other.call(SetXattr(fid, b"user.a", b"1"))
        await other.call(Link(fid, ROOT, b"three"))
        await other.call(Rename(ROOT, b"one", ROOT, b"two", RenameFlag.EXCHANGE))
        await other.call(Rename(ROOT, b"three", ROOT, b"one"))
        assert (await other.call(Unlink(ROOT, b"one"))).victim.nlink == 1
        assert (await other.call(GetAttr(fid))).attr.mode & 0o777 == 0o600
    assert not opening.done()
    assert unasked.keys() == {fid}, "nobody will ask about the other, which is no more"
    served.first.sizes[fid] = 3 << 20
    await served.first.start()
    assert (await opening).attr.size == 3 << 20
    assert fid not in unasked


async def test_evicted_client_is_told_and_refused_meanwhile(served: Served) -> None:
    client = await served.client()
    number = client.number
    served.first.gate.shut()
    served.mds.evict(served.mds.sessions.by_id[number], "was told to go by the test")
    await served.first.gate.arrived.wait()
    with pytest.raises(OSError, match="no session"):
        await client.call(Keepalive())
    assert client.evicted == ["was told to go by the test"]
    served.first.gate.open()
    while client.number == number:
        await turns()
    assert (await client.call(GetAttr(ROOT))).attr.fid == ROOT


async def test_cut_off_client_has_half_a_term_to_drop_its_caches_by_itself(served: Served) -> None:
    """It was heard a moment ago, so it may serve from its caches that long; nobody may change anything before."""
    cut_off, changer = await served.client(), await served.client()
    made = await cut_off.create(b"f")
    assert made.node is not None
    session = served.mds.sessions.by_id[cut_off.number]
    await cut_off.vanish()
    served.mds.evict(session, "was told to go by the test")
    opened = changer.call(Open(made.node.attr.fid, Mode.WRITE))
    await served.pass_s(TERM_S / 2 - 1, changer)
    assert not opened.done()
    await served.pass_s(2, changer)
    await opened


async def test_client_that_begins_another_session_ends_its_last_one(served: Served) -> None:
    client = await served.client()
    number = client.number
    made = await client.create(b"f")
    assert made.node is not None
    client.session = None
    client.cut()
    await client.call(Keepalive())
    await served.settle()
    assert client.number != number
    assert list(served.mds.sessions.by_id) == [client.number]


async def test_detached_session_leaves_nothing(served: Served) -> None:
    client = await served.client()
    made = await client.create(b"f")
    assert made.node is not None
    await client.call(Unlink(ROOT, b"f", made.node.attr.fid, True))
    assert len(served.mds.mdt.orphans()) == 1
    await client.call(Detach())
    await served.settle()
    assert served.mds.mdt.orphans() == []
    assert len(served.mds.leases) == 0
    with pytest.raises(OSError, match="no session"):
        await client.call(GetAttr(ROOT))


async def test_yielded_lease_is_free_and_its_open_is_registered(served: Served) -> None:
    one, two = await served.client(), await served.client()
    made = await one.create(b"f", Mode.READ)
    assert made.node is not None
    fid = made.node.attr.fid
    await one.call(Yield((Holding(fid, Lease.NONE, Mode.READ),)))
    assert served.mds.mdt.opens == {fid: {one.number: Mode.READ}}
    await two.call(Unlink(ROOT, b"f"))
    assert served.mds.mdt.orphans() == [fid]
    assert [item.fid for item in one.recalled] == [ROOT]
    await one.call(Commit(fid, Lease.NONE, Mode.CLOSED))


async def test_stopping_evicts_nobody(mdt_url: str) -> None:
    async with Served(mdt_url) as served:
        client = await served.client()
        mds = served.mds
        session = mds.sessions.by_id[client.number]
        await served.server.stop()
        mds.evict(session, "should not be")
        assert not session.gone
        client.reclaims = []
        await served.start()
        assert client.number in served.mds.sessions.by_id


async def test_hostile_session_numbers_are_new_sessions(served: Served) -> None:
    client = await served.client()
    other = await served.client()
    stolen = await client.call(Attach(client.name, "host", other.number))
    assert not stolen.resumed
    assert stolen.session not in (client.number, other.number)
    await asyncio.gather(other.call(Mkdir(ROOT, b"d", 0o755, 0, 0)), other.call(Create(ROOT, b"f", 0, 0, 0, BOTH)))
