"""The reaper: what the tree no longer has leaves the OSTs too, however often they are away meanwhile.

Files that were just removed come from memory, those that an earlier run or an absent OST has left from the database. A
file whose OSTs are not all up stays there until one registers; it holds up nobody else.
"""

import asyncio
import logging
from collections.abc import Iterable
from functools import partial
from typing import Final

from nacrefs.common.wire import ObjectId
from nacrefs.mds.mdt import Mdt
from nacrefs.mds.osts.targets import Targets, objects_by_ost
from nacrefs.mds.records import Destruction
from nacrefs.mds.transactions.journal import Journal
from nacrefs.mds.transactions.step import Step

log = logging.getLogger("nacre.mds")

BATCH: Final = 500
"""Files whose objects are destroyed at a time."""
REMEMBERED_MAX: Final = 20_000
"""Files that wait in memory; beyond, they are read from the database again."""
RETRY_S: Final = 1.0
RETRY_MOST_S: Final = 60.0


class Reaper:
    """Takes destructions, carries them out, and only then forgets them."""

    def __init__(self, mdt: Mdt, journal: Journal, targets: Targets) -> None:
        self._mdt = mdt
        self._journal = journal
        self._targets = targets
        self._fresh: list[Destruction] = []
        self._rescan = True
        """The database may have some that are not in `_fresh`."""
        self._wake = asyncio.Event()
        self._retry: asyncio.TimerHandle | None = None
        self._retry_s = RETRY_S
        self._task: asyncio.Task[None] | None = None
        self.reaped = 0

    def start(self) -> None:
        """Begin, with what an earlier run has left."""
        self._wake.set()
        self._task = asyncio.get_running_loop().create_task(self._run())

    def add(self, files: Iterable[Destruction]) -> None:
        """These files are gone for good."""
        if len(self._fresh) < REMEMBERED_MAX:
            self._fresh.extend(files)
        else:
            self._rescan = True
        self._wake.set()

    def ost_is_up(self) -> None:
        """An OST is there (again): files that waited for it can go."""
        self._rescan = True
        self._wake.set()

    async def stop(self) -> None:
        """End; what is left is left in the database."""
        if self._retry is not None:
            self._retry.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while not self._journal.closed:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self._reap_all()
            except OSError as error:
                log.warning("reaper: %s", error.strerror)
                self._try_later()

    async def _reap_all(self) -> None:
        while self._fresh:
            files, self._fresh = self._fresh[:BATCH], self._fresh[BATCH:]
            await self._reap(files)
        if self._rescan:
            self._rescan = False
            after = 0
            while files := self._mdt.destructions(BATCH, after):
                after = files[-1].fid
                await self._reap(files)

    async def _reap(self, files: list[Destruction]) -> None:
        """Destroy the objects of those files whose OSTs are all up."""
        up = {info.index for info in self._targets.table() if info.up}
        ready = [file for file in files if up.issuperset(file.layout.osts)]
        objects = objects_by_ost((file.fid, file.layout) for file in ready)
        results = await asyncio.gather(*(self._destroy(ost, some) for ost, some in objects.items()))
        done = {ost for ost, destroyed in zip(objects, results, strict=True) if destroyed}
        finished = [file.fid for file in ready if done.issuperset(file.layout.osts)]
        if finished:
            await self._journal.submit_own(partial(_finish, finished))
            self.reaped += len(finished)
        if len(finished) < len(ready):
            self._try_later()
        elif ready:
            self._retry_s = RETRY_S

    async def _destroy(self, ost: int, objects: tuple[ObjectId, ...]) -> bool:
        try:
            await self._targets.destroy(ost, objects)
        except OSError as error:
            log.warning("OST %d did not destroy %d objects, to be tried again: %s", ost, len(objects), error.strerror)
            return False
        return True

    def _try_later(self) -> None:
        if self._retry is None:
            self._retry = asyncio.get_running_loop().call_later(self._retry_s, self._retry_now)
            self._retry_s = min(2 * self._retry_s, RETRY_MOST_S)

    def _retry_now(self) -> None:
        self._retry = None
        self.ost_is_up()


def _finish(fids: list[int], step: Step) -> None:
    step.tx.finish_destructions(fids)
