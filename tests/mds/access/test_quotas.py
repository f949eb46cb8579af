"""What is used is counted exactly, and limits hold where they can: at the MDS, on both engines."""

import asyncio
import errno

import pytest

from nacrefs.common.fid import ROOT
from nacrefs.common.wire import (
    CheckQuota,
    Commit,
    Create,
    GetAttr,
    GetQuota,
    Holding,
    Lease,
    Link,
    ListQuotas,
    Mkdir,
    Mode,
    Open,
    QuotaKind,
    QuotaLimits,
    Rename,
    RenameFlag,
    Rmdir,
    Set,
    SetAttr,
    SetProject,
    SetQuota,
    Statfs,
    Symlink,
    Unlink,
    Want,
)
from nacrefs.mds.access.accounts import ALLOWED_S, FLOOR_BYTES, REPORT_BYTES, UNKNOWN
from nacrefs.mds.check import usage_drifts
from nacrefs.mds.namespace.quotas import set_quota
from nacrefs.mds.snapshot import Snapshot
from tests.mds.actions import directory, failing, spill
from tests.mds.served import Client, Served, turns
from tests.mds.world import World

USER, GROUP, PROJECT = 1000, 2000, 7
KIB, MIB = 1024, 1 << 20
BOTH = Mode.READ | Mode.WRITE


def make(world: World, name: bytes, data: bytes | None = None, parent: int = ROOT, uid: int = USER) -> int:
    node = world.do(Create(parent, name, 0o644, uid, GROUP, Mode.WRITE, data=data)).node
    assert node is not None
    return node.attr.fid


def limit(world: World, kind: QuotaKind, number: int, **limits: int) -> None:
    set_quota(SetQuota(kind, number, QuotaLimits(**limits)), world.step())
    world.commit()


def used(world: World, kind: QuotaKind, number: int) -> tuple[int, int]:
    """Bytes and inodes, as memory has them; SQL must say the same, and so must the inodes themselves."""
    snapshot = Snapshot(world.mdt.store)
    try:
        assert usage_drifts(snapshot) == []
    finally:
        snapshot.close()
    info = world.mdt.accounts.info((int(kind), number))
    world.mdt.accounts.load(world.mdt.store)
    again = world.mdt.accounts.info((int(kind), number))
    assert info == again
    return info.used_bytes, info.used_inodes


def test_every_change_of_an_owners_files_is_counted(world: World) -> None:
    fid = make(world, b"small", b"x" * 1000)
    assert used(world, QuotaKind.USER, USER) == (1024, 1)
    make(world, b"empty")
    world.do(Mkdir(ROOT, b"d", 0o755, USER, GROUP))
    world.do(Symlink(ROOT, b"link", b"target", USER, GROUP))
    assert used(world, QuotaKind.USER, USER) == (1024 + 4096, 4)
    assert used(world, QuotaKind.GROUP, GROUP) == (1024 + 4096, 4)
    world.do(SetAttr(fid, Set.SIZE, size=10))
    assert used(world, QuotaKind.USER, USER) == (512 + 4096, 4)
    world.do(SetAttr(fid, Set.UID | Set.GID, uid=1, gid=2))
    assert used(world, QuotaKind.USER, USER) == (4096, 3)
    assert used(world, QuotaKind.USER, 1) == (512, 1)
    assert used(world, QuotaKind.GROUP, 2) == (512, 1)
    world.do(Link(fid, ROOT, b"other"))
    world.do(Unlink(ROOT, b"small"))
    assert used(world, QuotaKind.USER, 1) == (512, 1)
    world.do(Unlink(ROOT, b"other", fid))
    world.do(Rmdir(ROOT, b"d"))
    assert used(world, QuotaKind.USER, 1) == (0, 0)
    assert used(world, QuotaKind.USER, USER) == (0, 2)


def test_what_lies_on_osts_counts_when_it_is_reported(world: World) -> None:
    fid = make(world, b"big")
    spill(world, fid, 3 * MIB)
    assert used(world, QuotaKind.USER, USER) == (3 * MIB, 1)


def test_a_batch_counts_what_it_makes_and_destroys(world: World) -> None:
    for number in range(5):
        world.batched(Create(ROOT, b"%d" % number, 0o644, USER + number % 2, GROUP, Mode.CLOSED, data=b"x"))
    world.batched(Unlink(ROOT, b"0", world.tx.dentry(ROOT, b"0") or 0))
    world.commit()
    assert used(world, QuotaKind.USER, USER) == (2 * 512, 2)
    assert used(world, QuotaKind.GROUP, GROUP) == (4 * 512, 4)
    world.batched(Create(ROOT, b"never", 0o644, USER, GROUP, Mode.CLOSED, data=b"x"))
    world.abandon()
    assert used(world, QuotaKind.USER, USER) == (2 * 512, 2)


def test_the_number_of_files_is_limited_also_within_a_batch(world: World) -> None:
    limit(world, QuotaKind.USER, USER, hard_inodes=3)
    for number in range(3):
        world.batched(Create(ROOT, b"%d" % number, 0o644, USER, GROUP, Mode.CLOSED))
    for request in (
        Create(ROOT, b"more", 0o644, USER, GROUP, Mode.CLOSED),
        Mkdir(ROOT, b"more", 0o755, USER, GROUP),
        Symlink(ROOT, b"more", b"target", USER, GROUP),
    ):
        with failing(errno.EDQUOT):
            world.batched(request)
    world.batched(Create(ROOT, b"others", 0o644, USER + 1, GROUP, Mode.CLOSED))
    world.commit()
    world.do(Unlink(ROOT, b"0", world.tx.dentry(ROOT, b"0") or 0))
    make(world, b"again")
    assert used(world, QuotaKind.USER, USER) == (0, 3)


@pytest.mark.parametrize("kind", list(QuotaKind))
def test_bytes_of_small_files_are_limited_exactly(world: World, kind: QuotaKind) -> None:
    home = directory(world, b"home")
    world.tx.set_project(home, PROJECT)
    world.commit()
    most = used(world, kind, (USER, GROUP, PROJECT)[kind])[0] + 4 * KIB
    limit(world, kind, (USER, GROUP, PROJECT)[kind], hard_bytes=most)
    for number in range(4):
        make(world, b"%d" % number, b"x" * KIB, home)
    with failing(errno.EDQUOT):
        make(world, b"more", b"x", home)
    assert used(world, kind, (USER, GROUP, PROJECT)[kind])[0] == most
    make(world, b"empty", None, home)


def test_a_commit_of_contents_that_do_not_fit_is_refused_unless_it_answers_a_recall(world: World) -> None:
    limit(world, QuotaKind.USER, USER, hard_bytes=2 * KIB)
    fid = make(world, b"f")
    data = b"x" * 3000
    report = Commit(fid, Lease.WRITE, Mode.CLOSED, True, len(data), world.now_ns, 0, data)
    with failing(errno.EDQUOT):
        world.do(report)
    node = world.do(Commit(fid, Lease.WRITE, Mode.CLOSED, True, len(data), world.now_ns, 0, data, recalled=True))
    assert node.quota == 0
    assert used(world, QuotaKind.USER, USER) == (3072, 1)
    world.do(Commit(fid, Lease.WRITE, Mode.CLOSED, True, 5, world.now_ns, 0, b"short"))
    assert used(world, QuotaKind.USER, USER) == (512, 1)


def test_answers_say_how_much_may_be_written_before_the_next_report(world: World) -> None:
    node = world.do(Create(ROOT, b"free", 0o644, USER, GROUP, Mode.WRITE)).node
    assert node is not None
    assert node.quota == -1
    limit(world, QuotaKind.USER, USER, hard_bytes=10 * MIB)
    fid = make(world, b"f")
    report = Commit(fid, Lease.WRITE, Mode.WRITE, True, 1, world.now_ns, 2048)
    assert world.do(report).quota == 9 * MIB // 8
    other = make(world, b"g")
    world.recall(1, other)
    assert world.do(GetAttr(other), 2).quota == UNKNOWN
    opened = world.do(Open(other, Mode.WRITE), 2)
    assert opened.quota == (9 * MIB - 10 * MIB // 8) // 8  # so much is the first client's, since it made the file
    third = world.do(Create(ROOT, b"h", 0o644, USER, GROUP, Mode.WRITE), world.session()).node
    assert third is not None
    assert third.quota == (9 * MIB - 10 * MIB // 8 - opened.quota) // 12
    world.now_ns += ALLOWED_S * 10**9
    assert world.do(Open(other, Mode.WRITE), 2).quota == 9 * MIB // 8
    report = Commit(fid, Lease.WRITE, Mode.WRITE, True, 1, world.now_ns, 20480 - 256)
    assert world.do(report).quota == FLOOR_BYTES
    report = Commit(fid, Lease.WRITE, Mode.WRITE, True, 1, world.now_ns, 20480 - 1)
    assert world.do(report).quota == 512
    report = Commit(fid, Lease.WRITE, Mode.WRITE, True, 1, world.now_ns, 20480)
    assert world.do(report).quota == 0
    limit(world, QuotaKind.USER, USER, hard_bytes=1 << 40)
    assert world.do(report).quota == REPORT_BYTES


def test_a_soft_limit_holds_when_its_grace_term_is_over(world: World) -> None:
    limit(world, QuotaKind.USER, USER, soft_bytes=KIB, soft_inodes=2, grace_bytes_s=60, grace_inodes_s=30)
    make(world, b"a", b"x" * KIB)
    assert world.mdt.accounts.quotas[0, USER].bytes_until_ns == 0
    make(world, b"b", b"x" * KIB)
    make(world, b"c")
    until = world.mdt.accounts.quotas[0, USER]
    assert until.bytes_until_ns - world.now_ns > 59 * 10**9
    assert until.inodes_until_ns - world.now_ns > 29 * 10**9
    world.reopen()
    assert world.mdt.accounts.quotas[0, USER] == until
    world.now_ns += 31 * 10**9
    with failing(errno.EDQUOT):
        make(world, b"d")
    world.do(Unlink(ROOT, b"c", world.tx.dentry(ROOT, b"c") or 0))
    make(world, b"c")  # a new term begins
    world.do(Unlink(ROOT, b"b", world.tx.dentry(ROOT, b"b") or 0))
    assert world.mdt.accounts.quotas[0, USER].bytes_until_ns == 0
    make(world, b"d", b"x")
    world.now_ns += 61 * 10**9
    with failing(errno.EDQUOT):
        make(world, b"e", b"x")


def test_projects_are_handed_down_and_names_do_not_cross_their_borders(world: World) -> None:
    home, other = directory(world, b"home"), directory(world, b"other")
    outside = make(world, b"outside")
    world.tx.set_project(home, PROJECT)
    world.tx.set_project(other, PROJECT + 1)
    world.commit()
    inside = make(world, b"f", b"x", home)
    sub = directory(world, b"sub", parent=home)
    assert [world.tx.need(fid).project for fid in (inside, sub, outside)] == [PROJECT, PROJECT, 0]
    assert used(world, QuotaKind.PROJECT, PROJECT) == (2 * 4096 + 512, 3)
    for request in (
        Rename(ROOT, b"outside", home, b"in"),
        Rename(home, b"f", other, b"f"),
        Rename(ROOT, b"outside", home, b"f", RenameFlag.EXCHANGE),
        Link(outside, home, b"in"),
    ):
        with failing(errno.EXDEV):
            world.do(request)
    world.do(Rename(home, b"f", sub, b"f"))
    world.do(Rename(sub, b"f", ROOT, b"f"))  # out of a project, as on ext4 and XFS: it goes on counting there
    assert used(world, QuotaKind.PROJECT, PROJECT) == (2 * 4096 + 512, 3)


@pytest.mark.parametrize(
    ("kind", "number", "limits"),
    [
        (QuotaKind.USER, -1, QuotaLimits(hard_bytes=1)),
        (QuotaKind.USER, (1 << 32) - 1, QuotaLimits(hard_bytes=1)),
        (QuotaKind.PROJECT, 0, QuotaLimits(hard_bytes=1)),
        (QuotaKind.USER, 1, QuotaLimits(hard_bytes=-1)),
        (QuotaKind.USER, 1, QuotaLimits(soft_bytes=2, hard_bytes=1)),
        (QuotaKind.USER, 1, QuotaLimits(soft_inodes=2, hard_inodes=1)),
        (QuotaKind.USER, 1, QuotaLimits(hard_bytes=1, grace_bytes_s=-1)),
    ],
)
def test_impossible_limits_are_refused(world: World, kind: QuotaKind, number: int, limits: QuotaLimits) -> None:
    with failing(errno.EINVAL):
        set_quota(SetQuota(kind, number, limits), world.step())
    assert not world.mdt.accounts.quotas


# -------------------------------------------------------------------------------------------------------------- served


async def whole(client: Client, name: bytes, parent: int = ROOT) -> int:
    node = (await client.call(Create(parent, name, 0o644, USER, GROUP, Mode.CLOSED, data=b"x" * KIB))).node
    assert node is not None
    return node.attr.fid


async def test_limits_are_set_shown_and_removed(served: Served) -> None:
    client = await served.client()
    await whole(client, b"f")
    limits = QuotaLimits(soft_bytes=KIB, hard_bytes=MIB)
    info = await client.call(SetQuota(QuotaKind.USER, USER, limits))
    assert (info.used_bytes, info.used_inodes, info.limits) == (KIB, 1, limits)
    assert await client.call(GetQuota(QuotaKind.USER, USER)) == info
    listed = await client.call(ListQuotas(QuotaKind.USER))
    assert [one.id for one in listed.quotas] == [0, USER]
    assert listed.end
    page = await client.call(ListQuotas(QuotaKind.USER, limit=1))
    assert ([one.id for one in page.quotas], page.end) == ([0], False)
    assert (await client.call(ListQuotas(QuotaKind.USER, after=0, limit=1))).quotas == (info,)
    await client.call(SetQuota(QuotaKind.USER, USER, QuotaLimits()))
    assert (await client.call(GetQuota(QuotaKind.USER, USER))).limits == QuotaLimits()
    await served.restart()
    assert (await client.call(GetQuota(QuotaKind.USER, USER))).used_bytes == KIB


async def test_a_tree_is_given_a_project_and_statfs_shows_its_quota(served: Served) -> None:
    client = await served.client()
    home = (await client.call(Mkdir(ROOT, b"home", 0o755, 0, 0))).node
    assert home is not None
    sub = (await client.call(Mkdir(home.attr.fid, b"sub", 0o755, 0, 0))).node
    assert sub is not None
    for number in range(3):
        await whole(client, b"%d" % number, sub.attr.fid)
    assert (await client.call(SetProject(home.attr.fid, PROJECT, recursive=True))).changed == 5
    assert (await client.call(SetProject(sub.attr.fid, -1))).project == PROJECT
    free = await client.call(Statfs(sub.attr.fid))
    await client.call(SetQuota(QuotaKind.PROJECT, PROJECT, QuotaLimits(hard_bytes=MIB, hard_inodes=10)))
    space = await client.call(Statfs(sub.attr.fid))
    assert (space.total_bytes, space.free_bytes) == (MIB, MIB - 2 * 4096 - 3 * KIB)
    assert (space.files, space.files_free) == (5, 5)
    assert await client.call(Statfs()) == free


async def test_drift_is_found_and_mended_while_files_are_made(served: Served) -> None:
    client = await served.client()
    await whole(client, b"f")
    assert (await client.call(CheckQuota())).drifts == ()
    store = served.mds.mdt.store
    await served.settle()
    store.writer.execute("UPDATE usage SET bytes = bytes + 4096, inodes = 9 WHERE uid = 1000")
    store.writer.execute("INSERT INTO usage (uid, gid, project, bytes, inodes) VALUES (5, 5, 5, 512, 1)")
    drifts = (await client.call(CheckQuota())).drifts
    assert [(one.uid, one.recorded_bytes, one.bytes, one.recorded_inodes, one.inodes) for one in drifts] == [
        (USER, 5 * KIB, KIB, 9, 1),
        (5, 512, 0, 1, 0),
    ]
    mending = client.call(CheckQuota(repair=True))
    for number in range(20):
        await whole(client, b"%d" % number)
    assert (await mending).repaired
    assert (await client.call(CheckQuota())).drifts == ()
    info = await client.call(GetQuota(QuotaKind.USER, USER))
    assert (info.used_bytes, info.used_inodes) == (21 * KIB, 21)


async def test_the_last_who_wrote_without_a_lease_closes_and_all_is_counted(served: Served) -> None:
    one, two = await served.client(), await served.client()
    node = (await one.call(Create(ROOT, b"f", 0o644, USER, GROUP, Mode.WRITE))).node
    assert node is not None
    fid = node.attr.fid
    await one.call(Commit(fid, Lease.NONE, Mode.WRITE, True, KIB, 1, 2))
    await two.create(b"f", Mode.WRITE)
    served.first.sizes[fid] = MIB
    await one.call(Commit(fid, Lease.NONE, Mode.CLOSED))
    await two.call(Commit(fid, Lease.NONE, Mode.CLOSED))
    await served.settle()
    assert (await one.call(GetQuota(QuotaKind.USER, USER))).used_bytes == MIB
    assert not served.mds.leases.unreported


async def test_who_asks_while_another_is_answered_is_not_allowed_again_what_it_has_written(served: Served) -> None:
    """Both write one file. The OSTs were asked for the other before this one wrote and asked."""
    one, two = await served.client(), await served.client()
    made = (await one.call(Create(ROOT, b"f", 0o644, USER, GROUP, BOTH))).node
    assert made is not None
    fid, limit = made.attr.fid, 64 * FLOOR_BYTES
    await one.call(Commit(fid, Lease.WRITE, BOTH, True, KIB, 1, 2))
    one.holds[fid] = Holding(fid, Lease.NONE, BOTH)
    served.first.sizes[fid] = KIB
    await one.call(SetQuota(QuotaKind.USER, USER, QuotaLimits(hard_bytes=limit)))
    assert (await two.call(Open(fid, BOTH))).shared
    async with served.held_at("mds.commit.before") as held:
        other = one.call(Mkdir(ROOT, b"d", 0o755, 0, 0))
        await held.wait()
        second = two.call(GetAttr(fid, Want.LEASE))
        await turns()
        served.first.sizes[fid] = limit // 2
        first = one.call(GetAttr(fid, Want.LEASE))
        await turns()
    await other
    allowed = (await first).quota, (await second).quota
    assert served.mds.mdt.accounts.use_of((0, USER)).bytes == limit // 2
    assert allowed[0] <= limit // 16


async def test_two_who_count_at_once_mend_a_difference_once(served: Served) -> None:
    one, two = await served.client(), await served.client()
    await served.mds.journal.submit_own(lambda step: step.tx.mend_usage((0, 0, 0), 4096, 3))
    both = await asyncio.gather(one.call(CheckQuota(repair=True)), two.call(CheckQuota(repair=True)))
    assert sorted(len(answer.drifts) for answer in both) == [0, 1]
    assert (await one.call(CheckQuota())).drifts == ()
