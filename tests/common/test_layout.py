from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacrefs.common.layout import (
    BLOCK_BYTES,
    STRIPE_BYTES_MAX,
    STRIPES_MAX,
    Layout,
    LayoutSpec,
    block_count,
    blocks,
    by_stripe,
    pieces,
)

OFFSET_MAX = (1 << 63) - 1


def a_layout(stripe_bytes: int, stripe_count: int, mirrors: int = 1) -> Layout:
    return Layout(stripe_bytes, stripe_count, tuple(range(stripe_count * mirrors)), mirrors)


layouts = st.builds(
    a_layout,
    st.integers(1, 64).map(lambda units: units * BLOCK_BYTES),
    st.integers(1, 40) | st.just(STRIPES_MAX),
    st.integers(1, 3),
)


def beside_block(block: int, by: int) -> int:
    return max(0, block * BLOCK_BYTES + by)


@st.composite
def ranges(draw: st.DrawFn, length_max: int = 200 * BLOCK_BYTES) -> tuple[int, int]:
    """A file range anywhere below the largest offset, often at or beside a block border."""
    near = st.builds(beside_block, st.integers(0, 1 << 40), st.integers(-2, 2))
    start = draw(near | st.integers(0, OFFSET_MAX))
    length = draw(st.integers(0, length_max) | st.integers(0, length_max // BLOCK_BYTES).map(BLOCK_BYTES.__mul__))
    return start, min(start + length, OFFSET_MAX)


@given(layouts, ranges())
def test_pieces_follow_one_another_and_cover_the_range_exactly(layout: Layout, extent: tuple[int, int]) -> None:
    start, end = extent
    found = list(pieces(layout, start, end))
    assert all(piece.start < piece.end for piece in found)
    assert all(left.end == right.start for left, right in pairwise(found))
    assert ([found[0].start, found[-1].end] if found else [start, start]) == [start, end]


@given(layouts, ranges(), st.data())
def test_every_byte_is_in_the_piece_of_its_own_stripe(
    layout: Layout, extent: tuple[int, int], data: st.DataObject
) -> None:
    found = list(pieces(layout, *extent))
    if not found:
        return
    piece = data.draw(st.sampled_from(found))
    offset = data.draw(st.sampled_from([piece.start, piece.end - 1]) | st.integers(piece.start, piece.end - 1))
    assert layout.stripe_of(offset) == piece.stripe == offset // layout.stripe_bytes % layout.stripe_count


@given(layouts, ranges())
def test_neighbouring_pieces_lie_in_different_stripes(layout: Layout, extent: tuple[int, int]) -> None:
    assert all(left.stripe != right.stripe for left, right in pairwise(pieces(layout, *extent)))


@given(layouts, ranges())
def test_by_stripe_holds_the_pieces_and_merging_them_gives_the_range_back(
    layout: Layout, extent: tuple[int, int]
) -> None:
    split = by_stripe(layout, *extent)
    assert all(extents == sorted(extents) for extents in split.values())
    merged = sorted((start, end, stripe) for stripe, extents in split.items() for start, end in extents)
    assert merged == [(piece.start, piece.end, piece.stripe) for piece in pieces(layout, *extent)]


def test_stripes_of_a_small_file_by_hand() -> None:
    unit = BLOCK_BYTES
    layout = a_layout(unit, 2)
    assert list(pieces(layout, 10, 3 * unit + 5)) == [
        (0, 10, unit),
        (1, unit, 2 * unit),
        (0, 2 * unit, 3 * unit),
        (1, 3 * unit, 3 * unit + 5),
    ]
    assert by_stripe(layout, 10, 3 * unit + 5) == {
        0: [(10, unit), (2 * unit, 3 * unit)],
        1: [(unit, 2 * unit), (3 * unit, 3 * unit + 5)],
    }


@given(ranges(), st.integers(1, 64))
def test_one_stripe_is_never_cut(extent: tuple[int, int], units: int) -> None:
    start, end = extent
    assert list(pieces(a_layout(units * BLOCK_BYTES, 1), start, end)) == ([(0, start, end)] if start < end else [])


@given(layouts)
def test_every_object_number_belongs_to_one_stripe(layout: Layout) -> None:
    numbers = [number for stripe in range(layout.stripe_count) for number in layout.objects_of(stripe)]
    assert sorted(numbers) == list(range(len(layout.osts)))
    for stripe in (0, layout.stripe_count - 1):
        assert all(number % layout.stripe_count == stripe for number in layout.objects_of(stripe))


@given(ranges())
def test_blocks_cut_the_range_at_every_block_border_and_nowhere_else(extent: tuple[int, int]) -> None:
    start, end = extent
    borders = range(-(-(start + 1) // BLOCK_BYTES) * BLOCK_BYTES, end, BLOCK_BYTES)
    cuts = [start, *borders, end] if start < end else []
    assert list(blocks(start, end)) == list(pairwise(cuts))


@given(ranges())
def test_block_count_is_the_number_of_blocks(extent: tuple[int, int]) -> None:
    assert block_count(*extent) == len(list(blocks(*extent)))


@given(st.integers(0, OFFSET_MAX), st.integers(0, OFFSET_MAX))
def test_backward_and_empty_ranges_have_nothing_in_them(first: int, second: int) -> None:
    start, end = max(first, second), min(first, second)
    assert block_count(start, end) == 0
    assert list(blocks(start, end)) == []
    assert list(pieces(a_layout(BLOCK_BYTES, 3), start, end)) == []


@pytest.mark.parametrize(
    "spec",
    [
        LayoutSpec(),
        LayoutSpec(stripe_count=-1),
        LayoutSpec(stripe_count=STRIPES_MAX, stripe_bytes=STRIPE_BYTES_MAX),
        LayoutSpec(stripe_bytes=BLOCK_BYTES, first_ost=0, pool="p" * 63, mirrors=3, inline_bytes=65536),
    ],
)
def test_possible_layout_is_accepted(spec: LayoutSpec) -> None:
    spec.check()


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (LayoutSpec(stripe_bytes=BLOCK_BYTES - 1), "multiple of 65536"),
        (LayoutSpec(stripe_bytes=BLOCK_BYTES + 1), "multiple of 65536"),
        (LayoutSpec(stripe_bytes=-BLOCK_BYTES), "multiple of 65536"),
        (LayoutSpec(stripe_bytes=STRIPE_BYTES_MAX + BLOCK_BYTES), "above"),
        (LayoutSpec(stripe_count=-2), "stripe count -2"),
        (LayoutSpec(stripe_count=STRIPES_MAX + 1), "stripe count 2001"),
        (LayoutSpec(first_ost=-2), "first OST -2"),
        (LayoutSpec(mirrors=0), "mirror count 0"),
        (LayoutSpec(inline_bytes=65537), "inline limit 65537"),
        (LayoutSpec(pool="p" * 64), "longer than 63"),
    ],
)
def test_impossible_layout_is_refused_with_the_reason(spec: LayoutSpec, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        spec.check()
