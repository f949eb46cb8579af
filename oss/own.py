"""Requests that this server makes to its own handlers: they go the way of everybody's, without a network."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Final

_numbers: Final = itertools.count(1)
_NOTHING: Final = memoryview(b"")


class Own:
    """Who asks: no client, and nobody's session."""

    principal = ""
    session = 0
    state: Any = None

    def __init__(self, name: str) -> None:
        self.name = name


class OwnCall:
    """A request that did not come over a network. What it brings is in `pushed`, until `end`."""

    def __init__(self, peer: Own, bulk: memoryview = _NOTHING) -> None:
        self.peer = peer
        self.xid = self.oldest = next(_numbers)
        self.resent = False
        self.pushed: Sequence[memoryview] = ()
        self._release: Callable[[], None] | None = None
        self._bulk = bulk

    def pull(self) -> memoryview:
        """The bytes to be written."""
        return self._bulk

    def push(self, buffers: Sequence[memoryview], release: Callable[[], None] | None = None) -> None:
        """The bytes that were read."""
        self.pushed = buffers
        self._release = release

    def end(self) -> None:
        """The bytes that were read are not needed any more."""
        release, self._release = self._release, None
        if release is not None:
            release()
