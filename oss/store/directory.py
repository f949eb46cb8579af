"""An archive in a POSIX directory: for tests, and for gateways to tape that show one.

    KEY                        the object
    .nacre/meta/KEY.json       its metadata
    .nacre/uploads/ID/N        parts of uploads under way; ID/key names their object

Objects appear by rename, after their bytes are on the disk. A key that ends in `/` is a directory. An object `a` and
another `a/b` cannot be there together, as in any directory. A symbolic link is a file, too, with its target in it: one
of the host's would be followed, to what may be anywhere, by everybody who lists or copies the directory.
"""

import asyncio
import contextlib
import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import unquote, urlsplit

from nacrefs.common.wire import TARGET_BYTES_MAX, ArchiveEntry, ArchiveSpec
from nacrefs.oss.store.protocol import Page, check_key

T = TypeVar("T")
_OWN: Final = ".nacre"
_THREADS: Final = 4
_TRIES: Final = 100
_SYMLINK: Final = "012"
"""How the mode of a symbolic link begins (`file-permissions`, octal)."""


class DirectoryStore:
    """The archive below the directory of a `file://` URL, which must exist."""

    def __init__(self, spec: ArchiveSpec) -> None:
        self.spec = spec
        self.root = Path(unquote(urlsplit(spec.url).path))
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="archive-dir")

    async def _do(self, key: str, work: Callable[[], T]) -> T:
        """Work in a thread; its errors with the archive's name."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except OSError as error:
            number = error.errno or errno.EIO
            if number in (errno.EDQUOT, errno.EFBIG):
                number = errno.ENOSPC
            if number == errno.ENOENT and not self.root.is_dir():
                raise OSError(errno.ENODEV, f"archive {self.spec.name}: there is no directory {self.root}") from None
            text = error.strerror or str(error)
            raise OSError(number, f"archive {self.spec.name}, object {key!r}: {text}") from None

    def _path(self, key: str) -> Path:
        check_key(key)
        if key.split("/", 1)[0] == _OWN:
            raise OSError(errno.EINVAL, f"{_OWN} is not for objects")
        return self.root / key

    def _meta(self, key: str) -> Path:
        return self.root / _OWN / "meta" / f"{key.removesuffix('/')}.json"

    def _temporary(self) -> Path:
        directory = self.root / _OWN / "new"
        if not self.root.is_dir():
            raise OSError(errno.ENOENT, "no such directory")
        directory.mkdir(parents=True, exist_ok=True)
        return directory / uuid.uuid4().hex

    # --------------------------------------------------------------------------------------------------------- objects

    async def put(self, key: str, body: Sequence[memoryview], meta: dict[str, str], match: str | None = None) -> str:
        def work() -> str:
            path = self._path(key)
            if key.endswith("/"):
                path.mkdir(parents=True, exist_ok=True)
                return self._describe(key, meta, "")
            temporary = self._temporary()
            digest = hashlib.md5(usedforsecurity=False)
            try:
                with open(temporary, "wb") as file:
                    for part in body:
                        file.write(part)
                        digest.update(part)
                    file.flush()
                    os.fsync(file.fileno())
                return self._publish(key, path, temporary, meta, digest.hexdigest())
            finally:
                temporary.unlink(missing_ok=True)

        return await self._do(key, work)

    def _publish(self, key: str, path: Path, temporary: Path, meta: dict[str, str], etag: str) -> str:
        for left in reversed(range(_TRIES)):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._describe(key, meta, etag, os.stat(temporary).st_mtime_ns)
                os.replace(temporary, path)
                break
            except FileNotFoundError:  # whoever has deleted the last object there has removed the directory, too
                if not left or not self.root.is_dir():
                    raise
        _sync(path.parent)
        return etag

    def _describe(self, key: str, meta: dict[str, str], etag: str, mtime_ns: int = 0) -> str:
        place = self._meta(key)
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._temporary()
        try:
            temporary.write_text(
                json.dumps({"etag": etag, "meta": meta, "class": self.spec.storage_class, "mtime_ns": mtime_ns})
            )
            os.replace(temporary, place)
        finally:
            temporary.unlink(missing_ok=True)
        return etag

    def _described(self, key: str) -> dict[str, Any]:
        try:
            described: dict[str, Any] = json.loads(self._meta(key).read_text())
        except FileNotFoundError:
            return {"etag": "", "meta": {}, "class": ""}
        return described

    async def get(
        self, key: str, start: int, end: int, size: int = -1, etag: str = "", into: memoryview | None = None
    ) -> memoryview:
        def work() -> memoryview:
            with open(self._path(key), "rb") as file:
                actual = os.fstat(file.fileno()).st_size
                if size >= 0 and actual != size:
                    raise OSError(errno.ESTALE, f"it has {actual} bytes, not {size}: it was replaced")
                if etag and (now := _tag(os.fstat(file.fileno()), self._described(key))) != etag:
                    raise OSError(errno.ESTALE, f"its ETag is {now}, not {etag}: it was replaced")
                data = os.pread(file.fileno(), end - start, start)
            if len(data) != end - start:
                raise OSError(errno.EBADMSG, f"{len(data)} bytes came from {start} on, not {end - start}")
            return memoryview(data)

        return await self._do(key, work)

    async def check_whole(self, key: str, data: memoryview, etag: str) -> None:
        """Nothing: these bytes have come over no network."""

    async def head(self, key: str) -> ArchiveEntry:
        return await self._do(key, lambda: self._entry(key, True))

    def _entry(self, key: str, details: bool) -> ArchiveEntry:
        path = self._path(key)
        stat = path.stat()
        described = self._described(key)
        meta = tuple(sorted(_meta_now(path, stat, described).items())) if details else ()
        if key.endswith("/"):
            return ArchiveEntry(key, 0, described["etag"], stat.st_mtime_ns, described["class"], meta)
        return ArchiveEntry(key, stat.st_size, _tag(stat, described), stat.st_mtime_ns, described["class"], meta)

    async def delete(self, keys: Sequence[str]) -> None:
        def work() -> None:
            for key in keys:
                path = self._path(key)
                if path.is_dir():
                    try:
                        path.rmdir()
                    except OSError:
                        continue  # it has objects below it
                else:
                    path.unlink(missing_ok=True)
                self._meta(key).unlink(missing_ok=True)
                for parent in path.parents:
                    if parent == self.root or f"{parent.relative_to(self.root)}/" in keys:
                        break
                    if self._meta(f"{parent.relative_to(self.root)}/").exists():
                        break
                    try:
                        parent.rmdir()
                    except OSError:
                        break

        await self._do(keys[0] if keys else "", work)

    async def page(self, prefix: str, after: str, limit: int) -> Page:
        def work() -> Page:
            if not self.root.is_dir():
                raise OSError(errno.ENOENT, "no such directory")
            found: list[ArchiveEntry] = []
            for key in sorted(self._keys(prefix)):
                if key > after:
                    if len(found) == limit:
                        return Page(found, found[-1].key)
                    with contextlib.suppress(FileNotFoundError):  # it was removed meanwhile
                        found.append(self._entry(key, False))
            return Page(found, "")

        return await self._do(prefix, work)

    def _keys(self, prefix: str) -> Iterator[str]:
        for directory, subdirectories, names in os.walk(self.root):
            if Path(directory) == self.root and _OWN in subdirectories:
                subdirectories.remove(_OWN)
            place = os.path.relpath(directory, self.root)
            base = "" if place == "." else f"{place}/"
            keys = [base + name for name in names]
            if base and self._meta(base).exists():
                keys.append(base)
            yield from (key for key in keys if key.startswith(prefix))

    # --------------------------------------------------------------------------------------------------------- uploads

    def _upload(self, upload: str) -> Path:
        if not upload.isalnum():
            raise OSError(errno.EINVAL, "that is no upload")
        return self.root / _OWN / "uploads" / upload

    async def begin(self, key: str, meta: dict[str, str]) -> str:
        def work() -> str:
            self._path(key)
            if not self.root.is_dir():
                raise OSError(errno.ENOENT, "no such directory")
            upload = uuid.uuid4().hex
            place = self._upload(upload)
            place.mkdir(parents=True)
            try:
                (place / "key").write_text(json.dumps({"key": key, "meta": meta}))
            except OSError:  # without its key it is no upload that anybody could drop
                shutil.rmtree(place)
                raise
            return upload

        return await self._do(key, work)

    async def part(self, key: str, upload: str, number: int, body: memoryview) -> str:
        def work() -> str:
            place = self._upload(upload)
            temporary = place / f"{number}.new"
            with open(temporary, "wb") as file:
                file.write(body)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, place / str(number))
            return hashlib.md5(body, usedforsecurity=False).hexdigest()

        return await self._do(key, work)

    async def complete(self, key: str, upload: str, tags: Sequence[str]) -> str:
        def work() -> str:
            whole = hashlib.md5("".join(tags).encode(), usedforsecurity=False).hexdigest()
            etag = f"{whole}-{len(tags)}"
            place = self._upload(upload)
            if not place.exists() and self._described(key)["etag"] == etag:
                return etag
            meta = json.loads((place / "key").read_text())["meta"]
            temporary = self._temporary()
            try:
                with open(temporary, "wb") as file:
                    for number in range(1, len(tags) + 1):
                        with open(place / str(number), "rb") as part:
                            shutil.copyfileobj(part, file, 1 << 20)
                    file.flush()
                    os.fsync(file.fileno())
                self._publish(key, self._path(key), temporary, meta, etag)
            finally:
                temporary.unlink(missing_ok=True)
            shutil.rmtree(place)
            return etag

        return await self._do(key, work)

    async def abort(self, key: str, upload: str) -> None:
        await self._do(key, lambda: shutil.rmtree(self._upload(upload), ignore_errors=True))

    async def uploads(self, prefix: str = "") -> list[tuple[str, str]]:
        def work() -> list[tuple[str, str]]:
            place = self.root / _OWN / "uploads"
            names = sorted(os.listdir(place)) if place.exists() else []
            found = [(str(json.loads((place / name / "key").read_text())["key"]), name) for name in names]
            return [(key, name) for key, name in found if key.startswith(prefix)]

        return await self._do("", work)

    # ------------------------------------------------------------------------------------------------------ the others

    async def thaw(self, key: str, days: int, tier: str) -> str:
        await self.head(key)
        return "ready"

    async def set_class(self, key: str, storage_class: str, size: int = 0) -> ArchiveEntry:
        raise OSError(errno.EOPNOTSUPP, f"archive {self.spec.name} is a directory and has no storage classes")

    async def probe(self) -> dict[str, bool | str]:
        key = f"nacre-probe-{uuid.uuid4().hex}"
        await self.put(key, [memoryview(b"probe")], {"nacre-fid": "probe"})
        try:
            readable = bytes(await self.get(key, 0, 5)) == b"probe"
            listed = any(entry.key == key for entry in (await self.page(key, "", 2)).entries)
        finally:
            await self.delete([key])
        return {
            "write": True, "read": readable, "list": listed, "delete": True, "parts": True, "metadata": True,
            "checksum": True, "storage_class": False, "restore": False, "class_change": False,
        }  # fmt: skip

    async def close(self) -> None:
        await asyncio.to_thread(self._threads.shutdown)


def _tag(stat: os.stat_result, described: dict[str, Any]) -> str:
    """An object's ETag: the one it was given, unless somebody else has written the file (since)."""
    if described["etag"] and described.get("mtime_ns", stat.st_mtime_ns) == stat.st_mtime_ns:
        return str(described["etag"])
    return f"{stat.st_mtime_ns:x}-{stat.st_size:x}"


def _meta_now(path: Path, stat: os.stat_result, described: dict[str, Any]) -> dict[str, str]:
    """What was said of an object when it was made. It is a symbolic link no more if somebody else has written another
    file there. (One that was copied has another time, and the same bytes.)"""
    meta: dict[str, str] = described["meta"]
    mode = meta.get("file-permissions", "")
    if not mode.startswith(_SYMLINK) or _tag(stat, described) == described["etag"]:
        return meta
    same = stat.st_size <= TARGET_BYTES_MAX and (
        hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() == described["etag"]
    )
    if same:
        return meta
    return {name: value for name, value in meta.items() if name != "file-permissions"}


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
