"""Who may cache what: the lease table, and the view of it that one request has (rules: docs/coherence.md).

Leases live in memory only. A lease that is being recalled stays in the table until its holder has answered; in the
meantime the holder gets no new one on that fid, so that an answer on its way cannot take away a grant that crossed it.
"""

from collections.abc import Callable, Collection
from typing import NamedTuple

from nacrefs.common.wire import Lease, Mode
from nacrefs.mds.clients.appends import Turn, Turns
from nacrefs.mds.transactions.step import Blocked, Doubtful, Unreported
from nacrefs.mds.transactions.tx import NeedsBatch

_NONE, _READ, _WRITE = Lease.NONE, Lease.READ, Lease.WRITE
_LEASES = (Lease.NONE, Lease.READ, Lease.WRITE)


class Busy(Exception):
    """A step touches what is about to change or to be given back: it runs again when that has ended."""


class Change(NamedTuple):
    """A step changed `fid` (or the entry `name` of it), of which the sessions `told` hear without a lease, too."""

    fid: int
    name: bytes | None
    told: Collection[int] = ()


class LeaseTable:
    """All leases of an MDT. A fid with one holder, the usual case, costs two integers."""

    def __init__(self, per_session: int = 1_000_000) -> None:
        self.per_session = per_session
        self.single: dict[int, int] = {}
        self.several: dict[int, dict[int, Lease]] = {}
        self.counts: dict[int, int] = {}
        """Leases held, by session."""
        self.recalling: dict[tuple[int, int], int] = {}
        """How many recalls of a (fid, session) have not been answered."""
        self.claims: dict[int, dict[int, int]] = {}
        """Sessions whose parked requests wait for a fid: nobody else gets a lease on it meanwhile."""
        self.busy: set[int] = set()
        """What the batch in flight has changed."""
        self.unreported: dict[int, int] = {}
        """Files that were written without a WRITE lease: what the MDT knows of their size may be too little. An object
        that was changed after the value (Unix time in ns) says when the file was changed last."""
        self.doubtful = 0
        """Files with fids below this may have objects that are longer than the MDT knows: a session that could have
        written them did not come back after a restart of the MDS. 0: none."""
        self.settled: set[int] = set()
        """Those of them that have been looked at since."""
        self.unasked: dict[int, float] = {}
        """Other files whose writer is gone, and whose OSTs could not be asked then how long they are; until when (loop
        time) a look at them waits for these."""
        self.has_objects: Callable[[int], bool] = lambda fid: True
        """Whether a fid is a file whose contents are on OSTs; told by `Sizes`."""
        self.truncating: dict[int, int] = {}
        """How many cuts of a file's objects are planned or under way."""
        self.turns = Turns()
        """Who appends to shared files."""

    def __len__(self) -> int:
        return len(self.single) + sum(map(len, self.several.values()))

    def holders(self, fid: int) -> dict[int, Lease]:
        """The leases on a fid, by session."""
        held = self.single.get(fid)
        if held is not None:
            return {held >> 2: _LEASES[held & 3]}
        return self.several.get(fid, {})

    def held(self, fid: int, session: int) -> Lease:
        """What a session holds on a fid."""
        held = self.single.get(fid)
        if held is not None:
            return _LEASES[held & 3] if held >> 2 == session else _NONE
        several = self.several.get(fid)
        return several.get(session, _NONE) if several is not None else _NONE

    def writer(self, fid: int) -> int:
        """The session with a WRITE lease on a fid; 0 if there is none."""
        held = self.single.get(fid, 0)
        return held >> 2 if held & 3 == 2 else 0

    def set(self, fid: int, session: int, lease: Lease) -> None:
        """Give or take: the session now holds this. It is the caller's business that the rules allow it."""
        single = self.single.get(fid)
        if single is None:
            several = self.several.get(fid)
            if several is None:
                if lease:
                    self.single[fid] = session << 2 | lease
                    self.counts[session] = self.counts.get(session, 0) + 1
                return
        elif single >> 2 == session:
            if lease:
                self.single[fid] = session << 2 | lease
            else:
                del self.single[fid]
                self.counts[session] -= 1
            return
        else:
            if not lease:
                return
            several = self.several[fid] = {single >> 2: _LEASES[single & 3]}
            del self.single[fid]
        if lease:
            if session not in several:
                self.counts[session] = self.counts.get(session, 0) + 1
            several[session] = lease
        elif several.pop(session, None) is not None:
            self.counts[session] = self.counts.get(session, 0) - 1
            if len(several) == 1:
                ((last, kept),) = several.items()
                del self.several[fid]
                self.single[fid] = last << 2 | kept

    def written_by(self, session: int) -> list[int]:
        """The fids that a session has WRITE leases on."""
        return [fid for fid, held in self.single.items() if held == session << 2 | 2]

    def drop_session(self, session: int) -> None:
        """End all leases of a session."""
        if self.counts.pop(session, 0):
            for fid in [fid for fid, held in self.single.items() if held >> 2 == session]:
                del self.single[fid]
            for fid in [fid for fid, several in self.several.items() if session in several]:
                self.set(fid, session, _NONE)
            self.counts.pop(session, None)
        for key in [key for key in self.recalling if key[1] == session]:
            del self.recalling[key]
        self.turns.drop_session(session)

    def others(self, fid: int, session: int) -> bool:
        """Whether any other session holds a lease on the fid."""
        single = self.single.get(fid)
        if single is not None:
            return single >> 2 != session
        return fid in self.several  # two holders at least

    def other_holders(self, fid: int, session: int) -> list[int]:
        """The other sessions that hold a lease on the fid."""
        single = self.single.get(fid)
        if single is not None:
            return [single >> 2] if single >> 2 != session else []
        return [holder for holder in self.several.get(fid, ()) if holder != session]

    @property
    def doubts(self) -> bool:
        """Whether there may be files that are doubtful."""
        return self.doubtful > 0 or bool(self.unasked)

    def is_doubtful(self, fid: int) -> bool:
        """Whether a file's objects must be looked at before its contents are changed and, if these are there, before
        anybody is told how long it is: what somebody has seen must not change by itself."""
        return (self.doubtful > fid and fid not in self.settled) or fid in self.unasked

    def forget(self, fid: int) -> None:
        """The file is no more: nobody will ask how long it is."""
        self.unreported.pop(fid, None)
        self.unasked.pop(fid, None)
        self.settled.discard(fid)

    def claim(self, fid: int, session: int) -> None:
        """A request of this session is parked until leases on the fid have come back."""
        claims = self.claims.setdefault(fid, {})
        claims[session] = claims.get(session, 0) + 1

    def unclaim(self, fid: int, session: int) -> None:
        """That request has run, or is gone."""
        claims = self.claims[fid]
        claims[session] -= 1
        if not claims[session]:
            del claims[session]
            if not claims:
                del self.claims[fid]

    def begin_truncation(self, fid: int) -> None:
        """A step wants the objects of a file cut: from now on nobody uses it until that has ended."""
        self.truncating[fid] = self.truncating.get(fid, 0) + 1

    def end_truncation(self, fid: int) -> None:
        """One cut has ended, or will not happen."""
        left = self.truncating[fid] - 1
        if left:
            self.truncating[fid] = left
        else:
            del self.truncating[fid]

    def report(self) -> dict[str, int]:
        """Counts for people."""
        write = sum(held & 3 == 2 for held in self.single.values())
        return {"leases": len(self), "write": write, "recalling": len(self.recalling), "waited_for": len(self.claims)}


class LeaseView:
    """The table as one session's request sees it (`mds.step.Leases`).

    `changes` collects what the step changed. `undo` collects earlier holdings, in case the batch fails.
    A view without `changes` is for a request outside of batches, which must not look at what is busy.
    """

    __slots__ = ("_changes", "_opens", "_reported", "_session", "_table", "_undo")

    def __init__(
        self,
        table: LeaseTable,
        session: int,
        opens: dict[int, dict[int, Mode]],
        changes: list[Change] | None = None,
        undo: list[tuple[int, int, Lease]] | None = None,
        reported: int = 0,
    ) -> None:
        self._table = table
        self._session = session
        self._opens = opens
        self._changes = changes
        self._undo = undo
        self._reported = reported

    def truth(self, fid: int) -> None:
        table = self._table
        if (self._changes is None and fid in table.busy) or fid in table.truncating:
            raise Busy
        held = table.single.get(fid, 0)
        if held & 3 == 2 and held >> 2 != self._session:
            raise Blocked(fid, _READ)
        if table.unreported and fid in table.unreported:
            self._check_reported(fid)
        if (
            (table.doubtful > fid or table.unasked)
            and held & 3 != 2
            and fid != self._reported
            and self._is_doubtful(fid)
        ):
            raise Doubtful(fid, look=True)

    def alone(self, fid: int, spill: bool = False, contents: bool = True) -> None:
        table = self._table
        if (self._changes is None and fid in table.busy) or fid in table.truncating or fid in table.turns.taken:
            raise Busy
        held = table.single.get(fid, 0)
        if held & 3 == 2:
            if held >> 2 != self._session:
                raise Blocked(fid, _NONE, spill)
        elif spill and (table.recalling or table.claims) and self._contended(fid):
            raise Busy  # an inline file is of no use to a writer without the WRITE lease, which it would not get now
        if table.unreported and fid in table.unreported:
            self._check_reported(fid)
        if (
            (table.doubtful > fid or table.unasked)
            and held & 3 != 2
            and table.is_doubtful(fid)
            and (contents or not table.has_objects(fid))  # (what was written of an inline file must be known to be cut)
        ):
            raise Doubtful(fid)

    def _is_doubtful(self, fid: int) -> bool:
        table = self._table
        return table.is_doubtful(fid) and table.has_objects(fid)

    def _check_reported(self, fid: int) -> None:
        """Unreported if the size must be learned from the OSTs first. While another session writes, it must be learned
        for each answer anyway (`Node.shared`); the requester itself knows it if it has the WRITE lease."""
        table, session = self._table, self._session
        if fid == self._reported:
            return
        if table.held(fid, session) is _WRITE:
            del table.unreported[fid]
            return
        opens = self._opens.get(fid, {})
        if not any(mode & Mode.WRITE for other, mode in opens.items() if other != session):
            raise Unreported(fid)

    def _contended(self, fid: int) -> bool:
        """Whether the requester would get no lease now, because it is giving one back or others wait for the fid."""
        table, session = self._table, self._session
        if (fid, session) in table.recalling:
            return True
        claims = table.claims.get(fid)
        return claims is not None and session not in claims

    def append(self, fid: int, ticket: int) -> None:
        if not self._table.turns.begin(fid, Turn(self._session, ticket)):
            raise Busy

    def timed(self, fid: int, now_ns: int) -> None:
        if fid in self._table.unreported:
            self._table.unreported[fid] = now_ns

    def changed(self, fid: int, name: bytes | None = None, told: Collection[int] = ()) -> None:
        if self._changes is None:
            raise NeedsBatch
        self._changes.append(Change(fid, name, told))

    def grant(self, fid: int, lease: Lease) -> Lease:
        table, session = self._table, self._session
        if table.recalling and (fid, session) in table.recalling:
            return _NONE  # the answer to the recall, which may be on its way, would take it away again
        single = table.single.get(fid)
        if single is not None and single >> 2 == session:
            held = _LEASES[single & 3]
            if held >= lease:
                return held
            others = False
        else:
            several = table.several.get(fid)
            held = _NONE if several is None else several.get(session, _NONE)
            if held >= lease:
                return held
            others = single is not None or several is not None
        if others and (lease is _WRITE or (single is not None and single & 3 == 2)):
            return held
        if (self._changes is None and fid in table.busy) or fid in table.truncating or fid in table.turns.taken:
            return held
        if table.unreported and fid in table.unreported and fid != self._reported:
            return held
        if (table.doubtful > fid or table.unasked) and self._is_doubtful(fid):
            return held
        if table.claims:
            claims = table.claims.get(fid)
            if claims is not None and session not in claims:
                return held
        opens = self._opens.get(fid)
        if opens is not None and not self._opens_allow(opens, lease):
            return held
        if not held and lease is not _WRITE and table.counts.get(session, 0) >= table.per_session:
            return _NONE
        if self._undo is not None:
            self._undo.append((fid, session, held))
        table.set(fid, session, lease)
        return lease

    def _opens_allow(self, opens: dict[int, Mode], lease: Lease) -> bool:
        """Whether the registered opens of others leave room for a lease. (Inline files are told apart by the caller,
        who asks for WRITE on them though others have them open: see docs/coherence.md.)"""
        return lease is _WRITE or not any(
            mode & Mode.WRITE for session, mode in opens.items() if session != self._session
        )

    def held(self, fid: int) -> Lease:
        return self._table.held(fid, self._session)

    def downgrade(self, fid: int, lease: Lease) -> None:
        held = self._table.held(fid, self._session)
        if held > lease:
            if self._undo is not None:
                self._undo.append((fid, self._session, held))
            self._table.set(fid, self._session, lease)

    def others(self, fid: int) -> bool:
        return self._table.others(fid, self._session)
