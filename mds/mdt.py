"""One MDT as this process has it: what outlives a transaction."""

import itertools
from typing import Final

from nacrefs.common.layout import Layout
from nacrefs.common.wire import Mode
from nacrefs.mds.access.accounts import Accounts
from nacrefs.mds.engine import Store
from nacrefs.mds.inode import Inode, decode_layout
from nacrefs.mds.records import Destruction, Intent, MirrorRecord, OstRecord, SessionRecord
from nacrefs.mds.transactions.cache import Cache

GHOSTS_MAX: Final = 8192
"""So many of the inodes that were destroyed last are remembered."""


class Mdt:
    """The open database with the committed state that is kept in memory.

    `opens` (registered opens, by fid, then session), `intents` and `mirror_writers` are complete copies of their
    tables; the cache is a part. Only `flush.publish` changes them.
    """

    def __init__(self, store: Store, cache: Cache) -> None:
        self.store = store
        self.cache = cache
        self.opens: dict[int, dict[int, Mode]] = {}
        self.intents: dict[int, Intent] = {}
        self.mirror_writers: set[tuple[int, int]] = set()
        """(session, fid)"""
        self.accounts = Accounts()
        self.ghosts: dict[int, Inode] = {}
        """Inodes that were destroyed last, oldest first: who stands in a directory, or holds a descriptor of a FIFO or
        one that is good for nothing else (O_PATH), may still ask for attributes. After a restart that is ESTALE."""
        self.cluster = ""
        self.keeping: set[int] = set()
        """Archives whose objects stay when their files are removed."""
        self.linked: set[int] = set()
        """Archives that are the prefixes of links: what is in them is never deleted because a file here changes."""
        self.exports: dict[int, int] = {}
        """Links whose buckets follow their files, by directory."""
        self.deleting: set[int] = set()
        """Links whose objects go when their files do."""
        self.emptying: set[tuple[int, str]] = set()
        """Links and keys whose objects are being looked at, and deleted if a file that is gone has made them."""
        self.dirty: dict[int, int] = {}
        """The table `link_dirty`: link by fid."""
        self.restoring: set[int] = set()
        """Released files that are being brought back."""
        self.number = 0
        self.next_counter = 0
        self.counter_limit = 0
        """Fid counters below this are reserved in SQL for this process."""
        self.next_session = 0
        self.reload()

    def reload(self) -> None:
        """Forget all and read again what SQL says: at the start, and after a commit of which nobody knows the end."""
        store, statements = self.store, self.store.statements
        self.cache.clear()
        row = store.fetchone(statements.mdt)
        assert row is not None, "a formatted MDT has its row"
        self.cluster, self.number, counter, self.next_session, _ = row
        self.next_counter = self.counter_limit = counter
        self.accounts.load(store)
        self.opens = {}
        for session, fid, mode in store.fetchall(statements.opens):
            self.opens.setdefault(fid, {})[session] = Mode(mode)
        self.intents = {
            fid: Intent(fid, size, decode_layout(layout)) for fid, size, layout in store.fetchall(statements.intents)
        }
        self.dirty = dict(store.fetchall(statements.link_dirties))
        self.mirror_writers = {(session, fid) for session, fid in store.fetchall(statements.mirror_writers)}

    @property
    def files(self) -> int:
        """Number of inodes."""
        return self.accounts.inodes

    def bury(self, ghosts: dict[int, Inode]) -> None:
        """Add inodes that are gone from now on, and forget the oldest ones."""
        known = self.ghosts
        known.update(ghosts)
        if len(known) > GHOSTS_MAX:
            for fid in list(itertools.islice(known, len(known) - GHOSTS_MAX)):
                del known[fid]

    def sessions(self) -> list[SessionRecord]:
        """All sessions, oldest first."""
        return [SessionRecord(*row) for row in self.store.fetchall(self.store.statements.sessions)]

    def replies(self, session: int) -> list[tuple[int, bytes]]:
        """The stored replies of a session: (xid, body), lowest xid first."""
        return [(xid, body) for xid, body in self.store.fetchall(self.store.statements.replies, (session,))]

    def osts(self) -> list[OstRecord]:
        """All OSTs that ever registered, by index."""
        return [OstRecord(*row) for row in self.store.fetchall(self.store.statements.osts)]

    def pools(self) -> dict[str, tuple[int, ...]]:
        """The OST indices of each pool."""
        rows = self.store.fetchall(self.store.statements.pools)
        return {name: tuple(index for _, index in group) for name, group in itertools.groupby(rows, lambda row: row[0])}

    def orphans(self) -> list[int]:
        """The fids that have no name any more and live until nobody has them open."""
        return [fid for (fid,) in self.store.fetchall(self.store.statements.orphans)]

    def destructions(self, limit: int, after: int = 0) -> list[Destruction]:
        """Up to `limit` files whose objects wait for the reaper, in fid order from behind `after`."""
        rows = self.store.fetchall(self.store.statements.destructions, (after, limit))
        return [Destruction(fid, decode_layout(layout)) for fid, layout in rows]

    def mirrors(self, after: tuple[int, int, int], limit: int) -> list[MirrorRecord]:
        """Up to `limit` copies that are not good, in order of (fid, number, ost) from behind `after`."""
        return [MirrorRecord(*row) for row in self.store.fetchall(self.store.statements.mirrors, (*after, limit))]

    def layouts(self, after: int, limit: int) -> list[tuple[int, Layout]]:
        """Up to `limit` files with their layouts, in fid order from behind `after`."""
        rows = self.store.fetchall(self.store.statements.layouts, (after, limit))
        return [(fid, decode_layout(layout)) for fid, layout in rows]
