"""One method per FUSE operation: take the request apart, ask the filesystem, pack its answer. No decisions.

A node id of the kernel is a fid; node 1 is the directory that is mounted. An operation returns the reply at once, or a
coroutine for it if the filesystem has to wait, or None where the protocol wants no reply.
"""

import asyncio
import errno
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from types import CoroutineType
from typing import Any, Final, TypeAlias, TypeVar, cast

from nacrefs.client.filesystem import Changes, Cred, Dirent, Filesystem, Found, Handle, LockWait, Stat
from nacrefs.client.fuse import abi
from nacrefs.client.fuse.abi import IN_HEADER_BYTES as BODY
from nacrefs.client.fuse.abi import Op, Request
from nacrefs.client.fuse.channel import Channel
from nacrefs.client.fuse.privileges import changes_owner, ends_privileges, privileges_to_kill
from nacrefs.common.answer import Answer, settle
from nacrefs.common.wire import LockKind, LockStyle, RenameFlag, Set, XattrFlag

Reply: TypeAlias = bytes | Sequence[abi.Buffer]
Outcome: TypeAlias = Reply | Coroutine[Any, Any, Reply] | None
Handler: TypeAlias = Callable[[Request, memoryview], Outcome]
T = TypeVar("T")

_LISTING_BYTES: Final = 128 * 1024
_LOOKS: Final = 200
"""How often we look whether a caller waits already; it is about to."""


def then(answer: Answer[T], pack: Callable[[int, T], Reply], unique: int) -> Outcome:
    """The reply to request `unique` that `pack` makes of an answer, now or later."""
    if isinstance(answer, CoroutineType):
        return _later(cast("Coroutine[Any, Any, T]", answer), pack, unique)
    return pack(unique, answer)  # type: ignore[arg-type]


async def _later(answer: Coroutine[Any, Any, T], pack: Callable[[int, T], Reply], unique: int) -> Reply:
    return pack(unique, await answer)


def _done(unique: int, _: None) -> bytes:
    return abi.empty_reply(unique)


class Operations:
    """The operations of one mount on one filesystem, whose directory `root` is what is mounted."""

    def __init__(self, filesystem: Filesystem, root: int, channel: Channel, locks: bool = False) -> None:
        self._fs = filesystem
        self._root = root
        self._channel = channel
        self._listing = bytearray(_LISTING_BYTES)
        self.setxattr_ext = False
        """whether `Init.SETXATTR_EXT` was agreed on"""
        self._locks = locks
        self._open_flags = abi.file_open_flags if locks else abi.file_open_flags_without_locks
        self.lock_waits: dict[int, LockWait] = {}
        """SETLKW requests in service, by `unique`"""

    def table(self) -> list[Handler | None]:
        """Handlers by opcode; None where we answer ENOSYS, upon which the kernel does without or never asks again."""
        table: list[Handler | None] = [None] * abi.OPCODES
        for op, handler in {
            Op.LOOKUP: self.lookup, Op.GETATTR: self.getattr, Op.SETATTR: self.setattr, Op.READLINK: self.readlink,
            Op.SYMLINK: self.symlink, Op.MKNOD: self.mknod, Op.MKDIR: self.mkdir, Op.UNLINK: self.unlink,
            Op.RMDIR: self.rmdir, Op.RENAME: self.rename, Op.RENAME2: self.rename2, Op.LINK: self.link,
            Op.OPEN: self.open, Op.READ: self.read, Op.WRITE: self.write, Op.STATFS: self.statfs,
            Op.RELEASE: self.release, Op.FSYNC: self.fsync, Op.SETXATTR: self.setxattr, Op.GETXATTR: self.getxattr,
            Op.LISTXATTR: self.listxattr, Op.REMOVEXATTR: self.removexattr, Op.FLUSH: self.flush,
            Op.OPENDIR: self.opendir, Op.READDIR: self.readdir, Op.READDIRPLUS: self.readdirplus,
            Op.RELEASEDIR: self.releasedir, Op.FSYNCDIR: self.fsyncdir, Op.CREATE: self.create,
            Op.FALLOCATE: self.fallocate, Op.LSEEK: self.lseek, Op.COPY_FILE_RANGE: self.copy_file_range,
            Op.COPY_FILE_RANGE_64: self.copy_file_range, Op.IOCTL: self.ioctl, Op.STATX: self.statx,
            Op.DESTROY: self.destroy, Op.FORGET: self.forget, Op.BATCH_FORGET: self.batch_forget,
        }.items():  # fmt: skip
            table[op] = handler
        if self._locks:
            table[Op.GETLK], table[Op.SETLK], table[Op.SETLKW] = self.getlk, self.setlk, self.setlkw
        return table

    # ------------------------------------------------------------------------------------------------ names

    def lookup(self, request: Request, view: memoryview) -> Outcome:
        name = bytes(view[BODY : request.length - 1])
        return then(self._fs.lookup(request.nodeid, name), self._entry, request.unique)

    def mknod(self, request: Request, view: memoryview) -> Outcome:
        mode, rdev, umask = abi.MKNOD_IN.unpack_from(view, BODY)
        name = bytes(view[BODY + 16 : request.length - 1])
        made = self._fs.mknod(request.nodeid, name, mode, abi.decode_rdev(rdev), _cred(request, umask))
        return then(made, self._entry, request.unique)

    def mkdir(self, request: Request, view: memoryview) -> Outcome:
        mode, umask = abi.U32_2.unpack_from(view, BODY)
        name = bytes(view[BODY + 8 : request.length - 1])
        made = self._fs.mkdir(request.nodeid, name, mode & 0o7777, _cred(request, umask))
        return then(made, self._entry, request.unique)

    def symlink(self, request: Request, view: memoryview) -> Outcome:
        name, target = abi.split_names(view, BODY, request.length)
        return then(self._fs.symlink(request.nodeid, name, target, _cred(request)), self._entry, request.unique)

    def link(self, request: Request, view: memoryview) -> Outcome:
        (fid,) = abi.U64.unpack_from(view, BODY)
        name = bytes(view[BODY + 8 : request.length - 1])
        return then(self._fs.link(fid, request.nodeid, name), self._entry, request.unique)

    def unlink(self, request: Request, view: memoryview) -> Outcome:
        return then(self._fs.unlink(request.nodeid, bytes(view[BODY : request.length - 1])), _done, request.unique)

    def rmdir(self, request: Request, view: memoryview) -> Outcome:
        return then(self._fs.rmdir(request.nodeid, bytes(view[BODY : request.length - 1])), _done, request.unique)

    def rename(self, request: Request, view: memoryview) -> Outcome:
        (new_parent,) = abi.U64.unpack_from(view, BODY)
        return self._rename(request, view, new_parent, 0, BODY + 8)

    def rename2(self, request: Request, view: memoryview) -> Outcome:
        new_parent, flags, _ = abi.RENAME2_IN.unpack_from(view, BODY)
        return self._rename(request, view, new_parent, flags, BODY + 16)

    def _rename(self, request: Request, view: memoryview, new_parent: int, flags: int, names_at: int) -> Outcome:
        if flags & ~3:
            raise OSError(errno.EINVAL, "only RENAME_NOREPLACE and RENAME_EXCHANGE are known")
        name, new_name = abi.split_names(view, names_at, request.length)
        new_parent = self._root if new_parent == abi.ROOT_NODE else new_parent
        moved = self._fs.rename(request.nodeid, name, new_parent, new_name, RenameFlag(flags))
        return then(moved, _done, request.unique)

    def _entry(self, unique: int, found: Found) -> bytes:
        attr = found.attr
        if attr is None:
            return abi.absent_reply(unique) if found.entry_cacheable else abi.error_reply(unique, errno.ENOENT)
        return abi.entry_reply(unique, found, attr)

    # ------------------------------------------------------------------------------------------------ attributes

    def getattr(self, request: Request, view: memoryview) -> Outcome:
        flags, _, handle = abi.GETATTR_IN.unpack_from(view, BODY)
        return then(self._fs.getattr(request.nodeid, handle if flags & 1 else None), self._attr, request.unique)

    def statx(self, request: Request, view: memoryview) -> Outcome:
        flags, _, handle = abi.STATX_IN.unpack_from(view, BODY)
        answer = self._fs.getattr(request.nodeid, handle if flags & 1 else None)
        return then(answer, abi.statx_reply, request.unique)

    def setattr(self, request: Request, view: memoryview) -> Outcome:
        handle, changes = abi.decode_setattr(view, time.time_ns())
        # With nothing to set at all the kernel wants setuid and setgid to go, but leaves that to us (chown(-1, -1),
        # which is the owner's; fallocate, whose own request takes them away from who is not the owner).
        # Another mount may have set them meanwhile.
        if not changes.valid or (changes.valid & Set.KILL_PRIVILEGES and self._fs.may_be_setid(request.nodeid)):
            return self._kill_and_set(request, changes, handle)
        return then(self._fs.setattr(request.nodeid, changes, handle), self._attr, request.unique)

    async def _kill_and_set(self, request: Request, changes: Changes, handle: int | None) -> Reply:
        fid = request.nodeid
        attr = (await settle(self._fs.getattr(fid))).attr
        kill = privileges_to_kill(attr, request.uid, request.gid, request.pid)
        if changes.valid or request.uid in (0, attr.uid):
            changes = changes._replace(valid=changes.valid | kill)
        elif ends_privileges(attr, kill) and await _is_chown(request.pid):
            raise OSError(errno.EPERM, "only the owner takes setuid and setgid away")
        return self._attr(request.unique, await settle(self._fs.setattr(fid, changes, handle)))

    def readlink(self, request: Request, view: memoryview) -> Outcome:
        return then(self._fs.readlink(request.nodeid), abi.data_reply, request.unique)

    def statfs(self, request: Request, view: memoryview) -> Outcome:
        return then(self._fs.statfs(request.nodeid), abi.statfs_reply, request.unique)

    def _attr(self, unique: int, answer: Stat) -> bytes:
        return abi.attr_reply(unique, answer)

    async def _strip_then(
        self, request: Request, ask: Callable[[], Answer[T]], pack: Callable[[int, T], Reply]
    ) -> Reply:
        """Take setuid and setgid away, then do what calls for it."""
        fid = request.nodeid
        attr = (await settle(self._fs.getattr(fid))).attr
        kill = privileges_to_kill(attr, request.uid, request.gid, request.pid)
        if ends_privileges(attr, kill):
            await settle(self._fs.setattr(fid, Changes(kill)))
        return pack(request.unique, await settle(ask()))

    # ------------------------------------------------------------------------------------------------ open files

    def create(self, request: Request, view: memoryview) -> Outcome:
        flags, mode, umask, _ = abi.U32_4.unpack_from(view, BODY)
        name = bytes(view[BODY + 16 : request.length - 1])
        made = self._fs.create(request.nodeid, name, mode & 0o7777, flags, _cred(request, umask))
        return then(made, self._created, request.unique)

    def _created(self, unique: int, made: tuple[Found, Handle]) -> bytes:
        found, handle = made
        if found.attr is None:
            raise OSError(errno.EIO, "create answered without an inode")
        return abi.create_reply(unique, found, found.attr, handle, self._open_flags(handle))

    def open(self, request: Request, view: memoryview) -> Outcome:
        flags, open_flags = abi.U32_2.unpack_from(view, BODY)
        fid = request.nodeid
        if open_flags & abi.OPEN_KILL_SUIDGID and self._fs.may_be_setid(fid):
            return self._strip_then(request, lambda: self._fs.open(fid, flags), self._opened)
        return then(self._fs.open(fid, flags), self._opened, request.unique)

    def _opened(self, unique: int, handle: Handle) -> bytes:
        return abi.open_reply(unique, handle, self._open_flags(handle))

    def read(self, request: Request, view: memoryview) -> Outcome:
        handle, offset, size, flags = abi.READ_IN.unpack_from(view, BODY)
        return then(
            self._fs.read(handle, offset, size, not flags & abi.READ_LOCKOWNER), abi.buffers_reply, request.unique
        )

    def write(self, request: Request, view: memoryview) -> Outcome:
        handle, offset, size, flags, how = abi.WRITE_IN.unpack_from(view, BODY)
        if flags & abi.WRITE_CACHE:  # a page of a mapping, which belongs where it is
            how = 0
        if abi.WRITE_DATA_AT + size > request.length:
            raise OSError(errno.EINVAL, "a write with less data than it says")
        data = self._channel.take(abi.WRITE_DATA_AT, size)
        if flags & abi.WRITE_KILL_SUIDGID and self._fs.may_be_setid(request.nodeid):
            write = self._fs.write
            return self._strip_then(request, lambda: write(handle, offset, data, how), abi.write_reply)
        return then(self._fs.write(handle, offset, data, how), abi.write_reply, request.unique)

    def flush(self, request: Request, view: memoryview) -> Outcome:
        handle, owner = abi.FLUSH_IN.unpack_from(view, BODY)
        return then(self._fs.flush(handle, owner), _done, request.unique)

    def release(self, request: Request, view: memoryview) -> Outcome:
        (handle,) = abi.U64.unpack_from(view, BODY)
        return then(self._fs.release(handle), _done, request.unique)

    def fsync(self, request: Request, view: memoryview) -> Outcome:
        handle, flags = abi.FSYNC_IN.unpack_from(view, BODY)
        return then(self._fs.fsync(handle, bool(flags & abi.FSYNC_FDATASYNC)), _done, request.unique)

    def fallocate(self, request: Request, view: memoryview) -> Outcome:
        handle, offset, length, mode = abi.FALLOCATE_IN.unpack_from(view, BODY)
        if request.uid and self._fs.may_be_setid(request.nodeid):
            allocate = self._fs.fallocate
            return self._strip_then(request, lambda: allocate(handle, mode, offset, length), _done)
        return then(self._fs.fallocate(handle, mode, offset, length), _done, request.unique)

    def lseek(self, request: Request, view: memoryview) -> Outcome:
        handle, offset, whence = abi.LSEEK_IN.unpack_from(view, BODY)
        return then(self._fs.lseek(handle, offset, whence), abi.u64_reply, request.unique)

    def copy_file_range(self, request: Request, view: memoryview) -> Outcome:
        source, source_offset, fid, target, target_offset, length, _ = abi.COPY_FILE_RANGE_IN.unpack_from(view, BODY)
        if request.opcode == Op.COPY_FILE_RANGE:  # its answer has 32 bits
            length = min(length, 0x7FFFF000)
        pack = abi.write_reply if request.opcode == Op.COPY_FILE_RANGE else abi.u64_reply
        if request.uid and self._fs.may_be_setid(fid):
            copy = self._fs.copy_file_range
            request = request._replace(nodeid=fid)
            return self._strip_then(request, lambda: copy(source, source_offset, target, target_offset, length), pack)
        copied = self._fs.copy_file_range(source, source_offset, target, target_offset, length)
        return then(copied, pack, request.unique)

    def ioctl(self, request: Request, view: memoryview) -> Outcome:
        handle, flags, command, _, size, room = abi.IOCTL_IN.unpack_from(view, BODY)
        if flags & abi.IOCTL_DIR:
            raise OSError(errno.ENOTTY, "directories have no ioctls")
        data = bytes(view[BODY + abi.IOCTL_IN.size : min(request.length, BODY + abi.IOCTL_IN.size + size)])
        return then(self._fs.ioctl(handle, command, data, room), abi.ioctl_reply, request.unique)

    # ------------------------------------------------------------------------------------------------ locks

    def getlk(self, request: Request, view: memoryview) -> Outcome:
        handle, owner, start, last, kind, _, _ = abi.LK_IN.unpack_from(view, BODY)
        holder = self._fs.get_lock(handle, owner, LockKind(kind), start, last + 1)
        return then(holder, abi.lock_reply, request.unique)

    def setlk(self, request: Request, view: memoryview) -> Outcome:
        return then(self._set_lock(view, None), _done, request.unique)

    def setlkw(self, request: Request, view: memoryview) -> Outcome:
        unique = request.unique
        wait = LockWait()
        locked = self._set_lock(view, wait)
        self.lock_waits[unique] = wait
        return self._waiting(locked, unique)

    async def _waiting(self, locked: Answer[None], unique: int) -> Reply:
        try:
            await settle(locked)
        finally:
            del self.lock_waits[unique]
        return abi.empty_reply(unique)

    def _set_lock(self, view: memoryview, wait: LockWait | None) -> Answer[None]:
        handle, owner, start, last, kind, pid, flags = abi.LK_IN.unpack_from(view, BODY)
        style = LockStyle.FLOCK if flags & abi.LK_FLOCK else LockStyle.POSIX
        return self._fs.set_lock(handle, owner, style, LockKind(kind), start, last + 1, pid, wait)

    # ------------------------------------------------------------------------------------------------ directories

    def opendir(self, request: Request, view: memoryview) -> Outcome:
        return then(self._fs.opendir(request.nodeid), _opened_directory, request.unique)

    def readdir(self, request: Request, view: memoryview) -> Outcome:
        return self._list(request, view, abi.pack_dirent)

    def readdirplus(self, request: Request, view: memoryview) -> Outcome:
        return self._list(request, view, abi.pack_dirent_plus)

    def _list(
        self, request: Request, view: memoryview, pack_one: Callable[[bytearray, int, int, Dirent], int]
    ) -> Outcome:
        handle, cookie, size, _ = abi.READ_IN.unpack_from(view, BODY)

        def pack(unique: int, entries: Iterable[Dirent]) -> Reply:
            listing, end, filled = self._listing, min(size, _LISTING_BYTES), 0
            for entry in entries:
                after = pack_one(listing, filled, end, entry)
                if not after:
                    break
                filled = after
            return abi.data_reply(unique, memoryview(listing)[:filled])

        return then(self._fs.readdir(handle, cookie), pack, request.unique)

    def releasedir(self, request: Request, view: memoryview) -> Outcome:
        (handle,) = abi.U64.unpack_from(view, BODY)
        return then(self._fs.releasedir(handle), _done, request.unique)

    def fsyncdir(self, request: Request, view: memoryview) -> Outcome:
        return then(self._fs.fsyncdir(request.nodeid), _done, request.unique)

    # ------------------------------------------------------------------------------------------------ xattrs

    def getxattr(self, request: Request, view: memoryview) -> Outcome:
        size, _ = abi.U32_2.unpack_from(view, BODY)
        name = bytes(view[BODY + 8 : request.length - 1])
        return then(self._fs.getxattr(request.nodeid, name), _sized(size), request.unique)

    def listxattr(self, request: Request, view: memoryview) -> Outcome:
        size, _ = abi.U32_2.unpack_from(view, BODY)
        fits = _sized(size)
        is_root = request.uid == 0

        def pack(unique: int, names: Sequence[bytes]) -> Reply:
            # As local file systems do, which look at CAP_SYS_ADMIN; of the caller we know the user only.
            shown = (name for name in names if is_root or not name.startswith(b"trusted."))
            return fits(unique, b"".join(name + b"\0" for name in shown))

        return then(self._fs.listxattr(request.nodeid), pack, request.unique)

    def setxattr(self, request: Request, view: memoryview) -> Outcome:
        size, flags, acl_flags, _ = abi.SETXATTR_IN.unpack_from(view, BODY)
        head = abi.SETXATTR_IN.size
        if not self.setxattr_ext:
            acl_flags, head = 0, abi.SETXATTR_SHORT_BYTES
        name, _, rest = bytes(view[BODY + head : request.length]).partition(b"\0")
        drop_setgid = bool(acl_flags & abi.SETXATTR_ACL_KILL_SGID)
        stored = self._fs.setxattr(request.nodeid, name, rest[:size], XattrFlag(flags), drop_setgid)
        return then(stored, _done, request.unique)

    def removexattr(self, request: Request, view: memoryview) -> Outcome:
        name = bytes(view[BODY : request.length - 1])
        return then(self._fs.removexattr(request.nodeid, name), _done, request.unique)

    # ------------------------------------------------------------------------------------------------ the kernel's own

    def forget(self, request: Request, view: memoryview) -> Outcome:
        self._forget(request.nodeid, abi.U64.unpack_from(view, BODY)[0])
        return None

    def batch_forget(self, request: Request, view: memoryview) -> Outcome:
        count, _ = abi.U32_2.unpack_from(view, BODY)
        for nodeid, lookups in abi.FORGET_ONE.iter_unpack(view[BODY + 8 : BODY + 8 + count * 16]):
            self._forget(nodeid, lookups)
        return None

    def _forget(self, fid: int, lookups: int) -> None:
        """The kernel gave up `lookups` of its references; the filesystem may want to know (`forget(fid, nlookup)`)."""
        hook = getattr(self._fs, "forget", None)
        if hook is not None:
            hook(fid, lookups)

    def destroy(self, request: Request, view: memoryview) -> Outcome:
        return abi.empty_reply(request.unique)


async def _is_chown(pid: int) -> bool:
    """Whether a caller is in chown(2), and not in fallocate(2) or the like, which the kernel does not say."""
    for _ in range(_LOOKS):
        if (known := changes_owner(pid)) is not None:
            return known
        await asyncio.sleep(0.0005)
    return False


def _cred(request: Request, umask: int = 0) -> Cred:
    return Cred(request.uid, request.gid, request.pid, umask)


def _opened_directory(unique: int, handle: Handle) -> bytes:
    return abi.open_reply(unique, handle, abi.directory_open_flags(handle))


def _sized(size: int) -> Callable[[int, bytes], Reply]:
    """How a value goes to a caller who has room for `size` bytes, or (0) only asks how long it is."""

    def pack(unique: int, value: bytes) -> Reply:
        if not size:
            return abi.write_reply(unique, len(value))
        if len(value) > size:
            return abi.error_reply(unique, errno.ERANGE)
        return abi.data_reply(unique, value)

    return pack
