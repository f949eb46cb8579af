"""What a session may do whose key is limited (`common.export`): subtree, read-only, whose permissions.

A session is limited when it is attached; what its key's export means is worked out once, then. Its requests run through
`Limits.run` inside of their step, so that what is checked is what is changed. Sessions that are not limited never come
here.

Who has a file open for writing, by the MDS's own knowledge (the WRITE lease, or a registered open), need not prove
that again: a mount reports what was written whoever asks it to, and file permissions count when a file is opened.
"""

import errno
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from msgspec.structs import replace

from nacrefs.common import wire
from nacrefs.common.export import Actor, Export, Squash
from nacrefs.common.fid import format_fid
from nacrefs.common.wire import Capability, Entry, Lease, Listing, Mode, Node, Right, XattrValue
from nacrefs.mds.access.permissions import EXECUTE, READ, has
from nacrefs.mds.access.rules import CHANGES, RULES, Ask, writes
from nacrefs.mds.inode import Inode
from nacrefs.mds.namespace import lookup, xattrs
from nacrefs.mds.namespace.bits import OPEN_WRITE
from nacrefs.mds.transactions.step import Step
from nacrefs.mds.transactions.tx import Tx

_WRITING: Final = int(Right.WRITE)
_READING: Final = int(Right.READ)
_NAMES_A_FILE: Final = ("fid", "parent", "new_parent")
Operation = Callable[[Step, Any], Any]


class Limits:
    """What one session's key lets it do. `root` is the directory that it must not see above."""

    __slots__ = ("_subtree", "export", "root", "squash")

    def __init__(self, export: Export, root: int) -> None:
        self.export = export
        self.root = root
        self.squash = Squash(export)
        self._subtree = export.subtree

    # ------------------------------------------------------------------------------------------------------ the subtree

    def need_inside(self, step: Step, fid: int) -> None:
        """OSError (ESTALE), as for a file that does not exist, unless the fid lies in what the key may see.

        A session that holds a lease on it has come by it there: leases end when a file is moved.
        """
        if not self._subtree or fid == self.root:
            return
        tx = step.tx
        inode = tx.inode(fid)
        if inode is not None:
            if inode.is_directory:
                if self._below(tx, inode):
                    return
            elif step.leases.held(fid) or step.session in tx.opens(fid) or self._named_inside(tx, fid):
                return
        raise OSError(errno.ESTALE, f"file {format_fid(fid) if fid > 0 else fid} does not exist any more")

    def _below(self, tx: Tx, directory: Inode | None) -> bool:
        while directory is not None and directory.attr.fid != self.root:
            if directory.parent == directory.attr.fid:
                return False
            directory = tx.inode(directory.parent)
        return directory is not None

    def _named_inside(self, tx: Tx, fid: int) -> bool:
        return any(self._below(tx, tx.inode(parent)) for parent, _ in tx.names(fid))

    def _path(self, tx: Tx, fid: int) -> bytes:
        """The path of an inode as the key sees it."""
        parts: list[bytes] = []
        while fid != self.root:
            names = [name for name in tx.names(fid) if self._below(tx, tx.inode(name[0]))]
            if not names:
                raise OSError(errno.ENOENT, "the file has been removed")
            fid, name = min(names)
            parts.append(name)
        return b"/" + b"/".join(reversed(parts))

    # --------------------------------------------------------------------------------------------------------- requests

    def check(self, step: Step, request: wire.Request[Any], actor: Actor) -> Any:
        """The request as it may be carried out for somebody; OSError (ESTALE, EROFS, EACCES, EPERM) if it may not."""
        kind = type(request)
        for name in _NAMES_A_FILE:
            fid = getattr(request, name, 0)
            if fid:
                self.need_inside(step, fid)
        for fid in getattr(request, "fids", ()):
            self.need_inside(step, fid)
        ask = Ask(step, actor)
        if self.export.read_only and CHANGES[kind](ask, request):
            raise OSError(errno.EROFS, "this key may only read")
        if not self.export.identifies:
            return request
        rule = RULES.get(kind)
        return request if rule is None else rule(ask, request)

    def run(self, operation: Operation, actor: Actor, step: Step, request: Any) -> Any:
        """As a step: do what is asked, if it may be done, and show of it what may be seen."""
        request = self.check(step, request, actor)
        if self._subtree:
            if type(request) is wire.GetParent and request.fid == self.root:
                return lookup.get_attr(step, wire.GetAttr(request.fid))
            if type(request) is wire.GetXattr and request.name == xattrs.PATH:
                return XattrValue(self._path(step.tx, request.fid))
        if not self.export.identifies:
            return operation(step, request)
        step.capability = partial(self._capability_for, step.capability, step, actor)
        return self._veiled(step, actor, request, operation(step, request))

    # ----------------------------------------------------------------------------------------------------- capabilities

    def attach(self, step: Step) -> None:
        """Let the capabilities of a step go no further than the key."""
        step.capability = partial(self._capability, step.capability, step)

    def _capability(
        self, sign: Callable[..., Capability], step: Step, fid: int, generation: int, session: int, rights: Right
    ) -> Capability:
        given = int(rights)
        if self.export.read_only or (self.export.identifies and not writes(step, fid)):
            given &= ~_WRITING
        return sign(fid, generation, session, Right(given))

    def _capability_for(
        self,
        sign: Callable[..., Capability],
        step: Step,
        actor: Actor,
        fid: int,
        generation: int,
        session: int,
        rights: Right,
    ) -> Capability:
        given = int(rights)
        if given & _READING and not self._may_read(step, actor, step.tx.need(fid)):
            given &= ~_READING
        return sign(fid, generation, session, Right(given))

    def _may_read(self, step: Step, actor: Actor, inode: Inode) -> bool:
        """Executing is reading, for whoever asks for the contents."""
        fid = inode.attr.fid
        return writes(step, fid) or has(step.tx, inode, actor, READ) or has(step.tx, inode, actor, EXECUTE)

    def _veiled(self, step: Step, actor: Actor, request: Any, reply: Any) -> Any:
        """An answer without the contents of files that may not be read."""
        if isinstance(reply, Node):
            return self._veiled_node(step, actor, reply)
        if isinstance(reply, Entry) and reply.node is not None:
            node = self._veiled_node(step, actor, reply.node)
            return reply if node is reply.node else replace(reply, node=node)
        if isinstance(reply, Listing):
            entries = tuple([self._veiled_entry(step, actor, entry) for entry in reply.entries])
            return replace(reply, entries=entries)
        if isinstance(reply, wire.Xattrs) and isinstance(request, wire.GetXattrs):
            return self._veiled_xattrs(step, actor, request.fid, reply)
        return reply

    def _veiled_entry(self, step: Step, actor: Actor, entry: wire.DirEntry) -> wire.DirEntry:
        if entry.data is None and entry.layout is None:
            return entry
        inode = step.tx.inode(entry.attr.fid)
        if inode is not None and self._may_read(step, actor, inode):
            return entry
        return replace(entry, data=None, layout=None, capability=None)

    def _veiled_xattrs(self, step: Step, actor: Actor, fid: int, reply: wire.Xattrs) -> wire.Xattrs:
        """Without trusted attributes, except for root, and without users' own of files that may not be read."""
        hidden = [] if actor.uid == 0 else [b"trusted."]
        inode = step.tx.inode(fid)
        if inode is not None and not has(step.tx, inode, actor, READ):
            hidden.append(b"user.")
        items = tuple([item for item in reply.items if not item[0].startswith(tuple(hidden))])
        return reply if len(items) == len(reply.items) else wire.Xattrs(items, partial=True)

    def _veiled_node(self, step: Step, actor: Actor, node: Node) -> Node:
        if node.data is None:
            return node
        inode = step.tx.inode(node.attr.fid)
        if inode is None or not inode.is_regular or self._may_read(step, actor, inode):
            return node
        return replace(node, data=None)

    # ------------------------------------------------------------------------------------------------------------ grace

    def reclaimable(self, step: Step, holding: wire.Holding) -> wire.Holding:
        """What may be believed of what a client says after a restart that it held."""
        try:
            self.need_inside(step, holding.fid)
        except OSError:
            return wire.Holding(holding.fid, Lease.NONE, Mode.CLOSED)
        if not self.export.read_only:
            return holding
        mode = Mode(int(holding.mode) & ~OPEN_WRITE)
        return wire.Holding(holding.fid, min(holding.lease, Lease.READ), mode, holding.change)
