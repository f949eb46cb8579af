"""A second, simple implementation of what surrounds a step: leases, placement, capabilities."""

from collections.abc import Collection

from nacrefs.common.layout import LayoutSpec
from nacrefs.common.wire import Capability, Lease, Right
from nacrefs.mds.osts.placement import Placer, Target
from nacrefs.mds.transactions.step import Blocked


class LeaseBook:
    """Who holds what, for a test: all sessions' leases, recalls answered by the test itself."""

    def __init__(self) -> None:
        self.held: dict[int, dict[int, Lease]] = {}
        """Lease by fid, then session."""
        self.changes: list[tuple[int, bytes | None]] = []

    def of(self, session: int) -> "SessionLeases":
        """The table as one session's requests see it."""
        return SessionLeases(self, session)

    def holders(self, fid: int) -> dict[int, Lease]:
        """The lease of each session that has one on a fid."""
        return self.held.get(fid, {})

    def set(self, session: int, fid: int, lease: Lease) -> None:
        """What a session holds from now on."""
        if lease:
            self.held.setdefault(fid, {})[session] = lease
        else:
            self.held.get(fid, {}).pop(session, None)


class SessionLeases:
    """`step.Leases` over a LeaseBook: grants whatever the holders of the moment allow."""

    def __init__(self, book: LeaseBook, session: int) -> None:
        self.book = book
        self.session = session

    def _others(self, fid: int) -> list[Lease]:
        return [lease for session, lease in self.book.holders(fid).items() if session != self.session]

    def truth(self, fid: int) -> None:
        if Lease.WRITE in self._others(fid):
            raise Blocked(fid, Lease.READ)

    def alone(self, fid: int, spill: bool = False, contents: bool = True) -> None:
        if Lease.WRITE in self._others(fid):
            raise Blocked(fid, Lease.NONE, spill)

    def timed(self, fid: int, now_ns: int) -> None:
        pass  # there are no objects

    def append(self, fid: int, ticket: int) -> None:
        pass  # nobody else is there

    def changed(self, fid: int, name: bytes | None = None, told: Collection[int] = ()) -> None:
        self.book.changes.append((fid, name))

    def grant(self, fid: int, lease: Lease) -> Lease:
        others = self._others(fid)
        if lease == Lease.WRITE and others:
            lease = Lease.READ
        if Lease.WRITE in others:
            lease = Lease.NONE
        self.book.set(self.session, fid, max(lease, self.held(fid)))
        return self.held(fid)

    def held(self, fid: int) -> Lease:
        return self.book.holders(fid).get(self.session, Lease.NONE)

    def downgrade(self, fid: int, lease: Lease) -> None:
        self.book.set(self.session, fid, min(lease, self.held(fid)))

    def others(self, fid: int) -> bool:
        return bool(self._others(fid))


class Osts:
    """Placement on OSTs that a test can fill and empty."""

    def __init__(self, count: int = 4) -> None:
        self.placer = Placer(Target(number, True, 1 << 40, ("fast",) if number < 2 else ()) for number in range(count))

    def place(self, spec: LayoutSpec) -> tuple[int, ...]:
        return self.placer.place(spec)


def unsigned(fid: int, generation: int, session: int, rights: Right) -> Capability:
    """A capability that says what it is for, in place of a signature."""
    return Capability(int(rights), 0, f"{fid}/{generation}/{session}".encode())
