"""The requests of sessions whose key is limited: the same as everybody's, behind what `Limits` says of each.

The table is made once; what a session may do stands with the session. A peer has this table or the plain one
(`Server.service_of`), so that requests under keys that are not limited cost nothing for it.
"""

import errno
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from nacrefs.common import wire
from nacrefs.common.authority import OF_CLIENTS, Scope
from nacrefs.common.codec import decode_request
from nacrefs.common.export import Actor
from nacrefs.common.rpc import Call, Handler, Service
from nacrefs.mds.access.exports import Limits
from nacrefs.mds.clients.sessions import Session
from nacrefs.mds.namespace.operations import READS, WRITES

if TYPE_CHECKING:
    from nacrefs.mds.service import Mds

Serve = Callable[[Actor, Any, Call], Any]


def unwrapped(request: wire.As, call: Call) -> wire.Request[Any]:
    """The request in an `As`, which is what is answered and counted from here on."""
    inner = decode_request(request.request)
    if isinstance(inner, wire.As):
        raise OSError(errno.EPROTO, "a request for somebody is in another one")
    call.kind = type(inner)
    return inner


def served_plainly(request: wire.As, call: Call) -> Any:
    """`As` on a session that is trusted: the client has asked the user's kernel."""
    inner = unwrapped(request, call)
    handler = call.peer.service.get(type(inner))
    if handler is None:
        raise OSError(errno.ENOSYS, f"{type(inner).__name__} is not a request for this server")
    return handler(inner, call)


class LimitedService:
    """Serves limited sessions of one MDS; `plain` is what a client that is not limited has."""

    def __init__(self, mds: "Mds", plain: Service) -> None:
        self._mds = mds
        self._plain = plain
        self._serve = {
            kind: self._made(kind, handler) for kind, handler in plain.items() if OF_CLIENTS.get(kind) is Scope.FILES
        }

    def table(self) -> Service:
        """The table of all requests."""
        table: dict[type[wire.Request[Any]], Handler] = {}
        for kind, handler in self._plain.items():
            if kind in self._serve:
                table[kind] = partial(self._nameless, self._serve[kind])
            elif OF_CLIENTS.get(kind) is Scope.WHOLE:
                table[kind] = _refuse
            else:  # its own, or what the plain table refuses
                table[kind] = handler
        table[wire.As] = self._as
        return table

    def _limits(self, call: Call) -> Limits:
        limits = self._mds.sessions.heard(call.peer).limits
        if limits is None:
            raise OSError(errno.ESTALE, "this session was begun with another key")
        return limits

    def _nameless(self, serve: Serve, request: Any, call: Call) -> Any:
        """A request that does not say who asks."""
        return serve(self._limits(call).squash.anonymous, request, call)

    def _as(self, request: wire.As, call: Call) -> Any:
        inner = unwrapped(request, call)
        serve = self._serve.get(type(inner))
        if serve is None:
            return served_plainly(request, call)
        actor = self._limits(call).squash.actor(request.uid, request.gid, request.groups)
        return serve(actor, inner, call)

    def _made(self, kind: type[wire.Request[Any]], handler: Handler) -> Serve:
        """How a kind of request is served: in its own step if it has one, else looked at first."""
        mds = self._mds
        if kind in READS:
            operation = READS[kind]
            glimpsed = mds.is_glimpsed(kind)
            return lambda actor, request, call: mds.read(
                partial(self._limits(call).run, operation, actor), glimpsed, request, call
            )
        if kind in WRITES:
            operation = WRITES[kind]
            glimpsed, read_first = mds.is_glimpsed(kind), mds.is_read_first(kind)
            return lambda actor, request, call: mds.mutate(
                partial(self._limits(call).run, operation, actor), read_first, glimpsed, request, call
            )
        return partial(self._looked_at, handler)

    def _looked_at(self, handler: Handler, actor: Actor, request: Any, call: Call) -> Any:
        session: Session = self._mds.sessions.heard(call.peer)
        step = self._mds.glance(session)
        return handler(self._limits(call).check(step, request, actor), call)


def _refuse(request: Any, call: Call) -> Any:
    raise OSError(
        errno.EACCES, f"{type(request).__name__} is about the whole filesystem, and this key is for a part of it only"
    )
