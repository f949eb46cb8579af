"""Paths to fids, as path_resolution(7) does it: one request for each component that no lease covers."""

import errno
import os
import stat
from typing import Final, NamedTuple

from nacrefs.client.vfs import Vfs
from nacrefs.common.answer import settle
from nacrefs.common.wire import Attr, Want

AnyPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]
SYMLINKS_MAX: Final = 40
"""More links than this on one way are a loop (ELOOP), as in the kernel."""


class Place(NamedTuple):
    """Where a path leads: the directory, the last name in it (b"" for the root itself), what is there (None:
    nothing)."""

    parent: int
    name: bytes
    attr: Attr | None


def absent(path: AnyPath) -> OSError:
    """The error for a path that leads to nothing."""
    return FileNotFoundError(errno.ENOENT, "no such file or directory", os.fsdecode(path))


async def find(vfs: Vfs, path: AnyPath, follow: bool = True, want: Want | None = None) -> Place:
    """Resolve a path from the mounted root; the last component may be absent. With `follow`, a symlink at its end is
    followed. `want`: what the lookup of the last component should bring. ENOENT, ENOTDIR or ELOOP on the way."""
    text = os.fsencode(path)
    todo = [part for part in reversed(text.split(b"/")) if part and part != b"."]
    must_be_directory = text.endswith((b"/", b"/."))
    way: list[tuple[int, bytes]] = []  # directories above the present one, each with the name taken there
    here = vfs.root
    attr: Attr | None = None
    links = 0
    while todo:
        name = todo.pop()
        if name == b"..":
            if way:
                here, _ = way.pop()
            attr = None
            continue
        found = await settle(vfs.lookup(here, name, None if todo else want))
        attr = found.attr
        if attr is None:
            if todo:
                raise absent(path)
            return Place(here, name, None)
        kind = stat.S_IFMT(attr.mode)
        if kind == stat.S_IFLNK and (todo or follow or must_be_directory):
            links += 1
            if links > SYMLINKS_MAX:
                raise OSError(errno.ELOOP, "too many levels of symbolic links", os.fsdecode(path))
            target = await settle(vfs.readlink(attr.fid))
            if target.startswith(b"/"):
                way.clear()
                here = vfs.root
            todo.extend(part for part in reversed(target.split(b"/")) if part and part != b".")
            must_be_directory = must_be_directory or (not todo and target.endswith(b"/"))
            attr = None
            continue
        if kind != stat.S_IFDIR:
            if todo or must_be_directory:
                raise NotADirectoryError(errno.ENOTDIR, "not a directory", os.fsdecode(path))
            return Place(here, name, attr)
        way.append((here, name))
        here = attr.fid
    if attr is None:
        attr = (await settle(vfs.getattr(here))).attr
    if way:
        parent, name = way[-1]
        return Place(parent, name, attr)
    return Place(here, b"", attr)


async def existing(vfs: Vfs, path: AnyPath, follow: bool = True, want: Want | None = None) -> Attr:
    """What a path leads to; ENOENT if that is nothing."""
    place = await find(vfs, path, follow, want)
    if place.attr is None:
        raise absent(path)
    return place.attr


async def vacant(vfs: Vfs, path: AnyPath) -> tuple[int, bytes]:
    """The directory and name of something that is to be made; EEXIST if it is there."""
    place = await find(vfs, path, follow=False)
    if place.attr is not None or not place.name:
        raise FileExistsError(errno.EEXIST, "file exists", os.fsdecode(path))
    return place.parent, place.name
