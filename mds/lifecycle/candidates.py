"""Files that a rule may be about, in pages: by age, by directory, or by the storage class of their copies.

By age reads what is old enough, wherever it is; by directory what is in a subtree, whatever its age. The shorter way is
taken (`pages`). No page waits for anything: whoever takes them lets others have their turn in between.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

from nacrefs.mds.engine import Row, Store
from nacrefs.mds.hsmrows import COPIED, RELEASED
from nacrefs.mds.lifecycle.queries import DIRECTORIES, PAGE, Queries
from nacrefs.mds.lifecycle.rules import Since

NEVER_NS: Final = -(1 << 62)
SUBTREE_MAX: Final = 50_000
"""A subtree with more names than this is not weighed against the files that are old enough."""
_STATES: Final = COPIED | RELEASED
_S_IFMT: Final = 0o170000
_S_IFREG: Final = 0o100000


class Candidate(NamedTuple):
    """A name of a regular file, with what is committed of the file and of its copy (None: it has none)."""

    fid: int
    uid: int
    gid: int
    size: int
    atime_ns: int
    mtime_ns: int
    flags: int
    data_version: int
    copy_flags: int | None
    archive: int | None
    version: int | None
    storage_class: str | None
    parent: int
    name: bytes


Pages = Iterator[list[Candidate]]


class Scan(NamedTuple):
    """Files in one of these states of the tier (`schema.TIER_STATE`) that were not used, or changed, since a moment."""

    states: tuple[int, ...]
    since: Since
    until_ns: int


def pages(store: Store, queries: Queries, scan: Scan, directory: int) -> Pages:
    """The files of a scan that are below a directory, and perhaps others, in pages that may be empty."""
    names = _names_below(store, queries, directory)
    if names <= SUBTREE_MAX and names < _count(store, queries, scan, names + 1):
        return in_subtree(store, queries, scan, directory)
    return by_age(store, queries, scan)


def by_age(store: Store, queries: Queries, scan: Scan) -> Pages:
    """The files of a scan in the whole tree, oldest first in each state."""
    used = scan.since is Since.ACCESS
    later = queries.by_use if used else queries.by_change
    same = queries.by_use_same if used else queries.by_change_same
    for state in scan.states:
        at_ns = NEVER_NS
        while rows := store.fetchall(later, (state, at_ns, scan.until_ns)):
            yield _candidates(rows)
            at_ns, fid = rows[-1][14], rows[-1][0]
            # Others may have been used at the very moment of the last.
            while len(rows) >= PAGE and (rows := store.fetchall(same, (state, at_ns, fid))):
                yield _candidates(rows)
                fid = rows[-1][0]


def in_subtree(store: Store, queries: Queries, scan: Scan, directory: int) -> Pages:
    """The files of a scan that are below a directory, in no order."""
    for fid, _ in _directories(store, queries, directory):
        name = b""
        while rows := store.fetchall(queries.in_directory, (fid, name)):
            name = rows[-1][13]
            yield [one for one in _candidates(row for row in rows if row[14] & _S_IFMT == _S_IFREG) if _fits(scan, one)]
            if len(rows) < PAGE:
                break


def by_class(store: Store, queries: Queries, archive: int, storage_class: str) -> Pages:
    """The files whose copies lie in one storage class of an archive."""
    fid = 0
    while rows := store.fetchall(queries.by_class, (archive, storage_class, fid)):
        fid = rows[-1][0]
        yield _candidates(rows)


def used_ns(one: Candidate) -> int:
    """When the file was last read or written."""
    return max(one.atime_ns, one.mtime_ns)


def _fits(scan: Scan, one: Candidate) -> bool:
    at_ns = used_ns(one) if scan.since is Since.ACCESS else one.mtime_ns
    return one.flags & _STATES in scan.states and at_ns <= scan.until_ns


def _candidates(rows: "Iterator[Row] | list[Row]") -> list[Candidate]:
    return [Candidate(*row[:14]) for row in rows if row[12] is not None]


def _directories(store: Store, queries: Queries, top: int) -> Iterator[tuple[int, int]]:
    """A directory and all below it: fid and number of names. The number of the first is not told (0)."""
    stack = [top]
    yield top, 0
    while stack:
        parent, after = stack.pop(), 0
        while rows := store.fetchall(queries.directories, (parent, after)):
            after = rows[-1][0]
            for fid, entries in rows:
                if fid != parent:  # the root is its own parent
                    stack.append(fid)
                    yield fid, entries
            if len(rows) < DIRECTORIES:
                break


def _names_below(store: Store, queries: Queries, directory: int) -> int:
    """How many names are below a directory; at least SUBTREE_MAX + 1 if there are too many to go on counting."""
    row = store.fetchone(store.statements.inode, (directory,))
    names = 0 if row is None else row[14]
    for _, entries in _directories(store, queries, directory):
        names += entries
        if names > SUBTREE_MAX:
            break
    return int(names)


def _count(store: Store, queries: Queries, scan: Scan, limit: int) -> int:
    """How many files a scan has in the whole tree; not more than `limit`."""
    statement = queries.count_by_use if scan.since is Since.ACCESS else queries.count_by_change
    found = 0
    for state in scan.states:
        if found < limit:
            row = store.fetchone(statement, (state, scan.until_ns, limit - found))
            found += 0 if row is None else row[0]
    return found
