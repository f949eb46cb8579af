"""What `nacre fsck` asks OSTs, and how its steps get into the journal."""

import errno
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final, NamedTuple

from nacrefs.common.layout import MIRRORS_MAX
from nacrefs.common.wire import ListObjects, ObjectFact, ObjectFacts, ObjectId, ProbeObjects
from nacrefs.mds.fsck.steps import AGAIN, alone_in_batch
from nacrefs.mds.osts.targets import Targets
from nacrefs.mds.transactions.journal import Journal
from nacrefs.mds.transactions.step import Step

PAGE: Final = 2000
PROBED_AT_ONCE: Final = 500
DEADLINE_S: Final = 60.0


class Seen(NamedTuple):
    """An object, and the OST that has it."""

    ost: int
    fact: ObjectFact


async def durably(journal: Journal, operation: Callable[[Step], Any]) -> Any:
    """The result of a step that is the first of its batch, so that what SQL says is all there is."""
    while True:
        result = await journal.submit_own(partial(alone_in_batch, operation), first=True)
        if result is not AGAIN:
            return result


class Osts:
    """The OSTs that can be asked, and what became of the others."""

    def __init__(self, targets: Targets) -> None:
        self._targets = targets
        self.unasked: dict[int, str] = {}
        """Why an OST could not be asked."""

    @property
    def all(self) -> list[int]:
        """Every OST that there ever was."""
        return sorted(self._targets.osts)

    async def _ask(self, ost: int, request: ListObjects | ProbeObjects) -> ObjectFacts | None:
        serving = self._targets.serving(ost)
        if serving is None or serving.peer is None:
            self.unasked[ost] = f"OST {ost} is down"
            return None
        try:
            answer: ObjectFacts = await serving.peer.call(request, deadline_s=DEADLINE_S)
            return answer
        except OSError as error:
            if error.errno == errno.ENOSYS:
                self.unasked[ost] = f"OST {ost} has an older version of nacrefs"
            else:
                self.unasked[ost] = f"OST {ost}: {error.strerror}"
            return None

    async def listed(self, ost: int, first: int, last: int) -> list[Seen]:
        """The objects of an OST with fids in `[first, last]`, of which the index knows."""
        found: list[Seen] = []
        cursor: tuple[int, ...] = ()
        while (page := await self._ask(ost, ListObjects(ost, first, last, cursor, PAGE))) is not None:
            found.extend(Seen(ost, fact) for fact in page.facts)
            cursor = page.cursor
            if not cursor:
                break
        return found

    async def of(self, fid: int) -> list[Seen]:
        """All objects of a fid of which nothing else is known, also those that no index knows yet."""
        found: dict[tuple[int, int], Seen] = {}
        osts = self.all
        for ost in osts:
            found.update(((ost, seen.fact.number), seen) for seen in await self.listed(ost, fid, fid))
        numbers = range(MIRRORS_MAX * len(osts))
        for seen in await self.probed(ObjectId(ost, fid, number) for ost in osts for number in numbers):
            found[seen.ost, seen.fact.number] = seen
        return list(found.values())

    async def unknown(self, ost: int, cursor: tuple[int, ...]) -> tuple[list[Seen], tuple[int, ...]]:
        """A page of those of which it does not know, and where to go on."""
        page = await self._ask(ost, ListObjects(ost, cursor=cursor, unknown=True))
        return ([Seen(ost, fact) for fact in page.facts], page.cursor) if page is not None else ([], ())

    async def probed(self, objects: Iterable[ObjectId]) -> list[Seen]:
        """Those of these objects that exist."""
        by_ost: dict[int, list[ObjectId]] = {}
        for item in objects:
            by_ost.setdefault(item.ost, []).append(item)
        found: list[Seen] = []
        for ost, items in by_ost.items():
            for at in range(0, len(items), PROBED_AT_ONCE):
                page = await self._ask(ost, ProbeObjects(tuple(items[at : at + PROBED_AT_ONCE])))
                if page is None:
                    break
                found.extend(Seen(ost, fact) for fact in page.facts)
        return found
