"""Which files (and symbolic links) of a batch the buckets of links are to follow: said in the same transaction that
changes them."""

import errno

from nacrefs.mds.hsm.rows import ARCHIVED, hsm_of
from nacrefs.mds.inode import Inode
from nacrefs.mds.namespace.bits import RELEASED
from nacrefs.mds.transactions.tx import Tx


def mark(tx: Tx) -> None:
    """Mark what this batch has made, changed or moved below directories whose links export, or away from there."""
    moved = {fid for fid in tx.dentries.values() if fid}
    known = tx.mdt.dirty
    above: dict[int, int] = {}
    for fid in tx.touched - tx.quiet:
        inode = tx.inodes.get(fid)
        if inode is None or (fid in known and fid not in tx.unmarked) or fid in tx.marked:
            continue
        base = tx.base.get(fid)
        if inode.is_directory:
            if base is None or fid not in moved:
                continue
        elif not (inode.is_regular or inode.is_symlink) or not (
            fid in moved or (base is not None and _changed(inode, base))
        ):
            continue
        link = link_of(tx, fid, inode, above)
        if not link and base is not None and inode.is_directory:  # it was moved away with all that is below it
            link = _below(tx, base.parent, above)
        if link:
            tx.mark(fid, link)


def _changed(inode: Inode, base: Inode) -> bool:
    """Whether an object says something else of the file by now. (That its owner is another one is not worth bringing
    its contents.)"""
    if inode.data_version != base.data_version:
        return True
    new, old = inode.attr, base.attr
    same = (new.mode, new.uid, new.gid, new.mtime_ns) == (old.mode, old.uid, old.gid, old.mtime_ns)
    return not same and not new.flags & RELEASED


def link_of(tx: Tx, fid: int, inode: Inode, above: dict[int, int]) -> int:
    """The exporting link that a file or directory is in, else the one in whose bucket its copy is; 0: none. `above`
    remembers what is known of directories."""
    exports = tx.mdt.exports
    if inode.is_directory:
        return _below(tx, inode.parent, above)
    for parent, _ in tx.names(fid):
        if link := _below(tx, parent, above):
            return link
    if inode.attr.flags & ARCHIVED:
        archive = hsm_of(tx, inode).archive
        if archive in exports.values():
            return archive
    return 0


def _below(tx: Tx, fid: int, above: dict[int, int]) -> int:
    """The exporting link of a directory, or of the nearest one above it; 0: there is none."""
    path: list[int] = []
    link = 0
    while fid not in above:
        path.append(fid)
        link = tx.mdt.exports.get(fid, 0)
        inode = tx.inode(fid)
        if link or inode is None or inode.parent == fid:
            break
        fid = inode.parent
    else:
        link = above[fid]
    for one in path:
        above[one] = link
    return link


def key_of(tx: Tx, fid: int, root: int) -> str:
    """The key of a file below a link's directory: its path from there, the first if it has several names. OSError:
    ENOENT if it is not below, EINVAL if that can be no key."""
    for parent, name in sorted(tx.names(fid)):
        parts = [name]
        while parent != root:
            directory = tx.need(parent)
            if directory.parent == parent:
                break
            names = tx.names(parent)
            if not names:  # (outside of a batch this may be seen of a directory that is just being removed)
                break
            parent, name = names[0]
            parts.append(name)
        else:
            try:
                key = b"/".join(reversed(parts)).decode()
            except UnicodeDecodeError:
                raise OSError(errno.EINVAL, "its path is no UTF-8, and so can be no key") from None
            if len(key.encode()) > 900:
                raise OSError(errno.ENAMETOOLONG, "its path is too long for a key")
            return key
    raise OSError(errno.ENOENT, "it is not below the link's directory")
