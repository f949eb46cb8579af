"""Inodes as replies show them, with the lease that goes along."""

import errno
from typing import Final

from nacrefs.common.wire import Entry, Lease, Node, Right
from nacrefs.mds.inode import Inode
from nacrefs.mds.namespace.bits import OPEN_WRITE, RELEASED, WANT_DATA, WANT_LAYOUT, WANT_LEASE
from nacrefs.mds.namespace.quotas import allowance
from nacrefs.mds.transactions.step import Step

READ_WRITE: Final = Right.READ | Right.WRITE
MIRRORED: Final = READ_WRITE | Right.MIRRORED


def sharing(step: Step, inode: Inode) -> tuple[Lease, bool]:
    """The most that the registered opens let the requester cache of a file, and whether it is shared for it.

    It is shared, so that nobody may cache it, if another session has it open for writing, or another has it open at all
    and the requester writes. Inline files are never shared: who writes them needs the WRITE lease.
    """
    opens = step.tx.opens(inode.attr.fid)
    if not opens or inode.is_inline:
        return Lease.WRITE, False
    session = step.session
    others = everybody = 0
    for other, mode in opens.items():
        everybody |= int(mode)
        if other != session:
            others |= int(mode)
    if not others:
        return Lease.WRITE, False
    if everybody & OPEN_WRITE:
        return Lease.NONE, True
    return Lease.READ, False


def node(step: Step, inode: Inode, want: int, lease: Lease = Lease.READ) -> Node:
    """The inode as the requester wants it (`bits.WANT_*`); WANT_LEASE gets it `lease`, as far as the rules allow."""
    attr = inode.attr
    fid = attr.fid
    most, shared = sharing(step, inode)
    if shared:
        step.leases.downgrade(fid, Lease.NONE)
        got = Lease.NONE
    elif want & WANT_LEASE and (attr.nlink or step.session in step.tx.opens(fid)):
        got = step.leases.grant(fid, lease if lease <= most else most)
    else:
        # What it holds and is not giving back. (A lease keeps a file without a name: only who has it open gets one.)
        got = step.leases.grant(fid, Lease.NONE)
    layout = capability = data = None
    if inode.layout is not None and not attr.flags & RELEASED:
        if want & WANT_LAYOUT:
            layout = inode.layout
            capability = step.capability(
                fid, layout.generation, step.session, READ_WRITE if layout.mirrors == 1 else MIRRORED
            )
        if want & WANT_DATA and inode.is_inline:
            data = step.tx.data(inode)
    elif inode.is_symlink:
        data = step.tx.data(inode)
    quota = -1
    if step.tx.mdt.accounts.quotas:
        writes = got == Lease.WRITE or int(step.tx.opens(fid).get(step.session, 0)) & OPEN_WRITE != 0
        quota = allowance(step, inode, step.session, writes)
    return Node(attr, got, layout, capability, data, shared, quota)


def entry(step: Step, parent: int, child: Node | None) -> Entry:
    """The answer about a name: what it stands for, the directory, and a lease on that."""
    attr = step.tx.need(parent).attr
    return Entry(child, attr, step.leases.grant(parent, Lease.READ))


def need_file(step: Step, fid: int) -> Inode:
    """The regular file; OSError: ESTALE, EISDIR, ELOOP, or EINVAL for another type."""
    inode = step.tx.need(fid)
    if not inode.is_regular:
        refuse_type(inode)
    return inode


def refuse_type(inode: Inode) -> None:
    """Raise what opening this inode, which is not a regular file, gives."""
    if inode.is_directory:
        raise OSError(errno.EISDIR, "is a directory")
    if inode.is_symlink:
        raise OSError(errno.ELOOP, "is a symbolic link")
    raise OSError(errno.EINVAL, "is not a regular file")
