"""ETags as checksums, of objects of which nothing else is known.

Of an object that was sent in one piece it is mostly the MD5 of its bytes, but nobody promises that: not if it is
encrypted with a key of KMS, nor on all servers. So bytes that differ from it are fetched again, and taken if the same
ones come three times: what is damaged on the way is damaged in different places.
"""

import hashlib
import logging
import re
from typing import Final

log = logging.getLogger("nacre.oss")
_MD5: Final = re.compile(r"[0-9a-f]{32}")
_SAME: Final = 3
_STRANGE_MAX: Final = 8
_KEYS_MAX: Final = 1024


class EtagSums:
    """What one archive's ETags have turned out to be."""

    def __init__(self) -> None:
        self._fit = 0
        self._strange = 0
        self._odd: dict[str, tuple[str, int]] = {}
        """By key: the sum of bytes that came and did not fit, and how often."""

    def says_something(self, etag: str) -> bool:
        """Whether this ETag may be a sum, as far as those of this archive are."""
        return _MD5.fullmatch(etag) is not None and not self._fit < self._strange >= _STRANGE_MAX

    def fits(self, key: str, data: memoryview, etag: str) -> bool:
        """Whether these can be all bytes of the object; False: they are to be fetched again."""
        found = hashlib.md5(data, usedforsecurity=False).hexdigest()
        if found == etag:
            self._fit += 1
            self._odd.pop(key, None)
            return True
        before, times = self._odd.pop(key, ("", 0))
        times = times + 1 if before == found else 1
        if times >= _SAME:
            self._strange += 1
            log.warning("object %r: its ETag is not the MD5 of its bytes, which came %d times alike", key, times)
            return True
        if len(self._odd) >= _KEYS_MAX:
            self._odd.clear()
        self._odd[key] = found, times
        return False
