"""Where an object has data and where holes, in units of a stripe among others."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacrefs.common.wire import Seek
from nacrefs.oss.seek import find_hole, of_stripe
from tests.oss.local import FID, LocalOss, local_oss

BLOCK = 4096
UNIT = 4 * BLOCK


@given(st.integers(0, 1 << 40), st.integers(1, 1 << 20), st.integers(1, 8), st.data())
def test_the_next_byte_of_a_stripe_is_the_next(offset: int, unit: int, count: int, data: st.DataObject) -> None:
    stripe = data.draw(st.integers(0, count - 1))
    found = of_stripe(offset, unit, count, stripe)
    assert found >= offset
    assert found // unit % count == stripe
    assert found == offset or not found % unit
    assert found - offset < unit * count


@pytest.mark.parametrize("count", [1, 3])
def test_holes_are_found_where_the_stripe_has_no_data(tmp_path: Path, count: int) -> None:
    """Every place of a file with data in some blocks of some units, against the same worked out by hand."""
    blocks = 4 * count * 4
    for stripe in range(count):
        fd = os.open(tmp_path / f"o{stripe}", os.O_CREAT | os.O_RDWR)
        written: set[int] = set()
        for block in range(blocks):
            if block // 4 % count == stripe and block * 7 % 5 < 3:
                os.pwrite(fd, b"x" * BLOCK, block * BLOCK)
                written.add(block)
        if not written:
            pytest.fail("nothing was written")
        end = (blocks + 5) * BLOCK
        for start in range(0, end, BLOCK // 2):
            wanted = next(
                (
                    max(start, block * BLOCK)
                    for block in range(start // BLOCK, end // BLOCK)
                    if block // 4 % count == stripe and block not in written
                ),
                end,
            )
            assert min(find_hole(fd, start, end, UNIT, count, stripe), end) == wanted
        os.close(fd)


async def seek(oss: LocalOss, start: int, end: int, hole: bool) -> int:
    return int((await oss.ask(Seek(0, FID, 0, 0, oss.capability(FID), start, end, hole, 1 << 20, 1))).offset)


async def test_an_object_is_asked(tmp_path: Path) -> None:
    async with local_oss(tmp_path / "ost") as oss:
        await ask_everywhere(oss)


async def ask_everywhere(oss: LocalOss) -> None:
    assert (await seek(oss, 5, 100, False), await seek(oss, 5, 100, True)) == (100, 5), "it does not exist"
    await oss.write((1 << 20, b"x" * 65536))
    end = 4 << 20
    assert await seek(oss, 0, end, False) == 1 << 20
    assert await seek(oss, 0, end, True) == 0
    assert await seek(oss, (1 << 20) + 5, end, False) == (1 << 20) + 5
    assert await seek(oss, (1 << 20) + 5, end, True) == (1 << 20) + 65536
    assert await seek(oss, (1 << 20) + 65536, end, False) == end
    assert await seek(oss, 2 << 20, end, True) == 2 << 20
    with pytest.raises(OSError, match="not a range"):
        await seek(oss, 5, 4, True)
