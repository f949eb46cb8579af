"""Replies applied to the cache: what is remembered of answers that cross others."""

import stat

import pytest

from nacrefs.client.cache import Cache
from nacrefs.common.fid import ROOT
from nacrefs.common.wire import Attr, Entry, Lease, Lookup, Node, Removed, Rename, Renamed, Rmdir, Unlink

FILE, TREE = 20, 30


def directory(change: int, fid: int = ROOT) -> Attr:
    return Attr(fid, stat.S_IFDIR | 0o755, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, change)


def file(fid: int, nlink: int = 1) -> Attr:
    return Attr(fid, stat.S_IFREG | 0o644, nlink, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1)


@pytest.fixture
def cache() -> Cache:
    """A client that has just looked up a name which somebody else made, and been given the directory's lease."""
    cache = Cache(1000)
    found = Entry(Node(file(FILE)), directory(7), Lease.READ)
    cache.absorb(Lookup(ROOT, b"name"), found)
    names = cache.inode(ROOT).names
    assert names is not None
    assert names[b"name"] == FILE
    return cache


def known(cache: Cache, name: bytes) -> int | None:
    """What a name stands for; None: that must be asked."""
    inode = cache.inode(ROOT)
    assert not inode.complete
    return (inode.names or {}).get(name)


def test_an_answer_to_unlink_that_arrives_late_does_not_hide_the_name_that_was_made_since(cache: Cache) -> None:
    cache.absorb(Unlink(ROOT, b"name", 5, False), Removed(file(5, nlink=0), directory(6)))
    assert known(cache, b"name") is None


def test_one_to_rmdir_neither(cache: Cache) -> None:
    cache.absorb(Rmdir(ROOT, b"name"), Removed(directory(1, TREE), directory(6)))
    assert known(cache, b"name") is None


def test_one_to_rename_neither(cache: Cache) -> None:
    moved = Renamed(directory(6), directory(6), file(5))
    cache.absorb(Rename(ROOT, b"name", ROOT, b"other"), moved)
    assert (known(cache, b"name"), known(cache, b"other")) == (None, None)


def test_an_answer_that_is_the_newest_is_remembered(cache: Cache) -> None:
    cache.absorb(Unlink(ROOT, b"name", FILE, False), Removed(file(FILE, nlink=0), directory(8)))
    assert known(cache, b"name") == 0
