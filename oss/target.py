"""One OST: one directory on one file system.

    ost.toml            what this directory is
    objects/XX/YY/F.N   object N of fid F (16 hexadecimal digits), a sparse file; XX, YY are bits 16-23 and 8-15 of the
                        fid, so that 256 fids that were made one after the other share a directory; the process that
                        serves the OST has objects/ locked (flock)
    index/              LMDB (`nacrefs.oss.index`)

`Target` keeps a bounded number of objects open, decides which may be used as they are and which must be re-hashed
first, and destroys them. What makes them durable is `Durability`.
"""

import asyncio
import errno
import fcntl
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import aclosing
from typing import Final

import msgspec

from nacrefs.common.buffers import page_aligned
from nacrefs.common.clock import boot_id
from nacrefs.common.wire import ObjectStat, TargetInfo
from nacrefs.oss import blockio
from nacrefs.oss.applied import Applied
from nacrefs.oss.copies import Copies, Tracker
from nacrefs.oss.durability import Durability
from nacrefs.oss.index import Change, Index
from nacrefs.oss.label import Label, read_label, write_label
from nacrefs.oss.object import CLEAN, CLEANING, DEAD, DIRTY, SUSPECT, StoredObject
from nacrefs.oss.pagesums import PageSums
from nacrefs.oss.recovery import objects_in_doubt, rehash_object, unknown_objects
from nacrefs.oss.space import Space
from nacrefs.oss.writtenblocks import WrittenBlocks

_log = logging.getLogger(__name__)
_ABSENT: Final = ObjectStat(0, 0, 0, 0)


class Limits(msgspec.Struct, frozen=True):
    """What one OST may use. `flush_s`: how long an object stays dirty if nobody syncs it."""

    reserve_bytes: int = 64 << 20
    reserve_percent: float = 1.0
    open_objects: int = 4096
    dirty_bytes: int = 512 << 20
    flush_s: float = 5.0


class Target:
    """An OST in service of this process. Make it with `Target.open`, in the event loop that it is to live in."""

    def __init__(self, root: str, label: Label, lock: int, limits: Limits, threads: blockio.IoThreads) -> None:
        self.root = root
        self.label = label
        self.scratch = memoryview(page_aligned(64 * 1024))
        """a block's worth of memory for one step of the event loop"""
        self.page_sums = PageSums()
        self.written_blocks = WrittenBlocks()
        self._lock = lock
        self._limits = limits
        self._threads = threads
        self._objects_root = os.path.join(root, "objects")
        total = os.statvfs(root).f_blocks * os.statvfs(root).f_frsize
        # 1/8192 of the bytes are sums; the map is address space, not memory, so be generous.
        self.index = Index(os.path.join(root, "index"), max(1 << 30, total // 64), self.where)
        self._disk = f"{boot_id().decode()}:{os.stat(root).st_dev}"
        self.space = Space(root, limits.reserve_bytes, limits.reserve_percent, self.where)
        self.copies = Copies()
        self.in_doubt: list[tuple[int, int]] = []
        """The objects `(fid, number)` that were being changed when the machine stopped."""
        self._table: OrderedDict[tuple[int, int], StoredObject] = OrderedDict()
        self._unclean = self.index.meta(b"clean") == b"0"
        boot = boot_id()
        rebooted = self.index.meta(b"boot") not in (None, boot)
        self.applied = Applied(os.path.join(root, "applied"), forget=self._unclean and rebooted)
        values = {b"clean": b"0", b"boot": boot}
        if self._unclean and rebooted:
            values[b"power_lost"] = b"%d" % time.time_ns()
        self.index.set_now(values)
        self.power_lost_ns = int(self.index.meta(b"power_lost") or b"0")
        """When the machine last started without having stopped this OST: what was not durable then is gone. Objects
        that were in doubt have higher versions."""
        if (doubt := self.applied.in_doubt) is not None:
            self.applied.settle(self.path_of(doubt.fid, doubt.number))
        self.durability = Durability(
            self.index,
            threads,
            self._objects_root,
            dirty_bytes_max=limits.dirty_bytes,
            dirty_objects_max=max(16, limits.open_objects // 2),
            flush_s=limits.flush_s,
        )
        self.recovery: asyncio.Task[None] | None = None
        if self._unclean:
            if rebooted:  # what a process alone leaves when it dies is in the page cache
                self.in_doubt = list(self.index.dirty())
            _log.warning("%s was not stopped cleanly: objects that were being changed are re-hashed", self.where)
            self.recovery = asyncio.get_running_loop().create_task(self._recover(), name="ost-recovery")

    @classmethod
    def open(cls, root: str, cluster: str, limits: Limits, threads: blockio.IoThreads) -> "Target":
        """Take an OST into service. OSError, one line that says what to do: not formatted, of another cluster, of a
        newer format, in use by another process."""
        label = read_label(root)
        if label.cluster != cluster:
            raise OSError(
                errno.EXDEV,
                f"this OST belongs to cluster {label.cluster!r}, not to {cluster!r}: wrong directory?",
                root,
            )
        lock = os.open(os.path.join(root, "objects"), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return cls(root, label, lock, limits, threads)
        except BlockingIOError:
            os.close(lock)
            raise OSError(
                errno.EBUSY, "this OST is in use by another process: stop that one (`fuser` on objects/ names it)", root
            ) from None
        except BaseException:
            os.close(lock)
            raise

    @property
    def where(self) -> str:
        """The OST as error texts call it."""
        return f"OST {self.label.index}" if self.label.index >= 0 else f"OST in {self.root}"

    def set_index(self, index: int) -> None:
        """Remember, durably, the index that the MDS gave this OST; EPROTO if it has another one already."""
        if 0 <= self.label.index != index:
            raise OSError(
                errno.EPROTO,
                f"{self.where} in {self.root} (uuid {self.label.uuid}) is OST {index} to the MDS: is that the MDS of "
                f"this cluster, or has it been set up anew?",
            )
        if index != self.label.index:
            self.label = msgspec.structs.replace(self.label, index=index)
            write_label(self.root, self.label)
            self.index.where = self.where
            self.space.where = self.where

    def info(self) -> TargetInfo:
        """The OST as its server reports it."""
        total, free = self.space.totals()
        return TargetInfo(self.label.uuid, self.label.index, total, free, self.index.count(), self._disk)

    # ---------------------------------------------------------------------------------------------------------- objects

    def find(self, fid: int, number: int, *, create: bool = False) -> StoredObject | None:
        """The object, opened if need be; None if it does not exist (unless `create`). It may be DEAD or SUSPECT
        (see `usable`). EBADMSG if the index and the files disagree."""
        key = (fid, number)
        stored = self._table.get(key)
        if stored is None:
            stored = self._open(fid, number, create)
            if stored is not None:
                self._table[key] = stored
                if len(self._table) > self._limits.open_objects:
                    self._close_some()
            return stored
        self._table.move_to_end(key)
        return stored

    def track(self, key: tuple[int, int], tracker: Tracker) -> None:
        """Note from now on what is changed of an object, which need not exist yet."""
        self.copies.trackers[key] = tracker
        stored = self._table.get(key)
        if stored is not None:
            stored.tracker = tracker

    def untrack(self, key: tuple[int, int]) -> None:
        """Note no more what is changed."""
        self.copies.trackers.pop(key, None)
        stored = self._table.get(key)
        if stored is not None:
            stored.tracker = None

    async def usable(self, fid: int, number: int, *, create: bool = False) -> StoredObject | None:
        """As `find`, but waits until the object has been destroyed or re-hashed if that is under way or due."""
        while (stored := self.find(fid, number, create=create)) is not None:
            if stored.state >= CLEANING:
                return stored
            if stored.state is SUSPECT and stored.turning is None:
                stored.turning = asyncio.get_running_loop().create_future()
                self.durability.spawn(rehash_object(stored, self._threads, self.durability))
            if stored.turning is not None:
                await asyncio.shield(stored.turning)
        return None

    def opened(self, fid: int, number: int) -> StoredObject | None:
        """The object if it is open, as it is."""
        return self._table.get((fid, number))

    def path_of(self, fid: int, number: int) -> str:
        """Where the object's file is."""
        return f"{self._directory(fid)}/{fid:016x}.{number}"

    def unknown(self, outer: int) -> list[tuple[int, int]]:
        """The objects of which the index knows nothing, in one of `recovery.DIRECTORIES`; for threads."""
        return unknown_objects(self.index, self._objects_root, outer)

    def open_objects(self) -> list[StoredObject]:
        """The objects that are in use or were lately."""
        return list(self._table.values())

    def stat(self, fid: int, number: int) -> ObjectStat:
        """Size and allocation, also of an object that is to be re-hashed; zeros if it does not exist."""
        stored = self._table.get((fid, number))
        if stored is not None and stored.state >= CLEANING:
            allocated_bytes = os.fstat(stored.fd).st_blocks * 512
            return ObjectStat(stored.size, allocated_bytes, stored.version, stored.mtime_ns)
        if stored is not None and stored.state is DEAD:
            return _ABSENT
        record = self.index.record(fid, number)
        try:
            stat = os.stat(self.path_of(fid, number))
        except FileNotFoundError:
            if record is not None:
                raise self._lost(StoredObject(self.index, fid, number, self._directory(fid))) from None
            return _ABSENT
        if record is None:
            return ObjectStat(stat.st_size, stat.st_blocks * 512, 0, stat.st_mtime_ns)
        size = stat.st_size if record.dirty else record.size
        return ObjectStat(size, stat.st_blocks * 512, record.version, record.mtime_ns)

    async def destroy(self, keys: Sequence[tuple[int, int]]) -> None:
        """Destroy objects `(fid, number)`, durably; those that do not exist are destroyed already."""
        doomed: list[StoredObject] = []
        try:
            for fid, number in sorted(set(keys)):  # in one order, or two requests could wait for each other
                if (stored := await self._doom(fid, number)) is not None:
                    doomed.append(stored)
                else:
                    self.copies.trackers.pop((fid, number), None)
            # The record goes first: a file without a record is a leftover, a record without a file is a loss.
            await self.index.commit([Change(stored.fid, stored.number, None, destroy=True) for stored in doomed])
            for directory in await self._threads.run(_unlink, [(stored.path, stored.directory) for stored in doomed]):
                self.durability.entered(directory)
                await self.durability.sync_directories(directory)
        finally:
            for stored in doomed:
                self.durability.forget(stored)
                self.copies.trackers.pop((stored.fid, stored.number), None)
                del self._table[(stored.fid, stored.number)]
                os.close(stored.fd)
                if stored.turning is not None:
                    stored.turning.set_result(None)

    async def _doom(self, fid: int, number: int) -> StoredObject | None:
        """Make an object DEAD once nobody uses it; None if it does not exist or somebody else destroys it."""
        while True:
            try:
                stored = self.find(fid, number)
            except OSError as error:
                if error.errno != errno.EBADMSG:
                    raise
                await self.index.commit([Change(fid, number, None, destroy=True)])  # damaged: then it is gone, too
                continue
            if stored is None:
                return None
            busy = stored.turning or stored.flushing
            if busy is not None:
                await asyncio.wait((busy,))
            elif stored.state is DEAD:
                return None
            elif stored.pins:
                if stored.idle is None:
                    stored.idle = asyncio.get_running_loop().create_future()
                await asyncio.shield(stored.idle)
            else:
                stored.state = DEAD
                stored.turning = asyncio.get_running_loop().create_future()
                return stored

    # -------------------------------------------------------------------------------------------------------- internals

    def _directory(self, fid: int) -> str:
        return f"{self._objects_root}/{fid >> 16 & 255:02x}/{fid >> 8 & 255:02x}"

    def _lost(self, stored: StoredObject) -> OSError:
        return OSError(errno.EBADMSG, f"{stored.name}: its file is missing although the index knows it", stored.path)

    def _open(self, fid: int, number: int, create: bool) -> StoredObject | None:
        stored = StoredObject(self.index, fid, number, self._directory(fid))
        if self.copies.trackers:
            stored.tracker = self.copies.trackers.get((fid, number))
        record = self.index.record(fid, number)
        if create and record is None and self._create(stored):
            return stored
        try:
            stored.fd = os.open(stored.path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            if record is not None:
                raise self._lost(stored) from None
            return None
        if record is None:
            return stored
        stored.size, stored.version = record.size, record.version
        stored.mtime_ns, stored.generation = record.mtime_ns, record.generation
        stored.allocated_bytes = record.allocated_bytes
        if not record.dirty:
            size = os.fstat(stored.fd).st_size
            if size != stored.size:
                os.close(stored.fd)
                raise stored.too_short(size)
            stored.state = CLEAN
            stored.durable_version = stored.version
        return stored

    def _create(self, stored: StoredObject) -> bool:
        """Make the file of a new object; False if there is one (then nothing is known about it)."""
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_CREAT | os.O_EXCL
        try:
            stored.fd = os.open(stored.path, flags, 0o600)
        except FileExistsError:
            return False
        except FileNotFoundError:
            parent = os.path.dirname(stored.directory)
            for path in (parent, stored.directory):
                try:
                    os.mkdir(path, 0o700)
                except FileExistsError:
                    continue
                self.durability.entered(os.path.dirname(path))
            stored.fd = os.open(stored.path, flags, 0o600)
        stored.state = DIRTY
        stored.version = stored.durable_version = time.time_ns()  # above those of any earlier object of this name
        stored.mtime_ns = stored.version
        self.durability.entered(stored.directory)
        self.durability.changed(stored, 0)
        return True

    def _close_some(self) -> None:
        """Close objects that were not used for long and about which nothing is to be written."""
        for _ in range(8):
            key, stored = next(iter(self._table.items()))
            if stored.pins or stored.turning is not None or self.durability.is_dirty(stored) or stored.state is DEAD:
                self._table.move_to_end(key)
                continue
            del self._table[key]
            os.close(stored.fd)
            if len(self._table) <= self._limits.open_objects:
                return

    async def _recover(self) -> None:
        """Re-hash, in the background, what an unclean stop left in doubt."""
        count = 0
        try:
            async with aclosing(objects_in_doubt(self.index, self._objects_root, self._threads)) as doubtful:
                async for fid, number in doubtful:
                    await self.durability.relief()
                    try:
                        await self.usable(fid, number)
                        count += 1
                    except OSError as error:
                        _log.error("%s", error)
        except OSError as error:
            _log.error("%s: cannot look for objects in doubt: %s; the next start tries again", self.where, error)
            return
        self._unclean = False
        _log.info("%s: %d objects re-hashed after an unclean stop", self.where, count)

    async def close(self) -> None:
        """Make everything clean and leave service. No request may be in service any more."""
        if self.recovery is not None:
            self.recovery.cancel()
            await asyncio.gather(self.recovery, return_exceptions=True)
        clean = await self.durability.flush_all()
        await self.durability.close()
        for stored in self._table.values():
            if stored.fd >= 0:
                os.close(stored.fd)
        self._table.clear()
        self.applied.close()
        if clean and not self._unclean:
            self.index.set_now({b"clean": b"1"})
        self.index.close()
        os.close(self._lock)


def _unlink(paths: Sequence[tuple[str, str]]) -> list[str]:
    """Remove files `(path, directory)`; returns the directories, each once."""
    for path, _ in paths:
        try:
            os.unlink(path)
        except FileNotFoundError:
            continue
    return list({directory for _, directory in paths})
