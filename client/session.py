"""A client's session: the connection to the MDS, keepalives, self-fence, and connections to the OSTs' servers.

The session is live for half a term from the moment at which the last answered keepalive was sent. While it is not,
nothing is served from caches and nothing is written; requests to the MDS wait in `Remote` until it is back.
docs/coherence.md.
"""

import asyncio
import errno
import itertools
import logging
import time
import uuid
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final, Protocol

from nacrefs.client.cache import Cache, Inode
from nacrefs.client.config import ClientConfig
from nacrefs.client.identity import in_the_name_of
from nacrefs.common.answer import Answer
from nacrefs.common.auth import CredentialSource
from nacrefs.common.clock import Clock, SystemClock
from nacrefs.common.impatient import ImpatientRemote, remote_with
from nacrefs.common.observe import Meter
from nacrefs.common.remote import Remote
from nacrefs.common.rpc import Call
from nacrefs.common.transport.rdma import configure
from nacrefs.common.wire import (
    Attach,
    Detach,
    Done,
    Evicted,
    GetOsts,
    HeldLock,
    Holding,
    Keepalive,
    Lease,
    OstInfo,
    Recall,
    Recalled,
    Reclaim,
    Request,
    Yield,
)
from nacrefs.common.wire import (
    Session as SessionReply,
)

log = logging.getLogger("nacre.client")

USED_MAX: Final = 10_000
"""Files that one keepalive reports as used; others come with the next."""

RECLAIM_MAX: Final = 10_000
YIELD_MAX: Final = 1000
DETACH_S: Final = 5.0


class SystemBootClock(SystemClock):
    """The machine's clocks; the monotonic one also runs while the machine is suspended, as the servers' clocks do."""

    @staticmethod
    def monotonic_s() -> float:
        """Seconds since boot."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)


class Holder(Protocol):
    """Who serves recalls and knows what the session holds: `client.recall.Recaller`."""

    def recall(self, request: Recall) -> Answer[Recalled]: ...
    def lost(self, reason: str) -> None: ...
    def fenced(self) -> None: ...
    def holdings(self) -> list[Holding]: ...
    def reclaimed(self, holding: Holding) -> None: ...


class LockOwner(Protocol):
    """Who knows which locks the session has: `client.locks.Locks`."""

    def claims(self) -> list[HeldLock]: ...
    def lost(self, lock: HeldLock) -> None: ...
    def all_lost(self) -> None: ...


class Session:
    """One client's session with an MDS. `number` changes when the session is lost and begun anew."""

    def __init__(
        self,
        config: ClientConfig,
        credentials: CredentialSource,
        cache: Cache,
        meter: Meter | None = None,
        clock: Clock | None = None,
    ) -> None:
        configure(config.rdma)
        self.config = config
        self.cache = cache
        self.meter = meter or Meter()
        self.clock = clock or SystemBootClock()
        self.client = uuid.uuid4().hex
        self.holder: Holder | None = None
        self.locks: LockOwner | None = None
        self.appends: dict[int, int] = {}
        """turns to append to shared files that we have: ticket by fid"""
        self.number = 0
        self.term_s = 30.0
        self.root = 0
        self.inline_bytes = 0
        self.tight = False
        self.squash = -1
        """whom the MDS takes for the anonymous user (`wire.Session`)"""
        self.read_only = False
        self.used: set[int] = set()
        """Files that were opened for reading, or read, since the last keepalive."""
        self.on_limits: Callable[[], None] = lambda: None
        """told when quotas have changed"""
        self._limits = 1
        self.osts: dict[int, OstInfo] = {}
        self.live_until_s = 0.0
        self._credentials = credentials
        self._osts_version = 0
        self._servers: dict[str, Remote] = {}
        self._retired: set[Remote] = set()
        """connections of a session that is over, while they are being closed"""
        self._live: asyncio.Event = asyncio.Event()
        self.background: set[asyncio.Task[Any]] = set()
        """What runs behind the caller's back."""
        self._keeper: asyncio.Task[None] | None = None
        self._fence: asyncio.TimerHandle | None = None
        self._yielding: dict[int, tuple[Inode, int]] = {}
        self._yield_timer: asyncio.TimerHandle | None = None
        self._closing = False
        service: Mapping[type[Request[Any]], Any] = {Recall: self._on_recall, Evicted: self._on_evicted}
        self.mds = remote_with(config.patience_s, config.mds, credentials, self.client, service, self.meter)
        self.mds.absorb = cache.absorb
        self.mds.greet = self._greet

    # ------------------------------------------------------------------------------------------------------ beginning

    async def open(self) -> None:
        """Connect and attach; OSError if that does not work."""
        await self.mds.open()
        self._keeper = asyncio.get_running_loop().create_task(self._keep())

    async def close(self) -> None:
        """Give everything back and disconnect. Dirty data must have been written before."""
        self._closing = True
        for timer in (self._yield_timer, self._fence):
            if timer is not None:
                timer.cancel()
        await self._end(*self.background, *([self._keeper] if self._keeper else []))
        if self.mds.connected:
            try:
                if self.used:
                    await self.mds.call(Keepalive(tuple(self.used)[:USED_MAX]), deadline_s=DETACH_S)
                await self.mds.call(Detach(), deadline_s=DETACH_S)
            except OSError as error:
                log.warning("could not detach from %s: %s", self.mds.address, error.strerror)
        await self.mds.aclose()
        for server in (*self._servers.values(), *self._retired):
            await server.aclose()
        self._servers.clear()
        self._retired.clear()
        while self.background:  # what the end of the others has begun
            await self._end(*self.background)

    @staticmethod
    async def _end(*tasks: "asyncio.Task[Any]") -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _greet(self) -> None:
        """Take the session up again on a new connection, or begin one."""
        sent_s = self.clock.monotonic_s()
        attach = Attach(self.client, self.config.host_name(), self.number, self.config.subtree.encode())
        reply = await self.mds.ask_now(attach)
        if self.number and not reply.resumed:
            self._lost("the MDS does not know the session any more")
        self._began(reply, sent_s)
        if reply.resumed and reply.grace and self.holder is not None:
            await self._reclaim(self.holder)

    async def _reclaim(self, holder: Holder) -> None:
        """Tell an MDS that has been restarted what we hold."""
        holdings = holder.holdings()
        locks = self.locks.claims() if self.locks is not None else []
        appends = list(self.appends.items())
        most = max(1, len(holdings), len(locks), len(appends))
        for at in range(0, most, RECLAIM_MAX):
            end = at + RECLAIM_MAX
            answer = await self.mds.ask_now(
                Reclaim(tuple(holdings[at:end]), end < most, tuple(locks[at:end]), tuple(appends[at:end]))
            )
            for holding in answer.holdings:
                holder.reclaimed(holding)
            for lock in answer.lost_locks:
                assert self.locks is not None
                self.locks.lost(lock)

    def _began(self, reply: SessionReply, sent_s: float) -> None:
        self.number = reply.session
        self.term_s = reply.term_s
        self.root = reply.root
        self.inline_bytes = reply.inline_bytes
        self.squash, self.read_only = reply.squash, reply.read_only
        self.mds.wrap = in_the_name_of if self.squash >= 0 else None
        self._set_osts(reply.osts)
        self._heard(sent_s)

    # ------------------------------------------------------------------------------------------------------ liveness

    @property
    def live(self) -> bool:
        """Whether caches may be used and data may be written."""
        return self.clock.monotonic_s() < self.live_until_s

    def _heard(self, sent_s: float) -> None:
        self.live_until_s = max(self.live_until_s, sent_s + self.term_s / 2)
        self._live.set()
        if self._fence is None:
            self._fence = asyncio.get_running_loop().call_later(self.term_s / 2, self._check_fence)

    def _check_fence(self) -> None:
        """The kernel serves from its caches without asking us: it must forget when we may not serve any more."""
        self._fence = None
        left_s = self.live_until_s - self.clock.monotonic_s()
        if left_s > 0:
            self._fence = asyncio.get_running_loop().call_later(left_s, self._check_fence)
        elif self.number and self.holder is not None:
            log.warning("not heard from %s for %.0f s: caches are not used", self.mds.address, self.term_s / 2)
            self.holder.fenced()

    async def wait_live(self) -> None:
        """Wait until the session is live; EIO if that takes longer than a soft mount waits."""
        patience_s = self.config.patience_s
        while not self.live:
            self._live.clear()
            if not patience_s:
                await self._live.wait()
            elif isinstance(self.mds, ImpatientRemote):
                if self.mds.given_up:
                    raise self.mds.away()
                try:
                    async with asyncio.timeout(patience_s):
                        await self._live.wait()
                except TimeoutError:
                    raise self.mds.away() from None

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(self.term_s / 3)
            try:
                await self.keepalive()
            except OSError as error:
                log.warning("keepalive to %s failed: %s", self.mds.address, error.strerror)

    async def keepalive(self) -> None:
        """Tell the MDS that we are here; refresh the OST table if it has changed."""
        sent_s = self.clock.monotonic_s()
        number = self.number
        used = tuple(itertools.islice(self.used, USED_MAX))
        self.used.difference_update(used)
        try:
            alive = await self.mds.call(Keepalive(used))
        except OSError:
            self.used.update(used)
            raise
        if number != self.number:
            return
        self._heard(sent_s)
        self.tight = alive.tight
        if alive.limits != self._limits:
            self._limits = alive.limits
            self.on_limits()
        if alive.osts_version != self._osts_version:
            await self.refresh_osts()
            self._osts_version = alive.osts_version

    def _on_recall(self, request: Recall, call: Call) -> Any:
        assert self.holder is not None
        for item in request.items:
            self._yielding.pop(item.fid, None)
        return self.holder.recall(request)

    async def _retire(self, server: Remote) -> None:
        await server.aclose()
        self._retired.discard(server)

    def _on_evicted(self, request: Evicted, call: Call) -> Done:
        log.error("the MDS has ended our session: %s", request.reason)
        self._lost(request.reason)
        # The next connection begins a new session, since this one has no number any more.
        asyncio.get_running_loop().call_soon(self._reconnect)
        return Done()

    def _reconnect(self) -> None:
        if self.mds.link is not None and not self._closing:
            self.mds.link.close("session is over")

    def _lost(self, reason: str) -> None:
        self.number = 0
        self.live_until_s = 0.0
        self._yielding.clear()
        for server in self._servers.values():
            self._retired.add(server)
            self.spawn(self._retire(server))
        self._servers = {}
        if self.locks is not None:
            self.locks.all_lost()
        if self.holder is not None:
            self.holder.lost(reason)

    # ----------------------------------------------------------------------------------------------------------- OSTs

    def _set_osts(self, osts: tuple[OstInfo, ...]) -> None:
        self.osts = {ost.index: ost for ost in osts}

    async def refresh_osts(self) -> None:
        """Ask which OSTs there are."""
        table = await self.mds.call(GetOsts())
        self._set_osts(table.osts)
        self._osts_version = table.version

    def check_still(self, number: int, undone: str = "the data was sent") -> None:
        """EIO if the session of this number, in which a change was begun, has ended: somebody else may have written
        there since, so nothing of it may go out under the next one. `undone`: what it has ended before."""
        if self.number != number:
            raise OSError(errno.EIO, f"the session ended before {undone}")

    async def server_of(self, ost: int) -> Remote:
        """The connection to the server of an OST; ENODEV if there is no such OST. Between two sessions the next one is
        waited for: a connection is for one session, and without one it would be of no use for ever."""
        if not self.number:
            await self.wait_live()
        info = self.osts.get(ost)
        if info is None:
            await self.refresh_osts()
            info = self.osts.get(ost)
            if info is None:
                raise OSError(errno.ENODEV, f"OST {ost} is not registered at the MDS; is its server running?")
        return self.server_at(info.address)

    def connections(self) -> list[dict[str, str]]:
        """Every connection: the server's name, what carries it (empty while it is away), its address."""
        return [
            {"server": remote.server, "transport": remote.transport, "address": remote.address}
            for remote in (self.mds, *self._servers.values())
        ]

    def server_at(self, address: str) -> Remote:
        """The connection to an OSS, begun when first needed."""
        server = self._servers.get(address)
        if server is None:
            name = f"{self.number}.{self.client}"
            server = remote_with(self.config.patience_s, address, self._credentials, name, {}, self.meter)
            self._servers[address] = server
            server.open_later()
        return server

    # ---------------------------------------------------------------------------------------------------------- leases

    def yield_later(self, inode: Inode, lease: int) -> None:
        """Give a lease back (down to `lease`) together with others, a little later, unless it is used again before."""
        self._yielding[inode.fid] = (inode, lease)
        if len(self._yielding) >= YIELD_MAX:
            self._yield_due()
        elif self._yield_timer is None:
            self._yield_timer = asyncio.get_running_loop().call_later(0.5, self._yield_due)

    def _yield_due(self) -> None:
        if self._yield_timer is not None:
            self._yield_timer.cancel()
            self._yield_timer = None
        due, self._yielding = self._yielding, {}
        given: list[tuple[Inode, int]] = []
        for inode, lease in due.values():
            file = inode.file
            if inode.lease > lease and inode.recall is None and (file is None or not (file.writers or file.dirty)):
                given.append((inode, lease))
        if given:
            self.spawn(self.give_back(given))

    async def give_back(self, given: list[tuple[Inode, int]]) -> None:
        """Give leases back now. Until the MDS knows, grants that cross count only up to what remains."""
        holdings: list[Holding] = []
        for inode, lease in given:
            inode.lower(lease)
            if (
                inode.file is not None
            ):  # opened meanwhile: the MDS may have taken the lease for enough, and have said so
                inode.registered |= inode.file.mode_beside(lease)
            holdings.append(Holding(inode.fid, Lease(lease), inode.registered))
        try:
            for at in range(0, len(holdings), YIELD_MAX):
                await self.mds.call(Yield(tuple(holdings[at : at + YIELD_MAX])))
        except OSError as error:
            log.warning("giving leases back failed: %s", error.strerror)
        finally:
            for inode, _ in given:
                inode.lowered()

    def spawn(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        """Run a coroutine in the background; it is cancelled when the session is closed."""
        task: asyncio.Task[Any] = asyncio.get_running_loop().create_task(work)
        self.background.add(task)
        task.add_done_callback(self._spawned)
        return task

    def _spawned(self, task: "asyncio.Task[Any]") -> None:
        self.background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a background task failed", exc_info=error)
