"""What an OST knows about its objects beside their bytes: size, version and the checksum of every block, in LMDB.

Two databases. `objects`: one `Record` an object. `sums`: the xxh3-64 sums of 128 consecutive blocks (8 MiB of file) a
value; blocks at the end that were never written are left out, and a page that is not there at all stands for zeros.
Keys begin with fid and object number, so that all about an object lies together. docs/on-disk.md has the bytes.

Reads are memory-mapped and cheap (~0.6 µs) and happen on the event loop. Changes are handed to `commit`, which gathers
what arrives while a transaction is being made durable, in one thread, into the next one. Changes of one object
take effect in the order in which they were handed over.
"""

import asyncio
import errno
import struct
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple

import lmdb
import xxhash

from nacrefs.common import faults
from nacrefs.common.fid import format_fid

PAGE_BLOCKS: Final = 128
"""Blocks whose sums share one value."""

_KEY = struct.Struct(">QI")
_PAGE_KEY = struct.Struct(">QIQ")
_RECORD = struct.Struct("<BQQQqQ")
_SUM = struct.Struct("<Q")
_DIRTY: Final = 1
_SCAN_RECORDS: Final = 2000
_NO_PAGES: Final[Mapping[int, bytes]] = {}


class Record(NamedTuple):
    """One object. `dirty`: its sums may not fit its bytes after an unclean stop. `size` is the end of its last byte,
    `generation` the highest layout generation that was seen in a request."""

    dirty: bool
    size: int
    version: int
    mtime_ns: int
    generation: int
    allocated_bytes: int


class Change(NamedTuple):
    """What to change of one object. `pages` are sum pages by number; an empty one is removed. With `destroy` everything
    about the object is removed and nothing is written."""

    fid: int
    number: int
    record: Record | None
    pages: Mapping[int, bytes] = _NO_PAGES
    destroy: bool = False


def _pack(fid: int, number: int, record: Record) -> bytes:
    flags = _DIRTY if record.dirty else 0
    body = _RECORD.pack(flags, record.size, record.version, record.generation, record.mtime_ns, record.allocated_bytes)
    return body + _SUM.pack(xxhash.xxh3_64_intdigest(_KEY.pack(fid, number) + body))


def _unpack(key: bytes, value: bytes, where: str) -> Record:
    body = value[: _RECORD.size]
    if len(value) != _RECORD.size + 8 or xxhash.xxh3_64_intdigest(key + body) != _SUM.unpack(value[-8:])[0]:
        fid, number = _KEY.unpack(key)
        raise OSError(
            errno.EBADMSG,
            f"{where}: the index record of object {format_fid(fid)}.{number} is damaged; restore the file from a copy "
            f"or another mirror",
        )
    flags, size, version, generation, mtime_ns, allocated_bytes = _RECORD.unpack(body)
    return Record(bool(flags & _DIRTY), size, version, mtime_ns, generation, allocated_bytes)


class Index:
    """The index of one OST, open for one process. `where` is what error texts call the OST."""

    def __init__(self, path: str, map_bytes: int, where: str) -> None:
        self.where = where
        self._map_bytes = map_bytes
        try:
            # The kernel's read-ahead would fetch 128 KiB of the map for every 1 KiB page of sums.
            self._env = lmdb.open(path, map_size=map_bytes, max_dbs=3, readahead=False)
            self._objects = self._env.open_db(b"objects")
            self._sums = self._env.open_db(b"sums")
            self._meta = self._env.open_db(b"meta")
        except lmdb.Error as error:
            raise OSError(errno.EIO, f"{where}: the index cannot be opened: {error}", path) from error
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="oss-index")
        self._waiting: list[tuple[Sequence[Change], Mapping[bytes, bytes], asyncio.Future[None]]] = []
        self._committing = False
        self.commits = 0

    def record(self, fid: int, number: int) -> Record | None:
        """What is known about an object; EBADMSG if that is damaged."""
        key = _KEY.pack(fid, number)
        with self._env.begin(db=self._objects) as txn:
            value = txn.get(key)
        return None if value is None else _unpack(key, bytes(value), self.where)

    def knows(self, fid: int, number: int) -> bool:
        """Whether there is a record of an object, sound or not."""
        with self._env.begin(db=self._objects) as txn:
            return txn.get(_KEY.pack(fid, number)) is not None

    def page(self, fid: int, number: int, page: int) -> bytes:
        """The sums of blocks `page * 128 …`, 8 bytes each; those missing at the end are of blocks never written."""
        with self._env.begin(db=self._sums) as txn:
            value = txn.get(_PAGE_KEY.pack(fid, number, page))
        return b"" if value is None else bytes(value)

    def pages(self, fid: int, number: int, first: int, end: int) -> list[int]:
        """The numbers of the pages in `[first, end)` that are there."""
        found: list[int] = []
        prefix = _KEY.pack(fid, number)
        with self._env.begin(db=self._sums) as txn, txn.cursor() as cursor:
            more = cursor.set_range(_PAGE_KEY.pack(fid, number, first))
            while more and bytes(cursor.key()).startswith(prefix):
                page = _PAGE_KEY.unpack(cursor.key())[2]
                if page >= end:
                    break
                found.append(page)
                more = cursor.next()
        return found

    def scan(self, after: tuple[int, int], limit: int) -> tuple[list[tuple[int, int]], tuple[int, int] | None]:
        """The dirty (or damaged) objects among the next `limit` records after `after`, and where to go on (None: at the
        end)."""
        dirty: list[tuple[int, int]] = []
        last: tuple[int, int] | None = None
        with self._env.begin(db=self._objects) as txn, txn.cursor() as cursor:
            more = cursor.set_range(_KEY.pack(*after))
            if more and _KEY.unpack(cursor.key()) == after:
                more = cursor.next()
            for _ in range(limit):
                if not more:
                    return dirty, None
                fid, number = last = _KEY.unpack(cursor.key())
                if cursor.value()[:1] != b"\0":
                    dirty.append((fid, number))
                more = cursor.next()
        return dirty, last

    def keys(self, after: tuple[int, int], last: int, limit: int) -> list[tuple[int, int]]:
        """The next `limit` objects `(fid, number)` behind `after`, up to fid `last`, sound or not."""
        found: list[tuple[int, int]] = []
        with self._env.begin(db=self._objects) as txn, txn.cursor() as cursor:
            more = cursor.set_range(_KEY.pack(*after))
            while more and len(found) < limit:
                fid, number = _KEY.unpack(cursor.key())
                if fid > last:
                    break
                if (fid, number) != after:
                    found.append((fid, number))
                more = cursor.next()
        return found

    def dirty(self) -> Iterator[tuple[int, int]]:
        """All objects that are marked dirty, or whose records are damaged."""
        after: tuple[int, int] | None = (0, 0)
        while after is not None:
            found, after = self.scan(after, _SCAN_RECORDS)
            yield from found

    def count(self) -> int:
        """How many objects there are records of."""
        with self._env.begin() as txn:
            return int(txn.stat(self._objects)["entries"])

    def meta(self, name: bytes) -> bytes | None:
        """One of the index's own values."""
        with self._env.begin(db=self._meta) as txn:
            value = txn.get(name)
        return None if value is None else bytes(value)

    async def commit(self, changes: Sequence[Change] = (), meta: Mapping[bytes, bytes] | None = None) -> None:
        """Make changes durable. Raises OSError (ENOSPC if the index is full); then none of them has happened."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((changes, meta or {}, done))
        if not self._committing:
            self._start()
        # The transaction goes on if the waiter is cancelled; nobody else waits on this future.
        await asyncio.shield(done)

    def _start(self) -> None:
        batch, self._waiting = self._waiting, []
        self._committing = True
        work = asyncio.get_running_loop().run_in_executor(self._thread, self._write, batch)
        work.add_done_callback(lambda finished: self._finish(batch, finished))

    def _finish(
        self,
        batch: list[tuple[Sequence[Change], Mapping[bytes, bytes], asyncio.Future[None]]],
        finished: asyncio.Future[None],
    ) -> None:
        self._committing = False
        self.commits += 1
        error = finished.exception()
        for _, _, done in batch:
            if done.done():
                continue
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(error)
                done.exception()  # a waiter that was cancelled must not make asyncio complain
        if self._waiting:
            self._start()

    def _write(self, batch: Sequence[tuple[Sequence[Change], Mapping[bytes, bytes], object]]) -> None:
        try:
            try:
                if faults.on:
                    faults.hit("oss.index.before")
                self._transaction(batch)
                if faults.on:
                    faults.hit("oss.index.after")
            except lmdb.MapFullError:
                # It cannot be enlarged here, since the event loop may be reading this instant. The map is sparse and
                # generous from the start (see `Target`), so this does not happen before the disk is full.
                raise OSError(errno.ENOSPC, f"{self.where}: the index is full ({self._map_bytes >> 20} MiB)") from None
        except lmdb.Error as error:
            raise OSError(errno.EIO, f"{self.where}: the index cannot be written: {error}") from error

    def _transaction(self, batch: Sequence[tuple[Sequence[Change], Mapping[bytes, bytes], object]]) -> None:
        with self._env.begin(write=True) as txn:
            for changes, meta, _ in batch:
                for name, value in meta.items():
                    txn.put(name, value, db=self._meta)
                for change in changes:
                    self._apply(txn, change)

    def _apply(self, txn: lmdb.Transaction, change: Change) -> None:
        fid, number = change.fid, change.number
        if change.destroy:
            txn.delete(_KEY.pack(fid, number), db=self._objects)
            prefix = _KEY.pack(fid, number)
            with txn.cursor(db=self._sums) as cursor:
                more = cursor.set_range(prefix)
                while more and bytes(cursor.key()).startswith(prefix):
                    more = cursor.delete()
            return
        if change.record is not None:
            txn.put(_KEY.pack(fid, number), _pack(fid, number, change.record), db=self._objects)
        for page, sums in change.pages.items():
            key = _PAGE_KEY.pack(fid, number, page)
            if sums:
                txn.put(key, sums, db=self._sums)
            else:
                txn.delete(key, db=self._sums)

    def set_now(self, values: Mapping[bytes, bytes]) -> None:
        """Set some of the index's own values durably, waiting for the disk; for opening and closing only."""
        self._thread.submit(self._write, [((), values, None)]).result()

    def close(self) -> None:
        """Close the index; nothing may be using it."""
        self._thread.shutdown()
        self._env.close()
