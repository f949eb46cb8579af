"""Frames on a byte stream, without any I/O.

A frame is a 36-byte header, a msgpack body, then bulk bytes. The header, little-endian:

    u16 magic · u8 version · u8 kind · u32 body length · u64 xid · u64 oldest
    · u32 bulk length · u32 body check · u32 header check

`xid` numbers the sender's requests (a reply repeats it); `oldest` is the lowest xid for which the sender still waits.
The checks are the low halves of xxh3-64 over the body and over the 32 header bytes before the header check. Bulk
carries checksums of its own (`common.checksum`), inside the messages.
"""

import enum
import errno
import struct
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import xxhash

from nacrefs.common.wire import BODY_BYTES_MAX, BULK_BYTES_MAX, PROTOCOL_VERSION

MAGIC: Final = 0x464E
_MAGIC_BYTES: Final = MAGIC.to_bytes(2, "little")
_LEAD: Final = struct.Struct("<HBBIQQII")
_CHECK: Final = struct.Struct("<I")
_HEADER: Final = struct.Struct("<HBBIQQIII")
_LEAD_BYTES: Final = _LEAD.size
HEADER_BYTES: Final = _HEADER.size
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
    SWITCH = 9


_KINDS: Final = {int(kind): kind for kind in Kind}


class FramingError(ConnectionError):
    """The bytes are not a nacrefs frame (EPROTO); the connection cannot go on."""


def _not_a_frame(seen: bytes = b"") -> FramingError:
    who = "speaks something else"
    if seen[:1] in (b"\x15", b"\x16"):  # an alert, or the beginning of a handshake
        who = "speaks TLS (write tls:// there, or tcp:// here)"
    return FramingError(errno.EPROTO, f"not a nacrefs frame (wrong magic number): the other side {who}")


class Frame(NamedTuple):
    """A received frame. `body` is valid until more bytes are received; `bulk` are the buffers that the sink gave."""

    kind: Kind
    xid: int
    oldest: int
    body: memoryview | bytes
    bulk_bytes: int = 0
    bulk: Sequence[memoryview] = ()


Sink = Callable[[Frame], Sequence[memoryview] | None]
"""Given a frame whose bulk is about to come: the buffers for it (`bulk_bytes` together), or None for "not now"."""


_Header = tuple[Kind, int, int, int, int, int]
"""Kind, xid, oldest, body length, bulk length, body check."""


def encode_frame(kind: Kind, xid: int, oldest: int, body: bytes, bulk_bytes: int = 0) -> bytes:
    """Header and body of a frame; the bulk, if any, is to be sent right behind it."""
    lead = _LEAD.pack(MAGIC, PROTOCOL_VERSION, kind, len(body), xid, oldest, bulk_bytes, _hash(body) & _LOW_HALF)
    return b"".join((lead, _CHECK.pack(_hash(lead) & _LOW_HALF), body))


class Decoder:
    """Turns received bytes into frames. Bytes are received straight into `buffers()`, bulk into the sink's buffers.

    Usage: receive into `buffers()`, say `received(count)`, then take `next_frame()` until it is None. Whoever wants no
    more frames for now stops there: the rest stays. `blocked` after None: the sink had no room; receive nothing, and
    call `next_frame` when there may be room again.
    """

    def __init__(self, sink: Sink, body_bytes_max: int = BODY_BYTES_MAX) -> None:
        self.body_bytes_max = body_bytes_max
        self.blocked = False
        self._sink = sink
        self._memory = memoryview(bytearray(_BUFFER_BYTES))
        self._start = 0
        self._end = 0
        self._header: _Header | None = None
        self._large: memoryview | None = None
        self._large_filled = 0
        self._waiting: Frame | None = None
        self._targets: list[memoryview] = []
        self._target = 0
        self._missing_bytes = 0

    @property
    def idle(self) -> bool:
        """Whether all that was received has been taken as whole frames."""
        return self._start == self._end and self._header is None and self._large is None and self._waiting is None

    def buffers(self) -> list[memoryview]:
        """Where the next bytes go, in order; none of them is empty unless `blocked`."""
        if self._targets:
            return self._targets[self._target : self._target + _SCATTER_MAX]
        if self._large is not None:
            return [self._large[self._large_filled :]]
        if self._start == self._end:
            self._start = self._end = 0
        elif self._end == _BUFFER_BYTES:
            held = self._end - self._start
            self._memory[:held] = bytes(self._memory[self._start : self._end])
            self._start, self._end = 0, held
        return [self._memory[self._end :]]

    def received(self, count: int) -> None:
        """`count` more bytes stand in `buffers()`."""
        if self._targets:
            self._fill_targets(count)
        elif self._large is not None:
            self._large_filled += count
        else:
            self._end += count

    def next_frame(self) -> Frame | None:
        """The next frame that is complete, or None; FramingError if the bytes are not frames."""
        if self._waiting is None:
            frame = self._next_body()
            if frame is None or not frame.bulk_bytes:
                return frame
            self._waiting = frame
        if not self._targets and not self._ask_sink(self._waiting):
            return None
        if self._missing_bytes:
            return None
        frame, self._waiting = self._waiting, None
        self._targets = []
        return frame

    def _next_body(self) -> Frame | None:
        """A frame up to its bulk, once its body is complete."""
        header = self._header
        if header is None:
            start = self._start
            if self._end - start < HEADER_BYTES:
                if self._end > start:
                    self._refuse_stranger(start)
                return None
            header = self._parse_header(start)
        kind, xid, oldest, size, bulk_bytes, check = header
        if self._large is None:
            start = self._start
            available = self._end - start
            if available < size:
                self._header = header
                if size > _BUFFER_BYTES - HEADER_BYTES:
                    self._large = memoryview(bytearray(size))
                    self._large[:available] = self._memory[start : self._end]
                    self._large_filled = available
                    self._start = self._end
                return None
            body = self._memory[start : start + size]
            self._start = start + size
        elif self._large_filled < size:
            return None
        else:
            body, self._large = self._large, None
        if _hash(body) & _LOW_HALF != check:
            raise FramingError(errno.EPROTO, "message body is damaged (checksum mismatch)")
        self._header = None
        return Frame(kind, xid, oldest, bytes(body) if bulk_bytes else body, bulk_bytes)

    def _refuse_stranger(self, start: int) -> None:
        """FramingError if the first bytes of a header are wrong: a stranger may send no more, and wait for us."""
        seen = bytes(self._memory[start : min(self._end, start + len(_MAGIC_BYTES))])
        if not _MAGIC_BYTES.startswith(seen):
            raise _not_a_frame(seen)

    def _parse_header(self, start: int) -> _Header:
        """Take a header out of the small buffer."""
        magic, version, kind, body_bytes, xid, oldest, bulk_bytes, body_check, check = _HEADER.unpack_from(
            self._memory, start
        )
        if magic != MAGIC:
            raise _not_a_frame(bytes(self._memory[start : start + 1]))
        if check != _hash(self._memory[start : start + _LEAD_BYTES]) & _LOW_HALF:
            raise FramingError(errno.EPROTO, "frame header is damaged (checksum mismatch)")
        if version != PROTOCOL_VERSION:
            raise FramingError(
                errno.EPROTO, f"peer speaks protocol version {version}, this side speaks {PROTOCOL_VERSION}"
            )
        if kind not in _KINDS:
            raise FramingError(errno.EPROTO, f"unknown frame kind {kind}")
        if body_bytes > self.body_bytes_max:
            raise FramingError(
                errno.EPROTO, f"message body of {body_bytes} bytes is above the limit of {self.body_bytes_max}"
            )
        if bulk_bytes > BULK_BYTES_MAX:
            raise FramingError(errno.EPROTO, f"bulk of {bulk_bytes} bytes is above the limit of {BULK_BYTES_MAX}")
        self._start = start + HEADER_BYTES
        return _KINDS[kind], xid, oldest, body_bytes, bulk_bytes, body_check

    def _ask_sink(self, frame: Frame) -> bool:
        """Get buffers for a frame's bulk, and move into them what has come already; whether there was room."""
        targets = self._sink(frame)
        self.blocked = targets is None
        if targets is None:
            return False
        start, size = self._start, frame.bulk_bytes
        if len(targets) == 1 and len(targets[0]) == size <= self._end - start:  # a small one is there already
            targets[0][:] = self._memory[start : start + size]
            self._start = start + size
            self._waiting = Frame(frame.kind, frame.xid, frame.oldest, frame.body, size, targets)
            return True
        self._targets = [target for target in targets if len(target)]
        if sum(map(len, self._targets)) != frame.bulk_bytes:
            raise FramingError(errno.EPROTO, f"nobody wants {frame.bulk_bytes} bytes of bulk here")
        self._waiting = frame._replace(bulk=targets)
        self._target, self._missing_bytes = 0, frame.bulk_bytes
        while self._missing_bytes and self._start < self._end:
            target = self._targets[self._target]
            count = min(len(target), self._end - self._start)
            target[:count] = self._memory[self._start : self._start + count]
            self._start += count
            self._fill_targets(count)
        return True

    def _fill_targets(self, count: int) -> None:
        """`count` more bytes stand in the targets."""
        self._missing_bytes -= count
        targets, at = self._targets, self._target
        while count:
            size = len(targets[at])
            if count < size:
                targets[at] = targets[at][count:]
                break
            count -= size
            at += 1
        self._target = at

    def redirect(self, xid: int, kind: Kind, scratch: Callable[[int], Sequence[memoryview]]) -> None:
        """The buffers of a frame being received are wanted back: the rest of its bulk goes to `scratch(size)`."""
        frame = self._waiting
        if frame is not None and frame.xid == xid and frame.kind is kind and self._missing_bytes and self._targets:
            self._targets = list(scratch(self._missing_bytes))
            self._target = 0
            self._waiting = frame._replace(bulk=self._targets)
