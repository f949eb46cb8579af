"""Moving names."""

import errno

import pytest

from nacrefs.common.fid import ROOT
from nacrefs.common.wire import Create, GetParent, Lease, Link, Lookup, Mode, Rename, RenameFlag
from nacrefs.mds.transactions.step import Blocked
from tests.mds.actions import directory, failing, file, spill
from tests.mds.world import World

NOREPLACE, EXCHANGE = RenameFlag.NOREPLACE, RenameFlag.EXCHANGE


def below(world: World, parent: int, name: bytes) -> int:
    """Make a directory in another one; its fid."""
    return directory(world, name, parent=parent)


def found(world: World, parent: int, name: bytes) -> int | None:
    """What the name stands for."""
    node = world.do(Lookup(parent, name)).node
    return None if node is None else node.attr.fid


class TestMove:
    def test_within_a_directory(self, world: World) -> None:
        fid = file(world, b"a")
        renamed = world.do(Rename(ROOT, b"a", ROOT, b"b"))
        assert (renamed.moved.fid, renamed.moved.ctime_ns, renamed.removed) == (fid, world.now_ns, None)
        assert renamed.parent == renamed.new_parent
        assert (found(world, ROOT, b"a"), found(world, ROOT, b"b")) == (None, fid)
        assert {(ROOT, b"a"), (ROOT, b"b"), (fid, None)} <= set(world.leases.changes)
        assert world.findings() == []

    def test_directory_into_another_keeps_counts_and_parent(self, world: World) -> None:
        one, two = directory(world, b"1"), directory(world, b"2")
        renamed = world.do(Rename(ROOT, b"1", two, b"x"))
        assert (renamed.parent.nlink, renamed.new_parent.nlink) == (3, 3)
        assert world.do(GetParent(one)).attr.fid == two
        assert world.findings() == []

    def test_over_a_file_says_what_was_removed(self, world: World) -> None:
        file(world, b"a")
        victim = file(world, b"b")
        spill(world, victim)
        removed = world.do(Rename(ROOT, b"a", ROOT, b"b", expected=victim)).removed
        assert removed is not None
        assert (removed.victim.fid, removed.victim.nlink, removed.orphan) == (victim, 0, False)
        assert [gone.fid for gone in world.mdt.destructions(9)] == [victim]
        assert world.findings() == []

    def test_over_a_file_in_use_leaves_an_orphan(self, world: World) -> None:
        file(world, b"a")
        victim = file(world, b"b")
        removed = world.do(Rename(ROOT, b"a", ROOT, b"b", expected=victim, opened=True)).removed
        assert removed is not None
        assert removed.orphan
        assert (world.mdt.orphans(), world.findings()) == ([victim], [])

    def test_over_an_empty_directory(self, world: World) -> None:
        one, two = directory(world, b"1"), directory(world, b"2")
        renamed = world.do(Rename(ROOT, b"1", ROOT, b"2"))
        assert renamed.removed is not None
        assert renamed.removed.victim.fid == two
        assert (found(world, ROOT, b"2"), renamed.parent.nlink) == (one, 3)
        assert world.findings() == []

    def test_over_an_entry_of_another_directory(self, world: World) -> None:
        one, two = directory(world, b"1"), directory(world, b"2")
        moved, replaced = below(world, one, b"x"), below(world, two, b"x")
        renamed = world.do(Rename(one, b"x", two, b"x"))
        assert renamed.removed is not None
        assert renamed.removed.victim.fid == replaced
        assert (found(world, two, b"x"), renamed.parent.nlink, renamed.new_parent.nlink) == (moved, 2, 3)
        assert world.findings() == []

    def test_between_names_of_one_inode_nothing_happens(self, world: World) -> None:
        fid = file(world, b"a")
        world.do(Link(fid, ROOT, b"b"))
        assert world.do(Rename(ROOT, b"a", ROOT, b"b")).moved.nlink == 2
        assert world.do(Rename(ROOT, b"a", ROOT, b"a")).moved.nlink == 2
        assert found(world, ROOT, b"a") == found(world, ROOT, b"b") == fid

    def test_refusals(self, world: World) -> None:
        one, two = directory(world, b"1"), directory(world, b"2")
        below(world, two, b"x")
        file(world)
        for request, number in (
            (Rename(ROOT, b"nothing", ROOT, b"b"), errno.ENOENT),
            (Rename(ROOT, b"1", ROOT, b"2"), errno.ENOTEMPTY),
            (Rename(ROOT, b"f", ROOT, b"1"), errno.EISDIR),
            (Rename(ROOT, b"1", ROOT, b"f"), errno.ENOTDIR),
            (Rename(ROOT, b"f", ROOT, b"1", NOREPLACE), errno.EEXIST),
            (Rename(ROOT, b"f", ROOT, b"g", EXCHANGE), errno.ENOENT),
            (Rename(ROOT, b"f", ROOT, b"g", EXCHANGE | NOREPLACE), errno.EINVAL),
            (Rename(ROOT, b"f", ROOT, b"g", RenameFlag(4)), errno.EINVAL),
            (Rename(ROOT, b"f", ROOT, b"n" * 256), errno.ENAMETOOLONG),
            (Rename(ROOT, b"f", 999, b"g"), errno.ESTALE),
            (Rename(one, b"f", one, b"g"), errno.ENOENT),
        ):
            with failing(number):
                world.do(request)
        assert world.findings() == []

    def test_directory_cannot_move_below_itself(self, world: World) -> None:
        one = directory(world, b"1")
        two = below(world, one, b"2")
        three = below(world, two, b"3")
        for parent in (one, two, three):
            with failing(errno.EINVAL):
                world.do(Rename(ROOT, b"1", parent, b"x"))
        with failing(errno.ENOTEMPTY):
            world.do(Rename(two, b"3", ROOT, b"1"))

    def test_loop_is_seen_within_a_batch(self, world: World) -> None:
        one, two = directory(world, b"1"), directory(world, b"2")
        world.batched(Rename(ROOT, b"1", two, b"1"))
        with failing(errno.EINVAL):
            world.batched(Rename(ROOT, b"2", one, b"2"))

    def test_write_leases_of_others_are_given_back_first(self, world: World) -> None:
        moved, replaced = file(world, b"a"), file(world, b"b")
        for fid in (replaced, moved):
            with pytest.raises(Blocked) as caught:
                world.batched(Rename(ROOT, b"a", ROOT, b"b"), 2)
            assert (caught.value.fid, caught.value.keep) == (fid, Lease.NONE)
            world.recall(1, fid)
        world.do(Rename(ROOT, b"a", ROOT, b"b"), 2)
        assert world.findings() == []


class TestExchange:
    def test_directory_with_file_of_another_directory(self, world: World) -> None:
        one, two = directory(world, b"1"), directory(world, b"2")
        inner = below(world, one, b"x")
        node = world.do(Create(two, b"y", 0o644, 0, 0, Mode.CLOSED)).node
        assert node is not None
        renamed = world.do(Rename(one, b"x", two, b"y", EXCHANGE))
        assert renamed.other is not None
        assert renamed.removed is None
        assert (renamed.moved.fid, renamed.other.fid) == (inner, node.attr.fid)
        assert (renamed.parent.nlink, renamed.new_parent.nlink) == (2, 3)
        assert (found(world, one, b"x"), found(world, two, b"y")) == (node.attr.fid, inner)
        assert world.do(GetParent(inner)).attr.fid == two
        assert world.findings() == []

    def test_full_directories_exchange_too(self, world: World) -> None:
        one, two = directory(world, b"1"), directory(world, b"2")
        below(world, one, b"x")
        below(world, two, b"y")
        world.do(Rename(ROOT, b"1", ROOT, b"2", EXCHANGE))
        assert (found(world, ROOT, b"1"), found(world, ROOT, b"2")) == (two, one)
        assert world.findings() == []

    def test_with_an_ancestor_is_refused(self, world: World) -> None:
        one = directory(world, b"1")
        below(world, one, b"2")
        for request in (Rename(ROOT, b"1", one, b"2", EXCHANGE), Rename(one, b"2", ROOT, b"1", EXCHANGE)):
            with failing(errno.EINVAL):
                world.do(request)

    def test_name_with_itself(self, world: World) -> None:
        fid = file(world)
        renamed = world.do(Rename(ROOT, b"f", ROOT, b"f", EXCHANGE))
        assert renamed.other is not None
        assert renamed.other.fid == fid
