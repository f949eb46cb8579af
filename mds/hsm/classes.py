"""Storage classes inside an archive: moving copies to colder ones, and having cold ones made readable."""

import asyncio
import errno
from typing import TYPE_CHECKING, Any

import msgspec

from nacrefs.common import wire
from nacrefs.common.wire import ArchiveSpec
from nacrefs.mds.hsm import steps
from nacrefs.mds.hsm.movers import Movers
from nacrefs.mds.hsm.queue import Action, Thawing
from nacrefs.mds.hsm.rows import HsmRow
from nacrefs.mds.lifecycle.rules import COLD_CLASSES

if TYPE_CHECKING:
    from nacrefs.mds.service import Mds


class Classes:
    """Carries out TRANSITION, and what comes before RESTORE."""

    def __init__(self, mds: "Mds", movers: Movers) -> None:
        self._mds = mds
        self._movers = movers
        self._abilities: dict[int, dict[str, Any]] = {}
        """What archives were found to be able to do, by number: probed once."""

    def learned(self, archive: int, can: dict[str, Any]) -> None:
        """An archive has been probed."""
        self._abilities[archive] = can

    async def able(self, spec: ArchiveSpec, what: str) -> bool:
        """Whether an archive can do something (`class_change`, `restore`)."""
        known = self._abilities.get(spec.id)
        if known is None:
            answer: wire.Inspection = await self._movers.ask_one(wire.MoveProbe(spec))
            known = self._abilities[spec.id] = msgspec.json.decode(answer.report)
        return bool(known.get(what))

    async def move(self, action: Action, spec: ArchiveSpec) -> None:
        """Move a file's copy to another class; its action has succeeded then."""
        row = action.row
        if not await self.able(spec, "class_change"):
            raise OSError(errno.EOPNOTSUPP, f"archive {spec.name} cannot change storage classes")
        submit = self._mds.journal.submit_own
        copy, action.row = await submit(lambda step: steps.begin_transition(step, row))
        await self.thaw(action, copy, spec)  # what is frozen cannot be copied, not even by the archive
        if copy.size > wire.CLASS_COPY_MAX:  # in parts, which must not be left behind, whoever is killed
            action.row = begun = action.row._replace(upload="?")
            await submit(lambda step: steps.put_action(step, begun))
        order = wire.MoveClass(spec, copy.key, row.storage_class, copy.size)
        moving: asyncio.Future[wire.ArchiveEntry] = asyncio.ensure_future(self._movers.ask_one(order))
        try:
            moved = await asyncio.shield(moving)
        except asyncio.CancelledError:
            if self._mds.hsm.stopping:
                moving.cancel()
                raise
            moved = await moving  # an archive does not stop: until it is done, nobody else may do anything with the key
        begun, ended = action.row, action.succeeded(self._mds.clock.now_ns())
        await submit(lambda step: steps.end_transition(step, begun, copy, moved.etag, ended))
        action.row = ended

    async def thaw(self, action: Action, copy: HsmRow, spec: ArchiveSpec) -> None:
        """See to it that a copy can be read. `Thawing` while it cannot yet; OSError (EIO) if it never will."""
        storage_class = copy.storage_class or spec.storage_class
        if storage_class not in COLD_CLASSES:
            return
        days, tier = self._mds.lifecycle.thaw_of(copy.fid)
        order = wire.MoveThaw(spec, copy.key, 0 if action.thawing else days, tier)
        state = (await self._movers.ask_one(order)).state
        if state == "ready":
            return
        if state == "frozen" and not action.thawing:
            text = f"archive {spec.name} does not make objects of class {storage_class} readable (RestoreObject)"
            raise OSError(errno.EIO, text)
        action.thawing = state == "thawing"  # if it is frozen again by now, it is asked for again
        raise Thawing(f"the archive makes it readable ({storage_class}, {tier}): that may take hours")
