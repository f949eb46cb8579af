"""Numbers that indexes for lifecycle rules begin with: on which OSTs a file lies, and where its copy. Pure."""

from collections.abc import Collection
from typing import Final

from nacrefs.common.layout import Layout
from nacrefs.mds.lifecycle.rules import STORAGE_CLASSES

_SETS: Final = 16
"""Into so many parts the OSTs are divided where a file lies on several: there are at most 2^16 numbers then, and of up
to 16 OSTs each tells exactly which."""
_RANK: Final = {name: rank for rank, name in enumerate(("", *STORAGE_CLASSES))}


def osts_place(layout: Layout | None) -> int:
    """`inode.copy_osts` of a file: -1 - N if it lies on OST N only, else a bit for each part that has OSTs of it."""
    osts = () if layout is None else layout.osts
    if len(osts) == 1:
        return -1 - osts[0]
    place = 0
    for ost in osts:
        place |= 1 << ost % _SETS
    return place


def touches(place: int, osts: Collection[int]) -> bool:
    """Whether files of this place may have bytes on one of some OSTs. (None that has is missed.)"""
    if place < 0:
        return -1 - place in osts
    return any(place >> ost % _SETS & 1 for ost in osts)


def class_place(archive: int, storage_class: str) -> int:
    """`inode.copy_class` of a file: the archive that has its copy, and in which class (empty: the archive's own)."""
    return archive << 4 | _RANK.get(storage_class, 1)
