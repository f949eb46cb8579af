"""Open files and directories by the numbers that the layer above knows them by."""

import errno
import os
from collections.abc import Hashable
from typing import Final, Generic, TypeVar

from nacrefs.client.cache import Inode
from nacrefs.client.data.file import File
from nacrefs.client.data.readahead import ReadAhead

HandleT = TypeVar("HandleT")

O_SYNC_ANY: Final = os.O_SYNC | os.O_DSYNC


class OpenFile:
    """One open of a regular file, with open(2)'s flags. `reads` and `writes` say how it was opened; `readable` and
    `writable`, whether that may be done now: not after a lock was lost that had been taken through it."""

    __slots__ = (
        "ahead", "direct", "file", "flags", "inode", "lost", "number", "readable", "reads", "sync", "told", "writable",
        "writes",
    )  # fmt: skip

    def __init__(self, inode: Inode, file: File, flags: int) -> None:
        access = flags & os.O_ACCMODE
        self.number = 0
        self.inode = inode
        self.file = file
        self.readable = self.reads = access != os.O_WRONLY
        self.writable = self.writes = access != os.O_RDONLY
        self.lost: set[Hashable] | None = None
        """The locks that were lost"""
        self.flags = flags
        self.sync = bool(flags & O_SYNC_ANY)
        self.direct = False
        self.ahead: ReadAhead | None = None
        self.told = file.told
        """How many of the file's losses its fsync has told of."""

    def forfeit(self, lock: Hashable) -> None:
        """A lock that was taken through it is lost: who believes to have it must not go on."""
        self.lost = (self.lost or set()) | {lock}
        self.readable = self.writable = False

    def forgive(self, lock: Hashable) -> None:
        """The lock has been given up by its owner, who may go on."""
        if self.lost is not None:
            self.lost.discard(lock)
            if not self.lost:
                self.lost = None
                self.readable, self.writable = self.reads, self.writes

    def refusal(self, text: str) -> OSError:
        """Why it is not readable, or not writable: `text`, or a lock was lost."""
        if self.lost is None:
            return OSError(errno.EBADF, text)
        return OSError(errno.EIO, "a lock that was taken through this open file is lost: unlock or close the file")


class Handles(Generic[HandleT]):
    """A table of open things. Numbers are not used again."""

    def __init__(self) -> None:
        self.table: dict[int, HandleT] = {}
        self._next = 1

    def add(self, handle: HandleT) -> int:
        """Its number."""
        number = self._next
        self._next += 1
        self.table[number] = handle
        return number

    def get(self, number: int) -> HandleT:
        """The open thing with this number; EBADF if there is none."""
        try:
            return self.table[number]
        except KeyError:
            raise OSError(errno.EBADF, f"there is no open file number {number}") from None

    def pop(self, number: int) -> HandleT:
        """The same, and it is closed."""
        handle = self.get(number)
        del self.table[number]
        return handle
