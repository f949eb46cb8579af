"""An open or dirty file: its size while we own it, its dirty data, and how that gets to the OSTs and the MDS.

Life of a written byte: `put` keeps it as a dirty extent; a *flight* carries extents to the OSTs (write-behind);
`commit` tells the MDS the new size and mtime, or, for a small file, the contents themselves. A flight that fails puts
its extents back under newer ones, so nothing is lost; `error` says why, fails later writes, fsync and close, and goes
away when a retry succeeds.

Hazards at awaits: an extent may be overwritten while it flies (then a second flight waits for the first, see
`_launch`); bytes may be written while a commit is under way (`version` tells); a recall may run between any two steps
(`commit` holds `lock`, and new writes wait while `frozen`).
"""

import asyncio
import errno
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

from nacrefs.client.cache import INLINE, LEASES, MODES, NONE, READ, RELEASED, WRITE, Inode
from nacrefs.client.config import ClientConfig
from nacrefs.client.data.extents import Extent, Extents, overlay
from nacrefs.client.data.memory import Memory
from nacrefs.client.data.objects import Objects
from nacrefs.client.session import Session
from nacrefs.common import faults
from nacrefs.common.wire import Attr, Commit, GetAttr, Mode, Open, Want, Written

log = logging.getLogger("nacre.client")
RETRY_MOST_S: Final = 60.0


class Store:
    """What all files share: session, objects, memory, configuration, and which files are dirty."""

    def __init__(self, session: Session, objects: Objects, memory: Memory, config: ClientConfig) -> None:
        self.session = session
        self.objects = objects
        self.memory = memory
        self.config = config
        self.dirty: dict[int, File] = {}
        self.unreported = 0
        """bytes written to files whose owners have quotas, of which the MDS has not heard yet"""

    def file(self, inode: Inode) -> "File":
        """The file of an inode, made if it is neither open nor dirty."""
        file = inode.file
        if file is None:
            file = inode.file = File(self, inode)
        return file

    async def write_out_all(self) -> None:
        """Write and commit everything that is dirty (at unmount, and on syncfs); the first error is raised at the
        end."""
        failure: OSError | None = None
        for file in list(self.dirty.values()):
            try:
                await file.commit(sync=True)
            except OSError as error:
                if error.errno == errno.ESTALE or file.inode.gone:  # removed meanwhile: there is nowhere to store it
                    file.abandon(lost=False)
                    file.let_go()
                else:
                    failure = failure or error
        if failure is not None:
            raise failure


class Flight:
    """Extents that are under way."""

    __slots__ = ("dropped", "extents", "task")

    def __init__(self, extents: Extents) -> None:
        self.extents = extents
        self.dropped = False
        self.task: asyncio.Task[None] | None = None


class File:
    """One file that is open here, or has data that the servers have not."""

    __slots__ = (
        "_retry",
        "_retry_s",
        "_store",
        "allocated",
        "changed_ns",
        "committed",
        "error",
        "extents",
        "flights",
        "frozen",
        "grown",
        "inline",
        "inode",
        "lock",
        "losses",
        "mtime_ns",
        "plain",
        "readers",
        "reporting",
        "size",
        "thawed",
        "through",
        "told",
        "unreported",
        "unsynced",
        "version",
        "versions",
        "writers",
    )

    def __init__(self, store: Store, inode: Inode) -> None:
        self._store = store
        self.inode = inode
        self.readers = 0
        self.writers = 0
        self.extents = Extents()
        self.flights: list[Flight] = []
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
        self.unsynced: set[int] | None = None
        """objects written since they were made durable; None: nobody knows, so all"""
        self.versions: dict[int, int] = {}
        """of objects that were written and not made durable since: the version after the last write"""
        self.allocated: dict[int, int] = {}
        self.grown = 0
        """by how many bytes its objects have grown of which the MDS has not heard"""
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
        blocks = max(attr.blocks, -(-self.extents.bytes // 512), self._blocks())
        mtime_ns = self.mtime_ns
        ctime_ns = max(attr.ctime_ns, self.changed_ns)
        return Attr(
            attr.fid, attr.mode, attr.nlink, attr.uid, attr.gid, attr.rdev, self.size, blocks, attr.atime_ns, mtime_ns,
            ctime_ns, attr.btime_ns, attr.change, attr.flags,
        )  # fmt: skip

    def _blocks(self) -> int:
        """What its objects take, in units of 512 bytes: all of them if we have written all, else what the MDS knows and
        what has grown since."""
        attr, layout = self.inode.attr, self.inode.layout
        blocks = sum(self.allocated.values()) // 512
        if attr is None or attr.flags & INLINE or (layout is not None and len(self.allocated) >= len(layout.osts)):
            return blocks
        return max(blocks, attr.blocks + self.grown // 512)

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
        store = self._store
        extents = self.extents
        before = extents.bytes
        extents.put(offset, data)
        replaced = before + len(data) - extents.bytes
        if replaced:
            store.memory.give(replaced)
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
        write = store.config.write
        if extents.bytes >= min(write.request_bytes, write.behind_bytes * (1 + len(self.flights))):
            self._launch()

    @property
    def _inline_limit(self) -> int:
        layout = self.inode.layout
        if layout is None or layout.inline_bytes < 0:
            return self._store.session.inline_bytes
        return layout.inline_bytes

    def count(self, size: int) -> None:
        """Bytes that count against a quota have been written."""
        self.unreported += size
        self._store.unreported += size

    def counted(self, size: int) -> None:
        """The MDS has heard of that many, or they are gone."""
        self.unreported -= size
        self._store.unreported -= size

    def reported(self, end: int) -> None:
        """Bytes up to `end` were written through; that something was is reported at the next commit, what the OSTs
        know."""
        self.own(through=True)
        self.size = max(self.size, end)
        self.inode.epoch += 1
        self.touch()

    def touch(self) -> None:
        """It has changed now."""
        store = self._store
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
        if end:
            contents = self.inline_part(0, end)
            before = self.extents.bytes
            self.extents.put_below(0, contents)
            # At most an inline file: taken although there may be none, since it cannot wait here.
            self._store.memory.must_take(self.extents.bytes - before)

    def discard(self, size: int) -> None:
        """Drop dirty bytes from `size` on."""
        gone = self.extents.cut(size, max(self.extents.end, size))
        if gone:
            self._store.memory.give(gone)

    def punch_dirty(self, start: int, end: int) -> None:
        """Drop dirty bytes of a range."""
        gone = self.extents.cut(start, end)
        if gone:
            self._store.memory.give(gone)

    # ---------------------------------------------------------------------------------------------------------- reading

    def newest(self, start: int, end: int) -> list[Extent]:
        """Dirty extents that touch `[start, end)`, oldest first; to be laid over what the servers have."""
        found: list[Extent] = []
        for flight in self.flights:
            found.extend(flight.extents.within(start, end))
        found.extend(self.extents.within(start, end))
        return found

    def inline_part(self, start: int, end: int) -> memoryview:
        """Bytes `[start, end)` of an inline file, with what is dirty; `end` is at most its size. Behind its contents an
        inline file may have a hole of any length."""
        data = self.inode.data or b""
        extents = self.newest(start, end)
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
        end = len(self.inode.data or b"")
        for flight in self.flights:
            end = max(end, flight.extents.end)
        return end

    def _inline_contents(self) -> bytes:
        """The contents for a commit: all but the hole at the end."""
        return bytes(self.inline_part(0, min(self.size, max(self.inline_end, self.extents.end))))

    # ----------------------------------------------------------------------------------------------------- write-behind

    def _launch(self, everything: bool = False) -> None:
        """Send dirty extents, as far as flights may be under way and none of them carries older bytes of the same
        place."""
        store = self._store
        write = store.config.write
        layout = self.inode.layout
        most = write.request_bytes * (layout.stripe_count if layout is not None else 1)
        most = min(most, max(write.request_bytes, store.memory.limit_bytes // 8))
        while self.extents and (everything or len(self.flights) < write.in_flight):
            if not everything and self.extents.bytes < write.behind_bytes and not store.memory.short:
                return
            if len(self.flights) >= 4 * write.in_flight:
                return
            taken = self.extents.take(most)
            clash = next((n for n, extent in enumerate(taken) if self._flying(extent)), len(taken))
            for extent in taken[clash:]:
                self.extents.put_below(extent.start, extent.view)
            if not clash:
                return
            flight = Flight(Extents())
            for extent in taken[:clash]:
                extent.room = None  # what is appended from now on is not part of the flight
                flight.extents.append(extent)
            self.flights.append(flight)
            flight.task = store.session.spawn(self._fly(flight))
            if clash < len(taken):
                return

    def _flying(self, extent: Extent) -> bool:
        return any(flight.extents.within(extent.start, extent.end) for flight in self.flights)

    async def _fly(self, flight: Flight) -> None:
        store = self._store
        landed = False
        try:
            if not store.session.live:
                await store.session.wait_live()
            if flight.dropped:
                return  # the session ended meanwhile: somebody else may have written there since
            written = await store.objects.write(self.inode, list(flight.extents), mtime_ns=self.written_ns)
            landed = True
            self.wrote(written)
            if self.error is not None and not self.inode.gone:
                self.error = None
                self._retry_s = store.config.write.retry_s
        except OSError as error:
            if not flight.dropped:
                self._failed(error)
        finally:
            self.flights.remove(flight)
            size = flight.extents.bytes
            if landed or flight.dropped:
                store.memory.give(size)
            else:
                before = self.extents.bytes
                for extent in flight.extents:
                    self.extents.put_below(extent.start, extent.view)
                store.memory.give(size - (self.extents.bytes - before))
        if landed and self.extents:
            self._launch(everything=store.memory.short)

    def wrote(self, written: dict[int, Written]) -> None:
        """These objects have been written."""
        for number, answer in written.items():
            if self.unsynced is not None:
                self.unsynced.add(number)
            self.versions[number] = answer.version
            self.allocated[number] = answer.allocated_bytes
            self.grown += answer.grown_bytes

    def press(self) -> None:
        """Memory is short: send what is dirty."""
        if not self.inline and self.extents and self.error is None:
            self._launch(everything=True)

    async def land(self) -> None:
        """Wait until nothing is under way."""
        while self.flights:
            await asyncio.wait([flight.task for flight in self.flights if flight.task is not None])

    async def write_out(self) -> None:
        """Send all that is dirty now and wait for it; OSError if it did not get there."""
        for _ in range(2):  # the second time for extents that had to wait for older bytes of the same place
            while self.extents:
                before = len(self.flights)
                self._launch(everything=True)
                if not self.extents or len(self.flights) < 4 * self._store.config.write.in_flight:
                    if len(self.flights) == before:
                        break
                    continue
                await self.land()
                if self.error is not None:
                    raise self.take_error()
            await self.land()
            if self.error is not None:
                raise self.take_error()

    # ----------------------------------------------------------------------------------------------------------- errors

    def _failed(self, error: OSError) -> None:
        if self.inode.gone:
            return
        log.warning("writing inode %#x failed: %s", self.inode.fid, error.strerror or error)
        self.error = error
        if self._retry is None and self.losses == self.told:
            loop = asyncio.get_running_loop()
            self._retry = loop.call_later(self._retry_s, self._try_again)
            self._retry_s = min(2 * self._retry_s, RETRY_MOST_S)

    def _try_again(self) -> None:
        self._retry = None
        if self.dirty and not self.inode.gone:
            self._store.session.spawn(self.commit_quietly(READ))

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
        gone = self.extents.clear()
        if gone:
            self._store.memory.give(gone)
        for flight in self.flights:
            flight.dropped = True
        self.committed = self.version
        self.error = None
        self.counted(self.unreported)
        self.stop_retry()
        self._store.dirty.pop(self.inode.fid, None)

    def stop_retry(self) -> None:
        """Forget about a planned retry."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    # ----------------------------------------------------------------------------------------------------------- commit

    async def commit(self, lease: int = WRITE, sync: bool = False, spill: bool = False, recalled: bool = False) -> None:
        """Bring everything that is dirty now to the servers, and keep at most `lease`.

        With `sync` it is durable afterwards. With `spill` contents leave the MDT. `recalled`: the MDS will hear of the
        lease in the answer to its recall, so nothing is sent if nothing is dirty. OSError if it did not work; what was
        dirty is dirty still then, and will be tried again.
        """
        async with self.lock:
            inode = self.inode
            # (Who has given up the WRITE lease by itself meanwhile has nothing to move.)
            if spill and inode.lease >= WRITE and (self.inline or self._has_inline_contents()):
                self.own()
                self.leave_inline()
                times = self.mtime_ns, self.changed_ns
                self.touch()
                self.mtime_ns, self.changed_ns = times  # the contents go elsewhere, but are the same
            if not self.inline or not self.dirty:
                await self._store_contents(sync)
            keep = self._lease_kept(lease, recalled)
            mode = self.mode_beside(keep)
            if not self.dirty and keep == inode.lease and mode == inode.registered:
                self._settle()
                return
            if recalled and not self.dirty:
                inode.lease = keep
                if not keep:
                    inode.forget()
                self._settle()
                return
            try:
                await self._report(keep, recalled, sync)
            except OSError as error:
                if self.dirty and self._retry is None:
                    self._failed(error)
                raise

    async def _store_contents(self, sync: bool) -> None:
        """Bring to the OSTs what belongs there; with `sync`, or if the next report makes the MDT forget contents that
        fsync may have promised, it is durable there afterwards."""
        if self.extents or self.flights:
            await self.write_out()
        if (sync and not self._is_inline()) or self._leaves_mdt():
            await self._sync_objects()

    def _has_inline_contents(self) -> bool:
        attr = self.inode.attr
        return attr is not None and attr.flags & INLINE != 0 and attr.size > 0 and not self.dirty

    def _leaves_mdt(self) -> bool:
        """The next report makes the MDT forget contents."""
        attr = self.inode.attr
        return self.dirty and not self.inline and attr is not None and attr.flags & INLINE != 0 and attr.size > 0

    def _is_inline(self) -> bool:
        """Its contents lie in the MDT, or it has none."""
        attr = self.inode.attr
        if self.dirty:
            return self.inline
        return attr is not None and attr.flags & INLINE != 0

    def _touched(self) -> set[int]:
        """Objects that may have bytes that are not durable."""
        if self.unsynced is not None:
            return self.unsynced
        layout = self.inode.layout
        if layout is None:
            return set()
        stripes = min(layout.stripe_count, -(-max(self.size_now, self.size) // layout.stripe_bytes))
        return {number for stripe in range(stripes) for number in layout.objects_of(stripe)}

    async def _sync_objects(self) -> None:
        attr = self.inode.attr
        if attr is not None and attr.flags & RELEASED and not self.dirty:
            return  # there is nothing here that could be made durable
        if self.inode.layout is None:
            await self._store.objects.refresh(self.inode)
        versions = {number: self.versions.pop(number, 0) for number in self._touched()}
        before, self.unsynced = self.unsynced, set()
        if versions:
            try:
                await self._store.objects.sync(self.inode, versions)
            except OSError as error:
                self.unsynced = None if before is None else before | (self.unsynced or set())
                if error.errno == errno.ENOTRECOVERABLE:  # an OST has lost what it had taken
                    self.losses += 1
                    raise OSError(errno.EIO, error.strerror) from error
                self.versions = versions | self.versions
                self._failed(error)
                raise
        if not self.dirty:
            self.error = None

    async def _report(self, keep: int, recalled: bool = False, sync: bool = False) -> None:
        """Send a Commit."""
        inode, store = self.inode, self._store
        while not store.session.live:
            await store.session.wait_live()
            if not self.inline or not self.dirty:  # a small file may have outgrown the MDT meanwhile
                await self._store_contents(sync)
        dirty = self.dirty
        if dirty and self.through:
            # Others may have cut or lengthened the file since; what we wrote through counts there already. (If a lease
            # came back to us meanwhile, what came with it is the newest.)
            node = await store.session.mds.call(GetAttr(inode.fid, Want.LEASE))
            if self.through:
                self.size = inode.attr.size if inode.lease and inode.attr is not None else node.attr.size
            else:  # a lease came back, and somebody has written under it: size and lease are needed
                keep = WRITE
        keep = self._lease_kept(keep, recalled)
        behind = self._behind()
        version = self.version - (behind > 0)  # what is still to be sent is still to be reported
        data: bytes | None = None
        flight: Flight | None = None
        if dirty and self.inline:
            data = self._inline_contents()
            flight = Flight(self.extents)
            self.extents = Extents()
            self.flights.append(flight)
        blocks, grown = self._blocks(), self.grown
        # Not `mode_beside`: if the name is being removed right now, only what is registered keeps the file. What the
        # lease covers the MDS leaves out by itself.
        mode = self.mode
        changed_ns = 0 if self.through else self.changed_ns
        unreported = max(0, self.unreported - behind)
        request = (
            Commit(
                inode.fid,
                LEASES[keep],
                mode,
                True,
                self.size,
                self.mtime_ns,
                blocks,
                data,
                recalled=recalled,
                ctime_ns=changed_ns,
            )
            if dirty
            else Commit(inode.fid, LEASES[keep], mode)
        )
        before = inode.lease
        inode.lower(keep)
        done = False
        if dirty:
            self.reporting = asyncio.get_running_loop().create_future()
        try:
            if faults.on:
                faults.hit("client.commit.before")
            await store.session.mds.call(request)
            if faults.on:
                faults.hit("client.commit.after")
            done = True
        except OSError as error:
            if dirty:
                self._failed(error)
            raise
        finally:
            inode.lowered()
            if not done and not inode.lowering and inode.lease == keep >= READ and store.session.live:
                inode.lease = before
            if flight is not None:
                self._landed_inline(flight, done)
            if self.reporting is not None:
                self.reporting.set_result(None)
                self.reporting = None
        self.committed = max(self.committed, version)
        self.grown -= grown
        if unreported and self.unreported:
            self.counted(min(unreported, self.unreported))
        if self.error is not None:
            self.error = None
            self._retry_s = store.config.write.retry_s
        self._settle()
        if not recalled and self.mode_beside(inode.lease) & ~inode.registered:  # opened while this was under way
            store.session.spawn(self.register())

    def _behind(self) -> int:
        """How many bytes are not on the OSTs yet that belong there: written while a commit was waiting for them."""
        if self.inline:
            return 0
        return self.extents.bytes + sum(flight.extents.bytes for flight in self.flights)

    def _lease_kept(self, lease: int, recalled: bool) -> int:
        """What is kept of a lease: all of it while somebody has the file open for writing, or has written to it since,
        unless the MDS wants it back."""
        if not recalled and lease != NONE and (self.writers or self._behind()):
            lease = WRITE
        return min(lease, self.inode.lease)

    async def register(self) -> None:
        """Tell the MDS that we have it open, if it does not know: it would go with its last name."""
        inode, session = self.inode, self._store.session
        try:
            await session.wait_live()
            if self.mode_beside(inode.lease) & ~inode.registered:
                await session.mds.call(Open(inode.fid, self.mode))
        except OSError as error:
            log.warning("inode %#x: cannot be opened again: %s", inode.fid, error.strerror)

    def _landed_inline(self, flight: Flight, done: bool) -> None:
        self.flights.remove(flight)
        size = flight.extents.bytes
        if not done and not flight.dropped:
            before = self.extents.bytes
            for extent in flight.extents:
                self.extents.put_below(extent.start, extent.view)
            size -= self.extents.bytes - before
        self._store.memory.give(size)

    def _settle(self) -> None:
        """Nothing is dirty any more, perhaps."""
        if not self.dirty:
            self.stop_retry()
            self._store.dirty.pop(self.inode.fid, None)

    def let_go(self) -> None:
        """End its life if it is neither open nor dirty."""
        inode = self.inode
        if not self.readers and not self.writers and not self.dirty and not self.flights and not self.lock.locked():
            self.stop_retry()
            if inode.file is self:
                inode.file = None
            elif inode.file is not None:  # opened again since: the inode is that one's
                return
            if inode.gone or (not inode.lease and inode.recall is None and inode.registered == Mode.CLOSED):
                self._store.session.cache.drop(inode)

    async def commit_quietly(self, lease: int) -> None:
        """Commit in the background, after a close: errors stay with the file and are tried again."""
        try:
            await self.commit(lease)
        except OSError as error:
            if error.errno == errno.ESTALE or self.inode.gone:
                self.abandon(lost=False)
            else:
                log.debug("inode %#x is still dirty: %s", self.inode.fid, error.strerror)
        self.let_go()

    # ------------------------------------------------------------------------------------------------------- truncation

    @asynccontextmanager
    async def cutting(self, size: int) -> AsyncGenerator[None]:
        """Around a request that sets the size: dirty bytes beyond it are gone and nothing is under way."""
        self.freeze()
        try:
            async with self.lock:
                self.discard(size)
                await self.land()
                self.discard(size)
                inode = self.inode
                if self.dirty and not self.through and not self.inline and inode.lease >= WRITE:
                    # The MDS must know what lies on the OSTs, or it would not cut that.
                    await self._store_contents(sync=False)
                    await self._report(inode.lease)
                yield
        finally:
            self.thaw()

    def was_cut(self, size: int) -> None:
        """The MDS has set the size."""
        self.size = size
        self.allocated.clear()
        self.grown = 0
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
