"""chmod, chown, utimens, truncate."""

import errno

import pytest

from nacrefs.common.fid import ROOT
from nacrefs.common.wire import GetAttr, Lease, Mode, Open, Set, SetAttr, SetXattr, Symlink, Want
from nacrefs.mds.transactions.step import Blocked
from tests.mds.actions import directory, failing, file, spill
from tests.mds.world import INLINE_BYTES, World


def contents(world: World, fid: int) -> bytes | None:
    """What the MDT has of the file."""
    return world.do(GetAttr(fid, Want.DATA)).data


class TestSetAttr:
    def test_sets_what_is_named_and_nothing_else(self, world: World) -> None:
        fid = file(world)
        before = world.do(GetAttr(fid)).attr
        after = world.do(SetAttr(fid, Set.MODE | Set.GID, mode=0o7600, uid=9, gid=8, size=7, atime_ns=6)).attr
        assert (after.mode, after.uid, after.gid, after.size) == (0o107600, before.uid, 8, before.size)
        assert (after.atime_ns, after.mtime_ns) == (before.atime_ns, before.mtime_ns)
        assert (after.ctime_ns, after.change) == (world.now_ns, before.change + 1)
        assert world.do(GetAttr(fid)).attr == after
        assert (fid, None) in world.leases.changes

    def test_times(self, world: World) -> None:
        fid = file(world)
        attr = world.do(SetAttr(fid, Set.ATIME | Set.MTIME | Set.CTIME, atime_ns=-5, mtime_ns=2, ctime_ns=3)).attr
        assert (attr.atime_ns, attr.mtime_ns, attr.ctime_ns) == (-5, 2, 3)

    def test_type_cannot_be_changed(self, world: World) -> None:
        assert world.do(SetAttr(file(world), Set.MODE, mode=0o040644)).attr.mode == 0o100644

    @pytest.mark.parametrize(("mode", "left"), [(0o6755, 0o755), (0o6745, 0o2745), (0o4644, 0o644)])
    def test_a_write_by_another_takes_privileges_away(self, world: World, mode: int, left: int) -> None:
        fid = file(world)
        world.do(SetXattr(fid, b"security.capability", b"c"))
        world.do(SetAttr(fid, Set.MODE, mode=mode))
        attr = world.do(SetAttr(fid, Set.KILL_PRIVILEGES)).attr
        assert (attr.mode, attr.flags & 1) == (0o100000 | left, 0)
        assert world.findings() == []

    def test_anothers_write_lease_is_given_back_first(self, world: World) -> None:
        fid = file(world)
        with pytest.raises(Blocked) as caught:
            world.do(SetAttr(fid, Set.MODE, mode=0o600), 2)
        assert caught.value.keep == Lease.NONE


class TestTruncate:
    def test_inline_contents_are_cut_in_place(self, world: World) -> None:
        fid = file(world, data=b"hello")
        attr = world.do(SetAttr(fid, Set.SIZE, size=2)).attr
        assert (attr.size, attr.mtime_ns, attr.ctime_ns) == (2, world.now_ns, world.now_ns)
        assert contents(world, fid) == b"he"
        assert world.findings() == []

    def test_inline_file_lengthens_by_a_hole(self, world: World) -> None:
        fid = file(world, data=b"hello")
        for size in (9, 10 * INLINE_BYTES, (1 << 63) - 1):
            assert world.do(SetAttr(fid, Set.SIZE, size=size)).attr.size == size
            assert contents(world, fid) == b"hello"
        assert (world.mdt.intents, world.findings()) == ({}, [])

    def test_cut_and_lengthened_in_one_batch_shows_no_old_bytes(self, world: World) -> None:
        fid = file(world, data=b"hello")
        world.batched(SetAttr(fid, Set.SIZE, size=2))
        world.batched(SetAttr(fid, Set.SIZE, size=5))
        assert contents(world, fid) == b"he"
        world.commit()
        world.mdt.cache.clear()
        assert contents(world, fid) == b"he"

    def test_shorter_objects_are_an_intent_until_they_are_cut(self, world: World) -> None:
        fid = file(world)
        spill(world, fid)
        world.batched(SetAttr(fid, Set.SIZE, size=1000))
        world.batched(SetAttr(fid, Set.SIZE, size=5000))
        (intent,) = world.tx.new_intents
        assert (intent.fid, intent.size) == (fid, 1000)
        world.commit()
        world.reopen()
        assert world.mdt.intents == {fid: intent}
        world.tx.finish_intent(intent)
        world.commit()
        assert world.mdt.intents == {}
        world.reopen()
        assert world.mdt.intents == {}

    def test_a_smaller_cut_stays_when_an_earlier_one_is_done(self, world: World) -> None:
        fid = file(world)
        spill(world, fid)
        world.do(SetAttr(fid, Set.SIZE, size=1000))
        first = world.mdt.intents[fid]
        world.do(SetAttr(fid, Set.SIZE, size=10))
        world.tx.finish_intent(first)
        world.commit()
        assert world.mdt.intents[fid].size == 10

    def test_a_file_that_somebody_writes_may_have_longer_objects_than_its_size_says(self, world: World) -> None:
        fid = file(world)
        spill(world, fid, size=100)
        world.recall(1, fid)
        world.tx.set_open(1, fid, Mode.WRITE)
        world.do(Open(fid, Mode.WRITE), 2)
        world.do(SetAttr(fid, Set.SIZE, size=200), 2)
        assert world.mdt.intents[fid].size == 200

    def test_refusals(self, world: World) -> None:
        link = world.do(Symlink(ROOT, b"s", b"t", 0, 0)).node
        assert link is not None
        fid = file(world)
        for request, number in (
            (SetAttr(directory(world), Set.SIZE, size=1), errno.EISDIR),
            (SetAttr(link.attr.fid, Set.SIZE, size=1), errno.EINVAL),
            (SetAttr(fid, Set.SIZE, size=-1), errno.EINVAL),
            (SetAttr(fid, Set.SIZE, size=1 << 63), errno.EFBIG),
            (SetAttr(999, Set.MODE, mode=1), errno.ESTALE),
        ):
            with failing(number):
                world.do(request)
