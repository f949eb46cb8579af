"""What is written while something is on its way to the servers, or waits for them: it is not taken for reported, the
lease stays, and the MDT forgets nothing before the OSTs have it."""

import asyncio
import os
from collections.abc import Callable

import pytest

from nacrefs.client.cache import WRITE
from nacrefs.client.filesystem import Handle
from nacrefs.client.vfs import Vfs
from nacrefs.common import faults
from nacrefs.common.answer import is_later, settle
from nacrefs.common.clock import ManualClock
from tests.client.world import World, close, contents, open_file, quiet, read, read_file, write_file

BLOCK = b"a" * 90_000
PIECE = b"b" * 120


async def striped(vfs: Vfs) -> tuple[int, int]:
    """A file whose contents are on OSTs, with nothing dirty, and a handle for writing."""
    fid = await write_file(vfs, vfs.root, b"f", b"x" * 100_000)
    await quiet(vfs)
    number = await open_file(vfs, fid, os.O_RDWR)
    assert vfs.handles.get(number).file.pending.extents.bytes == 0
    return fid, number


def writing(vfs: Vfs, number: Callable[[], int], offset: int, data: bytes) -> faults.Action:
    """An action: the bytes are written, under the WRITE lease, in the step in which a point is passed."""

    def act() -> faults.Outcome:
        done = vfs.write(number(), offset, memoryview(data))
        assert not is_later(done), "it waits for something: this shows nothing"
        return faults.PASS

    return act


async def test_what_is_written_while_fsync_waits_for_the_osts_is_still_to_be_reported(world: World) -> None:
    vfs, other = await world.vfs(), await world.vfs()
    _, number = await striped(vfs)
    await settle(vfs.write(number, 100, memoryview(BLOCK)))
    with faults.armed("oss.sync", writing(vfs, lambda: number, 20_000, PIECE)):
        await settle(vfs.fsync(number, False))
    assert vfs.handles.get(number).file.dirty
    await close(vfs, number)
    await quiet(vfs)
    expected = bytearray(b"x" * 100_000)
    expected[100:90_100] = BLOCK
    expected[20_000:20_120] = PIECE
    assert await read_file(other, other.root, b"f") == expected


async def test_a_file_that_is_opened_again_while_its_close_is_carried_out_keeps_lease_and_bytes(world: World) -> None:
    vfs, other = await world.vfs(), await world.vfs()
    fid, number = await striped(vfs)
    await settle(vfs.write(number, 100, memoryview(BLOCK)))
    again: list[int] = []

    def opened() -> int:
        if not again:
            handle = vfs.open(fid, os.O_RDWR)
            assert isinstance(handle, Handle), "the lease is gone: this shows nothing"
            again.append(handle.number)
        return again[0]

    # Each piece is written while what was written before it is on its way.
    with (
        faults.armed("oss.change.after", writing(vfs, opened, 20_000, PIECE)),
        faults.armed("oss.change.after", writing(vfs, opened, 30_000, PIECE), after=1),
    ):
        await settle(vfs.release(number))
        await settled(vfs)
    file = vfs.handles.get(again[0]).file
    assert file.inode.lease == WRITE
    assert file.dirty
    await close(vfs, again[0])
    await quiet(vfs)
    expected = bytearray(b"x" * 100_000)
    expected[100:90_100] = BLOCK
    for offset in (20_000, 30_000):
        expected[offset : offset + 120] = PIECE
    assert await read_file(other, other.root, b"f") == expected


async def test_what_is_written_under_a_lease_that_has_come_back_while_a_commit_asks_for_the_size_counts(
    world: World,
) -> None:
    vfs, other = await world.vfs(), await world.vfs()
    fid, number = await striped(vfs)
    there = await open_file(other, fid, os.O_RDWR)
    await settle(vfs.write(number, 0, memoryview(PIECE)))
    await close(other, there)
    await quiet(other)
    again = await open_file(vfs, fid, os.O_RDWR)
    file = vfs.handles.get(number).file
    assert file.through and file.dirty and file.inode.lease == WRITE, "it is not shared, or still: this shows nothing"
    with faults.armed("rpc.reply.receive", writing(vfs, lambda: number, 100_000, PIECE), match="GetAttr"):
        await settle(vfs.fsync(number, False))
    await close(vfs, number)
    await close(vfs, again)
    await quiet(vfs)
    assert await read_file(other, other.root, b"f") == PIECE + b"x" * 99_880 + PIECE


async def settled(vfs: Vfs) -> None:
    """Wait until nothing happens behind the caller's back, whatever is still dirty."""
    while vfs.session.background:
        for task in list(vfs.session.background):
            await task


@pytest.mark.parametrize("before", [b"small", b""])
async def test_a_file_that_outgrows_the_mdt_while_its_commit_waits_for_the_mds_is_on_the_osts_before_the_mdt_forgets_it(
    world: World, before: bytes
) -> None:
    clock = ManualClock()
    vfs = await world.vfs(clock=clock)
    fid = await write_file(vfs, vfs.root, b"f", before)
    await quiet(vfs)
    number = await open_file(vfs, fid, os.O_RDWR)
    await settle(vfs.write(number, 0, memoryview(PIECE)))
    clock.advance(vfs.session.term_s / 2 + 1)
    writing = asyncio.create_task(settle(vfs.write(number, len(PIECE), memoryview(BLOCK))))
    await asyncio.sleep(0)
    syncing = asyncio.create_task(settle(vfs.fsync(number, False)))
    await asyncio.sleep(0)
    happened: list[str] = []

    def note(what: str) -> faults.Action:
        def act() -> faults.Outcome:
            happened.append(what)
            return faults.PASS

        return act

    with faults.armed("oss.sync", note("synced")), faults.armed("client.commit.before", note("committed")):
        await vfs.session.keepalive()
        await asyncio.gather(writing, syncing)
    assert happened == ["synced", "committed"]
    await close(vfs, number)
    await quiet(vfs)
    assert await read_file(vfs, vfs.root, b"f") == PIECE + BLOCK


async def test_a_right_of_a_session_that_is_over_is_asked_for_again(world: World) -> None:
    vfs, other = await world.vfs(), await world.vfs()
    fid, number = await striped(vfs)
    inode = vfs.handles.get(number).inode
    await contents(other, fid)
    over = other.session.cache.inode(fid).capability
    assert over is not None
    inode.capability = over
    assert await read(vfs, number, 0, 1000) == b"x" * 1000
    inode.capability = over
    await settle(vfs.write(number, 0, memoryview(BLOCK)))
    await settle(vfs.fsync(number, False))
    await close(vfs, number)
    await quiet(vfs)
    assert await read_file(other, other.root, b"f") == BLOCK + b"x" * 10_000
