"""Two clients never disagree: whatever one has done, the other sees as soon as it asks, whatever it had cached."""

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable

import pytest

from nacrefs.client.filesystem import Changes
from nacrefs.client.vfs import Vfs
from nacrefs.common.answer import is_later, settle
from nacrefs.common.fid import ROOT
from nacrefs.common.wire import RenameFlag, Set, XattrFlag
from tests.client.world import (
    CRED,
    Counting,
    World,
    close,
    entries,
    names,
    open_file,
    quiet,
    read,
    read_file,
    write_file,
)


async def stat_size(vfs: Vfs, fid: int) -> int:
    return (await settle(vfs.getattr(fid))).attr.size


@pytest.mark.parametrize("size", [5, 16384, 16385, 1 << 20])
async def test_what_was_written_and_closed_is_read_by_another(world: World, size: int) -> None:
    one, two = await world.vfs(), await world.vfs()
    data = os.urandom(size)
    assert (await settle(two.lookup(two.root, b"f"))).attr is None
    await write_file(one, one.root, b"f", data)
    assert await read_file(two, two.root, b"f") == data


@pytest.mark.parametrize("size", [5, 1 << 20])
async def test_what_was_written_and_not_closed_is_read_by_another(world: World, size: int) -> None:
    one, two = await world.vfs(), await world.vfs()
    data = os.urandom(size)
    found, handle = await settle(one.create(one.root, b"f", 0o644, os.O_RDWR | os.O_CREAT, CRED))
    assert found.attr is not None
    await settle(one.write(handle.number, 0, memoryview(data)))
    assert await stat_size(two, found.attr.fid) == size
    assert await read_file(two, two.root, b"f") == data
    more = os.urandom(1000)
    await settle(one.write(handle.number, size, memoryview(more)))
    assert await read_file(two, two.root, b"f") == data + more
    await close(one, handle.number)
    await quiet(one)
    assert await read_file(two, two.root, b"f") == data + more


async def test_two_writers_with_the_file_open_see_each_others_bytes_at_once(world: World) -> None:
    one, two = await world.vfs(), await world.vfs()
    fid = await write_file(one, one.root, b"f", bytes(300_000))
    here, there = await open_file(one, fid, os.O_RDWR), await open_file(two, fid, os.O_RDWR)
    for turn in range(6):
        writer, number, reader, other = (one, here, two, there) if turn % 2 else (two, there, one, here)
        data = os.urandom(70_000)
        at = turn * 50_000
        assert await settle(writer.write(number, at, memoryview(data))) == len(data)
        assert await read(reader, other, at, len(data)) == data
        assert await stat_size(reader, fid) == max(300_000, at + len(data))
    await close(one, here)
    await close(two, there)
    await quiet(one)
    await quiet(two)
    assert await stat_size(one, fid) == await stat_size(two, fid) == 320_000
    assert await read_file(one, one.root, b"f") == await read_file(two, two.root, b"f")


async def test_a_small_file_that_two_clients_write_moves_to_the_osts_without_losing_a_byte(world: World) -> None:
    one, two = await world.vfs(), await world.vfs()
    found, here = await settle(one.create(one.root, b"f", 0o644, os.O_RDWR | os.O_CREAT, CRED))
    assert found.attr is not None
    await settle(one.write(here.number, 0, memoryview(b"one was here")))
    there = await open_file(two, found.attr.fid, os.O_RDWR)
    assert await read(two, there) == b"one was here"
    await settle(two.write(there, 12, memoryview(b", two too")))
    assert await read(one, here.number) == b"one was here, two too"
    await settle(one.write(here.number, 0, memoryview(b"ONE")))
    assert await read(two, there) == b"ONE was here, two too"
    await close(one, here.number)
    await close(two, there)
    assert await read_file(two, two.root, b"f") == b"ONE was here, two too"


Step = Callable[[Vfs, int, int], Awaitable[object]]
CHANGES: dict[str, Step] = {
    "chmod": lambda vfs, root, fid: settle(vfs.setattr(fid, Changes(Set.MODE, mode=0o600))),
    "chown": lambda vfs, root, fid: settle(vfs.setattr(fid, Changes(Set.UID, uid=7))),
    "utimens": lambda vfs, root, fid: settle(vfs.setattr(fid, Changes(Set.MTIME, mtime_ns=5))),
    "truncate": lambda vfs, root, fid: settle(vfs.setattr(fid, Changes(Set.SIZE, size=2))),
    "lengthen": lambda vfs, root, fid: settle(vfs.setattr(fid, Changes(Set.SIZE, size=200_000))),
    "link": lambda vfs, root, fid: settle(vfs.link(fid, root, b"link")),
    "setxattr": lambda vfs, root, fid: settle(vfs.setxattr(fid, b"user.a", b"1", XattrFlag(0))),
    "write": lambda vfs, root, fid: _rewrite(vfs, fid),
}


async def _rewrite(vfs: Vfs, fid: int) -> None:
    number = await open_file(vfs, fid, os.O_WRONLY)
    await settle(vfs.write(number, 1, memoryview(b"!!!")))
    await close(vfs, number)


@pytest.mark.parametrize("size", [10, 100_000])
@pytest.mark.parametrize("change", list(CHANGES))
async def test_a_change_by_one_is_seen_by_the_other_that_had_cached(world: World, change: str, size: int) -> None:
    one, two = await world.vfs(), await world.vfs()
    fid = await write_file(one, one.root, b"f", os.urandom(size))
    for _ in range(2):  # the second round begins with both caches warm
        for vfs in (one, two):
            await read_file(vfs, vfs.root, b"f")
            await settle(vfs.listxattr(fid))
            await names(vfs, vfs.root)
        await CHANGES[change](one, one.root, fid)
        mine, theirs = await settle(one.getattr(fid)), await settle(two.getattr(fid))
        assert (mine.attr.mode, mine.attr.uid, mine.attr.size) == (theirs.attr.mode, theirs.attr.uid, theirs.attr.size)
        assert (mine.attr.nlink, mine.attr.mtime_ns) == (theirs.attr.nlink, theirs.attr.mtime_ns)
        assert await read_file(one, one.root, b"f") == await read_file(two, two.root, b"f")
        assert await settle(one.listxattr(fid)) == await settle(two.listxattr(fid))
        assert await names(one, one.root) == await names(two, two.root)
        if change == "link":
            await settle(two.unlink(two.root, b"link"))
        one, two = two, one


async def test_names_that_come_and_go_are_seen_by_the_other(world: World) -> None:
    one, two = await world.vfs(), await world.vfs()
    root = one.root

    async def agree() -> None:
        for name in (b"a", b"b", b"d", b"s"):
            mine, theirs = await settle(one.lookup(root, name)), await settle(two.lookup(root, name))
            assert (mine.attr and mine.attr.fid) == (theirs.attr and theirs.attr.fid), name
        assert await names(one, root) == await names(two, root)

    await agree()
    await write_file(one, root, b"a", b"x")
    await agree()
    await settle(two.rename(root, b"a", root, b"b", RenameFlag(0)))
    await agree()
    await settle(one.mkdir(root, b"d", 0o755, CRED))
    await agree()
    await settle(two.symlink(root, b"s", b"b", CRED))
    await agree()
    await settle(one.rename(root, b"s", root, b"b", RenameFlag.EXCHANGE))
    await agree()
    await settle(two.unlink(root, b"b"))
    await agree()
    await settle(one.rmdir(root, b"d"))
    await agree()
    with pytest.raises(OSError, match=r".*") as caught:
        await settle(two.rmdir(root, b"d"))
    assert caught.value.errno == errno.ENOENT


async def test_an_unlinked_file_stays_readable_for_who_has_it_open(world: World) -> None:
    one, two = await world.vfs(), await world.vfs()
    for size in (10, 100_000):
        data = os.urandom(size)
        fid = await write_file(one, one.root, b"f", data)
        number = await open_file(two, fid, os.O_RDWR)
        await settle(one.unlink(one.root, b"f"))
        assert await read(two, number) == data
        await settle(two.write(number, 0, memoryview(b"mine")))
        assert await read(two, number) == b"mine" + data[4:]
        await close(two, number)
        await quiet(two)
        with pytest.raises(OSError, match=r".*") as caught:
            await open_file(one, fid)
        assert caught.value.errno == errno.ESTALE


async def test_a_file_that_its_own_opener_unlinks_lives_until_the_close(world: World) -> None:
    vfs = await world.vfs()
    found, handle = await settle(vfs.create(vfs.root, b"f", 0o644, os.O_RDWR | os.O_CREAT, CRED))
    assert found.attr is not None
    await settle(vfs.write(handle.number, 0, memoryview(b"data")))
    await settle(vfs.unlink(vfs.root, b"f"))
    assert (await settle(vfs.getattr(found.attr.fid))).attr.nlink == 0
    await settle(vfs.write(handle.number, 4, memoryview(bytes(100_000))))
    await settle(vfs.fsync(handle.number, False))
    assert (await read(vfs, handle.number))[:6] == b"data\0\0"
    await close(vfs, handle.number)
    await quiet(vfs)
    assert (await settle(vfs.getattr(found.attr.fid))).attr.nlink == 0  # for who may have a descriptor of it (O_PATH)
    with pytest.raises(OSError, match=r".*"):
        await open_file(vfs, found.attr.fid)


async def test_removing_a_file_that_is_still_to_be_committed_loses_nothing_else(world: World) -> None:
    vfs = await world.vfs()
    for _ in range(20):
        await write_file(vfs, vfs.root, b"f", b"short-lived")
        await settle(vfs.unlink(vfs.root, b"f"))
    await quiet(vfs)
    assert vfs.memory.used_bytes == 0
    assert not vfs.store.dirty


async def test_a_shared_directory_does_not_lose_its_lease_while_it_is_used(world: World) -> None:
    one, two = await world.vfs(), await world.vfs()
    await asyncio.gather(
        *(write_file(one, one.root, b"one%d" % index, b"x") for index in range(20)),
        *(write_file(two, two.root, b"two%d" % index, b"x") for index in range(20)),
    )
    assert await names(one, one.root) == await names(two, two.root)
    assert len(await names(one, one.root)) == 40
    await quiet(one)
    sent = Counting(one)
    await settle(two.lookup(two.root, b"one3"))
    assert not is_later(one.lookup(one.root, b"one5"))
    assert sent() == {}


async def test_a_listing_of_a_contended_directory_has_every_lasting_entry_once(world: World) -> None:
    one, two = await world.vfs(), await world.vfs()
    lasting = {b"keep%04d" % index for index in range(1500)}
    for name in lasting:
        await settle(one.mknod(one.root, name, 0o100644, 0, CRED))

    async def disturb() -> None:
        for index in range(60):
            await settle(two.mknod(two.root, b"m%d" % index, 0o100644, 0, CRED))
            await settle(two.unlink(two.root, b"m%d" % index))

    disturbing = asyncio.create_task(disturb())
    for _ in range(3):
        found = [entry.name for entry in await entries(one, one.root)]
        assert len(found) == len(set(found))
        assert lasting <= set(found)
    await disturbing


async def test_truncating_an_open_file_elsewhere_is_seen_by_its_writer(world: World) -> None:
    one, two = await world.vfs(), await world.vfs()
    fid = await write_file(one, one.root, b"f", b"")
    number = await open_file(one, fid, os.O_RDWR)
    await settle(one.write(number, 0, memoryview(bytes(range(256)) * 1000)))
    await settle(two.setattr(fid, Changes(Set.SIZE, size=1000)))
    assert await stat_size(one, fid) == 1000
    await settle(two.setattr(fid, Changes(Set.SIZE, size=300_000)))
    assert await read(one, number, 900, 1000) == (bytes(range(256)) * 4)[900:1000] + bytes(900)
    await close(one, number)


async def test_a_file_that_is_cut_while_it_is_opened_again_stays_cut(world: World) -> None:
    """Its objects are still as long as before when the only one who wrote without a lease has one again."""
    one, two = await world.vfs(), await world.vfs()
    fid = await write_file(one, one.root, b"f", b"")
    number = await open_file(one, fid, os.O_RDWR)
    await settle(one.write(number, 0, memoryview(bytes(500_000))))
    assert await stat_size(two, fid) == 500_000
    await settle(two.setattr(fid, Changes(Set.MODE, mode=0o600)))
    assert world.mds.mds.leases.unreported.keys() == {fid}, "it is written without a lease"
    again = await open_file(one, fid, os.O_WRONLY | os.O_TRUNC)
    for _ in range(3):
        assert await stat_size(two, fid) == 0
        assert await stat_size(one, fid) == 0
        await asyncio.sleep(0.01)
    await close(one, number)
    await close(one, again)


async def test_times_of_a_shared_file_change_with_writes_and_only_with_them(world: World) -> None:
    one, two = await world.vfs(), await world.vfs()
    fid = await write_file(one, one.root, b"f", bytes(300_000))
    await settle(one.setattr(fid, Changes(Set.MTIME, mtime_ns=5)))
    here = await open_file(one, fid, os.O_RDWR)
    await settle(one.write(here, 0, memoryview(b"first")))
    there = await open_file(two, fid, os.O_RDWR)

    async def times() -> tuple[int, int]:
        found = {(attr.mtime_ns, attr.ctime_ns) for attr in [(await settle(v.getattr(fid))).attr for v in (one, two)]}
        assert len(found) == 1
        return found.pop()

    async def unchanged(act: Awaitable[object]) -> None:
        before = await times()
        await act
        assert await times() == before

    before = await times()
    assert before[0] == before[1]
    for vfs, number in ((one, here), (two, there)):
        await settle(vfs.write(number, 200_000, memoryview(b"through")))
        after = await times()
        assert before < after
        assert after[0] == after[1]
        before = after
    await unchanged(settle(one.fsync(here, False)))
    await settle(two.setattr(fid, Changes(Set.MODE, mode=0o600)))
    assert (await times())[0] == before[0] < (await times())[1]
    await settle(two.setattr(fid, Changes(Set.MTIME, mtime_ns=7)))
    assert (await times())[0] == 7
    await unchanged(settle(one.fsync(here, False)))
    await settle(two.setattr(fid, Changes(Set.MTIME, mtime_ns=1 << 61)))
    await settle(one.write(here, 0, memoryview(b"now")))
    assert 7 < (await times())[0] < 1 << 61
    await unchanged(close(one, here))
    await unchanged(quiet(one))
    await unchanged(close(two, there))
    await unchanged(quiet(two))


async def test_appends_of_a_single_client_at_a_time_follow_each_other(world: World) -> None:
    one, two = await world.vfs(), await world.vfs()
    fid = await write_file(one, one.root, b"log", b"")
    for turn in range(6):
        vfs = one if turn % 2 else two
        number = await open_file(vfs, fid, os.O_WRONLY | os.O_APPEND)
        await settle(vfs.write(number, 0, memoryview(b"line %d\n" % turn)))
        await close(vfs, number)
    assert await read_file(one, one.root, b"log") == b"".join(b"line %d\n" % turn for turn in range(6))


async def test_appends_of_several_clients_at_one_moment_are_all_there(world: World) -> None:
    """Records of odd sizes, over the borders of stripes; some clients append through two handles."""
    clients = [await world.vfs() for _ in range(3)]
    fid = await write_file(clients[0], clients[0].root, b"log", b"")
    handles = [(vfs, await open_file(vfs, fid, os.O_RDWR | os.O_APPEND)) for vfs in (*clients, clients[0])]
    record = [bytes([65 + who]) * 7919 for who in range(len(handles))]

    async def append(who: int) -> None:
        vfs, number = handles[who]
        for _ in range(25):
            assert await settle(vfs.write(number, 0, memoryview(record[who]))) == 7919

    await asyncio.gather(*map(append, range(len(handles))))
    data = b""
    while part := await read(*handles[1], len(data)):
        data += part
    records = [data[at : at + 7919] for at in range(0, len(data), 7919)]
    assert sorted(records) == sorted(record * 25)
    for vfs, number in handles:
        await close(vfs, number)
    for vfs in clients:
        await quiet(vfs)
        assert not vfs.session.appends
    assert await read_file(clients[2], clients[2].root, b"log") == data
    assert not world.mds.mds.leases.turns.taken


async def test_appends_and_cuts_of_several_clients_leave_no_hole(world: World) -> None:
    one, two = await world.vfs(), await world.vfs()
    fid = await write_file(one, one.root, b"log", b"")
    here, there = [await open_file(vfs, fid, os.O_RDWR | os.O_APPEND) for vfs in (one, two)]

    async def append(vfs: Vfs, number: int) -> None:
        for _ in range(40):
            await settle(vfs.write(number, 0, memoryview(b"x" * 5000)))

    async def cut() -> None:
        for _ in range(10):
            await settle(two.setattr(fid, Changes(Set.SIZE, size=0)))
            await asyncio.sleep(0.002)

    await asyncio.gather(append(one, here), append(two, there), cut())
    data = b""
    while part := await read(one, here, len(data)):
        data += part
    assert data == b"x" * len(data)
    assert not len(data) % 5000
    await close(one, here)
    await close(two, there)


async def test_an_append_costs_nothing_more_while_nobody_else_writes(world: World) -> None:
    vfs = await world.vfs()
    fid = await write_file(vfs, vfs.root, b"log", b"")
    await quiet(vfs)
    number = await open_file(vfs, fid, os.O_WRONLY | os.O_APPEND)
    count = Counting(vfs)
    for _ in range(10):
        assert not is_later(written := vfs.write(number, 0, memoryview(b"line\n"))) or await settle(written) == 5
    assert count() == {}
    await close(vfs, number)


async def test_append_can_be_switched_on_and_off(world: World) -> None:
    vfs = await world.vfs()
    fid = await write_file(vfs, vfs.root, b"f", b"0123456789")
    number = await open_file(vfs, fid, os.O_WRONLY)
    await settle(vfs.write(number, 0, memoryview(b"end"), os.O_WRONLY | os.O_APPEND))
    await settle(vfs.write(number, 0, memoryview(b"X"), os.O_WRONLY))
    await close(vfs, number)
    assert await read_file(vfs, vfs.root, b"f") == b"X123456789end"


@pytest.mark.parametrize("unlink_first", [False, True])
@pytest.mark.parametrize("size", [100, 300_000])
async def test_what_was_written_before_the_last_close_is_read_by_who_has_the_unlinked_file_open(
    world: World, size: int, unlink_first: bool
) -> None:
    one, two = await world.vfs(), await world.vfs()
    fid = await write_file(one, one.root, b"f", b"old")
    await quiet(one)
    there = await open_file(two, fid)
    here = await open_file(one, fid, os.O_RDWR)
    data = os.urandom(size)
    if unlink_first:
        await settle(one.unlink(one.root, b"f"))
    await settle(one.write(here, 0, memoryview(data)))
    await close(one, here)
    if not unlink_first:
        await settle(one.unlink(one.root, b"f"))
    assert await read(two, there, 0, size + 1) == data
    await close(two, there)
    await quiet(one)
    await quiet(two)
    with pytest.raises(OSError, match="does not exist any more"):
        await open_file(two, fid)


async def test_a_layout_that_is_given_to_an_empty_file_is_its_writers_too(world: World) -> None:
    """The client that asked for it has written under the old one before, where nobody else looks."""
    one, other = await world.vfs(), await world.vfs()
    fid = await write_file(one, ROOT, b"f", b"")
    await settle(one.setxattr(fid, b"nacre.layout", b"stripe_count=1 stripe_size=1048576", XattrFlag(0)))
    handle = await open_file(one, fid, os.O_WRONLY)
    await settle(one.write(handle, 0, memoryview(bytes(range(256)) * 1000)))
    await close(one, handle)
    assert await read_file(other, ROOT, b"f") == bytes(range(256)) * 1000
