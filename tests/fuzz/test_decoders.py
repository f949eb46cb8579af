"""Whatever bytes come, decoders give a message or the one error that they are meant to give."""

import contextlib
import random
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nacrefs.common.auth import Keyring
from nacrefs.common.codec import decode_failure, decode_reply, decode_request, request_types
from nacrefs.common.config import ConfigError, parse_config
from nacrefs.common.framing import HEADER_BYTES, Decoder, Frame, FramingError, Kind, encode_frame
from nacrefs.common.wire import BODY_BYTES_MAX, BULK_BYTES_MAX, Message, Request
from nacrefs.mds.namespace.acl import decode_acl
from tests.fuzz.mutation import GOLDEN, REQUESTS, SECONDS, mutated

FUZZ = settings(max_examples=int(150 * SECONDS), suppress_health_check=[HealthCheck.too_slow], print_blob=True)
seeds = st.integers(0, (1 << 64) - 1)
MEMORY_MAX = 64 * 1024


def bent(seed: int, of: Sequence[bytes]) -> bytes:
    source = random.Random(seed)
    return mutated(source, source.choice(of))


@FUZZ
@given(seeds)
def test_a_request_is_one_or_is_refused(seed: int) -> None:
    body = bent(seed, REQUESTS)
    try:
        assert isinstance(decode_request(body), Request)
    except OSError as error:
        assert error.strerror is not None
        assert error.strerror.startswith(("request not understood", "request kind"))
        assert len(error.strerror) < 1000


@FUZZ
@given(seeds, st.sampled_from(request_types()))
def test_a_reply_is_one_or_is_refused(seed: int, kind: type[Request[Message]]) -> None:
    try:
        assert isinstance(decode_reply(kind, bent(seed, GOLDEN)), Message)
    except OSError as error:
        assert "not understood" in str(error)


@FUZZ
@given(seeds)
def test_a_failure_is_an_error_whatever_it_says(seed: int) -> None:
    assert isinstance(decode_failure(bent(seed, GOLDEN)), OSError)


def fed(stream: bytes, cuts: random.Random) -> list[Frame]:
    """The frames that a decoder finds in a stream that comes in pieces; it must not hoard memory for what it was only
    promised."""
    bulk: list[memoryview] = []

    def sink(frame: Frame) -> list[memoryview]:
        assert frame.bulk_bytes <= BULK_BYTES_MAX
        bulk[:] = [memoryview(bytearray(min(frame.bulk_bytes, 1 << 20)))]
        return bulk * (frame.bulk_bytes >> 20) + [memoryview(bytearray(frame.bulk_bytes & (1 << 20) - 1))]

    decoder = Decoder(sink)
    frames: list[Frame] = []
    at = 0
    while at < len(stream):
        target = decoder.buffers()[0]
        assert len(target) <= BODY_BYTES_MAX
        count = min(len(target), len(stream) - at, cuts.choice((1, 7, 36, 100, 1 << 20)))
        target[:count] = stream[at : at + count]
        decoder.received(count)
        at += count
        while (frame := decoder.next_frame()) is not None:
            frames.append(frame._replace(body=bytes(frame.body)))
    return frames


@FUZZ
@given(seeds)
def test_a_stream_of_anything_is_frames_or_ends(seed: int) -> None:
    source = random.Random(seed)
    stream = b"".join(
        encode_frame(Kind(source.randrange(1, 9)), source.getrandbits(64), 0, source.choice(GOLDEN))
        for _ in range(source.randrange(1, 5))
    )
    with contextlib.suppress(FramingError):
        fed(mutated(source, stream), source)
    with contextlib.suppress(FramingError):
        fed(source.randbytes(source.randrange(200)), source)


@FUZZ
@given(seeds)
def test_what_comes_before_a_mistake_in_a_stream_is_unharmed(seed: int) -> None:
    source = random.Random(seed)
    bodies = [source.choice(GOLDEN) for _ in range(3)]
    good = [encode_frame(Kind.REQUEST, number, 0, body) for number, body in enumerate(bodies)]
    spoilt = bytearray(good[2])
    spoilt[source.randrange(HEADER_BYTES)] ^= 1 << source.randrange(8)
    frames: list[Frame] = []
    decoder = Decoder(lambda frame: None)
    with pytest.raises(FramingError):  # noqa: PT012  (which step finds it depends on the flipped bit)
        for piece in (*good[:2], bytes(spoilt)):
            target = decoder.buffers()[0]
            target[: len(piece)] = piece
            decoder.received(len(piece))
            while (frame := decoder.next_frame()) is not None:
                frames.append(frame._replace(body=bytes(frame.body)))
        raise FramingError("a frame that waits for more is no frame")
    assert [frame.body for frame in frames] == bodies[:2]


@FUZZ
@given(st.binary(max_size=300))
def test_an_access_list_is_one_or_is_refused(value: bytes) -> None:
    with contextlib.suppress(OSError):
        decode_acl(value)
    with contextlib.suppress(OSError):
        decode_acl(b"\2\0\0\0" + value)


@FUZZ
@given(st.text(max_size=200), seeds)
def test_a_keyring_is_one_or_is_refused_without_its_secrets(text: str, seed: int) -> None:
    secret = "5e" * 32
    good = f'cluster = "c"\n[keys.a]\nrole = "client"\nsecret = "{secret}"\n[keys.a.export]\npath = "/a"\n'
    at = seed % len(good)
    for source in (text, good[:at] + text + good[at:], good[:at]):
        try:
            parse_config(source, Keyring, "keyring x")
        except ConfigError as error:
            assert secret not in str(error)
