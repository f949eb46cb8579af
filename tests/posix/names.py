"""Chapters about names: paths, permission to search and write directories, making, moving, linking and removing."""

import itertools
import os
import shutil
import stat
from collections.abc import Callable
from typing import Any, Final

from tests.posix.scene import (
    MEMBER,
    NAME_255,
    NOFOLLOW,
    OWNER,
    ROOT,
    STRANGER,
    TYPES,
    USERS,
    Op,
    Scene,
    chapter,
    facts,
    linkat,
    open_close,
    raw_chown,
    raw_lchown,
    raw_truncate,
    renameat2,
    utimensat,
)

_W: Final = os.O_WRONLY
_RW: Final = os.O_RDWR


OPS: Final[dict[str, Op]] = {
    "chmod": lambda p: os.chmod(p, 0o600),
    "chown": lambda p: raw_chown(p, 7001, 8001),
    "lchown": lambda p: raw_lchown(p, 7001, 8001),
    "chown nothing": lambda p: raw_chown(p, -1, -1),
    "link to": lambda p: os.link(p, "linked"),
    "link as": lambda p: os.link("plain", p),
    "mkdir": lambda p: os.mkdir(p, 0o755),
    "mkfifo": lambda p: os.mkfifo(p, 0o644),
    "mknod": lambda p: os.mknod(p, stat.S_IFSOCK | 0o644),
    "open": lambda p: open_close(p, os.O_RDONLY),
    "open for writing": lambda p: open_close(p, _W),
    "open and cut": lambda p: open_close(p, _W | os.O_TRUNC),
    "create": lambda p: open_close(p, os.O_CREAT | _W, 0o644),
    "create new": lambda p: open_close(p, os.O_CREAT | os.O_EXCL | _W, 0o644),
    "rename from": lambda p: os.rename(p, "renamed"),
    "rename to": lambda p: os.rename("moving", p),
    "exchange": lambda p: renameat2("moving", p, 2),
    "rename to new": lambda p: renameat2("moving", p, 1),
    "rmdir": os.rmdir,
    "symlink": lambda p: os.symlink("target", p),
    "readlink": os.readlink,
    "truncate": lambda p: raw_truncate(p, 5),
    "unlink": os.unlink,
    "utimensat": lambda p: utimensat(p, (1, 2), (3, 4)),
    "utimensat nofollow": lambda p: utimensat(p, (1, 2), (3, 4), NOFOLLOW),
    "setxattr": lambda p: os.setxattr(p, "user.a", b"1"),
    "listdir": lambda p: sorted(os.listdir(p)),
    "stat": lambda p: facts(p)[0],
    "access": lambda p: os.access(p, os.W_OK),
}
"""Calls that take one path."""


@chapter
def bad_paths(scene: Scene) -> None:
    """Every call with every kind of path that is wrong, or odd."""
    here = os.getcwd()
    to_limit = "/".join(["d"] + ["."] * ((4095 - len("d/n") - len(here) - 1) // 2))
    paths = {
        "below a file": "f/x", "below a file's slash": "f/", "absent/x": "absent/x", "absent/": "absent/", "": "",
        "name of 255": NAME_255, "name of 256": NAME_255 + "n", "below a name of 256": NAME_255 + "n/x",
        "path at the limit": f"{to_limit}/n", "path too long": f"{to_limit}/{'n' * 20}" + "/." * 600, "loop": "loop",
        "below a loop": "loop/x", "dangling": "dangling", "below dangling": "dangling/x", "dangling/": "dangling/",
        ".": ".", "..": "..", "d/.": "d/.", "d/..": "d/..", "d/": "d/", "through a link": "ld/f", "link/": "ld/",
        "link to a file": "lf", "link to a file/": "lf/", "below a fifo": "p/x", "full/": "full/", "full": "full",
        "40 links": "c39/f", "41 links": "c41/f", "not utf-8": os.fsdecode(b"\xff\xfe\x80"),
    }  # fmt: skip
    for (what, op), (how, path) in scene.some(OPS.items(), paths.items()):
        os.mkdir("t")
        os.chdir("t")
        for name in ("f", "plain", "moving"):
            scene.make("regular", name)
        os.mkdir("d")
        os.mkfifo("p")
        os.mkdir("full")
        scene.make("regular", "full/f")
        scene.make("regular", "d/f")
        for target, link in (("loop2", "loop"), ("loop", "loop2"), ("gone", "dangling"), ("d", "ld"), ("f", "lf")):
            os.symlink(target, link)
        if "links" in how:
            os.symlink("d", "c1")
            for number in range(2, 43):
                os.symlink(f"c{number - 1}", f"c{number}")
        scene.call(f"{what} {how}", op, path, watch=("f", "d", ".", "full"))
        os.chdir("..")
        shutil.rmtree("t")


def _remove_one(path: str) -> None:
    if stat.S_ISDIR(os.lstat(path).st_mode):
        os.rmdir(path)
    else:
        os.unlink(path)


@chapter
def search_and_write_permission(scene: Scene) -> None:
    """What the directory allows to whom."""
    for mode, user, owner in scene.some((0o755, 0o711, 0o644, 0o555, 0o777, 0o770, 0o700), USERS, (OWNER, ROOT)):
        for what, op in OPS.items():
            os.mkdir("t")
            scene.make("dir", "t/in", 0o755, owner)
            for kind, name in (("regular", "f"), ("dir", "sub"), ("symlink", "l"), ("regular", "moving")):
                scene.make(kind, f"t/in/{name}", 0o644 if kind != "dir" else 0o755, OWNER)
            for name in ("plain", "moving"):
                scene.make("regular", f"t/{name}", 0o666, user)
            os.chmod("t", 0o777)
            os.chmod("t/in", mode)
            os.chdir("t")
            new = what.split()[0] in ("mkdir", "mkfifo", "mknod", "create", "symlink") or what in (
                "link as",
                "rename to",
            )
            target = (
                "in/new"
                if new
                else "in/sub"
                if what in ("rmdir", "listdir")
                else "in/l"
                if what == "readlink"
                else "in/f"
            )
            scene.call(f"{what} in {mode:o} of {owner.uid}", op, target, by=user, watch=(target, "in", "."))
            os.chdir("..")
            shutil.rmtree("t")


@chapter
def making(scene: Scene) -> None:
    """Mode, owner and group of what is made, under umasks and setgid directories, and whose times change."""

    def act(make: Callable[[str, int], Any], path: str, mode: int, mask: int) -> None:
        os.umask(mask)
        try:
            make(path, mode)
        finally:
            os.umask(0)

    makers: dict[str, Callable[[str, int], Any]] = {
        "open": lambda p, mode: open_close(p, os.O_CREAT | _W, mode),
        "mkdir": os.mkdir,
        "mkfifo": os.mkfifo,
        "mknod": lambda p, mode: os.mknod(p, stat.S_IFREG | mode),
        "socket": lambda p, mode: os.mknod(p, stat.S_IFSOCK | mode),
        "char": lambda p, mode: os.mknod(p, stat.S_IFCHR | mode, os.makedev(5, 300)),
        "block": lambda p, mode: os.mknod(p, stat.S_IFBLK | mode, os.makedev(500, 7)),
        "symlink": lambda p, mode: os.symlink("to", p),
    }
    for folder, user, (what, make) in itertools.product((0o777, 0o2777, 0o1777), USERS, makers.items()):
        directory = scene.make("dir", scene.name(), folder, MEMBER)
        for mode, mask in scene.some((0o755, 0o151, 0o6777, 0o1777, 0), (0, 0o22, 0o77, 0o345)):
            path = f"{directory}/{scene.name()}"

            scene.call(
                f"{what} {mode:o} umask {mask:o} in {folder:o}",
                act,
                make,
                path,
                mode,
                mask,
                by=user,
                watch=(directory,),
            )
            scene.look(path, directory)
            scene.call(f"{what} again", act, make, path, mode, mask, by=user, watch=(directory, path))


@chapter
def sticky_directories(scene: Scene) -> None:
    """Who may remove, move and replace what in a sticky directory."""
    kinds = ("regular", "dir", "symlink", "fifo")
    for kind, folder, owner, user in scene.some(kinds, (OWNER, STRANGER, ROOT), (OWNER, STRANGER, ROOT), USERS):
        acts: dict[str, Op] = {
            "remove": lambda d: _remove_one(f"{d}/v"),
            "rename out": lambda d: os.rename(f"{d}/v", f"{d}.open/w"),
            "rename in": lambda d: os.rename(f"{d}/v", f"{d}/w"),
            "replace": lambda d: os.rename(f"{d}.open/m", f"{d}/v"),
            "exchange": lambda d: renameat2(f"{d}.open/m", f"{d}/v", 2),
            "link": lambda d: os.link(f"{d}/v", f"{d}/w", follow_symlinks=False),
        }
        for what, act in acts.items():
            directory = scene.make("dir", scene.name(), 0o1777, folder)
            beside = scene.make("dir", f"{directory}.open", 0o777, ROOT)
            scene.make(kind, f"{directory}/v", 0o755, owner)
            scene.make(kind, f"{beside}/m", 0o755, user)
            watch = (directory, beside, f"{directory}/v", f"{beside}/m")
            scene.call(f"{what} {kind} of {owner.uid} in {folder.uid}", act, directory, by=user, watch=watch)
            scene.look(f"{directory}/v", f"{directory}/w", f"{beside}/m", f"{beside}/w")
            shutil.rmtree(directory)
            shutil.rmtree(beside)


@chapter
def renaming(scene: Scene) -> None:
    """Every type onto every type, links to one inode, directories into themselves, and what becomes of `..`."""
    for old, new, flags in scene.some(TYPES, (*TYPES, "full", "none"), (0, 1, 2)):
        one, two = scene.make("dir", scene.name(), 0o755), scene.make("dir", scene.name(), 0o755)
        scene.make(old, f"{one}/a")
        if new == "full":
            os.mkdir(f"{two}/b")
            os.mkdir(f"{two}/b/in")
        elif new != "none":
            scene.make(new, f"{two}/b")
        scene.call(
            f"rename {old} to {new} {flags}",
            renameat2,
            f"{one}/a",
            f"{two}/b",
            flags,
            watch=(one, two, f"{one}/a", f"{two}/b"),
        )
        scene.look(f"{one}/a", f"{two}/b", one, two)
        shutil.rmtree(one)
        shutil.rmtree(two)
    os.makedirs("p/q/r")
    os.mkdir("other")
    scene.make("regular", "f")
    os.link("f", "g")
    for source, target in (
        ("p", "p"), ("p", "p/x"), ("p", "p/q/r/x"), ("p/q", "p"), ("f", "g"), ("f", "f"), ("p/q", "other"),
        ("other", "p"), ("other/r", "up"), ("up", "other/up"), (".", "x"), ("p/..", "x"), ("f", "."),
        ("other", "other/."), ("f", "f/x"),
    ):  # fmt: skip
        for flags in (0, 2):
            scene.call(
                f"rename {source} {target} {flags}",
                renameat2,
                source,
                target,
                flags,
                watch=("f", "g", "."),
            )
            scene.told.append(("tree", sorted((top, sorted(dirs), sorted(files)) for top, dirs, files in os.walk("."))))
            for top in sorted(top for top, _, _ in os.walk(".")):
                same = os.stat(f"{top}/..").st_ino == os.stat(os.path.dirname(os.path.abspath(top))).st_ino
                scene.told.append((f"{top}/..", [same, os.stat(top).st_nlink]))
    for mode, user, owner in scene.some((0o755, 0o555, 0o1777), (OWNER, STRANGER), (OWNER, ROOT)):
        one, two = scene.make("dir", scene.name(), 0o777), scene.make("dir", scene.name(), 0o777)
        moved = scene.make("dir", f"{one}/d", mode, owner)
        scene.call(
            f"move a directory {mode:o} of {owner.uid}",
            os.rename,
            moved,
            f"{two}/d",
            by=user,
            watch=(one, two, moved),
        )


@chapter
def links(scene: Scene) -> None:
    """Hard links to all types by all, counts and times, and to what has no name any more."""
    for kind, user, mode in scene.some(TYPES, USERS, (0o644, 0o666, 0o600, 0o4755)):
        path, new = scene.make(kind, scene.name(), mode, OWNER), scene.name()
        os.chmod(".", 0o777)
        watch = (path, ".")
        scene.call(f"link {kind} {mode:o}", linkat, path, new, 0, by=user, watch=watch)
        scene.call(f"link {kind} follow", linkat, path, new + "f", 0x400, by=user, watch=watch)
        scene.call(f"link {kind} again", linkat, path, new, 0, by=user, watch=watch)
        scene.look(path, new)
        scene.call("unlink one", os.unlink, path, by=user, watch=(new, "."))
        scene.look(path, new)
    path = scene.make("regular", scene.name(), 0o666)
    descriptor = os.open(path, _RW)
    os.unlink(path)
    scene.call("fstat of nameless", lambda: [os.fstat(descriptor).st_nlink, os.fstat(descriptor).st_size])
    scene.call("write nameless", lambda: os.write(descriptor, b"abc"))
    scene.call("read nameless", lambda: os.pread(descriptor, 10, 0).decode())
    scene.call("chmod nameless", lambda: os.fchmod(descriptor, 0o600))
    scene.call("chown nameless", lambda: os.fchown(descriptor, 7001, 8001))
    scene.call("cut nameless", lambda: os.ftruncate(descriptor, 1))
    scene.call("fsync nameless", lambda: os.fsync(descriptor))
    scene.call("xattr nameless", lambda: os.setxattr(descriptor, "user.a", b"1"))
    scene.call("link nameless", lambda: linkat(f"/proc/self/fd/{descriptor}", "back", 0x400))
    scene.call(
        "seen nameless",
        lambda: [os.fstat(descriptor).st_uid, os.fstat(descriptor).st_size, oct(os.fstat(descriptor).st_mode)],
    )
    os.close(descriptor)


@chapter
def removing(scene: Scene) -> None:
    """unlink and rmdir of every type; directories that are not empty, or in use."""
    for kind, (what, act), user in scene.some(TYPES, (("unlink", os.unlink), ("rmdir", os.rmdir)), (ROOT, OWNER)):
        directory = scene.make("dir", scene.name(), 0o777)
        path = scene.make(kind, f"{directory}/v", 0o755, OWNER)
        scene.call(f"{what} {kind}", act, path, by=user, watch=(directory, path))
        scene.look(directory, path)
    os.makedirs("full/in")
    scene.call("rmdir full", lambda: os.rmdir("full"), watch=("full", "."))
    descriptor = os.open("full/in", os.O_RDONLY)
    scene.call("rmdir in use", lambda: os.rmdir("full/in"), watch=("full",))
    scene.call("nlink of removed", lambda: os.fstat(descriptor).st_nlink)
    for what, op in OPS.items():
        if what not in ("rename to", "rename from", "link to", "exchange", "rename to new", "link as"):
            os.fchdir(descriptor)
            scene.call(f"{what} in removed", op, "x")
            os.chdir(scene.root)
    os.close(descriptor)
