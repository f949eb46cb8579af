"""The term after a restart in which clients say what they held, while everybody's requests wait (docs/coherence.md)."""

import asyncio
import logging
from collections.abc import Callable

from nacrefs.common.clock import Clock
from nacrefs.mds.clients.sessions import Session, Sessions
from nacrefs.mds.transactions.work import Work

log = logging.getLogger("nacre.mds")


class Grace:
    """One MDS's grace term. `over` is given the requests that waited, once every session has reclaimed or is gone."""

    def __init__(self, sessions: Sessions, clock: Clock, over: Callable[[list[Work]], None]) -> None:
        self._sessions = sessions
        self._clock = clock
        self._over = over
        self._waiting: list[Work] | None = None
        self._until_s = 0.0
        self._ended = asyncio.Event()
        self._ended.set()

    @property
    def running(self) -> bool:
        """Whether requests wait for sessions to reclaim."""
        return self._waiting is not None

    def begin(self, term_s: float) -> None:
        """An earlier run has left sessions: they have this long."""
        log.info("waiting up to %g s for %d sessions to reclaim", term_s, len(self._sessions.by_id))
        self._waiting = []
        self._ended.clear()
        self._until_s = self._clock.monotonic_s() + term_s

    def keeps(self, work: Work) -> bool:
        """Whether the term is running; then the request is kept until it is over."""
        if self._waiting is None:
            return False
        self._waiting.append(work)
        return True

    def missed(self) -> list[Session]:
        """The sessions that have not reclaimed although their time is up."""
        if self._waiting is None or self._clock.monotonic_s() < self._until_s:
            return []
        return [session for session in self._sessions.by_id.values() if not session.reclaimed]

    def progress(self) -> None:
        """A session has reclaimed or is gone: the term is over if it was the last."""
        if self._waiting is None or any(not session.reclaimed for session in self._sessions.by_id.values()):
            return
        waiting, self._waiting = self._waiting, None
        log.info("all sessions have reclaimed; %d requests go on", len(waiting))
        self._over(waiting)
        self._ended.set()

    async def ended(self) -> None:
        """Return when the term is not running. Whatever the MDS changes of its own accord waits for this: before, it
        does not know who has what of a file or directory in a cache, and would not tell them."""
        await self._ended.wait()
