"""Directory streams: pages of entries in name order, from the cache when the whole listing is known, else from the MDS.

A cookie is the number of an entry's page and its place in it, so a stream can go back to any entry that it has given
out while only two pages are in memory (and, for each page, the name that comes before it).
"""

import asyncio
import errno
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from nacrefs.client.cache import Inode
from nacrefs.client.data.store import Store
from nacrefs.client.filesystem import Dirent, Handle
from nacrefs.client.handle import Handles
from nacrefs.common.answer import Answer, settle
from nacrefs.common.wire import LISTING_MAX, Attr, Readdir

_PAGE_BITS: Final = 12
_PLACE: Final = (1 << _PAGE_BITS) - 1
_PER_PAGE: Final = LISTING_MAX
_FIRST: Final = 3
"""The first page's entries come after `.` and `..`: cookies 1 and 2."""


class _Page(NamedTuple):
    """Entries `(name, attr)` in name order; `end` if nothing follows."""

    entries: list[tuple[bytes, Attr]]
    end: bool


class OpenDirectory:
    """One open of a directory."""

    __slots__ = ("after", "fetches", "fid", "pages")

    def __init__(self, fid: int) -> None:
        self.fid = fid
        self.after: list[bytes] = [b""]
        """the name after which each page begins, as far as the stream has come"""
        self.pages: dict[int, _Page] = {}
        self.fetches: dict[int, asyncio.Task[_Page]] = {}


class Listings:
    """Directory streams by handle."""

    def __init__(self, store: Store) -> None:
        self._session = store.session
        self._cache = store.session.cache
        self.handles: Handles[OpenDirectory] = Handles()

    def opendir(self, fid: int) -> Answer[Handle]:
        """Begin a stream; the MDS need not know."""
        return Handle(self.handles.add(OpenDirectory(fid)), False, False)

    def releasedir(self, number: int) -> Answer[None]:
        """End a stream."""
        for fetch in self.handles.pop(number).fetches.values():
            fetch.cancel()
        return None

    def readdir(self, number: int, cookie: int) -> Answer[Iterable[Dirent]]:
        """The entries after a cookie, one page at most; nothing at the end."""
        stream = self.handles.get(number)
        if not cookie:  # the beginning, or rewinddir
            stream.pages.clear()
            del stream.after[1:]
        index, place = cookie >> _PAGE_BITS, cookie & _PLACE
        page = self._page_at_hand(stream, index)
        if page is None:
            return self._later(stream, index, place)
        return self._give(stream, index, place, page)

    async def _later(self, stream: OpenDirectory, index: int, place: int) -> Iterable[Dirent]:
        page = await self._page(stream, index)
        return await settle(self._give(stream, index, place, page))

    def _give(self, stream: OpenDirectory, index: int, place: int, page: _Page) -> Answer[Iterable[Dirent]]:
        first = 0 if index else _FIRST - 1
        if place - first >= len(page.entries) and (index or place >= _FIRST - 1):
            if page.end:
                return ()
            following = self._page_at_hand(stream, index + 1)
            if following is None:
                return self._later(stream, index + 1, 0)
            return self._give(stream, index + 1, 0, following)
        if not page.end:
            self._prefetch(stream, index + 1)
        return self._entries(stream.fid, index, place, page)

    def _entries(self, fid: int, index: int, place: int, page: _Page) -> Iterator[Dirent]:
        """Entries as they are when they are taken: what has been recalled since is not to be remembered."""
        inodes = self._cache.inodes
        directory = inodes.get(fid)
        base = index << _PAGE_BITS
        first = 0
        if not index:
            first = _FIRST - 1
            yield from self._dots(fid, directory, place)
        live = self._session.live
        known = directory.names if directory is not None and directory.lease and live else None
        for at in range(max(0, place - first), len(page.entries)):
            name, attr = page.entries[at]
            cookie = base + first + at + 1
            stands = known.get(name) if known is not None and directory is not None and directory.lease else None
            if stands == 0:
                continue  # it was removed here since
            inode = inodes.get(attr.fid)
            if inode is None or not inode.lease or inode.attr is None or inode.stale:
                yield Dirent(name, cookie, attr, False)
                continue
            file = inode.file
            if file is not None and file.dirty:
                yield Dirent(name, cookie, file.attr_now(inode.attr), False)
            else:
                yield Dirent(name, cookie, inode.attr, stands == attr.fid and inode.recall is None)

    def _dots(self, fid: int, directory: Inode | None, place: int) -> Iterator[Dirent]:
        if directory is None or directory.attr is None:
            return
        if place < 1:
            yield Dirent(b".", 1, directory.attr, False)
        if place < 2:
            parent = self._cache.inodes.get(directory.parent or fid)
            attr = parent.attr if parent is not None and parent.attr is not None else directory.attr
            yield Dirent(b"..", 2, attr, False)

    # ------------------------------------------------------------------------------------------------------------ pages

    def _page_at_hand(self, stream: OpenDirectory, index: int) -> _Page | None:
        page = stream.pages.get(index)
        if page is not None and (index or page.entries):
            return page
        if index >= len(stream.after):
            return None
        directory = self._cache.inodes.get(stream.fid)
        if (
            directory is None
            or not directory.lease
            or not directory.listed
            or directory.names is None
            or directory.attr is None
            or not self._session.live
        ):
            return page
        directory.used = True
        order = directory.order
        if order is None:
            order = directory.order = sorted(name for name, fid in directory.names.items() if fid)
        start = bisect_right(order, stream.after[index]) if stream.after[index] else 0
        entries: list[tuple[bytes, Attr]] = []
        for name in order[start : start + _PER_PAGE]:
            inode = self._cache.inodes.get(directory.names[name])
            if inode is None or inode.attr is None or not inode.lease:
                return page  # attributes are missing: one page from the MDS is cheaper than asking one by one
            entries.append((name, inode.attr))
        page = _Page(entries, start + _PER_PAGE >= len(order))
        self._keep(stream, index, page)
        return page

    def _keep(self, stream: OpenDirectory, index: int, page: _Page) -> None:
        if len(stream.after) > index + 1:  # it was given out before: what comes after it begins where it did
            border = stream.after[index + 1]
            page = _Page([entry for entry in page.entries if entry[0] <= border], False)
        elif page.entries and not page.end:
            stream.after.append(page.entries[-1][0])
        stream.pages[index] = page
        for old in [number for number in stream.pages if number < index - 1 or number > index + 1]:
            del stream.pages[old]

    async def _page(self, stream: OpenDirectory, index: int) -> _Page:
        fetch = stream.fetches.get(index)
        if fetch is not None:
            page = await asyncio.shield(fetch)
        else:
            page = await self._fetch(stream, index)
        return page

    async def _fetch(self, stream: OpenDirectory, index: int) -> _Page:
        if index >= len(stream.after):
            return _Page([], True)
        inode = self._cache.inode(stream.fid)
        inode.used = True
        # Leases on more entries than the cache holds would only push each other out.
        leases = inode.names is None or len(inode.names) < self._cache.limit // 2
        try:
            listing = await self._session.mds.call(Readdir(stream.fid, stream.after[index], _PER_PAGE, leases))
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            raise FileNotFoundError(errno.ENOENT, "the directory has been removed") from None
        page = _Page([(entry.name, entry.attr) for entry in listing.entries], listing.end)
        self._keep(stream, index, page)
        return page

    def _prefetch(self, stream: OpenDirectory, index: int) -> None:
        """Fetch the next page while the caller consumes this one."""
        if index in stream.fetches or self._page_at_hand(stream, index) is not None:
            return
        fetch = stream.fetches[index] = self._session.spawn(self._fetch(stream, index))
        fetch.add_done_callback(lambda done: stream.fetches.pop(index, None))
