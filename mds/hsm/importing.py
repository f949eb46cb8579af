"""Files, directories and links rebuilt from what lies in an archive: first from its catalogue, as far as the objects
that it names are there, then from the objects that are newer. Nothing is downloaded: files are released.
"""

import asyncio
import errno
import gzip
import logging
import stat
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
from msgspec.structs import replace

from nacrefs.common import wire
from nacrefs.common.wire import ArchiveEntry, ArchiveSpec, Imported
from nacrefs.mds.hsm import catalogue
from nacrefs.mds.hsm.attempts import TRANSIENT
from nacrefs.mds.hsm.catalogue import Current, Record
from nacrefs.mds.hsm.rebuilding import import_entry, import_names
from nacrefs.mds.links.steps import is_link

if TYPE_CHECKING:
    from nacrefs.mds.service import Mds

log = logging.getLogger("nacre.mds")

PAGE: Final = 500
AWAY_S: Final = 60.0
AGAIN_S: Final = 0.5
_MARK: Final = "\n"
"""Begins cursors that stand for parts of the catalogue: no key has one."""
_record_of = msgspec.json.Decoder(Record).decode


class Job:
    """What an import under way must remember between its pages."""

    def __init__(self, current: Current | None) -> None:
        self.current = current
        self.objects: dict[str, ArchiveEntry] = {}
        """Objects that are there, and of which nothing has been made yet."""
        self.names: dict[int, dict[str, Record]] = {}
        """Files with several names of which not all have come yet: by their old fids, the names by path."""
        self.owned: dict[str, int] = {}
        """Objects that files here had as their copies when it began, as after an import that was killed, and which."""


class Importer:
    """Imports, page by page."""

    def __init__(self, mds: "Mds") -> None:
        self._mds = mds
        self._jobs: dict[tuple[int, int, str], Job] = {}

    async def page(self, spec: ArchiveSpec, request: wire.ImportArchive) -> Imported:
        """One page. Its cursor is empty at first, then `\\nN` (part N of the catalogue comes next), then a key."""
        await self._mds.grace.ended()
        which = (spec.id, request.parent, request.prefix)
        if not request.after:
            self._jobs[which] = await self._begin(spec)
        job = self._jobs.get(which)
        if job is None:
            raise OSError(errno.ESTALE, "the MDS was restarted meanwhile: import again, what is there already stays")
        number = int(request.after[1:] or 0) if request.after.startswith(_MARK) else 0
        if job.current is None:
            done = await self._listing(spec, request, job)
        elif number < job.current.parts:
            done = replace(await self._part(spec, request, job, job.current, number), after=f"{_MARK}{number + 1}")
        else:
            done = replace(await self._newer(spec, request, job), after=f"{_MARK}{number + 1}" if job.objects else "")
        if not done.after:
            del self._jobs[which]
        return done

    async def _begin(self, spec: ArchiveSpec) -> Job:
        job = Job(await self._current(spec))
        store, fid = self._mds.mdt.store, 0
        while rows := store.fetchall(store.statements.archive_keys, (spec.id, fid, PAGE)):
            fid = rows[-1][0]
            job.owned.update((key, owner) for owner, key in rows if key)
            await asyncio.sleep(0)
        after = ""
        while job.current is not None:
            page: wire.ArchiveListing = await self._ask(wire.MoveList(spec, "", after))
            job.objects.update((entry.key, entry) for entry in page.entries)
            after = page.after
            if not after:
                break
        return job

    async def _current(self, spec: ArchiveSpec) -> Current | None:
        try:
            found: wire.Bytes = await self._ask(wire.MoveRead(spec, catalogue.CURRENT))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        return msgspec.json.decode(found.data, type=Current)

    async def _part(
        self, spec: ArchiveSpec, request: wire.ImportArchive, job: Job, current: Current, number: int
    ) -> Imported:
        found: wire.Bytes = await self._ask(wire.MoveRead(spec, catalogue.part_key(current.stamp, number)))
        works: list[Made] = []
        for line in gzip.decompress(found.data).splitlines():
            record = _record_of(line)
            if not record.path or not _is_wanted(record, request.prefix):
                continue
            names = {record.path: record}
            if record.nlink > 1 and not stat.S_ISDIR(record.mode):
                names = job.names.setdefault(record.fid, {})
                names[record.path] = record
                if len(names) < record.nlink:
                    continue
                del job.names[record.fid]
            self._make(works, spec, list(names.values()), request.parent, job)
        if number + 1 == current.parts:  # of the rest there are names that are not wanted
            for names in job.names.values():
                self._make(works, spec, list(names.values()), request.parent, job)
            job.names.clear()
        return await _done(works)

    def _make(self, works: "list[Made]", spec: ArchiveSpec, names: list[Record], parent: int, job: Job) -> None:
        """Have a file made with all its names, or something else with its one."""
        first = names[0]
        if first.copy is not None and job.objects.pop(first.copy.key, None) is None:
            return  # it was removed, or copied anew, since
        work = partial(import_names, spec, names, parent, job.owned)
        works.append(Made(first.path, len(names), first.size, self._mds.journal.submit_own(work)))

    async def _newer(self, spec: ArchiveSpec, request: wire.ImportArchive, job: Job) -> Imported:
        """Objects that the catalogue does not know."""
        works: list[Made] = []
        being_made = self._being_made(spec)
        while job.objects and len(works) < PAGE:
            key, entry = job.objects.popitem()
            wanted = key.startswith(request.prefix) and not key.startswith(catalogue.PREFIX)
            if wanted and key not in being_made:
                known: ArchiveEntry = await self._ask(wire.MoveHead(spec, key))
                work = partial(import_entry, spec, known, request.parent, job.owned, await self._target(spec, known))
                works.append(Made(key, 1, entry.size, self._mds.journal.submit_own(work)))
        return await _done(works)

    def _being_made(self, spec: ArchiveSpec) -> set[str]:
        """Keys under which files of this filesystem are just being sent, or have been and nobody knows yet."""
        rows = (action.row for action in self._mds.hsm.active.values())
        return {row.key for row in rows if row.key and row.archive == spec.id}

    async def _target(self, spec: ArchiveSpec, entry: ArchiveEntry) -> bytes:
        """What an object points at that is a symbolic link; empty: it is none."""
        if not is_link(entry):
            return b""
        found: wire.Bytes = await self._ask(wire.MoveRead(spec, entry.key))
        return b"" if b"\0" in found.data else found.data

    async def _ask(self, request: wire.Request[Any]) -> Any:
        """The answer of one OSS. One that is lost, or an archive that cannot be reached, has a while to come back."""
        until_s = time.monotonic() + AWAY_S
        while True:
            try:
                return await self._mds.hsm.ask_one(request)
            except OSError as error:
                if error.errno not in TRANSIENT or time.monotonic() >= until_s:
                    raise
                log.info("an import waits: %s", error.strerror)
            await asyncio.sleep(AGAIN_S)

    async def _listing(self, spec: ArchiveSpec, request: wire.ImportArchive, job: Job) -> Imported:
        """There is no catalogue."""
        order = wire.MoveList(spec, request.prefix, request.after, min(request.limit, PAGE), True)
        page: wire.ArchiveListing = await self._ask(order)
        works: list[Made] = []
        being_made = self._being_made(spec)
        for entry in page.entries:
            if entry.key in being_made:
                continue
            work = partial(import_entry, spec, entry, request.parent, job.owned, await self._target(spec, entry))
            works.append(Made(entry.key, 1, entry.size, self._mds.journal.submit_own(work)))
        return replace(await _done(works), after=page.after)


def _is_wanted(record: Record, prefix: str) -> bool:
    return record.path.startswith(prefix) or (record.copy is not None and record.copy.key.startswith(prefix))


class Made(NamedTuple):
    """Something that is being made: what it is called, how many names and bytes it has, and how many of the names are
    new."""

    name: str
    names: int
    size: int
    made: "asyncio.Future[int]"


async def _done(works: list[Made]) -> Imported:
    """What came of them; they share commits."""
    made = skipped = size = 0
    problems: list[str] = []
    for work in works:
        try:
            new = await work.made
        except OSError as error:
            problems.append(f"{work.name}: {error.strerror}")
            continue
        made += new
        skipped += work.names - new
        size += work.size if new else 0
    return Imported("", made, skipped, size, tuple(problems[:100]))
