"""Leases taken back before and after a step, over a served MDS."""

import asyncio

from nacrefs.common.wire import (
    Commit,
    Fence,
    GetAttr,
    Holding,
    Lease,
    Lookup,
    Mkdir,
    Mode,
    Open,
    Recall,
    RecallItem,
    Set,
    SetAttr,
    Unlink,
    Want,
)
from tests.mds.served import ROOT, Oss, Served, turns

BOTH = Mode.READ | Mode.WRITE
CHMOD = Set.MODE


async def test_getattr_waits_until_the_writer_has_committed_its_size(served: Served) -> None:
    writer, reader = await served.client(), await served.client()
    made = await writer.create(b"f")
    assert made.node is not None
    fid = made.node.attr.fid
    assert made.node.lease == Lease.WRITE

    async def commit(request: Recall) -> None:
        await writer.call(Commit(fid, Lease.READ, BOTH, True, 5, 9, 0, b"hello"))
        writer.holds[fid] = Holding(fid, Lease.READ, BOTH)

    writer.before_answer = commit
    node = await reader.call(GetAttr(fid, Want.LEASE | Want.DATA))
    assert (node.attr.size, node.data) == (5, b"hello")
    assert writer.recalled == [RecallItem(fid, Lease.READ)]
    assert served.mds.mdt.opens[fid] == {writer.number: BOTH}


async def test_nobody_gets_a_lease_on_what_somebody_waits_for(served: Served) -> None:
    writer, second, third = await served.client(), await served.client(), await served.client()
    made = await writer.create(b"f")
    assert made.node is not None
    fid = made.node.attr.fid
    writer.gate.shut()
    waiting = second.call(Open(fid, Mode.WRITE))
    await writer.gate.arrived.wait()
    other = third.call(GetAttr(fid))
    await turns()
    assert not waiting.done()
    assert not other.done()
    writer.gate.open()
    assert (await waiting).lease == Lease.WRITE
    second.holds[fid] = Holding(fid, Lease.READ, Mode.WRITE)
    assert (await other).lease in (Lease.NONE, Lease.READ)


async def test_recall_for_reading_and_for_writing_are_both_honoured(served: Served) -> None:
    writer, second, third = await served.client(), await served.client(), await served.client()
    made = await writer.create(b"f")
    assert made.node is not None
    fid = made.node.attr.fid
    writer.gate.shut()
    looks = second.call(GetAttr(fid))
    await writer.gate.arrived.wait()
    opens = third.call(Open(fid, Mode.WRITE))
    await turns()
    assert [item.lease for item in writer.recalled] == [Lease.READ, Lease.NONE]
    writer.gate.open()
    await asyncio.gather(looks, opens)
    assert served.mds.leases.held(fid, writer.number) == Lease.NONE


async def test_blocked_unlink_happens_when_the_writer_has_given_up_its_lease(served: Served) -> None:
    """The step must be run again in a batch; run as a read it would fail."""
    writer, other = await served.client(), await served.client()
    made = await writer.create(b"f")
    assert made.node is not None
    fid = made.node.attr.fid
    removed = await other.call(Unlink(ROOT, b"f"))
    assert removed.victim.fid == fid
    assert not removed.orphan
    await served.settle()
    assert served.mds.mdt.orphans() == []


async def test_writer_with_the_file_open_keeps_it_when_it_is_unlinked(served: Served) -> None:
    writer, other = await served.client(), await served.client()
    made = await writer.create(b"f")
    assert made.node is not None
    fid = made.node.attr.fid
    writer.holds[fid] = Holding(fid, Lease.NONE, BOTH)
    await other.call(Unlink(ROOT, b"f"))
    assert served.mds.mdt.orphans() == [fid]
    await writer.call(Commit(fid, Lease.NONE, Mode.CLOSED))
    assert served.mds.mdt.orphans() == []


async def test_change_is_answered_after_the_holders_of_copies_have_forgotten_them(served: Served) -> None:
    holder, changer = await served.client(), await served.client()
    made = await changer.create(b"f", Mode.READ)
    assert made.node is not None
    fid = made.node.attr.fid
    await holder.call(GetAttr(fid))
    holder.gate.shut()
    changed = changer.call(SetAttr(fid, CHMOD, mode=0o600))
    await holder.gate.arrived.wait()
    await served.settle()
    assert not changed.done()
    holder.gate.open()
    assert (await changed).attr.mode & 0o777 == 0o600
    assert served.mds.leases.held(fid, holder.number) == Lease.NONE


async def test_recall_of_a_directory_names_the_entries_and_leaves_the_lease(served: Served) -> None:
    holder, changer = await served.client(), await served.client()
    await holder.call(Lookup(ROOT, b"x"))
    holder.holds[ROOT] = Holding(ROOT, Lease.READ, Mode.CLOSED)
    await changer.call(Mkdir(ROOT, b"a", 0o755, 0, 0))
    assert holder.recalled == [RecallItem(ROOT, Lease.READ, (b"a",))]
    assert served.mds.leases.held(ROOT, holder.number) == Lease.READ


async def test_recalls_of_one_batch_travel_in_one_message(served: Served) -> None:
    holder, changer = await served.client(), await served.client()
    await holder.call(Lookup(ROOT, b"x"))
    holder.holds[ROOT] = Holding(ROOT, Lease.READ, Mode.CLOSED)
    await asyncio.gather(*(changer.call(Mkdir(ROOT, b"d%d" % n, 0o755, 0, 0)) for n in range(5)))
    assert [item.names for item in holder.recalled] == [tuple(b"d%d" % n for n in range(5))]


async def test_answer_that_a_recall_has_overtaken_brings_back_neither_lease_nor_old_attributes(served: Served) -> None:
    """Both create in one directory in one batch: each is recalled before it has its own answer."""
    one, two = await served.client(), await served.client()
    for client in (one, two):
        client.holds[ROOT] = Holding(ROOT, Lease.NONE, Mode.CLOSED)
    first, second = await asyncio.gather(one.create(b"a"), two.create(b"b"))
    held = [served.mds.leases.held(ROOT, client.number) for client in (one, two)]
    for reply, lease in zip((first, second), held, strict=True):
        assert reply.parent is not None
        assert reply.parent_lease <= lease
        assert reply.parent.change in (0, (await one.call(GetAttr(ROOT, Want(0)))).attr.change)


async def test_open_whose_answer_a_recall_has_overtaken_is_registered(served: Served) -> None:
    """The creator does not know its file yet when it is recalled; its open must not get lost with the lease."""
    witness, creator, other = await served.client(), await served.client(), await served.client()
    await witness.call(Lookup(ROOT, b"x"))
    witness.gate.shut()
    creating = asyncio.ensure_future(creator.create(b"f", Mode.READ))
    await witness.gate.arrived.wait()
    await served.settle()
    reply = await other.call(Lookup(ROOT, b"f"))
    assert reply.node is not None
    fid = reply.node.attr.fid
    await other.call(SetAttr(fid, CHMOD, mode=0o600))
    assert creator.recalled == [RecallItem(fid, Lease.NONE)]
    assert served.mds.mdt.opens == {fid: {creator.number: Mode.READ}}
    assert not creating.done()
    witness.gate.open()
    made = await creating
    assert made.node is not None
    assert made.node.lease == Lease.NONE


async def test_lease_that_comes_with_an_answer_is_recalled_after_the_answer(served: Served) -> None:
    """Otherwise several writers of one small file could take it from each other for ever, none of them ever writing."""
    witness, creator, other = await served.client(), await served.client(), await served.client()
    await witness.call(Lookup(ROOT, b"x"))
    witness.gate.shut()
    creating = asyncio.ensure_future(creator.create(b"f", BOTH))
    await witness.gate.arrived.wait()
    await served.settle()
    found = other.call(Lookup(ROOT, b"f"))
    await served.settle()
    assert not found.done()
    assert creator.recalled == []
    witness.gate.open()
    made = await creating
    assert made.node is not None
    assert made.node.lease == Lease.WRITE
    creator.holds[made.node.attr.fid] = Holding(made.node.attr.fid, Lease.READ, BOTH)
    assert (await found).node is not None
    assert creator.recalled == [RecallItem(made.node.attr.fid, Lease.READ)]


async def test_file_without_a_name_is_not_kept_by_who_just_looks_at_it(served: Served) -> None:
    """Its lease would end with no word to the MDS, and the file never."""
    opener, looker = await served.client(), await served.client()
    made = await opener.create(b"f")
    assert made.node is not None
    fid = made.node.attr.fid
    await opener.call(Unlink(ROOT, b"f", fid, True))
    opener.holds[fid] = Holding(fid, Lease.READ, BOTH)
    assert (await looker.call(GetAttr(fid))).lease == Lease.NONE
    await opener.call(Commit(fid, Lease.NONE, Mode.CLOSED))
    await served.settle()
    assert served.mds.mdt.orphans() == []


async def test_remover_keeps_no_lease_on_what_only_others_have_open(served: Served) -> None:
    opener, remover = await served.client(), await served.client()
    made = await opener.create(b"f", Mode.READ)
    assert made.node is not None
    fid = made.node.attr.fid
    await remover.call(GetAttr(fid))
    await remover.call(Unlink(ROOT, b"f", fid, False))
    await served.settle()
    assert served.mds.leases.holders(fid) == {}
    assert served.mds.mdt.orphans() == []


async def test_holder_who_returns_is_asked_again(served: Served) -> None:
    writer, reader = await served.client(), await served.client()
    made = await writer.create(b"f")
    assert made.node is not None
    fid = made.node.attr.fid
    writer.gate.shut()
    waiting = reader.call(GetAttr(fid))
    await writer.gate.arrived.wait()
    writer.cut()
    await turns()
    assert not waiting.done()
    writer.gate.open()
    await waiting
    assert [item.fid for item in writer.recalled] == [fid, fid]


async def test_request_after_an_answered_recall_is_seen_after_it(served: Served) -> None:
    """Answer and next request arrive together: the answer counts first, or a closed file would be registered as
    open."""
    writer, reader = await served.client(), await served.client()
    made = await writer.create(b"f")
    assert made.node is not None
    fid = made.node.attr.fid
    writer.holds[fid] = Holding(fid, Lease.READ, BOTH)
    closing: list[asyncio.Future[object]] = []

    async def close_behind(request: Recall) -> None:
        asyncio.get_running_loop().call_soon(lambda: closing.append(writer.call(Commit(fid, Lease.READ, Mode.CLOSED))))

    writer.before_answer = close_behind
    await reader.call(GetAttr(fid))
    await served.settle()
    await asyncio.gather(*closing)
    assert fid not in served.mds.mdt.opens


async def test_writer_of_an_inline_file_waits_for_the_lease_that_it_needs(served: Served) -> None:
    """Without the WRITE lease a writer could not commit inline contents."""
    one, two = await served.client(), await served.client()
    made = await one.create(b"f", Mode.READ)
    assert made.node is not None
    fid = made.node.attr.fid
    one.gate.shut()
    first = two.call(Open(fid, Mode.WRITE))
    await one.gate.arrived.wait()
    second = one.call(Open(fid, BOTH))
    await turns()
    two.holds[fid] = Holding(fid, Lease.NONE, Mode.WRITE)
    one.gate.open()
    assert (await first).lease == Lease.WRITE
    assert (await second).lease == Lease.WRITE
    await one.call(Commit(fid, Lease.WRITE, BOTH, True, 3, 1, 0, b"abc"))


async def test_waiting_request_of_an_evicted_session_fails_and_leaves_nothing(served: Served) -> None:
    writer, waiter = await served.client(), await served.client()
    made = await writer.create(b"f")
    assert made.node is not None
    fid = made.node.attr.fid
    writer.gate.shut()
    waiting = waiter.call(GetAttr(fid))
    await writer.gate.arrived.wait()
    await served.pass_s(29, writer)
    assert not waiting.done()
    session = served.mds.sessions.by_id[waiter.number]
    served.mds.evict(session, "was told to go by the test")
    await served.settle()
    writer.gate.open()
    await served.settle()
    assert (await waiting).attr.fid == fid  # asked again, in a new session
    assert waiter.evicted


async def test_session_that_does_not_answer_a_recall_in_its_term_is_evicted(served: Served) -> None:
    writer, reader = await served.client(), await served.client()
    made = await writer.create(b"f")
    assert made.node is not None
    fid = made.node.attr.fid
    number = writer.number
    writer.gate.shut()
    waiting = reader.call(GetAttr(fid))
    await writer.gate.arrived.wait()
    await served.pass_s(29, writer, reader)
    assert not waiting.done()
    await served.pass_s(2, writer, reader)
    await served.settle()
    assert (await waiting).attr.fid == fid
    assert writer.evicted == ["did not answer a recall within 30 s"]
    assert [request.sessions for request in served.first.of(Fence)] == [(number,)]


async def test_a_recall_may_take_as_long_as_an_ost_of_the_file_is_away(served: Served) -> None:
    writer, reader = await served.client(), await served.client()
    made = await writer.create(b"f")
    assert made.node is not None
    assert made.node.layout is not None
    fid = made.node.attr.fid
    writer.gate.shut()
    await served.first.remote.aclose()
    await served.settle()
    waiting = reader.call(GetAttr(fid))
    await writer.gate.arrived.wait()
    await served.pass_s(300, writer, reader)
    assert not writer.evicted
    again = Oss(served, 0)
    again.uuids, again.indices = served.first.uuids, served.first.indices
    served.oss_list.append(again)
    await again.start()
    await served.pass_s(29, writer, reader)
    assert not writer.evicted  # it has a term from when the OST came back
    assert not waiting.done()
    await served.pass_s(2, writer, reader)
    await served.settle()
    assert writer.evicted == ["did not answer a recall within 30 s"]
    assert (await waiting).attr.fid == fid


async def test_a_recall_of_another_file_is_not_put_off_by_an_ost_that_is_away(served: Served) -> None:
    writer, reader = await served.client(), await served.client()
    made = await writer.create(b"f")
    assert made.node is not None
    assert made.node.layout is not None
    away = await served.oss(1)
    assert away.indices[0] not in made.node.layout.osts
    await away.remote.aclose()
    writer.gate.shut()
    waiting = reader.call(GetAttr(made.node.attr.fid))
    await writer.gate.arrived.wait()
    await served.pass_s(31, writer, reader)
    assert writer.evicted == ["did not answer a recall within 30 s"]
    await waiting
