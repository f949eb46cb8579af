"""The kernel's FUSE protocol, byte for byte: opcodes, flags, structures, and how replies are packed.

Source of everything here: `include/uapi/linux/fuse.h` (protocol 7.31 to 7.45). All of it is in host byte order, and
the fields of every structure add up without padding, so `=` is exact. A reply is packed together with its header, so
most requests are answered by one `pack` and one `write`.
"""

import os
import struct
from collections.abc import Sequence
from enum import IntEnum, IntFlag
from stat import S_IFMT
from typing import Final, NamedTuple, TypeAlias

from nacrefs.client.filesystem import Changes, Dirent, Found, Handle, Stat
from nacrefs.common.wire import Attr, LockHolder, LockKind, Set, StatfsReply

MAJOR: Final = 7
MINOR_MIN: Final = 31
"""Linux 5.4's; every flag that matters below exists since then (the kernel ignores the ones that it does not know)."""
MINOR_MAX: Final = 45
"""Linux 6.18's; nothing above is known here."""
MINOR_EPOCH: Final = 44
"""From here on the kernel knows `Notify.INC_EPOCH` (Linux 6.16)."""

ROOT_NODE: Final = 1
FOREVER_S: Final = 10 * 365 * 86400
"""How long the kernel may cache what a lease covers: until it is told otherwise."""

Buffer: TypeAlias = bytes | bytearray | memoryview


class Op(IntEnum):
    """enum fuse_opcode"""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SETUPMAPPING = 48
    REMOVEMAPPING = 49
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52
    COPY_FILE_RANGE_64 = 53


OPCODES: Final = 64
"""Opcodes are below this."""


class Notify(IntEnum):
    """enum fuse_notify_code"""

    INVAL_INODE = 2
    INVAL_ENTRY = 3
    DELETE = 6
    INC_EPOCH = 8


class Init(IntFlag):
    """INIT flags; bits 32 and up travel in `flags2`. Which are asked for, and why, is `session.WANTED`."""

    ASYNC_READ = 1 << 0
    POSIX_LOCKS = 1 << 1
    ATOMIC_O_TRUNC = 1 << 3
    EXPORT_SUPPORT = 1 << 4
    BIG_WRITES = 1 << 5
    DONT_MASK = 1 << 6
    FLOCK_LOCKS = 1 << 10
    AUTO_INVAL_DATA = 1 << 12
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    WRITEBACK_CACHE = 1 << 16
    PARALLEL_DIROPS = 1 << 18
    POSIX_ACL = 1 << 20
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    EXPLICIT_INVAL_DATA = 1 << 25
    HANDLE_KILLPRIV_V2 = 1 << 28
    SETXATTR_EXT = 1 << 29
    INIT_EXT = 1 << 30
    DIRECT_IO_ALLOW_MMAP = 1 << 36
    PASSTHROUGH = 1 << 37


class Fopen(IntFlag):
    """FOPEN_ flags in the answer to OPEN and OPENDIR"""

    DIRECT_IO = 1 << 0
    KEEP_CACHE = 1 << 1
    CACHE_DIR = 1 << 3
    NOFLUSH = 1 << 5
    PARALLEL_DIRECT_WRITES = 1 << 6


OPEN_KILL_SUIDGID: Final = 1 << 0
READ_LOCKOWNER: Final = 1 << 1
"""read(2) that goes past the page cache: the kernel says whose locks count. It does not for what fills the cache."""
WRITE_CACHE: Final = 1 << 0
WRITE_KILL_SUIDGID: Final = 1 << 2
FSYNC_FDATASYNC: Final = 1 << 0
LK_FLOCK: Final = 1 << 0
LOCK_END_MAX: Final = (1 << 63) - 1
"""`lk.end` of a lock that reaches to the end of every file (OFFSET_MAX)"""
IOCTL_DIR: Final = 1 << 4

# FATTR_ bits of fuse_setattr_in.valid. The first six, and those below, as `wire.Set` has them.
_FATTR_FH: Final = 1 << 6
_FATTR_ATIME_NOW: Final = 1 << 7
_FATTR_MTIME_NOW: Final = 1 << 8
_FATTR_CTIME: Final = 1 << 10
_FATTR_KILL_SUIDGID: Final = 1 << 11
_FATTR_PLAIN: Final = 0x3F
_FATTR_OWNER: Final = 1 << 1 | 1 << 2

# ------------------------------------------------------------------------------------------------- requests: structures

IN_HEADER: Final = struct.Struct("=IIQQIIIHH")
"""fuse_in_header"""
IN_HEADER_BYTES: Final = 40
WRITE_DATA_AT: Final = 80
"""Where the data of a WRITE request starts: fuse_in_header, fuse_write_in."""
READ_BUFFER_EXTRA: Final = 4096
"""A request buffer is this much longer than the longest WRITE's data."""


class Request(NamedTuple):
    """fuse_in_header: what every request says. `length` counts all of it; `unique` is what its answer must carry."""

    length: int
    opcode: int
    unique: int
    nodeid: int
    uid: int
    gid: int
    pid: int
    extension_units: int
    padding: int


INIT_IN: Final = struct.Struct("=IIIII")
"""fuse_init_in without its unused tail: major, minor, max_readahead, flags, flags2"""
INIT_OUT: Final = struct.Struct("=IiQIIIIHHIIHHII24x")
"""fuse_out_header, fuse_init_out: major, minor, max_readahead, flags, max_background, congestion_threshold, max_write,
time_gran, max_pages, map_alignment, flags2, max_stack_depth"""
FORGET_ONE: Final = struct.Struct("=QQ")
"""fuse_forget_one: nodeid, nlookup"""
U64: Final = struct.Struct("=Q")
"""fuse_forget_in, fuse_interrupt_in, fuse_link_in, fuse_rename_in, fuse_release_in.fh …: the first 64-bit field"""
U32_2: Final = struct.Struct("=II")
"""two 32-bit fields: fuse_open_in (flags, open_flags), fuse_mkdir_in (mode, umask),
fuse_getxattr_in (size, padding), fuse_setxattr_in (size, flags), fuse_batch_forget_in (count, dummy)"""
U32_4: Final = struct.Struct("=IIII")
"""fuse_create_in: flags, mode, umask, open_flags"""
GETATTR_IN: Final = struct.Struct("=IIQ")
"""fuse_getattr_in: flags, dummy, fh"""
SETATTR_IN: Final = struct.Struct("=IIQQQQQQIIIIIIII")
"""fuse_setattr_in"""
RENAME2_IN: Final = struct.Struct("=QII")
"""fuse_rename2_in: newdir, flags, padding"""
READ_IN: Final = struct.Struct("=QQII")
"""fuse_read_in without its tail: fh, offset, size"""
WRITE_IN: Final = struct.Struct("=QQII8xI")
"""fuse_write_in without lock_owner: fh, offset, size, write_flags, open(2)'s flags"""
FSYNC_IN: Final = struct.Struct("=QI")
"""fuse_fsync_in: fh, fsync_flags"""
FALLOCATE_IN: Final = struct.Struct("=QQQI")
"""fuse_fallocate_in: fh, offset, length, mode"""
LSEEK_IN: Final = struct.Struct("=QQI")
"""fuse_lseek_in: fh, offset, whence"""
COPY_FILE_RANGE_IN: Final = struct.Struct("=QQQQQQQ")
"""fuse_copy_file_range_in: fh_in, off_in, nodeid_out, fh_out, off_out, len, flags"""
IOCTL_IN: Final = struct.Struct("=QIIQII")
"""fuse_ioctl_in: fh, flags, cmd, arg, in_size, out_size"""
STATX_IN: Final = struct.Struct("=IIQ")
"""fuse_statx_in without its tail: getattr_flags, reserved, fh"""

LK_IN: Final = struct.Struct("=QQQQIII")
"""fuse_lk_in without its tail: fh, owner, lk.start, lk.end (its last byte), lk.type, lk.pid, lk_flags"""
FLUSH_IN: Final = struct.Struct("=Q8xQ")
"""fuse_flush_in: fh, lock_owner"""

SETXATTR_IN: Final = struct.Struct("=IIII")
"""fuse_setxattr_in with `Init.SETXATTR_EXT`: size, flags, setxattr_flags, padding"""
SETXATTR_SHORT_BYTES: Final = 8
"""… and without it: size, flags"""
SETXATTR_ACL_KILL_SGID: Final = 1 << 0
"""setxattr_flags: who sets the ACL is not in the file's group"""
MKNOD_IN: Final = struct.Struct("=III")
"""fuse_mknod_in without its padding: mode, rdev, umask"""

_SET_BITS: dict[int, Set] = {}


def split_names(view: memoryview, start: int, end: int) -> tuple[bytes, bytes]:
    """Two NUL-terminated strings that follow each other in `view[start:end)`."""
    first, second, _ = bytes(view[start:end]).split(b"\0", 2)
    return first, second


def decode_setattr(view: memoryview, now_ns: int) -> tuple[int | None, Changes]:
    """fuse_setattr_in as (file handle if one was named, changes); "now" becomes `now_ns`.

    A change of owner takes setuid and setgid away too: with HANDLE_KILLPRIV_V2 the kernel leaves that to us.
    """
    (
        valid, _, handle, size, _, atime, mtime, ctime, atime_nsec, mtime_nsec, ctime_nsec, mode, _, uid, gid, _,
    ) = SETATTR_IN.unpack_from(view, IN_HEADER_BYTES)  # fmt: skip
    which = _SET_BITS.get(valid)
    if which is None:
        which = Set(valid & _FATTR_PLAIN)
        if valid & _FATTR_CTIME:
            which |= Set.CTIME
        if valid & (_FATTR_KILL_SUIDGID | _FATTR_OWNER):
            which |= Set.KILL_PRIVILEGES
        _SET_BITS[valid] = which
    changes = Changes(
        which,
        mode & 0o7777,
        uid,
        gid,
        size,
        now_ns if valid & _FATTR_ATIME_NOW else _signed(atime) * 1_000_000_000 + atime_nsec,
        now_ns if valid & _FATTR_MTIME_NOW else _signed(mtime) * 1_000_000_000 + mtime_nsec,
        _signed(ctime) * 1_000_000_000 + ctime_nsec,
    )
    return (handle if valid & _FATTR_FH else None), changes


def _signed(seconds: int) -> int:
    """Times before 1970 travel as two's complement in unsigned fields."""
    return seconds - (1 << 64) if seconds >> 63 else seconds


# ----------------------------------------------------------------------------------------------------- replies: packing

OUT_HEADER: Final = struct.Struct("=IiQ")
"""fuse_out_header: len, error (0 or a negative errno), unique"""
OUT_HEADER_BYTES: Final = 16

_ATTR = "QQQqqqIIIIIIIIII"
"""fuse_attr: ino, size, blocks, atime, mtime, ctime, their nanoseconds, mode, nlink, uid, gid, rdev, blksize, flags"""
_ATTR_OUT: Final = struct.Struct("=IiQQII" + _ATTR)
_ENTRY_OUT: Final = struct.Struct("=IiQQQQQII" + _ATTR)
_NEGATIVE_OUT: Final = struct.Struct("=IiQQQQQII88x")
_OPEN_TAIL: Final = struct.Struct("=QII")
"""fuse_open_out"""
_OPEN_OUT: Final = struct.Struct("=IiQQII")
_WRITE_OUT: Final = struct.Struct("=IiQII")
_LK_OUT: Final = struct.Struct("=IiQQQII")
_U64_OUT: Final = struct.Struct("=IiQQ")
_STATFS_OUT: Final = struct.Struct("=IiQQQQQQIIII24x")
_DIRENT: Final = struct.Struct("=QQII")
_DIRENT_PLUS: Final = struct.Struct("=QQQQII" + _ATTR + "QQII")
_STATX_OUT: Final = struct.Struct("=IiQQII16xIIQIIIHHQQQQqIiqIiqIiqIiIIII112x")
_INVAL_INODE: Final = struct.Struct("=IiQQqq")
_INVAL_ENTRY: Final = struct.Struct("=IiQQII")

ENTRY_BYTES: Final = 128
"""sizeof(fuse_entry_out)"""

BLOCK_SIZE_HINT: Final = 1 << 20
"""st_blksize: what programs like `cp` and `cat` take as their buffer size."""

_STATX_BASIC_AND_BTIME: Final = 0xFFF


def error_reply(unique: int, errno: int) -> bytes:
    """The answer that a request failed."""
    return OUT_HEADER.pack(OUT_HEADER_BYTES, -errno, unique)


def empty_reply(unique: int) -> bytes:
    """The answer that a request without result succeeded."""
    return OUT_HEADER.pack(OUT_HEADER_BYTES, 0, unique)


def data_reply(unique: int, data: Buffer) -> tuple[Buffer, ...]:
    """Bytes as they are: symlink targets, extended attributes, directory entries."""
    return OUT_HEADER.pack(OUT_HEADER_BYTES + len(data), 0, unique), data


def buffers_reply(unique: int, buffers: Sequence[Buffer]) -> list[Buffer]:
    """Bytes in several buffers, not joined."""
    size = OUT_HEADER_BYTES
    for buffer in buffers:
        size += len(buffer)
    return [OUT_HEADER.pack(size, 0, unique), *buffers]


def encode_rdev(rdev: int) -> int:
    """A device number (`os.makedev`) in the 32 bits that the kernel uses (new_encode_dev)."""
    if not rdev:
        return 0
    minor = os.minor(rdev)
    return (minor & 0xFF) | (os.major(rdev) << 8) | ((minor & ~0xFF) << 12)


def decode_rdev(encoded: int) -> int:
    """The device number (`os.makedev`) that `encode_rdev` packed (new_decode_dev)."""
    return os.makedev((encoded >> 8) & 0xFFF, (encoded & 0xFF) | ((encoded >> 12) & 0xFFF00))


def attr_reply(unique: int, stat: Stat) -> bytes:
    """fuse_attr_out: GETATTR, SETATTR"""
    attr, cacheable = stat
    atime, atime_nsec = divmod(attr.atime_ns, 1_000_000_000)
    mtime, mtime_nsec = divmod(attr.mtime_ns, 1_000_000_000)
    ctime, ctime_nsec = divmod(attr.ctime_ns, 1_000_000_000)
    return _ATTR_OUT.pack(
        120, 0, unique, FOREVER_S if cacheable else 0, 0, 0,
        attr.fid, attr.size, attr.blocks, atime, mtime, ctime, atime_nsec, mtime_nsec, ctime_nsec,
        attr.mode, attr.nlink, attr.uid, attr.gid, encode_rdev(attr.rdev), BLOCK_SIZE_HINT, 0,
    )  # fmt: skip


def entry_reply(unique: int, found: Found, attr: Attr) -> bytes:
    """fuse_entry_out: LOOKUP and whatever makes a name; `attr` is `found.attr`, which is there."""
    atime, atime_nsec = divmod(attr.atime_ns, 1_000_000_000)
    mtime, mtime_nsec = divmod(attr.mtime_ns, 1_000_000_000)
    ctime, ctime_nsec = divmod(attr.ctime_ns, 1_000_000_000)
    return _ENTRY_OUT.pack(
        144, 0, unique,
        attr.fid, 0, FOREVER_S if found.entry_cacheable else 0, FOREVER_S if found.attr_cacheable else 0, 0, 0,
        attr.fid, attr.size, attr.blocks, atime, mtime, ctime, atime_nsec, mtime_nsec, ctime_nsec,
        attr.mode, attr.nlink, attr.uid, attr.gid, encode_rdev(attr.rdev), BLOCK_SIZE_HINT, 0,
    )  # fmt: skip


def absent_reply(unique: int) -> bytes:
    """fuse_entry_out with node 0: the name stands for nothing, and the kernel may remember that."""
    return _NEGATIVE_OUT.pack(144, 0, unique, 0, 0, FOREVER_S, 0, 0, 0)


def create_reply(unique: int, found: Found, attr: Attr, handle: Handle, flags: int) -> bytes:
    """fuse_entry_out, fuse_open_out: CREATE"""
    entry = entry_reply(unique, found, attr)
    return OUT_HEADER.pack(160, 0, unique) + entry[OUT_HEADER_BYTES:] + _OPEN_TAIL.pack(handle.number, flags, 0)


def open_reply(unique: int, handle: Handle, flags: int) -> bytes:
    """fuse_open_out: OPEN, OPENDIR"""
    return _OPEN_OUT.pack(32, 0, unique, handle.number, flags, 0)


def file_open_flags(handle: Handle) -> int:
    """FOPEN_ flags for a regular file of a mount whose locks are ours: every close is told, for it ends locks."""
    if handle.direct:
        return _DIRECT
    return _KEEP if handle.keep_cache else 0


def file_open_flags_without_locks(handle: Handle) -> int:
    """The same where locks are the kernel's own. What is not direct is only read (client/filesystem.py), so its close
    need not be told."""
    if handle.direct:
        return _DIRECT
    return _KEEP_NOFLUSH if handle.keep_cache else _NOFLUSH


def directory_open_flags(handle: Handle) -> int:
    """FOPEN_ flags for a directory: the kernel keeps the listing too, and may still have it from last time."""
    return _KEEP_DIRECTORY if handle.keep_cache else 0


_DIRECT: Final = int(Fopen.DIRECT_IO | Fopen.PARALLEL_DIRECT_WRITES)
_NOFLUSH: Final = int(Fopen.NOFLUSH)
_KEEP: Final = int(Fopen.KEEP_CACHE)
_KEEP_NOFLUSH: Final = int(Fopen.KEEP_CACHE | Fopen.NOFLUSH)
_KEEP_DIRECTORY: Final = int(Fopen.KEEP_CACHE | Fopen.CACHE_DIR)


def write_reply(unique: int, size: int) -> bytes:
    """fuse_write_out, and fuse_getxattr_out: a 32-bit size"""
    return _WRITE_OUT.pack(24, 0, unique, size, 0)


def ioctl_reply(unique: int, data: bytes) -> bytes:
    """fuse_ioctl_out: result, flags, in_iovs, out_iovs, and the data"""
    return OUT_HEADER.pack(OUT_HEADER_BYTES + 16 + len(data), 0, unique) + bytes(16) + data


def u64_reply(unique: int, value: int) -> bytes:
    """fuse_lseek_out, fuse_copy_file_range_out: a 64-bit number"""
    return _U64_OUT.pack(24, 0, unique, value)


def lock_reply(unique: int, holder: LockHolder) -> bytes:
    """fuse_lk_out: start, end (the last byte), type, pid"""
    if holder.kind == LockKind.UNLOCK:
        return _LK_OUT.pack(40, 0, unique, 0, 0, holder.kind, 0)
    return _LK_OUT.pack(40, 0, unique, holder.start, holder.end - 1, holder.kind, holder.pid)


def statfs_reply(unique: int, space: StatfsReply) -> bytes:
    """fuse_statfs_out, in blocks of 4 KiB"""
    free = space.free_bytes >> 12
    return _STATFS_OUT.pack(
        96, 0, unique, space.total_bytes >> 12, free, free, space.files, space.files_free, 4096, 255, 4096, 0
    )


def statx_reply(unique: int, stat: Stat) -> bytes:
    """fuse_statx_out: attributes with the time of birth"""
    attr = stat.attr
    times: list[int] = []
    for time_ns in (attr.atime_ns, attr.btime_ns, attr.ctime_ns, attr.mtime_ns):
        times.extend((*divmod(time_ns, 1_000_000_000), 0))
    return _STATX_OUT.pack(
        304, 0, unique, FOREVER_S if stat.cacheable else 0, 0, 0,
        _STATX_BASIC_AND_BTIME, BLOCK_SIZE_HINT, 0, attr.nlink, attr.uid, attr.gid, attr.mode, 0,
        attr.fid, attr.size, attr.blocks, 0, *times, os.major(attr.rdev), os.minor(attr.rdev), 0, 0,
    )  # fmt: skip


def pack_dirent(into: bytearray, at: int, end: int, entry: Dirent) -> int:
    """Write a fuse_dirent at `at`; where the next one goes, or 0 if it does not fit before `end`."""
    name = entry.name
    after = at + 24 + (len(name) + 7 & ~7)
    if after > end:
        return 0
    _DIRENT.pack_into(into, at, entry.attr.fid, entry.cookie, len(name), S_IFMT(entry.attr.mode) >> 12)
    into[at + 24 : at + 24 + len(name)] = name
    return after


def pack_dirent_plus(into: bytearray, at: int, end: int, entry: Dirent) -> int:
    """Write a fuse_direntplus at `at`; where the next one goes, or 0 if it does not fit before `end`.

    `.` and `..` have node 0: the kernel takes no reference to them.
    """
    name, cookie, attr, cacheable = entry
    after = at + 152 + (len(name) + 7 & ~7)
    if after > end:
        return 0
    valid = FOREVER_S if cacheable else 0
    atime, atime_nsec = divmod(attr.atime_ns, 1_000_000_000)
    mtime, mtime_nsec = divmod(attr.mtime_ns, 1_000_000_000)
    ctime, ctime_nsec = divmod(attr.ctime_ns, 1_000_000_000)
    _DIRENT_PLUS.pack_into(
        into, at,
        0 if name == b"." or name == b".." else attr.fid, 0, valid, valid, 0, 0,
        attr.fid, attr.size, attr.blocks, atime, mtime, ctime, atime_nsec, mtime_nsec, ctime_nsec,
        attr.mode, attr.nlink, attr.uid, attr.gid, encode_rdev(attr.rdev), BLOCK_SIZE_HINT, 0,
        attr.fid, cookie, len(name), attr.mode >> 12 & 15,
    )  # fmt: skip
    into[at + 152 : at + 152 + len(name)] = name
    return after


# -------------------------------------------------------------------------------------------------------- notifications


def inval_inode(nodeid: int, offset: int, length: int) -> bytes:
    """fuse_notify_inval_inode_out: drop attributes and, unless `offset` is negative, pages (`length` 0: to the end)"""
    return _INVAL_INODE.pack(40, Notify.INVAL_INODE, 0, nodeid, offset, length)


def inval_entry(parent: int, name: bytes) -> bytes:
    """fuse_notify_inval_entry_out: drop what a name stands for"""
    return _INVAL_ENTRY.pack(33 + len(name), Notify.INVAL_ENTRY, 0, parent, len(name), 0) + name + b"\0"


def inc_epoch() -> bytes:
    """All names that the kernel knows are to be looked up again when next used; takes no lock (Linux 6.16)"""
    return OUT_HEADER.pack(OUT_HEADER_BYTES, Notify.INC_EPOCH, 0)
