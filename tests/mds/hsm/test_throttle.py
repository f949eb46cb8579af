"""Who comes first where an archive has a limit."""

import asyncio

from nacrefs.mds.hsm.throttle import Throttle
from tests.mds.served import turns


async def test_who_reads_does_not_wait_for_those_who_came_before() -> None:
    throttle, passed = Throttle(), list[str]()
    throttle.set_rate(1000)
    ranks = {"archive": 2, "recall": 1, "late": 1, "reader": 0}

    async def move(name: str, size: int) -> None:
        await throttle.turn(size, lambda: ranks.get(name, 1))
        passed.append(name)

    await move("what a second lets pass", 1000)
    await move("more than this test will see pass", 1 << 40)
    moves = [asyncio.create_task(move(name, 20)) for name in ("archive", "recall", "gone", "late", "reader")]
    await turns()
    assert len(passed) == 2
    moves[2].cancel()
    ranks["late"] = -1  # somebody waits for it by now
    throttle.set_rate(2000)  # there is room
    await asyncio.gather(*moves, return_exceptions=True)
    assert passed[2:] == ["late", "reader", "recall", "archive"]


async def test_limit_that_is_changed_holds_for_those_who_wait() -> None:
    throttle = Throttle()
    await throttle.turn(1 << 40, lambda: 0)
    throttle.set_rate(1)
    await throttle.turn(1 << 40, lambda: 0)
    waiting = asyncio.create_task(throttle.turn(1, lambda: 0))
    await turns()
    assert not waiting.done()
    throttle.set_rate(2)
    await waiting
    await throttle.turn(1 << 40, lambda: 0)
    waiting = asyncio.create_task(throttle.turn(1, lambda: 0))
    await turns()
    assert not waiting.done()
    throttle.set_rate(0)
    await waiting


async def test_who_waits_passes_when_there_is_room_again() -> None:
    throttle, began_s = Throttle(), asyncio.get_running_loop().time()
    throttle.set_rate(1000)
    await throttle.turn(1050, lambda: 0)
    await throttle.turn(1, lambda: 0)
    assert asyncio.get_running_loop().time() - began_s >= 0.04
