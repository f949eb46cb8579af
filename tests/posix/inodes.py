"""Chapters about inodes: modes, owners, setid bits, opening, times and sizes."""

import os
import subprocess
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from tests.posix.scene import (
    NOFOLLOW,
    OWNER,
    STRANGER,
    TYPES,
    USERS,
    UTIME_NOW,
    UTIME_OMIT,
    Op,
    Scene,
    chapter,
    open_close,
    raw_chown,
    raw_lchown,
    raw_truncate,
    utimensat,
)

_W: Final = os.O_WRONLY
_RW: Final = os.O_RDWR
_OWNERS: Final = ((-1, -1), (7001, -1), (-1, 8001), (-1, 8002), (7001, 8005), (7003, 8003), (0, 0), (-1, 8003))


@chapter
def owners_and_modes(scene: Scene) -> None:
    """chmod and chown by everybody on inodes of all types: bits that go, times that change."""
    for kind, mode, user in scene.some(TYPES, (0o644, 0o6755, 0o2644, 0o4711, 0o1777), USERS):
        acts: dict[str, Op] = {
            **{f"chmod {new:o}": partial(os.chmod, mode=new) for new in (0o111, 0o2755, 0o4777, 0o1700, 0o6000)},
            **{
                f"{name} {uid} {gid}": partial(function, uid=uid, gid=gid)
                for name, function in (("chown", raw_chown), ("lchown", raw_lchown))
                for uid, gid in _OWNERS
            },
        }
        for what, act in acts.items():
            path = scene.make(kind, scene.name(), mode, OWNER)
            scene.call(f"{what} of {kind} {mode:o}", act, path, by=user, watch=(path,))
            scene.look(path)
            os.rmdir(path) if kind == "dir" else os.unlink(path)


@chapter
def setid_bits_after_writing(scene: Scene) -> None:
    """Whose writes end setuid and setgid."""

    def by_descriptor(act: Callable[[int], Any], flags: int = _RW) -> Op:
        def call(path: str) -> None:
            descriptor = os.open(path, flags)
            try:
                act(descriptor)
            finally:
                os.close(descriptor)

        return call

    acts: dict[str, Op] = {
        "write": by_descriptor(lambda fd: os.write(fd, b"x")),
        "write nothing": by_descriptor(lambda fd: os.write(fd, b"")),
        "pwrite": by_descriptor(lambda fd: os.pwrite(fd, b"x", 100_000)),
        "append": by_descriptor(lambda fd: os.write(fd, b"x"), _W | os.O_APPEND),
        "ftruncate": by_descriptor(lambda fd: os.ftruncate(fd, 100)),
        "ftruncate same": by_descriptor(lambda fd: os.ftruncate(fd, 4)),
        "truncate": lambda p: os.truncate(p, 2),
        "open and cut": lambda p: open_close(p, _W | os.O_TRUNC),
        "posix_fallocate": by_descriptor(lambda fd: os.posix_fallocate(fd, 0, 5000)),
        "fchmod": by_descriptor(lambda fd: os.fchmod(fd, 0o6777)),
        "fchown nothing": by_descriptor(lambda fd: os.fchown(fd, -1, -1)),
        "fchown group": by_descriptor(lambda fd: os.fchown(fd, -1, 8001)),
        "read": by_descriptor(lambda fd: os.read(fd, 10)),
        "utimensat": lambda p: utimensat(p, (0, UTIME_NOW), (0, UTIME_NOW)),
        "setxattr": lambda p: os.setxattr(p, "user.a", b"1"),
    }
    for mode, user, (what, act) in scene.some((0o6777, 0o4777, 0o2777, 0o2767, 0o6766, 0o777), USERS, acts.items()):
        path = scene.name()
        with open(path, "wb") as file:
            file.write(b"1234")
        os.chown(path, 7001, 8001)
        os.chmod(path, mode)
        scene.call(f"{what} {mode:o}", act, path, by=user, watch=(path,))
        scene.look(path)
        os.unlink(path)


@chapter
def opening(scene: Scene) -> None:
    """open(2): who may, what there is, with which flags."""
    modes = (0o700, 0o070, 0o007, 0o400, 0o200, 0o444, 0o222, 0o066, 0o604, 0)
    for mode, user, flags in scene.some(
        modes, USERS, (0, _W, _RW, os.O_RDONLY | os.O_TRUNC, _W | os.O_TRUNC, _W | os.O_APPEND)
    ):
        path = scene.make("regular", scene.name(), mode, OWNER)
        scene.call(f"open {flags:o} of {mode:o}", open_close, path, flags, by=user, watch=(path,))
        os.unlink(path)
    flags_all = {
        name: getattr(os, name)
        for name in (
            "O_DIRECTORY",
            "O_NOFOLLOW",
            "O_CREAT",
            "O_EXCL",
            "O_TRUNC",
            "O_APPEND",
            "O_PATH",
            "O_NOATIME",
            "O_SYNC",
        )
    }
    for kind, (name, flag), access, more in scene.some(
        (*TYPES, "none", "to file", "to dir"), flags_all.items(), (0, _W, _RW), (0, os.O_CREAT, os.O_CREAT | os.O_EXCL)
    ):
        path = scene.name()
        if kind in TYPES:
            scene.make(kind, path)
        elif kind.startswith("to"):
            scene.make("regular" if kind == "to file" else "dir", path + "t")
            os.symlink(path + "t", path)
        if kind in ("block", "char") and not flag & os.O_PATH:
            continue
        if kind == "dir" and access and flag & os.O_TRUNC:
            continue
        scene.call(
            f"open {kind} {name} {access} {more:o}",
            open_close,
            path,
            flag | access | more,
            0o640,
            watch=(path, "."),
        )
        scene.look(path)
    shell = scene.name()
    with open("/bin/sleep", "rb") as source, open(shell, "wb") as target:
        target.write(source.read())
    os.chmod(shell, 0o755)
    with subprocess.Popen([os.path.abspath(shell), "30"]) as running:
        scene.call("open a running program", open_close, shell, _W)
        scene.call("cut a running program", os.truncate, shell, 10)
        scene.call("remove a running program", os.unlink, shell)
        running.kill()


@chapter
def times(scene: Scene) -> None:
    """utimensat by everybody: now, not at all, to values beyond and below what 32 bits hold."""

    def act(path: str, atime: tuple[int, int], mtime: tuple[int, int]) -> list[bool]:
        utimensat(path, atime, mtime, NOFOLLOW)
        found = os.lstat(path)
        return [
            wanted[1] in (UTIME_NOW, UTIME_OMIT) or wanted[0] * 10**9 + wanted[1] == given
            for wanted, given in ((atime, found.st_atime_ns), (mtime, found.st_mtime_ns))
        ]

    values = ((1, 2), (0, UTIME_NOW), (0, UTIME_OMIT), (2**31 + 5, 999_999_999), (-3, 7), (1, 1_000_000_000))
    for kind, user, mode, atime, mtime in scene.some(
        ("regular", "dir", "symlink"), USERS, (0o644, 0o666), values, values
    ):
        path = scene.make(kind, scene.name(), mode, OWNER)

        scene.call(f"utimensat {kind} {mode:o} {atime} {mtime}", act, path, atime, mtime, by=user, watch=(path,))
        os.rmdir(path) if kind == "dir" else os.unlink(path)


@chapter
def sizes(scene: Scene) -> None:
    """truncate, ftruncate and posix_fallocate: sizes, times, who may."""
    for mode, user, size in scene.some((0o644, 0o666, 0o200, 0o444), USERS, (0, 4, 3, 70_000, 1 << 40, -1)):
        path = scene.name()
        with open(path, "wb") as file:
            file.write(b"1234")
        os.chown(path, 7001, 8001)
        os.chmod(path, mode)
        scene.call(f"truncate {size} {mode:o}", raw_truncate, path, size, by=user, watch=(path,))
        scene.look(path)
        os.unlink(path)
    path = scene.name()
    for flags, size in scene.some((os.O_RDONLY, _W, _RW, os.O_PATH), (0, 1, 4, 4, 9, 20_000, -1)):
        with open(path, "wb") as file:
            file.write(b"1234")
        descriptor = os.open(path, flags)
        scene.call(f"ftruncate {size} {flags:o}", os.ftruncate, descriptor, size, watch=(path,))
        scene.call(f"fallocate {size} {flags:o}", os.posix_fallocate, descriptor, 2, size, watch=(path,))
        scene.call(f"fallocate inside {flags:o}", os.posix_fallocate, descriptor, 0, 2, watch=(path,))
        scene.look(path)
        os.close(descriptor)
        os.unlink(path)
    for kind in TYPES:
        path = scene.make(kind, scene.name())
        if kind not in ("block", "char"):
            scene.call(f"truncate {kind}", raw_truncate, path, 1, by=STRANGER, watch=(path,))
            scene.call(f"truncate {kind}", raw_truncate, path, 1, watch=(path,))
