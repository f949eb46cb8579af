"""After an unclean stop: which objects are in doubt, and sums anew from their bytes."""

import contextlib
import errno
import logging
import os
import time
from collections.abc import AsyncGenerator, Iterator
from typing import Final

from nacrefs.common.buffers import page_aligned
from nacrefs.common.checksum import SUM_BYTES, block_sums
from nacrefs.common.layout import BLOCK_BYTES
from nacrefs.oss import blockio
from nacrefs.oss.blockio import IoThreads
from nacrefs.oss.durability import Durability, unpin
from nacrefs.oss.index import PAGE_BLOCKS, Index
from nacrefs.oss.object import DIRTY, StoredObject
from nacrefs.oss.sums import PAGE_BYTES, ZERO_SUM

_log = logging.getLogger(__name__)
_SHIFT: Final = 16
_MASK: Final = BLOCK_BYTES - 1
_SCAN_RECORDS: Final = 2000
DIRECTORIES: Final = 256
"""How many directories of directories of objects an OST may have."""


async def objects_in_doubt(
    index: Index, objects_root: str, threads: IoThreads
) -> AsyncGenerator[tuple[int, int], None]:
    """The objects `(fid, number)` that the index has marked dirty, then those of whose files it knows nothing."""
    after: tuple[int, int] | None = (0, 0)
    while after is not None:
        dirty, after = await threads.run(index.scan, after, _SCAN_RECORDS)
        for key in dirty:
            yield key
    for directory in await threads.run(_directories, objects_root):
        for key in await threads.run(_unknown, index, directory):
            yield key


async def rehash_object(stored: StoredObject, threads: IoThreads, durability: Durability) -> None:
    """Make an object fit its bytes; ends its `turning`, with an error if the file cannot be read."""
    turning = stored.turning
    assert turning is not None
    stored.pins += 1
    try:
        size, pages = await threads.run(rehash, stored.fd)
    except OSError as error:
        failed = OSError(error.errno, f"{stored.name}: cannot be re-hashed: {error.strerror}", stored.path)
        _log.error("%s", failed)
        turning.set_exception(failed)
        turning.exception()
    else:
        stored.sums.replace(pages)
        stat = os.fstat(stored.fd)
        stored.size, stored.mtime_ns = size, stat.st_mtime_ns
        stored.allocated_bytes = stat.st_blocks * 512
        stored.version = max(stored.version + 1, time.time_ns())
        stored.state = DIRTY
        durability.entered(stored.directory)  # whether its name is durable is not known either
        durability.changed(stored, 0)
        turning.set_result(None)
    finally:
        stored.turning = None
        unpin(stored)


def rehash(fd: int) -> tuple[int, dict[int, bytearray]]:
    """Size of a file and the pages of sums of its bytes; skips holes. Waits for the disk: for threads."""
    size = os.fstat(fd).st_size
    pages: dict[int, bytearray] = {}
    buffer = memoryview(page_aligned(16 * BLOCK_BYTES))
    offset = 0
    while offset < size:
        try:
            offset = os.lseek(fd, offset, os.SEEK_DATA) & ~_MASK
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            offset = size & ~_MASK  # only a hole is left; a short last block needs a sum of its own
            if not size & _MASK:
                break
        end = min(size, max(os.lseek(fd, offset, os.SEEK_HOLE), offset + 1))
        end = min(size, (end + _MASK) & ~_MASK)
        while offset < end:
            view = buffer[: min(end - offset, len(buffer))]
            if (short := blockio.load(fd, (blockio.Load(offset, view),))) is not None:
                raise OSError(errno.EIO, f"the object file became shorter ({short} bytes) while it was read")
            sums = block_sums(view, offset)
            while sums:
                number, at = divmod(offset >> _SHIFT, PAGE_BLOCKS)
                page = pages.setdefault(number, bytearray())
                page.extend(ZERO_SUM * (at - len(page) // SUM_BYTES))
                part = sums[: PAGE_BYTES - at * SUM_BYTES]
                page[at * SUM_BYTES : at * SUM_BYTES + len(part)] = part
                sums = sums[len(part) :]
                offset = min(end, ((offset >> _SHIFT) + len(part) // SUM_BYTES) << _SHIFT)
    return size, pages


def unknown_objects(index: Index, objects_root: str, outer: int) -> list[tuple[int, int]]:
    """The objects of which the index knows nothing, in one of the `DIRECTORIES`."""
    found: list[tuple[int, int]] = []
    with contextlib.suppress(FileNotFoundError):
        for inner in os.scandir(f"{objects_root}/{outer:02x}"):
            if inner.is_dir():
                found.extend(_unknown(index, inner.path))
    return found


def _unknown(index: Index, directory: str) -> list[tuple[int, int]]:
    return [key for key in _object_files(directory) if not index.knows(*key)]


def _directories(root: str) -> list[str]:
    """The object directories below `objects/`."""
    return [
        inner.path
        for outer in sorted(os.scandir(root), key=lambda entry: entry.name)
        if outer.is_dir()
        for inner in os.scandir(outer.path)
        if inner.is_dir()
    ]


def _object_files(directory: str) -> Iterator[tuple[int, int]]:
    """The objects `(fid, number)` whose files are in a directory; other files are ignored."""
    for name in os.listdir(directory):
        fid, dot, number = name.partition(".")
        try:
            if dot and len(fid) == 16:
                yield int(fid, 16), int(number)
        except ValueError:
            continue
