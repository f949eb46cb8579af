"""A filesystem for users whom the MDS does not take for what their kernel takes them for: under keys with root squash.

The kernel lets its own root do everything, and answers from its caches and ours would be given to root too. So before
anything that may be answered here is done for a squashed user, the MDS is asked whether he may. What the MDS is asked
anyway it checks by itself. Other users never come here.
"""

import os
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Final

from nacrefs.client.filesystem import Changes, Found, Handle, Stat
from nacrefs.client.identity import is_squashed
from nacrefs.common.answer import Answer, settle
from nacrefs.common.wire import Access, Set, Want

if TYPE_CHECKING:
    from nacrefs.client.vfs import Vfs

_READ: Final = 4
_WRITE: Final = 2
_SEARCH: Final = 1
_MAY_CHANGE: Final = int(Set.SIZE)


class Squash:
    """The operations that a cache may answer, behind the MDS's word. `install` puts them in their places."""

    def __init__(self, vfs: "Vfs") -> None:
        self._session = vfs.session
        self._lookup, self._open, self._opendir = vfs.lookup, vfs.open, vfs.opendir
        self._getxattr, self._setattr = vfs.getxattr, vfs.setattr

    def install(self, vfs: "Vfs") -> None:
        """Answer instead of the parts of a filesystem."""
        vfs.lookup, vfs.open, vfs.opendir = self.lookup, self.open, self.opendir
        vfs.getxattr, vfs.setattr = self.getxattr, self.setattr

    async def _need(self, fid: int, mask: int) -> None:
        """OSError (EACCES) unless who asks may use it so."""
        await self._session.mds.call(Access(fid, mask))

    @property
    def _squashed(self) -> bool:
        return is_squashed(self._session.squash)

    def lookup(self, parent: int, name: bytes, want: Want | None = None) -> Answer[Found]:
        """What a name stands for."""
        return self._looked_up(parent, name, want) if self._squashed else self._lookup(parent, name, want)

    async def _looked_up(self, parent: int, name: bytes, want: Want | None) -> Found:
        await self._need(parent, _SEARCH)
        return await settle(self._lookup(parent, name, want))

    def open(self, fid: int, flags: int) -> Answer[Handle]:
        """Open a regular file."""
        return self._opened(fid, flags) if self._squashed else self._open(fid, flags)

    async def _opened(self, fid: int, flags: int) -> Handle:
        access = flags & os.O_ACCMODE
        mask = (_READ if access != os.O_WRONLY else 0) | (_WRITE if access != os.O_RDONLY else 0)
        if flags & os.O_TRUNC:
            mask |= _WRITE
        await self._need(fid, mask)
        return await settle(self._open(fid, flags))

    def opendir(self, fid: int) -> Answer[Handle]:
        """Open a directory."""
        return self._opened_directory(fid) if self._squashed else self._opendir(fid)

    async def _opened_directory(self, fid: int) -> Handle:
        await self._need(fid, _READ)
        return await settle(self._opendir(fid))

    def getxattr(self, fid: int, name: bytes) -> Answer[bytes]:
        """One value."""
        if name.startswith(b"user.") and self._squashed:
            return self._got_xattr(fid, name)
        return self._getxattr(fid, name)

    async def _got_xattr(self, fid: int, name: bytes) -> bytes:
        await self._need(fid, _READ)
        return await settle(self._getxattr(fid, name))

    def setattr(self, fid: int, changes: Changes, handle: int | None = None) -> Coroutine[Any, Any, Stat]:
        """Change attributes; cutting a file changes what is cached here before the MDS is asked."""
        if changes.valid & _MAY_CHANGE and handle is None and self._squashed:
            return self._cut(fid, changes)
        return self._setattr(fid, changes, handle)

    async def _cut(self, fid: int, changes: Changes) -> Stat:
        await self._need(fid, _WRITE)
        return await self._setattr(fid, changes)
