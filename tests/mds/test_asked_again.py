"""Requests without a stored answer that change something: asked again after each fault, they have had one effect.

`test_exactly_once` has the reasons (`HARMLESS_TWICE`); here they are put to the proof.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from msgspec.structs import replace

from nacrefs.common.fid import ROOT
from nacrefs.common.wire import (
    AddWarmup,
    Append,
    Appended,
    CancelLock,
    CancelWarmup,
    Fsck,
    Holding,
    HsmAction,
    HsmCancel,
    HsmRequest,
    ImportArchive,
    Imported,
    Inspect,
    Inspection,
    Lease,
    LinkSpec,
    LockKind,
    LockStyle,
    Mode,
    Open,
    OrderLink,
    Reclaim,
    Request,
    Restore,
    Restored,
    SaveCatalogue,
    Scrub,
    ScrubOrder,
    ScrubReport,
    Set,
    SetArchive,
    SetAttr,
    SetLink,
    SetLock,
    WatchFsck,
    Yield,
)
from tests.mds.served import Client, Served, turns
from tests.mds.test_exactly_once import (
    BOTH,
    BUCKET,
    COLD,
    FAULTS,
    HARMLESS_TWICE,
    Ask,
    Fault,
    Tree,
    bare,
    database,
    plant,
    rows_renumbered,
    undisturbed,
)

NO_COMMIT = {"killed before commit", "killed after commit"}
"""Faults that cannot happen to what changes memory only."""
Prepare = Callable[[Served, Client, Tree], Awaitable[Any]]


def lock(kind: LockKind, start: int = 0, end: int = 100, style: LockStyle = LockStyle.POSIX, ticket: int = 0) -> Ask:
    return lambda fids: SetLock(fids["small"], 7, style, kind, start, end, 4711, ticket)


def archive(name: str = "small") -> Ask:
    return lambda fids: HsmRequest(HsmAction.ARCHIVE, (fids[name],))


def asked(*asks: Ask) -> Prepare:
    """These have been asked before."""

    async def prepare(served: Served, client: Client, fids: Tree) -> None:
        for ask in asks:
            await client.call(ask(fids))

    return prepare


def add_archive(fids: Tree) -> Request[Any]:
    return SetArchive(COLD)


def queued(*asks: Ask) -> Prepare:
    """What these ask for stays in the queue, since no OSS is there."""

    async def prepare(served: Served, client: Client, fids: Tree) -> None:
        await asked(add_archive)(served, client, fids)
        await served.first.remote.aclose()
        await asked(*asks)(served, client, fids)

    return prepare


async def actions_over(served: Served) -> None:
    async with asyncio.timeout(10):
        while served.mds.hsm.active:
            await asyncio.sleep(0.001)


@asynccontextmanager
async def later_attempts(served: Served) -> AsyncGenerator[None, None]:
    """Time passes while an action waits for its next attempt: after a restart it may begin before the OSS is back."""

    async def pass_time() -> None:
        while True:
            await asyncio.sleep(0.01)
            now_ns = served.clock.now_ns()
            if any(action.row.not_before_ns > now_ns for action in served.mds.hsm.active.values()):
                served.clock.advance(0.2)

    passing = asyncio.ensure_future(pass_time())
    try:
        yield
    finally:
        passing.cancel()


async def released(served: Served, client: Client, fids: Tree) -> None:
    """The contents of a file are in an archive only."""
    await client.call(SetArchive(COLD))
    for kind in (HsmAction.ARCHIVE, HsmAction.RELEASE):
        await client.call(HsmRequest(kind, (fids["small"],)))
        await actions_over(served)


async def in_the_bucket(served: Served, client: Client, fids: Tree) -> None:
    await client.call(SetArchive(COLD))
    served.first.shelf.add("found", 5, "tag", (("file-mtime", "7ns"),))


async def linked(served: Served, client: Client, fids: Tree) -> None:
    """A directory whose bucket follows, and has not yet got a file of it."""
    await client.call(SetLink(LinkSpec(0, fids["d"], "none", auto_export=("new", "changed")), BUCKET))
    await served.mds.journal.submit_own(lambda step: step.tx.mark(fids["small"], 1))


async def shared(served: Served, client: Client, fids: Tree) -> None:
    """Two write a file that has objects."""
    fid, other = fids["big"], await served.client()
    await client.call(SetAttr(fid, Set.MTIME, mtime_ns=1000))  # after its objects were changed
    await client.call(Open(fid, BOTH))
    client.holds[fid] = Holding(fid, Lease.NONE, BOTH)
    other.reclaims = [Reclaim((Holding(fid, Lease.NONE, BOTH),))]
    served.first.sizes[fid] = 1 << 20
    assert (await other.call(Open(fid, BOTH))).shared


async def appending(served: Served, client: Client, fids: Tree) -> None:
    await shared(served, client, fids)
    await client.call(Append(fids["big"], 7))


async def waiting_for_a_lock(served: Served, client: Client, fids: Tree) -> None:
    """Somebody else has it."""
    other = await served.client()
    taken = lock(LockKind.WRITE)(fids)
    await other.call(taken)
    held = [one for owner, one in served.mds.locking.table.all_held() if owner.session == other.number]
    other.reclaims = [Reclaim((), locks=tuple(held))]
    client.call(lock(LockKind.WRITE, ticket=5)(fids)).add_done_callback(lambda done: done.exception())
    await turns()


async def wrong_usage(served: Served, client: Client, fids: Tree) -> None:
    """What is recorded as used is not what is used."""
    await served.mds.journal.submit_own(lambda step: step.tx.mend_usage((0, 0, 0), 4096, 3))


@dataclass(frozen=True)
class Case:
    """What must have happened before, the request, and whether it commits anything."""

    before: Prepare
    ask: Ask
    commits: bool = True


CASES: dict[str, Case] = {
    "hsm request": Case(queued(), archive()),
    "hsm request that joins another": Case(queued(archive()), archive(), False),
    "hsm cancel": Case(queued(archive()), lambda fids: HsmCancel((fids["small"],))),
    "cancel of a warmup": Case(asked(lambda fids: AddWarmup((fids["d"],), more=True)), lambda fids: CancelWarmup(1)),
    "restore": Case(released, lambda fids: Restore(fids["small"], 0, 8)),
    "import": Case(in_the_bucket, lambda fids: ImportArchive("cold", ROOT)),
    "catalogue": Case(released, lambda fids: SaveCatalogue("cold"), False),
    "pause of a link": Case(linked, lambda fids: OrderLink(1, "pause")),
    "flush of a link": Case(linked, lambda fids: OrderLink(1, "flush")),
    "fsck": Case(wrong_usage, lambda fids: Fsck("check", repair=True, grace_s=0.0)),
    "scrub": Case(asked(), lambda fids: Scrub(ScrubOrder.START), False),
    "lock": Case(asked(), lock(LockKind.WRITE), False),
    "flock": Case(asked(), lock(LockKind.WRITE, 0, 1 << 62, LockStyle.FLOCK), False),
    "unlock": Case(asked(lock(LockKind.WRITE)), lock(LockKind.UNLOCK), False),
    "unlock a part": Case(asked(lock(LockKind.WRITE)), lock(LockKind.UNLOCK, 20, 30), False),
    "end of waiting for a lock": Case(waiting_for_a_lock, lambda fids: CancelLock(5), False),
    "append": Case(shared, lambda fids: Append(fids["big"], 7), False),
    "end of an append": Case(appending, lambda fids: Appended(fids["big"], 7), False),
    "yield": Case(
        asked(lambda fids: Open(fids["other"], BOTH)),
        lambda fids: Yield((Holding(fids["other"], Lease.READ, Mode.CLOSED),)),
        False,
    ),
}
ELSEWHERE = {
    "As", "Attach", "Detach", "Reclaim", "Register", "Heartbeat", "ProbeArchive",  # the reason says it all
    "CopiesFailed", "ReportDamage",  # osts/test_mirrors_once.py
}  # fmt: skip


def test_everything_that_has_no_stored_answer_and_changes_something_is_here() -> None:
    fids: Tree = dict.fromkeys(("small", "big", "other", "d", "e"), 100)
    kinds = {type(case.ask(fids)).__name__ for case in CASES.values()}
    changing = {name for name, why in HARMLESS_TWICE.items() if why != "changes nothing"}
    assert kinds - {"ImportArchive"} == changing - ELSEWHERE  # (its answer is stored, but after a kill it counts anew)


def everything(served: Served) -> dict[str, list[Any]]:
    """All that may have been changed, without when and how far it is."""
    columns = {
        "hsm": "fid, flags, archive, key", "hsm_action": "fid, kind, archive, state", "archive": "id, name, gone",
        "rule": "id, document, state", "pool": "name, ost", "warmup": "id, verb, state", "link": "id, fid, state",
        "link_log": "link, number, text", "link_object": "link, key, fid", "link_dirty": "fid, link",
    }  # fmt: skip
    store = served.mds.mdt.store
    return database(served) | {
        table: sorted(store.fetchall(f"SELECT {some} FROM {table}"), key=repr) for table, some in columns.items()
    }


async def outcome(served: Served, case: Case, fault: Fault) -> tuple[Any, ...]:
    client = await served.client()
    fids = await plant(client)
    await case.before(served, client, fids)
    client.reclaims = reclaims(served, client, fids)
    request, number = case.ask(fids), client.number
    async with asyncio.timeout(20), later_attempts(served):
        reply = await fault(served, client, request)
        answer = await over(served, client, request, reply)
    assert client.number == number, "the session must outlive the fault"
    async with asyncio.timeout(20):
        await served.mds.grace.ended()  # all are back who held something
    await served.settle()
    locks = json.loads((await client.call(Inspect("locks"))).report)
    held = {name: (served.mds.leases.held(fid, number), served.mds.mdt.opens.get(fid)) for name, fid in fids.items()}
    rows = everything(served)
    made = [row[0] for row in rows["inode"] if row[0] not in (ROOT, *fids.values())]
    if made:
        rows = rows_renumbered(rows, made[0])
    oss = served.first
    return answer, rows, locks, held, dict(served.mds.leases.turns.taken), sorted(oss.shelf.objects), oss.scrubs


async def over(served: Served, client: Client, request: Request[Any], reply: Any) -> Any:
    """What a request has begun is done; its answer, without what says how far it was."""
    if type(request) in (Restore, OrderLink):
        await actions_over(served)
    if isinstance(reply, Restored):
        return reply.start == 0 and reply.end >= 8  # other bytes may be there, too, by then
    if isinstance(reply, Imported):
        return replace(reply, made=reply.made + reply.skipped, skipped=0, bytes=0)
    if isinstance(reply, ScrubReport):  # after a restart the OSS may not be back yet
        return sorted((*(state.ost for state in reply.osts), *reply.down))
    if isinstance(reply, Inspection):
        return json.loads(reply.report)
    if isinstance(request, Fsck):
        while not reply.ended:
            await asyncio.sleep(0.001)
            try:
                reply = await client.call(WatchFsck(request.job))
            except OSError:  # the MDS was restarted, and `nacre fsck` asked again
                reply = await client.call(request)
        return reply.error
    return bare(reply)


def reclaims(served: Served, client: Client, fids: Tree) -> list[Reclaim]:
    """What the client holds now, and will say so after a restart."""
    leases, number = served.mds.leases, client.number
    holdings: list[Holding] = []
    for fid in fids.values():
        lease, mode = leases.held(fid, number), served.mds.mdt.opens.get(fid, {}).get(number, Mode.CLOSED)
        if lease or mode:
            change = served.mds.journal.reading.need(fid).attr.change
            holdings.append(Holding(fid, lease, BOTH if lease == Lease.WRITE else mode, change))
    locks = tuple(lock for owner, lock in served.mds.locking.table.all_held() if owner.session == number)
    appends = tuple((fid, turn.ticket) for fid, turn in leases.turns.taken.items() if turn.session == number)
    return [Reclaim(tuple(holdings), locks=locks, appends=appends)]


_calm: dict[tuple[str, str], tuple[Any, ...]] = {}
"""What requests do undisturbed, by engine and request."""


@pytest.mark.parametrize("mdt_url", ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)], indirect=True)
@pytest.mark.parametrize("what", CASES)
@pytest.mark.parametrize("fault", [None, *FAULTS])
async def test_asked_again_it_has_one_effect(what: str, fault: str | None, mdt_url: str) -> None:
    case = CASES[what]
    if not case.commits and fault in NO_COMMIT:
        pytest.skip("it does not commit anything")
    engine = mdt_url.partition(":")[0]
    async with Served(mdt_url, osts=1) as served:
        if fault is None:
            _calm[engine, what] = await outcome(served, case, undisturbed)
        else:
            assert await outcome(served, case, FAULTS[fault]) == _calm[engine, what]
