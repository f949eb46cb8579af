"""The thread that waits for the disk, so that the event loop need not; and when it does so itself all the same."""

import asyncio
import errno
import queue
import threading
import time
from collections.abc import Callable
from typing import Final

from nacrefs.common import faults
from nacrefs.mds.mdt import Mdt

QUICK_S: Final = 0.001
"""A disk that usually commits in this time is one that the event loop may wait for."""
_LONG_S: Final = 0.01
"""No commit counts as longer: one now and then moves the log into the database."""
_FORGET: Final = 1 / 16


class Committer:
    """Commits what has been flushed to an MDT, one commit after the other; `done` hears of each."""

    def __init__(self, mdt: Mdt, done: Callable[[OSError | None], None]) -> None:
        self._mdt = mdt
        self._done = done
        self.subject = ""
        """What the commit is about, for faults: `common/faults.py`."""
        self.slow: list[str] = []
        """SQL that the thread is to run before the commit."""
        self._usual_s = 0.0 if mdt.store.backend == "sqlite" else float("inf")
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="mdt-commit")
        self._thread.start()

    def commit(self) -> None:
        """Commit what has been flushed, and report on the event loop."""
        self._jobs.put(True)

    @property
    def quick(self) -> bool:
        """Whether a commit takes less than a hand-over to the thread and back is worth. (Never, over a network.)"""
        return self._usual_s < QUICK_S

    def commit_here(self) -> None:
        """Commit what has been flushed while the event loop waits, and report. Two wake-ups less, and two processors
        that need not agree on who is the interpreter's."""
        self._done(self._commit())

    def stop(self) -> None:
        """End the thread after the commit in flight."""
        self._jobs.put(False)
        self._thread.join()

    def _run(self) -> None:
        while self._jobs.get():
            self._loop.call_soon_threadsafe(self._done, self._commit())

    def _commit(self) -> OSError | None:
        began_s = time.monotonic()
        try:
            if faults.on:
                faults.hit("mds.commit.before", self.subject)
            if self.slow:
                self._mdt.store.execute(self.slow)
            self._mdt.store.commit()
            if faults.on:
                faults.hit("mds.commit.after", self.subject)
        except OSError as failure:
            return failure
        except Exception as failure:  # a driver's bug must not end the thread
            return OSError(errno.EIO, f"{type(failure).__name__}: {failure}")
        finally:
            took_s = min(time.monotonic() - began_s, _LONG_S)
            self._usual_s += (took_s - self._usual_s) * _FORGET
        return None
