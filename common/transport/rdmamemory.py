"""Memory as an RDMA link sees it: what is registered, and what the other side may touch at the moment.

The other side may write into what a request offers, and read what it brings, until the reply is there or the queue
pair was flushed. As long as that may happen `Exposures` refers to the memory, so the arena gives it to nobody else.
"""

import errno
from collections.abc import Callable, Sequence
from typing import Final

from nacrefs.common.arena import Arena, Segment, locate
from nacrefs.common.transport.fabric import Domain, Piece, Region
from nacrefs.common.transport.link import Done
from nacrefs.common.transport.rdmawire import REGIONS_MAX, joined

STREAM_BYTES: Final = 4096
"""Bulk up to this much rides in the message."""


class Registered:
    """The arena, registered in one protection domain, segment by segment as it grows."""

    def __init__(self, domain: Domain, arena: Arena) -> None:
        self.domain = domain
        self.arena = arena
        self._regions: dict[Segment, Region] = {}
        try:
            arena.attach(self._register)
        except OSError:
            self._close_regions()
            domain.close()
            raise

    def _register(self, segment: Segment) -> None:
        self._regions[segment] = self.domain.register(segment.address, segment.size)

    def piece(self, view: memoryview, *, remote: bool = False) -> Piece | None:
        """Where a view lies, with the key for us or for the other side; None if it is ordinary memory."""
        found = locate(view)
        if found is None:
            return None
        segment, address = found
        region = self._regions.get(segment)
        if region is None:
            return None
        return Piece(address, len(view), region.remote_key if remote else region.local_key)

    def pieces(self, views: Sequence[memoryview], *, remote: bool = False) -> list[Piece] | None:
        """Where all of them lie, neighbours joined; None if one is ordinary memory."""
        found: list[Piece] = []
        for view in views:
            if not len(view):
                continue
            piece = self.piece(view, remote=remote)
            if piece is None:
                return None
            found.append(piece)
        return joined(found) if len(found) > 1 else found

    def copy(self, views: Sequence[memoryview], size: int) -> memoryview | None:
        """The same bytes in registered memory; None if there is no room."""
        target = self.arena.take(size)
        if target is None:
            return None
        at = 0
        for view in views:
            target[at : at + len(view)] = view
            at += len(view)
        return target

    def _close_regions(self) -> None:
        while self._regions:
            self._regions.popitem()[1].close()

    def close(self) -> None:
        """After all queue pairs of the domain."""
        self.arena.detach(self._register)
        self._close_regions()
        self.domain.close()


class Exposure:
    """Memory that the other side may touch on behalf of one request."""

    __slots__ = ("bulk_bytes", "cut", "done", "pieces", "size", "views", "withdrawn")

    def __init__(
        self,
        views: Sequence[memoryview],
        pieces: list[Piece],
        cut: Callable[[], None],
        done: Done | None = None,
        bulk_bytes: int = 0,
    ) -> None:
        self.views = views
        self.pieces = pieces
        self.size = sum(piece.size for piece in pieces)
        self.bulk_bytes = bulk_bytes
        self.done = done
        self.cut = cut
        self.withdrawn = False

    def overlaps(self, pieces: Sequence[Piece]) -> bool:
        """Whether some of this memory is in `pieces` too."""
        return any(
            ours.address < other.address + other.size and other.address < ours.address + ours.size
            for ours in self.pieces
            for other in pieces
        )


_withdrawn: set[Exposure] = set()
"""Of all links: what nobody waits for any more and the other side may still write into."""


class Exposures:
    """What one link exposes, by request. `cut` makes the link's queue pair fail, at once."""

    def __init__(self, registered: Registered, cut: Callable[[], None]) -> None:
        self._registered = registered
        self._cut = cut
        self._of: dict[int, Exposure] = {}

    def offer(self, xid: int, views: Sequence[memoryview]) -> Exposure | None:
        """Room for a reply's bulk; None if it has to come through the stream.

        Memory that an earlier, withdrawn, request had offered must not be written to on its behalf after this: its link
        is cut.
        """
        if xid in self._of or sum(map(len, views)) <= STREAM_BYTES:
            return None
        pieces = self._registered.pieces(views, remote=True)
        if not pieces or len(pieces) > REGIONS_MAX:
            return None
        if _withdrawn:
            for earlier in [exposure for exposure in _withdrawn if exposure.overlaps(pieces)]:
                earlier.cut()
        exposure = self._of[xid] = Exposure(views, pieces, self._cut)
        return exposure

    def bulk(self, xid: int, views: Sequence[memoryview], size: int, done: Done | None) -> Exposure | None:
        """Bytes to be read by the other side, copied first if they are not in registered memory (`done` is called
        then); None if they have to go through the stream. `done` is called when they have been read."""
        if xid in self._of:
            return None
        pieces = self._registered.pieces(views, remote=True)
        if pieces is None or len(pieces) > REGIONS_MAX:
            copy = self._registered.copy(views, size)
            if copy is None:
                return None
            pieces = self._registered.pieces([copy], remote=True)
            assert pieces is not None
            views = [copy]
            if done is not None:
                done()
                done = None
        exposure = self._of[xid] = Exposure(views, pieces, self._cut, done, size)
        return exposure

    def room(self, xid: int, size: int) -> Sequence[memoryview]:
        """The first `size` bytes of what the request had offered; OSError EPROTO if it had not so much."""
        exposure = self._of.get(xid)
        if exposure is None or size > exposure.size:
            raise OSError(errno.EPROTO, f"{size} bytes were written for request {xid}, which offered less")
        chosen: list[memoryview] = []
        for view in exposure.views:
            if size <= 0:
                break
            chosen.append(view[:size])
            size -= len(chosen[-1])
        return chosen

    def end(self, xid: int) -> int:
        """The other side will not touch it any more; how many bytes of bulk it had to fetch."""
        exposure = self._of.pop(xid, None)
        if exposure is None:
            return 0
        if exposure.withdrawn:
            _withdrawn.discard(exposure)
        if exposure.done is not None:
            done, exposure.done = exposure.done, None
            done()
        return exposure.bulk_bytes

    def withdraw(self, xid: int) -> None:
        """Nobody waits for the answer to this request any more."""
        exposure = self._of.get(xid)
        if exposure is not None:
            exposure.withdrawn = True
            _withdrawn.add(exposure)

    def tell(self) -> None:
        """The link ends: whoever waits to hear that his bytes are his again hears it now, though they are kept."""
        for exposure in self._of.values():
            if exposure.done is not None:
                done, exposure.done = exposure.done, None
                done()

    def clear(self) -> None:
        """The queue pair was flushed."""
        for xid in list(self._of):
            self.end(xid)

    def __len__(self) -> int:
        return len(self._of)
