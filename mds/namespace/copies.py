"""The copies of mirrored files: which of them may be read, which are written, and how that changes (docs/mirrors.md).

Every change gives the layout a new generation. What it says is true for everybody only once the OSTs know of the
generation (`mds/osts/mirrors.py`); nobody is answered before.
"""

import errno
from collections.abc import Iterable
from typing import Final

from msgspec.structs import replace

from nacrefs.common.layout import CopyState, Layout
from nacrefs.common.wire import CopiesFailed, CopyLayout
from nacrefs.mds.inode import Inode
from nacrefs.mds.namespace.bits import OPEN_WRITE
from nacrefs.mds.namespace.nodes import MIRRORED
from nacrefs.mds.records import DISCARDED, MirrorRecord
from nacrefs.mds.transactions.step import Step

GOOD: Final = CopyState.GOOD
UNSURE: Final = CopyState.UNSURE
SYNCING: Final = CopyState.SYNCING
LOST: Final = CopyState.LOST


def mirrored(inode: Inode | None) -> Layout | None:
    """The layout of a file that has copies; None for everything else."""
    if inode is None or inode.layout is None or inode.layout.mirrors == 1:
        return None
    return inode.layout


def copies_failed(step: Step, request: CopiesFailed) -> CopyLayout:
    """A session could not write some copies, or found damage in them."""
    layout = mirrored(step.tx.need(request.fid))
    if layout is None:
        raise OSError(errno.EINVAL, "the file has no copies")
    for number in request.numbers:
        if not 0 <= number < len(layout.osts):
            raise OSError(errno.EINVAL, f"the file has no object {number}")
    if request.generation == layout.generation:
        layout = fail_copies(step, request.fid, request.numbers, SYNCING if request.damaged else LOST)
    return CopyLayout(layout, step.capability(request.fid, layout.generation, step.session, MIRRORED))


def fail_copies(step: Step, fid: int, numbers: Iterable[int], state: CopyState) -> Layout:
    """These copies lack bytes from now on: they are SYNCING or LOST. The last good copy of a stripe stays good; an
    UNSURE one becomes good when none is left. The layout afterwards."""
    layout = mirrored(step.tx.need(fid))
    assert layout is not None
    states = states_of(layout)
    failed = set(numbers)
    for stripe in range(layout.stripe_count):
        copies = layout.objects_of(stripe)
        bad = [number for number in copies if number in failed]
        if not bad:
            continue
        if not any(states[number] == GOOD and number not in failed for number in copies):
            heir = next((number for number in copies if states[number] == UNSURE and number not in failed), None)
            if heir is not None:
                states[heir] = GOOD
            else:
                bad = [number for number in bad if states[number] > UNSURE]
        for number in bad:
            if states[number] != LOST:
                states[number] = state
    return set_states(step, fid, states)


def doubt_copies(step: Step, fid: int) -> None:
    """Clients may have written different bytes to the copies of a file: all but the preferred ones are UNSURE.

    A resync that is under way starts again: what was under way to a copy may not have reached its source.
    """
    layout = mirrored(step.tx.inode(fid))
    if layout is None:
        return
    states = states_of(layout)
    for stripe in range(layout.stripe_count):
        good = [number for number in layout.objects_of(stripe) if states[number] == GOOD]
        for number in good[1:]:
            states[number] = UNSURE
    set_states(step, fid, states, always=True)


def begin_resync(step: Step, fid: int, number: int, generation: int) -> bool:
    """A copy is made equal under this generation, which is the next one; False if it cannot begin now."""
    layout = mirrored(step.tx.inode(fid))
    if layout is None or generation != layout.generation + 1 or fid in step.tx.mdt.intents or fid in step.tx.intents:
        return False
    states = states_of(layout)
    if states[number] == GOOD or (states[number] == UNSURE and several_write(step, step.tx.need(fid))):
        return False
    if states[number] == LOST:
        states[number] = SYNCING
    set_states(step, fid, states, always=True)
    return True


def end_resync(step: Step, fid: int, number: int, generation: int) -> bool:
    """A copy has become equal; False if anything has happened to the layout meanwhile, so that it must begin again."""
    layout = mirrored(step.tx.inode(fid))
    if layout is None or layout.generation != generation:
        return False
    states = states_of(layout)
    inode = step.tx.need(fid)
    states[number] = UNSURE if several_write(step, inode) else GOOD
    set_states(step, fid, states)
    return True


def replace_copies(step: Step, fid: int, lost_ost: int, places: dict[int, int]) -> int:
    """Copies on an OST that is lost get new places (OST by object number), where nothing is yet; how many there are. A
    place that another copy of the same stripe has by now is none."""
    layout = mirrored(step.tx.inode(fid))
    if layout is None:
        return 0
    states, osts = states_of(layout), list(layout.osts)
    moved = 0
    for number, ost in places.items():
        stripe = number % layout.stripe_count
        rest = [other for other in layout.objects_of(stripe) if other != number]
        if osts[number] != lost_ost or ost in (osts[other] for other in rest):
            continue
        if all(states[other] > UNSURE for other in rest):
            continue
        if not any(states[other] == GOOD for other in rest):
            states[next(other for other in rest if states[other] == UNSURE)] = GOOD
        step.tx.drop_mirror(fid, number, lost_ost)
        step.tx.put_mirror(MirrorRecord(fid, number, lost_ost, DISCARDED, layout.generation + 1))
        osts[number], states[number] = ost, LOST
        moved += 1
    if moved:
        step.tx.edit(fid).layout = replace(layout, osts=tuple(osts))
        set_states(step, fid, states, always=True)
    return moved


def states_of(layout: Layout) -> list[int]:
    """The states of all objects."""
    return list(layout.states) if layout.states else [int(GOOD)] * len(layout.osts)


def set_states(step: Step, fid: int, states: list[int], always: bool = False) -> Layout:
    """Give a layout these states and, if they differ (or `always`), a new generation, with the rows that say so."""
    layout = step.tx.need(fid).layout
    assert layout is not None
    before = states_of(layout)
    if states == before and not always:
        return layout
    generation = layout.generation + 1
    kept = tuple(int(state) for state in states) if any(states) else ()
    edited = step.tx.edit(fid)
    edited.layout = layout = replace(layout, generation=generation, states=kept)
    for number, (state, ost) in enumerate(zip(states, layout.osts, strict=True)):
        if state != GOOD:
            step.tx.put_mirror(MirrorRecord(fid, number, ost, int(state), generation))
        elif before[number] != GOOD:
            step.tx.drop_mirror(fid, number, ost)
    return layout


def several_write(step: Step, inode: Inode) -> bool:
    """Whether more than one session is registered as writing a file."""
    return sum(1 for mode in step.tx.opens(inode.attr.fid).values() if int(mode) & OPEN_WRITE) > 1


def note_writer(step: Step, inode: Inode) -> None:
    """The requester may write the objects of a file from now on: if it has copies, they may differ when it dies, or
    where several write."""
    layout = inode.layout
    if layout is None or layout.mirrors == 1 or inode.is_inline:
        return
    fid = inode.attr.fid
    step.tx.set_mirror_writer(step.session, fid, True)
    if several_write(step, inode) and any(len(layout.readable(stripe)) > 1 for stripe in range(layout.stripe_count)):
        doubt_copies(step, fid)
