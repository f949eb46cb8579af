"""The sending half of an RDMA link: frames made into messages and transfers, in order, as credit and room allow."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from nacrefs.common import faults
from nacrefs.common.framing import Kind, encode_frame
from nacrefs.common.transport.credits import Credits
from nacrefs.common.transport.link import Done
from nacrefs.common.transport.rdmamemory import STREAM_BYTES, Exposures, Registered
from nacrefs.common.transport.rdmaqueue import PIECES_MAX, SLOT_BYTES, WORK_MAX, WorkQueue
from nacrefs.common.transport.rdmawire import PREFIX_BYTES, XID_BYTES, Place, Transfer, What, head, transfers

_LINGER_BYTES: Final = 1 << 20
"""So much of what has been sent and has not left yet still leaves after a close."""
_CREDITS_AT: Final = 2
_BYTES_HEAD: Final = head(What.BYTES, 0)


class _Item:
    """A frame on its way out: `data`, then `stream`, in messages; before the first of them, `writes`."""

    __slots__ = ("data", "done", "kept", "size", "stream", "writes", "xid")

    def __init__(self, xid: int, data: bytes, size: int, done: Done | None) -> None:
        self.xid = xid
        self.data: bytes | memoryview = data
        self.stream: deque[bytes | memoryview] = deque()
        self.writes: Sequence[Transfer] = ()
        self.kept: Sequence[memoryview] = ()
        self.size = size
        self.done = done


class Departures:
    """Frames out. `rooms` says where the other side wants the bulk of its replies; `exposes`: it may be given keys to
    our memory."""

    def __init__(
        self,
        work: WorkQueue,
        credits: Credits,
        registered: Registered,
        exposures: Exposures,
        rooms: Mapping[int, Sequence[Place]],
        *,
        exposes: bool,
    ) -> None:
        self.credits = credits
        self.message_bytes = SLOT_BYTES
        self.queued_bytes = 0
        """of what has not left, or has not been fetched"""
        self._work = work
        self._registered = registered
        self._exposures = exposures
        self._rooms = rooms
        self._exposes = exposes
        self._out: deque[_Item] = deque()
        self._writing: dict[_Item, None] = {}

    def __len__(self) -> int:
        return len(self._out)

    def add(
        self,
        kind: Kind,
        xid: int,
        oldest: int,
        body: bytes,
        bulk: Sequence[memoryview],
        done: Done | None,
        offer: Sequence[memoryview] | None,
    ) -> None:
        """A frame is to be sent."""
        size = sum(map(len, bulk)) if bulk else 0
        if size:
            item = self._with_bulk(kind, xid, oldest, body, bulk, size, done)
        else:
            prefix = _BYTES_HEAD
            if offer is not None and self._exposes and (room := self._exposures.offer(xid, offer)) is not None:
                prefix = head(What.OFFER, 0, room.pieces)
            item = _Item(xid, prefix + encode_frame(kind, xid, oldest, body), len(body), done)
        self._out.append(item)
        self.queued_bytes += item.size

    def say_pulled(self, xid: int) -> None:
        """The other side's frame with this xid needs its memory no more."""
        self._out.append(_Item(0, head(What.PULLED, 0) + xid.to_bytes(XID_BYTES, "little"), 0, None))

    def answered(self, xid: int) -> None:
        """The other side will not touch the memory of this request any more."""
        self.queued_bytes -= self._exposures.end(xid)

    def withdraw(self, xid: int) -> None:
        """Nobody waits for this frame: its bytes are the caller's again."""
        for item in self._out:
            if item.xid == xid:
                item.stream = deque(bytes(part) for part in item.stream)

    def _with_bulk(
        self,
        kind: Kind,
        xid: int,
        oldest: int,
        body: bytes,
        bulk: Sequence[memoryview],
        size: int,
        done: Done | None,
    ) -> _Item:
        room = self._rooms.get(xid) if kind is Kind.REPLY else None
        if room is not None and sum(place.size for place in room) >= size:
            pieces, kept = self._registered.pieces(bulk), bulk
            if pieces is None and (copy := self._registered.copy(bulk, size)) is not None:
                pieces, kept = self._registered.pieces([copy]), (copy,)
            if pieces is not None and len(writes := transfers(pieces, room, PIECES_MAX)) < WORK_MAX // 2:
                data = head(What.PUSHED, size) + encode_frame(kind, xid, oldest, body)
                item = _Item(xid, data, len(body) + size, done)
                item.writes, item.kept = writes, kept
                return item
        asks = kind is Kind.REQUEST or kind is Kind.RESENT
        if asks and self._exposes and size > STREAM_BYTES:
            exposure = self._exposures.bulk(xid, bulk, size, done)
            if exposure is not None:
                what = What.PULL if done is None else What.PULL_AND_SAY
                data = head(what, size, exposure.pieces) + encode_frame(kind, xid, oldest, body)
                self.queued_bytes += exposure.size
                return _Item(xid, data, len(body), None)
        item = _Item(xid, _BYTES_HEAD + encode_frame(kind, xid, oldest, body, size), len(body) + size, done)
        item.stream.extend(bulk)
        return item

    def post(self) -> None:
        """Post what there is credit and room for."""
        while self._out:
            item = self._out[0]
            if not self._work.room(len(item.writes)) or not self.credits.take():
                break
            if item.writes:
                self._work.write(item.writes)
                if faults.on:
                    faults.hit("rdma.write")
            self._post(item)

    def _post(self, item: _Item) -> None:
        """Send one message of a frame."""
        slot, limit = self._work.slot(), self.message_bytes
        data, stream = item.data, item.stream
        if len(data) <= limit:
            filled = len(data)
            slot[:filled] = data
            # The tail of a long body is not followed by bulk in one message: the decoder would have to stop there.
            whole = not isinstance(data, memoryview)
            item.data = _BYTES_HEAD
            while stream and filled < limit and whole:
                part = stream.popleft()
                count = min(len(part), limit - filled)
                slot[filled : filled + count] = part[:count]
                filled += count
                if count < len(part):
                    stream.appendleft(memoryview(part)[count:])
        else:
            filled = limit
            slot[:filled] = data[:filled]
            item.data = memoryview(_BYTES_HEAD + data[filled:])
        slot[_CREDITS_AT : _CREDITS_AT + 2] = self.credits.collect().to_bytes(2, "little")
        if stream or len(item.data) > PREFIX_BYTES:
            self._work.send(filled)
            return
        self._out.popleft()
        if item.writes:
            self._writing[item] = None
            self._work.send(filled, lambda: self._left(item), item.kept)
        else:
            self._work.send(filled)
            self._left(item)

    def _left(self, item: _Item) -> None:
        """A frame is the device's business now, or its bytes have been written."""
        self._writing.pop(item, None)
        self.queued_bytes -= item.size
        item.size = 0
        done, item.done = item.done, None
        if done is not None:
            done()

    def alone(self, what: What, ended: Callable[[], None] | None = None) -> None:
        """A message for which a receive is always reserved."""
        slot = self._work.slot()
        slot[:PREFIX_BYTES] = head(what, 0)
        slot[_CREDITS_AT : _CREDITS_AT + 2] = self.credits.collect().to_bytes(2, "little")
        self._work.send(PREFIX_BYTES, ended, signal=True)

    def linger(self) -> None:
        """The link closes. Everybody has his buffers back; a little of what has not left is copied and may leave."""
        kept = 0
        waiting, self._out = self._out, deque()
        for item in waiting:
            kept += item.size
            if kept <= _LINGER_BYTES:
                item.stream = deque(bytes(part) for part in item.stream)
                self._out.append(item)
            if (done := item.done) is not None:
                item.done = None
                done()
        for item in list(self._writing):
            self._left(item)
        self._exposures.tell()
        self.queued_bytes = 0

    def clear(self) -> None:
        """The queue pair was flushed: nothing leaves any more, and nothing is fetched."""
        self._exposures.clear()
        for item in (*self._writing, *self._out):
            self._left(item)
        self._out.clear()
        self.queued_bytes = 0
