"""What every transport offers: a link that carries frames and bulk in both directions, in order.

The seam is made so that RDMA fits under it. `Link.send` with `bulk` *offers* those bytes: TCP puts them behind the
frame, RDMA lets the receiver READ them. `Link.send` with `offer` names the buffers into which the reply's bulk may be
put: TCP ignores it and asks the receiver's `sink` when the reply arrives, RDMA sends their keys and the server WRITEs
into them. Nothing above a link knows which of the two happened. docs/adr/0005-rpc-seam.md.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from nacrefs.common.framing import Frame, Kind
from nacrefs.common.wire import BODY_BYTES_MAX, RdmaEnd

Done = Callable[[], None]


class Receiver(Protocol):
    """Who gets what arrives on a link. All methods are called on the event loop and must not block."""

    def sink(self, frame: Frame) -> Sequence[memoryview] | None:
        """Buffers for the bulk of `frame`, `frame.bulk_bytes` together; None to stop reading until `Link.resume`."""
        ...

    def frame(self, frame: Frame) -> None:
        """A whole frame; `frame.body` is valid during the call only."""
        ...

    def closed(self, link: "Link", error: OSError) -> None:
        """The link is gone, for this reason. Called exactly once, also after `Link.close`, when all frames that came
        have been handed over."""
        ...


class Upgrade(Protocol):
    """A better transport, on which the two ends of a link may agree in their handshake."""

    optional: bool
    """The link will do if they do not."""

    def offer(self) -> RdmaEnd | None:
        """The connecting side's offer; None if it has nothing to offer, OSError if that will not do."""
        ...

    async def accepted(self, far: RdmaEnd | None, declined: str) -> str:
        """The accepting side has answered (or `declined`, with its reason): empty if the transport works now, the
        reason if it does not; OSError if that will not do."""
        ...

    def answer(self, far: RdmaEnd) -> RdmaEnd:
        """The accepting side's answer to an offer; OSError with the reason why it declines."""
        ...

    def switched(self) -> "Link":
        """The link to go on with."""
        ...

    async def confirmed(self) -> None:
        """The connecting side: wait until the other side has switched too; OSError if it does not."""
        ...

    def drop(self) -> None:
        """Nothing comes of it."""
        ...


class Link(Protocol):
    """A connection that carries frames."""

    peername: str
    """Whom it leads to, for logs."""
    transport: str
    """The scheme of what carries it: tcp, rdma, mem."""

    @property
    def upgrade(self) -> Upgrade | None:
        """What it may become in its handshake."""
        ...

    def start(self, receiver: Receiver, body_bytes_max: int = BODY_BYTES_MAX) -> None:
        """Deliver to `receiver` from now on, and close the link at a longer body (again: hand the link over)."""
        ...

    def send(
        self,
        kind: Kind,
        xid: int,
        oldest: int,
        body: bytes,
        bulk: Sequence[memoryview] = (),
        done: Done | None = None,
        offer: Sequence[memoryview] | None = None,
    ) -> None:
        """Queue a frame. `bulk` must stay unchanged until `done` is called, once (also if the link closes)."""
        ...

    def pause(self) -> None:
        """Hand over nothing until `resume`, not even what has come already. A paused link does not notice its end."""
        ...

    def resume(self) -> None:
        """Receive again, and ask the sink again if it had no room."""
        ...

    def withdraw(self, xid: int) -> None:
        """The buffers of request `xid` are wanted back: from now on nothing is put into them or taken from them.

        Except for memory of `common.arena`, on RDMA: until the answer is there, or the link has closed, the other side
        may write into it. Giving it back to its pool is safe all the same (nobody else gets it before that), and so is
        offering it again (which cuts the link if the answer is still out). Using it for something else is not.
        """
        ...

    @property
    def backlog_bytes(self) -> int:
        """Bytes queued and not yet taken by the transport."""
        ...

    def close(self, reason: str = "closed") -> None:
        """Drop the link now. What was sent before still arrives, as far as the transport has taken it."""
        ...


class Listener(Protocol):
    """Accepts links at an address."""

    address: str
    """The URL to connect to, with the real port."""

    def close(self) -> None:
        """Accept no more."""
        ...


Accept = Callable[[Link], None]


def scratch(size: int) -> list[memoryview]:
    """Buffers for `size` bytes that nobody wants (the same memory, again and again)."""
    whole, rest = divmod(size, len(_SCRATCH))
    return [_SCRATCH] * whole + ([_SCRATCH[:rest]] if rest else [])


_SCRATCH = memoryview(bytearray(256 * 1024))
