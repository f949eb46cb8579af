"""Moving names: one step, whatever hangs below them."""

import errno
from typing import Final

from nacrefs.common.wire import Attr, Removed, Rename, Renamed, RenameFlag
from nacrefs.mds.inode import LINK_MAX, Inode
from nacrefs.mds.namespace.names import check_name
from nacrefs.mds.namespace.quotas import check_project
from nacrefs.mds.namespace.remove import check_empty, release, release_directory
from nacrefs.mds.transactions.cache import ABSENT
from nacrefs.mds.transactions.step import Step
from nacrefs.mds.transactions.tx import Tx

NOREPLACE: Final = int(RenameFlag.NOREPLACE)
EXCHANGE: Final = int(RenameFlag.EXCHANGE)


def rename(step: Step, request: Rename) -> Renamed:
    """Move a name, replacing what the new one stands for, or exchange the two."""
    tx, leases = step.tx, step.leases
    parent, new_parent, flags = request.parent, request.new_parent, int(request.flags)
    if flags not in (0, NOREPLACE, EXCHANGE):
        raise OSError(errno.EINVAL, f"rename flags {flags:#x} are neither NOREPLACE nor EXCHANGE")
    old_directory = tx.need_directory(parent)
    new_directory = tx.need_directory(new_parent)
    check_name(request.name)
    check_name(request.new_name)
    leases.truth(parent)
    leases.truth(new_parent)
    moved = tx.lookup(parent, request.name)
    other = tx.lookup(new_parent, request.new_name)
    if moved is None:
        raise OSError(errno.ENOENT, "no such name", request.name)
    if other is not None and flags == NOREPLACE:
        raise FileExistsError(errno.EEXIST, "the new name exists", request.new_name)
    if other is None and flags == EXCHANGE:
        raise OSError(errno.ENOENT, "no such name to exchange with", request.new_name)
    _check_loop(tx, moved, parent, new_parent)
    if other is not None and moved.attr.fid == other.attr.fid:
        return _unchanged(step, request, moved)
    if parent != new_parent:
        check_project(new_directory, moved)
        if other is not None and flags == EXCHANGE:
            check_project(old_directory, other)
    if other is not None and flags == EXCHANGE:
        return _exchange(step, request, moved, other)
    return _move(step, request, moved, other)


def _check_loop(tx: Tx, inode: Inode, parent: int, new_parent: int) -> None:
    """OSError (EINVAL) if a directory of `parent` would be moved below itself."""
    if not inode.is_directory or parent == new_parent:
        return
    fid = inode.attr.fid
    above = new_parent
    while above != fid:
        higher = tx.need(above).parent
        if higher == above:
            return
        above = higher
    raise OSError(errno.EINVAL, "a directory cannot be moved below itself")


def _unchanged(step: Step, request: Rename, inode: Inode) -> Renamed:
    """Both names stand for the same inode: POSIX says that nothing happens."""
    step.leases.truth(inode.attr.fid)
    other = inode.attr if request.flags == EXCHANGE else None
    parent, new_parent = step.tx.need(request.parent), step.tx.need(request.new_parent)
    return Renamed(parent.attr, new_parent.attr, inode.attr, other)


def _exchange(step: Step, request: Rename, moved: Inode, other: Inode) -> Renamed:
    tx, leases = step.tx, step.leases
    parent, new_parent = request.parent, request.new_parent
    _check_loop(tx, other, new_parent, parent)
    leases.alone(moved.attr.fid, contents=False)
    leases.alone(other.attr.fid, contents=False)
    subdirectories = other.is_directory - moved.is_directory
    if parent != new_parent:
        _check_links(tx.need(parent), subdirectories)
        _check_links(tx.need(new_parent), -subdirectories)
    _announce(step, request)
    tx.set_dentry(parent, request.name, other.attr.fid)
    tx.set_dentry(new_parent, request.new_name, moved.attr.fid)
    moved_attr = _moved(step, moved, parent, new_parent)
    other_attr = _moved(step, other, new_parent, parent)
    if parent == new_parent:
        attr = new_attr = tx.touch(parent, 0, 0, step.now_ns)
    else:
        attr = tx.touch(parent, subdirectories, 0, step.now_ns)
        new_attr = tx.touch(new_parent, -subdirectories, 0, step.now_ns)
    return Renamed(attr, new_attr, moved_attr, other_attr)


def _move(step: Step, request: Rename, moved: Inode, replaced: Inode | None) -> Renamed:
    tx, leases = step.tx, step.leases
    parent, new_parent = request.parent, request.new_parent
    same = parent == new_parent
    replaced_directory = False
    if replaced is not None:
        replaced_directory = _check_replaceable(request, moved, replaced)
        leases.alone(replaced.attr.fid, contents=False)
    leases.alone(moved.attr.fid, contents=False)
    if not same:
        _check_links(tx.need(new_parent), moved.is_directory - replaced_directory)
    _announce(step, request)
    tx.set_dentry(parent, request.name, ABSENT)
    tx.set_dentry(new_parent, request.new_name, moved.attr.fid)
    moved_attr = _moved(step, moved, parent, new_parent)
    gone: tuple[Attr, bool] | None = None
    if replaced is not None:
        fid = replaced.attr.fid
        if replaced_directory:
            gone = release_directory(step, fid), False
        else:
            gone = release(step, fid, request.expected, request.opened)
    if same:
        attr = new_attr = tx.touch(parent, -replaced_directory, -1 if gone else 0, step.now_ns)
    else:
        attr = tx.touch(parent, -moved.is_directory, -1, step.now_ns)
        new_attr = tx.touch(new_parent, moved.is_directory - replaced_directory, 0 if gone else 1, step.now_ns)
    removed = None if gone is None else Removed(gone[0], new_attr, gone[1])
    return Renamed(attr, new_attr, moved_attr, None, removed)


def _check_replaceable(request: Rename, moved: Inode, replaced: Inode) -> bool:
    """Whether what is to be replaced is a directory; OSError if `moved` cannot take its place."""
    if not replaced.is_directory:
        if moved.is_directory:
            raise OSError(errno.ENOTDIR, "a directory cannot replace what is none", request.new_name)
        return False
    if not moved.is_directory:
        raise OSError(errno.EISDIR, "the new name is a directory", request.new_name)
    check_empty(replaced, request.new_name)
    return True


def _check_links(directory: Inode, subdirectories: int) -> None:
    if directory.attr.nlink + subdirectories > LINK_MAX:
        raise OSError(errno.EMLINK, f"the directory has {directory.attr.nlink} links already")


def _announce(step: Step, request: Rename) -> None:
    step.leases.changed(request.parent, request.name)
    step.leases.changed(request.new_parent, request.new_name)


def _moved(step: Step, inode: Inode, parent: int, new_parent: int) -> Attr:
    """Note on an inode that it has moved."""
    fid = inode.attr.fid
    step.leases.changed(fid)
    attr = step.tx.relink(fid, 0, step.now_ns)
    if inode.is_directory and parent != new_parent:
        step.tx.edit(fid).parent = new_parent
    return attr
