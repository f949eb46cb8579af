"""An inode as the MDS holds it in memory."""

from typing import Final

import msgspec

from nacrefs.common.layout import Layout, LayoutSpec
from nacrefs.common.wire import Attr, AttrFlag
from nacrefs.mds.engine import Row

DIRECTORY_BYTES: Final = 4096
DIRECTORY_BLOCKS: Final = 8
"""What a directory shows as its size, as ext4 does for a small one."""
LINK_MAX: Final = (1 << 31) - 1
"""Most names of an inode."""

_INLINE: Final = int(AttrFlag.INLINE)
_S_IFMT: Final = 0o170000
_S_IFDIR: Final = 0o040000
_S_IFREG: Final = 0o100000
_S_IFLNK: Final = 0o120000

_encode = msgspec.msgpack.Encoder().encode
_layout_of = msgspec.msgpack.Decoder(Layout).decode
_spec_of = msgspec.msgpack.Decoder(LayoutSpec).decode


class Inode(msgspec.Struct, gc=False):
    """One inode: what `stat` shows, and what belongs to it besides (columns of `schema.inode`).

    An Inode in the cache is committed state and is never changed. A transaction changes its own copy (`Tx.edit`).
    """

    attr: Attr
    entries: int = 0
    parent: int = 0
    layout: Layout | None = None
    spec: LayoutSpec | None = None
    project: int = 0
    data_version: int = 0
    data: bytes | None = None
    """Inline contents or symlink target; None: not read yet, or it has none (`Tx.data`)."""
    xattrs: dict[bytes, bytes] | None = None
    """All extended attributes; None: not read yet, or it has none (`Tx.xattrs`). Never changed in place."""

    @property
    def is_directory(self) -> bool:
        """Whether this is a directory."""
        return self.attr.mode & _S_IFMT == _S_IFDIR

    @property
    def is_regular(self) -> bool:
        """Whether this is a regular file."""
        return self.attr.mode & _S_IFMT == _S_IFREG

    @property
    def is_symlink(self) -> bool:
        """Whether this is a symbolic link."""
        return self.attr.mode & _S_IFMT == _S_IFLNK

    @property
    def is_inline(self) -> bool:
        """Whether this is a regular file without objects: its contents, if any, are in the MDT."""
        return self.attr.flags & _INLINE != 0

    def copy(self) -> "Inode":
        """A copy that may be changed."""
        return Inode(
            self.attr,
            self.entries,
            self.parent,
            self.layout,
            self.spec,
            self.project,
            self.data_version,
            self.data,
            self.xattrs,
        )


def inode_of(row: Row) -> Inode:
    """The inode that a row of `schema.inode` describes."""
    layout, spec = row[16], row[17]
    return Inode(
        Attr(*row[:14]),
        row[14],
        row[15],
        None if layout is None else _layout_of(layout),
        None if spec is None else _spec_of(spec),
        row[18],
        row[19],
    )


def row_of(inode: Inode) -> Row:
    """The row of `schema.inode` that describes the inode."""
    layout, spec = inode.layout, inode.spec
    return (
        *msgspec.structs.astuple(inode.attr),
        inode.entries,
        inode.parent,
        None if layout is None else _encode(layout),
        None if spec is None else _encode(spec),
        inode.project,
        inode.data_version,
    )


def encode_layout(layout: Layout | LayoutSpec | None) -> bytes | None:
    """A layout as it is stored."""
    return None if layout is None else _encode(layout)


def decode_layout(data: bytes) -> Layout:
    """The layout that `encode_layout` stored."""
    return _layout_of(data)
