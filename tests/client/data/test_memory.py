"""The limit on file data."""

import asyncio

import pytest

from nacrefs.client.data.memory import Memory


async def test_takers_wait_in_line_and_nobody_overtakes() -> None:
    memory = Memory(100)
    assert memory.try_take(90)
    order: list[str] = []

    async def taker(name: str, size: int) -> None:
        await memory.take(size)
        order.append(name)

    large = asyncio.create_task(taker("large", 50))
    await asyncio.sleep(0)
    small = asyncio.create_task(taker("small", 5))
    await asyncio.sleep(0)
    assert not memory.try_take(1), "somebody is in line"
    memory.give(90)
    await asyncio.gather(large, small)
    assert order == ["large", "small"]
    assert memory.used_bytes == 55
    assert memory.peak_bytes <= 100


async def test_more_than_the_limit_is_granted_only_alone() -> None:
    memory = Memory(100)
    assert memory.try_take(500)
    assert not memory.try_take(1)
    memory.give(500)
    assert memory.try_take(1)


async def test_a_taker_that_is_cancelled_leaves_the_line() -> None:
    memory = Memory(100)
    assert memory.try_take(100)
    waiting = asyncio.create_task(memory.take(10))
    behind = asyncio.create_task(memory.take(10))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    memory.give(100)
    await behind
    assert memory.used_bytes == 10


async def test_pressure_is_put_on_whoever_can_free_memory() -> None:
    memory = Memory(100)
    held = [60]
    assert memory.try_take(60)

    def press() -> None:
        if held:
            memory.give(held.pop())

    memory.on_pressure = press
    await memory.take(80)
    assert memory.used_bytes == 80


def test_buffers_are_used_again() -> None:
    memory = Memory(16 << 20)
    assert memory.try_take(1 << 20)
    first = memory.buffer(1 << 20)
    storage = first.obj
    memory.release(first)
    assert memory.used_bytes == 0
    assert memory.try_take(1 << 20)
    assert memory.buffer(1 << 20).obj is storage
