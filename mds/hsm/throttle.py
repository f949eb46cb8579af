"""A rate that all who move bytes to and from an archive share. What is booked ahead cannot be overtaken, so nothing is:
who comes next is decided when there is room for him.
"""

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from nacrefs.mds.lifecycle.pace import BURST_S


class _Waiter(NamedTuple):
    size: int
    rank: Callable[[], int]
    future: "asyncio.Future[None]"


class Throttle:
    """Lets `rate` bytes pass per second; 0: any number."""

    def __init__(self) -> None:
        self.rate = 0.0
        self._free_s = 0.0
        """When all that has passed would be through at this rate."""
        self._waiting: list[_Waiter] = []
        """In the order in which they came."""
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    def set_rate(self, rate: float) -> None:
        """Bytes per second that may pass from now on."""
        if rate != self.rate:
            self.rate, self._free_s = rate, 0.0
            self._pump()

    async def turn(self, size: int, rank: Callable[[], int]) -> None:
        """Wait until so many bytes may pass. Of those who wait the one with the lowest `rank` comes first; it is asked
        for when there is room."""
        if self.rate > 0:
            waiter = _Waiter(size, rank, self._loop.create_future())
            self._waiting.append(waiter)
            self._pump()
            await waiter.future

    def _pump(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now_s = self._loop.time()
        self._waiting = [one for one in self._waiting if not one.future.done()]
        while self._waiting:
            begin_s = max(self._free_s, now_s - BURST_S)
            if self.rate > 0 and begin_s > now_s:
                self._timer = self._loop.call_at(begin_s, self._pump)
                return
            first = min(self._waiting, key=lambda one: one.rank())
            self._waiting.remove(first)
            if self.rate > 0:
                self._free_s = begin_s + first.size / self.rate
            first.future.set_result(None)
