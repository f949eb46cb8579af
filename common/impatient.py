"""Remotes that do not wait for ever: what is asked of a server that stays away, or is silent, fails with EIO.

This is `mount -o soft`. A request that failed so may have happened, or may happen yet: it is not asked again, but if
its answer comes nevertheless it is taken in. Who wants to know must look.
"""

import asyncio
import errno
import time
from collections.abc import Sequence
from typing import Any, Final

from nacrefs.common.framing import Frame
from nacrefs.common.remote import Remote
from nacrefs.common.rpc import ReplyT
from nacrefs.common.transport.link import Link
from nacrefs.common.wire import Request

_LOOKS: Final = 8
"""How often the clock is looked at in the time that a request may take."""


class ImpatientRemote(Remote):
    """A remote whose requests fail with EIO when the server has not said a word for `patience_s` while they waited.
    A server that works but has not answered one of them yet (it may wait for somebody) is not silent."""

    patience_s = 60.0
    _heard_s = 0.0
    _lost_s = 0.0
    _look_s = 0.0
    """When to look next."""
    _looking: asyncio.TimerHandle | None = None

    @property
    def given_up(self) -> bool:
        """There has been no connection for so long that nothing is worth asking."""
        return self.link is None and bool(self._lost_s) and time.monotonic() - self._lost_s >= self.patience_s

    def away(self) -> OSError:
        """The error of who has waited long enough."""
        return OSError(
            errno.EIO, f"{self.name}: no answer for {self.patience_s:g} s, and the mount is soft (mount option soft)"
        )

    def frame(self, frame: Frame) -> None:
        """Handle one frame."""
        self._heard_s = time.monotonic()
        super().frame(frame)

    def _call(
        self,
        request: Request[ReplyT],
        data: Sequence[memoryview],
        into: Sequence[memoryview] | None,
        deadline_s: float | None,
        link: Link | None,
    ) -> "asyncio.Future[ReplyT]":
        if self.given_up and self._greeting is None:
            future: asyncio.Future[ReplyT] = self._loop.create_future()
            future.set_exception(self.away())
            return future
        if self.link is None and not self._lost_s:
            self._lost_s = time.monotonic()
        future = super()._call(request, data, into, deadline_s, link)
        if self._looking is None:
            self._look_later()
        return future

    def _look_later(self) -> None:
        wait_s = self.patience_s / _LOOKS
        self._look_s = time.monotonic() + wait_s
        self._looking = self._loop.call_later(wait_s, self._look)

    def _look(self) -> None:
        """Fail what has waited too long."""
        self._looking = None
        now_s = time.monotonic()
        if now_s - self._look_s > self.patience_s / _LOOKS:
            # We were stopped, and the server was not: what it has said meanwhile is still to be read.
            self._heard_s = now_s
        silent = now_s - self._heard_s >= self.patience_s
        for xid, pending in list(self._pending.items()):
            if silent and not pending.future.done() and now_s - pending.started_ns / 1e9 >= self.patience_s:
                self._withdraw(xid)
                pending.future.set_exception(self.away())
        if any(not pending.future.done() for pending in self._pending.values()):
            self._look_later()

    def _resend(self, link: Link) -> None:
        self._lost_s = 0.0
        super()._resend(link)

    def closed(self, link: Link, error: OSError) -> None:
        """A link is gone: connect again."""
        if link is self.link:
            self._lost_s = time.monotonic()
        super().closed(link, error)

    async def aclose(self) -> None:
        """Disconnect for good; whatever waits for a reply fails."""
        if self._looking is not None:
            self._looking.cancel()
        await super().aclose()


def remote_with(patience_s: float, *arguments: Any) -> Remote:
    """A remote made with these arguments: one that waits for ever, if `patience_s` is 0."""
    if not patience_s:
        return Remote(*arguments)
    remote = ImpatientRemote(*arguments)
    remote.patience_s = patience_s
    return remote
