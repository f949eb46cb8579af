"""Objects of removed files leave the OSTs, however often those are away."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from nacrefs.common.layout import LayoutSpec
from nacrefs.common.wire import Commit, Create, Destroy, Lease, Mode, Unlink
from tests.mds.served import ROOT, Client, Oss, Served

BOTH = Mode.READ | Mode.WRITE


@pytest.fixture
async def served(mdt_url: str) -> AsyncGenerator[Served]:
    async with Served(mdt_url, osts=1) as made:
        yield made
        await made.nothing_leaks()


async def removed(client: Client, name: bytes, *osts: int) -> int:
    """The fid of a file on these OSTs that was made and removed."""
    spec = LayoutSpec(stripe_count=len(osts), first_ost=osts[0])
    made = await client.call(Create(ROOT, name, 0o644, 0, 0, BOTH, layout=spec))
    assert made.node is not None
    fid = made.node.attr.fid
    await client.call(Commit(fid, Lease.NONE, Mode.CLOSED, True, 1 << 20, 1, 2048))
    await client.call(Unlink(ROOT, name, fid))
    return fid


def destroyed(oss: Oss) -> set[int]:
    return {one.fid for request in oss.of(Destroy) for one in request.objects}


async def left(served: Served, *fids: int) -> None:
    """Wait until exactly these files wait for the reaper."""
    while [gone.fid for gone in served.mds.mdt.destructions(10_000)] != sorted(fids):
        await asyncio.sleep(0.005)


async def test_objects_are_destroyed_and_then_forgotten(served: Served) -> None:
    client = await served.client()
    fid = await removed(client, b"f", 0)
    await left(served)
    assert destroyed(served.first) == {fid}
    await served.settle()
    assert served.mds.reaper.reaped == 1


async def test_files_on_an_absent_ost_hold_up_nobody_else(served: Served) -> None:
    """More of them than the reaper takes at a time, and older than all others."""
    second = await served.oss()
    client = await served.client()
    await second.remote.aclose()
    await asyncio.sleep(0)
    waiting = await asyncio.gather(*(removed_unplaced(client, served, number) for number in range(600)))
    here = await removed(client, b"here", 0)
    await left(served, *waiting)
    assert destroyed(served.first) == {here}
    await second.start()
    await left(served)
    assert destroyed(second) == set(waiting)


async def removed_unplaced(client: Client, served: Served, number: int) -> int:
    """A destruction of a file on OST 1, which is away, straight into the database."""
    from nacrefs.common.layout import Layout
    from nacrefs.mds.records import Destruction

    fid = 1000 + number
    gone = Destruction(fid, Layout(1 << 20, 1, (1,)))
    await served.mds.journal.submit_own(lambda step: _add(step, gone))
    return fid


def _add(step: object, gone: object) -> None:
    from nacrefs.mds.transactions.step import Step

    assert isinstance(step, Step)
    step.tx.trim_replies(0, 0)  # something is written
    step.tx.new_destructions.append(gone)  # type: ignore[arg-type]


async def test_file_on_several_osts_waits_for_all_of_them(served: Served) -> None:
    second = await served.oss()
    client = await served.client()
    second.gate.shut()
    fid = await removed(client, b"f", 0, 1)
    await second.gate.arrived.wait()
    await served.settle()
    assert len(served.mds.mdt.destructions(9)) == 1
    second.gate.open()
    await left(served)
    assert destroyed(served.first) == destroyed(second) == {fid}


async def test_ost_that_fails_is_asked_again_later(served: Served) -> None:
    second = await served.oss()
    client = await served.client()
    second.failing = OSError(5, "the disk is broken")
    stays = await removed(client, b"f", 1)
    goes = await removed(client, b"g", 0)
    await left(served, stays)
    assert destroyed(served.first) == {goes}
    second.failing = None
    served.mds.reaper.ost_is_up()
    await left(served)


async def test_burst_beyond_what_is_remembered_is_read_from_the_database(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nacrefs.mds.osts.reaper.REMEMBERED_MAX", 1)
    client = await served.client()
    served.first.gate.shut()
    fids = [await removed(client, b"f%d" % number, 0) for number in range(5)]
    served.first.gate.open()
    await left(served)
    assert destroyed(served.first) == set(fids)
