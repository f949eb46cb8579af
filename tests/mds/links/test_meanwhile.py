"""What a link decides about a file holds when it is done, whatever has happened to the file in between."""

import asyncio
import errno
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from msgspec.structs import replace

from nacrefs.common.wire import (
    ArchiveSpec,
    Commit,
    HsmFlag,
    Lease,
    LinkSpec,
    Mkdir,
    Mode,
    OrderLink,
    RemoveLink,
    Rename,
    SetLink,
    Unlink,
)
from nacrefs.mds.hsm.rows import RELEASED, HsmRow
from nacrefs.mds.hsm.steps import put_hsm
from nacrefs.mds.links.exporting import LOOK_S
from nacrefs.mds.transactions.step import Step
from tests.mds.actions import failing
from tests.mds.served import ROOT, Client, Served, turns

ALL = ("new", "changed", "deleted")
BUCKET = ArchiveSpec(0, "", "s3", "s3://bucket/of-the-test")
COPY = int(HsmFlag.EXISTS | HsmFlag.ARCHIVED)


class Linked:
    """A directory `d` that is link 1, a file `f` in it, and a directory outside."""

    def __init__(self, served: Served, client: Client, fids: dict[str, int]) -> None:
        self.served = served
        self.client = client
        self.directory, self.outside, self.fid = fids["d"], fids["outside"], fids["f"]

    def own(self, step: Callable[[Step], Any]) -> "asyncio.Future[Any]":
        return self.served.mds.journal.submit_own(step)

    def sent(self, step: Step, *, etag: str = "one", at_ns: int = 1, flags: int = COPY) -> None:
        """The bucket has the file, as `f`."""
        tx = step.tx
        inode = tx.need(self.fid)
        row = HsmRow(self.fid, flags, 1, "f", inode.data_version, inode.attr.size, etag, archived_ns=at_ns)
        put_hsm(step, inode, row)
        tx.run("put_link_object", (1, b"f", self.fid, ""))
        tx.sent(self.fid)
        tx.quiet.add(self.fid)

    def rows(self, table: str) -> list[Any]:
        return self.served.mds.mdt.store.fetchall(f"SELECT * FROM {table}")

    @property
    def is_marked(self) -> bool:
        return bool(self.rows("link_dirty"))

    async def queued(self) -> None:
        """Until somebody waits for the batch that is being committed."""
        async with asyncio.timeout(10):
            while not self.served.mds.journal.queued:
                await asyncio.sleep(0.001)

    async def until_marked(self) -> None:
        async with asyncio.timeout(10):
            while self.fid not in self.served.mds.mdt.dirty:
                await asyncio.sleep(0)

    async def refreshed(self) -> None:
        link = self.served.mds.links.need(1)
        async with asyncio.timeout(10):
            while link.ended < link.wanted:
                await asyncio.sleep(0.001)
        assert link.row.reason == ""

    async def refreshed_while_sent(self) -> None:
        """The file is sent after a refresh has listed the bucket, and before that does anything about it."""
        async with self.served.held_at("mds.commit.before") as held:
            sent = self.own(partial(self.sent, etag="two", at_ns=self.served.mds.clock.now_ns()))
            await held.wait()
            await self.client.call(OrderLink(1, "refresh"))
            await self.queued()
        await sent
        await self.refreshed()


@pytest.fixture
async def linked(served: Served) -> Linked:
    client = await served.client()
    fids: dict[str, int] = {}
    for name in ("d", "outside"):
        made = (await client.call(Mkdir(ROOT, name.encode(), 0o755, 0, 0))).node
        assert made is not None
        fids[name] = made.attr.fid
    file = (await client.create(b"f", parent=fids["d"])).node
    assert file is not None
    fids["f"] = file.attr.fid
    await client.call(Commit(fids["f"], Lease.NONE, Mode.CLOSED, True, 8, 5, 8, b"contents"))
    await client.call(SetLink(LinkSpec(0, fids["d"], "none", auto_export=ALL), BUCKET))
    made_link = Linked(served, client, fids)
    await made_link.own(made_link.sent)
    served.first.shelf.add("f", 8, "one")
    assert not made_link.is_marked
    return made_link


async def test_file_that_comes_back_while_it_is_given_up_keeps_its_object(linked: Linked) -> None:
    served, client = linked.served, linked.client
    await client.call(Rename(linked.directory, b"f", linked.outside, b"f"))
    assert linked.is_marked
    async with served.held_at("mds.commit.before") as held:
        back = client.call(Rename(linked.outside, b"f", linked.directory, b"f"))
        await held.wait()
        flushed = client.call(OrderLink(1, "flush"))  # so that it is looked at now
        await linked.queued()
    await back
    await served.settle()
    assert [row[:4] for row in linked.rows("hsm")] == [(linked.fid, COPY, 1, "f")]
    assert linked.rows("hsm_gone") == []
    await flushed


async def test_file_that_is_renamed_while_it_need_not_be_sent_is_looked_at_again(linked: Linked) -> None:
    served, client = linked.served, linked.client

    def release(step: Step) -> None:
        linked.sent(step, flags=COPY | int(HsmFlag.RELEASED))
        edited = step.tx.edit(linked.fid)
        edited.attr = replace(edited.attr, flags=edited.attr.flags | RELEASED)

    await linked.own(release)
    await linked.own(lambda step: step.tx.mark(linked.fid, 1))
    async with served.held_at("mds.commit.before") as held:
        renamed = client.call(Rename(linked.directory, b"f", linked.directory, b"g"))
        await held.wait()
        flushed = client.call(OrderLink(1, "flush"))
        await linked.queued()
    await renamed
    await flushed
    assert [row[3] for row in linked.rows("hsm")] == ["g"]


async def test_flush_waits_for_files_of_a_moved_directory_that_are_seen_before_it_is_done_with(linked: Linked) -> None:
    served, client = linked.served, linked.client
    made = (await client.call(Mkdir(linked.directory, b"sub", 0o755, 0, 0))).node
    assert made is not None
    await client.call(Rename(linked.directory, b"f", made.attr.fid, b"f"))
    await client.call(OrderLink(1, "flush"))
    await client.call(Rename(linked.directory, b"sub", linked.directory, b"moved"))
    marked = asyncio.create_task(linked.until_marked())
    flushed = client.call(OrderLink(1, "flush"))
    await marked
    async with served.held_at("mds.commit.before") as held:
        await held.wait()  # the directory is done with
        await asyncio.sleep(2 * LOOK_S)
    await flushed
    assert not linked.is_marked
    assert [row[3] for row in linked.rows("hsm")] == ["moved/f"]


async def test_file_that_was_sent_while_its_object_seemed_to_be_gone_stays(linked: Linked) -> None:
    del linked.served.first.shelf.objects["f"]
    await linked.refreshed_while_sent()
    assert (await linked.own(lambda step: step.tx.dentry(linked.directory, b"f"))) == linked.fid
    assert [(row[0], row[6]) for row in linked.rows("hsm")] == [(linked.fid, "two")]


async def test_file_that_was_sent_while_its_object_seemed_to_be_another_keeps_its_contents(linked: Linked) -> None:
    linked.served.first.shelf.add("f", 9, "somebody else's")
    await linked.refreshed_while_sent()
    assert [(row[0], row[6]) for row in linked.rows("hsm")] == [(linked.fid, "two")]


async def test_object_of_a_file_that_has_just_been_sent_is_that_file_s(linked: Linked) -> None:
    served = linked.served

    def unsent(step: Step) -> None:
        inode = step.tx.need(linked.fid)
        put_hsm(step, inode, HsmRow(linked.fid))
        step.tx.run("delete_link_object", (1, b"f", linked.fid))
        step.tx.quiet.add(linked.fid)

    await linked.own(unsent)
    async with served.held_at("mds.commit.before") as held:
        sent = linked.own(linked.sent)
        await held.wait()
        await linked.client.call(OrderLink(1, "refresh"))
        await linked.queued()
    await sent
    await linked.refreshed()
    assert [row[1:] for row in linked.rows("link_object")] == [(b"f", linked.fid, "")]


async def test_file_that_is_removed_after_its_object_was_listed_does_not_come_back(linked: Linked) -> None:
    shelf, client = linked.served.first.shelf, linked.client
    shelf.listed.clear()
    shelf.may_answer.clear()
    await client.call(OrderLink(1, "refresh"))
    await shelf.listed.wait()
    await client.call(Unlink(linked.directory, b"f", linked.fid))
    async with asyncio.timeout(10):
        while shelf.objects or linked.rows("hsm_gone"):
            await asyncio.sleep(0.001)
    shelf.may_answer.set()
    await linked.refreshed()
    assert linked.rows("link_object") == []
    assert (await linked.own(lambda step: step.tx.dentry(linked.directory, b"f"))) is None


async def test_problem_of_a_key_does_not_hide_the_file_that_has_it(linked: Linked) -> None:
    await linked.own(lambda step: step.tx.run("put_link_problem", (1, b"f", "another file has its name")))
    await linked.own(lambda step: step.tx.run("put_link_problem", (1, b"d/", "one reason")))
    await linked.own(lambda step: step.tx.run("put_link_problem", (1, b"d/", "another")))
    assert sorted(row[1:] for row in linked.rows("link_object")) == [(b"d/", 0, "another"), (b"f", linked.fid, "")]


async def test_link_that_is_removed_cannot_be_paused_any_more(linked: Linked) -> None:
    served, client = linked.served, linked.client
    async with served.held_at("mds.commit.before") as held:
        removed = client.call(RemoveLink(1))
        await held.wait()
        paused = client.call(OrderLink(1, "pause"))
        await turns()
    with failing(errno.EBUSY):
        await paused
    await removed
    assert linked.rows("link") == []
