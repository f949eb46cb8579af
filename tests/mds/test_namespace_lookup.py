"""Finding inodes."""

import errno

import pytest

from nacrefs.common.fid import ROOT
from nacrefs.common.wire import Create, GetAttr, GetParent, Lease, Lookup, Mode, Want
from nacrefs.mds.transactions.step import Blocked
from tests.mds.actions import directory, failing, file
from tests.mds.world import World


class TestLookup:
    def test_brings_leases_on_child_and_parent(self, world: World) -> None:
        file(world)
        world.recall(1, 16)
        entry = world.do(Lookup(ROOT, b"f"), 2)
        assert entry.node is not None
        assert entry.node.lease == Lease.READ
        assert (entry.parent_lease, entry.parent) == (Lease.READ, world.do(GetAttr(ROOT)).attr)

    def test_absent_name_is_an_answer_under_the_parents_lease(self, world: World) -> None:
        entry = world.do(Lookup(ROOT, b"nothing"))
        assert (entry.node, entry.parent_lease) == (None, Lease.READ)

    def test_absence_ends_when_the_name_is_made(self, world: World) -> None:
        world.do(Lookup(ROOT, b"f"))
        fid = file(world)
        node = world.do(Lookup(ROOT, b"f")).node
        assert node is not None
        assert node.attr.fid == fid

    def test_brings_layout_and_contents_if_wanted(self, world: World) -> None:
        file(world, data=b"hello")
        plain = world.do(Lookup(ROOT, b"f")).node
        full = world.do(Lookup(ROOT, b"f", Want.LEASE | Want.LAYOUT | Want.DATA)).node
        assert plain is not None
        assert (plain.layout, plain.capability, plain.data) == (None, None, None)
        assert full is not None
        assert full.layout is not None
        assert full.capability is not None
        assert full.data == b"hello"

    def test_without_lease_wanted_shows_what_is_held(self, world: World) -> None:
        fid = file(world)
        assert world.do(GetAttr(fid, Want(0))).lease == Lease.WRITE
        world.recall(1, fid)
        assert world.do(GetAttr(fid, Want(0)), 2).lease == Lease.NONE
        assert world.leases.holders(fid) == {}

    def test_waits_for_anothers_write_lease(self, world: World) -> None:
        fid = file(world)
        for request in (Lookup(ROOT, b"f"), GetAttr(fid)):
            with pytest.raises(Blocked) as caught:
                world.do(request, 2)
            assert (caught.value.fid, caught.value.keep) == (fid, Lease.READ)

    def test_refusals(self, world: World) -> None:
        fid = file(world)
        for request, number in (
            (Lookup(fid, b"x"), errno.ENOTDIR),
            (Lookup(999, b"x"), errno.ESTALE),
            (Lookup(ROOT, b"n" * 256), errno.ENAMETOOLONG),
            (Lookup(ROOT, b""), errno.ENOENT),
            (Lookup(ROOT, b".."), errno.EINVAL),
        ):
            with failing(number):
                world.do(request)

    def test_sees_earlier_steps_of_the_batch(self, world: World) -> None:
        made = world.batched(Create(ROOT, b"a", 0o644, 0, 0, Mode.WRITE)).node
        found = world.batched(Lookup(ROOT, b"a")).node
        assert made is not None
        assert found is not None
        assert found.attr == made.attr
        world.abandon()
        assert world.batched(Lookup(ROOT, b"a")).node is None


class TestGetParent:
    def test_goes_up_to_the_root(self, world: World) -> None:
        one = directory(world)
        two = directory(world, parent=one)
        assert world.do(GetParent(two)).attr.fid == one
        assert world.do(GetParent(one)).attr.fid == ROOT
        assert world.do(GetParent(ROOT)).attr.fid == ROOT

    def test_only_directories_have_one(self, world: World) -> None:
        with failing(errno.ENOTDIR):
            world.do(GetParent(file(world)))
