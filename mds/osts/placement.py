"""Which OSTs a new file gets. Decisions only: no clock, no chance, no SQL.

As in Lustre: while the OSTs are about equally free they take turns; otherwise an OST is chosen as often as its free
space says. OSTs that are down or full are left out. Copies of a stripe never share an OST.
"""

import errno
from bisect import bisect_right
from collections.abc import Iterable
from itertools import accumulate
from typing import Final, NamedTuple

from nacrefs.common.layout import LayoutSpec
from nacrefs.mds.osts.spread import spread

BALANCED: Final = 0.2
"""OSTs take turns while the emptiest has at most this share more free space than the fullest."""
RESERVE_BYTES: Final = 64 << 20
"""An OST with less free space than this gets no new files."""


class Target(NamedTuple):
    """An OST as placement sees it."""

    ost: int
    up: bool
    free_bytes: int
    pools: tuple[str, ...] = ()
    server: str = ""
    """Whose OST it is: copies of a stripe are better not on one server."""


class Placer:
    """Places files on a set of OSTs as it is now; make a new one, with `placed` of the old, when that changes."""

    def __init__(self, targets: Iterable[Target], placed: int = 0, reserve_bytes: int = RESERVE_BYTES) -> None:
        self._targets = {target.ost: target for target in targets}
        self._reserve_bytes = reserve_bytes
        self._turns: dict[str, _Turns] = {}
        self.placed = placed
        """How many files have been placed: whose turn it is."""

    def place(self, spec: LayoutSpec) -> tuple[int, ...]:
        """The OST index of each object of a file, by object number.

        There are `mirrors` times the stripe count of them; the stripe count is the one asked for (0: 1), or as many as
        there are usable OSTs if that is less (or -1). OSError: EINVAL for a pool or OST that does not exist, ENOSPC if
        none has room, or fewer than there are mirrors.
        """
        turns = self._turns.get(spec.pool)
        if turns is None:
            turns = self._turns[spec.pool] = self._usable(spec.pool)
        self.placed += 1
        if spec.stripe_count <= 1 and spec.stripe_count >= 0 and spec.mirrors == 1 and spec.first_ost < 0:
            return (turns.one(self.placed),)
        usable = len(turns.indices)
        if spec.mirrors > usable:
            raise OSError(errno.ENOSPC, f"{spec.mirrors} mirrors need as many OSTs with room; there are {usable}")
        stripes = usable if spec.stripe_count < 0 else min(spec.stripe_count or 1, usable)
        width = min(usable, stripes)
        if spec.mirrors > 1:
            first = spec.first_ost >= 0
            order = turns.after(self._first(spec, turns), usable) if first else turns.several(self.placed, usable)
            return spread(order, stripes, spec.mirrors, turns.server_of)
        if spec.first_ost >= 0:
            order = turns.after(self._first(spec, turns), width)
        else:
            order = turns.several(self.placed, width)
        return tuple(order)

    def _usable(self, pool: str) -> "_Turns":
        members = [target for target in self._targets.values() if not pool or pool in target.pools]
        if not members:
            if pool:
                raise OSError(errno.EINVAL, f"there is no pool {pool!r} with an OST in it")
            raise OSError(errno.ENOSPC, "no OST has joined this cluster yet: start an OSS")
        usable = [target for target in members if target.up and target.free_bytes >= self._reserve_bytes]
        if not usable:
            down = sum(not target.up for target in members)
            where = f"pool {pool!r}" if pool else "the cluster"
            raise OSError(errno.ENOSPC, f"no OST of {where} has room: {down} down, {len(members) - down} full")
        return _Turns(sorted(usable))

    def _first(self, spec: LayoutSpec, turns: "_Turns") -> int:
        target = self._targets.get(spec.first_ost)
        if target is None:
            raise OSError(errno.EINVAL, f"there is no OST {spec.first_ost}")
        if spec.first_ost not in turns.indices:
            if spec.pool and spec.pool not in target.pools:
                raise OSError(errno.EINVAL, f"OST {spec.first_ost} is not in pool {spec.pool!r}")
            raise OSError(errno.ENOSPC, f"OST {spec.first_ost} is {'full' if target.up else 'down'}")
        return spec.first_ost


class _Turns:
    """The usable OSTs of one pool, and whose turn it is."""

    def __init__(self, targets: list[Target]) -> None:
        self.indices = [target.ost for target in targets]
        self.server_of = {target.ost: target.server for target in targets}
        free = [target.free_bytes for target in targets]
        self._balanced = min(free) >= max(free) * (1 - BALANCED)
        self._cumulated = list(accumulate(max(1, one >> 20) for one in free))

    def one(self, turn: int) -> int:
        """The OST whose turn it is."""
        if self._balanced:
            return self.indices[turn % len(self.indices)]
        return self.indices[bisect_right(self._cumulated, _scatter(turn) % self._cumulated[-1])]

    def several(self, turn: int, width: int) -> list[int]:
        """`width` different OSTs."""
        size = len(self.indices)
        if self._balanced or width == size:
            start = turn * width % size if size % width == 0 else turn % size
            return [self.indices[(start + position) % size] for position in range(width)]
        chosen: dict[int, None] = {}
        attempt = turn * 64
        while len(chosen) < width and attempt < turn * 64 + 64:
            chosen[self.one(attempt)] = None
            attempt += 1
        for index in self.indices:  # the draw was unlucky
            if len(chosen) == width:
                break
            chosen[index] = None
        return list(chosen)

    def after(self, first: int, width: int) -> list[int]:
        """`width` OSTs from `first` on, by index, round the end."""
        start = self.indices.index(first)
        return [self.indices[(start + position) % len(self.indices)] for position in range(width)]


def _scatter(number: int) -> int:
    """A number that looks random but is always the same for the same one (splitmix64's finaliser)."""
    mask = (1 << 64) - 1
    number = (number * 0x9E3779B97F4A7C15) & mask
    number = ((number ^ number >> 30) * 0xBF58476D1CE4E5B9) & mask
    number = ((number ^ number >> 27) * 0x94D049BB133111EB) & mask
    return number ^ number >> 31
