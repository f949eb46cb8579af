"""Whatever one mount does is seen by another that has everything in its caches, as by a second process on ext4.

For each change: the observer has looked at everything before (names, absent names, attributes, contents, listings,
mappings, open descriptors), so that its kernel and its daemon know it; another mount makes the change; the observer
looks again. Then they change roles. What is seen must be what is seen on ext4, where both are one mount.
"""

import ctypes
import errno
import mmap
import os
import subprocess
from collections.abc import Callable, Generator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.harness.process import process_cluster, succeed

pytestmark = pytest.mark.timeout(300)

SMALL, BIG = 100, 300_000
LIBC = ctypes.CDLL(None, use_errno=True)
Change = Callable[[Path], Any]
CHANGES: dict[str, Change] = {}


def change(act: Change) -> Change:
    CHANGES[act.__name__] = act
    return act


def write_at(path: Path, offset: int, data: bytes, flags: int = 0) -> None:
    descriptor = os.open(path, os.O_WRONLY | flags)
    try:
        os.pwrite(descriptor, data, offset)
    finally:
        os.close(descriptor)


@change
def overwrite(at: Path) -> None:
    for name in ("small", "big"):
        write_at(at / name, 10, b"changed")


@change
def write_behind_the_end(at: Path) -> None:
    write_at(at / "small", 400_000, b"far")
    write_at(at / "big", 400_000, b"far")


@change
def append(at: Path) -> None:
    for name in ("small", "big"):
        write_at(at / name, 0, b"appended", os.O_APPEND)


@change
def cut(at: Path) -> None:
    os.truncate(at / "small", 7)
    os.truncate(at / "big", 70_001)


@change
def cut_and_lengthen(at: Path) -> None:
    for name in ("small", "big"):
        os.truncate(at / name, 5)
        os.truncate(at / name, 100_000)


@change
def open_with_truncation(at: Path) -> None:
    for name in ("small", "big"):
        os.close(os.open(at / name, os.O_WRONLY | os.O_TRUNC))


@change
def write_through_a_mapping(at: Path) -> None:
    for name in ("small", "big"):
        with open(at / name, "r+b") as file, mmap.mmap(file.fileno(), 0) as pages:
            pages[20:27] = b"mapping"


@change
def write_again_after_closing(at: Path) -> None:
    for turn in range(3):
        write_at(at / "big", turn * 100_000, b"turn %d" % turn)


@change
def replace_by_rename(at: Path) -> None:
    (at / "new").write_bytes(b"new contents")
    os.rename(at / "new", at / "small")


@change
def rename_file(at: Path) -> None:
    os.rename(at / "small", at / "absent")


@change
def exchange(at: Path) -> None:
    assert not LIBC.renameat2(-100, os.fsencode(at / "small"), -100, os.fsencode(at / "dir"), 2)


@change
def unlink(at: Path) -> None:
    os.unlink(at / "small")
    os.unlink(at / "big")


@change
def unlink_and_make_again(at: Path) -> None:
    os.unlink(at / "small")
    (at / "small").write_bytes(b"another")


@change
def link(at: Path) -> None:
    os.link(at / "small", at / "absent")


@change
def unlink_one_of_two(at: Path) -> None:
    os.unlink(at / "second")


@change
def change_mode(at: Path) -> None:
    for name in ("small", "big", "dir"):
        os.chmod(at / name, 0o751)


@change
def change_owner(at: Path) -> None:
    for name in ("small", "big", "dir", "link"):
        os.chown(at / name, 7001, 8001, follow_symlinks=False)


@change
def set_times(at: Path) -> None:
    for name in ("small", "big", "dir", "link"):
        os.utime(at / name, ns=(10**18 + 1, 10**18 + 2), follow_symlinks=False)


@change
def set_xattrs(at: Path) -> None:
    os.setxattr(at / "small", "user.a", b"2")
    os.setxattr(at / "dir", "user.new", b"n")
    os.removexattr(at / "big", "user.a")


@change
def set_acl(at: Path) -> None:
    subprocess.run(["setfacl", "-m", "u:7001:rw", at / "small"], check=True)
    subprocess.run(["setfacl", "-d", "-m", "u:7001:rw", at / "dir"], check=True)


@change
def make_in_directory(at: Path) -> None:
    (at / "dir" / "made").write_bytes(b"x")
    os.mkdir(at / "dir" / "sub")
    os.symlink("x", at / "dir" / "l")
    os.mkfifo(at / "dir" / "p")


@change
def remove_from_directory(at: Path) -> None:
    os.unlink(at / "dir" / "one")
    os.rmdir(at / "dir" / "empty")


@change
def rename_directory(at: Path) -> None:
    os.rename(at / "dir", at / "absent")


@change
def move_between_directories(at: Path) -> None:
    os.rename(at / "dir" / "one", at / "absent")
    os.rename(at / "small", at / "dir" / "small")


@change
def remove_directory(at: Path) -> None:
    os.unlink(at / "dir" / "one")
    os.unlink(at / "dir" / "two")
    os.rmdir(at / "dir" / "empty")
    os.rmdir(at / "dir")


@change
def directory_becomes_file(at: Path) -> None:
    os.rename(at / "dir", at / "away")
    (at / "dir").write_bytes(b"a file now")


@change
def replace_symlink(at: Path) -> None:
    os.unlink(at / "link")
    os.symlink("big", at / "link")


@change
def punch_and_allocate(at: Path) -> None:
    for name in ("small", "big"):
        descriptor = os.open(at / name, os.O_RDWR)
        assert not LIBC.fallocate(descriptor, 3, ctypes.c_long(5), ctypes.c_long(90))
        assert not LIBC.fallocate(descriptor, 0, ctypes.c_long(0), ctypes.c_long(350_000))
        os.close(descriptor)


@change
def copy_into(at: Path) -> None:
    with open(at / "big", "rb") as source, open(at / "small", "r+b") as target:
        assert os.copy_file_range(source.fileno(), target.fileno(), 50_000, 7, 3) == 50_000


@change
def nothing(at: Path) -> None:
    os.listdir(at)


NAMES = ("small", "big", "second", "dir", "link", "absent", "away", "dir/one", "dir/two", "dir/made", "dir/small")


def attempt(act: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return act(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def attributes(path: Path) -> Any:
    found = os.lstat(path)
    kind = found.st_mode >> 12
    times = found.st_mtime_ns if found.st_mtime_ns == 10**18 + 2 else "a time"
    return [oct(found.st_mode), found.st_uid, found.st_gid, found.st_nlink, found.st_size if kind != 4 else 0, times]


def xattrs(path: Path) -> Any:
    names = sorted(os.listxattr(path, follow_symlinks=False))
    return [(name, os.getxattr(path, name, follow_symlinks=False).hex()) for name in names]


def listing(path: Path) -> list[str]:
    return sorted(os.listdir(path))


def look(at: Path) -> dict[str, Any]:
    """Everything that can be seen by name."""
    seen: dict[str, Any] = {}
    for name in NAMES:
        path = at / name
        seen[name] = [attempt(attributes, path), attempt(xattrs, path)]
        seen[name].append(attempt(listing, path))
        seen[name].append(attempt(os.readlink, path))
        seen[name].append(attempt(read_whole, path))
    seen["listing"] = sorted(entry.name + str(entry.is_dir(follow_symlinks=False)) for entry in os.scandir(at))
    return seen


def read_whole(path: Path) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return hash(os.read(descriptor, 1 << 20))
    finally:
        os.close(descriptor)


class Held:
    """What an observer has open, for reading or for writing, and mapped."""

    def __init__(self, at: Path, flags: int, stack: ExitStack) -> None:
        self.files = [os.open(at / name, flags) for name in ("small", "big")]
        self.maps: list[mmap.mmap] = []
        for descriptor in self.files:
            stack.callback(os.close, descriptor)
            if flags == os.O_RDONLY:
                pages = mmap.mmap(descriptor, SMALL, prot=mmap.PROT_READ)
                stack.callback(pages.close)
                self.maps.append(pages)

    def look(self) -> list[Any]:
        seen: list[Any] = []
        for descriptor in self.files:
            found = os.fstat(descriptor)
            seen.append([oct(found.st_mode), found.st_nlink, found.st_size, os.lseek(descriptor, 0, os.SEEK_END)])
            seen.append(hash(os.pread(descriptor, 1 << 20, 0)))
        for pages, descriptor in zip(self.maps, self.files, strict=False):
            if os.fstat(descriptor).st_size >= SMALL:
                seen.append(hash(bytes(pages)))
        return seen


def prepare(at: Path) -> None:
    os.mkdir(at)
    (at / "small").write_bytes(b"s" * SMALL)
    (at / "big").write_bytes(b"b" * BIG)
    os.link(at / "big", at / "second")
    os.symlink("small", at / "link")
    os.mkdir(at / "dir")
    os.mkdir(at / "dir" / "empty")
    for name in ("one", "two"):
        (at / "dir" / name).write_bytes(name.encode())
    for name in ("small", "big"):
        os.setxattr(at / name, "user.a", b"1")


def story(actor: Path, observer: Path, act: Change, how: str) -> list[Any]:
    """What the observer sees before and after; `how` it holds the files open meanwhile."""
    prepare(actor)
    told: list[Any] = []
    with ExitStack() as stack:
        held = Held(observer, {"read": os.O_RDONLY, "write": os.O_RDWR}[how], stack) if how != "closed" else None
        for _ in range(2):
            told.append([look(observer), held.look() if held else None])
        assert told[0] == told[1]
        act(actor)
        told.append([look(observer), held.look() if held else None])
        told.append(look(actor))
    told.append(look(observer))
    return told[1:]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Generator[tuple[Path, Path, Path]]:
    """A directory on ext4, and two mounts."""
    base = tmp_path_factory.mktemp("warm")
    local = base / "local"
    local.mkdir()
    with process_cluster(base) as cluster:
        far = base / "far"
        far.mkdir()
        succeed("mount", cluster.url, far, "--keyring", cluster.keyring)
        try:
            yield local, cluster.mount, far
        finally:
            succeed("umount", far)


@pytest.mark.parametrize("how", ["closed", "read", "write"])
@pytest.mark.parametrize("name", CHANGES)
def test_the_other_mount_sees_it(places: tuple[Path, Path, Path], name: str, how: str) -> None:
    local, one, two = places
    act = CHANGES[name]
    wanted = story(local / f"{name}-{how}", local / f"{name}-{how}", act, how)
    for number, (actor, observer) in enumerate(((one, two), (two, one))):
        folder = f"{name}-{how}-{number}"
        assert story(actor / folder, observer / folder, act, how) == wanted
