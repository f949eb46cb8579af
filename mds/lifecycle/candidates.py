"""Files that a rule may be about, in pages: by age, or by directory.

By age reads what is old enough, wherever it is; by directory what is in a subtree, whatever its age. The shorter way is
taken (`pages`). No page waits for anything: whoever takes them lets others have their turn in between.
"""

import heapq
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from nacrefs.mds.engine import Row, Store
from nacrefs.mds.hsm.rows import COPIED, RELEASED
from nacrefs.mds.lifecycle.indexes import BY_CHANGE, BY_USE, CLASS_BY_USE, OF_STATES, OSTS_BY_USE
from nacrefs.mds.lifecycle.places import class_place, touches
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


class Stretch(NamedTuple):
    """Files of an index (`path`, of `indexes.RULE_INDEXES`) with this key, as old as a moment or older."""

    path: str
    key: int
    until_ns: int


Scan = Sequence[Stretch]


def in_states(states: Iterable[int], since: Since, until_ns: int) -> Scan:
    """Files in one of these states of the tier (COPIED, RELEASED) that were not used, or changed, since a moment."""
    return [Stretch(OF_STATES[since], state, until_ns) for state in states]


def pages(store: Store, queries: Queries, scan: Scan, directory: int) -> Pages:
    """The files of a scan that are below a directory, and perhaps others, in pages that may be empty."""
    names = _names_below(store, queries, directory)
    if names <= SUBTREE_MAX and names < _count(store, queries, scan, names + 1):
        return in_subtree(store, queries, scan, directory)
    return by_age(store, queries, scan)


def by_age(store: Store, queries: Queries, scan: Scan) -> Pages:
    """The files of a scan in the whole tree, oldest first in each stretch."""
    for stretch in scan:
        later, same = queries.later[stretch.path], queries.same[stretch.path]
        at_ns = NEVER_NS
        # Once more after the last: some may have come meanwhile.
        while rows := store.fetchall(later, (stretch.key, at_ns, stretch.until_ns)):
            rows, beyond = _cut(rows)
            yield _candidates(rows)
            at_ns, fid = rows[-1][14], rows[-1][0]
            # Others may have been used at the very moment of the last.
            while beyond is not None and beyond[14] == at_ns:
                rows, beyond = _cut(store.fetchall(same, (stretch.key, at_ns, fid)))
                if rows:  # what was beyond may have moved on
                    yield _candidates(rows)
                    fid = rows[-1][0]


def on_osts(store: Store, queries: Queries, osts: Collection[int], until_ns: int) -> Pages:
    """Files with copies that may have bytes on some OSTs, those not used for longest first."""
    heap: list[tuple[int, int, int, list[Candidate], Pages]] = []
    place, row = -1 << 62, store.fetchone(queries.next_osts, (-1 << 62,))
    while row is not None:
        place = row[0]
        if touches(place, osts):
            _next_page(heap, by_age(store, queries, [Stretch(OSTS_BY_USE, place, until_ns)]), place)
            yield []
        row = store.fetchone(queries.next_osts, (place,))
    found: list[Candidate] = []
    while heap:
        _, fid, place, page, source = heapq.heappop(heap)
        same = next((at for at, one in enumerate(page) if one.fid != fid), len(page))  # a row for each name
        found += page[:same]
        rest = page[same:]
        if rest:
            heapq.heappush(heap, (used_ns(rest[0]), rest[0].fid, place, rest, source))
        else:
            _next_page(heap, source, place)
        if not rest or len(found) >= PAGE:
            yield found
            found = []
    yield found


def _next_page(heap: "list[tuple[int, int, int, list[Candidate], Pages]]", source: Pages, place: int) -> None:
    for page in source:
        if page:
            heapq.heappush(heap, (used_ns(page[0]), page[0].fid, place, page, source))
            return


def _cut(rows: list[Row]) -> tuple[list[Row], Row | None]:
    """The rows of PAGE files, and one of the file behind them, if there is one."""
    if len(rows) <= PAGE or len({row[0] for row in rows}) <= PAGE:
        return rows, None
    beyond = rows[-1]
    return [row for row in rows if row[0] != beyond[0]], beyond


def in_subtree(store: Store, queries: Queries, scan: Scan, directory: int) -> Pages:
    """The files of a scan that are below a directory, in no order."""
    for fid, _ in _directories(store, queries, directory):
        name = b""
        while rows := store.fetchall(queries.in_directory, (fid, name)):
            name = rows[-1][13]
            yield [one for one in _candidates(row for row in rows if row[14] & _S_IFMT == _S_IFREG) if _fits(scan, one)]
            if len(rows) < PAGE:
                break


def used_ns(one: Candidate) -> int:
    """When the file was last read or written."""
    return max(one.atime_ns, one.mtime_ns)


def _fits(scan: Scan, one: Candidate) -> bool:
    return any(_is_in(stretch, one) for stretch in scan)


def _is_in(stretch: Stretch, one: Candidate) -> bool:
    age_ns = used_ns(one) if stretch.path in (BY_USE, CLASS_BY_USE) else one.mtime_ns
    if age_ns > stretch.until_ns:
        return False
    if stretch.path in (BY_USE, BY_CHANGE):
        return one.flags & _STATES == stretch.key
    copied = one.flags & COPIED != 0 and one.archive is not None
    return copied and class_place(one.archive or 0, one.storage_class or "") == stretch.key


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
    found = 0
    for stretch in scan:
        if found < limit:
            row = store.fetchone(queries.count[stretch.path], (stretch.key, stretch.until_ns, limit - found))
            found += 0 if row is None else row[0]
    return found
