"""Answers to requests that change objects, kept until their sender cannot send them again.

A client that reconnects sends again what had no reply. A write that was carried out already must not be carried out
once more: somebody else may have written there since. Answers are kept per client and xid, and dropped when the
client's oldest outstanding xid has passed them. They do not outlive the process; that a change was made does
(`applied`).
"""

import asyncio
import errno
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any, Final, ParamSpec, TypeVar

from nacrefs.common.wire import Message

P = ParamSpec("P")
MessageT = TypeVar("MessageT", bound=Message)
_CLIENTS_MAX: Final = 16384
_REPLIES_MAX: Final = 4096


class ClientReplies:
    """The answers that one client may ask for again."""

    __slots__ = ("_busy", "_done")

    def __init__(self) -> None:
        self._done: dict[int, Message] = {}
        self._busy: dict[int, asyncio.Future[BaseException | None]] = {}

    def trim(self, oldest: int) -> None:
        """Forget what the client has the replies of."""
        done = self._done
        while done:
            xid = next(iter(done))
            if xid >= oldest:
                return
            del done[xid]

    def again(self, xid: int) -> Any:
        """The answer to a request that came before, now or once it has been served; None if it is not known."""
        known = self._done.get(xid)
        if known is None and (busy := self._busy.get(xid)) is not None:
            return self._join(xid, busy)
        return known

    async def _join(self, xid: int, busy: "asyncio.Future[BaseException | None]") -> Message:
        error = await asyncio.shield(busy)
        known = self._done.get(xid)
        if known is None:
            number, text = errno.EIO, "the request failed when it was sent first"
            if isinstance(error, OSError):
                number, text = error.errno or number, error.strerror or text
            raise OSError(number, text)
        return known

    def keep(self, xid: int, reply: MessageT) -> MessageT:
        """Remember an answer."""
        done = self._done
        done[xid] = reply
        if len(done) > _REPLIES_MAX:  # only a client that never says what it has received comes here
            del done[next(iter(done))]
        return reply

    async def serve(
        self, xid: int, work: Callable[P, Coroutine[Any, Any, MessageT]], *args: P.args, **kwargs: P.kwargs
    ) -> MessageT:
        """Serve a request and remember its answer; a copy that arrives meanwhile waits for it."""
        ended = self._busy[xid] = asyncio.get_running_loop().create_future()
        error: BaseException | None = None
        try:
            return self.keep(xid, await work(*args, **kwargs))
        except BaseException as failure:
            error = failure
            raise
        finally:
            del self._busy[xid]
            ended.set_result(error)


class Replies:
    """All clients' answers, by the name that a client keeps over reconnects."""

    def __init__(self) -> None:
        self._clients: OrderedDict[str, ClientReplies] = OrderedDict()

    def of(self, client: str) -> ClientReplies:
        """One client's answers."""
        replies = self._clients.get(client)
        if replies is None:
            replies = self._clients[client] = ClientReplies()
            if len(self._clients) > _CLIENTS_MAX:
                self._clients.popitem(last=False)
        return replies
