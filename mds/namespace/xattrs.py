"""Extended attributes: those that are stored, and those that the server computes (`nacre.*`)."""

import errno
from typing import Final

from msgspec.structs import replace

from nacrefs.common.fid import format_fid
from nacrefs.common.layout import LayoutSpec
from nacrefs.common.layoutspec import format_layout, format_spec, parse_spec
from nacrefs.common.wire import (
    CAPABILITIES,
    NAME_BYTES_MAX,
    XATTR_BYTES_MAX,
    GetXattr,
    GetXattrs,
    Node,
    RemoveXattr,
    SetXattr,
    XattrFlag,
    Xattrs,
    XattrValue,
)
from nacrefs.mds.inode import Inode
from nacrefs.mds.namespace import acl
from nacrefs.mds.namespace.attributes import writers
from nacrefs.mds.namespace.bits import WANT_LAYOUT, WANT_LEASE
from nacrefs.mds.namespace.layouts import apply_spec, effective_spec
from nacrefs.mds.namespace.nodes import node
from nacrefs.mds.transactions.step import Step
from nacrefs.mds.transactions.tx import Tx

LAYOUT: Final = b"nacre.layout"
FID: Final = b"nacre.fid"
PATH: Final = b"nacre.path"
INODE_XATTRS_BYTES_MAX: Final = 1 << 20
"""Most bytes of all names and values of one inode, so that they fit in one reply."""
_STORED: Final = (b"user.", b"trusted.", b"security.")
"""Prefixes; who may use which, and on what, each client's kernel knows."""


def get_xattrs(step: Step, request: GetXattrs) -> Xattrs:
    """All stored attributes, in name order."""
    inode = step.tx.inode(request.fid)
    if inode is None and step.tx.ghost(request.fid) is not None:
        return Xattrs(())
    inode = step.tx.need(request.fid)
    step.leases.truth(request.fid)
    return Xattrs(tuple(sorted(step.tx.xattrs(inode).items())))


def get_xattr(step: Step, request: GetXattr) -> XattrValue:
    """One attribute, computed or stored; OSError (ENODATA) if the inode does not have it."""
    tx, name = step.tx, request.name
    inode = tx.need(request.fid)
    step.leases.truth(request.fid)
    if name == FID:
        return XattrValue(format_fid(request.fid).encode())
    if name == PATH:
        return XattrValue(path_of(tx, request.fid))
    if name == LAYOUT:
        return XattrValue(_layout_text(step, inode).encode())
    value = tx.xattrs(inode).get(name)
    if value is None:
        raise _no_data(name)
    return XattrValue(value)


def _layout_text(step: Step, inode: Inode) -> str:
    if inode.layout is not None:
        return format_layout(inode.layout)
    if inode.is_directory:
        return format_spec(effective_spec(step, inode))
    raise _no_data(LAYOUT)


def path_of(tx: Tx, fid: int) -> bytes:
    """A path from the root to an inode, the first in order if it has several names; OSError (ENOENT) for an orphan."""
    parts: list[bytes] = []
    while True:
        inode = tx.need(fid)
        if inode.is_directory and inode.parent == fid:
            return b"/" + b"/".join(reversed(parts))
        names = tx.names(fid)
        if not names:
            raise OSError(errno.ENOENT, "the file has been removed")
        fid, name = min(names)
        parts.append(name)


def set_xattr(step: Step, request: SetXattr) -> Node:
    """Set an attribute; `nacre.layout` sets a layout."""
    tx, fid, name, value, flags = step.tx, request.fid, request.name, request.value, request.flags
    inode = tx.need(fid)
    if name == LAYOUT:
        apply_spec(step, fid, parse_spec(value))
        return node(step, tx.need(fid), WANT_LEASE | WANT_LAYOUT)  # whoever asks may be about to write
    if name in acl.NAMES:
        return _set_acl(step, inode, request)
    _check_stored(name)
    if len(value) > XATTR_BYTES_MAX:
        raise OSError(errno.E2BIG, f"value of {len(value)} bytes is longer than {XATTR_BYTES_MAX}")
    xattrs = tx.xattrs(inode)
    if flags & XattrFlag.CREATE and name in xattrs:
        raise FileExistsError(errno.EEXIST, "the attribute exists", name)
    if flags & XattrFlag.REPLACE and name not in xattrs:
        raise _no_data(name)
    total = sum(len(key) + len(old) for key, old in xattrs.items() if key != name) + len(name) + len(value)
    if total > INODE_XATTRS_BYTES_MAX:
        raise OSError(errno.ENOSPC, f"extended attributes of one file are bounded to {INODE_XATTRS_BYTES_MAX} bytes")
    return _change(step, fid, name, value)


def remove_xattr(step: Step, request: RemoveXattr) -> Node:
    """Remove an attribute; `nacre.layout` of a directory: it inherits again."""
    tx, fid, name = step.tx, request.fid, request.name
    inode = tx.need(fid)
    if name == LAYOUT:
        if inode.spec is None:
            raise _no_data(name)
        apply_spec(step, fid, LayoutSpec())
        return node(step, tx.need(fid), WANT_LEASE)
    if name not in acl.NAMES:
        _check_stored(name)
    elif name not in tx.xattrs(inode):
        return node(step, inode, WANT_LEASE)  # it is as was asked
    if name not in tx.xattrs(inode):
        raise _no_data(name)
    return _change(step, fid, name, None)


def _set_acl(step: Step, inode: Inode, request: SetXattr) -> Node:
    """Set an access control list; the permission bits go with the access list."""
    tx, fid, value = step.tx, request.fid, request.value
    if len(value) > XATTR_BYTES_MAX:
        raise OSError(errno.E2BIG, f"value of {len(value)} bytes is longer than {XATTR_BYTES_MAX}")
    acl.check_settable(inode, request.name, value)
    step.leases.alone(fid, contents=False)
    step.leases.changed(fid)
    if request.name == acl.ACCESS:
        acl.set_access(tx, fid, value, request.drop_setgid)
    else:
        acl.set_default(tx, fid, value)
    edited = tx.edit(fid)
    edited.attr = replace(edited.attr, ctime_ns=step.now_ns, change=edited.attr.change + 1)
    return node(step, edited, WANT_LEASE)


def _change(step: Step, fid: int, name: bytes, value: bytes | None) -> Node:
    step.leases.alone(fid, contents=False)
    step.leases.changed(fid, told=writers(step, fid) if name == CAPABILITIES else ())
    step.tx.set_xattr(fid, name, value)
    edited = step.tx.edit(fid)
    edited.attr = replace(edited.attr, ctime_ns=step.now_ns, change=edited.attr.change + 1)
    return node(step, edited, WANT_LEASE)


def _check_stored(name: bytes) -> None:
    """OSError unless this names an attribute that can be stored."""
    if len(name) > NAME_BYTES_MAX:
        raise OSError(errno.ERANGE, f"attribute name of {len(name)} bytes is longer than {NAME_BYTES_MAX}")
    if not name.startswith(_STORED):
        raise OSError(errno.EOPNOTSUPP, f"attribute {name!r} cannot be set (user., trusted., security. and ACLs can)")
    if b"\0" in name or name in _STORED:
        raise OSError(errno.EINVAL, f"attribute {name!r} has no name behind its prefix, or a NUL in it")


def _no_data(name: bytes) -> OSError:
    return OSError(errno.ENODATA, "no such attribute", name)
