"""Which layout a new file gets, and changing the layout of an empty file or a directory's default."""

import errno
from typing import Final

from msgspec.structs import replace

from nacrefs.common.layout import Layout, LayoutSpec
from nacrefs.common.wire import Done, GetLayout, LayoutInfo, SetLayout
from nacrefs.mds.inode import Inode
from nacrefs.mds.namespace.bits import DEFAULT_LAYOUT
from nacrefs.mds.transactions.step import Step

_INHERIT: Final = LayoutSpec()


def merged(spec: LayoutSpec, default: LayoutSpec) -> LayoutSpec:
    """The specification with its open fields taken from `default`."""
    return LayoutSpec(
        spec.stripe_count or default.stripe_count,
        spec.stripe_bytes or default.stripe_bytes,
        spec.first_ost if spec.first_ost >= 0 else default.first_ost,
        spec.pool or default.pool,
        spec.mirrors if spec.mirrors > 1 else default.mirrors,
        spec.inline_bytes if spec.inline_bytes >= 0 else default.inline_bytes,
    )


def effective_spec(step: Step, directory: Inode, asked: LayoutSpec | None = None) -> LayoutSpec:
    """What a new file in the directory gets: what is asked, else the directory's default, else the configured one."""
    spec = step.default_spec if directory.spec is None else merged(directory.spec, step.default_spec)
    return spec if asked is None else merged(asked, spec)


def new_layout(step: Step, directory: Inode, asked: LayoutSpec | None = None) -> Layout:
    """A layout for a new file in a directory; OSError: EINVAL (impossible specification), ENOSPC (no OST has room)."""
    if asked is not None:
        check_spec(asked)
    spec = effective_spec(step, directory, asked)
    osts = step.placement.place(spec)
    return layout_of(spec, osts, 0)


def layout_of(spec: LayoutSpec, osts: tuple[int, ...], generation: int) -> Layout:
    """The layout of a complete specification on these OSTs."""
    return Layout(spec.stripe_bytes, len(osts) // spec.mirrors, osts, spec.mirrors, generation, spec.inline_bytes)


def check_inline(step: Step, layout: Layout | None, data: bytes) -> None:
    """OSError (EFBIG) if these contents are too large for the MDT."""
    limit = -1 if layout is None else layout.inline_bytes
    if limit < 0:
        limit = step.default_spec.inline_bytes
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"contents of {len(data)} bytes are above the inline limit of {limit}")


def check_spec(spec: LayoutSpec) -> None:
    """OSError (EINVAL) that says why, if this cannot be a layout."""
    try:
        spec.check()
    except ValueError as error:
        raise OSError(errno.EINVAL, f"layout: {error}") from error


def get_layout(step: Step, request: GetLayout) -> LayoutInfo:
    """A file's layout, or a directory's default."""
    inode = step.tx.need(request.fid)
    step.leases.truth(request.fid)
    return LayoutInfo(inode.layout, inode.spec)


def set_layout(step: Step, request: SetLayout) -> Done:
    """Set the layout of an empty file or a directory's default."""
    apply_spec(step, request.fid, request.spec)
    return Done()


def apply_spec(step: Step, fid: int, spec: LayoutSpec) -> None:
    """Set the layout of a file without contents, or the default of a directory (all fields open: inherit again).

    OSError: EINVAL for an impossible specification or an inode that has no layout, EEXIST if the file has contents
    or objects, EBUSY if somebody else has it open, ENOSPC.
    """
    tx, leases = step.tx, step.leases
    inode = tx.need(fid)
    check_spec(spec)
    if inode.is_directory:
        _set_default(step, inode, spec)
        return
    if not inode.is_regular:
        raise OSError(errno.EINVAL, "only files and directories have layouts")
    leases.alone(fid)
    if not inode.is_inline or inode.attr.size:
        raise OSError(errno.EEXIST, "the file has a layout and contents already: copy it to a new file instead")
    if any(session != step.session for session in tx.opens(fid)):
        raise OSError(errno.EBUSY, "another client has the file open")
    spec = merged(spec, step.default_spec)
    osts = step.placement.place(spec)
    old = inode.layout
    generation = 0 if old is None else old.generation + 1
    leases.changed(fid)
    edited = tx.edit(fid)
    edited.layout = layout_of(spec, osts, generation)
    edited.attr = replace(edited.attr, ctime_ns=step.now_ns, change=edited.attr.change + 1)


def _set_default(step: Step, directory: Inode, spec: LayoutSpec) -> None:
    if spec != _INHERIT:
        try:
            step.placement.place(merged(spec, step.default_spec))
        except OSError as error:
            if error.errno == errno.EINVAL:  # no such pool or OST; room there may be later
                raise
    fid = directory.attr.fid
    step.leases.alone(fid)
    step.leases.changed(fid)
    edited = step.tx.edit(fid)
    edited.spec = None if spec == _INHERIT else spec
    flags = edited.attr.flags & ~DEFAULT_LAYOUT
    if edited.spec is not None:
        flags |= DEFAULT_LAYOUT
    edited.attr = replace(edited.attr, flags=flags, ctime_ns=step.now_ns, change=edited.attr.change + 1)
