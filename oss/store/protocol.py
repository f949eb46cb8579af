"""What a mover asks of an archive, whatever it is made of.

Keys are text without the archive's prefix: UTF-8, no empty part, neither `.` nor `..`, at most 1024 bytes with the
prefix. Bodies are bytes that have a checksum on the way, so that the archive refuses what was damaged. Errors are
OSError whose text names archive and key and never holds a secret or the body of an answer:

    ENOENT  no such object                ENODEV  no such bucket, or directory
    EACCES  refused, or no credentials    ENOSPC  archive full
    EBADMSG  the bytes that came are not those that were sent, or too few    ENODATA  the object must be thawed first
    ESTALE  the object is another one by now
    EAGAIN  not now (slow down, busy, unavailable)     ETIMEDOUT, ECONNREFUSED …  not reachable
    EOPNOTSUPP  it cannot do that         EIO  anything else

`is_transient` says which of them are worth another try.
"""

import errno
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

from nacrefs.common.wire import ArchiveEntry, ArchiveSpec

KEY_BYTES_MAX: Final = 1024
"""As S3."""
_TRANSIENT: Final = frozenset(
    {
        errno.EAGAIN, errno.ETIMEDOUT, errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE,
        errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EBADMSG,
    }
)  # fmt: skip


def is_transient(error: OSError) -> bool:
    """Whether the same request may succeed a little later."""
    return error.errno in _TRANSIENT


class Page(NamedTuple):
    """Some objects, in key order, and where the next page begins (empty: there are no more)."""

    entries: list[ArchiveEntry]
    after: str


class ArchiveStore(Protocol):
    """One archive. All methods may be called at the same time from one event loop."""

    spec: ArchiveSpec

    async def put(self, key: str, body: Sequence[memoryview], meta: dict[str, str], match: str | None = None) -> str:
        """Make an object of these bytes, replacing one that is there, all at once; its ETag. With `match`, if the
        archive can do that, only if the one that is there has this ETag (empty: there is none): ESTALE otherwise."""
        ...

    async def begin(self, key: str, meta: dict[str, str]) -> str:
        """Begin an object that comes in parts; a name for that."""
        ...

    async def part(self, key: str, upload: str, number: int, body: memoryview) -> str:
        """Send a part (numbers from 1; all but the last at least 5 MiB); its tag."""
        ...

    async def complete(self, key: str, upload: str, tags: Sequence[str]) -> str:
        """Make the object of its parts; the ETag. A second time after success: the same."""
        ...

    async def abort(self, key: str, upload: str) -> None:
        """Drop an upload with its parts, if there is one."""
        ...

    async def get(
        self, key: str, start: int, end: int, size: int = -1, etag: str = "", into: memoryview | None = None
    ) -> memoryview:
        """Bytes `[start, end)`, all of them; in `into`, which must have room for them, or in memory of their own.
        ESTALE if the object is not of this size, or has another ETag."""
        ...

    async def check_whole(self, key: str, data: memoryview, etag: str) -> None:
        """Check all bytes of an object of which nothing but its ETag is known. EBADMSG if they do not fit, and are to
        be fetched again."""
        ...

    async def head(self, key: str) -> ArchiveEntry:
        """The object, with its metadata."""
        ...

    async def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; those that are not there are deleted already."""
        ...

    async def page(self, prefix: str, after: str, limit: int) -> Page:
        """Objects whose keys begin with `prefix` and come behind `after`, without metadata."""
        ...

    async def uploads(self, prefix: str = "") -> list[tuple[str, str]]:
        """Uploads in parts of keys that begin so, begun and neither completed nor aborted: (key, upload)."""
        ...

    async def thaw(self, key: str, days: int, tier: str) -> str:
        """Ask for an object of a cold class to be made readable for some days (0: only look); `ready`, `thawing` or
        `frozen`."""
        ...

    async def set_class(self, key: str, storage_class: str, size: int = 0) -> ArchiveEntry:
        """Move an object of this size to another storage class; EOPNOTSUPP if the archive has none."""
        ...

    async def probe(self) -> dict[str, bool | str]:
        """What the archive can do, found out by doing it with an object of our own that is deleted afterwards."""
        ...

    async def close(self) -> None:
        """Let go of connections and threads."""
        ...


async def abort_uploads(store: ArchiveStore, key: str) -> None:
    """Drop all uploads of a key."""
    for other, upload in await store.uploads(key):
        if other == key:
            await store.abort(key, upload)


def check_key(key: str) -> None:
    """OSError (EINVAL) that says why, unless this can be a key on every kind of archive."""
    parts = key.removesuffix("/").split("/")
    if not key or any(part in ("", ".", "..") for part in parts):
        raise OSError(errno.EINVAL, f"key {key!r} has a part that is empty, `.` or `..`")
    if len(key.encode()) > KEY_BYTES_MAX:
        raise OSError(errno.ENAMETOOLONG, f"key {key[:80]!r}… is longer than {KEY_BYTES_MAX} bytes")
