"""Lifecycle rules over a real cluster: files go to an archive, are released and deleted when it is time."""

import asyncio
import json
import os
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from nacrefs.client.filesystem import Changes
from nacrefs.client.vfs import Vfs
from nacrefs.common.answer import settle
from nacrefs.common.config import Duration
from nacrefs.common.wire import (
    ArchiveSpec,
    AskLifecycle,
    Attr,
    HsmFlag,
    RemoveRule,
    RunRule,
    Set,
    SetArchive,
    SetAttr,
    SetHsm,
    SetLifecycle,
    SetPool,
    SetRuleState,
    XattrFlag,
)
from nacrefs.mds.check import check
from nacrefs.mds.config import OstConfig
from nacrefs.mds.lifecycle.engine import Lifecycle
from tests.client.world import CRED, World, close, cluster, open_file, read_file, write_file

ROOT = 1
DAY_S = 86400


def attr_of(found: Any) -> Attr:
    assert found.attr is not None
    return found.attr  # type: ignore[no-any-return]


class Ruled(World):
    """A cluster with an archive that is a directory."""

    vfs_one: Vfs
    vfs_two: Vfs

    @property
    def rules(self) -> Lifecycle:
        return self.mds.mds.lifecycle

    async def ask(self, request: Any) -> Any:
        answer = await self.vfs_one.session.mds.call(request)
        return json.loads(answer.report) if hasattr(answer, "report") else answer

    async def put(self, *rules: dict[str, Any], **more: Any) -> Any:
        return await self.ask(SetLifecycle(json.dumps({"Rules": rules, **more}), "test"))

    async def run(self, rule: str) -> dict[str, Any]:
        """Run a rule to its end; the tally."""
        await self.ask(RunRule(rule))
        return await self.ran(rule)

    async def ran(self, rule: str) -> dict[str, Any]:
        async with asyncio.timeout(50):
            while rule in self.rules.runs:
                await asyncio.sleep(0.01)
        (one,) = [one for one in (await self.ask(AskLifecycle("status")))["rules"] if one["id"] == rule]
        last: dict[str, Any] = one["last"]
        return last

    async def mkdir(self, name: bytes, parent: int = ROOT) -> int:
        return attr_of(await settle(self.vfs_one.mkdir(parent, name, 0o755, CRED))).fid

    async def file(self, name: bytes, parent: int = ROOT, size: int = 100_000) -> int:
        """A new file, whose size the MDS knows."""
        fid = await write_file(self.vfs_one, parent, name, os.urandom(size))
        assert attr_of(await settle(self.vfs_two.getattr(fid))).size == size
        return fid

    async def keep(self, *rules: dict[str, Any], **marks: Any) -> None:
        """Put watermarks, and release once what must go; the MDS does not do that by itself meanwhile."""
        self.rules.keeper.last_ns = self.mds.mds.clock.now_ns()
        await self.put(*rules, Watermarks=marks)
        await self.rules.keeper.keep()

    def flags(self, fid: int) -> int:
        return self.mds.mds.hsm.state(fid).flags

    async def aged(self, fid: int, seconds: float, accessed_s: float | None = None) -> None:
        """It was last written so long ago (and last read: then, or `accessed_s` ago)."""
        now_ns = self.mds.mds.clock.now_ns()
        read_s = seconds if accessed_s is None else accessed_s
        changes = Changes(
            Set.ATIME | Set.MTIME, atime_ns=now_ns - round(read_s * 1e9), mtime_ns=now_ns - round(seconds * 1e9)
        )
        await settle(self.vfs_one.setattr(fid, changes))


@pytest.fixture
async def ruled(tmp_path: Path, mdt_url: str | None) -> AsyncGenerator[Ruled]:
    (tmp_path / "archive").mkdir()
    (tmp_path / "c").mkdir()
    base = cluster(tmp_path / "c", database=mdt_url)
    # No heartbeats: the OSTs share a disk, with the archive and with others, and how full it is must not change.
    base.mds_config = replace(base.mds_config, ost=OstConfig(heartbeat_s=Duration(300)))
    base.__class__ = Ruled
    made: Ruled = base  # type: ignore[assignment]
    async with made:
        made.vfs_one, made.vfs_two = await made.vfs(), await made.vfs()
        await made.vfs_one.session.mds.call(SetArchive(ArchiveSpec(0, "cold", "dir", f"file://{tmp_path}/archive")))
        yield made
        assert check(made.mds.mds.mdt.store) == []


RULE = {
    "ID": "tidy",
    "Directory": "/data",
    "Transitions": [{"DaysAfterModification": "0s", "Archive": "cold"}],
    "Release": {"DaysAfterModification": "0s"},
}


ARCHIVING = {name: value for name, value in RULE.items() if name != "Release"}


@pytest.mark.both_engines
async def test_a_rule_archives_and_then_releases_what_is_below_its_directory(ruled: Ruled) -> None:
    data, other = await ruled.mkdir(b"data"), await ruled.mkdir(b"other")
    deep = await ruled.mkdir(b"deep", data)
    inside = [await ruled.file(b"one", data), await ruled.file(b"two", deep)]
    outside = await ruled.file(b"three", other)
    assert await ruled.put(RULE) == {"rules": 1, "warnings": []}
    first = await ruled.run("tidy")
    assert first["archived"] == {"files": 2, "bytes": 200_000}
    assert all(ruled.flags(fid) == HsmFlag.EXISTS | HsmFlag.ARCHIVED for fid in inside)
    second = await ruled.run("tidy")
    assert second["released"] == {"files": 2, "bytes": 200_000}
    assert second["archived"]["files"] == 0
    assert all(ruled.flags(fid) & HsmFlag.RELEASED for fid in inside)
    assert ruled.flags(outside) == 0
    third = await ruled.run("tidy")
    assert (third["matched"], third["failed"]) == (0, 0)
    assert len(await read_file(ruled.vfs_one, deep, b"two")) == 100_000


async def test_age_counts_from_the_last_access_or_from_the_last_modification(ruled: Ruled) -> None:
    data = await ruled.mkdir(b"data")
    old, read_lately, fresh = [await ruled.file(name, data) for name in (b"old", b"read", b"fresh")]
    await ruled.aged(old, 40 * DAY_S)
    await ruled.aged(read_lately, 40 * DAY_S, accessed_s=DAY_S)
    await ruled.put({**RULE, "Transitions": [{"DaysAfterLastAccess": 30, "Archive": "cold"}]})
    await ruled.run("tidy")
    assert [ruled.flags(fid) & HsmFlag.ARCHIVED != 0 for fid in (old, read_lately, fresh)] == [True, False, False]
    await ruled.put({**RULE, "Transitions": [{"DaysAfterModification": 30, "Archive": "cold"}]})
    await ruled.run("tidy")
    assert [ruled.flags(fid) & HsmFlag.ARCHIVED != 0 for fid in (old, read_lately, fresh)] == [True, True, False]


async def test_what_was_written_since_it_was_archived_is_archived_again(ruled: Ruled) -> None:
    data = await ruled.mkdir(b"data")
    fid = await ruled.file(b"file", data)
    await ruled.put({**RULE, "Release": {"DaysAfterModification": 1}})
    assert (await ruled.run("tidy"))["archived"]["files"] == 1
    assert (await ruled.run("tidy"))["matched"] == 0
    await write_file(ruled.vfs_one, data, b"new", b"x" * 70_000)
    handle = await open_file(ruled.vfs_one, fid, os.O_WRONLY)
    await settle(ruled.vfs_one.write(handle, 0, memoryview(b"changed")))
    await close(ruled.vfs_one, handle)
    assert (await ruled.run("tidy"))["archived"]["files"] == 2
    assert ruled.flags(fid) == HsmFlag.EXISTS | HsmFlag.ARCHIVED


async def test_the_rule_of_the_nearest_directory_wins(ruled: Ruled) -> None:
    data = await ruled.mkdir(b"data")
    inner = await ruled.mkdir(b"inner", data)
    outside, inside = await ruled.file(b"one", data), await ruled.file(b"two", inner)
    await ruled.put(RULE, {**RULE, "ID": "inner", "Directory": "/data/inner"})
    await ruled.run("tidy")
    assert ruled.flags(outside) & HsmFlag.ARCHIVED
    assert not ruled.flags(inside) & HsmFlag.ARCHIVED
    await ruled.run("inner")
    assert ruled.flags(inside) & HsmFlag.ARCHIVED


async def test_filters_choose_by_prefix_pattern_size_owner_and_attribute(ruled: Ruled) -> None:
    data = await ruled.mkdir(b"data")
    fids = {
        name: await ruled.file(name, data, size)
        for name, size in (
            (b"run-1.pt", 200_000), (b"run-2.txt", 200_000), (b"run-3.pt", 100), (b"other.pt", 200_000),
            (b"run-kept.pt", 200_000), (b"run-owned.pt", 200_000),
        )
    }  # fmt: skip
    await settle(ruled.vfs_one.setxattr(fids[b"run-kept.pt"], b"user.keep", b"1", XattrFlag(0)))
    await ruled.vfs_one.session.mds.call(SetAttr(fids[b"run-owned.pt"], Set.UID, uid=4321))
    chosen = {
        "Prefix": "run-",
        "NamePattern": "*.pt",
        "ObjectSizeGreaterThan": 100_000,
        "Owner": str(os.geteuid()),
        "Xattr": {"user.keep": "absent"},
    }
    await ruled.put({**RULE, "Filter": chosen})
    assert (await ruled.run("tidy"))["archived"]["files"] == 1
    assert [name for name, fid in fids.items() if ruled.flags(fid)] == [b"run-1.pt"]


async def test_expired_files_lose_the_names_that_the_rule_is_about(ruled: Ruled) -> None:
    data, other = await ruled.mkdir(b"data"), await ruled.mkdir(b"other")
    fid, fresh = await ruled.file(b"old", data), await ruled.file(b"fresh", data)
    await settle(ruled.vfs_one.link(fid, other, b"kept"))
    await settle(ruled.vfs_one.link(fid, data, b"second"))
    await ruled.aged(fid, 100 * DAY_S)
    await ruled.put({"ID": "tidy", "Directory": "/data", "Expiration": {"DaysAfterModification": 90}})
    assert (await ruled.run("tidy"))["expired"]["files"] == 2
    vfs = await ruled.vfs()
    for name in (b"old", b"second"):
        assert (await settle(vfs.lookup(data, name))).attr is None
    assert attr_of(await settle(vfs.lookup(other, b"kept"))).nlink == 1
    assert attr_of(await settle(vfs.lookup(data, b"fresh"))).fid == fresh


async def test_a_file_that_is_used_between_queue_and_action_is_left_alone(ruled: Ruled) -> None:
    data = await ruled.mkdir(b"data")
    fid = await ruled.file(b"file", data)
    await ruled.aged(fid, 40 * DAY_S)
    await ruled.put({**RULE, "Transitions": [{"DaysAfterLastAccess": 30, "Archive": "cold"}]})
    running = ruled.mds.mds.hsm.hold()
    await ruled.ask(RunRule("tidy"))
    async with asyncio.timeout(20):
        while fid not in ruled.mds.mds.hsm.active:
            await asyncio.sleep(0.01)
    await ruled.aged(fid, DAY_S)
    running()
    last = await ruled.ran("tidy")
    assert (last["archived"]["files"], last["left"]) == (0, 1)
    assert list(last["reasons"]) == ["it is not archived yet"]
    assert ruled.flags(fid) == 0


@pytest.mark.both_engines
async def test_what_a_run_had_queued_goes_on_after_a_restart_and_is_judged_again(ruled: Ruled) -> None:
    data = await ruled.mkdir(b"data")
    cold, used = await ruled.file(b"cold", data), await ruled.file(b"used", data)
    for fid in (cold, used):
        await ruled.aged(fid, 40 * DAY_S)
    await ruled.put({**ARCHIVING, "Transitions": [{"DaysAfterLastAccess": 30, "Archive": "cold"}]})
    ruled.mds.mds.hsm.hold()
    await ruled.ask(RunRule("tidy"))
    async with asyncio.timeout(20):
        while len(ruled.mds.mds.hsm.active) < 2:
            await asyncio.sleep(0.01)
    await ruled.aged(used, DAY_S)
    await ruled.restart_mds()
    async with asyncio.timeout(40):
        while ruled.mds.mds.hsm.active:
            await asyncio.sleep(0.05)
    assert (ruled.flags(cold), ruled.flags(used)) == (HsmFlag.EXISTS | HsmFlag.ARCHIVED, 0)


async def test_limits_end_a_run_early_and_the_next_goes_on(ruled: Ruled) -> None:
    data = await ruled.mkdir(b"data")
    for number in range(5):
        await ruled.file(b"file%d" % number, data, 70_000)
    await ruled.put({**ARCHIVING, "Limits": {"MaxFiles": 2}})
    last = await ruled.run("tidy")
    assert (last["archived"]["files"], last["problem"]) == (2, "MaxFiles (2) was reached")
    await ruled.put({**ARCHIVING, "Limits": {"MaxBytes": 150_000}})
    assert (await ruled.run("tidy"))["archived"]["files"] == 2
    await ruled.put(ARCHIVING)
    assert (await ruled.run("tidy"))["archived"]["files"] == 1


async def test_a_dry_run_says_what_it_would_do_at_a_time_and_does_nothing(ruled: Ruled) -> None:
    data = await ruled.mkdir(b"data")
    fid = await ruled.file(b"file", data)
    await ruled.aged(fid, DAY_S)
    await ruled.put({**RULE, "Transitions": [{"DaysAfterLastAccess": 30, "Archive": "cold"}]})
    assert (await ruled.ask(RunRule("tidy", True)))["files"] == []
    later_ns = ruled.mds.mds.clock.now_ns() + 31 * DAY_S * 10**9
    answer = await ruled.ask(RunRule("tidy", True, later_ns))
    (one,) = answer["files"]
    assert (one["path"], one["act"], one["archive"]) == ("/data/file", "archive", "cold")
    assert answer["archived"] == {"files": 1, "bytes": 100_000}
    assert ruled.flags(fid) == 0
    assert (await ruled.ask(AskLifecycle("status")))["rules"][0]["last_run_ns"] == 0


async def test_explain_names_the_rule_the_time_and_the_reason(ruled: Ruled) -> None:
    data = await ruled.mkdir(b"data")
    fid = await ruled.file(b"file", data)
    outside = await ruled.file(b"outside")
    await ruled.aged(fid, 10 * DAY_S)
    await ruled.put(
        {**RULE, "Transitions": [{"DaysAfterLastAccess": 30, "Archive": "cold"}], "Filter": {"Prefix": "fi"}},
        {**RULE, "ID": "never", "Filter": {"Prefix": "x"}},
    )
    answer = await ruled.ask(AskLifecycle("explain", fid))
    tidy, never = answer["names"][0]["rules"]
    assert answer["names"][0]["path"] == "/data/file"
    assert (tidy["rule"], tidy["act"], tidy["reason"]) == ("tidy", None, "it is not archived yet")
    assert tidy["at_ns"] == answer["last_use_ns"] + 30 * DAY_S * 10**9
    assert [(step["act"], step["due"]) for step in tidy["steps"]] == [("archive", False), ("release", True)]
    assert (never["act"], never["reason"]) == (None, "its path does not begin with 'x'")
    assert (await ruled.ask(AskLifecycle("explain", outside)))["names"][0]["rules"] == []


async def test_a_rule_whose_actions_fail_is_suspended_and_says_why(ruled: Ruled, tmp_path: Path) -> None:
    data = await ruled.mkdir(b"data")
    for number in range(30):
        await ruled.file(b"file%d" % number, data, 1000)
    await ruled.put({**ARCHIVING, "Limits": {"SuspendOnErrorPercent": 50}})
    (tmp_path / "archive").rename(tmp_path / "gone")
    (tmp_path / "archive").write_text("this is no directory")
    last = await ruled.run("tidy")
    assert last["failed"] >= 20
    (one,) = (await ruled.ask(AskLifecycle("status")))["rules"]
    assert one["state"] == "suspended"
    assert "actions failed, the last because" in one["reason"]
    assert one["next_run_ns"] == 0
    (tmp_path / "archive").unlink()
    (tmp_path / "gone").rename(tmp_path / "archive")
    await ruled.ask(SetRuleState("tidy", "active"))
    archived = 0
    while (last := await ruled.run("tidy"))["matched"]:
        assert last["failed"] == 0
        archived += last["archived"]["files"]
    assert archived == 30


async def test_rules_run_on_schedule_and_not_while_they_are_paused(ruled: Ruled) -> None:
    data = await ruled.mkdir(b"data")
    fid = await ruled.file(b"file", data)
    await ruled.put({**RULE, "Schedule": "0 3 1 1 *"})
    await ruled.ask(SetRuleState("tidy", "paused", "because"))
    ruled.rules.need("tidy").counts.put_ns -= 400 * DAY_S * 10**9  # it was put some time ago
    ruled.rules.tick()
    assert not ruled.rules.runs
    with pytest.raises(OSError, match="rule tidy is paused"):
        await ruled.ask(RunRule("tidy"))
    await ruled.ask(SetRuleState("tidy", "active"))
    ruled.rules.tick()
    assert (await ruled.ran("tidy"))["archived"]["files"] == 1
    assert ruled.flags(fid) & HsmFlag.ARCHIVED
    ruled.rules.tick()
    assert not ruled.rules.runs


async def test_rules_and_their_counts_survive_a_restart(ruled: Ruled) -> None:
    data = await ruled.mkdir(b"data")
    await ruled.file(b"file", data)
    marks = {"High": 90, "Low": 80, "Every": "30s"}
    await ruled.put(RULE, {**RULE, "ID": "other"}, Watermarks=marks)
    await ruled.run("tidy")
    before = await ruled.ask(AskLifecycle("status")), await ruled.ask(AskLifecycle("rules"))
    assert before[1] == {"Rules": [RULE, {**RULE, "ID": "other"}], "Watermarks": marks}
    await ruled.restart_mds()
    after = await ruled.ask(AskLifecycle("status")), await ruled.ask(AskLifecycle("rules"))
    assert after[1] == before[1]
    assert after[0]["rules"] == before[0]["rules"]
    await ruled.put()
    assert await ruled.ask(AskLifecycle("rules")) == {"Rules": []}


async def test_a_rule_with_released_files_goes_only_if_it_is_said_what_becomes_of_them(ruled: Ruled) -> None:
    data = await ruled.mkdir(b"data")
    fid = await ruled.file(b"file", data)
    await ruled.put(RULE)
    await ruled.run("tidy")
    await ruled.run("tidy")
    assert ruled.flags(fid) & HsmFlag.RELEASED
    for request in (RemoveRule("tidy"), SetLifecycle('{"Rules": []}')):
        with pytest.raises(OSError, match="--recall brings them back first"):
            await ruled.ask(request)
    await ruled.ask(RemoveRule("tidy", recall=True))
    async with asyncio.timeout(50):
        while (await ruled.ask(AskLifecycle("status")))["rules"]:
            await asyncio.sleep(0.02)
    assert ruled.flags(fid) == HsmFlag.EXISTS | HsmFlag.ARCHIVED
    await ruled.put(RULE)
    await ruled.run("tidy")
    await ruled.ask(RemoveRule("tidy", keep=True))
    assert ruled.flags(fid) & HsmFlag.RELEASED


async def test_documents_with_mistakes_are_refused_as_a_whole(ruled: Ruled) -> None:
    await ruled.put(RULE)
    with pytest.raises(OSError, match="there is no archive 'nowhere'"):
        await ruled.put({**RULE, "Transitions": [{"Days": 1, "Archive": "nowhere"}]})
    with pytest.raises(OSError, match=r"test:1: Rules\[0\].Schedule"):
        await ruled.put({**RULE, "Schedule": "daily"})
    assert (await ruled.ask(AskLifecycle("rules")))["Rules"] == [RULE]
    answer = await ruled.put({**RULE, "Directory": "/nowhere"})
    assert answer["warnings"] == ["rule tidy: there is no directory '/nowhere'"]
    assert "there is no directory '/nowhere'" in (await ruled.run("tidy"))["problem"]


async def test_the_report_says_what_is_where_and_what_it_saves(ruled: Ruled) -> None:
    data = await ruled.mkdir(b"data")
    await ruled.file(b"file", data, 1 << 20)
    await ruled.put(RULE)
    await ruled.run("tidy")
    await ruled.run("tidy")
    report = await ruled.ask(AskLifecycle("report"))
    (place,) = report["places"]
    assert (place["archive"], place["storage_class"], place["files"], place["released"]) == ("cold", "STANDARD", 1, 1)
    assert report["released_bytes"] == 1 << 20
    assert place["saved"] == round((0.08 - 0.023) / 1024, 4)
    assert report["rules"][0]["total"]["archived"]["files"] == 1


async def test_full_osts_get_room_by_releasing_what_was_not_used_for_longest(ruled: Ruled) -> None:
    data = await ruled.mkdir(b"data")
    fids = [await ruled.file(b"file%d" % number, data, 300_000) for number in range(4)]
    for days, fid in enumerate(fids):
        await ruled.aged(fid, (10 - days) * DAY_S)
    await ruled.put(ARCHIVING)
    await ruled.run("tidy")
    await ruled.ask(SetHsm((fids[1],), int(HsmFlag.NORELEASE)))
    handle = await open_file(ruled.vfs_one, fids[2], os.O_WRONLY)
    await settle(ruled.vfs_one.write(handle, 0, memoryview(b"changed")))
    await close(ruled.vfs_one, handle)
    await ruled.keep(ARCHIVING, High=0, Low=0, Every="1s")
    assert [ruled.flags(fid) & HsmFlag.RELEASED != 0 for fid in fids] == [True, False, False, True]
    marks = (await ruled.ask(AskLifecycle("status")))["watermarks"]
    assert marks["released"] == 2
    assert "no more files could be released: archive more" in marks["problem"]
    assert marks["groups"][0]["name"] == "OST 0"


async def test_the_oldest_go_first_and_no_more_than_must(ruled: Ruled) -> None:
    data = await ruled.mkdir(b"data")
    fids = [await ruled.file(b"file%d" % number, data, 300_000) for number in range(4)]
    for fid, days in zip(fids, (3, 9, 1, 6), strict=True):
        await ruled.aged(fid, days * DAY_S)
    await ruled.put(ARCHIVING)
    await ruled.run("tidy")
    table = ruled.rules.keeper.table()
    used = {ost.index: ost.total_bytes - ost.free_bytes for ost in table}
    # What is on all OSTs together must shrink by about one file and a half.
    wanted = sum(used.values()) - 450_000
    total = sum(ost.total_bytes for ost in table)
    await ruled.vfs_one.session.mds.call(SetPool("all", tuple(used)))
    pools = {"all": {"High": 100 * wanted / total, "Low": 100 * wanted / total}}
    await ruled.keep(ARCHIVING, High=100, Low=100, Pools=pools)
    assert [ruled.flags(fid) & HsmFlag.RELEASED != 0 for fid in fids] == [False, True, False, True]
