"""Names that go, and what becomes of files that are open."""

import errno

import pytest

from nacrefs.common.fid import ROOT
from nacrefs.common.wire import (
    Commit,
    Create,
    GetAttr,
    Lease,
    Link,
    Lookup,
    Mkdir,
    Mode,
    Open,
    Rename,
    Rmdir,
    SetXattr,
    Symlink,
    Unlink,
    Want,
)
from nacrefs.mds.namespace.files import settle_orphan
from nacrefs.mds.transactions.step import Blocked
from tests.mds.actions import directory, failing, file, spill
from tests.mds.world import World


class TestUnlink:
    def test_last_name_takes_the_inode_along(self, world: World) -> None:
        fid = file(world, data=b"hello")
        world.do(SetXattr(fid, b"user.x", b"y"))
        removed = world.do(Unlink(ROOT, b"f", fid))
        assert (removed.victim.nlink, removed.orphan, removed.parent.mtime_ns) == (0, False, world.now_ns)
        with failing(errno.ESTALE):
            world.do(GetAttr(fid))
        assert world.do(Lookup(ROOT, b"f")).node is None
        assert (world.findings(), world.mdt.files) == ([], 1)

    def test_another_name_keeps_it(self, world: World) -> None:
        fid = file(world)
        world.do(Link(fid, ROOT, b"g"))
        removed = world.do(Unlink(ROOT, b"f"))
        assert (removed.victim.nlink, removed.victim.ctime_ns) == (1, world.now_ns)
        assert world.do(GetAttr(fid)).attr == removed.victim
        assert world.findings() == []

    def test_objects_are_queued_and_inline_files_have_none(self, world: World) -> None:
        small, big = file(world, b"a", data=b"small"), file(world, b"b")
        spill(world, big)
        world.batched(Unlink(ROOT, b"a", small))
        world.batched(Unlink(ROOT, b"b", big))
        assert [gone.fid for gone in world.tx.new_destructions] == [big]
        world.commit()
        assert [gone.fid for gone in world.mdt.destructions(10)] == [big]
        world.tx.finish_destructions([big])
        world.commit()
        assert world.mdt.destructions(10) == []

    def test_refusals(self, world: World) -> None:
        directory(world)
        for name, number in ((b"d", errno.EISDIR), (b"x", errno.ENOENT), (b"x" * 256, errno.ENAMETOOLONG)):
            with failing(number):
                world.do(Unlink(ROOT, name))

    def test_requester_that_has_it_open_keeps_an_orphan_until_it_closes(self, world: World) -> None:
        fid = file(world, data=b"hello")
        assert world.do(Unlink(ROOT, b"f", fid, opened=True)).orphan
        assert world.do(GetAttr(fid, Want.DATA)).data == b"hello"
        assert world.mdt.orphans() == [fid]
        assert world.findings() == []
        gone = world.do(Commit(fid, Lease.NONE, Mode.CLOSED))
        assert gone.attr.nlink == 0
        with failing(errno.ESTALE):
            world.do(GetAttr(fid))
        assert world.findings() == []

    def test_requester_that_expected_another_file_may_have_this_one_open(self, world: World) -> None:
        fid = file(world)
        assert world.do(Unlink(ROOT, b"f", 0)).orphan
        assert world.mdt.opens[fid] == {1: Mode.READ | Mode.WRITE}

    def test_requester_that_holds_nothing_cannot_have_it_open(self, world: World) -> None:
        fid = file(world)
        world.recall(1, fid)
        assert not world.do(Unlink(ROOT, b"f", 0), 2).orphan
        assert world.mdt.orphans() == []

    def test_another_sessions_write_lease_is_given_back_first(self, world: World) -> None:
        fid = file(world)
        with pytest.raises(Blocked) as caught:
            world.batched(Unlink(ROOT, b"f", fid), 2)
        assert (caught.value.fid, caught.value.keep) == (fid, Lease.NONE)

    def test_another_sessions_read_lease_may_hide_an_open(self, world: World) -> None:
        fid = file(world)
        world.leases.set(1, fid, Lease.READ)
        removed = world.do(Unlink(ROOT, b"f", fid), 2)
        assert (removed.orphan, world.mdt.orphans()) == (False, [fid])
        assert (fid, None) in world.leases.changes
        # The other session answers the recall: it has nothing open.
        world.recall(1, fid)
        assert settle_orphan(world.step(1), fid)
        world.commit()
        assert (world.mdt.orphans(), world.findings()) == ([], [])

    def test_orphan_lives_until_the_last_session_has_closed_it(self, world: World) -> None:
        fid = file(world)
        spill(world, fid)
        world.recall(1, fid)
        world.do(Open(fid, Mode.WRITE), 1)
        world.recall(1, fid)
        world.tx.set_open(1, fid, Mode.WRITE)
        world.do(Open(fid, Mode.READ), 2)
        assert set(world.mdt.opens[fid]) == {1, 2}
        assert world.do(Unlink(ROOT, b"f", fid, True), 2).orphan
        world.do(Commit(fid, Lease.NONE, Mode.CLOSED), 2)
        assert world.mdt.orphans() == [fid]
        world.do(Commit(fid, Lease.NONE, Mode.CLOSED), 1)
        assert (world.mdt.orphans(), world.findings()) == ([], [])
        assert [gone.fid for gone in world.mdt.destructions(9)] == [fid]

    def test_end_of_a_session_ends_its_opens(self, world: World) -> None:
        fid = file(world)
        world.do(Unlink(ROOT, b"f", fid, True))
        assert world.tx.end_session(1) == [fid]
        world.leases.set(1, fid, Lease.NONE)
        assert settle_orphan(world.step(2), fid)
        world.commit()
        assert (world.mdt.orphans(), world.findings(), [one.id for one in world.mdt.sessions()]) == ([], [], [2])

    def test_symbolic_link_is_never_an_orphan(self, world: World) -> None:
        world.do(Symlink(ROOT, b"s", b"t", 0, 0))
        world.do(Lookup(ROOT, b"s"), 2)
        assert not world.do(Unlink(ROOT, b"s")).orphan
        assert (world.mdt.orphans(), world.findings()) == ([], [])

    def test_made_and_removed_in_one_batch_leaves_nothing(self, world: World) -> None:
        node = world.batched(Create(ROOT, b"a", 0o644, 0, 0, Mode.CLOSED, data=b"x")).node
        assert node is not None
        world.batched(SetXattr(node.attr.fid, b"user.x", b"y"))
        world.batched(Unlink(ROOT, b"a", node.attr.fid))
        world.commit()
        assert (world.mdt.files, world.findings()) == (1, [])
        assert world.mdt.store.fetchall("SELECT fid FROM inline") == []


class TestRmdir:
    def test_empty_directory_goes(self, world: World) -> None:
        fid = directory(world)
        removed = world.do(Rmdir(ROOT, b"d"))
        assert (removed.victim.fid, removed.victim.nlink, removed.parent.nlink) == (fid, 0, 2)
        assert world.findings() == []

    def test_refusals(self, world: World) -> None:
        parent = directory(world)
        world.do(Mkdir(parent, b"e", 0o755, 0, 0))
        file(world)
        for name, number in ((b"d", errno.ENOTEMPTY), (b"f", errno.ENOTDIR), (b"x", errno.ENOENT)):
            with failing(number):
                world.do(Rmdir(ROOT, name))

    def test_emptied_in_the_same_batch_it_goes(self, world: World) -> None:
        parent = directory(world)
        world.do(Mkdir(parent, b"e", 0o755, 0, 0))
        world.batched(Rmdir(parent, b"e"))
        world.batched(Rmdir(ROOT, b"d"))
        world.commit()
        assert world.findings() == []

    def test_filled_in_the_same_batch_it_stays(self, world: World) -> None:
        parent = directory(world)
        world.batched(Mkdir(parent, b"e", 0o755, 0, 0))
        with failing(errno.ENOTEMPTY):
            world.batched(Rmdir(ROOT, b"d"))

    def test_renamed_away_is_as_good_as_removed(self, world: World) -> None:
        parent = directory(world)
        world.do(Mkdir(parent, b"e", 0o755, 0, 0))
        world.batched(Rename(parent, b"e", ROOT, b"e"))
        world.batched(Rmdir(ROOT, b"d"))
        world.commit()
        assert world.findings() == []
