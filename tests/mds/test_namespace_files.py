"""Open files: leases, sharing, what writers report, closing."""

import errno

import pytest

from nacrefs.common.fid import ROOT
from nacrefs.common.wire import (
    AttrFlag,
    Commit,
    Create,
    GetAttr,
    Lease,
    Lookup,
    Mkdir,
    Mknod,
    Mode,
    Open,
    Symlink,
    Unlink,
    Want,
)
from nacrefs.mds.namespace.files import settle_orphan
from nacrefs.mds.transactions.step import Blocked
from nacrefs.mds.transactions.tx import NeedsBatch, Tx
from tests.mds.actions import failing, file, spill
from tests.mds.world import INLINE_BYTES, World

READ, WRITE = Mode.READ, Mode.WRITE
BOTH = READ | WRITE


def answer_recall(world: World, session: int, fid: int, mode: Mode, keep: Lease = Lease.NONE) -> None:
    """The session gives its lease back and says how it has the file open, as the MDS registers it."""
    world.leases.set(session, fid, keep)
    world.tx.set_open(session, fid, mode)
    world.commit()


def objects(world: World, name: bytes = b"f", size: int = 1 << 20) -> int:
    """A file with objects on which nobody has a lease; its fid."""
    fid = file(world, name)
    spill(world, fid, size)
    world.recall(1, fid)
    return fid


class TestOpen:
    def test_one_request_brings_attributes_layout_lease_and_contents(self, world: World) -> None:
        fid = file(world, data=b"hello")
        world.recall(1, fid)
        node = world.do(Open(fid, READ), 2)
        assert (node.attr.size, node.lease, node.data, node.shared) == (5, Lease.READ, b"hello", False)
        assert node.layout is not None
        assert node.capability is not None
        assert not world.mdt.opens

    def test_reading_is_answered_without_a_batch(self, world: World) -> None:
        fid = file(world, data=b"hello")
        world.recall(1, fid)
        world.tx = Tx(world.mdt, writable=False)
        assert world.batched(Open(fid, READ)).lease == Lease.READ
        with pytest.raises(NeedsBatch):
            world.batched(Create(ROOT, b"g", 0o644, 0, 0, WRITE))

    def test_writer_that_nobody_disturbs_gets_the_write_lease(self, world: World) -> None:
        fid = objects(world)
        assert world.do(Open(fid, WRITE), 2).lease == Lease.WRITE
        assert not world.mdt.opens

    def test_readers_share_leases(self, world: World) -> None:
        fid = objects(world)
        assert [world.do(Open(fid, READ), session).lease for session in (1, 2)] == [Lease.READ] * 2

    def test_truncate_empties_the_file_first(self, world: World) -> None:
        fid = objects(world)
        world.batched(Open(fid, WRITE, truncate=True))
        assert [(intent.fid, intent.size) for intent in world.tx.new_intents] == [(fid, 0)]
        world.commit()
        assert world.do(GetAttr(fid)).attr.size == 0

    def test_refusals(self, world: World) -> None:
        made = world.do(Mkdir(ROOT, b"d", 0o755, 0, 0)), world.do(Symlink(ROOT, b"s", b"t", 0, 0))
        fifo = world.do(Mknod(ROOT, b"p", 0o010644, 0, 0, 0))
        fids = [entry.node.attr.fid for entry in (*made, fifo) if entry.node is not None]
        for fid, number in zip(fids, (errno.EISDIR, errno.ELOOP, errno.EINVAL), strict=True):
            with failing(number):
                world.do(Open(fid, READ))
        with failing(errno.EINVAL):
            world.do(Open(file(world), Mode.CLOSED))
        with failing(errno.ESTALE):
            world.do(Open(999, READ))


class TestSharing:
    def test_reader_waits_until_the_writer_has_flushed(self, world: World) -> None:
        fid = file(world)
        with pytest.raises(Blocked) as caught:
            world.do(Open(fid, READ), 2)
        assert (caught.value.keep, caught.value.spill) == (Lease.READ, False)

    def test_second_writer_makes_the_first_spill(self, world: World) -> None:
        fid = file(world)
        with pytest.raises(Blocked) as caught:
            world.do(Open(fid, WRITE), 2)
        assert (caught.value.keep, caught.value.spill) == (Lease.NONE, True)

    def test_writer_makes_readers_tell_what_they_have_open(self, world: World) -> None:
        fid = objects(world)
        world.do(Open(fid, READ), 1)
        with pytest.raises(Blocked) as caught:
            world.do(Open(fid, WRITE), 2)
        assert (caught.value.keep, caught.value.spill) == (Lease.NONE, False)

    def test_file_with_two_writers_is_nobodys_to_cache(self, world: World) -> None:
        fid = objects(world)
        answer_recall(world, 1, fid, WRITE)
        node = world.do(Open(fid, WRITE), 2)
        assert (node.lease, node.shared) == (Lease.NONE, True)
        assert world.mdt.opens[fid] == {1: WRITE, 2: WRITE}
        for session in (1, 2, 3):
            seen = world.do(GetAttr(fid), session)
            assert (seen.lease, seen.shared) == (Lease.NONE, True)

    def test_reader_beside_a_writer_is_registered(self, world: World) -> None:
        fid = objects(world)
        answer_recall(world, 1, fid, WRITE, keep=Lease.READ)
        node = world.do(Open(fid, READ), 2)
        assert (node.lease, node.shared, world.mdt.opens[fid]) == (Lease.NONE, True, {1: WRITE, 2: READ})
        again = world.do(Open(fid, WRITE), 1)
        assert (again.lease, again.shared, world.leases.holders(fid)) == (Lease.NONE, True, {})

    def test_last_session_gets_a_lease_again(self, world: World) -> None:
        fid = objects(world)
        answer_recall(world, 1, fid, WRITE)
        world.do(Open(fid, WRITE), 2)
        world.do(Commit(fid, Lease.NONE, Mode.CLOSED), 1)
        node = world.do(Open(fid, READ), 2)
        assert (node.lease, node.shared) == (Lease.WRITE, False)
        assert not world.mdt.opens

    def test_registered_readers_do_not_disturb_each_other(self, world: World) -> None:
        fid = objects(world)
        answer_recall(world, 1, fid, READ)
        node = world.do(Open(fid, READ), 2)
        assert (node.lease, node.shared) == (Lease.READ, False)

    def test_writer_beside_a_registered_reader_of_an_inline_file_has_the_write_lease(self, world: World) -> None:
        fid = file(world, data=b"hello")
        answer_recall(world, 1, fid, READ)
        node = world.do(Open(fid, WRITE), 2)
        assert (node.lease, node.shared, node.data) == (Lease.WRITE, False, b"hello")
        with pytest.raises(Blocked):
            world.do(GetAttr(fid, Want.DATA), 1)

    def test_it_is_shared_when_it_outgrows_the_mdt(self, world: World) -> None:
        fid = file(world, data=b"hello")
        answer_recall(world, 1, fid, READ)
        world.do(Open(fid, WRITE), 2)
        node = world.do(Commit(fid, Lease.WRITE, WRITE, True, 1 << 20, world.now_ns, 2048), 2)
        assert (node.lease, node.shared, world.leases.holders(fid)) == (Lease.NONE, True, {})
        assert world.mdt.opens[fid] == {1: READ, 2: WRITE}

    def test_opening_again_under_a_lease_ends_the_registration(self, world: World) -> None:
        fid = objects(world)
        answer_recall(world, 1, fid, WRITE)
        assert world.do(Open(fid, READ), 1).lease == Lease.WRITE
        assert not world.mdt.opens


class TestCommit:
    def test_small_contents_stay_in_the_mdt(self, world: World) -> None:
        fid = file(world)
        node = world.do(Commit(fid, Lease.WRITE, Mode.CLOSED, True, 5, 77, 0, b"hello", atime_ns=1 << 61))
        attr = node.attr
        assert (attr.size, attr.blocks, attr.mtime_ns, attr.ctime_ns) == (5, 1, 77, world.now_ns)
        assert (attr.atime_ns, attr.flags, node.lease) == (1 << 61, AttrFlag.INLINE, Lease.WRITE)
        world.mdt.cache.clear()
        assert world.do(GetAttr(fid, Want.DATA)).data == b"hello"
        assert world.findings() == []

    def test_contents_may_end_before_the_file_does(self, world: World) -> None:
        fid = file(world)
        world.do(Commit(fid, Lease.WRITE, Mode.CLOSED, True, 9, 77, data=b"hello"))
        assert (world.do(GetAttr(fid, Want.DATA)).data, world.findings()) == (b"hello", [])

    def test_without_contents_they_are_on_osts_from_now_on(self, world: World) -> None:
        fid = file(world, data=b"hello")
        attr = world.do(Commit(fid, Lease.WRITE, Mode.CLOSED, True, 1 << 20, 77, 2048)).attr
        assert (attr.size, attr.blocks, attr.flags) == (1 << 20, 2048, 0)
        assert world.do(GetAttr(fid, Want.DATA)).data is None
        assert (world.mdt.store.fetchall("SELECT fid FROM inline"), world.findings()) == ([], [])

    def test_empty_without_contents_stays_inline(self, world: World) -> None:
        fid = file(world, data=b"hello")
        attr = world.do(Commit(fid, Lease.WRITE, Mode.CLOSED, True, 0, 77)).attr
        assert (attr.size, attr.flags, world.findings()) == (0, AttrFlag.INLINE, [])

    def test_writers_of_a_shared_file_leave_size_and_times_to_the_osts(self, world: World) -> None:
        fid = objects(world, size=1000)
        answer_recall(world, 1, fid, WRITE)
        world.do(Open(fid, WRITE), 2)
        before = world.do(GetAttr(fid)).attr
        world.do(Commit(fid, Lease.NONE, WRITE, True, 5000, 1 << 61, 10), 1)
        node = world.do(Commit(fid, Lease.NONE, Mode.CLOSED, True, 3000, 99, 5), 2)
        assert (node.attr.size, node.attr.mtime_ns, node.attr.blocks) == (1000, before.mtime_ns, 10)
        assert node.attr.ctime_ns == before.ctime_ns
        assert world.mdt.opens[fid] == {1: WRITE}

    def test_lease_is_given_back_and_the_open_registered(self, world: World) -> None:
        fid = file(world)
        node = world.do(Commit(fid, Lease.READ, BOTH, True, 3, 77, data=b"abc"))
        assert (node.lease, world.leases.holders(fid), world.mdt.opens[fid]) == (Lease.READ, {1: Lease.READ}, {1: BOTH})

    def test_it_never_keeps_more_than_it_had(self, world: World) -> None:
        fid = file(world)
        world.recall(1, fid)
        assert world.do(Commit(fid, Lease.WRITE, Mode.CLOSED)).lease == Lease.NONE

    def test_reading_time_alone_disturbs_nobody(self, world: World) -> None:
        fid = file(world)
        world.leases.changes.clear()
        attr = world.do(GetAttr(fid)).attr
        after = world.do(Commit(fid, Lease.WRITE, Mode.CLOSED, atime_ns=attr.atime_ns + 5)).attr
        assert (after.atime_ns, after.ctime_ns, world.leases.changes) == (attr.atime_ns + 5, attr.ctime_ns, [])

    def test_session_without_the_right_to_write_cannot_report(self, world: World) -> None:
        fid = file(world)
        world.recall(1, fid)
        with failing(errno.ESTALE):
            world.do(Commit(fid, Lease.NONE, Mode.CLOSED, True, 5, 77, data=b"hello"))
        world.tx.set_open(1, fid, WRITE)
        with failing(errno.ESTALE):  # it has lost the lease, so its idea of the contents is old
            world.batched(Commit(fid, Lease.NONE, Mode.CLOSED, True, 5, 77, data=b"hello"))

    def test_impossible_reports_are_refused(self, world: World) -> None:
        fid, spilled = file(world), file(world, b"g")
        spill(world, spilled)
        for request, number in (
            (Commit(fid, Lease.WRITE, WRITE, True, -1, 0), errno.EFBIG),
            (Commit(fid, Lease.WRITE, WRITE, True, 1 << 63, 0), errno.EFBIG),
            (Commit(fid, Lease.WRITE, WRITE, True, 1, 0, -1), errno.EINVAL),
            (Commit(fid, Lease.WRITE, WRITE, True, 2, 0, 0, b"abc"), errno.EINVAL),
            (Commit(fid, Lease.WRITE, WRITE, True, 1 << 20, 0, 0, bytes(INLINE_BYTES + 1)), errno.EFBIG),
            (Commit(spilled, Lease.WRITE, WRITE, True, 3, 0, 0, b"abc"), errno.EINVAL),
            (Commit(ROOT, Lease.READ, Mode.CLOSED), errno.EISDIR),
            (Commit(999, Lease.READ, Mode.CLOSED), errno.ESTALE),
        ):
            with failing(number):
                world.do(request)

    def test_contents_and_flags_survive_a_restart(self, world: World) -> None:
        fid = file(world)
        world.do(Commit(fid, Lease.WRITE, Mode.CLOSED, True, 5, 77, data=b"hello"))
        before = world.do(GetAttr(fid)).attr
        world.batched(Commit(fid, Lease.WRITE, Mode.CLOSED, True, 6, 78, data=b"unsure"))
        world.reopen()
        node = world.do(GetAttr(fid, Want.DATA))
        assert (node.attr, node.data) == (before, b"hello")


class TestOrphans:
    def test_registered_opens_survive_a_restart(self, world: World) -> None:
        fid = file(world)
        world.do(Unlink(ROOT, b"f", fid, True))
        world.reopen()
        assert world.mdt.opens == {fid: {1: BOTH}}
        assert (world.mdt.orphans(), world.findings()) == ([fid], [])

    def test_an_orphan_that_is_opened_again_stays_registered(self, world: World) -> None:
        fid = file(world)
        world.do(Unlink(ROOT, b"f", fid, True))
        world.do(Open(fid, READ))
        assert world.mdt.opens[fid] == {1: BOTH}

    def test_settling_spares_files_with_names_opens_or_leases(self, world: World) -> None:
        named, orphan = file(world, b"a"), file(world, b"b")
        world.leases.set(2, orphan, Lease.READ)
        world.leases.set(1, orphan, Lease.NONE)
        world.do(Unlink(ROOT, b"b", orphan))
        step = world.step()
        assert [settle_orphan(step, fid) for fid in (named, orphan, 999)] == [False] * 3

    def test_contents_are_there_until_the_end(self, world: World) -> None:
        fid = file(world, data=b"hello")
        world.do(Unlink(ROOT, b"f", fid, True))
        world.do(Create(ROOT, b"f", 0o644, 0, 0, Mode.CLOSED, data=b"other"))
        assert world.do(GetAttr(fid, Want.DATA)).data == b"hello"
        other = world.do(Lookup(ROOT, b"f", Want.DATA)).node
        assert other is not None
        assert other.data == b"other"
