"""File system calls of the data path: reads that do not wait, writes, holes, and threads for what waits.

Nothing here knows objects or checksums. What may wait for the disk is either told not to (`RWF_NOWAIT`: the page cache
answers or nobody) or is run in `IoThreads`. Buffered writes are done inline: the kernel refuses RWF_NOWAIT for them on
ext4 (EOPNOTSUPP), and a copy into the page cache costs less than a hand-over to a thread (docs/adr/0004).
"""

import asyncio
import ctypes
import errno
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple, ParamSpec, TypeVar

from nacrefs.common import faults

P = ParamSpec("P")
T = TypeVar("T")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_libc.syncfs.argtypes = [ctypes.c_int]
_libc.sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
_FALLOC_FL_KEEP_SIZE: Final = 1
_FALLOC_FL_PUNCH_HOLE: Final = 2
_SYNC_FILE_RANGE_WRITE: Final = 2


class Load(NamedTuple):
    """A piece of a file to be read: `view` is to hold the bytes from `offset` on."""

    offset: int
    view: memoryview


def load_cached(fd: int, loads: Sequence[Load]) -> list[Load]:
    """Fill what the page cache can fill; returns what is still to be read, in order. Never waits for the disk."""
    missing: list[Load] = []
    for load in loads:
        offset, view = load
        try:
            got = os.preadv(fd, (view,), offset, os.RWF_NOWAIT)
        except OSError as error:
            # EOPNOTSUPP: a file system that cannot tell (tmpfs, NFS). A thread reads there.
            if error.errno not in (errno.EAGAIN, errno.EOPNOTSUPP):
                raise
            missing.append(load)
            continue
        if got < len(view):
            missing.append(Load(offset + got, view[got:]))
    return missing


def load(fd: int, loads: Sequence[Load]) -> int | None:
    """Fill all pieces, waiting for the disk. Returns the offset at which the file ended too early, or None."""
    for offset, view in loads:
        while view:
            got = os.preadv(fd, (view,), offset)
            if not got:
                return offset
            offset += got
            view = view[got:]
    return None


def warm(fd: int, ranges: Sequence[tuple[int, int]]) -> None:
    """Read ranges `(offset, length)` so that the page cache has them."""
    for offset, length in ranges:
        os.pread(fd, length, offset)


def store(fd: int, view: memoryview, offset: int) -> None:
    """Write all of `view` at `offset` into the page cache."""
    if faults.on:
        faults.hit("oss.change.before")
    written = os.pwrite(fd, view, offset)
    while written < len(view):
        if not written:
            raise OSError(errno.EIO, "a write of the object file made no progress")
        view = view[written:]
        offset += written
        written = os.pwrite(fd, view, offset)
    if faults.on:
        faults.hit("oss.change.after")


def punch(fd: int, offset: int, length: int) -> None:
    """Deallocate `[offset, offset + length)`, which then reads as zeros; the file's size stays."""
    if faults.on:
        faults.hit("oss.change.before")
    if _libc.fallocate(fd, _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE, offset, length):
        number = ctypes.get_errno()
        raise OSError(number, f"cannot punch a hole into the object file: {os.strerror(number)}")
    if faults.on:
        faults.hit("oss.change.after")


def cut(fd: int, size: int) -> None:
    """Cut a file at `size`."""
    if faults.on:
        faults.hit("oss.change.before")
    os.ftruncate(fd, size)
    if faults.on:
        faults.hit("oss.change.after")


def sync_filesystem(fd: int) -> None:
    """Make everything durable that was written to the file system of a descriptor. The descriptor should be an old one:
    it is told of every write-back error since it was opened."""
    if _libc.syncfs(fd):
        number = ctypes.get_errno()
        raise OSError(number, f"syncfs failed: {os.strerror(number)}")


def begin_writeback(fd: int) -> None:
    """Have the disk begin with what is dirty of a file. Nothing is promised: whoever syncs later waits less."""
    _libc.sync_file_range(fd, 0, 0, _SYNC_FILE_RANGE_WRITE)


def sync_directory(directory: str) -> None:
    """Make the names in a directory durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class IoThreads:
    """The threads in which file system calls may wait."""

    def __init__(self, count: int, name: str = "oss-io", begin: Callable[[], None] | None = None) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix=name, initializer=begin)

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of `call`, made in a thread. It is waited for even if the waiter is cancelled: its buffers and
        descriptors are in use until it ends."""
        future = asyncio.wrap_future(self._pool.submit(call, *args, **kwargs))
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            while not future.done():
                try:
                    await asyncio.wait((future,))
                except asyncio.CancelledError:
                    continue
            if not future.cancelled():
                future.exception()
            raise

    def close(self) -> None:
        """End the threads once they are idle."""
        self._pool.shutdown()
