"""What travels in a message of an RDMA link, and how bulk is divided into transfers. Pure: bytes and numbers.

A message is a 12-byte prefix, region descriptors, then bytes of the frame stream (docs/protocol.md, RDMA):

    u8 what · u8 number of regions · u16 credits returned · u32 bulk bytes · u32 not used
    { u64 address · u32 size · u32 key } for each region
"""

import enum
import errno
import struct
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from nacrefs.common.transport.fabric import Piece

PREFIX: Final = struct.Struct("<BBHII")
PREFIX_BYTES: Final = PREFIX.size
XID_BYTES: Final = 8
_REGION: Final = struct.Struct("<QII")
REGION_BYTES: Final = _REGION.size
REGIONS_MAX: Final = 64
"""Bulk in more places than this goes through the stream, or is gathered first."""


class What(enum.IntEnum):
    """What a message is."""

    CREDITS = 0
    """nothing but its prefix"""
    BYTES = 1
    """more of the frame stream"""
    OFFER = 2
    """begins a request whose reply's bulk may be written into the regions"""
    PULL = 3
    """begins a frame whose bulk is to be read from the regions"""
    PULL_AND_SAY = 4
    """as PULL, and a PULLED is wanted when that has been done"""
    PUSHED = 5
    """begins a reply whose bulk has been written into the regions that its request offered"""
    PULLED = 6
    """the regions of the frame with this xid have been read"""
    CLOSE = 7
    """the last message"""


_KNOWN: Final = frozenset(map(int, What))


class Place(NamedTuple):
    """Memory of the other side."""

    address: int
    size: int
    key: int


class Prefix(NamedTuple):
    """The parsed beginning of a message; the stream's bytes begin at `start`."""

    what: int
    credits: int
    bulk_bytes: int
    places: tuple[Place, ...]
    start: int


def head(what: What, bulk_bytes: int, regions: Sequence[Piece] = ()) -> bytes:
    """Prefix and regions, with no credits yet."""
    prefix = PREFIX.pack(what, len(regions), 0, bulk_bytes, 0)
    if not regions:
        return prefix
    return prefix + b"".join([_REGION.pack(*region) for region in regions])


def parse(message: memoryview) -> Prefix:
    """The beginning of a message; OSError EPROTO if it is none."""
    if len(message) < PREFIX_BYTES:
        raise OSError(errno.EPROTO, "an RDMA message is too short")
    what, count, credits, bulk_bytes, _ = PREFIX.unpack_from(message)
    if what not in _KNOWN:
        raise OSError(errno.EPROTO, f"unknown RDMA message {what}")
    if not count:
        return Prefix(what, credits, bulk_bytes, (), PREFIX_BYTES)
    start = PREFIX_BYTES + count * REGION_BYTES
    if count > REGIONS_MAX or start > len(message):
        raise OSError(errno.EPROTO, f"an RDMA message has {count} regions")
    places = tuple(Place(*_REGION.unpack_from(message, PREFIX_BYTES + index * REGION_BYTES)) for index in range(count))
    return Prefix(what, credits, bulk_bytes, places, start)


def pulled(message: memoryview) -> int:
    """The xid that a PULLED message speaks of; OSError EPROTO if there is none."""
    if len(message) != PREFIX_BYTES + XID_BYTES:
        raise OSError(errno.EPROTO, "a PULLED message has the wrong length")
    return int.from_bytes(message[PREFIX_BYTES:], "little")


def joined(pieces: Iterable[Piece]) -> list[Piece]:
    """The same memory with neighbours joined and empty pieces left out."""
    result: list[Piece] = []
    for piece in pieces:
        last = result[-1] if result else None
        if last is not None and last.address + last.size == piece.address and last.key == piece.key:
            result[-1] = Piece(last.address, last.size + piece.size, last.key)
        elif piece.size:
            result.append(piece)
    return result


class Transfer(NamedTuple):
    """One WRITE or READ: our pieces, in order, and where they begin at the other side."""

    pieces: list[Piece]
    place: Place


def transfers(ours: Sequence[Piece], theirs: Sequence[Place], pieces_max: int) -> list[Transfer]:
    """How to move bytes between our memory and the beginning of theirs: one transfer for each contiguous place of
    theirs, more only where more than `pieces_max` of our pieces meet it. OSError EPROTO if theirs is too small."""
    result: list[Transfer] = []
    at = used = 0
    for piece in ours:
        address, left = piece.address, piece.size
        while left:
            if at == len(theirs):
                raise OSError(errno.EPROTO, "bulk is longer than the room that was offered for it")
            place = theirs[at]
            count = min(left, place.size - used)
            part = Piece(address, count, piece.key)
            if used and len(result[-1].pieces) < pieces_max:
                last = result[-1]
                last.pieces.append(part)
                result[-1] = Transfer(last.pieces, last.place._replace(size=last.place.size + count))
            elif count:
                result.append(Transfer([part], Place(place.address + used, count, place.key)))
            used += count
            address += count
            left -= count
            if used == place.size:
                at, used = at + 1, 0
    return result


def first_places(places: Sequence[Place], size: int) -> list[Place]:
    """Those that hold the first `size` bytes."""
    chosen: list[Place] = []
    for place in places:
        if size <= 0:
            break
        chosen.append(place._replace(size=min(place.size, size)))
        size -= place.size
    return chosen
