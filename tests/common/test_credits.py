"""Credits: nobody sends without a receive for it, and nobody waits for ever."""

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nacrefs.common.transport.credits import RESERVED, Credits


class Side:
    """One side: it sends ordinary messages when it may, and returns credits when that is due."""

    def __init__(self, limit: int, far_limit: int) -> None:
        self.credits = Credits(limit, far_limit)
        self.receives = limit + RESERVED
        self.way: deque[tuple[bool, int]] = deque()
        """messages to this side: whether they are ordinary, and the credits that they return"""
        self.unread = 0

    def send(self, far: "Side", ordinary: bool) -> None:
        if ordinary and not self.credits.take():
            return
        assert far.receives, "a message without a receive"
        far.receives -= 1
        far.way.append((ordinary, self.credits.collect()))

    def arrive(self) -> None:
        """The oldest message on the way is there: its credits count at once, its receive is posted if it was not
        an ordinary one, which its reader still has."""
        if self.way:
            ordinary, credits = self.way.popleft()
            self.credits.granted(credits)
            if ordinary:
                self.unread += 1
            else:
                self.receives += 1

    def read(self, far: "Side") -> None:
        if self.unread:
            self.unread -= 1
            self.receives += 1
            self.credits.freed()
            if self.credits.due:
                self.send(far, False)


STEPS = st.lists(st.tuples(st.integers(0, 1), st.sampled_from(["send", "arrive", "read"])), max_size=400)


@given(STEPS, st.integers(2, 20), st.integers(2, 20))
@settings(max_examples=200)
def test_every_message_meets_a_receive_whatever_the_order(steps: list[tuple[int, str]], left: int, right: int) -> None:
    sides = (Side(left, right), Side(right, left))
    for index, what in steps:
        side, far = sides[index], sides[1 - index]
        if what == "send":
            side.send(far, True)
        elif what == "arrive":
            side.arrive()
        else:
            side.read(far)


@given(STEPS, st.integers(2, 20), st.integers(2, 20))
@settings(max_examples=100)
def test_both_may_send_again_once_all_has_been_read(steps: list[tuple[int, str]], left: int, right: int) -> None:
    sides = (Side(left, right), Side(right, left))
    for index, _ in steps:
        sides[index].send(sides[1 - index], True)
    for _ in range(2 * (left + right) + 8):
        for index, side in enumerate(sides):
            side.arrive()
            side.read(sides[1 - index])
    assert all(side.credits.available >= 1 for side in sides)


def test_more_credits_than_receives_are_refused() -> None:
    credits = Credits(4, 4)
    assert [credits.take() for _ in range(5)] == [True] * 4 + [False]
    credits.granted(4)
    with pytest.raises(OSError, match="5 credits, but only 4 receives"):
        credits.granted(1)


def test_what_is_owed_is_told_once() -> None:
    credits = Credits(4, 4)
    credits.freed()
    assert not credits.due
    credits.freed()
    assert credits.due
    assert (credits.collect(), credits.collect()) == (2, 0)
    assert not credits.due
