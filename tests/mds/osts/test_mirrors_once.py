"""What is asked about mirrored files happens exactly once, whatever is lost in between (CONTRACT 5, 7)."""

import asyncio
import errno
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from nacrefs.common import faults
from nacrefs.common.layout import Layout, LayoutSpec
from nacrefs.common.wire import (
    Commit,
    CopiesFailed,
    GetLayout,
    Holding,
    Lease,
    Mkdir,
    Mode,
    ObjectId,
    Open,
    Reclaim,
    ReportDamage,
    Request,
    Resync,
    Set,
    SetAttr,
    SetLayout,
    SyncObject,
    Unlink,
)
from nacrefs.mds.records import DISCARDED
from tests.mds.served import Asker, Client, Served, turns
from tests.mds.test_exactly_once import BOTH, FAULTS, Fault, bare, calm_and, database, plant, undisturbed

Ask = Callable[[int, Layout, int], Request[Any]]
CHANGES: dict[str, Ask] = {
    "truncate": lambda fid, layout, parent: SetAttr(fid, Set.SIZE, size=100),
    "open for writing": lambda fid, layout, parent: Open(fid, BOTH),
    "commit": lambda fid, layout, parent: Commit(fid, Lease.NONE, Mode.CLOSED, True, 2 << 20, 9, 16),
    "unlink": lambda fid, layout, parent: Unlink(parent, b"copied", fid),
}
"""Requests while all OSTs are there."""
COPIES: dict[str, Ask] = {
    "copies failed": lambda fid, layout, parent: CopiesFailed(fid, layout.generation, (1,)),
    "lost OST": lambda fid, layout, parent: Resync(lost_ost=1),
    "comparison": lambda fid, layout, parent: Resync(fid),
    "damage": lambda fid, layout, parent: ReportDamage((ObjectId(1, fid, 1),)),
}
"""Requests while OST 1 is away, but for the comparison and the damage, which the OSS of OST 1 reports."""
NO_COMMIT = {"killed before commit", "killed after commit"}


@asynccontextmanager
async def mirrored(url: str) -> AsyncGenerator[tuple[Served, Client, int, int]]:
    """Three OSTs, a file with copies on 0 and 1 that nobody has open, and its directory."""
    async with Served(url, osts=1) as served:
        await served.oss()
        await served.oss()
        client = await served.client()
        parent = (await plant(client))["d"]
        await client.call(SetLayout(parent, LayoutSpec(stripe_count=1, first_ost=0, mirrors=2, inline_bytes=0)))
        made = await client.create(b"copied", parent=parent)
        assert made.node is not None
        fid = made.node.attr.fid
        await client.call(Commit(fid, Lease.NONE, Mode.CLOSED, True, 1 << 20, 5, 8))
        served.clock.advance(1)
        yield served, client, fid, parent


async def layout_of(client: Client, fid: int) -> Layout:
    layout = (await client.call(GetLayout(fid))).layout
    assert layout is not None
    return layout


async def time_passes(served: Served) -> None:
    """An OST that does not come back is given up after a while."""
    while True:
        served.clock.advance(1)
        await asyncio.sleep(0.01)


async def gone(served: Served, number: int) -> None:
    """The OSS of this OST is stopped, and the MDS knows."""
    await served.oss_list[number].remote.aclose()
    async with asyncio.timeout(30):
        while served.mds.targets.serving(number) is not None:
            await asyncio.sleep(0.001)


def copies(served: Served) -> list[Any]:
    """Which copies are not good, or are to be destroyed."""
    return sorted(served.mds.mdt.store.fetchall("SELECT fid, number, ost, state FROM mirror"))


_calm: dict[tuple[str, str], Any] = {}
"""What requests do undisturbed, by engine and request."""


async def compare(engine: str, what: str, fault: str | None, outcome: Callable[[Fault], Any]) -> None:
    if fault is None:
        _calm[engine, what] = await outcome(undisturbed)
    else:
        assert await outcome(FAULTS[fault]) == _calm[engine, what]


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("fault", calm_and(FAULTS))
async def test_change_of_a_mirrored_file_happens_once(what: str, fault: str | None, mdt_url: str) -> None:
    if what == "open for writing" and fault in NO_COMMIT:
        pytest.skip("its session is known to write the file: nothing is committed")
    async with mirrored(mdt_url) as (served, client, fid, parent):
        request = CHANGES[what](fid, await layout_of(client, fid), parent)
        if what == "commit":
            node = await client.call(Open(fid, BOTH))
            client.reclaims = [Reclaim((Holding(fid, node.lease, BOTH),))]

        async def outcome(disturb: Fault) -> Any:
            number = client.number
            async with asyncio.timeout(20):
                reply = await disturb(served, client, request)
                while served.mds.mdt.intents or served.mds.leases.truncating or database(served)["destroy"]:
                    await asyncio.sleep(0.001)
            assert client.number == number, "the session must outlive the fault"
            await served.settle()
            return bare(reply), database(served), copies(served)

        await compare(mdt_url.partition(":")[0], what, fault, outcome)


@pytest.mark.parametrize("what", COPIES)
@pytest.mark.parametrize("fault", calm_and(FAULTS))
async def test_what_is_asked_about_copies_happens_once(what: str, fault: str | None, mdt_url: str) -> None:
    async with mirrored(mdt_url) as (served, client, fid, parent):
        layout = await layout_of(client, fid)
        assert layout.osts == (0, 1)
        request = COPIES[what](fid, layout, parent)
        asker: Asker = served.oss_list[1] if what == "damage" else client
        client.reclaims = [Reclaim(())]
        if what not in ("comparison", "damage"):
            await gone(served, 1)

        async def outcome(disturb: Fault) -> Any:
            clock = asyncio.create_task(time_passes(served)) if what == "copies failed" else None
            number = client.number
            try:
                async with asyncio.timeout(20):
                    try:
                        reply = await disturb(served, asker, request)
                    except OSError as error:
                        if error.errno != errno.ENOSPC or what != "lost OST":
                            raise
                        while served.mds.targets.serving(2) is None:  # nothing has happened: it had not come back yet
                            await asyncio.sleep(0.001)
                        reply = await client.call(request)
                    while any(row[3] != DISCARDED for row in copies(served)) and what != "copies failed":
                        await asyncio.sleep(0.001)  # until they are equal
            finally:
                if clock is not None:
                    clock.cancel()
            assert client.number == number, "the session must outlive the fault"
            if what == "damage":
                assert served.oss_list[1].of(SyncObject)
            now = await layout_of(client, fid)
            answer = reply.layout if isinstance(request, CopiesFailed) else reply
            return answer, now.osts, now.states, copies(served)

        await compare(mdt_url.partition(":")[0], what, fault, outcome)


async def test_lost_copy_is_remembered_whatever_looks_between_the_commit_and_its_application(mdt_url: str) -> None:
    async with mirrored(mdt_url) as (served, client, fid, parent):
        await gone(served, 1)
        request = CopiesFailed(fid, (await layout_of(client, fid)).generation, (1,))
        looked = threading.Event()

        def hold() -> None:
            assert looked.wait(10)

        with faults.armed("mds.commit.after", hold):
            answer, other = client.call(request), client.call(Mkdir(parent, b"beside", 0o755, 0, 0))
            async with asyncio.timeout(10):
                while not copies(served):
                    await asyncio.sleep(0.001)
            served.mds.resyncer.wake()
            await turns()
            looked.set()
        assert (await answer).layout.states
        await other
        await served.settle()
        assert len(copies(served)) == 1


async def test_copy_that_was_made_equal_since_it_was_reported_is_not_given_up_again(mdt_url: str) -> None:
    async with mirrored(mdt_url) as (served, client, fid, _):
        request = CopiesFailed(fid, (await layout_of(client, fid)).generation, (1,))
        first = await client.call(request)
        assert first.layout.states
        async with asyncio.timeout(20):
            while copies(served):
                await asyncio.sleep(0.001)
        again = await client.call(request)
        assert again.layout.states == ()
        assert again.layout.generation > first.layout.generation
        assert copies(served) == []


async def test_copies_that_moved_are_counted_and_the_others_stay(mdt_url: str) -> None:
    async with mirrored(mdt_url) as (served, client, fid, _):
        await gone(served, 1)
        assert (await client.call(Resync(lost_ost=1))).copies == 1
        assert (await layout_of(client, fid)).osts == (0, 2)
        assert (await client.call(Resync(lost_ost=1))).copies == 0
