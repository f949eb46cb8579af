"""Going no faster than so many bytes a second, so that work in the background leaves the disks to clients."""

import asyncio


class Pace:
    """A rate; 0 means none. What was not used is not saved up."""

    def __init__(self, bytes_per_s: int) -> None:
        self.bytes_per_s = bytes_per_s
        self._next_s = 0.0

    async def take(self, size: int) -> None:
        """Wait until `size` more bytes may be moved."""
        if not self.bytes_per_s:
            return
        now_s = asyncio.get_running_loop().time()
        start_s = max(now_s, self._next_s)
        self._next_s = start_s + size / self.bytes_per_s
        if start_s > now_s:
            await asyncio.sleep(start_s - now_s)
