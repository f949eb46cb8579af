"""Access times: clients tell with their keepalives which files were read, and that becomes their atime.

As with relatime it is kept cheaply: once a file's atime is no older than `tier.access_s` it stays. Nobody's lease is
recalled for it; other clients see it when they next ask. What lifecycle rules call the last use is the later of atime
and mtime (`schema.LAST_USE`).
"""

import asyncio
import logging
from collections.abc import Sequence
from functools import partial
from typing import Final

from msgspec.structs import replace

from nacrefs.mds.transactions.journal import Journal
from nacrefs.mds.transactions.step import Step

log = logging.getLogger("nacre.mds")

TOGETHER: Final = 50
"""Files in one step: about a millisecond."""


class Uses:
    """Takes reports of used files, one after the other, so that they never crowd out requests."""

    def __init__(self, journal: Journal, every_s: float) -> None:
        self._journal = journal
        self._every_ns = round(every_s * 1e9)
        self._waiting: dict[int, None] = {}
        self._task: asyncio.Task[None] | None = None

    def note(self, fids: Sequence[int]) -> None:
        """These files were used just now."""
        self._waiting.update(dict.fromkeys(fids))
        if self._waiting and self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._write())

    async def settled(self) -> None:
        """Wait until all that was reported is noted."""
        while self._task is not None:
            await asyncio.wait({self._task})

    async def stop(self) -> None:
        """End; what has not been noted is forgotten."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _write(self) -> None:
        try:
            while self._waiting:
                some = list(self._waiting)[:TOGETHER]
                for fid in some:
                    del self._waiting[fid]
                await self._journal.submit_own(partial(note_uses, some, self._every_ns))
        except OSError as error:
            self._waiting.clear()
            if not self._journal.closed:
                log.warning("access times: %s", error.strerror)
        finally:
            self._task = None


def note_uses(fids: Sequence[int], every_ns: int, step: Step) -> None:
    """Regular files were used now: their atime is, unless it is nearly so."""
    for fid in fids:
        inode = step.tx.inode(fid)
        if inode is None or not inode.is_regular or step.now_ns - inode.attr.atime_ns < every_ns:
            continue
        edited = step.tx.edit(fid)
        edited.attr = replace(edited.attr, atime_ns=step.now_ns)
