"""What the client remembers of inodes, and the one place where replies are applied to it.

An inode's memory is valid exactly while a lease is held (docs/coherence.md). `Cache.absorb` runs when a reply arrives,
before any later frame is looked at, so grants and recalls take effect in the order in which the MDS decided them.

`Inode.ceiling` closes the gap between giving a lease back and the MDS knowing it: from the moment when the client
begins to give back (recall, yield, commit with less) until the MDS has answered, a grant in a reply that crosses
counts only up to the ceiling. The MDS may then think that we hold more than we do, never the other way round.
"""

import stat
import time
from asyncio import Future, get_running_loop
from collections import OrderedDict
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from nacrefs.client.removals import Removals
from nacrefs.common.layout import Layout
from nacrefs.common.wire import (
    CAPABILITIES,
    Append,
    Attr,
    AttrFlag,
    Capability,
    Commit,
    Create,
    Entry,
    GetAttr,
    GetParent,
    GetXattrs,
    Lease,
    Link,
    Listing,
    Lookup,
    Mkdir,
    Mknod,
    Mode,
    Node,
    Open,
    Readdir,
    Removed,
    RemoveXattr,
    Rename,
    Renamed,
    Request,
    Restore,
    Restored,
    Rmdir,
    Set,
    SetAttr,
    SetXattr,
    Symlink,
    Unlink,
    Xattrs,
)

if TYPE_CHECKING:
    from nacrefs.client.back import Back
    from nacrefs.client.data.file import File
    from nacrefs.client.statahead import Walk

NONE, READ, WRITE = int(Lease.NONE), int(Lease.READ), int(Lease.WRITE)
UNSURE_MAX = 10_000
"""Names of a directory that others may have changed before its whole listing is given up."""
QUOTA_S = 3.0
"""How long we trust `Node.quota`; the MDS remembers it for longer (`mds.access.accounts.ALLOWED_S`)."""
INLINE = int(AttrFlag.INLINE)
_CHANGES_XATTRS = int(Set.MODE | Set.KILL_PRIVILEGES | Set.KILL_CAPABILITIES)
ARCHIVED = int(AttrFlag.ARCHIVED)
RELEASED = int(AttrFlag.RELEASED)
LEASES = (Lease.NONE, Lease.READ, Lease.WRITE)
MODES = (Mode.CLOSED, Mode.READ, Mode.WRITE, Mode.READ | Mode.WRITE)
"""By value: calling or combining an enum's members costs microseconds."""


class Inode:
    """One inode as the client knows it. `attr`, `data`, `layout`, `xattrs`, `names` count only under a lease.

    `names` maps entries of a directory to fids, 0 for a name that is known to be absent; with `complete` a name that
    is not in it is absent too, unless it is among the `unsure`, which others have changed since. `order` is the sorted
    list of present names, made when first needed. `file` is there while the file is open or dirty.
    """

    __slots__ = (
        "asked",
        "attr",
        "back",
        "before",
        "capability",
        "ceiling",
        "cold",
        "complete",
        "data",
        "epoch",
        "fid",
        "file",
        "filled",
        "flip",
        "gone",
        "layout",
        "lease",
        "lowering",
        "mutating",
        "mutation",
        "name",
        "names",
        "order",
        "parent",
        "quota",
        "quota_until_s",
        "recall",
        "recalls",
        "registered",
        "served",
        "shared",
        "stale",
        "trigger",
        "unsure",
        "used",
        "walk",
        "xattrs",
    )

    def __init__(self, fid: int) -> None:
        self.fid = fid
        self.attr: Attr | None = None
        self.asked = -1
        """`recalls` when the MDS was last asked for attributes, alone or with an open"""
        self.lease = NONE
        self.ceiling = WRITE
        self.before = NONE
        """the lease held when giving back began"""
        self.lowering = 0
        """how many givings-back are under way that keep the ceiling down"""
        self.shared = False
        self.stale = False
        """the attributes are not valid although the lease is held"""
        self.layout: Layout | None = None
        self.capability: Capability | None = None
        self.back: Back | None = None
        self.data: bytes | None = None
        """inline contents, or a symlink's target"""
        self.quota_until_s = 0.0
        self.quota = -1
        """`Node.quota`: how many bytes we may add to its owner's files before we report them; -1: as many as we like"""
        self.xattrs: dict[bytes, bytes] | None = None
        self.names: dict[bytes, int] | None = None
        self.order: list[bytes] | None = None
        self.complete = False
        self.unsure: set[bytes] | None = None
        self.filled: bytes | None = b""
        """how far an uninterrupted listing has filled `names`; None: it was interrupted"""
        self.parent = 0
        """the directory in which it was found last, for a directory the one that holds it"""
        self.name = b""
        """the name under which a listing showed it last"""
        self.epoch = 0
        """changes when data that was fetched before may not be used any more"""
        self.used = False
        """the directory was used since its last recall"""
        self.flip = False
        """what the mtime of a shared file was changed by when the kernel asked last"""
        self.cold = False
        """found by a lookup and not opened since"""
        self.file: File | None = None
        self.registered = Mode.CLOSED
        """the open mode that the MDS knows of, beside what leases allow"""
        self.recall: Future[None] | None = None
        """set while a recall is being served"""
        self.recalls = 0
        """grows when a lease ends, and when others may have changed what we know without one"""
        self.served = 0
        """reads that were answered while a recall was being served"""
        self.mutating = 0
        """changes in service for whose time the kernel has locked this inode"""
        self.mutation: Future[None] | None = None
        """done when the next of them begins"""
        self.gone = False
        self.walk: Walk | None = None
        """how this directory is being walked through, name by name"""
        self.trigger = False
        """when this is used, the walk through its directory has come so far that more should be fetched"""

    def lower(self, lease: int) -> None:
        """Begin to give back what is above `lease`: it counts no more, nor do grants above it that cross, until
        `lowered`."""
        if not self.lowering:
            self.before = self.lease
        self.lowering += 1
        self.ceiling = min(self.ceiling, lease)
        if self.lease > lease:
            self.lease = lease
            if not lease:
                self.forget()

    def lowered(self) -> None:
        """The MDS knows."""
        self.lowering -= 1
        if not self.lowering:
            self.ceiling = WRITE

    @property
    def claimed(self) -> int:
        """The lease that the MDS may think we hold: what is being given back counts until it has answered. A Commit
        that is sent again after its restart needs the right under which its data was written."""
        return max(self.before, self.lease) if self.lowering else self.lease

    def begin_mutation(self) -> None:
        """A change for whose time the kernel has locked this inode is in service from now on."""
        self.mutating += 1
        if self.mutation is not None and not self.mutation.done():
            self.mutation.set_result(None)

    def next_mutation(self) -> "Future[None]":
        """Done when the next such change begins."""
        if self.mutation is None or self.mutation.done():
            self.mutation = get_running_loop().create_future()
        return self.mutation

    def forget(self) -> None:
        """Drop all that is valid only under a lease."""
        self.data = None
        self.xattrs = None
        self.names = None
        self.order = None
        self.complete = False
        self.unsure = None
        self.filled = None
        self.stale = False
        self.epoch += 1
        self.recalls += 1

    def forget_names(self, names: Collection[bytes]) -> None:
        """Drop single entries of a directory; what is known of all others stays."""
        self.order = None
        self.filled = None
        known = self.names
        if known is not None:
            for name in names:
                known.pop(name, None)
        if self.complete:
            unsure = self.unsure = self.unsure or set()
            unsure.update(names)
            if len(unsure) > UNSURE_MAX:
                self.complete, self.unsure = False, None

    def set_name(self, name: bytes, fid: int) -> None:
        """Remember what a name of this directory stands for (0: nothing), if the lease allows to."""
        if self.lease < READ:
            return
        names = self.names
        if names is None:
            names = self.names = {}
        if names.get(name, 0) != fid or not fid:
            self.order = None
        names[name] = fid
        if self.unsure:
            self.unsure.discard(name)

    def stands_for(self, name: bytes) -> int | None:
        """The fid under a name of this directory, 0 if there is none, None if that must be asked. Counts under the
        lease, as `names` does, which must be there."""
        assert self.names is not None
        fid = self.names.get(name)
        if fid is None and self.complete and (not self.unsure or name not in self.unsure):
            return 0
        return fid

    @property
    def listed(self) -> bool:
        """Whether `names` is all that is in this directory."""
        return self.complete and not self.unsure

    @property
    def pinned(self) -> bool:
        """It must stay although it was not used for long."""
        return (
            self.file is not None
            or self.recall is not None
            or self.lowering > 0
            or self.registered != Mode.CLOSED
            or self.mutating > 0
        )


@contextmanager
def locked(*inodes: Inode) -> Generator[None]:
    """Around a change for whose time the kernel has locked these inodes. A recall of a directory among them does not
    wait for the kernel, which would forget its names only after that: the change may wait for this very recall."""
    for inode in inodes:
        inode.begin_mutation()
    try:
        yield
    finally:
        for inode in inodes:
            inode.mutating -= 1


class Cache:
    """All inodes that are remembered, least recently used first. `on_full` is told when there are too many."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.inodes: OrderedDict[int, Inode] = OrderedDict()
        self.on_full: Callable[[], None] | None = None
        self.on_shared: Callable[[Inode], None] | None = None
        """told of a lease that ended without a recall"""
        self.removals = Removals()
        self.unknown = Inode(0)
        """stands for inodes that the kernel has locked, and of which we do not know which they are"""
        self._apply: dict[type[Request[Any]], Callable[[Any, Any], None]] = {
            Lookup: self._lookup,
            GetAttr: self._node,
            Append: self._node,
            SetAttr: self._set_attr,
            Restore: self._restored,
            Open: self._open,
            Commit: self._commit,
            SetXattr: self._changed_xattrs,
            RemoveXattr: self._changed_xattrs,
            GetParent: self._node,
            Create: self._create,
            Mknod: self._made,
            Mkdir: self._made,
            Symlink: self._made,
            Link: self._made,
            Unlink: self._removed,
            Rmdir: self._removed,
            Rename: self._renamed,
            Readdir: self._listing,
            GetXattrs: self._xattrs,
        }

    # --------------------------------------------------------------------------------------------------------- asking

    def inode(self, fid: int) -> Inode:
        """The inode, made if it is not known yet."""
        inode = self.inodes.get(fid)
        if inode is None:
            inode = self.inodes[fid] = Inode(fid)
            if len(self.inodes) > self.limit and self.on_full is not None:
                self.on_full()
        return inode

    def drop(self, inode: Inode) -> None:
        """Remove an inode that is not needed any more."""
        if self.inodes.get(inode.fid) is inode:
            del self.inodes[inode.fid]
        inode.lease = NONE
        inode.forget()

    def oldest(self, count: int) -> list[Inode]:
        """Up to `count` inodes that were not used for longest and may go."""
        found: list[Inode] = []
        for seen, inode in enumerate(self.inodes.values()):
            if len(found) == count or seen > 8 * count:
                break
            if not inode.pinned:
                found.append(inode)
        return found

    # -------------------------------------------------------------------------------------------------------- replies

    def absorb(self, request: Request[Any], reply: Any) -> None:
        """Apply a reply, at the moment when it arrives."""
        apply = self._apply.get(type(request))
        if apply is not None:
            apply(request, reply)

    def grant(self, fid: int, attr: Attr | None, lease: int) -> Inode:
        """Apply attributes and a lease from a reply."""
        inode = self.inode(fid)
        ceiling = inode.ceiling
        if lease > ceiling:
            lease = ceiling
        if lease > inode.lease:
            if inode.lease == NONE:
                inode.forget()  # it may be from before the lease
                if attr is not None and attr.flags & ARCHIVED:
                    inode.layout = inode.capability = None
            inode.lease = lease
        if attr is not None:
            known = inode.attr
            if not attr.change:  # out of date when it was sent
                inode.stale = True
                if known is None:
                    inode.attr = attr
            elif known is None or attr.change >= known.change:
                inode.attr = attr
                inode.stale = False
        return inode

    def node(self, node: Node) -> Inode:
        """Apply what a reply says about an inode."""
        inode = self.grant(node.attr.fid, node.attr, node.lease)
        inode.shared = node.shared
        if node.quota >= -1:
            inode.quota = node.quota
            if node.quota >= 0:
                inode.quota_until_s = time.monotonic() + QUOTA_S
        if node.shared and inode.lease:  # our own open made it so: that ends the lease without a recall
            inode.lease = NONE
            inode.forget()
            if self.on_shared is not None:
                self.on_shared(inode)
        new, old = node.capability, inode.capability
        if new is not None and (old is None or not old.rights & ~new.rights or node.layout != inode.layout):
            inode.capability = new
        if node.layout is not None:
            inode.layout = node.layout
        if node.data is not None and inode.lease and inode.attr is node.attr:  # not older than what we know
            inode.data = node.data
        elif not node.attr.flags & INLINE and stat.S_ISREG(node.attr.mode):
            inode.data = None
        return inode

    def _node(self, request: Request[Node], reply: Node) -> None:
        self.node(reply)

    def _restored(self, request: Restore, reply: Restored) -> None:
        self.node(reply.node)

    def _set_attr(self, request: SetAttr, reply: Node) -> None:
        inode = self.node(reply)
        if request.valid & _CHANGES_XATTRS:
            inode.xattrs = None
        if request.valid & 8 and reply.data is None and inode.data is not None:  # Set.SIZE
            inode.data = inode.data[: request.size]

    def _open(self, request: Open, reply: Node) -> None:
        inode = self.node(reply)
        if request.truncate:
            inode.data = reply.data
        inode.registered = registered(inode, request.mode)

    def _create(self, request: Create, reply: Entry) -> None:
        self._made(request, reply)
        if reply.node is None:
            return
        inode = self.inodes[reply.node.attr.fid]
        if request.data is not None and reply.node.data is None:
            inode.data = request.data if inode.lease else None
        elif request.truncate:
            inode.data = reply.node.data
        inode.registered = registered(inode, request.open_mode)

    def _commit(self, request: Commit, reply: Node) -> None:
        inode = self.node(reply)
        if request.dirty and inode.xattrs is not None:
            inode.xattrs.pop(CAPABILITIES, None)
        if request.dirty and reply.data is None:
            inode.data = request.data if inode.lease else None
        inode.registered = registered(inode, request.mode)

    def _entry(self, parent: int, name: bytes, reply: Entry) -> None:
        node = reply.node
        directory = self.grant(parent, reply.parent, reply.parent_lease)
        inode = self.node(node) if node is not None else None
        if reply.parent_lease:
            directory.set_name(name, 0 if inode is None else inode.fid)
        else:  # whatever we hold: the answer was overtaken by a change, or is given for a second time
            directory.forget_names((name,))
        if node is None or inode is None:
            return
        if node.attr.mode & 0o170000 == 0o040000:
            inode.parent = parent

    def _lookup(self, request: Lookup, reply: Entry) -> None:
        self._entry(request.parent, request.name, reply)

    def _made(self, request: Any, reply: Entry) -> None:
        self._entry(request.parent, request.name, reply)
        if type(request) is Mkdir and reply.node is not None:
            made = self.inodes[reply.node.attr.fid]
            if made.lease >= READ and made.names is None:  # new, so it is empty
                made.names = {}
                made.complete = True

    def _unnamed(self, directory: Inode, name: bytes, removed: Removed) -> None:
        self._name(directory, name, 0, removed.parent)
        victim = self.inodes.get(removed.victim.fid)
        if victim is None:
            return
        self.grant(victim.fid, removed.victim, NONE)
        is_directory = stat.S_ISDIR(removed.victim.mode)
        if (is_directory or not removed.victim.nlink) and not removed.orphan:
            victim.gone = True
            if victim.file is None and not victim.recall:
                self.drop(victim)
        elif removed.orphan and victim.file is not None and victim.file.mode != Mode.CLOSED:
            victim.registered = victim.file.mode

    @staticmethod
    def _name(directory: Inode, name: bytes, fid: int, attr: Attr) -> None:
        """Remember what a name stands for, if the directory's attributes that came along are the newest that we know.
        If not, somebody may have used the name again since, and we have been given the lease after that."""
        known = directory.attr
        if attr.change and known is not None and known.change <= attr.change:
            directory.set_name(name, fid)
        else:
            directory.forget_names((name,))

    def _removed(self, request: Unlink | Rmdir, reply: Removed) -> None:
        directory = self.grant(request.parent, reply.parent, NONE)
        self._unnamed(directory, request.name, reply)

    def _renamed(self, request: Rename, reply: Renamed) -> None:
        old = self.grant(request.parent, reply.parent, NONE)
        new = self.grant(request.new_parent, reply.new_parent, NONE)
        if reply.removed is not None:
            self._unnamed(new, request.new_name, reply.removed)
        moved = self.grant(reply.moved.fid, reply.moved, NONE)
        other = reply.other
        if other is not None:
            self.grant(other.fid, other, NONE).parent = request.parent
            self._name(old, request.name, other.fid, reply.parent)
        elif reply.removed is None and reply.moved.nlink > 1 and not stat.S_ISDIR(reply.moved.mode):
            old.forget_names((request.name,))  # if both names stood for this inode, both are still there
        else:
            self._name(old, request.name, 0, reply.parent)
        self._name(new, request.new_name, moved.fid, reply.new_parent)
        moved.parent = request.new_parent

    def _listing(self, request: Readdir, reply: Listing) -> None:
        directory = self.grant(request.fid, reply.attr, reply.lease)
        if directory.lease < READ or not request.lease:
            return
        if not request.after:
            directory.filled = b""
        contiguous = directory.filled == request.after
        names = directory.names
        if names is None:
            names = directory.names = {}
        for entry in reply.entries:
            attr = entry.attr
            names[entry.name] = attr.fid
            if entry.lease:
                inode = self.grant(attr.fid, attr, entry.lease)
                if entry.layout is not None:
                    inode.layout, inode.capability = entry.layout, entry.capability
                elif entry.data is not None and inode.lease and inode.attr is attr:  # not older than what we know
                    inode.data = entry.data
                inode.parent, inode.name = request.fid, entry.name
        directory.order = None
        if len(names) > self.limit:  # too large to be remembered as a whole
            directory.filled = None
            return
        if not contiguous:
            return
        directory.filled = reply.entries[-1].name if reply.entries else request.after
        if reply.end:
            directory.complete = True
            directory.unsure = None
            directory.filled = None

    def _changed_xattrs(self, request: SetXattr | RemoveXattr, reply: Node) -> None:
        inode = self.node(reply)
        if request.name.startswith(b"system."):  # an ACL may be kept in another form, or as permission bits only
            inode.xattrs = None
        elif inode.xattrs is not None:
            if isinstance(request, SetXattr) and not request.name.startswith(b"nacre."):
                inode.xattrs[request.name] = request.value
            else:
                inode.xattrs.pop(request.name, None)

    def _xattrs(self, request: GetXattrs, reply: Xattrs) -> None:
        inode = self.inodes.get(request.fid)
        if inode is not None and inode.lease >= READ and not reply.partial:
            inode.xattrs = dict(reply.items)


def registered(inode: Inode, mode: Mode) -> Mode:
    """What the MDS has registered after it heard that we have the file open so: nothing, if our lease covers it and the
    file has a name."""
    if inode.attr is not None and not inode.attr.nlink:
        return mode
    if int(mode) & 2:
        return Mode.CLOSED if inode.lease >= WRITE else mode
    if int(mode) & 1:
        return Mode.CLOSED if inode.lease >= READ else mode
    return Mode.CLOSED
