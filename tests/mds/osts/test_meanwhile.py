"""What is decided about objects holds when it is done, whatever else has happened since."""

from functools import partial

from nacrefs.common.layout import CopyState, Layout, LayoutSpec
from nacrefs.common.wire import (
    Commit,
    Create,
    Destroy,
    Lease,
    Mode,
    SetLayout,
)
from nacrefs.mds.namespace.copies import replace_copies
from nacrefs.mds.osts.sizes import forget_unless_written
from tests.mds.actions import directory
from tests.mds.actions import spill as spilled
from tests.mds.served import Served
from tests.mds.world import World


def test_copies_of_one_stripe_do_not_move_to_the_same_ost(world: World) -> None:
    """Two OSTs are lost, and both were replaced by what was seen before either was."""
    parent = directory(world)
    world.do(SetLayout(parent, LayoutSpec(stripe_count=1, first_ost=0, mirrors=3, inline_bytes=0)))
    node = world.do(Create(parent, b"f", 0o644, 0, 0, Mode.WRITE)).node
    assert node is not None
    fid = node.attr.fid
    spilled(world, fid)

    def layout() -> Layout:
        inode = world.tx.inode(fid)
        assert inode is not None
        assert inode.layout is not None
        return inode.layout

    one, two = layout().osts[1:]
    place = next(ost for ost in range(4) if ost not in layout().osts)
    assert replace_copies(world.step(), fid, one, {1: place}) == 1
    assert replace_copies(world.step(), fid, two, {2: place}) == 0
    world.commit()
    assert layout().osts[1:] == (place, two)
    assert layout().states == (CopyState.GOOD, CopyState.LOST, CopyState.GOOD)


async def test_what_is_written_since_a_file_was_looked_at_is_not_cut(served: Served) -> None:
    """Two wait for a look at a small file whose writer is gone; the first writes it when the second has its answer."""
    client = await served.client()
    made = await client.create(b"f")
    assert made.node is not None
    fid = made.node.attr.fid
    forget = partial(forget_unless_written, served.mds.leases, fid)
    await served.mds.journal.submit_own(forget)
    assert not served.first.of(Destroy)
    await client.call(Commit(fid, Lease.NONE, Mode.CLOSED, True, 8, 5, 8, b"contents"))
    await served.mds.journal.submit_own(forget)
    assert len(served.first.of(Destroy)) == 1
