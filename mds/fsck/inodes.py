"""Steps that mend inodes, and rows that belong to none (`steps`)."""

import errno
import stat
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from nacrefs.common.fid import fid_counter, fid_mdt
from nacrefs.common.layout import Layout, LayoutSpec
from nacrefs.common.wire import Attr, AttrFlag, HsmFlag, Mode
from nacrefs.mds.fsck.steps import Recount, count, free_name, fresh
from nacrefs.mds.hsm.rows import COPIED, HsmRow
from nacrefs.mds.inode import Inode, encode_layout
from nacrefs.mds.lifecycle.places import class_place, osts_place
from nacrefs.mds.namespace.attributes import blocks_of
from nacrefs.mds.namespace.layouts import layout_of
from nacrefs.mds.records import MirrorRecord
from nacrefs.mds.transactions.step import Step

_INLINE: Final = int(AttrFlag.INLINE)
_XATTRS: Final = int(AttrFlag.XATTRS)
_DEFAULT: Final = int(AttrFlag.DEFAULT_LAYOUT)
_ARCHIVED: Final = int(AttrFlag.ARCHIVED)
_RELEASED: Final = int(AttrFlag.RELEASED)


def correct(step: Step, fid: int) -> None:
    """What an inode says about itself becomes what the other tables say about it: link count, entries, flags, size of
    inline contents. A file whose link count says that it has a name, but that has none, is left to `attach`."""
    inode = fresh(step, fid)
    if inode is None:
        return
    step.leases.alone(fid)
    right = _corrected(step, inode)
    if right == (inode.attr, inode.entries, inode.parent, inode.layout, inode.spec):
        return
    step.leases.changed(fid)
    edited = step.tx.edit(fid)
    attr, edited.entries, edited.parent, edited.layout, edited.spec = right
    edited.attr = replace(attr, change=inode.attr.change + 1)


def _corrected(step: Step, inode: Inode) -> tuple[Attr, int, int, Any, Any]:
    tx, store = step.tx, step.tx.mdt.store
    statements, attr = store.statements, inode.attr
    fid, flags, size, nlink = attr.fid, attr.flags, attr.size, attr.nlink
    entries, parent, layout, spec = 0, 0, inode.layout, inode.spec
    flags = flags & ~_XATTRS | (_XATTRS if store.fetchall(statements.xattrs, (fid,)) else 0)
    if inode.is_directory:
        nlink = 2 + count(step, statements.count_subdirectories, fid, fid)
        entries = count(step, statements.count_entries, fid)
        parent = inode.parent
    elif names := count(step, statements.count_names, fid):
        nlink = names
    flags = flags & ~_DEFAULT | (_DEFAULT if spec is not None and inode.is_directory else 0)
    if not inode.is_directory:
        spec = None
    if not inode.is_regular:
        flags, layout = flags & ~_INLINE, None
    row = store.fetchone(statements.inline, (fid,))
    if row is not None and not row[0]:
        tx.run("delete_inline", (fid,))
    elif row is not None:
        size = len(row[0]) if inode.is_symlink else max(size, len(row[0]))
    blocks = max(attr.blocks, 0)
    return replace(attr, nlink=nlink, flags=flags, size=max(size, 0), blocks=blocks), entries, parent, layout, spec


def drop_inline(step: Step, fid: int) -> None:
    """Contents in the MDT of what has none there."""
    inode = fresh(step, fid)
    if inode is not None:
        step.leases.alone(fid)
        if inode.is_symlink or inode.is_inline:
            return
        step.leases.changed(fid)
    step.tx.run("delete_inline", (fid,))


def give_inline_flag(step: Step, fid: int) -> None:
    """A file without objects has its contents in the MDT."""
    inode = fresh(step, fid)
    if inode is None or not inode.is_regular or inode.is_inline:
        return
    step.leases.alone(fid)
    step.leases.changed(fid)
    edited = step.tx.edit(fid)
    attr = edited.attr
    edited.attr = replace(attr, flags=attr.flags | _INLINE, change=attr.change + 1)


def set_tier_flags(step: Step, fid: int) -> str:
    """The flags of an inode become what its row in the lifecycle tier says; why not, or nothing."""
    inode = fresh(step, fid)
    if inode is None:
        return ""
    step.leases.alone(fid)
    store, attr = step.tx.mdt.store, inode.attr
    found = store.fetchone(store.statements.hsm, (fid,))
    row = None if found is None else HsmRow(*found)
    if row is None and attr.flags & _RELEASED:
        return "its contents are in an archive, and where is not known any more: `nacre archive import` finds them"
    if row is not None and bool(row.flags & HsmFlag.RELEASED) != bool(attr.flags & _RELEASED):
        return (
            "whether its contents are in the archive only is not certain: `nacre hsm restore` it, or restore a backup"
        )
    flags = attr.flags & ~(_ARCHIVED | COPIED) | (0 if row is None else row.marks(inode))
    if flags != attr.flags:
        step.leases.changed(fid)
        step.tx.edit(fid).attr = replace(attr, flags=flags, change=attr.change + 1)
    return ""


def set_copy_place(step: Step, fid: int) -> None:
    """Where lifecycle rules look for a file becomes where it and its copy are."""
    inode = fresh(step, fid)
    store = step.tx.mdt.store
    found = store.fetchone(store.statements.hsm, (fid,))
    if inode is not None and found is not None:
        row = HsmRow(*found)
        step.tx.run("set_copy_osts", (osts_place(inode.layout), fid))
        step.tx.run("set_copy_class", (class_place(row.archive, row.storage_class), fid))


def set_layouts(step: Step, fid: int, layout: Layout | None) -> None:
    """An inode of which a layout cannot be read, or is not what its type has: a file gets `layout` (None: a new one,
    for it has no objects), and a directory keeps its own default if that can be read."""
    store = step.tx.mdt.store
    row = store.fetchone(store.statements.inode, (fid,))
    if row is None:
        return
    flags, spec = row[13] & ~_DEFAULT, None
    if stat.S_ISDIR(row[1]) and _is_spec(row[17]):
        flags, spec = flags | _DEFAULT, row[17]
    if not stat.S_ISREG(row[1]):
        layout, flags = None, flags & ~_INLINE
    elif layout is None:
        layout, flags = _placed(step), flags | _INLINE
    step.leases.alone(fid)
    step.leases.changed(fid)
    step.tx.mdt.cache.drop_inode(fid)
    step.tx.run("set_layouts", (flags, encode_layout(layout), spec, fid))
    step.tx.run("set_copy_osts", (osts_place(layout), fid))


def _is_spec(data: bytes | None) -> bool:
    try:
        return data is not None and bool(msgspec.msgpack.decode(data, type=LayoutSpec))
    except msgspec.MsgspecError:
        return False


def _placed(step: Step) -> Layout:
    return layout_of(step.default_spec, step.placement.place(step.default_spec), 0)


def remove_inode(step: Step, fid: int) -> None:
    """An inode that is of no use, with all its names."""
    inode = fresh(step, fid)
    if inode is None:
        return
    names = step.tx.names(fid)
    step.leases.alone(fid)
    step.leases.changed(fid)
    for parent, name in names:
        step.leases.changed(parent, name)
    recount = Recount(step)
    for parent, name in names:
        step.tx.forget_name(parent, name)
        recount.add(parent, entries=-1)
    recount.apply()
    step.tx.destroy(fid)


def drop_rows(step: Step, kind: str, fid: int, values: tuple[Any, ...]) -> None:
    """Rows about something that does not exist."""
    tx = step.tx
    if kind in ("open-without-session", "open-without-inode"):
        session = int(values[0])
        if session in tx.opens(fid):
            tx.set_open(session, fid, Mode.CLOSED)
        else:
            tx.run("delete_open", (session, fid))
    elif kind == "xattrs-without-inode":
        tx.run("delete_xattrs", (fid,))
    elif kind == "hsm-without-inode":
        tx.set_hsm(fid, None)
    elif kind == "destroyed-file":
        tx.finish_destructions([fid])
    elif kind == "writer-without-session":
        session = int(values[0])
        if (session, fid) in tx.mdt.mirror_writers:
            tx.set_mirror_writer(session, fid, False)
        else:
            tx.run("delete_mirror_writer", (session, fid))


def remember_copy(step: Step, fid: int, number: int, ost: int) -> None:
    """A copy that is not good, so that it is made equal."""
    inode = fresh(step, fid)
    layout = None if inode is None else inode.layout
    if layout is not None and number < len(layout.states) and layout.states[number] and layout.osts[number] == ost:
        step.tx.put_mirror(MirrorRecord(fid, number, ost, layout.states[number], layout.generation))


def give_out(step: Step, fid: int, session: int) -> None:
    """This fid (0: none) and this session number are in use."""
    tx = step.tx
    counter = fid_counter(fid) if fid and fid_mdt(fid) == tx.mdt.number else 0
    tx.give_out(counter, session)


def restore_file(
    step: Step, fid: int, place: int, *, data: bytes = b"", layout: Layout | None = None, size: int = 0, blocks: int = 0
) -> bool:
    """Give contents without an inode one, with a name in `place`: a file of root's. False if there is an inode."""
    tx = step.tx
    if fresh(step, fid) is not None:
        return False
    if fid_mdt(fid) != tx.mdt.number:
        raise OSError(errno.EXDEV, "its fid is another MDT's")
    give_out(step, fid, 0)
    flags = 0
    if layout is None:
        layout, flags, size, blocks = _placed(step), _INLINE, len(data), blocks_of(len(data))
    name, now_ns = free_name(step, place, fid), step.now_ns
    step.leases.changed(place, name)
    attr = Attr(fid, stat.S_IFREG | 0o600, 1, 0, 0, 0, size, blocks, now_ns, now_ns, now_ns, now_ns, 1, flags)
    tx.restore_inode(Inode(attr, layout=layout, data=data or None))
    tx.set_dentry(place, name, fid)
    recount = Recount(step)
    recount.add(place, entries=1)
    recount.apply()
    return True
