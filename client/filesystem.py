"""What the FUSE session, the SDK and gateways ask of a filesystem: POSIX operations by fid.

`client.vfs.Vfs` is the real one; tests have a second one in memory. No kernel structure appears here. A method returns
its value at once when it can be had without waiting and a coroutine otherwise (`common.answer`), so a caller creates a
task only where one is needed. Errors are `OSError`.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

from nacrefs.common.answer import Answer
from nacrefs.common.wire import Attr, LockHolder, LockKind, LockStyle, RenameFlag, Set, StatfsReply, XattrFlag


class Cred(NamedTuple):
    """Who asks: ids of the calling process, and its umask (0: it is taken off the mode already)."""

    uid: int
    gid: int
    pid: int
    umask: int = 0


class Found(NamedTuple):
    """An inode, and whether the caller may remember it until told otherwise (a lease is held).

    `attr` is None if the name stands for nothing; `entry_cacheable` then means that the absence may be remembered.
    """

    attr: Attr | None
    attr_cacheable: bool
    entry_cacheable: bool


class Stat(NamedTuple):
    """Attributes, and whether the caller may remember them until told otherwise."""

    attr: Attr
    cacheable: bool


class Handle(NamedTuple):
    """An open file. `direct`: the kernel must not cache its pages; always so if it may be written. `keep_cache`: pages
    that the kernel has are valid."""

    number: int
    direct: bool
    keep_cache: bool


class Changes(NamedTuple):
    """The new values that `setattr` is to set; `valid` says which count. Times are nanoseconds."""

    valid: Set
    mode: int = 0
    uid: int = 0
    gid: int = 0
    size: int = 0
    atime_ns: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0


class LockWait:
    """A wait for a lock, which a signal may end: `interrupt` once, at any time."""

    __slots__ = ("interrupted", "on_interrupt")

    def __init__(self) -> None:
        self.interrupted = False
        self.on_interrupt: Callable[[], None] | None = None
        """Set by the filesystem when it waits."""

    def interrupt(self) -> None:
        """The waiting operation is to fail with EINTR, unless it gets its lock before."""
        self.interrupted = True
        if self.on_interrupt is not None:
            self.on_interrupt()


class Dirent(NamedTuple):
    """One entry of a directory stream. `cookie` is where the stream goes on after it (opaque, not 0)."""

    name: bytes
    cookie: int
    attr: Attr
    cacheable: bool


class Kernel(Protocol):
    """The cache above the filesystem, which must forget when told. Each coroutine returns once it has forgotten.

    They are called while requests of the same inode may be in service: an implementation must not make the reader of
    requests wait.
    """

    async def forget_inode(self, fid: int, offset: int = 0, length: int = 0) -> None:
        """Drop attributes and cached pages `[offset, offset + length)`; length 0: to the end; offset -1: no pages."""
        ...

    async def forget_entries(self, parent: int, names: Sequence[bytes]) -> None:
        """Drop what these names stand for in a directory, and the directory's own attributes and listing."""
        ...


class Filesystem(Protocol):
    """POSIX by fid."""

    @property
    def kernel(self) -> Kernel | None:
        """The cache above, if there is one."""
        ...

    @kernel.setter
    def kernel(self, kernel: Kernel | None, /) -> None: ...

    def lookup(self, parent: int, name: bytes, /) -> Answer[Found]: ...
    def getattr(self, fid: int, handle: int | None = None, /) -> Answer[Stat]: ...
    def setattr(self, fid: int, changes: Changes, handle: int | None = None, /) -> Answer[Stat]: ...
    def may_be_setid(self, fid: int, /) -> bool:
        """Whether a file may be setuid or setgid: False if it is known, without asking anybody, that it is not."""
        ...

    def readlink(self, fid: int, /) -> Answer[bytes]: ...
    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, cred: Cred, /) -> Answer[Found]: ...
    def mkdir(self, parent: int, name: bytes, mode: int, cred: Cred, /) -> Answer[Found]: ...
    def symlink(self, parent: int, name: bytes, target: bytes, cred: Cred, /) -> Answer[Found]: ...
    def link(self, fid: int, parent: int, name: bytes, /) -> Answer[Found]: ...
    def unlink(self, parent: int, name: bytes, /) -> Answer[None]: ...
    def rmdir(self, parent: int, name: bytes, /) -> Answer[None]: ...
    def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: RenameFlag, /
    ) -> Answer[None]: ...

    def create(self, parent: int, name: bytes, mode: int, flags: int, cred: Cred, /) -> Answer[tuple[Found, Handle]]:
        """`flags` are open(2)'s. Here and for other new inodes, the caller's umask is taken off `mode` unless the
        directory has a default ACL, which counts instead."""
        ...

    def open(self, fid: int, flags: int, /) -> Answer[Handle]: ...

    def read(
        self, handle: int, offset: int, size: int, cached: bool = False, /
    ) -> Answer[Sequence[memoryview | bytes]]:
        """Buffers whose bytes, one after the other, are the file from `offset`; shorter than `size` only at its end.
        They stay valid until control returns to the event loop. `cached`: the kernel keeps them as pages."""
        ...

    def write(self, handle: int, offset: int, data: memoryview, flags: int = -1, /) -> Answer[int]:
        """Bytes written. `data` belongs to the filesystem from now on: the caller never reuses its memory. `flags` are
        open(2)'s at the time of the write (-1: as it was opened); with O_APPEND there the bytes go to the end."""
        ...

    def flush(self, handle: int, owner: int = 0, /) -> Answer[None]:
        """A descriptor of the open file was closed; the POSIX locks of `owner` on the file end."""
        ...

    def release(self, handle: int, /) -> Answer[None]:
        """The last descriptor of the open file is gone; locks that were taken through it and are left end."""
        ...

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
        /,
    ) -> Answer[None]:
        """Lock bytes `[start, end)` for `owner`, or unlock them. If somebody else's lock is in the way: EAGAIN, or with
        `wait` wait until it is not, or EDEADLK, or EINTR."""
        ...

    def get_lock(self, handle: int, owner: int, kind: LockKind, start: int, end: int, /) -> Answer[LockHolder]:
        """The POSIX lock that is in the way of one (`kind` UNLOCK: none). `pid` is 0 for a process elsewhere."""
        ...

    def fsync(self, handle: int, datasync: bool, /) -> Answer[None]: ...
    def fallocate(self, handle: int, mode: int, offset: int, length: int, /) -> Answer[None]: ...

    def lseek(self, handle: int, offset: int, whence: int, /) -> Answer[int]:
        """SEEK_DATA and SEEK_HOLE only."""
        ...

    def copy_file_range(
        self, handle_in: int, offset_in: int, handle_out: int, offset_out: int, length: int, /
    ) -> Answer[int]: ...

    def ioctl(self, handle: int, command: int, data: bytes, room: int, /) -> Answer[bytes]:
        """At most `room` bytes; ENOTTY for a command that is not known."""
        ...

    def opendir(self, fid: int, /) -> Answer[Handle]: ...

    def readdir(self, handle: int, cookie: int, /) -> Answer[Iterable[Dirent]]:
        """Entries from `cookie` on (0 = the start), `.` and `..` included, as many as are at hand; the caller takes
        those that fit and comes again with the last one's cookie. Empty at the end."""
        ...

    def releasedir(self, handle: int, /) -> Answer[None]: ...
    def fsyncdir(self, fid: int, /) -> Answer[None]: ...
    def getxattr(self, fid: int, name: bytes, /) -> Answer[bytes]: ...
    def listxattr(self, fid: int, /) -> Answer[Sequence[bytes]]: ...
    def setxattr(
        self, fid: int, name: bytes, value: bytes, flags: XattrFlag, drop_setgid: bool = False, /
    ) -> Answer[None]:
        """`drop_setgid`: setting an access ACL clears the setgid bit."""
        ...

    def removexattr(self, fid: int, name: bytes, /) -> Answer[None]: ...
    def statfs(self, fid: int = 0, /) -> Answer[StatfsReply]: ...
