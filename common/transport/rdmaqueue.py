"""A queue pair's work, in order: message slots, what is in flight, and what may be let go when it ends.

Work is numbered in the order in which it is posted. Completions are asked for only now and then (`signaled`): one of
them says that all earlier work has ended too. What a transfer needs (buffers, somebody to tell) is kept until then.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from nacrefs.common.transport.credits import RESERVED
from nacrefs.common.transport.fabric import Completion, Piece, QueuePair
from nacrefs.common.transport.rdmawire import Transfer

SLOT_BYTES: Final = 8 * 1024
"""Longest message."""
CREDITS: Final = 16
RECEIVES: Final = CREDITS + RESERVED
_SLOTS: Final = 32
SENDS: Final = _SLOTS - RECEIVES
"""Messages that may be in flight."""
SLOTS_BYTES: Final = _SLOTS * SLOT_BYTES
WORK_MAX: Final = 126
"""Sends, writes and reads in flight; one more is kept for the end."""
PIECES_MAX: Final = 8
"""Pieces of our memory that one transfer gathers or scatters."""
INLINE_BYTES: Final = 256
_SIGNAL_EVERY: Final = SENDS // 2

# The low bits of a work id say what ended, the others which.
SENT: Final = 0
RECEIVED: Final = 1
READ: Final = 2
MARK: Final = 3
_KIND_BITS: Final = 3
KIND_MASK: Final = (1 << _KIND_BITS) - 1


class _Flight(NamedTuple):
    """Work that has not ended."""

    number: int
    message: bool
    kept: Any
    ended: Callable[[], None] | None


class WorkQueue:
    """The slots and the work of one queue pair. `memory` is SLOTS_BYTES of registered memory, `key` its local key."""

    def __init__(self, pair: QueuePair, memory: memoryview, address: int, key: int) -> None:
        self.pair = pair
        self.sends = self.writes = self.reads = self.receives = 0
        """how many were posted (receives: how many messages came)"""
        self._memory = memory
        self._address = address
        self._key = key
        self._flights: deque[_Flight] = deque()
        self._messages = 0
        self._posted = 0
        self._signaled = 0
        self._next_slot = 0
        self._receives_left = 0
        self._marked = False

    # -------------------------------------------------------------------------------------------------------- receiving

    def post_receives(self) -> None:
        """Make room for messages, before the other side may send any."""
        for slot in range(RECEIVES):
            self.post_receive(slot)

    def post_receive(self, slot: int) -> None:
        """The message in this slot has been dealt with."""
        piece = Piece(self._address + slot * SLOT_BYTES, SLOT_BYTES, self._key)
        self.pair.receive(slot << _KIND_BITS | RECEIVED, piece)
        self._receives_left += 1

    def message(self, completion: Completion) -> tuple[int, memoryview]:
        """The slot of a message that came, and its bytes, valid until the slot is posted again."""
        self.receives += 1
        self._receives_left -= 1
        slot = completion.work >> _KIND_BITS
        start = slot * SLOT_BYTES
        return slot, self._memory[start : start + completion.size]

    # ---------------------------------------------------------------------------------------------------------- sending

    def room(self, transfers: int = 0) -> bool:
        """Whether a message, and so many transfers before it, can be posted now. One slot is kept for the end."""
        return self._messages < SENDS - 1 and len(self._flights) + transfers < WORK_MAX

    def slot(self) -> memoryview:
        """Where the next message is to be put together."""
        start = (RECEIVES + self._next_slot) * SLOT_BYTES
        return self._memory[start : start + SLOT_BYTES]

    def send(
        self, size: int, ended: Callable[[], None] | None = None, kept: Any = None, *, signal: bool = False
    ) -> None:
        """Send the first `size` bytes of `slot()`. `ended` is called when they, and all earlier work, have gone out."""
        piece = Piece(self._address + (RECEIVES + self._next_slot) * SLOT_BYTES, size, self._key)
        self._next_slot = (self._next_slot + 1) % SENDS
        signaled = signal or ended is not None or self._posted - self._signaled >= _SIGNAL_EVERY
        number = self._flight(True, kept, ended, signaled)
        self.sends += 1
        self.pair.send(number << _KIND_BITS | SENT, piece, inline=size <= self.pair.inline_bytes, signaled=signaled)

    def write(self, transfers: Sequence[Transfer]) -> None:
        """Write our bytes into the other side's memory. A `send` follows, and its end is theirs."""
        for pieces, place in transfers:
            number = self._flight(False, None, None, False)
            self.writes += 1
            self.pair.write(number << _KIND_BITS | SENT, pieces, place.address, place.key, signaled=False)

    def read(self, transfers: Sequence[Transfer], ended: Callable[[], None], kept: Any) -> None:
        """Read the other side's memory into ours; `ended` is called when all of it is here."""
        last = len(transfers) - 1
        for index, (pieces, place) in enumerate(transfers):
            number = self._flight(False, kept, ended if index == last else None, True)
            self.reads += 1
            self.pair.read(number << _KIND_BITS | READ, pieces, place.address, place.key)

    def _flight(self, message: bool, kept: Any, ended: Callable[[], None] | None, signaled: bool) -> int:
        number = self._posted
        self._posted += 1
        self._messages += message
        if signaled:
            self._signaled = self._posted
        self._flights.append(_Flight(number, message, kept, ended))
        return number

    def ended(self, completion: Completion) -> None:
        """Work has ended well, and so has all before it."""
        number = completion.work >> _KIND_BITS
        flights = self._flights
        while flights and flights[0].number <= number:
            flight = flights.popleft()
            self._messages -= flight.message
            if flight.ended is not None:
                flight.ended()

    # -------------------------------------------------------------------------------------------------------------- end

    def fail(self) -> None:
        """Stop: nothing can be written into, or read from, our memory after this. `drained` says when all has ended:
        when every receive has come back, and a mark that is posted behind everything else."""
        self.pair.fail()
        self.pair.send(MARK, Piece(self._address, 1, self._key), inline=False, signaled=True)

    def flushed(self, completion: Completion) -> None:
        """Something has come back without having been done."""
        kind = completion.work & KIND_MASK
        if kind == RECEIVED:
            self._receives_left -= 1
        elif kind == MARK:
            self._marked = True

    @property
    def drained(self) -> bool:
        """Whether everything has come back."""
        return self._marked and not self._receives_left

    def forget(self) -> None:
        """Nothing is in flight any more; nobody is told, and the slots are not needed."""
        self._flights.clear()
        self._memory = memoryview(b"")
