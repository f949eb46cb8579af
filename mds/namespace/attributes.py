"""Changing attributes: chmod, chown, times, truncation."""

import errno
import stat

from msgspec.structs import replace

from nacrefs.common.wire import CAPABILITIES, Attr, HsmFlag, Node, SetAttr
from nacrefs.mds.inode import Inode
from nacrefs.mds.namespace.acl import follow_mode
from nacrefs.mds.namespace.bits import (
    OPEN_WRITE,
    RELEASED,
    SET_ATIME,
    SET_CTIME,
    SET_GID,
    SET_KILL_CAPABILITIES,
    SET_KILL_PRIVILEGES,
    SET_KILL_SETGID,
    SET_MODE,
    SET_MTIME,
    SET_SIZE,
    SET_UID,
    WANT_LEASE,
)
from nacrefs.mds.namespace.nodes import need_file, node
from nacrefs.mds.transactions.step import Released, Restoring, Step
from nacrefs.mds.transactions.tx import Tx

_SETID = stat.S_ISUID | stat.S_ISGID


def set_attr(step: Step, request: SetAttr) -> Node:
    """Change attributes. A truncation whose objects have to be cut leaves an intent in `tx.new_intents`."""
    tx, fid, valid = step.tx, request.fid, int(request.valid)
    if (ghost := tx.ghost(fid)) is not None and not valid & SET_SIZE:
        gone = Inode(_changed(step, request, ghost.attr), data=ghost.data)
        tx.set_ghost(gone)
        return Node(gone.attr, data=gone.data)
    inode = tx.need(fid)
    if valid & SET_SIZE:
        _check_size(step, request)
    step.leases.alone(fid, contents=valid & SET_SIZE != 0)
    if not valid & SET_SIZE:
        step.leases.truth(fid)  # the answer says how long it is
    elif inode.attr.flags & RELEASED:
        discard_released(step, fid, request.size)
    step.leases.changed(fid, told=writers(step, fid) if valid & SET_MODE and request.mode & _SETID else ())
    if valid & SET_SIZE:
        truncate(step, fid, request.size)
    if valid & (SET_KILL_PRIVILEGES | SET_KILL_CAPABILITIES):
        end_capabilities(tx, fid)
    if valid & SET_MODE:
        follow_mode(tx, fid, request.mode)
    if valid & SET_MTIME:
        step.leases.timed(fid, step.now_ns)
    edited = tx.edit(fid)
    edited.attr = _changed(step, request, edited.attr)
    return node(step, edited, WANT_LEASE)


def end_capabilities(tx: Tx, fid: int) -> None:
    """A program that is changed has no file capabilities any more."""
    if CAPABILITIES in tx.xattrs(tx.need(fid)):
        tx.set_xattr(fid, CAPABILITIES, None)


def writers(step: Step, fid: int) -> list[int]:
    """The sessions that have a file open for writing, with or without a lease: their next write must take away what has
    been given to the program (setuid and setgid, if it is an ordinary user's), which only they can notice."""
    return [session for session, mode in step.tx.opens(fid).items() if int(mode) & OPEN_WRITE]


def _changed(step: Step, request: SetAttr, attr: Attr) -> Attr:
    """The attributes after the request, but for the size."""
    valid, mode = int(request.valid), attr.mode
    if valid & SET_MODE:
        mode = stat.S_IFMT(mode) | request.mode & 0o7777
    if valid & SET_KILL_PRIVILEGES and not stat.S_ISDIR(mode):
        mode &= ~stat.S_ISUID
        if mode & stat.S_IXGRP or valid & SET_KILL_SETGID:
            mode &= ~stat.S_ISGID
    return replace(
        attr,
        mode=mode,
        uid=request.uid if valid & SET_UID else attr.uid,
        gid=request.gid if valid & SET_GID else attr.gid,
        atime_ns=request.atime_ns if valid & SET_ATIME else attr.atime_ns,
        mtime_ns=request.mtime_ns if valid & SET_MTIME else attr.mtime_ns,
        ctime_ns=request.ctime_ns if valid & SET_CTIME else step.now_ns,
        change=attr.change + 1,
    )


def _check_size(step: Step, request: SetAttr) -> Inode:
    inode = step.tx.need(request.fid)
    if request.size < 0:
        raise OSError(errno.EINVAL, f"{request.size} cannot be a file's size")
    if inode.is_symlink:
        raise OSError(errno.EINVAL, "a symbolic link has no contents to cut")
    if request.size >= 1 << 63:
        raise OSError(errno.EFBIG, f"{request.size} bytes are more than a file can have")
    return need_file(step, request.fid)


def discard_released(step: Step, fid: int, size: int) -> None:
    """A released file is about to be cut. To nothing: its contents are not brought back for that. Otherwise they
    must be there first (Released)."""
    if size:
        raise Released(fid)
    if fid in step.tx.mdt.restoring:
        raise Restoring(fid)


def truncate(step: Step, fid: int, size: int) -> None:
    """Make a regular file `size` bytes long; what is added is a hole. Nobody else may cache the file (`Leases.alone`).

    Inline contents are cut in place; they stay inline however long the hole behind them becomes. Objects that may reach
    beyond `size` are to be cut by the caller: an intent says so.
    """
    tx = step.tx
    step.leases.changed(fid)
    step.leases.timed(fid, step.now_ns)
    edited = tx.edit(fid)
    attr = edited.attr
    blocks = min(attr.blocks, blocks_of(size))
    flags = attr.flags
    if edited.is_inline:
        data = tx.data(edited)
        if len(data) > size:
            tx.set_data(fid, data[:size])
    elif edited.layout is not None and (size < attr.size or _is_written(step, fid)):
        tx.add_intent(fid, size, edited.layout)
    if attr.flags & RELEASED:  # to nothing: see `discard_released`
        flags &= ~RELEASED
        row = tx.hsm[fid] if fid in tx.hsm else tx.mdt.store.fetchone(tx.mdt.store.statements.hsm, (fid,))
        if row is not None:
            tx.set_hsm(fid, (row[0], row[1] & ~int(HsmFlag.RELEASED), *row[2:]))
    edited.data_version += 1
    edited.attr = replace(
        attr,
        size=size,
        blocks=blocks,
        mtime_ns=step.now_ns,
        ctime_ns=step.now_ns,
        change=attr.change + 1,
        flags=flags,
    )


def _is_written(step: Step, fid: int) -> bool:
    """Whether somebody writes the file's objects without having reported its size yet."""
    return any(int(mode) & OPEN_WRITE for mode in step.tx.opens(fid).values())


def blocks_of(size: int) -> int:
    """The 512-byte units that contents of `size` bytes take."""
    return (size + 511) // 512
