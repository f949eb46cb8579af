"""What every handler of an OSS does before and around its work: find the target, check the request, count it.

`Call` is what handlers use of `common.rpc.Call`.
"""

import asyncio
import errno
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final, ParamSpec, Protocol, TypeVar

from nacrefs.common.answer import Answer, settle
from nacrefs.common.fid import format_fid
from nacrefs.common.wire import Capability, ObjectId, Right
from nacrefs.oss.admission import Admission, check_object
from nacrefs.oss.copies import Trust
from nacrefs.oss.object import StoredObject
from nacrefs.oss.target import Target

_MIRRORED: Final = int(Right.MIRRORED)
P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")


class Peer(Protocol):
    """Who asks: `name` is kept over reconnects, `session` and `principal` are what capabilities must be for."""

    name: str
    principal: str
    session: int
    state: Any


class Call(Protocol):
    """One request in service."""

    xid: int
    oldest: int
    resent: bool

    @property
    def peer(self) -> Peer: ...
    def pull(self) -> memoryview: ...
    def push(self, buffers: Sequence[memoryview], release: Callable[[], None] | None = None) -> None: ...


class Io(Protocol):
    """What all clients' requests say about the object that they are for."""

    @property
    def ost(self) -> int: ...
    @property
    def fid(self) -> int: ...
    @property
    def number(self) -> int: ...
    @property
    def generation(self) -> int: ...
    @property
    def capability(self) -> Capability: ...


class Gate:
    """The targets of this server by OST index, and who may use them."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self.targets: dict[int, Target] = {}
        self.trust = Trust()
        self._opened = asyncio.Event()

    # Clients' I/O waits until the MDS has said which sessions are fenced, and whenever it has not been heard for so
    # long that it may have given away what a session had without being able to say so here.

    def is_open(self) -> bool:
        """Whether clients may do I/O."""
        return self.trust.now_s() < self.trust.fences_until_s

    def holds(self, request: Io) -> bool:
        """Whether a request has to wait. (One for a copy is refused instead: its sender asks another copy.)"""
        return not self.is_open() and not request.capability.rights & _MIRRORED

    def heard(self, asked_s: float, silence_s: float) -> None:
        """The MDS has answered what it was asked at `asked_s`, and all that it had to say is known."""
        self.trust.heard(asked_s, silence_s)
        self._opened.set()

    async def when_open(self, handler: Callable[[T, Call], Answer[R]], request: T, call: Call) -> R:
        """Serve a request from its start, once clients may do I/O."""
        await self.until_open()
        answer = handler(request, call)
        return await settle(answer)

    async def stay(self, call: Call) -> None:
        """A request in service has waited, and is about to change something: not before clients may do I/O, which its
        session may have lost the right to (ESHUTDOWN) by then."""
        if not self.is_open():
            await self.aside(call, self.until_open())  # the MDS's word comes with a fence

    async def aside(self, call: Call, work: Awaitable[T]) -> T:
        """What comes of work that a request in service waits for and that changes nothing here: a fence does not wait
        for it, but the request is over afterwards then (ESHUTDOWN)."""
        session = call.peer.session
        self.admission.leave(session)
        try:
            result = await work
        finally:
            self.admission.back(session)
        self.admission.check_fence(session)
        return result

    async def until_open(self) -> None:
        """Wait until clients may do I/O."""
        while not self.is_open():
            self._opened.clear()
            await self._opened.wait()

    def admit(self, request: Io, call: Call, right: int) -> Target:
        """The target of a request that its sender may make; OSError otherwise (`admission`, ENXIO)."""
        target = self.targets.get(request.ost)
        if target is None:
            raise self._unknown(request.ost)
        check_object(request.fid, request.number)
        mirrored = request.capability.rights & _MIRRORED
        if mirrored:
            self.trust.check()
        peer = call.peer
        self.admission.check(request.capability, request.fid, request.generation, peer.session, right, peer.principal)
        if mirrored:
            target.copies.check(request.fid, request.number, request.generation, target.where)
        return target

    def target(self, ost: int) -> Target:
        """An OST of this server; ENXIO if it is not here."""
        target = self.targets.get(ost)
        if target is None:
            raise self._unknown(ost)
        return target

    def find(self, objects: Sequence[ObjectId]) -> list[tuple[Target, tuple[int, int]]]:
        """Target and key `(fid, number)` of objects; ENXIO if an OST is not served here."""
        found: list[tuple[Target, tuple[int, int]]] = []
        for item in objects:
            target = self.targets.get(item.ost)
            if target is None:
                raise self._unknown(item.ost)
            check_object(item.fid, item.number)
            found.append((target, (item.fid, item.number)))
        return found

    def _unknown(self, ost: int) -> OSError:
        here = ", ".join(str(index) for index in sorted(self.targets)) or "none"
        return OSError(errno.ENXIO, f"OST {ost} is not served here (here: {here}); ask the MDS where it is")

    async def counted(
        self, call: Call, work: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """The result of work that takes more than one step; a fence waits for it."""
        session = call.peer.session
        self.admission.enter(session)
        try:
            return await work(*args, **kwargs)
        finally:
            self.admission.leave(session)


def check_generation(target: Target, stored: StoredObject, generation: int) -> None:
    """ESTALE if the object has been used under a newer layout; remembers a newer one."""
    if target.copies.floors:
        target.copies.check(stored.fid, stored.number, generation, target.where)
    if generation == stored.generation:
        return
    if generation < stored.generation:
        raise OSError(
            errno.ESTALE,
            f"{target.where}: layout generation {generation} of {format_fid(stored.fid)} is outdated, "
            f"{stored.generation} has been seen; ask the MDS again",
        )
    stored.generation = generation
    stored.record_stale = True
    target.durability.changed(stored, 0)
