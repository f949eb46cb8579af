"""Keys that are limited: what they may see, change and be, at a real MDS and real OSTs, whatever the client says.

`guest` is a client program of ours under a limited key; `stranger` is one that says whatever it likes.
"""

import errno
import os
from collections.abc import AsyncGenerator, Callable
from inspect import isawaitable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nacrefs.client.identity import Caller, asking
from nacrefs.client.vfs import Vfs
from nacrefs.common.answer import settle
from nacrefs.common.auth import Credentials, Key
from nacrefs.common.codec import encode
from nacrefs.common.export import Export
from nacrefs.common.fid import ROOT
from nacrefs.common.layout import LayoutSpec
from nacrefs.common.observe import Meter
from nacrefs.common.remote import Remote
from nacrefs.common.rpc import Call
from nacrefs.common.wire import (
    Access,
    As,
    Attach,
    Commit,
    Create,
    Done,
    Evicted,
    GetAttr,
    GetHsm,
    GetParent,
    GetXattr,
    GetXattrs,
    HsmAction,
    HsmRequest,
    Inspect,
    Lease,
    Link,
    ListQuotas,
    LockKind,
    LockStyle,
    Lookup,
    Mkdir,
    Mknod,
    Mode,
    Open,
    OpenDirect,
    Readdir,
    Recall,
    Recalled,
    Rename,
    Request,
    Right,
    Rmdir,
    Session,
    Set,
    SetAttr,
    SetHsm,
    SetLayout,
    SetLock,
    SetPool,
    SetXattr,
    Statfs,
    Symlink,
    Unlink,
    Want,
)
from tests.client.world import CRED, World, cluster, read_file, write_file

SECRET = "5e" * 32
ALICE, BOB = 1000, 1001
BOTH = Mode.READ | Mode.WRITE
ALL = Want.LEASE | Want.LAYOUT | Want.DATA


@pytest.fixture
async def world(tmp_path: Path) -> AsyncGenerator[World]:
    async with cluster(tmp_path) as made:
        yield made


def limit(world: World, export: Export, name: str = "guest") -> Credentials:
    """A limited key that the servers know; a second one of the same name takes its place."""
    keys = {**world.keyring.keys, name: Key("client", SECRET, export=export)}
    world.keyring = msgspec.structs.replace(world.keyring, keys=keys)
    world.mds.change_keyring(world.keyring)
    for oss in world.oss:
        oss.change_keyring(world.keyring)
    return Credentials(world.keyring.cluster, name, bytes.fromhex(SECRET))


async def guest(world: World, export: Export) -> Vfs:
    """A client under a limited key."""
    config = msgspec.structs.replace(world.clients[0].config)
    vfs = await Vfs(config, limit(world, export)).attach()
    world.clients.append(vfs)
    return vfs


class Stranger:
    """A program that has a limited key, and no manners: it asks what the test says, as whom the test says."""

    def __init__(self, world: World, credentials: Credentials) -> None:
        self.evicted: list[str] = []
        self.remote = Remote(
            world.mds.url, credentials, "stranger", {Recall: self._recall, Evicted: self._evicted}, Meter()
        )
        self.session: Session

    def _recall(self, request: Recall, call: Call) -> Recalled:
        return Recalled(())

    def _evicted(self, request: Evicted, call: Call) -> Done:
        self.evicted.append(request.reason)
        return Done()

    async def __aenter__(self) -> "Stranger":
        await self.remote.open()
        self.session = await self.remote.call(Attach("stranger", "nowhere"))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.remote.aclose()

    def as_(self, uid: int, request: Request[Any], *groups: int) -> Any:
        """Ask for somebody; the reply is what the request in it is answered with."""
        inner = encode(request)
        self.remote.wrap = lambda asked, body: encode(As(uid, uid, groups, inner)) if asked is request else body
        return self.remote.call(request)


async def refused(coming: Any, *numbers: int) -> None:
    with pytest.raises(OSError, match=r".") as caught:
        await (coming if isawaitable(coming) else settle(coming))
    assert caught.value.errno in numbers, caught.value


async def tree(world: World) -> dict[str, int]:
    """/proj/a (file, link, sub), and /secret beside it; by name."""
    vfs = await world.vfs()

    async def directory(parent: int, name: bytes, mode: int = 0o755) -> int:
        found = await settle(vfs.mkdir(parent, name, mode, CRED))
        assert found.attr is not None
        return found.attr.fid

    proj = await directory(vfs.root, b"proj")
    mine = await directory(proj, b"a")
    sub = await directory(mine, b"sub")
    file = await write_file(vfs, mine, b"file", b"mine")
    big = await write_file(vfs, mine, b"big", bytes(1 << 20))
    secret = await write_file(vfs, vfs.root, b"secret", b"theirs")
    beside = await write_file(vfs, proj, b"beside", b"theirs")
    return {
        "root": vfs.root, "proj": proj, "a": mine, "sub": sub, "file": file, "big": big, "secret": secret,
        "beside": beside,
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- subtrees


async def test_a_subtree_is_all_that_its_key_sees(world: World) -> None:
    fids = await tree(world)
    vfs = await guest(world, Export(path="/proj/a"))
    assert vfs.root == fids["a"]
    assert await read_file(vfs, vfs.root, b"file") == b"mine"
    await write_file(vfs, vfs.root, b"new", b"x")
    above = await settle(vfs.lookup(vfs.root, b".."))
    assert above.attr is not None
    assert above.attr.fid == vfs.root
    assert await settle(vfs.getxattr(fids["file"], b"nacre.path")) == b"/file"
    assert await settle(vfs.getxattr(vfs.root, b"nacre.path")) == b"/"


OUTSIDE: dict[str, Callable[[dict[str, int]], Request[Any]]] = {
    "Lookup": lambda fids: Lookup(fids["proj"], b"beside"),
    "Lookup-root": lambda fids: Lookup(ROOT, b"secret", ALL),
    "GetAttr": lambda fids: GetAttr(fids["secret"], ALL),
    "Access": lambda fids: Access(fids["secret"], 4),
    "GetParent": lambda fids: GetParent(fids["proj"]),
    "Readdir": lambda fids: Readdir(ROOT),
    "Open": lambda fids: Open(fids["beside"], Mode.READ),
    "OpenDirect": lambda fids: OpenDirect(fids["secret"], Mode.READ, Right.READ),
    "Commit": lambda fids: Commit(fids["secret"], Lease.NONE, BOTH, True, 3, 3, 8, b"bad"),
    "SetAttr": lambda fids: SetAttr(fids["secret"], Set.SIZE),
    "Create": lambda fids: Create(fids["proj"], b"x", 0o644, 0, 0, BOTH),
    "Mknod": lambda fids: Mknod(ROOT, b"x", 0o10644, 0, 0, 0),
    "Mkdir": lambda fids: Mkdir(ROOT, b"x", 0o755, 0, 0),
    "Symlink": lambda fids: Symlink(ROOT, b"x", b"y", 0, 0),
    "Link-from": lambda fids: Link(fids["secret"], fids["a"], b"got"),
    "Link-to": lambda fids: Link(fids["file"], fids["proj"], b"given"),
    "Unlink": lambda fids: Unlink(ROOT, b"secret"),
    "Rmdir": lambda fids: Rmdir(ROOT, b"proj"),
    "Rename-from": lambda fids: Rename(fids["proj"], b"beside", fids["a"], b"got"),
    "Rename-to": lambda fids: Rename(fids["a"], b"file", ROOT, b"given"),
    "GetXattrs": lambda fids: GetXattrs(fids["secret"]),
    "GetXattr": lambda fids: GetXattr(fids["secret"], b"nacre.path"),
    "SetXattr": lambda fids: SetXattr(fids["secret"], b"user.a", b"1"),
    "SetLayout": lambda fids: SetLayout(fids["proj"], LayoutSpec(2)),
    "Statfs": lambda fids: Statfs(fids["proj"]),
    "SetLock": lambda fids: SetLock(fids["secret"], 1, LockStyle.POSIX, LockKind.WRITE, 0, 9, 1),
    "GetHsm": lambda fids: GetHsm((fids["file"], fids["secret"])),
    "HsmRequest": lambda fids: HsmRequest(HsmAction.ARCHIVE, (fids["secret"],)),
    "never-was": lambda fids: GetAttr(0x7FFF_FFFF),
}


@pytest.mark.parametrize("name", OUTSIDE)
async def test_what_lies_outside_of_a_subtree_does_not_exist(world: World, name: str) -> None:
    fids = await tree(world)
    before = await settle(world.clients[0].getattr(fids["secret"]))
    async with Stranger(world, limit(world, Export(path="/proj/a"))) as stranger:
        await refused(stranger.remote.call(OUTSIDE[name](fids)), errno.ESTALE)
    assert (await settle(world.clients[0].getattr(fids["secret"]))).attr == before.attr


async def test_a_subtree_s_key_mounts_only_below_its_path(world: World) -> None:
    fids = await tree(world)
    credentials = limit(world, Export(path="/proj/a"))
    async with Stranger(world, credentials) as stranger:
        for path, expected in ((b"/", "a"), (b"/proj/a", "a"), (b"/proj/a/sub", "sub"), (b"//proj/./a//", "a")):
            assert (await stranger.remote.call(Attach("stranger", "h", 0, path))).root == fids[expected]
        for path in (b"/proj", b"/proj/b", b"/secret", b"/proj/ab", b"/proj/a/../..", b"/proj/a/none"):
            await refused(stranger.remote.call(Attach("stranger", "h", 0, path)), errno.EACCES, errno.ENOENT)


async def test_a_file_that_is_moved_out_of_a_subtree_is_out_of_reach(world: World) -> None:
    fids = await tree(world)
    owner = world.clients[0]
    async with Stranger(world, limit(world, Export(path="/proj/a"))) as stranger:
        await stranger.remote.call(GetAttr(fids["file"]))
        await stranger.remote.call(Readdir(fids["sub"]))
        await settle(owner.rename(fids["a"], b"file", fids["root"], b"file", 0))  # type: ignore[arg-type]
        await settle(owner.rename(fids["a"], b"sub", fids["root"], b"sub", 0))  # type: ignore[arg-type]
        await refused(stranger.remote.call(GetAttr(fids["file"])), errno.ESTALE)
        await refused(stranger.remote.call(Readdir(fids["sub"])), errno.ESTALE)


async def test_of_a_file_with_names_inside_and_outside_the_inner_one_is_shown(world: World) -> None:
    fids = await tree(world)
    await settle(world.clients[0].link(fids["secret"], fids["a"], b"zz"))
    async with Stranger(world, limit(world, Export(path="/proj/a"))) as stranger:
        answer = await stranger.remote.call(GetXattr(fids["secret"], b"nacre.path"))
        assert answer.value == b"/zz"


async def test_an_export_of_a_directory_that_does_not_exist_says_so(world: World) -> None:
    await world.vfs()
    with pytest.raises(FileNotFoundError, match="no directory '/none'"):
        await guest(world, Export(path="/none"))


# ------------------------------------------------------------------------------------------------------------ read-only

CHANGING: dict[str, Callable[[dict[str, int]], Request[Any]]] = {
    "Open": lambda fids: Open(fids["file"], Mode.WRITE),
    "Open-truncate": lambda fids: Open(fids["file"], Mode.READ, True),
    "OpenDirect": lambda fids: OpenDirect(fids["big"], BOTH, Right.READ | Right.WRITE),
    "Commit": lambda fids: Commit(fids["file"], Lease.NONE, Mode.CLOSED, True, 3, 3, 8, b"bad"),
    "Commit-mode": lambda fids: Commit(fids["file"], Lease.NONE, BOTH),
    "SetAttr": lambda fids: SetAttr(fids["file"], Set.MODE, 0o777),
    "Create": lambda fids: Create(fids["a"], b"x", 0o644, 0, 0, Mode.READ),
    "Create-existing": lambda fids: Create(fids["a"], b"file", 0o644, 0, 0, BOTH),
    "Mknod": lambda fids: Mknod(ROOT, b"x", 0o10644, 0, 0, 0),
    "Mkdir": lambda fids: Mkdir(ROOT, b"x", 0o755, 0, 0),
    "Symlink": lambda fids: Symlink(ROOT, b"x", b"y", 0, 0),
    "Link": lambda fids: Link(fids["file"], ROOT, b"again"),
    "Unlink": lambda fids: Unlink(ROOT, b"secret"),
    "Rmdir": lambda fids: Rmdir(fids["a"], b"sub"),
    "Rename": lambda fids: Rename(ROOT, b"secret", ROOT, b"other"),
    "SetXattr": lambda fids: SetXattr(fids["file"], b"user.a", b"1"),
    "SetLayout": lambda fids: SetLayout(fids["a"], LayoutSpec(2)),
    "HsmRequest": lambda fids: HsmRequest(HsmAction.ARCHIVE, (fids["file"],)),
    "SetHsm": lambda fids: SetHsm((fids["file"],), 0x10),
}


@pytest.mark.parametrize("name", CHANGING)
async def test_a_read_only_key_changes_nothing(world: World, name: str) -> None:
    fids = await tree(world)
    async with Stranger(world, limit(world, Export(read_only=True))) as stranger:
        await refused(stranger.remote.call(CHANGING[name](fids)), errno.EROFS)


async def test_a_read_only_key_reads_and_its_capabilities_are_for_reading(world: World) -> None:
    fids = await tree(world)
    vfs = await guest(world, Export(read_only=True))
    assert await read_file(vfs, fids["a"], b"file") == b"mine"
    assert len(await read_file(vfs, fids["a"], b"big")) == 1 << 20
    capability = vfs.cache.inodes[fids["big"]].capability
    assert capability is not None
    assert capability.rights == Right.READ
    await refused(vfs.open(fids["file"], os.O_RDWR), errno.EROFS)
    await refused(vfs.create(fids["a"], b"file", 0o644, os.O_WRONLY, CRED), errno.EROFS)
    await refused(vfs.mkdir(fids["a"], b"x", 0o755, CRED), errno.EROFS)
    found, _ = await settle(vfs.create(fids["a"], b"file", 0o644, os.O_RDONLY | os.O_CREAT, CRED))
    assert found.attr is not None
    assert found.attr.fid == fids["file"]


# ---------------------------------------------------------------------------------------------------------- who is who


async def shared(world: World) -> dict[str, int]:
    """A directory for everybody, with files of Alice's and root's in it, and a closed one of Alice's."""
    vfs = await world.vfs()
    fids: dict[str, int] = {}
    for name, uid, mode in (("open", 0, 0o1777), ("closed", ALICE, 0o700)):
        found = await settle(vfs.mkdir(vfs.root, name.encode(), mode, CRED._replace(uid=uid, gid=uid)))
        assert found.attr is not None
        fids[name] = found.attr.fid
    for name, parent, uid, mode in (
        ("alice", "open", ALICE, 0o600), ("root", "open", 0, 0o644), ("roots-own", "open", 0, 0o600),
        ("hidden", "closed", ALICE, 0o644), ("program", "open", 0, 0o711),
    ):  # fmt: skip
        who = CRED._replace(uid=uid, gid=uid)
        found, handle = await settle(vfs.create(fids[parent], name.encode(), mode, os.O_RDWR | os.O_CREAT, who))
        assert found.attr is not None
        await settle(vfs.write(handle.number, 0, memoryview(b"contents")))
        await settle(vfs.flush(handle.number))
        await settle(vfs.release(handle.number))
        fids[name] = found.attr.fid
    await vfs.store.write_out_all()
    return fids


async def test_root_is_squashed(world: World) -> None:
    fids = await shared(world)
    async with Stranger(world, limit(world, Export(squash="root", anon_uid=99, anon_gid=98))) as stranger:
        made = (await stranger.as_(0, Create(fids["open"], b"new", 0o644, 0, 0, BOTH))).node
        assert (made.attr.uid, made.attr.gid) == (99, 98)
        await refused(stranger.as_(0, Open(fids["alice"], Mode.READ)), errno.EACCES)
        await refused(stranger.as_(0, Open(fids["root"], Mode.WRITE)), errno.EACCES)
        await refused(stranger.as_(0, Unlink(fids["open"], b"root")), errno.EPERM)
        await refused(stranger.as_(0, SetAttr(fids["root"], Set.MODE, 0o777)), errno.EPERM)
        await refused(stranger.as_(0, SetAttr(made.attr.fid, Set.UID, uid=0)), errno.EPERM)
        await refused(stranger.as_(0, Mknod(fids["open"], b"dev", 0o60600, 8, 0, 0)), errno.EPERM)
        await refused(stranger.as_(0, SetXattr(fids["root"], b"trusted.a", b"1")), errno.EPERM)
        await refused(stranger.as_(0, Lookup(fids["closed"], b"hidden")), errno.EACCES)
        await refused(stranger.as_(0, Readdir(fids["closed"])), errno.EACCES)
        await refused(stranger.as_(0, Access(fids["closed"], 1)), errno.EACCES)
        assert await stranger.as_(0, Open(fids["root"], Mode.READ))
        assert await stranger.as_(0, SetAttr(made.attr.fid, Set.MODE, 0o600))
        # Who does not say who he is is nobody.
        await refused(stranger.remote.call(Open(fids["alice"], Mode.READ)), errno.EACCES)


async def test_users_are_who_they_are_and_no_more(world: World) -> None:
    fids = await shared(world)
    async with Stranger(world, limit(world, Export(squash="root"))) as stranger:
        assert await stranger.as_(ALICE, Open(fids["alice"], BOTH))
        assert (await stranger.as_(ALICE, Lookup(fids["closed"], b"hidden"))).node is not None
        made = (await stranger.as_(ALICE, Create(fids["open"], b"new", 0o644, BOB, BOB, BOTH))).node
        assert (made.attr.uid, made.attr.gid) == (ALICE, ALICE)
        await stranger.as_(ALICE, Commit(made.attr.fid, Lease.NONE, Mode.CLOSED))
        await refused(stranger.as_(BOB, Open(fids["root"], Mode.WRITE)), errno.EACCES)
        await refused(stranger.as_(BOB, Lookup(fids["closed"], b"hidden")), errno.EACCES)
        await refused(stranger.as_(BOB, Rename(fids["open"], b"new", fids["open"], b"bobs")), errno.EPERM)
        await refused(stranger.as_(BOB, SetAttr(made.attr.fid, Set.UID, uid=BOB)), errno.EPERM)
        await refused(stranger.as_(BOB, SetAttr(made.attr.fid, Set.SIZE)), errno.EACCES)
        await refused(stranger.as_(ALICE, SetAttr(made.attr.fid, Set.GID, gid=50)), errno.EPERM)
        moved = await stranger.as_(ALICE, SetAttr(made.attr.fid, Set.GID, gid=50), 50)
        assert moved.attr.gid == 50
        setgid = await stranger.as_(ALICE, SetAttr(made.attr.fid, Set.MODE, 0o2755))
        assert setgid.attr.mode & 0o7777 == 0o755
        assert (await stranger.as_(ALICE, Unlink(fids["open"], b"new"))).victim.nlink == 0


async def test_contents_and_capabilities_are_for_who_may_read(world: World) -> None:
    fids = await shared(world)
    async with Stranger(world, limit(world, Export(check=True))) as stranger:
        seen = await stranger.as_(BOB, GetAttr(fids["alice"], ALL))
        assert seen.data is None
        assert seen.capability is None or not seen.capability.rights & (Right.READ | Right.WRITE)
        assert (await stranger.as_(ALICE, GetAttr(fids["alice"], ALL))).data == b"contents"
        assert (await stranger.as_(BOB, GetAttr(fids["program"], ALL))).data == b"contents"  # he may execute it
        listing = await stranger.as_(BOB, Readdir(fids["open"], want=ALL))
        data = {entry.name: entry.data for entry in listing.entries}
        assert data == {b"alice": None, b"program": b"contents", b"root": b"contents", b"roots-own": None}
        assert (await stranger.as_(0, GetAttr(fids["alice"], ALL))).data == b"contents"  # nobody is squashed here


async def test_nobody_becomes_a_writer_by_saying_so(world: World) -> None:
    fids = await shared(world)
    async with Stranger(world, limit(world, Export(check=True))) as stranger:
        await stranger.as_(BOB, GetAttr(fids["root"], ALL))
        await refused(stranger.as_(BOB, Commit(fids["root"], Lease.NONE, BOTH)), errno.EACCES)
        await refused(
            stranger.as_(BOB, Commit(fids["root"], Lease.WRITE, Mode.CLOSED, True, 3, 3, 8, b"bad")), errno.ESTALE
        )
        await refused(stranger.as_(BOB, OpenDirect(fids["root"], BOTH, Right.READ | Right.WRITE)), errno.EACCES)
    assert await read_file(world.clients[0], fids["open"], b"root") == b"contents"


async def test_secret_attributes_are_not_shown(world: World) -> None:
    fids = await shared(world)
    vfs = world.clients[0]
    for name in (b"user.a", b"trusted.b", b"security.c"):
        await vfs.setxattr(fids["alice"], name, b"1", 0)  # type: ignore[arg-type]
    async with Stranger(world, limit(world, Export(check=True))) as stranger:

        async def names(uid: int) -> tuple[list[bytes], bool]:
            shown = await stranger.as_(uid, GetXattrs(fids["alice"]))
            return [name for name, _ in shown.items], shown.partial

        assert await names(BOB) == ([b"security.c"], True)
        assert await names(ALICE) == ([b"security.c", b"user.a"], True)
        assert await names(0) == ([b"security.c", b"trusted.b", b"user.a"], False)
        await refused(stranger.as_(BOB, GetXattr(fids["alice"], b"user.a")), errno.EACCES)


async def test_a_user_s_key_is_that_user_s(world: World) -> None:
    fids = await shared(world)
    async with Stranger(world, limit(world, Export(uids=(str(ALICE),)))) as stranger:
        assert await stranger.as_(ALICE, Open(fids["alice"], Mode.READ))
        for uid in (0, BOB):
            await refused(stranger.as_(uid, Open(fids["roots-own"], Mode.READ)), errno.EACCES)
            await refused(stranger.as_(uid, Unlink(fids["open"], b"alice")), errno.EPERM)


async def test_our_own_client_keeps_to_a_squash_in_spite_of_its_caches(world: World) -> None:
    fids = await shared(world)
    vfs = await guest(world, Export(squash="root"))
    asking.set(Caller(ALICE, ALICE, 0))
    assert await read_file(vfs, fids["closed"], b"hidden") == b"contents"
    handle = await settle(vfs.opendir(fids["closed"]))
    await settle(vfs.readdir(handle.number, 0))
    asking.set(Caller(0, 0, 0))
    await refused(vfs.lookup(fids["closed"], b"hidden"), errno.EACCES)
    await refused(vfs.opendir(fids["closed"]), errno.EACCES)
    await refused(vfs.open(fids["alice"], os.O_RDONLY), errno.EACCES)
    await refused(vfs.unlink(fids["closed"], b"hidden"), errno.EACCES)
    asking.set(Caller(ALICE, ALICE, 0))
    assert await read_file(vfs, fids["closed"], b"hidden") == b"contents"
    handle = await settle(vfs.open(fids["alice"], os.O_RDWR))
    assert await settle(vfs.write(handle.number, 0, memoryview(b"CONT"))) == 4
    await settle(vfs.flush(handle.number))
    await settle(vfs.release(handle.number))
    assert await read_file(vfs, fids["open"], b"alice") == b"CONTents"
    await vfs.store.write_out_all()
    assert await read_file(world.clients[0], fids["open"], b"alice") == b"CONTents"


# ----------------------------------------------------------------------------------------------------- rights of others


async def test_a_limited_key_does_not_hear_of_the_whole(world: World) -> None:
    await world.vfs()
    async with Stranger(world, limit(world, Export(path="/"))) as free:
        assert (await free.remote.call(Inspect("status"))).report
    async with Stranger(world, limit(world, Export(read_only=True))) as stranger:
        for request in (Inspect("status"), ListQuotas(0), SetPool("p", ())):  # type: ignore[arg-type]
            await refused(stranger.remote.call(request), errno.EACCES)


async def test_a_request_in_a_request_in_a_request_is_refused(world: World) -> None:
    await world.vfs()
    for export in (Export(), Export(check=True)):
        async with Stranger(world, limit(world, export)) as stranger:
            inner = encode(As(0, 0, (), encode(SetPool("p", ()))))
            await refused(stranger.remote.call(As(0, 0, (), inner)), errno.EPROTO)
            await refused(stranger.remote.call(As(0, 0, (), b"garbage")), errno.EPROTO)
            await refused(stranger.remote.call(As(0, 0, (), encode(SetPool("p", ())))), errno.EACCES)


async def test_a_session_is_taken_up_again_only_under_its_owner_s_key(world: World) -> None:
    vfs = await world.vfs()
    number, name = vfs.session.number, vfs.session.client
    async with Stranger(world, limit(world, Export(read_only=True))) as stranger:
        answer = await stranger.remote.call(Attach(name, "nowhere", number))
        assert not answer.resumed
        assert answer.session != number
    assert number in world.mds.mds.sessions.by_id


async def test_a_key_that_is_revoked_or_changed_ends_its_sessions(world: World) -> None:
    await world.vfs()
    for after in (Export(read_only=True), None):
        async with Stranger(world, limit(world, Export())) as stranger:
            if after is not None:
                limit(world, after)
            else:
                keys = {name: key for name, key in world.keyring.keys.items() if name != "guest"}
                world.mds.change_keyring(msgspec.structs.replace(world.keyring, keys=keys))
            assert stranger.session.session not in world.mds.mds.sessions.by_id or (
                world.mds.mds.sessions.by_id[stranger.session.session].gone
            )
