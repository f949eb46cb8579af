"""Giving up a session that does not keep its promises, so that nobody sees it act afterwards.

its requests are refused → every OST refuses its I/O, and its client has dropped its caches or must have by itself
→ sizes of what it wrote come from the OSTs → its leases and opens end → others go on
"""

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

from nacrefs.common.clock import Clock
from nacrefs.common.wire import Evicted, Mode
from nacrefs.mds.clients.leases import LeaseTable
from nacrefs.mds.clients.sessions import Session, Sessions
from nacrefs.mds.mdt import Mdt
from nacrefs.mds.namespace.files import settle_orphan
from nacrefs.mds.osts.mirrors import Mirrors
from nacrefs.mds.osts.sizes import RETURN_S, Told, forget_spilled, keep_size
from nacrefs.mds.osts.targets import Targets
from nacrefs.mds.transactions.journal import Journal
from nacrefs.mds.transactions.step import Step
from nacrefs.mds.transactions.tx import Tx

log = logging.getLogger("nacre.mds")

T = TypeVar("T")
_AT_A_TIME: Final = 64
"""Files whose sizes are asked for together."""
_RETRY_S: Final = 0.5


class Evictor:
    """Evicts sessions. `tick` must be called now and then: it is what time passes by."""

    def __init__(
        self,
        mdt: Mdt,
        journal: Journal,
        leases: LeaseTable,
        sessions: Sessions,
        targets: Targets,
        mirrors: Mirrors,
        clock: Clock,
    ) -> None:
        self._mdt = mdt
        self._journal = journal
        self._leases = leases
        self._sessions = sessions
        self._targets = targets
        self._mirrors = mirrors
        self._clock = clock
        self._reading = Tx(mdt, writable=False)
        self._waiting: list[tuple[float, asyncio.Future[None]]] = []
        self.on_evicted: Callable[[], None] = lambda: None

    def tick(self) -> None:
        """Time has passed."""
        now_s = self._clock.monotonic_s()
        for until_s, future in self._waiting:
            if until_s <= now_s and not future.done():
                future.set_result(None)
        self._waiting = [item for item in self._waiting if not item[1].done()]

    async def _until(self, until_s: float) -> None:
        if self._clock.monotonic_s() < until_s:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((until_s, future))
            await future

    async def evict(self, session: Session, reason: str, knows: bool) -> None:
        """Carry out an eviction; `session.gone` is set already. `knows`: its client has dropped it by itself."""
        peer = session.peer
        fenced = self._targets.fence(session.id)
        if knows:
            await fenced
        else:
            await asyncio.gather(fenced, self._tell(session, reason))
        written = {fid for fid, opens in self._mdt.opens.items() if opens.get(session.id, 0) & Mode.WRITE}
        written.update(self._leases.written_by(session.id))
        doubtful = self._mirrors.written_by(session.id) | {fid for fid in written if self._mirrors.layout(fid)}
        files = sorted(written)
        for at in range(0, len(files), _AT_A_TIME):
            await asyncio.gather(*map(self._keep_written, files[at : at + _AT_A_TIME]))
        await self._durably(partial(self._end, session.id, doubtful))
        await asyncio.gather(*map(self._mirrors.announce, doubtful))
        self._sessions.remove(session)
        if peer is not None:
            peer.close("evicted")
        self.on_evicted()

    def _end(self, session: int, doubtful: set[int], step: Step) -> None:
        self._mirrors.doubt(doubtful, step)
        end_session(self._leases, session, step)

    async def _tell(self, session: Session, reason: str) -> None:
        """The client has dropped its caches, or has had to because it was not heard for half a term."""
        half_s = self._sessions.term_s / 2
        if session.peer is not None:
            try:
                await session.peer.call(Evicted(reason), deadline_s=half_s)
                return
            except OSError as error:
                log.info("session %d could not be told of its end: %s", session.id, error.strerror)
        await self._until(session.last_heard_s + half_s)

    async def _keep_written(self, fid: int) -> None:
        """The writer of a file is gone: the OSTs say how long the file is now."""
        inode = self._reading.inode(fid)
        if inode is None or inode.layout is None:
            return
        if inode.is_inline:
            # What it had moved to the OSTs without a commit never became the file's contents. Nobody waits for the OSTs
            # here, but the file is busy until they have confirmed.
            self._journal.submit_own(partial(forget_spilled, fid)).add_done_callback(_retrieve)
            return
        try:
            told = Told(*await self._targets.glimpse(fid, inode.layout, patient=False), inode.data_version)
        except OSError as error:
            if self._reading.inode(fid) is None:
                return
            log.warning("%s; file %#x is looked at when somebody uses it", error.strerror, fid)
            self._leases.unasked[fid] = asyncio.get_running_loop().time() + RETURN_S
            return
        if not await self._durably(partial(keep_size, self._leases, fid, told)):
            await self._keep_written(fid)  # somebody has cut it meanwhile

    async def _durably(self, operation: Callable[[Step], T]) -> T:
        """Run a step until it is durable, what it returns; CancelledError if nothing is served any more."""
        while True:
            try:
                done: T = await self._journal.submit_own(operation)
                return done
            except OSError as error:
                if self._journal.closed:
                    raise asyncio.CancelledError from error
                log.warning("eviction: %s", error.strerror)
                await asyncio.sleep(_RETRY_S)


def _retrieve(future: "asyncio.Future[None]") -> None:
    if not future.cancelled() and (error := future.exception()) is not None:
        log.warning("eviction: %s", error)


def end_session(leases: LeaseTable, session: int, step: Step) -> None:
    """Remove a session with all it held and had open, and the files that lived only for that."""
    leases.drop_session(session)
    for fid in step.tx.end_session(session):
        settle_orphan(step, fid)
