"""The reaper: what the tree no longer has leaves the OSTs too, however often they are away meanwhile."""

import asyncio
import logging
from functools import partial
from typing import Final

from nacrefs.common.wire import ObjectId
from nacrefs.mds.journal import Journal
from nacrefs.mds.mdt import Mdt
from nacrefs.mds.records import Destruction
from nacrefs.mds.step import Step
from nacrefs.mds.targets import Targets, objects_by_ost

log = logging.getLogger("nacre.mds")

BATCH: Final = 500
"""Files whose objects are destroyed at a time."""


class Reaper:
    """Takes destructions from the database, carries them out, and only then forgets them."""

    def __init__(self, mdt: Mdt, journal: Journal, targets: Targets) -> None:
        self._mdt = mdt
        self._journal = journal
        self._targets = targets
        self._wake = asyncio.Event()
        self._wake.set()
        self._task: asyncio.Task[None] | None = None
        self.reaped = 0

    def start(self) -> None:
        """Begin, with what an earlier run has left."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    def wake(self) -> None:
        """There is something to do."""
        self._wake.set()

    async def stop(self) -> None:
        """End; what is left is left in the database."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while files := self._mdt.destructions(BATCH):
                try:
                    await self._reap(files)
                except OSError as error:
                    log.warning("reaper: %s", error.strerror)
                    await asyncio.sleep(1.0)

    async def _reap(self, files: list[Destruction]) -> None:
        """Destroy the objects of some files. OSTs that are away hold up only the files that lie on them."""
        objects = objects_by_ost((file.fid, file.layout) for file in files)
        left = {file.fid: len(set(file.layout.osts)) for file in files}
        calls = {asyncio.ensure_future(self._destroy(ost, some)): ost for ost, some in objects.items()}
        pending = set(calls)
        try:
            while pending:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                finished: list[int] = []
                for call in done:
                    call.result()
                    for fid in {one.fid for one in objects[calls[call]]}:
                        left[fid] -= 1
                        if not left[fid]:
                            finished.append(fid)
                if finished:
                    self.reaped += len(finished)
                    await self._journal.submit_own(partial(_finish, finished))
        finally:
            for call in pending:
                call.cancel()

    async def _destroy(self, ost: int, objects: tuple[ObjectId, ...]) -> None:
        await self._targets.destroy(ost, objects)


def _finish(fids: list[int], step: Step) -> None:
    step.tx.finish_destructions(fids)
