"""Who comes next, and what waits for an archive that is full."""

from nacrefs.common.wire import HsmAction
from nacrefs.mds.hsm.full import FIRST_S, MOST_S, FullArchives
from nacrefs.mds.hsm.queue import Action
from nacrefs.mds.hsm.rows import WAITING, ActionRow
from nacrefs.mds.hsm.waiting import READER, Waiting

ARCHIVE, RESTORE = HsmAction.ARCHIVE, HsmAction.RESTORE
S = 1_000_000_000


def action(number: int, uid: int, archive: int = 1, kind: HsmAction = ARCHIVE, not_before_ns: int = 0) -> Action:
    return Action(ActionRow(number, number, int(kind), archive, uid, "", WAITING, 0, not_before_ns, 0, 0))


def queue_of(*actions: Action) -> Waiting:
    queue = Waiting()
    for one in actions:
        queue.add(one)
    return queue


def taken(queue: Waiting, kind: HsmAction = ARCHIVE, now_ns: int = 0, held: int = 0) -> list[int]:
    return [one.row.id for one in queue.due(kind, now_ns, lambda archive: archive == held)]


def test_users_take_turns_and_what_each_wants_is_in_order() -> None:
    queue = queue_of(*(action(n, uid=5) for n in range(3)), action(3, uid=6), action(4, uid=7, archive=2))
    assert taken(queue) == [0, 3, 4, 1, 2]
    assert taken(queue) == []


def test_a_user_of_two_archives_has_one_turn() -> None:
    queue = queue_of(action(1, 5), action(2, 5, archive=2), action(3, 5), action(4, 6), action(5, 6))
    assert taken(queue) == [1, 4, 2, 5, 3]


def test_readers_come_before_everybody() -> None:
    queue = queue_of(*(action(n, uid, kind=RESTORE) for n, uid in ((1, 5), (2, READER), (3, READER), (4, 6))))
    assert taken(queue, RESTORE) == [2, 3, 1, 4]


def test_what_is_too_early_waits_and_says_until_when() -> None:
    queue = queue_of(action(1, 5, not_before_ns=9), action(2, 5, not_before_ns=7), action(3, 5))
    assert taken(queue, now_ns=5) == [3]
    assert queue.soonest_ns == 7
    assert taken(queue, now_ns=9) == [1, 2]


def test_what_waits_for_a_held_archive_is_passed_over_and_can_be_removed() -> None:
    held = action(1, 5)
    queue = queue_of(held, action(2, 5, archive=2), action(3, 6))
    assert taken(queue, held=1) == [2]
    assert queue.count(ARCHIVE, 1) == 2
    assert queue.remove(held, held.row)
    assert not queue.remove(held, held.row)
    assert taken(queue) == [3]


def test_one_action_at_a_time_finds_out_whether_a_full_archive_has_room() -> None:
    full = FullArchives()
    assert not full.holds(1, 0)
    assert full.refused(1, 5, "no room", 0)
    assert not full.refused(1, 6, "no room", 0), "the next of those that had begun before"
    assert (full.why(1), full.why(2), full.since_ns(1), full.soonest_ns(0)) == ("no room", "", 0, round(FIRST_S * S))
    assert full.holds(1, 0)
    assert not full.holds(2, 0)
    now_ns = full.soonest_ns(0)
    assert not full.holds(1, now_ns)
    full.begins(1, 77, now_ns)
    assert full.holds(1, now_ns)
    assert not full.ended(1, 78, room=False), "another one"
    assert full.holds(1, now_ns)
    assert not full.ended(1, 77, room=False), "it was canceled: the next one tries"
    assert not full.holds(1, now_ns)
    full.begins(1, 79, now_ns)
    assert full.ended(1, 79, room=True)
    assert not full.holds(1, 0)
    assert full.refusals(1) == 2


def test_who_takes_long_to_find_out_whether_a_full_archive_has_room_does_not_hold_up_the_others() -> None:
    full = FullArchives()
    full.refused(1, 5, "no room", 0)
    now_ns = full.soonest_ns(0)
    full.begins(1, 77, now_ns)
    now_ns = full.soonest_ns(now_ns)
    assert not full.holds(1, now_ns)
    full.begins(1, 78, now_ns)
    assert full.holds(1, now_ns)
    full.refused(1, 77, "no room", now_ns)
    assert full.soonest_ns(now_ns) == now_ns + round(MOST_S * S), "the other one is still finding out"
    assert full.ended(1, 78, room=True)
    assert not full.holds(1, now_ns)


def test_a_full_archive_is_tried_later_each_time_and_at_once_if_somebody_says_so() -> None:
    full, now_ns, waits = FullArchives(), 0, list[float]()
    for number in range(12):
        full.refused(1, number, "no room", now_ns)
        at_ns = full.soonest_ns(now_ns)
        waits.append((at_ns - now_ns) / S)
        now_ns = at_ns
        full.begins(1, number + 1, now_ns)
    assert waits[:3] == [FIRST_S, 2 * FIRST_S, 4 * FIRST_S]
    assert waits[-1] == MOST_S
    full.refused(1, 12, "no room", now_ns)
    assert full.holds(1, now_ns)
    full.try_now(1)
    assert not full.holds(1, now_ns)


def test_a_full_archive_for_which_nothing_waits_neither_wakes_anybody_nor_keeps_others_from_waking() -> None:
    full = FullArchives()
    full.refused(1, 5, "no room", 0)
    now_ns = 2 * full.soonest_ns(0)
    assert full.soonest_ns(now_ns) == 0
    full.try_now(1)
    full.refused(2, 6, "no room", now_ns)
    assert full.soonest_ns(now_ns) == now_ns + round(FIRST_S * S)
