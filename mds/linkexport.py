"""A link's bucket follows its files.

What is to be sent is marked in the transaction that changes a file (`mds/linkmarks.py`), and the mark goes in the one
that knows the object (`hsmsteps.end_archive`): no kill loses a change. The copying is the coordinator's ARCHIVE, with
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

from nacrefs.common.wire import HsmAction, Mode
from nacrefs.mds import linksteps
from nacrefs.mds.hsmqueue import EXPORT
from nacrefs.mds.hsmrows import ARCHIVED, RELEASED, hsm_of
from nacrefs.mds.linkmarks import key_of
from nacrefs.mds.step import Step
from nacrefs.mds.tx import Tx

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
        self.modes: tuple[str, ...] = ()
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
            await self._submit(lambda step: step.tx.sent(fid))
        elif inode.is_directory:
            await self._walk(fid)
        else:
            try:
                key = key_of(self._reading, fid, self._root)
            except OSError as error:
                if error.errno != errno.ENOENT:
                    raise
                await self._leave(fid)
                return
            row = hsm_of(self._reading, inode)
            own = row.archive == self._link and bool(row.key)
            followed = ("changed" if own else "new") in self.modes
            if not followed or (own and inode.attr.flags & RELEASED and row.key == key):
                await self._submit(lambda step: step.tx.sent(fid))
                return
            await self._mds.hsm.need(fid, 0, 1 << 62)
            await self._put(fid, key)

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
        row = None if inode is None else hsm_of(self._reading, inode)
        if inode is None or row is None or not inode.attr.flags & ARCHIVED or row.archive != self._link:
            await self._submit(lambda step: step.tx.sent(fid))
            return
        await self._mds.hsm.need(fid, 0, 1 << 62)
        key = row.key

        def step_of(step: Step) -> None:
            linksteps.detach(step, fid, self._link, key.encode())
            step.tx.drop_object(self._link, key)
            step.tx.sent(fid)

        await self._submit(step_of)

    async def _walk(self, directory: int) -> None:
        """Mark all files below a directory that was moved."""
        below = [directory]
        while below:
            fid, after = below.pop(), b""
            while entries := self._reading.listing(fid, after, WALK):
                after = entries[-1][0]
                files = [attr.fid for _, attr in entries if stat.S_ISREG(attr.mode)]
                below += [attr.fid for _, attr in entries if stat.S_ISDIR(attr.mode)]
                await self._submit(partial(_mark_all, files, self._link))
        await self._submit(lambda step: step.tx.sent(directory))

    async def _submit(self, step: Callable[[Step], Any]) -> None:
        await self._mds.journal.submit_own(step)

    async def flush(self) -> None:
        """Return when the bucket has all that was written before. OSError: EIO with the reason if something cannot be
        sent, EBUSY if only files that are open for writing are left: they are sent once they are closed."""
        held = [fid for fid, lease in self._mds.leases.single.items() if lease & 3 == 2]
        for at in range(0, len(held), WALK):
            some = (self._submit(partial(_settle, fid)) for fid in held[at : at + WALK])
            await asyncio.gather(*some, return_exceptions=True)
        left = set(self.waiting())
        self._hurry |= left
        while left and not self._mds.journal.closed:
            if not self.modes:
                raise OSError(errno.EBUSY, "the link is paused: `nacre link resume` first")
            if all(self._is_open(fid) for fid in left):
                raise OSError(
                    errno.EBUSY, f"{len(left):,} files are open for writing: they are sent once they are closed"
                )
            failed = [fid for fid in left if fid in self._failed and fid not in self._hurry and fid not in self._busy]
            if len(failed) == len(left):
                raise OSError(errno.EIO, f"{len(left):,} files cannot be sent: {self._failed[failed[0]][1]}")
            await asyncio.sleep(LOOK_S / 4)
            gone = left - self._mds.mdt.dirty.keys()
            left -= gone
            if gone and not left:  # files of a directory that was moved are marked now
                left = set(self.waiting()) - self._since.keys()
                self._hurry |= left


def _mark_all(fids: list[int], link: int, step: Step) -> None:
    for fid in fids:
        step.tx.mark(fid, link)


def _settle(fid: int, step: Step) -> None:
    """What a client has not told yet of a file that it writes is known."""
    if step.tx.inode(fid) is not None:
        step.leases.truth(fid)
