"""A mount from beginning to end: negotiation, dispatch of requests, tasks for those that wait, interrupts, the end.

`async with Session(filesystem, source, directory) as session: await session.unmounted()` mounts, serves until somebody
unmounts, and leaves no descriptor, thread or task behind. The event loop that serves a mount must never touch it
with a blocking system call: it would wait for itself.
"""

import asyncio
import errno
import logging
from collections.abc import Callable, Coroutine, Sequence
from types import CoroutineType, TracebackType
from typing import Any, Final, cast

from nacrefs.client.filesystem import Filesystem
from nacrefs.client.fuse import abi, mounting
from nacrefs.client.fuse.abi import Init, Op
from nacrefs.client.fuse.channel import Channel
from nacrefs.client.fuse.notify import Notifier
from nacrefs.client.fuse.operations import Handler, Operations, Outcome, Reply
from nacrefs.client.fuse.signals import is_dying
from nacrefs.common.fid import ROOT

log = logging.getLogger(__name__)

WANTED: Final[tuple[tuple[Init, str], ...]] = (
    (Init.ASYNC_READ, "several reads of one file at once: read-ahead fills all stripes"),
    (Init.BIG_WRITES, "writes above 4 KiB"),
    (Init.MAX_PAGES, "requests above 128 KiB"),
    (Init.ATOMIC_O_TRUNC, "open with O_TRUNC is one request and one MDS transaction"),
    (Init.DO_READDIRPLUS, "listings bring attributes"),
    (Init.READDIRPLUS_AUTO, "… when they are used"),
    (Init.PARALLEL_DIROPS, "look-ups and listings of one directory at once"),
    (Init.HANDLE_KILLPRIV_V2, "the kernel says which writes end setuid, and asks for no xattr before each write"),
    (Init.CACHE_SYMLINKS, "targets are read once; they never change"),
    (Init.AUTO_INVAL_DATA, "cached pages of a shared file are checked (GETATTR) before each read, and dropped"),
    (Init.ASYNC_DIO, "libaio and io_uring I/O of direct files in parallel"),
    (Init.POSIX_ACL, "the kernel asks for ACLs, keeps them as long as attributes, and enforces them"),
    (Init.DONT_MASK, "a directory's default ACL counts instead of the umask, and only the MDS knows it"),
    (Init.SETXATTR_EXT, "the kernel says when setting an ACL ends setgid"),
    (Init.INIT_EXT, "the flags below are understood"),
    (Init.DIRECT_IO_ALLOW_MMAP, "files open for writing, which are direct, can be mapped"),
)
"""What we ask the kernel for, and why.

Left out on purpose. WRITEBACK_CACHE: size and mtime would be the kernel's, which cannot give them back on a recall.
EXPLICIT_INVAL_DATA: the opposite of AUTO_INVAL_DATA. EXPORT_SUPPORT: needs look-ups of `..`. PASSTHROUGH: see
docs/adr/0003.
"""

LOCKS: Final = Init.POSIX_LOCKS | Init.FLOCK_LOCKS
"""fcntl and flock locks come to us instead of being the kernel's own; asked for with `locks=True`."""

MAX_WRITE_BYTES: Final = 1 << 20
_MAX_BACKGROUND: Final = 64
"""Read-ahead and asynchronous direct I/O requests that the kernel has in flight at once."""
_KNOWN: Final = frozenset(int(op) for op in Op)
_GRACE_S: Final = 10.0
"""How long requests in service may go on once the mount is gone (a `release` may still be sending data)."""


class Session:
    """One mount of `filesystem` at `directory`, `source` being its name in /proc/mounts.

    `root` is the fid of the directory that is mounted. `max_write_bytes` bounds reads and writes; above 1 MiB root has
    to raise /proc/sys/fs/fuse/max_pages_limit. `options` are mount(8)'s (`mounting.mount`). `identified` hears of each
    request whose it is. Without `permissions` the kernel checks none: the filesystem does.
    """

    def __init__(
        self,
        filesystem: Filesystem,
        source: str,
        directory: str,
        *,
        options: Sequence[str] = (),
        root: int = ROOT,
        max_write_bytes: int = MAX_WRITE_BYTES,
        read_ahead_kib: int = 4096,
        locks: bool = False,
        identified: Callable[[int, int, int], None] | None = None,
        permissions: bool = True,
    ) -> None:
        self._filesystem = filesystem
        self._source = source
        self.directory = directory
        self._options = tuple(options)
        self._root = root
        self._max_write_bytes = max_write_bytes
        self._read_ahead_kib = read_ahead_kib
        self._locks = locks
        self._wanted = LOCKS if locks else Init(0)
        for flag, _ in WANTED:
            self._wanted |= flag
        self._identified = identified
        self._permissions = permissions
        if not permissions:
            self._wanted &= ~Init.POSIX_ACL  # with it the kernel would check
        self.requests = [0] * abi.OPCODES
        """how many requests came, by opcode (`abi.Op`)"""
        self.granted = Init(0)
        """what the kernel agreed to"""
        self.minor = 0
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._callers: dict[int, int] = {}  # thread ids, by request: an interrupt does not repeat whose it is
        self._interrupted: set[int] = set()
        self._logged: set[tuple[int, type[BaseException]]] = set()

    # ------------------------------------------------------------------------------------------------ life

    async def __aenter__(self) -> "Session":
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._gone = asyncio.Event()
        fd = await asyncio.to_thread(
            mounting.mount, self._source, self.directory, self._options, self._max_write_bytes, self._permissions
        )
        self._channel = Channel(fd, self._max_write_bytes, self._serve, self._gone.set)
        self._operations = Operations(self._filesystem, self._root, self._channel, self._locks)
        self._handlers: list[Handler | None] = self._operations.table()
        self._handlers[Op.INIT] = self._init
        self._handlers[Op.INTERRUPT] = self._interrupt
        self._notifier: Notifier | None = None
        self._channel.start()
        try:
            await self._ready
            await asyncio.to_thread(mounting.set_read_ahead, self.directory, self._read_ahead_kib)
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def unmounted(self) -> None:
        """Wait until the file system has been unmounted, by `umount` or by the end of this session."""
        await self._gone.wait()

    async def _close(self) -> None:
        """Unmount if it is mounted, let requests in service finish, and let go of everything."""
        if not self._gone.is_set():
            try:
                await asyncio.to_thread(self._detach)
            except OSError as error:
                log.warning("cannot unmount: %s", error)
        for wait in list(self._operations.lock_waits.values()):
            wait.interrupt()
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=_GRACE_S)
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._filesystem.kernel = None
        if self._notifier is not None:
            await self._notifier.stop()
        self._channel.stop()
        self._gone.set()

    def _detach(self) -> None:
        try:
            mounting.unmount(self.directory)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            mounting.unmount(self.directory, lazy=True)

    # ------------------------------------------------------------------------------------------------ dispatch

    def _serve(self, request: abi.Request, view: memoryview) -> None:
        """Answer one request, or start a task that will."""
        opcode = request.opcode
        unique = request.unique
        if request.nodeid == abi.ROOT_NODE != self._root:
            request = request._replace(nodeid=self._root)
        if self._identified is not None:
            self._identified(request.uid, request.gid, request.pid)
        try:
            handler = self._handlers[opcode]
            self.requests[opcode] += 1
            reply: Outcome = abi.error_reply(unique, errno.ENOSYS) if handler is None else handler(request, view)
        except Exception as error:
            reply = self._failure(unique, opcode, error)
        if isinstance(reply, CoroutineType):
            self._callers[unique] = request.pid
            self._tasks[unique] = self._loop.create_task(
                self._answer_later(unique, opcode, cast("Coroutine[Any, Any, Reply]", reply))
            )
        elif reply is not None:
            self._channel.send(unique, reply)  # type: ignore[arg-type]

    async def _answer_later(self, unique: int, opcode: int, coming: Coroutine[Any, Any, Reply]) -> None:
        try:
            reply = await coming
        except asyncio.CancelledError:
            reply = abi.error_reply(unique, errno.EINTR if unique in self._interrupted else errno.EIO)
        except Exception as error:
            reply = self._failure(unique, opcode, error)
        del self._tasks[unique], self._callers[unique]
        self._interrupted.discard(unique)
        self._channel.send(unique, reply)

    def _failure(self, unique: int, opcode: int, error: Exception) -> bytes:
        """The errno of an error. One that is none is a defect: EIO, and its first occurrence is logged."""
        if isinstance(error, OSError) and error.errno is not None and 0 < error.errno < 512:
            return abi.error_reply(unique, error.errno)
        if isinstance(error, IndexError) and opcode >= abi.OPCODES:
            return abi.error_reply(unique, errno.ENOSYS)
        if (kind := (opcode, type(error))) not in self._logged:
            self._logged.add(kind)
            name = Op(opcode).name if opcode in _KNOWN else str(opcode)
            log.error("request %d (%s) failed with EIO", unique, name, exc_info=error)
        return abi.error_reply(unique, errno.EIO)

    # ------------------------------------------------------------------------------------------------ negotiation

    def _init(self, request: abi.Request, view: memoryview) -> Outcome:
        """FUSE_INIT: agree on version and flags."""
        major, minor, max_readahead, flags, flags2 = abi.INIT_IN.unpack_from(view, abi.IN_HEADER_BYTES)
        if major < abi.MAJOR or (major == abi.MAJOR and minor < abi.MINOR_MIN):
            text = f"the kernel speaks FUSE {major}.{minor}; at least {abi.MAJOR}.{abi.MINOR_MIN} (Linux 5.4) is needed"
            self._ready.set_exception(OSError(errno.EPROTONOSUPPORT, text))
            return abi.error_reply(request.unique, errno.EPROTO)
        if major == abi.MAJOR:  # a newer major is told ours, and asks again
            offered = Init(flags | (flags2 << 32 if flags & Init.INIT_EXT else 0))
            self.granted = offered & self._wanted
            self._operations.setxattr_ext = bool(self.granted & Init.SETXATTR_EXT)
            self.minor = min(minor, abi.MINOR_MAX)
            self._notifier = Notifier(self._channel.fd, self._root, self.minor >= abi.MINOR_EPOCH)
            self._filesystem.kernel = self._notifier
            self._loop.call_soon(self._ready.set_result, None)
        granted = int(self.granted)
        return abi.INIT_OUT.pack(
            80, 0, request.unique, abi.MAJOR, self.minor,
            max(max_readahead, self._read_ahead_kib << 10), granted & 0xFFFFFFFF,
            _MAX_BACKGROUND, _MAX_BACKGROUND * 3 // 4, self._max_write_bytes, 1,
            (self._max_write_bytes + 4095) // 4096, 0, granted >> 32, 0,
        )  # fmt: skip

    # ------------------------------------------------------------------------------------------------ interrupts

    def _interrupt(self, request: abi.Request, view: memoryview) -> Outcome:
        """FUSE_INTERRUPT: a signal has come for the caller of a request that waits.

        Any signal does that, also one that the program handles and that a local file system would not let it notice
        (SIGALRM, SIGCHLD, SIGWINCH …: `stat` and `write` do not fail with EINTR on a disk, and programs rely on it).
        So the request is given up only if the caller is about to die, as on NFS; otherwise it goes on. Waiting for a
        lock is what every signal ends, as on a disk; the kernel starts it again after a handler with SA_RESTART.
        """
        (unique,) = abi.U64.unpack_from(view, abi.IN_HEADER_BYTES)
        task = self._tasks.get(unique)
        if task is not None and is_dying(self._callers[unique]):
            self._interrupted.add(unique)
            self._loop.call_soon(task.cancel)  # after its first step: cancelled before that it would never answer
        elif (wait := self._operations.lock_waits.get(unique)) is not None:
            wait.interrupt()
        return None
