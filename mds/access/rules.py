"""Which permission which request needs, of whoever asks: the kernel's rules, for clients that are not believed.

A rule `rule(ask, request) -> request` raises OSError (EACCES, EPERM) or gives the request back as it may be carried
out: with the ids of who asks instead of those that the client says. Requests without a rule need none.
`tests/mds/test_rules.py` compares these rules with a real kernel's.
"""

import errno
import stat
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from msgspec.structs import replace

from nacrefs.common import wire
from nacrefs.common.export import Actor
from nacrefs.common.wire import HsmAction, Lease
from nacrefs.mds.access.permissions import EXECUTE, READ, WRITE, has, need, need_owner, need_root, need_unstuck
from nacrefs.mds.inode import Inode
from nacrefs.mds.namespace import acl
from nacrefs.mds.namespace.bits import (
    OPEN_WRITE,
    SET_ATIME,
    SET_CTIME,
    SET_GID,
    SET_KILL_CAPABILITIES,
    SET_KILL_PRIVILEGES,
    SET_MODE,
    SET_MTIME,
    SET_SIZE,
    SET_UID,
)
from nacrefs.mds.transactions.step import Step

_OPEN_READ: Final = int(wire.Mode.READ)
_AS_WRITER: Final = SET_SIZE | SET_KILL_PRIVILEGES | SET_KILL_CAPABILITIES | SET_ATIME | SET_MTIME | SET_CTIME
"""What who may write a file may set."""


class Ask(NamedTuple):
    """Who asks, in which step."""

    step: Step
    actor: Actor

    def need(self, fid: int, want: int) -> Inode:
        """The inode; OSError (EACCES) unless it may be used so."""
        inode = self.step.tx.need(fid)
        need(self.step.tx, inode, self.actor, want)
        return inode

    def child(self, parent: int, name: bytes) -> Inode | None:
        """What a name stands for."""
        return self.step.tx.lookup(parent, name)


Rule = Callable[[Ask, Any], Any]


def writes(step: Step, fid: int) -> bool:
    """Whether the MDS knows that the requester has this file open for writing."""
    return step.leases.held(fid) >= Lease.WRITE or bool(int(step.tx.opens(fid).get(step.session, 0)) & OPEN_WRITE)


# -------------------------------------------------------------------------------------------------------------- looking


def _lookup(ask: Ask, request: wire.Lookup) -> wire.Lookup:
    ask.need(request.parent, EXECUTE)
    return request


def _readdir(ask: Ask, request: wire.Readdir) -> wire.Readdir:
    ask.need(request.fid, READ)
    return request


def _access(ask: Ask, request: wire.Access) -> wire.Access:
    inode = ask.step.tx.need(request.fid)
    if request.mask & WRITE and inode.is_regular and writes(ask.step, request.fid):
        return request
    ask.need(request.fid, request.mask & 7)
    return request


def _get_xattr(ask: Ask, request: wire.GetXattr) -> wire.GetXattr:
    if request.name.startswith(b"trusted."):
        need_root(ask.actor, "read trusted attributes")
    elif request.name.startswith(b"user."):
        ask.need(request.fid, READ)
    return request


def _restore(ask: Ask, request: wire.Restore) -> wire.Restore:
    inode = ask.step.tx.need(request.fid)
    if not writes(ask.step, request.fid) and not has(ask.step.tx, inode, ask.actor, EXECUTE):
        need(ask.step.tx, inode, ask.actor, READ)
    return request


# --------------------------------------------------------------------------------------------------------- making names


def _mode(ask: Ask, parent: int, gid: int, mode: int) -> int:
    """The mode of a new file: setgid is only for the group's members."""
    directory = ask.step.tx.need(parent)
    group = directory.attr.gid if directory.attr.mode & stat.S_ISGID else gid
    if mode & stat.S_ISGID and ask.actor.uid and not ask.actor.is_in(group):
        mode &= ~stat.S_ISGID
    return mode


def _create(ask: Ask, request: wire.Create) -> wire.Create:
    actor = ask.actor
    inode = ask.child(request.parent, request.name)
    if inode is None:
        ask.need(request.parent, WRITE | EXECUTE)
    else:
        ask.need(request.parent, EXECUTE)
        if not request.exclusive and inode.is_regular:
            _may_open(ask, inode, int(request.open_mode), request.truncate)
    mode = _mode(ask, request.parent, actor.gid, request.mode)
    return replace(request, uid=actor.uid, gid=actor.gid, mode=mode)


def _mknod(ask: Ask, request: wire.Mknod) -> wire.Mknod:
    actor = ask.actor
    ask.need(request.parent, WRITE | EXECUTE)
    if stat.S_IFMT(request.mode) in (stat.S_IFCHR, stat.S_IFBLK):
        need_root(actor, "make device nodes")
    mode = _mode(ask, request.parent, actor.gid, request.mode)
    return replace(request, uid=actor.uid, gid=actor.gid, mode=mode)


def _new(ask: Ask, request: Any) -> Any:
    """A directory or symbolic link."""
    ask.need(request.parent, WRITE | EXECUTE)
    return replace(request, uid=ask.actor.uid, gid=ask.actor.gid)


def _link(ask: Ask, request: wire.Link) -> wire.Link:
    ask.need(request.parent, WRITE | EXECUTE)
    return request


# ------------------------------------------------------------------------------------------------------- removing names


def _leaving(ask: Ask, parent: int, name: bytes) -> Inode | None:
    """What a name stands for, which is to go from its directory, if it may."""
    directory = ask.need(parent, WRITE | EXECUTE)
    victim = ask.child(parent, name)
    if victim is not None:
        need_unstuck(directory, victim, ask.actor)
    return victim


def _remove(ask: Ask, request: Any) -> Any:
    _leaving(ask, request.parent, request.name)
    return request


def _rename(ask: Ask, request: wire.Rename) -> wire.Rename:
    moved = _leaving(ask, request.parent, request.name)
    replaced = _leaving(ask, request.new_parent, request.new_name)
    if request.parent != request.new_parent:
        exchanged = request.flags & wire.RenameFlag.EXCHANGE
        for inode in (moved, replaced if exchanged else None):
            if inode is not None and inode.is_directory:  # its `..` changes
                need(ask.step.tx, inode, ask.actor, WRITE)
    return request


# -------------------------------------------------------------------------------------------------------------- opening


def _may_open(ask: Ask, inode: Inode, mode: int, cut: bool) -> None:
    """EACCES unless a file may be opened so. A mount opens it with all that its programs have it open for, so what the
    MDS knows of already is not asked again; whoever may execute a file reads it for that."""
    tx, actor = ask.step.tx, ask.actor
    if writes(ask.step, inode.attr.fid):
        return
    if mode & OPEN_WRITE or cut:
        need(tx, inode, actor, WRITE)
    if mode & _OPEN_READ and not has(tx, inode, actor, EXECUTE):
        need(tx, inode, actor, READ)


def _open(ask: Ask, request: wire.Open) -> wire.Open:
    inode = ask.step.tx.need(request.fid)
    if inode.is_regular:
        _may_open(ask, inode, int(request.mode), request.truncate)
    return request


def _open_direct(ask: Ask, request: wire.OpenDirect) -> wire.OpenDirect:
    inode = ask.step.tx.need(request.fid)
    _may_open(ask, inode, int(request.mode) | int(request.rights), False)
    return request


def _append(ask: Ask, request: wire.Append) -> wire.Append:
    if not writes(ask.step, request.fid):
        raise OSError(errno.EACCES, "this session has not opened the file for writing")
    return request


def _commit(ask: Ask, request: wire.Commit) -> wire.Commit:
    """How it has the file open is the client's word, except that it cannot become a writer by that."""
    if int(request.mode) & OPEN_WRITE and not writes(ask.step, request.fid):
        raise OSError(errno.EACCES, "this session has not opened the file for writing")
    return request


# ------------------------------------------------------------------------------------------------------------- changing


def _set_attr(ask: Ask, request: wire.SetAttr) -> wire.SetAttr:
    tx, actor, valid = ask.step.tx, ask.actor, int(request.valid)
    if tx.ghost(request.fid) is not None:
        return request
    inode = tx.need(request.fid)
    attr = inode.attr
    if valid & SET_MODE:
        need_owner(inode, actor)
        gid = request.gid if valid & SET_GID else attr.gid
        if request.mode & stat.S_ISGID and actor.uid and not actor.is_in(gid):
            request = replace(request, mode=request.mode & ~stat.S_ISGID)
    if valid & SET_UID and request.uid != attr.uid:
        need_root(actor, "give files away")
    if valid & (SET_UID | SET_GID):
        need_owner(inode, actor)
        if valid & SET_GID and request.gid != attr.gid and actor.uid and not actor.is_in(request.gid):
            raise OSError(errno.EPERM, f"uid {actor.uid} is not in group {request.gid}")
    if valid & _AS_WRITER and not (writes(ask.step, request.fid) or actor.uid in (0, attr.uid)):
        need(tx, inode, actor, WRITE)
    if valid & SET_SIZE and not writes(ask.step, request.fid):
        need(tx, inode, actor, WRITE)
    return request


def _set_xattr(ask: Ask, request: Any) -> Any:
    """SetXattr and RemoveXattr."""
    actor, name = ask.actor, request.name
    inode = ask.step.tx.need(request.fid)
    if name in acl.NAMES:
        need_owner(inode, actor)
        if isinstance(request, wire.SetXattr) and actor.uid and not actor.is_in(inode.attr.gid):
            return replace(request, drop_setgid=True)
        return request
    if name.startswith(b"trusted."):
        need_root(actor, "change trusted attributes")
    elif name.startswith(b"security."):
        need_root(actor, "change security attributes")
    else:
        need(ask.step.tx, inode, actor, WRITE)
        if name.startswith(b"user.") and inode.is_directory and inode.attr.mode & stat.S_ISVTX:
            need_owner(inode, actor)
    return request


def _set_layout(ask: Ask, request: wire.SetLayout) -> wire.SetLayout:
    ask.need(request.fid, WRITE)
    return request


def _hsm(ask: Ask, request: Any) -> Any:
    """Whoever may write a file may archive, release and pin it; whoever may read it may have it brought back."""
    restores = isinstance(request, wire.HsmRequest) and request.action == HsmAction.RESTORE
    for fid in request.fids:
        ask.need(fid, READ if restores else WRITE)
    return replace(request, uid=ask.actor.uid) if isinstance(request, wire.HsmRequest) else request


RULES: Final[Mapping[type[wire.Request[Any]], Rule]] = {
    wire.Lookup: _lookup, wire.Readdir: _readdir, wire.Access: _access, wire.GetXattr: _get_xattr,
    wire.Restore: _restore, wire.Create: _create, wire.Mknod: _mknod, wire.Mkdir: _new, wire.Symlink: _new,
    wire.Link: _link, wire.Unlink: _remove, wire.Rmdir: _remove, wire.Rename: _rename, wire.Open: _open,
    wire.OpenDirect: _open_direct, wire.Commit: _commit, wire.Append: _append, wire.SetAttr: _set_attr,
    wire.SetXattr: _set_xattr, wire.RemoveXattr: _set_xattr, wire.SetLayout: _set_layout, wire.HsmRequest: _hsm,
    wire.HsmCancel: _hsm, wire.SetHsm: _hsm,
}  # fmt: skip
NEEDS_NONE: Final = frozenset({
    wire.GetAttr, wire.GetParent, wire.GetXattrs, wire.GetLayout, wire.Statfs, wire.GetHsm, wire.SetLock, wire.GetLock,
    wire.CopiesFailed, wire.Appended,
})  # fmt: skip
"""Requests about files for which being able to name the file is enough: attributes are anybody's who may search the
directory; contents and secret attributes are taken out of the answer (`Limits`)."""


# ------------------------------------------------------------------------------------------------------ read-only keys


def _always(ask: Ask, request: Any) -> bool:
    return True


def _never(ask: Ask, request: Any) -> bool:
    return False


def _opens_for_change(ask: Ask, request: Any) -> bool:
    return bool(int(request.mode) & OPEN_WRITE) or bool(getattr(request, "truncate", False))


def _creates(ask: Ask, request: wire.Create) -> bool:
    if ask.child(request.parent, request.name) is None:
        return True
    return not request.exclusive and (bool(int(request.open_mode) & OPEN_WRITE) or request.truncate)


def _commits(ask: Ask, request: wire.Commit) -> bool:
    return request.dirty or bool(int(request.mode) & OPEN_WRITE)


def _moves(ask: Ask, request: wire.HsmRequest) -> bool:
    return request.action != HsmAction.RESTORE


CHANGES: Final[Mapping[type[wire.Request[Any]], Callable[[Ask, Any], bool]]] = {
    **dict.fromkeys((
        wire.SetAttr, wire.Mknod, wire.Mkdir, wire.Symlink, wire.Link, wire.Unlink, wire.Rmdir, wire.Rename,
        wire.SetXattr, wire.RemoveXattr, wire.SetLayout, wire.SetHsm, wire.Append, wire.Appended,
    ), _always),
    **dict.fromkeys((
        wire.Lookup, wire.Readdir, wire.Access, wire.GetXattr, wire.Restore, wire.HsmCancel, wire.GetAttr,
        wire.GetParent, wire.GetXattrs, wire.GetLayout, wire.Statfs, wire.GetHsm, wire.SetLock, wire.GetLock,
    ), _never),
    wire.Create: _creates,
    wire.Open: _opens_for_change,
    wire.OpenDirect: _opens_for_change,
    wire.Commit: _commits,
    wire.HsmRequest: _moves,
    wire.CopiesFailed: lambda ask, request: not request.damaged,
}  # fmt: skip
"""Whether a request would change anything, so that a key that may only read is answered EROFS."""
