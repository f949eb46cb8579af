"""What an OSS answers: requests of clients to its listener, orders of the MDS over the connection that it made.

A handler answers at once, in the step of the event loop in which the request arrived, if nothing must be waited for.
Otherwise it returns a coroutine. Steps are atomic; coroutines pin the object that they use and are counted, so that
`Destroy` and `Fence` can wait for them.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from nacrefs.common.buffers import BufferPool
from nacrefs.common.remote import Remote
from nacrefs.common.wire import (
    CopyRange,
    Destroy,
    Done,
    Fence,
    Glimpse,
    Glimpsed,
    ListObjects,
    ObjectStat,
    ProbeObjects,
    Punch,
    RaiseFloors,
    Read,
    ReadSums,
    Right,
    ScrubOst,
    Seek,
    StatObject,
    Sync,
    SyncObject,
    Truncate,
    TruncateObjects,
    VerifyObject,
    Write,
)
from nacrefs.oss import blockio
from nacrefs.oss.admission import check_size
from nacrefs.oss.changes import Changes
from nacrefs.oss.copying import Copying
from nacrefs.oss.gate import Call, Gate
from nacrefs.oss.inventory import Inventory
from nacrefs.oss.reads import Reads
from nacrefs.oss.resync import Resync
from nacrefs.oss.scrub import Scrubs
from nacrefs.oss.seek import Seeks
from nacrefs.oss.target import Target
from nacrefs.oss.verify import Verifier

_ANY: Final = int(Right.READ | Right.WRITE)
Handlers = Mapping[type[Any], Callable[[Any, Any], Any]]


class Stopper(Protocol):
    """Who can stop the moves of files."""

    async def stop(self, fids: Sequence[int]) -> None: ...


class Service:
    """All handlers of one OSS."""

    def __init__(
        self,
        gate: Gate,
        threads: blockio.IoThreads,
        pool: BufferPool,
        connect: Callable[[str], Remote],
        reach: Callable[[int], Awaitable[Remote]],
        resync_bytes_per_s: int = 0,
        scrub_bytes_per_s: int = 0,
    ) -> None:
        self.gate = gate
        self.mover: Stopper | None = None
        """Who moves files to and from archives."""
        self._reads = Reads(gate, threads, pool)
        self._changes = Changes(gate, threads)
        self._copying = Copying(gate, self._changes, self._reads, reach)
        self._seeks = Seeks(gate, threads)
        self._inventory = Inventory(gate, threads)
        self._verifier = Verifier(gate, scrub_bytes_per_s)
        self.scrubs = Scrubs(gate, self._verifier)
        self._resync = Resync(gate, self._changes, threads, connect, resync_bytes_per_s)

    def for_clients(self) -> Handlers:
        """Handlers of requests that clients send."""
        return {
            Read: self._reads.read,
            Write: self._changes.write,
            Punch: self._changes.punch,
            Truncate: self._changes.truncate,
            StatObject: self.stat,
            Sync: self._changes.sync,
            ReadSums: self._resync.read_sums,
            Seek: self._seeks.seek,
            CopyRange: self._copying.copy,
        }

    def for_mover(self) -> Handlers:
        """Handlers of the mover's own requests."""
        return {Read: self._reads.read, Write: self._changes.write_checked}

    def for_mds(self) -> Handlers:
        """Handlers of requests that the MDS sends."""
        return {
            Destroy: self.destroy,
            Glimpse: self.glimpse,
            TruncateObjects: self.truncate_objects,
            Fence: self.fence,
            RaiseFloors: self._resync.raise_floors,
            SyncObject: self._resync.sync_object,
            ListObjects: self._inventory.list_objects,
            ProbeObjects: self._inventory.probe_objects,
            ScrubOst: self.scrubs.scrub_ost,
            VerifyObject: self._verifier.verify_object,
        }

    def stat(self, request: StatObject, call: Call) -> ObjectStat:
        """Size and allocation of an object."""
        return self.gate.admit(request, call, _ANY).stat(request.fid, request.number)

    async def destroy(self, request: Destroy, call: Call) -> Done:
        """Destroy objects."""
        by_target: dict[Target, list[tuple[int, int]]] = {}
        if self.mover is not None:
            await self.mover.stop(list({item.fid for item in request.objects}))
        for target, key in self.gate.find(request.objects):
            by_target.setdefault(target, []).append(key)
        for target, keys in by_target.items():
            await target.destroy(keys)
        return Done()

    def glimpse(self, request: Glimpse, call: Call) -> Glimpsed:
        """Sizes of objects as they are now."""
        return Glimpsed(tuple(target.stat(*key) for target, key in self.gate.find(request.objects)))

    async def truncate_objects(self, request: TruncateObjects, call: Call) -> Done:
        """Cut objects durably."""
        check_size(request.size)
        for target, key in self.gate.find(request.objects):
            await self._changes.truncate_durably(target, key, request.size)
        return Done()

    async def fence(self, request: Fence, call: Call) -> Done:
        """Refuse sessions; answered when their I/O has ended."""
        await self.gate.admission.fence(request.sessions)
        return Done()
