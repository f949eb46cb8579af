"""The bytes of a file on its OSTs, as a mover reads and writes them: this server's objects directly, others over the
network. Every byte that is read is checked against its sum, every write carries sums.
"""

import errno
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final, TypeVar

from nacrefs.common.answer import settle, together
from nacrefs.common.auth import CredentialSource
from nacrefs.common.checksum import SUM_BYTES, block_sums, first_mismatch
from nacrefs.common.layout import BLOCK_BYTES, block_count, blocks, by_stripe
from nacrefs.common.observe import Meter
from nacrefs.common.remote import Remote
from nacrefs.common.wire import NO_CHANGE_NS, Data, ObjectId, ObjectStat, Read, Stripes, Write, Written
from nacrefs.oss.gate import Gate
from nacrefs.oss.object import CLEANING, StoredObject
from nacrefs.oss.own import Own, OwnCall
from nacrefs.oss.target import Target

FRAME_BYTES: Final = 8 << 20
"""Most bytes in one read or write of an object."""
_ZERO_SUM: Final = block_sums(memoryview(bytes(BLOCK_BYTES)), 0)
_EXTENTS: Final = 1024
_ONE_WRITE: Final = 1 << 20
"""Most bytes in one write to an object of our own: several extents are joined in memory first."""
T = TypeVar("T")
Handlers = Mapping[type[Any], Callable[[Any, Any], Any]]


class StripedFiles:
    """Files on OSTs. `handlers` are this server's own, for its mover."""

    def __init__(self, gate: Gate, handlers: Handlers, credentials: CredentialSource, name: str) -> None:
        self._gate = gate
        self._handlers = handlers
        self._credentials = credentials
        self._name = name
        self._own = Own("0.mover")
        self._meter = Meter()
        self._peers: dict[str, Remote] = {}

    async def close(self) -> None:
        """End."""
        for peer in self._peers.values():
            await peer.aclose()

    async def collect(self, stripes: Stripes, start: int, buffer: memoryview) -> None:
        """Fill the buffer with the file's bytes from `start` on; what no object has is zero."""
        for low in range(0, len(buffer), FRAME_BYTES):
            part = buffer[low : low + FRAME_BYTES]
            extents = by_stripe(stripes.layout, start + low, start + low + len(part))
            await together(
                [self._collect_stripe(stripes, stripe, some, start + low, part) for stripe, some in extents.items()]
            )

    async def _collect_stripe(
        self, stripes: Stripes, stripe: int, extents: list[tuple[int, int]], base: int, buffer: memoryview
    ) -> None:
        layout = stripes.layout
        copies = layout.readable(stripe)
        for at in range(0, len(extents), _EXTENTS):
            some = extents[at : at + _EXTENTS]
            targets = [buffer[low - base : high - base] for low, high in some]
            for number in copies:
                ost = layout.osts[number]
                wanted = tuple((low, high - low) for low, high in some)
                request = Read(ost, stripes.fid, number, layout.generation, stripes.capability, wanted)
                try:
                    data = await self._read(ost, stripes.addresses[number], request, targets)
                    _verify(request, data, targets)
                    break
                except OSError:
                    if number == copies[-1]:
                        raise

    async def _read(self, ost: int, address: str, request: Read, targets: list[memoryview]) -> Data:
        if ost not in self._gate.targets:
            return await self._peer(address).call(request, into=targets)
        call = OwnCall(self._own)
        try:
            data: Data = await settle(self._handlers[Read](request, call))
            source = _joined(call.pushed)
            at = 0
            for target, length in zip(targets, data.lengths, strict=True):
                for piece in source(length):
                    target[at : at + len(piece)] = piece
                    at += len(piece)
                at = 0
            return data
        finally:
            call.end()

    async def spread(self, stripes: Stripes, start: int, data: memoryview, sums: bytes, sync: bool) -> int:
        """Write bytes to their objects, all copies; blocks of zeros stay holes. With `sync`, objects of other servers
        are durable then; what they take."""
        layout = stripes.layout
        works: list[Coroutine[Any, Any, int]] = []
        first = start // BLOCK_BYTES
        for stripe, extents in by_stripe(layout, start, start + len(data)).items():
            wanted: list[tuple[int, int]] = []
            for low, high in extents:
                for a, b in blocks(low, high):
                    index = (a // BLOCK_BYTES - first) * SUM_BYTES
                    if b - a == BLOCK_BYTES and sums[index : index + SUM_BYTES] == _ZERO_SUM:
                        continue
                    if wanted and wanted[-1][1] == a:
                        wanted[-1] = (wanted[-1][0], b)
                    else:
                        wanted.append((a, b))
            works += [
                self._write_object(stripes, number, wanted, start, data, sums, sync)
                for number in layout.objects_of(stripe)
            ]
        return sum(await together(works))

    async def _write_object(
        self,
        stripes: Stripes,
        number: int,
        extents: list[tuple[int, int]],
        base: int,
        data: memoryview,
        sums: bytes,
        sync: bool,
    ) -> int:
        layout = stripes.layout
        ost = layout.osts[number]
        local = ost in self._gate.targets
        batches = _batched(extents, _ONE_WRITE if local else FRAME_BYTES)
        written = Written(0, 0, 0)
        for some in batches:
            views = [data[low - base : high - base] for low, high in some]
            request = Write(
                ost,
                stripes.fid,
                number,
                layout.generation,
                stripes.capability,
                tuple((low, high - low) for low, high in some),
                b"".join([_sums_of(sums, base, data, low, high) for low, high in some]),
                sync=sync and not local and some is batches[-1],
                mtime_ns=NO_CHANGE_NS,
            )
            if local:
                bulk = views[0] if len(views) == 1 else memoryview(b"".join(views))
                written = await settle(self._handlers[Write](request, OwnCall(self._own, bulk)))
            else:
                written = await self._peer(stripes.addresses[number]).call(request, data=views)
        return 0 if local else written.allocated_bytes

    async def sync(self, objects: Sequence[ObjectId]) -> list[ObjectStat]:
        """Make this server's objects durable, together; what they are then."""
        found = self._gate.find(objects)
        ready: dict[Target, list[StoredObject]] = {}
        works: list[Coroutine[Any, Any, None]] = []
        for target, key in found:
            stored = target.find(*key)
            if stored is not None and stored.state >= CLEANING:
                ready.setdefault(target, []).append(stored)
            elif stored is not None:
                works.append(_sync_later(target, key))
        works += [target.durability.sync_all(some) for target, some in ready.items()]
        await together(works)
        return [target.stat(*key) for target, key in found]

    def own_objects(self, stripes: Stripes) -> list[ObjectId]:
        """The objects of a file that this server has."""
        return [
            ObjectId(ost, stripes.fid, number)
            for number, ost in enumerate(stripes.layout.osts)
            if ost in self._gate.targets
        ]

    def _peer(self, address: str) -> Remote:
        if not address:
            raise OSError(errno.EAGAIN, "an OST of the file is away")
        peer = self._peers.get(address)
        if peer is None:
            peer = self._peers[address] = Remote(address, self._credentials, f"0.{self._name}", {}, self._meter)
            peer.open_later()
        return peer


async def _sync_later(target: Target, key: tuple[int, int]) -> None:
    stored = await target.usable(*key)
    if stored is not None:
        await target.durability.sync(stored)


def _batched(extents: Sequence[tuple[int, int]], most: int) -> list[list[tuple[int, int]]]:
    """Extents cut and put together so that each batch is one write of at most `most` bytes."""
    batches: list[list[tuple[int, int]]] = []
    size = most
    for low, high in extents:
        while low < high:
            if size >= most or len(batches[-1]) >= _EXTENTS:
                batches.append([])
                size = 0
            end = min(high, low + most - size)
            batches[-1].append((low, end))
            size += end - low
            low = end
    return batches


def _sums_of(sums: bytes, base: int, data: memoryview, low: int, high: int) -> bytes:
    """The sums of bytes `[low, high)` of a file; `sums` are those of `data`, which lies at `base`."""
    if (low - base) % BLOCK_BYTES or base % BLOCK_BYTES or (high % BLOCK_BYTES and high != base + len(data)):
        return block_sums(data[low - base : high - base], low)
    first = (low - base) // BLOCK_BYTES * SUM_BYTES
    return sums[first : first + block_count(low, high) * SUM_BYTES]


def _verify(request: Read, data: Data, targets: list[memoryview]) -> None:
    """Check sums, and make zero what is missing."""
    at = 0
    for (start, size), target, length in zip(request.extents, targets, data.lengths, strict=True):
        if length:
            count = block_count(start, start + length) * SUM_BYTES
            bad = first_mismatch(target[:length], start, data.sums[at : at + count])
            if bad is not None:
                raise OSError(errno.EBADMSG, f"bytes at {bad} of OST {request.ost} do not match their checksum")
            at += count
        if length < size:
            target[length:] = bytes(size - length)


def _joined(buffers: Sequence[memoryview]) -> Callable[[int], list[memoryview]]:
    """The bytes of several buffers, taken in order."""
    left = [view for view in buffers if len(view)]

    def take(size: int) -> list[memoryview]:
        taken: list[memoryview] = []
        while size:
            view = left.pop(0)
            if len(view) > size:
                left.insert(0, view[size:])
                view = view[:size]
            taken.append(view)
            size -= len(view)
        return taken

    return take
