"""Each operation happens exactly once, whatever is lost in between (CONTRACT 5).

Every kind of request that changes something runs undisturbed, and again under each fault, in an MDT of its own: answers
and databases must be the same.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any

import pytest
from msgspec.structs import replace

from nacrefs.common import faults
from nacrefs.common.layout import LayoutSpec
from nacrefs.common.wire import (
    AddWarmup,
    ArchiveSpec,
    CheckQuota,
    Commit,
    Create,
    Entry,
    GetAttr,
    Holding,
    Inspection,
    Lease,
    Link,
    LinkSpec,
    Lookup,
    Message,
    Mkdir,
    Mknod,
    Mode,
    Node,
    Open,
    OpenDirect,
    QuotaKind,
    QuotaLimits,
    Reclaim,
    Removed,
    RemoveLink,
    RemoveRule,
    RemoveXattr,
    Rename,
    Renamed,
    RenameFlag,
    Request,
    Right,
    Rmdir,
    RunRule,
    Set,
    SetArchive,
    SetAttr,
    SetHsm,
    SetLayout,
    SetLifecycle,
    SetLink,
    SetPool,
    SetProject,
    SetQuota,
    SetRuleState,
    SetXattr,
    Symlink,
    Unlink,
    XattrFlag,
)
from nacrefs.mds.namespace.operations import READS, WRITES
from nacrefs.mds.service import ADDRESSED
from tests.mds.served import ROOT, Asker, Client, Served, turns
from tests.mds.test_namespace_acl import acl

BOTH = Mode.READ | Mode.WRITE
Tree = dict[str, int]


async def plant(client: Client) -> Tree:
    """A small tree, and the fids in it. The client has nothing open in the end."""
    fids: Tree = {}
    for name in (b"small", b"big", b"other"):
        made = await client.create(name)
        assert made.node is not None
        fid = fids[name.decode()] = made.node.attr.fid
        data = None if name == b"big" else b"contents"
        await client.call(Commit(fid, Lease.NONE, Mode.CLOSED, True, 8 if data else 1 << 20, 5, 8, data))
    for name in (b"d", b"e"):
        directory = await client.call(Mkdir(ROOT, name, 0o755, 0, 0))
        assert directory.node is not None
        fids[name.decode()] = directory.node.attr.fid
    await client.call(SetXattr(fids["small"], b"user.a", b"1"))
    return fids


Ask = Callable[[Tree], Request[Any]]
REQUESTS: dict[str, Ask] = {
    "chmod": lambda fids: SetAttr(fids["small"], Set.MODE, mode=0o600),
    "chown": lambda fids: SetAttr(fids["big"], Set.UID | Set.GID, uid=7, gid=8),
    "utimes": lambda fids: SetAttr(fids["small"], Set.ATIME | Set.MTIME, atime_ns=5, mtime_ns=6),
    "truncate": lambda fids: SetAttr(fids["big"], Set.SIZE, size=100),
    "lengthen": lambda fids: SetAttr(fids["small"], Set.SIZE, size=1 << 30),
    "create": lambda fids: Create(ROOT, b"new", 0o644, 0, 0, BOTH, exclusive=True),
    "create for reading": lambda fids: Create(ROOT, b"new", 0o644, 0, 0, Mode.READ, exclusive=True),
    "create with contents": lambda fids: Create(ROOT, b"new", 0o644, 0, 0, Mode.CLOSED, True, data=b"all of it"),
    "create over": lambda fids: Create(ROOT, b"big", 0o644, 0, 0, BOTH, truncate=True),
    "mknod": lambda fids: Mknod(ROOT, b"new", 0o010644, 0, 0, 0),
    "mkdir": lambda fids: Mkdir(ROOT, b"new", 0o755, 0, 0),
    "symlink": lambda fids: Symlink(ROOT, b"new", b"target", 0, 0),
    "link": lambda fids: Link(fids["small"], fids["d"], b"new"),
    "unlink": lambda fids: Unlink(ROOT, b"big"),
    "unlink an open file": lambda fids: Unlink(ROOT, b"big", fids["big"], True),
    "rmdir": lambda fids: Rmdir(ROOT, b"e"),
    "rename": lambda fids: Rename(ROOT, b"small", fids["d"], b"moved"),
    "rename over": lambda fids: Rename(ROOT, b"small", ROOT, b"big"),
    "rename a directory": lambda fids: Rename(ROOT, b"d", fids["e"], b"moved"),
    "exchange": lambda fids: Rename(ROOT, b"small", ROOT, b"d", RenameFlag.EXCHANGE),
    "open past all caches": lambda fids: OpenDirect(fids["big"], BOTH, Right.READ),
    "open and truncate": lambda fids: Open(fids["small"], BOTH, True),
    "commit": lambda fids: Commit(fids["other"], Lease.READ, Mode.CLOSED, True, 3, 7, 0, b"new"),
    "setxattr": lambda fids: SetXattr(fids["small"], b"user.b", b"2"),
    "setxattr of a new one": lambda fids: SetXattr(fids["small"], b"user.b", b"2", XattrFlag.CREATE),
    "ACL": lambda fids: SetXattr(fids["small"], b"system.posix_acl_access", acl(6, 4, 0, (1000, 6), mask=6)),
    "removexattr": lambda fids: RemoveXattr(fids["small"], b"user.a"),
    "setlayout": lambda fids: SetLayout(fids["d"], LayoutSpec(stripe_count=2)),
}


HARMLESS_TWICE: dict[str, str] = {
    "Attach": "a session that was begun in vain ends when its client begins another, or with its term",
    "As": "is the request in it, with the xid that both have",
    "Keepalive": "changes nothing",
    "Detach": "the session is over: a second one finds none, and its sender does not wait for it",
    "Reclaim": "sets what it says; asked on the connection that it is for, never sent again",
    "Yield": "sets what it says (test_asked_again.py)",
    "GetOsts": "changes nothing",
    "Statfs": "changes nothing",
    "GetQuota": "changes nothing",
    "ListQuotas": "changes nothing",
    "Inspect": "changes nothing",
    "Append": "the turn is its ticket's, and whoever has it is told the same end again (test_appends.py)",
    "Appended": "a turn that is over cannot end again",
    "SetLock": "the same lock for the same owner; a wait is known by its ticket",
    "GetLock": "changes nothing",
    "CancelLock": "a wait that is over cannot be canceled",
    "Restore": "one recall for all who ask",
    "GetArchives": "changes nothing",
    "ProbeArchive": "writes an object of its own and deletes it",
    "GetHsm": "changes nothing",
    "HsmRequest": "one action of a file at a time: the second joins the first, or finds nothing to do",
    "HsmCancel": "what is over cannot be canceled",
    "OrderLink": "looks, or sends, again",
    "GetLinks": "changes nothing",
    "GetLinkLog": "changes nothing",
    "GetWarmups": "changes nothing",
    "CancelWarmup": "what is over cannot be canceled",
    "AskLifecycle": "changes nothing",
    "SaveCatalogue": "writes the same again",
    "Scrub": "starting what runs and stopping what stands changes nothing",
    "VerifyFile": "changes nothing",
    "Fsck": "a check is known by its name: the second request is told of the first one's",
    "WatchFsck": "changes nothing",
    "Register": "sets what it says; asked on the connection that it is for, never sent again",
    "Heartbeat": "sets what it says",
    "CopiesFailed": "names the layout generation that it is about, which is over when it has had its effect",
    "ListCopies": "changes nothing",
    "JoinMirrors": "changes nothing",
    "ReportDamage": "what is being mended is mended again",
}
"""Requests without a stored answer, and why none is needed."""
ELSEWHERE = {"Resync", "ImportArchive"}
"""Requests whose cases are in `osts/test_mirrors_once.py` and `test_asked_again.py`."""


def test_every_request_of_the_mds_is_run_under_faults_or_harmless_twice() -> None:
    """A new kind of request needs a line in `REQUESTS` or `ADMINISTRATION`, or a reason in `HARMLESS_TWICE`."""
    fids: Tree = dict.fromkeys(("small", "big", "other", "d", "e"), 100)
    cases = {type(ask(fids)) for ask in REQUESTS.values()}
    assert cases == set(WRITES)
    cases |= {type(ask(fids)) for _, ask in ADMINISTRATION.values()}
    assert {kind.__name__ for kind in set(ADDRESSED) - cases - set(READS)} == set(HARMLESS_TWICE) | ELSEWHERE


def database(served: Served) -> dict[str, list[Any]]:
    """Everything in SQL that an operation may change, and nothing that a restart may."""
    store = served.mds.mdt.store
    tables = ("inode", "dentry", "inline", "xattr", "open", "destroy", "intent", "pool", "usage", "quota")
    return {table: sorted(store.fetchall(f'SELECT * FROM "{table}"'), key=repr) for table in tables}


NEW = 99
"""What a file that the request makes is called when outcomes are compared: a restart leaves numbers out."""


def renumbered(value: Any, number: int) -> Any:
    """A reply, or what is in the database, with the new file's number replaced."""
    if isinstance(value, Message):
        return replace(value, **{name: renumbered(getattr(value, name), number) for name in value.__struct_fields__})
    return NEW if value == number else value


def rows_renumbered(tables: dict[str, list[Any]], number: int) -> dict[str, list[Any]]:
    return {name: [tuple(renumbered(value, number) for value in row) for row in rows] for name, rows in tables.items()}


def bare(reply: Any) -> Any:
    """An answer without what depends on when it was given."""
    if isinstance(reply, Node):
        return replace(reply, lease=Lease.NONE, capability=None, data=None, attr=replace(reply.attr, change=0))
    if isinstance(reply, Entry):
        parent = None if reply.parent is None else replace(reply.parent, change=0)
        return Entry(bare(reply.node), parent)
    if isinstance(reply, Removed):
        return replace(reply, parent=replace(reply.parent, change=0))
    if isinstance(reply, Renamed):
        moved = replace(reply.moved, change=0)
        other = None if reply.other is None else replace(reply.other, change=0)
        return Renamed(
            replace(reply.parent, change=0),
            replace(reply.new_parent, change=0),
            moved,
            other,
            bare(reply.removed),
        )
    return reply


Fault = Callable[[Served, Asker, Request[Any]], Awaitable[Any]]


async def undisturbed(served: Served, client: Asker, request: Request[Any]) -> Any:
    return await client.call(request)


async def lost_reply(served: Served, client: Asker, request: Request[Any]) -> Any:
    """It is executed and committed; then the connection is lost with the answer on it."""
    assert client.remote.link is not None
    client.remote.link.pause()
    answer = client.call(request)
    await served.settle()
    client.cut()
    return await answer


async def lost_request(served: Served, client: Asker, request: Request[Any]) -> Any:
    """The connection is lost before the request has arrived."""
    link = client.peer.link
    assert link is not None
    link.pause()
    answer = client.call(request)
    await turns()
    client.cut()
    return await answer


async def connection_lost_in_service(served: Served, client: Asker, request: Request[Any]) -> Any:
    """The request is in service when the connection is lost, and comes again before it has been answered."""
    answer = client.call(request)
    await asyncio.sleep(0)
    client.cut()
    return await answer


async def restart(served: Served, client: Asker, request: Request[Any]) -> Any:
    """The MDS ends between the commit and the answer."""
    assert client.remote.link is not None
    client.remote.link.pause()
    client.reclaims = client.reclaims or [Reclaim(())]
    answer = client.call(request)
    await served.settle()
    await served.server.stop()
    client.cut()
    await served.start()
    return await answer


async def request_dropped(served: Served, client: Asker, request: Request[Any]) -> Any:
    """The request has arrived and is lost with its connection before anybody looked at it."""
    with faults.armed("rpc.request.receive", faults.drop, match=type(request).__name__):
        return await client.call(request)


async def reply_dropped(served: Served, client: Asker, request: Request[Any]) -> Any:
    """The answer is lost with its connection when it goes out, and once more when it is given again."""
    with faults.armed("rpc.reply.send", faults.drop, match=type(request).__name__, times=2) as fault:
        reply = await client.call(request)
    assert fault.fired == 2
    return reply


async def killed(point: str, served: Served, client: Asker, request: Request[Any]) -> Any:
    """The MDS is killed at a point, started again, and asked again."""
    client.reclaims = client.reclaims or [Reclaim(())]
    served.killing = type(request).__name__
    async with served.killed_at(point):
        answer = client.call(request)
    return await answer


killed_before_commit: Fault = partial(killed, "mds.commit.before")
killed_after_commit: Fault = partial(killed, "mds.commit.after")
killed_before_reply: Fault = partial(killed, "rpc.reply.send")

FAULTS: dict[str, Fault] = {
    "lost request": lost_request,
    "request dropped": request_dropped,
    "lost reply": lost_reply,
    "reply dropped": reply_dropped,
    "lost in service": connection_lost_in_service,
    "restart": restart,
    "killed before commit": killed_before_commit,
    "killed after commit": killed_after_commit,
    "killed before reply": killed_before_reply,
}


async def outcome(served: Served, ask: Ask, fault: Fault) -> tuple[Any, dict[str, list[Any]]]:
    client = await served.client()
    fids = await plant(client)
    request = ask(fids)
    if type(request) is Commit:
        node = await client.call(Open(request.fid, BOTH))
        client.reclaims = [Reclaim((Holding(request.fid, node.lease, BOTH),))]
    number = client.number
    served.clock.advance(1)
    reply = await asyncio.wait_for(fault(served, client, request), 30)
    assert client.number == number, "the session must outlive the fault"
    holds_no_more_than_it_knows(served, client, request, reply)
    async with asyncio.timeout(30):
        while served.mds.mdt.intents or served.mds.leases.truncating or database(served)["destroy"]:
            await asyncio.sleep(0.001)  # what is to be done about objects is done
    await served.settle()
    rows = database(served)
    made = [row[0] for row in rows["inode"] if row[0] not in (ROOT, *fids.values())]
    number = made[0] if made else NEW
    return renumbered(bare(reply), number), rows_renumbered(rows, number)


def holds_no_more_than_it_knows(served: Served, client: Client, request: Any, reply: Any) -> None:
    """Leases that an answer brings are in the table."""
    node = reply.node if isinstance(reply, Entry) else reply
    if isinstance(node, Node):
        assert served.mds.leases.held(node.attr.fid, client.number) >= node.lease
        mode = getattr(request, "open_mode", getattr(request, "mode", Mode.CLOSED))
        if type(request) in (Create, Open) and node.lease < (Lease.WRITE if mode & Mode.WRITE else Lease.READ):
            assert served.mds.mdt.opens.get(node.attr.fid, {}).get(client.number, Mode.CLOSED) == mode
    if isinstance(reply, Entry) and reply.parent is not None:
        assert served.mds.leases.held(reply.parent.fid, client.number) >= reply.parent_lease


def calm_and(faults: Iterable[str]) -> list[Any]:
    """The parameters of a test: no fault, whose outcome the others are compared with, and each fault. (No fault for a
    second time, for runs of slow cases only.)"""
    return [None, pytest.param(None, id="calm", marks=pytest.mark.slow), *faults]


_calm: dict[tuple[str, str], tuple[Any, dict[str, list[Any]]]] = {}
"""What requests do undisturbed, by engine and request."""


@pytest.mark.parametrize("what", REQUESTS)
@pytest.mark.parametrize("fault", calm_and(FAULTS))
async def test_answer_and_tree_are_as_if_nothing_had_happened(what: str, fault: str | None, mdt_url: str) -> None:
    ask = REQUESTS[what]
    engine = mdt_url.partition(":")[0]
    async with Served(mdt_url, osts=1) as served:  # more of them take turns, which a restart begins anew
        if fault is None:
            _calm[engine, what] = await outcome(served, ask, undisturbed)
        else:
            assert await outcome(served, ask, FAULTS[fault]) == _calm[engine, what]
        await served.nothing_leaks()


PINNED = 0x10
COLD = ArchiveSpec(0, "cold", "dir", "file:///cold")
RULES = (
    '{"Rules": [{"ID": "tidy", "Directory": "/d", "Transitions": [{"Days": 1, "Archive": "cold"}]},'
    ' {"ID": "old", "Directory": "/e", "Expiration": {"Days": 1}}]}'
)
BUCKET = ArchiveSpec(0, "", "dir", "file:///bucket")
ADMINISTRATION: dict[str, tuple[tuple[Ask, ...], Ask]] = {
    "archive add": ((), lambda fids: SetArchive(COLD)),
    "archive rm": ((lambda fids: SetArchive(COLD),), lambda fids: SetArchive(COLD, True)),
    "link create": ((), lambda fids: SetLink(LinkSpec(0, fids["d"], "none"), BUCKET)),
    "link rm": ((lambda fids: SetLink(LinkSpec(0, fids["d"], "none"), BUCKET),), lambda fids: RemoveLink(1)),
    "lifecycle put": ((lambda fids: SetArchive(COLD),), lambda fids: SetLifecycle(RULES)),
    "lifecycle rm": (
        (lambda fids: SetArchive(COLD), lambda fids: SetLifecycle(RULES)),
        lambda fids: RemoveRule("old"),
    ),
    "rule state": (
        (lambda fids: SetArchive(COLD), lambda fids: SetLifecycle(RULES)),
        lambda fids: SetRuleState("old", "paused", "by the test"),
    ),
    "rule stop": (
        (lambda fids: SetArchive(COLD), lambda fids: SetLifecycle(RULES)),
        lambda fids: SetRuleState("old", "stopped"),
    ),
    "hsm pin": ((lambda fids: SetArchive(COLD),), lambda fids: SetHsm((fids["small"], fids["big"]), set=PINNED)),
    "hsm unpin": (
        (lambda fids: SetArchive(COLD), lambda fids: SetHsm((fids["small"],), set=PINNED)),
        lambda fids: SetHsm((fids["d"], fids["small"]), clear=PINNED),
    ),
    "lifecycle run": ((lambda fids: SetArchive(COLD), lambda fids: SetLifecycle(RULES)), lambda fids: RunRule("old")),
    "warmup": ((), lambda fids: AddWarmup((fids["d"],))),
    "quota": ((), lambda fids: SetQuota(QuotaKind.USER, 0, QuotaLimits(hard_bytes=1 << 30))),
    "no quota": (
        (lambda fids: SetQuota(QuotaKind.USER, 0, QuotaLimits(hard_bytes=1 << 30)),),
        lambda fids: SetQuota(QuotaKind.USER, 0, QuotaLimits()),
    ),
    "project": ((), lambda fids: SetProject(fids["d"], 9)),
    "project of all below": ((), lambda fids: SetProject(ROOT, 9, True)),
    "pool": ((), lambda fids: SetPool("fast", (0,))),
    "count of what is used": ((), lambda fids: CheckQuota(repair=True)),
}
"""What must have been asked before, and the request."""


def administration(served: Served) -> dict[str, list[Any]]:
    """What administrators have made, without when and how far it is."""
    columns = {
        "archive": "id, name, gone", "link": "id, fid, state", "rule": "id, document, state", "warmup": "verb, uid",
        "link_log": "link, number, text", "quota": "kind, id, hard_bytes", "inode": "fid, project", "pool": "name, ost",
        "hsm": "fid, flags, archive", "usage": "uid, gid, project, bytes, inodes",
    }  # fmt: skip
    store = served.mds.mdt.store
    return {table: sorted(store.fetchall(f"SELECT {some} FROM {table}")) for table, some in columns.items()}


async def administered(served: Served, what: str, fault: Fault) -> tuple[Any, dict[str, list[Any]]]:
    client = await served.client()
    fids = await plant(client)
    before, ask = ADMINISTRATION[what]
    for one in before:
        await client.call(one(fids))
    if type(ask(fids)) is CheckQuota:
        await served.mds.journal.submit_own(lambda step: step.tx.mend_usage((0, 0, 0), 4096, 3))
    number = client.number
    async with asyncio.timeout(20):
        reply = await fault(served, client, ask(fids))
    assert client.number == number, "the session must outlive the fault"
    await served.settle()
    answer = json.loads(reply.report) if isinstance(reply, Inspection) else reply
    if what == "project of all below":  # after a kill it counts what was left
        answer = answer.project
    if what == "warmup":  # it may be over by now; numbers of jobs that were never answered are left out
        answer = answer["verb"]
    return answer, administration(served)


_calm_administration: dict[tuple[str, str], tuple[Any, dict[str, list[Any]]]] = {}


@pytest.mark.parametrize("what", ADMINISTRATION)
@pytest.mark.parametrize("fault", calm_and(FAULTS))
async def test_administrators_get_what_they_asked_for_once(what: str, fault: str | None, mdt_url: str) -> None:
    engine = mdt_url.partition(":")[0]
    async with Served(mdt_url, osts=1) as served:
        if fault is None:
            _calm_administration[engine, what] = await administered(served, what, undisturbed)
        else:
            assert await administered(served, what, FAULTS[fault]) == _calm_administration[engine, what]


@pytest.mark.parametrize("fault", [lost_reply, restart], ids=lambda fault: fault.__name__)
async def test_create_on_either_engine_is_answered_again_from_the_database(served: Served, fault: Fault) -> None:
    client = await served.client()
    reply = await fault(served, client, Create(ROOT, b"f", 0o644, 0, 0, BOTH, exclusive=True))
    assert reply.node.lease == Lease.WRITE  # a file that is written needs it, also after the restart
    await client.call(Commit(reply.node.attr.fid, Lease.READ, Mode.CLOSED, True, 3, 1, 0, b"abc"))
    assert (await client.call(GetAttr(reply.node.attr.fid))).attr.size == 3


async def test_name_in_an_answer_that_is_given_again_is_not_to_be_remembered(served: Served) -> None:
    """Another client may have changed it since the answer was first given."""
    one, two = await served.client(), await served.client()
    await one.call(Lookup(ROOT, b"f"))
    assert one.remote.link is not None
    one.remote.link.pause()
    again = one.call(Mkdir(ROOT, b"f", 0o755, 0, 0))
    await served.settle()
    rmdir = two.call(Rmdir(ROOT, b"f"))
    await turns()
    one.cut()
    reply = await again
    await rmdir
    assert reply.parent_lease == Lease.NONE
    assert reply.parent is None or reply.parent.change == 0


async def test_request_of_a_session_that_is_over_is_not_repeated_in_the_next(served: Served) -> None:
    """Nobody knows any more whether it happened: better an error than twice."""
    client = await served.client()
    assert client.remote.link is not None
    client.remote.link.pause()
    answer = client.call(Mkdir(ROOT, b"d", 0o755, 0, 0))
    fresh = client.call(GetAttr(ROOT))
    await served.settle()
    served.mds.evict(served.mds.sessions.by_id[client.number], "was told to go by the test", knows=True)
    await served.settle()
    client.cut()
    with pytest.raises(OSError, match="session in which this was asked is over"):
        await answer
    assert (await fresh).attr.fid == ROOT
    assert (await client.call(Mkdir(ROOT, b"e", 0o755, 0, 0))).node is not None


async def test_replies_that_were_received_are_trimmed(served: Served) -> None:
    client = await served.client()
    for number in range(200):
        await client.call(Mkdir(ROOT, b"d%d" % number, 0o755, 0, 0))
    assert len(served.mds.mdt.replies(client.number)) <= 2 * 64


async def test_reply_that_was_not_received_is_kept_while_later_ones_are_trimmed(served: Served) -> None:
    client, holder = await served.client(), await served.client()
    made = await client.create(b"f", Mode.READ)
    assert made.node is not None
    await holder.call(GetAttr(made.node.attr.fid))
    holder.gate.shut()
    first = client.call(SetAttr(made.node.attr.fid, Set.MODE, mode=0o600))
    await holder.gate.arrived.wait()
    for number in range(150):
        await client.call(Mkdir(ROOT, b"d%d" % number, 0o755, 0, 0))
    assert client.remote.link is not None
    client.remote.link.pause()
    holder.gate.open()
    await served.settle()
    client.cut()
    assert (await first).attr.mode & 0o777 == 0o600
    assert served.server.meter.counters["replies_again"] == 1
