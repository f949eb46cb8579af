"""Damage of every kind is found."""

import pytest

from nacrefs.common.fid import ROOT
from nacrefs.common.layout import LayoutSpec
from nacrefs.common.wire import Link, SetLayout, SetXattr, Symlink
from tests.mds.actions import directory, file, spill
from tests.mds.world import World


@pytest.fixture
def tree(world: World) -> World:
    """A tree with one of everything: 16 a file with contents, 17 one with objects, 18/19 directories, 20 a symlink."""
    assert file(world, b"small", data=b"hello") == 16
    assert file(world, b"big") == 17
    spill(world, 17)
    world.do(Link(17, ROOT, b"other"))
    assert [directory(world, b"d"), directory(world, b"e", parent=18)] == [18, 19]
    world.do(Symlink(ROOT, b"link", b"target", 0, 0))
    world.do(SetXattr(16, b"user.x", b"y"))
    world.do(SetLayout(19, LayoutSpec(stripe_count=2)))
    assert world.findings() == []
    return world


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("DELETE FROM inode WHERE fid = 16", "has a name in directory 1 but no inode"),
        ("UPDATE dentry SET parent = 16 WHERE fid = 20", "has entries but is not a directory"),
        ("UPDATE inode SET nlink = 1 WHERE fid = 17", "has link count 1 but 2 names"),
        ("UPDATE inode SET nlink = 2 WHERE fid = 18", "is a directory with link count 2 but 1 subdirectories"),
        ("UPDATE inode SET entries = 7 WHERE fid = 18", "says that it has 7 entries but has 1"),
        ("UPDATE inode SET parent = 1 WHERE fid = 19", "is a directory without a name in its parent 1"),
        ("UPDATE dentry SET fid = 18 WHERE fid = 20", "is a directory with 2 names"),
        ("UPDATE inode SET parent = 1 WHERE fid = 16", "is no directory but has parent 1"),
        ("UPDATE dentry SET parent = 19 WHERE fid = 18", "cannot be reached from the root"),
        ("UPDATE inode SET nlink = 0 WHERE fid = 16", "has no name and nobody has it open"),
        ("UPDATE inode SET flags = 0 WHERE fid = 16", "has inline contents but mode 100644 and flags 0"),
        ("UPDATE inode SET size = 2 WHERE fid = 16", "has 5 bytes of inline contents but size 2"),
        ("DELETE FROM inline WHERE fid = 20", "is a symbolic link without a target"),
        ("UPDATE inode SET flags = 2 WHERE fid = 19", "is not a regular file but has flags 2"),
        ("UPDATE inode SET layout = NULL WHERE fid = 16", "is a file without one"),
        ("UPDATE inode SET flags = 0 WHERE fid = 19", "do not agree with its default layout"),
        ("DELETE FROM xattr", "do not agree with its extended attributes"),
        ("UPDATE xattr SET fid = 999", "has xattrs but no inode"),
        ("INSERT INTO open (session, fid, mode) VALUES (9, 16, 1)", "is open in session 9, which does not exist"),
        ("INSERT INTO open (session, fid, mode) VALUES (1, 999, 1)", "is open but has no inode"),
        ("INSERT INTO destroy SELECT fid, layout FROM inode WHERE fid = 17", "objects are being destroyed"),
        ("UPDATE inode SET size = -1 WHERE fid = 17", "has size -1"),
        ("UPDATE mdt SET next_counter = 17", "was never given out"),
        ("UPDATE usage SET inodes = inodes + 1", "are recorded as 7 with"),
        ("UPDATE usage SET bytes = 0", "with 0 bytes but are 6 with"),
        ("UPDATE mdt SET next_session = 2", "session 2 was never given out"),
        ("UPDATE inode SET layout = spec WHERE fid = 17", "is a file without one"),
    ],
)
def test_damage_is_found(tree: World, damage: str, words: str) -> None:
    tree.mdt.store.writer.execute(damage)
    assert any(words in finding for finding in tree.findings()), tree.findings()


def test_unreadable_layout_is_found(tree: World) -> None:
    parameter = "?" if tree.mdt.store.backend == "sqlite" else "%s"
    tree.mdt.store.writer.execute(f"UPDATE inode SET layout = {parameter} WHERE fid = 16", (b"\xc1",))
    assert any("cannot be read" in finding for finding in tree.findings())
