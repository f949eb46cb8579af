"""A link's bucket follows its files.

What is to be sent is marked in the transaction that changes a file (`mds/links/marks.py`), and the mark goes in the one
that knows the object (`steps.end_archive`): no kill loses a change. The copying is the coordinator's ARCHIVE, with
the file's path as the key: one version at a time, retried, aborted. Objects of files that are gone or have another name
wait in `hsm_gone` until the bucket has confirmed; no file is sent to a key that waits there.
"""

import asyncio
import errno
import logging
import stat
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import replace

from nacrefs.common.wire import ArchiveEntry, HsmAction, Mode, MoveHead
from nacrefs.mds.hsm.queue import EXPORT
from nacrefs.mds.hsm.rows import ARCHIVED, RELEASED, hsm_of
from nacrefs.mds.hsm.steps import forget_doubtful
from nacrefs.mds.inode import Inode
from nacrefs.mds.links import steps
from nacrefs.mds.links.marks import key_of
from nacrefs.mds.links.rows import Item, item_of
from nacrefs.mds.links.symlinks import give_way, targets_of
from nacrefs.mds.transactions.step import Step
from nacrefs.mds.transactions.tx import Tx

if TYPE_CHECKING:
    from nacrefs.mds.service import Mds

log = logging.getLogger("nacre.mds")
WIDTH: Final = 32
"""Files that are being sent at a time."""
QUIET_S: Final = 1.0
"""A file that changes is sent after it has not for so long,"""
HELD_S: Final = 5.0
"""after so long if a client may have it open, which is told to give up its lease then, or"""
MOST_S: Final = 30.0
"""after so long."""
LOOK_S: Final = 0.2
AGAIN_S: Final = 30.0
"""When a file that could not be sent is tried again."""
WALK: Final = 1000


class Exporter:
    """Sends the files of one link. `modes`: what it follows now (`new`, `changed`, `deleted`); none: it is paused."""

    def __init__(self, mds: "Mds", link: int, root: int, note: Callable[[str], None]) -> None:
        self._mds = mds
        self._link = link
        self._root = root
        self._note = note
        self._reading = Tx(mds.mdt, writable=False)
        self._since: dict[int, tuple[float, float, int]] = {}
        """Marked files: when they were first seen so, when they last changed, and their version then."""
        self._failed: dict[int, tuple[float, str]] = {}
        """When to try again, and why not now."""
        self._busy: dict[int, asyncio.Task[None]] = {}
        self._hurry: set[int] = set()
        self._flushes: list[set[int]] = []
        """what each `flush` under way waits for"""
        self.modes: tuple[str, ...] = ()
        self.conflict = "fail"
        """What becomes of a file whose object somebody else has replaced since."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """End; what is not sent is sent next time."""
        tasks = [self._task, *self._busy.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def waiting(self) -> list[int]:
        """Files that are to be sent."""
        return [fid for fid, link in self._mds.mdt.dirty.items() if link == self._link]

    def failures(self) -> dict[str, str]:
        """Why files could not be sent."""
        return {f"{fid:#x}": reason for fid, (_, reason) in self._failed.items()}

    async def _run(self) -> None:
        await self._mds.grace.ended()
        while not self._mds.journal.closed:
            try:
                if self.modes:
                    self._look()
            except Exception:
                log.exception("export of link %d", self._link)
            await asyncio.sleep(LOOK_S)

    def _look(self) -> None:
        """Begin with what is due."""
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        marked = self.waiting()
        for fid in self._since.keys() - set(marked):
            del self._since[fid]
            self._failed.pop(fid, None)
        for fid in marked:
            if len(self._busy) >= WIDTH:
                return
            if fid not in self._busy and self._is_due(fid, now_s):
                task = self._busy[fid] = loop.create_task(self._send(fid))
                task.add_done_callback(partial(self._ended, fid))

    def _ended(self, fid: int, task: "asyncio.Task[None]") -> None:
        self._busy.pop(fid, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("export of %#x", fid, exc_info=error)

    def _is_due(self, fid: int, now_s: float) -> bool:
        inode = self._reading.inode(fid)
        version = -1 if inode is None else inode.data_version
        first_s, changed_s, before = self._since.get(fid, (now_s, now_s, version))
        if version != before:
            changed_s = now_s
            self._failed.pop(fid, None)
        self._since[fid] = (first_s, changed_s, version)
        if self._is_open(fid):
            return False
        if fid in self._hurry:
            return True
        if fid in self._failed and now_s < self._failed[fid][0]:
            return False
        quiet_s = HELD_S if self._mds.leases.writer(fid) else QUIET_S
        return now_s - changed_s >= quiet_s or now_s - first_s >= MOST_S

    def _is_open(self, fid: int) -> bool:
        """Whether somebody is known to have it open for writing: what is there is not to be copied then."""
        return any(mode & Mode.WRITE for mode in self._mds.mdt.opens.get(fid, {}).values())

    async def _send(self, fid: int) -> None:
        try:
            await self._follow(fid)
        except OSError as error:
            if self._mds.journal.closed:
                return
            reason = error.strerror or str(error)
            if self._failed.get(fid, (0, ""))[1] != reason:
                self._note(f"{fid:#x} cannot be sent: {reason}")
            self._failed[fid] = (asyncio.get_running_loop().time() + AGAIN_S, reason)
        else:
            self._failed.pop(fid, None)
        finally:
            self._hurry.discard(fid)

    async def _follow(self, fid: int) -> None:
        """Make the bucket follow one file, or mark the files of a directory that was moved."""
        inode = self._reading.inode(fid)
        if inode is None or not inode.attr.nlink:
            await self._submit(partial(_give_up, fid, self._link))
        elif inode.is_directory:
            await self._walk(fid)
        else:
            key = self._key(fid)
            if key is None:
                await self._leave(fid)
                return
            if self._is_settled(self._reading, inode, key):
                await self._submit(partial(self._settle, fid))
                return
            await self._mds.hsm.need(fid, 0, 1 << 62)
            try:
                await self._put(fid, key)
            except OSError as error:
                now = self._reading.inode(fid)
                if now is None or not now.attr.nlink:  # it has been removed meanwhile
                    await self._submit(partial(_give_up, fid, self._link))
                elif self._key(fid) is None:  # or moved away
                    await self._leave(fid)
                elif error.errno != errno.ESTALE or self.conflict == "fail":
                    raise
                else:
                    await self._give_way(fid, key)

    def _is_settled(self, tx: Tx, inode: Inode, key: str) -> bool:
        """Whether the bucket need not follow a file: it has it under this key, or is not to have what it has not."""
        row = hsm_of(tx, inode)
        own = row.archive == self._link and bool(row.key)
        followed = ("changed" if own else "new") in self.modes
        return not followed or (own and bool(inode.attr.flags & RELEASED) and row.key == key)

    def _settle(self, fid: int, step: Step) -> None:
        """It is not sent; unless it has been renamed or written meanwhile: then it is looked at again."""
        inode, key = step.tx.inode(fid), self._key_in(step.tx, fid)
        if inode is not None and key is not None and self._is_settled(step.tx, inode, key):
            step.tx.sent(fid)

    def _key(self, fid: int) -> str | None:
        """The key of a file; None if it is not below the link's directory any more."""
        return self._key_in(self._reading, fid)

    def _key_in(self, tx: Tx, fid: int) -> str | None:
        try:
            return key_of(tx, fid, self._root)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
            return None

    async def _give_way(self, fid: int, key: str) -> None:
        """Object and file have both changed: the file is not sent, and has the object's contents unless that is to be
        left to people."""
        if self.conflict == "skip":
            await self._submit(lambda step: step.tx.sent(fid))
            return
        spec = self._mds.hsm.archive_of(self._link)
        entry: ArchiveEntry = await self._mds.hsm.ask_one(MoveHead(spec, key))
        inode = self._reading.inode(fid)
        if inode is not None and inode.is_symlink:
            item = item_of(entry if steps.is_link(entry) else replace(entry, meta=()))
            assert isinstance(item, Item)
            targets = await targets_of(self._mds, self._link, [item])
            away = partial(give_way, fid=fid, link=self._link, root=self._root, item=item, targets=targets)
            if not await self._submit(away):
                return  # it has another name by now, and is looked at again
        else:
            bare = replace(entry, meta=())
            await self._submit(lambda step: steps.replace_contents(step, fid, self._link, bare, True))
        self._note(f"{key!r}: object and file have both changed, and the file has the object's contents now")

    async def _put(self, fid: int, key: str) -> None:
        hsm = self._mds.hsm
        others = [one for one in hsm.active.values() if one.row.archive == self._link and one.row.key == key]
        for other in others:
            if other.row.fid != fid:  # a file that is gone by now had this name: its object is to be deleted first
                await asyncio.gather(hsm.finish(other), return_exceptions=True)
        while (before := hsm.active.get(fid)) is not None and before.row.kind != HsmAction.ARCHIVE:
            await asyncio.gather(hsm.finish(before), return_exceptions=True)
        action = await hsm.request(HsmAction.ARCHIVE, fid, self._link, 0, EXPORT)
        if action is not None:
            await hsm.finish(action)

    async def _leave(self, fid: int) -> None:
        """A file was moved out of the link's directory: it keeps its contents, and its object goes."""
        inode = self._reading.inode(fid)
        if inode is not None and self._has_object(self._reading, inode):
            await self._mds.hsm.need(fid, 0, 1 << 62)
        await self._submit(partial(self._let_go, fid))

    def _has_object(self, tx: Tx, inode: Inode) -> bool:
        return bool(inode.attr.flags & ARCHIVED) and hsm_of(tx, inode).archive == self._link

    def _let_go(self, fid: int, step: Step) -> None:
        """Unless it has been moved back meanwhile: then it is looked at again."""
        inode = step.tx.inode(fid)
        if inode is not None and self._key_in(step.tx, fid) is not None:
            return
        if inode is None or not self._has_object(step.tx, inode):
            _give_up(fid, self._link, step)
            return
        step.leases.truth(fid)
        if inode.attr.flags & RELEASED:
            raise OSError(errno.EBUSY, "its contents are in the bucket only")
        key = hsm_of(step.tx, inode).key
        _give_up(fid, self._link, step)
        steps.detach(step, fid, self._link, key.encode())
        step.tx.drop_object(self._link, key)

    async def _walk(self, directory: int) -> None:
        """Mark all files below a directory that was moved."""
        below = [directory]
        while below:
            fid, after = below.pop(), b""
            while entries := self._reading.listing(fid, after, WALK):
                after = entries[-1][0]
                files = [attr.fid for _, attr in entries if stat.S_ISREG(attr.mode) or stat.S_ISLNK(attr.mode)]
                below += [attr.fid for _, attr in entries if stat.S_ISDIR(attr.mode)]
                await self._submit(partial(_mark_all, files, self._link))
                for left in self._flushes:
                    if directory in left:
                        left.update(files)
                        self._hurry.update(files)
        await self._submit(lambda step: step.tx.sent(directory))

    async def _submit(self, step: Callable[[Step], Any]) -> Any:
        return await self._mds.journal.submit_own(step)

    async def flush(self) -> None:
        """Return when the bucket has all that was written before. OSError: EIO with the reason if something cannot be
        sent, ENOSPC if the bucket is full, EBUSY if only files that are open for writing are left: they are sent once
        they are closed."""
        held = [fid for fid, lease in self._mds.leases.single.items() if lease & 3 == 2]
        for at in range(0, len(held), WALK):
            some = (self._submit(partial(_ask_writer, fid)) for fid in held[at : at + WALK])
            await asyncio.gather(*some, return_exceptions=True)
        left = set(self.waiting())
        self._hurry |= left
        self._flushes.append(left)
        try:
            await self._sent(left)
        finally:
            self._flushes = [other for other in self._flushes if other is not left]

    async def _sent(self, left: set[int]) -> None:
        """Return when nothing is `left` to be sent; errors as `flush` has them. Meanwhile the files of directories that
        were moved come to it."""
        full = self._mds.hsm.full
        refusals = full.refusals(self._link)
        self._mds.hsm.try_again(self._link)
        while left and not self._mds.journal.closed:
            if not self.modes:
                raise OSError(errno.EBUSY, "the link is paused: `nacre link resume` first")
            if all(self._is_open(fid) for fid in left):
                raise OSError(
                    errno.EBUSY, f"{len(left):,} files are open for writing: they are sent once they are closed"
                )
            failed = [fid for fid in left if fid in self._failed and fid not in self._hurry and fid not in self._busy]
            if full.refusals(self._link) != refusals and (why := full.why(self._link)):
                raise OSError(errno.ENOSPC, f"{len(left):,} files wait for room: {why}")
            if len(failed) == len(left):
                raise OSError(errno.EIO, f"{len(left):,} files cannot be sent: {self._failed[failed[0]][1]}")
            await asyncio.sleep(LOOK_S / 4)
            left.intersection_update(self._mds.mdt.dirty)


def _mark_all(fids: list[int], link: int, step: Step) -> None:
    for fid in fids:
        step.tx.mark(fid, link)


def _give_up(fid: int, link: int, step: Step) -> None:
    """A file is not sent any more."""
    forget_doubtful(step, fid, link)
    step.tx.sent(fid)


def _ask_writer(fid: int, step: Step) -> None:
    """What a client has not told yet of a file that it writes is known."""
    if step.tx.inode(fid) is not None:
        step.leases.truth(fid)
