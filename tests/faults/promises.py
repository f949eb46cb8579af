"""What a filesystem has promised to a program, and whether it has kept it after a crash.

A `Tree` is driven by the operations of one program in one directory, as the program's log (`Manifest`) has them. What
must be there after a crash: every change of names and attributes that was answered, every byte that was there at the
last `fsync`; a byte that was written since may be there or not. Without a crash of the client everything must be there.
"""

import contextlib
import itertools
import json
import os
import random
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

Operation = list[Any]
"""A verb and its arguments, as they stand in the log; paths are relative to the program's directory."""


def contents(seed: int, length: int) -> bytes:
    """The bytes that a write of this seed writes; no zero among them, so that a hole is not taken for data."""
    return random.Random(seed).randbytes(length).replace(b"\0", b"\1")


class File:
    """A file's promise. `data` is what it contains, `synced` what of that must survive, `since` what was written after
    that, oldest first."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.synced = bytearray()
        self.since: list[tuple[int, bytes]] = []
        self.mode = 0o644
        self.mtime_ns: int | None = None
        self.xattrs: dict[str, str] = {}
        self.links = 1

    def write(self, offset: int, piece: bytes) -> None:
        """Bytes were written."""
        self.data.extend(bytes(max(0, offset - len(self.data))))
        self.data[offset : offset + len(piece)] = piece
        self.since.append((offset, piece))
        self.mtime_ns = None

    def truncate(self, size: int) -> None:
        """The size was set, which is promised at once."""
        for held in (self.data, self.synced):
            del held[size:]
            held.extend(bytes(size - len(held)))
        self.since = [(offset, piece[: size - offset]) for offset, piece in self.since if offset < size]
        self.mtime_ns = None

    def fsync(self) -> None:
        """Everything is promised."""
        self.synced = bytearray(self.data)
        self.since.clear()

    def rebase(self, found: bytes) -> None:
        """After a crash this is what it contains, durably."""
        self.data = bytearray(found)
        self.fsync()

    def broken(self, found: bytes, crashed: bool) -> str:
        """What is wrong with the contents that were found; empty if nothing is."""
        if not crashed or not self.since:
            return _difference(bytes(self.data if not crashed else self.synced), found)
        if not len(self.synced) <= len(found) <= len(self.data):
            return f"{len(found)} bytes long, expected {len(self.synced)} to {len(self.data)}"
        edges = {0, len(found), min(len(self.synced), len(found))}
        for offset, piece in self.since:
            edges.update(edge for edge in (offset, offset + len(piece)) if edge < len(found))
        ordered = sorted(edges)
        base = bytes(self.synced).ljust(len(found), b"\0")
        for start, end in itertools.pairwise(ordered):
            choices = [base[start:end]]
            for offset, piece in self.since:
                if offset <= start and end <= offset + len(piece):
                    choices.append(piece[start - offset : end - offset])
            part = found[start:end]
            if part in choices:
                continue
            for at, byte in enumerate(part):
                if all(choice[at] != byte for choice in choices):
                    return f"byte {start + at} is {byte:#x}, which was never written there (or is lost though synced)"
        return ""


def _difference(expected: bytes, found: bytes) -> str:
    if expected == found:
        return ""
    at = next((at for at, (one, other) in enumerate(zip(expected, found, strict=False)) if one != other), -1)
    if at < 0:
        return f"{len(found)} bytes long, expected {len(expected)}"
    wrong = sum(one != other for one, other in zip(expected, found, strict=False))
    return f"{wrong} of {len(expected)} bytes wrong, from byte {at} ({found[at]:#x}, expected {expected[at]:#x})"


class Link(NamedTuple):
    """A symbolic link."""

    target: str


class Directory:
    """A directory's attributes; its entries are the paths below it."""

    def __init__(self) -> None:
        self.mode = 0o755
        self.xattrs: dict[str, str] = {}


Node = File | Link | Directory


class Tree:
    """The promise of everything below one directory, by path relative to it."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}

    def apply(self, operation: Operation) -> None:
        """The operation has been answered with success."""
        verb, *arguments = operation
        getattr(self, f"_{verb}")(*arguments)

    def files(self) -> list[str]:
        """The paths of regular files."""
        return [path for path, node in self.nodes.items() if isinstance(node, File)]

    def directories(self) -> list[str]:
        """The paths of directories, `.` the first."""
        return [".", *(path for path, node in self.nodes.items() if isinstance(node, Directory))]

    def is_empty(self, path: str) -> bool:
        """Whether nothing lies below a path."""
        return not any(other.startswith(f"{path}/") for other in self.nodes)

    def file(self, path: str) -> File:
        """The file at a path."""
        node = self.nodes[path]
        assert isinstance(node, File), path
        return node

    def _create(self, path: str) -> None:
        self.nodes[path] = File()

    def _write(self, path: str, offset: int, length: int, seed: int) -> None:
        self.file(path).write(offset, contents(seed, length))

    def _truncate(self, path: str, size: int) -> None:
        self.file(path).truncate(size)

    def _fsync(self, path: str) -> None:
        self.file(path).fsync()

    def _unlink(self, path: str) -> None:
        node = self.nodes.pop(path)
        if isinstance(node, File):
            node.links -= 1

    def _mkdir(self, path: str) -> None:
        self.nodes[path] = Directory()

    def _rmdir(self, path: str) -> None:
        del self.nodes[path]

    def _link(self, path: str, new: str) -> None:
        self.nodes[new] = self.file(path)
        self.file(path).links += 1

    def _symlink(self, target: str, path: str) -> None:
        self.nodes[path] = Link(target)

    def _rename(self, path: str, new: str) -> None:
        there = self.nodes.get(new)
        if there is self.nodes[path]:
            return  # two names of one file: rename(2) does nothing
        if there is not None:
            self._unlink(new)
        for old in [old for old in self.nodes if old == path or old.startswith(f"{path}/")]:
            self.nodes[new + old[len(path) :]] = self.nodes.pop(old)

    def _chmod(self, path: str, mode: int) -> None:
        node = self.nodes[path]
        assert not isinstance(node, Link)
        node.mode = mode

    def _setxattr(self, path: str, name: str, value: str) -> None:
        node = self.nodes[path]
        assert not isinstance(node, Link)
        node.xattrs[name] = value

    def _utime(self, path: str, mtime_ns: int) -> None:
        self.file(path).mtime_ns = mtime_ns

    # ------------------------------------------------------------------------------------------------------ comparison

    def broken(self, directory: Path, crashed: bool) -> list[str]:
        """The promises that what is in `directory` does not keep, a line each. `crashed`: the client has crashed."""
        found = {str(path.relative_to(directory)) for path in directory.rglob("*")}
        wrong = [f"{path}: is gone" for path in sorted(self.nodes.keys() - found)]
        wrong += [f"{path}: should not be there" for path in sorted(found - self.nodes.keys())]
        for path in sorted(self.nodes.keys() & found):
            wrong += [f"{path}: {text}" for text in self._broken_node(self.nodes[path], directory / path, crashed)]
        return wrong

    def _broken_node(self, node: Node, path: Path, crashed: bool) -> Iterator[str]:
        status = path.lstat()
        kind = {File: stat.S_IFREG, Link: stat.S_IFLNK, Directory: stat.S_IFDIR}[type(node)]
        if stat.S_IFMT(status.st_mode) != kind:
            yield f"is of mode {status.st_mode:o}"
            return
        if isinstance(node, Link):
            if os.readlink(path) != node.target:
                yield f"points to {os.readlink(path)}, expected {node.target}"
            return
        if stat.S_IMODE(status.st_mode) != node.mode:
            yield f"mode {stat.S_IMODE(status.st_mode):o}, expected {node.mode:o}"
        xattrs = {
            name.removeprefix("user."): os.getxattr(path, name).decode()
            for name in os.listxattr(path)
            if name.startswith("user.")
        }
        if xattrs != node.xattrs:
            yield f"attributes {xattrs}, expected {node.xattrs}"
        if isinstance(node, File):
            if status.st_nlink != node.links:
                yield f"{status.st_nlink} links, expected {node.links}"
            if node.mtime_ns not in (None, status.st_mtime_ns) and not (crashed and node.since):
                yield f"mtime {status.st_mtime_ns}, expected {node.mtime_ns}"
            data = path.read_bytes()
            if status.st_size != len(data):
                yield f"stat says {status.st_size} bytes, {len(data)} were read"
            if text := node.broken(data, crashed):
                yield text

    def rebase(self, directory: Path) -> None:
        """Take what is there now for promised: it has been compared. Everything is made durable."""
        for path in self.files():
            descriptor = os.open(directory / path, os.O_RDWR)
            try:
                with contextlib.suppress(OSError):  # once per file: an OST that lost power has lost something of it
                    os.fsync(descriptor)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            file = self.file(path)
            if file.since:
                file.mtime_ns = None  # a crash has taken some of it, and was not asked for its time
            file.rebase((directory / path).read_bytes())


class Manifest:
    """The log of one program: what it was about to do, and whether it was done. It is written with one system call per
    line to a file outside, so nothing is missing after `kill -9`."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def close(self) -> None:
        """No more is logged."""
        os.close(self._fd)

    def begin(self, operation: Operation) -> None:
        """It is about to be asked for."""
        os.write(self._fd, json.dumps(["begin", operation]).encode() + b"\n")

    def end(self, error: int = 0) -> None:
        """It was answered, with this errno or well."""
        os.write(self._fd, json.dumps(["end", error]).encode() + b"\n")

    def wrong(self, text: str) -> None:
        """The program has seen something that cannot be."""
        os.write(self._fd, json.dumps(["wrong", text]).encode() + b"\n")


class Outcome(NamedTuple):
    """What a log says: the tree; the operation that has no (certain) answer; errors `(operation, errno)`; what the
    program saw that cannot be; how many operations were answered, and how many of them were an fsync."""

    tree: Tree
    open: Operation | None
    errors: list[tuple[Operation, int]]
    wrong: list[str]
    answered: int
    synced: int


def read_manifest(path: Path) -> Outcome:
    """What a program was promised."""
    tree, errors, wrong = Tree(), list[tuple[Operation, int]](), list[str]()
    pending: Operation | None = None
    answered = synced = 0
    for line in path.read_text().splitlines():
        kind, value = json.loads(line)
        if kind == "begin":
            pending = value
        elif kind == "wrong":
            wrong.append(value)
        elif pending is not None:
            if value:
                errors.append((pending, value))
                if pending[0] == "fsync":
                    pending = None  # nothing is promised
                continue  # whether anything else has happened is not known
            tree.apply(pending)
            answered += 1
            synced += pending[0] == "fsync"
            pending = None
    return Outcome(tree, pending, errors, wrong, answered, synced)
