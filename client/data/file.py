"""An open or dirty file: what it is while we own it, and what has gone wrong with it.

Life of a written byte: `put` keeps it (`pending`); a flight carries it to the OSTs (`writebehind`), which say what they
have (`stored`); `commit` tells the MDS the new size and mtime, or, for a small file, the contents themselves. `error`
says why something did not get there, fails later writes, fsync and close, and goes away when a retry succeeds.

Hazards at awaits: bytes may be written while a commit is under way (`version` tells); a recall may run between any two
steps (whoever commits, cuts or copies holds `lock`, and new writes wait while `frozen`).
"""

import asyncio
import errno
import logging
from typing import TYPE_CHECKING, Final

from nacrefs.client.cache import INLINE, MODES, READ, WRITE, Inode
from nacrefs.client.data.extents import overlay
from nacrefs.client.data.pending import Pending
from nacrefs.client.data.stored import Stored
from nacrefs.client.data.writebehind import launch
from nacrefs.common.wire import Attr, Mode

if TYPE_CHECKING:
    from nacrefs.client.data.store import Store

log = logging.getLogger("nacre.client")
RETRY_MOST_S: Final = 60.0


class File:
    """One file that is open here, or has data that the servers have not."""

    __slots__ = (
        "_retry",
        "_retry_s",
        "changed_ns",
        "committed",
        "error",
        "frozen",
        "inline",
        "inode",
        "lock",
        "losses",
        "mtime_ns",
        "pending",
        "plain",
        "readers",
        "reporting",
        "size",
        "store",
        "stored",
        "thawed",
        "through",
        "told",
        "unreported",
        "version",
        "writers",
    )

    def __init__(self, store: "Store", inode: Inode) -> None:
        self.store = store
        self.inode = inode
        self.readers = 0
        self.writers = 0
        self.pending = Pending(store.memory)
        self.stored = Stored()
        self.size = 0
        self.mtime_ns = 0
        self.changed_ns = 0
        """when it was last changed here"""
        self.version = 0
        """grows with every change of contents, size or mtime made here"""
        self.committed = 0
        """the version that the MDS knows"""
        self.inline = False
        self.plain = -1
        """`Inode.recalls` when it was known to have no file capabilities"""
        self.error: OSError | None = None
        self.losses = 0
        """how often data is gone that a program thinks is written: each open file is told by its next fsync"""
        self.told = 0
        """the losses that some fsync has told of: who opens the file later is told of the others, too"""
        self.frozen = 0
        self.thawed: asyncio.Event | None = None
        self.lock = asyncio.Lock()
        self.reporting: asyncio.Future[None] | None = None
        """set while a Commit of what is dirty is under way: until it is answered the MDS must not think that the WRITE
        lease has ended, or it would refuse it"""
        self.through = False
        """it is shared: what differs from `committed` is only what is to be reported, nothing is kept here"""
        self.unreported = 0
        """its share of `Store.unreported`"""
        self._retry: asyncio.TimerHandle | None = None
        self._retry_s = store.config.write.retry_s

    # ------------------------------------------------------------------------------------------------------- what it is

    @property
    def dirty(self) -> bool:
        """The MDS does not know everything yet."""
        return self.version != self.committed

    @property
    def mode(self) -> Mode:
        """How it is open here."""
        return MODES[(self.readers > 0) + 2 * (self.writers > 0)]

    def mode_beside(self, lease: int) -> Mode:
        """What must be registered at the MDS if we keep this lease: nothing that the lease covers, but all if the file
        has no name any more, since only that keeps it."""
        attr = self.inode.attr
        if attr is not None and not attr.nlink:
            return self.mode
        if lease >= WRITE or (lease >= READ and not self.writers):
            return Mode.CLOSED
        return self.mode

    @property
    def size_now(self) -> int:
        """The size, if a lease is held."""
        if self.version != self.committed and not self.through:
            return self.size
        attr = self.inode.attr
        return attr.size if attr is not None else 0

    def attr_now(self, attr: Attr) -> Attr:
        """Attributes as they are with what is dirty."""
        if self.version == self.committed or self.through:
            return attr
        blocks = max(attr.blocks, -(-self.pending.extents.bytes // 512), self.stored.blocks(self.inode))
        mtime_ns = self.mtime_ns
        ctime_ns = max(attr.ctime_ns, self.changed_ns)
        return Attr(
            attr.fid, attr.mode, attr.nlink, attr.uid, attr.gid, attr.rdev, self.size, blocks, attr.atime_ns, mtime_ns,
            ctime_ns, attr.btime_ns, attr.change, attr.flags,
        )  # fmt: skip

    # ---------------------------------------------------------------------------------------------------------- writing

    def own(self, through: bool = False) -> None:
        """Begin to change it: we have the WRITE lease, or (`through`) it is shared and we report what we did."""
        if self.version == self.committed or (self.through and not through):
            attr = self.inode.attr
            if attr is not None:
                self.size = 0 if through else attr.size
                self.mtime_ns, self.changed_ns = attr.mtime_ns, attr.ctime_ns
                self.inline = attr.flags & INLINE != 0
        self.through = through
        if through:
            self.inline = False

    def put(self, offset: int, data: memoryview) -> None:
        """New bytes, for which memory has been taken; the WRITE lease is held."""
        if self.version == self.committed or self.through:
            self.own()
        self.pending.put(offset, data)
        end = offset + len(data)
        if end > self.size:
            self.size = end
        self.touch()
        if self.inode.quota >= 0:
            self.count(len(data))
        if self.inline:
            if end <= self._inline_limit:
                return
            self.leave_inline()
        write, pending = self.store.config.write, self.pending
        if pending.extents.bytes >= min(write.request_bytes, write.behind_bytes * (1 + len(pending.flights))):
            launch(self)

    @property
    def _inline_limit(self) -> int:
        layout = self.inode.layout
        if layout is None or layout.inline_bytes < 0:
            return self.store.session.inline_bytes
        return layout.inline_bytes

    def count(self, size: int) -> None:
        """Bytes that count against a quota have been written."""
        self.unreported += size
        self.store.unreported += size

    def counted(self, size: int) -> None:
        """The MDS has heard of that many, or they are gone."""
        self.unreported -= size
        self.store.unreported -= size

    def reported(self, end: int) -> None:
        """Bytes up to `end` were written through; that something was is reported at the next commit, what the OSTs
        know."""
        self.own(through=True)
        self.size = max(self.size, end)
        self.inode.epoch += 1
        self.touch()

    def touch(self) -> None:
        """It has changed now."""
        store = self.store
        self.mtime_ns = self.changed_ns = store.session.clock.now_ns()
        if self.version == self.committed:
            store.dirty[self.inode.fid] = self
        self.version += 1

    @property
    def written_ns(self) -> int:
        """When the bytes under way were written, as the objects are told (not 0, which is now). Never later than the
        last change that the MDS has heard of or will: once the writer is dead, that would look like one it has not."""
        mtime_ns = self.mtime_ns
        if mtime_ns > self.changed_ns:  # it was set
            attr = self.inode.attr
            mtime_ns = min(mtime_ns, attr.ctime_ns if attr is not None else self.changed_ns)
        return mtime_ns or 1

    def leave_inline(self) -> None:
        """From now on its contents belong on OSTs: what lies in the MDT, or is on its way there, becomes dirty data."""
        self.inline = False
        end = min(self.size, self.inline_end)
        if end:  # at most an inline file
            self.pending.put_below(0, self.inline_part(0, end))

    def discard(self, size: int) -> None:
        """Drop dirty bytes from `size` on."""
        self.pending.cut(size, max(self.pending.extents.end, size))

    # ---------------------------------------------------------------------------------------------------------- reading

    def inline_part(self, start: int, end: int) -> memoryview:
        """Bytes `[start, end)` of an inline file, with what is dirty; `end` is at most its size. Behind its contents an
        inline file may have a hole of any length."""
        data = self.inode.data or b""
        extents = self.pending.newest(start, end)
        if not extents and end <= len(data):
            return memoryview(data)[start:end]
        if len(extents) == 1 and extents[0].start <= start and extents[0].end >= end:
            return extents[0].part(start, end)
        contents = bytearray(end - start)
        known = data[start:end]
        contents[: len(known)] = known
        view = memoryview(contents)
        overlay(extents, start, view)
        return view

    @property
    def inline_end(self) -> int:
        """Where the contents of an inline file end as the MDS has them, or will have them when it has answered."""
        return max(len(self.inode.data or b""), self.pending.flying_end)

    def inline_contents(self) -> bytes:
        """The contents for a commit: all but the hole at the end."""
        return bytes(self.inline_part(0, min(self.size, max(self.inline_end, self.pending.extents.end))))

    # ----------------------------------------------------------------------------------------------------------- errors

    def failed(self, error: OSError) -> None:
        """Something did not get to the servers: it is tried again later."""
        if self.inode.gone:
            return
        log.warning("writing inode %#x failed: %s", self.inode.fid, error.strerror or error)
        self.error = error
        if self._retry is None and self.losses == self.told:
            loop = asyncio.get_running_loop()
            self._retry = loop.call_later(self._retry_s, self._try_again)
            self._retry_s = min(2 * self._retry_s, RETRY_MOST_S)

    @property
    def retries(self) -> bool:
        """It is going to be tried again."""
        return self._retry is not None

    def _try_again(self) -> None:
        self._retry = None
        if self.dirty and not self.inode.gone:
            self.store.retry(self)

    def recovered(self) -> None:
        """The servers take what they had refused."""
        self.error = None
        self._retry_s = self.store.config.write.retry_s

    def take_error(self) -> OSError:
        """The error to raise: a new object each time."""
        error = self.error
        if error is None:
            return OSError(errno.EIO, "data that was not written yet was lost with the session")
        return OSError(error.errno or errno.EIO, error.strerror or str(error))

    def check(self, told: int) -> None:
        """Raise what went wrong behind the back of an open file, which has been told of so many losses."""
        if self.error is not None or told != self.losses:
            raise self.take_error()

    def abandon(self, lost: bool) -> None:
        """Drop all that is dirty: the session is lost, or the inode is gone."""
        if lost and self.dirty:
            self.losses += 1
            log.error("inode %#x: data that was not written yet is lost with the session", self.inode.fid)
        self.pending.drop()
        self.committed = self.version
        self.error = None
        self.counted(self.unreported)
        self.stop_retry()
        self.store.dirty.pop(self.inode.fid, None)

    def stop_retry(self) -> None:
        """Forget about a planned retry."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    # ------------------------------------------------------------------------------------------------------------- end

    def settle(self) -> None:
        """Nothing is dirty any more, perhaps."""
        if not self.dirty:
            self.stop_retry()
            self.store.dirty.pop(self.inode.fid, None)

    def let_go(self) -> None:
        """End its life if it is neither open nor dirty."""
        inode = self.inode
        if (
            not self.readers
            and not self.writers
            and not self.dirty
            and not self.pending.flights
            and not self.lock.locked()
        ):
            self.stop_retry()
            if inode.file is self:
                inode.file = None
            elif inode.file is not None:  # opened again since: the inode is that one's
                return
            if inode.gone or (not inode.lease and inode.recall is None and inode.registered == Mode.CLOSED):
                self.store.session.cache.drop(inode)

    def was_cut(self, size: int) -> None:
        """The MDS has set the size."""
        self.size = size
        self.stored.was_cut()
        self.inode.epoch += 1
        attr = self.inode.attr
        if attr is not None:
            self.mtime_ns = attr.mtime_ns

    # --------------------------------------------------------------------------------------------------------- freezing

    def freeze(self) -> None:
        """Make new writes wait."""
        self.frozen += 1
        if self.thawed is None:
            self.thawed = asyncio.Event()

    def thaw(self) -> None:
        """Let them go on."""
        self.frozen -= 1
        if not self.frozen and self.thawed is not None:
            self.thawed.set()
            self.thawed = None
