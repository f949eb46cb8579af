"""Which changes have been made to an OST's objects, by whom: so that one that is sent again after `kill -9` of the OSS
is not made again, over what somebody else has written since.

The bytes of a change survive the process in the page cache, so what says that it was made must do the same: `applied`
is a file that is mapped into memory, and a note in it costs no system call. It is worth as much as the page cache:
after the machine has lost power it is forgotten, for the bytes may be gone, too.

Of each client the last 512 xids are kept that changed something, each in place `xid % 512`. Before a change is made it
is noted as *begun*, with what it takes to see later whether it was finished; there is one at a time, since changes are
single steps of the event loop. A start after a kill looks at the bytes: a change that is all there counts as made.

    0      magic, version
    64     the change that is being made, then its extents
    69632  hash of each client's name
    102400 512 xids of each client
"""

import mmap
import os
import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

import xxhash

from nacrefs.common.checksum import block_sums

WRITE: Final = 1
PUNCH: Final = 2
TRUNCATE: Final = 3

_MAGIC: Final = b"nacreAPL"
_VERSION: Final = 1
_HEAD: Final = struct.Struct("<8sI")
_BEGUN: Final = struct.Struct("<QQQQIIIII")
"""xid, fid, size, digest, object number, client's place, kind, number of extents, 1 while it is being made"""
_BEGUN_AT: Final = 64
_STATE_AT: Final = _BEGUN_AT + _BEGUN.size - 4
_EXTENT: Final = struct.Struct("<QQ")
_EXTENTS_AT: Final = 128
_U64: Final = struct.Struct("<Q")
_U32: Final = struct.Struct("<I")
_CLIENTS: Final = 4096
_NAMES_AT: Final = 17 * 4096
_XIDS: Final = 512
_XIDS_AT: Final = _NAMES_AT + 8 * _CLIENTS
_BYTES: Final = _XIDS_AT + 8 * _CLIENTS * _XIDS
_ZEROS: Final = bytes(8 * _XIDS)
_hash = xxhash.xxh3_64_intdigest


class Begun(NamedTuple):
    """A change that may have been made or not, or in part."""

    place: int
    xid: int
    fid: int
    number: int
    kind: int
    size: int
    digest: int
    extents: tuple[tuple[int, int], ...]


class Applied:
    """The notes of one OST, in the file at `path`; with `forget` they begin anew. `in_doubt` is what a kill has
    interrupted: `settle` it before anything else is done."""

    def __init__(self, path: str, forget: bool) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            head = _HEAD.pack(_MAGIC, _VERSION)
            if forget or os.fstat(fd).st_size != _BYTES or os.pread(fd, len(head), 0) != head:
                os.ftruncate(fd, 0)
                os.ftruncate(fd, _BYTES)
                os.pwrite(fd, head, 0)
            self._map = mmap.mmap(fd, _BYTES)
        finally:
            os.close(fd)
        self._places: dict[str, int] = {}
        self._by_hash: dict[int, int] = {}
        self._next = 0
        for place in range(_CLIENTS):
            (name,) = _U64.unpack_from(self._map, _NAMES_AT + 8 * place)
            if not name:
                break
            self._by_hash[name] = place
            self._next = place + 1
        self.in_doubt = self._interrupted()

    # ----------------------------------------------------------------------------------------------------- making notes

    def begin(
        self,
        client: str,
        xid: int,
        fid: int,
        number: int,
        kind: int,
        extents: Sequence[tuple[int, int]] = (),
        sums: bytes = b"",
        size: int = 0,
    ) -> int:
        """A change is about to be made, in this step; what `made` needs."""
        place = self._places.get(client)
        if place is None:
            place = self._place(client)
        at = _EXTENTS_AT
        for extent in extents:  # at most `wire.EXTENTS_MAX`
            _EXTENT.pack_into(self._map, at, *extent)
            at += 16
        _BEGUN.pack_into(self._map, _BEGUN_AT, xid, fid, size, _hash(sums), number, place, kind, len(extents), 1)
        return _XIDS_AT + 8 * (_XIDS * place + xid % _XIDS)

    def made(self, at: int, xid: int) -> None:
        """It has been made."""
        _U64.pack_into(self._map, at, xid)
        _U32.pack_into(self._map, _STATE_AT, 0)

    def not_made(self) -> None:
        """It has not, or not all of it: sent again, it is to be made."""
        _U32.pack_into(self._map, _STATE_AT, 0)

    def has(self, client: str, xid: int) -> bool:
        """Whether this change of a client has been made."""
        place = self._places.get(client)
        if place is None:
            place = self._by_hash.get(_name(client))
            if place is None:
                return False
            self._places[client] = place
        known: int = _U64.unpack_from(self._map, _XIDS_AT + 8 * (_XIDS * place + xid % _XIDS))[0]
        return known == xid

    def _place(self, client: str) -> int:
        """The place of a client, given to it if it has none: one that was never used, or the one given away longest
        ago."""
        name = _name(client)
        place = self._by_hash.get(name)
        if place is None:
            place = self._next % _CLIENTS
            self._next = place + 1
            (old,) = _U64.unpack_from(self._map, _NAMES_AT + 8 * place)
            if old:
                self._by_hash.pop(old, None)
                self._places = {client: at for client, at in self._places.items() if at != place}
            start = _XIDS_AT + 8 * _XIDS * place
            self._map[start : start + len(_ZEROS)] = _ZEROS
            _U64.pack_into(self._map, _NAMES_AT + 8 * place, name)
            self._by_hash[name] = place
        self._places[client] = place
        return place

    # ---------------------------------------------------------------------------------------------------- after a kill

    def _interrupted(self) -> Begun | None:
        xid, fid, size, digest, number, place, kind, count, state = _BEGUN.unpack_from(self._map, _BEGUN_AT)
        if not state:
            return None
        extents = tuple(
            (offset, length)
            for offset, length in (_EXTENT.unpack_from(self._map, _EXTENTS_AT + 16 * n) for n in range(count))
        )
        return Begun(place, xid, fid, number, kind, size, digest, extents)

    def settle(self, path: str) -> bool:
        """Look at the object file of `in_doubt`: whether the change is all there, and so counts as made."""
        doubt, self.in_doubt = self.in_doubt, None
        if doubt is None:
            return False
        made = _is_made(doubt, path)
        if made:
            self.made(_XIDS_AT + 8 * (_XIDS * doubt.place + doubt.xid % _XIDS), doubt.xid)
        else:
            self.not_made()
        return made

    def close(self) -> None:
        """End; what is noted is durable then, as the bytes are after a clean stop."""
        self._map.flush()
        self._map.close()


def _name(client: str) -> int:
    """The hash of a client's name; never 0, which is an empty place."""
    return _hash(client.encode()) | 1


def _is_made(doubt: Begun, path: str) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        if doubt.kind == TRUNCATE:
            return os.fstat(fd).st_size <= doubt.size
        if doubt.kind == PUNCH:
            return all(_is_hole(fd, offset, length) for offset, length in doubt.extents)
        sums: list[bytes] = []
        for offset, length in doubt.extents:
            data = os.pread(fd, length, offset)
            if len(data) != length:
                return False
            sums.append(block_sums(memoryview(data), offset))
        return _hash(b"".join(sums)) == doubt.digest
    finally:
        os.close(fd)


def _is_hole(fd: int, offset: int, length: int) -> bool:
    """Whether a range reads as zeros."""
    end = min(offset + length, os.fstat(fd).st_size)
    while offset < end:
        try:
            offset = os.lseek(fd, offset, os.SEEK_DATA)
        except OSError:  # ENXIO: only a hole is left
            return True
        data = os.pread(fd, min(1 << 20, end - offset), offset) if offset < end else b""
        if data.strip(b"\0"):
            return False
        offset += max(1, len(data))
    return True
