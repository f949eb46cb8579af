"""What the lifecycle tier decides holds when it is done, whatever else happens at the same moment."""

import asyncio
import errno
import json

import pytest
from msgspec.structs import replace

from nacrefs.common.fid import ROOT
from nacrefs.common.wire import (
    ArchiveSpec,
    Commit,
    HsmAction,
    HsmCancel,
    HsmFlag,
    HsmRequest,
    Lease,
    LinkSpec,
    Mkdir,
    Mode,
    Reclaim,
    Rename,
    SetArchive,
    SetLink,
    Unlink,
)
from nacrefs.mds.hsm.queue import Wanted
from nacrefs.mds.hsm.rows import FAILED, STARTED, SUCCEED, ActionRow, HsmRow
from nacrefs.mds.hsm.steps import begin_transition, end_action, end_transition, plan_archive, put_hsm
from nacrefs.mds.transactions.step import Step
from tests.mds.actions import directory, failing, file
from tests.mds.served import Client, Served, turns
from tests.mds.world import World

COLD = ArchiveSpec(0, "cold", "dir", "file:///cold")
WARM = ArchiveSpec(0, "warm", "dir", "file:///warm")


@pytest.fixture
async def client(served: Served) -> Client:
    return await served.client()


async def planted(client: Client) -> int:
    """A file with contents that nobody has open."""
    made = await client.create(b"f")
    assert made.node is not None
    fid = made.node.attr.fid
    await client.call(Commit(fid, Lease.NONE, Mode.CLOSED, True, 8, 5, 8, b"contents"))
    return fid


async def test_file_for_which_two_ask_at_once_has_one_action_after_a_kill(served: Served, client: Client) -> None:
    fid = await planted(client)
    await client.call(SetArchive(COLD))
    await served.first.remote.aclose()  # what is queued stays so
    client.reclaims = [Reclaim(())]
    async with served.killed_at("mds.commit.after"):
        asked = [client.call(HsmRequest(HsmAction.ARCHIVE, (fid,))) for _ in range(2)]
    assert [(await answer).errors for answer in asked] == [((0, ""),)] * 2
    await served.settle()
    rows = served.mds.mdt.store.fetchall(served.mds.mdt.store.statements.actions)
    assert [row[0] for row in rows] == [served.mds.hsm.active[fid].row.id]


async def test_archives_that_are_made_at_once_have_numbers_of_their_own(served: Served, client: Client) -> None:
    other = await served.client()
    made = (await client.call(Mkdir(ROOT, b"d", 0o755, 0, 0))).node
    assert made is not None
    answers = await asyncio.gather(
        client.call(SetArchive(COLD)),
        other.call(SetArchive(WARM)),
        client.call(SetLink(LinkSpec(0, made.attr.fid, "none"), replace(COLD, name="", url="file:///linked"))),
    )
    assert sorted(json.loads(answer.report)["id"] for answer in answers) == [1, 2, 3]
    assert sorted(spec.url for spec in served.mds.hsm.archives.values()) == [
        "file:///cold", "file:///linked", "file:///warm",
    ]  # fmt: skip


async def test_archives_have_no_place_in_common(served: Served, client: Client) -> None:
    """A key would be one of both, and be deleted by the one while the other needs it."""
    other = await served.client()
    inside = replace(WARM, url="file:///cold/../cold/warm/")
    one, two = await asyncio.gather(
        client.call(SetArchive(COLD)), other.call(SetArchive(inside)), return_exceptions=True
    )
    assert isinstance(two, OSError) != isinstance(one, OSError)
    assert len(served.mds.hsm.archives) == 1
    bucket = ArchiveSpec(0, "bucket", "s3", "s3://b/x", "http://here")
    await client.call(SetArchive(bucket))
    for url in ("s3://b/x", "s3://b", "s3://b/x/y"):
        with pytest.raises(FileExistsError, match=r"archive bucket keeps its copies in s3://b/x.*another prefix"):
            await client.call(SetArchive(replace(bucket, name="another", url=url, endpoint="http://here/")))
    await client.call(SetArchive(replace(bucket, name="beside", url="s3://b/xy")))
    await client.call(SetArchive(replace(bucket, name="elsewhere", endpoint="http://there")))
    await client.call(SetArchive(replace(bucket, rate_mibps=5.0)))  # it may be changed
    with pytest.raises(FileExistsError, match="archive beside"):
        await client.call(SetArchive(replace(bucket, url="s3://b/xy/z")))


async def test_change_of_class_that_is_canceled_is_waited_for(served: Served, client: Client) -> None:
    """The archive goes on with it; meanwhile nothing else is to happen to the object."""
    fid = await planted(client)
    await client.call(SetArchive(COLD))
    shelf, hsm = served.first.shelf, served.mds.hsm

    def archived(step: Step) -> None:
        inode = step.tx.need(fid)
        put_hsm(step, inode, HsmRow(fid, int(HsmFlag.EXISTS | HsmFlag.ARCHIVED), 1, "f~1", inode.data_version, 8))

    await served.mds.journal.submit_own(archived)
    shelf.add("f~1", 8, "another")
    shelf.may_answer.clear()
    hsm.classes.learned(1, {"class_change": True})
    await hsm.request_many([Wanted(HsmAction.TRANSITION, fid, 1, "", "GLACIER")])
    await shelf.asked_for_class.wait()
    canceled = asyncio.create_task(hsm.cancel(fid))
    await turns()
    assert not canceled.done()
    assert fid in hsm.active
    shelf.may_answer.set()
    await canceled
    rows = served.mds.mdt.store.fetchall("SELECT storage_class, etag FROM hsm")
    assert [tuple(row) for row in rows] == [("GLACIER", "another")]


async def test_what_a_destroyed_file_has_on_its_way_is_waited_for(served: Served, client: Client) -> None:
    """Its OSS stops the move, but not the request to the archive: what is deleted before that is over would be back."""
    fid = await planted(client)
    await client.call(SetArchive(COLD))
    served.first.shelf.refusal = errno.ECANCELED
    await client.call(HsmRequest(HsmAction.ARCHIVE, (fid,)))
    async with asyncio.timeout(10):
        while served.first.shelf.stopped != [fid]:
            await asyncio.sleep(0.001)


async def test_archive_is_not_moved_to_where_its_copies_are_not(served: Served, client: Client) -> None:
    """As by a slip of the pen: files would be lost."""
    fid = await planted(client)
    await client.call(SetArchive(COLD))

    def archived(step: Step) -> None:
        inode = step.tx.need(fid)
        put_hsm(step, inode, HsmRow(fid, int(HsmFlag.EXISTS | HsmFlag.ARCHIVED), 1, "f~1", inode.data_version, 8))

    await served.mds.journal.submit_own(archived)
    moved = replace(COLD, url="file:///colder")
    with failing(errno.EINVAL):
        await client.call(SetArchive(moved))
    assert served.mds.hsm.archives[1].url == COLD.url
    served.first.shelf.add("f~1", 8)
    await client.call(SetArchive(moved))
    assert served.mds.hsm.archives[1].url == moved.url


async def test_links_that_are_made_at_once_do_not_overlap(served: Served, client: Client) -> None:
    other = await served.client()
    made = (await client.call(Mkdir(ROOT, b"d", 0o755, 0, 0))).node
    assert made is not None
    link = SetLink(LinkSpec(0, made.attr.fid, "none"), ArchiveSpec(0, "", "dir", "file:///linked"))
    one, two = await asyncio.gather(client.call(link), other.call(link), return_exceptions=True)
    assert sorted(isinstance(answer, OSError) and answer.errno == errno.EEXIST for answer in (one, two)) == [
        False,
        True,
    ]


async def test_archive_to_which_files_are_being_copied_is_not_removed(served: Served, client: Client) -> None:
    fid = await planted(client)
    await client.call(SetArchive(COLD))
    await served.first.remote.aclose()
    await client.call(HsmRequest(HsmAction.ARCHIVE, (fid,)))
    with failing(errno.EBUSY):
        await client.call(SetArchive(COLD, True))
    await client.call(HsmCancel((fid,)))
    await client.call(SetArchive(COLD, True))
    assert not served.mds.hsm.archives


def test_key_that_an_earlier_step_of_the_batch_has_given_up_is_not_used(world: World) -> None:
    """The cleaner would delete what is sent there."""
    top = directory(world)
    mdt = world.mdt
    mdt.linked, mdt.deleting, mdt.exports = {1}, {1}, {top: 1}
    fids = [file(world, name) for name in (b"old", b"new")]
    for fid in fids:
        world.do(Commit(fid, Lease.NONE, Mode.CLOSED, True, 8, 5, 8, b"contents"))
        world.recall(1, fid)
    old, new = fids
    world.do(Rename(ROOT, b"old", top, b"f"))
    step = world.step()
    flags = int(HsmFlag.EXISTS | HsmFlag.ARCHIVED)
    put_hsm(step, step.tx.need(old), HsmRow(old, flags, 1, "f", step.tx.need(old).data_version, 8))
    world.commit()
    action = ActionRow(1, new, int(HsmAction.ARCHIVE), 1, 0, "export", STARTED, 1, 0, 0, 0)
    spec = ArchiveSpec(1, "link-1", "dir", "file:///linked")
    world.batched(Rename(ROOT, b"new", top, b"f"))
    with failing(errno.EAGAIN):
        plan_archive(world.step(), action, spec)
    world.commit()
    with failing(errno.EAGAIN):
        plan_archive(world.step(), action, spec)
    world.tx.run("delete_gone", (1, "f"))
    world.commit()
    assert plan_archive(world.step(), action, spec).key == "f"


@pytest.mark.parametrize("done", [True, False], ids=["done", "answer lost"])
@pytest.mark.parametrize("keep", [False, True], ids=["deleted", "kept"])
def test_object_that_changes_its_class_while_its_file_is_removed_has_no_second_life(
    world: World, done: bool, keep: bool
) -> None:
    """Who copies it onto itself may be done after it was deleted."""
    fid = file(world)
    world.do(Commit(fid, Lease.NONE, Mode.CLOSED, True, 8, 5, 8, b"contents"))
    world.recall(1, fid)
    world.mdt.keeping = {1} if keep else set()
    step = world.step()
    inode = step.tx.need(fid)
    put_hsm(step, inode, HsmRow(fid, int(HsmFlag.EXISTS | HsmFlag.ARCHIVED), 1, "key", inode.data_version, 8))
    world.commit()
    action = ActionRow(1, fid, int(HsmAction.TRANSITION), 1, 0, "", STARTED, 1, 0, 0, 0, storage_class="GLACIER")
    copy, begun = begin_transition(world.step(), action)
    world.commit()
    world.do(Unlink(ROOT, b"f", fid))
    world.tx.run("delete_gone", (1, "key"))
    world.commit()
    if done:
        end_transition(world.step(), begun, copy, "etag", begun._replace(state=SUCCEED, key=""))
    else:
        end_action(world.step(), begun, begun._replace(state=FAILED, key=""))
    world.commit()
    store = world.mdt.store
    assert store.fetchall(store.statements.gone, (9,)) == ([] if keep else [(1, "key")])
