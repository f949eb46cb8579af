"""How much room an OST has: never all of the disk."""

import errno
import os
import time
from typing import Final

_NEAR_BYTES: Final = 256 << 20
_REFRESH_S: Final = 1.0


class Space:
    """Room on the file system of a directory, less a reserve.

    `statvfs` is asked once a second, and for every write once less than 256 MiB are left.
    """

    def __init__(self, directory: str, reserve_bytes: int, reserve_percent: float, where: str) -> None:
        self._directory = directory
        self.where = where
        total = self._statvfs()[0]
        self.reserve_bytes = max(reserve_bytes, int(total * reserve_percent / 100))
        self._room_bytes = 0
        self._asked_s = float("-inf")

    def _statvfs(self) -> tuple[int, int]:
        stat = os.statvfs(self._directory)
        return stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize

    def totals(self) -> tuple[int, int]:
        """Bytes that objects can have in all, and that are free, now."""
        total, available = self._statvfs()
        return max(0, total - self.reserve_bytes), max(0, available - self.reserve_bytes)

    def has_room(self, length: int) -> bool:
        """Whether `length` more bytes may be allocated; counts them as allocated if so."""
        now_s = time.monotonic()
        if now_s - self._asked_s > _REFRESH_S or self._room_bytes - length < _NEAR_BYTES:
            self._asked_s = now_s
            self._room_bytes = self._statvfs()[1] - self.reserve_bytes
        if length > self._room_bytes:
            return False
        self._room_bytes -= length
        return True

    def full(self) -> OSError:
        """The error for a write that has no room."""
        return OSError(
            errno.ENOSPC,
            f"{self.where} is full but for its reserve of {self.reserve_bytes >> 20} MiB; delete or move files, or "
            f"lower reserve_bytes and reserve_percent in oss.toml",
        )
