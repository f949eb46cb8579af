"""Room on OSTs: when one, or a pool, is fuller than its high mark, the copied files that were not used for longest are
released until it is at its low mark. When an OST is about to be full that happens at once."""

import asyncio
import logging
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from nacrefs.common.wire import HsmAction, HsmFlag, OstInfo
from nacrefs.mds.hsm.queue import Wanted
from nacrefs.mds.hsm.rows import FAILED, SUCCEED, ActionRow
from nacrefs.mds.hsm.steps import NotDue
from nacrefs.mds.inode import Inode
from nacrefs.mds.lifecycle.candidates import Candidate, on_osts
from nacrefs.mds.lifecycle.indexes import OSTS_BY_USE, RuleIndexes
from nacrefs.mds.lifecycle.pace import give_turn
from nacrefs.mds.lifecycle.queries import queries_of
from nacrefs.mds.lifecycle.rules import NS, Watermarks
from nacrefs.mds.transactions.step import Step

if TYPE_CHECKING:
    from nacrefs.mds.service import Mds

log = logging.getLogger("nacre.mds")

CAUSE: Final = "watermark"
WINDOW: Final = 256
TOGETHER: Final = 10
_HINDRANCES: Final = int(HsmFlag.NORELEASE | HsmFlag.LOST)


class Group(msgspec.Struct):
    """OSTs whose room is looked at together, how full they are, and how many bytes must go (at most 0: none)."""

    name: str
    osts: frozenset[int]
    percent: float
    high: float
    excess_bytes: float

    @property
    def over(self) -> bool:
        """Whether it is fuller than it may be."""
        return self.percent >= self.high


def groups(table: Iterable[OstInfo], marks: Watermarks) -> list[Group]:
    """The OSTs as the marks see them: pools with marks of their own, then all other OSTs one by one."""
    up = [ost for ost in table if ost.up and ost.total_bytes > 0]
    found: list[Group] = []
    pooled: set[int] = set()
    for pool, high, low in marks.pools:
        members = [ost for ost in up if pool in ost.pools]
        if members:
            found.append(_group(f"pool {pool}", members, high, low))
            pooled.update(ost.index for ost in members)
    found += [_group(f"OST {ost.index}", [ost], marks.high, marks.low) for ost in up if ost.index not in pooled]
    return found


def _group(name: str, members: Sequence[OstInfo], high: float, low: float) -> Group:
    total = sum(ost.total_bytes for ost in members)
    used = total - sum(ost.free_bytes for ost in members)
    return Group(name, frozenset(ost.index for ost in members), 100 * used / total, high, used - total * low / 100)


def freed_bytes(inode: Inode, osts: frozenset[int]) -> float:
    """About how many bytes a file has on some OSTs."""
    layout = inode.layout
    if layout is None or inode.is_inline:
        return 0.0
    return (inode.attr.blocks << 9) * sum(ost in osts for ost in layout.osts) / len(layout.osts)


class Keeper:
    """Keeps OSTs below their marks."""

    def __init__(self, mds: "Mds", indexes: RuleIndexes) -> None:
        self._mds = mds
        self._indexes = indexes
        self.marks: Watermarks | None = None
        self.running = False
        self.released = 0
        self.released_bytes = 0
        self.failed = 0
        self.looked_at = 0
        """Names of files that came into question, ever."""
        self.problem = ""
        """Why not enough could be released last time."""
        self.last_ns = 0
        self._pending: dict[int, int] = {}
        self._moved = asyncio.Event()

    def table(self) -> tuple[OstInfo, ...]:
        """The OSTs as they reported themselves."""
        return self._mds.targets.table()

    def due(self, now_ns: int) -> bool:
        """Whether it is time to release files."""
        marks, targets, settings = self.marks, self._mds.targets, self._mds.settings
        if marks is None or self.running:
            return False
        wait_s = 2 * settings.heartbeat_s  # what was released is not in the OSTs' reports before
        if not targets.tight:
            wait_s = max(wait_s, marks.every_s)
        if now_ns - self.last_ns < wait_s * NS:
            return False
        return targets.tight or any(group.over for group in groups(targets.table(), marks))

    async def keep(self) -> None:
        """Release files until every OST is at its low mark, or nothing more can be."""
        marks = self.marks
        if marks is None or self.running:
            return
        self.running = True
        try:
            await self._keep(marks)
        finally:
            self.running = False
            self.last_ns = self._mds.clock.now_ns()

    async def _keep(self, marks: Watermarks) -> None:
        table = self._mds.targets.table()
        tight = self._mds.targets.tight_osts()
        wanting = [group for group in groups(table, marks) if group.over or group.osts & tight]
        wanting = [group for group in wanting if group.excess_bytes > 0]
        if not wanting:
            return
        log.info("%s: releasing files", ", ".join(f"{one.name} is {one.percent:.1f}% full" for one in wanting))
        await self._indexes.have({OSTS_BY_USE})
        for group in wanting:
            await self._relieve(group, wanting)
        while self._pending:
            await self._wait()
        short = [group.name for group in wanting if group.excess_bytes > 0]
        self.problem = f"{', '.join(short)}: no more files could be released: archive more" if short else ""
        if short:
            log.warning("%s", self.problem)

    async def _relieve(self, group: Group, wanting: Sequence[Group]) -> None:
        """Have files released that have bytes on a group's OSTs, until enough is under way."""
        store, reading = self._mds.mdt.store, self._mds.journal.reading
        source = on_osts(store, queries_of(store.backend), group.osts, self._mds.clock.now_ns())
        while group.excess_bytes > 0:
            begun_s = time.perf_counter()
            page = next(source, None)
            if page is None:
                return
            await give_turn(begun_s)
            begun_s = time.perf_counter()
            chosen: list[tuple[Candidate, int]] = []
            for one in page:
                self.looked_at += 1
                inode = reading.inode(one.fid)
                if inode is None or (one.copy_flags or 0) & _HINDRANCES or one.fid in self._pending:
                    continue
                if chosen and chosen[-1][0].fid == one.fid:  # another name of it
                    continue
                if group.excess_bytes > 0 and freed_bytes(inode, group.osts):
                    chosen.append((one, inode.attr.blocks << 9))
                    for other in wanting:
                        other.excess_bytes -= freed_bytes(inode, other.osts)
            await self._release(chosen)
            await give_turn(begun_s)

    async def _release(self, chosen: Sequence[tuple[Candidate, int]]) -> None:
        for at in range(0, len(chosen), TOGETHER):
            some = chosen[at : at + TOGETHER]
            while len(self._pending) > WINDOW:
                await self._wait()
            for one, size in some:
                self._pending[one.fid] = size
            answers = await self._mds.hsm.request_many(
                [Wanted(HsmAction.RELEASE, one.fid, 0, CAUSE) for one, _ in some]
            )
            for (one, _), answer in zip(some, answers, strict=True):
                if answer != "":
                    self._pending.pop(one.fid, None)

    async def _wait(self) -> None:
        self._moved.clear()
        await self._moved.wait()

    def guard(self, step: Step, row: ActionRow) -> None:
        """Raise NotDue if the file was used since it was chosen."""
        attr = step.tx.need(row.fid).attr
        if max(attr.atime_ns, attr.mtime_ns) > row.created_ns:
            raise NotDue("it was used meanwhile")

    def ended(self, row: ActionRow) -> None:
        """A release is over."""
        size = self._pending.pop(row.fid, 0)
        if row.state == SUCCEED:
            self.released += 1
            self.released_bytes += size
        elif row.state == FAILED:
            self.failed += 1
        self._moved.set()
