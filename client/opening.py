"""Opening, creating and closing files: which of it the MDS must hear of, and what happens behind a close."""

import errno
import os
import stat
from typing import Final

from nacrefs.client.cache import INLINE, MODES, NONE, READ, RELEASED, WRITE, Inode, locked
from nacrefs.client.data.commit import commit, commit_quietly, cutting
from nacrefs.client.data.file import File
from nacrefs.client.data.quota import is_near
from nacrefs.client.data.readahead import ReadAhead
from nacrefs.client.data.store import Store
from nacrefs.client.data.writebehind import press
from nacrefs.client.filesystem import Cred, Found, Handle
from nacrefs.client.handle import Handles, OpenFile
from nacrefs.client.statahead import ALL, Statahead
from nacrefs.common.answer import Answer, settle
from nacrefs.common.wire import Create, Mode, Open, Restore, Set, SetAttr, Want

_SCORE_MOST: Final = 16
_SCORE_OPENED: Final = 3
_SCORE_DATA: Final = 4


class Opening:
    """Opens and closes. `handles` are the open files."""

    def __init__(self, store: Store, handles: Handles[OpenFile]) -> None:
        self._store = store
        self._session = store.session
        self._cache = store.session.cache
        self._removals = store.session.cache.removals
        self.handles = handles
        self.ahead = Statahead(store.session)
        self._score = 0

    # --------------------------------------------------------------------------------------- what a lookup should bring

    def want(self) -> Want:
        """What a cold lookup should ask for: layout and contents too if recent ones were followed by an open."""
        return ALL if self._score > _SCORE_DATA else Want.LEASE

    def looked_up(self, inode: Inode) -> None:
        """A cold lookup found this inode."""
        if inode.attr is not None and stat.S_ISREG(inode.attr.mode) and inode.file is None:
            inode.cold = True
            if self._score:
                self._score -= 1

    def _was_opened(self, inode: Inode) -> None:
        if inode.cold:
            inode.cold = False
            self._score = min(_SCORE_MOST, self._score + _SCORE_OPENED)

    # ---------------------------------------------------------------------------------------------------------- opening

    def open(self, fid: int, flags: int) -> Answer[Handle]:
        """Open a regular file: without a word to the MDS if the lease allows it."""
        inode = self._cache.inodes.get(fid)
        if inode is None:
            inode = self._cache.inode(fid)
        elif inode.cold:
            self._was_opened(inode)
        if flags & os.O_NONBLOCK and not flags & os.O_TRUNC and inode.attr is not None and inode.attr.flags & RELEASED:
            return self._open_now(inode, flags)
        needed = READ if flags & os.O_ACCMODE == os.O_RDONLY else WRITE
        if not flags & os.O_TRUNC and inode.lease >= needed and self._session.live and fid not in self._removals.fids:
            attr = inode.attr
            if attr is not None and (
                inode.layout is not None or inode.data is not None or not attr.size or inode.file is not None
            ):
                if not stat.S_ISREG(attr.mode):
                    raise OSError(errno.EISDIR if stat.S_ISDIR(attr.mode) else errno.EINVAL, "not a regular file")
                if inode.trigger:
                    self.ahead.reached(inode)
                return self._opened(inode, self._begin(inode, flags))
        if inode.name and inode.lease and flags & (os.O_ACCMODE | os.O_TRUNC) == os.O_RDONLY:
            return self._open_listed(inode, flags)
        return self._open(inode, flags)

    async def _open_now(self, inode: Inode, flags: int) -> Handle:
        """Open a file whose contents may be in an archive, without waiting: EAGAIN, and they are on their way."""
        await self._session.mds.call(Restore(inode.fid, 0, inode.attr.size if inode.attr is not None else 0, False))
        return await settle(self.open(inode.fid, flags & ~os.O_NONBLOCK))

    def _begin(self, inode: Inode, flags: int) -> OpenFile:
        """Count an open, before the MDS hears of it: an answer to a recall includes it."""
        file = self._store.file(inode)
        handle = OpenFile(inode, file, flags)
        if handle.readable:
            file.readers += 1
            if not handle.writable:
                self._session.used.add(inode.fid)  # what the kernel has cached it reads without a word to us
        if handle.writable:
            file.writers += 1
        return handle

    def _opened(self, inode: Inode, handle: OpenFile) -> Handle:
        leased = inode.lease >= READ
        handle.direct = handle.writable or not leased
        read = self._store.config.read
        if handle.readable:
            limit = read.ahead_bytes if handle.direct else read.ahead_cached_bytes
            handle.ahead = ReadAhead(self._store, handle.file, limit)
        handle.number = self.handles.add(handle)
        return Handle(handle.number, handle.direct, leased and inode.recall is None)

    async def _open_listed(self, inode: Inode, flags: int) -> Handle:
        """Open for reading what a listing has shown: perhaps what the MDS would answer is coming already."""
        directory = self._cache.inodes.get(inode.parent)
        coming = self.ahead.coming(directory, inode.name)
        if coming is not None:
            await coming
            if inode.data is not None or inode.layout is not None:
                return await settle(self.open(inode.fid, flags))
        if directory is not None:
            self.ahead.missed(directory, inode.name, ALL)
        return await self._open(inode, flags)

    async def _open(self, inode: Inode, flags: int) -> Handle:
        await self._removals.over(inode.fid)
        inode = self._cache.inode(inode.fid)  # it may have been dropped before this began
        handle = self._begin(inode, flags)
        file = handle.file
        truncate, recalls = bool(flags & os.O_TRUNC), inode.recalls
        try:
            if truncate:
                async with cutting(file, 0):
                    await self._session.mds.call(Open(inode.fid, file.mode, True))
                    file.was_cut(0)
            else:
                await self._session.mds.call(Open(inode.fid, file.mode))
        except BaseException:
            self._end(handle)
            raise
        inode.asked = recalls
        return self._opened(inode, handle)

    async def create(self, parent: int, name: bytes, mode: int, flags: int, cred: Cred) -> tuple[Found, Handle]:
        """Make a file and open it; one request."""
        access = flags & os.O_ACCMODE
        open_mode = MODES[min(access, 2) + 1]
        directory = self._cache.inode(parent)
        directory.used = True
        known = await self._known(directory, name)
        existing = self._cache.inodes.get(known) if known else None
        if existing is not None and existing.file is not None:
            open_mode |= existing.file.mode
        truncate = bool(flags & os.O_TRUNC)
        request = Create(
            parent, name, stat.S_IMODE(mode), cred.uid, cred.gid, open_mode, bool(flags & os.O_EXCL), truncate,
            umask=cred.umask,
        )  # fmt: skip
        # What is dirty of a file that is cut must not reach the MDS after it has been cut. The file is not locked
        # meanwhile: the name may stand for another one by now, whose holder may wait for this one.
        dirty = existing.file if existing is not None and truncate else None
        # As in `_begin`: a Commit that is sent while this is in service must not say that the file is closed.
        handle = self._begin(existing, flags) if existing is not None and existing.file is not None else None
        try:
            with locked(directory):
                if dirty is None:
                    reply = await self._session.mds.call(request)
                else:
                    dirty.freeze()
                    try:
                        if dirty.dirty:
                            await commit(dirty)
                        reply = await self._session.mds.call(request)
                    finally:
                        dirty.thaw()
        except BaseException:
            if handle is not None:
                self._end(handle)
            raise
        assert reply.node is not None
        inode = self._cache.inode(reply.node.attr.fid)
        if inode.attr is None:
            inode.attr = reply.node.attr
        if handle is not None and handle.inode is not inode:
            self._end(handle)
            handle = None
        if handle is None:
            handle = self._begin(inode, flags)
        if truncate:
            if handle.file.dirty and handle.file is not dirty:  # ours, but we did not know that the name stands for it
                async with cutting(handle.file, 0):
                    await self._session.mds.call(SetAttr(inode.fid, Set.SIZE))
                    handle.file.was_cut(0)
            handle.file.was_cut(0)
        cacheable = inode.lease >= READ and inode.recall is None
        named = directory.lease >= READ and directory.names is not None and directory.names.get(name) == inode.fid
        found = Found(handle.file.attr_now(inode.attr), cacheable, named)
        return found, self._opened(inode, handle)

    async def _known(self, directory: Inode, name: bytes) -> int:
        """The file that a name is known to stand for (0: none is), once this client is not removing that."""
        with locked(directory):
            while (known := directory.names.get(name, 0) if directory.names is not None else 0) in self._removals.fids:
                await self._removals.over(known)
            return known

    async def create_whole(self, parent: int, name: bytes, mode: int, cred: Cred, data: bytes) -> Found:
        """Make a small file with its contents, in one request; EEXIST if the name is there."""
        directory = self._cache.inode(parent)
        directory.used = True
        request = Create(
            parent, name, stat.S_IMODE(mode), cred.uid, cred.gid, Mode.CLOSED, exclusive=True, data=data,
            umask=cred.umask,
        )  # fmt: skip
        with locked(directory):
            reply = await self._session.mds.call(request)
        assert reply.node is not None
        return Found(reply.node.attr, False, False)

    # ---------------------------------------------------------------------------------------------------------- closing

    def flush(self, number: int) -> Answer[None]:
        """A descriptor was closed: say what went wrong so far; wait for the data only if the mount is `sync` or space
        is tight."""
        handle = self.handles.get(number)
        file = handle.file
        if not handle.writes:
            return None
        # (Told here, it is not told: also a child closes its copy when it begins another program.)
        file.check(handle.told)
        if file.dirty:
            sync = self._store.config.write.sync
            if sync or self._session.tight or handle.sync or is_near(file):
                return commit(file, sync=sync or handle.sync)
            press(file)
        return None

    def release(self, number: int) -> Answer[None]:
        """The last descriptor is gone: what is dirty goes to the servers behind the caller's back."""
        self._end(self.handles.pop(number))
        return None

    def _end(self, handle: OpenFile) -> None:
        file, inode = handle.file, handle.inode
        if handle.ahead is not None:
            handle.ahead.drop()
        if handle.reads:
            file.readers -= 1
        if handle.writes:
            file.writers -= 1
        if file.writers:
            return
        if not file.readers and (inode.gone or (inode.attr is not None and not inode.attr.nlink)):
            # It has no name any more and nobody here has it open: this ends it, unless another client has it open.
            if inode.registered != Mode.CLOSED:
                self._session.spawn(commit_quietly(file, NONE))
            else:
                file.abandon(lost=False)
                file.let_go()
        elif (file.dirty and handle.writes) or inode.registered != file.mode_beside(inode.lease):
            self._session.spawn(commit_quietly(file, READ))
        elif inode.lease >= WRITE and not file.dirty:
            self._session.yield_later(inode, READ)
            file.let_go()
        else:
            file.let_go()


def is_inline(file: File) -> bool:
    """Whether a file's contents, as far as we know, lie in the MDT."""
    if file.dirty and not file.through:
        return file.inline
    attr = file.inode.attr
    return attr is not None and bool(attr.flags & INLINE)
