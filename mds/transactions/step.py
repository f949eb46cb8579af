"""One request's step in a batch: what a namespace operation may see and do.

A namespace operation is a plain function `operation(step, request) -> reply`. It checks first (reads, and `truth` or
`alone` on every fid whose real state matters), then writes. Until its first write it may raise: `OSError` answers the
request, `Blocked` parks it until leases have been given back, after which it runs again from the start. After its
first write it must not raise.
"""

from collections.abc import Collection
from typing import Final, Protocol

from nacrefs.common.layout import LayoutSpec
from nacrefs.common.wire import Capability, Lease, Right
from nacrefs.mds.transactions.tx import Tx

DEFAULT_SPEC: Final = LayoutSpec(stripe_count=1, stripe_bytes=1 << 20, inline_bytes=16 << 10)
"""How a file is laid out where neither the user nor a directory nor the configuration says otherwise."""


class Blocked(Exception):
    """Another session's WRITE lease stands in the way; `keep` is what its holder may keep of it."""

    def __init__(self, fid: int, keep: Lease, spill: bool = False) -> None:
        super().__init__(fid, keep)
        self.fid = fid
        self.keep = keep
        self.spill = spill


class Unreported(Blocked):
    """The file's size is known to the OSTs only: somebody wrote without a WRITE lease and has not reported it all."""

    def __init__(self, fid: int) -> None:
        super().__init__(fid, Lease.WRITE)


class Doubtful(Blocked):
    """Somebody who wrote the file may have died together with an earlier run of the MDS: its objects must be looked at
    first. `look`: the contents are not changed, so that it need not wait for OSTs that stay away."""

    def __init__(self, fid: int, look: bool = False) -> None:
        super().__init__(fid, Lease.WRITE)
        self.look = look


class Released(Blocked):
    """The file's contents are in an archive only, and must be brought back before this can run."""

    def __init__(self, fid: int) -> None:
        super().__init__(fid, Lease.WRITE)


class Restoring(Blocked):
    """The file is being brought back, and that must stop before this can run: its contents are to be thrown away."""

    def __init__(self, fid: int) -> None:
        super().__init__(fid, Lease.WRITE)


class Leases(Protocol):
    """The lease table as one session's request sees it (rules: docs/coherence.md)."""

    def truth(self, fid: int) -> None:
        """The committed state of `fid` is the true one; Blocked (keep READ) if another session has a WRITE lease."""
        ...

    def alone(self, fid: int, spill: bool = False, contents: bool = True) -> None:
        """No other session has a WRITE lease on `fid`, and nobody appends to it; Blocked (keep NONE) otherwise. Not
        `contents`: neither they nor the size matter to this step, so that a file's OSTs, which may be away for good,
        need not be asked before (Doubtful)."""
        ...

    def timed(self, fid: int, now_ns: int) -> None:
        """This step sets the time of change of `fid`: no change of its objects before now counts any more."""
        ...

    def append(self, fid: int, ticket: int) -> None:
        """It is the requester's turn to append to `fid`, until `Appended`: nobody is `alone` with it meanwhile."""
        ...

    def changed(self, fid: int, name: bytes | None = None, told: Collection[int] = ()) -> None:
        """This step changes `fid` (with `name`: that entry of the directory): other sessions' READ leases are recalled
        before the reply goes out, and `fid` is busy until the commit. The sessions `told` are recalled although they
        hold no lease."""
        ...

    def grant(self, fid: int, lease: Lease) -> Lease:
        """Give the requester a lease on `fid`, as far as the rules allow; what it holds now (never less than
        before)."""
        ...

    def held(self, fid: int) -> Lease:
        """What the requester holds on `fid`."""
        ...

    def downgrade(self, fid: int, lease: Lease) -> None:
        """The requester keeps no more than `lease` on `fid`."""
        ...

    def others(self, fid: int) -> bool:
        """Whether any other session holds a lease on `fid`."""
        ...


class Placement(Protocol):
    """Chooses OSTs for new files."""

    def place(self, spec: LayoutSpec) -> tuple[int, ...]:
        """The OST indices for a file's objects, `stripe_count * mirrors` of them; OSError (ENOSPC, EINVAL, ENODEV) with
        the reason if there is no room, no such pool or OST."""
        ...


class Step:
    """The surroundings of one request: transaction, leases, requester, time."""

    __slots__ = ("capability", "default_spec", "leases", "now_ns", "placement", "session", "tx")

    def __init__(
        self,
        tx: Tx,
        leases: Leases,
        placement: Placement,
        capability: "CapabilityIssuer",
        session: int,
        now_ns: int,
        default_spec: LayoutSpec = DEFAULT_SPEC,
    ) -> None:
        self.tx = tx
        tx.now_ns = now_ns
        self.leases = leases
        self.placement = placement
        self.capability = capability
        self.session = session
        self.now_ns = now_ns
        self.default_spec = default_spec


class CapabilityIssuer(Protocol):
    """Signs capabilities for the requester's session."""

    def __call__(self, fid: int, generation: int, session: int, rights: Right) -> Capability: ...
