"""The MDS's state for people and scripts (`nacre status`)."""

import time
from typing import TYPE_CHECKING, Any

from nacrefs.common.wire import HsmAction
from nacrefs.mds.hsm.rows import STARTED, WAITING

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
        "in_grace": mds.grace.running,
        "sessions": [
            {
                "session": session.id,
                "client": session.client,
                "host": session.host,
                "connected": session.peer is not None,
                "transport": session.peer.transport if session.peer is not None else "",
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


def queue_report(mds: "Mds") -> dict[str, Any]:
    """The lifecycle tier's queue, as plain data."""
    now_ns = time.time_ns()
    rows = [action.row for action in mds.hsm.active.values()]
    store = mds.mdt.store
    waiting = store.fetchall(store.statements.gone, (1000,))
    return {
        "waiting": sum(row.state == WAITING for row in rows),
        "started": sum(row.state == STARTED for row in rows),
        "to_delete": len(waiting),
        "actions": [
            {
                "id": action.row.id,
                "fid": action.row.fid,
                "action": HsmAction(action.row.kind).name.lower(),
                "archive": action.row.archive,
                "uid": action.row.uid,
                "cause": action.row.cause,
                "state": action.row.state,
                "attempts": action.row.attempts,
                "age_s": round((now_ns - action.row.created_ns) / 1e9, 3),
                "done": action.done,
                "total": action.total,
                "waiters": len(action.waiters),
                "reason": mds.hsm.reason_of(action.row),
            }
            for action in list(mds.hsm.active.values())[:1000]
        ],
        "full": [
            {
                "archive": spec.id,
                "name": spec.name,
                "reason": reason,
                "since_s": round((mds.clock.now_ns() - mds.hsm.full.since_ns(spec.id)) / 1e9, 3),
                "waiting": mds.hsm.waits_for_room(spec.id),
            }
            for spec in mds.hsm.archives.values()
            if (reason := mds.hsm.full.why(spec.id))
        ],
    }
