"""`Fsck` and `WatchFsck`: one check at a time, which ends when nobody asks for it any more. With them, scrubs."""

import asyncio
import errno
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from nacrefs.common.rpc import Call, Handler
from nacrefs.common.wire import Fsck, FsckReport, Request, WatchFsck
from nacrefs.mds.fsck.job import FsckJob
from nacrefs.mds.osts.scrubbing import SCRUB_REQUESTS, ScrubDesk

if TYPE_CHECKING:
    from nacrefs.mds.service import Mds

FSCK_REQUESTS: Final[tuple[type[Request[Any]], ...]] = (Fsck, WatchFsck, *SCRUB_REQUESTS)
UNWATCHED_S: Final = 60.0


class FsckDesk:
    """Answers for one MDS."""

    def __init__(self, mds: "Mds") -> None:
        self._mds = mds
        self._scrubs = ScrubDesk(mds)
        self._name = ""
        self._job: FsckJob | None = None
        self._task: asyncio.Task[None] | None = None
        self._asked_s = 0.0

    def handlers(self) -> Mapping[type[Request[Any]], Handler]:
        """The table of `FSCK_REQUESTS`."""
        return {Fsck: self._begin, WatchFsck: self._watch, **self._scrubs.handlers()}

    async def stop(self) -> None:
        """End what is under way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def tick(self) -> None:
        """Time has passed."""
        if self._task is not None and self._mds.clock.monotonic_s() - self._asked_s > UNWATCHED_S:
            self._task.cancel()

    def _begin(self, request: Fsck, call: Call) -> FsckReport:
        self._mds.sessions.heard(call.peer)
        self._asked_s = self._mds.clock.monotonic_s()
        if self._job is not None and request.job == self._name:
            return self._job.report()
        if self._task is not None and not self._task.done():
            raise OSError(errno.EBUSY, "another check is under way: wait until it has ended")
        if request.grace_s < 0:
            raise OSError(errno.EINVAL, f"grace of {request.grace_s} s")
        if request.fid:
            self._mds.journal.reading.need(request.fid)
        self._name, self._job = request.job, FsckJob(self._mds, request)
        self._task = asyncio.get_running_loop().create_task(self._job.run(), name="fsck")
        return self._job.report()

    def _watch(self, request: WatchFsck, call: Call) -> FsckReport:
        self._mds.sessions.heard(call.peer)
        if self._job is None or request.job != self._name:
            raise OSError(errno.ESTALE, "there is no such check any more: the MDS was restarted, or another one began")
        self._asked_s = self._mds.clock.monotonic_s()
        if request.stop and self._task is not None:
            self._task.cancel()
        return self._job.report(request.after)
