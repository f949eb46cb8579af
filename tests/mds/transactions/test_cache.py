"""Committed state in memory."""

from pathlib import Path

import pytest

from nacrefs.common.fid import ROOT
from nacrefs.common.wire import Attr, Create, GetAttr, Lookup, Mode, Want
from nacrefs.mds.inode import Inode
from nacrefs.mds.transactions.cache import DENTRY_BYTES, INODE_BYTES, Cache
from tests.mds.actions import file
from tests.mds.world import World


def inode(fid: int, data: bytes | None = None) -> Inode:
    return Inode(Attr(fid, 0o100644, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0), data=data)


class TestCache:
    def test_least_recently_used_goes_first(self) -> None:
        cache = Cache(3 * INODE_BYTES)
        for fid in (1, 2, 3):
            cache.put_inode(inode(fid))
        cache.inode(1)
        cache.put_inode(inode(4))
        assert [fid for fid in (1, 2, 3, 4) if cache.inode(fid) is not None] == [1, 3, 4]

    def test_bytes_are_those_of_what_is_in_it(self) -> None:
        cache = Cache(1 << 20)
        cache.put_inode(inode(1, b"x" * 100))
        cache.put_inode(inode(1, b"x" * 50))
        cache.put_dentry((1, b"abc"), 0)
        cache.put_dentry((1, b"abc"), 5)
        assert cache.bytes == INODE_BYTES + 50 + DENTRY_BYTES + 3
        cache.drop_inode(1)
        cache.drop_inode(1)
        assert (cache.bytes, cache.dentry((1, b"abc")), cache.dentry((1, b"x"))) == (DENTRY_BYTES + 3, 5, None)
        cache.clear()
        assert (cache.bytes, len(cache)) == (0, 0)

    def test_stays_within_its_limit_whatever_is_put_in(self) -> None:
        cache = Cache(100_000)
        for number in range(2000):
            cache.put_inode(inode(number, bytes(number % 500)))
            cache.put_dentry((number, b"n" * (number % 200)), number)
            assert cache.bytes <= 100_000
        assert len(cache) > 50


@pytest.mark.parametrize("cache_bytes", [0, 3000, 64 << 20])
def test_answers_do_not_depend_on_the_cache(tmp_path: Path, cache_bytes: int) -> None:
    world = World(str(tmp_path / "db"), cache_bytes)
    session = world.session()
    fids = [file(world, b"%d" % number, session, data=b"c%d" % number) for number in range(20)]
    for number, fid in enumerate(fids):
        assert world.do(GetAttr(fid, Want.DATA), session).data == b"c%d" % number
        node = world.do(Lookup(ROOT, b"%d" % number, Want.DATA), session).node
        assert node is not None
        assert (node.attr.fid, node.data) == (fid, b"c%d" % number)
    assert world.mdt.cache.bytes <= cache_bytes
    world.close()


def test_uncommitted_state_never_enters(world: World) -> None:
    node = world.batched(Create(ROOT, b"a", 0o644, 0, 0, Mode.WRITE)).node
    assert node is not None
    assert world.mdt.cache.inode(node.attr.fid) is None
    world.abandon()
    assert world.do(Lookup(ROOT, b"a")).node is None
