"""When bytes and index of an OST become durable, in which order, and what a crash in between may leave behind.

The rule: *if the index says that an object is clean, its sums and size fit the bytes on the disk.* So

- a clean object is marked dirty, durably, before it changes (`prepare`); an object that the index does not know at all
  counts as dirty, so that a new one costs no transaction;
- an object becomes clean in the index only after fdatasync of its file and fsync of the directories that name it, and
  only if it has not changed since; changes wait while the transaction is in flight (state CLEANING);
- after an unclean stop dirty and unknown objects are re-hashed before they are served (`Target`).

fsync (`sync`) does all that and shares index transactions with whoever else is at it. An object that is changed again
soon after (a database's log) is *hot*: its mark stays in the index and fsync costs it just fdatasync; it will be
re-hashed after a crash. A background task makes objects clean once they have been dirty for `flush_s`, or earlier if
there are too many dirty bytes or objects; writers wait if it cannot keep up.

Changes of state run in tasks of their own: a request that is cancelled leaves no object in between.
"""

import asyncio
import logging
import os
from collections.abc import Coroutine, Sequence
from typing import Final

from nacrefs.common import faults
from nacrefs.common.answer import together
from nacrefs.oss import blockio
from nacrefs.oss.index import Change, Index
from nacrefs.oss.object import CLEAN, CLEANING, DIRTY, State, StoredObject

_log = logging.getLogger(__name__)
_SYNCFS_FROM: Final = 32
"""From this many objects on, one syncfs is cheaper than as many fdatasync."""
_HOT_S: Final = 10.0
_BEGIN_BYTES: Final = 8 << 20
"""The disk begins with an object when so much of it has come that it has not begun with: an fsync at the end of a long
file then waits for the rest only, not for all of it."""


class Durability:
    """The order of durable steps of one OST. `root` is the directory above all object directories."""

    def __init__(
        self,
        index: Index,
        threads: blockio.IoThreads,
        root: str,
        *,
        dirty_bytes_max: int,
        dirty_objects_max: int,
        flush_s: float,
    ) -> None:
        self._index = index
        self._threads = threads
        self._root = root
        self._dirty_bytes_max = dirty_bytes_max
        self._dirty_objects_max = dirty_objects_max
        self._flush_s = flush_s
        self._filesystem = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._loop = asyncio.get_running_loop()
        self._dirty: dict[StoredObject, None] = {}
        self._dirty_bytes = 0
        self._beginning = False
        """A thread has the disk begin with an object. One does: it may have to wait, and reads need threads, too."""
        self._unsynced: dict[str, int] = {}
        self._trouble: OSError | None = None
        self._kick = asyncio.Event()
        self._relief = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._background = self._loop.create_task(self._run(), name="ost-flush")

    # ------------------------------------------------------------------------------------------------- notes of changes

    def entered(self, directory: str) -> None:
        """A name was made in (or removed from) a directory, which is not durable yet."""
        self._unsynced[directory] = self._unsynced.get(directory, 0) + 1

    def changed(self, stored: StoredObject, dirty_bytes: int) -> None:
        """The object's bytes, sums or record have changed."""
        if stored not in self._dirty:
            self._dirty[stored] = None
            stored.dirty_since = self._loop.time()
        self._dirty_bytes += dirty_bytes
        stored.waiting_bytes += dirty_bytes
        if stored.waiting_bytes >= _BEGIN_BYTES and not self._beginning:
            stored.waiting_bytes = 0
            self._beginning = True
            self.spawn(self._begin_early(stored))
        if self._dirty_bytes * 2 > self._dirty_bytes_max or len(self._dirty) * 2 > self._dirty_objects_max:
            self._kick.set()

    def forget(self, stored: StoredObject) -> None:
        """The object is gone."""
        if stored in self._dirty:
            del self._dirty[stored]
            self._dirty_bytes -= stored.dirty_bytes

    def is_dirty(self, stored: StoredObject) -> bool:
        """Whether something about the object is still to be written."""
        return stored in self._dirty

    @property
    def dirty_bytes(self) -> int:
        """About how many bytes were written that are not on the disk for certain."""
        return self._dirty_bytes

    def failures(self) -> list[str]:
        """The objects whose bytes the disk has refused."""
        return [stored.name for stored in self._dirty if stored.failure is not None]

    def overfull(self) -> bool:
        """Whether writers must wait in `relief`."""
        return self._dirty_bytes > self._dirty_bytes_max or len(self._dirty) > self._dirty_objects_max

    async def relief(self) -> None:
        """Wait until there are fewer dirty bytes and objects; OSError if they cannot be made durable."""
        while self.overfull():
            self._kick.set()
            self._relief.clear()
            await self._relief.wait()
            if self.overfull() and self._trouble is not None:
                raise OSError(
                    self._trouble.errno, f"{self._index.where} takes no more writes: {self._trouble.strerror}"
                )

    # --------------------------------------------------------------------------------------------------------- requests

    async def prepare(self, stored: StoredObject) -> None:
        """Wait until the object may be changed (or is SUSPECT or DEAD)."""
        while State.CLEANING <= stored.state <= State.CLEAN:
            if stored.state is CLEAN:
                stored.state = State.MARKING
                stored.turning = self._loop.create_future()
                self.spawn(self._mark(stored))
            if stored.turning is not None:
                await asyncio.shield(stored.turning)

    async def sync(self, stored: StoredObject) -> None:
        """Make durable what the object is now. EIO if the disk has refused anything that was written to it."""
        version = stored.version
        while True:
            if stored.failure is not None:
                raise OSError(stored.failure.errno, f"{stored.name}: {stored.failure.strerror}")
            if stored.durable_version >= version:
                return
            if stored.flushing is None:
                self._flush((stored,), clean=not stored.hot)
            assert stored.flushing is not None
            await asyncio.shield(stored.flushing)

    async def sync_all(self, objects: Sequence[StoredObject]) -> None:
        """`sync` of several objects in one go, which costs little more than one."""
        fresh = [
            stored
            for stored in dict.fromkeys(objects)
            if stored.flushing is None and stored.failure is None and stored.durable_version < stored.version
        ]
        if fresh:
            self._flush(fresh, clean=True)
        await together(list(map(self.sync, objects)))

    async def begin(self, stored: StoredObject) -> None:
        """Have the disk begin with what the object has, for a `sync` that will come."""
        stored.pins += 1
        try:
            await self._threads.run(blockio.begin_writeback, stored.fd)
        finally:
            unpin(stored)

    async def _begin_early(self, stored: StoredObject) -> None:
        try:
            await self.begin(stored)
        finally:
            self._beginning = False

    async def sync_directories(self, directory: str) -> None:
        """Make the names in an object directory, and its own, durable if they are not."""
        for path in (directory, os.path.dirname(directory), self._root):
            mark = self._unsynced.get(path)
            if mark is not None:
                await self._threads.run(blockio.sync_directory, path)
                if self._unsynced.get(path) == mark:
                    del self._unsynced[path]

    async def flush_all(self) -> bool:
        """Make everything clean; no request is in service. Returns whether that worked."""
        for _ in range(3):
            while waiting := [stored.flushing for stored in self._dirty if stored.flushing is not None]:
                await asyncio.wait(waiting)
            victims = [stored for stored in self._dirty if stored.failure is None]
            if not victims:
                break
            self._flush(victims, clean=True)
        await self._settle()
        return not self._dirty

    async def close(self) -> None:
        """End the background task; unfinished steps are waited for."""
        self._background.cancel()
        await asyncio.gather(self._background, return_exceptions=True)
        await self._settle()
        os.close(self._filesystem)

    # -------------------------------------------------------------------------------------------------------- the steps

    def spawn(self, step: Coroutine[None, None, None]) -> None:
        """Run a step that must come to its end even if the request that needs it is cancelled."""
        task = self._loop.create_task(step)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _settle(self) -> None:
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _mark(self, stored: StoredObject) -> None:
        turning = stored.turning
        assert turning is not None
        stored.pins += 1
        try:
            await self._index.commit((Change(stored.fid, stored.number, stored.record(dirty=True)),))
        except OSError as error:
            stored.state = CLEAN
            turning.set_exception(error)
            turning.exception()
        else:
            stored.state = DIRTY
            stored.hot = self._loop.time() - stored.cleaned_at < _HOT_S
            self.changed(stored, 0)  # clean again in time even if the change does not come
            turning.set_result(None)
        finally:
            stored.turning = None
            unpin(stored)

    def _flush(self, victims: Sequence[StoredObject], *, clean: bool) -> None:
        """Start making objects durable; each one's `flushing` is set until that is over, well or not."""
        for stored in victims:
            stored.flushing = self._loop.create_future()
            stored.pins += 1
        self.spawn(self._flush_step(victims, clean))

    async def _flush_step(self, victims: Sequence[StoredObject], clean: bool) -> None:
        versions = [stored.version for stored in victims]
        amounts = [stored.dirty_bytes for stored in victims]
        failed: OSError | None = None
        try:
            await self._make_durable(victims)
            for stored, version, amount in zip(victims, versions, amounts, strict=True):
                stored.dirty_bytes -= amount
                self._dirty_bytes -= amount
                if stored.failure is None:
                    stored.durable_version = max(stored.durable_version, version)
            if clean:
                await self._make_clean(victims, versions)
            self._trouble = None
        except OSError as error:
            failed = self._trouble = error
            _log.error("%s: cannot flush: %s", self._index.where, error.strerror)
        finally:
            self._relief.set()
            for stored in victims:
                if stored.flushing is not None:
                    if failed is None:
                        stored.flushing.set_result(None)
                    else:
                        stored.flushing.set_exception(failed)
                        stored.flushing.exception()
                    stored.flushing = None
                unpin(stored)

    async def _make_durable(self, victims: Sequence[StoredObject]) -> None:
        changed = [stored for stored in victims if stored.version > stored.durable_version]
        if len(changed) >= _SYNCFS_FROM:
            try:
                marks = dict(self._unsynced)
                await self._threads.run(blockio.sync_filesystem, self._filesystem)
            except OSError as error:
                _log.error("%s: %s; trying object by object", self._index.where, error.strerror)
            else:
                self._unsynced = {path: mark for path, mark in self._unsynced.items() if marks.get(path) != mark}
                return
        if len(changed) == 1:
            await self._sync_file(changed[0])
        elif changed:
            for stored, failure in zip(changed, await self._threads.run(_sync_files, changed), strict=True):
                if failure is not None:
                    _refused(stored, failure)
        for directory in {stored.directory for stored in changed}:
            await self.sync_directories(directory)

    async def _sync_file(self, stored: StoredObject) -> None:
        try:
            if faults.on and faults.hit("oss.sync") is faults.SKIP:
                return
            await self._threads.run(os.fdatasync, stored.fd)
        except OSError as error:
            _refused(stored, error)

    async def _make_clean(self, victims: Sequence[StoredObject], versions: Sequence[int]) -> None:
        changes: list[Change] = []
        taken: list[tuple[StoredObject, dict[int, bytes]]] = []
        for stored, version in zip(victims, versions, strict=True):
            if stored.failure is not None or stored.state not in (DIRTY, CLEAN):
                continue
            quiet = stored.version == version
            if stored.state is DIRTY and quiet:
                stored.state = CLEANING
                stored.turning = self._loop.create_future()
            stored.record_stale = False
            stored.measure()
            pages = stored.sums.take_fresh()
            changes.append(Change(stored.fid, stored.number, stored.record(dirty=stored.state is DIRTY), pages))
            taken.append((stored, pages))
        failed: OSError | None = None
        try:
            await self._index.commit(changes)
        except OSError as error:
            failed = error
        now = self._loop.time()
        for stored, pages in taken:
            stored.dirty_since = now
            if failed is not None:
                stored.sums.not_kept(pages)
                stored.record_stale = True
            else:
                stored.sums.kept(pages)
            if stored.state is CLEANING:
                stored.state = DIRTY if failed is not None else CLEAN
            if stored.state is CLEAN and not stored.record_stale:
                stored.cleaned_at = now
                self._dirty.pop(stored, None)
            if stored.turning is not None and stored.state in (DIRTY, CLEAN):
                stored.turning.set_result(None)
                stored.turning = None
        if failed is not None:
            raise failed

    # ------------------------------------------------------------------------------------------------------- background

    async def _run(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._flush_s / 2):
                    await self._kick.wait()
            except TimeoutError:
                pass
            pressed = self._kick.is_set()
            self._kick.clear()
            before = self._loop.time() - self._flush_s
            victims = [
                stored
                for stored in self._dirty
                if stored.flushing is None and stored.failure is None and (pressed or stored.dirty_since <= before)
            ]
            if victims:
                self._flush(victims, clean=True)
                await asyncio.wait([stored.flushing for stored in victims if stored.flushing is not None])


def unpin(stored: StoredObject) -> None:
    """End of a use of an object; wakes up who waits for the last one."""
    stored.pins -= 1
    if not stored.pins and stored.idle is not None:
        stored.idle.set_result(None)
        stored.idle = None


def _refused(stored: StoredObject, error: OSError) -> None:
    """The kernel reports a failed write-back once and may have dropped the pages: a second fdatasync that succeeds
    proves nothing. Only a restart, which re-hashes the object, or cutting it to nothing ends this."""
    stored.failure = OSError(error.errno, f"the disk refused bytes that were written: {error.strerror}")
    _log.error("%s: fdatasync failed: %s", stored.name, error.strerror)


def _sync_files(objects: Sequence[StoredObject]) -> list[OSError | None]:
    """fdatasync of each. The disk gets all of it before the first one waits, so they share what it does."""
    if len(objects) > 1:
        for stored in objects:
            blockio.begin_writeback(stored.fd)
    errors: list[OSError | None] = []
    for stored in objects:
        try:
            if not faults.on or faults.hit("oss.sync") is not faults.SKIP:
                os.fdatasync(stored.fd)
            errors.append(None)
        except OSError as error:
            errors.append(error)
    return errors
