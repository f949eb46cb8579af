"""Extended attributes."""

import errno

import pytest

from nacrefs.common.fid import ROOT, format_fid
from nacrefs.common.wire import (
    AttrFlag,
    GetAttr,
    GetLayout,
    GetXattr,
    GetXattrs,
    Link,
    RemoveXattr,
    Rename,
    SetXattr,
    Unlink,
    XattrFlag,
)
from tests.mds.actions import directory, failing, file
from tests.mds.world import World

CREATE, REPLACE = XattrFlag.CREATE, XattrFlag.REPLACE


class TestStored:
    def test_are_listed_in_order_of_name(self, world: World) -> None:
        fid = file(world)
        for name in (b"user.b", b"user.a", b"trusted.c", b"security.d"):
            world.do(SetXattr(fid, name, b"\0" + name))
        world.mdt.cache.clear()
        items = world.do(GetXattrs(fid)).items
        assert items == tuple((name, b"\0" + name) for name, _ in items)
        assert [name for name, _ in items] == [b"security.d", b"trusted.c", b"user.a", b"user.b"]
        assert world.findings() == []

    def test_the_attributes_say_whether_there_are_any(self, world: World) -> None:
        fid = file(world)
        node = world.do(SetXattr(fid, b"user.x", b""))
        assert node.attr.flags & AttrFlag.XATTRS
        assert node.attr.ctime_ns == world.now_ns
        assert not world.do(RemoveXattr(fid, b"user.x")).attr.flags & AttrFlag.XATTRS
        assert world.findings() == []

    def test_flags(self, world: World) -> None:
        fid = file(world)
        with failing(errno.ENODATA):
            world.do(SetXattr(fid, b"user.x", b"1", REPLACE))
        world.do(SetXattr(fid, b"user.x", b"1", CREATE))
        with failing(errno.EEXIST):
            world.do(SetXattr(fid, b"user.x", b"2", CREATE))
        world.do(SetXattr(fid, b"user.x", b"2", REPLACE))
        assert world.do(GetXattr(fid, b"user.x")).value == b"2"

    def test_set_and_removed_in_one_batch(self, world: World) -> None:
        fid = file(world)
        world.do(SetXattr(fid, b"user.old", b"1"))
        world.batched(SetXattr(fid, b"user.x", b"1"))
        world.batched(RemoveXattr(fid, b"user.x"))
        world.batched(RemoveXattr(fid, b"user.old"))
        world.commit()
        world.mdt.cache.clear()
        assert (world.do(GetXattrs(fid)).items, world.findings()) == ((), [])

    @pytest.mark.parametrize(
        ("name", "value", "number"),
        [
            (b"user.", b"", errno.EINVAL),
            (b"other.x", b"", errno.EOPNOTSUPP),
            (b"nacre.fid", b"", errno.EOPNOTSUPP),
            (b"system.x", b"", errno.EOPNOTSUPP),
            (b"system.posix_acl_access", b"", errno.EINVAL),
            (b"system.posix_acl_access", b"\1\0\0\0", errno.EOPNOTSUPP),
            (b"user.a\0b", b"", errno.EINVAL),
            (b"user." + b"n" * 251, b"", errno.ERANGE),
            (b"user.x", bytes(65537), errno.E2BIG),
        ],
    )
    def test_what_cannot_be_set(self, world: World, name: bytes, value: bytes, number: int) -> None:
        with failing(number):
            world.do(SetXattr(ROOT, name, value))

    def test_all_of_one_inode_are_bounded(self, world: World) -> None:
        for number in range(15):
            world.batched(SetXattr(ROOT, b"user.%d" % number, bytes(65536)))
        with failing(errno.ENOSPC):
            for number in range(15, 17):
                world.batched(SetXattr(ROOT, b"user.%d" % number, bytes(65536)))
        world.batched(SetXattr(ROOT, b"user.1", bytes(65536)))

    def test_absent_one_cannot_be_removed_or_read(self, world: World) -> None:
        with failing(errno.ENODATA):
            world.do(RemoveXattr(ROOT, b"user.x"))
        with failing(errno.ENODATA):
            world.do(GetXattr(ROOT, b"user.x"))


class TestComputed:
    def test_fid(self, world: World) -> None:
        fid = file(world)
        assert world.do(GetXattr(fid, b"nacre.fid")).value.decode() == format_fid(fid)

    def test_path_follows_renames_within_the_batch(self, world: World) -> None:
        one = directory(world, b"1")
        two = directory(world, b"2", parent=one)
        fid = file(world)
        world.batched(Rename(ROOT, b"f", two, b"g"))
        assert world.batched(GetXattr(fid, b"nacre.path")).value == b"/1/2/g"
        world.batched(Rename(ROOT, b"1", ROOT, b"x"))
        world.commit()
        assert world.do(GetXattr(fid, b"nacre.path")).value == b"/x/2/g"
        assert world.do(GetXattr(ROOT, b"nacre.path")).value == b"/"

    def test_path_of_a_file_with_several_names_is_one_of_them(self, world: World) -> None:
        fid = file(world, b"b")
        world.batched(Link(fid, ROOT, b"a"))
        assert world.batched(GetXattr(fid, b"nacre.path")).value == b"/a"
        world.batched(Unlink(ROOT, b"a", fid))
        assert world.batched(GetXattr(fid, b"nacre.path")).value == b"/b"

    def test_orphan_has_no_path(self, world: World) -> None:
        fid = file(world)
        world.do(Unlink(ROOT, b"f", fid, True))
        with failing(errno.ENOENT):
            world.do(GetXattr(fid, b"nacre.path"))

    def test_layout_is_set_and_read_as_text(self, world: World) -> None:
        parent = directory(world)
        world.do(SetXattr(parent, b"nacre.layout", b"stripe_count=2 stripe_size=128K pool=fast"))
        text = world.do(GetXattr(parent, b"nacre.layout")).value
        assert text == b"stripe_count=2 stripe_size=131072 pool=fast inline=16384"
        fid = file(world)
        world.do(SetXattr(fid, b"nacre.layout", text))
        layout = world.do(GetLayout(fid)).layout
        assert layout is not None
        assert (layout.stripe_count, sorted(layout.osts)) == (2, [0, 1])
        assert world.do(GetXattr(fid, b"nacre.layout")).value.startswith(b"stripe_count=2 stripe_size=131072")
        world.do(RemoveXattr(parent, b"nacre.layout"))
        assert world.do(GetAttr(parent)).attr.flags == 0
        with failing(errno.ENODATA):
            world.do(RemoveXattr(parent, b"nacre.layout"))
        assert world.findings() == []

    def test_bad_layout_text(self, world: World) -> None:
        with failing(errno.EINVAL):
            world.do(SetXattr(ROOT, b"nacre.layout", b"stripes=2"))
