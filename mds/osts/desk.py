"""Requests about OSTs: what their servers report, pools, and copies that are good no more."""

import asyncio
import errno
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from nacrefs.common import wire
from nacrefs.common.rpc import LATER, Call, Handler
from nacrefs.common.wire import Role
from nacrefs.mds.namespace.copies import copies_failed
from nacrefs.mds.once import Keep
from nacrefs.mds.transactions.step import Step

if TYPE_CHECKING:
    from nacrefs.mds.service import Mds

OST_REQUESTS: Final[tuple[type[wire.Request[Any]], ...]] = (
    wire.GetOsts, wire.Register, wire.Heartbeat, wire.SetPool, wire.CopiesFailed, wire.ListCopies, wire.Resync,
    wire.JoinMirrors, wire.ReportDamage,
)  # fmt: skip


class OstDesk:
    """Serves `OST_REQUESTS` for one MDS."""

    def __init__(self, mds: "Mds") -> None:
        self._mds = mds
        self._registering = asyncio.Lock()

    def handlers(self) -> Mapping[type[wire.Request[Any]], Handler]:
        """The table of `OST_REQUESTS`."""
        return {
            wire.GetOsts: self._table,
            wire.Register: self._register,
            wire.Heartbeat: self._heartbeat,
            wire.SetPool: self._mds.once.handler(self._set_pool),
            wire.CopiesFailed: self._copies_failed,
            wire.ListCopies: self._list_copies,
            wire.Resync: self._mds.once.handler(self._resync),
            wire.JoinMirrors: self._join_mirrors,
            wire.ReportDamage: self._report_damage,
        }

    def _table(self, request: wire.GetOsts, call: Call) -> wire.OstTable:
        return wire.OstTable(self._mds.targets.version, self._mds.targets.table())

    async def _register(self, request: wire.Register, call: Call) -> wire.Registered:
        _servers_only(call)
        if not request.targets:
            raise OSError(errno.EINVAL, "an OSS must offer at least one OST")
        async with self._registering:
            records = self._mds.targets.records_for(request)

            def put(step: Step) -> None:
                for record in records:
                    step.tx.put_ost(record)

            await self._mds.journal.submit_own(put)
            self._mds.targets.registered(request, records, call.peer)
        indices = tuple(record.number for record in records)
        return wire.Registered(
            indices,
            self._mds.targets.fenced(self._mds.settings.capability_s),
            self._mds.settings.heartbeat_s,
            self._mds.targets.silence_s,
            bool(self._mds.mdt.mirrors((-1, -1, -1), 1)),
            self._mds.now_s(),
        )

    def _heartbeat(self, request: wire.Heartbeat, call: Call) -> wire.Alive:
        _servers_only(call)
        self._mds.targets.heartbeat(request.targets, call.peer)
        return wire.Alive(self._mds.targets.version, now_s=self._mds.now_s())

    def _copies_failed(self, request: wire.CopiesFailed, call: Call) -> Any:
        """A copy is not good any more. Asked again it is looked at again, since what it has changed it does not change
        twice, and the OSTs must know before it is answered."""
        self._mds.accept_once(
            copies_failed, request, call, lambda done: self._mds.mirrors.announced(done, self._mds.spawn)
        )
        return LATER

    def _list_copies(self, request: wire.ListCopies, call: Call) -> wire.MirrorCopies:
        self._mds.sessions.heard(call.peer)
        return self._mds.mirrors.list_copies(request)

    async def _resync(self, request: wire.Resync, keep: Keep) -> wire.Resynced:
        return await self._mds.resyncer.asked(request, keep)

    def _join_mirrors(self, request: wire.JoinMirrors, call: Call) -> wire.Floors:
        _servers_only(call)
        return self._mds.mirrors.join(request)

    async def _report_damage(self, request: wire.ReportDamage, call: Call) -> wire.Done:
        _servers_only(call)
        await self._mds.mirrors.damaged(request.objects)
        return wire.Done()

    async def _set_pool(self, request: wire.SetPool, keep: Keep) -> wire.Done:
        if not 0 < len(request.pool) <= 63 or any(character.isspace() for character in request.pool):
            raise OSError(errno.EINVAL, f"{request.pool[:80]!r} is not a pool name (1 to 63 characters without spaces)")
        for number in request.osts:
            if number not in self._mds.targets.osts:
                raise OSError(errno.EINVAL, f"there is no OST {number}")

        def put(step: Step) -> None:
            step.tx.set_pool(request.pool, request.osts)
            keep(step, wire.Done())

        await self._mds.journal.submit_own(put)
        self._mds.targets.pools = {**self._mds.targets.pools, request.pool: request.osts}
        if not request.osts:
            del self._mds.targets.pools[request.pool]
        self._mds.targets.refresh()
        return wire.Done()


def _servers_only(call: Call) -> None:
    if call.peer.role is not Role.SERVER:
        raise OSError(errno.EACCES, "only a server's key may do this")
