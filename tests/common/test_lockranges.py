"""Ranges of one owner against a model that has one entry per byte."""

from hypothesis import given
from hypothesis import strategies as st

from nacrefs.common.lockranges import Ranges, Span
from nacrefs.common.wire import LockKind

SIZE = 24
changes = st.tuples(st.integers(0, SIZE - 1), st.integers(1, SIZE), st.sampled_from(list(LockKind))).filter(
    lambda change: change[0] < change[1]
)


def spans_of(bytewise: list[LockKind]) -> list[Span]:
    found: list[Span] = []
    for at, kind in enumerate(bytewise):
        if kind == LockKind.UNLOCK:
            continue
        if found and found[-1].end == at and found[-1].kind == kind:
            found[-1] = Span(found[-1].start, at + 1, kind)
        else:
            found.append(Span(at, at + 1, kind))
    return found


@given(st.lists(changes, max_size=12))
def test_locks_replace_split_and_merge_byte_by_byte(sequence: list[tuple[int, int, LockKind]]) -> None:
    ranges, model = Ranges(), [LockKind.UNLOCK] * SIZE
    for start, end, kind in sequence:
        weaker = {LockKind.UNLOCK: 0, LockKind.READ: 1, LockKind.WRITE: 2}
        less = any(weaker[model[at]] > weaker[kind] for at in range(start, end))
        assert ranges.set(start, end, kind) == less
        model[start:end] = [kind] * (end - start)
        assert ranges.spans == spans_of(model)
        assert bool(ranges) == any(kind != LockKind.UNLOCK for kind in model)


@given(st.lists(changes, max_size=8), changes)
def test_conflict_is_the_first_span_with_a_byte_in_the_way(
    sequence: list[tuple[int, int, LockKind]], wanted: tuple[int, int, LockKind]
) -> None:
    ranges, model = Ranges(), [LockKind.UNLOCK] * SIZE
    for start, end, kind in sequence:
        ranges.set(start, end, kind)
        model[start:end] = [kind] * (end - start)
    start, end, kind = wanted
    if kind == LockKind.UNLOCK:
        return
    in_the_way = [
        at
        for at in range(start, end)
        if model[at] == LockKind.WRITE or (model[at] == LockKind.READ and kind == LockKind.WRITE)
    ]
    span = ranges.conflict(start, end, kind)
    if in_the_way:
        assert span is not None
        assert span.start <= in_the_way[0] < span.end
    else:
        assert span is None
