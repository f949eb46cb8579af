"""A request on its way through the MDS."""

import asyncio
import errno
from collections.abc import Callable
from typing import Any

from nacrefs.common.rpc import Call
from nacrefs.common.wire import Message
from nacrefs.mds.clients.leases import Change
from nacrefs.mds.clients.sessions import Session
from nacrefs.mds.records import Intent
from nacrefs.mds.transactions.step import Step

Operation = Callable[[Step, Any], Any]


class Work:
    """One request on its way: what to do, for whom, and where the answer goes."""

    __slots__ = (
        "after", "again", "aside", "call", "changes", "claimed", "error", "intents", "operation", "outstanding",
        "reads", "reply", "reported", "request", "seen", "session", "session_id", "settled",
    )  # fmt: skip

    def __init__(
        self, operation: Operation, request: Any, session: Session | None, call: Call | None, reads: bool = False
    ) -> None:
        self.operation = operation
        self.request = request
        self.session = session
        self.session_id = 0 if session is None else session.id
        """The requester; 0 for the MDS itself."""
        self.call = call
        self.reads = reads
        """It only reads, as far as is known: it need not wait for a batch."""
        self.aside = False
        """The event loop is not to wait for its commit."""
        self.again = False
        """It answers a request that has had its effect: the reply is stored already."""
        self.changes: list[Change] | None = None
        """What its step changed."""
        self.intents: list[Intent] | None = None
        """Truncations of objects that its step wants."""
        self.after: Callable[[Work], bool] | None = None
        """Looks at the reply before it goes out; True if it will call `finish` again itself, later."""
        self.claimed = 0
        """The fid whose leases this request has waited for, and may take now."""
        self.outstanding = 0
        """Recalls and truncations that must end before the reply."""
        self.seen = 0
        """How many recalls the requester had been sent when the step was executed."""
        self.reply: Message | None = None
        self.error: Exception | None = None
        self.reported = 0
        """The fid whose size has been learned from the OSTs for this request."""
        self.settled: asyncio.Future[Any] | None = None
        """For the MDS's own steps: where the result goes instead of a call."""

    def refuse_gone(self) -> None:
        """OSError (ESTALE) if the requester's session has ended meanwhile."""
        if self.session is not None and self.session.gone:
            raise OSError(errno.ESTALE, "the session was evicted")
