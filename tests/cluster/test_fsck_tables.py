"""Damage of the tables beside the tree (links, warmup jobs, lifecycle rules, actions, copies) is found and mended."""

import asyncio
import json
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from nacrefs.client.vfs import Vfs
from nacrefs.common.wire import AddWarmup, ArchiveSpec, Fsck, GetWarmups, Problem, Repair
from nacrefs.mds.check import check, tree_findings
from nacrefs.mds.fsck.job import fsck
from nacrefs.mds.fsck.tables import TableMender
from tests.client.world import quiet
from tests.cluster.test_links import Bucket, Linked, linked

RULES = """
Rules:
- ID: cold
  Directory: /data
  Expiration: {Days: 3}
"""


class Tables:
    """A cluster with a link, a warmup job that is over, and a lifecycle rule."""

    def __init__(self, world: Linked, vfs: Vfs, names: dict[str, Any]) -> None:
        self.world = world
        self.vfs = vfs
        self.names = names

    def damage(self, sql: str) -> None:
        """Change the database behind the MDS's back."""
        for one in sql.format(**self.names).split(";"):
            self.world.mds.mds.mdt.store.writer.execute(one)
        self.world.mds.mds.mdt.cache.clear()

    async def problems(self, **options: Any) -> list[Problem]:
        """What fsck finds."""
        return list(await fsck(self.world.mds.mds, Fsck("test", grace_s=0.0, **options)))

    def findings(self) -> set[str]:
        """The kinds of what is wrong with the tables now."""
        mds = self.world.mds.mds
        return {finding.kind for finding in (*tree_findings(mds.mdt.store), *TableMender(mds).lost_actions())}

    async def restart(self) -> None:
        """Stop the MDS and start it over the same database."""
        await self.world.restart_mds()
        for oss in self.world.oss:
            await oss.registered.wait()
        async with asyncio.timeout(30):
            while self.world.mds.mds.grace.running:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def tables(directory: Path) -> AsyncGenerator[Tables]:
    (directory / "archive").mkdir()
    spec = ArchiveSpec(0, "", "dir", f"file://{directory}/archive")
    async with linked(Bucket(spec, None, directory / "archive"), directory) as world:
        for name in ("a", "b", "d/c"):
            world.bucket.put(name, os.urandom(1000))
        vfs = await world.vfs()
        report = await world.link(vfs)
        mds = world.mds.mds
        await mds.lifecycle.put(RULES, "test", False, False)
        job = json.loads((await vfs.session.mds.call(AddWarmup((world.directory_fid,), verb="check"))).report)["id"]
        await mds.warmups.need(job).ended.wait()
        fid = (await world.at(vfs, "a")).fid
        await quiet(vfs)
        made = Tables(world, vfs, {"link": report["id"], "job": job, "a": fid, "data": world.directory_fid})
        assert await made.problems() == []
        yield made


DAMAGE = [
    ("link-key-without-link", "INSERT INTO link_object VALUES (77, x'61', 0, 'no file')"),
    ("link-key-without-link", "INSERT INTO link_object VALUES (77, x'61', {a}, '')"),
    ("link-log-without-link", "INSERT INTO link_log VALUES (77, 1, 2, 'hello')"),
    ("link-mark-without-link", "INSERT INTO link_dirty VALUES ({a}, 77)"),
    ("link-key-wrong", "UPDATE link_object SET key = x'7a' WHERE fid = {a}"),
    ("link-key-wrong", "INSERT INTO link_object VALUES ({link}, x'7a', 99999, '')"),
    ("link-key-missing", "DELETE FROM link_object WHERE fid = {a}"),
    ("link-without-archive", "DELETE FROM archive WHERE id = {link}"),
    ("link-without-archive", "UPDATE archive SET gone = 1 WHERE id = {link}"),
    ("link-state", "UPDATE link SET state = 'asleep'"),
    ("link-unreadable", "UPDATE link SET spec = x'00'"),
    ("link-unreadable", "UPDATE link SET counts = '{{'"),
    ("warmup-items-left", "INSERT INTO warmup_item VALUES ({job}, 1, {a})"),
    ("warmup-items-left", "INSERT INTO warmup_item VALUES (777, 1, {a})"),
    ("warmup-circle", "UPDATE warmup SET \"after\" = id, state = 'waiting'"),
    ("warmup-state", "UPDATE warmup SET state = 'lost'"),
    ("warmup-unreadable", "UPDATE warmup SET counts = 'x'"),
    ("warmup-unreadable", "INSERT INTO warmup VALUES (55, 'warm', 'waiting', 0, 1, 0, 1, 1, 'x', 0)"),
    ("rule-state", "UPDATE rule SET state = 'tired'"),
    ("rule-unreadable", "UPDATE rule SET document = '{{}}'"),
    ("rule-unreadable", "UPDATE rule SET counts = 'x'"),
    ("rule-unreadable", "INSERT INTO rule VALUES (' watermarks', -1, '[', 'active', '', 0, '{{}}')"),
    ("action-state", "INSERT INTO hsm_action VALUES (9, {a}, 3, 1, 0, '', 'LOST', 0, 0, 1, 1, '', '', '', '')"),
    ("action-lost", "INSERT INTO hsm_action VALUES (10, {a}, 3, 1, 0, '', 'STARTED', 1, 0, 1, 1, '', '', '', '')"),
    ("deletion-without-archive", "INSERT INTO hsm_gone VALUES (88, 'key')"),
    (
        "copy-to-be-deleted",
        "INSERT INTO archive VALUES (5, 'five', x'00', 1); INSERT INTO hsm_gone VALUES (5, 'mine');"
        " UPDATE hsm SET archive = 5, \"key\" = 'mine' WHERE fid = {a}; DELETE FROM link_object WHERE fid = {a}",
    ),
]


@pytest.mark.parametrize("part", range(3))
async def test_damage_is_found_and_mended(tmp_path: Path, part: int) -> None:
    async with tables(tmp_path) as made:
        for kind, damage in DAMAGE[part::3]:
            made.damage(damage)
            found = made.findings()
            assert kind in found, (damage, found)
            mended = await made.problems(repair=True)
            assert {problem.kind for problem in mended} == found, (damage, mended)
            assert all(problem.repair is Repair.MENDED and problem.mend for problem in mended), (damage, mended)
            assert not made.findings(), damage
        await made.restart()
        assert await made.problems() == []


AT_REST = [
    ("link-state", "UPDATE link SET state = 'asleep'"),
    ("link-unreadable", "UPDATE link SET spec = x'00'"),
    ("warmup-circle", "UPDATE warmup SET \"after\" = id, state = 'waiting'"),
    ("warmup-state", "UPDATE warmup SET state = 'lost'"),
    ("warmup-unreadable", "UPDATE warmup SET counts = 'x'"),
    ("rule-state", "UPDATE rule SET state = 'tired'"),
    ("rule-unreadable", "UPDATE rule SET document = '{{}}'"),
]


async def test_mds_starts_over_damage_and_it_is_mended_then(tmp_path: Path) -> None:
    async with tables(tmp_path) as made:
        for kind, damage in AT_REST:
            made.damage(damage)
            await made.restart()
            assert kind in made.findings(), damage
            mended = await made.problems(repair=True)
            assert all(problem.repair is Repair.MENDED for problem in mended), (damage, mended)
            assert not made.findings(), damage
        await made.restart()
        assert await made.problems() == []
        assert (await made.world.report(made.vfs))["state"] == "paused"


async def test_link_is_the_same_after_its_record_was_mended(tmp_path: Path) -> None:
    async with tables(tmp_path) as made:
        before = await made.world.report(made.vfs)
        made.damage("UPDATE link SET spec = x'00', state = 'asleep', counts = '?'")
        await made.problems(repair=True)
        await made.restart()
        assert await made.problems() == []
        after = await made.world.report(made.vfs)
        same = ("id", "fid", "state", "imports", "auto_import", "url")
        assert {name: after.get(name) for name in same} == {name: before.get(name) for name in same}


async def test_two_links_of_one_directory_and_two_files_of_one_copy_are_told_and_left(tmp_path: Path) -> None:
    async with tables(tmp_path) as made:
        made.damage(
            "INSERT INTO archive SELECT 66, 'x', spec, 0 FROM archive WHERE id = {link};"
            " INSERT INTO link SELECT 66, fid, spec, 'paused', 0, counts, '' FROM link;"
            " INSERT INTO archive VALUES (5, 'five', x'00', 1);"
            " UPDATE hsm SET archive = 5, \"key\" = 'mine'; DELETE FROM link_object"
        )
        found = await made.problems(repair=True)
        left = {problem.kind: problem for problem in found if problem.repair is Repair.LEFT}
        assert left.keys() == {"link-twice", "copy-twice"}
        assert "nacre link rm" in left["link-twice"].mend
        made.damage("DELETE FROM link WHERE id = 66; DELETE FROM archive WHERE id = 66; DELETE FROM hsm_gone")
        made.damage('UPDATE hsm SET "key" = fid')
        assert check(made.world.mds.mds.mdt.store) == []


async def test_job_that_was_being_filled_when_the_mds_stopped_is_over_for_good(tmp_path: Path) -> None:
    async with tables(tmp_path) as made:
        call = made.vfs.session.mds.call
        fid = made.world.directory_fid
        job = json.loads((await call(AddWarmup((fid,), more=True))).report)["id"]
        for _ in range(2):
            await made.restart()
            (report,) = json.loads((await call(GetWarmups(job))).report)
            assert report["state"] == "canceled"
            assert await made.problems() == []
        store = made.world.mds.mds.mdt.store
        assert store.fetchall("SELECT state FROM warmup WHERE id = ?", (job,)) == [("canceled",)]
        assert store.fetchall("SELECT * FROM warmup_item") == []
