"""Deletion of objects that no file needs any more, and of uploads that will not be finished.

They are rows until the archive has confirmed. A key is never used again while there is a row of it, and each attempt
at an archive has a key of its own, so a deletion that comes late hits nothing that is needed.
"""

import asyncio
import errno
import logging
from collections import defaultdict
from functools import partial
from typing import TYPE_CHECKING, Final

from nacrefs.common import wire
from nacrefs.mds.hsm.movers import Movers
from nacrefs.mds.hsm.rows import STARTED, split_upload
from nacrefs.mds.transactions.step import Step

if TYPE_CHECKING:
    from nacrefs.mds.service import Mds

log = logging.getLogger("nacre.mds")
ROWS_AT_A_TIME: Final = 500
LOOK_S: Final = 5.0
RETRY_S: Final = 0.2
RETRY_MOST_S: Final = 120.0


class Cleaner:
    """Deletes, again and again until the archive has confirmed."""

    def __init__(self, mds: "Mds", movers: Movers, archives: dict[int, wire.ArchiveSpec]) -> None:
        self._mds = mds
        self._movers = movers
        self._archives = archives
        self._dirty = asyncio.Event()
        self._dirty.set()
        self.stopping = False

    def clean(self) -> None:
        """Objects may be there that nobody needs."""
        self._dirty.set()

    async def run(self) -> None:
        """Until the MDS ends."""
        store = self._mds.mdt.store
        delay_s = RETRY_S
        while not self.stopping and not self._mds.journal.closed:
            try:
                # Not wait_for: Python 3.11's swallows a cancellation that comes when the event is there already.
                async with asyncio.timeout(LOOK_S):
                    await self._dirty.wait()
            except TimeoutError:
                pass
            self._dirty.clear()
            while rows := store.fetchall(store.statements.gone, (ROWS_AT_A_TIME,)):
                try:
                    await self._delete(rows)
                    delay_s = RETRY_S
                except OSError as error:
                    log.warning("objects that are not needed any more: %s", error.strerror)
                    await asyncio.sleep(delay_s)
                    delay_s = min(RETRY_MOST_S, 2 * delay_s)

    async def _delete(self, rows: list[tuple[int, str]]) -> None:
        by_archive: dict[int, list[str]] = defaultdict(list)
        for number, key in rows:
            by_archive[number].append(key)
        failed: OSError | None = None
        for number, keys in by_archive.items():
            spec = self._archives.get(number)
            try:
                left = await self._delete_from(spec, keys) if spec is not None else set[str]()
                done = [(number, key) for key in keys if key not in left]
                self._mds.links.deleted(number, [key for _, key in done if split_upload(key)[1] is None])
                await self._mds.journal.submit_own(partial(_forget, done))
                if left:
                    raise OSError(errno.EAGAIN, "another file is being sent to the key of one that is gone")
            except OSError as error:  # another archive may be there
                failed = error
        if failed is not None:
            raise failed

    async def _delete_from(self, spec: wire.ArchiveSpec, keys: list[str]) -> set[str]:
        """Do what these rows say; those for which it is too early."""
        objects: list[str] = []
        left: set[str] = set()
        for row in keys:
            key, upload = split_upload(row)
            if upload is None:
                objects.append(key)
            elif not upload.startswith("="):
                await self._movers.ask_one(wire.MoveAbort(spec, key, upload))
            elif not await self._delete_if_of(spec, key, upload[1:]):
                left.add(row)
        if objects:
            await self._movers.ask_one(wire.MoveDelete(spec, tuple(objects)))
        return left

    async def _delete_if_of(self, spec: wire.ArchiveSpec, key: str, fid: str) -> bool:
        """Delete an object of a link's bucket if a certain file has made it; False if another is being sent there. None
        is begun to be meanwhile."""
        emptying, place = self._mds.mdt.emptying, (spec.id, key)
        emptying.add(place)
        try:
            await self._mds.journal.submit_own(lambda step: None)  # what was planned before this is known now
            if any(
                (one.row.archive, one.row.key, one.row.state) == (*place, STARTED)
                for one in self._mds.hsm.active.values()
            ):
                return False
            if await self._is_of(spec, key, fid):
                await self._movers.ask_one(wire.MoveDelete(spec, (key,)))
            return True
        finally:
            emptying.discard(place)

    async def _is_of(self, spec: wire.ArchiveSpec, key: str, fid: str) -> bool:
        try:
            entry: wire.ArchiveEntry = await self._movers.ask_one(wire.MoveHead(spec, key))
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
            return False
        return dict(entry.meta).get("nacre-fid") == fid


def _forget(rows: list[tuple[int, str]], step: Step) -> None:
    for row in rows:
        step.tx.run("delete_gone", row)
