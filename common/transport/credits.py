"""Credits: how many messages either side may send before the other has made room for more.

Each side posts `limit` receives for ordinary messages and `RESERVED` more for those that return credits, which must
never wait for credit themselves: otherwise both sides could wait for each other for ever. Room that has been made is
told in the header of whatever is sent next, or, when half of it is owed, in a message of its own.

Why RESERVED is enough: a side returns credits when it owes `limit / 2`, so the other side can provoke two such
messages with what it has before it must take in the first of them; the probe of a new connection is one more, and CLOSE
the last.
"""

import errno
from typing import Final

RESERVED: Final = 4


class Credits:
    """One side's accounts. No I/O: what it is told, and what it answers, are numbers."""

    __slots__ = ("available", "far_limit", "limit", "owed")

    def __init__(self, limit: int, far_limit: int) -> None:
        self.limit = limit
        self.far_limit = far_limit
        self.available = far_limit
        """messages that may be sent now"""
        self.owed = 0
        """receives posted again that the other side has not been told of"""

    def take(self) -> bool:
        """Use a credit for an ordinary message; False if there is none."""
        if not self.available:
            return False
        self.available -= 1
        return True

    def granted(self, count: int) -> None:
        """The other side says that it has room for `count` more; OSError EPROTO if it cannot have."""
        self.available += count
        if self.available > self.far_limit:
            raise OSError(errno.EPROTO, f"{self.available} credits, but only {self.far_limit} receives")

    def freed(self) -> None:
        """The receive of an ordinary message has been posted again."""
        self.owed += 1

    @property
    def due(self) -> bool:
        """Whether so much is owed that the other side must be told, even if there is nothing else to say."""
        return self.owed * 2 >= self.limit

    def collect(self) -> int:
        """What is owed, to be put into a message that leaves now."""
        owed, self.owed = self.owed, 0
        return owed
