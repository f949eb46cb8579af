import time

from nacrefs.common.clock import Clock, ManualClock, SystemClock


def test_manual_clock_stands_still_until_it_is_advanced() -> None:
    clock = ManualClock()
    wall, monotonic = clock.now_ns(), clock.monotonic_s()
    assert (clock.now_ns(), clock.monotonic_s()) == (wall, monotonic)
    clock.advance(1.5)
    assert (clock.now_ns() - wall, clock.monotonic_s() - monotonic) == (1_500_000_000, 1.5)


def test_system_clock_is_the_machines() -> None:
    clock: Clock = SystemClock()
    before = time.time_ns(), time.monotonic()
    between = clock.now_ns(), clock.monotonic_s()
    assert before[0] <= between[0] <= time.time_ns()
    assert before[1] <= between[1] <= time.monotonic()
