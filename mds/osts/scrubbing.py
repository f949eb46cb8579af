"""`Scrub` and `VerifyFile`: OSTs read what they have, and what does not fit is named by its path and mended."""

import asyncio
import errno
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from nacrefs.common.layout import CopyState, Layout
from nacrefs.common.rpc import Call, Handler
from nacrefs.common.wire import (
    AttrFlag,
    Damage,
    FileVerified,
    FoundDamage,
    Mode,
    ObjectId,
    Repair,
    Request,
    Scrub,
    ScrubOrder,
    ScrubOst,
    ScrubReport,
    ScrubState,
    Verified,
    VerifyFile,
    VerifyObject,
)
from nacrefs.mds.fsck.asking import durably
from nacrefs.mds.fsck.paths import path_if_any
from nacrefs.mds.namespace.copies import doubt_copies

if TYPE_CHECKING:
    from nacrefs.mds.service import Mds

SCRUB_REQUESTS: Final[tuple[type[Request[Any]], ...]] = (Scrub, VerifyFile)
DEADLINE_S: Final = 120.0
_BUSY_TRIES: Final = 3
_BUSY_S: Final = 0.2
BACKUP: Final = "there is no other copy: restore the file from a backup, or from its archive"
_ELSEWHERE: Final = int(AttrFlag.INLINE | AttrFlag.RELEASED)


class ScrubDesk:
    """Answers for one MDS."""

    def __init__(self, mds: "Mds") -> None:
        self._mds = mds

    def handlers(self) -> Mapping[type[Request[Any]], Handler]:
        """The table of `SCRUB_REQUESTS`."""
        return {Scrub: self._scrub, VerifyFile: self._verify}

    async def _scrub(self, request: Scrub, call: Call) -> ScrubReport:
        self._mds.sessions.heard(call.peer)
        targets = self._mds.targets
        for ost in request.osts:
            if ost not in targets.osts:
                raise OSError(errno.EINVAL, f"there is no OST {ost}")
        osts = sorted(request.osts or targets.osts)
        order = ScrubOst(0, request.order, request.bytes_per_s, request.after)
        answers = await asyncio.gather(*(self._ask_scrub(ost, order) for ost in osts))
        states = [state for state in answers if state is not None]
        found = [self._found(state.ost, damage) for state in states for damage in state.damages]
        down = tuple(ost for ost, state in zip(osts, answers, strict=True) if state is None)
        return ScrubReport(tuple(states), tuple(found), down)

    async def _ask_scrub(self, ost: int, order: ScrubOst) -> ScrubState | None:
        serving = self._mds.targets.serving(ost)
        if serving is None or serving.peer is None:
            return None
        request = ScrubOst(ost, ScrubOrder(order.order), order.bytes_per_s, order.after)
        try:
            state: ScrubState = await serving.peer.call(request, deadline_s=DEADLINE_S)
            return state
        except OSError:
            return None

    def _found(self, ost: int, damage: Damage) -> FoundDamage:
        """Damage with the name of the file, and what becomes of it."""
        repair, mend = self._outcome(ost, damage)
        return FoundDamage(ost, damage, path_if_any(self._mds.mdt.store, damage.fid), repair, mend)

    def _outcome(self, ost: int, damage: Damage) -> tuple[Repair, str]:
        if damage.mended:
            return Repair.MENDED, "it is right again"
        inode = self._mds.journal.reading.inode(damage.fid)
        if inode is None:
            return Repair.MENDED, "the file is gone"
        layout, number = self._mds.mirrors.layout(damage.fid), damage.number
        if layout is not None and layout.lies_on(number, ost):
            if layout.state_of(number) != CopyState.GOOD:
                return Repair.POSSIBLE, "it is being made equal to another copy"
            if set(layout.readable(number % layout.stripe_count)) - {number}:
                return Repair.POSSIBLE, "it will be made equal to another copy"
        return Repair.LEFT, BACKUP

    # ------------------------------------------------------------------------------------------------------------ files

    async def _verify(self, request: VerifyFile, call: Call) -> FileVerified:
        """A piece of one stripe of a file, in all copies that should be good."""
        self._mds.sessions.heard(call.peer)
        inode = self._mds.journal.reading.need(request.fid)
        layout = inode.layout
        if layout is None or inode.attr.flags & _ELSEWHERE or not 0 <= request.stripe < layout.stripe_count:
            return FileVerified(-1, -1, 0, 0)
        unchecked: list[str] = []
        seen = await self._pieces(request, layout, unchecked)
        found = [(layout.osts[number], damage) for number, piece in seen.items() for damage in piece.damages]
        damaged = {number for number, piece in seen.items() if piece.damages}
        if layout.mirrors > 1:
            differing = await self._differing(request, layout, seen, damaged)
            found += [(layout.osts[damage.number], damage) for damage in differing]
            if damaged:
                objects = [ObjectId(layout.osts[number], request.fid, number) for number in sorted(damaged)]
                await self._mds.mirrors.damaged(objects)
        offset = max((piece.offset for piece in seen.values()), default=-1)
        stripe = request.stripe if offset >= 0 else request.stripe + 1
        if stripe >= layout.stripe_count:
            stripe = -1
        return FileVerified(
            stripe,
            offset if offset >= 0 else 0,
            sum(piece.checked_bytes for piece in seen.values()),
            max((piece.size for piece in seen.values()), default=0),
            tuple(self._found(ost, damage) for ost, damage in found),
            tuple(unchecked),
        )

    async def _pieces(self, request: VerifyFile, layout: Layout, unchecked: list[str]) -> dict[int, Verified]:
        """The copies of the piece by number, but for those that are not good anyway."""
        seen: dict[int, Verified] = {}
        for number in layout.objects_of(request.stripe):
            ost = layout.osts[number]
            if layout.state_of(number) > CopyState.UNSURE:
                continue
            serving = self._mds.targets.serving(ost)
            if serving is None or serving.peer is None:
                unchecked.append(f"OST {ost} is down")
                continue
            try:
                piece = VerifyObject(ost, request.fid, number, request.offset)
                seen[number] = await serving.peer.call(piece, deadline_s=DEADLINE_S)
            except OSError as error:
                unchecked.append(f"OST {ost}: {error.strerror}")
        return seen

    async def _differing(
        self, request: VerifyFile, layout: Layout, seen: dict[int, Verified], damaged: set[int]
    ) -> Sequence[Damage]:
        """Copies that are sound by themselves, and differ from the preferred one though nobody is writing; they are
        compared and made equal from now on."""
        fid = request.fid
        sound: dict[int, Verified] = {}
        for _ in range(_BUSY_TRIES):
            sound = {number: piece for number, piece in seen.items() if number not in damaged}
            now = self._mds.mirrors.layout(fid)
            alike = len({(piece.size, piece.digest) for piece in sound.values()}) < 2
            if alike or self._is_written(fid) or now is None or now.states:
                return ()  # or in use, or looked after already
            await asyncio.sleep(_BUSY_S)
            seen = await self._pieces(request, layout, [])
        await durably(self._mds.journal, lambda step: doubt_copies(step, fid))
        await self._mds.mirrors.announce(fid)
        first, *others = sorted(sound)
        good, end = (sound[first].size, sound[first].digest), max(piece.size for piece in sound.values())
        return [
            Damage(fid, number, request.offset, end, "it differs from the first copy")
            for number in others
            if (sound[number].size, sound[number].digest) != good
        ]

    def _is_written(self, fid: int) -> bool:
        leases, opens = self._mds.leases, self._mds.mdt.opens.get(fid, {})
        return bool(leases.writer(fid)) or fid in leases.unreported or any(mode & Mode.WRITE for mode in opens.values())
