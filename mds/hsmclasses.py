"""Storage classes inside an archive: moving copies to colder ones."""

from typing import TYPE_CHECKING

from nacrefs.common import wire
from nacrefs.common.wire import ArchiveSpec
from nacrefs.mds import hsmsteps
from nacrefs.mds.hsmqueue import Action
from nacrefs.mds.hsmrows import HsmRow
from nacrefs.mds.movers import Movers

if TYPE_CHECKING:
    from nacrefs.mds.service import Mds


class Classes:
    """Carries out TRANSITION."""

    def __init__(self, mds: "Mds", movers: Movers) -> None:
        self._mds = mds
        self._movers = movers

    async def move(self, action: Action, spec: ArchiveSpec) -> None:
        """Move a file's copy to another class; its action has succeeded then."""
        row = action.row
        copy: HsmRow = await self._mds.journal.submit_own(lambda step: hsmsteps.good_copy(step, row.fid))
        order = wire.MoveClass(spec, copy.key, row.storage_class)
        moved: wire.ArchiveEntry = await self._movers.ask_one(order)
        ended = action.succeeded(self._mds.clock.now_ns())
        await self._mds.journal.submit_own(
            lambda step: hsmsteps.end_transition(step, copy, row.storage_class, moved.etag, ended)
        )
        action.row = ended
