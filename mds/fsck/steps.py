"""What mends the tree, as steps of the journal: each makes one inode, or a directory and what hangs on it, right.

A step here runs before all others of its batch (`alone_in_batch`), so SQL is all there is: it forgets what the cache
has of the inodes that it looks at, counts anew, and writes only what differs. It may find that nothing is wrong any
more. Here is what all of them need; `inodes` and `names` have the steps.
"""

import errno
import stat
from collections.abc import Callable
from typing import Any, Final

from msgspec.structs import replace

from nacrefs.common.fid import ROOT
from nacrefs.mds.inode import DIRECTORY_BLOCKS, DIRECTORY_BYTES, Inode
from nacrefs.mds.transactions.step import Step

AGAIN: Final = object()
"""The step was not the first of its batch: submit it again."""
LOST_FOUND: Final = b"lost+found"


def alone_in_batch(operation: Callable[[Step], Any], step: Step) -> Any:
    """The operation's result, or AGAIN if another step has written before it in this batch."""
    return AGAIN if step.tx.writes else operation(step)


def fresh(step: Step, fid: int) -> Inode | None:
    """The inode as SQL, or this step, has it."""
    if fid not in step.tx.inodes:
        step.tx.mdt.cache.drop_inode(fid)
    return step.tx.inode(fid)


def count(step: Step, statement: str, *parameters: int) -> int:
    """A number that SQL counts."""
    row = step.tx.mdt.store.fetchone(statement, parameters)
    assert row is not None
    return int(row[0])


class Recount:
    """What a step adds to the directories that it changes; `apply` gives them the counts that are right then."""

    def __init__(self, step: Step) -> None:
        self._step = step
        self._added: dict[int, list[int]] = {}

    def add(self, fid: int, entries: int = 0, subdirectories: int = 0) -> None:
        """A directory has so many more of these."""
        added = self._added.setdefault(fid, [0, 0])
        added[0] += entries
        added[1] += subdirectories

    def apply(self) -> None:
        """Write the counts."""
        step = self._step
        tx, statements = step.tx, step.tx.mdt.store.statements
        for fid, (entries, subdirectories) in self._added.items():
            inode = fresh(step, fid)
            if inode is None or not inode.is_directory:
                continue
            entries += count(step, statements.count_entries, fid)
            nlink = 2 + subdirectories + count(step, statements.count_subdirectories, fid, fid)
            attr = inode.attr
            edited = tx.edit(fid)
            edited.entries = entries
            edited.attr = replace(attr, nlink=nlink, mtime_ns=step.now_ns, ctime_ns=step.now_ns, change=attr.change + 1)


def lost_found(step: Step) -> int:
    """The directory for what has no name; made if it is not there."""
    tx = step.tx
    found = tx.lookup(ROOT, LOST_FOUND)
    if found is not None:
        if not found.is_directory:
            raise NotADirectoryError(errno.ENOTDIR, "/lost+found is not a directory: rename it, then try again")
        return found.attr.fid
    step.leases.alone(ROOT)
    step.leases.changed(ROOT, LOST_FOUND)
    made = tx.new_inode(
        stat.S_IFDIR | 0o700, 0, 0, step.now_ns, nlink=2, size=DIRECTORY_BYTES, blocks=DIRECTORY_BLOCKS, parent=ROOT
    )
    tx.set_dentry(ROOT, LOST_FOUND, made.attr.fid)
    tx.touch(ROOT, 1, 1, step.now_ns)
    return made.attr.fid


def free_name(step: Step, place: int, fid: int) -> bytes:
    """A name for an inode in directory `place`."""
    name = b"#%x" % fid
    while step.tx.lookup(place, name) is not None:
        name += b"~"
    return name
