"""Object I/O: a range of a file read from, or written to, all its OSTs in one wave, every byte checked.

Files that have copies go their own way (`mirrors`).
"""

import errno
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from nacrefs.client.back import BACK_S, Back
from nacrefs.client.cache import RELEASED, Inode
from nacrefs.client.data.extents import Extent
from nacrefs.client.data.mirrors import Copies, Part, read_stripes
from nacrefs.client.session import Session
from nacrefs.common.answer import together
from nacrefs.common.checksum import SUM_BYTES, block_sums, first_mismatch
from nacrefs.common.layout import BLOCK_BYTES, Layout, block_count, by_stripe, pieces
from nacrefs.common.wire import (
    Capability,
    Data,
    GetAttr,
    Punch,
    Read,
    Request,
    Restore,
    Right,
    Seek,
    Sought,
    Sync,
    Want,
    Write,
    Written,
)

EXPIRY_MARGIN_S: Final = 10.0
"""A capability with less time left than this is renewed before it is used."""
_EXTENTS: Final = 1024
"""Most extents in one request of ours."""
_STALE: Final = (errno.EKEYEXPIRED, errno.ESTALE, errno.EACCES)
"""What an OSS says of a right that may have been good: its time, its layout or its session is over."""
MISMATCHES_MAX: Final = 3
"""So often bytes that do not match their checksums are asked for."""
ZEROS: Final = memoryview(bytes(1 << 20))


def fill_zeros(target: memoryview) -> None:
    """Make all bytes zero."""
    for at in range(0, len(target), len(ZEROS)):
        part = target[at : at + len(ZEROS)]
        part[:] = ZEROS[: len(part)]


class _Batch:
    """What goes to one object in one write request."""

    __slots__ = ("bytes", "data", "end", "extents", "sums")

    def __init__(self) -> None:
        self.extents: list[tuple[int, int]] = []
        self.data: list[memoryview] = []
        self.sums: list[bytes] = []
        self.bytes = 0
        self.end = -1

    def add(self, start: int, view: memoryview) -> None:
        size = len(view)
        if start == self.end and not start % BLOCK_BYTES:  # sums do not change when extents meet at a block's border
            before = self.extents[-1]
            self.extents[-1] = (before[0], before[1] + size)
        else:
            self.extents.append((start, size))
        self.data.append(view)
        self.sums.append(block_sums(view, start))
        self.bytes += size
        self.end = start + size


class Mismatch(OSError):
    """Bytes came that do not match their checksums."""


class Objects:
    """I/O on the objects of files whose layout and capability the cache knows."""

    def __init__(self, session: Session, request_bytes: int) -> None:
        self.session = session
        self._request_bytes = request_bytes
        self.copies = Copies(session, self.granted, self.refresh, self._verify)

    # ------------------------------------------------------------------------------------------------ layout,
    # capability

    async def refresh(self, inode: Inode) -> None:
        """Ask the MDS for layout and capability."""
        number = self.session.number
        node = await self.session.mds.call(GetAttr(inode.fid, Want.LEASE | Want.LAYOUT))
        if number != self.session.number:  # what was given in a session has ended with it
            await self.refresh(inode)
            return
        if node.layout is None or node.capability is None:
            raise OSError(errno.EIO, f"the MDS gave no layout for inode {inode.fid:#x}")
        inode.layout, inode.capability = node.layout, node.capability

    async def granted(self, inode: Inode, right: Right) -> tuple[Layout, Capability]:
        """Layout, and a capability with this right that is good for a while."""
        layout, capability = inode.layout, inode.capability
        if (
            layout is None
            or capability is None
            or not capability.rights & right
            or capability.expires_s - EXPIRY_MARGIN_S < self.session.clock.now_ns() / 1e9
        ):
            await self.refresh(inode)
            layout, capability = inode.layout, inode.capability
            assert layout is not None
            assert capability is not None
        return layout, capability

    async def granting(self, inode: Inode, right: Right, work: Callable[[Layout, Capability], Awaitable[Any]]) -> Any:
        """Do I/O, and once more with a new layout and capability if the OSTs say that the old ones are, or that the
        bytes were damaged (which may have been on the way only). What was given in a session that has ended since does
        not count."""
        first = True
        while True:
            layout, capability = await self.granted(inode, right)
            number = self.session.number
            try:
                return await work(layout, capability)
            except OSError as error:
                stale = error.errno in _STALE
                if not (stale or error.errno == errno.EBADMSG) or not (first or (stale and self._has_changed(number))):
                    raise
            first = False
            await self.refresh(inode)

    def _has_changed(self, session: int) -> bool:
        """Whether there is another session by now."""
        return self.session.number != session

    # ------------------------------------------------------------------------------------------------------- reading

    async def read(self, inode: Inode, start: int, target: memoryview) -> int:
        """Fill `target` with the file's bytes from `start`; what no object has becomes zeros. Returns the end of the
        last byte that an object had (at most the end of `target`). EIO if bytes do not match their checksums."""
        if inode.attr is not None and inode.attr.flags & RELEASED:
            return await self._read_released(inode, start, target)
        layout, capability = await self.granted(inode, Right.READ)
        if layout.mirrors > 1:
            return await self.copies.read(inode, start, target)
        first = True
        while True:
            number = self.session.number
            try:
                return await self._read(inode.fid, layout, capability, start, target)
            except OSError as error:
                if error.errno not in _STALE or not (first or self._has_changed(number)):
                    raise
            first = False
            await self.refresh(inode)
            if inode.attr is not None and inode.attr.flags & RELEASED:
                return await self._read_released(inode, start, target)
            layout, capability = await self.granted(inode, Right.READ)

    async def _read_released(self, inode: Inode, start: int, target: memoryview) -> int:
        """As `read`, of a file whose contents are in an archive: waits until these bytes are back."""
        end = start + len(target)
        for attempt in range(3):
            back = inode.back
            if attempt or back is None or not back.start <= start or not end <= back.end or not back.counts(inode):
                back = await self._bring_back(inode, start, end)
            try:
                seen = await self._read(inode.fid, back.layout, back.capability, start, target)
            except OSError as error:
                if error.errno not in _STALE or attempt == 2:
                    raise
                continue
            if back.counts(inode):
                return seen
            # It may have been released again, or another attempt begun elsewhere, while we read.
            if (await self._bring_back(inode, start, end)).layout == back.layout:
                return seen
        raise OSError(errno.EAGAIN, f"inode {inode.fid:#x} is released again and again; try again")

    async def _bring_back(self, inode: Inode, start: int, end: int) -> Back:
        """Wait until these bytes are back; what else behind them is."""
        epoch = inode.epoch
        answer = await self.session.mds.call(Restore(inode.fid, start, end))
        layout, capability = answer.node.layout, answer.node.capability
        if layout is None or capability is None:
            raise OSError(errno.EIO, f"the MDS gave no layout for inode {inode.fid:#x}")
        inode.back = Back(answer.start, answer.end, layout, capability, epoch, time.monotonic() + BACK_S)
        return inode.back

    async def _read(self, fid: int, layout: Layout, capability: Capability, start: int, target: memoryview) -> int:
        end = start + len(target)
        unit = layout.stripe_bytes
        if layout.stripe_count == 1 or start // unit == (end - 1) // unit:
            stripe = 0 if layout.stripe_count == 1 else layout.stripe_of(start)
            return await self._read_stripe(fid, layout, capability, stripe, [(start, end)], [target])
        return await read_stripes(layout, start, target, partial(self._read_stripe, fid, layout, capability))

    async def _read_stripe(
        self,
        fid: int,
        layout: Layout,
        capability: Capability,
        stripe: int,
        extents: list[tuple[int, int]],
        targets: list[memoryview],
    ) -> int:
        wanted = tuple((low, high - low) for low, high in extents)
        ost = layout.osts[stripe]
        server = await self.session.server_of(ost)
        tries = 0
        while True:
            data = await server.call(Read(ost, fid, stripe, layout.generation, capability, wanted), into=targets)
            try:
                return self._verify(fid, stripe, ost, wanted, targets, data)
            except Mismatch:  # on the disk, or only on the way
                tries += 1
                if tries == MISMATCHES_MAX:
                    raise

    def _verify(
        self,
        fid: int,
        number: int,
        ost: int,
        wanted: tuple[tuple[int, int], ...],
        targets: list[memoryview],
        data: Data,
    ) -> int:
        """Check sums, zero what is missing; the end of the last byte that was there."""
        if len(data.lengths) != len(wanted):
            raise OSError(errno.EPROTO, f"OST {ost} answered {len(data.lengths)} of {len(wanted)} extents")
        seen = at = 0
        sums = data.sums
        for (start, size), target, length in zip(wanted, targets, data.lengths, strict=True):
            if length:
                count = block_count(start, start + length) * SUM_BYTES
                part = sums if not at and count == len(sums) else sums[at : at + count]
                bad = first_mismatch(target if length == size else target[:length], start, part)
                if bad is not None:
                    self.session.meter.add("checksum_mismatches")
                    raise Mismatch(
                        errno.EIO,
                        f"bytes at {bad} of object {number} of inode {fid:#x} on OST {ost} do not match their checksum",
                    )
                at += count
                seen = start + length
            if length < size:
                fill_zeros(target[length:])
        return seen

    # ------------------------------------------------------------------------------------------------------- writing

    async def write(
        self, inode: Inode, extents: Sequence[Extent], sync: bool = False, mtime_ns: int = 0
    ) -> dict[int, Written]:
        """Write extents to all their objects; the last answer of each object by its number. With `sync` it is
        durable. `mtime_ns`: when it was written, if that was under a WRITE lease. EIO if the session ends before all
        has been sent: it must not go out under the next one, for somebody else may have written there since."""
        written: dict[int, Written] = {}
        known = inode.layout
        if known.mirrors > 1 if known is not None else await self.has_copies(inode):
            return await self.copies.change(inode, partial(self._mirrored_writes, inode.fid, extents, sync, mtime_ns))
        session = self.session.number

        async def work(layout: Layout, capability: Capability) -> None:
            calls: list[Awaitable[Written]] = []
            numbers: list[int] = []
            for number, batch in self._batches(layout, extents):
                sums = batch.sums[0] if len(batch.sums) == 1 else b"".join(batch.sums)
                ost = layout.osts[number]
                request = Write(
                    ost, inode.fid, number, layout.generation, capability, tuple(batch.extents), sums, sync, mtime_ns
                )
                server = await self.session.server_of(ost)
                self.session.check_still(session)
                calls.append(server.call(request, data=batch.data))
                numbers.append(number)
            written.update(zip(numbers, await together(calls), strict=True))

        await self.granting(inode, Right.WRITE, work)
        return written

    async def has_copies(self, inode: Inode) -> bool:
        """Whether the file is mirrored; asks the MDS if its layout is not known."""
        if inode.layout is None:
            await self.refresh(inode)
        assert inode.layout is not None
        return inode.layout.mirrors > 1

    def _mirrored_writes(
        self, fid: int, extents: Sequence[Extent], sync: bool, mtime_ns: int, layout: Layout, capability: Capability
    ) -> list[Part]:
        parts: list[Part] = []
        for stripe, batch in self._batches(layout, extents):
            sums = b"".join(batch.sums)

            def request(number: int, batch: _Batch = batch, sums: bytes = sums) -> Request[Written]:
                ost = layout.osts[number]
                return Write(
                    ost, fid, number, layout.generation, capability, tuple(batch.extents), sums, sync, mtime_ns
                )

            parts.append(Part(stripe, request, batch.data))
        return parts

    def _batches(self, layout: Layout, extents: Sequence[Extent]) -> list[tuple[int, _Batch]]:
        """The extents as write requests, each to one stripe and of limited size."""
        done: list[tuple[int, _Batch]] = []
        current: dict[int, _Batch] = {}
        most = self._request_bytes
        for extent in extents:
            for stripe, low, high in pieces(layout, extent.start, extent.end):
                while low < high:
                    batch = current.get(stripe)
                    if batch is None or batch.bytes >= most or len(batch.extents) >= _EXTENTS:
                        batch = current[stripe] = _Batch()
                        done.append((stripe, batch))
                    part = min(high, low + most - batch.bytes)
                    if part < high and part - part % BLOCK_BYTES > low:
                        part -= part % BLOCK_BYTES
                    batch.add(low, extent.part(low, part))
                    if part < high:
                        del current[stripe]
                    low = part
        return done

    async def sync(self, inode: Inode, versions: Mapping[int, int]) -> dict[int, Written]:
        """Make what was written to these objects durable. The versions are those after our last writes that were not
        (0: nothing is known of any); ENOTRECOVERABLE if an OST may have lost one since."""

        def request(layout: Layout, capability: Capability, number: int) -> Request[Written]:
            return Sync(layout.osts[number], inode.fid, number, layout.generation, capability, versions[number])

        if versions and await self.has_copies(inode):
            return await self.copies.change(
                inode,
                lambda layout, capability: [
                    Part(number % layout.stripe_count, partial(request, layout, capability), numbers=(number,))
                    for number in versions
                ],
            )
        return await self._each(inode, tuple(versions), request)

    async def punch(self, inode: Inode, start: int, end: int, mtime_ns: int = 0) -> dict[int, Written]:
        """Make `[start, end)` a hole. `mtime_ns` is as in `write`."""
        mirrored = await self.has_copies(inode)
        assert inode.layout is not None
        stripes = inode.layout.stripe_count
        ranges = {
            stripe: tuple((low, high - low) for low, high in extents)
            for stripe, extents in by_stripe(inode.layout, start, end).items()
        }

        def request(layout: Layout, capability: Capability, number: int) -> Request[Written]:
            extents = ranges[number % stripes]
            return Punch(layout.osts[number], inode.fid, number, layout.generation, capability, extents, mtime_ns)

        if mirrored:
            return await self.copies.change(
                inode,
                lambda layout, capability: [Part(stripe, partial(request, layout, capability)) for stripe in ranges],
            )
        return await self._each(inode, tuple(ranges), request)

    async def seek(self, inode: Inode, start: int, end: int, hole: bool) -> int:
        """The first byte in `[start, end)` that any object has (with `hole`: that is in none); `end` if there is
        none."""

        async def work(layout: Layout, capability: Capability) -> int:
            calls: list[Awaitable[Sought]] = []
            for stripe in range(layout.stripe_count):
                number = layout.readable(stripe)[0] if layout.mirrors > 1 else stripe
                ost = layout.osts[number]
                server = await self.session.server_of(ost)
                request = Seek(
                    ost, inode.fid, number, layout.generation, capability, start, end, hole,
                    layout.stripe_bytes, layout.stripe_count,
                )  # fmt: skip
                calls.append(server.call(request))
            return min(end, *(sought.offset for sought in await together(calls)))

        found: int = await self.granting(inode, Right.READ, work)
        return found

    async def _each(
        self,
        inode: Inode,
        numbers: Sequence[int],
        request: Callable[[Layout, Capability, int], Request[Written]],
    ) -> dict[int, Written]:
        async def work(layout: Layout, capability: Capability) -> dict[int, Written]:
            calls: list[Awaitable[Written]] = []
            for number in numbers:
                server = await self.session.server_of(layout.osts[number])
                calls.append(server.call(request(layout, capability, number)))
            return dict(zip(numbers, await together(calls), strict=True))

        written: dict[int, Written] = await self.granting(inode, Right.WRITE, work)
        return written
