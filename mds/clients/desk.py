"""Requests about sessions: beginning and ending them, what they still hold after a restart, leases given back."""

import asyncio
import errno
from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from nacrefs.common import wire
from nacrefs.common.export import Export
from nacrefs.common.fid import ROOT
from nacrefs.common.rpc import Call, Handler
from nacrefs.common.wire import Lease, Mode
from nacrefs.mds.access.exports import Limits
from nacrefs.mds.clients.eviction import end_session
from nacrefs.mds.clients.sessions import Session
from nacrefs.mds.transactions.step import Step

if TYPE_CHECKING:
    from nacrefs.mds.service import Mds

SESSION_REQUESTS: Final[tuple[type[wire.Request[Any]], ...]] = (
    wire.Attach, wire.Keepalive, wire.Detach, wire.Reclaim, wire.Yield,
)  # fmt: skip
SQUASHED: Final = ("none", "root", "all")
"""`Export.squash` in the order of `wire.Session.squash`."""


class SessionDesk:
    """Serves `SESSION_REQUESTS` for one MDS."""

    def __init__(self, mds: "Mds") -> None:
        self._mds = mds

    def handlers(self) -> Mapping[type[wire.Request[Any]], Handler]:
        """The table of `SESSION_REQUESTS`."""
        return {
            wire.Attach: self._attach,
            wire.Keepalive: self._keepalive,
            wire.Detach: self._detach,
            wire.Reclaim: self._reclaim,
            wire.Yield: self._yield,
        }

    async def _attach(self, request: wire.Attach, call: Call) -> wire.Session:
        peer, export = call.peer, call.peer.export
        top = self._root(export.path.encode()) if export.limits else ROOT
        root = self._mounted(request.subtree, export, top)
        session = self._mds.sessions.by_id.get(request.session)
        resumed = session is not None and not session.gone and session.is_of(request.client, peer.principal)
        if session is None or not resumed:
            for old in [old for old in self._mds.sessions.by_id.values() if old.is_of(request.client, peer.principal)]:
                self._mds.evict(old, "began another session", knows=True)
            now_ns = self._mds.clock.now_ns()
            owner = f"{request.client}@{peer.principal}"
            record = await self._mds.journal.submit_own(
                lambda step: step.tx.add_session(owner, request.host, root, now_ns)
            )
            session = self._mds.sessions.add(record)
            session.first_xid = call.xid
        if peer.link is None:
            raise ConnectionResetError(errno.ECONNRESET, "the client has gone while it attached")
        self._mds.sessions.connect(session, peer)
        session.key, session.limits = peer.key, Limits(export, top) if export.limits else None
        if session.limits is None:
            self._mds.limits.pop(session.id, None)
        else:
            self._mds.limits[session.id] = session.limits
        asyncio.get_running_loop().call_soon(self._mds.sessions.resend_recalls, session)
        return wire.Session(
            session.id,
            self._mds.settings.term_s,
            root,
            self._mds.targets.table(),
            self._mds.settings.layout.inline_bytes,
            resumed,
            resumed and not session.reclaimed,
            self._mds.mdt.cluster,
            SQUASHED.index(export.squash) if export.identifies else -1,
            export.read_only,
        )

    def _mounted(self, subtree: bytes, export: Export, top: int) -> int:
        """The fid of what a client mounts: what its key is for, or what it names there."""
        if not export.subtree:
            return self._root(subtree)
        asked, allowed_path = _parts(subtree), _parts(export.path.encode())
        if not asked:
            return top
        if asked[: len(allowed_path)] != allowed_path:
            raise OSError(errno.EACCES, f"this key may mount {export.path} and what is below it, nothing else")
        return self._root(subtree)

    def _root(self, subtree: bytes) -> int:
        """The fid of the directory that a client mounts; OSError naming the part of the path that is wrong."""
        fid = ROOT
        for name in _parts(subtree):
            found = self._mds.journal.reading.dentry(fid, name)
            if found is None or not self._mds.journal.reading.need(found).is_directory:
                raise OSError(errno.ENOENT, f"the filesystem has no directory {subtree.decode(errors='replace')!r}")
            fid = found
        return fid

    def _keepalive(self, request: wire.Keepalive, call: Call) -> wire.Alive:
        self._mds.sessions.heard(call.peer)
        self._mds.uses.note(request.used)
        return wire.Alive(self._mds.targets.version, self._mds.targets.tight, self._mds.mdt.accounts.version)

    async def _detach(self, request: wire.Detach, call: Call) -> wire.Done:
        session = self._mds.sessions.heard(call.peer)
        session.gone = True
        try:
            await self._mds.journal.submit_own(partial(end_session, self._mds.leases, session.id))
        except BaseException:
            session.gone = False
            raise
        self._mds.sessions.remove(session)
        self._mds.session_ended()
        return wire.Done()

    async def _reclaim(self, request: wire.Reclaim, call: Call) -> wire.Reclaimed:
        session = self._mds.sessions.heard(call.peer)
        if session.reclaimed or not self._mds.grace.running:
            raise OSError(errno.ESTALE, "there is nothing to reclaim: no grace term is running for this session")
        holdings = await self._mds.journal.submit_own(partial(self._take_back, session, request.holdings))
        lost = self._mds.locking.reclaim(session, request.locks)
        self._mds.appends.reclaim(session.id, request.appends)
        if not request.more:
            session.reclaimed = True
            asyncio.get_running_loop().call_soon(self._mds.grace.progress)
        return wire.Reclaimed(tuple(holdings), lost)

    def _take_back(self, owner: Session, holdings: Iterable[wire.Holding], step: Step) -> list[wire.Holding]:
        """Give back to a session what it held before the restart, as far as the files exist and nobody else has it."""
        if owner.gone:
            raise OSError(errno.ESTALE, "the session was evicted")
        session = owner.id
        agreed: list[wire.Holding] = []
        if owner.limits is not None:
            holdings = [owner.limits.reclaimable(step, holding) for holding in holdings]
        for holding in holdings:
            fid, lease, mode = holding.fid, holding.lease, holding.mode
            inode = step.tx.inode(fid)
            writer = self._mds.leases.writer(fid)
            if inode is None or (writer and writer != session):
                agreed.append(wire.Holding(fid, Lease.NONE, Mode.CLOSED))
                continue
            if lease == Lease.WRITE and self._mds.leases.others(fid, session):
                lease = Lease.NONE
            if lease == Lease.READ and holding.change != inode.attr.change:
                lease = Lease.NONE
            self._mds.leases.set(fid, session, lease)
            needed = Lease.WRITE if mode & Mode.WRITE else Lease.READ
            if lease >= needed and inode.attr.nlink:
                mode = Mode.CLOSED
            step.tx.set_open(session, fid, mode)
            agreed.append(wire.Holding(fid, lease, mode, inode.attr.change))
        return agreed

    def _yield(self, request: wire.Yield, call: Call) -> Any:
        registered = self._mds.recalls.given_back(self._mds.sessions.heard(call.peer), request.holdings)
        self._mds.journal.retry()
        return wire.Done() if registered is None else self._when(registered)

    async def _when(self, registered: "asyncio.Future[None]") -> wire.Done:
        await registered
        return wire.Done()


def _parts(path: bytes) -> list[bytes]:
    return [name for name in path.split(b"/") if name not in (b"", b".")]
