"""Open files of the SDK: `AsyncFile` for coroutines, `RawFile` for everybody who takes Python's file objects."""

import errno
import fcntl
import io
import os
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from nacrefs.client.filesystem import Changes, LockWait
from nacrefs.client.vfs import Vfs
from nacrefs.common.answer import settle
from nacrefs.common.lockranges import TO_EOF
from nacrefs.common.wire import LockKind, LockStyle, Set

T = TypeVar("T")
Buffer = bytes | bytearray | memoryview
TRANSFER_BYTES: Final = 8 << 20
"""Most bytes in one read or write of the vfs."""


class AsyncFile:
    """An open file. Reads and writes at explicit offsets may run at the same time; `position` is for the others."""

    def __init__(self, vfs: Vfs, fid: int, number: int, flags: int, path: str) -> None:
        self.fid = fid
        self.name = path
        self.position = 0
        self.closed = False
        self._vfs = vfs
        self._number = number
        self._append = bool(flags & os.O_APPEND)

    async def __aenter__(self) -> "AsyncFile":
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    def _check(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")

    async def pread_into(self, target: memoryview, offset: int) -> int:
        """Fill `target` from `offset`; how many bytes there were (fewer only at the end of the file)."""
        self._check()
        done = 0
        while done < len(target):
            part = min(TRANSFER_BYTES, len(target) - done)
            got = done
            for buffer in await settle(self._vfs.read(self._number, offset + done, part)):
                target[done : done + len(buffer)] = buffer
                done += len(buffer)
            if done - got < part:
                break
        return done

    async def pread(self, size: int, offset: int) -> bytes:
        """Up to `size` bytes from `offset`."""
        self._check()
        if size <= TRANSFER_BYTES:
            buffers = await settle(self._vfs.read(self._number, offset, size))
            return bytes(buffers[0]) if len(buffers) == 1 else b"".join(buffers)
        target = bytearray(size)
        del target[await self.pread_into(memoryview(target), offset) :]
        return bytes(target)

    async def pwrite(self, data: Buffer, offset: int) -> int:
        """Write all of `data` at `offset`. Bytes are not copied; other buffers are."""
        self._check()
        view = memoryview(data if isinstance(data, bytes) else bytes(data))
        for at in range(0, len(view), TRANSFER_BYTES):
            part = view[at : at + TRANSFER_BYTES]
            if await settle(self._vfs.write(self._number, offset + at, part)) < len(part):
                raise OSError(errno.EDQUOT, "the quota of the file's owner is used up")
        return len(view)

    async def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes from the present position (all that is left if negative)."""
        if size < 0:
            size = max(0, await self.size() - self.position)
        data = await self.pread(size, self.position)
        self.position += len(data)
        return data

    async def readinto(self, target: memoryview) -> int:
        """Fill `target` from the present position."""
        count = await self.pread_into(target, self.position)
        self.position += count
        return count

    async def write(self, data: Buffer) -> int:
        """Write all of `data` at the present position, or at the end of a file opened for appending."""
        count = await self.pwrite(data, self.position)
        self.position = await self.size() if self._append else self.position + count
        return count

    async def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position as lseek(2), SEEK_DATA and SEEK_HOLE included."""
        self._check()
        if whence in (os.SEEK_DATA, os.SEEK_HOLE):
            offset = await settle(self._vfs.lseek(self._number, offset, whence))
        elif whence == os.SEEK_CUR:
            offset += self.position
        elif whence == os.SEEK_END:
            offset += await self.size()
        elif whence != os.SEEK_SET:
            raise OSError(errno.EINVAL, f"whence {whence} is unknown")
        if offset < 0:
            raise OSError(errno.EINVAL, "the position would be negative")
        self.position = offset
        return offset

    async def size(self) -> int:
        """The file's size."""
        self._check()
        return (await settle(self._vfs.getattr(self.fid, self._number))).attr.size

    async def truncate(self, size: int | None = None) -> int:
        """Set the size (default: the present position)."""
        self._check()
        size = self.position if size is None else size
        await settle(self._vfs.setattr(self.fid, Changes(Set.SIZE, size=size), self._number))
        return size

    async def fsync(self) -> None:
        """Make all that was written durable."""
        self._check()
        await settle(self._vfs.fsync(self._number, False))

    async def lockf(self, operation: int, length: int = 0, start: int = 0, whence: int = os.SEEK_SET) -> None:
        """Lock or unlock bytes, as `fcntl.lockf`: LOCK_SH, LOCK_EX or LOCK_UN, with LOCK_NB EAGAIN instead of waiting;
        `length` 0 means to the end of every file. These are the locks that programs on mounts take with fcntl(2); the
        owner is this open file. EDEADLK if waiting would never end."""
        kind = _kind(operation)
        if whence == os.SEEK_CUR:
            start += self.position
        elif whence == os.SEEK_END:
            start += await self.size()
        if length < 0:
            start, length = start + length, -length
        if start < 0:
            raise OSError(errno.EINVAL, "the lock would begin before the file")
        await self._lock(LockStyle.POSIX, kind, start, min(start + length, TO_EOF) if length else TO_EOF, operation)

    async def flock(self, operation: int) -> None:
        """Lock or unlock the whole file, as `fcntl.flock`: LOCK_SH, LOCK_EX or LOCK_UN, with LOCK_NB EAGAIN instead of
        waiting."""
        await self._lock(LockStyle.FLOCK, _kind(operation), 0, TO_EOF, operation)

    async def _lock(self, style: LockStyle, kind: LockKind, start: int, end: int, operation: int) -> None:
        self._check()
        wait = None if operation & fcntl.LOCK_NB else LockWait()
        await settle(self._vfs.set_lock(self._number, self._number, style, kind, start, end, os.getpid(), wait))

    async def allocate(self, mode: int, offset: int, length: int) -> None:
        """fallocate(2)."""
        self._check()
        await settle(self._vfs.fallocate(self._number, mode, offset, length))

    async def close(self) -> None:
        """Close; OSError if something that was written before could not be stored."""
        if self.closed:
            return
        self.closed = True
        try:
            await settle(self._vfs.flush(self._number, self._number))
        finally:
            await settle(self._vfs.release(self._number))


class RawFile(io.RawIOBase):
    """An `AsyncFile` as an unbuffered Python file; `wait` runs a coroutine in the client's loop."""

    def __init__(self, file: AsyncFile, flags: int, wait: "Callable[[Coroutine[Any, Any, Any]], Any]") -> None:
        super().__init__()
        self.name = file.name
        self._file = file
        self._wait = wait
        access = flags & os.O_ACCMODE
        self._readable = access != os.O_WRONLY
        self._writable = access != os.O_RDONLY

    def readable(self) -> bool:
        """Whether it was opened for reading."""
        return self._readable

    def writable(self) -> bool:
        """Whether it was opened for writing."""
        return self._writable

    def seekable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer, without a copy in between where the bytes come from."""
        count: int = self._wait(self._file.readinto(memoryview(buffer).cast("B")))
        return count

    def write(self, data: Any) -> int:
        """Write all of it."""
        count: int = self._wait(self._file.write(bytes(data)))
        return count

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move the position."""
        position: int = self._wait(self._file.seek(offset, whence))
        return position

    def tell(self) -> int:
        """The position."""
        return self._file.position

    def truncate(self, size: int | None = None, /) -> int:
        """Set the size."""
        result: int = self._wait(self._file.truncate(size))
        return result

    def fsync(self) -> None:
        """Make all that was written durable."""
        self._wait(self._file.fsync())

    def lockf(self, operation: int, length: int = 0, start: int = 0, whence: int = os.SEEK_SET) -> None:
        """Lock or unlock bytes, as `fcntl.lockf`."""
        self._wait(self._file.lockf(operation, length, start, whence))

    def flock(self, operation: int) -> None:
        """Lock or unlock the whole file, as `fcntl.flock`."""
        self._wait(self._file.flock(operation))

    def close(self) -> None:
        """Close; OSError if something that was written before could not be stored."""
        if not self.closed:
            try:
                super().close()
            finally:
                self._wait(self._file.close())


def _kind(operation: int) -> LockKind:
    kinds = {fcntl.LOCK_SH: LockKind.READ, fcntl.LOCK_EX: LockKind.WRITE, fcntl.LOCK_UN: LockKind.UNLOCK}
    try:
        return kinds[operation & ~fcntl.LOCK_NB]
    except KeyError:
        raise OSError(errno.EINVAL, "say one of LOCK_SH, LOCK_EX and LOCK_UN") from None


def parse_mode(mode: str) -> tuple[int, bool]:
    """open(2)'s flags for Python's mode, and whether it is text; ValueError as builtin `open`."""
    kinds = [letter for letter in mode if letter in "rwax"]
    if len(kinds) != 1 or set(mode) - set("rwaxbt+") or len(set(mode)) != len(mode) or {"b", "t"} <= set(mode):
        raise ValueError(f"invalid mode: {mode!r}")
    access = os.O_RDWR if "+" in mode else os.O_RDONLY if kinds == ["r"] else os.O_WRONLY
    extra = {"r": 0, "w": os.O_CREAT | os.O_TRUNC, "a": os.O_CREAT | os.O_APPEND, "x": os.O_CREAT | os.O_EXCL}
    return access | extra[kinds[0]], "b" not in mode
