"""Opening a file for I/O past all caches: programs that talk to the OSTs themselves (client/native)."""

import errno
from typing import Final

from msgspec.structs import replace

from nacrefs.common.wire import Lease, Node, OpenDirect, Right
from nacrefs.mds.namespace.bits import INLINE, OPEN_WRITE
from nacrefs.mds.namespace.nodes import need_file
from nacrefs.mds.namespace.quotas import allowance
from nacrefs.mds.transactions.step import Blocked, Step

UNLIMITED: Final = -1


def open_direct(step: Step, request: OpenDirect) -> Node:
    """Register an open without a lease, and give a capability with just the rights that are asked for.

    OSError: EINVAL for a mode or rights that cannot be, EOPNOTSUPP if the contents lie in the MDT (an empty file is
    moved out of it when it is opened for writing; who holds the WRITE lease on a small one moves its contents), or if
    it is to be written and its owner has a quota, which only clients that report what they write can keep.
    """
    inode = need_file(step, request.fid)
    fid, mode, rights = request.fid, int(request.mode), int(request.rights)
    if not mode or not rights or rights & ~mode:
        raise OSError(errno.EINVAL, "open for reading, writing or both, and ask for no more rights than that")
    tx, leases = step.tx, step.leases
    writing = mode & OPEN_WRITE != 0
    if writing:
        leases.alone(fid, spill=True)
        if leases.others(fid):
            raise Blocked(fid, Lease.NONE)
    else:
        leases.truth(fid)
    if writing and allowance(step, inode, step.session, False) != UNLIMITED:
        raise OSError(errno.EOPNOTSUPP, "the file's owner has a quota: it is written through the mount")
    if inode.is_inline and writing and not inode.attr.size:
        leases.changed(fid)
        edited = tx.edit(fid)
        edited.attr = replace(edited.attr, flags=edited.attr.flags & ~INLINE, change=edited.attr.change + 1)
        inode = tx.need(fid)
    layout = inode.layout
    if layout is None or inode.is_inline:
        raise OSError(errno.EOPNOTSUPP, "the file's contents lie in the MDT")
    leases.downgrade(fid, Lease.NONE)
    tx.set_open(step.session, fid, request.mode)
    capability = step.capability(fid, layout.generation, step.session, Right(rights))
    return Node(inode.attr, Lease.NONE, layout, capability, shared=True)
