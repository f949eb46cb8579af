"""Extended attributes: all of an inode's are fetched at once and kept under its lease; `nacre.*` are computed by the
MDS."""

import errno
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

from nacrefs.client.cache import locked
from nacrefs.client.data.commit import commit
from nacrefs.client.data.file import File
from nacrefs.client.data.store import Store
from nacrefs.client.hsm import NAME as HSM
from nacrefs.client.hsm import HsmAttribute
from nacrefs.common.answer import Answer
from nacrefs.common.wire import (
    CAPABILITIES,
    XATTR_BYTES_MAX,
    AttrFlag,
    GetXattr,
    GetXattrs,
    RemoveXattr,
    SetXattr,
    XattrFlag,
)

COMPUTED: Final = b"nacre."
MDS_COMPUTED: Final = (b"nacre.layout", b"nacre.fid", b"nacre.path")
"""What the MDS knows about an inode; other `nacre.` names are the mount's (`client.control`)."""
NAME_MAX: Final = 255
_NAMESPACES: Final = (b"user.", b"trusted.", b"security.", b"system.posix_acl_access", b"system.posix_acl_default")
_XATTRS: Final = int(AttrFlag.XATTRS)


class ExtendedAttributes:
    """getxattr, listxattr, setxattr, removexattr by fid."""

    def __init__(self, store: Store) -> None:
        self._session = store.session
        self._cache = store.session.cache
        self._hsm = HsmAttribute(store.session)
        self.control: Callable[[int, bytes], Answer[bytes]] | None = None
        """who answers for the mount; ENODATA from it for a name that it does not know"""

    def _known(self, fid: int) -> dict[bytes, bytes] | None:
        """All attributes, if they are known."""
        inode = self._cache.inodes.get(fid)
        if inode is None or not inode.lease or inode.attr is None or inode.stale or not self._session.live:
            return None
        if inode.xattrs is not None:
            return inode.xattrs
        return None if inode.attr.flags & _XATTRS else {}

    async def _fetch(self, fid: int) -> dict[bytes, bytes]:
        reply = await self._session.mds.call(GetXattrs(fid))
        return dict(reply.items)

    def getxattr(self, fid: int, name: bytes) -> Answer[bytes]:
        """One value; ENODATA if it is not there."""
        if name.startswith(COMPUTED):
            if name == HSM:
                return self._hsm.get(fid)
            if self.control is not None and name not in MDS_COMPUTED:
                return self.control(fid, name)
            return self._computed(fid, name)
        if not name.startswith(_NAMESPACES):
            raise OSError(errno.EOPNOTSUPP, "only user., trusted., security. and ACLs are kept")
        if name in _NAMESPACES[:3]:
            raise OSError(errno.EINVAL, "there is no name behind the prefix")
        if name == CAPABILITIES and self._changed(fid) is not None:
            raise _absent()
        known = self._known(fid)
        if known is None:
            return self._getxattr(fid, name)
        return _value(known, name)

    def _changed(self, fid: int) -> File | None:
        """The file, if its contents have changed and the MDS has not heard: it then takes its capabilities away."""
        inode = self._cache.inodes.get(fid)
        file = inode.file if inode is not None else None
        return file if file is not None and file.dirty and not file.through else None

    async def _getxattr(self, fid: int, name: bytes) -> bytes:
        return _value(await self._fetch(fid), name)

    async def _computed(self, fid: int, name: bytes) -> bytes:
        return (await self._session.mds.call(GetXattr(fid, name))).value

    def listxattr(self, fid: int) -> Answer[Sequence[bytes]]:
        """The names of those that are stored."""
        known = self._known(fid)
        if known is None:
            return self._listxattr(fid)
        return self._names(fid, known)

    def _names(self, fid: int, known: dict[bytes, bytes]) -> Sequence[bytes]:
        if CAPABILITIES in known and self._changed(fid) is not None:
            return tuple(name for name in known if name != CAPABILITIES)
        return tuple(known)

    async def _listxattr(self, fid: int) -> Sequence[bytes]:
        return self._names(fid, await self._fetch(fid))

    def setxattr(
        self, fid: int, name: bytes, value: bytes, flags: XattrFlag, drop_setgid: bool = False
    ) -> Coroutine[Any, Any, None]:
        """Set one value."""
        if len(name) > NAME_MAX or not name:
            raise OSError(errno.ERANGE, f"an attribute's name has 1..{NAME_MAX} bytes")
        if len(value) > XATTR_BYTES_MAX:
            raise OSError(errno.E2BIG, f"an attribute's value has at most {XATTR_BYTES_MAX} bytes")
        if name == HSM:
            return self._hsm.set(fid, bytes(value))
        return self._change(SetXattr(fid, name, bytes(value), XattrFlag(flags), drop_setgid))

    def removexattr(self, fid: int, name: bytes) -> Coroutine[Any, Any, None]:
        """Remove one; ENODATA if it is not there."""
        return self._change(RemoveXattr(fid, name))

    async def _change(self, request: SetXattr | RemoveXattr) -> None:
        if request.name == CAPABILITIES and (file := self._changed(request.fid)) is not None:
            await commit(file)  # what was written before does not end those that are set now
        inode = self._cache.inode(request.fid)
        with locked(inode):
            await self._session.mds.call(request)
        if inode.file is not None:
            inode.file.plain = -1


def _value(known: dict[bytes, bytes], name: bytes) -> bytes:
    try:
        return known[name]
    except KeyError:
        raise _absent() from None


def _absent() -> OSError:
    return OSError(errno.ENODATA, "there is no such extended attribute")
