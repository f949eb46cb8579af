"""POSIX access control lists, kept as the kernel's xattrs `system.posix_acl_access` and `system.posix_acl_default`.

Who may do what is decided by each client's kernel (FUSE_POSIX_ACL); here is what has to change together with a list, in
the same step: the permission bits with the access list, the access list with chmod, both with what a directory's
default list hands down to new inodes. Source: POSIX 1003.1e draft 17, chapter 23, as Linux has it (`fs/posix_acl.c`);
format: `include/uapi/linux/posix_acl_xattr.h`.
"""

import errno
import stat
import struct
from typing import Final, NamedTuple

from msgspec.structs import replace

from nacrefs.mds.inode import Inode
from nacrefs.mds.transactions.tx import Tx

ACCESS: Final = b"system.posix_acl_access"
DEFAULT: Final = b"system.posix_acl_default"
NAMES: Final = (ACCESS, DEFAULT)

USER_OBJ: Final = 0x01
USER: Final = 0x02
GROUP_OBJ: Final = 0x04
GROUP: Final = 0x08
MASK: Final = 0x10
OTHER: Final = 0x20

_VERSION: Final = 2
_HEADER: Final = struct.Struct("<I")
_ENTRY: Final = struct.Struct("<HHI")
_NO_ID: Final = 0xFFFFFFFF
_ORDER: Final = (USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER)


class AclEntry(NamedTuple):
    """One line of a list: who (`tag`, and `qualifier` for USER and GROUP), and what (`permissions`, 0 to 7)."""

    tag: int
    permissions: int
    qualifier: int = _NO_ID


Acl = tuple[AclEntry, ...]


def decode_acl(value: bytes) -> Acl:
    """The list that an xattr's value stands for; OSError (EOPNOTSUPP for another version, EINVAL otherwise) if it is
    none. An empty list means that there is to be none."""
    if len(value) < _HEADER.size or (len(value) - _HEADER.size) % _ENTRY.size:
        raise OSError(errno.EINVAL, f"{len(value)} bytes are no access control list")
    if _HEADER.unpack_from(value)[0] != _VERSION:
        raise OSError(errno.EOPNOTSUPP, "an access control list of an unknown version")
    acl = tuple(AclEntry(*entry) for entry in _ENTRY.iter_unpack(value[_HEADER.size :]))
    if acl:
        _check(acl)
    return acl


def _check(acl: Acl) -> None:
    """EINVAL unless the entries come in their order, each of the three fixed ones is there once, and a mask is there if
    somebody is named."""
    tags = [entry.tag for entry in acl]
    places = [_ORDER.index(tag) if tag in _ORDER else -1 for tag in tags]
    named = USER in tags or GROUP in tags
    if (
        -1 in places
        or places != sorted(places)
        or any(tags.count(tag) != 1 for tag in (USER_OBJ, GROUP_OBJ, OTHER))
        or tags.count(MASK) > 1
        or (named and MASK not in tags)
        or any(entry.permissions > 7 for entry in acl)
        or any(entry.qualifier == _NO_ID for entry in acl if entry.tag in (USER, GROUP))
    ):
        raise OSError(errno.EINVAL, "the entries of the access control list make no valid one")


def encode_acl(acl: Acl) -> bytes:
    """The xattr's value for a list."""
    return _HEADER.pack(_VERSION) + b"".join(_ENTRY.pack(*entry) for entry in acl)


def bits_of(acl: Acl) -> tuple[int, bool]:
    """The permission bits (0 to 0o777) that a list stands for, and whether they say all that it says."""
    bits, plain, group, mask = 0, True, 0, -1
    for tag, permissions, _ in acl:
        if tag == USER_OBJ:
            bits |= permissions << 6
        elif tag == GROUP_OBJ:
            group = permissions
        elif tag == OTHER:
            bits |= permissions
        else:
            plain = False
            if tag == MASK:
                mask = permissions
    return bits | (group if mask < 0 else mask) << 3, plain


def with_bits(acl: Acl, mode: int) -> Acl:
    """A list after chmod: owner, others, and the mask (without one: the group) become what the bits say."""
    group_tag = MASK if any(entry.tag == MASK for entry in acl) else GROUP_OBJ
    new = {USER_OBJ: mode >> 6 & 7, group_tag: mode >> 3 & 7, OTHER: mode & 7}
    return tuple(AclEntry(tag, new.get(tag, permissions), who) for tag, permissions, who in acl)


def inherited(default: Acl, mode: int) -> tuple[Acl, int]:
    """What a new inode gets from its directory's default list: its access list (empty if the bits say all), and
    `mode` with the permissions that are left. The umask does not count then."""
    group_tag = MASK if any(entry.tag == MASK for entry in default) else GROUP_OBJ
    asked = {USER_OBJ: mode >> 6 & 7, group_tag: mode >> 3 & 7, OTHER: mode & 7}
    acl = tuple(AclEntry(tag, permissions & asked.get(tag, 7), who) for tag, permissions, who in default)
    bits, plain = bits_of(acl)
    return () if plain else acl, mode & ~0o777 | bits


# ------------------------------------------------------------------------------------------------------------- in steps


def set_access(tx: Tx, fid: int, value: bytes, drop_setgid: bool) -> None:
    """Give an inode an access list, and the bits that it stands for; one that says no more than these is not kept."""
    acl = decode_acl(value)
    edited = tx.edit(fid)
    if not acl:
        _drop(tx, edited, ACCESS)
        return
    bits, plain = bits_of(acl)
    mode = edited.attr.mode & ~0o777 | bits
    if drop_setgid:
        mode &= ~stat.S_ISGID
    edited.attr = replace(edited.attr, mode=mode)
    if plain:
        _drop(tx, edited, ACCESS)
    else:
        tx.set_xattr(fid, ACCESS, encode_acl(acl))


def set_default(tx: Tx, fid: int, value: bytes) -> None:
    """Give a directory a default list; OSError (EACCES) for what is none."""
    acl = decode_acl(value)
    inode = tx.need(fid)
    if acl and not inode.is_directory:
        raise OSError(errno.EACCES, "only a directory has a default access control list")
    if acl:
        tx.set_xattr(fid, DEFAULT, encode_acl(acl))
    else:
        _drop(tx, inode, DEFAULT)


def check_settable(inode: Inode, name: bytes, value: bytes) -> None:
    """OSError if `set_access` or `set_default` (by `name`) would refuse: called before the step's first write."""
    acl = decode_acl(value)
    if inode.is_symlink:
        raise OSError(errno.EOPNOTSUPP, "a symbolic link has no access control list")
    if name == DEFAULT and acl and not inode.is_directory:
        raise OSError(errno.EACCES, "only a directory has a default access control list")


def _drop(tx: Tx, inode: Inode, name: bytes) -> None:
    if name in tx.xattrs(inode):
        tx.set_xattr(inode.attr.fid, name, None)


def follow_mode(tx: Tx, fid: int, mode: int) -> None:
    """The mode was set by chmod: the access list, if there is one, follows."""
    value = tx.xattrs(tx.need(fid)).get(ACCESS)
    if value is not None:
        tx.set_xattr(fid, ACCESS, encode_acl(with_bits(decode_acl(value), mode)))


def mode_in(tx: Tx, parent: Inode, mode: int, umask: int) -> tuple[int, Acl, bytes | None]:
    """How an inode begins in a directory: its mode, its access list (empty: none), and the directory's default list,
    which a new directory takes over. Without a default list the umask counts."""
    default = tx.xattrs(parent).get(DEFAULT)
    if default is None:
        return mode & ~umask, (), None
    acl, mode = inherited(decode_acl(default), mode)
    return mode, acl, default


def hand_down(tx: Tx, inode: Inode, acl: Acl, default: bytes | None) -> None:
    """Give a new inode the lists that `mode_in` found for it."""
    fid = inode.attr.fid
    if acl:
        tx.set_xattr(fid, ACCESS, encode_acl(acl))
    if default is not None and inode.is_directory:
        tx.set_xattr(fid, DEFAULT, default)
