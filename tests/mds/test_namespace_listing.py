"""Reading directories."""

import errno

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nacrefs.common.fid import ROOT
from nacrefs.common.wire import Create, GetAttr, Lease, Lookup, Mkdir, Mode, Open, Readdir, Rename, Unlink
from tests.mds.actions import directory, failing, file, spill
from tests.mds.world import World


def names(world: World, fid: int, limit: int = 1000) -> list[bytes]:
    """All names, listed in pieces of `limit`."""
    found: list[bytes] = []
    while True:
        listing = world.batched(Readdir(fid, found[-1] if found else b"", limit))
        found.extend(entry.name for entry in listing.entries)
        assert len(listing.entries) <= limit
        if listing.end:
            return found


class TestReaddir:
    def test_entries_come_in_bytewise_order_with_attributes(self, world: World) -> None:
        fids = {name: file(world, name) for name in (b"b", b"\xff", b"a", b"aa", b"Z", b"\x01")}
        listing = world.do(Readdir(ROOT))
        assert [entry.name for entry in listing.entries] == sorted(fids)
        for entry in listing.entries:
            assert entry.attr == world.do(GetAttr(fids[entry.name])).attr
        assert (listing.end, listing.attr, listing.lease) == (True, world.do(GetAttr(ROOT)).attr, Lease.READ)

    def test_a_full_piece_says_that_there_is_more(self, world: World) -> None:
        for name in (b"a", b"b", b"c"):
            file(world, name)
        piece = world.do(Readdir(ROOT, limit=2))
        assert ([entry.name for entry in piece.entries], piece.end) == ([b"a", b"b"], False)
        rest = world.do(Readdir(ROOT, b"b", limit=2))
        assert ([entry.name for entry in rest.entries], rest.end) == ([b"c"], True)
        assert world.do(Readdir(ROOT, limit=3)).end

    def test_limits_are_kept_within_bounds(self, world: World) -> None:
        file(world, b"a")
        file(world, b"b")
        assert len(world.do(Readdir(ROOT, limit=0)).entries) == 1
        assert len(world.do(Readdir(ROOT, limit=1 << 40)).entries) == 2

    def test_leases_come_along_only_if_asked(self, world: World) -> None:
        fid = file(world)
        world.recall(1, fid)
        world.leases.set(1, ROOT, Lease.NONE)
        listing = world.do(Readdir(ROOT, lease=False))
        assert (listing.lease, listing.entries[0].lease, world.leases.holders(fid)) == (Lease.NONE, Lease.NONE, {})
        listing = world.do(Readdir(ROOT))
        assert (listing.lease, listing.entries[0].lease) == (Lease.READ, Lease.READ)

    def test_entry_that_another_session_writes_has_no_lease(self, world: World) -> None:
        leased, shared = file(world, b"leased"), file(world, b"shared")
        spill(world, shared)
        world.recall(1, shared)
        world.tx.set_open(1, shared, Mode.WRITE)
        world.commit()
        leases = {entry.attr.fid: entry.lease for entry in world.do(Readdir(ROOT), 2).entries}
        assert leases == {leased: Lease.NONE, shared: Lease.NONE}

    def test_only_directories(self, world: World) -> None:
        with failing(errno.ENOTDIR):
            world.do(Readdir(file(world)))

    def test_new_directory_of_the_batch(self, world: World) -> None:
        node = world.batched(Mkdir(ROOT, b"d", 0o755, 0, 0)).node
        assert node is not None
        world.batched(Create(node.attr.fid, b"a", 0o644, 0, 0, Mode.CLOSED))
        assert names(world, node.attr.fid) == [b"a"]

    def test_attributes_are_those_of_the_batch(self, world: World) -> None:
        fid = file(world)
        world.batched(Open(fid, Mode.WRITE, truncate=True))
        assert world.batched(Readdir(ROOT)).entries[0].attr == world.batched(Lookup(ROOT, b"f")).node.attr  # type: ignore[union-attr]

    @settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
    @given(
        committed=st.sets(st.integers(0, 15)),
        removed=st.sets(st.integers(0, 15)),
        moved=st.sets(st.integers(0, 15)),
        added=st.sets(st.integers(16, 25)),
        limit=st.integers(1, 5),
    )
    def test_changes_of_the_batch_are_merged_into_what_is_committed(
        self,
        world: World,
        committed: set[int],
        removed: set[int],
        moved: set[int],
        added: set[int],
        limit: int,
    ) -> None:
        world.now_ns += 1
        parent = directory(world, b"d%d" % world.now_ns)
        name = {number: b"%03d" % (number * 7 % 26) for number in range(26)}
        for number in committed:
            world.batched(Create(parent, name[number], 0o644, 0, 0, Mode.CLOSED))
        world.commit()
        expected = {name[number] for number in committed}
        for number in added:
            world.batched(Create(parent, name[number], 0o644, 0, 0, Mode.CLOSED))
            expected.add(name[number])
        for number in removed & committed:
            world.batched(Unlink(parent, name[number]), 2)
            expected.discard(name[number])
        for number in (moved & committed) - removed:
            world.batched(Rename(parent, name[number], parent, name[number] + b"x"))
            expected.discard(name[number])
            expected.add(name[number] + b"x")
        assert names(world, parent, limit) == sorted(expected)
        world.commit()
        assert names(world, parent, limit) == sorted(expected)
