"""Reading directories."""

from nacrefs.common.wire import LISTING_MAX, DirEntry, Lease, Listing, Readdir
from nacrefs.mds.namespace.bits import INLINE, OPEN_WRITE
from nacrefs.mds.step import Step


def readdir(step: Step, request: Readdir) -> Listing:
    """The entries after a name, with attributes and leases.

    Entries that another session has a WRITE lease on, or writes, come without lease and as last committed.
    """
    tx, leases, fid = step.tx, step.leases, request.fid
    tx.need_directory(fid)
    leases.truth(fid)
    limit = min(max(request.limit, 1), LISTING_MAX)
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


def _is_written(step: Step, fid: int, flags: int) -> bool:
    """Whether another session writes the file without a lease."""
    if flags & INLINE:
        return False
    return any(int(mode) & OPEN_WRITE and session != step.session for session, mode in step.tx.opens(fid).items())
