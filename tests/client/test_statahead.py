"""Walking through a directory by name: the next names come before they are asked for, and they are never stale."""

import asyncio
import os

from nacrefs.client.config import ReadConfig
from nacrefs.client.filesystem import Changes
from nacrefs.client.vfs import Vfs
from nacrefs.common.answer import settle
from nacrefs.common.wire import Set
from tests.client.world import Counting, World, close, entries, open_file, quiet, read, write_file


async def _directory(world: World, count: int, size: int = 100) -> tuple[Vfs, Vfs, dict[bytes, bytes]]:
    """A writer that has made files, a reader that knows nothing yet, and what is in the files."""
    writer, reader = await world.vfs(), await world.vfs()
    contents = {b"f%04d" % index: os.urandom(size) for index in range(count)}
    for name, data in contents.items():
        await write_file(writer, writer.root, name, data)
    await quiet(writer)
    return writer, reader, contents


async def _size(vfs: Vfs, name: bytes) -> int:
    found = await settle(vfs.lookup(vfs.root, name))
    assert found.attr is not None
    return found.attr.size


async def _contents(vfs: Vfs, name: bytes) -> bytes:
    found = await settle(vfs.lookup(vfs.root, name))
    assert found.attr is not None
    number = await open_file(vfs, found.attr.fid)
    data = await read(vfs, number)
    await close(vfs, number)
    return data


async def test_a_walk_in_name_order_costs_a_request_per_window(world: World) -> None:
    _, reader, contents = await _directory(world, 300)
    sent = Counting(reader)
    for name, data in contents.items():
        assert await _size(reader, name) == len(data)
    await quiet(reader)
    counted = sent()
    assert counted["Lookup"] == 8
    assert counted["Readdir"] <= 6
    assert set(counted) == {"Lookup", "Readdir"}


async def test_out_of_order_nothing_is_fetched_that_was_not_asked_for(world: World) -> None:
    _, reader, contents = await _directory(world, 40)
    sent = Counting(reader)
    for name in reversed(contents):
        assert await _size(reader, name) == 100
    assert sent() == {"Lookup": 40}


async def test_a_walk_that_opens_the_files_gets_their_contents_too(world: World) -> None:
    _, reader, contents = await _directory(world, 200, size=3000)
    sent = Counting(reader)
    for name, data in contents.items():
        assert await _contents(reader, name) == data
    await quiet(reader)
    counted = sent()
    assert counted["Lookup"] + counted["Open"] <= 20
    assert counted["Readdir"] <= 14
    assert set(counted) == {"Lookup", "Open", "Readdir"}


async def test_files_on_osts_need_no_word_with_the_mds_after_the_walk_has_seen_them(world: World) -> None:
    _, reader, contents = await _directory(world, 60, size=40_000)
    sent = Counting(reader)
    for name, data in contents.items():
        assert await _contents(reader, name) == data
    await quiet(reader)
    counted = sent()
    assert counted["Read"] == 60
    assert counted["Lookup"] + counted["Open"] <= 20


async def test_what_came_ahead_is_as_true_as_what_was_asked_for(world: World) -> None:
    writer, reader, contents = await _directory(world, 60, size=200)
    names = list(contents)
    for name in names[:10]:
        assert await _contents(reader, name) == contents[name]
    await quiet(reader)
    fids = {name: (await settle(writer.lookup(writer.root, name))).attr for name in names[10:16]}
    changed, cut, gone, mode, moved, new = names[10:16]
    number = await open_file(writer, fids[changed].fid, os.O_WRONLY)  # type: ignore[union-attr]
    await settle(writer.write(number, 0, memoryview(b"new")))
    await close(writer, number)
    await settle(writer.setattr(fids[cut].fid, Changes(Set.SIZE, size=7)))  # type: ignore[union-attr]
    await settle(writer.unlink(writer.root, gone))
    await settle(writer.setattr(fids[mode].fid, Changes(Set.MODE, mode=0o600)))  # type: ignore[union-attr]
    await settle(writer.unlink(writer.root, moved))
    await write_file(writer, writer.root, moved, b"another file")
    assert await _contents(reader, changed) == b"new" + contents[changed][3:]
    assert await _contents(reader, cut) == contents[cut][:7]
    assert (await settle(reader.lookup(reader.root, gone))).attr is None
    found = await settle(reader.lookup(reader.root, mode))
    assert found.attr is not None
    assert found.attr.mode & 0o777 == 0o600
    assert await _contents(reader, moved) == b"another file"
    assert await _contents(reader, new) == contents[new]


async def test_opens_that_follow_a_listing_get_contents_ahead(world: World) -> None:
    _, reader, contents = await _directory(world, 200, size=3000)
    fids = {entry.name: entry.attr.fid for entry in await entries(reader, reader.root)}
    sent = Counting(reader)
    for name, data in contents.items():
        number = await open_file(reader, fids[name])
        assert await read(reader, number) == data
        await close(reader, number)
        await asyncio.sleep(0)  # a kernel gives the event loop its turn, too
    await quiet(reader)
    counted = sent()
    assert counted["Open"] == 8
    assert counted["Readdir"] <= 12
    assert set(counted) == {"Open", "Readdir"}


async def test_with_ahead_entries_0_each_name_is_asked_for_alone(world: World) -> None:
    writer = await world.vfs()
    reader = await world.vfs(read=ReadConfig(ahead_entries=0))
    for index in range(30):
        await write_file(writer, writer.root, b"f%02d" % index, b"x")
    await quiet(writer)
    sent = Counting(reader)
    for index in range(30):
        assert await _size(reader, b"f%02d" % index) == 1
    assert sent() == {"Lookup": 30}
