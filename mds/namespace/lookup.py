"""Finding inodes: by name, by fid, a directory's own directory."""

import errno

from nacrefs.common.wire import Access, Done, Entry, GetAttr, GetParent, Lookup, Node
from nacrefs.mds.namespace.bits import WANT_GONE, WANT_LEASE
from nacrefs.mds.namespace.names import check_name
from nacrefs.mds.namespace.nodes import entry, node
from nacrefs.mds.transactions.step import Step


def lookup(step: Step, request: Lookup) -> Entry:
    """The inode under a name; an entry without node if the name stands for nothing."""
    parent, leases = request.parent, step.leases
    step.tx.need_directory(parent)
    check_name(request.name)
    leases.truth(parent)
    inode = step.tx.lookup(parent, request.name)
    if inode is None:
        return entry(step, parent, None)
    leases.truth(inode.attr.fid)
    return entry(step, parent, node(step, inode, int(request.want)))


def get_attr(step: Step, request: GetAttr) -> Node:
    """An inode by fid; of one that was destroyed lately, what it was last."""
    inode = step.tx.inode(request.fid)
    if inode is None:
        ghost = step.tx.ghost(request.fid) or step.tx.need(request.fid)
        if ghost.is_regular and not int(request.want) & WANT_GONE:
            raise OSError(errno.ESTALE, "the file has been removed")  # who wants to read it must not find it
        return Node(ghost.attr, data=ghost.data)
    step.leases.truth(request.fid)
    return node(step, inode, int(request.want))


def get_parent(step: Step, request: GetParent) -> Node:
    """The directory that holds a directory; the root is its own."""
    inode = step.tx.need_directory(request.fid)
    step.leases.truth(request.fid)
    parent = step.tx.need(inode.parent)
    step.leases.truth(inode.parent)
    return node(step, parent, WANT_LEASE)


def access(step: Step, request: Access) -> Done:
    """Yes: who is not believed has been refused before (`mds/access/rules.py`)."""
    step.tx.need(request.fid)
    return Done()
