"""A filesystem in memory: a second real implementation of `client.filesystem.Filesystem`, for mounts without servers.

`gates` lets a test hold an operation: one whose name is there waits for the event before it is carried out.
"""

import asyncio
import errno
import os
import stat
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from nacrefs.client.filesystem import Changes, Cred, Dirent, Found, Handle, Kernel, LockWait, Stat
from nacrefs.common.answer import Answer
from nacrefs.common.wire import Attr, LockHolder, LockKind, LockStyle, RenameFlag, Set, StatfsReply, XattrFlag

BLOCK = 65536
ROOT = 1
T = TypeVar("T")


@dataclass
class Inode:
    """`blocks` holds what was written, by block number; what is missing is a hole."""

    fid: int
    mode: int
    uid: int = 0
    gid: int = 0
    rdev: int = 0
    nlink: int = 1
    size: int = 0
    atime_ns: int = field(default_factory=time.time_ns)
    mtime_ns: int = field(default_factory=time.time_ns)
    ctime_ns: int = field(default_factory=time.time_ns)
    btime_ns: int = field(default_factory=time.time_ns)
    blocks: dict[int, bytearray] = field(default_factory=dict[int, bytearray])
    entries: dict[bytes, int] = field(default_factory=dict[bytes, int])
    parent: int = ROOT
    target: bytes = b""
    xattrs: dict[bytes, bytes] = field(default_factory=dict[bytes, bytes])
    opens: int = 0

    def attr(self) -> Attr:
        return Attr(
            self.fid, self.mode, self.nlink, self.uid, self.gid, self.rdev, self.size, len(self.blocks) * BLOCK // 512,
            self.atime_ns, self.mtime_ns, self.ctime_ns, self.btime_ns,
        )  # fmt: skip

    def touch(self) -> None:
        self.mtime_ns = self.ctime_ns = time.time_ns()

    def truncate(self, size: int) -> None:
        for number in [number for number in self.blocks if number * BLOCK >= size]:
            del self.blocks[number]
        if size % BLOCK and (last := self.blocks.get(size // BLOCK)) is not None:
            last[size % BLOCK :] = bytes(BLOCK - size % BLOCK)
        self.size = size

    def write(self, offset: int, data: memoryview) -> None:
        at = 0
        while at < len(data):
            number, skip = divmod(offset + at, BLOCK)
            count = min(BLOCK - skip, len(data) - at)
            self.blocks.setdefault(number, bytearray(BLOCK))[skip : skip + count] = data[at : at + count]
            at += count
        self.size = max(self.size, offset + len(data))

    def read(self, offset: int, size: int) -> list[memoryview]:
        end = min(offset + size, self.size)
        found: list[memoryview] = []
        while offset < end:
            number, skip = divmod(offset, BLOCK)
            count = min(BLOCK - skip, end - offset)
            found.append(memoryview(self.blocks.get(number, ZEROS))[skip : skip + count])
            offset += count
        return found


ZEROS = bytes(BLOCK)


class MemoryFilesystem:
    """`cacheable`: whether the kernel may remember attributes and names. `direct`: files open for writing bypass the
    page cache, as in the real client."""

    def __init__(self, cacheable: bool = True, direct: bool = True) -> None:
        self.kernel: Kernel | None = None
        self.cacheable = cacheable
        self.direct = direct
        self.inodes: dict[int, Inode] = {ROOT: Inode(ROOT, stat.S_IFDIR | 0o777, nlink=2)}
        self.handles: dict[int, tuple[Inode, int]] = {}
        self.gates: dict[str, asyncio.Event] = {}
        self.entered: dict[str, asyncio.Event] = {}
        self.cancelled: list[str] = []
        self.forgotten: dict[int, int] = {}
        self.written: list[memoryview] = []
        self._numbers = iter(range(16, 1 << 40))

    # ------------------------------------------------------------------------------------------------ for tests

    def hold(self, operation: str) -> asyncio.Event:
        """Let `operation` wait from now on, until the event that is returned is set."""
        gate = self.gates[operation] = asyncio.Event()
        self.entered[operation] = asyncio.Event()
        return gate

    def inode(self, path: str) -> Inode:
        """The inode at a path from the root."""
        inode = self.inodes[ROOT]
        for name in os.fsencode(path).split(b"/"):
            inode = self.inodes[inode.entries[name]] if name else inode
        return inode

    def _gated(self, operation: str, act: Callable[[], T]) -> Answer[T]:
        gate = self.gates.get(operation)
        return act() if gate is None or gate.is_set() else self._wait(operation, gate, act)

    async def _wait(self, operation: str, gate: asyncio.Event, act: Callable[[], T]) -> T:
        self.entered[operation].set()
        try:
            await gate.wait()
        except asyncio.CancelledError:
            self.cancelled.append(operation)
            raise
        return act()

    # ------------------------------------------------------------------------------------------------ names

    def _get(self, fid: int) -> Inode:
        try:
            return self.inodes[fid]
        except KeyError:
            raise OSError(errno.ESTALE, "no such inode") from None

    def _child(self, parent: int, name: bytes) -> Inode:
        fid = self._get(parent).entries.get(name)
        if fid is None:
            raise OSError(errno.ENOENT, "no such name")
        return self.inodes[fid]

    def _found(self, inode: Inode | None) -> Found:
        return Found(inode.attr() if inode else None, self.cacheable, self.cacheable)

    def _stat(self, inode: Inode) -> Stat:
        return Stat(inode.attr(), self.cacheable)

    def _add(self, parent: int, name: bytes, mode: int, cred: Cred, rdev: int = 0) -> Inode:
        directory = self._get(parent)
        if name in directory.entries:
            raise OSError(errno.EEXIST, "the name exists")
        if len(name) > 255:
            raise OSError(errno.ENAMETOOLONG, "the name is too long")
        mode &= ~cred.umask if not stat.S_ISLNK(mode) else ~0
        inode = Inode(next(self._numbers), mode, cred.uid, cred.gid, rdev)
        if stat.S_ISDIR(mode):
            inode.nlink, inode.parent = 2, parent
            directory.nlink += 1
        self.inodes[inode.fid] = inode
        directory.entries[name] = inode.fid
        directory.touch()
        return inode

    def _drop(self, inode: Inode) -> None:
        if inode.nlink <= 0 and not inode.opens:
            self.inodes.pop(inode.fid, None)

    def lookup(self, parent: int, name: bytes) -> Answer[Found]:
        def act() -> Found:
            fid = self._get(parent).entries.get(name)
            return self._found(None if fid is None else self.inodes[fid])

        return self._gated("lookup", act)

    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, cred: Cred) -> Answer[Found]:
        return self._found(self._add(parent, name, mode, cred, rdev))

    def mkdir(self, parent: int, name: bytes, mode: int, cred: Cred) -> Answer[Found]:
        return self._gated("mkdir", lambda: self._found(self._add(parent, name, stat.S_IFDIR | mode, cred)))

    def symlink(self, parent: int, name: bytes, target: bytes, cred: Cred) -> Answer[Found]:
        inode = self._add(parent, name, stat.S_IFLNK | 0o777, cred)
        inode.target, inode.size = target, len(target)
        return self._found(inode)

    def link(self, fid: int, parent: int, name: bytes) -> Answer[Found]:
        inode, directory = self._get(fid), self._get(parent)
        if name in directory.entries:
            raise OSError(errno.EEXIST, "the name exists")
        directory.entries[name] = fid
        directory.touch()
        inode.nlink += 1
        return self._found(inode)

    def unlink(self, parent: int, name: bytes) -> None:
        inode = self._child(parent, name)
        if stat.S_ISDIR(inode.mode):
            raise OSError(errno.EISDIR, "it is a directory")
        self._remove(parent, name, inode)

    def rmdir(self, parent: int, name: bytes) -> None:
        inode = self._child(parent, name)
        if not stat.S_ISDIR(inode.mode):
            raise OSError(errno.ENOTDIR, "it is no directory")
        if inode.entries:
            raise OSError(errno.ENOTEMPTY, "the directory is not empty")
        self._remove(parent, name, inode)

    def _remove(self, parent: int, name: bytes, inode: Inode) -> None:
        directory = self._get(parent)
        del directory.entries[name]
        directory.touch()
        inode.ctime_ns = time.time_ns()
        if stat.S_ISDIR(inode.mode):
            inode.nlink = 0
            directory.nlink -= 1
        else:
            inode.nlink -= 1
        self._drop(inode)

    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: RenameFlag) -> None:
        source, target = self._get(parent), self._get(new_parent)
        moved = self._child(parent, name)
        other = target.entries.get(new_name)
        if flags & RenameFlag.NOREPLACE and other is not None:
            raise OSError(errno.EEXIST, "the new name exists")
        if flags & RenameFlag.EXCHANGE:
            there = self._child(new_parent, new_name)
            source.entries[name], target.entries[new_name] = there.fid, moved.fid
            return
        if other is not None:
            there = self.inodes[other]
            if stat.S_ISDIR(there.mode):
                self.rmdir(new_parent, new_name)
            else:
                self.unlink(new_parent, new_name)
        del source.entries[name]
        target.entries[new_name] = moved.fid
        if stat.S_ISDIR(moved.mode):
            moved.parent = new_parent
            source.nlink -= 1
            target.nlink += 1
        source.touch()
        target.touch()

    # ------------------------------------------------------------------------------------------------ attributes

    def getattr(self, fid: int, handle: int | None = None) -> Answer[Stat]:
        return self._gated("getattr", lambda: self._stat(self._get(fid)))

    def setattr(self, fid: int, changes: Changes, handle: int | None = None) -> Answer[Stat]:
        inode, valid = self._get(fid), changes.valid
        if valid & Set.KILL_PRIVILEGES and stat.S_ISREG(inode.mode):
            inode.mode &= ~(stat.S_ISUID | (stat.S_ISGID if inode.mode & stat.S_IXGRP else 0))
        if valid & Set.MODE:
            inode.mode = stat.S_IFMT(inode.mode) | changes.mode
        if valid & Set.UID:
            inode.uid = changes.uid
        if valid & Set.GID:
            inode.gid = changes.gid
        if valid & Set.SIZE:
            inode.truncate(changes.size)
            inode.touch()
        if valid & Set.ATIME:
            inode.atime_ns = changes.atime_ns
        if valid & Set.MTIME:
            inode.mtime_ns = changes.mtime_ns
        inode.ctime_ns = time.time_ns()
        return self._stat(inode)

    def may_be_setid(self, fid: int) -> bool:
        return self._get(fid).mode & (stat.S_ISUID | stat.S_ISGID) != 0

    def readlink(self, fid: int) -> Answer[bytes]:
        return self._get(fid).target

    # ------------------------------------------------------------------------------------------------ files

    def _handle(self, inode: Inode, flags: int) -> Handle:
        number = next(self._numbers)
        self.handles[number] = inode, flags
        inode.opens += 1
        direct = self.direct and flags & os.O_ACCMODE != os.O_RDONLY
        return Handle(number, direct, self.cacheable and not direct)

    def create(self, parent: int, name: bytes, mode: int, flags: int, cred: Cred) -> Answer[tuple[Found, Handle]]:
        def act() -> tuple[Found, Handle]:
            inode = self._add(parent, name, stat.S_IFREG | mode, cred)
            return self._found(inode), self._handle(inode, flags)

        return self._gated("create", act)

    def open(self, fid: int, flags: int) -> Answer[Handle]:
        def act() -> Handle:
            inode = self._get(fid)
            if flags & os.O_TRUNC:
                inode.truncate(0)
                inode.touch()
            return self._handle(inode, flags)

        return self._gated("open", act)

    def read(self, handle: int, offset: int, size: int, cached: bool = False) -> Answer[Sequence[memoryview | bytes]]:
        inode = self.handles[handle][0]
        return self._gated("read", lambda: inode.read(offset, size))

    def write(self, handle: int, offset: int, data: memoryview, flags: int = -1) -> Answer[int]:
        inode, opened = self.handles[handle]
        flags = opened if flags < 0 else flags
        inode.write(inode.size if flags & os.O_APPEND else offset, data)
        inode.touch()
        self.written.append(data)
        return len(data)

    def flush(self, handle: int, owner: int = 0) -> None: ...

    def release(self, handle: int) -> None:
        inode, _ = self.handles.pop(handle)
        inode.opens -= 1
        self._drop(inode)

    def set_lock(
        self,
        handle: int,
        owner: int,
        style: LockStyle,
        kind: LockKind,
        start: int,
        end: int,
        pid: int,
        wait: LockWait | None = None,
    ) -> None:
        raise OSError(errno.ENOLCK, "mounted without locks")

    def get_lock(self, handle: int, owner: int, kind: LockKind, start: int, end: int) -> LockHolder:
        raise OSError(errno.ENOLCK, "mounted without locks")

    def fsync(self, handle: int, datasync: bool) -> None: ...

    def fallocate(self, handle: int, mode: int, offset: int, length: int) -> None:
        if mode != 0:
            raise OSError(errno.EOPNOTSUPP, "only plain allocation")
        inode = self.handles[handle][0]
        inode.size = max(inode.size, offset + length)

    def lseek(self, handle: int, offset: int, whence: int) -> Answer[int]:
        inode = self.handles[handle][0]
        while offset < inode.size:
            if (offset // BLOCK in inode.blocks) == (whence == os.SEEK_DATA):
                return offset
            offset = (offset // BLOCK + 1) * BLOCK
        if whence == os.SEEK_HOLE:
            return inode.size
        raise OSError(errno.ENXIO, "no data from there on")

    def copy_file_range(
        self, handle_in: int, offset_in: int, handle_out: int, offset_out: int, length: int
    ) -> Answer[int]:
        data = b"".join(self.handles[handle_in][0].read(offset_in, length))
        self.handles[handle_out][0].write(offset_out, memoryview(data))
        return len(data)

    def ioctl(self, handle: int, command: int, data: bytes, room: int) -> Answer[bytes]:
        raise OSError(errno.ENOTTY, "no such ioctl")

    # ------------------------------------------------------------------------------------------------ directories

    def opendir(self, fid: int) -> Answer[Handle]:
        handle = self._handle(self._get(fid), os.O_RDONLY)
        return Handle(handle.number, False, self.cacheable)

    def readdir(self, handle: int, cookie: int) -> Answer[Iterable[Dirent]]:
        """The cookie is the number of entries before; names do not change while these tests list them."""
        return self._gated("readdir", lambda: self._entries(self.handles[handle][0], cookie))

    def _entries(self, directory: Inode, cookie: int) -> Iterable[Dirent]:
        names = [(b".", directory.fid), (b"..", directory.parent), *directory.entries.items()]
        for index in range(cookie, len(names)):
            name, fid = names[index]
            yield Dirent(name, index + 1, self.inodes[fid].attr(), self.cacheable)

    def releasedir(self, handle: int) -> None:
        self.release(handle)

    def fsyncdir(self, fid: int) -> None: ...

    # ------------------------------------------------------------------------------------------------ the rest

    def getxattr(self, fid: int, name: bytes) -> Answer[bytes]:
        try:
            return self._get(fid).xattrs[name]
        except KeyError:
            raise OSError(errno.ENODATA, "no such attribute") from None

    def listxattr(self, fid: int) -> Answer[Sequence[bytes]]:
        return list(self._get(fid).xattrs)

    def setxattr(self, fid: int, name: bytes, value: bytes, flags: XattrFlag, drop_setgid: bool = False) -> None:
        xattrs = self._get(fid).xattrs
        if flags & XattrFlag.CREATE and name in xattrs:
            raise OSError(errno.EEXIST, "the attribute exists")
        if flags & XattrFlag.REPLACE and name not in xattrs:
            raise OSError(errno.ENODATA, "no such attribute")
        xattrs[name] = value

    def removexattr(self, fid: int, name: bytes) -> None:
        if self._get(fid).xattrs.pop(name, None) is None:
            raise OSError(errno.ENODATA, "no such attribute")

    def statfs(self, fid: int = 0) -> Answer[StatfsReply]:
        return StatfsReply(1 << 40, 1 << 39, len(self.inodes), 1 << 30)

    def forget(self, fid: int, lookups: int) -> None:
        self.forgotten[fid] = self.forgotten.get(fid, 0) + lookups
