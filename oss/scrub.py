"""The scrub of an OST: every block of every object is read, in key order, and compared with its sum.

One task for each OST that is being scrubbed. Where it is, and what it has found, is in `scrub.json` in the OST's
directory, so that it goes on after a restart. What it finds is told to the MDS, which mends it where there is another
copy.
"""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import msgspec
from msgspec.structs import replace

from nacrefs.common.wire import Damage, ObjectId, ScrubOrder, ScrubOst, ScrubState
from nacrefs.oss.gate import Call, Gate
from nacrefs.oss.target import Target
from nacrefs.oss.verify import PIECE_BYTES, Verifier

log = logging.getLogger("nacre.oss")

DAMAGES_MAX: Final = 10_000
PAGE: Final = 100
SAVE_S: Final = 5.0
_KEYS: Final = 200
_NAME: Final = "scrub.json"
_FID_END: Final = (1 << 64) - 1

Report = Callable[[Sequence[ObjectId]], Awaitable[None]]
"""Tells the MDS of objects that are damaged."""


class Saved(msgspec.Struct):
    """A scrub as `scrub.json` has it."""

    state: str = "never"
    fid: int = 0
    number: int = -1
    objects: int = 0
    total: int = 0
    bytes: int = 0
    started_s: int = 0
    ended_s: int = 0
    bytes_per_s: int = -1
    damages: list[Damage] = []


class OstScrub:
    """The scrub of one OST."""

    def __init__(self, target: Target, verifier: Verifier, report: Report) -> None:
        self._target = target
        self._verifier = verifier
        self._report = report
        self._path = os.path.join(target.root, _NAME)
        self._saved_s = 0.0
        self.task: asyncio.Task[None] | None = None
        self.saved = Saved()
        try:
            with open(self._path, "rb") as file:
                self.saved = msgspec.json.decode(file.read(), type=Saved)
        except FileNotFoundError:
            pass
        except msgspec.MsgspecError as error:
            log.warning("%s: cannot be read, the next scrub begins at the beginning: %s", self._path, error)
        if self.saved.state == "running":
            self._begin()

    def order(self, order: ScrubOrder, bytes_per_s: int) -> None:
        """Start, pause or stop."""
        saved = self.saved
        if order is ScrubOrder.START and saved.state != "running":
            if saved.state != "paused":
                self.saved = saved = Saved(started_s=int(time.time()), total=self._target.index.count())
            saved.state, saved.bytes_per_s = "running", bytes_per_s
            self._begin()
        elif order in (ScrubOrder.PAUSE, ScrubOrder.STOP) and saved.state in ("running", "paused"):
            if self.task is not None:
                self.task.cancel()
            saved.state = "paused" if order is ScrubOrder.PAUSE else "stopped"
        self._save()

    def _begin(self) -> None:
        self.task = asyncio.get_running_loop().create_task(self._run(), name="ost-scrub")

    async def _run(self) -> None:
        saved, target = self.saved, self._target
        rate = saved.bytes_per_s if saved.bytes_per_s >= 0 else self._verifier.bytes_per_s
        self._verifier.pace.bytes_per_s = rate
        try:
            while keys := target.index.keys((saved.fid, saved.number & 0xFFFFFFFF), _FID_END, _KEYS):
                for fid, number in keys:
                    await self._scrub(fid, number)
                    saved.fid, saved.number = fid, number
                    saved.objects += 1
                    if time.monotonic() - self._saved_s >= SAVE_S:
                        self._save()
            saved.state, saved.ended_s = "done", int(time.time())
        except OSError as error:
            log.error("the scrub of %s has failed: %s", target.where, error)
            saved.state, saved.ended_s = error.strerror or str(error), int(time.time())
        self._save()

    async def _scrub(self, fid: int, number: int) -> None:
        """One object."""
        offset = 0
        found: list[Damage] = []
        while offset >= 0:
            seen = await self._verifier.piece(self._target, fid, number, offset)
            offset = seen.offset
            self.saved.bytes += seen.checked_bytes
            found.extend(seen.damages)
        if found:
            for damage in found:
                log.error("%s: object %#x.%d is damaged: %s", self._target.where, fid, number, words_of(damage))
            self.saved.damages.extend(found[: max(0, DAMAGES_MAX - len(self.saved.damages))])
            self._save()
            with contextlib.suppress(OSError):  # the next scrub, or the next reader, tells again
                await self._report([ObjectId(self._target.label.index, fid, number)])

    async def recheck(self, after: int) -> None:
        """Look again at a page of damages that are not known to be mended."""
        damages = self.saved.damages
        for at in range(after, min(after + PAGE, len(damages))):
            damage = damages[at]
            if damage.mended:
                continue
            length = min(max(damage.end - damage.start, 1), PIECE_BYTES)
            seen = await self._verifier.piece(self._target, damage.fid, damage.number, damage.start, length)
            if not seen.damages:
                damages[at] = replace(damage, mended=True)

    def report(self, after: int) -> ScrubState:
        """Where it is."""
        saved = self.saved
        damages = tuple(saved.damages[after : after + PAGE])
        return ScrubState(
            self._target.label.index, saved.state, saved.objects, max(saved.total, saved.objects), saved.bytes,
            saved.started_s, saved.ended_s, len(saved.damages), damages,
        )  # fmt: skip

    def _save(self) -> None:
        self._saved_s = time.monotonic()
        new = f"{self._path}.new"
        try:
            with open(new, "wb") as file:
                file.write(msgspec.json.encode(self.saved))
            os.replace(new, self._path)
        except OSError as error:
            log.warning("%s: %s", self._path, error.strerror)

    async def stop(self) -> None:
        """The OSS ends; a scrub that is under way goes on when it is back."""
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
        if self.saved.state != "never":
            self._save()


def words_of(damage: Damage) -> str:
    """Damage as people read it."""
    return damage.problem or f"bytes {damage.start} to {damage.end} do not match their checksums"


class Scrubs:
    """The scrubs of all OSTs of a server."""

    def __init__(self, gate: Gate, verifier: Verifier) -> None:
        self._gate = gate
        self._verifier = verifier
        self._scrubs: dict[Target, OstScrub] = {}
        self.report: Report = _nobody

    def start(self, targets: Sequence[Target]) -> None:
        """Take up what an earlier run has left."""
        for target in targets:
            self._scrubs[target] = OstScrub(target, self._verifier, self._tell)

    async def _tell(self, objects: Sequence[ObjectId]) -> None:
        await self.report(objects)

    async def scrub_ost(self, request: ScrubOst, call: Call) -> ScrubState:
        """An order, and how far the scrub is."""
        scrub = self._scrubs[self._gate.target(request.ost)]
        if request.order is not ScrubOrder.STATUS:
            scrub.order(request.order, request.bytes_per_s)
        elif scrub.saved.damages:
            await scrub.recheck(request.after)
        return scrub.report(request.after)

    async def stop(self) -> None:
        """The OSS ends."""
        for scrub in self._scrubs.values():
            await scrub.stop()
        self._scrubs.clear()
        self._verifier.thread.close()


async def _nobody(objects: Sequence[ObjectId]) -> None:
    """There is no MDS yet."""
