"""What a client knows of a file that is being brought back from an archive."""

import time
from typing import Final, NamedTuple

from nacrefs.client.cache import READ, Inode
from nacrefs.common.layout import Layout
from nacrefs.common.wire import Capability

BACK_S: Final = 2.0
"""How long it counts that bytes are back: less than a machine takes to start, which may have lost them."""


class Back(NamedTuple):
    """The MDS said that bytes `[start, end)` are there under this layout. It counts while the READ lease of `epoch` is
    held, for without it the file could be released again, until `until_s` (monotonic)."""

    start: int
    end: int
    layout: Layout
    capability: Capability
    epoch: int
    until_s: float

    def counts(self, inode: Inode) -> bool:
        """Whether that is so still."""
        return inode.lease >= READ and inode.epoch == self.epoch and time.monotonic() < self.until_s
