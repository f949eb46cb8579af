"""The steps of an import: files, directories and links as a catalogue or an object describes them. Files are released:
nothing is downloaded.
"""

import errno
import stat
from collections.abc import Mapping
from typing import TypeAlias

import xxhash
from msgspec.structs import replace

from nacrefs.common.wire import ArchiveEntry, ArchiveSpec, AttrFlag, HsmFlag
from nacrefs.mds.hsm.catalogue import Record
from nacrefs.mds.hsm.rows import ARCHIVED, COPIED, RELEASED, HsmRow, hsm_of
from nacrefs.mds.hsm.steps import name_of
from nacrefs.mds.inode import DIRECTORY_BLOCKS, DIRECTORY_BYTES, Inode
from nacrefs.mds.namespace.layouts import new_layout
from nacrefs.mds.namespace.names import check_name
from nacrefs.mds.transactions.step import Step

Owned: TypeAlias = Mapping[str, int]
"""Objects that files here had as their copies when the import began, as after one that was killed, and which."""


def _is_owned(step: Step, owned: Owned, archive: int, key: str, fid: int) -> bool:
    """Whether a file has this object as its copy already: it must not have two, for with the first that is removed it
    would go. `fid`: who has made it; if that was in this filesystem, perhaps since the import began."""
    if step.tx.inode(owned.get(key, 0)) is not None:
        return True
    inode = step.tx.inode(fid)
    row = None if inode is None else hsm_of(step.tx, inode)
    return row is not None and (row.archive, row.key) == (archive, key)


def import_names(spec: ArchiveSpec, records: list[Record], top: int, owned: Owned, step: Step) -> int:
    """Make what records of the catalogue describe, which are all names of one file; how many were made. A file that is
    there already has got all its names before, whatever they are by now: they are made in one step."""
    tx, first = step.tx, records[0]
    if first.copy is not None and _is_owned(step, owned, spec.id, first.copy.key, first.fid):
        return 0
    paths = [[name_of(part) for part in record.path.split("/")] for record in records]
    places = [_look(step, top, path) for path in paths]
    if first.copy is None and any(there is not None and _is_same(step, there, first) for there in places):
        return 0
    fid = made = 0
    for path, there in zip(paths, places, strict=True):
        if there is not None:
            continue
        parent, name = top, path[-1]
        for part in path[:-1]:
            parent = _directory(step, parent, part, None, 0, 0, top)
        if stat.S_ISDIR(first.mode):
            fid = _directory(step, parent, name, stat.S_IMODE(first.mode), first.uid, first.gid, top)
        else:
            step.leases.changed(parent, name)
            if fid:
                tx.relink(fid, 1, step.now_ns)
            else:
                fid = _new(step, first, spec, parent).attr.fid
            tx.set_dentry(parent, name, fid)
            _add_entry(step, parent, 0, top)
        made += 1
    if made:
        for key, value in first.xattrs.items():
            tx.set_xattr(fid, name_of(key), value)
        _set_times(fid, first, step)
    return made


def _look(step: Step, top: int, path: list[bytes]) -> Inode | None:
    """What has this path. OSError: ENOTDIR if there can be nothing."""
    for part in path:
        check_name(part)
    found: Inode | None = step.tx.need(top)
    for part in path:
        if found is None:
            return None
        if not found.is_directory:
            raise OSError(errno.ENOTDIR, f"what is above {part!r} is no directory")
        found = step.tx.lookup(found.attr.fid, part)
    return found


def _is_same(step: Step, inode: Inode, record: Record) -> bool:
    """Whether this is what an earlier import has made of a record without a copy: a symbolic link, a device."""
    attr = inode.attr
    return (attr.mode, attr.rdev) == (record.mode, record.rdev) and (
        not stat.S_ISLNK(attr.mode) or step.tx.data(inode) == record.target
    )


def _new(step: Step, record: Record, spec: ArchiveSpec, parent: int) -> Inode:
    tx = step.tx
    directory = tx.need_directory(parent)
    copy = record.copy
    released = copy is not None and copy.size > 0
    inode = tx.new_inode(
        record.mode,
        record.uid,
        record.gid,
        step.now_ns,
        rdev=record.rdev,
        size=copy.size if copy is not None else record.size,
        blocks=1 if released else 0,
        flags=0 if copy is None else ARCHIVED | COPIED | (RELEASED if released else int(AttrFlag.INLINE)),
        layout=new_layout(step, directory) if copy is not None else None,
        project=directory.project,
        data=record.target or None,
    )
    if copy is not None:
        inode.data_version = copy.version
        flags = HsmFlag.EXISTS | HsmFlag.ARCHIVED | (HsmFlag.RELEASED if released else HsmFlag(0))
        tx.set_hsm(
            inode.attr.fid,
            HsmRow(
                inode.attr.fid, int(flags), spec.id, copy.key, copy.version, copy.size, copy.etag, copy.part_bytes,
                copy.digests, xxhash.xxh3_64_digest(copy.digests), copy.storage_class, step.now_ns,
            ),
        )  # fmt: skip
    return inode


def _set_times(fid: int, record: Record, step: Step) -> None:
    inode = step.tx.inode(fid)
    if inode is None:
        return
    step.leases.changed(fid)
    edited = step.tx.edit(fid)
    edited.attr = replace(
        edited.attr,
        atime_ns=record.atime_ns,
        mtime_ns=record.mtime_ns,
        ctime_ns=record.ctime_ns,
        change=edited.attr.change + 1,
    )


def import_entry(spec: ArchiveSpec, entry: ArchiveEntry, parent: int, owned: Owned, target: bytes, step: Step) -> bool:
    """Make the file, directory or symbolic link (to `target`) that an object is of; False if there is one already."""
    tx, meta, top = step.tx, dict(entry.meta), parent
    own = _number(meta.get("nacre-fid", ""), 16)
    if _is_owned(step, owned, spec.id, entry.key, own):
        return False
    parts = entry.key.rstrip("/").split("/")
    if not entry.key.endswith("/"):
        stem, tilde, _ = parts[-1].rpartition("~")
        if tilde and own:
            parts[-1] = stem
    mode = _number(meta.get("file-permissions", ""), 8)
    uid, gid = _number(meta.get("file-owner", "")), _number(meta.get("file-group", ""))
    for part in parts[:-1]:
        parent = _directory(step, parent, name_of(part), None, 0, 0, top)
    name = name_of(parts[-1])
    if entry.key.endswith("/"):
        before = tx.dentry(parent, name)
        _directory(step, parent, name, stat.S_IMODE(mode) if mode else None, uid, gid, top)
        return before is None
    check_name(name)
    existing = tx.lookup(parent, name)
    if existing is not None:
        row = hsm_of(tx, existing)
        if row.archive == spec.id and _number(meta.get("nacre-version", "")) > row.version and (
            existing.attr.flags & RELEASED and row.key.partition("~")[2].split(".")[0] == f"{own:x}"
        ):  # fmt: skip
            step.leases.changed(existing.attr.fid)
            return _describe(step, existing.attr.fid, spec, entry, meta)
        return False
    directory = tx.need_directory(parent)
    if target:
        inode = tx.new_inode(
            stat.S_IFLNK | 0o777, uid, gid, step.now_ns, size=len(target), project=directory.project, data=target
        )
        times = _times(entry, meta)
        inode.attr = replace(inode.attr, atime_ns=times[0], mtime_ns=times[1])
    else:
        released = entry.size > 0
        inode = tx.new_inode(
            stat.S_IFREG | (stat.S_IMODE(mode) if mode else 0o644),
            uid,
            gid,
            step.now_ns,
            size=entry.size,
            blocks=1 if released else 0,
            flags=ARCHIVED | COPIED | (RELEASED if released else 0),
            layout=new_layout(step, directory),
            project=directory.project,
        )
    step.leases.changed(parent, name)
    tx.set_dentry(parent, name, inode.attr.fid)
    _add_entry(step, parent, 0, top)
    return bool(target) or _describe(step, inode.attr.fid, spec, entry, meta)


def _times(entry: ArchiveEntry, meta: dict[str, str]) -> tuple[int, int]:
    """When a file was last read and changed, as its object says."""
    mtime_ns = _time(meta.get("file-mtime", "")) or entry.mtime_ns
    return _time(meta.get("file-atime", "")) or mtime_ns, mtime_ns


def _describe(step: Step, fid: int, spec: ArchiveSpec, entry: ArchiveEntry, meta: dict[str, str]) -> bool:
    edited = step.tx.edit(fid)
    version = _number(meta.get("nacre-version", ""))
    atime_ns, mtime_ns = _times(entry, meta)
    edited.data_version = version
    edited.attr = replace(
        edited.attr, size=entry.size, mtime_ns=mtime_ns, atime_ns=atime_ns, change=edited.attr.change + 1
    )
    digest = bytes.fromhex(meta.get("nacre-checksum", "")) if len(meta.get("nacre-checksum", "")) == 16 else b""
    flags = HsmFlag.EXISTS | HsmFlag.ARCHIVED | (HsmFlag.RELEASED if entry.size else HsmFlag(0))
    row = HsmRow(
        fid, int(flags), spec.id, entry.key, version, entry.size, entry.etag, max(1, entry.size) if digest else 0,
        digest, b"", entry.storage_class, step.now_ns,
    )  # fmt: skip
    step.tx.set_hsm(fid, row)
    return True


def _add_entry(step: Step, parent: int, nlink: int, top: int) -> None:
    """A directory has one more name. Below the one into which all is imported (`top`) that is not its last change: its
    times are those that it had, whenever an import is killed."""
    before = step.tx.need(parent).attr
    step.tx.touch(parent, nlink, 1, step.now_ns)
    if parent != top:
        edited = step.tx.edit(parent)
        edited.attr = replace(edited.attr, mtime_ns=before.mtime_ns, ctime_ns=before.ctime_ns)


def _directory(step: Step, parent: int, name: bytes, mode: int | None, uid: int, gid: int, top: int) -> int:
    """The directory of that name, made if need be; its mode and owner if they are known."""
    tx = step.tx
    check_name(name)
    found = tx.lookup(parent, name)
    if found is None:
        inode = tx.new_inode(
            stat.S_IFDIR | (0o755 if mode is None else mode),
            uid,
            gid,
            step.now_ns,
            nlink=2,
            size=DIRECTORY_BYTES,
            blocks=DIRECTORY_BLOCKS,
            parent=parent,
            project=tx.need_directory(parent).project,
        )
        step.leases.changed(parent, name)
        tx.set_dentry(parent, name, inode.attr.fid)
        _add_entry(step, parent, 1, top)
        return inode.attr.fid
    if not found.is_directory:
        raise OSError(errno.ENOTDIR, f"{name!r} is there and is no directory")
    return found.attr.fid


def _number(text: str, base: int = 10) -> int:
    try:
        return int(text, base)
    except ValueError:
        return 0


def _time(text: str) -> int:
    """Nanoseconds of `123ns`, as FSx writes it."""
    return _number(text.removesuffix("ns"))
