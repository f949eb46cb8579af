"""The receiving half of an RDMA link: messages that came, made into frames, handed over in order.

Bytes of the frame stream go through the same decoder as on TCP. A frame whose bulk has to be fetched first (PULL) is
held until that has been read; meanwhile those behind it are decoded, and their bulk fetched, too.
"""

import errno
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from nacrefs.common import faults
from nacrefs.common.framing import Decoder, Frame, FramingError, Kind
from nacrefs.common.transport.credits import Credits
from nacrefs.common.transport.link import Receiver
from nacrefs.common.transport.rdmamemory import Exposures, Registered
from nacrefs.common.transport.rdmaqueue import PIECES_MAX, WorkQueue
from nacrefs.common.transport.rdmawire import Place, Prefix, What, first_places, transfers
from nacrefs.common.wire import BULK_BYTES_MAX

_AHEAD_MAX: Final = 32
"""Frames that may be decoded while one waits for its bulk."""


class _Entry:
    """A decoded frame in line."""

    __slots__ = ("frame", "waiting")

    def __init__(self, frame: Frame, waiting: bool) -> None:
        self.frame = frame
        self.waiting = waiting


class Arrivals:
    """Messages in, frames out. `say_pulled` tells the other side that the bulk of a frame has been fetched."""

    def __init__(
        self,
        work: WorkQueue,
        credits: Credits,
        registered: Registered,
        exposures: Exposures,
        rooms: dict[int, Sequence[Place]],
        say_pulled: Callable[[int], None],
        answered: Callable[[int], None],
    ) -> None:
        self.receiver: Receiver | None = None
        self.rooms = rooms
        """Of the other side's requests: where the bulk of the reply may be written."""
        self.blocked = False
        """The receiver has no room for the next frame's bulk: decode no more until it has (what is in line goes on)."""
        self.short = False
        """Registered memory or the queue is full: try again later."""
        self.closed = False
        """The other side has said that nothing more comes."""
        self.flowing = True
        """Receives may be posted."""
        self.decoder = Decoder(self._sink)
        self._work = work
        self.credits = credits
        self._registered = registered
        self._exposures = exposures
        self._say_pulled = say_pulled
        self._answered = answered
        self._inbox: deque[tuple[int, memoryview, Prefix]] = deque()
        self._note: Prefix | None = None
        self._ready: deque[_Entry] = deque()
        self._unplaced: tuple[Frame, Prefix, Sequence[memoryview] | None] | None = None

    @property
    def busy(self) -> bool:
        """Frames are still waiting for their bulk."""
        return bool(self._ready) or self._unplaced is not None

    def add(self, slot: int, message: memoryview, prefix: Prefix) -> None:
        """A message of the frame stream has come."""
        self._inbox.append((slot, message[prefix.start :], prefix))

    def clear(self) -> None:
        """Nothing of what has come is wanted."""
        self._inbox.clear()
        self._ready.clear()
        self._unplaced = None

    def give_up(self) -> None:
        """The queue pair was flushed: what waits for bulk will wait for ever, and what is behind it too."""
        for index, entry in enumerate(self._ready):
            if entry.waiting:
                while len(self._ready) > index:
                    self._ready.pop()
                self._inbox.clear()
                break
        if self._unplaced is not None:
            self._unplaced = None
            self._inbox.clear()

    def next(self) -> Frame | None:
        """The next frame in order, if it is whole; FramingError if what came makes no sense."""
        try:
            while not self._ready or (self._ready[0].waiting and len(self._ready) < _AHEAD_MAX):
                if not self._decode():
                    break
        except FramingError:
            raise
        except OSError as error:
            raise FramingError(error.errno or errno.EPROTO, error.strerror or "") from None
        if self._ready and not self._ready[0].waiting:
            return self._ready.popleft().frame
        return None

    def _decode(self) -> bool:
        """Put one more frame in line, if one has come."""
        if self.blocked:
            return False
        self.short = False
        if self._unplaced is not None:
            return self._fetch(*self._unplaced)
        decoder = self.decoder
        while (frame := decoder.next_frame()) is None:
            if decoder.blocked:
                self.blocked = True
                return False
            if not self._feed():
                return False
        note, self._note = self._note, None
        if frame.kind is Kind.REPLY or frame.kind is Kind.FAILURE:
            return self._reply(frame, note)
        if note is None or note.what == What.BYTES:
            self._in_line(frame)
        elif note.what == What.OFFER:
            self.rooms[frame.xid] = note.places
            self._in_line(frame)
        elif note.what in (What.PULL, What.PULL_AND_SAY):
            if not 0 < note.bulk_bytes <= BULK_BYTES_MAX:
                text = f"bulk of {note.bulk_bytes} bytes is not in 1..{BULK_BYTES_MAX}"
                raise FramingError(errno.EPROTO, text)
            frame = frame._replace(body=bytes(frame.body), bulk_bytes=note.bulk_bytes)
            return self._fetch(frame, note, None)
        else:
            raise FramingError(errno.EPROTO, f"a {frame.kind.name} frame came as RDMA message {note.what}")
        return True

    def _in_line(self, frame: Frame) -> None:
        if self._ready:  # its body must outlive the next one
            frame = frame._replace(body=bytes(frame.body))
        self._ready.append(_Entry(frame, False))

    def _reply(self, frame: Frame, note: Prefix | None) -> bool:
        """An answer: the other side will not touch the request's memory any more."""
        if note is not None and note.what == What.PUSHED:
            bulk = self._exposures.room(frame.xid, note.bulk_bytes)
            frame = frame._replace(bulk_bytes=note.bulk_bytes, bulk=bulk)
        elif note is not None and note.what != What.BYTES:
            raise FramingError(errno.EPROTO, f"an answer came as RDMA message {note.what}")
        self._answered(frame.xid)
        self._in_line(frame)
        return True

    def _feed(self) -> bool:
        """Give the decoder one more message."""
        if not self._inbox:
            return False
        slot, data, prefix = self._inbox.popleft()
        if prefix.what == What.CLOSE:
            self.closed = True
            return False
        if prefix.what != What.BYTES:
            if not self.decoder.idle:
                raise FramingError(errno.EPROTO, "a frame began within another one")
            self._note = prefix
        at, size = 0, len(data)
        while at < size:
            buffers = self.decoder.buffers()
            count = min(len(buffers[0]), size - at) if buffers else 0
            if not count:
                raise FramingError(errno.EPROTO, "a message goes beyond the end of its frame")
            buffers[0][:count] = data[at : at + count]
            self.decoder.received(count)
            at += count
        if self.flowing:
            self._work.post_receive(slot)
            self.credits.freed()
        return True

    def _sink(self, frame: Frame) -> Sequence[memoryview] | None:
        assert self.receiver is not None
        return self.receiver.sink(frame)

    def _fetch(self, frame: Frame, prefix: Prefix, targets: Sequence[memoryview] | None) -> bool:
        """Begin to read a frame's bulk from the other side's memory; False if there is no room for it now."""
        size = frame.bulk_bytes
        self._unplaced = (frame, prefix, targets)
        if targets is None:
            targets = self._sink(frame)
            if targets is None:
                self.blocked = True
                return False
            if sum(map(len, targets)) != size:
                raise FramingError(errno.EPROTO, f"nobody wants {size} bytes of bulk here")
            self._unplaced = (frame, prefix, targets)
        pieces = self._registered.pieces(targets)
        copy: memoryview | None = None
        if pieces is None:
            copy = self._registered.arena.take(size)
            pieces = self._registered.pieces([copy]) if copy is not None else None
        wanted = transfers(pieces, first_places(prefix.places, size), PIECES_MAX) if pieces is not None else []
        if pieces is None or not self._work.room(len(wanted)) or not self.flowing:
            self.short = True
            return False
        if sum(place.size for _, place in wanted) != size:
            raise FramingError(errno.EPROTO, f"the regions of a frame have less than its {size} bytes of bulk")
        self._unplaced = None
        entry = _Entry(frame._replace(bulk=targets), True)
        self._ready.append(entry)

        def fetched() -> None:
            entry.waiting = False
            if copy is not None:
                at = 0
                for target in targets:
                    target[:] = copy[at : at + len(target)]
                    at += len(target)
            if prefix.what == What.PULL_AND_SAY:
                self._say_pulled(frame.xid)

        self._work.read(wanted, fetched, (targets, copy))
        if faults.on:
            faults.hit("rdma.read")
        return True
