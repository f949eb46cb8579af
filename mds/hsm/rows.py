"""Rows of the lifecycle tier's tables as values, and how steps read and write them."""

from typing import NamedTuple

from nacrefs.common.wire import AttrFlag, HsmFlag
from nacrefs.mds.inode import Inode
from nacrefs.mds.transactions.tx import Tx

ARCHIVED = int(AttrFlag.ARCHIVED)
RELEASED = int(AttrFlag.RELEASED)
COPIED = int(AttrFlag.COPIED)
WAITING, STARTED, SUCCEED, FAILED, CANCELED = "WAITING", "STARTED", "SUCCEED", "FAILED", "CANCELED"
# Plain numbers: what an enum's members make of `&` and `|` takes a microsecond, and every file is looked at.
_EXISTS, _DIRTY, _ARCHIVED = int(HsmFlag.EXISTS), int(HsmFlag.DIRTY), int(HsmFlag.ARCHIVED)
_ARCHIVED_OR_LOST = int(HsmFlag.ARCHIVED | HsmFlag.LOST)
PARTLY = -1
"""`restored_ns` of a file whose objects may exist in part: it was being brought back."""


class HsmRow(NamedTuple):
    """A file in the tier (columns of `schema.hsm`)."""

    fid: int
    flags: int = 0
    archive: int = 0
    key: str = ""
    version: int = 0
    size: int = 0
    etag: str = ""
    part_bytes: int = 0
    digests: bytes = b""
    checksum: bytes = b""
    storage_class: str = ""
    archived_ns: int = 0
    restored_ns: int = 0
    thawed_until_ns: int = 0

    def flags_now(self, inode: Inode) -> int:
        """The flags as people see them, with DIRTY."""
        dirty = self.flags & _EXISTS and inode.data_version != self.version
        return self.flags | (_DIRTY if dirty else 0)

    def marks(self, inode: Inode) -> int:
        """What the inode's `flags` say of this row: ARCHIVED and COPIED."""
        if not self.flags and not self.key:
            return 0
        good = self.flags & _ARCHIVED_OR_LOST == _ARCHIVED
        return ARCHIVED | (COPIED if good and inode.data_version == self.version else 0)


class ActionRow(NamedTuple):
    """Something to be done with a file (columns of `schema.hsm_action`)."""

    id: int
    fid: int
    kind: int
    archive: int
    uid: int
    cause: str
    state: str
    attempts: int
    not_before_ns: int
    created_ns: int
    changed_ns: int
    reason: str = ""
    key: str = ""
    upload: str = ""
    storage_class: str = ""


def hsm_of(tx: Tx, inode: Inode) -> HsmRow:
    """What is known of a file; a row without flags if nothing is."""
    fid = inode.attr.fid
    if fid in tx.hsm:
        own = tx.hsm[fid]
        return HsmRow(fid) if own is None else HsmRow(*own)
    if not inode.attr.flags & ARCHIVED:
        return HsmRow(fid)
    row = tx.mdt.store.fetchone(tx.mdt.store.statements.hsm, (fid,))
    return HsmRow(fid) if row is None else HsmRow(*row)


def upload_row(key: str, upload: str) -> str:
    """An upload in `hsm_gone`: its key, a newline (which no key has) and its id, `?` if that was never heard."""
    return f"{key}\n{upload}"


def own_row(key: str, fid: int) -> str:
    """An object in `hsm_gone` that goes only if a file has made it."""
    return f"{key}\n={fid:x}"


def split_upload(row: str) -> tuple[str, str | None]:
    """What a row of `hsm_gone` means: an object's key and None, or an upload's key and id (empty: never heard; `=FID`:
    not an upload, but the object, if that file has made it)."""
    key, newline, upload = row.partition("\n")
    return key, upload.strip("?") if newline else None
