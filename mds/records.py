"""Rows of the smaller tables as values (columns: `schema.py`)."""

from typing import Final, NamedTuple

from nacrefs.common.layout import Layout


class SessionRecord(NamedTuple):
    """A client's session."""

    id: int
    client: str
    host: str
    root: int
    created_ns: int


class OstRecord(NamedTuple):
    """An OST as it was last heard of."""

    number: int
    """Its index in layouts."""
    uuid: str
    address: str
    total_bytes: int
    free_bytes: int
    objects: int


class Quota(NamedTuple):
    """Limits of one user, group or project (columns of `schema.quota`)."""

    kind: int
    id: int
    soft_bytes: int
    hard_bytes: int
    soft_inodes: int
    hard_inodes: int
    grace_bytes_s: int
    grace_inodes_s: int
    bytes_until_ns: int = 0
    inodes_until_ns: int = 0


class Intent(NamedTuple):
    """A file whose objects are to be cut at `size`."""

    fid: int
    size: int
    layout: Layout


class Destruction(NamedTuple):
    """A file that is gone, whose objects are to be destroyed."""

    fid: int
    layout: Layout


class MirrorRecord(NamedTuple):
    """A copy that is not good: object `number` of `fid` on `ost`, as `schema.mirror` says."""

    fid: int
    number: int
    ost: int
    state: int
    generation: int


DISCARDED: Final = 4
"""State of a copy that the layout does not have any more."""
