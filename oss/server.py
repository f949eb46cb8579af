"""An object storage server: its OSTs, its listeners, and its connection to the MDS, from start to clean stop."""

import asyncio
import errno
import logging
import resource
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from nacrefs.common.auth import CredentialSource, Keyring
from nacrefs.common.buffers import BufferPool
from nacrefs.common.keyfile import KeyFile, watch
from nacrefs.common.observe import Meter, Observatory
from nacrefs.common.remote import Remote, Server
from nacrefs.common.rpc import Peer
from nacrefs.common.transport.rdma import configure
from nacrefs.common.wire import (
    GetOsts,
    Heartbeat,
    JoinMirrors,
    ObjectId,
    Register,
    Registered,
    ReportDamage,
    Role,
    TargetInfo,
)
from nacrefs.oss.admission import Admission
from nacrefs.oss.blockio import IoThreads
from nacrefs.oss.config import OssConfig
from nacrefs.oss.copies import MdsTime
from nacrefs.oss.gate import Gate
from nacrefs.oss.mover import Mover
from nacrefs.oss.service import Service
from nacrefs.oss.target import Limits, Target

log = logging.getLogger("nacre.oss")
_DOUBTFUL_AT_ONCE: Final = 1000
_DAMAGE_S: Final = 60.0
_OSTS_S: Final = 5.0
_OTHER_FILES: Final = 1024
"""Descriptors for everything but object files."""


class OssServer:
    """One OSS in the running event loop: `start`, then `stop`, once each. `registered` is set while it is known."""

    def __init__(self, config: OssConfig, keyring: Keyring | None = None) -> None:
        config.check()
        configure(config.rdma)
        self.config = config
        self._keyfile: KeyFile | None = None
        if keyring is None:
            self._keyfile = KeyFile(Path(config.keyring))
            keyring = self._keyfile.keyring
        self.keyring = keyring
        self.meter = Meter()
        self.targets: list[Target] = []
        self.addresses: tuple[str, ...] = ()
        self.registered = asyncio.Event()
        self.metrics_url = ""
        self._credentials: CredentialSource = lambda: self.keyring.credentials(Role.SERVER)
        self._pool = BufferPool(config.buffer_bytes)
        self._threads = IoThreads(config.threads)
        self._mds_time = MdsTime()
        self._gate = Gate(Admission(self.keyring.capability_keys(), self._mds_time.now_s))
        self._others: dict[str, Remote] = {}
        self._addresses_of: dict[int, str] = {}
        """where other OSSes' OSTs are"""
        self._service = Service(
            self._gate,
            self._threads,
            self._pool,
            self._connect,
            self._reach,
            int(config.mirror.resync_bytes_per_s),
            int(config.scrub.bytes_per_s),
        )
        self._service.scrubs.report = self._report_damage
        self.mover = Mover(
            self._gate, self._service.for_mover(), self._credentials, config.host_name(), int(config.mover_bytes)
        )
        self._service.mover = self.mover
        self._server = Server(
            self._service.for_clients(),
            self.keyring,
            config.host_name(),
            self.meter,
            BufferPool(config.buffer_bytes),
            tickets=True,
        )
        self._server.on_peer = self._greeted
        self._links: dict[str, Peer] = {}
        self._server.on_gone = self._gone
        self._observatory = Observatory(self.meter, self.problems, self._gauges)
        self._mds: Remote | None = None
        self._heartbeats: asyncio.Task[None] | None = None
        self._key_watch: asyncio.Task[None] | None = None
        self._heartbeat_s = self._silence_s = 1.0

    async def start(self) -> None:
        """Open the OSTs, listen, and begin to register with the MDS, in the background, for as long as it takes.

        OSError, one line that says what to do, if something is wrong here; then nothing is left behind.
        """
        try:
            _allow_files(len(self.config.osts) * self.config.ost.open_objects + _OTHER_FILES)
            self._open_targets()
            self._service.scrubs.start(self.targets)
            await self._listen()
            self._mds = Remote(
                self.config.mds,
                self._credentials,
                self.config.host_name(),
                {**self._service.for_mds(), **self.mover.for_mds()},
                self.meter,
            )
            self._mds.greet = self._register
            self._mds.on_lost = self._mds_lost
            self._mds.open_later()
            self._heartbeats = asyncio.get_running_loop().create_task(self._send_heartbeats(), name="oss-heartbeats")
            self._key_watch = watch(self._keyfile, self.change_keyring)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Serve nobody any more, make everything durable, and mark the OSTs as stopped cleanly."""
        await self._server.close()
        await self._observatory.stop()
        tasks = [task for task in (self._heartbeats, self._key_watch) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._mds is not None:
            await self._mds.aclose()
        for other in self._others.values():
            await other.aclose()
        self._others.clear()
        self.registered.clear()
        await self.mover.close()
        await self._service.scrubs.stop()
        await asyncio.gather(*(target.close() for target in self.targets))
        self.targets.clear()
        self._threads.close()

    def change_keyring(self, keyring: Keyring) -> None:
        """Go by another keyring from now on: whose key was revoked is dropped, and what was signed under a server's key
        that is not good any more counts no more."""
        self.keyring = keyring
        self._gate.admission.change_keys(keyring.capability_keys())
        self._server.change_keyring(keyring)

    def read_keys_again(self) -> None:
        """Look at the keyring's file now (SIGHUP)."""
        if self._keyfile is not None:
            self.change_keyring(self._keyfile.refresh(force=True))

    def clients(self) -> list[Peer]:
        """Who is connected."""
        return list(self._server.peers)

    def _mds_lost(self, error: OSError) -> None:
        self.registered.clear()
        self._gate.trust.lost()
        self.mover.stop_all()

    def problems(self) -> list[str]:
        """Why this server is not healthy; empty if it is."""
        found = [] if self.registered.is_set() else [f"not registered with the MDS at {self.config.mds}"]
        for target in self.targets:
            if not target.space.totals()[1]:
                found.append(f"{target.where} is full")
            found.extend(f"{name}: its bytes could not be written to the disk" for name in target.durability.failures())
        return found

    # ----------------------------------------------------------------------------------------------------------- start

    def _open_targets(self) -> None:
        ost = self.config.ost
        limits = Limits(ost.reserve_bytes, ost.reserve_percent, ost.open_objects, ost.dirty_bytes, ost.flush_after)
        for root in self.config.osts:
            target = Target.open(root, self.keyring.cluster, limits, self._threads)
            self.targets.append(target)
            if target.label.index >= 0:
                self._gate.targets[target.label.index] = target

    async def _listen(self) -> None:
        listening = [await self._server.listen(address) for address in self.config.listen]
        self.addresses = self.config.advertise or tuple(
            address.replace("//0.0.0.0:", f"//{self.config.host_name()}:").replace(
                "//[::]:", f"//{self.config.host_name()}:"
            )
            for address in listening
        )
        if self.config.metrics:
            host, _, port = self.config.metrics.rpartition(":")
            self.metrics_url = await self._observatory.start(host or "127.0.0.1", int(port))

    def _greeted(self, peer: Peer) -> None:
        """A client has connected. What it had sent on an earlier connection and nobody has read yet must not be served
        any more: it sends all that again, and goes on from there."""
        name_session(peer)
        before = self._links.get(peer.name)
        if before is not None and before.link is not None:
            before.link.close("the client has connected again")
        self._links[peer.name] = peer

    def _gone(self, peer: Peer) -> None:
        if self._links.get(peer.name) is peer:
            del self._links[peer.name]

    # ------------------------------------------------------------------------------------------------------------- MDS

    def _infos(self) -> tuple[TargetInfo, ...]:
        return tuple(target.info() for target in self.targets)

    async def _register(self) -> None:
        """Offer the OSTs on a new connection to the MDS."""
        mds = self._mds
        assert mds is not None
        sent_s = self._gate.trust.now_s()
        answer = await mds.ask_now(Register(",".join(self.addresses), self._infos()))
        if len(answer.indices) != len(self.targets) or len(set(answer.indices)) != len(self.targets):
            raise OSError(errno.EPROTO, f"the MDS answered {len(self.targets)} OSTs with indices {answer.indices}")
        for target, index in zip(self.targets, answer.indices, strict=True):
            target.set_index(index)
        self._gate.targets = {target.label.index: target for target in self.targets}
        await self._gate.admission.fence(answer.fenced)
        self._gate.admission.fenced.intersection_update(answer.fenced)
        await self._join_mirrors(mds, answer)
        self._heartbeat_s, self._silence_s = answer.heartbeat_s, answer.silence_s
        self._mds_time.heard(answer.now_s)
        self._gate.heard(sent_s, answer.silence_s)
        self.registered.set()
        log.info("serving %s at %s", ", ".join(target.where for target in self.targets), ",".join(self.addresses))

    async def _join_mirrors(self, mds: Remote, answer: Registered) -> None:
        """Tell the MDS which objects may be damaged, and learn which copies are not good, before any is served."""
        doubtful = [ObjectId(target.label.index, *key) for target in self.targets for key in target.in_doubt]
        for at in range(0, len(doubtful), _DOUBTFUL_AT_ONCE):
            await mds.ask_now(ReportDamage(tuple(doubtful[at : at + _DOUBTFUL_AT_ONCE])))
        for target in self.targets:
            target.in_doubt.clear()
        more = answer.mirrors or bool(doubtful)
        after = (0, -1, -1)
        while more:
            page = await mds.ask_now(JoinMirrors(*after))
            for floor in page.floors:
                if (here := self._gate.targets.get(floor.ost)) is not None:
                    here.copies.raise_floor((floor.fid, floor.number), floor.generation)
                after = (floor.fid, floor.number, floor.ost)
            more = not page.end

    async def _report_damage(self, objects: Sequence[ObjectId]) -> None:
        """Tell the MDS of what a scrub has found."""
        assert self._mds is not None
        await self._mds.call(ReportDamage(tuple(objects)), deadline_s=_DAMAGE_S)

    def _connect(self, address: str) -> Remote:
        """The connection to another OSS, begun when first needed."""
        other = self._others.get(address)
        if other is None:
            other = Remote(address, self._credentials, f"0.{uuid.uuid4().hex}", {}, self.meter)
            self._others[address] = other
            other.open_later()
        return other

    async def _reach(self, ost: int) -> Remote:
        """The connection to the OSS that has an OST, as the MDS says; OSError if nobody has, or the MDS is away."""
        address = self._addresses_of.get(ost)
        other = self._others.get(address) if address is not None else None
        if other is None or not other.connected:  # it may be elsewhere now
            assert self._mds is not None
            table = await self._mds.call(GetOsts(), deadline_s=_OSTS_S)
            self._addresses_of = {info.index: info.address for info in table.osts if info.up}
            address = self._addresses_of.get(ost)
            if address is None:
                raise OSError(errno.ENXIO, f"OST {ost} is not in service")
        assert address is not None
        return self._connect(address)

    async def _send_heartbeats(self) -> None:
        mds = self._mds
        assert mds is not None
        while True:
            await self.registered.wait()
            await asyncio.sleep(self._heartbeat_s)
            if not self.registered.is_set():
                continue
            sent_s = self._gate.trust.now_s()
            try:
                alive = await mds.call(Heartbeat(self._infos()), deadline_s=max(5.0, 3 * self._heartbeat_s))
                self._mds_time.heard(alive.now_s)
                if self.registered.is_set():
                    self._gate.heard(sent_s, self._silence_s)
            except OSError as error:
                log.warning("the MDS did not take a heartbeat (%s), registering again", error.strerror or error)
                if mds.link is not None:
                    mds.link.close("no heartbeat")

    def _gauges(self) -> dict[str, float]:
        levels: dict[str, float] = {"clients": len(self._server.peers), "buffer_bytes": self._pool.used_bytes}
        for target in self.targets:
            total, free = target.space.totals()
            prefix = f"ost{target.label.index}_"
            levels[prefix + "total_bytes"] = total
            levels[prefix + "free_bytes"] = free
            levels[prefix + "objects"] = target.index.count()
            levels[prefix + "dirty_bytes"] = target.durability.dirty_bytes
        return levels


def name_session(peer: Peer) -> None:
    """A client calls itself `SESSION.ID`; its capabilities must be for that session."""
    number = peer.name.partition(".")[0]
    peer.session = int(number) if number.isascii() and number.isdigit() and len(number) < 20 else 0


def _allow_files(wanted: int) -> None:
    """Raise the limit of open files to what is wanted, or say that it is too low."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= wanted or soft == resource.RLIM_INFINITY:
        return
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise OSError(
            errno.EMFILE,
            f"this process may open {hard} files and the configuration needs {wanted}: lower ost.open_objects, or "
            f"raise the limit (LimitNOFILE= in the systemd unit, `ulimit -n`)",
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
