"""An OSS without a network: real targets, real handlers, a call that keeps what it was given."""

import asyncio
import errno
import itertools
import math
import os
import shutil
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from nacrefs.common.answer import settle
from nacrefs.common.auth import sign_capability
from nacrefs.common.buffers import BufferPool
from nacrefs.common.checksum import block_sums
from nacrefs.common.wire import Capability, Punch, Read, Right, StatObject, Sync, Truncate, Write, Written
from nacrefs.oss.admission import Admission
from nacrefs.oss.blockio import IoThreads
from nacrefs.oss.gate import Gate
from nacrefs.oss.label import format_target
from nacrefs.oss.service import Service
from nacrefs.oss.target import Limits, Target

CLUSTER = "test"
KEY = bytes(32)
FID = 1 << 48 | 0x1234
SESSION = 7
LIMITS = Limits(reserve_bytes=0, reserve_percent=0, flush_s=3600.0)
"""Nothing happens by itself."""


class LocalPeer:
    """A client that is connected, as handlers see it."""

    def __init__(self, session: int = SESSION) -> None:
        self.name = f"{session}.test"
        self.session = session
        self.principal = ""
        self.state: Any = None
        self.xids = itertools.count(1)


class LocalCall:
    """One request in service."""

    def __init__(self, peer: LocalPeer, bulk: bytes | memoryview = b"", *, xid: int = 0, resent: bool = False) -> None:
        self.peer = peer
        self.xid = xid or next(peer.xids)
        self.oldest = self.xid
        self.resent = resent
        self.pushed: Sequence[memoryview] = ()
        self.release: Callable[[], None] | None = None
        self._bulk = memoryview(bulk)

    def pull(self) -> memoryview:
        return self._bulk

    def push(self, buffers: Sequence[memoryview], release: Callable[[], None] | None = None) -> None:
        self.pushed = buffers
        self.release = release

    def received(self) -> bytes:
        """The bulk of the reply, as a receiver has it; gives the buffers back."""
        data = b"".join(self.pushed)
        if self.release is not None:
            self.release()
        return data


class LocalRemote:
    """The connection of one OSS to another."""

    def __init__(self, oss: "LocalOss") -> None:
        self._oss = oss

    async def call(self, request: Any, *, into: Sequence[memoryview] = (), deadline_s: float) -> Any:
        call = LocalCall(LocalPeer(0))
        reply = await self._oss.ask(request, call)
        left = call.received()
        for view, length in zip(into, reply.lengths if into else (), strict=True):
            view[:length], left = left[:length], left[length:]
        self._oss.answers += 1
        if self._oss.held is not None and self._oss.answers > self._oss.free:
            await self._oss.held.wait()
        return reply


class LocalOss:
    """One OST (index 0) with the handlers over it, used by one client."""

    def __init__(self, target: Target, threads: IoThreads) -> None:
        self.target = target
        self.threads = threads
        self.pool = BufferPool(64 << 20)
        self.gate = Gate(Admission((KEY,), time.time))
        self.gate.targets[target.label.index] = target
        self.gate.heard(math.inf, 0)
        self.held: asyncio.Event | None = None
        """other OSSes get its answers when this is set, but for the first `free`"""
        self.free = 0
        self.answers = 0
        """to other OSSes"""
        self.others: dict[int, LocalOss] = {}
        """other OSSes' OSTs, whose numbers are their addresses"""
        self.service = Service(self.gate, threads, self.pool, self._connect, self._reach)
        self.handlers = self.service.for_clients()
        self.peer = LocalPeer()

    def capability(
        self, fid: int = FID, *, generation: int = 0, session: int = SESSION, rights: Right = Right.READ | Right.WRITE
    ) -> Capability:
        return sign_capability(KEY, fid, generation, session, rights, int(time.time()) + 3600)

    async def ask(self, request: Any, call: LocalCall | None = None) -> Any:
        return await settle(self.handlers[type(request)](request, call or LocalCall(self.peer)))

    async def _reach(self, ost: int) -> Any:
        other = self.others.get(ost)
        if other is None:
            raise OSError(errno.ENXIO, f"OST {ost} is not in service")
        return LocalRemote(other)

    def _connect(self, address: str) -> Any:
        return LocalRemote(self.others[int(address)])

    async def order(self, request: Any) -> Any:
        """What the MDS asks."""
        return await settle(self.service.for_mds()[type(request)](request, LocalCall(LocalPeer(0))))

    def write_request(
        self, pieces: Sequence[tuple[int, bytes]], fid: int = FID, number: int = 0, *, sync: bool = False
    ) -> tuple[Write, bytes]:
        extents = tuple((offset, len(data)) for offset, data in pieces)
        sums = b"".join(block_sums(memoryview(data), offset) for offset, data in pieces)
        bulk = b"".join(data for _, data in pieces)
        return Write(0, fid, number, 0, self.capability(fid), extents, sums, sync), bulk

    async def write(self, *pieces: tuple[int, bytes], fid: int = FID, number: int = 0, sync: bool = False) -> Written:
        request, bulk = self.write_request(pieces, fid, number, sync=sync)
        written: Written = await self.ask(request, LocalCall(self.peer, bulk))
        return written

    async def read(self, *extents: tuple[int, int], fid: int = FID, number: int = 0) -> list[bytes]:
        """The extents' bytes, verified as a client does it."""
        call = LocalCall(self.peer)
        data = await self.ask(Read(0, fid, number, 0, self.capability(fid), extents), call)
        bulk = call.received()
        assert len(data.lengths) == len(extents)
        assert len(bulk) == sum(data.lengths)
        found: list[bytes] = []
        sums = data.sums
        for (offset, _), length in zip(extents, data.lengths, strict=True):
            part, bulk = bulk[:length], bulk[length:]
            expected = block_sums(memoryview(part), offset)
            assert sums[: len(expected)] == expected, f"sums of extent at {offset}"
            sums = sums[len(expected) :]
            found.append(part)
        assert not sums
        return found

    async def punch(self, *extents: tuple[int, int], fid: int = FID) -> Written:
        written: Written = await self.ask(Punch(0, fid, 0, 0, self.capability(fid), extents))
        return written

    async def truncate(self, size: int, fid: int = FID) -> Written:
        written: Written = await self.ask(Truncate(0, fid, 0, 0, self.capability(fid), size))
        return written

    async def sync(self, fid: int = FID) -> Written:
        written: Written = await self.ask(Sync(0, fid, 0, 0, self.capability(fid)))
        return written

    async def stat(self, fid: int = FID, number: int = 0) -> Any:
        return await self.ask(StatObject(0, fid, number, 0, self.capability(fid)))

    def object_file(self, fid: int = FID, number: int = 0) -> Path:
        return next(Path(self.target.root, "objects").rglob(f"{fid:016x}.{number}"))


@asynccontextmanager
async def local_oss(
    root: Path, limits: Limits = LIMITS, *, fresh: bool = True, index: int = 0
) -> AsyncGenerator[LocalOss, None]:
    """An OSS over the OST in `root`, formatted unless it is there; stopped cleanly in the end."""
    if fresh:
        format_target(str(root), CLUSTER, index=index)
    threads = IoThreads(2)
    try:
        target = Target.open(str(root), CLUSTER, limits, threads)
        try:
            yield LocalOss(target, threads)
        finally:
            await target.close()
    finally:
        threads.close()


def crash_copy(root: Path, to: Path) -> Path:
    """The OST as another process would find it if this one were killed now: all that was written, nothing flushed."""
    for directory, _, names in os.walk(root):
        there = to / Path(directory).relative_to(root)
        there.mkdir(parents=True, exist_ok=True)
        for name in names:
            if name != "lock.mdb":
                shutil.copy2(Path(directory) / name, there / name)
    return to
