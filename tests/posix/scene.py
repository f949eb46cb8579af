"""A directory in which system calls are made by several users, and what came of each is told, to be compared with what
comes of the same calls elsewhere."""

import ctypes
import errno
import itertools
import os
import shutil
import socket
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

libc = ctypes.CDLL(None, use_errno=True)
AT_FDCWD: Final = -100
UTIME_NOW: Final = (1 << 30) - 1
UTIME_OMIT: Final = (1 << 30) - 2
NOFOLLOW: Final = 0x100
TYPES: Final = ("regular", "dir", "fifo", "block", "char", "socket", "symlink")
NAME_255: Final = "n" * 255


class User(NamedTuple):
    """Who calls: effective uid and gid, and supplementary groups."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


ROOT: Final = User(0, 0)
OWNER: Final = User(7001, 8001)
MEMBER: Final = User(7002, 8002, (8001,))
"""in the owner's group, but only by a supplementary group"""
STRANGER: Final = User(7003, 8003, (8004, 8005))
USERS: Final = (ROOT, OWNER, MEMBER, STRANGER)


Op = Callable[[str], Any]
CHAPTERS: "dict[str, Callable[[Scene], None]]" = {}


def chapter(run: "Callable[[Scene], None]") -> "Callable[[Scene], None]":
    """A chapter: what it tells is compared."""
    CHAPTERS[run.__name__] = run
    return run


class Timespec(ctypes.Structure):
    """struct timespec"""

    _fields_ = (("sec", ctypes.c_long), ("nsec", ctypes.c_long))


def check(result: int) -> int:
    """The result of a C call; OSError if it failed."""
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


class Scene:
    """A fresh directory. `call` makes calls in it and keeps what came of them in `told`."""

    def __init__(self, root: str, stride: int = 1) -> None:
        self.root = root
        self._stride = stride
        self._seen = 0
        self.told: list[tuple[str, Any]] = []
        shutil.rmtree(root, ignore_errors=True)
        os.mkdir(root)
        os.chmod(root, 0o755)
        os.chdir(root)
        os.umask(0)
        self._count = 0

    def name(self) -> str:
        """A name that is not used yet."""
        self._count += 1
        return f"x{self._count}"

    def make(self, kind: str, path: str, mode: int = 0o644, owner: User | None = None) -> str:
        """Make an inode of a type as root; its path."""
        if kind == "regular":
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
        elif kind == "dir":
            os.mkdir(path, mode)
        elif kind == "fifo":
            os.mkfifo(path, mode)
        elif kind in ("block", "char"):
            os.mknod(path, (stat.S_IFBLK if kind == "block" else stat.S_IFCHR) | mode, os.makedev(1, 2))
        elif kind == "socket":
            with socket.socket(socket.AF_UNIX) as one:
                one.bind(path)
            os.chmod(path, mode)
        else:
            os.symlink("nowhere", path)
        if owner is not None:
            os.chown(path, owner.uid, owner.gid, follow_symlinks=False)
            if kind != "symlink":
                os.chmod(path, mode)
        return path

    def some(self, *factors: Iterable[Any]) -> Iterator[tuple[Any, ...]]:
        """Of all combinations every so many."""
        for combination in itertools.product(*factors):
            self._seen += 1
            if not self._seen % self._stride:
                yield combination

    def call(
        self, label: str, act: Callable[..., Any], *arguments: Any, by: User = ROOT, watch: Sequence[str] = ()
    ) -> None:
        """Make a call as a user: its result or errno, and which times of the watched paths it changed."""
        before = [_times(path) for path in watch]
        os.setgroups(by.groups)
        os.setegid(by.gid)
        os.seteuid(by.uid)
        try:
            result = outcome(act, *arguments)
        finally:
            os.seteuid(0)
            os.setegid(0)
            os.setgroups(())
        changed = [_changed(old, _times(path)) for old, path in zip(before, watch, strict=True)]
        self.told.append((f"{by.uid}: {label}", [result, changed] if watch else result))

    def look(self, *paths: str) -> None:
        """Keep what can be seen of these paths."""
        for path in paths:
            self.told.append((f"lstat {path}", outcome(facts, path)))

    def clear(self) -> None:
        """Remove everything that was made."""
        os.chdir("/")
        shutil.rmtree(self.root)


def outcome(act: Callable[..., Any], *arguments: Any) -> Any:
    """What it returned, or its errno's name."""
    try:
        return act(*arguments)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))


def facts(path: str) -> list[Any]:
    """Mode, owner, links, and the size of what has one."""
    found = os.lstat(path)
    size = found.st_size if not stat.S_ISDIR(found.st_mode) else -1
    return [stat.filemode(found.st_mode), found.st_uid, found.st_gid, found.st_nlink, found.st_rdev, size]


def _times(path: str) -> tuple[int, int, int] | None:
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_ctime_ns


def _changed(old: tuple[int, int, int] | None, new: tuple[int, int, int] | None) -> str:
    if old is None or new is None or old[0] != new[0]:
        return "other"
    return ("m" if old[1] != new[1] else "-") + ("c" if old[2] != new[2] else "-")


# ---------------------------------------------------------------------------------------- calls that Python lacks


def raw_chown(path: str, uid: int, gid: int) -> int:
    """chown(2) with -1 as it is."""
    return check(libc.chown(os.fsencode(path), ctypes.c_uint(uid & 0xFFFFFFFF), ctypes.c_uint(gid & 0xFFFFFFFF)))


def raw_lchown(path: str, uid: int, gid: int) -> int:
    """lchown(2) with -1 as it is."""
    return check(libc.lchown(os.fsencode(path), ctypes.c_uint(uid & 0xFFFFFFFF), ctypes.c_uint(gid & 0xFFFFFFFF)))


def utimensat(path: str, atime: tuple[int, int], mtime: tuple[int, int], flags: int = 0) -> int:
    """utimensat(2) with (seconds, nanoseconds)."""
    times = (Timespec * 2)(Timespec(*atime), Timespec(*mtime))
    return check(libc.utimensat(AT_FDCWD, os.fsencode(path), times, flags))


def renameat2(old: str, new: str, flags: int) -> int:
    """renameat2(2)"""
    return check(libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags))


def linkat(old: str, new: str, flags: int) -> int:
    """linkat(2)"""
    return check(libc.linkat(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags))


def raw_truncate(path: str, size: int) -> int:
    """truncate(2)"""
    return check(libc.truncate(os.fsencode(path), ctypes.c_long(size)))


def open_close(path: str, flags: int, mode: int = 0) -> None:
    """open(2), and close again."""
    os.close(os.open(path, flags | os.O_NONBLOCK, mode))
