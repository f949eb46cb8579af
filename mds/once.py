"""Requests of administrators that must happen once and are more than one step.

Like a request about the namespace, one has its answer stored in the transaction that has its last effect. Asked again
on another connection, it is the same request if it is still in service; after a restart its answer is given again, or,
if there is none, it had no lasting effect and is served anew. What fails has no effect and no stored answer.
"""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from nacrefs.common.rpc import LATER, Call, Handler
from nacrefs.common.wire import Message
from nacrefs.mds.transactions.step import Step
from nacrefs.mds.transactions.work import Work

if TYPE_CHECKING:
    from nacrefs.mds.service import Mds


class Keep(Protocol):
    """Stores the answer with a step's effects."""

    def __call__(self, step: Step, reply: Message) -> None: ...


class Once:
    """Serves such requests."""

    def __init__(self, mds: "Mds") -> None:
        self._mds = mds

    def handler(
        self,
        serve: Callable[[Any, Keep], Awaitable[Message]],
        settle: Callable[[Any], Awaitable[None]] | None = None,
    ) -> Handler:
        """`serve` answers, having told `Keep`. `settle` waits for what a request has started whose answer is stored."""
        return partial(self._serve, serve, settle)

    def _serve(self, serve: Any, settle: Any, request: Any, call: Call) -> Any:
        session = self._mds.sessions.heard(call.peer)
        session.oldest = call.oldest
        stored: Message | None = None
        if call.resent:
            before = session.in_flight.get(call.xid)
            if before is not None:
                before.call = call
                return LATER
            stored = self._mds.stored_answer(session, call)
        work = Work(_no_step, request, session, call)
        session.in_flight[call.xid] = work
        self._mds.spawn(self._run(serve, settle, work, stored))
        return LATER

    async def _run(self, serve: Any, settle: Any, work: Work, stored: Message | None) -> None:
        assert work.session is not None
        try:
            if stored is None:
                work.reply = await serve(work.request, partial(self._keep, work))
            else:
                work.reply = stored
                if settle is not None:
                    await settle(work.request)
        except Exception as error:
            work.error = error
            if self._mds.journal.closed:
                return  # asked again, where the MDT is served next
        work.seen = work.session.recalls_sent
        self._mds.journal.finish(work)

    def _keep(self, work: Work, step: Step, reply: Message) -> None:
        session, call = work.session, work.call
        assert session is not None
        assert call is not None
        if not session.gone:
            self._mds.journal.keep_reply(step.tx, session, call, reply)


def _no_step(step: Step, request: Any) -> Any:
    raise NotImplementedError("it is not one step")
