"""The lifecycle tier's steps: what happens to an inode when it is archived, released, brought back or removed there."""

import errno
from collections.abc import Sequence
from typing import NamedTuple

from msgspec.structs import replace

from nacrefs.common.layout import Layout, LayoutSpec
from nacrefs.common.wire import ArchiveSpec, Attr, HsmAction, HsmFlag, Lease, Mode, Node, Right
from nacrefs.mds.hsm.rows import ARCHIVED, COPIED, PARTLY, RELEASED, ActionRow, HsmRow, hsm_of, own_row, upload_row
from nacrefs.mds.inode import Inode
from nacrefs.mds.links.marks import key_of
from nacrefs.mds.namespace.bits import INLINE, OPEN_WRITE
from nacrefs.mds.namespace.nodes import need_file
from nacrefs.mds.namespace.xattrs import path_of
from nacrefs.mds.transactions.step import Blocked, Step
from nacrefs.mds.transactions.tx import Tx

OBJECT_BYTES_MAX = 5 << 40
"""As large as one S3 object can be."""
PART_BYTES = 8 << 20
PARTS_MAX = 10_000
"""As many parts as an S3 object may have."""
INLINE_BYTES_MAX = 1 << 20
KEY_BYTES_MAX = 960
"""Of a bucket's URL and a path in its keys: with fid and number they have 1024 bytes at most, as S3 allows."""
DIRECTORY_BYTES_MAX, NAME_BYTES_MAX = 250, 200
"""Of a path's parts in keys. Behind the name comes a fid, and perhaps more; no part has more than 255 bytes then."""
_ESCAPED = frozenset([*range(32), 127, ord("%"), ord("\\")])


class Gone(Exception):
    """The file has been removed meanwhile."""


class NotDue(Exception):
    """A rule wanted something done with a file, and would not want it any more; the text says why."""


class Plan(NamedTuple):
    """A version of a file that is to be copied, as one object of `part_bytes` or in parts of that size. `action` is
    the action's row as it is stored with it."""

    attr: Attr
    version: int
    layout: Layout | None
    data: bytes | None
    key: str
    meta: tuple[tuple[str, str], ...]
    part_bytes: int
    action: ActionRow
    match: str | None = None
    """The ETag that the key's object has, unless somebody else has replaced it; None: nobody else has a say."""

    @property
    def in_parts(self) -> bool:
        """Whether it is sent in parts."""
        return bool(self.action.upload)


def key_part(name: bytes) -> str:
    """A name as a part of a key: UTF-8; what is not, and control characters, as %XX."""
    text = name.decode("utf-8", "surrogateescape")
    return "".join(
        f"%{ord(char) - 0xDC00:02X}" if 0xDC80 <= ord(char) <= 0xDCFF
        else f"%{ord(char):02X}" if ord(char) in _ESCAPED
        else char
        for char in text
    )  # fmt: skip


def key_path(path: bytes, room: int) -> str:
    """A path for keys. What is too long for servers, of which some have files with these names, is cut: long names, and
    the first directories of a path that has more than `room` bytes. The catalogue has the whole."""
    *above, name = (key_part(part) for part in path.strip(b"/").split(b"/"))
    parts = [*(_cut(part, DIRECTORY_BYTES_MAX) for part in above), _cut(name, NAME_BYTES_MAX)]
    while len(parts) > 1 and len("/".join(parts).encode()) > room:
        del parts[0]
    return "/".join(parts)


def _cut(text: str, size: int) -> str:
    return text.encode()[:size].decode(errors="ignore")


def name_of(part: str) -> bytes:
    """The name that `key_part` made a part of a key of."""
    from urllib.parse import unquote_to_bytes

    return unquote_to_bytes(part)


def _written(step: Step, fid: int) -> bool:
    return any(int(mode) & OPEN_WRITE for mode in step.tx.opens(fid).values())


def plan_archive(step: Step, action: ActionRow, spec: ArchiveSpec) -> Plan:
    """The version that is to be copied now, and the key for it, which the action's row knows from now on: what an
    attempt may leave in the archive is never without an owner. OSError: EAGAIN while somebody writes without a lease,
    EFBIG, EPERM."""
    tx, fid = step.tx, action.fid
    inode = _file(tx, fid, or_symlink=True)
    step.leases.truth(fid)
    row = hsm_of(tx, inode)
    attr = inode.attr
    if row.flags & HsmFlag.NOARCHIVE:
        raise OSError(errno.EPERM, "it is marked noarchive")
    if attr.flags & RELEASED:
        raise OSError(errno.EEXIST, "it is archived and released")
    if attr.size > OBJECT_BYTES_MAX:
        raise OSError(errno.EFBIG, f"{attr.size} bytes are more than one object can have (5 TiB)")
    if _written(step, fid):
        raise OSError(errno.EAGAIN, "it is being written by several clients")
    here = inode.is_symlink or (inode.is_inline and attr.size <= INLINE_BYTES_MAX)
    data = tx.data(inode).ljust(attr.size, b"\0") if here else None
    if data is None and inode.layout is None:
        raise OSError(errno.EIO, "it has neither contents nor a layout")
    meta = (
        ("file-permissions", f"0{attr.mode:o}"),
        ("file-owner", str(attr.uid)),
        ("file-group", str(attr.gid)),
        ("file-mtime", f"{attr.mtime_ns}ns"),
        ("file-atime", f"{attr.atime_ns}ns"),
        ("nacre-fid", f"{fid:x}"),
        ("nacre-version", str(inode.data_version)),
    )
    linked = spec.id in tx.mdt.linked
    key = _link_key(step, action) if linked else _free_key(step, action, row, spec)
    part_bytes = part_bytes_of(attr.size, spec.part_bytes)
    in_parts = data is None and attr.size > part_bytes
    forget_attempt(step, action, row, key)
    action = action._replace(key=key, upload="?" if in_parts else "")
    put_action(step, action)
    part_bytes = part_bytes if in_parts else max(1, attr.size)
    match = _expected(tx, row, spec.id, key) if linked else None
    return Plan(attr, inode.data_version, inode.layout, data, key, meta, part_bytes, action, match)


def _expected(tx: Tx, row: HsmRow, link: int, key: str) -> str | None:
    """The ETag of the object that a file is to replace in its link's bucket. (If objects of removed files stay there,
    nothing is known of one that has the name of a new file.)"""
    if (row.archive, row.key) == (link, key) and row.etag:
        return row.etag
    return "" if link in tx.mdt.deleting else None


def part_bytes_of(size: int, wanted: int) -> int:
    """The size of the parts of a file: no more than PARTS_MAX of them, whole MiB."""
    return max(wanted or PART_BYTES, -(-size // PARTS_MAX) + (1 << 20) - 1 >> 20 << 20)


def _free_key(step: Step, action: ActionRow, row: HsmRow, spec: ArchiveSpec) -> str:
    """A key that no other copy of the file, attempt at one, or deletion under way has."""
    path = key_path(path_of(step.tx, action.fid), KEY_BYTES_MAX - len(spec.url))
    key = (spec.template or "{path}~{fid}").replace("{path}", path).replace("{fid}", f"{action.fid:x}")
    first = not row.key and action.attempts <= 1
    if first and not step.tx.is_gone(spec.id, key):
        return key
    return f"{key}.{action.id:x}" + (f"-{action.attempts}" if action.attempts > 1 else "")


def _link_key(step: Step, action: ActionRow) -> str:
    """The key of a file in its link's bucket: its path."""
    root = next((fid for fid, link in step.tx.mdt.exports.items() if link == action.archive), 0)
    key = key_of(step.tx, action.fid, root)
    for row in (key, own_row(key, action.fid), upload_row(key, "?")):
        if step.tx.is_gone(action.archive, row):
            raise OSError(errno.EAGAIN, "the object that had its name is being deleted")
    if (action.archive, key) in step.tx.mdt.emptying:
        raise OSError(errno.EAGAIN, "the object that has its name is being looked at, and perhaps deleted")
    return key


def doubtful_key(step: Step, fid: int, link: int) -> str:
    """Under which key of a link's bucket the last attempt at a file may have left an object that nobody knows, since
    the answer to an upload was lost; empty: none."""
    store = step.tx.mdt.store
    found = store.fetchone(store.statements.last_action, (fid,))
    row = None if found is None else ActionRow(*found)
    return row.key if row is not None and row.archive == link else ""


def forget_doubtful(step: Step, fid: int, link: int) -> None:
    """A file that was to be sent to a link's bucket is not: what a lost answer may have left of it there goes."""
    tx = step.tx
    inode = tx.inode(fid)
    row = HsmRow(fid) if inode is None else hsm_of(tx, inode)
    key = doubtful_key(step, fid, link)
    if key and link in tx.mdt.deleting and (row.archive, row.key) != (link, key):
        tx.drop_object(link, own_row(key, fid))


def put_action(step: Step, row: ActionRow) -> None:
    """Write an action's row."""
    step.tx.run("put_action", tuple(row))


def forget_attempt(step: Step, action: ActionRow, row: HsmRow, next_key: str = "") -> None:
    """What an attempt may have left in the archive is deleted, unless it has become the file's copy (`row`). A key of a
    link is a name that others use, too: its object stays, and the next attempt knows it by its `nacre-fid`. If there is
    none, since the file was removed, or that goes to another key (`next_key`), it is deleted if it is that file's."""
    tx, fid = step.tx, action.fid
    if action.kind == HsmAction.TRANSITION:  # the key is that of the copy, which was to become itself anew
        if action.upload:
            tx.drop_object(action.archive, upload_row(action.key, action.upload))
        kept = tx.inode(fid) is None and action.archive in tx.mdt.keeping
        if action.key and (action.archive, action.key) != (row.archive, row.key) and not kept:
            tx.drop_object(action.archive, action.key)  # it was deleted meanwhile, and perhaps made again after that
    elif action.key and (action.archive, action.key) != (row.archive, row.key):
        if action.upload:
            tx.drop_object(action.archive, upload_row(action.key, action.upload))
        if action.archive not in tx.mdt.linked:
            tx.drop_object(action.archive, action.key)
        elif action.archive in tx.mdt.deleting and (tx.inode(fid) is None or next_key not in ("", action.key)):
            tx.drop_object(action.archive, own_row(action.key, fid))


def end_action(step: Step, action: ActionRow, ended: ActionRow) -> None:
    """An action is over, or waits to be tried again, as `ended` says; of `action` nothing is left in the archive."""
    inode = step.tx.inode(action.fid)
    forget_attempt(step, action, HsmRow(action.fid) if inode is None else hsm_of(step.tx, inode))
    put_action(step, ended)


def end_archive(step: Step, plan: Plan, row: HsmRow, ended: ActionRow) -> bool:
    """The copy is complete. False, and nothing changes, if the file is another one by now; Gone if it was removed."""
    tx, fid = step.tx, plan.attr.fid
    inode = _file(tx, fid, or_symlink=True)
    step.leases.truth(fid)
    if inode.data_version != plan.version or _written(step, fid):
        return False
    old = hsm_of(tx, inode)
    if old.key and (old.archive, old.key) != (row.archive, row.key):
        tx.drop_object(old.archive, old.key)
    flags = old.flags & (HsmFlag.NORELEASE | HsmFlag.NOARCHIVE) | HsmFlag.EXISTS | HsmFlag.ARCHIVED
    put_hsm(step, inode, row._replace(flags=int(flags)))
    put_action(step, ended)
    if row.archive in tx.mdt.linked:
        _exported(step, old, row)
    return True


def _exported(step: Step, old: HsmRow, row: HsmRow) -> None:
    """The bucket of a file's link has the file; but if it has been moved meanwhile, not under its name."""
    tx, fid = step.tx, row.fid
    if old.archive == row.archive and old.key and old.key != row.key:
        tx.run("delete_link_object", (old.archive, old.key.encode(), fid))
    tx.run("put_link_object", (row.archive, row.key.encode(), fid, ""))
    root = next((directory for directory, link in tx.mdt.exports.items() if link == row.archive), 0)
    try:
        same = key_of(tx, fid, root) == row.key
    except OSError:
        same = False
    if same:
        tx.sent(fid)


def put_hsm(step: Step, inode: Inode, row: HsmRow) -> None:
    """Write a file's row, and say in its inode that there is one."""
    tx, wanted = step.tx, row.marks(inode)
    tx.set_hsm(row.fid, row if wanted else None)
    flags = inode.attr.flags
    if flags & (ARCHIVED | COPIED) == wanted:
        return
    edited = tx.edit(row.fid)
    edited.attr = replace(edited.attr, flags=flags & ~(ARCHIVED | COPIED) | wanted)
    if flags & ARCHIVED != wanted & ARCHIVED:
        step.leases.changed(row.fid)
        edited.attr = replace(edited.attr, change=edited.attr.change + 1)


def release(step: Step, fid: int, is_up: Sequence[int], ended: ActionRow) -> bool:
    """Give up a file's objects, for the archive has the same bytes. False if there is nothing to give up. OSError:
    EPERM if that may not be, EBUSY if somebody has it open, EAGAIN if one of its OSTs is away."""
    tx, leases = step.tx, step.leases
    inode = _file(tx, fid)
    leases.alone(fid)
    if leases.others(fid):
        raise Blocked(fid, Lease.NONE)
    row = hsm_of(tx, inode)
    attr = inode.attr
    if attr.flags & RELEASED or not attr.size:
        return False
    check_release(inode, row)
    if tx.opens(fid):
        raise OSError(errno.EBUSY, "it is open")
    layout = inode.layout
    assert layout is not None
    if not inode.is_inline and (away := set(layout.osts).difference(is_up)):
        raise OSError(errno.EAGAIN, f"OST {min(away)} is away")
    leases.changed(fid)
    if inode.is_inline:
        tx.set_data(fid, b"")
    else:
        tx.add_intent(fid, -1, layout)
    edited = tx.edit(fid)
    edited.layout = replace(layout, generation=layout.generation + 1)
    # Not 0 blocks: tar and cp would take it for one hole and not read it.
    edited.attr = replace(attr, blocks=1, flags=attr.flags & ~INLINE | RELEASED, change=attr.change + 1)
    tx.set_hsm(fid, row._replace(flags=row.flags | int(HsmFlag.RELEASED), restored_ns=0))
    put_action(step, ended)
    return True


def check_release(inode: Inode, row: HsmRow) -> None:
    """OSError (EPERM) that says why the file may not be released."""
    flags = row.flags_now(inode)
    if not flags & HsmFlag.ARCHIVED:
        raise OSError(errno.EPERM, "it is not archived")
    for flag, why in (
        (HsmFlag.DIRTY, "it was changed since it was archived"),
        (HsmFlag.NORELEASE, "it is marked norelease"),
        (HsmFlag.LOST, "the archive has lost its copy"),
    ):
        if flags & flag:
            raise OSError(errno.EPERM, why)


def good_copy(step: Step, fid: int) -> HsmRow:
    """What is known of a copy that is of the file as it is. OSError (EPERM) if there is none."""
    inode = _file(step.tx, fid)
    row = hsm_of(step.tx, inode)
    flags = row.flags_now(inode)
    if not flags & HsmFlag.ARCHIVED or flags & (HsmFlag.DIRTY | HsmFlag.LOST):
        raise OSError(errno.EPERM, "its copy is not of the file as it is")
    return row


def begin_transition(step: Step, action: ActionRow) -> tuple[HsmRow, ActionRow]:
    """The copy that is to go to another storage class, and the action's row, which knows its key from now on. OSError
    (EPERM) if the file has no copy, or only one of an earlier version."""
    copy = good_copy(step, action.fid)
    action = action._replace(key=copy.key)
    put_action(step, action)
    return copy, action


def end_transition(step: Step, action: ActionRow, moved: HsmRow, etag: str, ended: ActionRow) -> None:
    """The object is in another storage class. If the file has another copy by now, or is gone, so is the object."""
    put_action(step, ended)
    inode = step.tx.inode(moved.fid)
    row = HsmRow(moved.fid) if inode is None else hsm_of(step.tx, inode)
    if (row.archive, row.key) != (moved.archive, moved.key):
        forget_attempt(step, action._replace(upload=""), row)
        return
    row = row._replace(storage_class=action.storage_class, etag=etag or row.etag, thawed_until_ns=0)
    step.tx.set_hsm(moved.fid, row)


class Return(NamedTuple):
    """A file that is to be brought back."""

    row: HsmRow
    layout: Layout
    size: int


def begin_restore(step: Step, fid: int, is_up: Sequence[int]) -> Return | None:
    """Choose OSTs for a released file; None if it is not released. OSError: EIO if the archive has lost it, EAGAIN if
    an OST on which a part of it may be already is away, ENOSPC."""
    tx = step.tx
    inode = _file(tx, fid)
    if not inode.attr.flags & RELEASED:
        return None
    row = hsm_of(tx, inode)
    if row.flags & HsmFlag.LOST:
        raise OSError(errno.EIO, "the archive has lost its copy (`nacre hsm clear --lost` to try again)")
    layout = inode.layout
    assert layout is not None
    if row.restored_ns == PARTLY:
        if away := set(layout.osts).difference(is_up):
            raise OSError(errno.EAGAIN, f"OST {min(away)} is away")
        return Return(row, layout, inode.attr.size)
    spec = LayoutSpec(layout.stripe_count, layout.stripe_bytes, mirrors=layout.mirrors)
    osts = step.placement.place(spec)
    layout = Layout(layout.stripe_bytes, len(osts) // layout.mirrors, osts, layout.mirrors, layout.generation + 1)
    edited = tx.edit(fid)
    edited.layout = layout
    row = row._replace(restored_ns=PARTLY)
    tx.set_hsm(fid, row)
    return Return(row, layout, inode.attr.size)


def end_restore(step: Step, fid: int, allocated: int, ended: ActionRow) -> None:
    """All bytes are back, durably."""
    tx = step.tx
    inode = _file(tx, fid)
    put_action(step, ended)
    if not inode.attr.flags & RELEASED:
        return
    row = hsm_of(tx, inode)
    edited = tx.edit(fid)
    # Nobody's lease is in the way: nothing that was cached under it is wrong but the number of blocks, and who still
    # believes the file to be released asks, and is told.
    row = row._replace(flags=row.flags & ~int(HsmFlag.RELEASED), restored_ns=step.now_ns)
    flags = inode.attr.flags & ~(RELEASED | COPIED) | row.marks(inode)
    edited.attr = replace(inode.attr, flags=flags, blocks=allocated >> 9, change=inode.attr.change + 1)
    tx.set_hsm(fid, row)


def lose(step: Step, fid: int) -> None:
    """The archive does not have the copy any more."""
    inode = _file(step.tx, fid)
    row = hsm_of(step.tx, inode)
    put_hsm(step, inode, row._replace(flags=row.flags | int(HsmFlag.LOST)))


def remove_copy(step: Step, fid: int) -> None:
    """Forget the copy; its object is deleted. OSError (EPERM) if it is the only one."""
    inode = _file(step.tx, fid)
    step.leases.truth(fid)
    row = hsm_of(step.tx, inode)
    if inode.attr.flags & RELEASED:
        raise OSError(errno.EPERM, "it is released: the copy is all there is; restore it first")
    if row.key:
        step.tx.drop_object(row.archive, row.key)
    put_hsm(step, inode, HsmRow(fid, row.flags & int(HsmFlag.NORELEASE | HsmFlag.NOARCHIVE)))


def set_flags(step: Step, fid: int, wanted: int, cleared: int, archive: int) -> None:
    """Set and clear a file's flags. OSError (EINVAL, EPERM) for what cannot be set by hand."""
    inode = need_file(step, fid)
    step.leases.truth(fid)
    row = hsm_of(step.tx, inode)
    if (wanted | cleared) & HsmFlag.RELEASED:
        raise OSError(errno.EPERM, "released cannot be set or cleared: release or restore the file")
    if cleared & (HsmFlag.EXISTS | HsmFlag.ARCHIVED) and inode.attr.flags & RELEASED:
        raise OSError(errno.EPERM, "it is released: the copy is all there is")
    flags = (row.flags | wanted) & ~cleared & ~int(HsmFlag.DIRTY)
    version = -1 if wanted & HsmFlag.DIRTY else inode.data_version if cleared & HsmFlag.DIRTY else row.version
    put_hsm(step, inode, row._replace(flags=flags, archive=archive or row.archive, version=version))


def released_node(step: Step, fid: int) -> Node:
    """The file with the layout under which what is back of it can be read."""
    inode = step.tx.need(fid)
    layout = inode.layout
    assert layout is not None
    capability = step.capability(fid, layout.generation, step.session, Right.READ | Right.WRITE)
    return Node(inode.attr, step.leases.grant(fid, Lease.NONE), layout, capability)


def _file(tx: Tx, fid: int, or_symlink: bool = False) -> Inode:
    inode = tx.inode(fid)
    if inode is None or not (inode.is_regular or (or_symlink and inode.is_symlink)):
        raise Gone
    return inode


def is_open(tx: Tx, fid: int) -> bool:
    """Whether anybody has it registered as open."""
    return any(mode != Mode.CLOSED for mode in tx.opens(fid).values())
