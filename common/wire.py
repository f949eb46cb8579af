"""Every message that travels between nacrefs processes, and nothing else.

A request class names its reply type: `await peer.call(Lookup(...))` is an `Entry`. Messages are msgpack arrays: the
tag (requests only), then the fields in the order written here. Fields are only ever appended, with a default; tags are
never reused. `tests/common/test_wire.py` pins one encoding per message. The prose of the protocol is docs/protocol.md.

Times are nanoseconds since the epoch, sizes and offsets are bytes, names are bytes, fids are integers (`common.fid`).
"""

import enum
from typing import Final, Generic, TypeVar

import msgspec

from nacrefs.common.layout import Layout, LayoutSpec

PROTOCOL_VERSION: Final = 1
BODY_BYTES_MAX: Final = 4 << 20
"""Largest message body; a longer one is refused before it is read."""
BULK_BYTES_MAX: Final = 8 << 20
"""Most bulk bytes that one frame may carry."""
NAME_BYTES_MAX: Final = 255
TARGET_BYTES_MAX: Final = 4095
"""Longest symlink target (PATH_MAX without its NUL)."""
XATTR_BYTES_MAX: Final = 65536
CAPABILITIES: Final = b"security.capability"
"""The extended attribute with a program's capabilities (of capabilities(7)), which end when it is written."""
LISTING_MAX: Final = 1000
"""Most entries in one `Listing`."""
EXTENTS_MAX: Final = 4096
"""Most extents in one list-I/O request."""
COPY_BYTES_MAX: Final = 4 << 20
"""Most bytes that one `CopyRange` copies."""
NO_CHANGE_NS: Final = 1
"""The mtime of an object that was written with what its file had before: earlier than any change of that."""

ReplyT = TypeVar("ReplyT", covariant=True)


class Message(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A reply, or a part of a message."""


class Request(msgspec.Struct, Generic[ReplyT], frozen=True, array_like=True, gc=False):
    """A question to a peer; `ReplyT` is what it answers with. `mutates` marks what must happen exactly once."""


# ----------------------------------------------------------------------------------------------------------- vocabulary


class Lease(enum.IntEnum):
    """What a session may cache of a fid. READ: attributes, symlink target, entries (also that a name is absent), clean
    data. WRITE: all that exclusively, and dirty data, size and mtime."""

    NONE = 0
    READ = 1
    WRITE = 2


class Want(enum.IntFlag):
    """What a reply about an inode should bring beside its attributes."""

    LEASE = 1
    LAYOUT = 2
    """layout and capability, so that the data can be read without another request"""
    DATA = 4
    """inline contents"""
    GONE = 8
    """attributes also if it is a regular file that was destroyed lately: some program may hold a descriptor (O_PATH) of
    which nobody has told the MDS"""


class Mode(enum.IntFlag):
    """How a session has a file open, all its descriptors taken together."""

    CLOSED = 0
    READ = 1
    WRITE = 2


class Right(enum.IntFlag):
    """What a capability allows on the objects of one fid."""

    READ = 1
    WRITE = 2
    MIRRORED = 4
    """the file has copies: an OST that has not heard from the MDS for too long must not touch it"""


class Role(enum.IntEnum):
    """What a peer is, as its key says. `common.authority` says what each may ask."""

    CLIENT = 0
    SERVER = 1
    ADMIN = 2


class Attr(Message, frozen=True, array_like=True, gc=False):
    """An inode's attributes, as `stat` shows them. `blocks` counts 512-byte units. `change` grows with every change of
    anything here; 0 in a reply says that they are out of date already and must not be remembered (in replies about
    names: on a directory's attributes, that the names must not be remembered either). `flags`: see `AttrFlag`."""

    fid: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    blocks: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    btime_ns: int
    change: int = 0
    flags: int = 0


class AttrFlag(enum.IntFlag):
    """Facts about an inode that spare a request."""

    XATTRS = 1
    """it has extended attributes; without this flag a client answers ENODATA by itself"""
    INLINE = 2
    """its contents lie in the MDT, not on OSTs"""
    DEFAULT_LAYOUT = 4
    """a directory with a layout of its own for new files"""
    ARCHIVED = 64
    """it has a state in the lifecycle tier (`HsmFlag`), so its layout may have changed since it was last seen"""
    RELEASED = 128
    """its contents are in an archive only: reading them asks the MDS to bring them back (`Restore`)"""
    COPIED = 256
    """an archive has a copy of exactly these contents; for the MDS's own indexes, clients need not look at it"""


class Capability(Message, frozen=True, array_like=True, gc=False):
    """The MDS's signed word that a session may do I/O on a fid (`common.auth`); `expires_s` is Unix time."""

    rights: int
    expires_s: int
    mac: bytes


class Node(Message, frozen=True, array_like=True, gc=False):
    """An inode as a client may use it: attributes, the lease granted with them, and what was wanted besides.

    `data` is the whole contents of an inline file (where shorter than its size, the rest is a hole), or a symlink's
    target. `shared` says that several sessions have the
    file open and one of them writes: nobody caches it, I/O goes straight to the OSTs.
    """

    attr: Attr
    lease: Lease = Lease.NONE
    layout: Layout | None = None
    capability: Capability | None = None
    data: bytes | None = None
    shared: bool = False
    quota: int = -1
    """How many bytes the requester may add to this owner's files in the next seconds before it must report them
    (`Commit`); 0: none, the owner's quota is full; -1: the owner has no quota; -2: it has, ask when you write."""


class Entry(Message, frozen=True, array_like=True, gc=False):
    """What a name stands for: `node` is None if it stands for nothing. `parent` and `parent_lease` are the directory's
    own attributes and the lease on it, under which the client may remember this answer."""

    node: Node | None
    parent: Attr | None = None
    parent_lease: Lease = Lease.NONE


class Done(Message, frozen=True, array_like=True, gc=False):
    """It happened."""


class Failure(Message, frozen=True, array_like=True, gc=False):
    """An errno with words for the person who sees it; raised as OSError where the request was made."""

    errno: int
    text: str = ""


# ------------------------------------------------------------------------------------------------------------ handshake


class Hello(Message, frozen=True, array_like=True, gc=False):
    """First frame of a connection, from the connecting side. `key` names the shared key, `client` is the
    connecting process's own id, kept over reconnects."""

    version: int
    cluster: str
    key: str
    client: str
    nonce: bytes


class Challenge(Message, frozen=True, array_like=True, gc=False):
    """The server's answer: its proof that it has the key, and its own nonce."""

    version: int
    server: str
    nonce: bytes
    proof: bytes


class RdmaEnd(Message, frozen=True, array_like=True, gc=False):
    """One end of a queue pair, as the other has to know it (docs/protocol.md, RDMA). `gid` is an IPv6 address, `mtu` an
    `enum ibv_mtu`. `credits` receives of `slot_bytes` each are posted for ordinary messages."""

    version: int
    gid: str
    lid: int
    ethernet: bool
    queue_pair: int
    psn: int
    mtu: int
    slot_bytes: int
    credits: int


class Proof(Message, frozen=True, array_like=True, gc=False):
    """The client's proof that it has the key. `rdma`: it would rather go on over RDMA."""

    proof: bytes
    rdma: RdmaEnd | None = None


class Welcome(Message, frozen=True, array_like=True, gc=False):
    """The connection is open for requests; `role` is what the key lets this peer be. `rdma` answers an offer of it; if
    there was one and no answer, `declined` says why."""

    role: Role
    rdma: RdmaEnd | None = None
    declined: str = ""


class Switch(Message, frozen=True, array_like=True, gc=False):
    """From the client, after a Welcome with `rdma`: everything that follows goes over RDMA, or, if that could not be
    made to work (`error`), over TCP as before."""

    error: str = ""


# ------------------------------------------------------------------------------------ client → MDS: sessions and leases


class OstInfo(Message, frozen=True, array_like=True, gc=False):
    """One storage target as clients and administrators see it. `addresses` are URLs, best first, separated by commas.
    `up` is False once its heartbeats have stopped."""

    index: int
    address: str
    up: bool
    total_bytes: int
    free_bytes: int
    objects: int = 0
    pools: tuple[str, ...] = ()
    uuid: str = ""


class Session(Message, frozen=True, array_like=True, gc=False):
    """A client's session: how long it lives without a word (`term_s`), where its tree starts, which OSTs there are.
    `resumed` is False if the session is new, so that nothing of an earlier one (leases, opens) exists any more.
    `grace` is True while the MDS, restarted, waits for clients to reclaim."""

    session: int
    term_s: float
    root: int
    osts: tuple[OstInfo, ...]
    inline_bytes: int
    resumed: bool
    grace: bool
    cluster: str
    squash: int = -1
    """Not -1: the MDS checks permissions, so requests about files must say who asks (`As`), and it takes nobody (0),
    root (1) or everybody (2) for the anonymous user."""
    read_only: bool = False


class Attach(Request[Session], frozen=True, array_like=True, tag=1):
    """Open a session, or (`session` not 0) take one up again after a reconnect. `subtree` is the directory, as a path
    from the filesystem's root, that the client mounts."""

    client: str
    host: str
    session: int = 0
    subtree: bytes = b"/"


class Alive(Message, frozen=True, array_like=True, gc=False):
    """The session lives. `osts_version` changes when the OST table does. `tight`: space is short, so send contents
    before `close` returns. `limits` changes when quotas do: ask (`GetAttr`, `Commit`) what they mean for files that
    are being written. `now_s`: the MDS's time, by which capabilities expire (0: not said)."""

    osts_version: int
    tight: bool = False
    limits: int = 0
    now_s: float = 0.0


class Keepalive(Request[Alive], frozen=True, array_like=True, tag=2):
    """I am here. `used`: regular files that programs have opened for reading, or read, since the last one."""

    used: tuple[int, ...] = ()


class Detach(Request[Done], frozen=True, array_like=True, tag=3):
    """Close the session: all its leases and opens end."""


class Holding(Message, frozen=True, array_like=True, gc=False):
    """What a session holds of a fid: a lease and an open mode. `change`, when it is reclaimed: the `Attr.change` that
    the client knows (0: none), in the answer the one that is committed. A READ lease is lost if they differ: what was
    cached under it may be older than a change of which the client was not told before the MDS was restarted."""

    fid: int
    lease: Lease
    mode: Mode
    change: int = 0


class LockKind(enum.IntEnum):
    """What a lock keeps others from, with fcntl(2)'s values of Linux; UNLOCK takes one away."""

    READ = 0
    WRITE = 1
    UNLOCK = 2


class LockStyle(enum.IntEnum):
    """Whose rules a lock follows. The styles do not know of each other, as on a local file system."""

    POSIX = 0
    """fcntl(2): byte ranges; locks of one owner replace each other, split and merge"""
    FLOCK = 1
    """flock(2): the whole file; a change of kind gives the old lock up first"""


class HeldLock(Message, frozen=True, array_like=True, gc=False):
    """A lock that a session has: `owner` (a number of the client's) on `[start, end)` of a file; `pid` is the process
    that F_GETLK names."""

    fid: int
    owner: int
    style: LockStyle
    kind: LockKind
    start: int
    end: int
    pid: int


class Reclaimed(Message, frozen=True, array_like=True, gc=False):
    """What the MDS agrees that the session holds; a fid that is gone has lease NONE and mode CLOSED. `lost_locks` are
    those of the reclaimed locks that somebody else has."""

    holdings: tuple[Holding, ...]
    lost_locks: tuple[HeldLock, ...] = ()


class Reclaim(Request[Reclaimed], frozen=True, array_like=True, tag=4):
    """After an MDS restart, in its grace term: what the client held before. `more`: another request with the rest
    follows."""

    holdings: tuple[Holding, ...]
    more: bool = False
    locks: tuple[HeldLock, ...] = ()
    appends: tuple[tuple[int, int], ...] = ()
    """(fid, ticket) of turns to append"""


class Yield(Request[Done], frozen=True, array_like=True, tag=5):
    """Leases given back (or downgraded) unasked, in bulk; each item says what remains."""

    holdings: tuple[Holding, ...]


class As(Request[Done], frozen=True, array_like=True, tag=7):
    """Carry out a request for somebody: ids and supplementary groups of the process that asks. `request` is its whole
    encoding; the reply is that of the request in it."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    request: bytes


class Access(Request[Done], frozen=True, array_like=True, tag=8):
    """Whether this may be used so: `mask` is access(2)'s (4 read, 2 write, 1 execute or search); EACCES if not."""

    fid: int
    mask: int


class OstTable(Message, frozen=True, array_like=True, gc=False):
    """All OSTs, by index."""

    version: int
    osts: tuple[OstInfo, ...]


class GetOsts(Request[OstTable], frozen=True, array_like=True, tag=6):
    """Which OSTs are there, and how full."""


# ---------------------------------------------------------------------------------------------- client → MDS: namespace


class Lookup(Request[Entry], frozen=True, array_like=True, tag=16):
    """The inode under a name; an absent name is an `Entry` without node, not an error. Names `.` and `..` are never
    sent."""

    parent: int
    name: bytes
    want: Want = Want.LEASE


class GetAttr(Request[Node], frozen=True, array_like=True, tag=17):
    """An inode by fid; ESTALE if it is gone."""

    fid: int
    want: Want = Want.LEASE


class Set(enum.IntFlag):
    """Which fields of `SetAttr` count."""

    MODE = 1
    UID = 2
    GID = 4
    SIZE = 8
    ATIME = 16
    MTIME = 32
    CTIME = 64
    KILL_PRIVILEGES = 128
    """clear setuid and, of what its group may execute, setgid (and capabilities), as a write by another user does"""
    KILL_SETGID = 256
    """with KILL_PRIVILEGES: clear setgid whatever the group may, as for a user who is not in it"""
    KILL_CAPABILITIES = 512
    """remove file capabilities, as any write does"""


class SetAttr(Request[Node], frozen=True, array_like=True, tag=18):
    """Change attributes: chmod, chown, truncate, utimens. ctime becomes now unless CTIME is set."""

    fid: int
    valid: Set
    mode: int = 0
    uid: int = 0
    gid: int = 0
    size: int = 0
    atime_ns: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0


class Create(Request[Entry], frozen=True, array_like=True, tag=19):
    """Make a regular file and open it. If the name exists: EEXIST with `exclusive`, otherwise it is opened as by `Open`
    (EISDIR for a directory, ELOOP for a symlink). `umask` is taken off `mode` unless the directory has a default ACL,
    which counts instead. `open_mode` says how the client opens it; with WRITE, and nobody else there, the reply brings
    a WRITE lease. With `data` (at most the inline limit) the file is complete in one request. `layout` overrides the
    directory's default."""

    parent: int
    name: bytes
    mode: int
    uid: int
    gid: int
    open_mode: Mode
    exclusive: bool = False
    truncate: bool = False
    data: bytes | None = None
    layout: LayoutSpec | None = None
    umask: int = 0


class Mknod(Request[Entry], frozen=True, array_like=True, tag=20):
    """Make an inode of any type but directory and symlink, without opening it; `mode` includes the type. `umask`: see
    `Create`."""

    parent: int
    name: bytes
    mode: int
    rdev: int
    uid: int
    gid: int
    umask: int = 0


class Mkdir(Request[Entry], frozen=True, array_like=True, tag=21):
    """Make a directory. A setgid parent hands down its group and the bit. `umask`: see `Create`."""

    parent: int
    name: bytes
    mode: int
    uid: int
    gid: int
    umask: int = 0


class Symlink(Request[Entry], frozen=True, array_like=True, tag=22):
    """Make a symbolic link to `target`."""

    parent: int
    name: bytes
    target: bytes
    uid: int
    gid: int


class Link(Request[Entry], frozen=True, array_like=True, tag=23):
    """Another name for an inode (not a directory)."""

    fid: int
    parent: int
    name: bytes


class Removed(Message, frozen=True, array_like=True, gc=False):
    """A name is gone. `victim` is the inode that it stood for, with the link count it has now. `orphan`: the inode
    lives on without a name because this session has, or may have, it open; the session must `Commit` with mode CLOSED
    once it does not (at once if it never did)."""

    victim: Attr
    parent: Attr
    orphan: bool = False


class Unlink(Request[Removed], frozen=True, array_like=True, tag=24):
    """Remove a name that is not a directory's. `expected` is the fid that the client believes the name stands for (0 if
    it does not know) and `opened` whether it has that fid open."""

    parent: int
    name: bytes
    expected: int = 0
    opened: bool = False


class Rmdir(Request[Removed], frozen=True, array_like=True, tag=25):
    """Remove an empty directory."""

    parent: int
    name: bytes


class Renamed(Message, frozen=True, array_like=True, gc=False):
    """A name has moved. `moved` and, with EXCHANGE, `other` are the inodes after the change; `removed` is what the new
    name stood for before, if that is gone from there (see `Removed`)."""

    parent: Attr
    new_parent: Attr
    moved: Attr
    other: Attr | None = None
    removed: Removed | None = None


class RenameFlag(enum.IntFlag):
    """`renameat2` flags, with the kernel's values."""

    NOREPLACE = 1
    EXCHANGE = 2


class Rename(Request[Renamed], frozen=True, array_like=True, tag=26):
    """Move a name: one step, whatever hangs below it. `expected` and `opened` are about the new name's inode, as in
    `Unlink`."""

    parent: int
    name: bytes
    new_parent: int
    new_name: bytes
    flags: RenameFlag = RenameFlag(0)
    expected: int = 0
    opened: bool = False


class Open(Request[Node], frozen=True, array_like=True, tag=27):
    """Open a regular file. The reply brings layout, capability, contents if inline, and READ or WRITE lease as `mode`
    asks; without a lease the open is registered at the MDS and must be ended by `Commit`."""

    fid: int
    mode: Mode
    truncate: bool = False


class Commit(Request[Node], frozen=True, array_like=True, tag=28):
    """What a session reports about an open file: on flush, fsync, close and before it answers a recall.

    `lease` is what it keeps (never more than it has) and `mode` how it still has the file open (CLOSED ends a
    registered open). With `dirty`, `size`, `mtime_ns`, `ctime_ns` (0: now) and `blocks` are the file's new ones, and
    `data` is the whole new contents if the file stays inline; without `data` its contents are on OSTs from now on (if
    `size` is not 0). Without the WRITE lease size and times do not count: the OSTs know. The reply is durable when it
    comes.
    """

    fid: int
    lease: Lease
    mode: Mode
    dirty: bool = False
    size: int = 0
    mtime_ns: int = 0
    blocks: int = 0
    data: bytes | None = None
    atime_ns: int = 0
    recalled: bool = False
    """It answers a recall: the data must go somewhere, so quotas do not refuse it."""
    ctime_ns: int = 0


class Append(Request[Node], frozen=True, array_like=True, tag=102):
    """Wait for the turn to append to a shared file that is open for writing; `Node.attr.size` is where it ends. From
    then on nobody else appends to it or cuts it, until `Appended` with the same ticket (never used again by this
    session, and sent whatever has become of this request). A WRITE lease in the answer: there was no need to ask, and
    the turn is not taken."""

    fid: int
    ticket: int


class Appended(Request[Done], frozen=True, array_like=True, tag=106):
    """The turn is over: the bytes are on the OSTs, or were given up."""

    fid: int
    ticket: int


class DirEntry(Message, frozen=True, array_like=True, gc=False):
    """One name in a listing; `lease` is on the entry's own inode. A mount reads `attr` without asking again. `layout`,
    `capability` and `data` are as in `Node`, under the lease."""

    name: bytes
    attr: Attr
    lease: Lease = Lease.NONE
    layout: Layout | None = None
    capability: Capability | None = None
    data: bytes | None = None


class Listing(Message, frozen=True, array_like=True, gc=False):
    """Entries in name order. `end`: there are no more. `lease` and `attr` are the directory's own."""

    entries: tuple[DirEntry, ...]
    end: bool
    attr: Attr
    lease: Lease = Lease.NONE


class Readdir(Request[Listing], frozen=True, array_like=True, tag=29):
    """The entries whose names come after `after` (bytewise; empty = from the start), at most `limit`. `.` and `..` are
    left to the client. With `lease`, leases come with directory and entries, as many as the MDS can spare, and with
    them what `want` asks for: contents of inline files, layout and capability of others. There may be fewer entries
    then, so that the reply does not become too large."""

    fid: int
    after: bytes = b""
    limit: int = LISTING_MAX
    lease: bool = True
    want: Want = Want.LEASE


class GetParent(Request[Node], frozen=True, array_like=True, tag=30):
    """The directory that holds a directory (`..`); the root is its own parent."""

    fid: int


class Xattrs(Message, frozen=True, array_like=True, gc=False):
    """All extended attributes of an inode, in name order. May be cached under its lease, unless it is `partial`: others
    on the same mount may see more than who asked."""

    items: tuple[tuple[bytes, bytes], ...]
    partial: bool = False


class GetXattrs(Request[Xattrs], frozen=True, array_like=True, tag=31):
    """All extended attributes that are stored; those that the server computes (`nacre.*`) are asked by name."""

    fid: int


class XattrFlag(enum.IntFlag):
    """`setxattr` flags, with the kernel's values."""

    CREATE = 1
    REPLACE = 2


class SetXattr(Request[Node], frozen=True, array_like=True, tag=32):
    """Set one extended attribute. `nacre.layout` sets the layout of an empty file or a directory's default
    (`common.layoutspec` text). `system.posix_acl_access` sets the permission bits, too; with `drop_setgid` it clears
    the setgid bit (for who is not in the file's group). `system.posix_acl_default` is what a directory hands down."""

    fid: int
    name: bytes
    value: bytes
    flags: XattrFlag = XattrFlag(0)
    drop_setgid: bool = False


class RemoveXattr(Request[Node], frozen=True, array_like=True, tag=33):
    """Remove one extended attribute; ENODATA if it is not there."""

    fid: int
    name: bytes


class XattrValue(Message, frozen=True, array_like=True, gc=False):
    """The value of one extended attribute."""

    value: bytes


class GetXattr(Request[XattrValue], frozen=True, array_like=True, tag=34):
    """One attribute that the server computes: `nacre.layout`, `nacre.fid`, `nacre.path`."""

    fid: int
    name: bytes


class StatfsReply(Message, frozen=True, array_like=True, gc=False):
    """Space of all OSTs together, in bytes, and inodes."""

    total_bytes: int
    free_bytes: int
    files: int
    files_free: int


class Statfs(Request[StatfsReply], frozen=True, array_like=True, tag=35):
    """How much room there is; with `fid`, for files in that directory, whose project may have a quota."""

    fid: int = 0


class LayoutInfo(Message, frozen=True, array_like=True, gc=False):
    """A file's layout, or a directory's default for new files (`spec`; None if it inherits)."""

    layout: Layout | None
    spec: LayoutSpec | None


class GetLayout(Request[LayoutInfo], frozen=True, array_like=True, tag=36):
    """How a file is striped, or what a directory gives to new files."""

    fid: int


class SetLayout(Request[Done], frozen=True, array_like=True, tag=37):
    """Set the layout of an empty file, or a directory's default (all fields default: inherit again)."""

    fid: int
    spec: LayoutSpec


class Inspection(Message, frozen=True, array_like=True, gc=False):
    """A report for people and scripts, as JSON text."""

    report: bytes


class Inspect(Request[Inspection], frozen=True, array_like=True, tag=38):
    """The server's state: `what` is `status`, `stats` or `locks`."""

    what: str


class SetPool(Request[Done], frozen=True, array_like=True, tag=39):
    """Give a pool exactly these OSTs; none removes it."""

    pool: str
    osts: tuple[int, ...]


# -------------------------------------------------------------------------------------------------- client → MDS: locks


class Locked(Message, frozen=True, array_like=True, gc=False):
    """Whether it has the lock. If not, the request waits in its place: ask again with the same ticket, soon."""

    granted: bool


class SetLock(Request[Locked], frozen=True, array_like=True, tag=40):
    """Take, change or (UNLOCK) give up a lock on `[start, end)`; `end` 2^63 is the end of every file. If somebody
    else's lock is in the way: EAGAIN without a ticket; with one (not 0; the client's name for what waits) it waits, in
    the order of first asking, and is answered when it has the lock, or has waited a while (`Locked`), or must not wait
    (EDEADLK; POSIX style only)."""

    fid: int
    owner: int
    style: LockStyle
    kind: LockKind
    start: int
    end: int
    pid: int
    ticket: int = 0


class LockHolder(Message, frozen=True, array_like=True, gc=False):
    """A lock that is in the way (`kind` UNLOCK: none is). `session` tells whose `pid` it is."""

    kind: LockKind
    start: int = 0
    end: int = 0
    pid: int = 0
    session: int = 0


class GetLock(Request[LockHolder], frozen=True, array_like=True, tag=41):
    """Which POSIX lock would keep `owner` from taking this one."""

    fid: int
    owner: int
    kind: LockKind
    start: int
    end: int


class CancelLock(Request[Locked], frozen=True, array_like=True, tag=42):
    """Stop waiting, unless the request with this ticket has its lock already, as the answer says. A `SetLock` that is
    unanswered is answered with EINTR."""

    ticket: int


# ----------------------------------------------------------------------------------------------- client → MDS: quotas


class QuotaKind(enum.IntEnum):
    """Whose use of space is counted and limited."""

    USER = 0
    GROUP = 1
    PROJECT = 2


class QuotaLimits(Message, frozen=True, array_like=True, gc=False):
    """Limits; 0: none. Above a soft limit things go on for its grace term, above a hard one they do not."""

    soft_bytes: int = 0
    hard_bytes: int = 0
    soft_inodes: int = 0
    hard_inodes: int = 0
    grace_bytes_s: int = 604_800
    grace_inodes_s: int = 604_800


class QuotaInfo(Message, frozen=True, array_like=True, gc=False):
    """What an owner uses and may use. `…_until_ns`: when the grace term of a soft limit ends that is exceeded now; 0 if
    it is not."""

    kind: QuotaKind
    id: int
    used_bytes: int
    used_inodes: int
    limits: QuotaLimits
    bytes_until_ns: int = 0
    inodes_until_ns: int = 0


class SetQuota(Request[QuotaInfo], frozen=True, array_like=True, tag=45):
    """Give an owner limits; all limits 0: it has none any more."""

    kind: QuotaKind
    id: int
    limits: QuotaLimits


class GetQuota(Request[QuotaInfo], frozen=True, array_like=True, tag=46):
    """What one owner uses and may use."""

    kind: QuotaKind
    id: int


class Quotas(Message, frozen=True, array_like=True, gc=False):
    """Owners in the order of their ids. `end`: there are no more."""

    quotas: tuple[QuotaInfo, ...]
    end: bool


class ListQuotas(Request[Quotas], frozen=True, array_like=True, tag=47):
    """Owners of one kind that use something or have limits, with ids above `after` (-1: all), at most `limit`."""

    kind: QuotaKind
    after: int = -1
    limit: int = LISTING_MAX


class ProjectInfo(Message, frozen=True, array_like=True, gc=False):
    """The project of an inode (0: none), and how many inodes have been given it."""

    project: int
    changed: int = 0


class SetProject(Request[ProjectInfo], frozen=True, array_like=True, tag=48):
    """Give a directory (or file) this project (0: none; -1: leave it, only tell), which new inodes in it take over;
    with `recursive`, all that is below it, too."""

    fid: int
    project: int
    recursive: bool = False


class QuotaDrift(Message, frozen=True, array_like=True, gc=False):
    """What is recorded as used by the files of one owner, group and project, and what they use."""

    uid: int
    gid: int
    project: int
    recorded_bytes: int
    recorded_inodes: int
    bytes: int
    inodes: int


class QuotaDrifts(Message, frozen=True, array_like=True, gc=False):
    """Where the records were wrong (the first `LISTING_MAX`), and whether they have been set right."""

    drifts: tuple[QuotaDrift, ...]
    repaired: bool


class CheckQuota(Request[QuotaDrifts], frozen=True, array_like=True, tag=49):
    """Count what all files use and compare it with the records; with `repair`, set these right."""

    repair: bool = False


class OpenDirect(Request[Node], frozen=True, array_like=True, tag=164):
    """Open a regular file for I/O past all caches, as programs with the native library do. It is registered as open
    in `mode` (all the session's opens together) until a `Commit` says otherwise, and the session gets no lease. The
    reply brings a layout and a capability with `rights`. EOPNOTSUPP if the contents lie in the MDT."""

    fid: int
    mode: Mode
    rights: Right


# -------------------------------------------------------------------------------------------- client → MDS: fsck


class Repair(enum.IntEnum):
    """What becomes of a problem that `Fsck` has found."""

    POSSIBLE = 0
    """it can be mended: ask with `repair`"""
    MENDED = 1
    LEFT = 2
    """it cannot be mended, or not now: `mend` says why"""


class Problem(Message, frozen=True, array_like=True, gc=False):
    """Something that `Fsck` has found: what kind, about which fid (0: none) and path (empty: it has none), in words,
    and what mends it, or why nothing does."""

    kind: str
    fid: int
    path: bytes
    text: str
    repair: Repair
    mend: str


class FsckReport(Message, frozen=True, array_like=True, gc=False):
    """How far a check has come. `phase` with `done` of `total` is for people; `problems` are those behind the ones that
    were asked for, `count` is how many there are in all (they may change until `ended`). `unchecked`: what could not be
    looked at, and why. `error`: why it ended early."""

    ended: bool
    phase: str
    done: int
    total: int
    count: int
    problems: tuple[Problem, ...] = ()
    unchecked: tuple[str, ...] = ()
    error: str = ""
    inodes: int = 0
    objects: int = 0


class Fsck(Request[FsckReport], frozen=True, array_like=True, tag=60):
    """Check the filesystem, or what is at and below `fid`, while it is used; with `repair`, mend it. `job` is a name of
    the asker's choice for `WatchFsck`; asked again with the same name nothing new begins. One check runs at a time
    (EBUSY). What is younger than `grace_s` seconds is in use and not looked at. `destroy_orphans`: objects without a
    file are destroyed, rather than given a name in `lost+found`."""

    job: str
    fid: int = 0
    repair: bool = False
    grace_s: float = 30.0
    destroy_orphans: bool = False


class WatchFsck(Request[FsckReport], frozen=True, array_like=True, tag=61):
    """How far the check `job` has come, with the problems from number `after` on. Nobody asking for a minute ends it,
    and so does `stop`. ESTALE if there is no such check (any more)."""

    job: str
    after: int = 0
    stop: bool = False


# ------------------------------------------------------------------------------------------- client → MDS: scrub


class ScrubOrder(enum.IntEnum):
    """What is to happen with the scrub of an OST."""

    STATUS = 0
    START = 1
    """begin, or go on where it was paused"""
    PAUSE = 2
    STOP = 3
    """the next one begins at the beginning"""


class Damage(Message, frozen=True, array_like=True, gc=False):
    """Bytes `[start, end)` of an object (and so of its file) that are not those that were written. `problem`: what is
    wrong, if it is not that they do not match their checksums. `mended`: they are right again."""

    fid: int
    number: int
    start: int
    end: int
    problem: str = ""
    mended: bool = False


class FoundDamage(Message, frozen=True, array_like=True, gc=False):
    """Damage of a file at `path` (empty: it has none) on an OST, and what becomes of it."""

    ost: int
    damage: Damage
    path: bytes
    repair: Repair
    mend: str


class ScrubState(Message, frozen=True, array_like=True, gc=False):
    """The latest scrub of an OST. `state`: never, running, paused, stopped, done, or why it failed. `objects` of
    `total` have been looked at. Times are Unix times (0: not yet). `count`: how many damages are known, with the page
    of them behind the number that was asked for."""

    ost: int
    state: str
    objects: int = 0
    total: int = 0
    bytes: int = 0
    started_s: int = 0
    ended_s: int = 0
    count: int = 0
    damages: tuple[Damage, ...] = ()


class ScrubReport(Message, frozen=True, array_like=True, gc=False):
    """The scrubs of some OSTs, with a page of the damages of each; `down`: OSTs that could not be asked."""

    osts: tuple[ScrubState, ...]
    found: tuple[FoundDamage, ...]
    down: tuple[int, ...]


class Scrub(Request[ScrubReport], frozen=True, array_like=True, tag=62):
    """Start, pause, stop or look at the scrubs of OSTs (none named: all). A scrub reads every block of every object, at
    most `bytes_per_s` (0: as fast as the disk is, -1: as configured), while nobody else wants the disk. It goes on
    when its OSS was restarted."""

    order: ScrubOrder = ScrubOrder.STATUS
    osts: tuple[int, ...] = ()
    bytes_per_s: int = -1
    after: int = 0


class FileVerified(Message, frozen=True, array_like=True, gc=False):
    """A piece of a file has been read, in all copies that should be good. `stripe` and `offset`: where to go on (-1:
    done). `end`: how far its longest object reaches. `unchecked`: what could not be read, and why."""

    stripe: int
    offset: int
    checked_bytes: int
    end: int
    found: tuple[FoundDamage, ...] = ()
    unchecked: tuple[str, ...] = ()


class VerifyFile(Request[FileVerified], frozen=True, array_like=True, tag=63):
    """Have the OSTs read a piece of a file and compare it with its checksums, and copies with each other. What differs
    is mended where there is a good copy."""

    fid: int
    stripe: int = 0
    offset: int = 0


# -------------------------------------------------------------------------------------------- mirrors: anybody → MDS


class CopyLayout(Message, frozen=True, array_like=True, gc=False):
    """A mirrored file's layout as it is now, and a capability for it."""

    layout: Layout
    capability: Capability


class ObjectId(Message, frozen=True, array_like=True, gc=False):
    """Object `number` (see `common.layout`) of a fid, on OST `ost`."""

    ost: int
    fid: int
    number: int


class CopiesFailed(Request[CopyLayout], frozen=True, array_like=True, tag=55):
    """Client → MDS: these objects of a mirrored file could not be written (or, `damaged`, have bytes that do not match
    their checksums). When it is answered nobody reads them any more, whatever layout he knows; the last good copy of a
    stripe stays as it is. With a `generation` older than the file's nothing happens but the answer."""

    fid: int
    generation: int
    numbers: tuple[int, ...]
    damaged: bool = False


class MirrorCopy(Message, frozen=True, array_like=True, gc=False):
    """A copy that is not good: which object where, its `CopyState`, and how far a resync that is under way has come
    (bytes looked at and bytes copied; -1: none is under way). `problem` is why the last one ended."""

    fid: int
    number: int
    ost: int
    state: int
    checked_bytes: int = -1
    copied_bytes: int = 0
    size: int = 0
    problem: str = ""


class MirrorCopies(Message, frozen=True, array_like=True, gc=False):
    """Copies in order of (fid, number, ost); `end`: there are no more."""

    copies: tuple[MirrorCopy, ...]
    end: bool


class ListCopies(Request[MirrorCopies], frozen=True, array_like=True, tag=56):
    """The copies that are not good, at most `limit` from behind (`fid`, `number`, `ost`); of one fid only with
    `only`."""

    fid: int = 0
    number: int = -1
    ost: int = -1
    limit: int = 1000
    only: bool = False


class Resynced(Message, frozen=True, array_like=True, gc=False):
    """How many copies are to be made equal; `next_fid`: where to go on (0: done)."""

    copies: int
    next_fid: int = 0


class Resync(Request[Resynced], frozen=True, array_like=True, tag=57):
    """Make copies equal now. Of `fid`, all but the preferred ones are compared, too (0: those that are known not to be
    good). With `lost_ost` (not -1), files from `after` on that have copies on that OST get new ones elsewhere."""

    fid: int = 0
    lost_ost: int = -1
    after: int = 0


class Floor(Message, frozen=True, array_like=True, gc=False):
    """The oldest layout generation whose I/O an OST may serve on an object."""

    ost: int
    fid: int
    number: int
    generation: int


class Floors(Message, frozen=True, array_like=True, gc=False):
    """Floors in order of (fid, number, ost); `end`: there are no more."""

    floors: tuple[Floor, ...]
    end: bool


class JoinMirrors(Request[Floors], frozen=True, array_like=True, tag=58):
    """OSS → MDS, after `Register` and before it serves mirrored files: which copies, on whatever OST, are not good,
    from behind (`fid`, `number`, `ost`)."""

    fid: int = 0
    number: int = -1
    ost: int = -1


class ReportDamage(Request[Done], frozen=True, array_like=True, tag=59):
    """OSS → MDS: these objects have (or, after an unclean stop, may have) bytes other than those that were written.
    Where there is another copy they are mended from it."""

    objects: tuple[ObjectId, ...]


# ---------------------------------------------------------------------------------------------------- MDS → its clients


class RecallItem(Message, frozen=True, array_like=True, gc=False):
    """A lease that must shrink to `lease`. For a directory, `names` are the entries that changed: the client may forget
    just these (and the directory's attributes) and keep its READ lease. `spill`: the file is about to be shared, so
    inline contents must go to the OSTs."""

    fid: int
    lease: Lease
    names: tuple[bytes, ...] = ()
    spill: bool = False


class Recalled(Message, frozen=True, array_like=True, gc=False):
    """What the client still holds of each recalled fid, in the order asked. It has committed what was dirty and its
    kernel has forgotten what it cached."""

    holdings: tuple[Holding, ...]


class Recall(Request[Recalled], frozen=True, array_like=True, tag=64):
    """Give back or shrink these leases."""

    items: tuple[RecallItem, ...]


class Evicted(Request[Done], frozen=True, array_like=True, tag=65):
    """The session is over; nothing that it cached is valid."""

    reason: str


# ------------------------------------------------------------------------------------------------------------ OSS ↔ MDS


class TargetInfo(Message, frozen=True, array_like=True, gc=False):
    """One OST as its OSS reports it. `index` is -1 until the MDS has given it one. OSTs with the same `disk` share its
    room (empty: not said)."""

    uuid: str
    index: int
    total_bytes: int
    free_bytes: int
    objects: int
    disk: str = ""


class Registered(Message, frozen=True, array_like=True, gc=False):
    """The OSTs' indices, in the order asked; the sessions that are fenced; how often to send a heartbeat. An OST that
    has heard nothing for `silence_s` serves no client. `mirrors`: some copies are not good, ask `JoinMirrors` before
    serving any. `now_s`: the MDS's time, by which capabilities expire (0: not said)."""

    indices: tuple[int, ...]
    fenced: tuple[int, ...]
    heartbeat_s: float
    silence_s: float = 15.0
    mirrors: bool = False
    now_s: float = 0.0


class Register(Request[Registered], frozen=True, array_like=True, tag=80):
    """An OSS offers its OSTs at `address` (URLs, best first, separated by commas)."""

    address: str
    targets: tuple[TargetInfo, ...]


class Heartbeat(Request[Alive], frozen=True, array_like=True, tag=81):
    """The OSTs live, and this is how full they are."""

    targets: tuple[TargetInfo, ...]


class Destroy(Request[Done], frozen=True, array_like=True, tag=82):
    """MDS → OSS: destroy objects. One that does not exist is destroyed already. Moves of their files end before."""

    objects: tuple[ObjectId, ...]


class ObjectStat(Message, frozen=True, array_like=True, gc=False):
    """An object: end of its last byte (0 if it does not exist), allocated bytes, data version, mtime."""

    size: int
    allocated_bytes: int
    version: int
    mtime_ns: int


class Glimpsed(Message, frozen=True, array_like=True, gc=False):
    """The objects, in the order asked."""

    stats: tuple[ObjectStat, ...]


class Glimpse(Request[Glimpsed], frozen=True, array_like=True, tag=83):
    """MDS → OSS: sizes of objects that are being written."""

    objects: tuple[ObjectId, ...]


class TruncateObjects(Request[Done], frozen=True, array_like=True, tag=84):
    """MDS → OSS: cut these objects at file offset `size`, durably; one that does not exist is short already."""

    objects: tuple[ObjectId, ...]
    size: int


class Fence(Request[Done], frozen=True, array_like=True, tag=85):
    """MDS → OSS: refuse these sessions from now on; I/O of theirs that is in service has ended when this is
    answered."""

    sessions: tuple[int, ...]


# ------------------------------------------------------------------------------------- lifecycle tier: client → MDS


class HsmFlag(enum.IntFlag):
    """State of a file in the lifecycle tier, with Lustre's names and values (`lfs hsm_state`)."""

    EXISTS = 0x1
    """an archive has a copy, of this or an earlier version"""
    DIRTY = 0x2
    """it was changed since"""
    RELEASED = 0x4
    """its contents are in the archive only"""
    ARCHIVED = 0x8
    """the copy is complete"""
    NORELEASE = 0x10
    """pinned: never released"""
    NOARCHIVE = 0x20
    """never archived"""
    LOST = 0x40
    """the archive does not have the copy any more"""


class HsmAction(enum.IntEnum):
    """What can be done with a file in the lifecycle tier; the order is that in which actions are begun."""

    RESTORE = 1
    REMOVE = 2
    ARCHIVE = 3
    RELEASE = 4
    TRANSITION = 5
    """its object goes to another storage class"""


class ArchiveSpec(Message, frozen=True, array_like=True, gc=False):
    """One archive as movers use it. `url`: `s3://BUCKET/PREFIX` or `file:///DIRECTORY`. `credentials` names a file on
    the servers, never a secret. `endpoint`, `region`, `storage_class` empty: the provider's default. `template` makes
    keys from a file's path and fid. `keep`: objects of removed files stay. `part_bytes`: size of the parts of large
    objects. `rate_mibps`: most that goes there and comes from there, all servers together; 0: no limit."""

    id: int
    name: str
    kind: str
    url: str
    endpoint: str = ""
    region: str = ""
    credentials: str = ""
    storage_class: str = ""
    template: str = ""
    keep: bool = False
    part_bytes: int = 0
    rate_mibps: float = 0.0


class Restored(Message, frozen=True, array_like=True, gc=False):
    """Bytes `[start, end)` of a file are there, at least: `node` brings the layout under which they can be read. If
    its attributes still say RELEASED, other bytes are not."""

    node: Node
    start: int
    end: int


class Restore(Request[Restored], frozen=True, array_like=True, tag=112):
    """Bring a released file back, and answer as soon as bytes `[start, end)` are there. EIO with the reason if that
    cannot be done. Not `wait`: begin, and fail with EAGAIN unless they are there already."""

    fid: int
    start: int
    end: int
    wait: bool = True


class SetArchive(Request[Inspection], frozen=True, array_like=True, tag=113):
    """Add an archive (`id` 0: the next free one), or change it. `remove`: forget it, if no file has a copy there."""

    spec: ArchiveSpec
    remove: bool = False


class Archives(Message, frozen=True, array_like=True, gc=False):
    """All archives, by id, and how many files and bytes each has copies of. `full`: what those that have no room have
    said; empty for others."""

    specs: tuple[ArchiveSpec, ...]
    files: tuple[int, ...]
    bytes: tuple[int, ...]
    released: tuple[int, ...]
    full: tuple[str, ...] = ()


class GetArchives(Request[Archives], frozen=True, array_like=True, tag=114):
    """Which archives are there."""


class ProbeArchive(Request[Inspection], frozen=True, array_like=True, tag=115):
    """Try an archive out, from every OSS: write, read back, list, delete; what it can and cannot do, as JSON."""

    name: str


class Imported(Message, frozen=True, array_like=True, gc=False):
    """What one page of an import did. `after`: where the next page begins; empty: that was the last one."""

    after: str
    made: int
    skipped: int
    bytes: int
    problems: tuple[str, ...] = ()


class ImportArchive(Request[Imported], frozen=True, array_like=True, tag=116):
    """Rebuild files from what lies in an archive, below directory `parent`: one page of keys under `prefix` behind
    `after`. Nothing is downloaded: the files are released."""

    name: str
    parent: int
    prefix: str = ""
    after: str = ""
    limit: int = LISTING_MAX


class SaveCatalogue(Request[Inspection], frozen=True, array_like=True, tag=170):
    """Write down in an archive's bucket what of the tree cannot be seen from its objects; what was written, as JSON."""

    name: str


class HsmState(Message, frozen=True, array_like=True, gc=False):
    """A file in the lifecycle tier: its flags and archive, and what is being done with it (`action` 0: nothing) with
    bytes moved, bytes in all, and the reason of the last failure."""

    fid: int
    flags: int = 0
    archive: int = 0
    action: int = 0
    state: str = ""
    done: int = 0
    total: int = 0
    attempts: int = 0
    reason: str = ""


class HsmStates(Message, frozen=True, array_like=True, gc=False):
    """The files, in the order asked; flags -1 for one that does not exist."""

    states: tuple[HsmState, ...]


class GetHsm(Request[HsmStates], frozen=True, array_like=True, tag=117):
    """The states of some files (at most LISTING_MAX)."""

    fids: tuple[int, ...]


class Queued(Message, frozen=True, array_like=True, gc=False):
    """For each fid: 0 and nothing, or an errno and why not."""

    errors: tuple[tuple[int, str], ...]


class HsmRequest(Request[Queued], frozen=True, array_like=True, tag=118):
    """Queue an action for some files (at most LISTING_MAX). `archive` 0: the default. `uid` is who asked."""

    action: HsmAction
    fids: tuple[int, ...]
    archive: int = 0
    uid: int = 0


class HsmCancel(Request[Queued], frozen=True, array_like=True, tag=119):
    """Cancel what is queued or running for some files."""

    fids: tuple[int, ...]


class SetHsm(Request[Queued], frozen=True, array_like=True, tag=120):
    """Set and clear flags of files: NORELEASE, NOARCHIVE; an administrator also EXISTS, ARCHIVED, DIRTY, LOST."""

    fids: tuple[int, ...]
    set: int = 0
    clear: int = 0
    archive: int = 0


# ----------------------------------------------------------------------------- lifecycle tier: links to buckets


class LinkSpec(Message, frozen=True, array_like=True, gc=False):
    """A directory that is bound to a bucket prefix. `id`: the number of the archive that is the prefix. `imports`:
    `metadata` (names appear at once), `data` (contents come by themselves, too) or `none` (with the first refresh).
    `auto_import`: which of `new`, `changed` and `deleted` keys a refresh follows. `conflict`: what becomes of files
    that differ on both sides (`fail`, `skip`, `overwrite-if-dirty`, `overwrite`). Refreshed every `every_s` seconds, or
    as `cron` says, or (neither) when asked. `details`: ask each new object for mode, owner and times. `auto_export`:
    which of `new`, `changed` and `deleted` files the bucket follows."""

    id: int
    fid: int
    imports: str = "metadata"
    auto_import: tuple[str, ...] = ("new", "changed", "deleted")
    conflict: str = "fail"
    every_s: float = 0.0
    cron: str = ""
    details: bool = False
    auto_export: tuple[str, ...] = ()


class SetLink(Request[Inspection], frozen=True, array_like=True, tag=148):
    """Make a link (`spec.id` 0), or change one. `archive`: where its objects are; its number and name are the link's
    and need not be given (of one that is there, only `rate_mibps` is changed). The answer is as `GetLinks` gives it,
    for this link."""

    spec: LinkSpec
    archive: ArchiveSpec


class RemoveLink(Request[Inspection], frozen=True, array_like=True, tag=149):
    """Unbind a directory. ENOTEMPTY if files are in the bucket only, unless `purge`: their names go."""

    id: int
    purge: bool = False


class GetLinks(Request[Inspection], frozen=True, array_like=True, tag=150):
    """All links with their states, as JSON; with `totals`, how many files and bytes each has, which is looked up."""

    totals: bool = True


class OrderLink(Request[Done], frozen=True, array_like=True, tag=151):
    """Have a link do something now: `refresh`, `pause`, `resume`, or `flush`, which is answered when the bucket has
    all that was written before (EIO with the reason if something cannot be sent)."""

    id: int
    verb: str


class GetLinkLog(Request[Inspection], frozen=True, array_like=True, tag=152):
    """What happened with a link (`what` = `log`, newest last), or the keys that are no files, with the reason
    (`problems`, in key order from behind `after`), as JSON."""

    id: int
    what: str = "log"
    after: bytes = b""
    limit: int = LISTING_MAX


class SetLifecycle(Request[Inspection], frozen=True, array_like=True, tag=121):
    """Replace all lifecycle rules by those of a document (`source` names it in errors). A rule that goes and has
    released files: `keep` leaves them so, `recall` brings them back first; EBUSY without either. The answer: warnings,
    as JSON."""

    document: str
    source: str = "lifecycle"
    keep: bool = False
    recall: bool = False


class RemoveRule(Request[Done], frozen=True, array_like=True, tag=122):
    """Remove one rule; `keep` and `recall` as with `SetLifecycle`."""

    rule: str
    keep: bool = False
    recall: bool = False


class SetRuleState(Request[Done], frozen=True, array_like=True, tag=123):
    """Let a rule run no more (`paused`), run again (`active`), or end the run that is under way (`stopped`)."""

    rule: str
    state: str
    reason: str = ""


class RunRule(Request[Inspection], frozen=True, array_like=True, tag=124):
    """Begin a run of a rule. `dry`: only say what it would do, as JSON. `now_ns`: the time that it assumes; 0: now."""

    rule: str
    dry: bool = False
    now_ns: int = 0


class AskLifecycle(Request[Inspection], frozen=True, array_like=True, tag=125):
    """As JSON: `rules` (the document), `status`, `report` (what is where, and what it saves), or `explain` (what rules
    want done with file `fid`, and when)."""

    what: str
    fid: int = 0
    now_ns: int = 0


# ------------------------------------------------------------------------------------------ lifecycle tier: warmup


class AddWarmup(Request[Inspection], frozen=True, array_like=True, tag=153):
    """Make a warmup job (`job` 0), or add to one that is not complete: bring these files, and all files below these
    directories, to the OSTs (`verb` = `warm`), give them up there (`evict`), or look whether they are there (`check`).
    It is begun with the first request without `more`, and not before job `after` is over (0: at once). `width`: files
    under way at a time. `uid` is who asks. `rate_bytes`: bytes per second that the job brings at most; 0: no limit. The
    answer is the job as `GetWarmups` gives it."""

    fids: tuple[int, ...]
    job: int = 0
    verb: str = "warm"
    more: bool = False
    after: int = 0
    width: int = 16
    uid: int = 0
    rate_bytes: int = 0


class GetWarmups(Request[Inspection], frozen=True, array_like=True, tag=154):
    """All warmup jobs, or one, as JSON."""

    job: int = 0


class CancelWarmup(Request[Done], frozen=True, array_like=True, tag=155):
    """End a job: files that are under way come, the others do not."""

    job: int


# ------------------------------------------------------------------------------------------ lifecycle tier: MDS → OSS


class Stripes(Message, frozen=True, array_like=True, gc=False):
    """A file's bytes on the OSTs as a mover reads and writes them. `addresses`: the URLs of each OST of the layout, by
    object number."""

    fid: int
    layout: Layout
    capability: Capability
    addresses: tuple[str, ...]


class Moved(Message, frozen=True, array_like=True, gc=False):
    """A range was moved. `digest`: xxh3-64 over the sum string of the range (`common.checksum`). `etag`: the object's,
    or the part's. `allocated_bytes`: what the OSTs' objects take, if they were made durable."""

    etag: str
    digest: bytes
    allocated_bytes: int = 0


class MovePut(Request[Moved], frozen=True, array_like=True, tag=128):
    """Copy a whole file to an object in one step. `data`: the contents of a file that has none on OSTs. `match`: the
    ETag that an object of this key has unless somebody else has replaced it, empty if there is none (ESTALE if it is
    another one that this file was not the last to make); not said: whatever is there is replaced."""

    archive: ArchiveSpec
    key: str
    meta: tuple[tuple[str, str], ...]
    size: int
    stripes: Stripes | None = None
    data: bytes | None = None
    match: str | None = None


class Upload(Message, frozen=True, array_like=True, gc=False):
    """An upload in parts has begun."""

    upload: str


class MoveBegin(Request[Upload], frozen=True, array_like=True, tag=129):
    """Begin an object that is sent in parts; `match` as in `MovePut`."""

    archive: ArchiveSpec
    key: str
    meta: tuple[tuple[str, str], ...]
    match: str | None = None


class MovePart(Request[Moved], frozen=True, array_like=True, tag=130):
    """Send bytes `[start, end)` of a file as part `number` (from 1)."""

    archive: ArchiveSpec
    key: str
    upload: str
    number: int
    start: int
    end: int
    stripes: Stripes


class MoveComplete(Request[Moved], frozen=True, array_like=True, tag=131):
    """Make the object of its parts, whose tags are given in order; it must be `size` bytes long then. `match` as in
    `MovePut`, and `fid` whose file it is."""

    archive: ArchiveSpec
    key: str
    upload: str
    etags: tuple[str, ...]
    size: int
    match: str | None = None
    fid: int = 0


class MoveAbort(Request[Done], frozen=True, array_like=True, tag=132):
    """Drop an upload with its parts, if it is there; without `upload`: all of this key."""

    archive: ArchiveSpec
    key: str
    upload: str


class MoveGet(Request[Moved], frozen=True, array_like=True, tag=133):
    """Copy bytes `[start, end)` of an object to the OSTs. With `digest` nothing is written that does not match. The
    object must be `size` bytes long, and have this ETag unless it is empty. With `sync` they are durable when it is
    answered."""

    archive: ArchiveSpec
    key: str
    start: int
    end: int
    size: int
    stripes: Stripes
    digest: bytes = b""
    etag: str = ""
    sync: bool = False


class MoveResult(Message, frozen=True, array_like=True, gc=False):
    """What became of one order: it was carried out, or an errno and why not."""

    moved: Moved | None
    errno: int = 0
    text: str = ""


class MovedMany(Message, frozen=True, array_like=True, gc=False):
    """What became of the orders, in their order."""

    results: tuple[MoveResult, ...]


class MoveMany(Request[MovedMany], frozen=True, array_like=True, tag=168):
    """Carry out orders about small files, which are cheaper together; answered when all are over."""

    orders: tuple[MovePut | MoveGet, ...]


class Bytes(Message, frozen=True, array_like=True, gc=False):
    """The bytes of an object."""

    data: bytes


class MoveRead(Request[Bytes], frozen=True, array_like=True, tag=169):
    """An object of an archive that is small enough for one answer; ENOENT if there is none."""

    archive: ArchiveSpec
    key: str


class MoveSync(Request[Glimpsed], frozen=True, array_like=True, tag=134):
    """Make objects durable; what they are then. With `begin` the disk only begins with it."""

    objects: tuple[ObjectId, ...]
    begin: bool = False


class MoveDelete(Request[Done], frozen=True, array_like=True, tag=135):
    """Delete objects; one that is not there is deleted already."""

    archive: ArchiveSpec
    keys: tuple[str, ...]


class ArchiveEntry(Message, frozen=True, array_like=True, gc=False):
    """One object of an archive. `key` is without the archive's prefix."""

    key: str
    size: int
    etag: str = ""
    mtime_ns: int = 0
    storage_class: str = ""
    meta: tuple[tuple[str, str], ...] = ()


class ArchiveListing(Message, frozen=True, array_like=True, gc=False):
    """A page of objects in key order; `after`: where the next begins, empty at the end."""

    entries: tuple[ArchiveEntry, ...]
    after: str


class MoveList(Request[ArchiveListing], frozen=True, array_like=True, tag=136):
    """List objects behind `after`; with `details`, their metadata too (a request for each)."""

    archive: ArchiveSpec
    prefix: str
    after: str = ""
    limit: int = LISTING_MAX
    details: bool = False


class MoveProbe(Request[Inspection], frozen=True, array_like=True, tag=137):
    """Try an archive out; what it can do, as JSON."""

    archive: ArchiveSpec


class MoveHead(Request[ArchiveEntry], frozen=True, array_like=True, tag=138):
    """One object; ENOENT if there is none."""

    archive: ArchiveSpec
    key: str


class Thaw(Message, frozen=True, array_like=True, gc=False):
    """Whether an object can be read now; `state`: `ready`, `thawing` or `frozen`."""

    state: str


class MoveThaw(Request[Thaw], frozen=True, array_like=True, tag=139):
    """Ask the archive to make an object of a cold class readable for some days (0: only look)."""

    archive: ArchiveSpec
    key: str
    days: int = 0
    tier: str = ""


class MoveStop(Request[Done], frozen=True, array_like=True, tag=140):
    """Stop all moves of these files; answered when none is under way."""

    fids: tuple[int, ...]


CLASS_COPY_MAX: Final = 5 << 30
"""The largest object that S3 moves to another storage class in one piece (CopyObject: 5 GiB)."""


class MoveClass(Request[ArchiveEntry], frozen=True, array_like=True, tag=141):
    """Move an object of this size to another storage class inside the archive."""

    archive: ArchiveSpec
    key: str
    storage_class: str
    size: int = 0


class RaiseFloors(Request[Done], frozen=True, array_like=True, tag=86):
    """MDS → OSS: serve no I/O of an older layout generation on these objects. With `track`, remember from now on what
    is changed in them, as `SyncObject` needs it."""

    floors: tuple[Floor, ...]
    track: bool = False


class ObjectFact(Message, frozen=True, array_like=True, gc=False):
    """An object as its OST has it now. `generation`: the highest layout generation it has seen. `problem`: why it
    cannot be used, empty if it can."""

    fid: int
    number: int
    size: int
    allocated_bytes: int
    mtime_ns: int
    generation: int
    problem: str = ""


class ObjectFacts(Message, frozen=True, array_like=True, gc=False):
    """Some objects; `cursor`: where the next page begins (empty: that was the last one)."""

    facts: tuple[ObjectFact, ...]
    cursor: tuple[int, ...] = ()


class ListObjects(Request[ObjectFacts], frozen=True, array_like=True, tag=88):
    """MDS → OSS: the objects of an OST with fids in `[first, last]`, in order, from behind `cursor` (fid, number); or,
    with `unknown`, in no order, the files of objects that the index does not know (new ones, and what a crash has
    left)."""

    ost: int
    first: int = 0
    last: int = (1 << 64) - 1
    cursor: tuple[int, ...] = ()
    limit: int = 1000
    unknown: bool = False


class ProbeObjects(Request[ObjectFacts], frozen=True, array_like=True, tag=89):
    """MDS → OSS: these objects, but for those that do not exist."""

    objects: tuple[ObjectId, ...]


class ScrubOst(Request[ScrubState], frozen=True, array_like=True, tag=90):
    """MDS → OSS: start, pause, stop or look at the scrub of an OST, with the damages behind number `after`."""

    ost: int
    order: ScrubOrder
    bytes_per_s: int = -1
    after: int = 0


class Verified(Message, frozen=True, array_like=True, gc=False):
    """A piece of an object has been read: up to `offset` (-1: all of it), of `size`. `digest`: xxh3-64 over the sum
    string of the piece, by which copies can be compared."""

    offset: int
    checked_bytes: int
    size: int
    digest: bytes
    damages: tuple[Damage, ...] = ()


class VerifyObject(Request[Verified], frozen=True, array_like=True, tag=91):
    """MDS → OSS: read a piece of an object, from `offset` on, and compare it with its checksums."""

    ost: int
    fid: int
    number: int
    offset: int = 0


class Synced(Message, frozen=True, array_like=True, gc=False):
    """How far a copy has become equal: up to `offset` (-1: all of it, durably). `size` is the source's."""

    offset: int
    checked_bytes: int
    copied_bytes: int
    size: int


class SyncObject(Request[Synced], frozen=True, array_like=True, tag=87):
    """MDS → OSS: make a piece of an object equal to another copy, which is read from `address` under `capability`. What
    clients have changed since tracking began stays. ESTALE if that is not known any more: start again."""

    ost: int
    fid: int
    number: int
    generation: int
    address: str
    source_ost: int
    source_number: int
    capability: Capability
    offset: int


# --------------------------------------------------------------------------------------------------------- client → OSS


class Data(Message, frozen=True, array_like=True, gc=False):
    """Bytes read (they follow as bulk, the extents one after the other). `lengths` says how much of each extent the
    object has: what is missing lies past its end. `sums` are the sum strings (`common.checksum`) of what came."""

    lengths: tuple[int, ...]
    sums: bytes
    version: int


class Read(Request[Data], frozen=True, array_like=True, tag=96):
    """Read extents `(offset, length)` of an object. Holes read as zeros."""

    ost: int
    fid: int
    number: int
    generation: int
    capability: Capability
    extents: tuple[tuple[int, int], ...]


class Written(Message, frozen=True, array_like=True, gc=False):
    """The object after the write: end of its last byte, allocated bytes, data version; and by how many bytes this write
    made what is allocated grow."""

    size: int
    allocated_bytes: int
    version: int
    grown_bytes: int = 0


class Write(Request[Written], frozen=True, array_like=True, tag=97):
    """Write extents `(offset, length)`; their bytes come as bulk, one after the other, with their sum strings.
    With `sync` it is durable when answered."""

    ost: int
    fid: int
    number: int
    generation: int
    capability: Capability
    extents: tuple[tuple[int, int], ...]
    sums: bytes
    sync: bool = False
    mtime_ns: int = 0
    """When it was written, if that was under a WRITE lease, whose holder reports it to the MDS; `NO_CHANGE_NS` if it is
    no change of the file; 0: now"""


class Punch(Request[Written], frozen=True, array_like=True, tag=98):
    """Make extents `(offset, length)` holes: they read as zeros; the size stays. `mtime_ns` is as in `Write`."""

    ost: int
    fid: int
    number: int
    generation: int
    capability: Capability
    extents: tuple[tuple[int, int], ...]
    mtime_ns: int = 0


class Truncate(Request[Written], frozen=True, array_like=True, tag=99):
    """Cut the object at file offset `size` (never lengthen it)."""

    ost: int
    fid: int
    number: int
    generation: int
    capability: Capability
    size: int


class CopyRange(Request[Written], frozen=True, array_like=True, tag=104):
    """Copy extents `(offset in the source, offset, length)` of another object, or of the same one, to this one. The OSS
    fetches the bytes itself, from the source's OST, if the sender may read them there; EREMOTEIO, and nothing has been
    changed, if it cannot. What the source lacks is written as zeros. `mtime_ns` is as in `Write`."""

    ost: int
    fid: int
    number: int
    generation: int
    capability: Capability
    source_ost: int
    source_fid: int
    source_number: int
    source_generation: int
    source_capability: Capability
    extents: tuple[tuple[int, int, int], ...]
    mtime_ns: int = 0


class StatObject(Request[ObjectStat], frozen=True, array_like=True, tag=100):
    """Size and allocation of an object; zeros if it does not exist."""

    ost: int
    fid: int
    number: int
    generation: int
    capability: Capability


class Sought(Message, frozen=True, array_like=True, gc=False):
    """Where the data or the hole begins; `end` of the question if there is none before it."""

    offset: int


class Seek(Request[Sought], frozen=True, array_like=True, tag=103):
    """The first byte in `[start, end)` that is an object's business and is data, or with `hole` is not. Its business
    are the bytes of its stripe, one of `stripe_count`; what lies past its end is a hole."""

    ost: int
    fid: int
    number: int
    generation: int
    capability: Capability
    start: int
    end: int
    hole: bool
    stripe_bytes: int
    stripe_count: int


class Sync(Request[Written], frozen=True, array_like=True, tag=101):
    """Make all that was written to the object durable. `version` is that of the sender's last `Written` that it has not
    seen durable; ENOTRECOVERABLE, once, if the OST's machine went down since, so that it may be lost (0: do not
    check)."""

    ost: int
    fid: int
    number: int
    generation: int
    capability: Capability
    version: int = 0


# ---------------------------------------------------------------------------------------- mount daemon → native library


class Ticket(Message, frozen=True, array_like=True, gc=False):
    """What a program proves itself with to OSSes instead of the cluster's key: it is good for connections under names
    that begin with `session` and a dot, until `expires_s` (Unix time). `key` is its name in a Hello."""

    key: str
    secret: bytes
    session: int
    expires_s: int

    def __repr__(self) -> str:
        return f"Ticket(key={self.key!r}, secret=…)"


class IoGrant(Message, frozen=True, array_like=True, gc=False):
    """All that a program needs to do I/O on a file that it has open in a mount: it asks for it with an ioctl on the
    descriptor (`client.programs`). `osts` are the addresses of the layout's OSTs. `sync`: every write is to be durable
    when it returns."""

    cluster: str
    fid: int
    layout: Layout
    capability: Capability
    osts: tuple[OstInfo, ...]
    ticket: Ticket
    sync: bool = False


class Sums(Message, frozen=True, array_like=True, gc=False):
    """Stored sums of an object's blocks, and the object's size, version and mtime."""

    size: int
    version: int
    sums: bytes
    mtime_ns: int = 0


class ReadSums(Request[Sums], frozen=True, array_like=True, tag=105):
    """The stored sums of `blocks` blocks from the one at `offset` on, as far as the object goes."""

    ost: int
    fid: int
    number: int
    generation: int
    capability: Capability
    offset: int
    blocks: int
