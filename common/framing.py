"""Frames on a byte stream, without any I/O.

A frame is a 36-byte header, a msgpack body, then bulk bytes. The header, little-endian:

    u16 magic · u8 version · u8 kind · u32 body length · u64 xid · u64 oldest · u32 bulk length · u32 body check · u32 header check

`xid` numbers the sender's requests (a reply repeats it); `oldest` is the lowest xid for which the sender still waits.
The checks are the low halves of xxh3-64 over the body and over the 32 header bytes before the header check. Bulk
carries checksums of its own (`common.checksum`), inside the messages.
"""

import enum
import struct
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import xxhash

from nacrefs.common.wire import BODY_BYTES_MAX, BULK_BYTES_MAX, PROTOCOL_VERSION

MAGIC: Final = 0x464E
_HEADER: Final = struct.Struct("<HBBIQQII")
_CHECK: Final = struct.Struct("<I")
_LEAD_BYTES: Final = _HEADER.size
HEADER_BYTES: Final = _LEAD_BYTES + _CHECK.size
_BUFFER_BYTES: Final = 32 * 1024
_SCATTER_MAX: Final = 64
_LOW_HALF: Final = 0xFFFFFFFF
_hash = xxhash.xxh3_64_intdigest


class Kind(enum.IntEnum):
    """What a frame is. RESENT is a request that may have been received before."""

    HELLO = 1
    CHALLENGE = 2
    PROOF = 3
    WELCOME = 4
    REQUEST = 5
    RESENT = 6
    REPLY = 7
    FAILURE = 8


_KINDS: Final = {int(kind): kind for kind in Kind}


class FramingError(ConnectionError):
    """The bytes are not a nacrefs frame; the connection cannot go on."""


class Frame(NamedTuple):
    """A received frame. `body` is valid until more bytes are received; `bulk` are the buffers that the sink gave."""

    kind: Kind
    xid: int
    oldest: int
    body: memoryview | bytes
    bulk_bytes: int = 0
    bulk: Sequence[memoryview] = ()


Sink = Callable[[Frame], Sequence[memoryview] | None]
"""Given a frame whose bulk is about to come: the buffers for it (exactly `bulk_bytes` together), or None for "not now"."""


def encode_frame(kind: Kind, xid: int, oldest: int, body: bytes, bulk_bytes: int = 0) -> bytes:
    """Header and body of a frame; the bulk, if any, is to be sent right behind it."""
    lead = _HEADER.pack(MAGIC, PROTOCOL_VERSION, kind, len(body), xid, oldest, bulk_bytes, _hash(body) & _LOW_HALF)
    return b"".join((lead, _CHECK.pack(_hash(lead) & _LOW_HALF), body))


class Decoder:
    """Turns received bytes into frames. Bytes are received straight into `buffers()`, bulk into the sink's buffers.

    Usage: receive into `buffers()`, then call `received(count)` for the frames that are complete. While `blocked`, the
    sink had no room: receive nothing, call `received(0)` when there may be room again.
    """

    def __init__(self, sink: Sink, body_bytes_max: int = BODY_BYTES_MAX) -> None:
        self._sink = sink
        self._body_bytes_max = body_bytes_max
        self._memory = memoryview(bytearray(_BUFFER_BYTES))
        self._start = 0
        self._end = 0
        self._large: bytearray | None = None
        self._large_filled = 0
        self._header: tuple[Kind, int, int, int, int, int] | None = None
        self._waiting: Frame | None = None
        self._targets: list[memoryview] = []
        self.blocked = False

    @property
    def idle(self) -> bool:
        """Whether the stream is between two frames."""
        return self._header is None and self._waiting is None and self._start == self._end

    def buffers(self) -> list[memoryview]:
        """Where the next bytes go, in order; never empty unless `blocked`."""
        if self._targets:
            return self._targets[:_SCATTER_MAX]
        if self._large is not None:
            return [memoryview(self._large)[self._large_filled :]]
        if self._start == self._end:
            self._start = self._end = 0
        elif self._end == _BUFFER_BYTES:
            held = self._end - self._start
            self._memory[:held] = bytes(self._memory[self._start : self._end])
            self._start, self._end = 0, held
        return [self._memory[self._end :]]

    def received(self, count: int) -> list[Frame]:
        """`count` more bytes stand in `buffers()`; the frames that are complete now. FramingError if they are garbage."""
        frames: list[Frame] = []
        if self._targets:
            if not self._fill_targets(count):
                return frames
            frames.append(self._bulk_complete())
        elif self._large is not None:
            self._large_filled += count
            if self._large_filled < len(self._large):
                return frames
            body, self._large = bytes(self._large), None
            self._body_complete(body, frames)
        else:
            self._end += count
        if self._waiting is not None and not self._targets:
            self._ask_sink(frames)
        self._parse(frames)
        return frames

    def _parse(self, frames: list[Frame]) -> None:
        """Take frames out of the small buffer for as long as it has whole ones."""
        while self._waiting is None and self._large is None:
            if self._header is None:
                if self._end - self._start < HEADER_BYTES:
                    return
                self._header = self._parse_header()
            size = self._header[3]
            start, available = self._start, self._end - self._start
            if available >= size:
                self._start = start + size
                self._body_complete(self._memory[start : start + size], frames)
            elif size > _BUFFER_BYTES - HEADER_BYTES:
                self._large = bytearray(size)
                self._large[:available] = self._memory[start : self._end]
                self._large_filled = available
                self._start = self._end
            else:
                return

    def _parse_header(self) -> tuple[Kind, int, int, int, int, int]:
        lead = self._memory[self._start : self._start + _LEAD_BYTES]
        magic, version, kind, body_bytes, xid, oldest, bulk_bytes, body_check = _HEADER.unpack(lead)
        if magic != MAGIC:
            raise FramingError("not a nacrefs frame (wrong magic number)")
        (check,) = _CHECK.unpack_from(self._memory, self._start + _LEAD_BYTES)
        if check != _hash(lead) & _LOW_HALF:
            raise FramingError("frame header is damaged (checksum mismatch)")
        if version != PROTOCOL_VERSION:
            raise FramingError(f"peer speaks protocol version {version}, this side speaks {PROTOCOL_VERSION}")
        if kind not in _KINDS:
            raise FramingError(f"unknown frame kind {kind}")
        if body_bytes > self._body_bytes_max:
            raise FramingError(f"message body of {body_bytes} bytes is above the limit of {self._body_bytes_max}")
        if bulk_bytes > BULK_BYTES_MAX:
            raise FramingError(f"bulk of {bulk_bytes} bytes is above the limit of {BULK_BYTES_MAX}")
        self._start += HEADER_BYTES
        return _KINDS[kind], xid, oldest, body_bytes, bulk_bytes, body_check

    def _body_complete(self, body: memoryview | bytes, frames: list[Frame]) -> None:
        assert self._header is not None
        kind, xid, oldest, _, bulk_bytes, body_check = self._header
        self._header = None
        if _hash(body) & _LOW_HALF != body_check:
            raise FramingError("message body is damaged (checksum mismatch)")
        if bulk_bytes:
            self._waiting = Frame(kind, xid, oldest, bytes(body), bulk_bytes)
            self._ask_sink(frames)
        else:
            frames.append(Frame(kind, xid, oldest, body))

    def _ask_sink(self, frames: list[Frame]) -> None:
        """Get buffers for the waiting frame's bulk, and move into them what has come already."""
        assert self._waiting is not None
        targets = self._sink(self._waiting)
        self.blocked = targets is None
        if targets is None:
            return
        self._waiting = self._waiting._replace(bulk=targets)
        self._targets = [target for target in targets if len(target)]
        if sum(map(len, self._targets)) != self._waiting.bulk_bytes:
            raise FramingError(f"no buffers for {self._waiting.bulk_bytes} bytes of bulk")
        while self._targets and self._start < self._end:
            count = min(len(self._targets[0]), self._end - self._start)
            self._targets[0][:count] = self._memory[self._start : self._start + count]
            self._start += count
            self._fill_targets(count)
        if not self._targets:
            frames.append(self._bulk_complete())

    def _fill_targets(self, count: int) -> bool:
        """`count` bytes stand in the targets; whether all of them are full."""
        targets = self._targets
        while count:
            size = len(targets[0])
            if count < size:
                targets[0] = targets[0][count:]
                return False
            count -= size
            del targets[0]
        return not targets

    def _bulk_complete(self) -> Frame:
        assert self._waiting is not None
        frame, self._waiting = self._waiting, None
        return frame

    def redirect(self, xid: int, kind: Kind, scratch: Callable[[int], Sequence[memoryview]]) -> None:
        """The buffers of a frame that is being received are wanted back: the rest of its bulk goes to `scratch(size)`."""
        frame = self._waiting
        if frame is not None and frame.xid == xid and frame.kind is kind and self._targets:
            self._targets = list(scratch(sum(map(len, self._targets))))
