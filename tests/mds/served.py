"""An MDS being served, with OSTs and clients that do as the test says.

async with Served(url) as served:
    one = await served.client()
    await one.call(Create(...))
"""

import asyncio
import errno
import itertools
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol, Self, TypeVar

from nacrefs.common import faults
from nacrefs.common.auth import Credentials, new_keyring
from nacrefs.common.clock import ManualClock
from nacrefs.common.config import Duration
from nacrefs.common.observe import Meter
from nacrefs.common.remote import Remote
from nacrefs.common.rpc import Call, Peer, Service
from nacrefs.common.wire import (
    Attach,
    Create,
    Destroy,
    Done,
    Entry,
    Evicted,
    Fence,
    Glimpse,
    Glimpsed,
    Holding,
    Lease,
    Mode,
    ObjectStat,
    RaiseFloors,
    Recall,
    Recalled,
    RecallItem,
    Reclaim,
    Register,
    Request,
    Role,
    ScrubOrder,
    ScrubOst,
    ScrubState,
    Session,
    Synced,
    SyncObject,
    TargetInfo,
    TruncateObjects,
)
from nacrefs.mds.config import LeaseConfig, MdsConfig, OstConfig
from nacrefs.mds.server import MdsServer
from nacrefs.mds.service import Mds
from nacrefs.mds.transactions.journal import LONE_READS
from nacrefs.mds.transactions.work import Work
from tests.mds.shelf import Shelf
from tests.mdt import make_mdt

ReplyT = TypeVar("ReplyT")
ROOT = 1
TERM_S = 30.0
_numbers = itertools.count()


async def turns(count: int = 20) -> None:
    """Let everything that needs no time and no commit happen."""
    for _ in range(count):
        await asyncio.sleep(0)


class Gate:
    """Holds up what passes it while it is shut; `waiting` counts."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self.arrived = asyncio.Event()

    def shut(self) -> None:
        self._open.clear()
        self.arrived.clear()

    def open(self) -> None:
        self._open.set()

    async def passed(self) -> None:
        self.arrived.set()
        await self._open.wait()


class Asker(Protocol):
    """Who asks the MDS something over a connection that can be lost."""

    remote: Remote
    reclaims: list[Reclaim] | None

    @property
    def peer(self) -> Peer:
        """The MDS's end of its connection."""
        ...

    def call(self, request: Request[ReplyT]) -> "asyncio.Future[ReplyT]": ...

    def cut(self) -> None: ...


class Oss:
    """A stand-in for an OSS: OSTs that remember what was asked of them."""

    def __init__(self, served: "Served", targets: int) -> None:
        self.served = served
        self.uuids = [f"ost-{next(_numbers)}" for _ in range(targets)]
        self.indices: tuple[int, ...] = ()
        self.told: tuple[int, ...] = ()
        """The fenced sessions that the MDS named at the last registration."""
        self.asked: list[Any] = []
        self.gate = Gate()
        self.sizes: dict[int, int] = {}
        """Size by fid, for Glimpse."""
        self.shelf = Shelf()
        self.reclaims: list[Reclaim] | None = None
        self.scrubs: dict[int, str] = {}
        """What the scrub of each OST does, and did before."""
        self.failing: OSError | None = None
        self.remote: Remote

    async def start(self) -> None:
        served = self.served
        service: Service = {
            Destroy: self._do,
            Fence: self._do,
            TruncateObjects: self._do,
            RaiseFloors: self._do,
            SyncObject: self._sync,
            ScrubOst: self._scrub,
            Glimpse: self._glimpse,
            **self.shelf.handlers(),
        }
        self.remote = Remote(
            served.address, served.keyring.credentials(Role.SERVER), f"oss{next(_numbers)}", service, Meter()
        )
        self.remote.greet = self._greet
        await self.remote.open()

    async def _greet(self) -> None:
        infos = tuple(
            TargetInfo(uuid, index, 1 << 40, 1 << 40, 0)
            for uuid, index in zip(self.uuids, self.indices or [-1] * len(self.uuids), strict=True)
        )
        answer = await self.remote.ask_now(Register("mem://nowhere", infos))
        self.indices, self.told = answer.indices, answer.fenced

    async def _do(self, request: Any, call: Call) -> Done:
        self.asked.append(request)
        await self.gate.passed()
        if self.failing is not None:
            raise self.failing
        return Done()

    def _sync(self, request: SyncObject, call: Call) -> Synced:
        self.asked.append(request)
        return Synced(-1, 0, 0, 0)

    def _scrub(self, request: ScrubOst, call: Call) -> ScrubState:
        state = self.scrubs.get(request.ost, "never")
        if request.order is ScrubOrder.START and not state.startswith("running"):
            self.scrubs[request.ost] = state = f"running after {state}"
        return ScrubState(request.ost, state)

    async def _glimpse(self, request: Glimpse, call: Call) -> Glimpsed:
        self.asked.append(request)
        await self.gate.passed()
        sizes = (self.sizes.get(one.fid, 0) for one in request.objects)
        return Glimpsed(tuple(ObjectStat(size, (size + 511) // 512 * 512, 1, 77 if size else 0) for size in sizes))

    @property
    def peer(self) -> Peer:
        """The MDS's end of its connection."""
        peer = self.served.mds.targets.osts[self.indices[0]].peer
        assert peer is not None
        return peer

    def call(self, request: Request[ReplyT]) -> "asyncio.Future[ReplyT]":
        return self.remote.call(request)

    def cut(self) -> None:
        """The connection is lost; it is made anew at once."""
        assert self.remote.link is not None
        self.remote.link.close("cut by the test")

    def of(self, kind: type[Any]) -> list[Any]:
        """The requests of this kind so far."""
        return [request for request in self.asked if type(request) is kind]

    async def stop(self) -> None:
        self.gate.open()
        await self.remote.aclose()


class Client:
    """A bare client. It answers recalls with what the test put into `holds`, when `gate` is open."""

    def __init__(self, served: "Served", credentials: Credentials | None = None) -> None:
        self.served = served
        self.name = f"client{next(_numbers)}"
        self.recalled: list[RecallItem] = []
        self.holds: dict[int, Holding] = {}
        """What it still has of a fid after a recall; nothing, if it is not here."""
        self.before_answer: Callable[[Recall], Any] | None = None
        self.gate = Gate()
        self.evicted: list[str] = []
        self.session: Session | None = None
        self.reclaims: list[Reclaim] | None = None
        """What it says in a grace term; None: it does not reclaim."""
        self.comes_back = True
        """It can connect again after a restart."""
        self.remote = Remote(
            served.address,
            credentials or served.keyring.best_credentials(),
            self.name,
            {Recall: self._recall, Evicted: self._evicted},
            Meter(),
        )
        self.remote.greet = self._greet

    async def _greet(self) -> None:
        number = 0 if self.session is None else self.session.session
        session = await self.remote.ask_now(Attach(self.name, "host", number))
        self.session = session
        if session.grace:
            for reclaim in self.reclaims or ():
                await self.remote.ask_now(reclaim)

    @property
    def number(self) -> int:
        assert self.session is not None
        return self.session.session

    @property
    def peer(self) -> Peer:
        """The MDS's end of its connection."""
        peer = self.served.mds.sessions.by_id[self.number].peer
        assert peer is not None
        return peer

    async def _recall(self, request: Recall, call: Call) -> Recalled:
        self.recalled.extend(request.items)
        await self.gate.passed()
        if self.before_answer is not None:
            await self.before_answer(request)
        nothing = {item.fid: Holding(item.fid, Lease.NONE, Mode.CLOSED) for item in request.items}
        return Recalled(tuple(self.holds.get(item.fid, nothing[item.fid]) for item in request.items))

    def _evicted(self, request: Evicted, call: Call) -> Done:
        self.evicted.append(request.reason)
        return Done()

    def call(self, request: Request[ReplyT]) -> "asyncio.Future[ReplyT]":
        return self.remote.call(request)

    async def create(self, name: bytes, mode: Mode = Mode.READ | Mode.WRITE, parent: int = ROOT) -> Entry:
        return await self.call(Create(parent, name, 0o644, 0, 0, mode))

    def cut(self) -> None:
        """The connection is lost; it is made anew at once."""
        assert self.remote.link is not None
        self.remote.link.close("cut by the test")

    def vanish(self) -> "asyncio.Future[None]":
        """Never to be heard of again."""
        return asyncio.ensure_future(self.remote.aclose())

    async def stop(self) -> None:
        self.gate.open()
        await self.remote.aclose()


class Served:
    """An MDS with a clock that stands still, one stand-in OSS with `osts` OSTs, and clients."""

    def __init__(self, url: str, *, osts: int = 2, inline_bytes: int | None = None, leases: int = 1_000_000) -> None:
        self.url = url
        self.keyring = new_keyring("served")
        self.clock = ManualClock()
        self.address = f"mem://served{next(_numbers)}"
        self.config = MdsConfig(
            database=url,
            listen=self.address,
            metrics="",
            # In real time the MDS looks at its clock every ten minutes, in tests when they say `pass_s`.
            lease=LeaseConfig(term_s=Duration(TERM_S), per_session=leases),
            ost=OstConfig(heartbeat_s=Duration(10.0)),
        )
        self.oss_list: list[Oss] = []
        self.clients: list[Client] = []
        self.killing = ""
        """The request whose answer `killed_at` waits for."""
        self._osts = osts
        self.server: MdsServer

    async def __aenter__(self) -> Self:
        make_mdt(self.url, self.keyring.cluster)
        await self.start()
        if self._osts:
            await self.oss(self._osts)
        return self

    async def __aexit__(self, *_: object) -> None:
        for client in self.clients:
            await client.stop()
        for oss in self.oss_list:
            await oss.stop()
        if self.server.failure is None:
            await turns()
        await self.server.stop()

    @property
    def mds(self) -> Mds:
        return self.server.mds

    @property
    def first(self) -> Oss:
        return self.oss_list[0]

    async def start(self) -> None:
        self.server = MdsServer(self.config, self.keyring, self.clock)
        await self.server.start()

    async def restart(self) -> None:
        """Stop the MDS and start it again; clients and OSSes have connected again after it, by themselves."""
        await self.server.stop()
        await self.start()
        remotes = [oss.remote for oss in self.oss_list] + [one.remote for one in self.clients if one.comes_back]
        while not all(remote.connected or remote.closing for remote in remotes):
            await asyncio.sleep(0.001)

    @asynccontextmanager
    async def killed_at(self, point: str) -> AsyncGenerator[None, None]:
        """What is done within brings the MDS to a fault point, where it ends as by SIGKILL: what is not committed is
        gone, nobody gets an answer any more. In the end it has been started again, with nothing but its database."""
        loop = asyncio.get_running_loop()
        reached, go = asyncio.Event(), threading.Event()

        def die() -> None:
            """On the committing thread: it stays where it is until the event loop has ended the server."""
            if threading.current_thread() is threading.main_thread():
                self._die()
                reached.set()
            else:
                loop.call_soon_threadsafe(reached.set)
                assert go.wait(10)
            if point == "mds.commit.before":
                raise OSError(errno.EIO, "killed by the test before the commit")

        match = "" if point.startswith("mds.") else self.killing
        with faults.armed(point, die, match=match):
            yield
            await asyncio.wait_for(reached.wait(), 30)
        if self.server.failure is None:
            self._die()
        go.set()
        await self.restart()

    @asynccontextmanager
    async def held_at(self, point: str) -> AsyncGenerator[asyncio.Event, None]:
        """The next batch stops at a fault point on the committing thread, until the end of this: committed, it may be,
        and not applied. The event says that it is there."""
        loop = asyncio.get_running_loop()
        reached, go = asyncio.Event(), threading.Event()

        def hold() -> None:
            loop.call_soon_threadsafe(reached.set)
            assert go.wait(10)

        for _ in range(LONE_READS + 1):  # or the event loop itself might commit it
            self.mds.journal.read(Work(lambda step, request: None, None, None, None, True))
        try:
            with faults.armed(point, hold):
                yield reached
        finally:
            go.set()

    def _die(self) -> None:
        self.mds.journal.lose(OSError(errno.EIO, "killed by the test"))

    async def oss(self, targets: int = 1) -> Oss:
        oss = Oss(self, targets)
        self.oss_list.append(oss)
        await oss.start()
        return oss

    async def client(self, credentials: Credentials | None = None) -> Client:
        client = Client(self, credentials)
        self.clients.append(client)
        await client.remote.open()
        return client

    async def pass_s(self, seconds: float, *alive: Client) -> None:
        """Let time pass in which OSTs report and only these clients are heard."""
        left = seconds
        while left > 0:
            step = min(left, TERM_S / 3)
            left -= step
            self.clock.advance(step)
            now_s = self.clock.monotonic_s()
            for ost in self.mds.targets.osts.values():
                if ost.peer is not None:
                    ost.heard_s = now_s
            for client in alive:
                self.mds.sessions.by_id[client.number].last_heard_s = now_s
            self.mds.tick()
            await self.settle()

    async def settle(self) -> None:
        """Wait until nothing is queued or being committed."""
        for _ in range(3):
            await turns()
            await self.mds.journal.drain()
        await turns()

    async def nothing_leaks(self) -> None:
        """No request waits, so nothing may be left that waiting requests leave."""
        await self.settle()
        leases = self.mds.leases
        assert not leases.claims
        assert not leases.recalling
        assert not leases.busy
        assert not leases.truncating
        assert not self.mds.journal.queued
        for session in self.mds.sessions.by_id.values():
            assert not session.in_flight
            assert not session.recalls
            assert not session.overtaking
            assert not session.deferred
