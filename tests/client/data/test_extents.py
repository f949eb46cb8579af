"""Dirty extents against a plain array of bytes."""

from hypothesis import given
from hypothesis import strategies as st

from nacrefs.client.data.extents import Extents, overlay

SPAN = 3000
spots = st.tuples(st.integers(0, SPAN), st.integers(1, 600), st.integers(1, 255))
steps = st.lists(st.tuples(st.sampled_from(["put", "below", "cut", "take"]), spots), max_size=40)


def contents(extents: Extents) -> dict[int, int]:
    found: dict[int, int] = {}
    end = 0
    for extent in extents:
        assert extent.start >= end
        assert extent.end == extent.start + len(extent.view) > extent.start
        end = extent.end
        found.update(zip(range(extent.start, extent.end), extent.view, strict=True))
    return found


@given(steps=steps)
def test_any_sequence_of_changes_keeps_the_newest_bytes(steps: list[tuple[str, tuple[int, int, int]]]) -> None:
    extents = Extents()
    model: dict[int, int] = {}
    seen: list[tuple[memoryview, bytes]] = []
    for kind, (start, size, value) in steps:
        data = memoryview(bytes([value]) * size)
        places = range(start, start + size)
        if kind == "put":
            extents.put(start, data)
            model.update(dict.fromkeys(places, value))
        elif kind == "below":
            extents.put_below(start, data)
            model.update({place: value for place in places if place not in model})
        elif kind == "cut":
            gone = extents.cut(start, start + size)
            assert gone == sum(model.pop(place, None) is not None for place in places)
        else:
            for extent in extents.take(size, start):
                for place in range(extent.start, extent.end):
                    del model[place]
        seen.extend((extent.view, bytes(extent.view)) for extent in extents)
        assert contents(extents) == model
        assert extents.bytes == len(model)
        assert extents.end == max(model, default=-1) + 1
    assert all(bytes(view) == then for view, then in seen), "bytes of an extent changed under a reader"


@given(steps=steps, place=spots)
def test_what_lies_within_a_range_is_laid_over_it(
    steps: list[tuple[str, tuple[int, int, int]]], place: tuple[int, int, int]
) -> None:
    extents = Extents()
    expected = bytearray(SPAN + 1200)
    for _, (start, size, value) in steps:
        extents.put(start, memoryview(bytes([value]) * size))
        expected[start : start + size] = bytes([value]) * size
    start, size, _ = place
    target = memoryview(bytearray(size))
    overlay(extents.within(start, start + size), start, target)
    assert target == expected[start : start + size]
    covered = sum(high - low for low, high in extents.runs(start, start + size))
    assert covered == sum(start <= spot < start + size for spot in contents(extents))
