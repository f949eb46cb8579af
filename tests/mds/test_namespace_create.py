"""New names."""

import errno

import pytest

from nacrefs.common.fid import ROOT
from nacrefs.common.wire import Create, Lease, Lookup, Mkdir, Mode
from tests.mds.world import World


class TestCreate:
    def test_created_file_is_found_by_name(self, world: World) -> None:
        made = world.do(Create(ROOT, b"a", 0o644, 10, 20, Mode.WRITE))
        assert made.node is not None and made.node.lease == Lease.WRITE
        found = world.do(Lookup(ROOT, b"a"))
        assert found.node is not None and found.node.attr == made.node.attr
        assert world.findings() == []
