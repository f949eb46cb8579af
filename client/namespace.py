"""Names and attributes: what the cache can answer is answered at once, everything else is one request to the MDS.

Whether the caller may remember an answer is decided when the answer is given, not when the reply came: a recall may
have come in between.
"""

import errno
import stat
from collections.abc import Coroutine
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

from msgspec.structs import replace

from nacrefs.client.cache import NONE, Inode, locked
from nacrefs.client.data.commit import commit_quietly, cutting
from nacrefs.client.data.file import File
from nacrefs.client.data.store import Store
from nacrefs.client.filesystem import Changes, Cred, Found, Kernel, Stat
from nacrefs.client.opening import Opening
from nacrefs.common.answer import Answer, settle
from nacrefs.common.wire import (
    NAME_BYTES_MAX,
    TARGET_BYTES_MAX,
    Attr,
    Commit,
    Entry,
    GetAttr,
    GetParent,
    Lease,
    Link,
    Lookup,
    Mkdir,
    Mknod,
    Mode,
    Removed,
    Rename,
    RenameFlag,
    Request,
    Rmdir,
    Set,
    SetAttr,
    Symlink,
    Unlink,
    Want,
)

_ALSO_GONE: Final = Want.LEASE | Want.GONE
_SETID: Final = stat.S_ISUID | stat.S_ISGID
_ABSENT: Final = Found(None, False, True)
_ABSENT_NOW: Final = Found(None, False, False)


class Namespace:
    """Operations on names and attributes. `kernel` is whoever caches above us."""

    def __init__(self, store: Store, opening: Opening) -> None:
        self.kernel: Kernel | None = None
        self._store = store
        self._session = store.session
        self._cache = store.session.cache
        self._opening = opening
        self._ahead = opening.ahead
        self._touch = store.session.cache.inodes.move_to_end
        self._inodes = store.session.cache.inodes

    # ---------------------------------------------------------------------------------------------------------- looking

    def lookup(self, parent: int, name: bytes, want: Want | None = None) -> Answer[Found]:
        """What a name stands for. `want`: what a cold lookup asks for, if the caller knows what it will do next."""
        if len(name) > NAME_BYTES_MAX:
            raise OSError(errno.ENAMETOOLONG, f"a name has at most {NAME_BYTES_MAX} bytes")
        directory = self._inodes.get(parent)
        if directory is not None and directory.lease and self._session.live:
            directory.used = True
            names = directory.names
            if names is not None:
                fid = directory.stands_for(name)
                if fid:
                    inode = self._inodes.get(fid)
                    if inode is not None and inode.lease and inode.attr is not None and not inode.stale:
                        self._touch(fid)
                        if inode.trigger:
                            self._ahead.reached(inode)
                        file = inode.file
                        if file is not None and file.version != file.committed:
                            return Found(file.attr_now(inode.attr), False, True)
                        return Found(inode.attr, inode.recall is None, True)
                    return self._lookup_known(directory, name, fid)
                if fid == 0:
                    self._touch(parent)
                    if name not in names:
                        if len(names) > self._cache.limit:
                            return _ABSENT_NOW
                        names[name] = 0  # so that a recall of this name reaches the kernel
                    return _ABSENT
        if name == b"." or name == b"..":
            return self._lookup_dots(parent, name)
        return self._lookup(parent, name, want)

    async def _lookup_known(self, directory: Inode, name: bytes, fid: int) -> Found:
        """The entry is known, the inode's attributes are not."""
        try:
            found = await settle(self.getattr(fid))
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            return await self._lookup(directory.fid, name)
        if not found.attr.nlink:
            return await self._lookup(directory.fid, name)
        return Found(found.attr, found.cacheable, self._named(directory, name, fid))

    async def _lookup_dots(self, parent: int, name: bytes) -> Found:
        if name == b".":
            here = await settle(self.getattr(parent))
            return Found(here.attr, here.cacheable, False)
        node = await self._session.mds.call(GetParent(parent))
        inode = self._inodes.get(node.attr.fid)
        return Found(node.attr, inode is not None and self._cacheable(inode), False)

    async def _lookup(self, parent: int, name: bytes, want: Want | None = None) -> Found:
        coming = self._ahead.coming(self._inodes.get(parent), name)
        if coming is not None:
            await coming
            directory = self._inodes.get(parent)
            if directory is not None and directory.names is not None and directory.names.get(name):
                return await settle(self.lookup(parent, name, want))
        want = want or self._opening.want()
        reply = await self._session.mds.call(Lookup(parent, name, want))
        directory = self._cache.inode(parent)
        directory.used = True
        node = reply.node
        if node is None:
            return _ABSENT if self._named(directory, name, 0) else _ABSENT_NOW
        inode = self._inodes.get(node.attr.fid)
        if inode is None:
            return Found(node.attr, False, False)
        self._opening.looked_up(inode)
        self._ahead.missed(directory, name, want)
        return self._found(directory, name, inode, node.attr)

    def _named(self, directory: Inode, name: bytes, fid: int) -> bool:
        """Whether we still know that the name stands for this."""
        names = directory.names
        return bool(directory.lease) and names is not None and names.get(name) == fid and self._session.live

    def _cacheable(self, inode: Inode) -> bool:
        file = inode.file
        return (
            bool(inode.lease)
            and inode.recall is None
            and not inode.stale
            and (file is None or not file.dirty)
            and self._session.live
        )

    def _found(self, directory: Inode, name: bytes, inode: Inode, attr: Attr) -> Found:
        named = self._named(directory, name, inode.fid)
        if inode.lease and inode.attr is not None and inode.file is not None:
            attr = inode.file.attr_now(inode.attr)
        return Found(attr, self._cacheable(inode), named)

    def getattr(self, fid: int, handle: int | None = None) -> Answer[Stat]:
        """Attributes, with what is dirty here."""
        inode = self._inodes.get(fid)
        if inode is not None and inode.lease and inode.attr is not None and not inode.stale and self._session.live:
            self._touch(fid)
            inode.used = True
            file = inode.file
            if file is not None and file.version != file.committed:
                return Stat(file.attr_now(inode.attr), False)
            return Stat(inode.attr, inode.recall is None)
        return self._getattr(fid, handle is not None)

    async def _getattr(self, fid: int, reading: bool) -> Stat:
        inode = self._inodes.get(fid)
        recalls = inode.recalls if inode is not None else -1
        node = await self._session.mds.call(GetAttr(fid, _ALSO_GONE))
        inode = self._inodes.get(fid)
        if inode is None:
            return Stat(node.attr, False)
        inode.asked = recalls
        attr = node.attr
        if reading and not inode.lease and self.kernel is not None:
            # The kernel asks by handle before it reads through a descriptor whose pages it keeps, from before the file
            # was shared. It drops them when it sees another mtime (AUTO_INVAL_DATA), so it gets one that is a
            # nanosecond off every other time. (If it were told to forget them now, it would ignore the size in this
            # very answer.) Programs that ask are told by path, and the truth.
            inode.flip = not inode.flip
            attr = replace(attr, mtime_ns=attr.mtime_ns ^ inode.flip)
        if inode.lease and inode.attr is not None:
            attr = inode.file.attr_now(inode.attr) if inode.file is not None else inode.attr
        return Stat(attr, self._cacheable(inode))

    def may_be_setid(self, fid: int) -> bool:
        """Whether a file may be setuid or setgid. Of one that we write without a lease we know what we were told since
        the last recall: who makes a file setid recalls such writers, too."""
        inode = self._inodes.get(fid)
        if inode is None or inode.attr is None:
            return True
        if inode.lease:
            known = not inode.stale
        else:
            known = inode.asked == inode.recalls and bool(inode.registered & Mode.WRITE)
        return not known or inode.attr.mode & _SETID != 0

    def readlink(self, fid: int) -> Answer[bytes]:
        """A symlink's target."""
        inode = self._inodes.get(fid)
        if inode is not None and inode.lease and inode.data is not None and self._session.live:
            return inode.data
        return self._readlink(fid)

    async def _readlink(self, fid: int) -> bytes:
        node = await self._session.mds.call(GetAttr(fid, Want.LEASE | Want.DATA))
        if not stat.S_ISLNK(node.attr.mode):
            raise OSError(errno.EINVAL, "not a symbolic link")
        if node.data is None:
            raise OSError(errno.EIO, "the MDS did not send the symlink's target")
        return node.data

    # --------------------------------------------------------------------------------------------------------- changing

    def setattr(self, fid: int, changes: Changes, handle: int | None = None) -> Coroutine[Any, Any, Stat]:
        """chmod, chown, truncate, utimens: one request."""
        if handle is not None and changes.valid & Set.SIZE:
            opened = self._opening.handles.get(handle)
            if opened.lost is not None:
                raise opened.refusal("")
        return self._setattr(fid, changes)

    async def _setattr(self, fid: int, changes: Changes) -> Stat:
        inode = self._cache.inode(fid)
        if changes.valid & Set.ATIME:
            self._session.used.discard(fid)  # who sets it knows of the reads before
        file = inode.file
        request = SetAttr(fid, *changes)
        if file is not None and changes.valid & Set.MTIME:
            file.mtime_ns = changes.mtime_ns
        if changes.valid & Set.SIZE:
            if changes.size < 0:
                raise OSError(errno.EINVAL, "negative size")
            file = self._store.file(inode)
            try:
                async with cutting(file, changes.size):
                    node = await self._session.mds.call(request)
                    file.was_cut(changes.size)
                    if changes.valid & Set.MTIME:
                        file.mtime_ns = changes.mtime_ns
            finally:
                file.let_go()
        else:
            with locked(inode):
                node = await self._session.mds.call(request)
        attr = node.attr
        if inode.lease and inode.attr is not None:
            attr = inode.file.attr_now(inode.attr) if inode.file is not None else inode.attr
        return Stat(attr, self._cacheable(inode))

    async def _make(self, parent: int, name: bytes, request: Request[Entry]) -> Found:
        if len(name) > NAME_BYTES_MAX:
            raise OSError(errno.ENAMETOOLONG, f"a name has at most {NAME_BYTES_MAX} bytes")
        directory = self._cache.inode(parent)
        directory.used = True
        with locked(directory):
            reply = await self._session.mds.call(request)
        node = reply.node
        assert node is not None
        inode = self._inodes.get(node.attr.fid)
        if inode is None:
            return Found(node.attr, False, False)
        return self._found(directory, name, inode, node.attr)

    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, cred: Cred) -> Answer[Found]:
        """Make a node of any type but directory and symlink."""
        return self._make(parent, name, Mknod(parent, name, mode, rdev, cred.uid, cred.gid, cred.umask))

    def mkdir(self, parent: int, name: bytes, mode: int, cred: Cred) -> Answer[Found]:
        """Make a directory."""
        return self._make(parent, name, Mkdir(parent, name, mode & 0o7777, cred.uid, cred.gid, cred.umask))

    def symlink(self, parent: int, name: bytes, target: bytes, cred: Cred) -> Answer[Found]:
        """Make a symbolic link."""
        if len(target) > TARGET_BYTES_MAX:
            raise OSError(errno.ENAMETOOLONG, f"a symlink's target has at most {TARGET_BYTES_MAX} bytes")
        return self._make(parent, name, Symlink(parent, name, target, cred.uid, cred.gid))

    def link(self, fid: int, parent: int, name: bytes) -> Answer[Found]:
        """Another name for an inode."""
        return self._make(parent, name, Link(fid, parent, name))

    def unlink(self, parent: int, name: bytes) -> Coroutine[Any, Any, None]:
        """Remove a name."""
        return self._unlink(parent, name)

    async def _unlink(self, parent: int, name: bytes) -> None:
        directory = self._cache.inode(parent)
        directory.used = True
        expected, opened = self._victim(directory, name)
        with self._ending(expected, opened):
            with locked(directory):
                reply = await self._session.mds.call(Unlink(parent, name, expected, opened))
            self._buried(reply)

    def _victim(self, directory: Inode, name: bytes) -> tuple[int, bool]:
        """The fid that we believe a name stands for (0: no idea), and whether we have it open, or have still to report
        what was written: others may have it open, and that is theirs to read."""
        if not directory.lease or directory.names is None:
            return 0, False
        fid = directory.names.get(name, 0)
        inode = self._inodes.get(fid) if fid else None
        file = inode.file if inode is not None else None
        return fid, file is not None and (file.mode != Mode.CLOSED or file.dirty)

    def _standing_for(self, directory: Inode, name: bytes) -> tuple[Inode, ...]:
        """The inode that a name stands for, if that matters to `locked`."""
        fid = directory.stands_for(name) if directory.lease and directory.names is not None else None
        if fid is None:
            return (self._cache.unknown,)
        inode = self._inodes.get(fid)
        return (inode,) if inode is not None else ()

    def _ending(self, expected: int, opened: bool) -> AbstractContextManager[None]:
        """Around a removal, and what comes of it: nobody opens a file of which the MDS hears that it is not open."""
        return self._cache.removals.of(expected) if expected and not opened else nullcontext()

    def _buried(self, removed: Removed) -> None:
        """A name is gone; perhaps its inode with it."""
        inode = self._inodes.get(removed.victim.fid)
        file = inode.file if inode is not None else None
        if removed.orphan:
            if file is not None and file.mode != Mode.CLOSED:
                return
            if file is not None and file.dirty:
                self._session.spawn(self._report_orphan(file))
                return
            if file is not None:
                file.let_go()
            lease = Lease(inode.lease if inode is not None else NONE)
            self._session.spawn(self._end_orphan(removed.victim.fid, lease))
        elif inode is not None and inode.gone and file is not None and file.mode == Mode.CLOSED:
            file.abandon(lost=False)
            file.let_go()

    async def _report_orphan(self, file: File) -> None:
        """Report what was written to a file before it was removed, then that we do not have it open."""
        await commit_quietly(file, NONE)
        await self._end_orphan(file.inode.fid, Lease.NONE)

    async def _end_orphan(self, fid: int, lease: Lease) -> None:
        """Tell the MDS that we do not have an orphan open, so that it can go."""
        try:
            await self._session.mds.call(Commit(fid, lease, Mode.CLOSED))
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
        inode = self._inodes.get(fid)
        if inode is not None and inode.file is None:
            self._cache.drop(inode)

    def rmdir(self, parent: int, name: bytes) -> Coroutine[Any, Any, None]:
        """Remove an empty directory."""
        return self._rmdir(parent, name)

    async def _rmdir(self, parent: int, name: bytes) -> None:
        directory = self._cache.inode(parent)
        directory.used = True
        with locked(directory, *self._standing_for(directory, name)):
            await self._session.mds.call(Rmdir(parent, name))

    def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: RenameFlag
    ) -> Coroutine[Any, Any, None]:
        """Move a name."""
        return self._rename(parent, name, new_parent, new_name, flags)

    async def _rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: RenameFlag) -> None:
        if len(new_name) > NAME_BYTES_MAX:
            raise OSError(errno.ENAMETOOLONG, f"a name has at most {NAME_BYTES_MAX} bytes")
        old, new = self._cache.inode(parent), self._cache.inode(new_parent)
        old.used = new.used = True
        expected, opened = self._victim(new, new_name)
        with self._ending(expected, opened):
            with locked(old, new, *self._standing_for(old, name), *self._standing_for(new, new_name)):
                reply = await self._session.mds.call(
                    Rename(parent, name, new_parent, new_name, RenameFlag(flags), expected, opened)
                )
            if reply.removed is not None:
                self._buried(reply.removed)
