"""The thread that waits for the disk, so that the event loop need not."""

import asyncio
import errno
import queue
import threading
from collections.abc import Callable

from nacrefs.common import faults
from nacrefs.mds.mdt import Mdt


class Committer:
    """Commits what has been flushed to an MDT, one commit after the other; `done` hears of each."""

    def __init__(self, mdt: Mdt, done: Callable[[OSError | None], None]) -> None:
        self._mdt = mdt
        self._done = done
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="mdt-commit")
        self._thread.start()

    def commit(self) -> None:
        """Commit what has been flushed, and report on the event loop."""
        self._jobs.put(True)

    def stop(self) -> None:
        """End the thread after the commit in flight."""
        self._jobs.put(False)
        self._thread.join()

    def _run(self) -> None:
        while self._jobs.get():
            error: OSError | None = None
            try:
                if faults.on:
                    faults.hit("mds.commit.before")
                self._mdt.store.commit()
                if faults.on:
                    faults.hit("mds.commit.after")
            except OSError as failure:
                error = failure
            except Exception as failure:  # a driver's bug must not end the thread
                error = OSError(errno.EIO, f"{type(failure).__name__}: {failure}")
            self._loop.call_soon_threadsafe(self._done, error)
