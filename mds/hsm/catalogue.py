"""What an archive's bucket says of the tree, so that the bucket alone is enough: directories, symbolic links, names,
and what changed about files since they were copied.

    nacre-catalogue/STAMP/N.jsonl.gz    records, a JSON object a line: directories first, each below those before it
    nacre-catalogue/current.json        which STAMP is complete; written last

Paths are written as keys are (`steps.key_part`), bytes in base64. A catalogue is one committed state of the MDT.
"""

import gzip
import stat
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from nacrefs.common.wire import AttrFlag
from nacrefs.mds.hsm.steps import key_part
from nacrefs.mds.snapshot import Snapshot

PREFIX: Final = "nacre-catalogue/"
CURRENT: Final = f"{PREFIX}current.json"
PART_BYTES: Final = 2 << 20
"""Of a part before it is compressed."""
_DIRECTORY: Final = "(i.mode & 61440) = 16384"
_FILE: Final = "(i.mode & 61440) = 32768"
_INODE: Final = "i.fid, i.mode, i.nlink, i.uid, i.gid, i.rdev, i.size, i.atime_ns, i.mtime_ns, i.ctime_ns, i.flags"


class Copy(msgspec.Struct, frozen=True, omit_defaults=True):
    """The copy that an archive has of a file (columns of `schema.hsm`)."""

    key: str
    version: int
    size: int
    etag: str = ""
    part_bytes: int = 0
    digests: bytes = b""
    storage_class: str = ""


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """One name. Records with the same fid are names of the same file."""

    path: str
    fid: int
    mode: int
    nlink: int
    uid: int
    gid: int
    size: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    rdev: int = 0
    target: bytes = b""
    xattrs: dict[str, bytes] = {}  # names as `key_part` writes them
    copy: Copy | None = None


class Current(msgspec.Struct, frozen=True):
    """The catalogue that is complete. `directories`: so many parts, the first ones, have directories. `uncopied`: so
    many files have no copy in this archive and are not in it."""

    stamp: str
    parts: int
    directories: int
    records: int
    uncopied: int


def part_key(stamp: str, number: int) -> str:
    """The key of a part."""
    return f"{PREFIX}{stamp}/{number}.jsonl.gz"


class Written(msgspec.Struct, frozen=True):
    """A catalogue in memory: its compressed parts, and what `Current` is to say of them."""

    parts: list[bytes]
    directories: int
    records: int
    uncopied: int


def write(snapshot: Snapshot, archive: int) -> Written:
    """The catalogue of an archive."""
    paths = _paths(snapshot)
    first = _Parts()
    first.add(_directories(snapshot, paths))
    rest = _Parts()
    rest.add(_others(snapshot, paths, archive))
    copied = f"SELECT fid FROM hsm WHERE archive = {archive} AND key <> ''"
    missing = snapshot.fetchone(f"SELECT count(*) FROM inode i WHERE {_FILE} AND i.fid NOT IN ({copied})")
    parts = first.done() + rest.done()
    return Written(parts, len(first.parts), first.records + rest.records, 0 if missing is None else missing[0])


class _Parts:
    """Records on their way into compressed parts."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.records = 0
        self._lines = bytearray()

    def add(self, records: Iterable[Record]) -> None:
        """Take records in."""
        encode = msgspec.json.Encoder().encode
        for record in records:
            self._lines += encode(record) + b"\n"
            self.records += 1
            if len(self._lines) >= PART_BYTES:
                self.done()

    def done(self) -> list[bytes]:
        """All parts, the last one ended."""
        if self._lines:
            self.parts.append(gzip.compress(bytes(self._lines), 6, mtime=0))
            self._lines.clear()
        return self.parts


def _paths(snapshot: Snapshot) -> dict[int, str]:
    """Where each directory is, parents before their children. The root's path is empty."""
    children: dict[int, list[tuple[int, bytes]]] = {}
    for parent, fid, name in snapshot.rows(
        f"SELECT d.parent, d.fid, d.name FROM dentry d JOIN inode i ON i.fid = d.fid WHERE {_DIRECTORY}"
    ):
        children.setdefault(parent, []).append((fid, bytes(name)))
    root = snapshot.fetchone("SELECT min(fid) FROM inode")
    top = 1 if root is None else int(root[0])
    paths = {top: ""}
    level = [top]
    while level:
        level_below: list[int] = []
        for parent in level:
            for fid, name in sorted(children.get(parent, ())):
                paths[fid] = _below(paths[parent], name)
                level_below.append(fid)
        level = level_below
    return paths


def _below(path: str, name: bytes) -> str:
    return f"{path}/{key_part(name)}" if path else key_part(name)


def _directories(snapshot: Snapshot, paths: dict[int, str]) -> Iterator[Record]:
    rows = {row[0]: row for row in snapshot.rows(f"SELECT {_INODE} FROM inode i WHERE {_DIRECTORY}")}
    for fid, path in paths.items():
        if fid in rows:
            yield _record(snapshot, path, rows[fid])


def _others(snapshot: Snapshot, paths: dict[int, str], archive: int) -> Iterator[Record]:
    """Everything that is no directory; files if the archive has a copy."""
    columns = "h.key, h.version, h.size, h.etag, h.part_bytes, h.digests, h.storage_class"
    names = f"FROM dentry d JOIN inode i ON i.fid = d.fid LEFT JOIN hsm h ON h.fid = i.fid AND h.archive = {archive}"
    wanted = f"NOT {_DIRECTORY} AND (NOT {_FILE} OR (h.key IS NOT NULL AND h.key <> ''))"
    for row in snapshot.fetchall(f"SELECT d.parent, d.name, {_INODE}, {columns} {names} WHERE {wanted}"):
        if row[0] in paths:
            copy = None
            if row[13]:
                key, version, size, etag, part_bytes, digests, storage_class = row[13:]
                copy = Copy(key, version, size, etag, part_bytes, bytes(digests), storage_class)
            yield _record(snapshot, _below(paths[row[0]], bytes(row[1])), row[2:13], copy)


def _record(snapshot: Snapshot, path: str, row: "tuple[int, ...]", copy: Copy | None = None) -> Record:
    fid, mode, nlink, uid, gid, rdev, size, atime_ns, mtime_ns, ctime_ns, flags = row
    xattrs: dict[str, bytes] = {}
    if flags & AttrFlag.XATTRS:
        for name, value in snapshot.fetchall(f"SELECT name, value FROM xattr WHERE fid = {fid}"):
            xattrs[key_part(bytes(name))] = bytes(value)
    target = b""
    if stat.S_ISLNK(mode) and (found := snapshot.fetchone(f"SELECT data FROM inline WHERE fid = {fid}")) is not None:
        target = bytes(found[0])
    return Record(path, fid, mode, nlink, uid, gid, size, atime_ns, mtime_ns, ctime_ns, rdev, target, xattrs, copy)
