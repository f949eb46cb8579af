"""New names: files, nodes, directories, symbolic links, hard links."""

import errno
import stat
from typing import Final

from nacrefs.common.wire import (
    TARGET_BYTES_MAX,
    Create,
    Entry,
    Lease,
    Link,
    Mkdir,
    Mknod,
    Node,
    Symlink,
)
from nacrefs.mds.inode import DIRECTORY_BLOCKS, DIRECTORY_BYTES, LINK_MAX, Inode
from nacrefs.mds.namespace.acl import hand_down, mode_in
from nacrefs.mds.namespace.attributes import blocks_of
from nacrefs.mds.namespace.bits import DEFAULT_LAYOUT, INLINE, OPEN_WRITE, WANT_LAYOUT, WANT_LEASE
from nacrefs.mds.namespace.files import open_inode, register
from nacrefs.mds.namespace.layouts import check_inline, new_layout
from nacrefs.mds.namespace.names import check_name
from nacrefs.mds.namespace.nodes import entry, node, refuse_type
from nacrefs.mds.namespace.quotas import admit_new, check_project
from nacrefs.mds.transactions.step import Step

_NODE_TYPES: Final = frozenset({stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK})


def create(step: Step, request: Create) -> Entry:
    """Make a regular file and open it, or open the one that is there."""
    tx = step.tx
    parent = _parent(step, request.parent, request.name)
    existing = tx.lookup(request.parent, request.name)
    if existing is not None:
        return _open_existing(step, request, existing)
    data = request.data
    layout = new_layout(step, parent, request.layout)
    size = 0
    if data is not None:
        size = len(data)
        check_inline(step, layout, data)
    admit_new(step, parent, request.uid, _group(parent, request.gid), blocks_of(size))
    mode, acl, default = mode_in(tx, parent, request.mode & 0o7777, request.umask)
    inode = tx.new_inode(
        stat.S_IFREG | mode,
        request.uid,
        _group(parent, request.gid),
        step.now_ns,
        size=size,
        blocks=blocks_of(size),
        flags=INLINE,
        layout=layout,
        project=parent.project,
        data=data,
    )
    if acl:
        hand_down(tx, inode, acl, default)
    lease = Lease.WRITE if int(request.open_mode) & OPEN_WRITE else Lease.READ
    want = WANT_LEASE | WANT_LAYOUT if request.open_mode else WANT_LEASE
    child = node(step, inode, want, lease)
    if request.open_mode:
        register(step, inode, request.open_mode, child.lease)
    return _named(step, request.parent, request.name, child, 0)


def _open_existing(step: Step, request: Create, inode: Inode) -> Entry:
    if request.exclusive:
        raise _exists(request.name)
    if not inode.is_regular:
        if inode.is_directory or inode.is_symlink:
            refuse_type(inode)
        step.leases.truth(inode.attr.fid)
        return entry(step, request.parent, node(step, inode, WANT_LEASE))
    if request.data is not None:
        raise OSError(errno.EINVAL, "contents come only with a new file: ask for an exclusive create")
    return entry(step, request.parent, open_inode(step, inode, request.open_mode, request.truncate))


def mknod(step: Step, request: Mknod) -> Entry:
    """Make a file, FIFO, socket or device node without opening it."""
    parent = _vacant(step, request.parent, request.name)
    kind = stat.S_IFMT(request.mode)
    if kind not in _NODE_TYPES:
        raise OSError(errno.EINVAL, f"mknod cannot make an inode of type {kind:#o}")
    regular = kind == stat.S_IFREG
    layout = new_layout(step, parent) if regular else None
    admit_new(step, parent, request.uid, _group(parent, request.gid))
    mode, acl, default = mode_in(step.tx, parent, request.mode & 0o7777, request.umask)
    inode = step.tx.new_inode(
        kind | mode,
        request.uid,
        _group(parent, request.gid),
        step.now_ns,
        rdev=request.rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0,
        flags=INLINE if regular else 0,
        layout=layout,
        project=parent.project,
    )
    if acl:
        hand_down(step.tx, inode, acl, default)
    return _named(step, request.parent, request.name, node(step, inode, WANT_LEASE), 0)


def mkdir(step: Step, request: Mkdir) -> Entry:
    """Make a directory, which takes over its parent's default layout."""
    parent = _vacant(step, request.parent, request.name)
    if parent.attr.nlink >= LINK_MAX:
        raise OSError(errno.EMLINK, f"the directory has {parent.attr.nlink} links already")
    admit_new(step, parent, request.uid, _group(parent, request.gid), DIRECTORY_BLOCKS)
    mode, acl, default = mode_in(step.tx, parent, request.mode & 0o1777, request.umask)
    inode = step.tx.new_inode(
        stat.S_IFDIR | mode | parent.attr.mode & stat.S_ISGID,
        request.uid,
        _group(parent, request.gid),
        step.now_ns,
        nlink=2,
        size=DIRECTORY_BYTES,
        blocks=DIRECTORY_BLOCKS,
        flags=0 if parent.spec is None else DEFAULT_LAYOUT,
        parent=request.parent,
        spec=parent.spec,
        project=parent.project,
    )
    if default is not None:
        hand_down(step.tx, inode, acl, default)
    return _named(step, request.parent, request.name, node(step, inode, WANT_LEASE), 1)


def symlink(step: Step, request: Symlink) -> Entry:
    """Make a symbolic link."""
    parent = _vacant(step, request.parent, request.name)
    target = request.target
    if not target or b"\0" in target:
        raise OSError(errno.ENOENT if not target else errno.EINVAL, f"{target!r} cannot be a symbolic link's target")
    if len(target) > TARGET_BYTES_MAX:
        raise OSError(errno.ENAMETOOLONG, f"target of {len(target)} bytes is longer than {TARGET_BYTES_MAX}")
    admit_new(step, parent, request.uid, _group(parent, request.gid))
    inode = step.tx.new_inode(
        stat.S_IFLNK | 0o777,
        request.uid,
        _group(parent, request.gid),
        step.now_ns,
        size=len(target),
        project=parent.project,
        data=target,
    )
    return _named(step, request.parent, request.name, node(step, inode, WANT_LEASE), 0)


def link(step: Step, request: Link) -> Entry:
    """Give an inode another name."""
    tx, fid = step.tx, request.fid
    inode = tx.need(fid)
    directory = _vacant(step, request.parent, request.name)
    if inode.is_directory:
        raise OSError(errno.EPERM, "a directory cannot have a second name")
    if not inode.attr.nlink:
        raise OSError(errno.ENOENT, "the file has been removed")
    check_project(directory, inode)
    if inode.attr.nlink >= LINK_MAX:
        raise OSError(errno.EMLINK, f"the file has {inode.attr.nlink} names already")
    step.leases.alone(fid, contents=False)
    step.leases.truth(fid)  # the answer says how long it is
    step.leases.changed(fid)
    tx.set_dentry(request.parent, request.name, fid)
    tx.relink(fid, 1, step.now_ns)
    step.leases.changed(request.parent, request.name)
    tx.touch(request.parent, 0, 1, step.now_ns)
    return entry(step, request.parent, node(step, tx.need(fid), WANT_LEASE))


def _parent(step: Step, parent: int, name: bytes) -> Inode:
    """The directory that is to have a new name, which can be one."""
    inode = step.tx.need_directory(parent)
    check_name(name)
    step.leases.truth(parent)
    return inode


def _vacant(step: Step, parent: int, name: bytes) -> Inode:
    """The directory, in which the name stands for nothing yet; OSError (EEXIST) otherwise."""
    inode = _parent(step, parent, name)
    if step.tx.lookup(parent, name) is not None:
        raise _exists(name)
    return inode


def _exists(name: bytes) -> OSError:
    return FileExistsError(errno.EEXIST, "the name exists", name)


def _group(parent: Inode, gid: int) -> int:
    """The group of a new inode: a setgid directory hands down its own."""
    return parent.attr.gid if parent.attr.mode & stat.S_ISGID else gid


def _named(step: Step, parent: int, name: bytes, child: Node, subdirectories: int) -> Entry:
    """Enter the new inode in its directory: the last writes of the step."""
    tx = step.tx
    step.leases.changed(parent, name)
    tx.set_dentry(parent, name, child.attr.fid)
    attr = tx.touch(parent, subdirectories, 1, step.now_ns)
    return Entry(child, attr, step.leases.grant(parent, Lease.READ))
