import random

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from nacrefs.common.checksum import SUM_BYTES, block_sums, first_mismatch
from nacrefs.common.layout import BLOCK_BYTES, block_count

DATA = memoryview(random.Random(1).randbytes(5 * BLOCK_BYTES))


def beside_block(block: int, by: int) -> int:
    return max(0, block * BLOCK_BYTES + by)


offsets = st.builds(beside_block, st.integers(0, 9), st.integers(-2, 2)) | st.integers(0, 1 << 62)
lengths = st.integers(0, 5).map(BLOCK_BYTES.__mul__) | st.integers(0, len(DATA))


def naive_sums(data: memoryview, start: int) -> bytes:
    """The sum string as its definition says: group the bytes by block, hash each group."""
    sums = b""
    at = 0
    while at < len(data):
        room = BLOCK_BYTES - (start + at) % BLOCK_BYTES
        sums += xxhash.xxh3_64_intdigest(bytes(data[at : at + room])).to_bytes(SUM_BYTES, "little")
        at += room
    return sums


@given(offsets, lengths)
def test_sums_are_those_of_the_blocks_one_by_one(start: int, length: int) -> None:
    data = DATA[:length]
    assert block_sums(data, start) == naive_sums(data, start)
    assert len(block_sums(data, start)) == SUM_BYTES * block_count(start, start + length)


@given(offsets, lengths)
def test_intact_data_has_no_mismatch(start: int, length: int) -> None:
    data = DATA[:length]
    sums = block_sums(data, start)
    assert first_mismatch(data, start, sums) is None
    assert first_mismatch(data, start, memoryview(sums)) is None


@given(offsets, lengths.filter(bool), st.data())
def test_mismatch_is_where_the_first_damaged_block_starts(start: int, length: int, data: st.DataObject) -> None:
    damaged = bytearray(DATA[:length])
    sums = block_sums(memoryview(damaged), start)
    places = data.draw(st.lists(st.integers(0, length - 1), min_size=1, max_size=3))
    for place in set(places):
        damaged[place] ^= 1 << place % 8
    block = (start + min(places)) // BLOCK_BYTES * BLOCK_BYTES
    assert first_mismatch(memoryview(damaged), start, sums) == max(start, block)


@given(offsets, lengths, st.integers(-9, 9).filter(bool))
def test_sum_string_of_the_wrong_length_is_refused(start: int, length: int, excess: int) -> None:
    sums = block_sums(DATA[:length], start)
    wrong = sums + bytes(excess) if excess > 0 else sums[:excess]
    if len(wrong) == len(sums):
        return
    with pytest.raises(ValueError, match="bytes of checksums for an extent that needs"):
        first_mismatch(DATA[:length], start, wrong)


def test_known_value_of_xxh3_with_seed_zero() -> None:
    # XXH3_64bits("", seed 0) is 2d06800538d394c2 in xxHash's own sanity tests; "a" is by xxhsum -H3.
    assert xxhash.xxh3_64_hexdigest(b"") == "2d06800538d394c2"
    assert block_sums(memoryview(b"a"), 0)[::-1].hex() == "e6c632b61e964e1f"
    assert block_sums(memoryview(b""), 0) == b""
