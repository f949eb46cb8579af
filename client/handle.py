"""Open files and directories by the numbers that the layer above knows them by."""

import errno
import os
from typing import Final, Generic, TypeVar

from nacrefs.client.cache import Inode
from nacrefs.client.file import File
from nacrefs.client.readahead import ReadAhead

HandleT = TypeVar("HandleT")

O_SYNC_ANY: Final = os.O_SYNC | os.O_DSYNC


class OpenFile:
    """One open of a regular file, with open(2)'s flags."""

    __slots__ = ("ahead", "direct", "file", "flags", "inode", "number", "readable", "sync", "told", "writable")

    def __init__(self, inode: Inode, file: File, flags: int) -> None:
        access = flags & os.O_ACCMODE
        self.number = 0
        self.inode = inode
        self.file = file
        self.readable = access != os.O_WRONLY
        self.writable = access != os.O_RDONLY
        self.flags = flags
        self.sync = bool(flags & O_SYNC_ANY)
        self.direct = False
        self.ahead: ReadAhead | None = None
        self.told = file.told
        """How many of the file's losses its fsync has told of."""


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
