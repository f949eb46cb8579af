"""Random system calls of several users on a local directory and on a mount, side by side; whatever differs is told.

`python differential.py LOCAL MOUNT [MOUNT2] --seed N --steps N`: both get the same small tree, the same calls with the
same arguments by the same user; each call's result or errno is compared, which times it changed, and, now and then,
the whole trees. With MOUNT2 the calls go through either mount at random. Needs root. Prints differences as JSON.
"""

import argparse
import ctypes
import errno
import fcntl
import hashlib
import json
import os
import random
import shutil
import stat
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple

from tests.posix import acls

libc = ctypes.CDLL(None, use_errno=True)
NAMES: Final = ("a", "b", "c", "d", "e")
USERS: Final = (
    (0, 0, ()),
    (0, 0, ()),
    (7001, 8001, ()),
    (7001, 8001, (8002,)),
    (7002, 8002, (8001, 8003)),
    (7003, 8003, ()),
)
MODES: Final = (
    0o777, 0o755, 0o700, 0o711, 0o644, 0o666, 0o600, 0o640, 0o000, 0o1777, 0o2777, 0o2755, 0o4755, 0o6755, 0o4711,
    0o2644, 0o7777, 0o070, 0o007, 0o770, 0o1770, 0o2770, 0o6777,
)  # fmt: skip
IDS: Final = (-1, 0, 7001, 7002, 7003)
GIDS: Final = (-1, 0, 8001, 8002, 8003)
SIZES: Final = (0, 1, 100, 4096, 16384, 16385, 65536, 65537, 200_000, 1 << 20, (1 << 20) + 4097)
XATTRS: Final = (
    "user.a",
    "user.b",
    "trusted.a",
    "security.a",
    "user." + "n" * 250,
    "user." + "n" * 251,
    "bogus.a",
    "user.",
)
AT_FDCWD: Final = -100


class World(NamedTuple):
    """One of the two trees; `roots` are ways to it."""

    roots: tuple[str, ...]
    descriptors: list[int]


def outcome(act: Callable[[], Any]) -> Any:
    """What it returned, as plain data, or its errno's name."""
    try:
        result = act()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return result


def check(result: int) -> int:
    """The result of a C call; OSError if it failed."""
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


class Acting:
    """Act as somebody else."""

    def __init__(self, uid: int, gid: int, groups: tuple[int, ...]) -> None:
        self.who = uid, gid, groups

    def __enter__(self) -> None:
        uid, gid, groups = self.who
        os.setgroups(groups)
        os.setegid(gid)
        os.seteuid(uid)

    def __exit__(self, *_: object) -> None:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(())


def times(path: str) -> tuple[int, int, int] | None:
    """Which inode it is, its mtime and ctime."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_ctime_ns


def facts(path: str) -> Any:
    """All that is to be equal of one inode."""
    try:
        found = os.lstat(path)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    told: list[Any] = [oct(found.st_mode), found.st_uid, found.st_gid, found.st_nlink, found.st_rdev]
    if stat.S_ISREG(found.st_mode):
        with open(path, "rb") as file:
            data = file.read()
        told += [found.st_size, len(data), hashlib.sha256(data).hexdigest()[:12]]
    elif stat.S_ISLNK(found.st_mode):
        told += [found.st_size, os.readlink(path)]
    try:
        for name in sorted(os.listxattr(path, follow_symlinks=False)):
            told.append([name, os.getxattr(path, name, follow_symlinks=False).hex()])
    except OSError as error:
        told.append(errno.errorcode[error.errno or 0])
    return told


def tree(root: str) -> dict[str, Any]:
    """Every inode below a directory."""
    told: dict[str, Any] = {}
    for directory, folders, files in os.walk(root):
        for name in folders + files:
            path = os.path.join(directory, name)
            told[os.path.relpath(path, root)] = facts(path)
    return told


Act = Callable[[World, Callable[[str], str]], Any]
Call = tuple[str, tuple[str, ...], Act]
"""What it is, for people; the paths that it is about; how to make it in a world, given what completes paths."""


class Calls:
    """Chooses a call and makes it in each world."""

    def __init__(self, dice: random.Random, fifos: bool = True) -> None:
        self.dice = dice
        self.kinds: list[Callable[[], Call]] = [
            self.create, self.create, self.create, self.create, self.mkdir, self.mkdir, self.mknod,
            self.symlink, self.link, self.unlink, self.unlink, self.rmdir, self.rename, self.rename, self.rename,
            self.rename2, self.chmod, self.chmod, self.chmod, self.chown, self.chown, self.lchown, self.truncate,
            self.utimens, self.open, self.open, self.open, self.close, self.pwrite, self.pwrite, self.pread,
            self.ftruncate, self.fchmod, self.fchown, self.fstat, self.fallocate, self.setxattr, self.getxattr,
            self.removexattr, self.listxattr, self.access, self.listdir, self.setacl, self.setacl, self.stat,
            self.readlink, self.write, self.copy, self.read, self.fsync,
        ]  # fmt: skip
        if fifos:
            self.kinds.append(self.mkfifo)

    def path(self) -> str:
        depth = self.dice.choice((1, 1, 2, 2, 3))
        return "/".join(self.dice.choice(NAMES) for _ in range(depth))

    def paths(self) -> tuple[str, ...]:
        return self.path(), self.path()

    def create(self) -> Call:
        p, mode, mask = self.path(), self.dice.choice(MODES), self.dice.choice((0o22, 0, 0o77, 0o27))
        flags = os.O_CREAT | self.dice.choice((os.O_WRONLY, os.O_RDWR, os.O_RDONLY))
        flags |= (
            self.dice.choice((0, 0, os.O_EXCL, os.O_TRUNC, os.O_APPEND, os.O_NOFOLLOW, os.O_DIRECTORY)) | os.O_NONBLOCK
        )

        def act(world: World, at: Callable[[str], str]) -> None:
            os.umask(mask)
            os.close(os.open(at(p), flags, mode))

        return f"open({p}, {flags:o}, {mode:o}) umask {mask:o}", (p,), act

    def mkdir(self) -> Call:
        p, mode, mask = self.path(), self.dice.choice(MODES), self.dice.choice((0o22, 0, 0o77))

        def act(world: World, at: Callable[[str], str]) -> None:
            os.umask(mask)
            os.mkdir(at(p), mode)

        return f"mkdir({p}, {mode:o}) umask {mask:o}", (p,), act

    def mkfifo(self) -> Call:
        p, mode = self.path(), self.dice.choice(MODES)
        return f"mkfifo({p}, {mode:o})", (p,), lambda world, at: os.mkfifo(at(p), mode)

    def mknod(self) -> Call:
        p, mode = self.path(), self.dice.choice(MODES)
        kind = self.dice.choice((stat.S_IFREG, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK, 0))
        return f"mknod({p}, {kind | mode:o})", (p,), lambda world, at: os.mknod(at(p), kind | mode, os.makedev(1, 3))

    def symlink(self) -> Call:
        p, target = self.path(), self.dice.choice((*NAMES, "./a", "absent", "./b/c", "loop"))
        return f"symlink({target}, {p})", (p,), lambda world, at: os.symlink(target, at(p))

    def link(self) -> Call:
        p, q = self.paths()
        follow = self.dice.random() < 0.3
        return f"link({p}, {q}, {follow})", (p, q), lambda world, at: os.link(at(p), at(q), follow_symlinks=follow)

    def unlink(self) -> Call:
        p = self.path()
        return f"unlink({p})", (p,), lambda world, at: os.unlink(at(p))

    def rmdir(self) -> Call:
        p = self.path()
        return f"rmdir({p})", (p,), lambda world, at: os.rmdir(at(p))

    def rename(self) -> Call:
        p, q = self.paths()
        return f"rename({p}, {q})", (p, q), lambda world, at: os.rename(at(p), at(q))

    def rename2(self) -> Call:
        (p, q), flags = self.paths(), self.dice.choice((1, 2, 3))
        return (
            f"rename2({p}, {q}, {flags})",
            (p, q),
            lambda world, at: check(libc.renameat2(AT_FDCWD, os.fsencode(at(p)), AT_FDCWD, os.fsencode(at(q)), flags)),
        )

    def chmod(self) -> Call:
        p, mode = self.path(), self.dice.choice(MODES)
        return f"chmod({p}, {mode:o})", (p,), lambda world, at: os.chmod(at(p), mode)

    def _owner(self) -> tuple[int, int]:
        return self.dice.choice(IDS), self.dice.choice(GIDS)

    def chown(self) -> Call:
        p, (uid, gid) = self.path(), self._owner()
        return f"chown({p}, {uid}, {gid})", (p,), lambda world, at: os.chown(at(p), uid, gid)

    def lchown(self) -> Call:
        p, (uid, gid) = self.path(), self._owner()
        return f"lchown({p}, {uid}, {gid})", (p,), lambda world, at: os.chown(at(p), uid, gid, follow_symlinks=False)

    def truncate(self) -> Call:
        p, size = self.path(), self.dice.choice((*SIZES, -1))
        return f"truncate({p}, {size})", (p,), lambda world, at: os.truncate(at(p), size)

    def utimens(self) -> Call:
        p, follow = self.path(), self.dice.random() < 0.7
        ns = self.dice.choice((None, (1_000_000_001, 2_000_000_002), (-5, 10**18 + 1)))
        if ns is None:
            return f"utime({p}, now)", (p,), lambda world, at: os.utime(at(p), follow_symlinks=follow)
        return f"utime({p}, {ns}, {follow})", (p,), lambda world, at: os.utime(at(p), ns=ns, follow_symlinks=follow)

    def open(self) -> Call:
        p = self.path()
        flags = self.dice.choice((
            os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR, os.O_WRONLY | os.O_APPEND, os.O_RDWR | os.O_APPEND,
            os.O_WRONLY | os.O_TRUNC, os.O_RDWR | os.O_CREAT, os.O_RDONLY | os.O_DIRECTORY,
            os.O_RDONLY | os.O_NOFOLLOW, os.O_RDONLY | os.O_TRUNC,
        ))  # fmt: skip

        def act(world: World, at: Callable[[str], str]) -> None:
            os.umask(0o22)
            world.descriptors.append(os.open(at(p), flags | os.O_NONBLOCK, 0o666))

        return f"open({p}, {flags:o})", (p,), act

    def _descriptor(self, act: Callable[[int], Any]) -> Act:
        turn = self.dice.random()

        def call(world: World, at: Callable[[str], str]) -> Any:
            table = world.descriptors
            return act(table[int(turn * len(table))]) if table else None

        return call

    def close(self) -> Call:
        turn = self.dice.random()

        def act(world: World, at: Callable[[str], str]) -> None:
            table = world.descriptors
            if table:
                os.close(table.pop(int(turn * len(table))))

        return "close", (), act

    def pwrite(self) -> Call:
        data = self.dice.randbytes(self.dice.choice((0, 1, 100, 4096, 5000, 70_000)))
        offset = self.dice.choice(SIZES)
        return f"pwrite({len(data)}, {offset})", (), self._descriptor(lambda fd: os.pwrite(fd, data, offset))

    def write(self) -> Call:
        data = self.dice.randbytes(self.dice.choice((1, 100, 5000)))

        def act(fd: int) -> Any:
            # (After an append the position is from the size that this kernel knew: docs/known-limits.md.)
            told = stat.S_ISREG(os.fstat(fd).st_mode) and not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND
            return os.write(fd, data), os.lseek(fd, 0, os.SEEK_CUR) if told else 0

        return f"write({len(data)})", (), self._descriptor(act)

    def pread(self) -> Call:
        size, offset = self.dice.choice((0, 1, 5000, 100_000)), self.dice.choice(SIZES)
        return (
            f"pread({size}, {offset})",
            (),
            self._descriptor(lambda fd: hashlib.sha256(os.pread(fd, size, offset)).hexdigest()[:12]),
        )

    def ftruncate(self) -> Call:
        size = self.dice.choice(SIZES)
        return f"ftruncate({size})", (), self._descriptor(lambda fd: os.ftruncate(fd, size))

    def fchmod(self) -> Call:
        mode = self.dice.choice(MODES)
        return f"fchmod({mode:o})", (), self._descriptor(lambda fd: os.fchmod(fd, mode))

    def fchown(self) -> Call:
        uid, gid = self._owner()
        return f"fchown({uid}, {gid})", (), self._descriptor(lambda fd: os.fchown(fd, uid, gid))

    def fsync(self) -> Call:
        return "fsync", (), self._descriptor(os.fsync)

    def fstat(self) -> Call:
        def act(fd: int) -> Any:
            found = os.fstat(fd)
            size = found.st_size if stat.S_ISREG(found.st_mode) else -1
            return oct(found.st_mode), found.st_uid, found.st_gid, found.st_nlink, size

        return "fstat", (), self._descriptor(act)

    def fallocate(self) -> Call:
        mode = self.dice.choice((0, 1, 2, 3, 16, 17))
        offset, length = self.dice.choice(SIZES), self.dice.choice(SIZES)
        return (
            f"fallocate({mode}, {offset}, {length})",
            (),
            self._descriptor(lambda fd: check(libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)))),
        )

    def copy(self) -> Call:
        one, two = self.dice.random(), self.dice.random()
        count, source, target = self.dice.choice(SIZES), self.dice.choice(SIZES), self.dice.choice(SIZES)

        def act(world: World, at: Callable[[str], str]) -> Any:
            table = world.descriptors
            if not table:
                return None
            source_stat = os.fstat(table[int(one * len(table))])  # the kernel looks at the size that it knows
            if source_stat.st_ino == os.fstat(table[int(two * len(table))]).st_ino:
                return None  # it sees an overlap only within one mount
            return os.copy_file_range(table[int(one * len(table))], table[int(two * len(table))], count, source, target)

        return f"copy_file_range({count}, {source}, {target})", (), act

    def setxattr(self) -> Call:
        p, name, size = self.path(), self.dice.choice(XATTRS), self.dice.choice((0, 1, 100, 1000))
        flags, follow = self.dice.choice((0, 0, 1, 2)), self.dice.random() < 0.7
        return (
            f"setxattr({p}, {name}, {size}, {flags}, {follow})",
            (p,),
            lambda world, at: os.setxattr(at(p), name, b"v" * size, flags, follow_symlinks=follow),
        )

    def getxattr(self) -> Call:
        p, name, follow = self.path(), self.dice.choice(XATTRS), self.dice.random() < 0.7
        return (
            f"getxattr({p}, {name}, {follow})",
            (p,),
            lambda world, at: os.getxattr(at(p), name, follow_symlinks=follow).hex(),
        )

    def removexattr(self) -> Call:
        p, name, follow = self.path(), self.dice.choice((*XATTRS, *acls.NAMES)), self.dice.random() < 0.7
        return (
            f"removexattr({p}, {name}, {follow})",
            (p,),
            lambda world, at: os.removexattr(at(p), name, follow_symlinks=follow),
        )

    def listxattr(self) -> Call:
        p, follow = self.path(), self.dice.random() < 0.7
        return f"listxattr({p}, {follow})", (p,), lambda world, at: sorted(os.listxattr(at(p), follow_symlinks=follow))

    def setacl(self) -> Call:
        p, name = self.path(), self.dice.choice(acls.NAMES)
        value = acls.random_acl(self.dice, [i for i in IDS if i > 0], [g for g in GIDS if g > 0])
        return f"setacl({p}, {name[17:]}, {acls.text(value)})", (p,), lambda world, at: os.setxattr(at(p), name, value)

    def access(self) -> Call:
        p, how = self.path(), self.dice.randrange(8)
        return f"access({p}, {how})", (p,), lambda world, at: os.access(at(p), how, effective_ids=True)

    def listdir(self) -> Call:
        p = self.path()
        return f"listdir({p})", (p,), lambda world, at: sorted(os.listdir(at(p)))

    def stat(self) -> Call:
        p = self.path()

        def act(world: World, at: Callable[[str], str]) -> Any:
            found = os.stat(at(p))
            size = found.st_size if stat.S_ISREG(found.st_mode) else -1
            return oct(found.st_mode), found.st_uid, found.st_gid, found.st_nlink, size

        return f"stat({p})", (p,), act

    def readlink(self) -> Call:
        p = self.path()
        return f"readlink({p})", (p,), lambda world, at: os.readlink(at(p))

    def read(self) -> Call:
        p = self.path()

        def act(world: World, at: Callable[[str], str]) -> Any:
            descriptor = os.open(at(p), os.O_RDONLY | os.O_NONBLOCK)
            try:  # (A FIFO is one pipe for each kernel and mount.)
                return len(os.read(descriptor, 3 << 20)) if stat.S_ISREG(os.fstat(descriptor).st_mode) else 0
            finally:
                os.close(descriptor)

        return f"read({p})", (p,), act


def fresh(root: str) -> None:
    """An empty directory that everybody may use."""
    shutil.rmtree(root, ignore_errors=True)
    os.mkdir(root)
    os.chmod(root, 0o777)


def run(local: str, mounts: tuple[str, ...], seed: int, steps: int, stop: int = 5) -> list[Any]:
    """Differences, at most `stop` of them."""
    dice = random.Random(seed)
    calls = Calls(dice, len(mounts) == 1)  # a FIFO is one pipe for each mount
    name = f"s{seed}"
    ours, theirs = World(tuple(f"{mount}/{name}" for mount in mounts), []), World((f"{local}/{name}",), [])
    fresh(ours.roots[0])
    fresh(theirs.roots[0])
    told: list[Any] = []
    history: list[str] = []
    try:
        for step in range(steps):
            label, involved, act = dice.choice(calls.kinds)()
            who = dice.choice(USERS)
            turn = dice.random()
            results: list[Any] = []
            for world in (theirs, ours):
                root = world.roots[int(turn * len(world.roots))]
                watched = {p for q in involved for p in (f"{root}/{q}", os.path.dirname(f"{root}/{q}"))}
                before = {path: times(path) for path in sorted(watched)}
                with Acting(*who):
                    result = outcome(partial(act, world, partial(os.path.join, root)))
                root = world.roots[-1 - int(turn * len(world.roots))]
                after = [
                    (path[len(root) :], [x != y for x, y in zip(old, now, strict=True)])
                    for path, old in before.items()
                    if old is not None and (now := times(path)) is not None and old[0] == now[0]
                ]
                results.append([result, after])
            history.append(
                f"{who[0]}/{who[1]}{list(who[2])} via {int(turn * len(ours.roots))}: {label} -> {results[0][0]}"
            )
            if results[0] != results[1]:
                told.append(
                    {
                        "seed": seed,
                        "step": step,
                        "call": history[-1],
                        "local": results[0],
                        "mount": results[1],
                        "before": history[-12:-1],
                    }
                )
            if step % 25 == 24 or step == steps - 1 or results[0] != results[1]:
                here, there = tree(theirs.roots[0]), tree(ours.roots[dice.randrange(len(ours.roots))])
                if here != there:
                    names = sorted(set(here) | set(there))
                    differ = {n: [here.get(n), there.get(n)] for n in names if here.get(n) != there.get(n)}
                    told.append({"seed": seed, "step": step, "trees": differ, "before": history[-26:]})
                    break
            if len(ours.descriptors) != len(theirs.descriptors) or len(told) >= stop:
                break
            if len(ours.descriptors) > 8:
                for world in (theirs, ours):
                    os.close(world.descriptors.pop(0))
    finally:
        for world in (theirs, ours):
            for descriptor in world.descriptors:
                os.close(descriptor)
        shutil.rmtree(theirs.roots[0])
        shutil.rmtree(ours.roots[0])
    return told


def main() -> None:
    """Run seeds and print what differs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("local")
    parser.add_argument("mounts", nargs="+")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args()
    told: list[Any] = []
    for seed in range(options.seed, options.seed + options.seeds):
        told += run(options.local, tuple(options.mounts), seed, options.steps)
        if len(told) > 8:
            break
    print(json.dumps(told, indent=1))  # noqa: T201
    sys.exit(1 if told else 0)


if __name__ == "__main__":
    main()
