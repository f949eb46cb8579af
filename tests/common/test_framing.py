import contextlib
import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import cycle

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from nacrefs.common.framing import HEADER_BYTES, MAGIC, Decoder, Frame, FramingError, Kind, encode_frame
from nacrefs.common.transport.link import scratch
from nacrefs.common.wire import BODY_BYTES_MAX, BULK_BYTES_MAX, PROTOCOL_VERSION

Sent = tuple[Kind, int, int, bytes, bytes]
ROOM = 32 * 1024

sizes = st.integers(0, 300) | st.sampled_from([ROOM - HEADER_BYTES - 1, ROOM - HEADER_BYTES, ROOM - HEADER_BYTES + 1])
sizes |= st.integers(0, 100_000)
numbers = st.integers(0, 2**64 - 1)


def blob(size: int, seed: int) -> bytes:
    """Bytes that differ from place to place, so that shifted ones are noticed."""
    pattern = bytes((seed + 7 * index) % 251 for index in range(509))
    return (pattern * (size // len(pattern) + 1))[:size]


def make_frame(kind: Kind, xid: int, oldest: int, body_bytes: int, bulk_bytes: int, seed: int) -> Sent:
    return kind, xid, oldest, blob(body_bytes, seed), blob(bulk_bytes, seed + 1)


frames = st.builds(make_frame, st.sampled_from(Kind), numbers, numbers, sizes, st.just(0) | sizes, st.integers(0, 250))


def short(frame: Sent) -> bool:
    return len(frame[3]) < 2000


def stream(sent: Iterable[Sent]) -> bytes:
    return b"".join(encode_frame(kind, xid, oldest, body, len(bulk)) + bulk for kind, xid, oldest, body, bulk in sent)


class Sink:
    """Gives buffers of these sizes, over and over; refuses each frame `refusals` times first."""

    def __init__(self, pieces: Sequence[int] = (1 << 20,), refusals: int = 0) -> None:
        self.pieces = cycle(pieces)
        self.refusals = refusals
        self.asked: dict[int, int] = {}
        self.frames = 0

    def __call__(self, frame: Frame) -> list[memoryview] | None:
        self.asked[self.frames] = self.asked.get(self.frames, 0) + 1
        if self.asked[self.frames] <= self.refusals:
            return None
        self.frames += 1
        buffers: list[memoryview] = []
        left = frame.bulk_bytes
        while left:
            size = min(left, next(self.pieces))
            buffers.append(memoryview(bytearray(size)))
            left -= size
        return buffers


def taken(decoder: Decoder) -> Iterator[Sent]:
    """The frames that are complete; a blocked decoder is asked again, as after `Link.resume`."""
    while True:
        frame = decoder.next_frame()
        if frame is not None:
            yield frame.kind, frame.xid, frame.oldest, bytes(frame.body), b"".join(frame.bulk)
        elif not decoder.blocked:
            return


def fed(decoder: Decoder, data: bytes, chunks: Iterable[int] = (1 << 20,)) -> list[Sent]:
    """What a decoder makes of bytes that come in chunks of these sizes, over and over."""
    got: list[Sent] = []
    at = 0
    for chunk in cycle(chunks):
        if at == len(data):
            return got
        left = min(chunk, len(data) - at)
        filled = 0
        for buffer in decoder.buffers():
            assert len(buffer)
            count = min(len(buffer), left - filled)
            buffer[:count] = data[at + filled : at + filled + count]
            filled += count
        decoder.received(filled)
        at += filled
        got.extend(taken(decoder))
    raise AssertionError("unreachable")


@settings(max_examples=80)
@given(
    st.lists(frames, max_size=6),
    st.lists(st.integers(1, 40_000) | st.integers(1, 50), min_size=1, max_size=5),
    st.lists(st.integers(1, 100_000) | st.integers(1, 300), min_size=1, max_size=4),
    st.integers(0, 2),
)
def test_frames_come_out_as_they_went_in_however_the_stream_is_cut(
    sent: list[Sent], chunks: list[int], pieces: list[int], refusals: int
) -> None:
    chunks = [max(chunk, len(stream(sent)) // 3000) for chunk in chunks]  # few enough steps
    decoder = Decoder(Sink([max(piece, 100) for piece in pieces], refusals))
    assert fed(decoder, stream(sent), chunks) == sent
    assert decoder.idle


def test_one_byte_at_a_time() -> None:
    sent = [(Kind.REQUEST, 1, 1, b"body", b""), (Kind.RESENT, 2, 1, b"", b"bulk"), (Kind.REPLY, 3, 0, b"x", b"y")]
    assert fed(Decoder(Sink([1])), stream(sent), [1]) == sent


def test_blocked_decoder_keeps_what_it_has_until_the_sink_has_room() -> None:
    sent = [(Kind.REQUEST, 1, 1, b"a", b"A" * 50_000), (Kind.REQUEST, 2, 1, b"b", b"")]
    decoder = Decoder(Sink(refusals=2))
    data = stream(sent)[:1000]
    decoder.buffers()[0][: len(data)] = data
    decoder.received(len(data))
    assert decoder.next_frame() is None
    assert decoder.blocked
    assert decoder.next_frame() is None
    assert decoder.blocked
    assert decoder.next_frame() is None
    assert not decoder.blocked
    assert fed(decoder, stream(sent)[1000:]) == sent


def test_frames_that_are_not_taken_stay() -> None:
    sent = [(Kind.REQUEST, xid, 1, b"%d" % xid, b"") for xid in range(1, 6)]
    decoder = Decoder(Sink())
    data = stream(sent)
    decoder.buffers()[0][: len(data)] = data
    decoder.received(len(data))
    first = decoder.next_frame()
    assert first is not None
    assert (first.xid, decoder.idle) == (1, False)
    assert [frame[1] for frame in taken(decoder)] == [2, 3, 4, 5]
    assert decoder.idle


@settings(max_examples=15)
@given(frames.filter(short), st.data())
def test_a_flipped_bit_in_header_or_body_is_noticed(frame: Sent, data: st.DataObject) -> None:
    good = stream([frame])
    covered = 8 * (HEADER_BYTES + len(frame[3]))
    flips = range(covered) if covered < 1200 else data.draw(st.lists(st.integers(0, covered - 1), max_size=400))
    for flip in flips:
        bad = bytearray(good)
        bad[flip // 8] ^= 1 << flip % 8
        with pytest.raises(FramingError):
            fed(Decoder(Sink()), bytes(bad))


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n", b"\x16\x03\x01", b"X", b"\0" * 36, b"N\0"])
def test_strangers_are_recognised_by_their_first_bytes(garbage: bytes) -> None:
    with pytest.raises(FramingError, match="not a nacrefs frame"):
        fed(Decoder(Sink()), garbage)


@settings(max_examples=200)
@given(st.binary(min_size=2, max_size=200))
def test_random_bytes_are_an_error_and_nothing_else(garbage: bytes) -> None:
    with contextlib.suppress(FramingError):
        assert fed(Decoder(Sink()), garbage) == []


def test_oversize_is_refused_before_anything_is_allocated() -> None:
    asked: list[Frame] = []

    def sink(frame: Frame) -> None:
        asked.append(frame)

    bulky = encode_frame(Kind.REQUEST, 1, 1, b"", BULK_BYTES_MAX + 1)
    with pytest.raises(FramingError, match=f"bulk of {BULK_BYTES_MAX + 1} bytes is above the limit"):
        fed(Decoder(sink), bulky)
    assert not asked
    large = encode_frame(Kind.REQUEST, 1, 1, bytes(BODY_BYTES_MAX + 1))[:HEADER_BYTES]
    decoder = Decoder(sink)
    with pytest.raises(FramingError, match=f"body of {BODY_BYTES_MAX + 1} bytes is above the limit"):
        fed(decoder, large)
    assert len(decoder.buffers()[0]) <= ROOM
    small = encode_frame(Kind.HELLO, 0, 0, bytes(101))[:HEADER_BYTES]
    with pytest.raises(FramingError, match="body of 101 bytes is above the limit of 100"):
        fed(Decoder(sink, body_bytes_max=100), small)


def test_largest_body_and_bulk_pass() -> None:
    sent = [(Kind.REPLY, 1, 0, bytes(BODY_BYTES_MAX), bytes(BULK_BYTES_MAX))]
    assert fed(Decoder(Sink()), stream(sent)) == sent


def header(version: int, kind: int) -> bytes:
    """The header of a frame without body, put together as docs/protocol.md says."""
    lead = struct.pack("<HBBIQQII", MAGIC, version, kind, 0, 5, 4, 0, xxhash.xxh3_64_intdigest(b"") & 0xFFFFFFFF)
    return lead + struct.pack("<I", xxhash.xxh3_64_intdigest(lead) & 0xFFFFFFFF)


def test_header_is_the_documented_one() -> None:
    assert header(PROTOCOL_VERSION, Kind.REPLY) == encode_frame(Kind.REPLY, 5, 4, b"")
    assert len(header(1, 1)) == HEADER_BYTES == 36
    assert header(1, 1)[:2] == b"NF"


def test_another_version_and_an_unknown_kind_are_named() -> None:
    with pytest.raises(FramingError, match="version 9, this side speaks 1"):
        fed(Decoder(Sink()), header(9, Kind.HELLO))
    with pytest.raises(FramingError, match="unknown frame kind 99"):
        fed(Decoder(Sink()), header(PROTOCOL_VERSION, 99))


def test_a_sink_with_the_wrong_room_is_an_error() -> None:
    with pytest.raises(FramingError, match="nobody wants 10 bytes"):
        fed(Decoder(lambda frame: [memoryview(bytearray(9))]), stream([(Kind.REPLY, 1, 0, b"", b"0123456789")]))


def test_withdrawn_buffers_get_nothing_more_and_the_stream_goes_on() -> None:
    buffers = [memoryview(bytearray(60)), memoryview(bytearray(40))]
    decoder = Decoder(lambda frame: buffers)
    sent = [(Kind.REPLY, 7, 0, b"reply", b"x" * 100), (Kind.REPLY, 8, 0, b"next", b"")]
    data = stream(sent)
    begin = HEADER_BYTES + 5 + 30
    assert fed(decoder, data[:begin]) == []
    decoder.redirect(8, Kind.REPLY, scratch)
    decoder.redirect(7, Kind.REQUEST, scratch)
    assert decoder.buffers()[0].obj is buffers[0].obj
    decoder.redirect(7, Kind.REPLY, scratch)
    assert [frame[:4] for frame in fed(decoder, data[begin:])] == [frame[:4] for frame in sent]
    assert b"".join(buffers) == b"x" * 30 + bytes(70)
