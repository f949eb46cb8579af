"""The steps of a link's refresh: names for new objects in bulk, and what happens to a file whose object is another
one, or gone.

Names are inserted without a look at each: one search finds all names that a directory has between the first and the
last new one. What may block or fail, because somebody uses the file, is a step of its own for each file.
"""

import errno
import stat
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from msgspec.structs import replace

from nacrefs.common.layout import Layout
from nacrefs.common.wire import TARGET_BYTES_MAX, ArchiveEntry, Attr, HsmFlag, Lease
from nacrefs.mds.hsm.rows import ARCHIVED, COPIED, PARTLY, RELEASED, HsmRow, hsm_of
from nacrefs.mds.hsm.steps import put_hsm
from nacrefs.mds.inode import DIRECTORY_BLOCKS, DIRECTORY_BYTES, Inode
from nacrefs.mds.links.rows import Item
from nacrefs.mds.namespace.bits import DEFAULT_LAYOUT, INLINE
from nacrefs.mds.namespace.layouts import new_layout
from nacrefs.mds.namespace.remove import release, release_directory
from nacrefs.mds.transactions.cache import ABSENT
from nacrefs.mds.transactions.step import Blocked, Step

_COPY = int(HsmFlag.EXISTS | HsmFlag.ARCHIVED)


class Clash(NamedTuple):
    """A key that has no place because of what has its name (`whole`), or that of a directory above: `fid`."""

    item: Item
    fid: int
    reason: str
    whole: bool = False


class Inserted(NamedTuple):
    """What became of some keys: fids of new files, their bytes, and the keys that have no place."""

    fids: list[int]
    bytes: int
    clashes: list[Clash]


class Inserter:
    """Gives names to new objects of a link, in one step. Nothing in it raises after its first write."""

    def __init__(self, step: Step, link: int, root: int, targets: Mapping[bytes, bytes]) -> None:
        """`targets`: what those keys point at that are symbolic links."""
        self._step = step
        self._targets = targets
        self._link = link
        self._root = root
        self._owner = step.tx.need_directory(root).attr
        self._places: dict[tuple[bytes, ...], int | Clash] = {(): root}
        self._clashes: list[Clash] = []
        self._bytes = 0
        self._layouts: dict[int, Layout] = {}
        self._layouts[root] = new_layout(step, step.tx.need(root))  # ENOSPC comes before anything is written

    def insert(self, items: Sequence[Item]) -> Inserted:
        """Make them."""
        groups: dict[int, list[Item]] = {}
        for item in items:
            place = self._place(tuple(item.parts if item.directory else item.parts[:-1]), item)
            if isinstance(place, Clash):
                self._clashes.append(Clash(item, place.fid, place.reason))
            elif item.directory:
                self._describe_directory(place, item.entry)
            else:
                groups.setdefault(place, []).append(item)
        fids: list[int] = []
        for parent, group in groups.items():
            fids += self._files(parent, group)
        return Inserted(fids, self._bytes, self._clashes)

    def _place(self, parts: tuple[bytes, ...], item: Item) -> "int | Clash":
        known = self._places.get(parts)
        if known is None:
            known = self._places[parts] = self._make_place(parts, item)
        return known

    def _make_place(self, parts: tuple[bytes, ...], item: Item) -> "int | Clash":
        above = self._place(parts[:-1], item)
        if isinstance(above, Clash):
            return above
        tx, name = self._step.tx, parts[-1]
        found = tx.lookup(above, name)
        if found is not None:
            if found.is_directory:
                return found.attr.fid
            return Clash(item, found.attr.fid, f"{b'/'.join(parts).decode()!r} is no directory")
        parent = tx.need(above)
        inode = tx.new_inode(
            stat.S_IFDIR | 0o755,
            self._owner.uid,
            self._owner.gid,
            self._step.now_ns,
            nlink=2,
            size=DIRECTORY_BYTES,
            blocks=DIRECTORY_BLOCKS,
            flags=0 if parent.spec is None else DEFAULT_LAYOUT,
            parent=above,
            spec=parent.spec,
            project=parent.project,
        )
        self._step.leases.changed(above, name)
        tx.set_dentry(above, name, inode.attr.fid)
        tx.touch(above, 1, 1, self._step.now_ns)
        return inode.attr.fid

    def _describe_directory(self, fid: int, entry: ArchiveEntry) -> None:
        about = about_of(entry, self._owner)
        attr = self._step.tx.need(fid).attr
        if entry.meta and (attr.mode & 0o7777, attr.uid, attr.gid) != (about.mode, about.uid, about.gid):
            self._step.leases.changed(fid)
            edited = self._step.tx.edit(fid)
            edited.attr = replace(
                attr,
                mode=stat.S_IFDIR | about.mode,
                uid=about.uid,
                gid=about.gid,
                ctime_ns=self._step.now_ns,
                change=attr.change + 1,
            )

    def _layout(self, parent: int) -> Layout:
        """For all files of a directory alike: a released file is given OSTs when it comes."""
        layout = self._layouts.get(parent)
        if layout is None:
            directory = self._step.tx.need(parent)
            layout = self._layouts[self._root]
            if directory.spec is not None:
                try:
                    layout = new_layout(self._step, directory)
                except OSError:  # its pool is full; the OSTs are chosen anew when the file comes
                    pass
            self._layouts[parent] = layout
        return layout

    def _taken(self, parent: int, names: list[bytes]) -> dict[bytes, int]:
        """Which of these names the directory has already."""
        tx = self._step.tx
        taken = {name: fid for name in names if (fid := tx.dentries.get((parent, name), ABSENT))}
        if parent in tx.fresh or not tx.need(parent).entries:
            return taken
        store = tx.mdt.store
        limit = 2 * len(names) + 16
        rows = store.fetchall(store.statements.names_between, (parent, min(names), max(names), limit))
        if len(rows) == limit:  # many others between them: each name by itself
            return {name: inode.attr.fid for name in names if (inode := tx.lookup(parent, name)) is not None}
        for name, fid in rows:
            if tx.dentries.get((parent, name), fid):
                taken.setdefault(name, fid)
        return taken

    def _files(self, parent: int, items: list[Item]) -> list[int]:
        tx, now_ns = self._step.tx, self._step.now_ns
        taken = self._taken(parent, [item.parts[-1] for item in items])
        layout, project = self._layout(parent), tx.need(parent).project
        rows: list[tuple[int, bytes, int, str]] = []
        made: list[int] = []
        for item in items:
            name = item.parts[-1]
            if name in taken:
                fid = taken[name]
                what = "a directory" if tx.need(fid).is_directory else "another file"
                self._clashes.append(Clash(item, fid, f"{what} has its name", True))
                continue
            entry = item.entry
            about = about_of(entry, self._owner)
            row = row_of(0, self._link, entry, 0, now_ns)
            target = self._targets.get(item.key)
            if target is not None:
                row = row._replace(flags=_COPY)
                inode = tx.new_inode(
                    stat.S_IFLNK | 0o777,
                    about.uid,
                    about.gid,
                    now_ns,
                    size=len(target),
                    flags=ARCHIVED | COPIED,
                    project=project,
                    data=target,
                )
            else:
                inode = tx.new_inode(
                    stat.S_IFREG | about.mode,
                    about.uid,
                    about.gid,
                    now_ns,
                    size=entry.size,
                    blocks=1 if entry.size else 0,
                    flags=ARCHIVED | COPIED | (RELEASED if entry.size else 0),
                    layout=layout,
                    project=project,
                )
            attr = inode.attr
            tx.quiet.add(attr.fid)
            inode.attr = replace(attr, atime_ns=about.atime_ns, mtime_ns=about.mtime_ns)
            taken[name] = attr.fid
            tx.add_dentry(parent, name, attr.fid)
            tx.set_hsm(attr.fid, row._replace(fid=attr.fid))
            rows.append((self._link, item.key, attr.fid, ""))
            made.append(attr.fid)
            self._bytes += entry.size
        if made:
            self._step.leases.changed(parent)
            tx.touch(parent, 0, len(made), now_ns)
            put_rows("put_link_object", rows, self._step)
        return made


class About(NamedTuple):
    """Attributes that an object gives its file."""

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    atime_ns: int


def about_of(entry: ArchiveEntry, owner: Attr) -> About:
    """From the metadata that FSx for Lustre and nacrefs write, if it was asked for and is there; else as the directory
    that is linked, and the time of the object."""
    if not entry.meta:
        return About(0o644, owner.uid, owner.gid, entry.mtime_ns, entry.mtime_ns)
    meta = dict(entry.meta)
    mtime_ns = _number(meta.get("file-mtime", "").removesuffix("ns"), 10, entry.mtime_ns)
    return About(
        stat.S_IMODE(_number(meta.get("file-permissions", ""), 8, 0o755 if entry.key.endswith("/") else 0o644)),
        _number(meta.get("file-owner", ""), 10, owner.uid),
        _number(meta.get("file-group", ""), 10, owner.gid),
        mtime_ns,
        _number(meta.get("file-atime", "").removesuffix("ns"), 10, mtime_ns),
    )


def is_link(entry: ArchiveEntry) -> bool:
    """Whether an object is a symbolic link, as FSx for Lustre writes them: the target is the body."""
    mode = _number(dict(entry.meta).get("file-permissions", ""), 8, 0)
    return stat.S_ISLNK(mode) and 0 < entry.size <= TARGET_BYTES_MAX


def _number(text: str, base: int, default: int) -> int:
    try:
        return int(text, base) if text else default
    except ValueError:
        return default


def row_of(fid: int, link: int, entry: ArchiveEntry, version: int, now_ns: int) -> HsmRow:
    """The row of a file whose contents are this object's."""
    flags = _COPY | (int(HsmFlag.RELEASED) if entry.size else 0)
    return HsmRow(
        fid, flags, link, entry.key, version, entry.size, entry.etag, 0, b"", b"", entry.storage_class, now_ns
    )  # fmt: skip


def replace_contents(
    step: Step, fid: int, link: int, entry: ArchiveEntry, force: bool, restoring: bool = False
) -> bool:
    """The file's object is another one: so are its contents, from now on. What was here is thrown away. False if the
    file differs from the last object, too (`force`: it loses). `restoring`: who asks is bringing it in. OSError: EBUSY
    if it is in use, ENOENT if it is gone."""
    tx, leases = step.tx, step.leases
    inode = tx.inode(fid)
    if inode is None:
        raise OSError(errno.ENOENT, "the file was removed")
    leases.alone(fid)
    if leases.others(fid):
        raise Blocked(fid, Lease.NONE)
    row = hsm_of(tx, inode)
    dirty = row.archive != link or bool(row.flags_now(inode) & HsmFlag.DIRTY)
    if dirty and not force:
        return False
    if fid in tx.mdt.restoring and not restoring:
        raise OSError(errno.EBUSY, "it is being brought in")
    if not inode.attr.flags & RELEASED and tx.opens(fid):
        raise OSError(errno.EBUSY, "it is open")
    if row.key and row.archive != link:
        tx.drop_object(row.archive, row.key)
    forget_contents(step, inode, row)
    _describe(step, fid, link, entry)
    return True


def forget_contents(step: Step, inode: Inode, row: HsmRow) -> None:
    """Give up what is here of a file: its inline data, or its objects, also those that had come back in part."""
    tx, fid, layout = step.tx, inode.attr.fid, inode.layout
    assert layout is not None
    step.leases.changed(fid)
    tx.quiet.add(fid)
    tx.sent(fid)
    edited = tx.edit(fid)
    if inode.is_inline:
        tx.set_data(fid, b"")
    elif row.restored_ns == PARTLY or not inode.attr.flags & RELEASED:
        tx.add_intent(fid, -1, layout)
        edited.layout = replace(layout, generation=layout.generation + 1)


def _describe(step: Step, fid: int, link: int, entry: ArchiveEntry) -> None:
    """Size, time and state as those of an object whose contents are not here."""
    tx = step.tx
    edited = tx.edit(fid)
    attr = edited.attr
    about = about_of(entry, attr)
    edited.data_version += 1
    edited.attr = replace(
        attr,
        mode=stat.S_IFREG | (about.mode if entry.meta else attr.mode & 0o7777),
        uid=about.uid,
        gid=about.gid,
        size=entry.size,
        blocks=1 if entry.size else 0,
        mtime_ns=about.mtime_ns,
        ctime_ns=step.now_ns,
        change=attr.change + 1,
        flags=attr.flags & ~(INLINE | RELEASED) | ARCHIVED | COPIED | (RELEASED if entry.size else 0),
    )
    tx.set_hsm(fid, row_of(fid, link, entry, edited.data_version, step.now_ns))
    tx.run("put_link_object", (link, entry.key.encode(), fid, ""))


def remove_file(step: Step, fid: int, link: int, force: bool) -> list[int] | None:
    """The file's object is gone: so is the file, with all its names; the directories in which those were. None if it
    was changed here (`force`: it goes nevertheless). OSError: ENOENT if it is gone already, EBUSY while it comes."""
    tx, leases = step.tx, step.leases
    inode = tx.inode(fid)
    if inode is None or not inode.attr.nlink:
        raise OSError(errno.ENOENT, "the file was removed")
    leases.alone(fid)
    row = hsm_of(tx, inode)
    if row.archive != link:
        raise OSError(errno.ENOENT, "the file is another one by now")
    if row.flags_now(inode) & HsmFlag.DIRTY and not force:
        return None
    if fid in tx.mdt.restoring:
        raise OSError(errno.EBUSY, "it is being brought in")
    tx.sent(fid)
    edited = tx.edit(fid)
    edited.attr = replace(edited.attr, flags=edited.attr.flags & ~(ARCHIVED | COPIED))
    tx.set_hsm(fid, None)  # or its end would be the end of its object
    tx.run("delete_link_object", (link, row.key.encode(), fid))
    return remove_names(step, fid)


def remove_names(step: Step, fid: int) -> list[int]:
    """Remove all names of a file or symbolic link; the directories in which those were."""
    tx, leases = step.tx, step.leases
    leases.changed(fid)
    names = tx.names(fid)
    for parent, name in names:
        leases.changed(parent, name)
        tx.set_dentry(parent, name, ABSENT)
        release(step, fid, 0, False)
        tx.touch(parent, 0, -1, step.now_ns)
    return [parent for parent, _ in names]


def remove_empty(step: Step, fid: int, root: int, keep: set[int]) -> int:
    """Remove a directory that has no entries any more, unless it is the link's own or one of `keep`; the directory
    above it, 0 if nothing was removed."""
    tx = step.tx
    inode = tx.inode(fid)
    if inode is None or not inode.is_directory or inode.entries or fid == root or fid in keep:
        return 0
    ((parent, name),) = tx.names(fid)
    step.leases.changed(parent, name)
    tx.set_dentry(parent, name, ABSENT)
    release_directory(step, fid)
    tx.touch(parent, -1, -1, step.now_ns)
    return parent


def detach(step: Step, fid: int, link: int, key: bytes) -> None:
    """A file is the link's no more: it has no copy anywhere. OSError (EBUSY) if its contents are not here."""
    tx = step.tx
    inode = tx.inode(fid)
    if inode is not None:
        step.leases.truth(fid)
        tx.quiet.add(fid)
        if inode.attr.flags & RELEASED:
            raise OSError(errno.EBUSY, "its contents are in the bucket only")
        row = hsm_of(tx, inode)
        if row.archive == link:
            step.leases.changed(fid)
            edited = tx.edit(fid)
            edited.attr = replace(
                edited.attr, flags=edited.attr.flags & ~(ARCHIVED | COPIED), change=edited.attr.change + 1
            )
            tx.set_hsm(fid, None)
    tx.run("delete_link_object", (link, key, fid))


def check_not_sent(step: Step, fid: int, link: int, since_ns: int) -> None:
    """OSError (ENOENT) if the link's bucket has been sent the file since a moment: what was listed then of its object
    is not so any more."""
    inode = step.tx.inode(fid)
    row = None if inode is None else hsm_of(step.tx, inode)
    if row is not None and row.archive == link and row.archived_ns >= since_ns:
        raise OSError(errno.ENOENT, "the file was sent meanwhile")


def find_again(step: Step, fid: int, etag: str) -> None:
    """An object that had been missing when its file was to come is there."""
    inode = step.tx.inode(fid)
    if inode is None:
        return
    row = hsm_of(step.tx, inode)
    if row.flags & HsmFlag.LOST and row.etag == etag:
        put_hsm(step, inode, row._replace(flags=row.flags & ~int(HsmFlag.LOST)))


def put_rows(name: str, rows: Sequence[tuple[Any, ...]], step: Step) -> None:
    """Write rows of a link's tables."""
    for row in rows:
        step.tx.run(name, row)
