"""Which function answers which request: the whole namespace as one table."""

from collections.abc import Callable
from typing import Any, Final

from nacrefs.common import wire
from nacrefs.mds.namespace import attributes, create, direct, files, layouts, listing, lookup, remove, rename, xattrs
from nacrefs.mds.transactions.step import Step

READS: Final[dict[type[Any], Callable[[Step, Any], Any]]] = {
    wire.Lookup: lookup.lookup,
    wire.GetAttr: lookup.get_attr,
    wire.Access: lookup.access,
    wire.GetParent: lookup.get_parent,
    wire.Readdir: listing.readdir,
    wire.GetXattrs: xattrs.get_xattrs,
    wire.GetXattr: xattrs.get_xattr,
    wire.GetLayout: layouts.get_layout,
}
"""Operations that never write."""

WRITES: Final[dict[type[Any], Callable[[Step, Any], Any]]] = {
    wire.SetAttr: attributes.set_attr,
    wire.Create: create.create,
    wire.Mknod: create.mknod,
    wire.Mkdir: create.mkdir,
    wire.Symlink: create.symlink,
    wire.Link: create.link,
    wire.Unlink: remove.unlink,
    wire.Rmdir: remove.rmdir,
    wire.Rename: rename.rename,
    wire.Open: files.open_file,
    wire.OpenDirect: direct.open_direct,
    wire.Commit: files.commit,
    wire.SetXattr: xattrs.set_xattr,
    wire.RemoveXattr: xattrs.remove_xattr,
    wire.SetLayout: layouts.set_layout,
}
"""Operations that write, or may (`Open`, `Commit`: NeedsBatch on a reading transaction says so)."""
