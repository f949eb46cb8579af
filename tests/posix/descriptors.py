"""Chapters about descriptors: of what has been removed or replaced, of each type, and space for open files."""

import ctypes
import errno
import os
import stat
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

from tests.posix.scene import AT_FDCWD, TYPES, USERS, Scene, chapter, check, libc

_O_PATH: Final = os.O_PATH | os.O_NOFOLLOW
_AT_EMPTY_PATH: Final = 0x1000
_AT_SYMLINK_FOLLOW: Final = 0x400
_RW: Final = os.O_RDWR


@contextmanager
def descriptor(path: str, flags: int) -> Any:
    number = os.open(path, flags)
    try:
        yield number
    finally:
        os.close(number)


def facts(number: int) -> list[Any]:
    """What fstat shows of the same inode everywhere."""
    found = os.fstat(number)
    size = found.st_size if not stat.S_ISDIR(found.st_mode) else -1
    return [stat.filemode(found.st_mode), found.st_uid, found.st_gid, found.st_nlink, found.st_rdev, size]


def linkat(number: int, path: str, name: str, flags: int) -> int:
    return check(libc.linkat(number, os.fsencode(path), AT_FDCWD, os.fsencode(name), flags))


def fallocate(number: int, mode: int, offset: int, length: int) -> int:
    return check(libc.fallocate(number, mode, ctypes.c_long(offset), ctypes.c_long(length)))


@chapter
def removed_and_open(scene: Scene) -> None:
    """What can be done by a descriptor of what has no name any more."""
    for kind in TYPES:
        path = scene.make(kind, scene.name())
        with descriptor(path, _O_PATH) as number:
            scene.call(f"{kind}: fstat before", facts, number)
            os.rmdir(path) if kind == "dir" else os.unlink(path)
            scene.call(f"{kind}: fstat after", facts, number)
            scene.call(f"{kind}: linkat of it", linkat, number, "", scene.name(), _AT_EMPTY_PATH)
            scene.call(f"{kind}: fchmod", os.fchmod, number, 0o600)
            scene.make(kind, path)
            scene.call(f"{kind}: fstat with another of that name", facts, number)
    acts: dict[str, Callable[[int], Any]] = {
        "fstat": facts,
        "read": lambda fd: os.pread(fd, 100, 0),
        "write": lambda fd: os.pwrite(fd, b"new", 70_000),
        "read again": lambda fd: os.pread(fd, 100, 69_990),
        "ftruncate": lambda fd: os.ftruncate(fd, 2),
        "fchmod": lambda fd: os.fchmod(fd, 0o4711),
        "fchown": lambda fd: os.fchown(fd, 7002, 8002),
        "utime": lambda fd: os.utime(fd, ns=(5, 7)),
        "setxattr": lambda fd: os.setxattr(fd, "user.a", b"1"),
        "getxattr": lambda fd: os.getxattr(fd, "user.a"),
        "fsync": os.fsync,
        "fallocate": lambda fd: fallocate(fd, 0, 0, 5000),
        "by /proc": lambda fd: os.close(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)),
        "linkat": lambda fd: linkat(fd, "", scene.name(), _AT_EMPTY_PATH),
        "linkat by /proc": lambda fd: linkat(AT_FDCWD, f"/proc/self/fd/{fd}", scene.name(), _AT_SYMLINK_FOLLOW),
        "fstat at last": facts,
    }
    for how in ("unlink", "rename over"):
        path = scene.make("regular", scene.name())
        with descriptor(path, _RW) as number:
            os.write(number, b"contents")
            if how == "unlink":
                os.unlink(path)
            else:
                os.rename(scene.make("regular", scene.name()), path)
            for what, act in acts.items():
                scene.call(f"{how}: {what}", act, number)
    path = scene.make("dir", scene.name())
    with descriptor(path, os.O_RDONLY) as number:
        os.rmdir(path)
        scene.call("removed directory: list", os.listdir, number)
        scene.call("removed directory: make", partial(os.mkdir, "x", dir_fd=number))
        scene.call("removed directory: look", partial(os.stat, "x", dir_fd=number))
        scene.call("removed directory: fchmod", os.fchmod, number, 0o700)
        scene.call("removed directory: fsync", os.fsync, number)
        scene.call("removed directory: fstat", facts, number)


@chapter
def opening_types(scene: Scene) -> None:
    """open(2) of each type with flags that matter to it, and what its descriptor can do."""
    flags = {
        "read": os.O_RDONLY, "write": os.O_WRONLY, "both": _RW, "directory": os.O_DIRECTORY, "path": _O_PATH,
        "nofollow": os.O_NOFOLLOW, "create": os.O_CREAT, "exclusive": os.O_CREAT | os.O_EXCL,
        "path directory": _O_PATH | os.O_DIRECTORY, "create directory": os.O_CREAT | os.O_DIRECTORY,
        "noatime": os.O_NOATIME,
    }  # fmt: skip
    for kind, (what, how), user in scene.some(TYPES, flags.items(), USERS):
        if kind in ("block", "char"):
            continue  # what the device says
        path = scene.make(kind, scene.name(), 0o666)
        opening = partial(_open_close, path, how | os.O_NONBLOCK if how != _O_PATH else how)
        scene.call(f"{kind}: open to {what}", opening, by=user, watch=(path,))
    acts: dict[str, Callable[[int], Any]] = {
        "read": lambda fd: os.read(fd, 1),
        "write": lambda fd: os.write(fd, b"x"),
        "pread at -1": lambda fd: os.pread(fd, 1, -1),
        "lseek -1": lambda fd: os.lseek(fd, -1, os.SEEK_SET),
        "SEEK_DATA at the end": lambda fd: os.lseek(fd, 0, os.SEEK_DATA),
        "SEEK_HOLE": lambda fd: os.lseek(fd, 0, os.SEEK_HOLE),
        "ftruncate -1": lambda fd: os.ftruncate(fd, -1),
        "ftruncate": lambda fd: os.ftruncate(fd, 3),
        "write far": lambda fd: _errno_kind(lambda: os.pwrite(fd, b"x", (1 << 63) - 1)),
        "fsync": os.fsync,
    }
    for kind, access, (what, act) in scene.some(("regular", "dir"), (os.O_RDONLY, os.O_WRONLY, _O_PATH), acts.items()):
        if kind == "dir" and (access == os.O_WRONLY or "lseek" in what or "SEEK" in what):
            continue
        path = scene.make(kind, scene.name())
        with descriptor(path, access) as number:
            scene.call(f"{kind} open {access:o}: {what}", act, number)


def _open_close(path: str, flags: int) -> None:
    os.close(os.open(path, flags, 0o644))


def _errno_kind(act: Callable[[], Any]) -> Any:
    """EFBIG and EINVAL both say that it is too far."""
    try:
        return act()
    except OSError as error:
        return "too far" if error.errno in (errno.EFBIG, errno.EINVAL) else errno.errorcode[error.errno or 0]


@chapter
def allocating(scene: Scene) -> None:
    """posix_fallocate(3) and fallocate(2): sizes, errors, times."""
    cases = (
        (0, 0, 100), (0, 50, 100), (0, 5000, 1), (0, 0, 0), (0, -1, 10), (0, 10, -1), (0, 0, 1), (1, 0, 9000),
        (1, 9000, 1), (3, 0, 50), (3, 20, 5000), (3, 5000, 10), (2, 0, 10), (16, 0, 50), (16, 50, 5000), (17, 50, 5000),
        (64, 0, 10), (1 << 20, 0, 10), (0, (1 << 62), 1 << 62),
    )  # fmt: skip
    for (mode, offset, length), access in scene.some(cases, (_RW, os.O_RDONLY, _O_PATH)):
        path = scene.make("regular", scene.name())
        with open(path, "wb") as file:
            file.write(bytes(range(1, 101)))
        with descriptor(path, access) as number:
            scene.call(
                f"fallocate {mode} [{offset}, +{length}) open {access:o}", fallocate, number, mode, offset, length,
                watch=(path,),
            )  # fmt: skip
        scene.look(path)
        with open(path, "rb") as file:
            scene.call("contents", file.read)
    for kind in ("dir", "fifo"):
        path = scene.make(kind, scene.name())
        with descriptor(path, os.O_RDONLY if kind == "dir" else _RW) as number:
            scene.call(f"fallocate of {kind}", fallocate, number, 0, 0, 10)
