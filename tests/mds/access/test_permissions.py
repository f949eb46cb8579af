"""Permissions as the MDS finds them are those that the kernel of this machine finds, for the same files."""

import errno
import os
import random
from pathlib import Path

import pytest
from msgspec.structs import replace

from nacrefs.common.export import Actor
from nacrefs.common.wire import Attr
from nacrefs.mds.access.permissions import may, need_owner, need_root, need_unstuck
from nacrefs.mds.inode import Inode
from nacrefs.mds.namespace.acl import (
    ACCESS,
    GROUP,
    GROUP_OBJ,
    MASK,
    OTHER,
    USER,
    USER_OBJ,
    Acl,
    AclEntry,
    bits_of,
    encode_acl,
)

IDS = (1, 2, 3)
ROOT = Actor(0, 0)
FILE = Attr(7, 0o100644, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0)


def answers_of_the_kernel(paths: list[Path], actor: Actor) -> list[int]:
    """For each file, which of the seven sets of permissions a process with these ids has (a bit for each)."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        os.setgroups(sorted(actor.groups))
        os.setresgid(actor.gid, actor.gid, actor.gid)
        os.setresuid(actor.uid, actor.uid, actor.uid)
        found = bytes(sum(os.access(path, want) << want - 1 for want in range(1, 8)) for path in paths)
        os.write(writer, found)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        words = pipe.read()
    os.waitpid(pid, 0)
    return list(words)


def random_acl(source: random.Random) -> Acl:
    users = sorted(source.sample(IDS, source.randrange(3)))
    groups = sorted(source.sample(IDS, source.randrange(3)))

    def bits() -> int:
        return source.randrange(8)

    entries = [AclEntry(USER_OBJ, bits()), *(AclEntry(USER, bits(), who) for who in users)]
    entries += [AclEntry(GROUP_OBJ, bits()), *(AclEntry(GROUP, bits(), who) for who in groups)]
    if users or groups:
        entries.append(AclEntry(MASK, bits()))
    return (*entries, AclEntry(OTHER, bits()))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be everybody in turn")
@pytest.mark.parametrize("lists", [False, True], ids=["bits", "lists"])
def test_the_kernel_agrees(tmp_path: Path, lists: bool) -> None:
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == 0 and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o111)
    source = random.Random(f"permissions {lists}")
    files: list[tuple[Path, Attr, Acl]] = []
    for number in range(120):
        path = tmp_path / f"f{number}"
        path.touch()
        uid, gid = source.choice(IDS), source.choice(IDS)
        os.chown(path, uid, gid)
        acl: Acl = random_acl(source) if lists else ()
        mode = bits_of(acl)[0] if acl else source.randrange(0o1000)
        path.chmod(mode)
        if acl and not bits_of(acl)[1]:
            try:
                os.setxattr(path, ACCESS, encode_acl(acl))
            except OSError as error:
                if error.errno == errno.EOPNOTSUPP:
                    pytest.skip("the file system below has no access control lists")
                raise
        else:
            acl = ()
        files.append((path, replace(FILE, mode=0o100000 | mode, uid=uid, gid=gid), acl))
    paths = [path for path, _, _ in files]
    for actor in (ROOT, Actor(1, 1), Actor(2, 3), Actor(3, 9, frozenset({1, 2})), Actor(9, 9), Actor(1, 9)):
        ours = [sum(may(attr, acl, actor, want) << want - 1 for want in range(1, 8)) for _, attr, acl in files]
        assert ours == answers_of_the_kernel(paths, actor), actor


def test_sticky_directories_keep_what_belongs_to_others() -> None:
    plain = Inode(replace(FILE, mode=0o040777, uid=5))
    sticky = Inode(replace(FILE, mode=0o041777, uid=5))
    victim = Inode(FILE)
    need_unstuck(plain, victim, Actor(2, 2))
    for who in (0, 1, 5):
        need_unstuck(sticky, victim, Actor(who, who))
    with pytest.raises(PermissionError) as caught:
        need_unstuck(sticky, victim, Actor(2, 2))
    assert caught.value.errno == errno.EPERM


def test_owners_and_root() -> None:
    need_owner(Inode(FILE), Actor(1, 9))
    need_owner(Inode(FILE), ROOT)
    need_root(ROOT, "do it")
    with pytest.raises(PermissionError) as caught:
        need_owner(Inode(FILE), Actor(2, 1))
    assert caught.value.errno == errno.EPERM
    with pytest.raises(PermissionError) as caught:
        need_root(Actor(1, 1), "do it")
    assert caught.value.errno == errno.EPERM
