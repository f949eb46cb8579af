"""Who may do what to which object: fields, capability, fence and generation, before any byte is touched.

Errors, each with words: EINVAL a field that cannot be · EACCES a capability that is forged or for something else ·
EKEYEXPIRED one whose time is over · ESHUTDOWN the session was fenced by the MDS (it must not write any more, whatever
it holds) · ESTALE an older layout generation than the object has seen (`gate`).
"""

import asyncio
import errno
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final

from nacrefs.common.auth import check_capability, sign_capability
from nacrefs.common.wire import BULK_BYTES_MAX, EXTENTS_MAX, Capability, Right

OFFSET_MAX: Final = (1 << 63) - 1
FID_MAX: Final = (1 << 64) - 1
NUMBER_MAX: Final = (1 << 32) - 1
_SEEN_MAX: Final = 8192
_RETIRED_MAX: Final = 4
_OWN_S: Final = 60
"""How long a capability is good that an OSS makes for itself."""


def invalid(text: str) -> OSError:
    """The error for a field that cannot be."""
    return OSError(errno.EINVAL, text)


def check_object(fid: int, number: int) -> None:
    """EINVAL unless this can be an object."""
    if not 0 < fid <= FID_MAX:
        raise invalid(f"fid {fid} is not in 1..2^64-1")
    if not 0 <= number <= NUMBER_MAX:
        raise invalid(f"object number {number} is not in 0..2^32-1")


def check_extents(extents: Sequence[tuple[int, int]], total_max: int = BULK_BYTES_MAX) -> int:
    """How long the extents `(offset, length)` are together; EINVAL, naming the extent, unless they can be."""
    if len(extents) > EXTENTS_MAX:
        raise invalid(f"extents: {len(extents)} of them, at most {EXTENTS_MAX} are allowed")
    total = 0
    for offset, length in extents:
        if offset < 0 or length < 0 or offset + length > OFFSET_MAX:
            raise invalid(f"extents: ({offset}, {length}) does not lie within 0..2^63-1")
        total += length
    if total > total_max:
        raise invalid(f"extents: {total} bytes together, at most {total_max} are allowed")
    return total


def _fenced(session: int) -> OSError:
    return OSError(errno.ESHUTDOWN, f"session {session} was fenced: the MDS has ended it and given its leases away")


class Admission:
    """Capabilities and fences. Sound capabilities are remembered, so that the next I/O under one costs no hash."""

    def __init__(self, keys: Sequence[bytes], now_s: Callable[[], float]) -> None:
        self._keys = tuple(keys)
        self._retired: tuple[bytes, ...] = ()
        self._now_s = now_s
        self._seen: dict[bytes, tuple[int, int, int, str, int, int]] = {}
        self._in_service: dict[int, int] = {}
        self._ended: dict[int, asyncio.Event] = {}
        self.fenced: set[int] = set()

    def check(
        self, capability: Capability, fid: int, generation: int, session: int, right: int, holder: str = ""
    ) -> None:
        """OSError unless `session`, of the principal `holder`, may do this to `fid` now. `right` (of `wire.Right`, as a
        plain integer, whose `&` costs a tenth of an enum's) may be several, of which one is enough."""
        if session in self.fenced:
            raise _fenced(session)
        facts = (fid, generation, session, holder, capability.rights, capability.expires_s)
        now_s = self._now_s()
        if self._seen.get(capability.mac) == facts and capability.rights & right and now_s <= capability.expires_s:
            return
        check = partial(
            check_capability, capability=capability, fid=fid, generation=generation, session=session,
            right=Right(right), now_s=now_s, holder=holder,
        )  # fmt: skip
        try:
            check(self._keys)
        except PermissionError:
            if not self._retired:
                raise
            check(self._retired)
            raise OSError(errno.EKEYEXPIRED, "capability was signed under a server's key that is over") from None
        if len(self._seen) >= _SEEN_MAX:
            self._seen.clear()
        self._seen[capability.mac] = facts

    def own_capability(self, fid: int, generation: int, rights: Right) -> Capability:
        """What this server reads with, from another one, on behalf of a client that has shown that it may."""
        return sign_capability(self._keys[0], fid, generation, 0, rights, int(self._now_s()) + _OWN_S)

    def change_keys(self, keys: Sequence[bytes]) -> None:
        """Go by other keys from now on. What was signed under one that is not among them any more is over, as its
        holder is told, so that he asks the MDS for another."""
        now = tuple(keys)
        if self._keys != now:
            retired = (*self._keys, *self._retired)
            self._retired = tuple(key for key in retired if key not in now)[:_RETIRED_MAX]
            self._keys = now
            self._seen.clear()

    def enter(self, session: int) -> None:
        """I/O of a session begins that takes more than one step of the event loop; ESHUTDOWN if it is fenced."""
        if session in self.fenced:
            raise _fenced(session)
        self.back(session)

    def back(self, session: int) -> None:
        """I/O of a session that was interrupted is in service again."""
        self._in_service[session] = self._in_service.get(session, 0) + 1

    def check_fence(self, session: int) -> None:
        """ESHUTDOWN if a session is fenced."""
        if session in self.fenced:
            raise _fenced(session)

    def leave(self, session: int) -> None:
        """Such I/O has ended."""
        left = self._in_service[session] - 1
        if left:
            self._in_service[session] = left
            return
        del self._in_service[session]
        if (ended := self._ended.pop(session, None)) is not None:
            ended.set()

    async def fence(self, sessions: Iterable[int]) -> None:
        """Refuse sessions from now on; returns when nothing of theirs is in service."""
        self.fenced.update(sessions)
        for session in sessions:
            if session in self._in_service:
                await self._ended.setdefault(session, asyncio.Event()).wait()


def check_size(size: int) -> None:
    """EINVAL unless an object can be cut there."""
    if not 0 <= size <= OFFSET_MAX:
        raise invalid(f"size {size} is not in 0..2^63-1")
