"""The lock table: against a model that has one entry per byte, and the cases that matter one by one."""

import errno
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from nacrefs.common.lockranges import TO_EOF
from nacrefs.common.wire import HeldLock, LockKind, LockStyle
from nacrefs.mds.clients.locks import Demand, LockTable, Owner, Waiter

READ, WRITE, UNLOCK = LockKind
POSIX, FLOCK = LockStyle
A, B, C, D = Owner(1, 1), Owner(2, 1), Owner(3, 1), Owner(1, 2)
Answered = list[OSError | None]


def demand(
    owner: Owner, kind: LockKind, start: int = 0, end: int = TO_EOF, fid: int = 9, style: LockStyle = POSIX
) -> Demand:
    return Demand(owner, fid, style, kind, start, end, owner.number)


def wait(table: LockTable, wanted: Demand) -> tuple[Waiter | None, Answered]:
    answers: Answered = []
    return table.set(wanted, answers.append), answers


def refused(act: Callable[[], object]) -> int | None:
    try:
        act()
    except OSError as error:
        return error.errno
    raise AssertionError("it was not refused")


def held(table: LockTable) -> set[tuple[Owner, LockKind, int, int]]:
    return {(owner, lock.kind, lock.start, lock.end) for owner, lock in table.all_held()}


def test_readers_share_and_a_writer_is_alone() -> None:
    table = LockTable()
    table.set(demand(A, READ))
    table.set(demand(B, READ))
    assert refused(lambda: table.set(demand(C, WRITE))) == errno.EAGAIN
    table.set(demand(A, UNLOCK))
    table.set(demand(B, UNLOCK))
    table.set(demand(C, WRITE))
    assert refused(lambda: table.set(demand(A, READ))) == errno.EAGAIN
    table.set(demand(A, WRITE, fid=10))
    table.set(demand(A, WRITE, style=FLOCK))


def test_who_has_waited_longest_gets_the_lock() -> None:
    table = LockTable()
    table.set(demand(A, WRITE))
    _, first = wait(table, demand(B, WRITE))
    _, second = wait(table, demand(C, WRITE))
    assert (first, second, table.waiting) == ([], [], 2)
    table.set(demand(A, UNLOCK))
    assert (first, second) == ([None], [])
    assert refused(lambda: table.set(demand(A, WRITE))) == errno.EAGAIN
    table.set(demand(B, UNLOCK))
    assert second == [None]
    assert table.waiting == 0


def test_unlocking_a_part_lets_only_those_go_on_who_want_that_part() -> None:
    table = LockTable()
    table.set(demand(A, WRITE, 0, 100))
    _, low = wait(table, demand(B, WRITE, 0, 10))
    _, high = wait(table, demand(C, WRITE, 90, 100))
    table.set(demand(A, UNLOCK, 50, 100))
    assert (low, high) == ([], [None])
    table.set(demand(A, READ, 0, 50))  # downgrade: still in the way of a writer
    assert low == []
    _, reader = wait(table, demand(D, READ, 0, 5))
    assert reader == []
    assert table.test(demand(B, WRITE, 0, 10)).kind == READ


def test_circle_of_two_owners_on_two_files_is_a_deadlock() -> None:
    table = LockTable()
    table.set(demand(A, WRITE, fid=1))
    table.set(demand(B, WRITE, fid=2))
    _, waiting = wait(table, demand(A, WRITE, fid=2))
    assert refused(lambda: wait(table, demand(B, WRITE, fid=1))) == errno.EDEADLK
    table.set(demand(B, UNLOCK, fid=2))
    assert waiting == [None]


def test_circle_of_three_and_two_readers_who_both_want_to_write() -> None:
    table = LockTable()
    for fid, owner in ((1, A), (2, B), (3, C)):
        table.set(demand(owner, WRITE, fid=fid))
    wait(table, demand(A, WRITE, fid=2))
    wait(table, demand(B, WRITE, fid=3))
    assert refused(lambda: wait(table, demand(C, WRITE, fid=1))) == errno.EDEADLK
    table = LockTable()
    table.set(demand(A, READ))
    table.set(demand(B, READ))
    _, waiting = wait(table, demand(A, WRITE))
    assert refused(lambda: wait(table, demand(B, WRITE))) == errno.EDEADLK
    table.set(demand(B, UNLOCK))
    assert waiting == [None]
    assert held(table) == {(A, WRITE, 0, TO_EOF)}


def test_flock_knows_no_deadlock_and_no_ranges_of_others() -> None:
    table = LockTable()
    table.set(demand(A, WRITE, fid=1, style=FLOCK))
    table.set(demand(B, WRITE, fid=2, style=FLOCK))
    wait(table, demand(A, WRITE, fid=2, style=FLOCK))
    waiter, _ = wait(table, demand(B, WRITE, fid=1, style=FLOCK))
    assert waiter is not None


def test_changing_a_flock_gives_up_the_old_one_even_if_the_new_one_is_refused() -> None:
    table = LockTable()
    table.set(demand(A, READ, style=FLOCK))
    table.set(demand(B, READ, style=FLOCK))
    assert refused(lambda: table.set(demand(A, WRITE, style=FLOCK))) == errno.EAGAIN
    assert held(table) == {(B, READ, 0, TO_EOF)}
    table.set(demand(B, WRITE, style=FLOCK))
    table.set(demand(B, READ, style=FLOCK))
    table.set(demand(A, READ, style=FLOCK))


def test_grant_that_closes_a_circle_ends_the_wait_of_the_owners_other_thread() -> None:
    table = LockTable()
    table.set(demand(C, WRITE, fid=1))
    table.set(demand(B, WRITE, fid=2))
    _, one = wait(table, demand(A, WRITE, fid=1))
    _, of_b = wait(table, demand(B, WRITE, fid=1))
    _, other = wait(table, demand(A, WRITE, fid=2))
    assert (one, of_b, other) == ([], [], [])
    table.set(demand(C, UNLOCK, fid=1))
    assert (one, of_b) == ([None], [])
    assert [error.errno for error in other if error is not None] == [errno.EDEADLK]


def test_cancelled_wait_is_over_without_an_answer() -> None:
    table = LockTable()
    table.set(demand(A, WRITE))
    waiter, answers = wait(table, demand(B, WRITE))
    assert waiter is not None
    assert table.cancel(waiter)
    assert not table.cancel(waiter)
    table.set(demand(A, UNLOCK))
    assert answers == []
    assert held(table) == set()


def test_end_of_a_session_frees_its_locks_and_ends_its_waits() -> None:
    table = LockTable()
    table.set(demand(A, WRITE, fid=1))
    table.set(demand(D, WRITE, fid=2))  # the same session, another process
    table.set(demand(B, WRITE, fid=3))
    _, own = wait(table, demand(A, WRITE, fid=3))
    _, one = wait(table, demand(C, WRITE, fid=1))
    _, two = wait(table, demand(C, READ, fid=2))
    table.drop_session(1)
    assert (own, one, two) == ([], [None], [None])
    table.set(demand(B, UNLOCK, fid=3))
    assert held(table) == {(C, WRITE, 0, TO_EOF), (C, READ, 0, TO_EOF)}
    assert (table.held, table.locks_of(1), table.waiting) == (2, 0, 0)


def test_reclaimed_lock_is_refused_where_somebody_else_has_it() -> None:
    table = LockTable()
    assert table.reclaim(1, HeldLock(9, 1, POSIX, WRITE, 0, 10, 77))
    assert table.reclaim(2, HeldLock(9, 1, POSIX, WRITE, 10, 20, 78))
    assert not table.reclaim(2, HeldLock(9, 1, POSIX, READ, 5, 15, 78))
    assert table.test(demand(C, READ, 0, 5)).pid == 77


SIZE = 10
steps = st.tuples(
    st.sampled_from([A, B, C, D]),
    st.integers(1, 2),
    st.sampled_from(list(LockKind)),
    st.integers(0, SIZE - 1),
    st.integers(1, SIZE),
    st.booleans(),
).filter(lambda step: step[3] < step[4])


@settings(max_examples=300)
@given(st.lists(steps, max_size=30))
def test_table_is_what_a_model_with_one_entry_per_byte_says(
    sequence: list[tuple[Owner, int, LockKind, int, int, bool]],
) -> None:
    """Locks never conflict; each grant is one the model allows; nobody waits who could go on, nor in a circle."""
    table = LockTable()
    model: dict[int, list[dict[Owner, LockKind]]] = {fid: [{} for _ in range(SIZE)] for fid in (1, 2)}
    waiting: list[Demand] = []

    def allowed(wanted: Demand) -> bool:
        return all(
            not any(
                owner != wanted.owner and (kind == WRITE or wanted.kind == WRITE)
                for owner, kind in model[wanted.fid][at].items()
            )
            for at in range(wanted.start, wanted.end)
        )

    def apply(wanted: Demand) -> None:
        for at in range(wanted.start, wanted.end):
            model[wanted.fid][at].pop(wanted.owner, None)
            if wanted.kind != UNLOCK:
                model[wanted.fid][at][wanted.owner] = wanted.kind

    def answered(wanted: Demand) -> Callable[[OSError | None], None]:
        def note(error: OSError | None) -> None:
            waiting.remove(wanted)
            if error is None:
                assert allowed(wanted)
                apply(wanted)

        return note

    for owner, fid, kind, start, end, blocking in sequence:
        wanted = demand(owner, kind, start, end, fid)
        if wanted in waiting:
            continue
        free = kind == UNLOCK or allowed(wanted)
        if free:
            apply(wanted)
        try:
            waiter = table.set(wanted, answered(wanted) if blocking else None)
        except OSError as error:
            assert not free
            assert error.errno == (errno.EDEADLK if blocking else errno.EAGAIN)
        else:
            assert free == (waiter is None)
            if waiter is not None:
                waiting.append(wanted)
        assert len(list(table.all_waiting())) == table.waiting == len(waiting)
        for one in waiting:
            assert not allowed(one), "somebody waits for nothing"
        bytewise: dict[int, list[dict[Owner, LockKind]]] = {fid: [{} for _ in range(SIZE)] for fid in (1, 2)}
        for owner_, lock in table.all_held():
            for at in range(lock.start, lock.end):
                bytewise[lock.fid][at][owner_] = lock.kind
        assert bytewise == model
    for session in (1, 2, 3):
        waiting = [one for one in waiting if one.owner.session != session]
        for fid in model:
            model[fid] = [
                {owner: kind for owner, kind in there.items() if owner.session != session} for there in model[fid]
            ]
        table.drop_session(session)
    assert (held(table), table.held, table.waiting) == (set(), 0, 0)
    assert vars(table) == vars(LockTable())
