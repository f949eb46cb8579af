"""Telling the kernel to forget, from threads of its own.

Writing a notification can block inside the kernel: dropping pages waits for a READ of them that is in service, dropping
a name waits for the lock of its directory, which a LOOKUP or CREATE in service holds. So the event loop, which answers
those requests, never writes one itself. Hazards, and what is done about them:

* A notification that waits for a request in service must not hold up others on which that request may depend: a worker
  that has not moved for `STUCK_S` gets a colleague, idle or new, for what is queued.
* Names: a LOOKUP may wait at the MDS for a change whose recall waits here for that very LOOKUP (the directory is locked
  while it is in service). Linux 6.16 knows a notification that takes no lock and makes every name be looked up again
  when it is next used (INC_EPOCH). A stuck name is settled that way. Older kernels wait.
* Pages: a READ must therefore never wait for a recall of its own file to finish.
* A daemon that is killed while a worker waits inside the kernel does not end by itself: see `client.fuse.guard`.
"""

import asyncio
import errno
import logging
import os
import threading
from collections import deque
from collections.abc import Sequence
from queue import SimpleQueue
from typing import Final

from nacrefs.client.fuse import abi

log = logging.getLogger(__name__)

STUCK_S: Final = 0.02
"""A worker that has not moved for so long waits inside the kernel."""
_WORKERS_MAX: Final = 16
_FORGOTTEN: Final = (errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.ENOTCONN, errno.ECONNABORTED, errno.EBADF)
"""The kernel does not know it, or is not mounted any more: nothing is cached."""


class _Job:
    """Notifications that are answered together. `at` is the one being written."""

    __slots__ = ("at", "error", "messages", "waiter")

    def __init__(self, messages: Sequence[bytes], waiter: "asyncio.Future[None]") -> None:
        self.messages = messages
        self.waiter = waiter
        self.at = -1
        self.error: OSError | None = None

    def run(self, fd: int) -> None:
        for at, message in enumerate(self.messages):
            self.at = at
            try:
                os.write(fd, message)
            except OSError as error:
                if error.errno not in _FORGOTTEN:
                    self.error = error
        self.at = len(self.messages)


class Notifier:
    """The `client.filesystem.Kernel` behind a mount. `root` is the fid of its root directory."""

    def __init__(self, fd: int, root: int, has_epoch: bool) -> None:
        self._fd = fd
        self._root = root
        self._has_epoch = has_epoch
        self._loop = asyncio.get_running_loop()
        self._queued: deque[_Job] = deque()
        self._running: dict[int, _Job] = {}
        self._finished: deque[_Job] = deque()
        self._outstanding: set[asyncio.Future[None]] = set()
        self._tokens: SimpleQueue[bool] = SimpleQueue()
        self._workers: list[threading.Thread] = []
        self._released = False
        self._watch: asyncio.TimerHandle | None = None
        self._watched: dict[int, tuple[_Job, int]] = {}
        self.epochs = 0
        """how often names could be dropped only by bumping the epoch"""

    async def forget_inode(self, fid: int, offset: int = 0, length: int = 0) -> None:
        """Drop attributes and cached pages; see `client.filesystem.Kernel`."""
        await self._submit((abi.inval_inode(self._node(fid), offset, length),))

    async def forget_entries(self, parent: int, names: Sequence[bytes]) -> None:
        """Drop names of a directory, its attributes and its listing; see `client.filesystem.Kernel`."""
        node = self._node(parent)
        await self._submit((abi.inval_inode(node, 0, 0), *(abi.inval_entry(node, name) for name in names)))

    def _node(self, fid: int) -> int:
        return abi.ROOT_NODE if fid == self._root else fid

    def _submit(self, messages: Sequence[bytes]) -> "asyncio.Future[None]":
        waiter = self._loop.create_future()
        if self._fd < 0:
            waiter.set_result(None)
            return waiter
        self._outstanding.add(waiter)
        self._queued.append(_Job(messages, waiter))
        if not self._released:
            # What else is submitted in this turn of the loop rides on the same wake-up.
            self._released = True
            self._loop.call_soon(self._release)
        return waiter

    def _release(self) -> None:
        self._released = False
        if not self._workers:
            self._start_worker()
        self._tokens.put(True)
        if self._watch is None:
            self._watch = self._loop.call_later(STUCK_S, self._look_after)

    def _start_worker(self) -> None:
        number = len(self._workers)
        worker = threading.Thread(target=self._work, args=(number,), name=f"nacre-forget-{number}", daemon=True)
        self._workers.append(worker)
        worker.start()

    def _work(self, number: int) -> None:
        """A worker's life: one token is one look into the queue."""
        queued, running, finished = self._queued, self._running, self._finished
        while self._tokens.get():
            while queued:
                try:
                    job = queued.popleft()
                except IndexError:
                    break
                running[number] = job
                job.run(self._fd)
                finished.append(job)
            running.pop(number, None)
            if finished:
                try:
                    self._loop.call_soon_threadsafe(self._settle)
                except RuntimeError:  # the loop is closed: nobody waits any more
                    return

    def _settle(self) -> None:
        finished, outstanding = self._finished, self._outstanding
        while finished:
            job = finished.popleft()
            outstanding.discard(job.waiter)
            if job.waiter.done():
                continue
            if job.error is None:
                job.waiter.set_result(None)
            else:
                log.error("the kernel refused a notification: %s", job.error)
                job.waiter.set_exception(job.error)

    def _look_after(self) -> None:
        """Help along what is stuck; runs only while somebody waits."""
        self._watch = None
        self._settle()
        if not self._outstanding:
            self._watched.clear()
            return
        now = {number: (job, job.at) for number, job in self._running.copy().items()}
        stuck = {number for number, state in now.items() if self._watched.get(number) == state}
        self._watched = now
        if self._has_epoch and any(self._names_stuck(now[number][0]) for number in stuck):
            self._bump_epoch([now[number][0] for number in stuck])
        if self._queued and stuck:  # one worker may have been woken for several jobs, and be stuck with the first
            if len(stuck) < len(self._workers):
                self._tokens.put(True)
            elif len(self._workers) < _WORKERS_MAX:
                self._start_worker()
                self._tokens.put(True)
        self._watch = self._loop.call_later(STUCK_S, self._look_after)

    def _names_stuck(self, job: _Job) -> bool:
        return 0 < job.at < len(job.messages) and not job.waiter.done()

    def _bump_epoch(self, jobs: Sequence[_Job]) -> None:
        try:
            os.write(self._fd, abi.inc_epoch())
        except OSError as error:
            log.warning("the kernel cannot drop all names at once: %s", error)
            self._has_epoch = False
            return
        self.epochs += 1
        for job in jobs:
            if self._names_stuck(job):
                job.waiter.set_result(None)
                self._outstanding.discard(job.waiter)

    async def stop(self) -> None:
        """Let everybody who waits go (the mount is gone, so nothing is cached) and end the threads."""
        self._fd = -1
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        for _ in self._workers:
            self._tokens.put(False)
        workers, self._workers = self._workers, []
        await asyncio.to_thread(_join, workers)
        self._queued.clear()
        self._settle()
        for waiter in self._outstanding:
            if not waiter.done():
                waiter.set_result(None)
        self._outstanding.clear()


def _join(workers: Sequence[threading.Thread]) -> None:
    for worker in workers:
        worker.join(5.0)
        if worker.is_alive():
            log.error("%s is stuck in the kernel: `umount -f` the mount point", worker.name)
