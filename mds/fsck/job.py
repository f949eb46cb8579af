"""One check of a filesystem, from the first question to the last repair."""

import asyncio
import errno
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from nacrefs.common.wire import Fsck, FsckReport, Problem, QuotaDrift, Repair
from nacrefs.mds.check import STAGES, tree_findings, usage_drifts, words_of_drift
from nacrefs.mds.findings import Finding
from nacrefs.mds.fsck.asking import Osts
from nacrefs.mds.fsck.mending import MENDS as OBJECT_MENDS
from nacrefs.mds.fsck.mending import ObjectMender
from nacrefs.mds.fsck.objects import ObjectCheck
from nacrefs.mds.fsck.paths import path_if_any
from nacrefs.mds.fsck.tables import LEFT, TableMender
from nacrefs.mds.fsck.tables import MENDS as TABLE_MENDS
from nacrefs.mds.fsck.tree import MENDS as TREE_MENDS
from nacrefs.mds.fsck.tree import TreeMender
from nacrefs.mds.snapshot import Snapshot, read_all

if TYPE_CHECKING:
    from nacrefs.mds.service import Mds

log = logging.getLogger("nacre.mds")

PASSES_MAX: Final = 8
"""A tree is mended, and looked at again, so often at most."""
PROBLEMS_MAX: Final = 100_000
PAGE: Final = 200
_ORPHAN_S: Final = 2.0
_TREE_MENDS: Final = {**TREE_MENDS, **TABLE_MENDS}


class FsckJob:
    """A check under way, or ended. `run` it once; `report` tells how far it is."""

    def __init__(self, mds: "Mds", request: Fsck) -> None:
        self._mds = mds
        self._request = request
        self._osts = Osts(mds.targets)
        self._tables = TableMender(mds)
        self._tree = TreeMender(mds.mdt, mds.journal, mds.recalls, self._osts, self._tables.ways)
        self._objects = ObjectMender(mds.journal, mds.mirrors, self._tree, request.destroy_orphans)
        self._scope: set[int] | None = None
        self._problems: dict[tuple[str, int, str], Problem] = {}
        self._progress = FsckReport(False, "waiting", 0, 0, 0)

    @property
    def problems(self) -> list[Problem]:
        """What has been found so far."""
        return list(self._problems.values())

    def report(self, after: int = 0) -> FsckReport:
        """How far it has come, with a page of the problems behind `after`."""
        problems = list(self._problems.values())
        return replace(
            self._progress,
            count=len(problems),
            problems=tuple(problems[after : after + PAGE]),
            unchecked=tuple(why for _, why in sorted(self._osts.unasked.items())),
        )

    async def run(self) -> None:
        """Check, and mend if asked; never raises but when cancelled."""
        try:
            await self._mds.grace.ended()
            if self._request.fid:
                self._scope = await read_all(self._mds.mdt.store, lambda snap: _below(snap, self._request.fid))
            await self._check_tree()
            await self._check_objects()
            if self._scope is None:
                await self._check_usage()
            self._progress = replace(self._progress, ended=True, phase="done")
        except OSError as error:
            self._progress = replace(self._progress, ended=True, error=error.strerror or str(error))
        except asyncio.CancelledError:
            self._progress = replace(self._progress, ended=True, error="stopped")
            raise
        except Exception as error:
            log.exception("fsck failed")
            self._progress = replace(self._progress, ended=True, error=f"{type(error).__name__}: {error}")

    def _phase(self, phase: str, done: int, total: int) -> None:
        self._progress = replace(self._progress, phase=phase, done=done, total=total)

    # ------------------------------------------------------------------------------------------------------------- tree

    async def _check_tree(self) -> None:
        before: list[Finding] = []
        findings: list[Finding] = []
        whys: dict[tuple[str, int, str], str] = {}
        for _ in range(PASSES_MAX):
            findings = await self._tree_findings()
            for finding in findings:
                self._found(finding, _TREE_MENDS.get(finding.kind, ""), LEFT.get(finding.kind, ""))
            if not self._request.repair or not findings or findings == before:
                break
            before = findings
            answers = await self._tree.mend(findings)
            whys = {_key(finding): why for finding, why in zip(findings, answers, strict=True)}
        if not self._request.repair:
            return
        left = {_key(finding) for finding in findings}
        for key, problem in self._problems.items():
            why = (whys.get(key) or "it comes again") if key in left else ""
            self._problems[key] = _settled(problem, why)

    async def _tree_findings(self) -> list[Finding]:
        """What is wrong with the tree now, without what is about to go away by itself."""
        store = self._mds.mdt.store
        loop = asyncio.get_running_loop()

        def asked(count: int) -> None:
            loop.call_soon_threadsafe(self._phase, "tree", count, STAGES)

        found = await read_all(store, lambda snapshot: list(tree_findings(snapshot, asked)))
        orphans = [finding for finding in found if finding.kind == "orphan-inode"]
        if orphans:
            if any(self._is_ending(finding.fid) for finding in orphans):
                await asyncio.sleep(min(self._request.grace_s, _ORPHAN_S))
            found = [finding for finding in found if finding not in orphans or not self._is_ending(finding.fid)]
        if lost := self._tables.lost_actions():
            await asyncio.sleep(min(self._request.grace_s, _ORPHAN_S))
            still = self._tables.lost_actions()
            found += [finding for finding in lost if finding in still]
        return [finding for finding in found if self._in_scope(finding)]

    def _is_ending(self, fid: int) -> bool:
        """Whether a file without a name is in use, or gone already."""
        inode = self._mds.journal.reading.inode(fid)
        if inode is None or inode.attr.nlink:
            return True
        return bool(self._mds.mdt.opens.get(fid)) or bool(self._mds.leases.holders(fid))

    def _in_scope(self, finding: Finding) -> bool:
        scope = self._scope
        if scope is None or finding.fid in scope:
            return True
        return finding.kind == "dangling-name" and finding.values[0] in scope

    # ---------------------------------------------------------------------------------------------------------- objects

    async def _check_objects(self) -> None:
        mds = self._mds
        check = ObjectCheck(mds.mdt, mds.leases, self._osts, mds.clock.now_ns, self._request.grace_s, self._scope)
        total = mds.mdt.files if self._scope is None else len(self._scope)
        self._phase("objects", 0, total)

        def tick(inodes: int, objects: int) -> None:
            progress = self._progress
            self._progress = replace(
                progress,
                done=progress.done + inodes,
                inodes=progress.inodes + inodes,
                objects=progress.objects + objects,
            )

        damaged = {problem.fid for problem in self._problems.values() if problem.repair is not Repair.MENDED}
        for finding in await check.run(tick):
            if finding.fid in damaged:
                continue  # what its objects should be is not certain before that is mended
            self._found(finding, OBJECT_MENDS[finding.kind], self._objects.can(finding))
            if self._request.repair:
                why = await self._objects.mend(finding)
                self._problems[_key(finding)] = _settled(self._problems[_key(finding)], why)

    # ------------------------------------------------------------------------------------------------------------ usage

    async def _check_usage(self) -> None:
        self._phase("usage", 0, 1)
        drifts: list[QuotaDrift]
        if self._request.repair:
            drifts = await self._mds.quotas.repair()
        else:
            drifts = await read_all(self._mds.mdt.store, usage_drifts)
        for drift in drifts:
            finding = Finding("usage-wrong", 0, words_of_drift(drift))
            self._found(finding, "it is counted again")
            if self._request.repair and _key(finding) in self._problems:
                self._problems[_key(finding)] = _settled(self._problems[_key(finding)], "")
        self._phase("usage", 1, 1)

    # --------------------------------------------------------------------------------------------------------- findings

    def _found(self, finding: Finding, mend: str, why: str = "") -> None:
        key = _key(finding)
        if key in self._problems or len(self._problems) >= PROBLEMS_MAX:
            return
        repair = Repair.POSSIBLE if mend and not why else Repair.LEFT
        path = path_if_any(self._mds.mdt.store, finding.fid) if finding.fid else b""
        self._problems[key] = Problem(finding.kind, finding.fid, path, finding.text, repair, why or mend)


def _key(finding: Finding) -> tuple[str, int, str]:
    return finding.kind, finding.fid, finding.text


def _settled(problem: Problem, why: str) -> Problem:
    """The problem after a repair that has failed for this reason, or (nothing) has succeeded."""
    if why:
        return replace(problem, repair=Repair.LEFT, mend=why)
    return replace(problem, repair=Repair.MENDED)


def _below(snapshot: Snapshot, fid: int) -> set[int]:
    """A fid and all below it."""
    sql = (
        f"WITH RECURSIVE tree(fid) AS (SELECT CAST({fid:d} AS BIGINT) UNION"
        " SELECT d.fid FROM dentry d JOIN tree ON d.parent = tree.fid) SELECT fid FROM tree"
    )
    return {row[0] for row in snapshot.rows(sql)}


async def fsck(mds: "Mds", request: Fsck | None = None) -> Sequence[Problem]:
    """Check the MDT and the OSTs of a running MDS, in its event loop: what is wrong, or was and has been mended.
    OSError if it could not be done, or not everything could be looked at."""
    job = FsckJob(mds, request or Fsck("here", grace_s=0.0))
    await job.run()
    report = job.report()
    if report.error or report.unchecked:
        raise OSError(errno.EIO, "; ".join((report.error, *report.unchecked)).strip("; "))
    return job.problems
