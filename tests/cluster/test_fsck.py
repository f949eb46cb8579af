"""Damage of every kind is found by `nacre fsck` on a running cluster, and mended; what is in use is left alone."""

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import lmdb
import pytest

from nacrefs.client.filesystem import Changes
from nacrefs.client.vfs import Vfs
from nacrefs.common.answer import settle
from nacrefs.common.fid import ROOT
from nacrefs.common.layout import Layout, LayoutSpec
from nacrefs.common.wire import Fsck, Problem, RenameFlag, Repair, Set, SetLayout, XattrFlag
from nacrefs.mds.check import check
from nacrefs.mds.fsck.job import FsckJob, fsck
from tests.client.world import CRED, World, close, cluster, names, open_file, quiet, read_file, write_file

CONTENTS = os.urandom(700_001)


class Tree:
    """A cluster with one of everything, and a client that has forgotten it."""

    def __init__(self, world: World, vfs: Vfs, fids: dict[str, int]) -> None:
        self.world = world
        self.vfs = vfs
        self.fids = fids

    def damage(self, sql: str, *parameters: Any) -> None:
        """Change the database behind the MDS's back; `{name}` stands for a fid."""
        self.world.mds.mds.mdt.store.writer.execute(sql.format(**self.fids), parameters)
        self.world.mds.mds.mdt.cache.clear()

    async def problems(self, **options: Any) -> list[Problem]:
        """What fsck finds."""
        options = {"grace_s": 0.0, **options}
        return list(await fsck(self.world.mds.mds, Fsck("test", **options)))

    def layout(self, name: str) -> Layout:
        """Where a file's objects are."""
        inode = self.world.mds.mds.journal.reading.need(self.fids[name])
        assert inode.layout is not None
        return inode.layout

    def object_path(self, name: str, number: int) -> Path:
        """Where an object is on the disk."""
        return self.path_of(self.layout(name).osts[number], self.fids[name], number)

    def path_of(self, ost: int, fid: int, number: int) -> Path:
        """Where an object would be."""
        target = next(target for oss in self.world.oss for target in oss.targets if target.label.index == ost)
        return Path(target.path_of(fid, number))


@asynccontextmanager
async def tree(directory: Path) -> AsyncGenerator[Tree]:
    async with cluster(directory) as world:
        vfs = await world.vfs()
        fids = {"root": ROOT}
        fids["small"] = await write_file(vfs, ROOT, b"small", b"hello")
        fids["big"] = await write_file(vfs, ROOT, b"big", CONTENTS)
        await settle(vfs.link(fids["big"], ROOT, b"other"))
        for name, parent in (("d", "root"), ("e", "d"), ("f", "e")):
            made = await settle(vfs.mkdir(fids[parent], name.encode(), 0o755, CRED))
            assert made.attr is not None
            fids[name] = made.attr.fid
        fids["deep"] = await write_file(vfs, fids["f"], b"deep", b"down here")
        fids["one"] = await write_file(vfs, fids["d"], b"one", b"")
        await settle(vfs.setxattr(fids["one"], b"nacre.layout", b"stripe_count=1 stripe_size=1048576", XattrFlag(0)))
        handle = await open_file(vfs, fids["one"], os.O_WRONLY)
        await settle(vfs.write(handle, 0, memoryview(CONTENTS)))
        await close(vfs, handle)
        link = await settle(vfs.symlink(ROOT, b"link", b"target", CRED))
        assert link.attr is not None
        fids["link"] = link.attr.fid
        await settle(vfs.setxattr(fids["small"], b"user.x", b"y", XattrFlag(0)))
        await vfs.session.mds.call(SetLayout(fids["e"], LayoutSpec(stripe_count=2)))
        await quiet(vfs)
        await vfs.close()
        world.clients.clear()
        made_tree = Tree(world, vfs, fids)
        assert await made_tree.problems() == []
        yield made_tree


TREE_DAMAGE = [
    ("dangling-name", "DELETE FROM inode WHERE fid = {small}"),
    ("name-in-no-directory", "UPDATE dentry SET parent = {small} WHERE fid = {link}"),
    ("name-in-no-directory", "DELETE FROM inode WHERE fid = {e}"),
    ("link-count", "UPDATE inode SET nlink = 1 WHERE fid = {big}"),
    ("link-count", "DELETE FROM dentry WHERE fid = {big}"),
    ("directory-links", "UPDATE inode SET nlink = 2 WHERE fid = {d}"),
    ("entry-count", "UPDATE inode SET entries = 7 WHERE fid = {d}"),
    ("lost-directory", "UPDATE inode SET parent = 1 WHERE fid = {e}"),
    ("lost-directory", "DELETE FROM dentry WHERE fid = {e}"),
    ("directory-names", "UPDATE dentry SET fid = {d} WHERE fid = {link}"),
    ("self-parent", "UPDATE inode SET parent = {e} WHERE fid = {e}"),
    ("parent-of-file", "UPDATE inode SET parent = 1 WHERE fid = {small}"),
    ("unreachable", "UPDATE dentry SET parent = {e} WHERE fid = {d}"),
    ("orphan-inode", "UPDATE inode SET nlink = 0 WHERE fid = {small}"),
    ("inline-flags", "UPDATE inode SET flags = flags & ~2 WHERE fid = {small}"),
    ("inline-size", "UPDATE inode SET size = 2 WHERE fid = {small}"),
    ("target-missing", "DELETE FROM inline WHERE fid = {link}"),
    ("inline-not-file", "UPDATE inode SET flags = flags | 2 WHERE fid = {d}"),
    ("layout-presence", "UPDATE inode SET layout = NULL WHERE fid = {small}"),
    ("layout-presence", "UPDATE inode SET layout = NULL WHERE fid = {one}"),
    ("default-layout-flag", "UPDATE inode SET flags = flags & ~4 WHERE fid = {e}"),
    ("xattr-flag", "DELETE FROM xattr"),
    ("xattrs-without-inode", "UPDATE xattr SET fid = 9999"),
    ("open-without-session", "INSERT INTO open (session, fid, mode) VALUES (9999, {small}, 1)"),
    ("open-without-inode", "INSERT INTO open (session, fid, mode) VALUES (1, 9999, 1)"),
    ("destroyed-file", "INSERT INTO destroy SELECT fid, layout FROM inode WHERE fid = {big}"),
    ("negative-size", "UPDATE inode SET size = -1 WHERE fid = {big}"),
    ("archived-flag", "UPDATE inode SET flags = flags | 64 WHERE fid = {small}"),
    ("copied-flag", "UPDATE inode SET flags = flags | 256 WHERE fid = {small}"),
    (
        "copy-place",
        "INSERT INTO hsm SELECT fid, 9, 0, '', data_version, 0, '', 0, x'', x'', '', 1, 0, 0 FROM inode"
        " WHERE fid = {one}; UPDATE inode SET flags = flags | 320 WHERE fid = {one}",
    ),
    ("writer-without-session", "INSERT INTO mirror_writer (session, fid) VALUES (9999, {small})"),
    ("fid-not-given", "UPDATE mdt SET next_counter = 17"),
    ("usage-wrong", "UPDATE usage SET inodes = inodes + 1"),
]


@pytest.mark.parametrize(("kind", "damage"), TREE_DAMAGE)
async def test_damage_of_the_tree_is_found_and_mended(tmp_path: Path, kind: str, damage: str) -> None:
    async with tree(tmp_path) as made:
        for statement in damage.split("; "):
            made.damage(statement)
        found = await made.problems()
        assert kind in {problem.kind for problem in found}, found
        assert all(problem.repair is Repair.POSSIBLE for problem in found), found
        assert {problem.kind for problem in await made.problems()} == {problem.kind for problem in found}
        mended = await made.problems(repair=True)
        assert all(problem.repair is Repair.MENDED for problem in mended), mended
        assert await made.problems() == []
        assert check(made.world.mds.mds.mdt.store) == []
        await made.world.restart_mds()
        for oss in made.world.oss:
            await oss.registered.wait()
        assert await made.problems() == []


async def test_what_is_unreachable_is_found_in_lost_found(tmp_path: Path) -> None:
    """A circle of directories, with a tree below it."""
    async with tree(tmp_path) as made:
        made.damage("UPDATE dentry SET parent = {f} WHERE fid = {d}")
        made.damage("UPDATE inode SET parent = {f} WHERE fid = {d}")
        mended = await made.problems(repair=True)
        assert all(problem.repair is Repair.MENDED for problem in mended), mended
        vfs = await made.world.vfs()
        found = await settle(vfs.lookup(ROOT, b"lost+found"))
        assert found.attr is not None
        assert await names(vfs, found.attr.fid) == [b"#%x" % made.fids["d"]]
        assert await read_file(vfs, made.fids["f"], b"deep") == b"down here"


async def test_contents_without_an_inode_become_files_in_lost_found(tmp_path: Path) -> None:
    """Inline contents, and the object of a file of one stripe, byte for byte; they can be written, too."""
    async with tree(tmp_path) as made:
        made.damage("DELETE FROM inode WHERE fid = {small}")
        made.damage("DELETE FROM inode WHERE fid = {one}")
        found = await made.problems(repair=True)
        assert {"orphan-objects", "inline-without-inode"} <= {problem.kind for problem in found}
        assert all(problem.repair is Repair.MENDED for problem in found), found
        vfs = await made.world.vfs()
        place = await settle(vfs.lookup(ROOT, b"lost+found"))
        assert place.attr is not None
        fid = place.attr.fid
        assert await read_file(vfs, fid, b"#%x" % made.fids["small"]) == b"hello"
        assert await read_file(vfs, fid, b"#%x" % made.fids["one"]) == CONTENTS
        handle = await open_file(vfs, made.fids["one"], os.O_WRONLY)
        await settle(vfs.write(handle, 0, memoryview(b"new")))
        await close(vfs, handle)
        assert await read_file(await made.world.vfs(), fid, b"#%x" % made.fids["one"]) == b"new" + CONTENTS[3:]
        await vfs.close()
        made.world.clients.remove(vfs)
        assert await made.problems() == []


async def test_orphans_of_a_striped_file_are_destroyed_when_that_is_asked_for(tmp_path: Path) -> None:
    async with tree(tmp_path) as made:
        paths = [made.object_path("big", 0), made.object_path("big", 1)]
        made.damage("DELETE FROM dentry WHERE fid = {big}")
        made.damage("UPDATE inode SET entries = entries - 2 WHERE fid = 1")
        made.damage("DELETE FROM inode WHERE fid = {big}")
        made.damage("UPDATE usage SET inodes = inodes - 1")
        found = [problem for problem in await made.problems(repair=True) if problem.kind == "orphan-objects"]
        assert [problem.repair for problem in found] == [Repair.LEFT]
        assert all(path.exists() for path in paths)
        found = await made.problems(repair=True, destroy_orphans=True)
        assert [(problem.kind, problem.repair) for problem in found] == [("orphan-objects", Repair.MENDED)]
        async with asyncio.timeout(20):
            while any(path.exists() for path in paths):
                await asyncio.sleep(0.02)
        assert await made.problems() == []


async def test_a_file_that_a_dead_writer_left_too_short_is_as_long_as_its_objects(tmp_path: Path) -> None:
    async with tree(tmp_path) as made:
        made.damage("UPDATE inode SET size = 1000 WHERE fid = {big}")
        found = await made.problems(repair=True)
        assert [(problem.kind, problem.repair) for problem in found] == [("size-short", Repair.MENDED)]
        assert await read_file(await made.world.vfs(), ROOT, b"big") == CONTENTS


async def test_allocation_is_counted_again(tmp_path: Path) -> None:
    async with tree(tmp_path) as made:
        made.damage("UPDATE inode SET blocks = blocks + 10000 WHERE fid = {one}")
        made.damage("UPDATE usage SET bytes = bytes + 5120000")
        found = await made.problems(repair=True)
        assert [(problem.kind, problem.repair) for problem in found] == [("blocks-wrong", Repair.MENDED)]
        assert await made.problems() == []


async def test_objects_where_none_should_be_are_destroyed(tmp_path: Path) -> None:
    """Of an inline file, and at an OST that the layout does not name."""
    async with tree(tmp_path) as made:
        spilled = made.path_of(made.layout("small").osts[0], made.fids["small"], 0)
        others = [ost for ost in range(4) if ost not in made.layout("one").osts]
        misplaced = made.path_of(others[0], made.fids["one"], 3)
        for path in (spilled, misplaced):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x" * 100)
        found = await made.problems(repair=True)
        assert {(problem.kind, problem.repair) for problem in found} == {
            ("leftover-objects", Repair.MENDED),
            ("misplaced-object", Repair.MENDED),
        }
        async with asyncio.timeout(20):
            while spilled.exists() or misplaced.exists():
                await asyncio.sleep(0.02)
        assert await made.problems() == []


async def stop_servers(made: Tree) -> list[int]:
    """Stop the OSSes cleanly; their numbers."""
    numbers = [int(oss.config.name.removeprefix("oss")) for oss in made.world.oss]
    for oss in made.world.oss:
        await oss.stop()
    made.world.oss.clear()
    return numbers


@pytest.mark.parametrize("how", ["missing", "short", "record"])
async def test_a_damaged_object_is_named_and_never_hidden(tmp_path: Path, how: str) -> None:
    async with tree(tmp_path) as made:
        path, ost = made.object_path("one", 0), made.layout("one").osts[0]
        numbers = await stop_servers(made)
        if how == "missing":
            path.unlink()
        elif how == "short":
            os.truncate(path, 1000)
        else:
            damage_record(made.world.ost_directory(ost // 2, ost % 2), made.fids["one"], 0)
        for number in numbers:
            await made.world.start_oss(number)
        for repair in (False, True):
            found = await made.problems(repair=repair)
            assert [(problem.kind, problem.repair) for problem in found] == [("damaged-object", Repair.LEFT)], found
            assert found[0].path == b"/d/one"


async def test_an_object_that_is_gone_with_its_record_is_missed(tmp_path: Path) -> None:
    async with tree(tmp_path) as made:
        target = next(t for oss in made.world.oss for t in oss.targets if t.label.index == made.layout("one").osts[0])
        await target.destroy([(made.fids["one"], 0)])
        found = await made.problems(repair=True)
        assert [(problem.kind, problem.repair) for problem in found] == [("object-missing", Repair.LEFT)]


def damage_record(ost: Path, fid: int, number: int) -> None:
    """Flip a bit in the index record of an object; the OST must not be in service."""
    key = fid.to_bytes(8, "big") + number.to_bytes(4, "big")
    with lmdb.open(str(ost / "index"), max_dbs=3, map_size=1 << 30) as env:
        objects = env.open_db(b"objects")
        with env.begin(write=True, db=objects) as txn:
            value = bytearray(txn.get(key) or b"")
            value[3] ^= 4
            txn.put(key, bytes(value))


async def test_a_check_of_a_part_sees_that_part_only(tmp_path: Path) -> None:
    async with tree(tmp_path) as made:
        made.damage("UPDATE inode SET nlink = 7 WHERE fid IN ({small}, {deep}, {big})")
        made.damage("UPDATE inode SET size = 1000 WHERE fid IN ({big}, {one})")
        found = await made.problems(fid=made.fids["d"], repair=True)
        assert {(problem.kind, problem.path) for problem in found} == {
            ("link-count", b"/d/e/f/deep"),
            ("size-short", b"/d/one"),
        }
        assert {problem.path for problem in await made.problems()} == {b"/small", b"/big"}


async def test_what_is_being_used_is_no_problem(tmp_path: Path) -> None:
    """Checks while two clients make, write, rename and remove: they find nothing, and change nothing."""
    async with tree(tmp_path) as made:
        one, other = await made.world.vfs(), await made.world.vfs()
        done = asyncio.Event()

        async def work(vfs: Vfs, own: bytes) -> int:
            count = 0
            while not done.is_set():
                name = b"%s%d" % (own, count % 7)
                fid = await write_file(vfs, made.fids["d"], name, os.urandom(50_000 + count % 5 * 30_000))
                handle = await open_file(vfs, fid, os.O_RDWR)
                await settle(vfs.write(handle, 200_000, memoryview(b"more" * 1000)))
                if count % 3 == 0:
                    await settle(vfs.unlink(made.fids["d"], name))
                    await settle(vfs.write(handle, 0, memoryview(b"unnamed" * 10_000)))
                elif count % 3 == 1:
                    await settle(vfs.setattr(fid, Changes(Set.SIZE, size=10)))
                    await settle(vfs.rename(made.fids["d"], name, ROOT, own + b"renamed", RenameFlag(0)))
                await close(vfs, handle)
                if count % 3 == 2:
                    await settle(vfs.unlink(made.fids["d"], name))
                count += 1
            return count

        tasks = [asyncio.create_task(work(vfs, own)) for vfs, own in ((one, b"a"), (other, b"b"))]
        try:
            found = [await made.problems(repair=True, grace_s=grace_s) for grace_s in (0.0, 30.0, 0.0, 30.0)]
        finally:
            done.set()
        counts = await asyncio.gather(*tasks)
        assert all(count > 3 for count in counts), counts
        assert found == [[], [], [], []]
        for vfs in (one, other):
            await quiet(vfs)
            await vfs.close()
            made.world.clients.remove(vfs)
        async with asyncio.timeout(20):
            while made.world.mds.mds.mdt.destructions(1) or made.world.mds.mds.mdt.intents:
                await asyncio.sleep(0.02)
        assert await made.problems() == []


async def test_an_ost_that_is_down_is_told_and_nothing_is_guessed(tmp_path: Path) -> None:
    async with tree(tmp_path) as made:
        stopped = made.world.oss.pop()
        await stopped.stop()
        job = FsckJob(made.world.mds.mds, Fsck("test", grace_s=0.0, repair=True))
        await job.run()
        report = job.report()
        assert report.ended
        assert len(report.unchecked) == 2
        assert job.problems == []
