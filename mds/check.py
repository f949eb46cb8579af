"""Is the tree whole? Every invariant that `schema.py` states, asked of SQL. What mends a finding: `mds/fsck`."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from nacrefs.common.fid import FIRST_FREE, ROOT, fid_counter, fid_mdt
from nacrefs.common.layout import Layout, LayoutSpec
from nacrefs.common.wire import AttrFlag, HsmFlag, QuotaDrift
from nacrefs.mds.access.accounts import Triple
from nacrefs.mds.checktables import table_findings
from nacrefs.mds.findings import Finding, Question, Readable
from nacrefs.mds.lifecycle.places import class_place, osts_place

_DIR: Final = "(mode & 61440) = 16384"
_REG: Final = "(mode & 61440) = 32768"
_LNK: Final = "(mode & 61440) = 40960"
_XATTRS: Final = int(AttrFlag.XATTRS)
_INLINE: Final = int(AttrFlag.INLINE)
_COPIED: Final = int(AttrFlag.COPIED)
_DEFAULT: Final = int(AttrFlag.DEFAULT_LAYOUT)

_ARCHIVED: Final = int(AttrFlag.ARCHIVED)
_RELEASED: Final = int(AttrFlag.RELEASED)
_HSM_RELEASED: Final = int(HsmFlag.RELEASED)


QUESTIONS: Final = (
    Question(
        "dangling-name",
        "SELECT d.fid, d.parent FROM dentry d LEFT JOIN inode i ON i.fid = d.fid WHERE i.fid IS NULL",
        "has a name in directory {1} but no inode",
    ),
    Question(
        "name-in-no-directory",
        f"SELECT d.parent FROM dentry d LEFT JOIN inode i ON i.fid = d.parent AND {_DIR} WHERE i.fid IS NULL",
        "has entries but is not a directory",
    ),
    Question(
        "link-count",
        "SELECT i.fid, i.nlink, count(d.fid) FROM inode i LEFT JOIN dentry d ON d.fid = i.fid"
        f" WHERE NOT {_DIR} GROUP BY i.fid, i.nlink HAVING i.nlink <> count(d.fid)",
        "has link count {1} but {2} names",
    ),
    Question(
        "directory-links",
        "SELECT i.fid, i.nlink, count(c.fid) FROM inode i LEFT JOIN"
        f" (SELECT fid, parent FROM inode WHERE {_DIR} AND parent <> fid) c ON c.parent = i.fid"
        f" WHERE {_DIR} GROUP BY i.fid, i.nlink HAVING i.nlink <> 2 + count(c.fid)",
        "is a directory with link count {1} but {2} subdirectories",
    ),
    Question(
        "entry-count",
        "SELECT i.fid, i.entries, count(d.fid) FROM inode i LEFT JOIN dentry d ON d.parent = i.fid"
        " GROUP BY i.fid, i.entries HAVING i.entries <> count(d.fid)",
        "says that it has {1} entries but has {2}",
    ),
    Question(
        "lost-directory",
        f"SELECT i.fid, i.parent FROM inode i WHERE {_DIR} AND i.parent <> i.fid AND NOT EXISTS"
        " (SELECT 1 FROM dentry d WHERE d.fid = i.fid AND d.parent = i.parent)",
        "is a directory without a name in its parent {1}",
    ),
    Question(
        "directory-names",
        f"SELECT d.fid, count(*) FROM dentry d JOIN inode i ON i.fid = d.fid WHERE {_DIR}"
        " GROUP BY d.fid HAVING count(*) > 1",
        "is a directory with {1} names",
    ),
    Question(
        "parent-of-file",
        f"SELECT fid, parent FROM inode WHERE NOT {_DIR} AND parent <> 0",
        "is no directory but has parent {1}",
    ),
    Question(
        "unreachable",
        f"WITH RECURSIVE tree(fid) AS (SELECT fid FROM inode WHERE {_DIR} AND parent = fid UNION"
        " SELECT d.fid FROM dentry d JOIN tree ON d.parent = tree.fid)"
        " SELECT fid FROM inode WHERE nlink > 0 AND fid NOT IN (SELECT fid FROM tree)",
        "cannot be reached from the root",
    ),
    Question(
        "orphan-inode",
        "SELECT fid FROM inode WHERE nlink = 0 AND fid NOT IN (SELECT fid FROM open)",
        "has no name and nobody has it open",
    ),
    Question(
        "inline-flags",
        "SELECT n.fid, n.mode, n.flags FROM inline l JOIN inode n ON n.fid = l.fid"
        f" WHERE NOT {_LNK} AND NOT ({_REG} AND (flags & {_INLINE}) <> 0)",
        "has inline contents but mode {1:o} and flags {2}",
    ),
    Question(
        "inline-without-inode",
        "SELECT l.fid FROM inline l LEFT JOIN inode i ON i.fid = l.fid WHERE i.fid IS NULL",
        "has contents but no inode",
    ),
    Question(
        "inline-size",
        "SELECT l.fid, length(l.data), i.size FROM inline l JOIN inode i ON i.fid = l.fid"
        f" WHERE length(l.data) > i.size OR length(l.data) = 0 OR ({_LNK} AND length(l.data) <> i.size)",
        "has {1} bytes of inline contents but size {2}",
    ),
    Question(
        "target-missing",
        f"SELECT fid FROM inode WHERE {_LNK} AND fid NOT IN (SELECT fid FROM inline)",
        "is a symbolic link without a target",
    ),
    Question(
        "inline-not-file",
        f"SELECT fid, flags FROM inode WHERE (flags & {_INLINE}) <> 0 AND NOT {_REG}",
        "is not a regular file but has flags {1}",
    ),
    Question(
        "layout-presence",
        f"SELECT fid FROM inode WHERE (layout IS NULL) = ({_REG})",
        "has a layout without being a file, or is a file without one",
    ),
    Question(
        "default-layout-flag",
        f"SELECT fid, flags FROM inode WHERE (spec IS NULL) = ((flags & {_DEFAULT}) <> 0)"
        f" OR (spec IS NOT NULL AND NOT {_DIR})",
        "has flags {1}, which do not agree with its default layout",
    ),
    Question(
        "xattr-flag",
        f"SELECT fid, flags FROM inode WHERE ((flags & {_XATTRS}) <> 0) <> (fid IN (SELECT fid FROM xattr))",
        "has flags {1}, which do not agree with its extended attributes",
    ),
    Question(
        "xattrs-without-inode",
        "SELECT x.fid FROM xattr x LEFT JOIN inode i ON i.fid = x.fid WHERE i.fid IS NULL",
        "has xattrs but no inode",
    ),
    Question(
        "open-without-session",
        "SELECT o.fid, o.session FROM open o LEFT JOIN session s ON s.id = o.session WHERE s.id IS NULL",
        "is open in session {1}, which does not exist",
    ),
    Question(
        "open-without-inode",
        "SELECT o.fid, o.session FROM open o LEFT JOIN inode i ON i.fid = o.fid WHERE i.fid IS NULL",
        "is open but has no inode",
    ),
    Question(
        "destroyed-file",
        "SELECT fid FROM destroy WHERE fid IN (SELECT fid FROM inode)",
        "has an inode but its objects are being destroyed",
    ),
    Question(
        "negative-size",
        "SELECT fid, size, blocks FROM inode WHERE size < 0 OR blocks < 0",
        "has size {1} in {2} blocks",
    ),
    Question(
        "self-parent",
        f"SELECT fid FROM inode WHERE {_DIR} AND parent = fid AND fid <> {ROOT}",
        "is its own parent without being the root",
    ),
    Question(
        "archived-flag",
        f"SELECT fid, flags FROM inode WHERE ((flags & {_ARCHIVED}) <> 0) <> (fid IN (SELECT fid FROM hsm))",
        "has flags {1}, which do not agree with its state in the lifecycle tier",
    ),
    Question(
        "released-flag",
        f"SELECT i.fid, i.flags, h.flags FROM hsm h JOIN inode i ON i.fid = h.fid"
        f" WHERE ((i.flags & {_RELEASED}) <> 0) <> ((h.flags & {_HSM_RELEASED}) <> 0)",
        "has flags {1} but is in state {2} in the lifecycle tier",
    ),
    Question(
        "hsm-without-inode",
        "SELECT h.fid FROM hsm h LEFT JOIN inode i ON i.fid = h.fid WHERE i.fid IS NULL",
        "has a state in the lifecycle tier but no inode",
    ),
    Question(
        "archive-unknown",
        "SELECT fid, archive FROM hsm WHERE archive <> 0 AND archive NOT IN (SELECT id FROM archive)",
        "has its copy in archive {1}, which does not exist",
    ),
    Question(
        "writer-without-session",
        "SELECT w.fid, w.session FROM mirror_writer w LEFT JOIN session s ON s.id = w.session WHERE s.id IS NULL",
        "is written by session {1}, which does not exist",
    ),
    Question(
        "copied-flag",
        f"SELECT i.fid, i.data_version FROM inode i WHERE (i.flags & {_COPIED}) <> 0 AND NOT EXISTS"
        " (SELECT 1 FROM hsm h WHERE h.fid = i.fid AND h.version = i.data_version)",
        "counts as copied to an archive, which does not have its version {1}",
    ),
)


def check(store: Readable) -> list[str]:
    """What is wrong with the committed tree, a line for each finding; empty if it is whole.

    Reads everything: minutes for millions of files. Orphans are right only while somebody has them open, so between
    an eviction and what it entails there may be findings that go away.
    """
    return [*(finding.words for finding in tree_findings(store)), *map(words_of_drift, usage_drifts(store))]


def tree_findings(store: Readable, asked: Callable[[int], None] = lambda count: None) -> Iterator[Finding]:
    """What is wrong with the committed tables but for usage. `asked` is told how many of `STAGES` are done."""
    for count, question in enumerate(QUESTIONS):
        asked(count)
        for row in store.fetchall(question.sql):
            yield Finding(question.kind, row[0], question.text.format(*row), tuple(row[1:]))
    asked(len(QUESTIONS))
    yield from _counters(store)
    asked(len(QUESTIONS) + 1)
    yield from _layouts(store)
    asked(len(QUESTIONS) + 2)
    yield from _places(store)
    asked(len(QUESTIONS) + 3)
    yield from table_findings(store)
    asked(STAGES)


STAGES: Final = len(QUESTIONS) + 4


def usage_drifts(store: Readable) -> list[QuotaDrift]:
    """Where what is recorded as used is not what inodes use."""
    recorded: dict[Triple, tuple[int, int]] = {
        (row[0], row[1], row[2]): (row[3], row[4]) for row in store.fetchall(store.statements.usage)
    }
    found: list[QuotaDrift] = []
    counting = "SELECT uid, gid, project, sum(blocks), count(*) FROM inode GROUP BY uid, gid, project"
    for uid, gid, project, blocks, inodes in store.fetchall(counting):
        said = recorded.pop((uid, gid, project), (0, 0))
        if said != (int(blocks) << 9, inodes):
            found.append(QuotaDrift(uid, gid, project, *said, int(blocks) << 9, inodes))
    found.extend(QuotaDrift(*triple, *said, 0, 0) for triple, said in recorded.items() if said != (0, 0))
    return found


def words_of_drift(drift: QuotaDrift) -> str:
    """A drift as people read it."""
    return (
        f"files of user {drift.uid}, group {drift.gid}, project {drift.project} are recorded as {drift.recorded_inodes}"
        f" with {drift.recorded_bytes} bytes but are {drift.inodes} with {drift.bytes}"
    )


def _counters(store: Readable) -> Iterator[Finding]:
    row = store.fetchone(store.statements.mdt)
    if row is None:
        yield Finding("no-mdt-row", 0, "the MDT has no row about itself")
        return
    _, number, next_counter, next_session, _ = row
    for (fid,) in store.fetchall("SELECT fid FROM inode"):
        if fid != ROOT and not (fid_mdt(fid) == number and FIRST_FREE <= fid_counter(fid) < next_counter):
            yield Finding("fid-not-given", fid, "was never given out")
    for (session,) in store.fetchall("SELECT id FROM session"):
        if session >= next_session:
            yield Finding("session-not-given", 0, f"session {session} was never given out", (session,))


def _places(store: Readable) -> Iterator[Finding]:
    decode = msgspec.msgpack.Decoder(Layout).decode
    copied = (
        "SELECT i.fid, i.copy_osts, i.copy_class, i.layout, h.archive, h.storage_class FROM inode i"
        f" JOIN hsm h ON h.fid = i.fid WHERE (i.flags & {_COPIED}) <> 0"
    )
    for fid, osts, kind, layout, archive, storage_class in store.fetchall(copied):
        with contextlib.suppress(msgspec.MsgspecError):  # `_layouts` tells of that
            if (osts, kind) != (osts_place(layout and decode(layout)), class_place(archive, storage_class)):
                yield Finding("copy-place", fid, "is not where lifecycle rules look for it", (osts, kind))


def _layouts(store: Readable) -> Iterator[Finding]:
    unequal: set[tuple[int, int, int]] = set()
    for kind, column in ((Layout, "layout"), (LayoutSpec, "spec")):
        decode = msgspec.msgpack.Decoder(kind).decode
        for fid, data in store.fetchall(f"SELECT fid, {column} FROM inode WHERE {column} IS NOT NULL"):
            try:
                value = decode(data)
            except msgspec.MsgspecError as error:
                yield Finding(f"{column}-unreadable", fid, f"has a {column} that cannot be read: {error}")
                continue
            if not isinstance(value, Layout):
                continue
            if len(value.osts) != value.stripe_count * value.mirrors:
                text = f"has {len(value.osts)} OSTs for {value.stripe_count} x {value.mirrors} objects"
                yield Finding("layout-wrong", fid, text)
            unequal.update((fid, number, value.osts[number]) for number, state in enumerate(value.states) if state)
    if unequal:
        unequal.difference_update(
            (row[0], row[1], row[2]) for row in store.fetchall("SELECT fid, number, ost FROM mirror")
        )
    for fid, number, ost in sorted(unequal):
        yield Finding(
            "copy-forgotten", fid, f"has a copy on OST {ost} that is not good and that nobody mends", (number, ost)
        )
