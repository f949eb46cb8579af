"""An MDS from start to clean stop: its database, its listeners, its HTTP side."""

import asyncio
import logging
from pathlib import Path
from typing import Any, Final

from nacrefs.common.auth import Keyring, revoked
from nacrefs.common.clock import Clock, SystemClock
from nacrefs.common.keyfile import KeyFile, watch
from nacrefs.common.observe import Meter, Observatory
from nacrefs.common.remote import Server
from nacrefs.common.transport.rdma import configure
from nacrefs.mds.config import MdsConfig
from nacrefs.mds.database import open_store
from nacrefs.mds.mdt import Mdt
from nacrefs.mds.service import Mds
from nacrefs.mds.settings import Settings
from nacrefs.mds.transactions.cache import Cache

log = logging.getLogger("nacre.mds")

IN_SERVICE_MAX: Final = 16384
"""Requests of one client that may be in service. So many because they may all be parked until that same client has
answered a recall, and committed before: what frees them must still be read."""


class MdsServer:
    """One MDS in the running event loop: `start`, then `stop`, once each."""

    def __init__(self, config: MdsConfig, keyring: Keyring | None = None, clock: Clock | None = None) -> None:
        config.check()
        configure(config.rdma)
        self.config = config
        self._keyfile: KeyFile | None = None
        if keyring is None:
            self._keyfile = KeyFile(Path(config.keyring))
            keyring = self._keyfile.keyring
        self.keyring = keyring
        self.meter = Meter()
        self.url = ""
        """Where clients connect: the first address, with the real port."""
        self.metrics_url = ""
        self._clock = clock or SystemClock()
        self._mdt: Mdt | None = None
        self._server: Server | None = None
        self._observatory: Observatory | None = None
        self._key_watch: asyncio.Task[None] | None = None
        self.mds: Mds
        self.failure: OSError | None = None
        """Why it cannot serve any more; it has dropped its clients without an answer, and is to be stopped."""
        self.failed = asyncio.Event()

    async def start(self) -> None:
        """Open the MDT and serve it. OSError or ValueError, one line that says what to do, if something is wrong here;
        then nothing is left behind."""
        config = self.config
        store = open_store(config.database)
        try:
            mdt = self._mdt = Mdt(store, Cache(config.cache.memory_bytes))
            if mdt.cluster != self.keyring.cluster:
                raise ValueError(f"the MDT is of cluster {mdt.cluster}, the keyring of {self.keyring.cluster}")
            if mdt.number != config.mdt:
                raise ValueError(f"the database {store.name} is MDT {mdt.number}, the configuration says {config.mdt}")
            settings = Settings(
                term_s=float(config.lease.term_s),
                heartbeat_s=float(config.ost.heartbeat_s),
                leases_per_session=config.lease.per_session,
                capability_s=int(config.lease.capability_s),
                reserve_bytes=int(config.ost.reserve_bytes),
                layout=config.layout.spec,
                prices=config.tier.prices.by_class,
                access_s=float(config.tier.access_s),
                thaw_days=config.tier.thaw_days,
                thaw_tier=config.tier.thaw_tier,
                thaw_poll_s=float(config.tier.thaw_poll_s),
            )
            self.mds = Mds(mdt, settings, self.keyring.capability_key(), self._clock, self.meter)
        except BaseException:
            store.close()
            raise
        try:
            self._server = Server(
                self.mds.service(), self.keyring, config.name, self.meter, in_service_max=IN_SERVICE_MAX
            )
            self._server.on_gone = self.mds.gone
            self._server.service_of = self.mds.service_of
            self.mds.on_lost = self._fail
            self.mds.start()  # before anybody is served: sessions, truncations and links of before must be known
            addresses = [await self._server.listen(address) for address in config.addresses]
            self.url = addresses[0]
            self._observatory = Observatory(self.meter, self._problems, self._gauges, self._add_routes)
            if config.metrics_at is not None:
                self.metrics_url = await self._observatory.start(*config.metrics_at)
            self._key_watch = watch(self._keyfile, self.change_keyring)
        except BaseException:
            await self.stop()
            raise

    def change_keyring(self, keyring: Keyring) -> None:
        """Go by another keyring from now on: sessions under keys that are gone, or are not what they were, are
        evicted, and capabilities are signed under the newest server's key."""
        self.mds.change_key(keyring.capability_key())
        gone = revoked(self.keyring, keyring)
        self.keyring = keyring
        if self._server is not None:
            self.mds.revoke(gone)
            self._server.change_keyring(keyring)

    def read_keys_again(self) -> None:
        """Look at the keyring's file now (SIGHUP)."""
        if self._keyfile is not None:
            self.change_keyring(self._keyfile.refresh(force=True))

    def _fail(self, error: OSError) -> None:
        """The MDT is lost to this server. What clients have asked stays unanswered: they connect to whoever serves it
        next and ask again, so that nothing happens twice and no application sees an error."""
        log.error("cannot serve any more: %s", error.strerror)
        self.failure = error
        if self._server is not None:
            self._server.drop(f"the server has lost its MDT: {error.strerror}")
        self.failed.set()

    async def stop(self) -> None:
        """Serve nobody any more, commit what is queued, close the database."""
        if self._key_watch is not None:
            self._key_watch.cancel()
            await asyncio.gather(self._key_watch, return_exceptions=True)
            self._key_watch = None
        if self._server is not None:
            await self._server.close()
            self._server = None
        if self._observatory is not None:
            await self._observatory.stop()
            self._observatory = None
        if self._mdt is not None:
            await self.mds.stop()
            self._mdt.store.close()
            self._mdt = None

    def _add_routes(self, app: Any) -> None:
        from nacrefs.mds.admin import add_routes  # not needed before somebody asks over HTTP

        add_routes(app, self.mds)

    def _problems(self) -> list[str]:
        down = [str(info.index) for info in self.mds.targets.table() if not info.up]
        problems = [f"OST {', '.join(down)} down"] if down else []
        if not self.mds.targets.table():
            problems.append("no OST has joined")
        if self.mds.grace.running:
            problems.append("waiting for clients to reclaim after a restart")
        return problems

    def _gauges(self) -> dict[str, float]:
        mds = self.mds
        return {
            "sessions": len(mds.sessions.by_id),
            "leases": len(mds.leases),
            "locks": mds.locking.table.held,
            "locks_waited_for": mds.locking.table.waiting,
            "queued_requests": mds.journal.queued,
            "inodes": mds.mdt.files,
            "cache_bytes": mds.mdt.cache.bytes,
        }
