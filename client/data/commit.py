"""What has been written is told to the MDS: the size, the times, and, of a small file, the contents themselves.

`commit` brings what belongs on OSTs there, and then sends one `Commit`, which may also give a lease back or say how the
file is open. It holds `File.lock`, so one is under way at a time; a recall, which waits for it, has made new writes
wait before (`File.frozen`), but otherwise bytes may be written meanwhile: `File.version` tells what the MDS knows.
"""

import asyncio
import errno
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from nacrefs.client.cache import INLINE, LEASES, NONE, READ, RELEASED, WRITE
from nacrefs.client.data.file import File
from nacrefs.client.data.writebehind import land, write_out
from nacrefs.common import faults
from nacrefs.common.wire import Commit, GetAttr, Open, Want

log = logging.getLogger("nacre.client")


async def commit(
    file: File, lease: int = WRITE, sync: bool = False, spill: bool = False, recalled: bool = False
) -> None:
    """Bring everything that is dirty now to the servers, and keep at most `lease`.

    With `sync` it is durable afterwards. With `spill` contents leave the MDT. `recalled`: the MDS will hear of the
    lease in the answer to its recall, so nothing is sent if nothing is dirty. OSError if it did not work; what was
    dirty is dirty still then, and will be tried again.
    """
    async with file.lock:
        inode = file.inode
        if spill:
            _spill(file)
        if not file.inline or not file.dirty:
            await _store_contents(file, sync)
        keep = _lease_kept(file, lease, recalled)
        mode = file.mode_beside(keep)
        if not file.dirty and keep == inode.lease and mode == inode.registered:
            file.settle()
            return
        if recalled and not file.dirty:
            inode.lease = keep
            if not keep:
                inode.forget()
            file.settle()
            return
        try:
            await _report(file, keep, recalled, sync)
        except OSError as error:
            if file.dirty and not file.retries:
                file.failed(error)
            raise


async def commit_quietly(file: File, lease: int) -> None:
    """Commit in the background, after a close: errors stay with the file and are tried again."""
    try:
        await commit(file, lease)
    except OSError as error:
        if error.errno == errno.ESTALE or file.inode.gone:
            file.abandon(lost=False)
        else:
            log.debug("inode %#x is still dirty: %s", file.inode.fid, error.strerror)
    file.let_go()


async def register(file: File) -> None:
    """Tell the MDS that we have it open, if it does not know: it would go with its last name."""
    inode, session = file.inode, file.store.session
    try:
        await session.wait_live()
        if file.mode_beside(inode.lease) & ~inode.registered:
            await session.mds.call(Open(inode.fid, file.mode))
    except OSError as error:
        log.warning("inode %#x: cannot be opened again: %s", inode.fid, error.strerror)


@asynccontextmanager
async def cutting(file: File, size: int) -> AsyncGenerator[None]:
    """Around a request that sets the size: dirty bytes beyond it are gone and nothing is under way."""
    file.freeze()
    try:
        async with file.lock:
            file.discard(size)
            await land(file)
            file.discard(size)
            inode = file.inode
            if file.dirty and not file.through and not file.inline and inode.lease >= WRITE:
                # The MDS must know what lies on the OSTs, or it would not cut that.
                await _store_contents(file, sync=False)
                await _report(file, inode.lease)
            yield
    finally:
        file.thaw()


# -------------------------------------------------------------------------------------------------- bringing it to OSTs


def _spill(file: File) -> None:
    """Let contents leave the MDT with the next report; they are the same, so its times are."""
    # (Who has given up the WRITE lease by itself meanwhile has nothing to move.)
    if file.inode.lease >= WRITE and (file.inline or (not file.dirty and _has_contents_in_mdt(file))):
        file.own()
        file.leave_inline()
        times = file.mtime_ns, file.changed_ns
        file.touch()
        file.mtime_ns, file.changed_ns = times


def _has_contents_in_mdt(file: File) -> bool:
    attr = file.inode.attr
    return attr is not None and attr.flags & INLINE != 0 and attr.size > 0


async def _store_contents(file: File, sync: bool) -> None:
    """Bring to the OSTs what belongs there; with `sync`, or if the next report makes the MDT forget contents that fsync
    may have promised, it is durable there afterwards."""
    if file.pending:
        await write_out(file)
    leaves_mdt = file.dirty and not file.inline and _has_contents_in_mdt(file)
    if (sync and not _is_inline(file)) or leaves_mdt:
        await _sync_objects(file)


def _is_inline(file: File) -> bool:
    """Its contents lie in the MDT, or it has none."""
    attr = file.inode.attr
    if file.dirty:
        return file.inline
    return attr is not None and attr.flags & INLINE != 0


async def _sync_objects(file: File) -> None:
    inode, stored, objects = file.inode, file.stored, file.store.objects
    if inode.attr is not None and inode.attr.flags & RELEASED and not file.dirty:
        return  # there is nothing here that could be made durable
    if inode.layout is None:
        await objects.refresh(inode)
    versions, before = stored.begin_sync(inode.layout, max(file.size_now, file.size))
    if versions:
        try:
            await objects.sync(inode, versions)
        except OSError as error:
            lost = error.errno == errno.ENOTRECOVERABLE  # an OST has lost what it had taken
            stored.sync_failed(before, {} if lost else versions)
            if lost:
                file.losses += 1
                raise OSError(errno.EIO, error.strerror) from error
            file.failed(error)
            raise
    if not file.dirty:
        file.error = None


# --------------------------------------------------------------------------------------------------- telling the MDS


class _Report:
    """One `Commit`, and what the MDS knows when it has answered it."""

    __slots__ = ("_file", "flight", "grown", "request", "unreported", "version")

    def __init__(self, file: File, keep: int, recalled: bool) -> None:
        inode = file.inode
        behind = _behind(file)
        self._file = file
        self.version = file.version - (behind > 0)  # what is still to be sent is still to be reported
        self.grown = file.stored.grown
        self.unreported = max(0, file.unreported - behind)
        self.flight = None
        # Not `mode_beside`: if the name is being removed right now, only what is registered keeps the file. What the
        # lease covers the MDS leaves out by itself.
        if not file.dirty:
            self.request = Commit(inode.fid, LEASES[keep], file.mode)
            return
        data: bytes | None = None
        if file.inline:
            data = file.inline_contents()
            self.flight = file.pending.board_all()
        self.request = Commit(
            inode.fid,
            LEASES[keep],
            file.mode,
            True,
            file.size,
            file.mtime_ns,
            file.stored.blocks(inode),
            data,
            recalled=recalled,
            ctime_ns=0 if file.through else file.changed_ns,
        )

    def answered(self) -> None:
        """The MDS knows it."""
        file = self._file
        file.committed = max(file.committed, self.version)
        file.stored.grown -= self.grown
        if self.unreported and file.unreported:
            file.counted(min(self.unreported, file.unreported))
        if file.error is not None:
            file.recovered()
        file.settle()


async def _report(file: File, keep: int, recalled: bool = False, sync: bool = False) -> None:
    """Send a Commit, after which at most the lease `keep` is left."""
    inode, session = file.inode, file.store.session
    while not session.live:
        await session.wait_live()
        if not file.inline or not file.dirty:  # a small file may have outgrown the MDT meanwhile
            await _store_contents(file, sync)
    if file.dirty and file.through:
        keep = await _learn_size(file, keep)
    keep = _lease_kept(file, keep, recalled)
    report = _Report(file, keep, recalled)
    dirty = report.request.dirty
    before = inode.lease
    inode.lower(keep)
    done = False
    if dirty:
        file.reporting = asyncio.get_running_loop().create_future()
    try:
        if faults.on:
            faults.hit("client.commit.before")
        await session.mds.call(report.request)
        if faults.on:
            faults.hit("client.commit.after")
        done = True
    except OSError as error:
        if dirty:
            file.failed(error)
        raise
    finally:
        inode.lowered()
        if not done and not inode.lowering and inode.lease == keep >= READ and session.live:
            inode.lease = before
        if report.flight is not None:
            file.pending.ended(report.flight, done)
        if file.reporting is not None:
            file.reporting.set_result(None)
            file.reporting = None
    report.answered()
    if not recalled and file.mode_beside(inode.lease) & ~inode.registered:  # opened while this was under way
        session.spawn(register(file))


async def _learn_size(file: File, keep: int) -> int:
    """The size to report of a shared file, and the lease to keep: others may have cut or lengthened it since, and what
    we wrote through counts there already. (If a lease came back to us meanwhile, what came with it is the newest.)"""
    inode = file.inode
    node = await file.store.session.mds.call(GetAttr(inode.fid, Want.LEASE))
    if not file.through:  # a lease came back, and somebody has written under it: size and lease are needed
        return WRITE
    file.size = inode.attr.size if inode.lease and inode.attr is not None else node.attr.size
    return keep


def _behind(file: File) -> int:
    """How many bytes are not on the OSTs yet that belong there: written while a commit was waiting for them."""
    return 0 if file.inline else file.pending.bytes


def _lease_kept(file: File, lease: int, recalled: bool) -> int:
    """What is kept of a lease: all of it while somebody has the file open for writing, or has written to it since,
    unless the MDS wants it back."""
    if not recalled and lease != NONE and (file.writers or _behind(file)):
        lease = WRITE
    return min(lease, file.inode.lease)
