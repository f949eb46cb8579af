"""Registered memory: pieces never overlap, come back when nobody refers to them, and never before."""

import errno
import gc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacrefs.common.arena import SMALLEST_BYTES, Arena, Buddy, Segment, capacity, locate, piece_bytes

SEGMENT = 1 << 20


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6)), max_size=200))
def test_pieces_never_overlap_and_all_of_it_is_whole_again_in_the_end(steps: list[tuple[bool, int]]) -> None:
    buddy = Buddy(SEGMENT)
    out: list[tuple[int, int]] = []
    for take, number in steps:
        if take:
            size = SMALLEST_BYTES << number
            offset = buddy.take(size)
            if offset is not None:
                assert offset % size == 0
                assert offset + size <= SEGMENT
                assert all(offset + size <= other or other + length <= offset for other, length in out)
                out.append((offset, size))
        elif out:
            buddy.give(*out.pop(number % len(out)))
        assert buddy.used_bytes == sum(size for _, size in out)
    for piece in out:
        buddy.give(*piece)
    assert buddy.take(SEGMENT) == 0
    assert buddy.take(SMALLEST_BYTES) is None


@pytest.mark.parametrize(
    ("size", "whole"), [(0, 16384), (1, 16384), (16384, 16384), (16385, 32768), (1 << 20, 1 << 20)]
)
def test_a_piece_is_a_power_of_two(size: int, whole: int) -> None:
    assert piece_bytes(size) == whole


def test_a_piece_is_free_again_when_the_last_view_of_it_is_gone() -> None:
    arena = Arena(SEGMENT, SEGMENT)
    view = arena.take(SEGMENT)
    assert view is not None
    part = view[100:200]
    part[:] = b"x" * 100
    del view
    assert arena.take(1) is None, "a part of it is still in use"
    assert bytes(part) == b"x" * 100
    del part
    gc.collect()
    assert arena.used_bytes == 0
    assert arena.take(SEGMENT) is not None


def test_the_arena_grows_by_segments_up_to_its_limit_and_has_all_of_them_registered() -> None:
    registered: list[Segment] = []
    register = registered.append

    arena = Arena(3 * SEGMENT, SEGMENT)
    views = [arena.take(SEGMENT)]
    arena.attach(register)
    assert registered == arena.segments
    assert len(registered) == 1
    views += [arena.take(SEGMENT) for _ in range(4)]
    assert [view is not None for view in views] == [True, True, True, False, False]
    assert registered == arena.segments
    assert len(registered) == 3
    assert arena.held_bytes == 3 * SEGMENT
    assert arena.take(SEGMENT + 1) is None
    arena.detach(register)


def test_memory_that_cannot_be_registered_is_the_end_of_growing(caplog: pytest.LogCaptureFixture) -> None:
    def register(segment: Segment) -> None:
        if arena.segments:
            raise OSError(errno.ENOMEM, "locked memory")

    arena = Arena(8 * SEGMENT, SEGMENT)
    arena.attach(register)
    first = arena.take(SEGMENT)
    assert first is not None
    assert [arena.take(1), arena.take(1)] == [None, None]
    assert caplog.text.count("no more memory for RDMA than 1 MiB: locked memory") == 1
    del first
    assert arena.take(1) is not None


def test_a_view_is_located_by_its_address_and_ordinary_memory_is_not() -> None:
    arena = Arena(SEGMENT, SEGMENT)
    view = arena.take(40_000)
    assert view is not None
    whole, part = locate(view), locate(view[1000:2000])
    assert whole is not None
    assert part is not None
    assert whole[0] is part[0] is arena.segments[0]
    assert part[1] - whole[1] == 1000
    assert locate(view.toreadonly()) is None
    assert locate(view[:0]) is None
    assert locate(memoryview(bytearray(10))) is None
    assert locate(memoryview(b"bytes")) is None
    assert capacity(view[:10]) == 65536
    assert capacity(memoryview(bytearray(10))[:5]) == 10
