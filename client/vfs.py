"""A mounted filesystem without FUSE: POSIX by fid over a session, caches and object I/O. See client/README.md.

`Vfs` only puts the parts together: each operation of `client.filesystem.Filesystem` is a method of the part that owns
it.
"""

import errno
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from nacrefs.client.cache import Cache
from nacrefs.client.config import ClientConfig
from nacrefs.client.data.copying import Copying
from nacrefs.client.data.fileio import FileIO
from nacrefs.client.data.memory import Memory
from nacrefs.client.data.objects import Objects
from nacrefs.client.data.space import Space
from nacrefs.client.data.store import Store
from nacrefs.client.data.writebehind import press
from nacrefs.client.filesystem import Kernel
from nacrefs.client.handle import Handles, OpenFile
from nacrefs.client.identity import NOBODY_IS_SQUASHED
from nacrefs.client.listing import Listings
from nacrefs.client.locks import Locks
from nacrefs.client.namespace import Namespace
from nacrefs.client.opening import Opening
from nacrefs.client.recall import Recaller
from nacrefs.client.session import Session
from nacrefs.client.squash import Squash
from nacrefs.client.xattrs import ExtendedAttributes
from nacrefs.common.answer import Answer
from nacrefs.common.auth import CredentialSource
from nacrefs.common.clock import Clock
from nacrefs.common.config import ConfigError
from nacrefs.common.keyfile import KeyFile
from nacrefs.common.observe import Meter
from nacrefs.common.wire import Role, Statfs, StatfsReply


class Vfs:
    """A filesystem that is attached. Use `Vfs.open` to make one, `close` to end it."""

    def __init__(
        self,
        config: ClientConfig,
        credentials: CredentialSource,
        meter: Meter | None = None,
        clock: Clock | None = None,
    ) -> None:
        config.check()
        self.config = config
        self.cache = Cache(config.cache.inodes)
        self.session = Session(config, credentials, self.cache, meter, clock)
        self.meter = self.session.meter
        self.memory = Memory(config.cache.memory_bytes, config.patience_s)
        self.objects = Objects(self.session, config.write.request_bytes)
        self.store = Store(self.session, self.objects, self.memory, config)
        self.recaller = Recaller(self.session, self.cache, self.store)
        self.handles: Handles[OpenFile] = Handles()
        opening = Opening(self.store, self.handles)
        namespace = self._namespace = Namespace(self.store, opening)
        locks = self.session.locks = Locks(self.session, self.handles, opening)
        io = self._io = FileIO(self.store, self.handles)
        space = Space(self.store, io)
        copying = Copying(self.store, io)
        listings = Listings(self.store)
        xattrs = self.xattrs = ExtendedAttributes(self.store)
        self.memory.on_pressure = self._press
        self.session.on_limits = self._limits_changed

        self.lookup = namespace.lookup
        self.getattr = namespace.getattr
        self.setattr = namespace.setattr
        self.may_be_setid = namespace.may_be_setid
        self.readlink = namespace.readlink
        self.mknod = namespace.mknod
        self.mkdir = namespace.mkdir
        self.symlink = namespace.symlink
        self.link = namespace.link
        self.unlink = namespace.unlink
        self.rmdir = namespace.rmdir
        self.rename = namespace.rename
        self.create = opening.create
        self.create_whole = opening.create_whole
        self.open = opening.open
        self.flush = locks.flush
        self.release = locks.release
        self.set_lock = locks.set_lock
        self.get_lock = locks.get_lock
        self.read = io.read
        self.write = io.write
        self.fsync = io.fsync
        self.copy_file_range = copying.copy_file_range
        self.fallocate = space.fallocate
        self.lseek = space.lseek
        self.ioctl = no_ioctl
        self.opendir = listings.opendir
        self.readdir = listings.readdir
        self.releasedir = listings.releasedir
        self.getxattr = xattrs.getxattr
        self.listxattr = xattrs.listxattr
        self.setxattr = xattrs.setxattr
        self.removexattr = xattrs.removexattr

    @property
    def root(self) -> int:
        """The fid of the directory that is mounted."""
        return self.session.root

    @property
    def kernel(self) -> Kernel | None:
        """Whoever caches above this filesystem."""
        return self.recaller.kernel

    @kernel.setter
    def kernel(self, kernel: Kernel | None) -> None:
        self.recaller.kernel = self._namespace.kernel = self._io.kernel = kernel

    async def attach(self) -> "Vfs":
        """Connect to the MDS and begin a session; OSError if that does not work."""
        try:
            await self.session.open()
        except BaseException:
            await self.session.close()
            raise
        if self.session.squash > NOBODY_IS_SQUASHED:
            Squash(self).install(self)
        return self

    async def close(self) -> None:
        """Write everything that is dirty and end the session; OSError if something could not be written."""
        try:
            await self.store.write_out_all()
        finally:
            self._stop_retries()
            await self.session.close()
            self._stop_retries()  # of what has failed because the session ended

    def _stop_retries(self) -> None:
        for file in self.store.dirty.values():
            file.stop_retry()

    def _press(self) -> None:
        """Memory is short: drop what was read ahead and is not wanted right now, send what is dirty."""
        for handle in self.handles.table.values():
            if handle.ahead is not None:
                handle.ahead.drop()
        for file in list(self.store.dirty.values()):
            press(file)

    def fsyncdir(self, fid: int) -> Answer[None]:
        """Changes of a directory are durable when they are answered."""
        return None

    def _limits_changed(self) -> None:
        """Quotas have changed: who writes asks what that means for him before he goes on."""
        for handle in self.handles.table.values():
            if handle.writes:
                handle.inode.quota = 0

    def statfs(self, fid: int = 0) -> Coroutine[Any, Any, StatfsReply]:
        """Space and inodes of the whole filesystem, or of the project that a directory belongs to."""
        return self._statfs(fid)

    async def _statfs(self, fid: int) -> StatfsReply:
        return await self.session.mds.call(Statfs(fid))


def no_ioctl(number: int, command: int, data: bytes, room: int) -> Answer[bytes]:
    """There are none but those of a mount (`client.programs`)."""
    raise OSError(errno.ENOTTY, "no such ioctl")


def client_credentials(keyring: str) -> CredentialSource:
    """The client key of a keyring file, which may change; OSError that says what is wrong with it."""
    try:
        source = KeyFile(Path(keyring)).credentials_of(Role.CLIENT)
    except ConfigError as error:
        raise OSError(errno.EACCES, str(error)) from None
    source()  # say at once if it has none
    return source
