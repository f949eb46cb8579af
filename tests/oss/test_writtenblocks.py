"""Blocks that were written in part last: what is remembered counts only while it is what the block holds."""

import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from nacrefs.common.layout import BLOCK_BYTES
from nacrefs.oss.writtenblocks import WrittenBlocks
from tests.oss.local import LocalOss, local_oss


def test_memory_is_believed_for_the_same_block_with_the_same_sum_only() -> None:
    blocks = WrittenBlocks()
    memory, known = blocks.take((1, 0, 0), b"now")
    assert not known
    blocks.keep((1, 0, 0), b"now", memory)
    other, known = blocks.take((2, 0, 0), b"now")  # somebody may have made a block with this very sum
    assert not known
    assert other is not memory
    blocks.keep((2, 0, 0), b"now", other)
    assert blocks.take((1, 0, 0), b"now") == (memory, True)
    blocks.keep((1, 0, 0), b"now", memory)
    assert blocks.take((1, 0, 0), b"later") == (memory, False)


def test_only_a_few_blocks_are_in_memory_and_the_one_that_was_not_written_for_longest_goes() -> None:
    blocks = WrittenBlocks()
    for number in range(1, 100):
        for block in (number, 0):
            memory, _ = blocks.take((1, 0, block), b"sum")
            blocks.keep((1, 0, block), b"sum", memory)
    assert [blocks.take((1, 0, block), b"sum")[1] for block in (0, 99, 98, 97, 96)] == [True, True, True, True, False]


CHANGES: dict[str, Callable[[LocalOss, bytearray], Awaitable[object]]] = {}


def change(
    do: Callable[[LocalOss, bytearray], Awaitable[object]],
) -> Callable[[LocalOss, bytearray], Awaitable[object]]:
    CHANGES[do.__name__] = do
    return do


@change
async def whole_block(oss: LocalOss, model: bytearray) -> None:
    model[:BLOCK_BYTES] = os.urandom(BLOCK_BYTES)
    await oss.write((0, bytes(model[:BLOCK_BYTES])))


@change
async def hole(oss: LocalOss, model: bytearray) -> None:
    model[:BLOCK_BYTES] = bytes(BLOCK_BYTES)
    await oss.punch((0, BLOCK_BYTES))


@change
async def cut_and_lengthened(oss: LocalOss, model: bytearray) -> None:
    await oss.truncate(10_000)
    await oss.write((BLOCK_BYTES, bytes(model[BLOCK_BYTES:])))
    model[10_000:BLOCK_BYTES] = bytes(BLOCK_BYTES - 10_000)


@pytest.mark.parametrize("name", CHANGES)
async def test_a_block_that_was_changed_otherwise_meanwhile_is_read_again(tmp_path: Path, name: str) -> None:
    async with local_oss(tmp_path / "ost") as oss:
        model = bytearray(os.urandom(2 * BLOCK_BYTES))
        await oss.write((0, bytes(model)))
        for offset in (4096, 12_288):
            model[offset : offset + 4096] = part = os.urandom(4096)
            await oss.write((offset, part))
        await CHANGES[name](oss, model)
        model[20_480:24_576] = part = os.urandom(4096)
        await oss.write((20_480, part))
        assert b"".join(await oss.read((0, 2 * BLOCK_BYTES))) == bytes(model)
