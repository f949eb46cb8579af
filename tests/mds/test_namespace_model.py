"""Any sequence of operations, batched and interrupted anyhow, gives the tree that the model gives, and a whole one."""

import copy
import itertools
import stat
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,  # pyright: ignore[reportUnknownVariableType]
)

from nacrefs.common.fid import ROOT
from nacrefs.common.wire import (
    Commit,
    Create,
    GetAttr,
    GetParent,
    GetXattrs,
    Lease,
    Link,
    Lookup,
    Mkdir,
    Mknod,
    Mode,
    Open,
    Readdir,
    RemoveXattr,
    Rename,
    RenameFlag,
    Rmdir,
    Set,
    SetAttr,
    SetXattr,
    Symlink,
    Unlink,
    Want,
    XattrFlag,
)
from tests.mds.world import INLINE_BYTES, START_NS, World
from tests.mdt import make_mdt
from tests.model import Inode, Namespace
from tests.postgres import new_database

NAMES = st.sampled_from([b"a", b"b", b"c", b"\xff\xfe"])
PICK = st.integers(0, 1000)
MODES = st.sampled_from([0o644, 0o755, 0o2775, 0o4755, 0o1777])
IDS = st.sampled_from([0, 1000])
SIZES = st.sampled_from([0, 1, 100, INLINE_BYTES, INLINE_BYTES + 1])
FLAGS = st.sampled_from([0, 0, 0, 1, 2])
ALL = Want.LEASE | Want.LAYOUT | Want.DATA


class Comparison(RuleBasedStateMachine):
    """Drives an MDT and the model alike."""

    urls: ClassVar[Iterator[str]]

    @initialize()
    def start(self) -> None:
        self.world = World(next(self.urls), cache_bytes=20_000, formatted=True)
        self.session = self.world.session()
        self.model = Namespace()
        self.fids: dict[int, int] = {id(self.model.root): ROOT}
        self.open: list[Inode] = []
        for pick in range(3):  # something to begin with
            for name, kind in ((b"a", "directory"), (b"b", "directory"), (b"c", "file")):
                self.make(pick, name, 0o755, 0, 0, kind)
        self.commit()
        self.saved = self._state()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            try:
                self.commit()
            finally:
                self.world.close()

    # ------------------------------------------------------------------------------------------------ model and fids

    def _state(self) -> Any:
        """A copy of the model, with fids by inode of the copy."""
        inodes = {id(inode): inode for inode in self._inodes()}
        pairs = [(inode, self.fids[key]) for key, inode in inodes.items()]
        return copy.deepcopy((self.model, pairs, self.open))

    def _restore(self) -> None:
        self.model, pairs, self.open = copy.deepcopy(self.saved)
        self.fids = {id(inode): fid for inode, fid in pairs}
        self.kept = [inode for inode, _ in pairs]  # ids stay theirs

    def _inodes(self) -> list[Inode]:
        """All inodes, the root first; open ones without a name too."""
        found: dict[int, Inode] = {}
        pending = [self.model.root, *self.open]
        while pending:
            inode = pending.pop(0)
            if id(inode) not in found:
                found[id(inode)] = inode
                pending.extend(inode.entries[name] for name in sorted(inode.entries))
        return list(found.values())

    def _any(self, pick: int) -> Inode:
        inodes = self._inodes()
        return inodes[pick % len(inodes)]

    def _directory(self, pick: int) -> Inode:
        directories = [inode for inode in self._inodes() if inode.is_directory]
        return directories[pick % len(directories)]

    def _entry(self, parent: Inode, pick: int) -> bytes:
        """A name: mostly one that stands for something."""
        names = sorted(parent.entries) if pick % 5 else []
        return names[pick % len(names)] if names else b"nothing"

    def _file(self, pick: int) -> Inode | None:
        files = [inode for inode in self._inodes() if inode.is_regular]
        return files[pick % len(files)] if files else None

    def _fid(self, inode: Inode) -> int:
        return self.fids[id(inode)]

    def _both(self, request: Any, operation: Any, *arguments: Any) -> tuple[Any, Any] | None:
        """Execute the request and the model's operation: both results, or None if both failed with the same errno."""
        number, expected = _attempt(operation, *arguments)
        seen, reply = _attempt(self.world.batched, request, self.session)
        assert seen == number, reply
        return None if number else (reply, expected)

    # --------------------------------------------------------------------------------------------------------- rules

    @rule(pick=PICK, name=NAMES, mode=MODES, uid=IDS, gid=IDS, kind=st.sampled_from(["file", "fifo", "directory"]))
    def make(self, pick: int, name: bytes, mode: int, uid: int, gid: int, kind: str) -> None:
        parent = self._directory(pick)
        fid = self._fid(parent)
        if kind == "file":
            request: Any = Create(fid, name, mode, uid, gid, Mode.WRITE, exclusive=True)
            mode |= stat.S_IFREG
        elif kind == "fifo":
            mode |= stat.S_IFIFO
            request = Mknod(fid, name, mode, 0, uid, gid)
        else:
            mode |= stat.S_IFDIR
            request = Mkdir(fid, name, mode, uid, gid)
        both = self._both(request, self.model.make, parent, name, mode, uid, gid)
        if both is not None:
            reply, inode = both
            self.fids[id(inode)] = reply.node.attr.fid
            if kind == "file":
                assert reply.node.lease == Lease.WRITE
                self.open.append(inode)

    @rule(pick=PICK, name=NAMES, goal=st.sampled_from([b"", b"x", b"y" * 4095]))
    def symlink(self, pick: int, name: bytes, goal: bytes) -> None:
        parent = self._directory(pick)
        request = Symlink(self._fid(parent), name, goal, 1, 2)
        both = self._both(request, self.model.symlink, parent, name, goal, 1, 2)
        if both is not None:
            self.fids[id(both[1])] = both[0].node.attr.fid

    @rule(pick=PICK, pick_parent=PICK, name=NAMES)
    def link(self, pick: int, pick_parent: int, name: bytes) -> None:
        inode, parent = self._any(pick), self._directory(pick_parent)
        self._both(Link(self._fid(inode), self._fid(parent), name), self.model.link, inode, parent, name)

    def _is_open(self, inode: Inode | None) -> bool:
        return any(inode is other for other in self.open)

    @rule(pick=PICK, entry=PICK, knows=st.booleans())
    def unlink(self, pick: int, entry: int, knows: bool) -> None:
        parent = self._directory(pick)
        name = self._entry(parent, entry)
        victim = parent.entries.get(name)
        expected = self._fid(victim) if victim is not None and knows else 0
        request = Unlink(self._fid(parent), name, expected, self._is_open(victim) and knows)
        both = self._both(request, self.model.unlink, parent, name)
        if both is not None:
            self._removed(both[0], both[1])

    def _removed(self, removed: Any, inode: Inode) -> None:
        fid = self._fid(inode)
        assert removed.victim.fid == fid
        assert removed.victim.nlink == (0 if inode.is_directory else inode.links)
        if not inode.links and inode.is_regular:
            if self._is_open(inode):
                assert removed.orphan
            elif removed.orphan:  # it could not know that nobody has it open
                self.world.batched(Commit(fid, Lease.NONE, Mode.CLOSED), self.session)

    @rule(pick=PICK, entry=PICK)
    def rmdir(self, pick: int, entry: int) -> None:
        parent = self._directory(pick)
        name = self._entry(parent, entry)
        self._both(Rmdir(self._fid(parent), name), self.model.rmdir, parent, name)

    @rule(pick=PICK, entry=PICK, target_pick=PICK, new_entry=PICK, flags=FLAGS, knows=st.booleans())
    def rename(self, pick: int, entry: int, target_pick: int, new_entry: int, flags: int, knows: bool) -> None:
        parent, new_parent = self._directory(pick), self._directory(target_pick)
        name, new_name = self._entry(parent, entry), self._entry(new_parent, new_entry)
        other = new_parent.entries.get(new_name)
        expected = self._fid(other) if other is not None and knows else 0
        opened = self._is_open(other) and knows
        request = Rename(self._fid(parent), name, self._fid(new_parent), new_name, RenameFlag(flags), expected, opened)
        both = self._both(request, self.model.rename, parent, name, new_parent, new_name, flags)
        if both is not None:
            reply, replaced = both
            assert (reply.removed is None) == (replaced is None)
            if replaced is not None:
                self._removed(reply.removed, replaced)

    @rule(pick=PICK, mode=MODES, uid=IDS, kill=st.booleans())
    def change_mode(self, pick: int, mode: int, uid: int, kill: bool) -> None:
        inode = self._any(pick)
        if inode.is_symlink:
            return
        valid = Set.MODE | Set.UID | (Set.KILL_PRIVILEGES if kill else Set(0))
        self.world.batched(SetAttr(self._fid(inode), valid, mode=mode, uid=uid), self.session)
        if kill and inode.is_regular:
            mode &= ~(0o6000 if mode & 0o010 else 0o4000)
        inode.mode, inode.uid = stat.S_IFMT(inode.mode) | mode, uid

    @rule(pick=PICK, size=st.one_of(SIZES, st.just(-1)))
    def truncate(self, pick: int, size: int) -> None:
        inode = self._any(pick)
        request = SetAttr(self._fid(inode), Set.SIZE, size=size)
        self._both(request, self.model.truncate, inode, size)

    @rule(pick=PICK, size=SIZES)
    def write(self, pick: int, size: int) -> None:
        inode = self._file(pick)
        if inode is None or size > INLINE_BYTES:
            return
        fid = self._fid(inode)
        opened = self.world.batched(Open(fid, Mode.WRITE), self.session)
        assert opened.lease == Lease.WRITE
        assert opened.data is not None
        assert bytes(inode.contents) == opened.data.ljust(len(inode.contents), b"\0")
        contents = bytes([size % 251]) * size
        mode = Mode.WRITE if self._is_open(inode) else Mode.CLOSED
        request = Commit(fid, Lease.WRITE, mode, True, size, self.world.now_ns, data=contents or None)
        self.world.batched(request, self.session)
        inode.contents[:] = contents

    @precondition(lambda self: self.open)
    @rule(pick=PICK)
    def close(self, pick: int) -> None:
        inode = self.open.pop(pick % len(self.open))
        if not self._is_open(inode):
            self.world.batched(Commit(self._fid(inode), Lease.WRITE, Mode.CLOSED), self.session)

    @rule(
        pick=PICK, name=st.sampled_from([b"user.x", b"user.y"]), size=st.sampled_from([0, 9]), flags=st.integers(0, 2)
    )
    def set_xattr(self, pick: int, name: bytes, size: int, flags: int) -> None:
        inode = self._any(pick)
        request = SetXattr(self._fid(inode), name, b"v" * size, XattrFlag(flags))
        self._both(request, self.model.set_xattr, inode, name, b"v" * size, flags)

    @rule(pick=PICK, name=st.sampled_from([b"user.x", b"user.y"]))
    def remove_xattr(self, pick: int, name: bytes) -> None:
        inode = self._any(pick)
        self._both(RemoveXattr(self._fid(inode), name), self.model.remove_xattr, inode, name)

    @rule()
    def commit(self) -> None:
        self.world.commit()
        self.saved = self._state()
        assert self.world.findings() == []

    @rule(restart=st.booleans())
    def crash(self, restart: bool) -> None:
        if restart:
            self.world.reopen()
        else:
            self.world.abandon()
        self._restore()
        for inode in self.open:  # as a client reclaims what it had; leases of the lost batch count for nothing
            self.world.batched(Open(self._fid(inode), Mode.WRITE), self.session)

    @rule(pick=PICK, entry=PICK, new_entry=PICK, flags=FLAGS)
    def rename_here(self, pick: int, entry: int, new_entry: int, flags: int) -> None:
        self.rename(pick, entry, pick, new_entry, flags, True)

    @rule(limit=st.integers(1, 3))
    def compare(self, limit: int) -> None:
        """The whole tree, listed in pieces."""
        for inode in self._inodes():
            fid = self._fid(inode)
            reply = self.world.batched(GetAttr(fid, ALL), self.session)
            self._compare_inode(reply, inode)
            if inode.is_directory:
                self._compare_directory(inode, limit)
            assert self.world.batched(GetXattrs(fid), self.session).items == tuple(sorted(inode.xattrs.items()))

    def _compare_inode(self, reply: Any, inode: Inode) -> None:
        attr = reply.attr
        seen = (attr.mode, attr.uid, attr.gid, attr.nlink, attr.size, bool(attr.flags & 1))
        assert seen == (inode.mode, inode.uid, inode.gid, inode.nlink, inode.size, bool(inode.xattrs))
        if inode.is_regular:
            assert reply.data.ljust(len(inode.contents), b"\0") == bytes(inode.contents)
        if inode.is_symlink:
            assert reply.data == inode.target

    def _compare_directory(self, inode: Inode, limit: int) -> None:
        fid = self._fid(inode)
        listed: list[tuple[bytes, int]] = []
        while True:
            after = listed[-1][0] if listed else b""
            reply = self.world.batched(Readdir(fid, after, limit), self.session)
            listed.extend((entry.name, entry.attr.fid) for entry in reply.entries)
            if reply.end:
                break
        assert listed == [(name, self._fid(child)) for name, child in sorted(inode.entries.items())]
        assert inode.parent is not None
        assert self.world.batched(GetParent(fid), self.session).attr.fid == self._fid(inode.parent)

    @invariant()
    def names_agree(self) -> None:
        if hasattr(self, "world"):
            for name in (b"a", b"b"):
                entry = self.world.batched(Lookup(ROOT, name), self.session)
                child = self.model.root.entries.get(name)
                assert (None if entry.node is None else entry.node.attr.fid) == (
                    None if child is None else self._fid(child)
                )


def _attempt(function: Callable[..., Any], *arguments: Any) -> tuple[int | None, Any]:
    """The errno with which it failed, and the error; or None and the result."""
    try:
        return None, function(*arguments)
    except OSError as error:
        return error.errno, error


def _run(databases: Iterator[str], examples: int) -> None:
    """Run the machine; each example takes the next database, which is formatted."""

    class Machine(Comparison):
        urls = databases

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=50,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
            database=None,
        ),
    )


def on_sqlite(directory: Path, examples: int) -> None:
    def fresh() -> Iterator[str]:
        for number in itertools.count():
            make_mdt(url := str(directory / f"{number}.db"), "test", START_NS)
            yield url

    _run(fresh(), examples)


def on_postgresql(postgres_url: str, examples: int) -> None:
    def fresh() -> Generator[str]:
        while True:
            with new_database(postgres_url) as url:
                make_mdt(url, "test", START_NS)
                yield url

    with closing(fresh()) as urls:
        _run(urls, examples)


# Examples are chosen anew in each run, so that few of them in every run find what many in one would.


def test_any_sequence_agrees_with_the_model_on_sqlite(tmp_path: Path) -> None:
    on_sqlite(tmp_path, 40)


def test_any_sequence_agrees_with_the_model_on_postgresql(postgres_url: str) -> None:
    on_postgresql(postgres_url, 4)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_many_sequences_agree_with_the_model_on_sqlite(tmp_path: Path) -> None:
    on_sqlite(tmp_path, 800)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_many_sequences_agree_with_the_model_on_postgresql(postgres_url: str) -> None:
    on_postgresql(postgres_url, 80)
