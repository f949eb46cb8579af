"""Catalogues written to archives: now and then, and when somebody asks."""

import asyncio
import logging
from typing import TYPE_CHECKING, Final

import msgspec

from nacrefs.common import wire
from nacrefs.common.wire import ArchiveSpec
from nacrefs.mds.hsm import catalogue
from nacrefs.mds.hsm.catalogue import Current
from nacrefs.mds.hsm.movers import Movers
from nacrefs.mds.snapshot import read_all

if TYPE_CHECKING:
    from nacrefs.mds.service import Mds

log = logging.getLogger("nacre.mds")
EVERY_S: Final = 3600.0
_META: Final = (("nacre-fid", "0"),)


class Saver:
    """Writes catalogues."""

    def __init__(self, mds: "Mds", movers: Movers, archives: dict[int, ArchiveSpec]) -> None:
        self._mds = mds
        self._movers = movers
        self._archives = archives
        self._saving = asyncio.Lock()

    async def run(self) -> None:
        """Every hour, for every archive in which files have copies."""
        store = self._mds.mdt.store
        while not self._mds.hsm.stopping:
            await asyncio.sleep(EVERY_S)
            used = {row[0] for row in store.fetchall(store.statements.hsm_counts)}
            for spec in list(self._archives.values()):
                if spec.id in used and spec.id not in self._mds.mdt.linked:
                    try:
                        await self.save(spec)
                    except OSError as error:
                        log.warning("catalogue of archive %s: %s", spec.name, error.strerror)

    async def save(self, spec: ArchiveSpec) -> Current:
        """Write a catalogue; the one before it is there until this one is complete."""
        async with self._saving:
            written = await read_all(self._mds.mdt.store, lambda snapshot: catalogue.write(snapshot, spec.id))
            stamp = f"{self._mds.clock.now_ns():x}"
            for number, part in enumerate(written.parts):
                await self._put(spec, catalogue.part_key(stamp, number), part)
            current = Current(stamp, len(written.parts), written.directories, written.records, written.uncopied)
            await self._put(spec, catalogue.CURRENT, msgspec.json.encode(current))
            await self._forget_others(spec, stamp)
            return current

    async def _put(self, spec: ArchiveSpec, key: str, data: bytes) -> None:
        await self._movers.ask_one(wire.MovePut(spec, key, _META, len(data), None, data))

    async def _forget_others(self, spec: ArchiveSpec, stamp: str) -> None:
        after = ""
        while True:
            page: wire.ArchiveListing = await self._movers.ask_one(wire.MoveList(spec, catalogue.PREFIX, after))
            old = tuple(
                entry.key
                for entry in page.entries
                if entry.key != catalogue.CURRENT and not entry.key.startswith(f"{catalogue.PREFIX}{stamp}/")
            )
            if old:
                await self._movers.ask_one(wire.MoveDelete(spec, old))
            after = page.after
            if not after:
                return
