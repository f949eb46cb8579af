"""A namespace in memory, as simple as can be: what every real one is compared with.

Single user, no caching, no permissions. Inodes are objects, so hard links and open files are Python references. Each
operation raises OSError with the errno that a local Linux filesystem gives.
"""

import errno
import stat
from dataclasses import dataclass, field


@dataclass
class Inode:
    """A file, directory, symlink or node."""

    mode: int
    uid: int = 0
    gid: int = 0
    rdev: int = 0
    contents: bytearray = field(default_factory=bytearray)
    target: bytes = b""
    xattrs: dict[bytes, bytes] = field(default_factory=dict[bytes, bytes])
    entries: dict[bytes, "Inode"] = field(default_factory=dict[bytes, "Inode"])
    parent: "Inode | None" = None
    links: int = 0
    """Names; for a directory too (the root has none)."""

    @property
    def is_directory(self) -> bool:
        """Whether this is a directory."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_regular(self) -> bool:
        """Whether this is a regular file."""
        return stat.S_ISREG(self.mode)

    @property
    def is_symlink(self) -> bool:
        """Whether this is a symbolic link."""
        return stat.S_ISLNK(self.mode)

    @property
    def nlink(self) -> int:
        """The link count as `stat` shows it."""
        if self.is_directory:
            return 2 + sum(child.is_directory for child in self.entries.values())
        return self.links

    @property
    def size(self) -> int:
        """The size as `stat` shows it."""
        if self.is_directory:
            return 4096
        return len(self.target) if self.is_symlink else len(self.contents)


class Namespace:
    """A tree with a root directory."""

    def __init__(self) -> None:
        self.root = Inode(stat.S_IFDIR | 0o755)
        self.root.parent = self.root

    def lookup(self, parent: Inode, name: bytes) -> Inode | None:
        """What a name stands for."""
        _need_directory(parent)
        return parent.entries.get(name)

    def make(self, parent: Inode, name: bytes, mode: int, uid: int, gid: int, rdev: int = 0) -> Inode:
        """create, mknod, mkdir."""
        self._need_vacant(parent, name)
        inherits = parent.mode & stat.S_ISGID
        if stat.S_ISDIR(mode):
            mode = mode & ~0o6000 | inherits
        return self._enter(parent, name, Inode(mode, uid, parent.gid if inherits else gid, rdev))

    def symlink(self, parent: Inode, name: bytes, target: bytes, uid: int, gid: int) -> Inode:
        """Make a symbolic link."""
        self._need_vacant(parent, name)
        if not target:
            raise OSError(errno.ENOENT, "empty target")
        inherits = parent.mode & stat.S_ISGID
        return self._enter(
            parent, name, Inode(stat.S_IFLNK | 0o777, uid, parent.gid if inherits else gid, target=target)
        )

    def link(self, inode: Inode, parent: Inode, name: bytes) -> None:
        """Another name for an inode."""
        self._need_vacant(parent, name)
        if inode.is_directory:
            raise OSError(errno.EPERM, "directory")
        if not inode.links:
            raise OSError(errno.ENOENT, "removed")
        self._enter(parent, name, inode)

    def unlink(self, parent: Inode, name: bytes) -> Inode:
        """Remove a name that is not a directory's; what it stood for."""
        victim = self._need_entry(parent, name)
        if victim.is_directory:
            raise OSError(errno.EISDIR, "directory")
        return self._leave(parent, name)

    def rmdir(self, parent: Inode, name: bytes) -> None:
        """Remove an empty directory."""
        victim = self._need_entry(parent, name)
        if not victim.is_directory:
            raise OSError(errno.ENOTDIR, "not a directory")
        if victim.entries:
            raise OSError(errno.ENOTEMPTY, "not empty")
        self._leave(parent, name)

    def rename(self, parent: Inode, name: bytes, new_parent: Inode, new_name: bytes, flags: int) -> Inode | None:
        """Move a name; the inode that it replaced, if any. `flags`: 1 NOREPLACE, 2 EXCHANGE."""
        _need_directory(parent)
        _need_directory(new_parent)
        moved = self._need_entry(parent, name)
        other = new_parent.entries.get(new_name)
        if other is not None and flags & 1:
            raise OSError(errno.EEXIST, "exists")
        if other is None and flags & 2:
            raise OSError(errno.ENOENT, "nothing to exchange with")
        if _is_below(new_parent, moved):
            raise OSError(errno.EINVAL, "below itself")
        if moved is other:
            return None
        if other is not None and flags & 2:
            if _is_below(parent, other):
                raise OSError(errno.EINVAL, "below itself")
            parent.entries[name], new_parent.entries[new_name] = other, moved
            _adopt(parent, other)
            _adopt(new_parent, moved)
            return None
        if other is not None:
            if other.is_directory and not moved.is_directory:
                raise OSError(errno.EISDIR, "directory")
            if moved.is_directory and not other.is_directory:
                raise OSError(errno.ENOTDIR, "not a directory")
            if other.entries:
                raise OSError(errno.ENOTEMPTY, "not empty")
            other.links -= 1
        del parent.entries[name]
        new_parent.entries[new_name] = moved
        _adopt(new_parent, moved)
        return other

    def truncate(self, inode: Inode, size: int) -> None:
        """Cut or lengthen a file."""
        if size < 0:
            raise OSError(errno.EINVAL, "negative size")
        if inode.is_directory:
            raise OSError(errno.EISDIR, "directory")
        if not inode.is_regular:
            raise OSError(errno.EINVAL, "cannot be cut")
        del inode.contents[size:]
        inode.contents.extend(bytes(size - len(inode.contents)))

    def set_xattr(self, inode: Inode, name: bytes, value: bytes, flags: int) -> None:
        """Set an extended attribute; `flags`: 1 CREATE, 2 REPLACE."""
        if flags & 1 and name in inode.xattrs:
            raise OSError(errno.EEXIST, "exists")
        if flags & 2 and name not in inode.xattrs:
            raise OSError(errno.ENODATA, "no such attribute")
        inode.xattrs[name] = value

    def remove_xattr(self, inode: Inode, name: bytes) -> None:
        """Remove an extended attribute."""
        if name not in inode.xattrs:
            raise OSError(errno.ENODATA, "no such attribute")
        del inode.xattrs[name]

    def _need_entry(self, parent: Inode, name: bytes) -> Inode:
        found = self.lookup(parent, name)
        if found is None:
            raise OSError(errno.ENOENT, "no such name")
        return found

    def _need_vacant(self, parent: Inode, name: bytes) -> None:
        if self.lookup(parent, name) is not None:
            raise OSError(errno.EEXIST, "exists")

    def _enter(self, parent: Inode, name: bytes, inode: Inode) -> Inode:
        parent.entries[name] = inode
        inode.links += 1
        _adopt(parent, inode)
        return inode

    def _leave(self, parent: Inode, name: bytes) -> Inode:
        inode = parent.entries.pop(name)
        inode.links -= 1
        return inode


def _need_directory(inode: Inode) -> None:
    if not inode.is_directory:
        raise OSError(errno.ENOTDIR, "not a directory")


def _adopt(parent: Inode, child: Inode) -> None:
    if child.is_directory:
        child.parent = parent


def _is_below(inode: Inode, ancestor: Inode) -> bool:
    """Whether `inode` is `ancestor` or lies below it."""
    while inode is not ancestor:
        assert inode.parent is not None
        if inode.parent is inode:
            return False
        inode = inode.parent
    return True
