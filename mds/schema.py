"""The tables of one MDT, which are the truth about its part of the tree.

Everything that is not derivable lives here; caches and leases are memory. All integers are 64-bit and signed, so fids
(`common.fid`) fit as long as the MDT number is below 32768. Names, targets, layouts and bodies are bytes; they are
compared and sorted bytewise by every engine. Changes to this file need a migration (`mds/migrations/versions`); a test
compares. `mds/check.py` verifies the invariants that are written here.
"""

from typing import Final

from sqlalchemy import (
    BigInteger,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    text,
)

SCHEMA_VERSION: Final = "0009"
"""Alembic revision of the tables below: the newest file in `migrations/versions`."""

Int64: Final = BigInteger().with_variant(Integer(), "sqlite")
"""SQLite makes only an `INTEGER` primary key the row's own number; its integers have 64 bits anyway."""

metadata: Final = MetaData()


mdt: Final = Table(
    "mdt",
    metadata,
    # Always 1: there is one row.
    Column("id", Int64, primary_key=True, autoincrement=False),
    # The cluster's name for itself, made by `format`; peers of another cluster are refused.
    Column("cluster", Text, nullable=False),
    # Upper 16 bits of every fid made here (0..32767).
    Column("number", Int64, nullable=False),
    # Fid counters from here on were never given out. Taken in ranges: after a crash the rest of a range is skipped.
    Column("next_counter", Int64, nullable=False),
    # Session numbers from here on were never given out.
    Column("next_session", Int64, nullable=False),
    # Grows when a server takes the MDT over. Every transaction checks it: a server that was replaced cannot commit.
    Column("epoch", Int64, nullable=False),
)

inode: Final = Table(
    "inode",
    metadata,
    # The first columns are the fields of `wire.Attr`, in its order, so that a row becomes an Attr as it is.
    # The file id, `st_ino`; never used again for another file.
    Column("fid", Int64, primary_key=True, autoincrement=False),
    # Type and permissions as in `st_mode`. The type never changes.
    Column("mode", Int64, nullable=False),
    # Number of dentries for a file; 0: an orphan, gone once nobody has it open. For a directory: 2 + subdirectories.
    Column("nlink", Int64, nullable=False),
    Column("uid", Int64, nullable=False),
    Column("gid", Int64, nullable=False),
    # Device number of a character or block device, 0 otherwise.
    Column("rdev", Int64, nullable=False),
    # Bytes. Last reported size of a file, target length of a symlink, 4096 for a directory.
    Column("size", Int64, nullable=False),
    # Allocated space in units of 512 bytes, as last reported.
    Column("blocks", Int64, nullable=False),
    # Times in nanoseconds since 1970.
    Column("atime_ns", Int64, nullable=False),
    Column("mtime_ns", Int64, nullable=False),
    Column("ctime_ns", Int64, nullable=False),
    # When it was made; never changes.
    Column("btime_ns", Int64, nullable=False),
    # Grows with every change of this row, its names or its xattrs; never falls.
    Column("change", Int64, nullable=False),
    # `wire.AttrFlag`: XATTRS exactly if there are xattr rows; INLINE exactly if a regular file has no objects (its
    # contents are the inline row, or nothing); DEFAULT_LAYOUT exactly if `spec` is set; COPIED only if
    # `hsm.version` is `data_version`.
    Column("flags", Int64, nullable=False),
    # Number of names in a directory, 0 for others. Zero is what rmdir asks for.
    Column("entries", Int64, nullable=False),
    # The directory that holds this directory (the root: itself); 0 for others. `..`, and the check against loops.
    Column("parent", Int64, nullable=False),
    # msgpack of `common.layout.Layout`: where a regular file's bytes are, or will be once they leave the MDT.
    # NULL for all other types.
    Column("layout", LargeBinary),
    # msgpack of `common.layout.LayoutSpec`: a directory's own default for new files; NULL: the MDT's.
    Column("spec", LargeBinary),
    # Project for quotas; 0: none. Handed down to new inodes.
    Column("project", Int64, nullable=False),
    # Grows with every reported change of a file's contents.
    Column("data_version", Int64, nullable=False),
    # What indexes for lifecycle rules begin with (`lifecycle/places.py`), right wherever COPIED is set: on which OSTs
    # the layout is, and in which archive and storage class `hsm` has the copy. Nothing else reads them.
    Column("copy_osts", Int64, nullable=False, server_default="0"),
    Column("copy_class", Int64, nullable=False, server_default="0"),
)
INODE_ROW: Final = tuple(column for column in inode.columns if column.name not in ("copy_osts", "copy_class"))
"""The columns of an inode as it is in memory."""
# Finds orphans after a restart; holds nothing else, so it costs nothing.
Index(
    "inode_orphan",
    inode.c.fid,
    sqlite_where=text("nlink = 0"),
    postgresql_where=text("nlink = 0"),
)

IS_FILE: Final = "mode & 61440 = 32768"
IS_DIRECTORY: Final = "mode & 61440 = 16384"
# Indexes that only lifecycle rules need are made with the first such rule: `lifecycle/indexes.py`.
# Subdirectories: the way down a subtree that does not look at files.
Index(
    "inode_directory",
    inode.c.parent,
    inode.c.fid,
    sqlite_where=text(IS_DIRECTORY),
    postgresql_where=text(IS_DIRECTORY),
)

dentry: Final = Table(
    "dentry",
    metadata,
    # The directory. Lookup and listing are one search in the primary key.
    Column("parent", Int64, primary_key=True, autoincrement=False),
    # 1..255 bytes without `/` and NUL, neither `.` nor `..`.
    Column("name", LargeBinary, primary_key=True),
    # What the name stands for; that inode exists.
    Column("fid", Int64, nullable=False),
    sqlite_with_rowid=False,
)
# From an inode to its names: paths for people, checks, later policies.
Index("dentry_fid", dentry.c.fid)

inline: Final = Table(
    "inline",
    metadata,
    # A regular file with INLINE whose contents are not empty, or a symlink.
    Column("fid", Int64, primary_key=True, autoincrement=False),
    # Contents or target. May be shorter than a file's `size`: the rest is a hole. Never longer.
    Column("data", LargeBinary, nullable=False),
)

xattr: Final = Table(
    "xattr",
    metadata,
    Column("fid", Int64, primary_key=True, autoincrement=False),
    # With its prefix: `user.`, `trusted.`, `security.`.
    Column("name", LargeBinary, primary_key=True),
    Column("value", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)

session: Final = Table(
    "session",
    metadata,
    # A client's session; never used again.
    Column("id", Int64, primary_key=True, autoincrement=False),
    # The client process's own id, kept over reconnects.
    Column("client", Text, nullable=False),
    # Where it runs, for people.
    Column("host", Text, nullable=False),
    # Fid of the directory it mounted.
    Column("root", Int64, nullable=False),
    Column("created_ns", Int64, nullable=False),
)

open_: Final = Table(
    "open",
    metadata,
    # A registered open: this session has this file open without a lease that covers it.
    Column("session", Int64, primary_key=True, autoincrement=False),
    Column("fid", Int64, primary_key=True, autoincrement=False),
    # `wire.Mode`, never CLOSED.
    Column("mode", Int64, nullable=False),
    sqlite_with_rowid=False,
)

reply: Final = Table(
    "reply",
    metadata,
    # The answer to a request that changed something, written with the change; sent again when the request is.
    Column("session", Int64, primary_key=True, autoincrement=False),
    Column("xid", Int64, primary_key=True, autoincrement=False),
    # The encoded reply, without leases.
    Column("body", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)

ost: Final = Table(
    "ost",
    metadata,
    # Its number in layouts; never used again for another OST.
    Column("index", Int64, primary_key=True, autoincrement=False),
    # Made by `nacre oss format`; how an OST is recognised wherever it appears.
    Column("uuid", Text, nullable=False, unique=True),
    # Last known URLs, best first, separated by commas.
    Column("address", Text, nullable=False),
    # Last reported space and objects, until the first heartbeat after a restart.
    Column("total_bytes", Int64, nullable=False),
    Column("free_bytes", Int64, nullable=False),
    Column("objects", Int64, nullable=False),
)

usage: Final = Table(
    "usage",
    metadata,
    # What all inodes of this owner, group and project use together; rows may say 0. Every transaction adds what it
    # changed, in one row for each of these that it touched.
    Column("uid", Int64, primary_key=True, autoincrement=False),
    Column("gid", Int64, primary_key=True, autoincrement=False),
    Column("project", Int64, primary_key=True, autoincrement=False),
    # 512 times the sum of `inode.blocks`.
    Column("bytes", Int64, nullable=False),
    # Number of inodes, those without a name included. All rows together: how many the MDT has.
    Column("inodes", Int64, nullable=False),
    sqlite_with_rowid=False,
)

quota: Final = Table(
    "quota",
    metadata,
    # `wire.QuotaKind`, and the uid, gid or project that is limited.
    Column("kind", Int64, primary_key=True, autoincrement=False),
    Column("id", Int64, primary_key=True, autoincrement=False),
    # Limits; 0: none.
    Column("soft_bytes", Int64, nullable=False),
    Column("hard_bytes", Int64, nullable=False),
    Column("soft_inodes", Int64, nullable=False),
    Column("hard_inodes", Int64, nullable=False),
    # For how long a soft limit may be exceeded.
    Column("grace_bytes_s", Int64, nullable=False),
    Column("grace_inodes_s", Int64, nullable=False),
    # When that will have been long enough; 0: it is not exceeded.
    Column("bytes_until_ns", Int64, nullable=False),
    Column("inodes_until_ns", Int64, nullable=False),
    sqlite_with_rowid=False,
)

pool: Final = Table(
    "pool",
    metadata,
    # A pool is the set of its rows; without rows there is no such pool.
    Column("name", Text, primary_key=True),
    Column("ost", Int64, primary_key=True, autoincrement=False),
    sqlite_with_rowid=False,
)

destroy: Final = Table(
    "destroy",
    metadata,
    # A file that is gone, whose objects the reaper has yet to destroy. The row goes when every OST has confirmed.
    Column("fid", Int64, primary_key=True, autoincrement=False),
    # msgpack of the `Layout` that names its objects.
    Column("layout", LargeBinary, nullable=False),
)

intent: Final = Table(
    "intent",
    metadata,
    # A file whose objects are to be cut at `size`; it is busy until every OST has confirmed, then the row goes.
    Column("fid", Int64, primary_key=True, autoincrement=False),
    # -1: they are to be destroyed.
    Column("size", Int64, nullable=False),
    # msgpack of the `Layout` that names its objects.
    Column("layout", LargeBinary, nullable=False),
)

# ------------------------------------------------------------------------------------------------------ lifecycle tier

archive: Final = Table(
    "archive",
    metadata,
    # Lustre's archive_id, from 1; never used again for another archive.
    Column("id", Int64, primary_key=True, autoincrement=False),
    # As people call it.
    Column("name", Text, nullable=False, unique=True),
    # msgpack of `wire.ArchiveSpec`. No secret is ever in it: `credentials` names a file on the servers.
    Column("spec", LargeBinary, nullable=False),
    # 1 once it has been removed: the number stays taken.
    Column("gone", Int64, nullable=False),
)

hsm: Final = Table(
    "hsm",
    metadata,
    # A regular file with ARCHIVED in its inode's `flags`; RELEASED is there exactly if it is in `flags` here (0x4).
    Column("fid", Int64, primary_key=True, autoincrement=False),
    # `wire.HsmFlag` without DIRTY, which is: `version` differs from the inode's `data_version`.
    Column("flags", Int64, nullable=False),
    # The archive that has the copy; 0: none.
    Column("archive", Int64, nullable=False),
    # The object's key there, without the archive's prefix; empty: no copy.
    Column("key", Text, nullable=False),
    # The inode's `data_version` of which the copy is.
    Column("version", Int64, nullable=False),
    # Bytes of the copy.
    Column("size", Int64, nullable=False),
    # The object's ETag.
    Column("etag", Text, nullable=False),
    # Size of the parts that `digests` speaks of, and xxh3-64 over each part's sum string, one after the other; empty
    # if they are not known (imported), so that only the whole can be verified, by `checksum`.
    Column("part_bytes", Int64, nullable=False),
    Column("digests", LargeBinary, nullable=False),
    # xxh3-64 over `digests`, also in the object's metadata.
    Column("checksum", LargeBinary, nullable=False),
    # Storage class of the object; empty: the archive's default.
    Column("storage_class", Text, nullable=False),
    # When the copy was made, and when it was last brought back (0: never).
    Column("archived_ns", Int64, nullable=False),
    Column("restored_ns", Int64, nullable=False),
    # Until when a cold object is readable after it was thawed; 0: it was not.
    Column("thawed_until_ns", Int64, nullable=False),
    sqlite_with_rowid=False,
)
# What an archive has, and what of it can be released.
Index("hsm_archive", hsm.c.archive, hsm.c.flags)

hsm_action: Final = Table(
    "hsm_action",
    metadata,
    # In the order of asking; never used again.
    Column("id", Int64, primary_key=True, autoincrement=False),
    Column("fid", Int64, nullable=False),
    # `wire.HsmAction`.
    Column("kind", Int64, nullable=False),
    Column("archive", Int64, nullable=False),
    # Who asked, for fairness; -1: a reader who waits.
    Column("uid", Int64, nullable=False),
    # What caused it: empty (a person), `read`, or the name of a rule or job.
    Column("cause", Text, nullable=False),
    # WAITING, STARTED, SUCCEED, FAILED, CANCELED (Lustre's words). At most one row of a fid is WAITING or STARTED.
    Column("state", Text, nullable=False),
    Column("attempts", Int64, nullable=False),
    # Not to be tried before; 0: at once.
    Column("not_before_ns", Int64, nullable=False),
    Column("created_ns", Int64, nullable=False),
    Column("changed_ns", Int64, nullable=False),
    # Why it failed, or waits.
    Column("reason", Text, nullable=False),
    # An upload under way: its key and id, which are aborted or ended before anything else happens with the file.
    Column("key", Text, nullable=False),
    Column("upload", Text, nullable=False),
    # Where a copy goes: the storage class that a rule wants; empty: the archive's own.
    Column("storage_class", Text, nullable=False, server_default=""),
)
Index("hsm_action_fid", hsm_action.c.fid)
Index("hsm_action_state", hsm_action.c.state, hsm_action.c.id)

rule: Final = Table(
    "rule",
    metadata,
    # A lifecycle rule; ` watermarks` (no ID begins with a blank) is what is to happen when OSTs are full.
    Column("id", Text, primary_key=True),
    # Its place in the document.
    Column("position", Int64, nullable=False),
    # The rule as it was given, as JSON.
    Column("document", Text, nullable=False),
    # `active`, `paused` (by a person) or `suspended` (by its errors).
    Column("state", Text, nullable=False),
    # Why it is not active.
    Column("reason", Text, nullable=False),
    # When it last ran (0: never); with the schedule, when it will run next.
    Column("last_run_ns", Int64, nullable=False),
    # Counts of its last run and of all, as JSON (`mds/lifecycle/tally.py`).
    Column("counts", Text, nullable=False),
    sqlite_with_rowid=False,
)

hsm_gone: Final = Table(
    "hsm_gone",
    metadata,
    # An object that no file needs any more; the row goes when the archive has confirmed that it is deleted. A key with
    # a newline is an upload in parts that will not be finished: what comes behind the newline is its id, `?` if that
    # was never heard. No copy is ever made under a key that has a row here.
    Column("archive", Int64, primary_key=True, autoincrement=False),
    Column("key", Text, primary_key=True),
    sqlite_with_rowid=False,
)

link: Final = Table(
    "link",
    metadata,
    # A directory that is bound to a bucket prefix, by the number of the archive that is that prefix.
    Column("id", Int64, primary_key=True, autoincrement=False),
    # The directory. It may have been removed.
    Column("fid", Int64, nullable=False),
    # msgpack of `wire.LinkSpec`.
    Column("spec", LargeBinary, nullable=False),
    # `active`, `paused`, or `removing`: files are being unbound, which goes on after a restart.
    Column("state", Text, nullable=False),
    # When the last refresh that was complete began; 0: there was none.
    Column("refreshed_ns", Int64, nullable=False),
    # What it found, as JSON (`mds/links/rows.py`, Counts).
    Column("counts", Text, nullable=False),
    # Why the refresh after that one failed; empty: none did.
    Column("reason", Text, nullable=False),
)

link_object: Final = Table(
    "link_object",
    metadata,
    # A key of a link's bucket of which something is known, without the prefix, in UTF-8. It sorts bytewise on every
    # engine, which `hsm.key` does not.
    Column("link", Int64, primary_key=True, autoincrement=False),
    Column("key", LargeBinary, primary_key=True),
    # The file whose `hsm` row has this archive and key; 0: the key is no file here.
    Column("fid", Int64, nullable=False),
    # Then: why not.
    Column("reason", Text, nullable=False),
    sqlite_with_rowid=False,
)
# Keys that are no files.
Index(
    "link_object_problem",
    link_object.c.link,
    link_object.c.key,
    sqlite_where=text("fid = 0"),
    postgresql_where=text("fid = 0"),
)

link_log: Final = Table(
    "link_log",
    metadata,
    # What happened with a link; the last `links.rows.LOG_MAX` lines are kept.
    Column("link", Int64, primary_key=True, autoincrement=False),
    Column("number", Int64, primary_key=True, autoincrement=False),
    Column("time_ns", Int64, nullable=False),
    Column("text", Text, nullable=False),
    sqlite_with_rowid=False,
)

link_dirty: Final = Table(
    "link_dirty",
    metadata,
    # A file whose link's bucket is to follow it: it was made, changed or moved. Or a directory that was moved, whose
    # files may all have other keys by now. Written with the change.
    Column("fid", Int64, primary_key=True, autoincrement=False),
    Column("link", Int64, nullable=False),
)

warmup: Final = Table(
    "warmup",
    metadata,
    # A warmup job; the last `warmuprows.HISTORY` that are over are kept.
    Column("id", Int64, primary_key=True, autoincrement=False),
    # `warm`, `evict` or `check`.
    Column("verb", Text, nullable=False),
    # `filling` (more files are to be named), `waiting`, `running`, `done`, `failed` or `canceled`.
    Column("state", Text, nullable=False),
    # The job that must be over before this one begins; 0: none.
    Column("after", Int64, nullable=False),
    # Files under way at a time, and who asked.
    Column("width", Int64, nullable=False),
    Column("uid", Int64, nullable=False),
    Column("created_ns", Int64, nullable=False),
    # When it was begun or has ended last.
    Column("changed_ns", Int64, nullable=False),
    # What of it is done, as JSON (`warmuprows.Counts`).
    Column("counts", Text, nullable=False),
    # Bytes per second that it brings at most; 0: no limit.
    Column("rate_bytes", Int64, nullable=False, server_default="0"),
)

warmup_item: Final = Table(
    "warmup_item",
    metadata,
    # A file, or a directory with all below it, that a job has still to look at; in this order.
    Column("job", Int64, primary_key=True, autoincrement=False),
    Column("number", Int64, primary_key=True, autoincrement=False),
    Column("fid", Int64, nullable=False),
    sqlite_with_rowid=False,
)

mirror: Final = Table(
    "mirror",
    metadata,
    # A copy of a stripe that is not good, so that nobody has to look for it: object `number` of file `fid`. The file's
    # layout says the same in `states`, and is right where they differ. A resync takes the row away.
    Column("fid", Int64, primary_key=True, autoincrement=False),
    Column("number", Int64, primary_key=True, autoincrement=False),
    # Where it is.
    Column("ost", Int64, primary_key=True, autoincrement=False),
    # `common.layout.CopyState`, never GOOD; 4: the layout has a new copy elsewhere, this one is to be destroyed.
    Column("state", Int64, nullable=False),
    # The layout generation with which it became so: the OST serves no I/O of an older one.
    Column("generation", Int64, nullable=False),
    sqlite_with_rowid=False,
)

mirror_writer: Final = Table(
    "mirror_writer",
    metadata,
    # This session has had a WRITE lease on this mirrored file with objects, and may have one: if it dies, copies may
    # differ. (Writers without a lease are in `open`.)
    Column("session", Int64, primary_key=True, autoincrement=False),
    Column("fid", Int64, primary_key=True, autoincrement=False),
    sqlite_with_rowid=False,
)
