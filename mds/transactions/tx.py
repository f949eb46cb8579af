"""The unit of work of one batch: a private view in which steps see each other's changes before anybody else does.

Reads go to the overlay (this batch's changes), then to the cache, then to SQL through the reader's connection.
Writes go to the overlay only. `flush` (`flush.py`) turns it into statements, the commit makes them durable, `publish`
moves the overlay into the cache. Between `flush` and `publish` nobody may use the transaction.

A step that fails before its first write leaves no trace by construction; `writes` counts, so that the journal can tell.
"""

import errno
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from msgspec.structs import replace

from nacrefs.common.fid import COUNTER_BITS, COUNTER_MAX, format_fid
from nacrefs.common.layout import Layout, LayoutSpec
from nacrefs.common.wire import Attr, AttrFlag, Mode
from nacrefs.mds.inode import Inode, inode_of
from nacrefs.mds.mdt import Mdt
from nacrefs.mds.records import Destruction, Intent, MirrorRecord, OstRecord, Quota, SessionRecord
from nacrefs.mds.transactions.cache import ABSENT

FID_RANGE: Final = 4096
"""Fid counters reserved at a time."""
XATTRS: Final = int(AttrFlag.XATTRS)
ARCHIVED: Final = int(AttrFlag.ARCHIVED)
COPIED: Final = int(AttrFlag.COPIED)
_NO_OPENS: Final[Mapping[int, Mode]] = MappingProxyType({})
_NO_XATTRS: Final[dict[bytes, bytes]] = {}


class NeedsBatch(Exception):
    """A step that was run on a reading transaction wants to write: run it again in a batch."""


class Tx:
    """One batch's view of an MDT. With `writable` False: committed state only; a write raises NeedsBatch."""

    def __init__(self, mdt: Mdt, writable: bool = True) -> None:
        self.mdt = mdt
        self.writable = writable
        self.writes = 0
        """Grows with every write."""
        self.touched: set[int] = set()
        """Fids of all inodes that were changed, made or destroyed."""
        self.new_intents: list[Intent] = []
        """Truncations of objects that steps of this batch want, in order."""
        self.new_destructions: list[Destruction] = []
        """Files whose objects the reaper is to destroy from now on."""
        self.hsm: dict[int, Any] = {}
        """Rows of the lifecycle tier (`mds/hsm/rows.py`) that were written, None: removed."""
        self.side: list[tuple[str, tuple[Any, ...]]] = []
        """Statements by name, with their parameters, that are run in this order at the end."""
        self.gone: set[tuple[int, str]] = set()
        """Rows of `hsm_gone` that this batch adds."""
        self.slow: list[str] = []
        """SQL that takes long: the committing thread runs it."""
        self.quiet: set[int] = set()
        """Fids that links have changed after their buckets: these need not follow."""
        self.marked: dict[int, int] = {}
        self.unmarked: set[int] = set()
        """Rows of `link_dirty` that come and go."""
        # What flush and publish need.
        self.inodes: dict[int, Inode | None] = {}
        self.base: dict[int, Inode] = {}
        self.fresh: set[int] = set()
        self.wide: set[int] = set()
        self.dentries: dict[tuple[int, bytes], int] = {}
        self.base_dentries: dict[tuple[int, bytes], int] = {}
        self.contents: dict[int, bytes] = {}
        self.xattr_writes: dict[tuple[int, bytes], bytes | None] = {}
        self.open_sets: dict[int, dict[int, Mode]] = {}
        self.open_writes: dict[tuple[int, int], Mode] = {}
        self.intents: dict[int, Intent | None] = {}
        self.destroyed: list[int] = []
        self.ghosts: dict[int, Inode] = {}
        self.finished: list[int] = []
        self.replies: dict[tuple[int, int], bytes] = {}
        self.trims: dict[int, int] = {}
        self.sessions: list[SessionRecord] = []
        self.ended_sessions: list[int] = []
        self.osts: dict[int, OstRecord] = {}
        self.pools: dict[str, tuple[int, ...]] = {}
        self.charged: dict[tuple[int, int], list[int]] = {}
        """What steps of this batch have been granted of limited accounts, beside what is used: [bytes, inodes]."""
        self.now_ns = 0
        """When its latest step was executed."""
        self.usage: dict[tuple[int, int, int], list[int]] = {}
        """What flush adds to usage; what a check has found to be wrong is in it before."""
        self.quotas: dict[tuple[int, int], Quota | None] = {}
        self.mirrors: dict[tuple[int, int, int], MirrorRecord | None] = {}
        self.mirror_writers: dict[tuple[int, int], bool] = {}
        self.counters_moved = False
        self.counter_limit = mdt.counter_limit

    # ------------------------------------------------------------------------------------------------------- reading

    def inode(self, fid: int) -> Inode | None:
        """The inode, or None if there is none. Not to be changed: see `edit`."""
        inodes = self.inodes
        if fid in inodes:
            return inodes[fid]
        cache = self.mdt.cache
        inode = cache.inode(fid)
        if inode is None:
            store = self.mdt.store
            row = store.fetchone(store.statements.inode, (fid,))
            if row is None:
                return None
            inode = inode_of(row)
            cache.put_inode(inode)
        return inode

    def need(self, fid: int) -> Inode:
        """The inode; OSError (ESTALE) if there is none."""
        inode = self.inode(fid)
        if inode is None:
            raise OSError(errno.ESTALE, f"file {format_fid(fid) if fid > 0 else fid} does not exist any more")
        return inode

    def ghost(self, fid: int) -> Inode | None:
        """An inode that was destroyed lately, as it was last (`Mdt.ghosts`)."""
        return self.ghosts.get(fid) or self.mdt.ghosts.get(fid)

    def need_directory(self, fid: int) -> Inode:
        """The directory; OSError: ENOENT if it has been removed lately, ESTALE if nothing is known of it, ENOTDIR if it
        is something else."""
        inode = self.inode(fid)
        if inode is None:
            if self.ghost(fid) is not None:
                raise FileNotFoundError(errno.ENOENT, "the directory has been removed")
            inode = self.need(fid)
        if not inode.is_directory:
            raise OSError(errno.ENOTDIR, f"{format_fid(fid)} is not a directory")
        return inode

    def lookup(self, parent: int, name: bytes) -> Inode | None:
        """The inode that a name stands for, or None."""
        key = (parent, name)
        fid = self.dentries.get(key)
        if fid is None:
            cache = self.mdt.cache
            fid = cache.dentry(key)
            if fid is None:
                if parent in self.fresh:
                    return None
                store = self.mdt.store
                row = store.fetchone(store.statements.lookup, key)
                if row is None:
                    cache.put_dentry(key, ABSENT)
                    return None
                fid = row[0]
                cache.put_dentry(key, fid)
                if fid not in self.inodes and cache.inode(fid) is None:
                    cache.put_inode(inode_of(row))
        return self.inode(fid) if fid else None

    def dentry(self, parent: int, name: bytes) -> int | None:
        """The fid that a name stands for, or None."""
        inode = self.lookup(parent, name)
        return None if inode is None else inode.attr.fid

    def data(self, inode: Inode) -> bytes:
        """Inline contents of a file (may be shorter than its size: the rest is a hole), or a symlink's target."""
        if inode.data is not None:
            return inode.data
        if not inode.is_symlink and not (inode.is_inline and inode.attr.size):
            return b""
        fid = inode.attr.fid
        store = self.mdt.store
        row = store.fetchone(store.statements.inline, (fid,))
        data: bytes = b"" if row is None else row[0]
        self._remember(fid, data, None)
        return data

    def xattrs(self, inode: Inode) -> dict[bytes, bytes]:
        """All extended attributes by name. Not to be changed: see `set_xattr`."""
        if inode.xattrs is not None:
            return inode.xattrs
        if not inode.attr.flags & XATTRS:
            return _NO_XATTRS
        fid = inode.attr.fid
        store = self.mdt.store
        xattrs: dict[bytes, bytes] = dict(store.fetchall(store.statements.xattrs, (fid,)))
        self._remember(fid, None, xattrs)
        return xattrs

    def _remember(self, fid: int, data: bytes | None, xattrs: dict[bytes, bytes] | None) -> None:
        """Add what SQL has beside an inode to what the cache, and this batch, know of it."""
        cached = self.mdt.cache.inode(fid)
        if cached is not None:
            fuller = cached.copy()
            if data is not None:
                fuller.data = data
            if xattrs is not None:
                fuller.xattrs = xattrs
            self.mdt.cache.put_inode(fuller)
        own = self.inodes.get(fid)
        if own is not None:
            if data is not None:
                own.data = data
            if xattrs is not None:
                own.xattrs = xattrs

    def opens(self, fid: int) -> Mapping[int, Mode]:
        """The registered opens of a file: mode by session."""
        own = self.open_sets.get(fid)
        if own is not None:
            return own
        return self.mdt.opens.get(fid, _NO_OPENS)

    def names(self, fid: int) -> list[tuple[int, bytes]]:
        """All names of an inode: (parent, name)."""
        store = self.mdt.store
        names = [
            (parent, name)
            for parent, name in store.fetchall(store.statements.names, (fid,))
            if self.dentries.get((parent, name), fid) == fid
        ]
        if self.dentries:
            known = set(names)
            names.extend(key for key, target in self.dentries.items() if target == fid and key not in known)
        return names

    def listing(self, parent: int, after: bytes, limit: int) -> list[tuple[bytes, Attr]]:
        """Up to `limit` names of a directory that come after `after`, in bytewise order, with their attributes."""
        store = self.mdt.store
        own = {name: fid for (directory, name), fid in self.dentries.items() if directory == parent and name > after}
        rows: list[tuple[bytes, Attr]] = []
        if parent not in self.fresh:
            fetched = store.fetchall(store.statements.listing, (parent, after, limit + len(own)))
            rows = [(row[0], Attr(*row[1:15])) for row in fetched]
        if not self.inodes:
            return rows
        complete = len(rows) < limit + len(own)
        merged = [(name, self._latest(attr)) for name, attr in rows if name not in own]
        for name, fid in own.items():
            if fid and (complete or name < rows[-1][0]):
                merged.append((name, self.need(fid).attr))
        merged.sort(key=lambda entry: entry[0])
        return merged[:limit]

    def listing_whole(self, parent: int, after: bytes, limit: int) -> list[tuple[bytes, Inode, bytes | None]]:
        """The same with whole inodes, and inline contents (None: the file has none, or they must be asked for)."""
        if self.inodes or self.dentries:
            return [(name, self.need(attr.fid), None) for name, attr in self.listing(parent, after, limit)]
        store = self.mdt.store
        rows = store.fetchall(store.statements.listing_whole, (parent, after, limit))
        return [(row[0], inode_of(row[1:-1]), row[-1]) for row in rows]

    def _latest(self, attr: Attr) -> Attr:
        own = self.inodes.get(attr.fid)
        return attr if own is None else own.attr

    def reply(self, session: int, xid: int) -> bytes | None:
        """The stored answer to a request, or None."""
        own = self.replies.get((session, xid))
        if own is not None:
            return own
        store = self.mdt.store
        row = store.fetchone(store.statements.reply, (session, xid))
        return None if row is None else row[0]

    # -------------------------------------------------------------------------------------------------------- inodes

    def _wrote(self) -> None:
        if not self.writable:
            raise NeedsBatch
        self.writes += 1

    def _own(self, fid: int) -> Inode:
        """This batch's copy of an inode that exists."""
        inode = self.inodes.get(fid)
        if inode is None:
            base = self.need(fid)
            self.base[fid] = base
            self.touched.add(fid)
            inode = self.inodes[fid] = base.copy()
        return inode

    def edit(self, fid: int) -> Inode:
        """An inode to be changed by the caller: any field but `data` and `xattrs`, which have methods of their own."""
        self._wrote()
        self.wide.add(fid)
        return self._own(fid)

    def touch(self, fid: int, nlink: int, entries: int, now_ns: int) -> Attr:
        """A directory's names changed: add to its link count and its number of entries; mtime and ctime become now."""
        self._wrote()
        inode = self._own(fid)
        attr = inode.attr
        inode.attr = attr = replace(
            attr, nlink=attr.nlink + nlink, mtime_ns=now_ns, ctime_ns=now_ns, change=attr.change + 1
        )
        inode.entries += entries
        return attr

    def relink(self, fid: int, nlink: int, now_ns: int) -> Attr:
        """An inode's names changed: add to its link count; ctime becomes now."""
        self._wrote()
        inode = self._own(fid)
        attr = inode.attr
        inode.attr = attr = replace(attr, nlink=attr.nlink + nlink, ctime_ns=now_ns, change=attr.change + 1)
        return attr

    def new_inode(
        self,
        mode: int,
        uid: int,
        gid: int,
        now_ns: int,
        *,
        nlink: int = 1,
        rdev: int = 0,
        size: int = 0,
        blocks: int = 0,
        flags: int = 0,
        parent: int = 0,
        layout: Layout | None = None,
        spec: LayoutSpec | None = None,
        project: int = 0,
        data: bytes | None = None,
    ) -> Inode:
        """Make an inode (its names come with `set_dentry`); the copy may be changed in this step."""
        self._wrote()
        fid = self._next_fid()
        attr = Attr(fid, mode, nlink, uid, gid, rdev, size, blocks, now_ns, now_ns, now_ns, now_ns, 1, flags)
        inode = Inode(attr, 0, parent, layout, spec, project, 0, data)
        self.inodes[fid] = inode
        self.fresh.add(fid)
        self.touched.add(fid)
        if data:
            self.contents[fid] = data
        return inode

    def restore_inode(self, inode: Inode) -> None:
        """Make an inode with a fid that has none; its names come with `set_dentry`."""
        self._wrote()
        fid = inode.attr.fid
        self.mdt.cache.drop_inode(fid)
        self.inodes[fid] = inode
        self.fresh.add(fid)
        self.touched.add(fid)
        if inode.data:
            self.contents[fid] = inode.data

    def give_out(self, counter: int, session: int) -> None:
        """Fid counters and session numbers up to these have been given out."""
        self._wrote()
        mdt = self.mdt
        mdt.next_counter = max(mdt.next_counter, counter + 1)
        self.counter_limit = max(self.counter_limit, mdt.next_counter)
        mdt.next_session = max(mdt.next_session, session + 1)
        self.counters_moved = True

    def _next_fid(self) -> int:
        mdt = self.mdt
        counter = mdt.next_counter
        if counter >= self.counter_limit:
            self.counter_limit = counter + FID_RANGE
            self.counters_moved = True
            if self.counter_limit > COUNTER_MAX:
                raise AssertionError("all fids of this MDT are used")
        mdt.next_counter = counter + 1
        return mdt.number << COUNTER_BITS | counter

    def set_data(self, fid: int, data: bytes) -> None:
        """Give a file these inline contents; empty: none."""
        self.edit(fid).data = data
        self.contents[fid] = data

    def set_xattr(self, fid: int, name: bytes, value: bytes | None) -> None:
        """Set an extended attribute (None: remove it), and the flag that says there are some."""
        inode = self.edit(fid)
        xattrs = dict(self.xattrs(inode))
        if value is None:
            del xattrs[name]
        else:
            xattrs[name] = value
        inode.xattrs = xattrs
        flags = inode.attr.flags & ~XATTRS | (XATTRS if xattrs else 0)
        inode.attr = replace(inode.attr, flags=flags)
        self.xattr_writes[fid, name] = value

    def destroy(self, fid: int) -> None:
        """Remove an inode with all that hangs on it; the objects of a file that is not inline go to the reaper."""
        self._wrote()
        inode = self.need(fid)
        if inode.layout is not None and not inode.is_inline:
            self.new_destructions.append(Destruction(fid, inode.layout))
        if fid in self.fresh:
            self.fresh.discard(fid)
        else:
            self.base.setdefault(fid, inode)
            self.destroyed.append(fid)
        self.set_ghost(inode)
        self.inodes[fid] = None
        self.contents.pop(fid, None)
        self.touched.add(fid)
        for session in tuple(self.opens(fid)):
            self.set_open(session, fid, Mode.CLOSED)
        if inode.attr.flags & ARCHIVED:
            self._drop_hsm(fid)

    # --------------------------------------------------------------------------------------------------- lifecycle tier

    def set_hsm(self, fid: int, row: Any) -> None:
        """Write a file's row of the lifecycle tier (None: remove it)."""
        self._wrote()
        self.hsm[fid] = row
        if row is None:
            self.side.append(("delete_hsm", (fid,)))
        else:
            self.side.append(("put_hsm", tuple(row)))

    def run(self, statement: str, row: tuple[Any, ...]) -> None:
        """Run a statement of `Statements`, by its name, at the end of the batch."""
        self._wrote()
        self.side.append((statement, row))

    def run_slowly(self, sql: str) -> None:
        """Run SQL in the committing thread, before the commit."""
        self._wrote()
        self.slow.append(sql)

    def drop_object(self, archive: int, key: str) -> None:
        """No file needs this object any more, or this upload. (Objects of links are deleted only if those say so.)"""
        if archive not in self.mdt.linked or archive in self.mdt.deleting or "\n" in key:
            self._wrote()
            self.gone.add((archive, key))
            self.side.append(("put_gone", (archive, key)))

    def is_gone(self, archive: int, key: str) -> bool:
        """Whether an object is about to be deleted, also since an earlier step of this batch."""
        row = (archive, key)
        return row in self.gone or self.mdt.store.fetchone(self.mdt.store.statements.is_gone, row) is not None

    def sent(self, fid: int) -> None:
        """The bucket has what is known of a file."""
        if fid in self.mdt.dirty:
            self.run("delete_link_dirty", (fid,))
            self.unmarked.add(fid)

    def mark(self, fid: int, link: int) -> None:
        """A link's bucket is to follow a file."""
        self.run("put_link_dirty", (fid, link))
        self.marked[fid] = link

    def _drop_hsm(self, fid: int) -> None:
        """The file is gone: so is its copy, unless its archive keeps what it has."""
        row = self.hsm.get(fid)
        if row is None:
            row = self.mdt.store.fetchone(self.mdt.store.statements.hsm, (fid,))
        if row is not None:
            if row[3] and row[2] in self.mdt.linked:
                self.run("delete_link_object", (row[2], row[3].encode(), fid))
                self.drop_object(row[2], row[3])
            elif row[3] and row[2] not in self.mdt.keeping:
                self.drop_object(row[2], row[3])
            self.set_hsm(fid, None)

    def set_ghost(self, inode: Inode) -> None:
        """Remember the attributes (and target) of an inode that is gone."""
        self._wrote()
        self.ghosts[inode.attr.fid] = Inode(inode.attr, data=inode.data if inode.is_symlink else None)

    # --------------------------------------------------------------------------------------------------------- names

    def set_dentry(self, parent: int, name: bytes, fid: int) -> None:
        """Let a name stand for an inode, or for nothing (ABSENT), whatever it was before."""
        self._wrote()
        key = (parent, name)
        dentries = self.dentries
        if key not in dentries:
            self.base_dentries[key] = self.dentry(parent, name) or ABSENT
        dentries[key] = fid

    def forget_name(self, parent: int, name: bytes) -> None:
        """Remove a name from SQL, also one that stands for nothing. Nothing else may have happened to it in this
        batch."""
        self.run("delete_dentry", (parent, name))
        self.dentries[parent, name] = self.base_dentries[parent, name] = ABSENT

    def add_dentry(self, parent: int, name: bytes, fid: int) -> None:
        """Let a name that is known to stand for nothing, also in this batch, stand for an inode: no look at it."""
        self._wrote()
        self.base_dentries.setdefault((parent, name), ABSENT)  # this batch may have removed it
        self.dentries[parent, name] = fid

    # ----------------------------------------------------------------------------------------- opens, intents, replies

    def set_open(self, session: int, fid: int, mode: Mode) -> None:
        """Register how a session has a file open; CLOSED ends it."""
        if mode == self.opens(fid).get(session, Mode.CLOSED):
            return
        self._wrote()
        own = self.open_sets.get(fid)
        if own is None:
            own = self.open_sets[fid] = dict(self.mdt.opens.get(fid, _NO_OPENS))
        if mode:
            own[session] = mode
        else:
            del own[session]
        self.open_writes[session, fid] = mode

    def add_intent(self, fid: int, size: int, layout: Layout) -> None:
        """The objects of a file are to be cut at `size`, or at an earlier intent's size if that is smaller."""
        self._wrote()
        earlier = self.intents.get(fid, self.mdt.intents.get(fid))
        intent = Intent(fid, size if earlier is None else min(size, earlier.size), layout)
        self.intents[fid] = intent
        self.new_intents.append(intent)

    def finish_intent(self, intent: Intent) -> None:
        """All objects have been cut as the intent says; a later, smaller one stays."""
        if self.intents.get(intent.fid, self.mdt.intents.get(intent.fid)) == intent:
            self._wrote()
            self.intents[intent.fid] = None

    def put_mirror(self, record: MirrorRecord) -> None:
        """A copy is not good."""
        self._wrote()
        self.mirrors[record[:3]] = record

    def drop_mirror(self, fid: int, number: int, ost: int) -> None:
        """A copy is good again, or is no copy any more."""
        self._wrote()
        self.mirrors[fid, number, ost] = None

    def set_mirror_writer(self, session: int, fid: int, writes: bool) -> None:
        """Remember that a session may write the objects of a mirrored file, or that it does not any more."""
        key = (session, fid)
        if writes != self.mirror_writers.get(key, key in self.mdt.mirror_writers):
            self._wrote()
            self.mirror_writers[key] = writes

    def destroy_objects(self, fid: int, layout: Layout) -> None:
        """The objects that this layout names, of a fid without an inode, go to the reaper."""
        self._wrote()
        self.new_destructions.append(Destruction(fid, layout))

    def finish_destructions(self, fids: list[int]) -> None:
        """All objects of these files have been destroyed."""
        self._wrote()
        self.finished.extend(fids)

    def store_reply(self, session: int, xid: int, body: bytes) -> None:
        """Keep the answer to a request with its effect."""
        self._wrote()
        self.replies[session, xid] = body

    def trim_replies(self, session: int, xid: int) -> None:
        """Forget a session's answers to requests below `xid`: it has got them."""
        self._wrote()
        self.trims[session] = xid

    # ------------------------------------------------------------------------------------------- sessions and targets

    def add_session(self, client: str, host: str, root: int, now_ns: int) -> SessionRecord:
        """Make a session with a number that no other ever had."""
        self._wrote()
        record = SessionRecord(self.mdt.next_session, client, host, root, now_ns)
        self.mdt.next_session += 1
        self.counters_moved = True
        self.sessions.append(record)
        return record

    def end_session(self, session: int) -> list[int]:
        """Remove a session with its opens and replies; the fids that it had registered as open, in no order.

        Orphans among them must be settled by the caller (`namespace.files.settle_orphan`).
        """
        self._wrote()
        everywhere = {**self.mdt.opens, **self.open_sets}
        fids = [fid for fid, sessions in everywhere.items() if session in sessions]
        for fid in fids:
            self.set_open(session, fid, Mode.CLOSED)
        self.ended_sessions.append(session)
        return fids

    def put_ost(self, record: OstRecord) -> None:
        """Add an OST, or renew what is known of it."""
        self._wrote()
        self.osts[record.number] = record

    def set_pool(self, name: str, osts: tuple[int, ...]) -> None:
        """Give a pool exactly these OSTs; none removes it."""
        self._wrote()
        self.pools[name] = osts

    def set_quota(self, account: tuple[int, int], quota: Quota | None) -> None:
        """Limit an account (kind, id), or (None) limit it no more."""
        self._wrote()
        self.quotas[account] = quota

    def mend_usage(self, triple: tuple[int, int, int], used_bytes: int, inodes: int) -> None:
        """Add to what is recorded as used by (uid, gid, project)."""
        self._wrote()
        sums = self.usage.setdefault(triple, [0, 0])
        sums[0] += used_bytes
        sums[1] += inodes

    def set_project(self, fid: int, project: int) -> None:
        """Give an inode a project."""
        self.edit(fid).project = project
