"""Which OSTs are fuller than they may be, and how much must go."""

from nacrefs.common.layout import Layout
from nacrefs.common.wire import Attr, OstInfo
from nacrefs.mds.inode import Inode
from nacrefs.mds.lifecycle.rules import Watermarks
from nacrefs.mds.lifecycle.watermarks import freed_bytes, groups

GIB = 1 << 30


def ost(index: int, used: int, pools: tuple[str, ...] = (), up: bool = True) -> OstInfo:
    return OstInfo(index, "", up, 100 * GIB, (100 - used) * GIB, 0, pools)


def test_each_ost_is_looked_at_alone() -> None:
    low, high = groups([ost(0, 60), ost(1, 90)], Watermarks(85, 75))
    assert (low.name, low.over, low.excess_bytes < 0) == ("OST 0", False, True)
    assert (high.name, high.over, high.percent) == ("OST 1", True, 90)
    assert round(high.excess_bytes) == 15 * GIB


def test_the_mark_itself_is_too_full() -> None:
    (one,) = groups([ost(0, 85)], Watermarks(85, 75))
    assert one.over


def test_a_pool_with_marks_of_its_own_is_looked_at_as_a_whole() -> None:
    table = [ost(0, 90, ("fast",)), ost(1, 50, ("fast",)), ost(2, 80, ("other",))]
    pool, rest = groups(table, Watermarks(85, 75, pools=(("fast", 65, 60), ("missing", 1, 1))))
    assert (pool.name, pool.osts, pool.percent, pool.over) == ("pool fast", frozenset({0, 1}), 70, True)
    assert round(pool.excess_bytes) == 20 * GIB
    assert (rest.name, rest.over) == ("OST 2", False)


def test_osts_that_are_away_are_not_counted() -> None:
    assert groups([ost(0, 99, up=False)], Watermarks()) == []


def test_a_file_frees_what_it_has_on_these_osts() -> None:
    attr = Attr(16, 0o100644, 1, 0, 0, 0, 4 << 20, 8192, 1, 1, 1, 1, 1, 0)
    striped = Inode(attr, layout=Layout(1 << 20, 4, (0, 1, 2, 3)))
    assert freed_bytes(striped, frozenset({1, 3})) == 2 << 20
    assert freed_bytes(striped, frozenset({7})) == 0
