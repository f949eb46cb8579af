"""Links of directories to bucket prefixes as values: rows, what a refresh has found, and which name a key has."""

from typing import Final, NamedTuple

import msgspec

from nacrefs.common.wire import NAME_BYTES_MAX, ArchiveEntry, LinkSpec

ACTIVE, PAUSED, REMOVING = "active", "paused", "removing"
STATES: Final = (ACTIVE, PAUSED, REMOVING)
LOG_MAX: Final = 1000
"""Lines of a link's log that are kept."""
IMPORTS: Final = ("metadata", "data", "none")
AUTO_IMPORT: Final = ("new", "changed", "deleted")
CONFLICT: Final = ("fail", "skip", "overwrite-if-dirty", "overwrite")
_decode = msgspec.msgpack.Decoder(LinkSpec).decode
_encode = msgspec.msgpack.Encoder().encode
_FORBIDDEN: Final = frozenset((b"", b".", b".."))


class Counts(msgspec.Struct):
    """What one refresh has found and done. `deferred`: changed keys whose files are in use; the next refresh tries
    again. `conflicts`: keys whose files differ on both sides and were left alone."""

    keys: int = 0
    new: int = 0
    changed: int = 0
    deleted: int = 0
    conflicts: int = 0
    deferred: int = 0
    problems: int = 0
    bytes: int = 0
    seconds: float = 0.0

    @property
    def did(self) -> bool:
        """Whether anything was done, or could not be."""
        return bool(self.new or self.changed or self.deleted or self.conflicts or self.deferred)


class LinkRow(NamedTuple):
    """A link (columns of `schema.link`, the last ones as values)."""

    id: int
    fid: int
    spec: LinkSpec
    state: str = ACTIVE
    refreshed_ns: int = 0
    counts: Counts = Counts()
    reason: str = ""

    def columns(self) -> tuple[int, int, bytes, str, int, str, str]:
        """As it is stored."""
        counts = msgspec.json.encode(self.counts).decode()
        return self.id, self.fid, _encode(self.spec), self.state, self.refreshed_ns, counts, self.reason


def link_of(row: tuple[int, int, bytes, str, int, str, str]) -> LinkRow:
    """What `columns` stored."""
    number, fid, spec, state, refreshed_ns, counts, reason = row
    return LinkRow(number, fid, _decode(spec), state, refreshed_ns, msgspec.json.decode(counts, type=Counts), reason)


class Known(NamedTuple):
    """What the MDT knows of a key (`Statements.link_object`)."""

    key: bytes
    fid: int
    reason: str
    etag: str | None
    size: int | None
    archived_ns: int | None
    flags: int | None


class Item(NamedTuple):
    """A key that can be a file, or (it ends in `/`) a directory: its name in parts."""

    entry: ArchiveEntry
    key: bytes
    parts: list[bytes]
    directory: bool


def item_of(entry: ArchiveEntry) -> Item | str:
    """A key's place in the tree; or why it can have none."""
    key = entry.key.encode()
    directory = key.endswith(b"/")
    parts = (key[:-1] if directory else key).split(b"/")
    if _FORBIDDEN.isdisjoint(parts) and len(key) <= NAME_BYTES_MAX and b"\0" not in key:
        return Item(entry, key, parts, directory)
    for part in parts:
        if part in _FORBIDDEN:
            return f"a part of it is {part.decode()!r}" if part else "a part of it is empty"
        if b"\0" in part:
            return "it has a NUL in it"
        if len(part) > NAME_BYTES_MAX:
            return f"a part of it has {len(part)} bytes, a name at most {NAME_BYTES_MAX}"
    return Item(entry, key, parts, directory)
