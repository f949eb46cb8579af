"""Steps that mend names: what has none gets one in `lost+found`, what stands for nothing goes (`steps`)."""

from typing import Final

from msgspec.structs import replace

from nacrefs.common.fid import ROOT
from nacrefs.mds.fsck.steps import Recount, free_name, fresh
from nacrefs.mds.transactions.step import Step

ENTRIES_AT_ONCE: Final = 100


def attach(step: Step, fid: int, place: int) -> bool:
    """Give an inode a name in directory `place`; a directory loses the names that it has. False if it is not there."""
    tx, leases = step.tx, step.leases
    inode = fresh(step, fid)
    if inode is None or fid == ROOT:
        return False
    names = tx.names(fid)
    leases.alone(fid)
    if not inode.is_directory and names:
        return False
    name = free_name(step, place, fid)
    leases.changed(fid)
    leases.changed(place, name)
    recount = Recount(step)
    recount.add(place, entries=1, subdirectories=1 if inode.is_directory else 0)
    if inode.is_directory:
        for parent, old in names:
            leases.changed(parent, old)
            tx.forget_name(parent, old)
            recount.add(parent, entries=-1)
        if inode.parent != fid:
            recount.add(inode.parent, subdirectories=-1)
        recount.add(fid)
    tx.set_dentry(place, name, fid)
    recount.apply()
    edited = tx.edit(fid)
    if inode.is_directory:
        edited.parent = place
    else:
        edited.attr = replace(edited.attr, nlink=1, ctime_ns=step.now_ns, change=edited.attr.change + 1)
    return True


def settle_directory(step: Step, fid: int) -> bool:
    """A directory that has names keeps one, which is its parent's from then on; False if it has none."""
    tx, leases = step.tx, step.leases
    inode = fresh(step, fid)
    if inode is None or not inode.is_directory:
        return True
    names = sorted(tx.names(fid), key=lambda key: (key[0] != inode.parent, key))
    names = [key for key in names if (holder := fresh(step, key[0])) is not None and holder.is_directory] or names
    if not names:
        return False
    leases.alone(fid)
    recount = Recount(step)
    kept = names[0][0]
    leases.changed(fid)
    for parent, name in names[1:]:
        leases.changed(parent, name)
        tx.forget_name(parent, name)
        recount.add(parent, entries=-1)
    if kept != inode.parent:
        recount.add(kept, subdirectories=1)
        if inode.parent != fid:
            recount.add(inode.parent, subdirectories=-1)
        tx.edit(fid).parent = kept
    recount.apply()
    return True


def drop_names_of(step: Step, fid: int) -> None:
    """Names of an inode that does not exist."""
    if fresh(step, fid) is not None:
        return
    names = step.tx.names(fid)
    recount = Recount(step)
    for parent, name in names:
        step.leases.changed(parent, name)
    for parent, name in names:
        step.tx.forget_name(parent, name)
        recount.add(parent, entries=-1)
    recount.apply()


def empty_no_directory(step: Step, fid: int, place: int) -> bool:
    """Names in what is no directory: what has no other name gets one in `place`. True if there are more of them."""
    tx, leases = step.tx, step.leases
    store = tx.mdt.store
    holder = fresh(step, fid)
    if holder is not None and holder.is_directory:
        return False
    rows = store.fetchall(f"SELECT name, fid FROM dentry WHERE parent = {fid:d} LIMIT {ENTRIES_AT_ONCE}")
    children: dict[int, list[bytes]] = {}
    for name, child in rows:
        children.setdefault(child, []).append(name)
    recount = Recount(step)
    for child in children:
        leases.alone(child)
    for child, names in children.items():
        for name in names:
            tx.forget_name(fid, name)
        inode = fresh(step, child)
        if inode is None:
            continue
        leases.changed(child)
        left = len(tx.names(child)) - len(names)
        if left > 0 and not inode.is_directory:
            edited = tx.edit(child)
            edited.attr = replace(edited.attr, nlink=left, change=edited.attr.change + 1)
        elif left <= 0:
            name = free_name(step, place, child)
            leases.changed(place, name)
            tx.set_dentry(place, name, child)
            recount.add(place, entries=1, subdirectories=1 if inode.is_directory else 0)
            edited = tx.edit(child)
            if inode.is_directory:
                edited.parent = place
            else:
                edited.attr = replace(edited.attr, nlink=1, change=edited.attr.change + 1)
    recount.apply()
    return len(rows) == ENTRIES_AT_ONCE
