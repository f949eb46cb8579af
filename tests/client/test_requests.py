"""What each operation costs in requests: the table of ARCHITECTURE §7, exactly."""

import asyncio
import os

from nacrefs.client.filesystem import Changes
from nacrefs.common.answer import is_later, settle
from nacrefs.common.wire import RenameFlag, Set, XattrFlag
from tests.client.world import CRED, Counting, World, close, entries, open_file, quiet, read, write_file


async def test_a_cold_lookup_is_one_request_and_a_leased_one_none(world: World) -> None:
    writer, reader = await world.vfs(), await world.vfs()
    await write_file(writer, writer.root, b"a", b"x")
    await quiet(writer)
    sent = Counting(reader)
    found = await settle(reader.lookup(reader.root, b"a"))
    assert sent() == {"Lookup": 1}
    assert found.attr is not None
    assert found.attr_cacheable
    assert found.entry_cacheable
    again = reader.lookup(reader.root, b"a")
    assert not is_later(again)
    assert not is_later(reader.getattr(found.attr.fid))
    assert sent() == {}


async def test_a_negative_lookup_is_one_request_then_none(world: World) -> None:
    vfs = await world.vfs()
    sent = Counting(vfs)
    found = await settle(vfs.lookup(vfs.root, b"absent"))
    assert found.attr is None
    assert found.entry_cacheable
    assert sent() == {"Lookup": 1}
    assert not is_later(vfs.lookup(vfs.root, b"absent"))
    assert sent() == {}


async def test_a_listed_directory_answers_for_names_that_others_have_not_changed(world: World) -> None:
    vfs, other = await world.vfs(), await world.vfs()
    await write_file(vfs, vfs.root, b"mine", b"x")
    assert [entry.name for entry in await entries(vfs, vfs.root)] == [b"mine"]
    assert not is_later(vfs.lookup(vfs.root, b"absent"))
    await write_file(other, other.root, b"theirs", b"x")
    await quiet(vfs)
    sent = Counting(vfs)
    assert not is_later(vfs.lookup(vfs.root, b"still absent"))
    assert not is_later(vfs.lookup(vfs.root, b"mine"))
    assert sent() == {}
    found = await settle(vfs.lookup(vfs.root, b"theirs"))
    assert found.attr is not None
    assert sent() == {"Lookup": 1}
    await settle(other.unlink(other.root, b"theirs"))
    await settle(other.unlink(other.root, b"mine"))
    await quiet(vfs)
    assert [entry.name for entry in await entries(vfs, vfs.root)] == []


async def test_changes_are_one_request_each_and_teach_the_cache(world: World) -> None:
    vfs = await world.vfs()
    root = vfs.root
    await settle(vfs.getattr(root))
    sent = Counting(vfs)
    made = await settle(vfs.mkdir(root, b"d", 0o755, CRED))
    assert made.attr is not None
    assert sent() == {"Mkdir": 1}
    found, handle = await settle(vfs.create(made.attr.fid, b"f", 0o644, os.O_RDWR | os.O_CREAT, CRED))
    assert found.attr is not None
    assert sent() == {"Create": 1}
    await close(vfs, handle.number)
    await settle(vfs.setattr(found.attr.fid, Changes(Set.MODE, mode=0o600)))
    assert sent() == {"SetAttr": 1}
    await settle(vfs.rename(made.attr.fid, b"f", root, b"g", RenameFlag(0)))
    assert sent() == {"Rename": 1}
    assert not is_later(vfs.lookup(made.attr.fid, b"f"))
    moved = vfs.lookup(root, b"g")
    assert not is_later(moved)
    assert not is_later(vfs.getattr(root))
    assert not is_later(vfs.getattr(made.attr.fid))
    await settle(vfs.symlink(root, b"l", b"g", CRED))
    assert sent() == {"Symlink": 1}
    await settle(vfs.link(found.attr.fid, root, b"h"))
    assert sent() == {"Link": 1}
    await settle(vfs.unlink(root, b"g"))
    assert sent() == {"Unlink": 1}
    await settle(vfs.rmdir(root, b"d"))
    assert sent() == {"Rmdir": 1}
    assert not is_later(vfs.lookup(root, b"d"))
    assert [entry.name for entry in await entries(vfs, root)] == [b"h", b"l"]


async def test_create_write_and_close_of_a_small_file_are_two_requests_and_close_does_not_wait(world: World) -> None:
    vfs = await world.vfs()
    sent = Counting(vfs)
    _, handle = await settle(vfs.create(vfs.root, b"f", 0o644, os.O_WRONLY | os.O_CREAT, CRED))
    assert not is_later(vfs.write(handle.number, 0, memoryview(bytes(4096))))
    assert not is_later(vfs.flush(handle.number))
    assert not is_later(vfs.release(handle.number))
    assert sent() == {"Create": 1}
    await quiet(vfs)
    assert sent() == {"Commit": 1}


async def test_contents_up_to_the_directory_s_limit_live_in_the_mdt_and_above_on_osts(world: World) -> None:
    vfs = await world.vfs()
    for limit, sizes in ((0, {1: False}), (4096, {4096: True, 4097: False}), (65536, {65536: True, 65537: False})):
        made = await settle(vfs.mkdir(vfs.root, b"%d" % limit, 0o755, CRED))
        assert made.attr is not None
        await settle(vfs.setxattr(made.attr.fid, b"nacre.layout", b"inline=%d" % limit, XattrFlag(0)))
        for size, inline in sizes.items():
            sent = Counting(vfs)
            data = os.urandom(size)
            fid = await write_file(vfs, made.attr.fid, b"%d" % size, data)
            await quiet(vfs)
            assert ("Write" not in sent()) == inline, (limit, size)
            reader = await world.vfs()
            number = await open_file(reader, fid)
            assert await read(reader, number, 0, size) == data
            await close(reader, number)


async def test_open_for_reading_is_one_request_cold_and_none_leased(world: World) -> None:
    writer, reader = await world.vfs(), await world.vfs()
    fid = await write_file(writer, writer.root, b"f", b"contents")
    await quiet(writer)
    sent = Counting(reader)
    number = await open_file(reader, fid)
    assert sent() == {"Open": 1}
    assert await read(reader, number) == b"contents"
    await close(reader, number)
    number = await open_file(reader, fid)
    assert await read(reader, number) == b"contents"
    await close(reader, number)
    await quiet(reader)
    assert sent() == {}


async def test_lookups_that_are_followed_by_opens_bring_the_data_along(world: World) -> None:
    writer, reader = await world.vfs(), await world.vfs()
    for index in range(8):
        await write_file(writer, writer.root, b"f%d" % index, b"contents")
    await quiet(writer)
    sent = Counting(reader)
    for index in range(8):
        found = await settle(reader.lookup(reader.root, b"f%d" % index))
        assert found.attr is not None
        number = await open_file(reader, found.attr.fid)
        assert await read(reader, number) == b"contents"
        await close(reader, number)
    counted = sent()
    assert counted["Lookup"] == 8
    assert counted["Open"] <= 2


async def test_a_read_of_one_stripe_is_one_request_to_an_oss(world: World) -> None:
    writer, reader = await world.vfs(), await world.vfs()
    fid = await write_file(writer, writer.root, b"f", os.urandom(200 << 10))
    await quiet(writer)
    number = await open_file(reader, fid)
    sent = Counting(reader)
    await read(reader, number, 4096, 8192)
    assert sent() == {"Read": 1}
    await close(reader, number)


async def test_listing_with_attributes_is_one_request_per_thousand_entries_then_none(world: World) -> None:
    writer, reader = await world.vfs(), await world.vfs()
    for index in range(1200):
        await settle(writer.mknod(writer.root, b"n%04d" % index, 0o100644, 0, CRED))
    sent = Counting(reader)
    found = await entries(reader, reader.root)
    assert [entry.name for entry in found] == [b"n%04d" % index for index in range(1200)]
    assert sent() == {"Readdir": 2}
    for entry in found:
        assert not is_later(reader.lookup(reader.root, entry.name))
    assert len(await entries(reader, reader.root)) == 1200
    assert sent() == {}


async def test_random_reads_fetch_what_they_ask_for(world: World) -> None:
    writer, reader = await world.vfs(), await world.vfs()
    size = 4 << 20
    data = os.urandom(size)
    fid = await write_file(writer, writer.root, b"f", data)
    await quiet(writer)
    number = await open_file(reader, fid)
    sent = Counting(reader)
    places = [(index * 7919 * 4096 + 12288) % (size - 4096) for index in range(100)]
    for place in places:
        assert await read(reader, number, place, 4096) == data[place : place + 4096]
    assert sum(sent().values()) <= 150
    await asyncio.sleep(0)  # buffers are given back in the loop's next turn
    assert reader.memory.used_bytes == 0
    await close(reader, number)


async def test_a_cached_getattr_of_xattrs_needs_no_request(world: World) -> None:
    vfs = await world.vfs()
    fid = await write_file(vfs, vfs.root, b"f", b"")
    sent = Counting(vfs)
    assert not is_later(vfs.listxattr(fid))
    assert sent() == {}


async def test_whether_a_shared_file_is_setid_is_asked_once_and_not_for_each_write(world: World) -> None:
    vfs, other = await world.vfs(), await world.vfs()
    fid = await write_file(vfs, vfs.root, b"f", bytes(100_000))
    here, there = await open_file(vfs, fid, os.O_RDWR), await open_file(other, fid, os.O_RDWR)
    await settle(vfs.write(here, 0, memoryview(b"x")))
    assert vfs.may_be_setid(fid), "nobody has asked"
    await settle(vfs.getattr(fid))
    sent = Counting(vfs)
    for offset in range(3):
        assert not vfs.may_be_setid(fid)
        await settle(vfs.write(here, offset, memoryview(b"x")))
    assert sent() == {"Write": 3}
    await settle(other.setattr(fid, Changes(Set.MODE, mode=0o4755)))
    assert vfs.may_be_setid(fid)
    await settle(vfs.getattr(fid))
    assert vfs.may_be_setid(fid)
    await settle(other.setattr(fid, Changes(Set.MODE, mode=0o755)))
    await settle(vfs.getattr(fid))
    assert not vfs.may_be_setid(fid)
    await close(vfs, here)
    await close(other, there)
