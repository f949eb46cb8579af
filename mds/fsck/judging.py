"""Do a file and its objects agree? Decisions only: values in, findings out.

What may differ: an object is born at its first write, so one that is not there may be a hole; a file may end behind its
last object. `blocks` is what the OSTs' file systems said when a client last reported, and they change their minds
about a few of them later.
"""

from collections.abc import Sequence
from typing import Final

from nacrefs.common.layout import CopyState, Layout
from nacrefs.common.wire import AttrFlag
from nacrefs.mds.findings import Finding
from nacrefs.mds.fsck.asking import Seen
from nacrefs.mds.inode import Inode

SLACK_BYTES: Final = 64 << 10
"""So much, for each object, allocation may differ from what is recorded; and a part in `SLACK_PART`."""
SLACK_PART: Final = 32
_RELEASED: Final = int(AttrFlag.RELEASED)


def judge(inode: Inode, objects: Sequence[Seen], complete: bool = True) -> list[Finding]:
    """What is wrong between a file that nobody is changing and its objects. Not `complete`: some of its OSTs could not
    be asked."""
    fid, layout = inode.attr.fid, inode.layout
    places = {} if layout is None else dict(enumerate(layout.osts))
    found = [
        Finding(
            "misplaced-object",
            fid,
            f"has object {fact.number} on OST {ost}, where its layout has none",
            (fact.number, ost, fact.generation),
        )
        for ost, fact in objects
        if places.get(fact.number) != ost
    ]
    own = {fact.number: seen for seen in objects if places.get((fact := seen.fact).number) == seen.ost}
    if layout is None:
        return found
    if inode.is_inline or inode.attr.flags & _RELEASED:
        where = "the MDT" if inode.is_inline else "an archive"
        if own:
            found.append(
                Finding("leftover-objects", fid, f"has {len(own)} objects although its contents are in {where}")
            )
        return found
    counted = {number for number in range(len(layout.osts)) if layout.state_of(number) <= CopyState.UNSURE}
    damaged = [number for number in sorted(counted & own.keys()) if own[number].fact.problem]
    for number in damaged:
        ost, fact = own[number]
        found.append(
            Finding("damaged-object", fid, f"has a damaged object {number} on OST {ost}: {fact.problem}", (number, ost))
        )
    counted.difference_update(damaged)
    there = {number: own[number] for number in sorted(counted & own.keys())}
    if not complete:
        return found
    found += _unequal_copies(inode, layout, there, counted)
    end = max((seen.fact.size for seen in there.values()), default=0)
    if end > inode.attr.size:
        text = f"is {inode.attr.size} bytes long, but its objects end at {end}"
        found.append(Finding("size-short", fid, text, (end, allocated_bytes(layout, there))))
    if not damaged:
        found += _allocation(inode, layout, there)
    return found


def allocated_bytes(layout: Layout, there: dict[int, Seen]) -> int:
    """What the file takes: for each stripe its first copy, times the copies."""
    total = 0
    for stripe in range(layout.stripe_count):
        copies = [there[number].fact.allocated_bytes for number in layout.objects_of(stripe) if number in there]
        total += copies[0] if copies else 0
    return total * layout.mirrors


def _unequal_copies(inode: Inode, layout: Layout, there: dict[int, Seen], counted: set[int]) -> list[Finding]:
    found: list[Finding] = []
    for stripe in range(layout.stripe_count if layout.mirrors > 1 else 0):
        copies = [number for number in layout.objects_of(stripe) if number in counted]
        sizes = {there[number].fact.size if number in there else 0 for number in copies}
        if len(sizes) > 1:
            text = f"has copies of different lengths: objects {copies} end at {sorted(sizes)}"
            found.append(Finding("copies-differ", inode.attr.fid, text, (stripe,)))
    return found


def _allocation(inode: Inode, layout: Layout, there: dict[int, Seen]) -> list[Finding]:
    """Whether the file takes as much as is recorded; if an object is missing that must have held a part of that, it is
    lost."""
    attr = inode.attr
    allocated, recorded = allocated_bytes(layout, there), attr.blocks << 9
    missing = [
        stripe
        for stripe in range(layout.stripe_count)
        if not any(number in there for number in layout.objects_of(stripe))
    ]
    share = sum(stripe_bytes(layout, stripe, attr.size) for stripe in missing) * layout.mirrors
    if recorded and missing and (not there or (share and recorded - allocated >= share // 2)):
        numbers = ", ".join(f"{stripe} (OST {layout.osts[stripe]})" for stripe in missing)
        text = f"has lost object {numbers}: {recorded - allocated} bytes of {attr.size}"
        return [Finding("object-missing", attr.fid, text, tuple(missing))]
    if abs(recorded - allocated) > SLACK_BYTES * len(layout.osts) + recorded // SLACK_PART:
        text = f"is recorded with {recorded} allocated bytes, but its objects have {allocated}"
        return [Finding("blocks-wrong", attr.fid, text, (attr.size, allocated))]
    return []


def stripe_bytes(layout: Layout, stripe: int, size: int) -> int:
    """How many of a file's first `size` bytes a stripe holds."""
    whole, rest = divmod(size, layout.stripe_bytes * layout.stripe_count)
    tail = min(max(rest - stripe * layout.stripe_bytes, 0), layout.stripe_bytes)
    return whole * layout.stripe_bytes + tail
