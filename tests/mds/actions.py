"""What most tests of the namespace begin with."""

import pytest

from nacrefs.common.fid import ROOT
from nacrefs.common.wire import Commit, Create, Lease, Mkdir, Mode
from tests.mds.world import World


def failing(number: int) -> pytest.RaisesExc[OSError]:
    """Expect an OSError with this errno."""
    return pytest.raises(OSError, check=lambda error: error.errno == number)


def directory(world: World, name: bytes = b"d", mode: int = 0o755, gid: int = 0, parent: int = ROOT) -> int:
    """Make a directory; its fid."""
    node = world.do(Mkdir(parent, name, mode, 0, gid)).node
    assert node is not None
    return node.attr.fid


def file(world: World, name: bytes = b"f", session: int = 1, mode: Mode = Mode.WRITE, data: bytes | None = None) -> int:
    """Make a file below the root, which the session has a lease on; its fid."""
    node = world.do(Create(ROOT, name, 0o644, 0, 0, mode, data=data), session).node
    assert node is not None
    return node.attr.fid


def spill(world: World, fid: int, size: int = 1 << 20, session: int = 1) -> None:
    """The session, which has the WRITE lease, reports that the file's contents are on OSTs."""
    world.do(Commit(fid, Lease.WRITE, Mode.CLOSED, True, size, world.now_ns, size // 512), session)
