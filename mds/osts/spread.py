"""Where the copies of mirrored files go: never two of a stripe on one OST, and on one server only if there is no other.

Decisions only: no clock, no chance, no SQL.
"""

from collections.abc import Collection, Mapping, Sequence

from nacrefs.common.layout import Layout


def spread(order: Sequence[int], stripes: int, mirrors: int, server_of: Mapping[int, str]) -> tuple[int, ...]:
    """The OST of each object, by object number. `order` are the usable OSTs, the preferred first, at least as many as
    `stripes` and as `mirrors`; the first copies go to its beginning."""
    size = len(order)
    osts = list(order[:stripes])
    used = set(osts)
    shifts = {0}
    for _ in range(1, mirrors):
        # A shift keeps the stripes of a copy on different OSTs, and different shifts the copies of a stripe.
        best: tuple[int, int, int] | None = None
        for shift in range(1, size):
            if shift in shifts:
                continue
            copy = [order[(stripe + shift) % size] for stripe in range(stripes)]
            near = sum(
                server_of[ost] in {server_of[order[(stripe + other) % size]] for other in shifts}
                for stripe, ost in enumerate(copy)
            )
            cost = (near, len(used.intersection(copy)), shift)
            if best is None or cost < best:
                best = cost
        assert best is not None
        shifts.add(best[2])
        copy = [order[(stripe + best[2]) % size] for stripe in range(stripes)]
        osts += copy
        used.update(copy)
    return tuple(osts)


def substitute(layout: Layout, number: int, usable: Collection[int], server_of: Mapping[int, str]) -> int | None:
    """Another OST for one object of a layout; None if there is none. `usable` begins with the preferred ones."""
    stripe = number % layout.stripe_count
    others = {layout.osts[other] for other in layout.objects_of(stripe) if other != number}
    servers = {server_of.get(ost, "") for ost in others}
    free = [ost for ost in usable if ost not in others and ost != layout.osts[number]]
    if not free:
        return None
    used = {ost: layout.osts.count(ost) for ost in free}
    return min(free, key=lambda ost: (server_of.get(ost, "") in servers, used[ost]))
