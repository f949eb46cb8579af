"""The Python SDK: a nacrefs filesystem without a mount, as `AsyncClient` in coroutines and as `Client` everywhere else.

    with nacrefs.client.sdk.connect("tcp://mds:9600", keyring="client.keyring") as fs:
        fs.write_bytes("/a/small file", b"one request")
        with fs.open("/data/big", "rb") as file:
            ...

Paths are absolute or relative to the root that is mounted. Errors are those of the `os` module. Permissions are not
checked in this process.
"""

import asyncio
import errno
import io
import os
import stat as stat_
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import IO, Any, Concatenate, Final, Generic, NamedTuple, ParamSpec, TypeVar, overload

from msgspec.structs import replace

from nacrefs.client.config import ClientConfig
from nacrefs.client.filesystem import Changes, Cred, Dirent
from nacrefs.client.paths import AnyPath, absent, existing, find, vacant
from nacrefs.client.sdkfile import AsyncFile, Buffer, RawFile, parse_mode
from nacrefs.client.vfs import Vfs, client_credentials
from nacrefs.common.answer import settle
from nacrefs.common.auth import Credentials
from nacrefs.common.wire import Attr, RenameFlag, Set, Want, XattrFlag

P = ParamSpec("P")
T = TypeVar("T")

_TO_OPEN: Final = Want.LEASE | Want.LAYOUT | Want.DATA
_BUFFER_BYTES: Final = 1 << 20

PLAIN_RENAME: Final = RenameFlag(0)
"""rename(2)'s own behaviour: an existing target is replaced."""


class DirEntry(NamedTuple):
    """One entry of `scandir`: its attributes came with its name."""

    name: str
    path: str
    attr: Attr

    def stat(self) -> os.stat_result:
        """As lstat(2)."""
        return stat_result(self.attr)

    def inode(self) -> int:
        """Its fid."""
        return self.attr.fid

    def is_dir(self) -> bool:
        """Whether it is a directory (symlinks are not followed)."""
        return stat_.S_ISDIR(self.attr.mode)

    def is_file(self) -> bool:
        """Whether it is a regular file (symlinks are not followed)."""
        return stat_.S_ISREG(self.attr.mode)

    def is_symlink(self) -> bool:
        """Whether it is a symbolic link."""
        return stat_.S_ISLNK(self.attr.mode)


def stat_result(attr: Attr) -> os.stat_result:
    """Attributes as the `os` module gives them."""
    seconds = [nanoseconds // 1_000_000_000 for nanoseconds in (attr.atime_ns, attr.mtime_ns, attr.ctime_ns)]
    return os.stat_result(
        (attr.mode, attr.fid, 0, attr.nlink, attr.uid, attr.gid, attr.size, *seconds),
        {
            "st_atime": attr.atime_ns / 1e9,
            "st_mtime": attr.mtime_ns / 1e9,
            "st_ctime": attr.ctime_ns / 1e9,
            "st_atime_ns": attr.atime_ns,
            "st_mtime_ns": attr.mtime_ns,
            "st_ctime_ns": attr.ctime_ns,
            "st_blksize": _BUFFER_BYTES,
            "st_blocks": attr.blocks,
            "st_rdev": attr.rdev,
        },
    )


class AsyncClient:
    """A filesystem in coroutines. Make one with `await AsyncClient.connect(...)`; `vfs` is what lies below."""

    def __init__(self, vfs: Vfs, cred: Cred | None = None, umask: int = 0o022) -> None:
        self.vfs = vfs
        self.cred = cred or Cred(os.geteuid(), os.getegid(), os.getpid())
        self.umask = umask

    @property
    def _maker(self) -> Cred:
        """Who makes something new: the umask counts."""
        return self.cred._replace(umask=self.umask)

    @classmethod
    async def connect(
        cls,
        url: str = "",
        *,
        keyring: str = "",
        credentials: Credentials | None = None,
        config: ClientConfig | None = None,
        subtree: str = "",
    ) -> "AsyncClient":
        """Attach to the MDS at `url`. The key comes from the file `keyring`, or as `credentials`. OSError if that
        fails."""
        config = config or ClientConfig()
        config = replace(config, mds=url or config.mds, subtree=subtree or config.subtree)
        vfs = Vfs(config, credentials or client_credentials(keyring or config.keyring))
        return cls(await vfs.attach())

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Write what is dirty and detach; OSError if something could not be written."""
        await self.vfs.close()

    # ----------------------------------------------------------------------------------------------------- whole files

    async def open(self, path: AnyPath, flags: int = os.O_RDONLY, mode: int = 0o666) -> AsyncFile:
        """open(2)."""
        vfs = self.vfs
        name = os.fsdecode(path)
        place = await find(vfs, path, follow=not flags & os.O_EXCL, want=_TO_OPEN)
        if place.attr is None:
            if not flags & os.O_CREAT:
                raise absent(path)
            found, handle = await settle(vfs.create(place.parent, place.name, mode, flags, self._maker))
            assert found.attr is not None
            return AsyncFile(vfs, found.attr.fid, handle.number, flags, name)
        if flags & os.O_CREAT and flags & os.O_EXCL:
            raise FileExistsError(errno.EEXIST, "file exists", name)
        if stat_.S_ISDIR(place.attr.mode):
            raise IsADirectoryError(errno.EISDIR, "is a directory", name)
        handle = await settle(vfs.open(place.attr.fid, flags & ~(os.O_CREAT | os.O_EXCL)))
        return AsyncFile(vfs, place.attr.fid, handle.number, flags, name)

    async def read_bytes(self, path: AnyPath) -> bytes:
        """A whole file."""
        async with await self.open(path) as file:
            return await file.read()

    async def write_bytes(self, path: AnyPath, data: Buffer, mode: int = 0o666) -> int:
        """A whole file, made or replaced; a small new one costs one request."""
        contents = data if isinstance(data, bytes) else bytes(data)
        if len(contents) <= self.vfs.session.inline_bytes:
            place = await find(self.vfs, path)
            if place.attr is None:
                try:
                    await self.vfs.create_whole(place.parent, place.name, mode, self._maker, contents)
                    return len(contents)
                except FileExistsError:
                    pass  # somebody was faster: replace its contents
                except OSError as error:
                    if error.errno != errno.EFBIG:
                        raise  # the directory has a lower limit of its own
        async with await self.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode) as file:
            return await file.write(contents)

    # --------------------------------------------------------------------------------------------------------- looking

    async def stat(self, path: AnyPath, follow_symlinks: bool = True) -> os.stat_result:
        """stat(2), or lstat(2)."""
        return stat_result(await existing(self.vfs, path, follow_symlinks))

    async def exists(self, path: AnyPath) -> bool:
        """Whether a path leads to something."""
        try:
            return (await find(self.vfs, path)).attr is not None
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return False
            raise

    async def entries(self, path: AnyPath = "/") -> AsyncIterator[DirEntry]:
        """A directory's entries, as they come."""
        vfs = self.vfs
        attr = await existing(vfs, path)
        if not stat_.S_ISDIR(attr.mode):
            raise NotADirectoryError(errno.ENOTDIR, "not a directory", os.fsdecode(path))
        handle = await settle(vfs.opendir(attr.fid))
        top = os.fsdecode(path).rstrip("/")
        try:
            cookie = 0
            while True:
                batch: list[Dirent] = list(await settle(vfs.readdir(handle.number, cookie)))
                if not batch:
                    return
                cookie = batch[-1].cookie
                for entry in batch:
                    if entry.name not in (b".", b".."):
                        name = os.fsdecode(entry.name)
                        yield DirEntry(name, f"{top}/{name}", entry.attr)
        finally:
            await settle(vfs.releasedir(handle.number))

    async def scandir(self, path: AnyPath = "/") -> list[DirEntry]:
        """All entries of a directory with their attributes, in name order."""
        return [entry async for entry in self.entries(path)]

    async def listdir(self, path: AnyPath = "/") -> list[str]:
        """All names in a directory, in order."""
        return [entry.name async for entry in self.entries(path)]

    async def readlink(self, path: AnyPath) -> str:
        """A symbolic link's target."""
        attr = await existing(self.vfs, path, follow=False)
        if not stat_.S_ISLNK(attr.mode):
            raise OSError(errno.EINVAL, "not a symbolic link", os.fsdecode(path))
        return os.fsdecode(await settle(self.vfs.readlink(attr.fid)))

    async def statvfs(self, path: AnyPath = "/") -> os.statvfs_result:
        """Space and inodes, in units of 4 KiB; within the quota of the directory's project, if it has one."""
        attr = await existing(self.vfs, path)
        reply = await settle(self.vfs.statfs(attr.fid))
        total, free, unit = reply.total_bytes // 4096, reply.free_bytes // 4096, 4096
        return os.statvfs_result(
            (unit, unit, total, free, free, reply.files, reply.files_free, reply.files_free, 0, 255)
        )

    # -------------------------------------------------------------------------------------------------------- changing

    async def mkdir(self, path: AnyPath, mode: int = 0o777) -> None:
        """Make a directory."""
        parent, name = await vacant(self.vfs, path)
        await settle(self.vfs.mkdir(parent, name, mode, self._maker))

    async def makedirs(self, path: AnyPath, mode: int = 0o777, exist_ok: bool = False) -> None:
        """Make a directory and those above it that are missing."""
        parts = [part for part in os.fsdecode(path).split("/") if part]
        for count in range(1, len(parts) + 1):
            try:
                await self.mkdir("/" + "/".join(parts[:count]), mode)
            except FileExistsError:
                if count == len(parts) and not (exist_ok and stat_.S_ISDIR((await existing(self.vfs, path)).mode)):
                    raise

    async def remove(self, path: AnyPath) -> None:
        """unlink(2)."""
        place = await find(self.vfs, path, follow=False)
        if place.attr is None:
            raise absent(path)
        if stat_.S_ISDIR(place.attr.mode):
            raise IsADirectoryError(errno.EISDIR, "is a directory", os.fsdecode(path))
        await settle(self.vfs.unlink(place.parent, place.name))

    async def rmdir(self, path: AnyPath) -> None:
        """Remove an empty directory."""
        place = await find(self.vfs, path, follow=False)
        if place.attr is None:
            raise absent(path)
        if not place.name:
            raise OSError(errno.EBUSY, "the root cannot be removed", os.fsdecode(path))
        await settle(self.vfs.rmdir(place.parent, place.name))

    async def rename(self, source: AnyPath, target: AnyPath, flags: RenameFlag = PLAIN_RENAME) -> None:
        """rename(2), or renameat2(2) with flags."""
        old, new = await find(self.vfs, source, follow=False), await find(self.vfs, target, follow=False)
        if old.attr is None:
            raise absent(source)
        if not old.name or not new.name:
            raise OSError(errno.EBUSY, "the root cannot be renamed")
        await settle(self.vfs.rename(old.parent, old.name, new.parent, new.name, flags))

    async def symlink(self, target: AnyPath, path: AnyPath) -> None:
        """Make a symbolic link at `path`."""
        parent, name = await vacant(self.vfs, path)
        await settle(self.vfs.symlink(parent, name, os.fsencode(target), self.cred))

    async def link(self, source: AnyPath, path: AnyPath) -> None:
        """Another name for a file."""
        attr = await existing(self.vfs, source, follow=False)
        parent, name = await vacant(self.vfs, path)
        await settle(self.vfs.link(attr.fid, parent, name))

    async def mknod(self, path: AnyPath, mode: int, rdev: int = 0) -> None:
        """Make a FIFO, socket or device node, or an empty file."""
        parent, name = await vacant(self.vfs, path)
        await settle(self.vfs.mknod(parent, name, mode, rdev, self._maker))

    async def _set(self, path: AnyPath, changes: Changes, follow: bool = True) -> None:
        attr = await existing(self.vfs, path, follow)
        await settle(self.vfs.setattr(attr.fid, changes))

    async def chmod(self, path: AnyPath, mode: int) -> None:
        """Set permissions."""
        await self._set(path, Changes(Set.MODE, mode=mode))

    async def chown(self, path: AnyPath, uid: int, gid: int, follow_symlinks: bool = True) -> None:
        """Set owner and group; -1 leaves one as it is."""
        valid = (Set.UID if uid >= 0 else Set(0)) | (Set.GID if gid >= 0 else Set(0))
        await self._set(path, Changes(valid, uid=max(uid, 0), gid=max(gid, 0)), follow_symlinks)

    async def utime(self, path: AnyPath, ns: tuple[int, int] | None = None, follow_symlinks: bool = True) -> None:
        """Set access and modification time, in nanoseconds (default: now)."""
        now_ns = self.vfs.session.clock.now_ns()
        atime_ns, mtime_ns = ns or (now_ns, now_ns)
        await self._set(path, Changes(Set.ATIME | Set.MTIME, atime_ns=atime_ns, mtime_ns=mtime_ns), follow_symlinks)

    async def truncate(self, path: AnyPath, size: int) -> None:
        """Set a file's size."""
        await self._set(path, Changes(Set.SIZE, size=size))

    # ------------------------------------------------------------------------------------------------------- attributes

    async def getxattr(self, path: AnyPath, name: str | bytes, follow_symlinks: bool = True) -> bytes:
        """One extended attribute."""
        attr = await existing(self.vfs, path, follow_symlinks)
        return await settle(self.vfs.getxattr(attr.fid, os.fsencode(name)))

    async def listxattr(self, path: AnyPath, follow_symlinks: bool = True) -> list[str]:
        """The names of all extended attributes."""
        attr = await existing(self.vfs, path, follow_symlinks)
        return [os.fsdecode(name) for name in await settle(self.vfs.listxattr(attr.fid))]

    async def setxattr(
        self, path: AnyPath, name: str | bytes, value: bytes, flags: int = 0, follow_symlinks: bool = True
    ) -> None:
        """Set one extended attribute; `flags` are os.XATTR_CREATE, os.XATTR_REPLACE."""
        attr = await existing(self.vfs, path, follow_symlinks)
        await settle(self.vfs.setxattr(attr.fid, os.fsencode(name), value, XattrFlag(flags)))

    async def removexattr(self, path: AnyPath, name: str | bytes, follow_symlinks: bool = True) -> None:
        """Remove one extended attribute."""
        attr = await existing(self.vfs, path, follow_symlinks)
        await settle(self.vfs.removexattr(attr.fid, os.fsencode(name)))


class _Blocking(Generic[P, T]):
    """A coroutine method of `AsyncClient` as a blocking method of `Client`."""

    def __init__(self, method: Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]) -> None:
        self._method = method
        self.__doc__ = method.__doc__

    @overload
    def __get__(self, client: None, owner: type) -> "_Blocking[P, T]": ...
    @overload
    def __get__(self, client: "Client", owner: type) -> Callable[P, T]: ...
    def __get__(self, client: "Client | None", owner: type) -> "_Blocking[P, T] | Callable[P, T]":
        if client is None:
            return self
        method = self._method

        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            result: T = client.wait(method(client.aio, *args, **kwargs))
            return result

        return call


class Client:
    """A filesystem for code that is not asynchronous: an event loop of its own in one thread. Any thread may call
    it."""

    def __init__(self, connecting: Callable[[], Coroutine[Any, Any, AsyncClient]]) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="nacre-sdk", daemon=True)
        self._thread.start()
        try:
            self.aio: AsyncClient = self.wait(connecting())
        except BaseException:
            self._stop()
            raise

    def wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine in the client's loop and wait for its result."""
        if not self._thread.is_alive():
            work.close()
            raise ValueError("this client is closed")
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Write what is dirty and detach; OSError if something could not be written."""
        if self._thread.is_alive():
            try:
                self.wait(self.aio.close())
            finally:
                self._stop()

    def open(
        self,
        path: AnyPath,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> IO[Any]:
        """As the builtin `open`; with `buffering=0` (binary only) the raw file."""
        flags, text = parse_mode(mode)
        if text and not buffering:
            raise ValueError("text files cannot be unbuffered")
        file: AsyncFile = self.wait(self.aio.open(path, flags))
        if flags & os.O_APPEND:
            self.wait(file.seek(0, os.SEEK_END))
        raw = RawFile(file, flags, self.wait)
        if not buffering:
            return raw  # type: ignore[return-value]
        size = buffering if buffering > 1 else _BUFFER_BYTES
        access = flags & os.O_ACCMODE
        buffered: Any
        if access == os.O_RDWR:
            buffered = io.BufferedRandom(raw, size)
        elif access == os.O_WRONLY:
            buffered = io.BufferedWriter(raw, size)
        else:
            buffered = io.BufferedReader(raw, size)
        return io.TextIOWrapper(buffered, encoding, errors, newline, buffering == 1) if text else buffered

    def walk(self, top: AnyPath = "/") -> Iterator[tuple[str, list[str], list[str]]]:
        """As `os.walk` from the top down: names may be removed from the second list. Symlinks are not followed."""
        entries = self.scandir(top)
        directories = [entry.name for entry in entries if entry.is_dir()]
        yield os.fsdecode(top), directories, [entry.name for entry in entries if not entry.is_dir()]
        for name in directories:
            yield from self.walk(f"{os.fsdecode(top).rstrip('/')}/{name}")

    read_bytes = _Blocking(AsyncClient.read_bytes)
    write_bytes = _Blocking(AsyncClient.write_bytes)
    stat = _Blocking(AsyncClient.stat)
    exists = _Blocking(AsyncClient.exists)
    scandir = _Blocking(AsyncClient.scandir)
    listdir = _Blocking(AsyncClient.listdir)
    readlink = _Blocking(AsyncClient.readlink)
    statvfs = _Blocking(AsyncClient.statvfs)
    mkdir = _Blocking(AsyncClient.mkdir)
    makedirs = _Blocking(AsyncClient.makedirs)
    remove = _Blocking(AsyncClient.remove)
    rmdir = _Blocking(AsyncClient.rmdir)
    rename = _Blocking(AsyncClient.rename)
    symlink = _Blocking(AsyncClient.symlink)
    link = _Blocking(AsyncClient.link)
    mknod = _Blocking(AsyncClient.mknod)
    chmod = _Blocking(AsyncClient.chmod)
    chown = _Blocking(AsyncClient.chown)
    utime = _Blocking(AsyncClient.utime)
    truncate = _Blocking(AsyncClient.truncate)
    getxattr = _Blocking(AsyncClient.getxattr)
    listxattr = _Blocking(AsyncClient.listxattr)
    setxattr = _Blocking(AsyncClient.setxattr)
    removexattr = _Blocking(AsyncClient.removexattr)


def connect(
    url: str = "",
    *,
    keyring: str = "",
    credentials: Credentials | None = None,
    config: ClientConfig | None = None,
    subtree: str = "",
) -> Client:
    """Attach to the MDS at `url`; OSError if that fails. See `AsyncClient.connect`."""
    return Client(
        lambda: AsyncClient.connect(url, keyring=keyring, credentials=credentials, config=config, subtree=subtree)
    )
