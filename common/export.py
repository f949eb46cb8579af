"""What a key lets its holder see and be: a subtree, read-only or not, as which users (exports(5) of NFS, per key).

An export stands with its key in the servers' keyring. The MDS enforces it (`mds/access/exports.py`), and gives
capabilities that go no further; OSTs check these. Nothing of it depends on the client's good will.
"""

import re
from typing import Final, Literal, NamedTuple

import msgspec

NOBODY: Final = 65534
ID_MAX: Final = (1 << 32) - 2
_RANGE: Final = re.compile(r"([0-9]{1,10})(?:-([0-9]{1,10}))?")


class Actor(NamedTuple):
    """As whom something is done: ids, `gid` being the one that new files get."""

    uid: int
    gid: int
    groups: frozenset[int] = frozenset()

    def is_in(self, gid: int) -> bool:
        """Whether this is one of its groups."""
        return gid == self.gid or gid in self.groups


class Export(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the holder of a key may do; the defaults trust it with everything, as NFS's sec=sys with no_root_squash."""

    path: str = "/"
    """Only this directory and what is below it exists for the key."""
    read_only: bool = False
    """Nothing can be changed: EROFS, and capabilities are for reading only."""
    squash: Literal["none", "root", "all"] = "none"
    """Whose requests count as the anonymous user's: nobody's, root's, everybody's."""
    anon_uid: int = NOBODY
    anon_gid: int = NOBODY
    uids: tuple[str, ...] = ()
    """The users that the key may act as, as "1000" or "1000-1999"; others are anonymous. Empty: all."""
    gids: tuple[str, ...] = ()
    """The groups that it may claim, likewise; others do not count. Empty: all, or with `uids` none."""
    check: bool = False
    """Permissions are checked by the MDS although nobody is squashed."""

    @property
    def identifies(self) -> bool:
        """Whether requests must say who asks, so that the MDS can check it."""
        return self.check or self.squash != "none" or bool(self.uids) or bool(self.gids)

    @property
    def limits(self) -> bool:
        """Whether there is anything that the key may not do."""
        return self.read_only or self.subtree or self.identifies

    @property
    def subtree(self) -> bool:
        """Whether it is for a part of the tree only."""
        return self.path.strip("/") != ""

    def check_values(self) -> None:
        """ValueError, naming the field and what is allowed, unless all values make sense."""
        if not self.path.startswith("/") or ".." in self.path.split("/") or "\0" in self.path:
            raise ValueError(f"path {self.path!r} is not an absolute path")
        for name, value in (("anon_uid", self.anon_uid), ("anon_gid", self.anon_gid)):
            if not 0 <= value <= ID_MAX:
                raise ValueError(f"{name} = {value} is not in 0..{ID_MAX}")
        for name, ranges in (("uids", self.uids), ("gids", self.gids)):
            for text in ranges:
                try:
                    parse_range(text)
                except ValueError as error:
                    raise ValueError(f"{name}: {error}") from None


def parse_range(text: str) -> range:
    """Ids from text such as "1000" or "1000-1999", both ends included; ValueError otherwise."""
    match = _RANGE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f'{text!r} is neither an id nor a range of ids such as "1000-1999"')
    first = int(match[1])
    last = int(match[2]) if match[2] else first
    if not first <= last <= ID_MAX:
        raise ValueError(f"{text!r} is not a range within 0..{ID_MAX}")
    return range(first, last + 1)


class Squash:
    """The mapping of an export, worked out once for a session: from who says that he asks to who is taken to."""

    def __init__(self, export: Export) -> None:
        self.anonymous = Actor(export.anon_uid, export.anon_gid)
        self._all = export.squash == "all"
        self._root = export.squash != "none"
        self._uids = tuple(parse_range(text) for text in export.uids)
        self._gids = tuple(parse_range(text) for text in export.gids)
        self._no_groups = bool(export.uids) and not export.gids
        self._known: dict[tuple[int, int, tuple[int, ...]], Actor] = {}

    def actor(self, uid: int, gid: int, groups: tuple[int, ...]) -> Actor:
        """Who that is here."""
        claim = (uid, gid, groups)
        actor = self._known.get(claim)
        if actor is None:
            if len(self._known) >= _KNOWN_MAX:
                self._known.clear()
            actor = self._known[claim] = self._map(uid, gid, groups)
        return actor

    def _map(self, uid: int, gid: int, groups: tuple[int, ...]) -> Actor:
        if (
            self._all
            or (self._root and uid == 0)
            or not 0 <= uid <= ID_MAX
            or (self._uids and not any(uid in ids for ids in self._uids))
        ):
            return self.anonymous
        mine = gid if self._may_claim(gid) else self.anonymous.gid
        return Actor(uid, mine, frozenset(group for group in groups if self._may_claim(group)))

    def _may_claim(self, gid: int) -> bool:
        if self._no_groups or not 0 <= gid <= ID_MAX or (self._root and gid == 0):
            return False
        return not self._gids or any(gid in ids for ids in self._gids)


_KNOWN_MAX: Final = 4096
