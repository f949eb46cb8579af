"""The archive of a stand-in OSS: objects in memory, whatever archive they are asked of."""

import asyncio
import errno
from collections.abc import Mapping
from typing import Any, Final

import xxhash

from nacrefs.common.rpc import Call, Handler
from nacrefs.common.wire import (
    ArchiveEntry,
    ArchiveListing,
    Bytes,
    Done,
    Inspection,
    MoveClass,
    Moved,
    MoveDelete,
    MovedMany,
    MoveGet,
    MoveHead,
    MoveList,
    MoveMany,
    MoveProbe,
    MovePut,
    MoveRead,
    MoveResult,
    MoveStop,
    Request,
)

_DIGEST: Final = bytes(8)


class Shelf:
    """Objects by key. Of files whose bytes are on OSTs only the size is known."""

    def __init__(self) -> None:
        self.objects: dict[str, ArchiveEntry] = {}
        self.data: dict[str, bytes] = {}
        self.refusal = 0
        """With which errno small files are not taken; 0: they are."""
        self.stopped: list[int] = []
        """Files of which all moves were to stop."""
        self.listed = asyncio.Event()
        self.asked_for_class = asyncio.Event()
        self.may_answer = asyncio.Event()
        """Set, unless answers to listings and changes of class are held back; the other two say that one is."""
        self.may_answer.set()

    def handlers(self) -> Mapping[type[Request[Any]], Handler]:
        """What an OSS answers about archives."""
        return {
            MoveProbe: lambda request, call: Inspection(b'{"write": true}'),
            MoveList: self._list,
            MoveHead: lambda request, call: self._need(request.key),
            MoveRead: self._read,
            MovePut: lambda request, call: self._put(request),
            MoveMany: self._many,
            MoveDelete: self._delete,
            MoveClass: self._class,
            MoveStop: self._stop,
        }

    def add(self, key: str, size: int, etag: str = "", meta: tuple[tuple[str, str], ...] = ()) -> None:
        """An object that somebody else has made."""
        self.objects[key] = ArchiveEntry(key, size, etag, meta=meta)

    def _need(self, key: str) -> ArchiveEntry:
        entry = self.objects.get(key)
        if entry is None:
            raise FileNotFoundError(errno.ENOENT, f"there is no object {key!r}")
        return entry

    async def _class(self, request: MoveClass, call: Call) -> ArchiveEntry:
        self.asked_for_class.set()
        await self.may_answer.wait()
        return self._need(request.key)

    async def _list(self, request: MoveList, call: Call) -> ArchiveListing:
        entries = tuple(entry for key, entry in sorted(self.objects.items()) if key.startswith(request.prefix))
        self.listed.set()
        await self.may_answer.wait()
        return ArchiveListing(entries, "")

    def _read(self, request: MoveRead, call: Call) -> Bytes:
        self._need(request.key)
        return Bytes(self.data[request.key])

    def _put(self, request: MovePut) -> Moved:
        self.data[request.key] = request.data or b""
        etag = xxhash.xxh3_64_hexdigest(request.data or b"")
        self.add(request.key, request.size, etag, request.meta)
        return Moved(etag, _DIGEST)

    def _stop(self, request: MoveStop, call: Call) -> Done:
        self.stopped += request.fids
        return Done()

    def _many(self, request: MoveMany, call: Call) -> MovedMany:
        return MovedMany(tuple(map(self._move, request.orders)))

    def _move(self, order: MovePut | MoveGet) -> MoveResult:
        if isinstance(order, MovePut) and self.refusal:
            return MoveResult(None, self.refusal, "as the test wants it")
        if isinstance(order, MovePut):
            return MoveResult(self._put(order))
        if order.key not in self.objects:
            return MoveResult(None, errno.ENOENT, f"there is no object {order.key!r}")
        return MoveResult(Moved("", _DIGEST, order.size))

    def _delete(self, request: MoveDelete, call: Call) -> Done:
        for key in request.keys:
            self.objects.pop(key, None)
            self.data.pop(key, None)
        return Done()
