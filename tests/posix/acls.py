"""Access control lists as the kernel takes them: `system.posix_acl_access` and `system.posix_acl_default`."""

import random
import struct
from collections.abc import Sequence
from typing import Final

NAMES: Final = ("system.posix_acl_access", "system.posix_acl_default")
_NO_ID: Final = 0xFFFFFFFF
Entry = tuple[int, int, int]


def encode(entries: Sequence[Entry]) -> bytes:
    """Entries `(tag, permissions, id)` as the xattr's value (`linux/posix_acl_xattr.h`)."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def text(value: bytes) -> str:
    """For people."""
    return ",".join(
        f"{tag:x}:{who if who != _NO_ID else ''}:{can}" for tag, can, who in struct.iter_unpack("<HHI", value[4:])
    )


def random_acl(dice: random.Random, users: Sequence[int], groups: Sequence[int]) -> bytes:
    """A list, valid but for one time in twelve."""
    named = [(2, dice.randrange(8), uid) for uid in sorted(dice.sample(list(users), dice.randrange(3)))]
    teams = [(8, dice.randrange(8), gid) for gid in sorted(dice.sample(list(groups), dice.randrange(3)))]
    entries: list[Entry] = [(1, dice.randrange(8), _NO_ID), *named, (4, dice.randrange(8), _NO_ID), *teams]
    if named or teams or dice.random() < 0.3:
        entries.append((0x10, dice.randrange(8), _NO_ID))
    entries.append((0x20, dice.randrange(8), _NO_ID))
    if dice.random() < 1 / 12:
        match dice.randrange(4):
            case 0:
                del entries[dice.randrange(len(entries))]
            case 1:
                entries.append(dice.choice(entries))
            case 2:
                entries = []
            case _:
                entries[0] = (1, 9, _NO_ID)
    return encode(entries)
