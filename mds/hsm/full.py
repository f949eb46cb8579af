"""Archives that are full: what goes there waits, and one action at a time finds out whether there is room again.

Others would fail the same way, and send their bytes in vain. But one that takes long, since its file is large, does not
hold up the others until it has failed: another tries, too. What waits is not given up, however long that lasts.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Final

from nacrefs.common.wire import HsmAction

FILLING: Final = frozenset({HsmAction.ARCHIVE, HsmAction.TRANSITION})
"""Actions that need room in the archive."""
FIRST_S: Final = 0.5
"""After so long it is tried again,"""
MOST_S: Final = 30.0
"""and then after twice as long each time, up to this. So long is also waited for who finds out."""


@dataclass(slots=True)
class _Full:
    reason: str
    since_ns: int
    next_ns: int
    delay_s: float
    trying: int = 0
    """The last action that has begun to find out; 0: it is over."""


class FullArchives:
    """Which archives have no room. Times are the caller's, in nanoseconds."""

    def __init__(self) -> None:
        self._full: dict[int, _Full] = {}
        self._refusals: Counter[int] = Counter()

    def holds(self, archive: int, now_ns: int) -> bool:
        """Whether what needs room in this archive must not begin now."""
        full = self._full.get(archive)
        return full is not None and full.next_ns > now_ns

    def begins(self, archive: int, action: int, now_ns: int) -> None:
        """An action that needs room begins: if the archive was full, it finds out about it."""
        full = self._full.get(archive)
        if full is not None:
            full.trying, full.next_ns = action, now_ns + round(MOST_S * 1e9)

    def refused(self, archive: int, action: int, reason: str, now_ns: int) -> bool:
        """There was no room for an action; whether that is news."""
        self._refusals[archive] += 1
        full = self._full.get(archive)
        if full is None:
            self._full[archive] = _Full(reason, now_ns, now_ns + round(FIRST_S * 1e9), FIRST_S)
            return True
        if full.trying == action:  # not one of those that had begun before
            full.trying, full.delay_s = 0, min(MOST_S, 2 * full.delay_s)
            full.next_ns = now_ns + round(full.delay_s * 1e9)
        full.reason = reason
        return False

    def ended(self, archive: int, action: int, room: bool) -> bool:
        """An action that needs room is over: there was (`room`), or it ended for another reason, and the next one
        tries. Whether it is news that there is room."""
        full = self._full.get(archive)
        if full is None:
            return False
        if room:
            del self._full[archive]
        elif full.trying == action:
            full.trying = full.next_ns = 0
        return room

    def try_now(self, archive: int) -> None:
        """Somebody has reason to believe that there is room."""
        full = self._full.get(archive)
        if full is not None:
            full.next_ns, full.delay_s = 0, FIRST_S

    def soonest_ns(self, now_ns: int) -> int:
        """When something may begin that is held now; 0: time alone lets nothing begin."""
        times = (full.next_ns for full in self._full.values() if full.next_ns > now_ns)
        return min(times, default=0)

    def why(self, archive: int) -> str:
        """What the archive said; empty: it is not full."""
        full = self._full.get(archive)
        return "" if full is None else full.reason

    def refusals(self, archive: int) -> int:
        """How often it has had no room: if this has moved, it was asked once more."""
        return self._refusals[archive]

    def since_ns(self, archive: int) -> int:
        """Since when it is full; 0: it is not."""
        full = self._full.get(archive)
        return 0 if full is None else full.since_ns
