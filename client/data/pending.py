"""The bytes of a file that the servers have not, and the memory that they take.

Each is in exactly one place: among the `extents`, or in one *flight*, which carries extents to the servers. A flight
that fails puts its extents back under newer ones, so nothing is lost.
"""

import asyncio

from nacrefs.client.data.extents import Extent, Extents
from nacrefs.client.data.memory import Memory


class Flight:
    """Extents that are under way."""

    __slots__ = ("dropped", "extents", "task")

    def __init__(self, extents: Extents) -> None:
        self.extents = extents
        self.dropped = False
        self.task: asyncio.Task[None] | None = None


class Pending:
    """What is kept, and what is under way."""

    __slots__ = ("_memory", "extents", "flights")

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self.extents = Extents()
        self.flights: list[Flight] = []

    def __bool__(self) -> bool:
        return self.extents.bytes > 0 or bool(self.flights)

    @property
    def bytes(self) -> int:
        """How many there are."""
        return self.extents.bytes + sum(flight.extents.bytes for flight in self.flights)

    @property
    def flying_end(self) -> int:
        """End of the last byte that is under way; 0 if none is."""
        return max((flight.extents.end for flight in self.flights), default=0)

    def put(self, offset: int, data: memoryview) -> None:
        """New bytes, for which memory has been taken."""
        extents = self.extents
        before = extents.bytes
        extents.put(offset, data)
        replaced = before + len(data) - extents.bytes
        if replaced:
            self._memory.give(replaced)

    def put_below(self, start: int, data: memoryview) -> None:
        """Bytes that are older than all that is kept. Their memory is taken although there may be none."""
        before = self.extents.bytes
        self.extents.put_below(start, data)
        self._memory.must_take(self.extents.bytes - before)

    def cut(self, start: int, end: int) -> None:
        """Drop the bytes of a range that are kept; what is under way stays."""
        gone = self.extents.cut(start, end)
        if gone:
            self._memory.give(gone)

    def newest(self, start: int, end: int) -> list[Extent]:
        """Extents that touch `[start, end)`, oldest first; to be laid over what the servers have."""
        found: list[Extent] = []
        for flight in self.flights:
            found.extend(flight.extents.within(start, end))
        found.extend(self.extents.within(start, end))
        return found

    def board(self, most_bytes: int) -> Flight | None:
        """A flight with the first extents, up to one that would overtake older bytes of the same place; None if the
        first would."""
        taken = self.extents.take(most_bytes)
        clash = next((n for n, extent in enumerate(taken) if self._is_flying(extent)), len(taken))
        for extent in taken[clash:]:
            self.extents.put_below(extent.start, extent.view)
        if not clash:
            return None
        flight = Flight(Extents())
        for extent in taken[:clash]:
            extent.room = None  # what is appended from now on is not part of the flight
            flight.extents.append(extent)
        self.flights.append(flight)
        return flight

    def _is_flying(self, extent: Extent) -> bool:
        return any(flight.extents.within(extent.start, extent.end) for flight in self.flights)

    def board_all(self) -> Flight:
        """A flight with all that is kept, if there is anything."""
        flight = Flight(self.extents)
        self.extents = Extents()
        self.flights.append(flight)
        return flight

    def ended(self, flight: Flight, landed: bool) -> None:
        """A flight is over: the servers have its bytes, or they are kept again, unless they were dropped meanwhile."""
        self.flights.remove(flight)
        size = flight.extents.bytes
        if not landed and not flight.dropped:
            before = self.extents.bytes
            for extent in flight.extents:
                self.extents.put_below(extent.start, extent.view)
            size -= self.extents.bytes - before
        self._memory.give(size)

    def drop(self) -> None:
        """Forget all of them; what is under way may still arrive."""
        gone = self.extents.clear()
        if gone:
            self._memory.give(gone)
        for flight in self.flights:
            flight.dropped = True
