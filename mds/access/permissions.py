"""Who may do what to an inode: mode bits, access lists, sticky directories (POSIX; `fs/namei.c`, `fs/posix_acl.c`,
`fs/attr.c` of Linux). Nothing here knows of requests: values in, an answer or OSError out.
"""

import errno
import stat
from typing import Final

from nacrefs.common.export import Actor
from nacrefs.common.wire import Attr
from nacrefs.mds.inode import Inode
from nacrefs.mds.namespace.acl import ACCESS, GROUP, GROUP_OBJ, MASK, OTHER, USER, Acl, decode_acl
from nacrefs.mds.transactions.tx import XATTRS, Tx

READ: Final = 4
WRITE: Final = 2
EXECUTE: Final = 1
_ROOT: Final = 0


def may(attr: Attr, acl: Acl, actor: Actor, want: int) -> bool:
    """Whether somebody has all of these permissions; `acl` is empty if there is no access list."""
    mode = attr.mode
    if actor.uid == _ROOT:
        return not (want & EXECUTE and stat.S_ISREG(mode) and not mode & 0o111)
    if actor.uid == attr.uid:
        return not want & ~(mode >> 6)
    if acl and mode & 0o070:  # with an empty mask Linux goes by the bits alone
        return _listed(acl, attr, actor, want)
    if actor.is_in(attr.gid):
        return not want & ~(mode >> 3)
    return not want & ~mode


def _listed(acl: Acl, attr: Attr, actor: Actor, want: int) -> bool:
    """What an access list says of somebody who does not own the file."""
    mask = next((entry.permissions for entry in acl if entry.tag == MASK), 7)
    in_a_group = False
    for tag, permissions, who in acl:
        if tag == USER and who == actor.uid:
            return not want & ~(permissions & mask)
        if (tag == GROUP_OBJ and actor.is_in(attr.gid)) or (tag == GROUP and actor.is_in(who)):
            in_a_group = True
            if not want & ~(permissions & mask):
                return True
    if in_a_group:
        return False
    return not want & ~next((entry.permissions for entry in acl if entry.tag == OTHER), 0)


def acl_of(tx: Tx, inode: Inode) -> Acl:
    """The access list of an inode, empty if it has none."""
    value = tx.xattrs(inode).get(ACCESS) if inode.attr.flags & XATTRS else None
    return () if value is None else decode_acl(value)


def has(tx: Tx, inode: Inode, actor: Actor, want: int) -> bool:
    """Whether somebody has all of these permissions on an inode."""
    return may(inode.attr, acl_of(tx, inode), actor, want)


def need(tx: Tx, inode: Inode, actor: Actor, want: int) -> None:
    """OSError (EACCES) unless somebody has all of these permissions on an inode."""
    if not has(tx, inode, actor, want):
        words = {READ: "read", WRITE: "write", EXECUTE: "search" if inode.is_directory else "execute"}
        wanted = " and ".join(word for bit, word in words.items() if want & bit)
        raise OSError(errno.EACCES, f"uid {actor.uid} may not {wanted} it")


def need_owner(inode: Inode, actor: Actor) -> None:
    """OSError (EPERM) unless somebody owns an inode, or is root."""
    if actor.uid not in (_ROOT, inode.attr.uid):
        raise OSError(errno.EPERM, f"uid {actor.uid} does not own it")


def need_root(actor: Actor, what: str) -> None:
    """OSError (EPERM) unless somebody is root, and was not squashed."""
    if actor.uid != _ROOT:
        raise OSError(errno.EPERM, f"only root may {what}")


def need_unstuck(directory: Inode, victim: Inode, actor: Actor) -> None:
    """OSError (EPERM) if a sticky directory keeps somebody from removing or replacing what belongs to others."""
    if directory.attr.mode & stat.S_ISVTX and actor.uid not in (_ROOT, victim.attr.uid, directory.attr.uid):
        raise OSError(errno.EPERM, "the directory is sticky, and neither it nor the file is yours")
