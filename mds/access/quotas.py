"""Requests about quotas and projects: limits, what is used, whose a tree is, and counting it all again."""

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from nacrefs.common.rpc import Call, Handler
from nacrefs.common.wire import (
    LISTING_MAX,
    CheckQuota,
    GetQuota,
    ListQuotas,
    ProjectInfo,
    QuotaDrift,
    QuotaDrifts,
    QuotaInfo,
    Quotas,
    Request,
    SetProject,
    SetQuota,
    Statfs,
    StatfsReply,
)
from nacrefs.mds.access.accounts import Account
from nacrefs.mds.check import usage_drifts
from nacrefs.mds.namespace.quotas import check_id, set_quota
from nacrefs.mds.once import Keep
from nacrefs.mds.snapshot import read_all
from nacrefs.mds.transactions.step import Step

if TYPE_CHECKING:
    from nacrefs.mds.service import Mds

QUOTA_REQUESTS: Final[tuple[type[Request[Any]], ...]] = (SetQuota, GetQuota, ListQuotas, SetProject, CheckQuota, Statfs)
AT_A_TIME: Final = 200
"""Inodes that are given a project in one transaction."""


class QuotaDesk:
    """Answers for one MDS."""

    def __init__(self, mds: "Mds") -> None:
        self._mds = mds
        self._mending = asyncio.Lock()
        """Held from a count until what it has found is mended: two counts find the same difference."""

    def handlers(self) -> Mapping[type[Request[Any]], Handler]:
        """The table of `QUOTA_REQUESTS`."""
        return {
            SetQuota: self._mds.once.handler(self._set),
            GetQuota: self._get,
            ListQuotas: self._list,
            SetProject: self._mds.once.handler(self._project),
            CheckQuota: self._mds.once.handler(self._check),
            Statfs: self._statfs,
        }

    async def _set(self, request: SetQuota, keep: Keep) -> QuotaInfo:
        def put(step: Step) -> QuotaInfo:
            info = set_quota(request, step)
            keep(step, info)
            return info

        info: QuotaInfo = await self._mds.journal.submit_own(put)
        self._mds.mdt.accounts.version += 1
        return info

    def _get(self, request: GetQuota, call: Call) -> QuotaInfo:
        check_id(request.id)
        return self._mds.mdt.accounts.info((int(request.kind), request.id))

    def _list(self, request: ListQuotas, call: Call) -> Quotas:
        accounts = self._mds.mdt.accounts
        wanted: set[Account] = {account for account, used in accounts.used.items() if used[0] or used[1]}
        wanted.update(accounts.quotas)
        ids = sorted(number for kind, number in wanted if kind == request.kind and number > request.after)
        most = max(1, min(request.limit, LISTING_MAX))
        return Quotas(tuple(accounts.info((int(request.kind), one)) for one in ids[:most]), len(ids) <= most)

    def _statfs(self, request: Statfs, call: Call) -> StatfsReply:
        """Room; in a project's directory, its quota's."""
        mds = self._mds
        space = mds.targets.space(mds.mdt.files)
        if not request.fid or not mds.mdt.accounts.quotas:
            return space
        inode = mds.journal.reading.inode(request.fid)
        room = None if inode is None else mds.mdt.accounts.room(inode.project, mds.clock.now_ns())
        if room is None:
            return space
        quota, used = room
        total, free, files, files_free = space.total_bytes, space.free_bytes, space.files, space.files_free
        if limit := quota.soft_bytes or quota.hard_bytes:
            total = min(total, limit)
            free = max(0, min(free, limit - used.bytes))
        if limit := quota.soft_inodes or quota.hard_inodes:
            files, files_free = used.inodes, max(0, limit - used.inodes)
        return StatfsReply(total, free, files, files_free)

    # -------------------------------------------------------------------------------------------------------- projects

    async def _project(self, request: SetProject, keep: Keep) -> ProjectInfo:
        """After a kill in the middle of a large tree the answer counts what was left of it."""
        if request.project < 0:
            return ProjectInfo(self._mds.journal.reading.need(request.fid).project)
        check_id(request.project)
        if not request.recursive:
            return ProjectInfo(request.project, await self._give(request.project, [request.fid], keep))
        info = ProjectInfo(request.project, await self._give_tree(request))
        await self._mds.journal.submit_own(lambda step: keep(step, info))
        return info

    async def _give_tree(self, request: SetProject) -> int:
        changed = await self._give(request.project, [request.fid])
        # A directory gets its project before it is read: what is made in it from then on has it from the start, and
        # nothing of another project can be moved there.
        directories = [request.fid]
        while directories:
            fid = directories.pop()
            after = b""
            while True:
                rows = self._mds.mdt.store.fetchall(self._mds.mdt.store.statements.listing, (fid, after, AT_A_TIME))
                if not rows:
                    break
                after = rows[-1][0]
                changed += await self._give(request.project, [row[1] for row in rows])
                directories.extend(row[1] for row in rows if row[2] & 0o170000 == 0o040000)
        return changed

    async def _give(self, project: int, fids: list[int], keep: Keep | None = None) -> int:
        """Give inodes a project, and `keep` that as the answer; how many of them had another."""

        def give(step: Step) -> int:
            changed = 0
            for fid in fids:
                inode = step.tx.inode(fid)
                if inode is not None and inode.project != project:
                    step.tx.set_project(fid, project)
                    changed += 1
            if keep is not None:
                keep(step, ProjectInfo(project, changed))
            return changed

        done: int = await self._mds.journal.submit_own(give)
        return done

    # -------------------------------------------------------------------------------------------------------- counting

    async def _check(self, request: CheckQuota, keep: Keep) -> QuotaDrifts:
        if not request.repair:
            return QuotaDrifts(tuple((await read_all(self._mds.mdt.store, usage_drifts))[:LISTING_MAX]), False)

        def also(step: Step, drifts: list[QuotaDrift]) -> None:
            keep(step, QuotaDrifts(tuple(drifts[:LISTING_MAX]), True))

        return QuotaDrifts(tuple((await self.repair(also))[:LISTING_MAX]), True)

    async def repair(
        self, also: Callable[[Step, list[QuotaDrift]], None] = lambda step, drifts: None
    ) -> list[QuotaDrift]:
        """Where what was recorded as used was not what inodes use: the records are right now. `also` is part of the
        step that mends them."""
        async with self._mending:
            drifts = await read_all(self._mds.mdt.store, usage_drifts)
            if drifts:
                await self._mend(drifts, also)
            return drifts

    async def _mend(self, drifts: list[QuotaDrift], also: Callable[[Step, list[QuotaDrift]], None]) -> None:
        """What changes since the count is added to the records too, so the differences stay what they are."""

        def mend(step: Step) -> None:
            for drift in drifts:
                triple = (drift.uid, drift.gid, drift.project)
                step.tx.mend_usage(triple, drift.bytes - drift.recorded_bytes, drift.inodes - drift.recorded_inodes)
            also(step, drifts)

        await self._mds.journal.submit_own(mend)
        mdt = self._mds.mdt
        # When a step begins nothing is in flight: what SQL says is what memory should say.
        await self._mds.journal.submit_own(lambda step: mdt.accounts.load(mdt.store))
