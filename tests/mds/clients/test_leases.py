"""The lease table and a request's view of it: the rules of docs/coherence.md, one by one."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacrefs.common.wire import Lease, Mode
from nacrefs.mds.clients.leases import Busy, Change, LeaseTable, LeaseView
from nacrefs.mds.transactions.step import Blocked
from nacrefs.mds.transactions.tx import NeedsBatch

NONE, READ, WRITE = Lease.NONE, Lease.READ, Lease.WRITE
F, A, B = 100, 1, 2


def view(table: LeaseTable, session: int, opens: Any = None, batch: bool = True) -> LeaseView:
    """A view of one request, in a batch or outside."""
    return LeaseView(table, session, opens or {}, [] if batch else None, [])


def test_any_number_of_sessions_may_read() -> None:
    table = LeaseTable()
    assert [view(table, session).grant(F, READ) for session in range(1, 5)] == [READ] * 4
    assert len(table) == 4


def test_write_is_exclusive() -> None:
    table = LeaseTable()
    assert view(table, A).grant(F, WRITE) == WRITE
    assert view(table, B).grant(F, READ) == NONE
    assert view(table, B).grant(F, WRITE) == NONE
    assert table.writer(F) == A


def test_reader_gets_no_write_lease_while_another_reads_and_keeps_what_it_has() -> None:
    table = LeaseTable()
    view(table, A).grant(F, READ)
    view(table, B).grant(F, READ)
    assert view(table, A).grant(F, WRITE) == READ
    table.set(F, B, NONE)
    assert view(table, A).grant(F, WRITE) == WRITE


def test_truth_is_blocked_by_the_write_lease_of_another_and_leaves_it_reading() -> None:
    table = LeaseTable()
    table.set(F, A, WRITE)
    view(table, A).truth(F)
    with pytest.raises(Blocked) as blocked:
        view(table, B).truth(F)
    assert (blocked.value.fid, blocked.value.keep) == (F, READ)
    with pytest.raises(Blocked) as blocked:
        view(table, B).alone(F, spill=True)
    assert (blocked.value.keep, blocked.value.spill) == (NONE, True)


def test_what_is_being_committed_is_busy_for_reads_and_not_for_the_next_batch() -> None:
    table = LeaseTable()
    table.busy = {F}
    with pytest.raises(Busy):
        view(table, A, batch=False).truth(F)
    assert view(table, A, batch=False).grant(F, READ) == NONE
    view(table, A).truth(F)


def test_file_that_is_being_cut_is_busy_for_everybody() -> None:
    table = LeaseTable()
    table.begin_truncation(F)
    table.begin_truncation(F)
    table.end_truncation(F)
    for batch in (True, False):
        with pytest.raises(Busy):
            view(table, A, batch=batch).truth(F)
    table.end_truncation(F)
    view(table, A).truth(F)


def test_who_is_being_recalled_is_told_that_it_holds_nothing() -> None:
    table = LeaseTable()
    table.set(F, A, READ)
    table.recalling[F, A] = 1
    assert view(table, A).grant(F, READ) == NONE
    assert view(table, A).grant(F, NONE) == NONE
    assert view(table, A).held(F) == READ


def test_who_waits_for_a_fid_gets_the_next_lease() -> None:
    table = LeaseTable()
    table.claim(F, B)
    assert view(table, A).grant(F, READ) == NONE
    assert view(table, B).grant(F, WRITE) == WRITE
    table.unclaim(F, B)
    assert table.claims == {}


def test_writer_waits_while_it_would_get_no_lease() -> None:
    table = LeaseTable()
    table.claim(F, B)
    with pytest.raises(Busy):
        view(table, A).alone(F, spill=True)
    view(table, A).alone(F)
    table.unclaim(F, B)
    view(table, A).alone(F, spill=True)


def test_nobody_caches_what_another_writes_without_a_lease() -> None:
    table = LeaseTable()
    opens = {F: {B: Mode.WRITE}}
    assert view(table, A, opens).grant(F, READ) == NONE
    assert view(table, B, opens).grant(F, READ) == READ


def test_session_at_its_limit_gets_no_more_reading_but_may_write() -> None:
    table = LeaseTable(per_session=2)
    one = view(table, A)
    assert [one.grant(fid, READ) for fid in (1, 2, 3)] == [READ, READ, NONE]
    assert one.grant(4, WRITE) == WRITE
    table.set(1, A, NONE)
    table.set(2, A, NONE)
    assert one.grant(3, READ) == READ


def test_change_outside_a_batch_asks_for_one() -> None:
    with pytest.raises(NeedsBatch):
        view(LeaseTable(), A, batch=False).changed(F)


def test_changes_and_earlier_holdings_are_noted() -> None:
    table, changes, undo = LeaseTable(), list[Change](), list[tuple[int, int, Lease]]()
    one = LeaseView(table, A, {}, changes, undo)
    one.grant(F, WRITE)
    one.downgrade(F, READ)
    one.changed(F, b"name")
    assert undo == [(F, A, NONE), (F, A, WRITE)]
    assert changes == [Change(F, b"name")]


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3), st.sampled_from([NONE, READ]), st.booleans())))
def test_table_agrees_with_a_plain_one(changes: list[tuple[int, int, Lease, bool]]) -> None:
    """One integer for the usual single holder, a dictionary for several: nobody can tell."""
    table, plain = LeaseTable(), dict[tuple[int, int], Lease]()
    for fid, session, lease, drop in changes:
        if drop:
            table.drop_session(session)
            plain = {key: held for key, held in plain.items() if key[1] != session}
        else:
            table.set(fid, session, lease)
            plain[fid, session] = lease
        plain = {key: held for key, held in plain.items() if held}
        assert len(table) == len(plain)
        for one_fid in range(1, 5):
            holders = {holder: held for (known, holder), held in plain.items() if known == one_fid}
            assert table.holders(one_fid) == holders
            for one in range(1, 4):
                assert table.held(one_fid, one) == holders.get(one, NONE)
                assert table.others(one_fid, one) == bool(holders.keys() - {one})
                assert sorted(table.other_holders(one_fid, one)) == sorted(holders.keys() - {one})
        for one in range(1, 4):
            assert table.counts.get(one, 0) == sum(holder == one for _, holder in plain)
