"""Requests about warmup jobs."""

import errno
from typing import TYPE_CHECKING, Any, Final

import msgspec

from nacrefs.common import wire
from nacrefs.common.rpc import Call, Handler
from nacrefs.common.wire import Inspection
from nacrefs.mds.once import Keep
from nacrefs.mds.warmup.jobs import Warmups, report
from nacrefs.mds.warmup.rows import VERBS

if TYPE_CHECKING:
    from nacrefs.mds.service import Mds

WARMUP_REQUESTS: Final[tuple[type[wire.Request[Any]], ...]] = (wire.AddWarmup, wire.GetWarmups, wire.CancelWarmup)


class WarmupDesk:
    """Answers them."""

    def __init__(self, mds: "Mds", warmups: Warmups) -> None:
        self._mds = mds
        self._warmups = warmups

    def handlers(self) -> dict[type[wire.Request[Any]], Handler]:
        """The table of these requests."""
        return {
            wire.AddWarmup: self._mds.once.handler(self._add),
            wire.GetWarmups: self._get,
            wire.CancelWarmup: self._cancel,
        }

    async def _add(self, request: wire.AddWarmup, keep: Keep) -> Inspection:
        if request.verb not in VERBS:
            raise OSError(errno.EINVAL, f"a warmup can {', '.join(VERBS)}, not {request.verb[:80]!r}")
        if len(request.fids) > wire.LISTING_MAX:
            raise OSError(errno.EINVAL, f"{len(request.fids)} files at once are more than {wire.LISTING_MAX}")
        if request.rate_bytes < 0:
            raise OSError(errno.EINVAL, f"{request.rate_bytes} bytes per second are no limit")
        warmups = self._warmups
        if request.job:
            job = warmups.need(request.job)
        else:
            job = warmups.make(request.verb, request.after, request.width, request.uid, request.rate_bytes)
        await warmups.add(
            job, request.fids, request.more, lambda step, as_is: keep(step, Inspection(msgspec.json.encode(as_is)))
        )
        return Inspection(msgspec.json.encode(report(job)))

    def _get(self, request: wire.GetWarmups, call: Call) -> Inspection:
        warmups = self._warmups
        jobs = [warmups.need(request.job)] if request.job else list(warmups.jobs.values())
        return Inspection(msgspec.json.encode([report(job) for job in jobs]))

    async def _cancel(self, request: wire.CancelWarmup, call: Call) -> wire.Done:
        self._mds.sessions.heard(call.peer)
        await self._warmups.cancel(self._warmups.need(request.job))
        return wire.Done()
