"""Archives by what they are called: which module stores in which kind."""

import asyncio
import errno

from nacrefs.common.wire import ArchiveSpec
from nacrefs.oss.store.directory import DirectoryStore
from nacrefs.oss.store.protocol import ArchiveStore


def open_archive(spec: ArchiveSpec) -> ArchiveStore:
    """The archive; OSError: EINVAL for a kind that is none, EACCES if its credentials cannot be had, EOPNOTSUPP if the
    S3 client is not installed."""
    if spec.kind == "dir":
        return DirectoryStore(spec)
    if spec.kind == "s3":
        try:
            from nacrefs.oss.store.s3 import S3Store
        except ModuleNotFoundError as error:
            raise OSError(
                errno.EOPNOTSUPP,
                f"archive {spec.name}: {error.name} is not installed on this OSS: pip install 'nacrefs[s3]'",
            ) from None
        return S3Store(spec)
    raise OSError(errno.EINVAL, f"archive {spec.name}: there is no kind {spec.kind!r} (s3, dir)")


class Archives:
    """The archives that this process has in use. A spec that changed opens its archive anew."""

    def __init__(self) -> None:
        self._open: dict[tuple[int, str], ArchiveStore] = {}
        """By archive and storage class: rules may want other classes than the archive's own."""
        self._old: list[ArchiveStore] = []
        self._opening = asyncio.Lock()

    async def of(self, spec: ArchiveSpec) -> ArchiveStore:
        """The archive of a spec. It is opened in a thread: loading the S3 clients takes as long as some heartbeats."""
        key = spec.id, spec.storage_class
        store = self._open.get(key)
        if store is not None and store.spec == spec:
            return store
        async with self._opening:
            before = self._open.get(key)
            if before is not None and before.spec == spec:
                return before
            store = await asyncio.to_thread(open_archive, spec)
            if before is not None:
                self._old.append(before)
            self._open[key] = store
            return store

    def forget(self, spec: ArchiveSpec) -> None:
        """Open it anew next time: its credentials may have changed."""
        for key in [key for key in self._open if key[0] == spec.id]:
            self._old.append(self._open.pop(key))

    async def close(self) -> None:
        """Let go of all of them."""
        for store in [*self._old, *self._open.values()]:
            await store.close()
        self._old.clear()
        self._open.clear()
