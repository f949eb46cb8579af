"""New names."""

import errno
import stat

import pytest

from nacrefs.common.fid import ROOT
from nacrefs.common.layout import LayoutSpec
from nacrefs.common.wire import (
    AttrFlag,
    Create,
    GetAttr,
    Lease,
    Link,
    Lookup,
    Mkdir,
    Mknod,
    Mode,
    Open,
    Set,
    SetAttr,
    SetLayout,
    Symlink,
    Unlink,
    Want,
)
from nacrefs.mds.inode import LINK_MAX
from tests.mds.actions import directory, failing, file
from tests.mds.world import INLINE_BYTES, World


class TestCreate:
    def test_reply_brings_everything_a_writer_needs(self, world: World) -> None:
        made = world.do(Create(ROOT, b"a", 0o640, 10, 20, Mode.WRITE))
        node = made.node
        assert node is not None
        assert node.layout is not None
        assert node.capability is not None
        assert node.lease == Lease.WRITE
        assert (node.attr.mode, node.attr.uid, node.attr.gid, node.attr.nlink) == (0o100640, 10, 20, 1)
        assert node.attr.flags == AttrFlag.INLINE
        assert node.attr.btime_ns == node.attr.mtime_ns == world.now_ns
        assert made.parent is not None
        assert made.parent.mtime_ns == made.parent.ctime_ns == world.now_ns
        assert made.parent_lease == Lease.READ
        assert not world.mdt.opens

    def test_created_file_is_found_by_name_and_fid(self, world: World) -> None:
        made = world.do(Create(ROOT, b"a", 0o644, 0, 0, Mode.WRITE)).node
        found = world.do(Lookup(ROOT, b"a")).node
        assert made is not None
        assert found is not None
        assert found.attr == made.attr
        assert world.do(GetAttr(made.attr.fid)).attr == made.attr

    def test_with_contents_the_file_is_complete_in_one_request(self, world: World) -> None:
        node = world.do(Create(ROOT, b"a", 0o644, 0, 0, Mode.CLOSED, data=b"hello")).node
        assert node is not None
        assert (node.attr.size, node.attr.blocks) == (5, 1)
        assert world.do(GetAttr(node.attr.fid, Want.DATA)).data == b"hello"
        assert world.findings() == []

    def test_contents_above_the_limit_are_refused(self, world: World) -> None:
        with failing(errno.EFBIG):
            world.do(Create(ROOT, b"a", 0o644, 0, 0, Mode.CLOSED, data=bytes(INLINE_BYTES + 1)))

    def test_exclusive_fails_where_the_name_exists(self, world: World) -> None:
        file(world, b"a")
        with failing(errno.EEXIST):
            world.do(Create(ROOT, b"a", 0o644, 0, 0, Mode.WRITE, exclusive=True))

    def test_without_exclusive_the_existing_file_is_opened(self, world: World) -> None:
        fid = file(world, b"a", data=b"old")
        world.recall(1, fid)
        node = world.do(Create(ROOT, b"a", 0o600, 0, 0, Mode.WRITE), 2).node
        assert node is not None
        assert node.attr.fid == fid
        assert (node.attr.mode, node.data, node.lease) == (0o100644, b"old", Lease.WRITE)

    def test_truncate_empties_the_existing_file(self, world: World) -> None:
        fid = file(world, b"a", data=b"old")
        node = world.do(Create(ROOT, b"a", 0o600, 0, 0, Mode.WRITE, truncate=True)).node
        assert node is not None
        assert (node.attr.fid, node.attr.size, node.data) == (fid, 0, b"")
        assert world.findings() == []

    def test_directory_and_symlink_are_not_opened(self, world: World) -> None:
        directory(world)
        world.do(Symlink(ROOT, b"s", b"t", 0, 0))
        for name, number in ((b"d", errno.EISDIR), (b"s", errno.ELOOP)):
            with failing(number):
                world.do(Create(ROOT, name, 0o644, 0, 0, Mode.READ))

    def test_setgid_directory_hands_down_its_group(self, world: World) -> None:
        parent = directory(world, mode=0o755, gid=7)
        world.do(SetAttr(parent, Set.MODE, mode=0o2775))
        node = world.do(Create(parent, b"a", 0o644, 0, 1, Mode.WRITE)).node
        below = world.do(Mkdir(parent, b"b", 0o755, 0, 1)).node
        assert node is not None
        assert below is not None
        assert (node.attr.gid, node.attr.mode) == (7, 0o100644)
        assert (below.attr.gid, below.attr.mode) == (7, 0o042755)

    def test_layout_comes_from_request_then_directory_then_default(self, world: World) -> None:
        parent = directory(world)
        world.do(SetLayout(parent, LayoutSpec(stripe_count=2, stripe_bytes=2 << 20)))
        inherited = world.do(Create(parent, b"a", 0o644, 0, 0, Mode.WRITE)).node
        asked = world.do(Create(parent, b"b", 0o644, 0, 0, Mode.WRITE, layout=LayoutSpec(stripe_count=3))).node
        default = world.do(Create(ROOT, b"c", 0o644, 0, 0, Mode.WRITE)).node
        shapes = [
            (node.layout.stripe_count, node.layout.stripe_bytes, len(node.layout.osts))
            for node in (inherited, asked, default)
            if node is not None and node.layout is not None
        ]
        assert shapes == [(2, 2 << 20, 2), (3, 2 << 20, 3), (1, 1 << 20, 1)]

    def test_impossible_layout_is_refused(self, world: World) -> None:
        with failing(errno.EINVAL):
            world.do(Create(ROOT, b"a", 0o644, 0, 0, Mode.WRITE, layout=LayoutSpec(stripe_bytes=1000)))

    @pytest.mark.parametrize(
        ("name", "number"),
        [
            (b"n" * 256, errno.ENAMETOOLONG),
            (b"", errno.ENOENT),
            (b".", errno.EINVAL),
            (b"..", errno.EINVAL),
            (b"a/b", errno.EINVAL),
            (b"a\0b", errno.EINVAL),
        ],
    )
    def test_hostile_names_are_refused(self, world: World, name: bytes, number: int) -> None:
        with failing(number):
            world.do(Create(ROOT, name, 0o644, 0, 0, Mode.WRITE))
        assert world.mdt.files == 1

    def test_names_may_be_any_other_bytes(self, world: World) -> None:
        for name in (b"\xff\xfe", b"n" * 255, b" ", b"\n", b"'; DROP TABLE inode; --", b"%s", b"?"):
            assert (
                world.do(Create(ROOT, name, 0o644, 0, 0, Mode.WRITE)).node
                == world.do(Lookup(ROOT, name, Want.LEASE | Want.LAYOUT)).node
            )

    def test_parent_must_be_a_directory_that_exists(self, world: World) -> None:
        with failing(errno.ENOTDIR):
            world.do(Create(file(world), b"a", 0o644, 0, 0, Mode.WRITE))
        with failing(errno.ESTALE):
            world.do(Create(12345, b"a", 0o644, 0, 0, Mode.WRITE))

    def test_hostile_fids_are_only_stale(self, world: World) -> None:
        for fid in (0, -1, (1 << 63) - 1, -(1 << 63)):
            with failing(errno.ESTALE):
                world.do(GetAttr(fid))

    def test_others_are_told_of_the_name(self, world: World) -> None:
        file(world, b"a")
        assert world.leases.changes == [(ROOT, b"a")]


class TestMknod:
    @pytest.mark.parametrize("kind", [stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFREG])
    def test_makes_every_other_type(self, world: World, kind: int) -> None:
        node = world.do(Mknod(ROOT, b"n", kind | 0o600, 0x103, 1, 2)).node
        assert node is not None
        assert node.attr.mode == kind | 0o600
        assert node.attr.rdev == (0x103 if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0)
        assert world.findings() == []

    @pytest.mark.parametrize("kind", [stat.S_IFDIR, stat.S_IFLNK, 0, 0o170000])
    def test_refuses_what_has_its_own_request(self, world: World, kind: int) -> None:
        with failing(errno.EINVAL):
            world.do(Mknod(ROOT, b"n", kind | 0o600, 0, 1, 2))

    def test_existing_name(self, world: World) -> None:
        file(world)
        with failing(errno.EEXIST):
            world.do(Mknod(ROOT, b"f", stat.S_IFIFO | 0o600, 0, 1, 2))


class TestMkdir:
    def test_counts_in_its_parent(self, world: World) -> None:
        entry = world.do(Mkdir(ROOT, b"d", 0o7755, 1, 2))
        assert entry.node is not None
        assert entry.parent is not None
        assert (entry.node.attr.nlink, entry.parent.nlink) == (2, 3)
        assert entry.node.attr.mode == 0o041755
        assert world.findings() == []

    def test_takes_over_the_default_layout(self, world: World) -> None:
        parent = directory(world)
        world.do(SetLayout(parent, LayoutSpec(stripe_count=2)))
        below = world.do(Mkdir(parent, b"b", 0o755, 0, 0)).node
        assert below is not None
        assert below.attr.flags == AttrFlag.DEFAULT_LAYOUT
        assert world.findings() == []

    def test_too_many_subdirectories(self, world: World) -> None:
        world.tx.edit(ROOT)
        world.tx.touch(ROOT, LINK_MAX - 2, 0, 1)
        with failing(errno.EMLINK):
            world.batched(Mkdir(ROOT, b"d", 0o755, 0, 0))


class TestSymlink:
    def test_target_comes_with_every_reply(self, world: World) -> None:
        node = world.do(Symlink(ROOT, b"s", b"../x\xff", 1, 2)).node
        assert node is not None
        assert (node.data, node.attr.size, node.attr.mode) == (b"../x\xff", 5, 0o120777)
        world.mdt.cache.clear()
        found = world.do(Lookup(ROOT, b"s")).node
        assert found is not None
        assert found.data == b"../x\xff"

    @pytest.mark.parametrize(
        ("target", "number"), [(b"", errno.ENOENT), (b"t" * 4096, errno.ENAMETOOLONG), (b"a\0", errno.EINVAL)]
    )
    def test_impossible_targets(self, world: World, target: bytes, number: int) -> None:
        with failing(number):
            world.do(Symlink(ROOT, b"s", target, 1, 2))


class TestLink:
    def test_both_names_are_the_same_inode(self, world: World) -> None:
        fid = file(world)
        entry = world.do(Link(fid, ROOT, b"g"))
        assert entry.node is not None
        assert entry.node.attr.fid == fid
        assert (entry.node.attr.nlink, entry.node.attr.ctime_ns) == (2, world.now_ns)
        assert entry.node.attr.mtime_ns < world.now_ns
        assert (fid, None) in world.leases.changes
        assert world.findings() == []

    def test_refusals(self, world: World) -> None:
        fid, parent = file(world), directory(world)
        for request, number in (
            (Link(fid, ROOT, b"f"), errno.EEXIST),
            (Link(parent, ROOT, b"e"), errno.EPERM),
            (Link(999, ROOT, b"e"), errno.ESTALE),
            (Link(fid, fid, b"e"), errno.ENOTDIR),
        ):
            with failing(number):
                world.do(request)

    def test_file_without_a_name_gets_none(self, world: World) -> None:
        fid = file(world)
        world.do(Open(fid, Mode.READ))
        assert world.do(Unlink(ROOT, b"f", fid, True)).orphan
        with failing(errno.ENOENT):
            world.do(Link(fid, ROOT, b"g"))

    def test_too_many_names(self, world: World) -> None:
        fid = file(world)
        world.tx.relink(fid, LINK_MAX - 1, 1)
        with failing(errno.EMLINK):
            world.batched(Link(fid, ROOT, b"g"))
