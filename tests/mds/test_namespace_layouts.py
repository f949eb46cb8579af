"""Layouts of files and directories."""

import errno

from nacrefs.common.fid import ROOT
from nacrefs.common.layout import LayoutSpec
from nacrefs.common.wire import AttrFlag, Commit, Create, GetAttr, GetLayout, Lease, Mode, SetLayout, Symlink
from nacrefs.mds.namespace.layouts import merged
from tests.mds.actions import directory, failing, file, spill
from tests.mds.world import World


class TestSetLayout:
    def test_empty_file_gets_a_new_generation(self, world: World) -> None:
        fid = file(world)
        world.do(SetLayout(fid, LayoutSpec(stripe_count=2, first_ost=3)))
        layout = world.do(GetLayout(fid)).layout
        assert layout is not None
        assert (layout.osts, layout.generation) == ((3, 0), 1)
        assert (fid, None) in world.leases.changes

    def test_file_with_contents_or_objects_keeps_its_layout(self, world: World) -> None:
        full, spilled = file(world, b"a", data=b"x"), file(world, b"b")
        spill(world, spilled)
        for fid in (full, spilled):
            with failing(errno.EEXIST):
                world.do(SetLayout(fid, LayoutSpec(stripe_count=2)))

    def test_file_that_another_session_has_open(self, world: World) -> None:
        fid = file(world)
        world.recall(1, fid)
        world.tx.set_open(1, fid, Mode.WRITE)
        with failing(errno.EBUSY):
            world.batched(SetLayout(fid, LayoutSpec(stripe_count=2)), 2)

    def test_directory_default_can_be_taken_back(self, world: World) -> None:
        fid = directory(world)
        spec = LayoutSpec(stripe_count=-1)
        world.do(SetLayout(fid, spec))
        assert world.do(GetLayout(fid)).spec == spec
        assert world.do(GetAttr(fid)).attr.flags == AttrFlag.DEFAULT_LAYOUT
        world.do(SetLayout(fid, LayoutSpec()))
        assert world.do(GetLayout(fid)).spec is None
        assert (world.do(GetAttr(fid)).attr.flags, world.findings()) == (0, [])

    def test_inline_limit_is_handed_down_to_files_and_directories(self, world: World) -> None:
        fid = directory(world)
        world.do(SetLayout(fid, LayoutSpec(inline_bytes=10)))
        below = directory(world, b"below", parent=fid)
        with failing(errno.EFBIG):
            world.do(Create(below, b"large", 0o644, 0, 0, Mode.CLOSED, data=bytes(11)))
        small = world.do(Create(below, b"small", 0o644, 0, 0, Mode.WRITE, data=bytes(10))).node
        assert small is not None
        layout = world.do(GetLayout(small.attr.fid)).layout
        assert layout is not None
        assert layout.inline_bytes == 10
        with failing(errno.EFBIG):
            world.do(Commit(small.attr.fid, Lease.WRITE, Mode.WRITE, True, 11, 0, 0, bytes(11)))

    def test_refusals(self, world: World) -> None:
        link = world.do(Symlink(ROOT, b"s", b"t", 0, 0)).node
        assert link is not None
        for fid, spec in (
            (link.attr.fid, LayoutSpec()),
            (ROOT, LayoutSpec(pool="none")),
            (ROOT, LayoutSpec(first_ost=99)),
            (ROOT, LayoutSpec(stripe_bytes=1)),
        ):
            with failing(errno.EINVAL):
                world.do(SetLayout(fid, spec))


def test_open_fields_come_from_the_default() -> None:
    default = LayoutSpec(2, 1 << 20, 3, "fast", 2)
    assert merged(LayoutSpec(), default) == default
    assert merged(LayoutSpec(stripe_count=-1, pool="slow"), default) == LayoutSpec(-1, 1 << 20, 3, "slow", 2)
    assert merged(LayoutSpec(stripe_bytes=65536), default) == LayoutSpec(2, 65536, 3, "fast", 2)
