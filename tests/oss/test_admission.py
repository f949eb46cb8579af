"""Who is let in: capabilities, generations, fences, fields."""

import asyncio
import errno
import math
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from nacrefs.common.answer import is_later, settle
from nacrefs.common.auth import sign_capability
from nacrefs.common.wire import (
    BULK_BYTES_MAX,
    EXTENTS_MAX,
    Capability,
    Destroy,
    Fence,
    Glimpse,
    ObjectId,
    Punch,
    Read,
    Right,
    StatObject,
    Sync,
    Truncate,
    TruncateObjects,
    Write,
)
from tests.oss.local import FID, KEY, SESSION, LocalCall, LocalOss, LocalPeer, local_oss


@pytest.fixture
async def oss(tmp_path: Path) -> AsyncIterator[LocalOss]:
    async with local_oss(tmp_path / "ost") as oss:
        await oss.write((0, b"x" * 100))
        yield oss


def read_with(capability: Capability, fid: int = FID, generation: int = 0) -> Read:
    return Read(0, fid, 0, generation, capability, ((0, 10),))


async def refused(oss: LocalOss, request: object, number: int, text: str, call: LocalCall | None = None) -> None:
    with pytest.raises(OSError, match=text) as caught:
        await oss.ask(request, call)
    assert caught.value.errno == number
    assert oss.pool.used_bytes == 0


async def test_capability_must_be_genuine_and_for_this_very_thing(oss: LocalOss) -> None:
    good = oss.capability()
    await settle(oss.ask(read_with(good), call := LocalCall(oss.peer)))
    call.received()
    forged = msgspec.structs.replace(good, mac=bytes(len(good.mac)))
    longer = msgspec.structs.replace(good, expires_s=good.expires_s + 1)
    for bad in (forged, longer, sign_capability(bytes(31) + b"1", FID, 0, SESSION, Right.READ, good.expires_s)):
        await refused(oss, read_with(bad), errno.EACCES, "capability")
    await refused(oss, read_with(good, fid=FID + 1), errno.EACCES, "capability")
    await refused(oss, read_with(good, generation=1), errno.EACCES, "capability")
    await refused(oss, read_with(good), errno.EACCES, "capability", LocalCall(LocalPeer(SESSION + 1)))


async def test_capability_expires_although_it_was_good_before(oss: LocalOss) -> None:
    soon = sign_capability(KEY, FID, 0, SESSION, Right.READ, int(time.time()) - 1)
    await refused(oss, read_with(soon), errno.EKEYEXPIRED, "expired")


async def test_rights_are_kept_apart(oss: LocalOss) -> None:
    only_read = oss.capability(rights=Right.READ)
    only_write = oss.capability(rights=Right.WRITE)
    for change in (
        Write(0, FID, 0, 0, only_read, ((0, 0),), b""),
        Punch(0, FID, 0, 0, only_read, ((0, 1),)),
        Truncate(0, FID, 0, 0, only_read, 0),
    ):
        await refused(oss, change, errno.EACCES, "does not allow WRITE")
    await refused(oss, read_with(only_write), errno.EACCES, "does not allow READ")
    for capability in (only_read, only_write):
        assert (await oss.ask(StatObject(0, FID, 0, 0, capability))).size == 100
        assert (await oss.ask(Sync(0, FID, 0, 0, capability))).size == 100


async def test_older_generation_than_seen_is_stale_also_after_a_restart(oss: LocalOss, tmp_path: Path) -> None:
    call = LocalCall(oss.peer)
    await oss.ask(read_with(oss.capability(generation=3), generation=3), call)
    call.received()
    await refused(
        oss, read_with(oss.capability(generation=2), generation=2), errno.ESTALE, "generation 2 .* is outdated"
    )
    root = tmp_path / "other"
    async with local_oss(root) as first:
        await first.write((0, b"x"), sync=True)
        call = LocalCall(first.peer)
        await first.ask(read_with(first.capability(generation=3), generation=3), call)
        call.received()
    async with local_oss(root, fresh=False) as second:
        await refused(second, read_with(second.capability()), errno.ESTALE, "3 has been seen")


async def test_fenced_session_is_refused_and_others_are_not(oss: LocalOss) -> None:
    await oss.order(Fence((SESSION,)))
    await refused(oss, read_with(oss.capability()), errno.ESHUTDOWN, "fenced")
    request, bulk = oss.write_request([(0, b"y")])
    await refused(oss, request, errno.ESHUTDOWN, "fenced", LocalCall(oss.peer, bulk))
    call = LocalCall(LocalPeer(8))
    await oss.ask(read_with(oss.capability(session=8)), call)
    assert call.received() == b"x" * 10


async def test_fence_is_answered_when_io_in_service_has_ended(oss: LocalOss) -> None:
    await oss.sync()
    request, bulk = oss.write_request([(0, b"last")])
    answer = oss.handlers[Write](request, LocalCall(oss.peer, bulk))
    assert is_later(answer), "the object is clean: its change must be announced first"
    write = asyncio.ensure_future(answer)
    await asyncio.sleep(0)
    await oss.order(Fence((SESSION,)))
    assert write.done()
    assert write.result().size == 100


async def test_io_that_was_accepted_but_not_begun_does_not_slip_past_a_fence(oss: LocalOss) -> None:
    await oss.sync()
    request, bulk = oss.write_request([(0, b"late")])
    answer = oss.handlers[Write](request, LocalCall(oss.peer, bulk))
    await oss.order(Fence((SESSION,)))
    with pytest.raises(OSError, match="fenced"):
        await answer
    call = LocalCall(LocalPeer(8))
    await oss.ask(read_with(oss.capability(session=8)), call)
    assert call.received() == b"x" * 10


async def test_no_io_before_the_mds_has_said_who_is_fenced(oss: LocalOss) -> None:
    oss.gate.heard(0, 0)
    read = asyncio.ensure_future(oss.read((0, 4)))
    write = asyncio.ensure_future(oss.write((0, b"new")))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not read.done()
    assert not write.done()
    oss.gate.heard(math.inf, 0)
    await asyncio.gather(read, write)


async def test_io_that_waited_for_the_mds_is_refused_if_its_session_was_fenced_meanwhile(oss: LocalOss) -> None:
    oss.gate.heard(0, 0)
    read = asyncio.ensure_future(oss.read((0, 4)))
    write = asyncio.ensure_future(oss.write((0, b"new")))
    sync = asyncio.ensure_future(oss.sync())
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await oss.order(Fence((SESSION,)))  # it does not wait for those that wait for it
    oss.gate.heard(math.inf, 0)
    for held in (read, write, sync):
        with pytest.raises(OSError, match="fenced") as caught:
            await held
        assert caught.value.errno == errno.ESHUTDOWN


async def test_a_change_that_waits_when_the_mds_falls_silent_is_not_made_after_a_fence(oss: LocalOss) -> None:
    """It was accepted in time, but what it waits for (here: the mark of a clean object) takes too long."""
    await oss.sync()
    request, bulk = oss.write_request([(0, b"late")])
    write = asyncio.ensure_future(oss.ask(request, LocalCall(oss.peer, bulk)))
    await asyncio.sleep(0)
    oss.gate.heard(0, 0)
    async with asyncio.timeout(10):
        await oss.order(Fence((SESSION,)))
    oss.gate.heard(math.inf, 0)
    with pytest.raises(OSError, match="fenced") as caught:
        await write
    assert caught.value.errno == errno.ESHUTDOWN
    call = LocalCall(LocalPeer(8))
    await oss.ask(read_with(oss.capability(session=8)), call)
    assert call.received() == b"x" * 10


async def test_every_field_is_checked(oss: LocalOss) -> None:
    capability = oss.capability()
    top = (1 << 63) - 1
    for extents, text in (
        (((-1, 5),), "-1"),
        (((0, -5),), "-5"),
        (((top, 1),), "2\\^63"),
        (((0, BULK_BYTES_MAX + 1),), "at most"),
        (((0, 1),) * (EXTENTS_MAX + 1), f"at most {EXTENTS_MAX}"),
    ):
        await refused(oss, Read(0, FID, 0, 0, capability, extents), errno.EINVAL, text)
        await refused(oss, Write(0, FID, 0, 0, capability, extents, b""), errno.EINVAL, text)
    await refused(oss, Punch(0, FID, 0, 0, capability, ((-1, 5),)), errno.EINVAL, "extents")
    await refused(oss, Truncate(0, FID, 0, 0, capability, -1), errno.EINVAL, "size -1")
    await refused(oss, Read(0, 0, 0, 0, capability, ()), errno.EINVAL, "fid 0")
    await refused(oss, Read(0, FID, -1, 0, capability, ()), errno.EINVAL, "object number -1")
    no_sums = Write(0, FID, 0, 0, capability, ((0, 4),), b"")
    await refused(oss, no_sums, errno.EINVAL, "too few", LocalCall(oss.peer, b"abcd"))
    request, _ = oss.write_request([(0, b"abcd")])
    too_many = msgspec.structs.replace(request, sums=request.sums * 2)
    await refused(oss, too_many, errno.EINVAL, "need 8", LocalCall(oss.peer, b"abcd"))
    await refused(oss, request, errno.EINVAL, "3 bytes came", LocalCall(oss.peer, b"abc"))


async def test_unknown_ost_is_named(oss: LocalOss) -> None:
    for request in (
        Read(5, FID, 0, 0, oss.capability(), ()),
        StatObject(-1, FID, 0, 0, oss.capability()),
    ):
        await refused(oss, request, errno.ENXIO, r"OST -?\d is not served here \(here: 0\)")
    for order in (
        Destroy((ObjectId(5, FID, 0),)),
        Glimpse((ObjectId(5, FID, 0),)),
        TruncateObjects((ObjectId(5, FID, 0),), 0),
    ):
        with pytest.raises(OSError, match="OST 5 is not served here"):
            await oss.order(order)


async def test_glimpse_and_truncate_for_the_mds(oss: LocalOss) -> None:
    await oss.write((1000, b"z" * 24), number=1)
    objects = (ObjectId(0, FID, 0), ObjectId(0, FID, 1), ObjectId(0, FID, 2))
    glimpsed = await oss.order(Glimpse(objects))
    assert [stat.size for stat in glimpsed.stats] == [100, 1024, 0]
    await oss.order(TruncateObjects(objects, 50))
    glimpsed = await oss.order(Glimpse(objects))
    assert [stat.size for stat in glimpsed.stats] == [50, 50, 0]
    assert await oss.read((0, 100), number=1) == [bytes(50)]
