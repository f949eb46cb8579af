"""Orders to the movers in the OSSes: who carries out which, and how many at a time.

Orders about small files that wait for the same OSS go to it together: a request costs both sides more than what it
asks for.
"""

import asyncio
import errno
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from nacrefs.common import wire
from nacrefs.common.layout import Layout, by_stripe
from nacrefs.common.wire import Moved, MovedMany, MoveGet, MoveMany, MovePut, Right, Stripes
from nacrefs.mds.hsm.throttle import Throttle

if TYPE_CHECKING:
    from nacrefs.mds.service import Mds

MOVES_PER_OSS: Final = 4
"""Parts that one OSS moves at a time."""
SMALL_BYTES: Final = 1 << 20
"""Files up to this size travel in bundles."""
BUNDLE_ORDERS: Final = 32
BUNDLE_BYTES: Final = 8 << 20
BUNDLES_PER_OSS: Final = 2
"""Bundles that one OSS has at a time."""
LOST_S: Final = 30.0
"""For how long an OSS that is lost while it is asked something is waited for."""
LOST_LOOK_S: Final = 0.2
_READER, _RECALL, _ARCHIVING = range(3)
Order = MovePut | MoveGet


class _Small:
    """Orders that wait for an OSS, and how many bundles it has."""

    __slots__ = ("planned", "sent", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[tuple[Order, int, asyncio.Future[Moved], Callable[[], bool]]] = deque()
        self.sent = 0
        self.planned = False


class Movers:
    """The OSSes as those who move bytes."""

    def __init__(self, mds: "Mds") -> None:
        self._mds = mds
        self._targets = mds.targets
        self._loop = asyncio.get_running_loop()
        self._moving: dict[Any, int] = {}
        self._moved = asyncio.Event()
        self._hurrying = 0
        """Moves that are in a hurry and wait."""
        self._small: dict[Any, _Small] = {}
        self._throttles: dict[int, Throttle] = {}
        """By archive."""

    def up(self) -> list[int]:
        """The OSTs that are there."""
        return [info.index for info in self._targets.table() if info.up]

    def stripes(self, fid: int, layout: Layout | None) -> Stripes:
        """A file as movers read and write it."""
        assert layout is not None
        capability = self._mds.capability(fid, layout.generation, 0, Right.READ | Right.WRITE)
        addresses = {info.index: info.address for info in self._targets.table()}
        return Stripes(fid, layout, capability, tuple(addresses.get(ost, "") for ost in layout.osts))

    # ----------------------------------------------------------------------------------------------------------- moves

    def limit(self, rates: Mapping[int, float]) -> None:
        """How many bytes per second may go to and come from each archive; 0: any number."""
        for archive in (*self._throttles, *rates):
            rate = rates.get(archive, 0.0)
            if rate > 0 or archive in self._throttles:
                self._throttles.setdefault(archive, Throttle()).set_rate(rate)

    def rate_of(self, archive: int) -> float:
        """The bytes per second that an archive is limited to; 0: none."""
        return self._throttles[archive].rate if archive in self._throttles else 0

    async def _turn(self, request: wire.Request[Any], size: int, hurry: Callable[[], bool]) -> None:
        """Wait until an archive's rate allows this. Those who read come before other recalls, those before
        archiving."""
        if not self._throttles or not isinstance(request, MovePut | wire.MovePart | MoveGet):
            return
        throttle = self._throttles.get(request.archive.id)
        if throttle is not None:
            rank = _RECALL if isinstance(request, MoveGet) else _ARCHIVING
            await throttle.turn(size, lambda: _READER if hurry() else rank)

    async def move(
        self,
        layout: Layout | None,
        start: int,
        end: int,
        request: wire.Request[Any],
        hurry: Callable[[], bool] = lambda: False,
    ) -> Any:
        """Have a move made by the OSS that has most of its bytes, or one with less to do. Moves that are in a `hurry`
        are begun before all others."""
        await self._turn(request, end - start, hurry)
        while True:
            peers = self._peers(layout, start, end)
            if not peers:
                raise OSError(errno.EAGAIN, "no OSS is there")
            hurries = hurry()
            free = [peer for peer in peers if self._moving.get(peer, 0) < MOVES_PER_OSS]
            if free and (hurries or not self._hurrying):
                peer = min(free, key=lambda one: (self._moving.get(one, 0), peers.index(one)))
                break
            moved = self._moved
            self._hurrying += hurries
            try:
                await moved.wait()
            finally:
                self._hurrying -= hurries
        self._moving[peer] = self._moving.get(peer, 0) + 1
        try:
            return await peer.call(request)
        finally:
            self._moving[peer] -= 1
            if not self._moving[peer]:
                del self._moving[peer]
            self._moved.set()
            self._moved = asyncio.Event()

    async def whole(
        self, layout: Layout | None, size: int, order: Order, hurry: Callable[[], bool] = lambda: False
    ) -> Moved:
        """Have a file moved that goes in one piece; one that is in a `hurry` goes with the next bundle."""
        if size > SMALL_BYTES:
            moved: Moved = await self.move(layout, 0, size, order, hurry)
            return moved
        await self._turn(order, size, hurry)
        peers = self._peers(layout, 0, size)
        if not peers:
            raise OSError(errno.EAGAIN, "no OSS is there")
        peer = peers[0]
        if layout is None:
            peer = min(peers, key=lambda one: len(self._small[one].waiting) if one in self._small else -1)
        small = self._small.get(peer)
        if small is None:
            small = self._small[peer] = _Small()
        future: asyncio.Future[Moved] = self._loop.create_future()
        small.waiting.append((order, size, future, hurry))
        if not small.planned and small.sent < BUNDLES_PER_OSS:
            small.planned = True
            self._loop.call_soon(self._send, peer, small)
        return await future

    def _send(self, peer: Any, small: _Small) -> None:
        """Send what has come together, what is in a hurry by now first."""
        small.planned = False
        if len(small.waiting) > 1 and small.sent < BUNDLES_PER_OSS:
            small.waiting = deque(sorted(small.waiting, key=lambda one: not one[3]()))
        while small.waiting and small.sent < BUNDLES_PER_OSS:
            bundle: list[tuple[Order, asyncio.Future[Moved]]] = []
            left = BUNDLE_BYTES
            while small.waiting and len(bundle) < BUNDLE_ORDERS and left > 0:
                order, size, future, _ = small.waiting.popleft()
                if not future.done():
                    bundle.append((order, future))
                    left -= size
            if bundle:
                small.sent += 1
                sent = peer.call(MoveMany(tuple(order for order, _ in bundle)))
                sent.add_done_callback(partial(self._answered, peer, small, [future for _, future in bundle]))
        if not small.sent:
            self._small.pop(peer, None)

    def _answered(
        self,
        peer: Any,
        small: _Small,
        futures: "list[asyncio.Future[Moved]]",
        sent: "asyncio.Future[MovedMany]",
    ) -> None:
        small.sent -= 1
        error = None if sent.cancelled() else sent.exception()
        results = sent.result().results if error is None and not sent.cancelled() else ()
        for number, future in enumerate(futures):
            if future.done():
                continue
            if number >= len(results):
                future.set_exception(error or OSError(errno.EAGAIN, "the OSS did not answer"))
            elif (moved := results[number].moved) is not None:
                future.set_result(moved)
            else:
                future.set_exception(OSError(results[number].errno, results[number].text))
        self._send(peer, small)

    def _peers(self, layout: Layout | None, start: int, end: int) -> list[Any]:
        """Connected OSSes, the one with most of these bytes first."""
        bytes_of: dict[Any, int] = {}
        for ost in self._targets.osts.values():
            if ost.peer is not None and self._targets.is_up(ost):
                bytes_of.setdefault(ost.peer, 0)
        if layout is not None:
            for stripe, extents in by_stripe(layout, start, end).items():
                holder = self._targets.osts.get(layout.osts[stripe])
                if holder is not None and holder.peer in bytes_of:
                    bytes_of[holder.peer] += sum(high - low for low, high in extents)
        return sorted(bytes_of, key=lambda peer: -bytes_of[peer])

    # -------------------------------------------------------------------------------------------------- other questions

    async def ask_one(self, request: wire.Request[Any]) -> Any:
        """The answer of one OSS, of those with the least to do. If none is there, as after a restart, the first is
        waited for. OSError (EAGAIN) if none comes."""
        until_s = self._loop.time() + LOST_S
        while not (peers := self._peers(None, 0, 0)):
            if not self._targets.osts or self._loop.time() >= until_s:
                raise OSError(errno.EAGAIN, "no OSS is there")
            await asyncio.sleep(LOST_LOOK_S)
        return await min(peers, key=lambda one: self._moving.get(one, 0)).call(request)

    async def ask_everybody(self, request: wire.Request[Any]) -> list[Any]:
        """The answers of all OSSes; OSError (EAGAIN) if there is none, or the first failure. An OSS that is lost
        meanwhile is asked again when it is back, if that is soon; and the first is waited for."""
        answers: dict[Any, Any] = {}
        until_s = self._loop.time() + LOST_S
        lost: BaseException | None = None
        while True:
            peers = self._peers(None, 0, 0)
            if not peers and (not self._targets.osts or self._loop.time() >= until_s):
                raise lost or OSError(errno.EAGAIN, "no OSS is there")
            asked = [peer for peer in peers if peer not in answers]
            came = await asyncio.gather(*(peer.call(request) for peer in asked), return_exceptions=True)
            again = not peers
            for peer, answer in zip(asked, came, strict=True):
                if not isinstance(answer, BaseException):
                    answers[peer] = answer
                elif peer.link is not None or self._loop.time() >= until_s:
                    raise answer
                else:
                    again, lost = True, answer
            if not again:
                return [answers[peer] for peer in peers]
            await asyncio.sleep(LOST_LOOK_S)

    async def stop(self, fid: int) -> None:
        """Nothing of a file is moved any more. An OSS that is away, or that goes, has stopped by itself."""
        orders = [peer.call(wire.MoveStop((fid,))) for peer in self._peers(None, 0, 0)]
        for answer in await asyncio.gather(*orders, return_exceptions=True):
            if isinstance(answer, OSError) and not isinstance(answer, ConnectionError):
                raise answer

    async def ask_ost(self, number: int, request: wire.Request[Any]) -> Any:
        """The answer of the OSS that serves an OST; OSError (EAGAIN) if it is away."""
        ost = self._targets.osts.get(number)
        if ost is None or ost.peer is None:
            raise OSError(errno.EAGAIN, f"OST {number} is away")
        return await ost.peer.call(request)
