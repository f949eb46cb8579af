"""I/O on files that have copies: a change goes to all of them, a read to the one to prefer (docs/mirrors.md).

A copy that a change did not reach is reported to the MDS, and the change is answered only when that copy, durably, does
not count as good any more. A copy whose bytes do not match their checksums is reported behind the reader's back, which
gets them from another one. Only when no copy is left does anybody wait, or see an error.
"""

import asyncio
import errno
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

from nacrefs.client.cache import Inode
from nacrefs.client.session import Session
from nacrefs.common.answer import together
from nacrefs.common.layout import CopyState, Layout, by_stripe
from nacrefs.common.wire import Capability, CopiesFailed, Data, Read, Request, Right, Written

CONNECT_S: Final = 1.0
"""So long a change waits for an OSS that is not connected, if another copy can be reached."""
READ_CONNECT_S: Final = 0.3
TRUST_S: Final = 5.0
"""So long for one that has lost the MDS (it registers again within seconds after a restart)."""
SLOW_S: Final = 15.0
"""So long for an answer on a connection that seems to be alive."""
AVOID_S: Final = 5.0
"""An OST that could not be reached is asked last for so long."""
_POLL_S: Final = 0.1
_STALE: Final = (errno.EKEYEXPIRED, errno.ESTALE)
_STALE_TRIES: Final = 30
_AWAY: Final = (
    errno.EHOSTDOWN, errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNABORTED, errno.ECONNREFUSED, errno.EPIPE,
    errno.ENXIO, errno.ENODEV,
)  # fmt: skip
_DAMAGED: Final = (errno.EBADMSG, errno.EIO)
_FATAL: Final = (errno.ESHUTDOWN, errno.EACCES, errno.EINVAL, errno.EREMOTEIO)
"""What is wrong with the request, the session or the source of a `CopyRange` is so on every copy."""


class Part(NamedTuple):
    """A change of one stripe: the request for each object, and its bulk. Only `numbers` of the objects need it (None:
    all that are written)."""

    stripe: int
    request: Callable[[int], Request[Written]]
    data: Sequence[memoryview] = ()
    numbers: Collection[int] | None = None


Granted = Callable[[Inode, Right], Awaitable[tuple[Layout, Capability]]]
Verify = Callable[[int, int, int, tuple[tuple[int, int], ...], list[memoryview], Data], int]


async def read_stripes(
    layout: Layout,
    start: int,
    target: memoryview,
    read: Callable[[int, list[tuple[int, int]], list[memoryview]], Awaitable[int]],
) -> int:
    """Fill `target` with the file's bytes from `start`, each stripe's part by `read(stripe, extents, targets)`, all at
    once; where the last byte ends that any of them had."""
    parts = by_stripe(layout, start, start + len(target))
    return max(
        await together(
            [
                read(stripe, extents, [target[low - start : high - start] for low, high in extents])
                for stripe, extents in parts.items()
            ]
        ),
        default=0,
    )


class Copies:
    """I/O on mirrored files. `granted`, `refresh` and `verify` are `objects.Objects`'."""

    def __init__(
        self, session: Session, granted: Granted, refresh: Callable[[Inode], Awaitable[None]], verify: Verify
    ) -> None:
        self._session = session
        self._granted = granted
        self._refresh = refresh
        self._verify = verify
        self._away: dict[int, float] = {}
        self._reporting: set[tuple[int, int]] = set()

    # ------------------------------------------------------------------------------------------------------- reading

    async def read(self, inode: Inode, start: int, target: memoryview) -> int:
        """As `Objects.read`."""
        layout, _ = await self._granted(inode, Right.READ)
        return await read_stripes(layout, start, target, partial(self._read_stripe, inode))

    async def _read_stripe(
        self, inode: Inode, stripe: int, extents: list[tuple[int, int]], targets: list[memoryview]
    ) -> int:
        wanted = tuple((low, high - low) for low, high in extents)
        tries = 0
        while True:
            layout, capability = await self._granted(inode, Right.READ)
            session = self._session.number
            failed: dict[int, OSError] = {}
            for number in self._in_turn(layout, layout.readable(stripe)):
                ost = layout.osts[number]
                request = Read(ost, inode.fid, number, layout.generation, capability, wanted)
                try:
                    data = await self._ask(ost, request, into=targets, connect_s=READ_CONNECT_S)
                    seen = self._verify(inode.fid, number, ost, wanted, targets, data)
                except OSError as error:
                    failed[number] = error
                    if error.errno in _STALE or error.errno in _FATAL:
                        break
                    continue
                damaged = [number for number, error in failed.items() if error.errno in _DAMAGED]
                if damaged:
                    self._repair(inode, layout, damaged)
                return seen
            tries += 1
            if session == self._session.number:
                await self._after_failed_read(inode, layout, stripe, failed, tries)
            else:  # what was given in a session that has ended says nothing
                await self._refresh(inode)

    async def _after_failed_read(
        self, inode: Inode, layout: Layout, stripe: int, failed: dict[int, OSError], tries: int
    ) -> None:
        """No copy could be read: return if it is worth another try, raise why not otherwise."""
        errors = list(failed.values())
        fatal = next((error for error in errors if error.errno in _FATAL), None)
        if fatal is not None:
            raise fatal
        if any(error.errno in _STALE for error in errors):
            if tries > _STALE_TRIES:
                raise errors[-1]
        elif any(layout.state_of(number) == CopyState.UNSURE for number in layout.objects_of(stripe)):
            await self._report(inode, layout, failed)  # then an unsure copy is the good one, for everybody
            return
        elif not all(error.errno in _AWAY for error in errors):
            raise next(error for error in errors if error.errno not in _AWAY)
        await asyncio.sleep(min(0.01 * 2**tries, 0.5))
        await self._refresh(inode)

    def _in_turn(self, layout: Layout, numbers: Sequence[int]) -> list[int]:
        """The first copy first, so that everybody reads the same one; those that are away last."""
        if not self._away:
            return list(numbers)
        now_s = asyncio.get_running_loop().time()
        self._away = {ost: since_s for ost, since_s in self._away.items() if now_s - since_s < AVOID_S}
        return sorted(numbers, key=lambda number: layout.osts[number] in self._away)

    def _repair(self, inode: Inode, layout: Layout, numbers: Iterable[int]) -> None:
        """Report damage in the background."""
        new = [number for number in numbers if (inode.fid, number) not in self._reporting]
        if new:
            self._session.meter.add("damaged_copies", len(new))
            self._session.spawn(self._report_damage(inode, layout, new))

    async def _report_damage(self, inode: Inode, layout: Layout, numbers: list[int]) -> None:
        keys = {(inode.fid, number) for number in numbers}
        self._reporting |= keys
        try:
            await self._report(inode, layout, numbers, damaged=True)
        except OSError:
            pass  # the next reader reports it again
        finally:
            self._reporting -= keys

    # ------------------------------------------------------------------------------------------------------- changing

    async def change(self, inode: Inode, make: Callable[[Layout, Capability], Sequence[Part]]) -> dict[int, Written]:
        """Carry out a change on every copy that can be reached; the others are not good any more when this returns. The
        last answer of each object by its number. OSError if it did not reach a good copy of each stripe."""
        tries, session = 0, self._session.number
        while True:
            layout, capability = await self._granted(inode, Right.WRITE)
            self._session.check_still(session)
            parts = make(layout, capability)
            jobs = [(part, number) for part in parts for number in _needed(layout, part)]
            results = await asyncio.gather(
                *(self._change_one(layout.osts[number], part.request(number), part.data) for part, number in jobs),
                return_exceptions=True,
            )
            written: dict[int, Written] = {}
            failed: dict[int, OSError] = {}
            for (_, number), result in zip(jobs, results, strict=True):
                if isinstance(result, OSError):
                    failed[number] = result
                elif isinstance(result, BaseException):
                    raise result
                else:
                    written[number] = result
            if not failed:
                return written
            self._session.check_still(session)
            tries += 1
            if await self._after_failed_change(inode, layout, parts, failed, tries):
                now = inode.layout
                done = written.keys() - failed.keys()
                if now is not None and all(done >= set(_needed(now, part)) for part in parts):
                    return {number: written[number] for number in done}

    async def _after_failed_change(
        self, inode: Inode, layout: Layout, parts: Sequence[Part], failed: dict[int, OSError], tries: int
    ) -> bool:
        """Some copies were not reached: report them (True), or wait until it is worth another try (False); raise why
        it is not."""
        fatal = next((error for error in failed.values() if error.errno in _FATAL), None)
        if fatal is not None:
            raise fatal
        if any(error.errno in _STALE for error in failed.values()) and tries <= _STALE_TRIES:
            await asyncio.sleep(min(0.005 * 2**tries, 0.2))
            await self._refresh(inode)
            return False
        for stripe in {part.stripe for part in parts}:
            left = [
                number
                for number in layout.objects_of(stripe)
                if layout.state_of(number) <= CopyState.UNSURE and number not in failed
            ]
            if left:
                continue
            errors = [failed[number] for number in layout.objects_of(stripe) if number in failed]
            if all(error.errno in _AWAY for error in errors):
                await asyncio.sleep(min(0.05 * 2**tries, 1.0))
                await self._refresh(inode)
                return False
            raise next(error for error in errors if error.errno not in _AWAY)
        await self._report(inode, layout, failed)
        return True

    async def _change_one(self, ost: int, request: Request[Written], data: Sequence[memoryview]) -> Written:
        """A change of one copy. An OSS that has lost the MDS gets some time to find it again."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + TRUST_S
        again = False
        while True:
            try:
                written: Written = await self._ask(ost, request, data=data, connect_s=CONNECT_S)
                return written
            except _Untrusted as error:
                if loop.time() >= until_s:
                    raise OSError(error.errno, error.strerror) from None
            except OSError as error:
                if error.errno != errno.EBADMSG or again:
                    raise
                again = True  # it may have been damaged on the way only
                continue
            await asyncio.sleep(_POLL_S)

    # -------------------------------------------------------------------------------------------------------- both

    async def _ask(
        self,
        ost: int,
        request: Request[Any],
        *,
        data: Sequence[memoryview] = (),
        into: Sequence[memoryview] | None = None,
        connect_s: float,
    ) -> Any:
        """One request, for as long as there is hope: EHOSTDOWN if the OSS is not connected for `connect_s`, ETIMEDOUT
        if it does not answer."""
        server = await self._session.server_of(ost)
        future = server.call(request, data=data, into=into)
        loop = asyncio.get_running_loop()
        asked_s = seen_s = loop.time()
        try:
            while not future.done():
                await asyncio.wait((future,), timeout=_POLL_S)
                now_s = loop.time()
                if server.connected:
                    seen_s = now_s
                if future.done():
                    break
                if now_s - seen_s >= connect_s or now_s - asked_s >= SLOW_S:
                    self._away[ost] = now_s
                    number = errno.EHOSTDOWN if now_s - seen_s >= connect_s else errno.ETIMEDOUT
                    raise OSError(number, f"OST {ost} cannot be reached at {server.address}")
            return future.result()
        except OSError as error:
            if future.done() and error.errno == errno.EHOSTDOWN:
                raise _Untrusted(errno.EHOSTDOWN, error.strerror) from None
            raise
        finally:
            if not future.done():
                future.cancel()  # the buffers are ours again

    async def _report(self, inode: Inode, layout: Layout, numbers: Iterable[int], damaged: bool = False) -> None:
        """Tell the MDS of copies that are not good; its layout is ours from now on."""
        request = CopiesFailed(inode.fid, layout.generation, tuple(sorted(numbers)), damaged)
        number = self._session.number
        answer = await self._session.mds.call(request)
        if number == self._session.number and (
            inode.layout is None or answer.layout.generation >= inode.layout.generation
        ):
            inode.layout, inode.capability = answer.layout, answer.capability


class _Untrusted(OSError):
    """The OSS has lost the MDS."""


def _needed(layout: Layout, part: Part) -> list[int]:
    numbers = layout.writable(part.stripe)
    return [number for number in numbers if part.numbers is None or number in part.numbers]
