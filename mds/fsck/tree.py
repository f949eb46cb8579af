"""Which step mends which finding of the tree (`mds/check.py`)."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import msgspec

from nacrefs.common.layout import Layout
from nacrefs.common.wire import AttrFlag
from nacrefs.mds.clients.recalls import Recalls
from nacrefs.mds.findings import Finding
from nacrefs.mds.fsck import inodes, names
from nacrefs.mds.fsck.asking import Osts, Seen, durably
from nacrefs.mds.fsck.steps import lost_found
from nacrefs.mds.inode import Inode, decode_layout
from nacrefs.mds.mdt import Mdt
from nacrefs.mds.transactions.journal import Journal
from nacrefs.mds.transactions.step import DEFAULT_SPEC, Step

LOST: Final = "it gets a name in /lost+found"
COUNTED: Final = "it is counted again"
FLAGS: Final = "the flags are set right"
ROWS: Final = "the record is removed"
MENDS: Final = {
    "dangling-name": "the name is removed",
    "name-in-no-directory": "what has these names gets others in /lost+found",
    "link-count": "it is counted again; without a name it gets one in /lost+found",
    "directory-links": COUNTED,
    "entry-count": COUNTED,
    "lost-directory": "its parent is set right; without a name it gets one in /lost+found",
    "directory-names": "it keeps the name in its parent",
    "self-parent": "its parent is set right; without a name it gets one in /lost+found",
    "parent-of-file": "the parent is forgotten",
    "unreachable": LOST,
    "orphan-inode": "it is removed",
    "inline-flags": "contents that nothing shows are removed; a file without objects gets them",
    "inline-without-inode": "they become a file in /lost+found",
    "inline-size": "the size is set right",
    "target-missing": "it is removed",
    "inline-not-file": FLAGS,
    "layout-presence": "a file gets a layout by its objects",
    "layout-unreadable": "a file gets a layout by its objects",
    "layout-wrong": "a file gets a layout by its objects",
    "spec-unreadable": "the directory inherits its layout",
    "default-layout-flag": FLAGS,
    "xattr-flag": FLAGS,
    "xattrs-without-inode": ROWS,
    "open-without-session": ROWS,
    "open-without-inode": ROWS,
    "destroyed-file": "its objects are not destroyed",
    "negative-size": "the OSTs say what it is",
    "archived-flag": FLAGS,
    "released-flag": FLAGS,
    "copied-flag": FLAGS,
    "copy-place": "it is written down again",
    "hsm-without-inode": ROWS,
    "writer-without-session": ROWS,
    "copy-forgotten": "it is made equal",
    "fid-not-given": "the counter is raised",
    "session-not-given": "the counter is raised",
}
"""What mends each kind of finding; what is not here cannot be mended."""
_CORRECTED: Final = (
    "directory-links", "entry-count", "parent-of-file", "inline-size", "inline-not-file", "default-layout-flag",
    "xattr-flag", "negative-size",
)  # fmt: skip
_ROWS: Final = (
    "xattrs-without-inode", "open-without-session", "open-without-inode", "destroyed-file", "hsm-without-inode",
    "writer-without-session",
)  # fmt: skip
_SETTLE_S: Final = 5.0
_POLL_S: Final = 0.05


class TreeMender:
    """Mends findings of the tree, one after the other. A method returns why it could not, or nothing. `others` mend
    what is no business of the tree (`tables`)."""

    def __init__(
        self,
        mdt: Mdt,
        journal: Journal,
        recalls: Recalls,
        osts: Osts,
        others: Mapping[str, Callable[[Finding], Awaitable[str]]],
    ) -> None:
        self._mdt = mdt
        self._journal = journal
        self._recalls = recalls
        self._osts = osts
        self._place = 0
        self._ways: dict[str, Callable[[Finding], Awaitable[str]]] = {
            "dangling-name": self._by(names.drop_names_of),
            "name-in-no-directory": self._no_directory,
            "link-count": self._link_count,
            "lost-directory": self._directory,
            "directory-names": self._directory,
            "self-parent": self._directory,
            "orphan-inode": self._orphan,
            "inline-flags": self._inline_flags,
            "inline-without-inode": self._salvage,
            "target-missing": self._by(inodes.remove_inode),
            "layout-presence": self._layout,
            "layout-unreadable": self._layout,
            "layout-wrong": self._layout,
            "spec-unreadable": self._layout,
            "archived-flag": self._by(inodes.set_tier_flags),
            "released-flag": self._by(inodes.set_tier_flags),
            "copied-flag": self._by(inodes.set_tier_flags),
            "copy-place": self._by(inodes.set_copy_place),
            "copy-forgotten": self._copy,
            "fid-not-given": lambda finding: self._step(partial(_give_out, finding.fid, 0)),
            "session-not-given": lambda finding: self._step(partial(_give_out, 0, finding.values[0])),
            **dict.fromkeys(_CORRECTED, self._by(inodes.correct)),
            **dict.fromkeys(_ROWS, self._rows),
            **others,
        }

    async def mend(self, findings: Sequence[Finding]) -> list[str]:
        """Try to mend each; why not, or nothing, for each."""
        unreachable = {finding.fid for finding in findings if finding.kind == "unreachable"}
        answers: list[str] = []
        for finding in findings:
            way = self._ways.get(finding.kind)
            try:
                if finding.kind == "unreachable":
                    answers.append(await self._unreachable(finding, unreachable))
                elif way is None:
                    answers.append("there is no way to mend it")
                else:
                    answers.append(await way(finding))
            except OSError as error:
                answers.append(error.strerror or str(error))
            except msgspec.MsgspecError:
                answers.append("its layout cannot be read")
        return answers

    async def place(self) -> int:
        """The fid of `lost+found`."""
        if not self._place:
            self._place = await durably(self._journal, lost_found)
        return self._place

    async def _step(self, operation: Callable[[Step], Any]) -> str:
        result = await durably(self._journal, operation)
        return result if isinstance(result, str) else ""

    def _by(self, step: Callable[[Step, int], Any]) -> Callable[[Finding], Awaitable[str]]:
        return lambda finding: self._step(lambda running: step(running, finding.fid))

    async def _attach(self, fid: int) -> str:
        place = await self.place()
        return await self._step(lambda step: names.attach(step, fid, place))

    async def _no_directory(self, finding: Finding) -> str:
        place = await self.place()
        while await durably(self._journal, lambda step: names.empty_no_directory(step, finding.fid, place)):
            pass
        return ""

    async def _link_count(self, finding: Finding) -> str:
        if self._mdt.store.fetchall(self._mdt.store.statements.names, (finding.fid,)):
            return await self._step(lambda step: inodes.correct(step, finding.fid))
        return await self._attach(finding.fid)

    async def _directory(self, finding: Finding) -> str:
        if await durably(self._journal, lambda step: names.settle_directory(step, finding.fid)):
            return ""
        return await self._attach(finding.fid)

    async def _unreachable(self, finding: Finding, unreachable: set[int]) -> str:
        """Attach what has no name, and one directory of each circle; the rest hangs on these."""
        walked: set[int] = set()
        fid = finding.fid
        while fid in unreachable:
            above = [parent for parent, _ in self._mdt.store.fetchall(self._mdt.store.statements.names, (fid,))]
            if fid in walked or not above:
                if fid == finding.fid:
                    return await self._attach(fid)
                break
            walked.add(fid)
            fid = min(above)
        return ""

    async def _orphan(self, finding: Finding) -> str:
        fid = finding.fid
        inode = self._inode(fid)
        if inode is None or inode.attr.nlink:
            return ""
        if self._mdt.store.fetchall(self._mdt.store.statements.names, (fid,)):
            return await self._step(lambda step: inodes.correct(step, fid))
        self._recalls.orphan(fid)
        for _ in range(int(_SETTLE_S / _POLL_S)):
            if self._inode(fid) is None:
                return ""
            await asyncio.sleep(_POLL_S)
        return "somebody has it open"

    async def _inline_flags(self, finding: Finding) -> str:
        objects = await self._objects(finding.fid)
        if isinstance(objects, str):
            return objects
        inode = self._inode(finding.fid)
        if inode is not None and inode.is_regular and not objects:
            return await self._step(lambda step: inodes.give_inline_flag(step, finding.fid))
        return await self._step(lambda step: inodes.drop_inline(step, finding.fid))

    async def _salvage(self, finding: Finding) -> str:
        """Contents in the MDT without an inode."""
        place = await self.place()

        def salvage(step: Step) -> None:
            row = step.tx.mdt.store.fetchone(step.tx.mdt.store.statements.inline, (finding.fid,))
            if row is not None:
                inodes.restore_file(step, finding.fid, place, data=row[0])

        return await self._step(salvage)

    async def _layout(self, finding: Finding) -> str:
        """A layout by the objects that there are."""
        row = self._mdt.store.fetchone(self._mdt.store.statements.inode, (finding.fid,))
        if row is None:
            return ""
        layout = None
        if finding.kind == "spec-unreadable":
            layout = None if row[16] is None else decode_layout(row[16])
        elif not row[13] & int(AttrFlag.INLINE):
            objects = await self._objects(finding.fid)
            if isinstance(objects, str):
                return objects
            layout = layout_by_objects(objects)
            if layout is None and (objects or row[7]):
                return "how it was striped is not known any more: restore the file from a backup"
        return await self._step(lambda step: inodes.set_layouts(step, finding.fid, layout))

    async def _rows(self, finding: Finding) -> str:
        return await self._step(lambda step: inodes.drop_rows(step, finding.kind, finding.fid, finding.values))

    async def _copy(self, finding: Finding) -> str:
        number, ost = finding.values
        return await self._step(lambda step: inodes.remember_copy(step, finding.fid, number, ost))

    async def _objects(self, fid: int) -> list[Seen] | str:
        """All objects of a fid; why they are not known, if an OST cannot be asked."""
        found = await self._osts.of(fid)
        return next(iter(self._osts.unasked.values()), found)

    def _inode(self, fid: int) -> Inode | None:
        return self._journal.reading.inode(fid)


def layout_by_objects(objects: Sequence[Seen]) -> Layout | None:
    """The layout of a file of which nothing but its objects is known: None unless there is one, the first."""
    if len(objects) != 1 or objects[0].fact.number:
        return None
    ost, fact = objects[0]
    return Layout(DEFAULT_SPEC.stripe_bytes, 1, (ost,), generation=fact.generation + 1)


def _give_out(fid: int, session: int, step: Step) -> None:
    inodes.give_out(step, fid, session)
