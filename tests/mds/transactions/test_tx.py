"""The small tables: sessions, replies, OSTs, pools."""

import stat

from nacrefs.common.fid import ROOT
from nacrefs.common.wire import Mode, Symlink, Unlink
from nacrefs.mds.records import OstRecord, SessionRecord
from tests.mds.actions import file
from tests.mds.world import World


class TestSessions:
    def test_numbers_are_never_used_again(self, world: World) -> None:
        world.tx.end_session(2)
        world.commit()
        world.reopen()
        record = world.tx.add_session("c", "h", 5, 9)
        world.commit()
        assert record == SessionRecord(3, "c", "h", 5, 9)
        assert [one.id for one in world.mdt.sessions()] == [1, 3]

    def test_end_takes_opens_and_replies_along(self, world: World) -> None:
        one, two = file(world, b"a"), file(world, b"b")
        for session in (1, 2):
            world.tx.set_open(session, one, Mode.READ)
            world.tx.store_reply(session, 1, b"x")
        world.commit()
        world.tx.set_open(1, two, Mode.WRITE)
        world.tx.store_reply(1, 2, b"y")
        assert sorted(world.tx.end_session(1)) == [one, two]
        world.commit()
        assert world.mdt.opens == {one: {2: Mode.READ}}
        assert (world.mdt.replies(1), world.mdt.replies(2)) == ([], [(1, b"x")])
        world.reopen()
        assert world.mdt.opens == {one: {2: Mode.READ}}
        assert world.findings() == []


class TestNames:
    def test_one_that_was_removed_in_the_same_batch_can_be_added_without_a_look(self, world: World) -> None:
        world.do(Symlink(ROOT, b"a", b"before", 0, 0))
        world.batched(Unlink(ROOT, b"a"))
        made = world.tx.new_inode(stat.S_IFLNK | 0o777, 0, 0, 1, size=1, data=b"x").attr.fid
        world.tx.add_dentry(ROOT, b"a", made)
        world.tx.touch(ROOT, 0, 1, 1)
        world.commit()
        world.reopen()
        assert world.tx.dentry(ROOT, b"a") == made


class TestReplies:
    def test_are_found_in_the_batch_and_after_it(self, world: World) -> None:
        world.tx.store_reply(1, 7, b"seven")
        assert world.tx.reply(1, 7) == b"seven"
        world.commit()
        assert (world.tx.reply(1, 7), world.tx.reply(1, 8), world.tx.reply(2, 7)) == (b"seven", None, None)

    def test_trimming_keeps_from_the_number_on(self, world: World) -> None:
        for xid in (1, 2, 3):
            world.tx.store_reply(1, xid, b"%d" % xid)
        world.commit()
        world.tx.trim_replies(1, 3)
        world.tx.store_reply(1, 4, b"4")
        world.commit()
        assert world.mdt.replies(1) == [(3, b"3"), (4, b"4")]


class TestOpens:
    def test_the_last_word_of_a_batch_counts(self, world: World) -> None:
        fid = file(world)
        world.tx.set_open(1, fid, Mode.READ)
        world.tx.set_open(1, fid, Mode.CLOSED)
        world.tx.set_open(2, fid, Mode.READ)
        world.tx.set_open(2, fid, Mode.READ | Mode.WRITE)
        world.commit()
        for _ in range(2):
            assert world.mdt.opens == {fid: {2: Mode.READ | Mode.WRITE}}
            world.reopen()

    def test_a_batch_that_fails_opens_nothing(self, world: World) -> None:
        fid = file(world)
        world.tx.set_open(1, fid, Mode.READ)
        world.abandon()
        assert dict(world.tx.opens(fid)) == {}


class TestTargets:
    def test_osts_and_pools_are_kept(self, world: World) -> None:
        first = OstRecord(0, "u0", "tcp://a:1", 100, 50, 5)
        world.tx.put_ost(first)
        world.tx.put_ost(OstRecord(1, "u1", "tcp://b:1", 100, 50, 5))
        world.tx.set_pool("fast", (0, 1))
        world.tx.set_pool("slow", (1,))
        world.commit()
        renewed = OstRecord(1, "u1", "tcp://c:2", 200, 150, 6)
        world.tx.put_ost(renewed)
        world.tx.set_pool("fast", (1,))
        world.tx.set_pool("slow", ())
        world.commit()
        world.reopen()
        assert (world.mdt.osts(), world.mdt.pools()) == ([first, renewed], {"fast": (1,)})
