"""What mends a file whose objects do not agree with it, and objects without a file (`objects`)."""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final

from msgspec.structs import replace

from nacrefs.common.layout import CopyState, Layout
from nacrefs.common.wire import AttrFlag, Mode, ObjectId
from nacrefs.mds.findings import Finding
from nacrefs.mds.fsck import inodes
from nacrefs.mds.fsck.asking import Seen, durably
from nacrefs.mds.fsck.tree import TreeMender, layout_by_objects
from nacrefs.mds.namespace.copies import doubt_copies
from nacrefs.mds.osts.mirrors import Mirrors
from nacrefs.mds.records import DISCARDED, MirrorRecord
from nacrefs.mds.transactions.journal import Journal
from nacrefs.mds.transactions.step import Step

SAVED: Final = "they become a file in /lost+found"
MENDS: Final = {
    "size-short": "it becomes as long as its objects are",
    "blocks-wrong": "what its objects have is recorded",
    "leftover-objects": "they are destroyed",
    "misplaced-object": "it is destroyed",
    "orphan-objects": SAVED,
    "damaged-object": "it is made equal to another copy",
    "object-missing": "",
    "copies-differ": "they are made equal",
}
"""What mends each kind of finding; nothing: it cannot be mended."""
BACKUP: Final = "there is no other copy: restore the file from a backup, or from its archive"
_RELEASED: Final = int(AttrFlag.RELEASED)


class ObjectMender:
    """Mends findings about objects. A method returns why it could not, or nothing. `destroy_orphans`: objects without a
    file are destroyed rather than saved."""

    def __init__(self, journal: Journal, mirrors: Mirrors, tree: TreeMender, destroy_orphans: bool) -> None:
        self._journal = journal
        self._mirrors = mirrors
        self._tree = tree
        self._destroy_orphans = destroy_orphans
        self._ways: dict[str, Callable[[Finding], Awaitable[str]]] = {
            "size-short": self._measure,
            "blocks-wrong": self._measure,
            "leftover-objects": self._leftover,
            "misplaced-object": self._misplaced,
            "orphan-objects": self._orphan,
            "damaged-object": self._damaged,
            "copies-differ": self._compare,
        }

    def can(self, finding: Finding) -> str:
        """Why a finding cannot be mended, or nothing."""
        if finding.kind == "orphan-objects" and not self._destroy_orphans and layout_by_objects(finding.values) is None:
            return "how the file was striped is not known: save them by hand, or let fsck destroy orphans"
        if finding.kind == "object-missing":
            return BACKUP
        if finding.kind == "damaged-object":
            layout = self._mirrors.layout(finding.fid)
            number = int(finding.values[0])
            if layout is None or not set(layout.readable(number % layout.stripe_count)) - {number}:
                return BACKUP
        return ""

    async def mend(self, finding: Finding) -> str:
        """Mend a finding; why not, or nothing."""
        if why := self.can(finding):
            return why
        try:
            return await self._ways[finding.kind](finding)
        except OSError as error:
            return error.strerror or str(error)

    async def _measure(self, finding: Finding) -> str:
        size, allocated = finding.values
        await durably(self._journal, partial(_measure, finding.fid, size, allocated))
        return ""

    async def _leftover(self, finding: Finding) -> str:
        answer: str = await durably(self._journal, partial(_drop_objects, finding.fid))
        return answer

    async def _misplaced(self, finding: Finding) -> str:
        number, ost, generation = finding.values
        answer: str = await durably(self._journal, partial(_discard, finding.fid, number, ost, generation))
        self._mirrors.changed()
        return answer

    async def _orphan(self, finding: Finding) -> str:
        objects: Sequence[Seen] = finding.values
        if self._destroy_orphans:
            answer: str = await durably(self._journal, partial(_destroy, finding.fid, objects))
            return answer
        layout = layout_by_objects(objects)
        assert layout is not None
        fact, place = objects[0].fact, await self._tree.place()
        await durably(
            self._journal,
            lambda step: inodes.restore_file(
                step, finding.fid, place, layout=layout, size=fact.size, blocks=fact.allocated_bytes >> 9
            ),
        )
        return ""

    async def _damaged(self, finding: Finding) -> str:
        number, ost = finding.values
        await self._mirrors.damaged([ObjectId(ost, finding.fid, number)])
        layout = self._mirrors.layout(finding.fid)
        return BACKUP if layout is not None and layout.state_of(number) == CopyState.GOOD else ""

    async def _compare(self, finding: Finding) -> str:
        await durably(self._journal, lambda step: doubt_copies(step, finding.fid))
        await self._mirrors.announce(finding.fid)
        return ""


def _measure(fid: int, size: int, allocated: int, step: Step) -> None:
    """A file is at least as long as its objects, and takes what they take. Nobody may be writing it."""
    step.leases.alone(fid)
    inode = step.tx.inode(fid)
    if inode is None or inode.is_inline or inode.attr.flags & _RELEASED or _is_written(step, fid):
        return
    step.leases.changed(fid)
    edited = step.tx.edit(fid)
    attr = edited.attr
    if size > attr.size:
        edited.data_version += 1
    edited.attr = replace(attr, size=max(attr.size, size), blocks=allocated >> 9, change=attr.change + 1)


def _drop_objects(fid: int, step: Step) -> str:
    """Objects of a file that has its contents elsewhere."""
    step.leases.alone(fid)
    inode = step.tx.inode(fid)
    if inode is None or inode.layout is None or not (inode.is_inline or inode.attr.flags & _RELEASED):
        return ""
    if _is_written(step, fid) or fid in step.tx.mdt.restoring:
        return "it is being written"
    step.tx.add_intent(fid, -1, inode.layout)
    return ""


def _discard(fid: int, number: int, ost: int, generation: int, step: Step) -> str:
    """An object that its file's layout does not name."""
    inode = step.tx.inode(fid)
    layout = None if inode is None else inode.layout
    if layout is not None and layout.lies_on(number, ost):
        return "the file has it now"
    step.tx.put_mirror(MirrorRecord(fid, number, ost, DISCARDED, generation))
    return ""


def _destroy(fid: int, objects: Sequence[Seen], step: Step) -> str:
    """Objects without an inode, for good."""
    if step.tx.inode(fid) is not None:
        return "there is a file now"
    osts = [objects[0].ost] * (max(seen.fact.number for seen in objects) + 1)
    for seen in objects:
        osts[seen.fact.number] = seen.ost
    step.tx.destroy_objects(fid, Layout(1 << 20, len(osts), tuple(osts)))
    return ""


def _is_written(step: Step, fid: int) -> bool:
    return any(mode & Mode.WRITE for mode in step.tx.opens(fid).values())
