import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacrefs.common.fid import (
    COUNTER_MAX,
    FIRST_FREE,
    MDT_MAX,
    ROOT,
    fid_counter,
    fid_mdt,
    format_fid,
    make_fid,
    parse_fid,
)

mdts = st.integers(0, MDT_MAX)
counters = st.integers(1, COUNTER_MAX)


@given(mdts, counters)
def test_fid_holds_its_mdt_and_counter_in_64_bits(mdt: int, counter: int) -> None:
    fid = make_fid(mdt, counter)
    assert (fid_mdt(fid), fid_counter(fid)) == (mdt, counter)
    assert 0 < fid < 1 << 64


@given(mdts, counters)
def test_fid_survives_being_written_and_read(mdt: int, counter: int) -> None:
    fid = make_fid(mdt, counter)
    assert parse_fid(format_fid(fid)) == fid


def test_fid_is_written_as_mdt_and_counter_in_hexadecimal() -> None:
    assert format_fid(make_fid(3, 42)) == "[0x3:0x2a]"


@pytest.mark.parametrize("text", ["[0x3:0x2a]", "0x3:0x2a", "3:2a", " [3:2A]\n"])
def test_fid_is_read_with_and_without_ornaments(text: str) -> None:
    assert parse_fid(text) == make_fid(3, 42)


def test_root_is_the_number_that_fuse_gives_to_roots_and_is_reserved() -> None:
    assert make_fid(0, 1) == ROOT == 1
    assert ROOT < FIRST_FREE


@pytest.mark.parametrize(
    ("mdt", "counter"), [(-1, 1), (MDT_MAX + 1, 1), (0, 0), (0, -1), (0, COUNTER_MAX + 1), (MDT_MAX + 1, 0)]
)
def test_number_out_of_range_makes_no_fid(mdt: int, counter: int) -> None:
    with pytest.raises(ValueError, match=r"is not in \d\.\."):
        make_fid(mdt, counter)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        ":",
        "42",
        "[0x3]",
        "[0x3:]",
        "[0x3:0x0]",
        "[0x3:-1]",
        "[0x10000:0x1]",
        "[1:2:3]",
        "[g:1]",
        "[0:1000000000000]",
    ],
)
def test_text_that_is_no_fid_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a fid: .* as in \[0x0:0x2a\]"):
        parse_fid(text)
