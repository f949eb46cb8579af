"""Names that go: unlink, rmdir, and what becomes of an inode that loses one."""

import errno

from nacrefs.common.wire import Attr, Lease, Mode, Removed, Rmdir, Unlink
from nacrefs.mds.inode import Inode
from nacrefs.mds.namespace.names import check_name
from nacrefs.mds.transactions.cache import ABSENT
from nacrefs.mds.transactions.step import Step


def unlink(step: Step, request: Unlink) -> Removed:
    """Remove a name that is not a directory's."""
    victim = _existing(step, request.parent, request.name)
    fid = victim.attr.fid
    if victim.is_directory:
        raise OSError(errno.EISDIR, "is a directory", request.name)
    step.leases.alone(fid, contents=False)
    step.leases.changed(request.parent, request.name)
    step.tx.set_dentry(request.parent, request.name, ABSENT)
    attr, orphan = release(step, fid, request.expected, request.opened)
    return Removed(attr, step.tx.touch(request.parent, 0, -1, step.now_ns), orphan)


def rmdir(step: Step, request: Rmdir) -> Removed:
    """Remove an empty directory."""
    victim = _existing(step, request.parent, request.name)
    if not victim.is_directory:
        raise OSError(errno.ENOTDIR, "is not a directory", request.name)
    check_empty(victim, request.name)
    step.leases.changed(request.parent, request.name)
    step.tx.set_dentry(request.parent, request.name, ABSENT)
    attr = release_directory(step, victim.attr.fid)
    return Removed(attr, step.tx.touch(request.parent, -1, -1, step.now_ns))


def _existing(step: Step, parent: int, name: bytes) -> Inode:
    step.tx.need_directory(parent)
    check_name(name)
    step.leases.truth(parent)
    inode = step.tx.lookup(parent, name)
    if inode is None:
        raise OSError(errno.ENOENT, "no such name", name)
    return inode


def check_empty(directory: Inode, name: bytes) -> None:
    """OSError (ENOTEMPTY) if the directory has entries."""
    if directory.entries:
        raise OSError(errno.ENOTEMPTY, f"the directory has {directory.entries} entries", name)


def release_directory(step: Step, fid: int) -> Attr:
    """Destroy a directory whose name is gone; its last attributes."""
    attr = step.tx.relink(fid, -2, step.now_ns)
    step.leases.changed(fid)
    step.tx.destroy(fid)
    step.leases.downgrade(fid, Lease.NONE)
    return attr


def release(step: Step, fid: int, expected: int, opened: bool) -> tuple[Attr, bool]:
    """An inode (not a directory) has lost a name: its attributes now, and whether it lives on because the requester has
    it open, or may have.

    With its last name it is destroyed, unless a regular file may be open somewhere: registered, under the lease of
    another session, or at the requester, which says what it has `opened` if it knew which file this is (`expected`).
    """
    tx, leases, session = step.tx, step.leases, step.session
    attr = tx.relink(fid, -1, step.now_ns)
    leases.changed(fid)
    if attr.nlink:
        return attr, False
    if tx.need(fid).is_regular:
        held = leases.held(fid)
        if opened if expected == fid else held > Lease.NONE:
            mode = tx.opens(fid).get(session) or (Mode.READ if held == Lease.READ else Mode.READ | Mode.WRITE)
            tx.set_open(session, fid, mode)
        opens = tx.opens(fid)
        if opens or leases.others(fid):
            if session not in opens:
                leases.downgrade(fid, Lease.NONE)  # nobody would end this lease, and it would keep the file
            return attr, session in opens
    tx.destroy(fid)
    leases.downgrade(fid, Lease.NONE)
    return attr, False
