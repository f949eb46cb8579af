"""A rate, kept by waiting."""

import asyncio
import time
from typing import Final

BURST_S: Final = 1.0
"""What was not used of the last second may be used at once."""


TURN: Final = 4.0
"""How much longer others have their turn than what went before has taken,"""
TURN_S: Final = 0.001
"""at least: who asks one thing after the other would meet with every piece of shorter turns."""


async def give_turn(begun_s: float) -> None:
    """Let others have their turn, after work that was begun at `begun_s` (perf_counter)."""
    await asyncio.sleep(max(TURN_S, TURN * (time.perf_counter() - begun_s)))


class Pace:
    """Lets `rate` units pass per second; 0: any number."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._free_s = 0.0
        """When all that has passed would be through at this rate."""

    def take(self, units: int) -> float:
        """Let some pass: how many seconds that must wait, for what has passed before."""
        if self.rate <= 0 or units <= 0:
            return 0.0
        now_s = time.monotonic()
        begin_s = max(self._free_s, now_s - BURST_S)
        self._free_s = begin_s + units / self.rate
        return max(0.0, begin_s - now_s)

    async def turn(self, units: int) -> None:
        """Wait until some may pass."""
        delay_s = self.take(units)
        if delay_s:
            await asyncio.sleep(delay_s)
