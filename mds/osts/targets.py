"""The OSTs: who they are, whether they live, and the requests that the MDS makes of them.

An OSS connects to the MDS and offers its targets; the MDS calls back on the same connection.
"""

import asyncio
import errno
import logging
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

from nacrefs.common.clock import Clock
from nacrefs.common.layout import CopyState, Layout, LayoutSpec
from nacrefs.common.rpc import Peer
from nacrefs.common.wire import (
    Destroy,
    Fence,
    Glimpse,
    ObjectId,
    ObjectStat,
    OstInfo,
    Register,
    Request,
    StatfsReply,
    TargetInfo,
    TruncateObjects,
)
from nacrefs.mds.osts.placement import Placer, Target
from nacrefs.mds.records import OstRecord

log = logging.getLogger("nacre.mds")

MISSED_HEARTBEATS = 3
RETRY_S = 0.5
_TRUST_POLL_S = 0.05


class Ost:
    """One storage target. `peer` is the connection to its OSS while there is one."""

    __slots__ = ("disk", "heard_s", "peer", "record", "trusted_until_s")

    def __init__(self, record: OstRecord) -> None:
        self.record = record
        self.disk = record.uuid
        """What it shares its room with; by itself, as long as nothing else is known."""
        self.peer: Peer | None = None
        self.heard_s = 0.0
        self.trusted_until_s = 0.0
        """While there is no connection: when an OSS that does not know of that stops serving mirrored files."""


class Targets:
    """All OSTs of the cluster; also `mds.step.Placement`."""

    def __init__(self, clock: Clock, heartbeat_s: float, reserve_bytes: int) -> None:
        self._clock = clock
        self._heartbeat_s = heartbeat_s
        self._reserve_bytes = reserve_bytes
        self.osts: dict[int, Ost] = {}
        self.pools: dict[str, tuple[int, ...]] = {}
        self.version = 1
        self._fenced: dict[int, float] = {}
        """Sessions that must not do I/O any more, and since when, for OSSes that come later."""
        self.on_up: Callable[[], None] = lambda: None
        """Told when OSTs have registered."""
        self._placer = Placer((), 0, reserve_bytes)
        self._changed = asyncio.Event()

    # -------------------------------------------------------------------------------------------------------- registry

    def load(self, records: Iterable[OstRecord], pools: dict[str, tuple[int, ...]]) -> None:
        """What the database knows."""
        self.osts = {record.number: Ost(record) for record in records}
        for ost in self.osts.values():
            ost.heard_s = self._clock.monotonic_s()  # they have as long as after a lost connection to come back
            ost.trusted_until_s = ost.heard_s + self.silence_s
        self.pools = pools
        self.refresh()

    def records_for(self, request: Register) -> list[OstRecord]:
        """The records, old or new, of the targets that an OSS offers; OSError (EINVAL) if they contradict ours."""
        if len({target.uuid for target in request.targets}) < len(request.targets):
            raise OSError(errno.EINVAL, "an OST is offered twice")
        by_uuid = {ost.record.uuid: ost.record for ost in self.osts.values()}
        free = iter(number for number in range(1 << 16) if number not in self.osts)
        records: list[OstRecord] = []
        for target in request.targets:
            known = by_uuid.get(target.uuid)
            if known is not None:
                number = known.number
                if target.index not in (-1, number):
                    raise OSError(errno.EINVAL, f"OST {target.uuid} says it is {target.index}, but it is {number} here")
            elif target.index >= 0:
                raise OSError(
                    errno.EINVAL,
                    f"OST {target.uuid} says it is OST {target.index} of this cluster, but the MDT does not know it",
                )
            else:
                number = next(free)
            records.append(_record(number, request.address, target))
        return records

    def registered(self, request: Register, records: Sequence[OstRecord], peer: Peer) -> None:
        """These OSTs are served by this peer; `records` are the request's targets as `records_for` has them."""
        now = self._clock.monotonic_s()
        before: set[Peer] = set()
        for target, record in zip(request.targets, records, strict=True):
            ost = self.osts.get(record.number)
            if ost is None:
                ost = self.osts[record.number] = Ost(record)
            if ost.peer is not None and ost.peer is not peer:
                before.add(ost.peer)
            ost.record, ost.peer, ost.heard_s, ost.trusted_until_s = record, peer, now, 0.0
            ost.disk = target.disk or target.uuid
        for old in before:
            # Nothing that was asked there will be answered: the connection may be dead without anybody having noticed.
            old.close("its OSTs have registered on another connection")  # (and are told there what they must know)
        log.info("OSTs %s are served at %s", [record.number for record in records], records[0].address)
        self.refresh()
        self._changed.set()
        self._changed = asyncio.Event()
        self.on_up()

    def heartbeat(self, targets: Iterable[TargetInfo], peer: Peer) -> None:
        """How full the OSTs of a peer are now."""
        now = self._clock.monotonic_s()
        for target in targets:
            ost = self.osts.get(target.index)
            if ost is None or ost.peer is not peer or ost.record.uuid != target.uuid:
                raise OSError(errno.ESTALE, f"OST {target.index} is not registered here by this OSS")
            ost.record = _record(target.index, ost.record.address, target)
            ost.heard_s = now
        self.refresh()

    def lost(self, peer: Peer) -> None:
        """The connection to an OSS is gone."""
        gone = [ost.record.number for ost in self.osts.values() if ost.peer is peer]
        if gone:
            log.warning("lost the OSS of OSTs %s", gone)
            for number in gone:
                self.osts[number].peer = None
            self.refresh()

    def _cut(self, peer: Peer, reason: str) -> None:
        """Close a connection from this side: the OSS may not know that it is gone."""
        for ost in self.osts.values():
            if ost.peer is peer:
                ost.trusted_until_s = ost.heard_s + self.silence_s
        peer.close(reason)

    @property
    def silence_s(self) -> float:
        """An OST that has not been heard of for so long is down; by itself it serves no mirrored file any more."""
        return MISSED_HEARTBEATS * self._heartbeat_s

    def is_up(self, ost: Ost) -> bool:
        """Whether an OST is connected and reports."""
        return ost.peer is not None and self._is_expected(ost)

    def _is_expected(self, ost: Ost) -> bool:
        """Whether an OST has reported lately: if it is away, it may be about to come back."""
        return self._clock.monotonic_s() - ost.heard_s < self.silence_s

    def drop_silent(self) -> None:
        """Close connections whose OSTs have not reported for too long; whoever is still there registers again."""
        silent = {ost.peer for ost in self.osts.values() if ost.peer is not None and not self.is_up(ost)}
        for peer in silent:
            self._cut(peer, f"no heartbeat in {self.silence_s:g} s")

    def refresh(self) -> None:
        """Take over for placement, and for clients, what has changed."""
        pools_of: dict[int, list[str]] = {}
        for pool, members in sorted(self.pools.items()):
            for number in members:
                pools_of.setdefault(number, []).append(pool)
        before = [(info.index, info.address, info.up, info.pools) for info in self._table] if self.version > 1 else []
        self._table = tuple(
            OstInfo(
                number,
                ost.record.address,
                self.is_up(ost),
                ost.record.total_bytes,
                ost.record.free_bytes,
                ost.record.objects,
                tuple(pools_of.get(number, ())),
                ost.record.uuid,
            )
            for number, ost in sorted(self.osts.items())
        )
        if before != [(info.index, info.address, info.up, info.pools) for info in self._table]:
            self.version += 1
        targets = [Target(info.index, info.up, info.free_bytes, info.pools, info.address) for info in self._table]
        if not any(target.up for target in targets):
            # Just after a restart, of the MDS or of all OSSes: a create must not fail for that. Its data will wait.
            targets = [target._replace(up=self._is_expected(self.osts[target.ost])) for target in targets]
        self._placer = Placer(targets, self._placer.placed, self._reserve_bytes)

    _table: tuple[OstInfo, ...] = ()

    @property
    def tight(self) -> bool:
        """Whether an OST is so full that clients should learn soon whether what they write still has room."""
        return bool(self.tight_osts())

    def tight_osts(self) -> set[int]:
        """The OSTs that are so full."""
        return {info.index for info in self._table if info.up and info.free_bytes < 4 * self._reserve_bytes}

    def table(self) -> tuple[OstInfo, ...]:
        """All OSTs as clients see them, by index."""
        return self._table

    def place(self, spec: LayoutSpec) -> tuple[int, ...]:
        return self._placer.place(spec)

    def space(self, files: int) -> StatfsReply:
        """Room of all OSTs together; what several of them share counts once."""
        total: dict[str, int] = {}
        free: dict[str, int] = {}
        for info in self._table:
            disk = self.osts[info.index].disk
            total[disk] = max(info.total_bytes, total.get(disk, 0))
            if info.up:
                free[disk] = max(info.free_bytes, free.get(disk, 0))
        return StatfsReply(sum(total.values()), sum(free.values()), files, max(0, (1 << 48) - files))

    # -------------------------------------------------------------------------------------------------------- requests

    async def ask(self, number: int, request: Request[Any]) -> Any:
        """Ask the OSS of an OST, for as long as it takes until it is there and answers."""
        while True:
            ost = self.osts.get(number)
            changed = self._changed
            if ost is not None and ost.peer is not None:
                try:
                    return await ost.peer.call(request)
                except ConnectionError:
                    pass
                except OSError as error:
                    log.warning("OST %d: %s failed: %s", number, type(request).__name__, error.strerror)
                    await asyncio.sleep(RETRY_S)
                    continue
            await changed.wait()

    async def settle(self, number: int, request: Request[Any]) -> bool:
        """Have an OST do something about mirrored files before anybody relies on it: True if it has. False if it does
        not serve any, and will ask what it must know (`JoinMirrors`) before it does again."""
        while True:
            ost = self.osts.get(number)
            if ost is None:
                return False
            peer = ost.peer
            if peer is None:
                if self._clock.monotonic_s() >= ost.trusted_until_s:
                    return False
                await asyncio.sleep(_TRUST_POLL_S)
                continue
            try:
                await peer.call(request, deadline_s=self.silence_s)
                return True
            except OSError as error:
                if ost.peer is peer and error.errno in (errno.ENXIO, errno.EAGAIN):  # it is still registering
                    await asyncio.sleep(_TRUST_POLL_S)
                elif ost.peer is peer:
                    self._cut(peer, f"{type(request).__name__} failed: {error.strerror}")

    def serving(self, number: int) -> Ost | None:
        """An OST that is up; None if it is not."""
        ost = self.osts.get(number)
        return ost if ost is not None and self.is_up(ost) else None

    async def truncate(self, fid: int, layout: Layout, size: int) -> None:
        """Cut all objects of a file; returns when every OST has."""
        await asyncio.gather(
            *(self.ask(ost, TruncateObjects(objects, size)) for ost, objects in objects_by_ost([(fid, layout)]).items())
        )

    async def destroy_durably(self, fid: int, layout: Layout) -> None:
        """Destroy all objects of a file; returns when every OST has."""
        objects = objects_by_ost([(fid, layout)])
        await asyncio.gather(*(self.ask(ost, Destroy(some)) for ost, some in objects.items()))

    async def destroy(self, number: int, objects: Sequence[ObjectId]) -> None:
        """Destroy objects of one OST; returns when they are gone. OSError if it is away or cannot."""
        await self._peer(number).call(Destroy(tuple(objects)))

    def _peer(self, number: int) -> Peer:
        ost = self.osts.get(number)
        if ost is None or ost.peer is None:
            raise OSError(errno.EIO, f"OST {number} is away")
        return ost.peer

    async def glimpse(self, fid: int, layout: Layout, patient: bool = True) -> tuple[int, int, int]:
        """Size, allocated bytes and mtime of a file as its objects have them; waits for OSTs that are away, or raises
        OSError (EIO) unless `patient`."""
        if layout.mirrors > 1:
            return await self._glimpse_copies(fid, layout, patient)
        calls: list[Coroutine[Any, Any, Any] | asyncio.Future[Any]] = []
        for number, objects in objects_by_ost([(fid, layout)]).items():
            request = Glimpse(objects)
            calls.append(self.ask(number, request) if patient else self._peer(number).call(request))
        stats: list[ObjectStat] = []
        for reply in await asyncio.gather(*calls):
            stats.extend(reply.stats)
        return _together(stats)

    async def glimpse_several(self, files: Sequence[tuple[int, Layout]]) -> dict[int, tuple[int, int, int]]:
        """The same of several files without mirrors, in one request to each OST; files are missing of which an OST is
        away or cannot tell."""
        asked = list(objects_by_ost(files).items())
        missing: set[int] = set()
        found: dict[int, list[ObjectStat]] = {fid: [] for fid, _ in files}
        answers = await asyncio.gather(*(self._glimpsed(number, objects) for number, objects in asked))
        for (_, objects), stats in zip(asked, answers, strict=True):
            if stats is None:
                missing.update(item.fid for item in objects)
            else:
                for item, stat in zip(objects, stats, strict=True):
                    found[item.fid].append(stat)
        return {fid: _together(stats) for fid, stats in found.items() if fid not in missing}

    async def _glimpsed(self, number: int, objects: tuple[ObjectId, ...]) -> Sequence[ObjectStat] | None:
        """What an OST says now of its objects; None if it does not."""
        try:
            reply = await self._peer(number).call(Glimpse(objects))
        except OSError as error:
            log.info("OST %d: Glimpse of %d objects failed: %s", number, len(objects), error.strerror)
            return None
        return reply.stats

    async def _glimpse_copies(self, fid: int, layout: Layout, patient: bool) -> tuple[int, int, int]:
        stats = await asyncio.gather(
            *(self._glimpse_stripe(fid, layout, stripe, patient) for stripe in range(layout.stripe_count))
        )
        allocated = layout.mirrors * sum(stat.allocated_bytes for stat in stats)
        return max(stat.size for stat in stats), allocated, max(stat.mtime_ns for stat in stats)

    async def _glimpse_stripe(self, fid: int, layout: Layout, stripe: int, patient: bool) -> ObjectStat:
        """A stripe's object, from the first copy that has every acknowledged byte and whose OST answers."""
        copies = sorted(layout.objects_of(stripe), key=layout.state_of)
        numbers = [number for number in copies if layout.state_of(number) <= CopyState.UNSURE]
        while True:
            for number in numbers:
                index = layout.osts[number]
                ost = self.serving(index)
                if ost is None or ost.peer is None:
                    continue
                try:
                    answer = await ost.peer.call(Glimpse((ObjectId(index, fid, number),)), deadline_s=self.silence_s)
                    return answer.stats[0]
                except OSError as error:
                    log.warning("OST %d: Glimpse failed: %s", index, error.strerror)
            if not patient:
                raise OSError(errno.EIO, f"OST {layout.osts[numbers[0]]} is away")
            await asyncio.sleep(RETRY_S)

    async def fence(self, session: int) -> None:
        """No OST does I/O for this session any more when this returns: it has said so, or has not been heard for so
        long that by itself it does no I/O for anybody; then it learns of it when it comes back."""
        self._fenced[session] = self._clock.monotonic_s()
        peers = {ost.peer for ost in self.osts.values()}
        await asyncio.gather(*(self._fence_at(peer, session) for peer in peers))

    async def _fence_at(self, peer: Peer | None, session: int) -> None:
        """Fence a session at the OSTs of one peer, or at those that are away."""
        osts = [ost for ost in self.osts.values() if ost.peer is peer]
        if peer is not None:
            try:
                await peer.call(Fence((session,)), deadline_s=self.silence_s)
                return
            except OSError as error:
                if any(ost.peer is peer for ost in osts):
                    self._cut(peer, f"it did not fence session {session}: {error.strerror}")
        while osts := [ost for ost in osts if self._clock.monotonic_s() < ost.heard_s + self.silence_s]:
            back = {ost.peer for ost in osts if ost.peer is not None and ost.peer is not peer}
            if back:  # what they served before they learn of it, they served under what they knew before
                await asyncio.gather(*(self._fence_at(one, session) for one in back))
                osts = [ost for ost in osts if ost.peer not in back]
            else:
                await asyncio.sleep(_TRUST_POLL_S)

    def fence_ended(self, sessions: Iterable[int]) -> None:
        """Sessions that ended before this run, whose capabilities may still live."""
        now_s = self._clock.monotonic_s()
        self._fenced.update((session, now_s) for session in sessions)

    def fenced(self, capability_s: float) -> tuple[int, ...]:
        """The sessions that OSTs must refuse. Those that ended longer ago than a capability lives have none any
        more."""
        before = self._clock.monotonic_s() - capability_s
        self._fenced = {session: since for session, since in self._fenced.items() if since >= before}
        return tuple(sorted(self._fenced))


def _record(number: int, address: str, target: TargetInfo) -> OstRecord:
    return OstRecord(number, target.uuid, address, target.total_bytes, target.free_bytes, target.objects)


def _together(stats: Sequence[ObjectStat]) -> tuple[int, int, int]:
    """Size, allocated bytes and mtime of a file without mirrors, of all its objects."""
    size = max((stat.size for stat in stats), default=0)
    return size, sum(stat.allocated_bytes for stat in stats), max((stat.mtime_ns for stat in stats), default=0)


def objects_by_ost(files: Iterable[tuple[int, Layout]]) -> dict[int, tuple[ObjectId, ...]]:
    """The objects of some files, by the OST that has them."""
    found: dict[int, list[ObjectId]] = {}
    for fid, layout in files:
        for object_number, ost in enumerate(layout.osts):
            found.setdefault(ost, []).append(ObjectId(ost, fid, object_number))
    return {ost: tuple(objects) for ost, objects in found.items()}
