"""Which step mends which finding of the tables beside the tree (`mds/checktables.py`).

A row that cannot be read, or makes no sense, is replaced by what the MDS has in force, which was read when it was
whole; what is not in force is removed.
"""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec

from nacrefs.mds.findings import Finding
from nacrefs.mds.fsck.asking import durably
from nacrefs.mds.hsm.rows import CANCELED, ActionRow, hsm_of
from nacrefs.mds.links.service import BUCKET_LOST
from nacrefs.mds.transactions.step import Step

if TYPE_CHECKING:
    from nacrefs.mds.service import Mds

IN_FORCE: Final = "what is in force is stored; what is not is removed"
MENDS: Final = {
    "link-key-without-link": "the record is removed",
    "link-log-without-link": "the record is removed",
    "link-mark-without-link": "the record is removed",
    "link-key-wrong": "the record is removed; the next refresh looks at the key",
    "link-key-missing": "the link knows it again",
    "link-without-archive": "what is in force is stored",
    "archive-unknown": "what is in force is stored",
    "link-state": "it is what is in force, or paused",
    "link-unreadable": "it is what is in force, or paused with other settings",
    "warmup-items-left": "they are removed",
    "warmup-circle": "it does not wait",
    "warmup-state": "it is what is in force, or canceled",
    "warmup-unreadable": IN_FORCE,
    "rule-state": "it is what is in force, or paused",
    "rule-unreadable": IN_FORCE,
    "action-state": "it is canceled",
    "action-lost": "it is canceled: ask again",
    "copy-to-be-deleted": "it is not deleted",
    "deletion-without-archive": "the record is removed",
}
"""What mends each kind of finding."""
LEFT: Final = {
    "link-twice": "remove one of them: `nacre link rm`",
    "copy-twice": "archive them anew, or restore them from a backup; do not remove one before",
}
"""What cannot be mended, and what to do."""
_ALL: Final = (1 << 62) - 1


class TableMender:
    """Mends them, one after the other. A method returns why it could not, or nothing."""

    def __init__(self, mds: "Mds") -> None:
        self._mds = mds
        self.ways: dict[str, Callable[[Finding], Awaitable[str]]] = {
            "link-key-without-link": self._forget_key,
            "link-key-wrong": self._forget_key,
            "link-key-missing": self._by(_remember_key),
            "link-log-without-link": self._run("trim_link_log", lambda finding: (finding.values[0], _ALL)),
            "link-mark-without-link": self._by(_forget_mark),
            "link-without-archive": self._archive,
            "archive-unknown": self._archive,
            "link-state": self._link,
            "link-unreadable": self._link,
            "warmup-items-left": self._run("delete_warmup_items", lambda finding: (finding.values[0], _ALL)),
            "warmup-circle": lambda finding: mds.warmups.settle(finding.values[0]),
            "warmup-state": lambda finding: mds.warmups.settle(finding.values[0]),
            "warmup-unreadable": lambda finding: mds.warmups.settle(finding.values[0]),
            "rule-state": lambda finding: mds.lifecycle.settle(finding.values[0]),
            "rule-unreadable": lambda finding: mds.lifecycle.settle(finding.values[0]),
            "action-state": self._by(_cancel),
            "action-lost": self._by(_cancel),
            "link-twice": self._left,
            "copy-twice": self._left,
            "copy-to-be-deleted": self._run("delete_gone", lambda finding: finding.values),
            "deletion-without-archive": self._run("delete_gone", lambda finding: finding.values),
        }

    def _by(self, step: Callable[[Finding, Step], None]) -> Callable[[Finding], Awaitable[str]]:
        async def mend(finding: Finding) -> str:
            await durably(self._mds.journal, partial(step, finding))
            return ""

        return mend

    def _run(self, statement: str, row: Callable[[Finding], tuple[Any, ...]]) -> Callable[[Finding], Awaitable[str]]:
        return self._by(lambda finding, step: step.tx.run(statement, row(finding)))

    async def _forget_key(self, finding: Finding) -> str:
        link, key = finding.values
        await durably(
            self._mds.journal, lambda step: step.tx.run("delete_link_object", (link, bytes(key), finding.fid))
        )
        return ""

    async def _link(self, finding: Finding) -> str:
        return await self._mds.links.settle(finding.values[0], finding.fid)

    async def _archive(self, finding: Finding) -> str:
        number = int(finding.values[0])
        spec = self._mds.hsm.archives.get(number)
        if spec is None:
            return BUCKET_LOST
        row = (number, spec.name, msgspec.msgpack.encode(spec), 0)
        await durably(self._mds.journal, lambda step: step.tx.run("put_archive", row))
        return ""

    @staticmethod
    async def _left(finding: Finding) -> str:
        return LEFT[finding.kind]

    def lost_actions(self) -> list[Finding]:
        """Actions that are not over, and that nobody works on. One that was asked for this very moment looks like that,
        too: look twice."""
        store, active = self._mds.mdt.store, self._mds.hsm.active
        found: list[Finding] = []
        for values in store.fetchall(store.statements.actions):
            row = ActionRow(*values)
            known = active.get(row.fid)
            if known is None or known.row.id != row.id:
                text = f"has action {row.id} in state {row.state!r}, on which nobody works"
                found.append(Finding("action-lost", row.fid, text, (row.id, row.state)))
        return found


def _remember_key(finding: Finding, step: Step) -> None:
    link, key = finding.values
    inode = step.tx.inode(finding.fid)
    if inode is not None and (row := hsm_of(step.tx, inode)).archive == link and row.key == key:
        step.tx.run("put_link_object", (link, key.encode(), finding.fid, ""))


def _forget_mark(finding: Finding, step: Step) -> None:
    step.tx.run("delete_link_dirty", (finding.fid,))
    step.tx.unmarked.add(finding.fid)


def _cancel(finding: Finding, step: Step) -> None:
    number, state = finding.values
    store = step.tx.mdt.store
    values = store.fetchone(f"SELECT * FROM hsm_action WHERE id = {number:d}")
    if values is not None and (row := ActionRow(*values)).state == state:
        ended = row._replace(state=CANCELED, reason="canceled by fsck", changed_ns=step.now_ns)
        step.tx.run("put_action", tuple(ended))
