"""Rules of an MDS on both engines: kept, run, and what is asked about them. (With archives: tests/cluster.)"""

import asyncio
import json
from typing import Any

import pytest

from nacrefs.common.wire import (
    AskLifecycle,
    Create,
    Lookup,
    Mkdir,
    Mode,
    RemoveRule,
    RunRule,
    Set,
    SetAttr,
    SetLifecycle,
)
from nacrefs.mds.lifecycle.indexes import BY_CHANGE, BY_USE, OSTS_BY_USE, RULE_INDEXES
from nacrefs.mds.lifecycle.run import Run
from tests.mds.served import Client, Served

ROOT = 1
DAY_NS = 86400 * 10**9
RULE: dict[str, Any] = {
    "ID": "old",
    "Directory": "/data",
    "Filter": {"NamePattern": "*.tmp"},
    "Expiration": {"DaysAfterModification": 30},
    "Schedule": "0 3 * * *",
}


async def file(client: Client, parent: int, name: bytes, mtime_ns: int) -> int:
    made = await client.call(Create(parent, name, 0o644, 0, 0, Mode.CLOSED))
    assert made.node is not None
    fid = made.node.attr.fid
    await client.call(SetAttr(fid, Set.ATIME | Set.MTIME, atime_ns=mtime_ns, mtime_ns=mtime_ns))
    return fid


async def ask(client: Client, what: str, fid: int = 0) -> Any:
    return json.loads((await client.call(AskLifecycle(what, fid))).report)


async def run(served: Served, client: Client, rule: str) -> Any:
    await client.call(RunRule(rule))
    async with asyncio.timeout(30):
        while rule in served.mds.lifecycle.runs:
            await asyncio.sleep(0.005)
    (one,) = (await ask(client, "status"))["rules"]
    return one["last"]


@pytest.fixture
async def client(served: Served) -> Client:
    await served.oss()
    return await served.client()


async def test_a_rule_deletes_what_is_old_and_nothing_else(served: Served, client: Client) -> None:
    data = await client.call(Mkdir(ROOT, b"data", 0o755, 0, 0))
    assert data.node is not None
    parent = data.node.attr.fid
    now_ns = served.mds.clock.now_ns()
    old_ns = now_ns - 40 * DAY_NS
    old = await file(client, parent, b"old.tmp", old_ns)
    for number in range(120):  # more than a page
        await file(client, parent, b"%d.tmp" % number, old_ns - number)
    await file(client, parent, b"young.tmp", now_ns)
    await file(client, parent, b"old.txt", old_ns)
    await file(client, ROOT, b"outside.tmp", old_ns)
    await client.call(SetLifecycle(json.dumps({"Rules": [RULE]})))
    explained = await ask(client, "explain", old)
    assert explained["names"][0]["rules"][0]["act"] == "expire"
    last = await run(served, client, "old")
    assert (last["expired"]["files"], last["failed"], last["left"]) == (121, 0, 0)
    names = (
        (parent, b"old.tmp", False), (parent, b"7.tmp", False), (parent, b"young.tmp", True),
        (parent, b"old.txt", True), (ROOT, b"outside.tmp", True),
    )  # fmt: skip
    for directory, name, there in names:
        assert ((await client.call(Lookup(directory, name))).node is not None) is there, name
    assert (await run(served, client, "old"))["matched"] == 0


async def test_rules_are_kept_with_their_counts_and_go_when_they_are_removed(served: Served, client: Client) -> None:
    marks = {"High": 90, "Low": 80}
    await client.call(Mkdir(ROOT, b"data", 0o755, 0, 0))
    await client.call(SetLifecycle(json.dumps({"Rules": [RULE], "Watermarks": marks})))
    await run(served, client, "old")
    store = served.mds.mdt.store
    rows = {row[0]: row for row in store.fetchall(store.statements.rules)}
    assert set(rows) == {"old", " watermarks"}
    assert json.loads(rows["old"][2]) == RULE
    assert json.loads(rows["old"][6])["last"]["ended_ns"] > 0
    assert await ask(client, "rules") == {"Rules": [RULE], "Watermarks": marks}
    assert (await ask(client, "report"))["places"] == []
    await client.call(RemoveRule("old"))
    await client.call(SetLifecycle('{"Rules": []}'))
    assert store.fetchall(store.statements.rules) == []


def indexes(served: Served) -> set[str]:
    """Those for rules that the database has."""
    store = served.mds.mdt.store
    if store.backend == "sqlite":
        rows = store.fetchall("SELECT name FROM sqlite_master WHERE type = 'index'")
    else:
        rows = store.fetchall("SELECT indexname FROM pg_indexes WHERE schemaname = current_schema()")
    return RULE_INDEXES.keys() & {row[0] for row in rows}


async def until(served: Served, wanted: set[str]) -> None:
    async with asyncio.timeout(30):
        while indexes(served) != wanted or served.mds.lifecycle.indexes.busy:
            await asyncio.sleep(0.01)


async def test_indexes_are_there_as_long_as_rules_need_them(served: Served, client: Client) -> None:
    marks = {"High": 90, "Low": 80}
    assert indexes(served) == set()
    await client.call(SetLifecycle(json.dumps({"Rules": [RULE]})))
    await until(served, {BY_CHANGE})
    parent = (await client.call(Mkdir(ROOT, b"data", 0o755, 0, 0))).node
    assert parent is not None
    await file(client, parent.attr.fid, b"old.tmp", 1)
    used = {**RULE, "Expiration": {"DaysAfterLastAccess": 30}}
    await client.call(SetLifecycle(json.dumps({"Rules": [used], "Watermarks": marks})))
    assert (await run(served, client, "old"))["expired"]["files"] == 1  # which waits for its index
    await until(served, {BY_USE, OSTS_BY_USE})
    await client.call(SetLifecycle(json.dumps({"Rules": [used]}), keep=True))
    await until(served, {BY_USE})
    await client.call(RemoveRule("old"))
    await until(served, set())


async def test_who_waits_for_an_index_of_a_rule_that_is_removed_hears_of_it(served: Served, client: Client) -> None:
    await client.call(SetLifecycle(json.dumps({"Rules": [RULE]})))
    with pytest.raises(OSError, match="removed or changed"):
        await served.mds.lifecycle.indexes.have({BY_USE})


async def test_of_two_documents_that_come_at_once_one_is_in_force(served: Served, client: Client) -> None:
    other = await served.client()
    documents = [
        {"Rules": [{**RULE, "ID": one}, {**RULE, "ID": two}], "Watermarks": {"High": high, "Low": 50}}
        for one, two, high in (("a", "b", 80), ("c", "d", 90))
    ]
    asked = [SetLifecycle(json.dumps(document)) for document in documents]
    await asyncio.gather(*(who.call(one) for who, one in zip((client, other), asked, strict=True)))
    for _ in range(2):
        assert await ask(client, "rules") in documents
        await served.restart()


async def test_rule_that_is_put_again_while_its_files_are_brought_back_stays(
    served: Served, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    await client.call(Mkdir(ROOT, b"data", 0o755, 0, 0))
    document = SetLifecycle(json.dumps({"Rules": [RULE]}))
    await client.call(document)
    await asyncio.gather(client.call(RemoveRule("old", recall=True)), client.call(document))
    async with asyncio.timeout(30):
        while served.mds.lifecycle.runs:
            await asyncio.sleep(0.005)
    (one,) = (await ask(client, "status"))["rules"]
    assert (one["id"], one["state"]) == ("old", "active")
    assert "a lifecycle task failed" not in caplog.text  # which is all that was seen of one that never came to rest


@pytest.mark.parametrize(
    ("rules", "why"),
    [
        ([{**RULE, "Expiration": {"DaysAfterModification": 3650}}], "not old enough"),
        ([RULE, {**RULE, "ID": "nearer", "Directory": "/data/sub", "Status": "Enabled"}], "not about it any more"),
        ([{**RULE, "Status": "Disabled"}], "not there any more"),
    ],
    ids=["later", "nearer", "disabled"],
)
async def test_run_that_has_begun_deletes_nothing_that_the_rules_do_not_want_any_more(
    served: Served, client: Client, rules: list[dict[str, Any]], why: str
) -> None:
    data = (await client.call(Mkdir(ROOT, b"data", 0o755, 0, 0))).node
    assert data is not None
    sub = (await client.call(Mkdir(data.attr.fid, b"sub", 0o755, 0, 0))).node
    assert sub is not None
    await file(client, sub.attr.fid, b"old.tmp", served.mds.clock.now_ns() - 40 * DAY_NS)
    await client.call(SetLifecycle(json.dumps({"Rules": [RULE]})))
    lifecycle = served.mds.lifecycle
    begun = Run(served.mds, lifecycle.need("old").rule, lifecycle.judge(), 0, False)
    await client.call(SetLifecycle(json.dumps({"Rules": rules})))
    await begun.go()
    assert (begun.tally.matched, begun.tally.expired.files, begun.tally.left) == (1, 0, 1)
    assert why in next(iter(begun.tally.reasons))
    assert (await client.call(Lookup(sub.attr.fid, b"old.tmp"))).node is not None
