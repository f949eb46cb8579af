"""Objects that others may write, too: nothing is replaced that is not known.

The object is looked at before it is replaced, and the server is asked to replace that one only (`If-Match`,
`If-None-Match`); one that cannot leaves the moment between the two.
"""

import errno
from collections.abc import Sequence
from typing import Final

from nacrefs.oss.store.protocol import ArchiveStore

_TRIES: Final = 3


async def expected(store: ArchiveStore, key: str, fid: str, match: str | None) -> str | None:
    """The ETag of the object that is to be replaced, empty if there is none; None if it may be any (`match` is None).
    OSError (ESTALE) if it is neither `match` nor one that the file `fid` has made: an upload whose answer was lost."""
    if match is None:
        return None
    try:
        found = await store.head(key)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
        return ""
    if found.etag != match and (not fid or dict(found.meta).get("nacre-fid") != fid):
        raise OSError(
            errno.ESTALE,
            f"archive {store.spec.name}, object {key!r}: somebody else has {'replaced' if match else 'made'} it since",
        )
    return found.etag


async def put_matching(
    store: ArchiveStore, key: str, body: Sequence[memoryview], meta: dict[str, str], match: str | None
) -> str:
    """Make an object, or replace the one that is `expected`; its ETag."""
    for _ in range(_TRIES):
        replaced = await expected(store, key, meta.get("nacre-fid", ""), match)
        try:
            return await store.put(key, body, meta, replaced)
        except OSError as error:
            if error.errno != errno.ESTALE or match is None:
                raise
    raise OSError(errno.EAGAIN, f"archive {store.spec.name}, object {key!r}: it is being replaced by others")
