"""Which rule a file is under, and what that wants done with it: the committed tree brought before pure rules."""

import errno
import grp
import pwd
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from nacrefs.common.fid import ROOT
from nacrefs.common.wire import ArchiveSpec, HsmFlag
from nacrefs.mds.hsm.rows import RELEASED, HsmRow, hsm_of
from nacrefs.mds.inode import Inode
from nacrefs.mds.lifecycle.candidates import Candidate
from nacrefs.mds.lifecycle.rules import Decision, File, Rule, applicable, decide, matches
from nacrefs.mds.transactions.tx import Tx

# Plain numbers: combining an enum's members costs a microsecond each time, and every file is judged.
_ARCHIVED: Final = int(HsmFlag.ARCHIVED)
_ARCHIVED_OR_LOST: Final = int(HsmFlag.ARCHIVED | HsmFlag.LOST)
_EXISTS: Final = int(HsmFlag.EXISTS)
_NORELEASE: Final = int(HsmFlag.NORELEASE)
_NOARCHIVE: Final = int(HsmFlag.NOARCHIVE)


class Place(NamedTuple):
    """A directory: its path without a slash at its end, and the rules that its files are under."""

    path: bytes
    rules: tuple[Rule, ...]


class Judge:
    """Says what rules want. It remembers where directories are: make a new one for each pass."""

    def __init__(self, tx: Tx, rules: Iterable[Rule], archives: Mapping[int, ArchiveSpec]) -> None:
        self._tx = tx
        self._rules = tuple(rules)
        self._archives = archives
        self._places: dict[int, Place | None] = {}
        self._owners: dict[str, tuple[int, int]] = {}
        """By rule: uid and gid that its filter asks for; -1: any."""

    def place(self, directory: int) -> Place | None:
        """A directory's place; None if it is not in the tree any more."""
        known = self._places.get(directory)
        if known is not None or directory in self._places:
            return known
        path = self._path(directory)
        place = None if path is None else Place(path, tuple(applicable(self._rules, path + b"/")))
        self._places[directory] = place
        return place

    def _path(self, directory: int) -> bytes | None:
        if directory == ROOT:
            return b""
        inode = self._tx.inode(directory)
        if inode is None or not inode.is_directory:
            return None
        if inode.parent == directory:
            return b""
        above = self.place(inode.parent)
        names = self._tx.names(directory)
        return None if above is None or not names else above.path + b"/" + names[0][1]

    def owners(self, rule: Rule) -> tuple[int, int]:
        """The uid and gid that a rule's filter asks for (-1: any). OSError (ENOENT) if this machine does not know the
        name."""
        known = self._owners.get(rule.id)
        if known is None:
            known = self._owners[rule.id] = _uid(rule.filter.owner), _gid(rule.filter.group)
        return known

    def decision(self, rule: Rule, one: Candidate, now_ns: int) -> Decision | None:
        """What a rule wants done with a file; None if the file is not under it."""
        place = self.place(one.parent)
        if place is None or rule not in place.rules:
            return None
        uid, gid = self.owners(rule)
        if uid not in (-1, one.uid) or gid not in (-1, one.gid):
            return None
        file = self.file(rule, place, one)
        xattrs = self._tx.xattrs(self._tx.need(one.fid)) if rule.filter.xattrs else {}
        return None if matches(rule.filter, file, xattrs) else decide(rule, file, now_ns)

    def explanation(self, rule: Rule, one: Candidate, now_ns: int) -> tuple[str, Decision | None]:
        """Why a rule's filter does not let a file through that is in its directory (empty: it does), and what the rule
        wants."""
        place = self.place(one.parent)
        if place is None:
            return "it is not in the tree any more", None
        uid, gid = self.owners(rule)
        if uid not in (-1, one.uid):
            return f"its owner is {one.uid}, not {rule.filter.owner}", None
        if gid not in (-1, one.gid):
            return f"its group is {one.gid}, not {rule.filter.group}", None
        file = self.file(rule, place, one)
        xattrs = self._tx.xattrs(self._tx.need(one.fid)) if rule.filter.xattrs else {}
        why = matches(rule.filter, file, xattrs)
        return (why, None) if why else ("", decide(rule, file, now_ns))

    def file(self, rule: Rule, place: Place, one: Candidate) -> File:
        """A candidate as a rule sees it."""
        path = place.path + b"/" + one.name
        flags = one.copy_flags or 0
        archive = self._archives.get(one.archive or 0)
        return File(
            path[len(rule.directory) + 1 :],
            one.size,
            one.atime_ns,
            one.mtime_ns,
            flags & _ARCHIVED_OR_LOST == _ARCHIVED,
            one.flags & RELEASED != 0,
            flags & _EXISTS != 0 and one.version != one.data_version,
            flags & _NORELEASE != 0,
            flags & _NOARCHIVE != 0,
            "" if archive is None else archive.name,
            one.storage_class or ("" if archive is None else archive.storage_class),
        )


def candidates_of(tx: Tx, inode: Inode) -> list[Candidate]:
    """A file as the judge takes it, once for each of its names; from a step's own view, not from SQL."""
    row: HsmRow = hsm_of(tx, inode)
    attr = inode.attr
    return [
        Candidate(
            attr.fid, attr.uid, attr.gid, attr.size, attr.atime_ns, attr.mtime_ns, attr.flags, inode.data_version,
            row.flags, row.archive, row.version, row.storage_class, parent, name,
        )
        for parent, name in sorted(tx.names(attr.fid))
    ]  # fmt: skip


def directory_fid(tx: Tx, path: bytes) -> int:
    """The fid of a rule's directory. OSError (ENOENT) if there is none."""
    fid = ROOT
    for name in filter(None, path.split(b"/")):
        inode = tx.lookup(fid, name)
        if inode is None or not inode.is_directory:
            raise OSError(errno.ENOENT, f"there is no directory {path.decode(errors='replace')!r}")
        fid = inode.attr.fid
    return fid


def _uid(name: str) -> int:
    if not name or name.isdigit():
        return int(name or "-1")
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        raise OSError(errno.ENOENT, f"this MDS's machine knows no user {name!r}: give the number") from None


def _gid(name: str) -> int:
    if not name or name.isdigit():
        return int(name or "-1")
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise OSError(errno.ENOENT, f"this MDS's machine knows no group {name!r}: give the number") from None
