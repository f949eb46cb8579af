"""Directories that are bound to bucket prefixes: which there are, and their refreshes.

A link's number is that of an archive, which is the prefix: what lies there comes as from any archive
(`mds/hsm/coordinator.py`). Each link has a keeper, a task that refreshes it when it is due or asked for, and again
after a failure.
"""

import asyncio
import errno
import logging
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec
from croniter import croniter
from msgspec.structs import replace

from nacrefs.common import wire
from nacrefs.common.wire import ArchiveSpec, LinkSpec
from nacrefs.mds.hsm.rows import HsmRow, hsm_of
from nacrefs.mds.links import steps
from nacrefs.mds.links.exporting import Exporter
from nacrefs.mds.links.refresh import Refresh
from nacrefs.mds.links.rows import ACTIVE, LOG_MAX, PAUSED, REMOVING, STATES, LinkRow, link_of
from nacrefs.mds.transactions.step import Step

if TYPE_CHECKING:
    from nacrefs.mds.service import Mds

log = logging.getLogger("nacre.mds")
RETRY_S: Final = 2.0
RETRY_MOST_S: Final = 300.0
UNBIND: Final = 500
"""Files that are unbound at a time when a link is removed."""
BUCKET_LOST: Final = "which bucket it was is not known any more: restore the MDT from a backup"
_encode = msgspec.msgpack.Encoder().encode


class Link:
    """A link in service."""

    def __init__(self, row: LinkRow) -> None:
        self.row = row
        self.lock = asyncio.Lock()
        """Held by who changes the row."""
        self.refresh: Refresh | None = None
        """Under way."""
        self.asked = asyncio.Event()
        """Somebody wants a refresh now, or the schedule is another one."""
        self.wanted = 0
        """How many refreshes were asked for."""
        self.ended = 0
        """Which of them have ended."""
        self.failures = 0
        """Refreshes that have failed since the last that did not."""
        self.refresh_failed_ns = 0
        self.lines = 0
        """The number of the log's last line."""
        self.keeper: asyncio.Task[None] | None = None
        self.exporter: Exporter | None = None


class Links:
    """All links of an MDT."""

    def __init__(self, mds: "Mds") -> None:
        self._mds = mds
        self._stopping = False
        self.by_id: dict[int, Link] = {}

    # ------------------------------------------------------------------------------------------------------ life cycle

    def start(self) -> None:
        """Take up what an earlier run has left. To be called after the archives are known."""
        store = self._mds.mdt.store
        for stored in store.fetchall(store.statements.links):
            try:
                link = Link(link_of(stored))
                self._serve(link)
                if link.row.state == ACTIVE and link.row.spec.imports != "none" and not link.row.refreshed_ns:
                    self.ask(link)  # its first refresh, which was not over
            except msgspec.MsgspecError as error:  # the others are served nevertheless; `nacre fsck` tells of this one
                log.error("link %d cannot be read: %s", stored[0], error)

    def _serve(self, link: Link) -> None:
        store = self._mds.mdt.store
        newest = store.fetchone(store.statements.link_log_newest, (link.row.id,))
        link.lines = (newest[0] or 0) if newest is not None else 0
        self.by_id[link.row.id] = link
        self._changed()
        link.keeper = asyncio.get_running_loop().create_task(self._keep(link))
        link.keeper.add_done_callback(_report)

    def _changed(self) -> None:
        """The links are other ones, or have other settings."""
        mdt, served = self._mds.mdt, list(self.by_id.values())
        mdt.linked = set(self.by_id)
        exporting = [link.row for link in served if link.row.spec.auto_export and link.row.state != REMOVING]
        mdt.exports = {row.fid: row.id for row in exporting}
        mdt.deleting = {row.id for row in exporting if "deleted" in row.spec.auto_export}
        for link in served:
            if link.exporter is None and link.row.id in mdt.exports.values():
                link.exporter = Exporter(self._mds, link.row.id, link.row.fid, partial(self.note, link))
            if link.exporter is not None:
                link.exporter.modes = link.row.spec.auto_export if link.row.state == ACTIVE else ()
                link.exporter.conflict = link.row.spec.conflict

    async def stop(self) -> None:
        """End; a refresh under way begins anew next time."""
        self._stopping = True
        for link in self.by_id.values():
            if link.exporter is not None:
                await link.exporter.stop()
        keepers = [link.keeper for link in self.by_id.values() if link.keeper is not None]
        for keeper in keepers:
            keeper.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)

    def need(self, number: int) -> Link:
        """The link; OSError (ENOENT) if there is none."""
        link = self.by_id.get(number)
        if link is None:
            raise OSError(errno.ENOENT, f"there is no link {number}")
        return link

    # ----------------------------------------------------------------------------------------------------------- rows

    async def _put(
        self,
        link: Link,
        *lines: str,
        also: Callable[[Step], None] | None = None,
        if_other: bool = False,
        **changes: Any,
    ) -> None:
        """Change a link's row, durably, with lines for its log; `also` is part of that step. With `if_other` nothing is
        done if the row is so already."""
        async with link.lock:
            row = link.row._replace(**changes)
            if if_other and row == link.row:
                return
            if link.row.state == REMOVING and row.state != REMOVING:
                raise OSError(errno.EBUSY, "the link is being removed")

            def put(step: Step) -> None:
                self._put_step(link, row, lines, step)
                if also is not None:
                    also(step)

            await self._mds.journal.submit_own(put)
            link.row = row
            self._changed()

    def _put_step(self, link: Link, row: LinkRow, lines: tuple[str, ...], step: Step) -> None:
        step.tx.run("put_link", row.columns())
        self._log_step(link, lines, step)

    def _log_step(self, link: Link, lines: tuple[str, ...], step: Step) -> None:
        for text in lines:
            link.lines += 1
            step.tx.run("put_link_log", (link.row.id, link.lines, step.now_ns, text))
        if lines:
            step.tx.run("trim_link_log", (link.row.id, link.lines - LOG_MAX + 1))

    def note(self, link: Link, text: str) -> None:
        """Add a line to a link's log, soon."""

        def step_of(step: Step) -> None:
            if link.row.id in self.by_id:
                self._log_step(link, (text,), step)

        self._mds.journal.submit_own(step_of).add_done_callback(_report)

    async def create(self, link: Link, archive: ArchiveSpec, also: Callable[[Step], None]) -> Link:
        """Bind a directory to an archive that has been tried out; `also` is part of that step."""
        row, spec = link.row, link.row.spec

        def make(step: Step) -> None:
            if not step.tx.need(spec.fid).is_directory:
                raise OSError(errno.ENOTDIR, "only a directory can be linked")
            step.tx.run("put_archive", (archive.id, archive.name, _encode(archive), 0))
            self._put_step(link, row, (f"made for {archive.url}",), step)
            also(step)

        await self._mds.journal.submit_own(make)
        if self._stopping:
            raise OSError(errno.ESHUTDOWN, "the MDS is shutting down")
        link.lines = 0  # read again
        self._mds.hsm.archives[archive.id] = archive
        self._mds.hsm.archives_changed()
        self._serve(link)
        if spec.imports != "none":
            self.ask(link)
        return link

    async def change(self, link: Link, spec: LinkSpec, rate_mibps: float) -> None:
        """Give a link other settings."""
        hsm, number = self._mds.hsm, link.row.id
        archive = replace(hsm.archives[number], rate_mibps=rate_mibps)
        row = (number, archive.name, _encode(archive), 0)
        await self._put(link, "its settings were changed", also=lambda step: step.tx.run("put_archive", row), spec=spec)
        hsm.archives[number] = archive
        hsm.archives_changed()
        link.asked.set()

    async def settle(self, number: int, fid: int) -> str:
        """The stored link cannot be read, or makes no sense: store what is in force, else make a paused one of what is
        left of it. Why that cannot be, or nothing."""
        link = self.by_id.get(number)
        if number not in self._mds.hsm.archives:
            return BUCKET_LOST
        if link is not None:
            state = link.row.state if link.row.state in STATES else PAUSED
            await self._put(link, "its record was mended", state=state)
            return ""
        link = Link(LinkRow(number, fid, LinkSpec(number, fid), PAUSED))
        self._serve(link)
        await self._put(link, "its settings were lost: it is paused, with others")
        return ""

    async def pause(self, link: Link, paused: bool) -> None:
        """Stop what a link does by itself, or go on."""
        wanted = PAUSED if paused else ACTIVE
        await self._put(link, "paused" if paused else "resumed", if_other=True, state=wanted)
        link.asked.set()

    def ask(self, link: Link) -> int:
        """Have a link refreshed now; the number of the refresh, for `Link.ended`."""
        if link.row.state != ACTIVE:
            raise OSError(errno.EBUSY, f"the link is {link.row.state}" + (
                ": `nacre link resume` first" if link.row.state == PAUSED else ""))  # fmt: skip
        link.wanted += 1
        link.asked.set()
        return link.wanted

    def deleted(self, number: int, keys: Iterable[str]) -> None:
        """Objects have been deleted from here. If they are a link's, and its bucket is being listed, that may have seen
        them."""
        link = self.by_id.get(number)
        if link is not None and link.refresh is not None:
            link.refresh.deleted.update(key.encode() for key in keys)

    # ---------------------------------------------------------------------------------------------------------- keeping

    async def _keep(self, link: Link) -> None:
        await self._mds.grace.ended()
        while link.row.id in self.by_id:
            try:
                await self._keep_once(link)
            except OSError as error:
                if self._mds.journal.closed:
                    return
                log.warning("link %d: %s", link.row.id, error.strerror)
                await asyncio.sleep(RETRY_S)

    async def _keep_once(self, link: Link) -> None:
        if link.row.state == REMOVING:
            await self._unbind(link)
        elif link.row.state == ACTIVE and (link.wanted > link.ended or self._wait_s(link) == 0):
            await self._refresh(link)
        else:
            link.asked.clear()
            try:
                async with asyncio.timeout(self._wait_s(link)):  # (3.11's `wait_for` can miss that it is cancelled)
                    await link.asked.wait()
            except TimeoutError:
                pass

    def _wait_s(self, link: Link) -> float | None:
        """For how long nothing is to be done; None: until somebody asks."""
        row, now_ns = link.row, self._mds.clock.now_ns()
        if row.state != ACTIVE:
            return None
        if link.failures:
            last_ns = link.refresh_failed_ns
            return _left_s(last_ns + round(min(RETRY_MOST_S, RETRY_S * 2 ** min(link.failures - 1, 20)) * 1e9), now_ns)
        due_ns = due(row.spec, row.refreshed_ns)
        return None if due_ns is None else _left_s(due_ns, now_ns)

    async def _refresh(self, link: Link) -> None:
        number, row = link.wanted, link.row
        lines: list[str] = []
        refresh = link.refresh = Refresh(self._mds, row, lines.append)
        try:
            if self._mds.journal.reading.inode(row.fid) is None:
                raise OSError(errno.ENOENT, "the directory has been removed: `nacre link rm` ends the link")
            await refresh.run()
        except Exception as error:
            if self._mds.journal.closed:
                raise asyncio.CancelledError from error
            reason = error.strerror or str(error) if isinstance(error, OSError) else f"internal error: {error!r}"
            if not isinstance(error, OSError):
                log.exception("refresh of link %d", row.id)
            link.failures += 1
            link.refresh_failed_ns = self._mds.clock.now_ns()
            log.warning("link %d: refresh failed: %s", row.id, reason)
            if reason != row.reason:
                lines.append(f"refresh failed: {reason}")
            await self._put(link, *lines, reason=reason)
        else:
            link.failures = 0
            counts = refresh.counts
            if counts.did or row.reason or not row.refreshed_ns:
                lines.append(
                    f"refreshed: {counts.keys:,} keys, {counts.new:,} new, {counts.changed:,} changed, "
                    f"{counts.deleted:,} deleted, {counts.conflicts:,} in conflict, {counts.deferred:,} deferred, "
                    f"{counts.problems:,} no files, {counts.seconds:.1f} s"
                )
            if row.spec.imports == "data" and (counts.new or counts.changed):
                job = await self._mds.warmups.warm(row.fid)
                lines.append(f"warmup job {job.row.id} brings the contents")
            await self._put(link, *lines, refreshed_ns=refresh.began_ns, counts=counts, reason="")
        finally:
            link.refresh = None
            link.ended = max(link.ended, number)

    # --------------------------------------------------------------------------------------------------------- removing

    async def remove(self, link: Link, purge: bool, also: Callable[[Step], None]) -> None:
        """Unbind a directory's files and forget the link. OSError (ENOTEMPTY) if contents are in the bucket only,
        unless `purge`: then those files go."""
        if not purge and (count := self.released(link)):
            raise OSError(
                errno.ENOTEMPTY,
                f"{count:,} files are in the bucket only: `nacre hsm restore` brings them, --purge removes them",
            )
        await self._put(link, state=REMOVING, also=also)
        if link.keeper is not None:
            link.keeper.cancel()
            await asyncio.gather(link.keeper, return_exceptions=True)
        if link.exporter is not None:
            await link.exporter.stop()
        await self._unbind(link)

    def released(self, link: Link) -> int:
        """How many files of a link are in the bucket only."""
        store = self._mds.mdt.store
        rows = store.fetchall(store.statements.archive_counts, (link.row.id,))
        return sum(count for flags, count, _ in rows if flags & wire.HsmFlag.RELEASED)

    async def _unbind(self, link: Link) -> None:
        store, number = self._mds.mdt.store, link.row.id
        after = b""
        while rows := store.fetchall(store.statements.link_keys, (number, after, UNBIND)):
            after = rows[-1][0]
            await asyncio.gather(*(self._unbind_file(number, key, fid) for key, fid, _ in rows))
        archive = self._mds.hsm.archives[number]

        def forget(step: Step) -> None:
            step.tx.run("delete_link", (number,))
            step.tx.run("delete_link_dirties", (number,))
            step.tx.unmarked.update(fid for fid, link in step.tx.mdt.dirty.items() if link == number)
            step.tx.run("put_archive", (number, f"{archive.name}\n{number}", _encode(archive), 1))
            step.tx.run("trim_link_log", (number, link.lines + 1))

        await self._mds.journal.submit_own(forget)
        del self.by_id[number]
        self._changed()
        self._mds.hsm.archives.pop(number, None)
        self._mds.hsm.archives_changed()

    async def _unbind_file(self, number: int, key: bytes, fid: int) -> None:
        hsm, journal = self._mds.hsm, self._mds.journal
        if fid:
            await hsm.cancel(fid)
        try:
            await journal.submit_own(partial(steps.detach, fid=fid, link=number, key=key))
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            await journal.submit_own(partial(steps.remove_file, fid=fid, link=number, force=True))

    # ----------------------------------------------------------------------------------------------- when a file comes

    async def follow(self, row: HsmRow, readable: bool) -> str:
        """A file that is being brought in turns out to have another object by now: give it that one's size and time.
        What happened, for who waits. `readable`: bytes of the old one may have been read already."""
        link = self.need(row.archive)
        spec = self._mds.hsm.archive_of(row.archive)
        entry: wire.ArchiveEntry = await self._mds.hsm.ask_one(wire.MoveHead(spec, row.key))

        def step_of(step: Step) -> bool:
            inode = step.tx.need(row.fid)
            if hsm_of(step.tx, inode).etag != row.etag:
                return True
            return steps.replace_contents(step, row.fid, row.archive, replace(entry, meta=()), False, True)

        await self._mds.journal.submit_own(step_of)
        self.note(link, f"{row.key!r}: the object was replaced while it was brought in")
        return "the object was replaced" + (" while it was read: read the file again" if readable else "")


def due(spec: LinkSpec, refreshed_ns: int) -> int | None:
    """When a link is to be refreshed next, in ns; None: when somebody asks. Cron expressions are in local time."""
    if spec.cron:
        last = datetime.fromtimestamp(refreshed_ns / 1e9).astimezone()
        return round(croniter(spec.cron, last).get_next(float) * 1e9)
    return refreshed_ns + round(spec.every_s * 1e9) if spec.every_s else None


def _left_s(until_ns: int, now_ns: int) -> float:
    return max(0, until_ns - now_ns) / 1e9


def _report(done: "asyncio.Future[Any]") -> None:
    if not done.cancelled() and (error := done.exception()) is not None and not isinstance(error, OSError):
        log.error("a link's keeper failed", exc_info=error)
