"""Merged transactions when something goes wrong: who is told what, and what is left."""

import asyncio
import errno
import sqlite3
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from nacrefs.common.wire import (
    Commit,
    Create,
    Destroy,
    GetAttr,
    Holding,
    Lease,
    Lookup,
    Mkdir,
    Mode,
    Open,
    Reclaim,
    Set,
    SetAttr,
    TruncateObjects,
    Unlink,
)
from nacrefs.mds.check import check
from nacrefs.mds.engine import Store
from nacrefs.mds.transactions.step import Step
from tests.mds.served import ROOT, Served, turns

BOTH = Mode.READ | Mode.WRITE


@pytest.fixture
async def served(mdt_url: str) -> AsyncGenerator[Served]:
    async with Served(mdt_url) as made:
        yield made
        if made.server.failure is None:
            await made.nothing_leaks()
            assert check(made.mds.mdt.store) == []


@pytest.fixture
async def embedded(tmp_path: Path) -> AsyncGenerator[Served]:
    async with Served(f"sqlite:///{tmp_path}/mdt.db") as made:
        yield made
        await made.nothing_leaks()
        assert check(made.mds.mdt.store) == []


class Unreliable(Store):
    """A store whose next commits fail."""

    failures = 0

    def commit(self) -> None:
        if Unreliable.failures:
            Unreliable.failures -= 1
            raise OSError(errno.EIO, "the disk is broken")
        super().commit()


async def statuses(*calls: Any) -> list[int]:
    """0 or the errno of each."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    return [(result.errno or -1) if isinstance(result, OSError) else 0 for result in results]


async def test_requests_that_arrive_together_are_one_transaction(served: Served) -> None:
    client = await served.client()
    before = served.mds.journal.batches
    await asyncio.gather(*(client.call(Mkdir(ROOT, b"d%d" % number, 0o755, 0, 0)) for number in range(30)))
    assert served.mds.journal.batches - before <= 2


async def test_request_that_fails_leaves_the_others_of_its_batch_alone(served: Served) -> None:
    client = await served.client()
    assert await statuses(
        client.call(Mkdir(ROOT, b"a", 0o755, 0, 0)),
        client.call(Mkdir(ROOT, b"a", 0o755, 0, 0)),
        client.call(Mkdir(ROOT, b"b", 0o755, 0, 0)),
    ) == [0, errno.EEXIST, 0]


async def test_step_that_breaks_after_it_has_written_takes_nobody_with_it(served: Served) -> None:
    client = await served.client()

    def broken(step: Step) -> None:
        step.leases.grant(ROOT, Lease.READ)
        step.tx.edit(ROOT).entries += 7
        raise RuntimeError("a bug")

    calls = [
        client.call(Mkdir(ROOT, b"a", 0o755, 0, 0)),
        served.mds.journal.submit_own(broken),
        client.call(Mkdir(ROOT, b"b", 0o755, 0, 0)),
    ]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(result) is RuntimeError for result in results] == [False, True, False]
    assert served.mds.leases.held(ROOT, 0) == Lease.NONE


async def test_value_that_sql_cannot_hold_fails_its_own_request_only(served: Served) -> None:
    client = await served.client()
    assert await statuses(
        client.call(Mkdir(ROOT, b"a", 0o755, 0, 0)),
        client.call(Create(ROOT, b"f", 0o644, 1 << 63, 0, BOTH)),
        client.call(Mkdir(ROOT, b"b", 0o755, 0, 0)),
    ) in ([0, errno.EINVAL, 0], [0, errno.EIO, 0])
    assert (await client.call(Lookup(ROOT, b"f"))).node is None
    assert served.mds.leases.written_by(client.number) == []


async def test_failed_commit_fails_its_batch_and_the_next_one_works(embedded: Served) -> None:
    client = await embedded.client()
    made = await client.create(b"kept")
    assert made.node is not None
    embedded.mds.mdt.store.__class__ = Unreliable
    Unreliable.failures = 1
    failed = await statuses(
        client.call(Mkdir(ROOT, b"a", 0o755, 0, 0)),
        client.call(Commit(made.node.attr.fid, Lease.NONE, Mode.CLOSED, True, 3, 1, 0, b"abc")),
    )
    assert failed == [errno.EIO, errno.EIO]
    assert embedded.mds.leases.held(made.node.attr.fid, client.number) == Lease.WRITE, "the client still relies on it"
    assert (await client.call(Lookup(ROOT, b"a"))).node is None
    await client.call(Commit(made.node.attr.fid, Lease.NONE, Mode.CLOSED, True, 3, 1, 0, b"abc"))
    await client.call(Mkdir(ROOT, b"a", 0o755, 0, 0))
    assert (await client.call(GetAttr(made.node.attr.fid))).attr.size == 3


async def test_truncation_whose_commit_failed_does_not_keep_the_file_busy(embedded: Served) -> None:
    client = await embedded.client()
    made = await client.create(b"f")
    assert made.node is not None
    fid = made.node.attr.fid
    await client.call(Commit(fid, Lease.NONE, Mode.CLOSED, True, 1 << 20, 1, 2048))
    embedded.mds.mdt.store.__class__ = Unreliable
    Unreliable.failures = 1
    with pytest.raises(OSError, match="could not be made durable"):
        await client.call(SetAttr(fid, Set.SIZE, size=10))
    assert (await client.call(GetAttr(fid))).attr.size == 1 << 20
    assert embedded.first.of(TruncateObjects) == []


async def test_open_under_a_recalled_lease_survives_a_failed_commit(embedded: Served) -> None:
    """The registration is tried again; without it, the file would be destroyed while it is open."""
    opener, other = await embedded.client(), await embedded.client()
    made = await opener.create(b"f", Mode.READ)
    assert made.node is not None
    fid = made.node.attr.fid
    opener.holds[fid] = Holding(fid, Lease.NONE, Mode.READ)

    async def break_disk(request: Any) -> None:
        embedded.mds.mdt.store.__class__ = Unreliable
        Unreliable.failures = 1
        opener.before_answer = None

    opener.before_answer = break_disk
    await statuses(other.call(SetAttr(fid, Set.MODE, mode=0o600)))
    while embedded.mds.mdt.opens.get(fid) != {opener.number: Mode.READ}:
        await asyncio.sleep(0.02)


async def test_full_disk_is_enospc_for_who_needs_room_and_there_is_room_again_after_removing(embedded: Served) -> None:
    client = await embedded.client()
    made: list[int] = []
    store: Any = embedded.mds.mdt.store
    for number in range(40):
        entry = await client.call(Create(ROOT, b"%d" % number, 0o644, 0, 0, Mode.CLOSED, True, data=b"x" * 16000))
        assert entry.node is not None
        made.append(entry.node.attr.fid)
    (pages,) = store._reader.execute("PRAGMA page_count").fetchone()
    store._writer.execute(f"PRAGMA max_page_count = {pages + 2}")
    results = await statuses(
        *(
            client.call(Create(ROOT, b"more%d" % number, 0o644, 0, 0, Mode.CLOSED, True, data=b"y" * 16000))
            for number in range(20)
        ),
        client.call(Unlink(ROOT, b"0", made[0])),
    )
    assert errno.ENOSPC in results
    assert set(results) <= {0, errno.ENOSPC}
    assert results[-1] == 0, "removing needs no room"
    for number in range(1, 30):
        await client.call(Unlink(ROOT, b"%d" % number, made[number]))
    await client.call(Create(ROOT, b"again", 0o644, 0, 0, Mode.CLOSED, True, data=b"y" * 16000))


async def test_reads_of_what_is_being_committed_wait_and_others_do_not(served: Served) -> None:
    client, reader = await served.client(), await served.client()
    d = await client.call(Mkdir(ROOT, b"d", 0o755, 0, 0))
    assert d.node is not None
    changing = client.call(SetAttr(d.node.attr.fid, Set.MODE, mode=0o700))
    await turns(3)
    assert (await reader.call(GetAttr(d.node.attr.fid))).attr.mode & 0o777 in (0o700, 0o755)
    assert changing.done()


async def _take_over(url: str) -> None:
    """What another MDS does first."""
    if url.startswith("sqlite"):
        with sqlite3.connect(url.removeprefix("sqlite:///"), timeout=5) as connection:
            connection.execute("UPDATE mdt SET epoch = epoch + 1")
        connection.close()
    else:
        with psycopg.connect(url, autocommit=True) as session:
            session.execute("UPDATE mdt SET epoch = epoch + 1")


async def test_server_that_was_replaced_stops_serving_and_answers_nothing(served: Served) -> None:
    client = await served.client()
    client.reclaims = [Reclaim(())]
    await _take_over(served.url)
    asked = client.call(Mkdir(ROOT, b"d", 0o755, 0, 0))
    await asyncio.wait_for(served.server.failed.wait(), 30)
    assert served.server.failure is not None
    assert "another MDS has taken over" in str(served.server.failure)
    assert not asked.done(), "the client asks again where the MDT is served now"
    await served.server.stop()
    await served.start()
    assert (await asyncio.wait_for(asked, 30)).node is not None


async def test_server_notices_that_it_was_replaced_although_nobody_writes(served: Served) -> None:
    await _take_over(served.url)
    served.mds.tick()
    assert served.server.failed.is_set()


async def test_lost_database_ends_service_and_requests_are_answered_by_the_next(
    postgres_url: str, served: Served
) -> None:
    if served.url.startswith("sqlite"):
        pytest.skip("SQLite has no connection to lose")
    client = await served.client()
    client.reclaims = [Reclaim(())]
    await client.call(Mkdir(ROOT, b"before", 0o755, 0, 0))
    store: Any = served.mds.mdt.store
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        for pid in (store._writer.info.backend_pid, store._reader.info.backend_pid):
            connection.execute("SELECT pg_terminate_backend(%s)", (pid,))
    asked = [client.call(Mkdir(ROOT, b"d", 0o755, 0, 0)), client.call(Lookup(ROOT, b"never looked up"))]
    await asyncio.wait_for(served.server.failed.wait(), 30)
    await turns()
    assert not any(call.done() for call in asked)
    await served.server.stop()
    await served.start()
    assert [type(reply).__name__ for reply in await asyncio.wait_for(asyncio.gather(*asked), 30)] == ["Entry", "Entry"]


async def test_nothing_is_executed_after_the_end(served: Served) -> None:
    await served.mds.journal.stop()
    with pytest.raises(OSError, match="shutting down"):
        await served.mds.journal.submit_own(lambda step: None)
    # `stop` again at the end of the test must not hang.


async def test_destruction_and_open_in_one_batch(served: Served) -> None:
    """The open comes first, so the file lives until it is closed."""
    opener, remover = await served.client(), await served.client()
    made = await opener.create(b"f", Mode.READ)
    assert made.node is not None
    fid = made.node.attr.fid
    await opener.call(Commit(fid, Lease.NONE, Mode.CLOSED))
    opened, removed = await asyncio.gather(opener.call(Open(fid, Mode.READ)), remover.call(Unlink(ROOT, b"f")))
    await served.settle()
    assert opened.attr.fid == removed.victim.fid == fid
    assert served.first.of(Destroy) == []
