"""Read-ahead of one open file: what a sequential or strided reader will want next is fetched before it asks.

A window is a range that is being fetched or has been, in a buffer of its own. Its bytes are handed out as views of that
buffer; it goes when all of them have been. Windows count only while the lease under which they were fetched is held and
the file was not changed here (`stamp`).
"""

import asyncio
from typing import Final

from nacrefs.client.data.file import File
from nacrefs.client.data.store import Store

_OUT_OF_ORDER_BYTES: Final = 2 << 20
"""The kernel has several reads under way; one that comes this much early or late does not break a sequence."""
_STRIDES_AHEAD: Final = 4

Stamp = tuple[int, int]


def stamp(file: File) -> Stamp:
    """What must be unchanged for fetched bytes to be valid."""
    return (file.version, file.inode.epoch)


class Window:
    """Bytes `[start, end)` on their way, or here."""

    __slots__ = ("buffer", "end", "error", "fetch", "readers", "start", "unread")

    def __init__(self, start: int, end: int, buffer: memoryview) -> None:
        self.start = start
        self.end = end
        self.buffer = buffer
        self.unread = end - start
        self.readers = 0
        self.error: OSError | None = None
        self.fetch: asyncio.Task[None] | None = None


class ReadAhead:
    """The windows of one handle, and the pattern of its reads."""

    __slots__ = ("_expected", "_file", "_last", "_limit", "_stamp", "_store", "_streak", "_stride", "windows")

    def __init__(self, store: Store, file: File, limit_bytes: int) -> None:
        self.windows: list[Window] = []
        self._store = store
        self._file = file
        self._limit = limit_bytes
        self._expected = 0
        self._last = 0
        self._stride = 0
        self._streak = 0
        self._stamp = stamp(file)

    # ------------------------------------------------------------------------------------------------------- using

    def cover(self, start: int, end: int) -> list[Window]:
        """The windows that hold `[start, end)` from its beginning on; the caller `finish`es each of them."""
        if not self.windows:
            return []
        if self._stamp != stamp(self._file):
            self.drop()
            return []
        found: list[Window] = []
        for window in self.windows:
            if window.start <= start < window.end:
                window.readers += 1
                found.append(window)
                start = window.end
                if start >= end:
                    break
        return found

    async def bytes_of(self, window: Window, start: int, end: int) -> memoryview:
        """The window's part of `[start, end)`; OSError if it could not be fetched."""
        if window.fetch is not None:
            await asyncio.shield(window.fetch)
        if window.error is not None:
            raise window.error
        low, high = max(start, window.start), min(end, window.end)
        return window.buffer[low - window.start : high - window.start]

    def finish(self, window: Window, start: int, end: int) -> None:
        """A reader has got what it wanted of a window, or gives up."""
        window.readers -= 1
        window.unread -= max(0, min(end, window.end) - max(start, window.start))
        if window.unread <= 0 and window in self.windows:
            self.windows.remove(window)
            self._release(window)
        elif window not in self.windows:
            self._release(window)

    def _release(self, window: Window) -> None:
        """Give the buffer back once nobody uses it; views that were handed out live until the loop's next turn."""
        if window.readers or window.fetch is not None:
            return
        asyncio.get_running_loop().call_soon(self._store.memory.release, window.buffer)
        window.readers = 1 << 30  # never again

    def drop(self) -> None:
        """Forget all windows."""
        windows, self.windows = self.windows, []
        for window in windows:
            self._release(window)
        self._stamp = stamp(self._file)

    # --------------------------------------------------------------------------------------------------- the pattern

    def note(self, start: int, end: int, size: int) -> None:
        """A read of `[start, end)` of a file of `size` bytes: learn from it, and fetch what will be wanted next."""
        if self._stamp != stamp(self._file):
            self.drop()
        expected = self._expected
        if start == expected or (self._streak > 2 and abs(start - expected) <= _OUT_OF_ORDER_BYTES):
            self._streak += 1
            self._stride = 0
            self._expected = max(end, expected)
            self._last = start
            if self._streak >= 2 and self._limit:
                self._sequential(self._expected, end - start, size)
            return
        stride = start - self._last
        self._last = start
        self._expected = end
        if stride == self._stride and stride > 0:
            self._streak += 1
            if self._streak >= 3 and self._limit:
                self._strided(start, end - start, size)
            return
        self._stride = stride
        self._streak = 1
        if self.windows:
            self.drop()

    def _sequential(self, at: int, asked: int, size: int) -> None:
        depth = min(self._limit, asked << min(self._streak, 12))
        unit = min(self._store.config.read.unit_bytes, depth)
        edge = max((window.end for window in self.windows), default=at)
        edge = max(edge, at)
        goal = min(size, at + depth)
        while edge < goal and (goal - edge >= unit // 2 or goal == size):
            end = min(edge + unit, size)
            aligned = end - end % unit
            if edge < aligned < end and end != size:
                end = aligned
            if not self._fetch(edge, end):
                return
            edge = end
        if len(self.windows) > 1:
            self._prune(at)

    def _prune(self, at: int) -> None:
        """Windows that were passed over are not waited for any longer."""
        for window in [window for window in self.windows if window.end + 2 * _OUT_OF_ORDER_BYTES < at]:
            self.windows.remove(window)
            self._release(window)

    def _strided(self, start: int, asked: int, size: int) -> None:
        if asked * _STRIDES_AHEAD > self._limit:
            return
        for step in range(1, _STRIDES_AHEAD + 1):
            at = start + step * self._stride
            if at >= size or any(window.start <= at < window.end for window in self.windows):
                continue
            if not self._fetch(at, min(at + asked, size)):
                return
        for window in [window for window in self.windows if window.end <= start]:
            self.windows.remove(window)
            self._release(window)

    def _fetch(self, start: int, end: int) -> bool:
        memory = self._store.memory
        if self._file.pending.newest(start, end) or not memory.try_take(end - start):
            return False
        window = Window(start, end, memory.buffer(end - start))
        self.windows.append(window)
        window.fetch = self._store.session.spawn(self._fill(window))
        return True

    async def _fill(self, window: Window) -> None:
        try:
            await self._store.objects.read(self._file.inode, window.start, window.buffer)
        except OSError as error:
            window.error = error
            if window in self.windows:
                self.windows.remove(window)
        finally:
            window.fetch = None
            if window not in self.windows:
                self._release(window)
