"""Programs that do I/O on their open files themselves: what the mount does for them (docs/adr/0011-native-io.md).

The native library (client/native) asks with an ioctl on a descriptor, which names the open file and so says what its
opener may do; an extended attribute would not. The answer is a `wire.IoGrant`. From then on until the last descriptor
of that open file is closed, or the library gives the grant back, the file is open a second time: in a session of the
daemon's own, in which all such opens are registered and nothing is ever cached. So the programs are another client for
the MDS and for the mount alike, and nobody caches what they write.
"""

import asyncio
import errno
import logging
import os
import stat
import struct
import time
from typing import Final

import msgspec

from nacrefs.client.cache import MODES, Cache
from nacrefs.client.handle import OpenFile
from nacrefs.client.session import Session
from nacrefs.client.vfs import Vfs
from nacrefs.common.answer import Answer
from nacrefs.common.auth import CredentialSource, current, make_ticket
from nacrefs.common.codec import encode
from nacrefs.common.wire import (
    Commit,
    Holding,
    IoGrant,
    Lease,
    Mode,
    OpenDirect,
    OstInfo,
    Recall,
    Recalled,
    Right,
)

log = logging.getLogger("nacre.programs")

GRANT: Final = 0xC0000000 | 8192 << 16 | ord("N") << 8 | 0x10
"""ioctl `_IOWR('N', 0x10, char[8192])`: in, `ASK`; out, `PART` and as many bytes of the grant as fit."""
GIVE_BACK: Final = 0x40000000 | 16 << 16 | ord("N") << 8 | 0x11
"""ioctl `_IOW('N', 0x11, char[16])`: the library will not use the grant of this open file any more."""
ASK: Final = struct.Struct("<III4x")
"""Protocol of the ioctl (1), part of the answer that is wanted, `AFRESH` or 0."""
PART: Final = struct.Struct("<II")
"""Length of the whole grant, bytes that follow."""
PROTOCOL: Final = 1
AFRESH: Final = 1
"""The servers did not answer where they were last: ask where they are now."""
TICKET_S: Final = 3600
"""How long a ticket can be used for new connections."""
_SETID: Final = stat.S_ISUID | stat.S_ISGID


class _File:
    """How programs have one file open; `registered` is what the MDS has been told of it."""

    __slots__ = ("lock", "readers", "registered", "writers")

    def __init__(self) -> None:
        self.readers = 0
        self.writers = 0
        self.registered = Mode.CLOSED
        self.lock = asyncio.Lock()

    @property
    def mode(self) -> Mode:
        return MODES[(self.readers > 0) + 2 * (self.writers > 0)]

    def count(self, rights: int, step: int) -> None:
        self.readers += step if rights & Right.READ else 0
        self.writers += step if rights & Right.WRITE else 0


class Programs:
    """Serves the ioctls of one mount: it takes the places of `vfs.ioctl` and `vfs.release`."""

    def __init__(self, vfs: Vfs, credentials: CredentialSource) -> None:
        self._vfs = vfs
        self._credentials = credentials
        self._release = vfs.release
        self._starting = asyncio.Lock()
        self._session: Session | None = None
        self._files: dict[int, _File] = {}
        self._granted: dict[int, tuple[int, int]] = {}
        """Open files with a grant: fid and rights, by the mount's handle."""
        self._parted: dict[int, bytes] = {}
        """Grants too long for one ioctl, until their rest has been fetched."""
        vfs.ioctl = self.ioctl
        vfs.release = self.release

    async def close(self) -> None:
        """End the session; programs that still hold a grant are fenced."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    # --------------------------------------------------------------------------------------------------- what FUSE asks

    def ioctl(self, number: int, command: int, data: bytes, room: int) -> Answer[bytes]:
        """One ioctl on an open file; ENOTTY for one that is not ours."""
        if command == GRANT and len(data) >= ASK.size:
            protocol, part, flags = ASK.unpack_from(data)
            if protocol != PROTOCOL:
                raise OSError(errno.EPROTO, f"the library speaks protocol {protocol}, this mount speaks {PROTOCOL}")
            if part:
                return self._part(number, part, room)
            return self._grant(self._vfs.handles.get(number), flags, room)
        if command == GIVE_BACK:
            self._vfs.handles.get(number)
            return self._give_back(number)
        raise OSError(errno.ENOTTY, "no such ioctl")

    def release(self, number: int) -> Answer[None]:
        """The last descriptor of an open file is gone."""
        if number in self._granted and self._session is not None:
            self._session.spawn(self._give_back(number))
        return self._release(number)

    # ----------------------------------------------------------------------------------------------------------- grants

    def _part(self, number: int, part: int, room: int) -> bytes:
        whole = self._parted.get(number, b"")
        size = room - PART.size
        chunk = whole[part * size : (part + 1) * size]
        if (part + 1) * size >= len(whole):
            self._parted.pop(number, None)
        return PART.pack(len(whole), len(chunk)) + chunk

    async def _grant(self, handle: OpenFile, flags: int, room: int) -> bytes:
        inode, number = handle.inode, handle.number
        attr = inode.attr
        if handle.flags & os.O_APPEND or (attr is not None and attr.mode & _SETID):
            raise OSError(errno.EOPNOTSUPP, "appends, and files with setuid or setgid, are the mount's business")
        session = await self._attached()
        rights = Right(handle.readable * int(Right.READ) | handle.writable * int(Right.WRITE))
        if flags & AFRESH:
            await session.refresh_osts()
        grant = await self._opened(session, inode.fid, number, rights, handle.sync)
        whole = encode(grant)
        if PART.size + len(whole) > room:
            self._parted[number] = whole
        chunk = whole[: room - PART.size]
        return PART.pack(len(whole), len(chunk)) + chunk

    async def _opened(self, session: Session, fid: int, number: int, rights: Right, sync: bool) -> IoGrant:
        file = self._files.setdefault(fid, _File())
        if number not in self._granted:
            self._granted[number] = (fid, int(rights))
            file.count(rights, 1)
        try:
            async with file.lock:
                mode = file.mode
                node = await session.mds.call(OpenDirect(fid, mode, rights))
                file.registered = mode
            layout, capability = node.layout, node.capability
            if layout is None:
                raise OSError(errno.EOPNOTSUPP, "its contents are in an archive: it is read through the mount")
            assert capability is not None
            if layout.mirrors > 1:
                raise OSError(errno.EOPNOTSUPP, "mirrored files are written through the mount")
            osts = [await self._ost(session, index) for index in sorted(set(layout.osts))]
            if any(ost.address.startswith("tls://") for ost in osts):
                raise OSError(errno.EOPNOTSUPP, "the OSTs speak TLS, which only the mount does")
        except BaseException:
            await asyncio.shield(self._give_back(number))
            raise
        if number not in self._vfs.handles.table:  # its process was killed meanwhile
            await self._give_back(number)
            raise OSError(errno.EBADF, "the file has been closed")
        credentials = current(self._credentials)
        ticket = make_ticket(credentials, session.number, int(time.time()) + TICKET_S)
        sync = sync or self._vfs.config.write.sync
        return IoGrant(credentials.cluster, fid, layout, capability, tuple(osts), ticket, sync)

    @staticmethod
    async def _ost(session: Session, index: int) -> OstInfo:
        if index not in session.osts:
            await session.refresh_osts()
        ost = session.osts.get(index)
        if ost is None:
            raise OSError(errno.ENODEV, f"OST {index} is not registered at the MDS; is its server running?")
        return OstInfo(ost.index, ost.address, ost.up, 0, 0)

    async def _give_back(self, number: int) -> bytes:
        """End the open that a grant stands for."""
        self._parted.pop(number, None)
        fid, rights = self._granted.pop(number, (0, 0))
        file, session = self._files.get(fid), self._session
        if file is None or session is None:
            return b""
        file.count(rights, -1)
        async with file.lock:
            mode = file.mode
            if mode != file.registered:
                try:
                    await session.mds.call(Commit(fid, Lease.NONE, mode))
                    file.registered = mode
                except OSError as error:
                    log.log(
                        logging.DEBUG if error.errno == errno.ESTALE else logging.WARNING,
                        "the end of an open of inode %#x was not taken: %s", fid, error.strerror or error,
                    )  # fmt: skip
                    file.registered = mode
        if file.mode == Mode.CLOSED and not file.lock.locked() and self._files.get(fid) is file:
            del self._files[fid]
        return b""

    # ---------------------------------------------------------------------------------------------------------- session

    async def _attached(self) -> Session:
        """The session of the programs, begun when the first of them asks."""
        async with self._starting:
            if self._session is None:
                config = self._vfs.config
                config = msgspec.structs.replace(config, host=f"{config.host_name()} programs")
                session = Session(config, self._credentials, Cache(1), self._vfs.meter, self._vfs.session.clock)
                session.mds.absorb = None  # nothing is remembered
                session.holder = self
                try:
                    await session.open()
                except BaseException:
                    await session.close()
                    raise
                self._session = session
        if not self._session.live:
            await self._session.wait_live()
        return self._session

    def recall(self, request: Recall) -> Answer[Recalled]:
        """No lease is ever held; the opens stay registered."""
        return Recalled(tuple(self._holding(item.fid) for item in request.items))

    def _holding(self, fid: int) -> Holding:
        file = self._files.get(fid)
        return Holding(fid, Lease.NONE, Mode.CLOSED if file is None else file.mode)

    def lost(self, reason: str) -> None:
        """The session is over: OSTs refuse its grants, and the library asks for new ones."""
        log.warning("programs' own I/O is interrupted: %s", reason)
        for file in self._files.values():
            file.registered = Mode.CLOSED

    def fenced(self) -> None:
        """Nothing is cached here that could be out of date."""

    def holdings(self) -> list[Holding]:
        """What the MDS, restarted, must know again."""
        return [self._holding(fid) for fid in self._files]

    def reclaimed(self, holding: Holding) -> None:
        """What it agrees to."""
        file = self._files.get(holding.fid)
        if file is not None:
            file.registered = holding.mode

    # ---------------------------------------------------------------------------------------------------------- reports

    def report(self, fid: int) -> dict[str, object]:
        """How programs use a file, for people: `nacre.io`."""
        file = self._files.get(fid)
        session = self._session
        return {
            "session": session.number if session is not None else 0,
            "readers": file.readers if file is not None else 0,
            "writers": file.writers if file is not None else 0,
        }
