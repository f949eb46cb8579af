"""Symbolic links among the names of a link: objects that have the target as their body, and say in their metadata what
they are (FSx for Lustre's convention). Their contents cannot be given up or replaced as a file's can: where the object
wins, a symbolic link goes and what the object is takes its name.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from nacrefs.common import wire
from nacrefs.mds.hsm.rows import hsm_of
from nacrefs.mds.links import steps
from nacrefs.mds.links.marks import key_of
from nacrefs.mds.links.rows import Item
from nacrefs.mds.links.steps import Inserter
from nacrefs.mds.transactions.step import Step

if TYPE_CHECKING:
    from nacrefs.mds.service import Mds

READS: Final = 32
"""Targets that are asked for at a time."""


async def targets_of(mds: "Mds", link: int, items: Sequence[Item]) -> dict[bytes, bytes]:
    """What those of some keys point at that are symbolic links. OSError if the bucket does not say."""
    found: dict[bytes, bytes] = {}
    spec, limit = mds.hsm.archive_of(link), asyncio.Semaphore(READS)

    async def read(item: Item) -> None:
        async with limit:
            body: wire.Bytes = await mds.hsm.ask_one(wire.MoveRead(spec, item.entry.key))
        if body.data and b"\0" not in body.data:
            found[item.key] = body.data

    await asyncio.gather(*(read(item) for item in items if steps.is_link(item.entry)))
    return found


def make_room(step: Step, fid: int, link: int, root: int, key: str) -> bool:
    """A symbolic link goes, for the object `key` of a link's bucket is to have its name. False if it has another one by
    now."""
    tx = step.tx
    inode = tx.inode(fid)
    if inode is None or not _has(step, fid, root, key):
        return False
    row = hsm_of(tx, inode)
    if row.archive == link:
        steps.remove_file(step, fid, link, True)
        if row.key != key:  # it was renamed, and is not sent any more
            tx.drop_object(link, row.key)
        return True
    step.leases.alone(fid)
    tx.sent(fid)
    steps.remove_names(step, fid)
    return True


def _has(step: Step, fid: int, root: int, key: str) -> bool:
    try:
        return key_of(step.tx, fid, root) == key
    except OSError:
        return False


def give_way(step: Step, fid: int, link: int, root: int, item: Item, targets: Mapping[bytes, bytes]) -> bool:
    """What an object of the bucket is takes the name of a symbolic link, unless that has another one by now. OSError
    (ENOSPC) before anything is done."""
    inserter = Inserter(step, link, root, targets)
    if not make_room(step, fid, link, root, item.entry.key):
        return False
    inserter.insert([item])
    return True
