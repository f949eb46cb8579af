import ctypes
import mmap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacrefs.common.buffers import BufferPool


def taken(pool: BufferPool, size: int) -> memoryview:
    buffer = pool.take(size)
    assert buffer is not None
    return buffer


def test_a_buffer_has_the_size_that_was_asked_for() -> None:
    pool = BufferPool(1 << 20)
    assert [len(taken(pool, size)) for size in (0, 1, 16384, 16385, 100_000)] == [0, 1, 16384, 16385, 100_000]
    assert pool.used_bytes == 3 * 16384 + 32768 + 131072


def test_no_more_than_the_limit_is_out_but_one_request_always_fits() -> None:
    pool = BufferPool(100_000)
    large = taken(pool, 1_000_000)
    assert pool.take(1) is None
    pool.give(large)
    small = [taken(pool, 16384) for _ in range(6)]
    assert pool.take(1) is None
    pool.give(small.pop())
    assert pool.take(16385) is None
    assert pool.take(16384) is not None


def test_a_buffer_is_used_again() -> None:
    pool = BufferPool(1 << 20)
    first = taken(pool, 20_000)
    memory = first.obj
    pool.give(first[5:10])
    assert taken(pool, 30_000).obj is memory


@pytest.mark.parametrize("size", [1, 20_000, 1 << 20, 3 << 20])
def test_a_buffer_begins_with_a_page(size: int) -> None:
    """Elsewhere, copies out of the page cache can take five times as long."""
    pool = BufferPool(64 << 20)
    for _ in range(3):
        assert ctypes.addressof(ctypes.c_char.from_buffer(taken(pool, size))) % mmap.PAGESIZE == 0


def test_what_is_not_out_cannot_be_given_back() -> None:
    pool = BufferPool(1 << 20)
    buffer = taken(pool, 10)
    pool.give(buffer)
    for wrong in (buffer, memoryview(bytearray(16384)), memoryview(bytes(10))):
        with pytest.raises(ValueError, match="not out"):
            pool.give(wrong)
    assert pool.used_bytes == 0


def test_waiters_are_woken_once_and_only_while_there_is_room() -> None:
    pool = BufferPool(32768)
    woken: list[str] = []
    held: list[memoryview] = [taken(pool, 16384), taken(pool, 16384)]

    def take_again(name: str) -> None:
        woken.append(name)
        held.append(taken(pool, 16384))

    pool.when_free(lambda: take_again("first"))
    pool.when_free(lambda: take_again("second"))
    pool.give(held.pop(0))
    assert woken == ["first"]
    pool.give(held.pop(0))
    assert woken == ["first", "second"]
    for buffer in held:
        pool.give(buffer)
    assert woken == ["first", "second"]


def test_a_waiter_that_waits_again_does_not_keep_the_others_from_their_turn() -> None:
    pool = BufferPool(32768)
    buffer = taken(pool, 10)
    woken: list[int] = []

    def wait_again() -> None:
        woken.append(1)
        pool.when_free(wait_again)

    pool.when_free(wait_again)
    pool.give(buffer)
    assert woken == [1]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 300_000)), max_size=60))
def test_memory_never_exceeds_the_limit_and_nothing_is_given_twice(steps: list[tuple[bool, int]]) -> None:
    pool = BufferPool(1 << 19)
    out: list[memoryview] = []
    for take, number in steps:
        if take:
            buffer = pool.take(number)
            if buffer is not None:
                out.append(buffer)
        elif out:
            pool.give(out.pop(number % len(out)))
        memories = [id(buffer.obj) for buffer in out]
        assert len(set(memories)) == len(memories)
        capacity = sum(max(16384, 1 << (len(buffer) - 1).bit_length()) if len(buffer) else 16384 for buffer in out)
        assert pool.used_bytes == capacity <= 1 << 19
        assert pool.used_bytes + pool.kept_bytes <= 1 << 19
