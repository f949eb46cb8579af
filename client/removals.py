"""Files that this client may be removing: who opens one of them waits until that is decided.

`Unlink` and `Rename` tell the MDS whether we have the victim open, as it is when they are sent; if not, the file ends
with its last name. An open under a lease, of which the MDS does not hear, would then be of a file that is no more: it
would read nothing, and what it writes would make objects that belong to nobody.
"""

import asyncio
from collections.abc import Generator
from contextlib import contextmanager


class Removals:
    """The removals that are in service. `fids` counts them by the file that they may end."""

    def __init__(self) -> None:
        self.fids: dict[int, int] = {}
        self._over: dict[int, asyncio.Future[None]] = {}

    @contextmanager
    def of(self, fid: int) -> Generator[None]:
        """Around a request that says that a file is not open here, and the handling of its answer."""
        self.fids[fid] = self.fids.get(fid, 0) + 1
        try:
            yield
        finally:
            self.fids[fid] -= 1
            if not self.fids[fid]:
                del self.fids[fid]
                if (over := self._over.pop(fid, None)) is not None:
                    over.set_result(None)

    async def over(self, fid: int) -> None:
        """Wait until this file is not being removed."""
        while fid in self.fids:
            if fid not in self._over:
                self._over[fid] = asyncio.get_running_loop().create_future()
            await asyncio.wait((self._over[fid],))
