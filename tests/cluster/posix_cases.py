"""What a user may try on a filesystem, as cases whose outcome can be compared: `python posix_cases.py DIR [DIR2]`
prints them as JSON, by name. DIR2 is the same directory seen otherwise (through a second mount); by default it is DIR.

A case gets an empty directory by both paths and returns what came of it: plain data in which nothing depends on when or
where it ran. Whatever fails is a value, too (`attempt`). Needs root.
"""

import contextlib
import errno
import fcntl
import json
import mmap
import os
import shutil
import signal
import stat
import subprocess
import sys
import traceback
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path
from typing import Any

Case = Callable[[Path, Path], Any]
CASES: dict[str, Case] = {}
NOBODY = 65534
OTHER = 4242
_PLAIN = (bool, int, float, str, list, tuple, dict)


def case(make: Case) -> Case:
    CASES[make.__name__] = make
    return make


def attempt(act: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """What it returned, if that is plain data, or the name of its errno."""
    try:
        result: Any = act(*arguments, **named)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    if isinstance(result, bytes):
        return result.decode("latin-1")
    return result if type(result) in _PLAIN else None


def as_user(uid: int, act: Callable[[], Any], gid: int | None = None, groups: tuple[int, ...] = ()) -> Any:
    """What `act` returns in a process of that user."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgroups(groups)
            os.setgid(uid if gid is None else gid)
            os.setuid(uid)
            os.write(theirs, json.dumps(attempt(act)).encode())
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(theirs)
    with os.fdopen(ours, "rb") as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    return json.loads(told)


def look(path: Path) -> Any:
    """Type, permissions, owner, links and size (of what is not a directory)."""
    try:
        found = os.lstat(path)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    size = -1 if stat.S_ISDIR(found.st_mode) else found.st_size
    return [stat.filemode(found.st_mode), found.st_uid, found.st_gid, found.st_nlink, size]


def create(path: Path | bytes, mode: int = 0o644, data: bytes = b"") -> None:
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL, mode)
    if data:
        os.write(descriptor, data)
    os.close(descriptor)


@contextlib.contextmanager
def opened(path: Path, flags: int, mode: int = 0o644) -> Generator[int]:
    descriptor = os.open(path, flags, mode)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def shell(script: str, cwd: Path) -> Any:
    """Exit code and output of a shell script; the directory's own path does not show."""
    done = subprocess.run(
        ["/bin/sh", "-c", script], cwd=cwd, capture_output=True, text=True, check=False, errors="surrogateescape"
    )
    return [done.returncode, done.stdout.replace(str(cwd), "."), done.stderr.replace(str(cwd), ".")]


# ------------------------------------------------------------------------------------------------------ who may do what


@case
def chmod_000_keeps_others_out_and_root_in(a: Path, b: Path) -> Any:
    create(a / "f", data=b"secret")
    os.chown(a / "f", NOBODY, NOBODY)
    os.chmod(a / "f", 0)
    return [
        as_user(NOBODY, lambda: (b / "f").read_text()),
        as_user(NOBODY, lambda: os.chmod(b / "f", 0o400)),
        as_user(NOBODY, lambda: (b / "f").read_text()),
        as_user(NOBODY, lambda: (b / "f").write_text("x")),
        as_user(OTHER, lambda: (b / "f").read_text()),
        as_user(OTHER, lambda: os.chmod(b / "f", 0o777)),
        (b / "f").read_text(),
        look(b / "f"),
    ]


@case
def directory_permissions(a: Path, b: Path) -> Any:
    acts: tuple[Callable[[Path], Any], ...] = (
        lambda there: sorted(os.listdir(there)),
        lambda there: (there / "f").read_text(),
        lambda there: create(there / "new"),
        lambda there: os.mkdir(there / "newd"),
        lambda there: os.rename(there / "f", there / "g"),
        lambda there: os.unlink(there / "g"),
        lambda there: os.rmdir(there / "sub"),
        lambda there: os.symlink("x", there / "sym"),
        lambda there: os.link(there / "new", there / "hard"),
        lambda there: os.mkfifo(there / "fifo"),
        lambda there: os.stat(there / "absent").st_size,
    )
    results: list[Any] = []
    for mode in (0o700, 0o711, 0o744, 0o733, 0o755, 0o777, 0o666):
        here, there = a / f"d{mode:o}", b / f"d{mode:o}"
        os.mkdir(here)
        create(here / "f", 0o666, b"x")
        os.mkdir(here / "sub")
        os.chmod(here, mode)
        results.append([as_user(OTHER, partial(act, there)) for act in acts])
    return results


@case
def only_the_owner_and_root_change_modes_and_times(a: Path, b: Path) -> Any:
    create(a / "f", 0o666)
    os.chown(a / "f", NOBODY, NOBODY)
    os.chmod(a / "f", 0o666)
    return [
        as_user(OTHER, lambda: os.chmod(b / "f", 0o600)),
        as_user(OTHER, lambda: os.utime(b / "f", (1, 1))),
        as_user(OTHER, lambda: os.utime(b / "f")),
        as_user(NOBODY, lambda: os.utime(b / "f", (1, 1))),
        as_user(NOBODY, lambda: os.chown(b / "f", OTHER, -1)),
        as_user(NOBODY, lambda: os.chown(b / "f", -1, OTHER)),
        as_user(NOBODY, lambda: os.chown(b / "f", -1, OTHER), groups=(OTHER,)),
        as_user(NOBODY, lambda: os.truncate(b / "f", 10)),
        as_user(OTHER, lambda: os.setxattr(b / "f", "user.x", b"1")),
        as_user(OTHER, lambda: os.setxattr(b / "f", "trusted.x", b"1")),
        look(b / "f"),
    ]


@case
def group_permissions(a: Path, b: Path) -> Any:
    create(a / "f", data=b"for the group")
    os.chown(a / "f", 0, OTHER)
    os.chmod(a / "f", 0o040)
    return [
        as_user(NOBODY, lambda: (b / "f").read_text()),
        as_user(NOBODY, lambda: (b / "f").read_text(), gid=OTHER),
        as_user(NOBODY, lambda: (b / "f").read_text(), groups=(OTHER,)),
        as_user(NOBODY, lambda: (b / "f").write_text("x"), groups=(OTHER,)),
    ]


@case
def sticky_directory(a: Path, b: Path) -> Any:
    os.mkdir(a / "tmp")
    os.chmod(a / "tmp", 0o1777)
    as_user(NOBODY, lambda: create(a / "tmp" / "mine"))
    as_user(NOBODY, lambda: os.mkdir(a / "tmp" / "dir"))
    as_user(OTHER, lambda: create(a / "tmp" / "theirs"))
    there = b / "tmp"
    return [
        as_user(OTHER, lambda: os.unlink(there / "mine")),
        as_user(OTHER, lambda: os.rename(there / "mine", there / "stolen")),
        as_user(OTHER, lambda: os.rename(there / "theirs", there / "mine")),
        as_user(OTHER, lambda: os.rmdir(there / "dir")),
        as_user(NOBODY, lambda: os.rename(there / "mine", there / "moved")),
        as_user(NOBODY, lambda: os.unlink(there / "moved")),
        as_user(NOBODY, lambda: os.rmdir(there / "dir")),
        look(there),
        sorted(os.listdir(there)),
    ]


@case
def setgid_directory(a: Path, b: Path) -> Any:
    os.mkdir(a / "d")
    os.chown(a / "d", NOBODY, OTHER)
    os.chmod(a / "d", 0o2777)
    as_user(NOBODY, lambda: create(b / "d" / "f", 0o666))
    as_user(NOBODY, lambda: os.mkdir(b / "d" / "sub"))
    as_user(NOBODY, lambda: create(b / "d" / "sub" / "g"))
    as_user(NOBODY, lambda: os.symlink("x", b / "d" / "l"))
    as_user(NOBODY, lambda: create(b / "d" / "setgid", 0o2755))
    as_user(NOBODY, lambda: create(b / "d" / "member", 0o2755), groups=(OTHER,))
    names = ("d", "d/f", "d/sub", "d/sub/g", "d/l", "d/setgid", "d/member")
    return [look(a / name) for name in names]


@case
def setuid_and_setgid_bits(a: Path, b: Path) -> Any:
    acts: tuple[Callable[[Path], Any], ...] = (
        lambda path: path.write_bytes(b"new"),
        lambda path: os.truncate(path, 1),
        lambda path: os.chown(path, OTHER, OTHER),
        os.utime,
        lambda path: str(path.rename(path.with_suffix(".x")).rename(path).suffix),
        lambda path: os.close(os.open(path, os.O_WRONLY | os.O_TRUNC)),
        lambda path: os.close(os.open(path, os.O_WRONLY)),
    )
    results: list[Any] = []
    for number, act in enumerate(acts):
        for mode in (0o6777, 0o6755):
            path, seen = a / f"f{number}{mode:o}", b / f"f{number}{mode:o}"
            create(path, data=b"old")
            os.chmod(path, mode)
            results.append([attempt(act, path), look(seen)])
            create(a / f"u{number}{mode:o}", data=b"old")
            os.chown(a / f"u{number}{mode:o}", NOBODY, NOBODY)
            os.chmod(a / f"u{number}{mode:o}", mode)
            user = b / f"u{number}{mode:o}"
            results.append([as_user(OTHER, partial(act, user)), look(a / user.name)])
    create(a / "g")
    os.chown(a / "g", NOBODY, OTHER)
    results.append([as_user(NOBODY, lambda: os.chmod(b / "g", 0o2755)), look(a / "g")])
    return results


@case
def umask(a: Path, b: Path) -> Any:
    results: list[Any] = []
    for mask in (0, 0o22, 0o77, 0o777, 0o27):
        before = os.umask(mask)
        try:
            create(a / f"f{mask:o}", 0o666)
            os.mkdir(a / f"d{mask:o}", 0o777)
            os.mkfifo(a / f"p{mask:o}", 0o666)
            os.symlink("x", a / f"l{mask:o}")
        finally:
            os.umask(before)
        results.append([look(b / f"{kind}{mask:o}") for kind in "fdpl"])
    return results


@case
def access(a: Path, b: Path) -> Any:
    create(a / "f", 0o640)
    os.chmod(a / "f", 0o640)
    os.mkdir(a / "d", 0o751)
    checks = (os.F_OK, os.R_OK, os.W_OK, os.X_OK)
    return [
        [as_user(uid, partial(os.access, b / n, c)) for n in ("f", "d", "absent") for c in checks]
        for uid in (0, NOBODY)
    ]


@case
def execute(a: Path, b: Path) -> Any:
    create(a / "script", 0o755, b"#!/bin/sh\necho hello $1\n")
    shutil.copy("/bin/true", a / "binary")
    os.chmod(a / "binary", 0o755)
    create(a / "not", 0o644, b"#!/bin/sh\necho never\n")
    os.chmod(a, 0o755)

    def run(*command: Any) -> Any:
        return attempt(lambda: subprocess.run(command, capture_output=True, text=True, check=False).stdout)

    return [
        run(b / "script", "you"),
        run(b / "binary"),
        run(b / "not"),
        as_user(OTHER, lambda: run(b / "script", "other")),
        # What runs cannot be written to.
        busy_text(a / "sleep"),
    ]


def busy_text(path: Path) -> Any:
    shutil.copy("/bin/sleep", path)
    os.chmod(path, 0o755)
    running = subprocess.Popen([path, "30"])
    try:
        return [attempt(lambda: os.close(os.open(path, os.O_WRONLY))), attempt(os.unlink, path)]
    finally:
        running.kill()
        running.wait()


# --------------------------------------------------------------------------------------------------------- times, sizes


@case
def touch_and_utime(a: Path, b: Path) -> Any:
    create(a / "f")
    results: list[Any] = [shell("touch -d '2001-02-03 04:05:06.789012345 UTC' f && TZ=UTC stat -c '%x|%y' f", a)]
    for ns in ((1, 2), (-1_500_000_001, 10**18), (2**31 * 10**9, 2**32 * 10**9 + 999_999_999)):
        results.append([attempt(os.utime, a / "f", ns=ns), os.stat(b / "f").st_atime_ns, os.stat(b / "f").st_mtime_ns])
    os.utime(a / "f", ns=(5, 6))
    os.symlink("f", a / "l")
    os.utime(a / "l", ns=(7, 8), follow_symlinks=False)
    found, link = os.stat(b / "f"), os.lstat(b / "l")
    results.append([found.st_atime_ns, found.st_mtime_ns, link.st_atime_ns, link.st_mtime_ns])
    os.mkdir(a / "d")
    os.utime(a / "d", ns=(9, 10))
    results.append([os.stat(b / "d").st_mtime_ns])
    return results


@case
def what_changes_which_time(a: Path, b: Path) -> Any:
    """For each act, which of atime, mtime, ctime of the file and of the directory became new."""
    results: dict[str, Any] = {}

    def times(path: Path) -> tuple[int, int]:
        found = os.stat(path)
        return found.st_mtime_ns, found.st_ctime_ns

    acts: dict[str, Callable[[Path], Any]] = {
        "chmod": lambda d: os.chmod(d / "f", 0o600),
        "same chmod": lambda d: os.chmod(d / "f", 0o600),
        "chown": lambda d: os.chown(d / "f", 1, 1),
        "write": lambda d: (d / "f").write_bytes(b"x"),
        "truncate": lambda d: os.truncate(d / "f", 5),
        "same truncate": lambda d: os.truncate(d / "f", 5),
        "open for writing": lambda d: os.close(os.open(d / "f", os.O_WRONLY)),
        "open with O_TRUNC": lambda d: os.close(os.open(d / "f", os.O_WRONLY | os.O_TRUNC)),
        "again with O_TRUNC": lambda d: os.close(os.open(d / "f", os.O_WRONLY | os.O_TRUNC)),
        "link": lambda d: os.link(d / "f", d / "h"),
        "unlink": lambda d: os.unlink(d / "h"),
        "rename": lambda d: os.rename(d / "f", d / "g"),
        "rename to itself": lambda d: os.rename(d / "g", d / "g"),
        "back": lambda d: os.rename(d / "g", d / "f"),
        "mkdir": lambda d: os.mkdir(d / "s"),
        "rmdir": lambda d: os.rmdir(d / "s"),
        "create": lambda d: create(d / "n"),
        "open existing with O_CREAT": lambda d: os.close(os.open(d / "n", os.O_CREAT | os.O_WRONLY)),
        "setxattr": lambda d: os.setxattr(d / "f", "user.a", b"1"),
        "removexattr": lambda d: os.removexattr(d / "f", "user.a"),
        "write nothing": lambda d: os.close(write_nothing(d / "f")),
    }
    os.mkdir(a / "d")
    create(a / "d" / "f", data=b"0123456789")
    for name, act in acts.items():
        at = a / "d" / "f" if (a / "d" / "f").exists() else a / "d" / "g"
        os.utime(at, ns=(10**9, 10**9))
        os.utime(a / "d", ns=(10**9, 10**9))
        before_file, before_dir = times(at), times(a / "d")
        os.sync()
        act(a / "d")
        now = b / "d" / "f" if (b / "d" / "f").exists() else b / "d" / "g"
        after_file, after_dir = times(now), times(b / "d")
        results[name] = [
            [before != after for before, after in zip(before_file, after_file, strict=True)],
            [before != after for before, after in zip(before_dir, after_dir, strict=True)],
        ]
    return results


def write_nothing(path: Path) -> int:
    descriptor = os.open(path, os.O_WRONLY)
    os.write(descriptor, b"")
    return descriptor


@case
def truncate_and_sparse(a: Path, b: Path) -> Any:
    path, seen = a / "f", b / "f"
    results: list[Any] = []
    create(path, data=b"0123456789")
    for size in (5, 20, 0, 100_000, 50_000, 3, 70_000, 16384, 16385, 16383):
        os.truncate(path, size)
        results.append([os.stat(seen).st_size, len(seen.read_bytes()), hash_of(seen)])
        with opened(path, os.O_WRONLY) as descriptor:
            os.pwrite(descriptor, b"mark", size // 2)
        results.append(hash_of(seen))
    results.append(attempt(os.truncate, path, -1))
    results.append(attempt(os.truncate, a, 0))
    results.append(attempt(os.truncate, a / "absent", 0))
    with opened(path, os.O_RDONLY) as descriptor:
        results.append(attempt(os.ftruncate, descriptor, 0))
    return results


def hash_of(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


@case
def dd_with_seek(a: Path, b: Path) -> Any:
    script = """
        dd if=/dev/zero bs=1 count=1 seek=5M of=sparse status=none && stat -c %s sparse
        yes abcdefg | head -c 300000 > src
        dd if=src of=f bs=4k seek=10 status=none && stat -c %s f && sha256sum f
        dd if=src of=f bs=1000 skip=7 seek=3 count=50 conv=notrunc status=none && stat -c %s f && sha256sum f
        dd if=src of=f bs=64k seek=1 conv=notrunc,fsync oflag=append count=2 status=none; stat -c %s f; sha256sum f
        dd if=src of=direct bs=64k oflag=direct count=2 status=none; stat -c %s direct; sha256sum direct
        dd if=direct iflag=direct bs=4k skip=1 count=3 status=none | sha256sum
        dd if=src of=g bs=777 conv=sync,excl status=none; stat -c %s g; dd if=src of=g conv=excl status=none; sha256sum
        g truncate -s +100 g; truncate -s %1000 g; stat -c %s g; fallocate -l 1M h; stat -c %s h
        fallocate -n -o 1M -l 1M h; stat -c %s h; fallocate -p -o 1000 -l 5000 src; sha256sum src
        fallocate -z -o 10000 -l 5000 src; sha256sum src; cp --sparse=always src copy; cmp src copy
    """
    return [shell(script, a), [hash_of(b / name) for name in ("f", "g", "h", "src", "copy", "direct")]]


@case
def huge_offsets(a: Path, b: Path) -> Any:
    results: list[Any] = []
    with opened(a / "f", os.O_CREAT | os.O_RDWR) as descriptor:
        for offset in (2**31 - 1, 2**32, 2**40):
            results.append(attempt(os.pwrite, descriptor, b"end", offset))
            results.append([os.stat(b / "f").st_size, attempt(os.pread, descriptor, 10, offset)])
            results.append(attempt(os.pread, descriptor, 4, offset - 4))
        results.append(attempt(os.pread, descriptor, 10, 2**50))
        results.append(attempt(os.pwrite, descriptor, b"x", -1))
        results.append(attempt(os.lseek, descriptor, -1, os.SEEK_SET))
        results.append(attempt(os.lseek, descriptor, 0, os.SEEK_END))
    return results


@case
def holes(a: Path, b: Path) -> Any:
    """Where a hole begins depends on the filesystem's blocks; that one is where nothing was written does not."""
    with opened(a / "f", os.O_CREAT | os.O_RDWR) as descriptor:
        os.pwrite(descriptor, b"x" * 65536, 0)
        os.pwrite(descriptor, b"y" * 65536, 1 << 20)
        os.ftruncate(descriptor, 2 << 20)
        os.fsync(descriptor)
        ends = [
            attempt(os.lseek, descriptor, *where)
            for where in (
                (0, os.SEEK_DATA), (0, os.SEEK_HOLE), (65536, os.SEEK_DATA), (1 << 20, os.SEEK_HOLE),
                ((1 << 20) + 65536, os.SEEK_DATA), (2 << 20, os.SEEK_DATA), (2 << 20, os.SEEK_HOLE),
                (3 << 20, os.SEEK_HOLE), (-1, os.SEEK_DATA),
            )
        ]  # fmt: skip
    return [ends, os.stat(b / "f").st_blocks * 512 < 1 << 20]


# ----------------------------------------------------------------------------------------------------------- open files


@case
def append_from_two_processes(a: Path, b: Path) -> Any:
    """Each record is there exactly once and whole, whoever wrote it and through whichever mount."""
    create(a / "log")
    children: list[int] = []
    for number, root in enumerate((a, b, a, b)):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                with opened(root / "log", os.O_WRONLY | os.O_APPEND) as descriptor:
                    for line in range(100):
                        os.write(descriptor, b"%d %03d %s\n" % (number, line, b"x" * 90))
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    codes = [os.waitpid(child, 0)[1] for child in children]
    lines = (b / "log").read_bytes().split(b"\n")
    return [codes, len(lines), len(set(lines)), sorted({len(line) for line in lines}), os.stat(a / "log").st_size]


@case
def append_ignores_offsets(a: Path, b: Path) -> Any:
    create(a / "f", data=b"start")
    with opened(a / "f", os.O_RDWR | os.O_APPEND) as descriptor:
        os.lseek(descriptor, 0, os.SEEK_SET)
        results: list[Any] = [os.write(descriptor, b"one"), os.lseek(descriptor, 0, os.SEEK_CUR)]
        with opened(b / "f", os.O_WRONLY | os.O_APPEND) as other:
            os.write(other, b"two")
        results.append(os.write(descriptor, b"three"))
        results.append(os.pread(descriptor, 100, 0).decode())
    return [*results, (b / "f").read_text()]


@case
def unlinked_file_lives_while_it_is_open(a: Path, b: Path) -> Any:
    results: list[Any] = []
    for size in (100, 100_000):
        create(a / "f", data=b"x" * size)
        with opened(a / "f", os.O_RDWR) as here, opened(b / "f", os.O_RDONLY) as there:
            os.unlink(b / "f")
            results.append([look(a / "f"), os.fstat(here).st_nlink, os.fstat(there).st_nlink])
            os.pwrite(here, b"new", 10)
            results.append([len(os.pread(there, size + 10, 0)), os.pread(there, 5, 9).decode()])
            os.ftruncate(here, 5)
            results.append([os.fstat(there).st_size, os.pread(there, 10, 0).decode()])
            create(a / "f", data=b"another")
            results.append([(b / "f").read_text(), os.pread(here, 10, 0).decode()])
            os.fchmod(here, 0o600)
            results.append(oct(os.fstat(there).st_mode))
            results.append(attempt(os.link, f"/proc/self/fd/{here}", a / "again", follow_symlinks=True))
        os.unlink(a / "f")
    return results


@case
def rename_over_an_open_file(a: Path, b: Path) -> Any:
    create(a / "old", data=b"old contents")
    create(a / "new", data=b"new")
    with opened(b / "old", os.O_RDWR) as descriptor:
        os.rename(a / "new", a / "old")
        results = [os.pread(descriptor, 100, 0).decode(), os.fstat(descriptor).st_nlink, (b / "old").read_text()]
        os.pwrite(descriptor, b"OLD", 0)
        results += [os.pread(descriptor, 100, 0).decode(), (a / "old").read_text(), sorted(os.listdir(b))]
    return results


@case
def open_file_is_renamed(a: Path, b: Path) -> Any:
    os.mkdir(a / "d")
    with opened(a / "f", os.O_CREAT | os.O_RDWR) as descriptor:
        os.write(descriptor, b"before ")
        os.rename(b / "f", b / "d" / "g")
        os.write(descriptor, b"after")
        return [(b / "d" / "g").read_text(), look(a / "d" / "g"), look(a / "f")]


@case
def open_flags(a: Path, b: Path) -> Any:
    create(a / "f", data=b"contents")
    os.mkdir(a / "d")
    os.symlink("f", a / "l")
    os.symlink("absent", a / "dangling")
    os.mkfifo(a / "p")
    results: list[Any] = []
    for name in ("f", "d", "l", "dangling", "absent", "f/x", "absent/x", "p", ""):
        for flags in (
            os.O_RDONLY | os.O_NONBLOCK, os.O_RDONLY | os.O_DIRECTORY, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK,
            os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NONBLOCK, os.O_PATH | os.O_NOFOLLOW,
        ):  # fmt: skip
            path = b / name if name else b"".join((os.fsencode(b), b"/f/"))
            descriptor = attempt(os.open, path, flags, 0o600)
            if isinstance(descriptor, int):
                os.close(descriptor)
                descriptor = "opened"
            results.append(descriptor)
    results += [attempt(os.open, b / "d", flags) for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC)]
    with opened(b / "f", os.O_WRONLY) as descriptor:
        results.append(attempt(os.read, descriptor, 1))
    with opened(b / "f", os.O_RDONLY) as descriptor:
        results.append(attempt(os.write, descriptor, b"x"))
    with opened(b / "d", os.O_RDONLY | os.O_DIRECTORY) as descriptor:
        results.append(attempt(os.read, descriptor, 1))
        results.append(attempt(os.fsync, descriptor))
    results.append(sorted(os.listdir(a)))
    return results


@case
def temporary_file_without_name(a: Path, b: Path) -> Any:
    descriptor = attempt(os.open, a, os.O_TMPFILE | os.O_RDWR, 0o600)
    if not isinstance(descriptor, int):
        return ["EOPNOTSUPP is allowed: programs fall back"]
    os.close(descriptor)
    return ["EOPNOTSUPP is allowed: programs fall back"]


@case
def reads_and_writes_between_mounts(a: Path, b: Path) -> Any:
    results: list[Any] = []
    with opened(a / "f", os.O_CREAT | os.O_RDWR) as here, opened(b / "f", os.O_RDWR) as there:
        for step in range(12):
            writer, reader = (here, there) if step % 2 else (there, here)
            data = bytes([65 + step]) * (1 << step)
            results.append(os.pwrite(writer, data, step * 1000))
            results.append(os.pread(reader, len(data) + 10, step * 1000) == data)
            results.append(os.fstat(reader).st_size)
        os.ftruncate(here, 1500)
        results.append([os.fstat(there).st_size, len(os.pread(there, 10000, 0))])
    return [*results, hash_of(a / "f")]


@case
def shared_mmap(a: Path, b: Path) -> Any:
    results: list[Any] = []
    create(a / "f", data=b"a" * 10_000)
    with opened(a / "f", os.O_RDWR) as descriptor:
        memory = attempt_mmap(descriptor, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        if isinstance(memory, str):
            return memory
        memory[100:105] = b"MAPPED"[:5]
        memory.flush()
        results.append(os.pread(descriptor, 7, 99).decode())
        memory.close()
    results.append((b / "f").read_bytes()[99:106].decode())
    with opened(b / "f", os.O_RDONLY) as descriptor:
        for kind, protection in (
            (mmap.MAP_SHARED, mmap.PROT_READ), (mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE),
        ):  # fmt: skip
            memory = attempt_mmap(descriptor, kind, protection)
            results.append(memory if isinstance(memory, str) else bytes(memory[98:107]).decode())
            if not isinstance(memory, str):
                memory.close()
        results.append(
            memory
            if isinstance(memory := attempt_mmap(descriptor, mmap.MAP_SHARED, mmap.PROT_WRITE), str)
            else "mapped"
        )
    return results


def attempt_mmap(descriptor: int, kind: int, protection: int) -> "mmap.mmap | str":
    try:
        return mmap.mmap(descriptor, 10_000, kind, protection)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


@case
def locks(a: Path, b: Path) -> Any:
    """Between two processes on the same path."""
    create(a / "f", data=b"x" * 100)
    results: list[Any] = []
    with opened(a / "f", os.O_RDWR) as descriptor:
        for lock in (fcntl.flock, fcntl.lockf):
            lock(descriptor, fcntl.LOCK_EX)

            def contend(how: int, lock: Any = lock) -> Any:
                def child() -> Any:
                    with opened(a / "f", os.O_RDWR) as other:
                        return lock(other, how | fcntl.LOCK_NB)

                return as_user(0, child)

            results += [contend(fcntl.LOCK_SH), contend(fcntl.LOCK_EX)]
            lock(descriptor, fcntl.LOCK_SH)
            results += [contend(fcntl.LOCK_SH), contend(fcntl.LOCK_EX)]
            lock(descriptor, fcntl.LOCK_UN)
            results += [contend(fcntl.LOCK_EX)]
    return results


# ---------------------------------------------------------------------------------------------------------------- names


@case
def rename_rules(a: Path, b: Path) -> Any:
    def fresh() -> Path:
        shutil.rmtree(a / "r", ignore_errors=True)
        os.mkdir(a / "r")
        here = a / "r"
        create(here / "f", data=b"f")
        create(here / "g", data=b"g")
        os.mkdir(here / "empty")
        os.mkdir(here / "full")
        os.mkdir(here / "full" / "sub")
        os.symlink("f", here / "l")
        os.link(here / "f", here / "f2")
        return b / "r"

    results: dict[str, Any] = {}
    for old, new in (
        ("f", "g"), ("f", "f2"), ("f", "f"), ("f", "empty"), ("f", "full"), ("f", "l"), ("l", "f"), ("empty", "f"),
        ("empty", "full"), ("full", "empty"), ("full", "full/sub/x"), ("full", "full/sub"), ("full/sub", "full"),
        ("full/sub", "empty"), ("absent", "f"), ("f", "absent/x"), ("f/x", "g"), ("f", "g/x"), ("f", "new"),
        ("full", "new"), ("f", "."), (".", "new"), ("f", "full/."), ("empty", "full/.."), ("f", "full/sub/f"),
        ("f/", "new"), ("empty/", "new/"), ("f", "new/"),
    ):  # fmt: skip
        there = fresh()
        outcome = attempt(os.rename, os.path.join(there, old), os.path.join(there, new))
        tree = sorted(str(path.relative_to(a)) for path in (a / "r").rglob("*"))
        results[f"{old} -> {new}"] = [outcome, tree, look(a / "r" / "f2"), look(a / "r" / "full"), look(a / "r")]
    return results


@case
def renameat2(a: Path, b: Path) -> Any:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)

    def rename2(old: Path, new: Path, flags: int) -> Any:
        if libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags):
            return errno.errorcode[ctypes.get_errno()]
        return None

    create(a / "f", data=b"f")
    create(a / "g", data=b"gg")
    os.mkdir(a / "d")
    create(a / "d" / "in", data=b"in")
    return [
        rename2(b / "f", b / "g", 1),
        rename2(b / "f", b / "new", 1),
        rename2(b / "new", b / "g", 2),
        [(a / name).read_text() for name in ("new", "g")],
        rename2(b / "new", b / "d", 2),
        [look(a / "new"), look(a / "d"), attempt(lambda: (a / "new" / "in").read_text())],
        rename2(b / "new", b / "new" / "in", 2),
        rename2(b / "absent", b / "g", 2),
        rename2(b / "g", b / "absent", 2),
        rename2(b / "g", b / "d", 3),
        rename2(b / "g", b / "d", 8),
        look(a),
        sorted(os.listdir(b)),
    ]


@case
def removing(a: Path, b: Path) -> Any:
    os.mkdir(a / "full")
    create(a / "full" / "f")
    os.mkdir(a / "empty")
    create(a / "file")
    os.symlink("full", a / "l")
    os.symlink(".", a / "self")
    return [
        [attempt(os.rmdir, b / name) for name in ("full", "file", "l", "absent", "full/f", "self")],
        [attempt(os.rmdir, os.path.join(b, name)) for name in (".", "empty/.", "empty/..", "l/")],
        [attempt(os.unlink, b / name) for name in ("full", "empty", "absent", "file/x")],
        attempt(os.unlink, os.path.join(b, "file/")),
        look(a),
        attempt(os.rmdir, b / "empty"),
        attempt(os.unlink, b / "l"),
        attempt(os.unlink, b / "file"),
        sorted(os.listdir(a)),
        look(a),
        look(a / "full"),
    ]


@case
def removed_directory_that_is_someones_cwd(a: Path, b: Path) -> Any:
    os.mkdir(a / "d")
    with opened(a / "d", os.O_RDONLY | os.O_DIRECTORY) as descriptor:
        os.rmdir(b / "d")
        return [
            attempt(os.listdir, descriptor),
            attempt(os.mkdir, "x", dir_fd=descriptor),
            attempt(lambda: os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor))),
            attempt(lambda: os.fstat(descriptor).st_nlink),
        ]


@case
def long_and_odd_names(a: Path, b: Path) -> Any:
    here, there = os.fsencode(a), os.fsencode(b)
    results: list[Any] = []
    names = [
        b"n" * 255, b"n" * 256, b"\xff\xfe\x80", b" ", b"-rf", b"a\nb", b"\x01", b"...", b"*?[", "ä€😀".encode(),
        b"\xcc\x88" * 127, b"a\\b", b"con", b"x" * 4096,
    ]  # fmt: skip
    for name in names:
        path = here + b"/" + name
        results.append(attempt(create, path))
    for act in (os.mkdir, os.unlink, os.rmdir, os.stat, os.listdir, os.readlink):
        results.append(attempt(act, here + b"/" + b"n" * 256))
    results.append(attempt(os.rename, here + b"/" + b"n" * 255, here + b"/" + b"m" * 256))
    results.append(attempt(os.symlink, b"t" * 4095, here + b"/long target"))
    results.append(attempt(os.symlink, b"t" * 4096, here + b"/too long"))
    results.append(attempt(os.symlink, b"", here + b"/no target"))
    results.append(attempt(lambda: len(os.readlink(there + b"/long target"))))
    results.append([name.hex() for name in sorted(os.listdir(there))])
    return results


@case
def deep_paths(a: Path, b: Path) -> Any:
    before = os.getcwd()
    try:
        os.chdir(a)
        for _ in range(60):
            os.mkdir("d" * 100)
            os.chdir("d" * 100)
        create(Path("bottom"), data=b"deep")
        os.chdir(b)
        for _ in range(60):
            os.chdir("d" * 100)
        results = [Path("bottom").read_text(), attempt(os.getcwd) == "ENAMETOOLONG"]
        os.chdir(b)
        results.append(attempt(os.stat, "/".join(["d" * 100] * 60)))
    finally:
        os.chdir(before)
    return [*results, shell("rm -r d* && ls -A", b)]


@case
def links(a: Path, b: Path) -> Any:
    create(a / "f", data=b"x")
    os.mkdir(a / "d")
    os.symlink("f", a / "l")
    os.symlink("loop2", a / "loop1")
    os.symlink("loop1", a / "loop2")
    os.symlink("d", a / "ld")
    results: list[Any] = [
        attempt(os.link, b / "f", b / "f2"),
        attempt(os.link, b / "f", b / "f2"),
        attempt(os.link, b / "d", b / "d2"),
        attempt(os.link, b / "absent", b / "x"),
        attempt(os.link, b / "l", b / "l2", follow_symlinks=False),
        attempt(os.link, b / "f", "/dev/shm/cannot-be-there"),
        attempt(os.rename, b / "f", "/dev/shm/cannot-be-there"),
        attempt(os.symlink, "x", b / "f"),
        attempt(os.stat, b / "loop1"),
        attempt(os.open, b / "loop1", os.O_RDONLY),
        attempt(os.listdir, b / "loop1"),
        attempt(os.readlink, b / "loop1"),
        attempt(os.readlink, b / "f"),
        attempt(os.readlink, b / "d"),
        attempt(os.stat, b / "f" / "x"),
        attempt(os.listdir, b / "ld"),
        attempt(os.mkdir, b / "l"),
        attempt(os.chmod, b / "l", 0o600),
    ]
    os.unlink(a / "f")
    results += [look(b / name) for name in ("f2", "l2", "l", "d")]
    results.append(attempt(os.stat, b / "l"))
    for number in range(45):
        os.symlink(f"c{number + 1}", a / f"c{number}")
    results += [attempt(os.stat, b / "c0"), attempt(os.stat, b / "c44")]
    return results


@case
def special_files(a: Path, b: Path) -> Any:
    os.mkfifo(a / "p", 0o640)
    os.mknod(a / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    os.mknod(a / "big", 0o600 | stat.S_IFBLK, os.makedev(4000, 1048575))
    os.mknod(a / "sock", 0o755 | stat.S_IFSOCK)
    os.mknod(a / "reg", 0o600 | stat.S_IFREG)
    devices = [(os.major(d), os.minor(d)) for d in (os.stat(b / name).st_rdev for name in ("null", "big"))]
    child = os.fork()
    if child == 0:
        (b / "p").write_text("through the pipe")
        os._exit(0)
    text = (b / "p").read_text()
    os.waitpid(child, 0)
    return [
        [look(b / name) for name in ("p", "null", "big", "sock", "reg")],
        devices,
        text,
        as_user(OTHER, lambda: os.mknod(b / "x", 0o666 | stat.S_IFCHR, os.makedev(1, 3))),
        attempt(lambda: (b / "sock").read_text()),
    ]


@case
def unix_socket(a: Path, b: Path) -> Any:
    import socket

    os.chdir(a)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s")
        server.listen(1)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect("s")
            client.sendall(b"hello")
            connection, _ = server.accept()
            with connection:
                got = connection.recv(10).decode()
        with socket.socket(socket.AF_UNIX) as second:
            again = attempt(second.bind, "s")
    return [got, again, look(a / "s")]


@case
def directories_count_their_subdirectories(a: Path, b: Path) -> Any:
    results: list[Any] = []
    for number in range(3):
        os.mkdir(a / f"d{number}")
        results.append(os.stat(b).st_nlink)
    os.mkdir(a / "d0" / "x")
    os.rename(a / "d0" / "x", a / "d1" / "x")
    results += [os.stat(b / name).st_nlink for name in ("d0", "d1", "d2")]
    os.rename(a / "d2", a / "d1" / "x")
    results += [os.stat(b).st_nlink, os.stat(b / "d1").st_nlink]
    results += [os.stat(b / "d1" / "..").st_ino == os.stat(b).st_ino, os.stat(b / "d1" / ".").st_nlink]
    return results


@case
def reading_a_directory_while_it_changes(a: Path, b: Path) -> Any:
    names = {f"n{number:03d}" for number in range(300)}
    for name in names:
        create(a / name)
    seen: list[str] = []
    with os.scandir(b) as entries:
        for number, entry in enumerate(entries):
            seen.append(entry.name)
            if number == 10:
                for name in sorted(names)[::3]:
                    os.unlink(a / name)
                for other in range(50):
                    create(a / f"later{other}")
    stayed = names - set(sorted(names)[::3])
    return [stayed <= set(seen), len(seen) == len(set(seen)), len(os.listdir(b))]


@case
def xattrs(a: Path, b: Path) -> Any:
    create(a / "f")
    os.mkdir(a / "d")
    os.symlink("f", a / "l")
    there = b / "f"
    long_name = "user." + "n" * 250
    results: list[Any] = [
        attempt(os.setxattr, there, "user.a", b"1"),
        attempt(os.setxattr, there, "user.a", b"2", os.XATTR_CREATE),
        attempt(os.setxattr, there, "user.b", b"2", os.XATTR_REPLACE),
        attempt(os.setxattr, there, "user.empty", b""),
        attempt(os.setxattr, there, "user.zero", b"\0\xff\0"),
        attempt(os.setxattr, there, "nothing", b"x"),
        attempt(os.setxattr, there, "user.", b"x"),
        attempt(os.setxattr, there, long_name, b"x"),
        attempt(os.setxattr, there, long_name + "n", b"x"),
        attempt(os.setxattr, b / "d", "user.d", b"x"),
        attempt(os.setxattr, b / "l", "user.d", b"x", 0, follow_symlinks=False),
        attempt(os.setxattr, b / "l", "trusted.d", b"x", 0, follow_symlinks=False),
        attempt(os.setxattr, there, "trusted.t", b"t"),
        attempt(os.setxattr, there, "security.s", b"s"),
        attempt(os.getxattr, a / "f", "user.a"),
        attempt(os.getxattr, a / "f", "user.zero"),
        attempt(os.getxattr, a / "f", "user.absent"),
        sorted(os.listxattr(a / "f")),
        as_user(OTHER, lambda: sorted(os.listxattr(a / "f"))),
        as_user(OTHER, lambda: os.getxattr(a / "f", "trusted.t").decode()),
        as_user(OTHER, lambda: os.getxattr(a / "f", "user.a").decode()),
        attempt(os.removexattr, there, "user.a"),
        attempt(os.removexattr, there, "user.a"),
        sorted(os.listxattr(a / "f")),
    ]
    return results


@case
def access_control_lists(a: Path, b: Path) -> Any:
    """Kept, shown, enforced, following chmod and followed by the permission bits."""
    create(a / "f", 0o600, b"x")
    os.chmod(a / "f", 0o600)
    os.chmod(a, 0o755)
    there = b / "f"
    acts: tuple[Callable[[], Any], ...] = (
        lambda: there.read_text(),
        lambda: there.write_text("y"),
        lambda: os.access(there, os.R_OK),
        lambda: os.setxattr(there, "system.posix_acl_access", b"\2\0\0\0"),
    )
    results: list[Any] = []
    for script in (
        f"setfacl -m u:{OTHER}:r f", f"setfacl -m g:{OTHER}:rw f", "chmod 660 f", "chmod 600 f", "chmod 666 f",
        f"setfacl -m u:{OTHER}:- f", "setfacl -m m::r f", "setfacl -x u:4242 f", "setfacl -b f", "setfacl -d -m u::r f",
        "chmod 2755 f; setfacl -m g::rwx f", "setfacl -k f",
    ):  # fmt: skip
        results.append([script, shell(script, a), shell("getfacl -n f; getfattr -d -m - -e hex f", b), look(there)])
        results.append([as_user(OTHER, act) for act in acts])
        results.append([as_user(NOBODY, act, groups=(OTHER,)) for act in acts])
    return results


@case
def default_access_control_lists(a: Path, b: Path) -> Any:
    results: list[Any] = []
    lists = (
        ("u:4242:rwx", 0o22),
        ("u::rwx,g::r,o::-", 0o22),
        ("g:4242:rx,m::r", 0o77),
        ("u::r,g::r,o::r", 0),
        ("o::rwx", 0o777),
    )
    for number, (acl, mask) in enumerate(lists):
        os.mkdir(a / f"d{number}")
        results.append(shell(f"setfacl -d -m {acl} d{number}", a))
        before = os.umask(mask)
        try:
            create(b / f"d{number}" / "f", 0o666)
            create(b / f"d{number}" / "x", 0o777)
            os.mkdir(b / f"d{number}" / "s", 0o777)
            os.mkfifo(b / f"d{number}" / "p", 0o640)
            os.symlink("f", b / f"d{number}" / "l")
            create(b / f"d{number}" / "s" / "deep", 0o660)
        finally:
            os.umask(before)
    show = "find . | sort | xargs getfacl -n; find . | sort | xargs getfattr -d -m - -e hex; ls -lnR | cut -c 1-12"
    results.append(shell(show, a))
    results.append(shell("cp -a d0 copy; mkdir s; rsync -aAX d0 s; setfacl -Rbk d1", b))
    results.append(shell(show, a))
    return results


@case
def copying_tools(a: Path, b: Path) -> Any:
    script = """
        set -e
        mkdir tree && cd tree
        for i in 1 2 3; do mkdir d$i; seq 1 $((i * 5000)) > d$i/numbers; chmod 7$i$i d$i; done
        ln d1/numbers hard; ln -s d2/numbers soft; ln -s nowhere broken; chmod 4755 d3/numbers
        touch -d '2010-10-10 10:10:10 UTC' d1/numbers d2; cd ..
        cp -a tree copy; (cd tree && tar cf - .) | (mkdir untarred && cd untarred && tar xpf -)
        mv copy moved; cp -al moved linked
        for t in tree moved untarred linked; do
            (cd $t && find . ! -type d -printf '%p %m %n %s %l\\n' | sort
             find . -printf '%p %M %u %g\\n' | sort; find . -type f -o -type d -name d2 | sort | xargs stat -c '%n %Y'
             | grep -v '\\.$' | head -3)
        done
        install -m 640 tree/d1/numbers installed; stat -c '%a %s' installed
        split -b 10k tree/d3/numbers part.; cat part.* | cmp - tree/d3/numbers; ls part.*
        sort -rn tree/d3/numbers -o sorted; head -2 sorted; sed -i 's/^1$/one/' sorted; tail -1 sorted; wc -l < sorted
        echo x >> sorted; tail -1 sorted; ln -sfn tree link; readlink link; ln -f installed installed2
        mktemp -d XXXX.d | wc -c; find . -name 'numbers' -size +20k | sort; du --apparent-size -b sorted
    """
    return [shell(script, a), shell("diff -r --no-dereference tree untarred; ls -R | wc -l", b)]


@case
def find_and_remove(a: Path, b: Path) -> Any:
    script = """
        mkdir -p x/y/z && touch x/1 x/y/2 x/y/z/3 && find x -depth -print | sort && find x -type f -delete && find x |
        sort rmdir x/y/z && rmdir -p x/y && ls -A; mkdir d && cd d && touch a && rm -rf ../d; cd ..; rm f; rm -f
        f mkdir p; touch p/q; rm p; rmdir p; rm -r p; ls -A
    """
    return shell(script, b)


@case
def reading_beyond(a: Path, b: Path) -> Any:
    create(a / "f", data=b"0123456789")
    with opened(b / "f", os.O_RDONLY) as descriptor:
        return [
            attempt(os.pread, descriptor, 100, 5),
            attempt(os.pread, descriptor, 100, 10),
            attempt(os.pread, descriptor, 100, 1000),
            attempt(os.pread, descriptor, 0, 0),
            attempt(os.pread, descriptor, 5, -1),
            os.lseek(descriptor, 0, os.SEEK_END),
            attempt(os.read, descriptor, 10),
        ]


@case
def fallocate(a: Path, b: Path) -> Any:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)

    def allocate(descriptor: int, mode: int, offset: int, length: int) -> Any:
        done = libc.fallocate(descriptor, mode, ctypes.c_long(offset), ctypes.c_long(length))
        return None if not done else errno.errorcode[ctypes.get_errno()]

    results: list[Any] = []
    with opened(a / "f", os.O_CREAT | os.O_RDWR) as descriptor:
        os.write(descriptor, b"x" * 200_000)
        for mode, offset, length in (
            (0, 0, 300_000), (1, 400_000, 100_000), (3, 10_000, 50_000), (3, 199_999, 2), (16, 5, 10),
            (16, 290_000, 20_000), (17, 500_000, 10_000), (0, -1, 5), (0, 0, 0), (2, 0, 10), (3, 1_000_000, 5),
        ):  # fmt: skip
            results.append([allocate(descriptor, mode, offset, length), os.stat(b / "f").st_size, hash_of(b / "f")])
    with opened(b / "f", os.O_RDONLY) as descriptor:
        results.append(allocate(descriptor, 0, 0, 10))
    return results


@case
def copy_range(a: Path, b: Path) -> Any:
    create(a / "src", data=bytes(range(256)) * 1000)
    with opened(a / "src", os.O_RDONLY) as source, opened(b / "dst", os.O_CREAT | os.O_RDWR) as target:
        results = [
            attempt(os.copy_file_range, source, target, 100_000, 5000, 10),
            attempt(os.copy_file_range, source, target, 100_000, 250_000, 200_000),
            attempt(os.copy_file_range, source, target, 10, 256_000, 0),
            attempt(os.copy_file_range, source, target, 10, 300_000, 0),
            attempt(os.copy_file_range, target, source, 10, 0, 0),
            os.fstat(target).st_size,
        ]
    with opened(a / "src", os.O_RDWR) as same:
        results.append(attempt(os.copy_file_range, same, same, 1000, 0, 100_000))
        results.append(attempt(os.copy_file_range, same, same, 1000, 0, 500))
    return [*results, hash_of(b / "dst"), hash_of(b / "src")]


@case
def writes_with_vectors_and_at_odd_places(a: Path, b: Path) -> Any:
    with opened(a / "f", os.O_CREAT | os.O_RDWR) as descriptor:
        results: list[Any] = [os.writev(descriptor, [b"a" * 10, b"", b"b" * 70_000, b"c"])]
        for size, offset in ((1, 16383), (2, 16384), (65536, 65535), (131073, 1 << 20), (3, (1 << 20) - 1)):
            results.append(os.pwrite(descriptor, bytes([65 + size % 26]) * size, offset))
        buffers = [bytearray(7), bytearray(100_000), bytearray(3)]
        results.append(os.preadv(descriptor, buffers, 5))
    return [*results, hash_of(b / "f"), os.stat(b / "f").st_size]


@case
def setid_bits_that_come_while_a_file_is_open_end_with_an_ordinary_write(a: Path, b: Path) -> Any:
    results: list[Any] = []
    for size in (10, 100_000):
        create(a / "f", data=b"x" * size)
        with opened(a / "f", os.O_RDWR) as descriptor:
            changes: tuple[Callable[[], Any], ...] = (
                partial(os.pwrite, descriptor, b"y", 5),
                partial(os.pwrite, descriptor, b"y", size),
                partial(os.ftruncate, descriptor, 7),
                partial(os.posix_fallocate, descriptor, 0, 9),
            )
            for change in changes:
                for mode in (0o6777, 0o4766, 0o2767):
                    os.chmod(b / "f", mode)
                    results += [as_user(OTHER, change), look(a / "f"), look(b / "f"), as_user(OTHER, change)]
                    os.chmod(b / "f", mode)
                    results += [change(), look(b / "f")]
        os.unlink(b / "f")
    return results


@case
def file_capabilities_end_when_the_program_is_changed(a: Path, b: Path) -> Any:
    name, value = "security.capability", bytes.fromhex("0100000200200000000000000000000000000000")

    def told(path: Path) -> Any:
        return [attempt(lambda: os.getxattr(path, name).hex()), sorted(os.listxattr(path))]

    results: list[Any] = []
    for size in (10, 100_000):
        create(a / "f", data=b"x" * size)
        os.setxattr(a / "f", "user.kept", b"1")
        for user in (0, OTHER):
            os.chmod(a / "f", 0o666)
            for offset, data in ((0, b"y"), (size, b"z" * 20_000), (0, b"")):
                os.setxattr(a / "f", name, value)
                with opened(a / "f", os.O_RDWR) as descriptor:
                    results.append(as_user(user, partial(os.pwrite, descriptor, data, offset)))
                    results += [told(a / "f"), told(b / "f")]
                    os.setxattr(a / "f", name, value)
                results += [told(a / "f"), told(b / "f"), attempt(os.removexattr, b / "f", name)]
        os.unlink(b / "f")
    return results


@case
def file_capabilities_end_when_a_program_is_changed_that_several_write(a: Path, b: Path) -> Any:
    name, value = "security.capability", bytes.fromhex("0100000200200000000000000000000000000000")

    def told(path: Path) -> Any:
        return [attempt(lambda: os.getxattr(path, name).hex()), sorted(os.listxattr(path))]

    results: list[Any] = []
    for kept in (False, True):
        create(a / "f", data=b"x" * 100_000)
        if kept:
            os.setxattr(a / "f", "user.kept", b"1")
        with opened(a / "f", os.O_RDWR) as one, opened(b / "f", os.O_RDWR | os.O_APPEND) as two:
            for setter in (a, b):
                for descriptor in (one, two):
                    os.setxattr(setter / "f", name, value)
                    results += [told(a / "f"), told(b / "f")]
                    for _ in range(2):
                        results += [os.pwrite(descriptor, b"y", 5), told(a / "f"), told(b / "f")]
                    os.setxattr(setter / "f", name, value)
                    results += [told(a / "f"), told(b / "f")]
            os.pwrite(one, b"z", 7)
            os.setxattr(a / "f", name, value)
        results += [told(a / "f"), told(b / "f")]
        os.unlink(b / "f")
    return results


@case
def a_small_program_keeps_its_capabilities_and_times_when_another_opens_it_for_writing(a: Path, b: Path) -> Any:
    name, value = "security.capability", bytes.fromhex("0100000200200000000000000000000000000000")
    create(a / "f", data=b"small")
    os.utime(a / "f", ns=(10**18, 10**18))
    os.setxattr(a / "f", name, value)
    changed = os.stat(a / "f").st_ctime_ns
    with opened(a / "f", os.O_RDWR), opened(b / "f", os.O_RDWR):
        results: list[Any] = [attempt(os.getxattr, at / "f", name) for at in (a, b)]
        results += [os.stat(at / "f").st_mtime_ns for at in (a, b)]
        results += [os.stat(at / "f").st_ctime_ns == changed for at in (a, b)]
    return results


@case
def chown_of_nothing_is_anybodys_where_no_bit_would_end(a: Path, b: Path) -> Any:
    os.mkdir(a / "dir", 0o755)
    create(a / "f")
    results: list[Any] = []
    for name, mode in (("dir", 0o6755), ("dir", 0o755), ("f", 0o755), ("f", 0o4755)):
        os.chmod(a / name, mode)
        results += [as_user(OTHER, partial(os.chown, b / name, -1, -1)), look(b / name)]
    return results


@case
def interrupted_and_limited(a: Path, b: Path) -> Any:
    import resource

    def limited() -> Any:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        with opened(a / "f", os.O_CREAT | os.O_RDWR) as descriptor:
            results = [
                attempt(os.pwrite, descriptor, b"x" * 30_000, 30_000),
                attempt(os.pwrite, descriptor, b"x", 50_000),
            ]
            results.append(attempt(os.ftruncate, descriptor, 60_000))
        return results

    return [as_user(0, limited), os.stat(b / "f").st_size]


def run(root: Path, other: Path) -> dict[str, Any]:
    """All cases, each in a directory of its own, which is removed afterwards."""
    outcomes: dict[str, Any] = {}
    start = os.getcwd()
    for name, act in CASES.items():
        os.umask(0o022)
        if os.environ.get("POSIX_TRACE"):
            sys.stderr.write(f"{name}\n")
        os.mkdir(root / name)
        os.chmod(root / name, 0o777)
        try:
            outcomes[name] = act(root / name, other / name)
        except Exception as error:
            outcomes[name] = ["raised", type(error).__name__, str(error).replace(str(root), "").replace(str(other), "")]
            outcomes[name].append(traceback.format_exc().splitlines()[-4:-1] if os.environ.get("POSIX_TRACE") else "")
        os.chdir(start)
        shutil.rmtree(root / name)
    return outcomes


if __name__ == "__main__":
    first = Path(sys.argv[1])
    print(json.dumps(run(first, Path(sys.argv[2]) if len(sys.argv) > 2 else first)))  # noqa: T201
