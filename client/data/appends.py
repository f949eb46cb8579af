"""Appending to a shared file: in turns, which the MDS gives (`mds/clients/appends.py`)."""

import asyncio
import itertools
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from nacrefs.client.cache import WRITE, Inode
from nacrefs.client.session import Session
from nacrefs.common.wire import Append, Appended


class Appends:
    """The turns of this client; `Session.appends` are those that it has."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._tickets = itertools.count(1)
        self._locks: dict[int, asyncio.Lock] = {}

    @asynccontextmanager
    async def turn(self, inode: Inode) -> AsyncGenerator[int]:
        """Around an append of a shared file: where it ends, and nobody else appends or cuts it; -1 if we have it for
        ourselves now. OSError (EIO) if the session ended meanwhile: others may have appended since."""
        fid = inode.fid
        lock = self._locks.setdefault(fid, asyncio.Lock())
        try:
            async with lock:
                ticket, number = next(self._tickets), self._session.number
                try:
                    node = await self._session.mds.call(Append(fid, ticket))
                    if node.lease == WRITE:
                        yield -1
                        return
                    self._session.check_still(number)
                    self._session.appends[fid] = ticket
                    yield node.attr.size
                finally:
                    if self._session.appends.get(fid) == ticket:
                        del self._session.appends[fid]
                    if self._session.number == number:
                        self._session.spawn(self._end(fid, ticket))
        finally:
            if not lock.locked():
                self._locks.pop(fid, None)

    async def _end(self, fid: int, ticket: int) -> None:
        try:
            await self._session.mds.call(Appended(fid, ticket))
        except OSError:
            pass  # the session is over, and so is the turn
