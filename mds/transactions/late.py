"""What still holds of an answer when it leaves later than it was worked out.

The answer to a change waits for the commit and for the recalls that the change causes. Meanwhile the requester may
itself be recalled for later changes, and that recall overtakes the answer. An overtaken answer must not bring back what
the recall took away: it carries only leases that the table still has, and of a directory either the attributes as
they are committed now, or such as the client does not remember (`change` 0, `parent_lease` NONE: common/wire.py).
An answer that is given again, from the stored replies, is out of date in the same way.
"""

import stat
from collections.abc import Callable, Mapping
from typing import Any

from msgspec.structs import replace

from nacrefs.common.wire import Attr, Create, Entry, Lease, Mode, Node, Open, Removed, Rename, Renamed
from nacrefs.mds.namespace.files import open_inode
from nacrefs.mds.transactions.step import Step

Overtaken = Mapping[int, set[bytes] | None]
"""By fid: the names in it that were recalled, None for all that the client knew of it."""


def unremembered(reply: Any) -> Any:
    """An answer of which the client keeps nothing in mind."""
    if isinstance(reply, Node):
        return replace(reply, lease=Lease.NONE, attr=_old(reply.attr))
    if isinstance(reply, Entry):
        parent = None if reply.parent is None else _old(reply.parent)
        return replace(reply, node=unremembered(reply.node), parent=parent, parent_lease=Lease.NONE)
    if isinstance(reply, Removed):
        return replace(reply, parent=_old(reply.parent))
    if isinstance(reply, Renamed):
        return replace(
            reply,
            parent=_old(reply.parent),
            new_parent=_old(reply.new_parent),
            moved=_old(reply.moved),
            other=None if reply.other is None else _old(reply.other),
            removed=unremembered(reply.removed),
        )
    return reply


def corrected(
    reply: Any,
    request: Any,
    overtaken: Overtaken,
    committed: Callable[[int], Attr | None],
    lease_now: Callable[[int], Lease],
) -> Any:
    """The answer without what recalls of these fids have overtaken. `committed(fid)`: a directory's attributes if they
    are not just changing; `lease_now(fid)`: what the requester holds and is not giving back."""

    def directory(attr: Attr, *names: bytes) -> Attr:
        if attr.fid not in overtaken:
            return attr
        changed = overtaken[attr.fid]
        now = committed(attr.fid)
        if now is None or changed is None or not changed.isdisjoint(names):
            return replace(attr, change=0)
        return now

    def node(old: Node) -> Node:
        fid = old.attr.fid
        if fid not in overtaken:
            return old
        is_directory = stat.S_ISDIR(old.attr.mode)
        attr = (committed(fid) or _old(old.attr)) if is_directory else old.attr
        return replace(old, attr=attr, lease=min(old.lease, lease_now(fid)))

    def removed(old: Removed, name: bytes) -> Removed:
        return replace(old, parent=directory(old.parent, name))

    if isinstance(reply, Node):
        return node(reply)
    if isinstance(reply, Entry) and reply.parent is not None:
        parent = directory(reply.parent, request.name)
        lease = min(reply.parent_lease, lease_now(parent.fid)) if parent.change else Lease.NONE
        return Entry(None if reply.node is None else node(reply.node), parent, lease)
    if isinstance(reply, Removed):
        return removed(reply, request.name)
    if isinstance(reply, Renamed) and isinstance(request, Rename):
        moved, other = reply.moved, reply.other
        return Renamed(
            directory(reply.parent, request.name),
            directory(reply.new_parent, request.new_name),
            directory(moved) if stat.S_ISDIR(moved.mode) else moved,
            directory(other) if other is not None and stat.S_ISDIR(other.mode) else other,
            None if reply.removed is None else removed(reply.removed, request.new_name),
        )
    return reply


def _old(attr: Attr) -> Attr:
    """Attributes that a client must not remember. A file's need no mark: they count only under a lease, and who is
    given one gets attributes with it."""
    return replace(attr, change=0) if stat.S_ISDIR(attr.mode) else attr


def mode_of(request: Any) -> Mode:
    """How a request opens a file."""
    if type(request) is Create:
        return request.open_mode
    return request.mode if type(request) is Open else Mode.CLOSED


def open_again(reply: Any, fid: int, step: Step, request: Any) -> Any:
    """As a step: the answer to an open that has happened, with what may be held of the file now."""
    inode = step.tx.inode(fid)
    if inode is None or not inode.is_regular:
        return unremembered(reply)
    node = open_inode(step, inode, mode_of(request), False)
    return replace(unremembered(reply), node=node) if isinstance(reply, Entry) else node
