"""Which OSTs new files get."""

import errno
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacrefs.common.layout import LayoutSpec
from nacrefs.mds.osts.placement import RESERVE_BYTES, Placer, Target

GIB = 1 << 30


def even(count: int, pools: tuple[str, ...] = ()) -> list[Target]:
    return [Target(number, True, 100 * GIB, pools) for number in range(count)]


class TestTurns:
    def test_equally_free_osts_take_turns(self) -> None:
        placer = Placer(even(3))
        placed = [placer.place(LayoutSpec())[0] for _ in range(9)]
        assert Counter(placed) == {0: 3, 1: 3, 2: 3}
        assert placed[:3] == placed[3:6]

    def test_a_new_placer_goes_on_where_the_old_one_was(self) -> None:
        old = Placer(even(3))
        first = [old.place(LayoutSpec()) for _ in range(2)]
        assert Placer(even(3), old.placed).place(LayoutSpec()) not in first

    def test_unequally_free_osts_are_chosen_in_proportion(self) -> None:
        placer = Placer([Target(0, True, 10 * GIB), Target(1, True, 90 * GIB)])
        placed = Counter(placer.place(LayoutSpec())[0] for _ in range(10_000))
        assert 8_700 < placed[1] < 9_300

    def test_full_and_absent_osts_are_left_out(self) -> None:
        placer = Placer([Target(0, False, GIB), Target(1, True, RESERVE_BYTES - 1), Target(2, True, GIB)])
        assert {placer.place(LayoutSpec()) for _ in range(5)} == {(2,)}


class TestStripes:
    def test_minus_one_means_every_usable_ost(self) -> None:
        assert sorted(Placer(even(4)).place(LayoutSpec(stripe_count=-1))) == [0, 1, 2, 3]

    def test_more_stripes_than_osts_become_as_many_as_there_are(self) -> None:
        assert sorted(Placer(even(2)).place(LayoutSpec(stripe_count=8))) == [0, 1]

    def test_first_ost_holds_the_first_stripe(self) -> None:
        assert Placer(even(4)).place(LayoutSpec(stripe_count=3, first_ost=2)) == (2, 3, 0)

    def test_a_pool_keeps_to_its_osts(self) -> None:
        targets = [Target(number, True, GIB, ("fast",) if number % 2 else ()) for number in range(4)]
        placer = Placer(targets)
        assert {placer.place(LayoutSpec(pool="fast"))[0] for _ in range(8)} == {1, 3}

    @given(
        free=st.lists(st.integers(GIB, 1000 * GIB), min_size=1, max_size=12),
        count=st.integers(-1, 14),
        mirrors=st.integers(1, 3),
        placed=st.integers(0, 10_000),
    )
    def test_neither_copies_of_a_stripe_nor_stripes_of_a_copy_share_an_ost(
        self, free: list[int], count: int, mirrors: int, placed: int
    ) -> None:
        placer = Placer([Target(number, True, one) for number, one in enumerate(free)], placed)
        spec = LayoutSpec(stripe_count=count, mirrors=mirrors)
        if mirrors > len(free):
            with pytest.raises(OSError, match="mirrors"):
                placer.place(spec)
            return
        osts = placer.place(spec)
        stripes = len(osts) // mirrors
        assert len(osts) == stripes * mirrors
        assert stripes == (len(free) if count < 0 else min(count or 1, len(free)))
        assert set(osts) <= set(range(len(free)))
        for stripe in range(stripes):
            assert len({osts[mirror * stripes + stripe] for mirror in range(mirrors)}) == mirrors
        for mirror in range(mirrors):
            assert len(set(osts[mirror * stripes : (mirror + 1) * stripes])) == stripes
        if len(osts) <= len(free):
            assert len(set(osts)) == len(osts)


@pytest.mark.parametrize(
    ("targets", "spec", "number", "words"),
    [
        ([], LayoutSpec(), errno.ENOSPC, "start an OSS"),
        (even(2), LayoutSpec(pool="slow"), errno.EINVAL, "'slow'"),
        (even(2), LayoutSpec(first_ost=7), errno.EINVAL, "OST 7"),
        ([*even(2), Target(2, False, GIB)], LayoutSpec(first_ost=2), errno.ENOSPC, "down"),
        ([*even(2), Target(2, True, 0)], LayoutSpec(first_ost=2), errno.ENOSPC, "full"),
        ([*even(1, ("fast",)), Target(1, True, GIB)], LayoutSpec(first_ost=1, pool="fast"), errno.EINVAL, "not in"),
        ([Target(0, False, GIB), Target(1, True, 0)], LayoutSpec(), errno.ENOSPC, "1 down, 1 full"),
    ],
)
def test_what_cannot_be_placed_says_why(targets: list[Target], spec: LayoutSpec, number: int, words: str) -> None:
    with pytest.raises(OSError, match=words) as caught:
        Placer(targets).place(spec)
    assert caught.value.errno == number
