"""One refresh of a link: the bucket's keys, page by page, next to what the MDT knows of them.

Nothing relies on the order of keys: servers differ (SeaweedFS lists as a tree, S3 bytewise). Files whose keys were not
seen are removed only after the whole listing has come, so a listing that fails removes nothing.
"""

import asyncio
import errno
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from msgspec.structs import replace

from nacrefs.common import wire
from nacrefs.common.wire import ArchiveEntry, HsmFlag
from nacrefs.mds.hsm.rows import HsmRow, hsm_of
from nacrefs.mds.links import steps
from nacrefs.mds.links.rows import Counts, Item, Known, LinkRow, item_of
from nacrefs.mds.links.steps import Clash, Inserter
from nacrefs.mds.links.symlinks import make_room, targets_of
from nacrefs.mds.transactions.step import Step

if TYPE_CHECKING:
    from nacrefs.mds.service import Mds

T = TypeVar("T")
PAGE: Final = 1000
"""Keys in one LIST, as many as S3 gives."""
STEP: Final = 250
"""New names in one step: while it runs, nobody else is served."""
SINGLY: Final = 32
"""Steps of single files that are under way at a time."""
NOTES: Final = 100
"""Lines about single keys that one refresh writes into the log."""
_NO, _ROOM, _TAKEN, _SENDING = range(4)


class Refresh:
    """One pass over a link's keys. `note` takes lines for people."""

    def __init__(self, mds: "Mds", link: LinkRow, note: Callable[[str], None]) -> None:
        self._mds = mds
        self._link = link
        self._note = note
        self._noted = 0
        self._seen: set[int] = set()
        """Fids whose keys are there."""
        self._markers: list[list[bytes]] = []
        """Directories that are keys of their own."""
        self._problems: set[bytes] = set()
        self.deleted: set[bytes] = set()
        """Keys whose objects were deleted from here since it began: a page may have been listed before."""
        self.began_ns = mds.clock.now_ns()
        self.counts = Counts()

    async def run(self) -> None:
        """Do it. OSError if the bucket cannot be listed, or the directory is gone."""
        began_s, after = time.monotonic(), ""
        coming: asyncio.Task[wire.ArchiveListing] | None = asyncio.ensure_future(self._list(""))
        try:
            while coming is not None:
                listing = await coming
                if listing.after and listing.after == after:
                    raise OSError(errno.EPROTO, f"the server lists the keys behind {after!r} again and again")
                after = listing.after
                coming = asyncio.ensure_future(self._list(listing.after)) if listing.after else None
                await self._page(listing.entries)
        finally:
            if coming is not None:
                coming.cancel()
        self._check_mounted()
        await self._remove_unseen()
        self.counts.seconds = round(time.monotonic() - began_s, 3)

    async def _list(self, after: str) -> wire.ArchiveListing:
        spec = self._mds.hsm.archive_of(self._link.id)
        order = wire.MoveList(spec, "", after, PAGE, self._link.spec.details)
        listing: wire.ArchiveListing = await self._mds.hsm.ask_one(order)
        return listing

    def _check_mounted(self) -> None:
        """OSError (ENODEV) if a directory has lost all its files at once: more likely nothing is mounted there."""
        store, link = self._mds.mdt.store, self._link.id
        archive = self._mds.hsm.archive_of(link)
        if archive.kind == "dir" and not self.counts.keys:
            known = len(store.fetchall(store.statements.link_keys, (link, b"", PAGE)))
            if known:
                raise OSError(
                    errno.ENODEV,
                    f"{archive.url} is empty, but had {known:,}{'+' if known == PAGE else ''} files: is it "
                    "mounted on the OSSes? (If they are all gone, make one file there, or `nacre link rm --purge`)",
                )

    def _tell(self, key: bytes | str, text: str) -> None:
        self._noted += 1
        name = key if isinstance(key, str) else key.decode()
        if self._noted <= NOTES:
            self._note(f"{name!r}: {text}")
        elif self._noted == NOTES + 1:
            self._note("more keys have the like: `nacre link log --problems` has those that are no files")

    # --------------------------------------------------------------------------------------------------------- a page

    async def _page(self, entries: Sequence[ArchiveEntry]) -> None:
        entries = [entry for entry in entries if entry.key]  # without: the prefix itself as a directory
        self.counts.keys += len(entries)
        known = self._known([entry.key.encode() for entry in entries])
        deleted = self._deleted(entries)
        modes = self._link.spec.auto_import
        new: list[Item] = []
        problems: list[tuple[bytes, str]] = []
        changed: list[tuple[Known, ArchiveEntry]] = []
        for entry in entries:
            item = item_of(entry)
            if isinstance(item, str):
                problems.append((entry.key.encode(), item))
                continue
            if item.directory:
                self._markers.append(item.parts)
            if item.key in deleted:
                continue
            before = known.get(item.key)
            if before is None or not before.fid:
                new.append(item)
                continue
            self._seen.add(before.fid)
            if before.fid in self._mds.hsm.active:
                continue  # it is being sent, or brought in: who does that knows the object
            if before.fid in self._mds.mdt.dirty and not self._force:
                if (before.etag, before.size) != (entry.etag, entry.size) and (before.archived_ns or 0) < self.began_ns:
                    self._conflict(before.key, "object and file have both changed, and the file is to be sent")
                continue
            if (before.etag, before.size) != (entry.etag, entry.size) and (before.archived_ns or 0) < self.began_ns:
                changed.append((before, entry))
            elif (before.flags or 0) & HsmFlag.LOST:
                await self._mds.journal.submit_own(partial(steps.find_again, fid=before.fid, etag=entry.etag))
        if new and "new" in modes:
            problems += await self._insert(new)
        if changed and "changed" in modes:
            await self._each(changed, self._change)
        await self._report(problems, known)

    def _deleted(self, entries: Sequence[ArchiveEntry]) -> set[bytes]:
        """Keys whose objects are to be deleted, since their files were, or have been since this began."""
        if self._link.id not in self._mds.mdt.deleting:
            return set()
        store, link = self._mds.mdt.store, self._link.id
        is_gone = store.statements.is_gone
        keys = ((entry.key, entry.key.encode()) for entry in entries)
        return {
            name for key, name in keys if name in self.deleted or store.fetchone(is_gone, (link, key)) is not None
        }  # fmt: skip

    def _known(self, keys: list[bytes]) -> dict[bytes, Known]:
        """What is known of these keys: one search, if not too many others are between them."""
        if not keys:
            return {}
        store, link = self._mds.mdt.store, self._link.id
        limit = 2 * len(keys) + 16
        rows = store.fetchall(store.statements.link_objects, (link, min(keys), max(keys), limit))
        if len(rows) == limit:
            found = (store.fetchone(store.statements.link_object, (link, key)) for key in keys)
            rows = [row for row in found if row is not None]
        return {row[0]: Known(*row) for row in rows}

    async def _insert(self, items: list[Item]) -> list[tuple[bytes, str]]:
        """Give new objects names; those that can have none, with the reason."""
        clashes: list[Clash] = []
        targets = await targets_of(self._mds, self._link.id, items)
        for at in range(0, len(items), STEP):
            clashes += await self._insert_some(items[at : at + STEP], targets)
        again: list[Item] = []
        problems: list[tuple[bytes, str]] = []
        for clash in clashes:
            way = await self._give_way(clash)
            if way == _ROOM:
                again.append(clash.item)
            elif way == _TAKEN:
                self.counts.changed += 1
                self._seen.add(clash.fid)
            elif way == _SENDING:
                self._seen.add(clash.fid)
            else:
                problems.append((clash.item.key, clash.reason))
        if again:
            problems += [(clash.item.key, clash.reason) for clash in await self._insert_some(again, targets)]
        return problems

    async def _insert_some(self, items: list[Item], targets: dict[bytes, bytes]) -> list[Clash]:
        link = self._link
        inserted: steps.Inserted = await self._mds.journal.submit_own(
            lambda step: Inserter(step, link.id, link.fid, targets).insert(items)
        )
        counts = self.counts
        counts.new += len(inserted.fids)
        counts.bytes += inserted.bytes
        self._seen.update(inserted.fids)
        return inserted.clashes

    async def _give_way(self, clash: Clash) -> int:
        """A key has no place because of what has its name. A clean file of this link gives way to a directory of the
        same name (objects `a` and `a/b`); other files only if conflicts are decided for the bucket: such a file takes
        the object's contents."""
        link, fid, key = self._link, clash.fid, clash.item.entry.key
        lost: list[bytes] = []
        overwrite = link.spec.conflict == "overwrite" and clash.whole

        def step_of(step: Step) -> int:
            inode = step.tx.inode(fid)
            if inode is None:
                return _ROOM
            if not (inode.is_regular or inode.is_symlink):
                return _NO
            row = hsm_of(step.tx, inode)
            if clash.whole and self._is_own(step, row, key):
                return _SENDING
            if row.archive == link.id and row.key != key and not clash.whole:
                if steps.remove_file(step, fid, link.id, False) is None:
                    return _NO
                lost[:] = [row.key.encode()]
                step.tx.run("put_link_object", (link.id, lost[0], 0, "a directory has its name"))
                return _ROOM
            if overwrite and row.archive != link.id:
                if inode.is_symlink:
                    make_room(step, fid, link.id, link.fid, key)
                    return _ROOM
                steps.replace_contents(step, fid, link.id, clash.item.entry, True)
                return _TAKEN
            return _NO

        try:
            way: int = await self._mds.journal.submit_own(step_of)
        except OSError as error:
            self._tell(clash.item.key, error.strerror or str(error))
            return _NO
        self._problems.update(lost)
        self.counts.problems += len(lost)
        return way

    def _is_own(self, step: Step, row: HsmRow, key: str) -> bool:
        """Whether an object is a file's that is being sent, or has been since the key was looked up."""
        sending = self._mds.hsm.active.get(row.fid)
        if sending is not None and (sending.row.archive, sending.row.key) == (self._link.id, key):
            return True
        if (row.archive, row.key) != (self._link.id, key):
            return False
        step.tx.run("put_link_object", (self._link.id, key.encode(), row.fid, ""))
        return True

    # ------------------------------------------------------------------------------------------------- changed, deleted

    async def _each(self, some: Iterable[T], work: Callable[[T], Awaitable[None]]) -> None:
        """Do a step for each, some at a time."""
        limit = asyncio.Semaphore(SINGLY)

        async def one(item: T) -> None:
            async with limit:
                await work(item)

        await asyncio.gather(*(one(item) for item in some))

    @property
    def _force(self) -> bool:
        return self._link.spec.conflict.startswith("overwrite")

    def _conflict(self, key: bytes, text: str) -> None:
        self.counts.conflicts += 1
        if self._link.spec.conflict != "skip":
            self._tell(key, text)

    async def _change(self, pair: tuple[Known, ArchiveEntry]) -> None:
        known, entry = pair
        inode = self._mds.journal.reading.inode(known.fid)
        was_link = inode is not None and inode.is_symlink
        if was_link and not self._link.spec.details:
            entry = await self._if_link(entry)
        if was_link or steps.is_link(entry):
            await self._make_anew(known, entry)
            return

        def replace_contents(step: Step) -> bool:
            steps.check_not_sent(step, known.fid, self._link.id, self.began_ns)
            return steps.replace_contents(step, known.fid, self._link.id, entry, self._force)

        try:
            done: bool = await self._mds.journal.submit_own(replace_contents)
        except OSError as error:
            if error.errno != errno.ENOENT:
                self.counts.deferred += 1
                self._tell(known.key, f"the object has changed, and the file must wait: {error.strerror}")
            return
        if done:
            self.counts.changed += 1
        else:
            self._conflict(known.key, "object and file have both changed")

    async def _if_link(self, entry: ArchiveEntry) -> ArchiveEntry:
        """An object with its metadata if it is a symbolic link, in place of one; else as it was listed."""
        spec = self._mds.hsm.archive_of(self._link.id)
        found: ArchiveEntry = await self._mds.hsm.ask_one(wire.MoveHead(spec, entry.key))
        return replace(entry, meta=found.meta) if steps.is_link(found) else entry

    async def _make_anew(self, known: Known, entry: ArchiveEntry) -> None:
        """A symbolic link has become another one, or a file, or a file one."""
        item = item_of(entry)
        assert isinstance(item, Item)
        deleted = self.counts.deleted
        await self._remove(set(), (known.key, known.fid))
        if self.counts.deleted > deleted:
            await self._report(await self._insert([item]), {})

    async def _remove_unseen(self) -> None:
        """Remove the files of keys that were there and are not."""
        if "deleted" not in self._link.spec.auto_import:
            return
        store, link, after = self._mds.mdt.store, self._link.id, b""
        stale: list[bytes] = []
        gone: list[tuple[bytes, int]] = []
        while rows := store.fetchall(store.statements.link_keys, (link, after, PAGE)):
            after = rows[-1][0]
            for key, fid, _ in rows:
                if not fid:
                    if key not in self._problems:
                        stale.append(key)
                elif fid not in self._seen:
                    gone.append((key, fid))
            await asyncio.sleep(0)
        for at in range(0, len(stale), PAGE):
            rows = [(link, key, 0) for key in stale[at : at + PAGE]]
            await self._mds.journal.submit_own(partial(steps.put_rows, "delete_link_object", rows))
        emptied: set[int] = set()
        await self._each(gone, partial(self._remove, emptied))
        if emptied:
            await self._remove_directories(emptied)

    async def _remove(self, emptied: set[int], pair: tuple[bytes, int]) -> None:
        key, fid = pair

        def remove(step: Step) -> list[int] | None:
            steps.check_not_sent(step, fid, self._link.id, self.began_ns)
            return steps.remove_file(step, fid, self._link.id, self._force)

        try:
            parents: list[int] | None = await self._mds.journal.submit_own(remove)
        except OSError as error:
            if error.errno != errno.ENOENT:
                self.counts.deferred += 1
                self._tell(key, f"the object was deleted, and the file must wait: {error.strerror}")
            return
        if parents is None:
            self._conflict(key, "the object was deleted and the file was changed")
        else:
            self.counts.deleted += 1
            emptied.update(parents)

    async def _remove_directories(self, emptied: set[int]) -> None:
        tx, root = self._mds.journal.reading, self._link.fid
        keep: set[int] = set()
        for parts in self._markers:
            fid = root
            for name in parts:
                fid = tx.dentry(fid, name) or 0
                if not fid:
                    break
            keep.add(fid)
        while emptied:
            fid = emptied.pop()
            work: Any = partial(steps.remove_empty, fid=fid, root=root, keep=keep)
            above: int = await self._mds.journal.submit_own(work)
            if above:
                emptied.add(above)

    async def _report(self, problems: list[tuple[bytes, str]], known: dict[bytes, Known]) -> None:
        """Keep what is known of keys that are no files; say what is new."""
        self.counts.problems += len(problems)
        self._problems.update(key for key, _ in problems)
        rows: list[tuple[int, bytes, str]] = []
        for key, reason in problems:
            before = known.get(key)
            if before is None or before.reason != reason:
                rows.append((self._link.id, key, reason))
                self._tell(key, f"is no file here: {reason}")
        if rows:
            await self._mds.journal.submit_own(partial(steps.put_rows, "put_link_problem", rows))
