"""Layouts as text."""

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacrefs.common.layout import BLOCK_BYTES, STRIPE_BYTES_MAX, Layout, LayoutSpec
from nacrefs.common.layoutspec import format_layout, format_spec, parse_spec

SPECS = st.builds(
    LayoutSpec,
    stripe_count=st.integers(-1, 2000),
    stripe_bytes=st.integers(0, STRIPE_BYTES_MAX // BLOCK_BYTES).map(lambda units: units * BLOCK_BYTES),
    first_ost=st.integers(-1, 5000),
    pool=st.text("abcdefghijklmnopqrstuvwxyz0123456789-_.", max_size=63),
    mirrors=st.integers(1, 3),
    inline_bytes=st.integers(-1, 65536),
)


@given(SPECS)
def test_what_is_written_is_read_back(spec: LayoutSpec) -> None:
    assert parse_spec(format_spec(spec)) == spec


def test_units_may_follow_a_size() -> None:
    assert parse_spec("stripe_size=4M stripe_count=2") == LayoutSpec(2, 4 << 20)
    assert parse_spec(b"stripe_size=64k").stripe_bytes == 64 << 10


def test_nothing_means_all_defaults() -> None:
    assert parse_spec("  ") == LayoutSpec()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stripe_count", "'stripe_count' is not FIELD=VALUE"),
        ("stripe_count=", "is not FIELD=VALUE"),
        ("stripes=2", "no field 'stripes'"),
        ("mirrors=2 mirrors=2", "mirrors is given twice"),
        ("stripe_count=two", "stripe_count=two is not a whole number"),
        ("stripe_count=٣", "is not a whole number|ascii"),
        ("stripe_size=1T", "stripe_size=1T is not a size"),
        ("stripe_size=-1", "stripe_size=-1 is not a size"),
        ("stripe_size=1000", "not a multiple of 65536"),
        ("stripe_size=4G", "above"),
        ("stripe_count=3000", "stripe count 3000"),
        ("first_ost=-2", "first OST -2"),
        ("mirrors=0", "mirror count 0"),
        ("inline=1M", "inline limit 1048576"),
        (b"pool=\xff", "ascii"),
    ],
)
def test_a_mistake_is_named(text: str | bytes, words: str) -> None:
    with pytest.raises(OSError, match=words) as caught:
        parse_spec(text)
    assert caught.value.errno == errno.EINVAL


def test_a_file_shows_its_osts() -> None:
    text = format_layout(Layout(1 << 20, 2, (0, 3), generation=1))
    assert text == "stripe_count=2 stripe_size=1048576 mirrors=1 osts=0,3 generation=1"
