"""Access control lists: permission bits follow them, they follow chmod, directories hand theirs down."""

import errno
import stat

import pytest

from nacrefs.common.fid import ROOT
from nacrefs.common.wire import (
    Create,
    GetAttr,
    GetXattrs,
    Mkdir,
    Mode,
    Open,
    RemoveXattr,
    Rmdir,
    Set,
    SetAttr,
    SetXattr,
    Unlink,
    Want,
)
from nacrefs.mds.namespace.acl import (
    ACCESS,
    DEFAULT,
    GROUP_OBJ,
    MASK,
    OTHER,
    USER,
    USER_OBJ,
    AclEntry,
    decode_acl,
    encode_acl,
)
from tests.mds.actions import failing
from tests.mds.world import World


def acl(owner: int, group: int, other: int, *users: tuple[int, int], mask: int | None = None) -> bytes:
    entries = [AclEntry(USER_OBJ, owner), *(AclEntry(USER, can, uid) for uid, can in users), AclEntry(GROUP_OBJ, group)]
    if mask is not None:
        entries.append(AclEntry(MASK, mask))
    return encode_acl((*entries, AclEntry(OTHER, other)))


def make(world: World, name: bytes, mode: int, umask: int = 0) -> int:
    entry = world.do(Create(ROOT, name, mode, 1, 1, Mode.CLOSED, umask=umask))
    assert entry.node is not None
    fid: int = entry.node.attr.fid
    return fid


def mode_of(world: World, fid: int) -> int:
    return stat.S_IMODE(world.do(GetAttr(fid, Want.LEASE | Want.GONE)).attr.mode)


def lists(world: World, fid: int) -> dict[bytes, bytes]:
    return dict(world.do(GetXattrs(fid)).items)


def test_a_list_sets_the_bits_and_chmod_sets_its_mask(world: World) -> None:
    fid = make(world, b"f", 0o600)
    world.do(SetXattr(fid, ACCESS, acl(6, 4, 0, (7, 7), mask=6)))
    assert mode_of(world, fid) == 0o660
    world.do(SetAttr(fid, Set.MODE, mode=0o644))
    assert lists(world, fid)[ACCESS] == acl(6, 4, 4, (7, 7), mask=4)
    assert world.findings() == []


def test_a_list_that_says_no_more_than_the_bits_is_not_kept(world: World) -> None:
    fid = make(world, b"f", 0o600)
    world.do(SetXattr(fid, ACCESS, acl(6, 4, 0, (7, 7), mask=6)))
    world.do(SetXattr(fid, ACCESS, acl(7, 5, 1)))
    assert (mode_of(world, fid), lists(world, fid)) == (0o751, {})
    world.do(RemoveXattr(fid, ACCESS))
    assert world.findings() == []


def test_setgid_goes_where_the_kernel_says_so(world: World) -> None:
    fid = make(world, b"f", 0o2770)
    world.do(SetXattr(fid, ACCESS, acl(7, 7, 0)))
    assert mode_of(world, fid) == 0o2770
    world.do(SetXattr(fid, ACCESS, acl(7, 7, 0), drop_setgid=True))
    assert mode_of(world, fid) == 0o770


def test_a_directory_hands_its_default_list_down_in_place_of_the_umask(world: World) -> None:
    default = acl(7, 5, 5, (7, 7), mask=7)
    world.do(SetXattr(ROOT, DEFAULT, default))
    fid = make(world, b"f", 0o666, umask=0o077)
    assert mode_of(world, fid) == 0o664
    assert lists(world, fid) == {ACCESS: acl(6, 5, 4, (7, 7), mask=6)}
    made = world.do(Mkdir(ROOT, b"d", 0o777, 1, 1, umask=0o077))
    assert made.node is not None
    assert lists(world, made.node.attr.fid) == {ACCESS: default, DEFAULT: default}
    world.do(RemoveXattr(ROOT, DEFAULT))
    assert mode_of(world, make(world, b"g", 0o666, umask=0o077)) == 0o600
    assert world.findings() == []


def test_only_a_directory_has_a_default_list(world: World) -> None:
    with failing(errno.EACCES):
        world.do(SetXattr(make(world, b"f", 0o600), DEFAULT, acl(7, 7, 7)))


@pytest.mark.parametrize(
    "value",
    [
        b"\2\0\0\0\1",
        encode_acl((AclEntry(USER_OBJ, 7), AclEntry(OTHER, 7))),
        encode_acl((AclEntry(USER_OBJ, 7), AclEntry(USER, 7, 5), AclEntry(GROUP_OBJ, 7), AclEntry(OTHER, 7))),
        encode_acl((AclEntry(USER_OBJ, 9), AclEntry(GROUP_OBJ, 7), AclEntry(OTHER, 7))),
        encode_acl((AclEntry(GROUP_OBJ, 7), AclEntry(USER_OBJ, 7), AclEntry(OTHER, 7))),
        encode_acl((AclEntry(99, 7), AclEntry(USER_OBJ, 7), AclEntry(GROUP_OBJ, 7), AclEntry(OTHER, 7))),
    ],
)
def test_what_is_no_list_is_refused(value: bytes) -> None:
    with failing(errno.EINVAL):
        decode_acl(value)


def test_a_removed_file_has_attributes_for_who_asks_for_no_more(world: World) -> None:
    fid = make(world, b"f", 0o644)
    world.do(Unlink(ROOT, b"f", fid, False))
    attr = world.do(GetAttr(fid, Want.GONE)).attr
    assert (attr.nlink, attr.mode & 0o7777) == (0, 0o644)
    world.do(SetAttr(fid, Set.MODE, mode=0o600))
    assert mode_of(world, fid) == 0o600
    for request in (GetAttr(fid, Want.DATA), Open(fid, Mode.READ), SetAttr(fid, Set.SIZE, size=0)):
        with failing(errno.ESTALE):
            world.do(request)
    assert world.findings() == []


def test_a_removed_directory_still_has_attributes_and_takes_no_names(world: World) -> None:
    made = world.do(Mkdir(ROOT, b"d", 0o755, 1, 1))
    assert made.node is not None
    fid = made.node.attr.fid
    world.do(Rmdir(ROOT, b"d"))
    assert world.do(GetAttr(fid)).attr.nlink == 0
    world.do(SetAttr(fid, Set.MODE, mode=0o700))
    assert mode_of(world, fid) == 0o700
    with failing(errno.ENOENT):
        world.do(Mkdir(fid, b"x", 0o755, 1, 1))
    assert world.findings() == []
