"""An action of the lifecycle tier that is not over, and who waits for it."""

import asyncio
import errno
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Final, NamedTuple, TypeVar

from nacrefs.common.wire import HsmAction
from nacrefs.mds.hsm.rows import SUCCEED, ActionRow
from nacrefs.mds.lifecycle.pace import Pace
from nacrefs.mds.transactions.step import Step

T = TypeVar("T")

EXPORT: Final = "export"
"""The cause of an ARCHIVE into a link's bucket."""
MOVES_PER_FILE: Final = 16
"""Parts of one file that are under way, or wait for an OSS."""


class Wanted(NamedTuple):
    """Something that a rule wants done with a file."""

    kind: HsmAction
    fid: int
    archive: int
    cause: str
    storage_class: str = ""


class Thawing(Exception):
    """A copy in a cold class cannot be read yet; the text says what the archive is doing."""


class Action:
    """One action that is not over."""

    __slots__ = (
        "canceled", "done", "failed", "hurried", "pace", "ready", "row", "stoppable", "task", "thawing", "total",
        "unit", "waiters",
    )  # fmt: skip

    def __init__(self, row: ActionRow) -> None:
        self.row = row
        self.task: asyncio.Task[None] | None = None
        self.done = 0
        self.total = 0
        self.stoppable = False
        """Its work is under way; before, it has not begun, and afterwards its end is being written down."""
        self.canceled = False
        """It has been told to stop."""
        self.thawing = False
        """The archive has been asked to make the copy readable."""
        self.failed: OSError | None = None
        self.pace: Pace | None = None
        """How fast who has asked wants bytes to come, at most."""
        self.hurried: asyncio.Event | None = None
        """Of one that has a pace: somebody waits for it by now."""
        self.ready: set[int] = set()
        """Parts that are back."""
        self.unit = 0
        self.waiters: list[tuple[int, int, asyncio.Future[None]]] = []

    def unless_canceled(self, operation: Callable[[Step], T]) -> Callable[[Step], T]:
        """The operation as a step that raises (ECANCELED) if the action has been told to stop: it may have waited for
        leases meanwhile, and the end of the action is in the database by then."""

        def step_of(step: Step) -> T:
            if self.canceled:
                raise OSError(errno.ECANCELED, "it was canceled")
            return operation(step)

        return step_of

    def has(self, start: int, end: int) -> bool:
        """Whether these bytes are back."""
        unit = self.unit
        return unit > 0 and all(part in self.ready for part in range(start // unit, -(-end // unit)))

    def back_until(self, start: int) -> int:
        """Where the bytes end that are back without a gap from `start` on."""
        part = start // self.unit if self.unit else -1
        while part in self.ready:
            part += 1
        return min(part * self.unit, self.total) if self.unit else start

    def in_a_hurry(self) -> bool:
        """Whether somebody waits who reads, or may."""
        return self.row.uid < 0

    def keep_pace(self, pace: Pace) -> None:
        """Bytes are to come at this pace, until somebody waits for them."""
        self.pace, self.hurried = pace, asyncio.Event()

    async def turn(self, size: int) -> None:
        """Wait until the pace lets so many more bytes come, or somebody waits for them."""
        if self.pace is None or self.hurried is None:
            return
        delay_s = self.pace.take(size)
        if delay_s and not self.in_a_hurry():
            try:
                async with asyncio.timeout(delay_s):
                    await self.hurried.wait()
            except TimeoutError:
                pass

    def succeeded(self, now_ns: int) -> ActionRow:
        """Its row when it has ended well."""
        return self.row._replace(state=SUCCEED, reason="", key="", upload="", changed_ns=now_ns)

    def arrived(self, part: int) -> None:
        """One part is back."""
        self.ready.add(part)
        left: list[tuple[int, int, asyncio.Future[None]]] = []
        for start, end, future in self.waiters:
            if future.done():
                continue
            if self.has(start, end):
                future.set_result(None)
            else:
                left.append((start, end, future))
        self.waiters = left

    def over(self, error: OSError | None) -> None:
        """It has ended: everybody goes on, or hears why not."""
        for _, _, future in self.waiters:
            if not future.done():
                if error is None:
                    future.set_result(None)
                else:
                    future.set_exception(OSError(error.errno, error.strerror))
        self.waiters = []


async def move_all(parts: Iterable[int], move: Callable[[int], Any]) -> None:
    """Move parts of a file, some at a time, in order; the first failure stops the rest."""
    coming = iter(parts)

    async def worker() -> None:
        for part in coming:
            await move(part)

    await work_together(MOVES_PER_FILE, worker)


async def work_together(count: int, worker: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run so many workers until all have ended; the first failure stops the others."""
    workers = [asyncio.create_task(worker()) for _ in range(count)]
    try:
        await asyncio.gather(*workers)
    finally:
        for one in workers:
            one.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
