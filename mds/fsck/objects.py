"""Files and objects: the merge of what the MDT and what the OSTs have, in fid order, a page at a time.

A page is this: the fids of some files; what every OST has between the first and the last of them; then those files, as
they are committed by now. So an object is seen before the inode that it belongs to, which was there before the object
was: what has none then never had one, or has lost it. What looks wrong is looked at again (`confirmed`) when all pages
are done, from a newer state; what has changed meanwhile is in use, and right.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from functools import partial
from typing import Final

import msgspec

from nacrefs.common.wire import AttrFlag, Mode, ObjectId
from nacrefs.mds.clients.leases import LeaseTable
from nacrefs.mds.engine import Row
from nacrefs.mds.findings import Finding
from nacrefs.mds.fsck.asking import Osts, Seen
from nacrefs.mds.fsck.judging import judge
from nacrefs.mds.hsm.rows import PARTLY, hsm_of
from nacrefs.mds.inode import Inode, inode_of
from nacrefs.mds.mdt import Mdt
from nacrefs.mds.records import DISCARDED
from nacrefs.mds.snapshot import Snapshot, read_all
from nacrefs.mds.statements import INODE_COLUMNS
from nacrefs.mds.transactions.tx import Tx

PAGE: Final = 1000
CONFIRM_S: Final = 2.0
_FID_END: Final = (1 << 63) - 1
_RELEASED: Final = int(AttrFlag.RELEASED)

Tick = Callable[[int, int], None]
"""Told of some more files and objects that have been looked at."""


class ObjectCheck:
    """One check of files and objects. `scope`: of these fids only; None: of all, and of objects that have none."""

    def __init__(
        self,
        mdt: Mdt,
        leases: LeaseTable,
        osts: Osts,
        now_ns: Callable[[], int],
        grace_s: float,
        scope: set[int] | None,
    ) -> None:
        self._mdt = mdt
        self._leases = leases
        self._osts = osts
        self._now_ns = now_ns
        self._grace_ns = int(grace_s * 1e9)
        self._confirm_s = min(grace_s, CONFIRM_S)
        self._scope = scope
        self._reading = Tx(mdt, writable=False)

    async def run(self, tick: Tick) -> list[Finding]:
        """Everything that is wrong."""
        suspects: dict[int, Inode | None] = {}
        extra: dict[int, list[ObjectId]] = {}
        async for files, objects in self._pages():
            by_fid: dict[int, list[Seen]] = {fid: [] for fid in files}
            for seen in objects:
                by_fid.setdefault(seen.fact.fid, []).append(seen)
            for fid, seen_objects in by_fid.items():
                inode = files.get(fid)
                if self._suspicious(fid, inode, seen_objects):
                    suspects[fid] = inode
            tick(len(files), len(objects))
        for seen in [] if self._scope is not None else await self._unknown():
            fid = seen.fact.fid
            with contextlib.suppress(msgspec.MsgspecError):
                inode = self._inode(fid)
                if inode is None or not _is_own(inode, seen):
                    suspects.setdefault(fid, inode)
                    extra.setdefault(fid, []).append(ObjectId(seen.ost, fid, seen.fact.number))
        if not suspects:
            return []
        await asyncio.sleep(self._confirm_s)
        found: list[Finding] = []
        for fid, inode in suspects.items():
            with contextlib.suppress(msgspec.MsgspecError):  # what cannot be read is the tree's affair
                found += await self._confirmed(fid, inode, extra.get(fid, ()))
        return found

    def _suspicious(self, fid: int, inode: Inode | None, objects: Sequence[Seen]) -> bool:
        """Whether something seems to be wrong with a fid that is not in use."""
        if self._is_young(objects) or self._is_used(fid):
            return False
        if inode is None:
            return bool(objects)
        return bool(judge(inode, objects, self._complete(inode)))

    def _complete(self, inode: Inode) -> bool:
        """Whether all OSTs of a file have been asked."""
        return inode.layout is None or not self._osts.unasked.keys() & set(inode.layout.osts)

    async def _confirmed(self, fid: int, before: Inode | None, extra: Sequence[ObjectId]) -> list[Finding]:
        """What is wrong with a fid, from a second look; nothing if it is in use. `extra`: objects that no index
        knows."""
        objects = await self._objects(fid, before, extra)
        inode = self._inode(fid)
        if self._is_young(objects) or self._is_used(fid):
            return []
        if inode is None:
            return [] if before is not None else await self._orphans(fid, objects)
        if before is not None and inode.attr.change != before.attr.change:
            return []
        if inode.attr.flags & _RELEASED and hsm_of(self._reading, inode).restored_ns == PARTLY:
            return []  # it was being brought back, and will be
        discarded = self._discarded(fid)
        return [
            finding
            for finding in judge(inode, objects, self._complete(inode))
            if finding.kind != "misplaced-object" or (finding.values[0], finding.values[1]) not in discarded
        ]

    async def _orphans(self, fid: int, objects: Sequence[Seen]) -> list[Finding]:
        """Objects without an inode; those that are about to be destroyed are none."""
        if any(doomed.fid == fid for doomed in self._mdt.destructions(1, fid - 1)):
            return []
        discarded = self._discarded(fid)
        objects = [seen for seen in objects if (seen.fact.number, seen.ost) not in discarded]
        # The row that said so may have gone just now, after the objects.
        objects = await self._osts.probed(ObjectId(seen.ost, fid, seen.fact.number) for seen in objects)
        if not objects:
            return []
        size = max(seen.fact.size for seen in objects)
        places = ", ".join(f"{seen.fact.number} on OST {seen.ost}" for seen in objects)
        text = f"has objects but no inode: {places}, {size} bytes long"
        return [Finding("orphan-objects", fid, text, tuple(objects))]

    async def _objects(self, fid: int, inode: Inode | None, extra: Sequence[ObjectId]) -> list[Seen]:
        """All objects of a fid as they are now."""
        found: dict[tuple[int, int], Seen] = {}
        if self._scope is None or inode is None:
            for ost in self._osts.all:
                found.update(((ost, seen.fact.number), seen) for seen in await self._osts.listed(ost, fid, fid))
        own = [] if inode is None else _objects_of([inode], all_files=True)
        for seen in await self._osts.probed([*own, *extra]):  # new ones are not listed
            found[seen.ost, seen.fact.number] = seen
        return list(found.values())

    async def _unknown(self) -> list[Seen]:
        """Objects of which the indexes know nothing, but for young ones."""
        found: list[Seen] = []
        for ost in self._osts.all:
            cursor: tuple[int, ...] = (0,)
            while cursor:
                seen, cursor = await self._osts.unknown(ost, cursor)
                found.extend(one for one in seen if not self._is_young([one]))
        return found

    # ----------------------------------------------------------------------------------------------------------- in use

    def _is_young(self, objects: Iterable[Seen]) -> bool:
        now_ns = self._now_ns()
        return any(abs(now_ns - seen.fact.mtime_ns) < self._grace_ns for seen in objects)

    def _is_used(self, fid: int) -> bool:
        """Whether somebody may be changing the file right now."""
        leases, mdt = self._leases, self._mdt
        return bool(
            leases.writer(fid)
            or fid in leases.unreported
            or fid in leases.busy
            or fid in leases.truncating
            or fid in mdt.intents
            or fid in mdt.restoring
            or any(mode & Mode.WRITE for mode in mdt.opens.get(fid, {}).values())
        )

    def _discarded(self, fid: int) -> set[tuple[int, int]]:
        """(number, ost) of copies that are about to be destroyed."""
        rows = self._mdt.mirrors((fid, -1, -1), 1000)
        return {(row.number, row.ost) for row in rows if row.fid == fid and row.state == DISCARDED}

    # ------------------------------------------------------------------------------------------------------------ pages

    async def _pages(self) -> AsyncGenerator[tuple[dict[int, Inode], list[Seen]]]:
        if self._scope is not None:
            fids = sorted(self._scope)
            for at in range(0, len(fids), PAGE):
                page = fids[at : at + PAGE]
                before = await read_all(self._mdt.store, partial(_by_fid, fids=page))
                seen = await self._osts.probed(_objects_of(before.values(), all_files=True))
                yield await read_all(self._mdt.store, partial(_by_fid, fids=page)), seen
            return
        after = 0
        while after < _FID_END:
            first = after
            fids = await read_all(self._mdt.store, partial(_fids, after=first))
            last = fids[-1] if len(fids) == PAGE else _FID_END
            objects: list[Seen] = []
            for ost in self._osts.all:
                objects += await self._osts.listed(ost, first + 1, last)
            files = await read_all(self._mdt.store, partial(_between, after=first, last=last))
            objects += await self._unlisted(files, objects)
            yield files, objects
            after = last

    async def _unlisted(self, files: dict[int, Inode], objects: Sequence[Seen]) -> list[Seen]:
        """Objects that files have but that no index knows yet."""
        listed = {(seen.ost, seen.fact.fid, seen.fact.number) for seen in objects}
        wanted = [item for item in _objects_of(files.values()) if (item.ost, item.fid, item.number) not in listed]
        return await self._osts.probed(wanted)

    def _inode(self, fid: int) -> Inode | None:
        """The committed inode, past the cache."""
        row = self._mdt.store.fetchone(self._mdt.store.statements.inode, (fid,))
        return None if row is None else inode_of(row)


def _is_own(inode: Inode, seen: Seen) -> bool:
    """Whether an object is where its file has one."""
    layout, number = inode.layout, seen.fact.number
    if layout is None or inode.is_inline or inode.attr.flags & _RELEASED:
        return False
    return layout.lies_on(number, seen.ost)


def _objects_of(files: Iterable[Inode], all_files: bool = False) -> list[ObjectId]:
    """The objects that files may have by their layouts; also of those that have none by what they say."""
    return [
        ObjectId(ost, inode.attr.fid, number)
        for inode in files
        if inode.layout is not None and (all_files or not (inode.is_inline or inode.attr.flags & _RELEASED))
        for number, ost in enumerate(inode.layout.osts)
    ]


def _fids(snapshot: Snapshot, after: int) -> list[int]:
    return [fid for fid, _ in snapshot.fetchall(snapshot.statements.layouts, (after, PAGE))]


def _between(snapshot: Snapshot, after: int, last: int) -> dict[int, Inode]:
    """The files with fids in `(after, last]`."""
    sql = (
        f"SELECT {', '.join(INODE_COLUMNS)} FROM inode WHERE fid > {after:d} AND fid <= {last:d} AND layout IS NOT NULL"
    )
    return _readable(snapshot.rows(sql))


def _by_fid(snapshot: Snapshot, fids: Iterable[int]) -> dict[int, Inode]:
    rows = (snapshot.fetchone(snapshot.statements.inode, (fid,)) for fid in fids)
    return _readable(row for row in rows if row is not None)


def _readable(rows: Iterable[Row]) -> dict[int, Inode]:
    found: dict[int, Inode] = {}
    for row in rows:
        with contextlib.suppress(msgspec.MsgspecError):  # the tree's check names it
            found[row[0]] = inode_of(row)
    return found
