"""Reading directories."""

from typing import Final

from nacrefs.common.wire import LISTING_MAX, DirEntry, Lease, Listing, Readdir
from nacrefs.mds.namespace.bits import INLINE, OPEN_WRITE, RELEASED, WANT_DATA, WANT_LAYOUT
from nacrefs.mds.namespace.nodes import MIRRORED, READ_WRITE
from nacrefs.mds.transactions.step import Step

DATA_BYTES_MAX: Final = 512 * 1024
"""Most inline contents in one listing."""


def readdir(step: Step, request: Readdir) -> Listing:
    """The entries after a name, with attributes and leases.

    Entries that another session has a WRITE lease on, or writes, come without lease and as last committed.
    """
    tx, leases, fid = step.tx, step.leases, request.fid
    tx.need_directory(fid)
    leases.truth(fid)
    limit = min(max(request.limit, 1), LISTING_MAX)
    if request.lease and int(request.want) & (WANT_LAYOUT | WANT_DATA):
        return _whole_files(step, request, limit)
    rows = tx.listing(fid, request.after, limit + 1)
    end = len(rows) <= limit
    if not end:
        del rows[limit:]
    if not request.lease:
        entries = tuple([DirEntry(name, attr) for name, attr in rows])
        return Listing(entries, end, tx.need(fid).attr, leases.grant(fid, Lease.NONE))
    own = leases.grant(fid, Lease.READ)
    grant, read = leases.grant, Lease.READ
    if tx.mdt.opens or tx.open_sets:
        entries = tuple(
            [
                DirEntry(name, attr, Lease.NONE if _is_written(step, attr.fid, attr.flags) else grant(attr.fid, read))
                for name, attr in rows
            ]
        )
    else:
        entries = tuple([DirEntry(name, attr, grant(attr.fid, read)) for name, attr in rows])
    return Listing(entries, end, tx.need(fid).attr, own)


def _whole_files(step: Step, request: Readdir, limit: int) -> Listing:
    """A listing after which the files can be read without another question to the MDS."""
    fid, grant, want = request.fid, step.leases.grant, int(request.want)
    own = grant(fid, Lease.READ)
    rows = step.tx.listing_whole(fid, request.after, limit + 1)
    entries: list[DirEntry] = []
    room = DATA_BYTES_MAX
    for name, inode, data in rows[:limit]:
        attr = inode.attr
        if room < 0:
            break
        if _is_written(step, attr.fid, attr.flags):
            entries.append(DirEntry(name, attr))
            continue
        lease = grant(attr.fid, Lease.READ)
        if not lease or not inode.is_regular or attr.flags & RELEASED:
            entries.append(DirEntry(name, attr, lease))
        elif not inode.is_inline:
            layout = inode.layout
            assert layout is not None
            rights = READ_WRITE if layout.mirrors == 1 else MIRRORED
            capability = step.capability(attr.fid, layout.generation, step.session, rights)
            entries.append(DirEntry(name, attr, lease, layout, capability))
        elif not want & WANT_DATA or (data is None and attr.size):
            entries.append(DirEntry(name, attr, lease))
        else:
            data = data or b""
            room -= len(data)
            entries.append(DirEntry(name, attr, lease, data=data))
    return Listing(tuple(entries), len(entries) == len(rows), step.tx.need(fid).attr, own)


def _is_written(step: Step, fid: int, flags: int) -> bool:
    """Whether another session writes the file without a lease."""
    if flags & INLINE:
        return False
    return any(int(mode) & OPEN_WRITE and session != step.session for session, mode in step.tx.opens(fid).items())
