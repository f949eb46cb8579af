"""Statahead: a program that walks through a directory gets what comes next before it asks for it.

`stat`, or open-read-close, of one name after the other costs a request each while nothing is cached; after a listing,
which brings attributes, each open still does. Once some such cold look-ups or opens in one directory came in name order
(that is how listings, archives and sorted lists of samples come), the entries that follow are fetched together, with
contents and layouts if files are being opened, and the window doubles as long as it is used up. Out of order nothing is
fetched that was not asked for. Lustre has the same under this name; here a window ends at a name, not at a count,
because the MDS lists in name order.
"""

import asyncio
from typing import Final

from nacrefs.client.cache import Inode
from nacrefs.client.session import Session
from nacrefs.common.wire import Listing, Readdir, Want

RUN: Final = 8
"""Cold look-ups or opens in ascending order after which the first fetch is made."""
WINDOW_FIRST: Final = 16
WINDOW_DATA_MOST: Final = 64
"""Longest window where contents come along."""
ALL: Final = Want.LEASE | Want.LAYOUT | Want.DATA


class Walk:
    """How one directory is being walked through."""

    __slots__ = ("coming", "last", "run", "until", "want", "window")

    def __init__(self) -> None:
        self.last = b""
        """the last name that the cache could not help with, or that was fetched ahead"""
        self.run = 0
        """how many such names came in order"""
        self.window = WINDOW_FIRST
        self.until = b""
        """the last name that was fetched"""
        self.want = Want.LEASE
        """what was fetched with it"""
        self.coming: asyncio.Task[None] | None = None


class Statahead:
    """Looks ahead in directories."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._most = min(session.config.read.ahead_entries, session.cache.limit // 16)

    def missed(self, directory: Inode, name: bytes, want: Want) -> None:
        """An entry had to be asked for, and `want` of it."""
        walk = directory.walk
        if walk is None:
            walk = directory.walk = Walk()
        if name > walk.last:
            walk.run += 1
        else:
            walk.run = 0
            walk.window = WINDOW_FIRST
        walk.last = name
        if walk.run >= RUN and walk.coming is None and self._most:
            self._fetch(directory, walk, name, want)

    def reached(self, inode: Inode) -> None:
        """An inode that was fetched as a trigger is being used: the walk goes on, and the rest of its window is used up
        while the next one comes."""
        inode.trigger = False
        directory = self._session.cache.inodes.get(inode.parent)
        walk = directory.walk if directory is not None else None
        if directory is not None and walk is not None and walk.coming is None:
            walk.window = min(2 * walk.window, self._most)
            self._fetch(directory, walk, walk.until, walk.want)

    def coming(self, directory: Inode | None, name: bytes) -> "asyncio.Future[None] | None":
        """Wait for this before asking for an entry: it may be coming."""
        walk = directory.walk if directory is not None else None
        if walk is None or walk.coming is None or name <= walk.last:
            return None
        return asyncio.shield(walk.coming)

    def _fetch(self, directory: Inode, walk: Walk, after: bytes, want: Want) -> None:
        if directory.lease and (want & Want.DATA or not directory.complete):
            walk.coming = self._session.spawn(self._extend(directory, walk, after, want))

    async def _extend(self, directory: Inode, walk: Walk, after: bytes, want: Want) -> None:
        most = min(WINDOW_DATA_MOST, self._most) if want & Want.DATA else self._most
        listing: Listing | None = None
        try:
            listing = await self._session.mds.call(Readdir(directory.fid, after, min(walk.window, most), True, want))
        except OSError:
            walk.run = 0  # whoever asks for a name of it will see the error
        finally:
            walk.coming = None
        if listing is None or not listing.entries:
            return
        entries, inodes = listing.entries, self._session.cache.inodes
        walk.until = walk.last = entries[-1].name
        walk.want = want
        if not listing.end:
            middle = inodes.get(entries[len(entries) // 2].attr.fid)
            if middle is not None:
                middle.trigger = True
