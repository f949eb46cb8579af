"""The MDS's state for people and scripts (`nacre status`)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nacrefs.mds.service import Mds


def status_report(mds: "Mds") -> dict[str, Any]:
    """Sessions, OSTs, leases and queues, as plain data."""
    return {
        "role": "mds",
        "mdt": mds.mdt.number,
        "cluster": mds.mdt.cluster,
        "database": mds.mdt.store.name,
        "inodes": mds.mdt.files,
        "in_grace": mds.in_grace,
        "sessions": [
            {
                "session": session.id,
                "client": session.client,
                "host": session.host,
                "connected": session.peer is not None,
                "leases": mds.leases.counts.get(session.id, 0),
                "locks": mds.locking.table.locks_of(session.id),
                "recalls": len(session.recalls),
                "in_flight": len(session.in_flight),
            }
            for session in mds.sessions.by_id.values()
        ],
        "osts": [
            {
                "index": info.index,
                "address": info.address,
                "up": info.up,
                "total_bytes": info.total_bytes,
                "free_bytes": info.free_bytes,
                "objects": info.objects,
                "pools": list(info.pools),
                "uuid": info.uuid,
            }
            for info in mds.targets.table()
        ],
        "leases": mds.leases.report(),
        "locks": {"held": mds.locking.table.held, "waiting": mds.locking.table.waiting},
        "registered_opens": len(mds.mdt.opens),
        "queues": {
            "requests": mds.journal.queued,
            "batches": mds.journal.batches,
            "batched": mds.journal.batched,
            "reaped": mds.reaper.reaped,
            "truncating": len(mds.leases.truncating),
        },
        "cache": {"entries": len(mds.mdt.cache), "bytes": mds.mdt.cache.bytes},
    }
