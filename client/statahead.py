"""Statahead: a program that walks through a directory by name gets the next names before it asks for them.

`stat`, or open-read-close, of one name after the other costs a request each while the names are not cached. Once some
cold look-ups in one directory came in name order (that is how listings, archives and sorted lists of samples come),
the following entries are fetched together, with contents and layouts if recent look-ups were followed by opens, and
the window doubles as long as it is used up. Out of order nothing is fetched that was not asked for.
(Lustre has the same under this name; here a window ends at a name, not
at a count, because the MDS lists in name order.)
"""

import asyncio
from typing import Final

from nacrefs.client.cache import Inode
from nacrefs.client.opening import Opening
from nacrefs.client.session import Session
from nacrefs.common.wire import Listing, Readdir, Want

RUN: Final = 8
"""Cold look-ups in ascending order after which the first fetch is made."""
WINDOW_FIRST: Final = 16
WINDOW_DATA_MOST: Final = 64
"""Longest window where contents come along."""


class Walk:
    """How one directory is being walked through."""

    __slots__ = ("coming", "last", "run", "trigger", "until", "window")

    def __init__(self) -> None:
        self.last = b""
        """the name last looked up without the cache's help"""
        self.run = 0
        """how many of these came in order"""
        self.window = WINDOW_FIRST
        self.until = b""
        """the last name that was fetched"""
        self.trigger = b""
        """the name at which the next window is fetched, while the rest of this one is used up"""
        self.coming: asyncio.Task[None] | None = None


class Statahead:
    """Looks ahead in directories. `opening` knows whether look-ups are followed by opens."""

    def __init__(self, session: Session, opening: Opening) -> None:
        self._session = session
        self._opening = opening
        self._most = min(session.config.read.ahead_entries, session.cache.limit // 16)

    def missed(self, directory: Inode, name: bytes) -> None:
        """A name that exists was not in the cache and has been looked up."""
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
            self._fetch(directory, walk, name)

    def reached(self, directory: Inode, walk: Walk) -> None:
        """The trigger of a window was looked up: the walk goes on."""
        walk.trigger = b""
        walk.last = walk.until
        if walk.coming is None:
            walk.window = min(2 * walk.window, self._most)
            self._fetch(directory, walk, walk.until)

    def _fetch(self, directory: Inode, walk: Walk, after: bytes) -> None:
        if directory.lease and not directory.complete:
            walk.coming = self._session.spawn(self._extend(directory, walk, after))

    async def _extend(self, directory: Inode, walk: Walk, after: bytes) -> None:
        want = self._opening.want()
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
        entries = listing.entries
        for entry in entries:
            inode = self._session.cache.inodes.get(entry.attr.fid)
            if inode is not None:
                self._opening.looked_up(inode)
        walk.until = walk.last = entries[-1].name
        walk.trigger = b"" if listing.end else entries[len(entries) // 2].name
