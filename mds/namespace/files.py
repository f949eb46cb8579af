"""Open files: opening, what their writers report, closing, and the end of files without names."""

import errno

from msgspec.structs import replace

from nacrefs.common.wire import Append, Attr, Commit, Lease, Mode, Node, Open
from nacrefs.mds.inode import Inode
from nacrefs.mds.namespace.attributes import blocks_of, discard_released, end_capabilities, truncate
from nacrefs.mds.namespace.bits import INLINE, OPEN_WRITE, RELEASED, WANT_ALL
from nacrefs.mds.namespace.copies import note_writer
from nacrefs.mds.namespace.layouts import check_inline
from nacrefs.mds.namespace.nodes import need_file, node, sharing
from nacrefs.mds.namespace.quotas import admit_growth, allowance, note_growth
from nacrefs.mds.transactions.step import Blocked, Released, Step


def open_file(step: Step, request: Open) -> Node:
    """Open a regular file."""
    inode = need_file(step, request.fid)
    if not request.mode:
        raise OSError(errno.EINVAL, "open for reading, writing or both")
    return open_inode(step, inode, request.mode, request.truncate)


def open_inode(step: Step, inode: Inode, mode: Mode, cut: bool) -> Node:
    """Open a regular file, cutting it to nothing before if `cut`.

    Who opens for writing first makes all others give back their leases, for among them may be readers whose opens
    nobody knows yet; then the registered opens say whether it is shared.
    """
    tx, leases = step.tx, step.leases
    fid = inode.attr.fid
    writing = int(mode) & OPEN_WRITE != 0
    if writing or cut:
        leases.alone(fid, spill=writing)
        if leases.others(fid):
            raise Blocked(fid, Lease.NONE)
    else:
        leases.truth(fid)
    if inode.attr.flags & RELEASED:
        if cut:
            discard_released(step, fid, 0)
        elif writing:
            raise Released(fid)
    if cut:
        truncate(step, fid, 0)
        inode = tx.need(fid)
    if not mode:
        return node(step, inode, WANT_ALL)
    registered = tx.opens(fid).get(step.session)
    if registered:
        mode |= registered
        writing = int(mode) & OPEN_WRITE != 0
    lease = Lease.WRITE if writing else Lease.READ
    if _would_share(step, inode, mode):
        leases.downgrade(fid, Lease.NONE)
        lease = Lease.NONE
    else:
        lease = leases.grant(fid, lease)
    register(step, inode, mode, lease)
    if writing and inode.layout is not None and inode.layout.mirrors > 1:
        note_writer(step, inode)
        inode = tx.need(fid)
    return node(step, inode, WANT_ALL, lease)


def _would_share(step: Step, inode: Inode, mode: Mode) -> bool:
    """Whether opening the file like this makes it shared, or it is."""
    if inode.is_inline:
        return False
    opens = step.tx.opens(inode.attr.fid)
    if not opens:
        return False
    others = 0
    for session, other in opens.items():
        if session != step.session:
            others |= int(other)
    return others != 0 and (others | int(mode)) & OPEN_WRITE != 0


def register(step: Step, inode: Inode, mode: Mode, lease: Lease) -> None:
    """Register how the requester has a file open, unless its lease covers that.

    A file without a name is always registered: its registered opens are what keeps it.
    """
    needed = Lease.WRITE if int(mode) & OPEN_WRITE else Lease.READ
    covered = lease >= needed and inode.attr.nlink > 0
    step.tx.set_open(step.session, inode.attr.fid, Mode.CLOSED if covered else mode)


def append(step: Step, request: Append) -> Node:
    """Take the turn to append to a shared file. OSError: ESTALE if the requester does not have it open for writing."""
    leases, fid = step.leases, request.fid
    inode = need_file(step, fid)
    leases.truth(fid)
    answer = node(step, inode, 0)
    if answer.lease == Lease.WRITE:
        return answer
    if inode.is_inline or not int(step.tx.opens(fid).get(step.session, 0)) & OPEN_WRITE:
        raise OSError(errno.ESTALE, "this session has lost its right to write the file")
    leases.append(fid, request.ticket)
    return answer


def commit(step: Step, request: Commit) -> Node:
    """Take what a session reports about an open file: contents, size, times, and how it still has it open."""
    tx, leases, fid = step.tx, step.leases, request.fid
    inode = need_file(step, fid)
    held = leases.held(fid)
    if request.dirty:
        leases.alone(fid)
        _check_report(step, request, inode, held)
        if inode.is_inline and request.data is not None and not request.recalled:
            admit_growth(step, inode, blocks_of(len(request.data)))
        before = inode.attr
        leases.changed(fid)
        _take_report(step, request, inode, held)
        # (Who writes a shared file ends them first: what is reported may have been written before they were set.)
        if held >= Lease.WRITE and not _only_moves(request, before):
            end_capabilities(tx, fid)
        note_growth(step, before, tx.need(fid))
    elif request.atime_ns > inode.attr.atime_ns:
        edited = tx.edit(fid)
        edited.attr = replace(edited.attr, atime_ns=request.atime_ns)
    inode = tx.need(fid)
    lease = min(held, request.lease)
    if lease and _would_share(step, inode, request.mode):
        lease = Lease.NONE
    leases.downgrade(fid, lease)
    register(step, inode, request.mode, lease)
    if settle_orphan(step, fid):
        return Node(inode.attr)
    quota = allowance(step, inode, step.session, lease == Lease.WRITE or int(request.mode) & OPEN_WRITE != 0)
    return Node(inode.attr, leases.grant(fid, Lease.NONE), shared=sharing(step, inode)[1], quota=quota)


def _only_moves(request: Commit, attr: Attr) -> bool:
    """Whether the contents leave the MDT as they are: every change has a time of its own."""
    reported = request.size, request.mtime_ns, request.ctime_ns
    return reported == (attr.size, attr.mtime_ns, attr.ctime_ns)


def _check_report(step: Step, request: Commit, inode: Inode, held: Lease) -> None:
    registered = step.tx.opens(request.fid).get(step.session, Mode.CLOSED)
    if held < Lease.WRITE and (inode.is_inline or not int(registered) & OPEN_WRITE):
        raise OSError(errno.ESTALE, "this session has lost its right to write the file")
    if not 0 <= request.size < 1 << 63:
        raise OSError(errno.EFBIG, f"{request.size} cannot be a file's size")
    if request.blocks < 0:
        raise OSError(errno.EINVAL, f"{request.blocks} cannot be a number of blocks")
    data = request.data
    if data is None:
        return
    if not inode.is_inline:
        raise OSError(errno.EINVAL, "the file's contents are on OSTs and cannot come with a commit")
    check_inline(step, inode.layout, data)
    if len(data) > request.size:
        raise OSError(errno.EINVAL, f"contents of {len(data)} bytes for a file of {request.size}")


def _take_report(step: Step, request: Commit, inode: Inode, held: Lease) -> None:
    """Write size, times and contents. Only who holds the WRITE lease knows the size."""
    tx, fid = step.tx, request.fid
    edited = tx.edit(fid)
    attr = edited.attr
    size, mtime_ns, blocks, flags = request.size, request.mtime_ns, request.blocks, attr.flags
    ctime_ns = max(request.ctime_ns, attr.ctime_ns) if request.ctime_ns else step.now_ns
    if inode.is_inline:
        data = request.data
        if data is None and size:
            flags &= ~INLINE
        if tx.data(inode) != (data or b""):
            tx.set_data(fid, data or b"")
        if flags & INLINE:
            blocks = blocks_of(len(data or b""))
    elif held < Lease.WRITE:  # the OSTs know better, and are asked before anybody is told (`mds/osts/sizes.py`)
        size, mtime_ns, ctime_ns, blocks = attr.size, attr.mtime_ns, attr.ctime_ns, max(blocks, attr.blocks)
    edited.data_version += 1
    edited.attr = replace(
        attr,
        size=size,
        blocks=blocks,
        atime_ns=max(request.atime_ns, attr.atime_ns),
        mtime_ns=mtime_ns,
        ctime_ns=ctime_ns,
        change=attr.change + 1,
        flags=flags,
    )
    if inode.is_inline and not flags & INLINE:
        note_writer(step, edited)


def settle_orphan(step: Step, fid: int) -> bool:
    """Destroy a file that has neither a name nor, for all that is known, anybody who has it open; whether it did.

    To be called whenever a registered open or another session's lease of it has ended.
    """
    tx, leases = step.tx, step.leases
    inode = tx.inode(fid)
    if inode is None or inode.attr.nlink or tx.opens(fid) or leases.others(fid):
        return False
    leases.changed(fid)
    tx.destroy(fid)
    leases.downgrade(fid, Lease.NONE)
    return True
