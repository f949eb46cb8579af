"""Each change of an object happens exactly once, whatever is lost in between (CONTRACT 5).

Every request that changes an object is disturbed by every fault. Between the fault and the second arrival of the
request somebody else writes over what it wrote: if it were made again, that would be lost.
"""

import asyncio
import errno
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from nacrefs.common import faults
from nacrefs.common.answer import settle
from nacrefs.common.wire import (
    CopyRange,
    Destroy,
    Fence,
    Floor,
    Glimpse,
    ListObjects,
    ObjectId,
    ProbeObjects,
    Punch,
    RaiseFloors,
    Read,
    ReadSums,
    Request,
    ScrubOrder,
    ScrubOst,
    ScrubState,
    Seek,
    StatObject,
    Sync,
    SyncObject,
    Truncate,
    TruncateObjects,
    VerifyObject,
    Write,
)
from tests.oss.local import FID, SESSION, LocalCall, LocalOss, LocalPeer, crash_copy, local_oss

BEFORE = b"b" * 200_000
OTHER = b"o" * 70_000
AT = 30_000
"""Where somebody else writes: within what every change changes."""

Ask = Callable[[LocalOss], tuple[Request[Any], bytes]]


def write(*pieces: tuple[int, bytes], sync: bool = False) -> Ask:
    return lambda oss: oss.write_request(pieces, sync=sync)


SOURCE = 1 << 48 | 0x99
SOURCE_BYTES = bytes(range(256)) * 1000


def copy(*extents: tuple[int, int, int]) -> Ask:
    return lambda oss: (
        CopyRange(0, FID, 0, 0, oss.capability(), 0, SOURCE, 0, 0, oss.capability(SOURCE), extents),
        b"",
    )


CHANGES: dict[str, Ask] = {
    "write": write((10_000, b"w" * 150_000)),
    "write aligned blocks": write((0, b"w" * 131_072)),
    "write several extents": write((20_000, b"w" * 20_000), (60_000, b"x" * 60_000)),
    "write many extents": write(*((n * 1000, b"w" * 500) for n in range(150))),
    "write extents that overlap": write((20_000, b"w" * 90_000), (50_000, b"x" * 20_000)),
    "write and sync": write((10_000, b"w" * 150_000), sync=True),
    "punch": lambda oss: (Punch(0, FID, 0, 0, oss.capability(), ((10_000, 150_000),)), b""),
    "copy": copy((17, 10_000, 150_000)),
    "copy aligned blocks": copy((0, 0, 131_072)),
    "copy several extents": copy((0, 20_000, 20_000), (5, 60_000, 60_000)),
    "truncate": lambda oss: (Truncate(0, FID, 0, 0, oss.capability(), 25_000), b""),
}
HARMLESS_TWICE = {
    Read: "changes nothing",
    StatObject: "changes nothing",
    Glimpse: "changes nothing",
    Sync: "makes durable what there is",
    Fence: "sets what it says",
    Destroy: "what does not exist is destroyed already; a fid is not used again",
    RaiseFloors: "sets what it says; a second tracking begins anew, and so does the resync that it is for",
    SyncObject: "makes equal what is not; what was interrupted begins anew (test_resync.py)",
    ReadSums: "changes nothing",
    ListObjects: "changes nothing",
    ProbeObjects: "changes nothing",
    ScrubOst: "starting what runs and stopping what stands changes nothing (below)",
    Seek: "changes nothing",
    VerifyObject: "changes nothing",
    TruncateObjects: "the file is busy at the MDS until it has been confirmed",
}


async def test_every_request_of_an_oss_is_run_under_faults_or_harmless_twice(tmp_path: Path) -> None:
    async with local_oss(tmp_path / "ost") as oss:
        cases = {type(ask(oss)[0]) for ask in CHANGES.values()}
        kinds = {*oss.service.for_clients(), *oss.service.for_mds()}
    assert cases == {Write, Punch, Truncate, CopyRange}
    assert kinds - cases == set(HARMLESS_TWICE)


class Disturbed:
    """One change, and what comes after the fault: another OSS over the same directory, or the same."""

    def __init__(self, base: Path, ask: Ask) -> None:
        self.base = base
        self.root = base / "ost"
        self.ask = ask
        self.xid = 7

    @asynccontextmanager
    async def planted(self) -> AsyncGenerator[LocalOss, None]:
        async with local_oss(self.root) as oss:
            await oss.write((0, SOURCE_BYTES), fid=SOURCE)
            await oss.sync(SOURCE)
            await oss.write((0, BEFORE))
            await oss.sync()
            yield oss

    async def send(self, oss: LocalOss, *, resent: bool = False) -> Any:
        request, bulk = self.ask(oss)
        call = LocalCall(LocalPeer(), bulk, xid=self.xid, resent=resent)
        return await settle(oss.handlers[type(request)](request, call))

    @asynccontextmanager
    async def killed(self) -> AsyncGenerator[LocalOss, None]:
        """The OSS that is started over what a killed one has left."""
        async with local_oss(self.left, fresh=False) as oss:
            yield oss

    def leave(self) -> None:
        self.left = crash_copy(self.root, self.base / "left")


async def contents(oss: LocalOss) -> bytes:
    [data] = await oss.read((0, 1 << 20))
    return data


async def overwrite(oss: LocalOss) -> None:
    """Somebody else writes."""
    request, bulk = oss.write_request([(AT, OTHER)])
    other = LocalPeer()
    other.name = "7.other"
    await settle(oss.handlers[Write](request, LocalCall(other, bulk)))


async def calm(base: Path, ask: Ask) -> tuple[bytes, bytes]:
    """Contents after the change, and after somebody else's write on top of it."""
    disturbed = Disturbed(base, ask)
    async with disturbed.planted() as oss:
        await disturbed.send(oss)
        after = await contents(oss)
        await overwrite(oss)
        return after, await contents(oss)


Fault = Callable[[Disturbed], Coroutine[Any, Any, bytes]]


async def lost_reply(disturbed: Disturbed) -> bytes:
    async with disturbed.planted() as oss:
        first = await disturbed.send(oss)
        await overwrite(oss)
        assert await disturbed.send(oss, resent=True) == first
        return await contents(oss)


async def lost_request(disturbed: Disturbed) -> bytes:
    async with disturbed.planted() as oss:
        await disturbed.send(oss, resent=True)
        await overwrite(oss)
        return await contents(oss)


async def killed_before_reply(disturbed: Disturbed) -> bytes:
    async with disturbed.planted() as oss:
        await disturbed.send(oss)
        disturbed.leave()
    async with disturbed.killed() as oss:
        await overwrite(oss)
        reply = await disturbed.send(oss, resent=True)
        assert reply.size == (await oss.stat()).size
        return await contents(oss)


async def killed_twice_before_reply(disturbed: Disturbed) -> bytes:
    async with disturbed.planted() as oss:
        await disturbed.send(oss)
        disturbed.leave()
    async with disturbed.killed() as oss:
        await overwrite(oss)
        disturbed.left = crash_copy(disturbed.left, disturbed.base / "left twice")
    async with disturbed.killed() as oss:
        await disturbed.send(oss, resent=True)
        return await contents(oss)


async def stopped_before_reply(disturbed: Disturbed) -> bytes:
    async with disturbed.planted() as oss:
        await disturbed.send(oss)
    disturbed.left = disturbed.root
    async with disturbed.killed() as oss:
        await overwrite(oss)
        await disturbed.send(oss, resent=True)
        return await contents(oss)


async def killed_after_change(disturbed: Disturbed) -> bytes:
    """The bytes are in the file, and that is all that was done. (The last one, if there are several.)"""
    request, _ = disturbed.ask(LocalOssForShape())
    changes = len(request.extents) if isinstance(request, Write | CopyRange) else 1
    async with disturbed.planted() as oss:

        def leave() -> None:
            disturbed.leave()
            raise OSError(errno.EIO, "killed by the test")

        with faults.armed("oss.change.after", leave, after=changes - 1):
            with pytest.raises(OSError, match="killed by the test"):
                await disturbed.send(oss)
    async with disturbed.killed() as oss:
        await overwrite(oss)
        await disturbed.send(oss, resent=True)
        return await contents(oss)


async def killed_before_change(disturbed: Disturbed) -> bytes:
    """Nothing has happened: when it comes again, it is made."""
    async with disturbed.planted() as oss:

        def leave() -> None:
            disturbed.leave()
            raise OSError(errno.EIO, "killed by the test")

        with faults.armed("oss.change.before", leave):
            with pytest.raises(OSError, match="killed by the test"):
                await disturbed.send(oss)
    async with disturbed.killed() as oss:
        await disturbed.send(oss, resent=True)
        await overwrite(oss)
        return await contents(oss)


class LocalOssForShape(LocalOss):
    """Enough of an OSS to form requests for."""

    def __init__(self) -> None:
        pass


FAULTS: dict[str, Fault] = {
    "lost request": lost_request,
    "lost reply": lost_reply,
    "killed before change": killed_before_change,
    "killed after change": killed_after_change,
    "killed before reply": killed_before_reply,
    "killed twice before reply": killed_twice_before_reply,
    "stopped before reply": stopped_before_reply,
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("what", CHANGES)
async def test_change_is_made_once_and_what_came_after_it_stays(what: str, fault: str, tmp_path: Path) -> None:
    _, expected = await calm(tmp_path / "calm", CHANGES[what])
    assert await FAULTS[fault](Disturbed(tmp_path, CHANGES[what])) == expected


TARGET = ObjectId(0, FID, 0)
ORDERS: dict[str, Request[Any]] = {
    "destroy": Destroy((TARGET,)),
    "cut": TruncateObjects((TARGET,), 25_000),
    "fence": Fence((SESSION,)),
    "floor": RaiseFloors((Floor(0, FID, 0, 1),)),
    "floor and tracking": RaiseFloors((Floor(0, FID, 0, 1),), track=True),
}
"""What the MDS asks again until it has been answered."""


async def served_by(oss: LocalOss) -> list[Any]:
    """What each of two sessions gets of two objects, by the first layout generation; or why not."""
    found: list[Any] = []
    for session in (SESSION, SESSION + 1):
        for fid in (FID, SOURCE):
            call = LocalCall(LocalPeer(session))
            try:
                await oss.ask(Read(0, fid, 0, 0, oss.capability(fid, session=session), ((0, 1 << 20),)), call)
                found.append(call.received())
            except OSError as error:
                found.append(error.errno)
    return found


async def ordered(base: Path, what: str) -> list[Any]:
    """What an order does when nothing disturbs it."""
    disturbed = Disturbed(base, CHANGES["write"])
    async with disturbed.planted() as oss:
        before = await served_by(oss)
        await oss.order(ORDERS[what])
        after = await served_by(oss)
    assert after != before
    return after


async def order_again(oss: LocalOss, what: str) -> list[Any]:
    await oss.order(ORDERS[what])
    return await served_by(oss)


@pytest.mark.parametrize("what", ORDERS)
async def test_order_that_is_given_again_has_one_effect(what: str, tmp_path: Path) -> None:
    expected = await ordered(tmp_path / "calm", what)
    disturbed = Disturbed(tmp_path, CHANGES["write"])
    async with disturbed.planted() as oss:
        assert await order_again(oss, what) == expected
        assert await order_again(oss, what) == expected, "the answer was lost"
        disturbed.leave()
    async with disturbed.killed() as oss:
        assert await order_again(oss, what) == expected, "it was killed before it could answer"


@pytest.mark.parametrize(
    ("what", "point"),
    [
        ("destroy", "oss.index.before"),
        ("destroy", "oss.index.after"),
        ("cut", "oss.change.before"),
        ("cut", "oss.change.after"),
        ("cut", "oss.index.before"),
        ("cut", "oss.index.after"),
    ],
)
async def test_order_that_a_kill_has_interrupted_is_carried_out_when_it_is_given_again(
    what: str, point: str, tmp_path: Path
) -> None:
    expected = await ordered(tmp_path / "calm", what)
    disturbed = Disturbed(tmp_path, CHANGES["write"])
    async with disturbed.planted() as oss:
        with faults.armed(point, disturbed.leave):
            await order_again(oss, what)
    async with disturbed.killed() as oss:
        assert await order_again(oss, what) == expected


@asynccontextmanager
async def scrubbing(oss: LocalOss) -> AsyncGenerator[Callable[[ScrubOrder], Coroutine[Any, Any, ScrubState]], None]:
    """Orders a scrub, which may run meanwhile, until it runs no more."""
    oss.service.scrubs.start([oss.target])

    async def order(what: ScrubOrder) -> ScrubState:
        state: ScrubState = await oss.order(ScrubOst(0, what))
        while what is ScrubOrder.STATUS and state.state == "running":
            await asyncio.sleep(0.001)
            state = await oss.order(ScrubOst(0, what))
        return state

    try:
        yield order
    finally:
        await oss.service.scrubs.stop()


async def test_scrub_that_is_started_again_is_one_scrub_whatever_was_lost(tmp_path: Path) -> None:
    disturbed = Disturbed(tmp_path, CHANGES["write"])
    async with disturbed.planted() as oss, scrubbing(oss) as order:
        disturbed.leave()  # before it was saved that it runs
        await order(ScrubOrder.START)
        started = disturbed.left
        disturbed.left = crash_copy(disturbed.root, tmp_path / "left after")
        assert (await order(ScrubOrder.START)).state == "running"
        state = await order(ScrubOrder.STATUS)
        assert (state.state, state.objects, state.total) == ("done", 2, 2)
    for left in (started, disturbed.left):
        disturbed.left = left
        async with disturbed.killed() as oss, scrubbing(oss) as order:
            assert (await order(ScrubOrder.START)).state == "running"
            state = await order(ScrubOrder.STATUS)
            assert (state.state, state.objects, state.total) == ("done", 2, 2)


@pytest.mark.parametrize("point", ["oss.index.before", "oss.index.after", "oss.sync"])
async def test_synced_write_whose_index_transaction_a_kill_interrupts_is_made_once(point: str, tmp_path: Path) -> None:
    ask = CHANGES["write and sync"]
    _, expected = await calm(tmp_path / "calm", ask)
    disturbed = Disturbed(tmp_path, ask)
    async with disturbed.planted() as oss:
        stored = oss.target.find(FID, 0)
        assert stored is not None
        stored.cleaned_at = float("-inf")  # it is not hot, so the sync makes it clean in the index
        with faults.armed(point, disturbed.leave, after=point != "oss.sync"):
            await disturbed.send(oss)  # (the first transaction marks the object)
    async with disturbed.killed() as oss:
        await overwrite(oss)
        await disturbed.send(oss, resent=True)
        assert await contents(oss) == expected


async def test_write_that_a_kill_has_torn_is_made_again(tmp_path: Path) -> None:
    disturbed = Disturbed(tmp_path, CHANGES["write"])
    after, _ = await calm(tmp_path / "calm", CHANGES["write"])
    async with disturbed.planted() as oss:

        def leave() -> None:
            disturbed.leave()
            raise OSError(errno.EIO, "killed by the test")

        with faults.armed("oss.change.after", leave):
            with pytest.raises(OSError, match="killed by the test"):
                await disturbed.send(oss)
        file = disturbed.left / oss.object_file().relative_to(disturbed.root)
    with file.open("r+b") as torn:
        torn.seek(100_000)
        torn.write(BEFORE[100_000:160_000])
    async with disturbed.killed() as oss:
        await disturbed.send(oss, resent=True)
        assert await contents(oss) == after


async def test_client_of_another_name_is_not_answered_for_the_first(tmp_path: Path) -> None:
    async with local_oss(tmp_path / "ost") as oss:
        await oss.write((0, b"one"))
        copy = crash_copy(tmp_path / "ost", tmp_path / "copy")
    async with local_oss(copy, fresh=False) as oss:
        request, bulk = oss.write_request([(0, b"two")])
        other = LocalPeer()
        other.name = "7.other"
        await settle(oss.handlers[Write](request, LocalCall(other, bulk, xid=1, resent=True)))
        assert await oss.read((0, 3)) == [b"two"]


# ---------------------------------------------------------------------------------------------------------- lost power


async def test_sync_after_the_machine_went_down_says_that_what_was_written_before_may_be_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The OSS comes back without bytes that it had taken: fsync must not say that they are safe."""
    monkeypatch.setenv("NACRE_BOOT_ID", "one")
    async with local_oss(tmp_path / "ost") as oss:
        await oss.write((0, b"a" * 1000), fid=1, sync=True)
        safe = await oss.write((0, b"a" * 1000), fid=3, sync=True)
        lost = await oss.write((0, b"b" * 1000), fid=1)
        gone = await oss.write((0, b"b" * 1000), fid=2)
        copy = crash_copy(tmp_path / "ost", tmp_path / "copy")
        (copy / oss.object_file(2).relative_to(tmp_path / "ost")).unlink()  # its directory had not been synced
    monkeypatch.setenv("NACRE_BOOT_ID", "two")

    def sync(oss: LocalOss, fid: int, version: int) -> Coroutine[Any, Any, Any]:
        return oss.ask(Sync(0, fid, 0, 0, oss.capability(fid), version))

    for _ in range(2):  # it stays so over a kill of the OSS
        async with local_oss(copy, fresh=False) as oss:
            for fid, version in ((1, lost.version), (2, gone.version)):
                with pytest.raises(OSError, match="may be lost") as caught:
                    await sync(oss, fid, version)
                assert caught.value.errno == errno.ENOTRECOVERABLE
            assert (await sync(oss, 3, safe.version)).version == safe.version
            assert (await sync(oss, 1, 0)).version > lost.version
            again = await oss.write((0, b"c" * 1000), fid=1)
            assert (await sync(oss, 1, again.version)).version == again.version
            copy = crash_copy(copy, tmp_path / f"copy of {copy.name}")


async def test_kill_of_the_oss_alone_loses_nothing_and_sync_says_so(tmp_path: Path) -> None:
    async with local_oss(tmp_path / "ost") as oss:
        written = await oss.write((0, b"a" * 1000))
        copy = crash_copy(tmp_path / "ost", tmp_path / "copy")
    async with local_oss(copy, fresh=False) as oss:
        assert (await oss.ask(Sync(0, FID, 0, 0, oss.capability(), written.version))).size == 1000


async def test_notes_of_what_was_made_are_worthless_after_the_machine_went_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NACRE_BOOT_ID", "one")
    disturbed = Disturbed(tmp_path, CHANGES["write"])
    async with disturbed.planted() as oss:
        before = await contents(oss)
        await disturbed.send(oss)
        after = await contents(oss)
        disturbed.leave()
        (disturbed.left / oss.object_file().relative_to(disturbed.root)).write_bytes(before)
    monkeypatch.setenv("NACRE_BOOT_ID", "two")
    async with disturbed.killed() as oss:
        await disturbed.send(oss, resent=True)
        assert await contents(oss) == after
