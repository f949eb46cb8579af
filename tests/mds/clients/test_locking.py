"""Lock requests as an MDS serves them: once each, in order, over lost connections and restarts."""

import asyncio
import errno
from typing import Any

import pytest

from nacrefs.common.lockranges import TO_EOF
from nacrefs.common.rpc import Call
from nacrefs.common.wire import (
    CancelLock,
    Detach,
    GetLock,
    HeldLock,
    Inspect,
    Keepalive,
    Locked,
    LockKind,
    LockStyle,
    Mkdir,
    Reclaim,
    SetLock,
)
from nacrefs.mds.clients.locking import ASK_AGAIN_S
from tests.mds.served import ROOT, TERM_S, Client, Served, turns

READ, WRITE, UNLOCK = LockKind
FID = 77


def lock(
    kind: LockKind = WRITE, owner: int = 1, start: int = 0, end: int = TO_EOF, ticket: int = 0, fid: int = FID
) -> SetLock:
    return SetLock(fid, owner, LockStyle.POSIX, kind, start, end, 4711, ticket)


async def refused(client: Client, request: SetLock) -> int | None:
    try:
        await client.call(request)
    except OSError as error:
        return error.errno
    raise AssertionError("it was not refused")


def cut_before_answer(client: Client) -> None:
    """The next answer of the MDS to this client is lost with its connection."""
    peer = next(peer for peer in client.served.mds.sessions.by_id.values() if peer.id == client.number).peer
    assert peer is not None
    answer = peer.answer

    def lose(call: Call, *rest: Any) -> None:
        peer.answer = answer  # type: ignore[method-assign]
        peer.close("cut by the test")

    peer.answer = lose  # type: ignore[method-assign, assignment]


async def test_lock_costs_no_transaction(served: Served) -> None:
    client = await served.client()
    await served.settle()
    batches = served.mds.journal.batches
    assert await client.call(lock()) == Locked(True)
    assert await client.call(lock(UNLOCK)) == Locked(True)
    assert served.mds.journal.batches == batches


async def test_range_that_is_none_is_refused(served: Served) -> None:
    client = await served.client()
    assert await refused(client, lock(start=5, end=5)) == errno.EINVAL
    assert await refused(client, lock(end=TO_EOF + 1)) == errno.EINVAL


async def test_waiter_is_answered_when_it_has_the_lock(served: Served) -> None:
    one, two = await served.client(), await served.client()
    await one.call(lock())
    assert await refused(two, lock()) == errno.EAGAIN
    waiting = two.call(lock(ticket=1))
    await served.settle()
    assert not waiting.done()
    await one.call(lock(UNLOCK))
    assert await waiting == Locked(True)
    holder = await one.call(GetLock(FID, 1, READ, 0, 10))
    assert (holder.kind, holder.session, holder.pid) == (WRITE, two.number, 4711)


async def test_who_asks_again_keeps_its_place(served: Served) -> None:
    one, two, three = await served.client(), await served.client(), await served.client()
    await one.call(lock())
    second, third = two.call(lock(ticket=1)), three.call(lock(ticket=1))
    await served.settle()
    await served.pass_s(ASK_AGAIN_S, one, two, three)
    assert await second == Locked(False)
    assert await third == Locked(False)
    third = three.call(lock(ticket=1))
    second = two.call(lock(ticket=1))
    await served.settle()
    await one.call(lock(UNLOCK))
    assert await second == Locked(True)
    assert not third.done()
    await two.call(lock(UNLOCK))
    assert await third == Locked(True)


async def test_lock_that_comes_while_nobody_asks_is_there_at_the_next_asking(served: Served) -> None:
    one, two = await served.client(), await served.client()
    await one.call(lock())
    waiting = two.call(lock(ticket=1))
    await served.settle()
    await served.pass_s(ASK_AGAIN_S, one, two)
    assert await waiting == Locked(False)
    await one.call(lock(UNLOCK))
    assert await refused(one, lock(READ)) == errno.EAGAIN
    assert await two.call(lock(ticket=1)) == Locked(True)


async def test_cancelling_says_whether_the_lock_was_there_already(served: Served) -> None:
    one, two = await served.client(), await served.client()
    await one.call(lock())
    waiting = two.call(lock(ticket=1))
    assert await two.call(CancelLock(1)) == Locked(False)
    with pytest.raises(InterruptedError):
        await waiting
    waiting = two.call(lock(ticket=2))
    await served.settle()
    await served.pass_s(ASK_AGAIN_S, one, two)
    assert await waiting == Locked(False)
    await one.call(lock(UNLOCK))
    assert await two.call(CancelLock(2)) == Locked(True)
    assert await two.call(CancelLock(3)) == Locked(False)


async def test_lost_answer_is_given_again_and_nothing_is_done_twice(served: Served) -> None:
    one, two = await served.client(), await served.client()
    cut_before_answer(one)
    assert await one.call(lock(end=10)) == Locked(True)
    cut_before_answer(two)
    assert await refused(two, lock()) == errno.EAGAIN
    cut_before_answer(one)
    unlocking = one.call(lock(UNLOCK, end=10))
    assert await unlocking == Locked(True)
    assert await two.call(lock()) == Locked(True)


async def test_unlock_that_is_sent_again_does_not_take_away_a_later_lock(served: Served) -> None:
    """The first unlock was executed, its answer lost; a lock follows on the next connection before the MDS hears of
    the unlock again? It cannot: what was unanswered is sent first, and then what is new."""
    client = await served.client()
    await client.call(lock())
    cut_before_answer(client)
    unlocking, locking = client.call(lock(UNLOCK)), client.call(lock())
    assert (await unlocking, await locking) == (Locked(True), Locked(True))
    assert served.mds.locking.table.held == 1


async def test_waiter_whose_connection_is_cut_keeps_its_place(served: Served) -> None:
    one, two, three = await served.client(), await served.client(), await served.client()
    await one.call(lock())
    second = two.call(lock(ticket=1))
    await served.settle()
    third = three.call(lock(ticket=1))
    await served.settle()
    two.cut()
    await two.call(Keepalive())
    await one.call(lock(UNLOCK))
    assert await second == Locked(True)
    assert not third.done()
    await two.call(lock(UNLOCK))
    await third


async def test_locks_end_with_the_session(served: Served) -> None:
    one, two, three = await served.client(), await served.client(), await served.client()
    await one.call(lock())
    waiting = two.call(lock(ticket=1))
    await one.call(Detach())
    assert await waiting == Locked(True)
    waiting = three.call(lock(ticket=1))
    await two.vanish()
    await served.pass_s(TERM_S + 1, three)
    await served.pass_s(TERM_S / 2, three)
    assert await waiting == Locked(False)
    assert await three.call(lock(ticket=1)) == Locked(True)
    assert served.mds.locking.table.held == 1


async def test_frozen_holder_s_lock_is_given_away_only_after_every_ost_has_fenced_it(served: Served) -> None:
    one, two = await served.client(), await served.client()
    await one.call(lock())
    waiting = two.call(lock(ticket=1))
    served.first.gate.shut()
    await one.vanish()
    await served.pass_s(TERM_S + 1, two)
    await served.pass_s(TERM_S, two)
    assert served.mds.sessions.by_id[one.number].gone
    again = two.call(lock(ticket=1)) if waiting.done() else waiting
    await turns()
    assert not again.done()
    served.first.gate.open()
    assert await again == Locked(True)


async def test_locks_are_reclaimed_and_nobody_else_s_request_goes_before(served: Served) -> None:
    quick, slow = await served.client(), await served.client()
    await slow.call(lock(end=10))
    await served.server.stop()
    quick.reclaims = [Reclaim(())]
    slow.reclaims = [
        Reclaim((), True, (HeldLock(FID, 1, LockStyle.POSIX, WRITE, 0, 10, 4711),)),
        Reclaim((), False, (HeldLock(FID, 1, LockStyle.FLOCK, READ, 0, TO_EOF, 4711),)),
    ]
    greet = slow.remote.greet
    assert greet is not None
    held_up = asyncio.Event()

    async def late() -> None:
        await held_up.wait()
        await greet()

    slow.remote.greet = late
    await served.start()
    taking, waiting = quick.call(lock(READ, start=5)), quick.call(lock(READ, ticket=1))
    asking = quick.call(GetLock(FID, 1, READ, 0, 10))
    await quick.call(Keepalive())
    await turns()
    assert served.mds.grace.running
    assert not (taking.done() or waiting.done() or asking.done())
    held_up.set()
    with pytest.raises(BlockingIOError):
        await taking
    assert (await asking).session == slow.number
    assert served.mds.locking.table.held == 2
    await slow.call(lock(UNLOCK, end=10))
    assert await waiting == Locked(True)


async def test_parked_request_that_is_cut_or_cancelled_in_the_grace_term_happens_once_or_never(served: Served) -> None:
    here, gone = await served.client(), await served.client()
    await gone.vanish()
    here.reclaims = [Reclaim(())]
    await served.restart()
    cancelled, kept = here.call(lock(ticket=1)), here.call(lock(ticket=2))
    await here.call(Keepalive())
    here.reclaims = None
    here.cut()
    await here.call(Keepalive())
    assert await here.call(CancelLock(1)) == Locked(False)
    with pytest.raises(InterruptedError):
        await cancelled
    assert served.mds.grace.running
    made = here.call(Mkdir(ROOT, b"d", 0o755, 0, 0))
    await served.pass_s(TERM_S + 1, here)
    await served.pass_s(TERM_S / 2, here)
    await made
    assert await kept == Locked(True)


async def test_reclaimed_lock_that_somebody_else_has_is_told(served: Served) -> None:
    one, two = await served.client(), await served.client()
    lost = HeldLock(FID, 1, LockStyle.POSIX, WRITE, 0, 10, 4711)
    one.reclaims = [Reclaim((), False, (lost,))]
    await served.server.stop()
    await served.start()
    await one.call(Keepalive())
    answer = await two.call(Reclaim((), False, (lost,)))
    assert answer.lost_locks == (lost,)
    assert b'"held_count":1' in (await one.call(Inspect("locks"))).report
