"""The lifecycle tier through a mount: the attribute `nacre.hsm` of a file.

Read, it is the file's state as JSON. Written, it is what is to be done: `archive [NUMBER]`, `release`, `restore`,
`remove`, `cancel`, `set FLAG… [archive=NUMBER]`, `clear FLAG…`. Whoever may write the file may do that.
"""

import asyncio
import errno
import json
import os
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, Generic, TypeVar

from nacrefs.client.session import Session
from nacrefs.common.wire import (
    LISTING_MAX,
    GetHsm,
    HsmAction,
    HsmCancel,
    HsmFlag,
    HsmRequest,
    HsmState,
    Queued,
    SetHsm,
)

T = TypeVar("T")

NAME: Final = b"nacre.hsm"
_REFUSALS_MAX: Final = 1000


class _Together(Generic[T]):
    """Questions about single files that come while an answer is awaited are asked together, in one request."""

    def __init__(self, session: Session, ask: Callable[[tuple[int, ...]], Coroutine[Any, Any, Sequence[T]]]) -> None:
        self._session = session
        self._ask = ask
        self._waiting: list[tuple[int, asyncio.Future[T]]] = []
        self._asking: asyncio.Task[None] | None = None

    async def about(self, fid: int) -> T:
        """The answer about one file."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append((fid, future))
        if self._asking is None:
            self._asking = self._session.spawn(self._run())
        return await future

    @property
    def idle(self) -> bool:
        """Whether nothing is asked at the moment."""
        return self._asking is None

    async def _run(self) -> None:
        some: list[tuple[int, asyncio.Future[T]]] = []
        try:
            while self._waiting:
                some, self._waiting = self._waiting[:LISTING_MAX], self._waiting[LISTING_MAX:]
                try:
                    answers = await self._ask(tuple(fid for fid, _ in some))
                except OSError as error:
                    for _, future in some:
                        if not future.done():
                            future.set_exception(OSError(error.errno, error.strerror))
                    continue
                for (_, future), answer in zip(some, answers, strict=True):
                    if not future.done():
                        future.set_result(answer)
        except asyncio.CancelledError:
            for _, future in (*some, *self._waiting):
                future.cancel()
            raise
        finally:
            self._asking = None


class HsmAttribute:
    """Answers for the attribute. The kernel carries no text with an errno: the last refusal is shown with the state."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._refused: OrderedDict[int, str] = OrderedDict()
        self._states = _Together(session, self._states_of)
        self._orders: dict[tuple[HsmAction, int, int], _Together[tuple[int, str]]] = {}

    async def _states_of(self, fids: tuple[int, ...]) -> Sequence[HsmState]:
        return (await self._session.mds.call(GetHsm(fids))).states

    async def _order(self, action: HsmAction, fid: int, archive: int, uid: int) -> Queued:
        async def ask(fids: tuple[int, ...]) -> Sequence[tuple[int, str]]:
            return (await self._session.mds.call(HsmRequest(action, fids, archive, uid))).errors

        key = (action, archive, uid)
        together = self._orders.get(key)
        if together is None:
            together = self._orders[key] = _Together(self._session, ask)
        try:
            return Queued((await together.about(fid),))
        finally:
            if together.idle and self._orders.get(key) is together:
                del self._orders[key]

    async def get(self, fid: int) -> bytes:
        """The state, as JSON."""
        state = await self._states.about(fid)
        if state.flags < 0:
            raise OSError(errno.ESTALE, "the file does not exist any more")
        report = {
            "fid": fid,
            "flags": state.flags,
            "names": flag_names(state.flags),
            "archive": state.archive,
            "action": HsmAction(state.action).name.lower() if state.action else "none",
            "state": state.state,
            "done": state.done,
            "total": state.total,
            "attempts": state.attempts,
            "reason": state.reason,
            "refused": self._refused.get(fid, ""),
        }
        return json.dumps(report).encode()

    async def set(self, fid: int, value: bytes) -> None:
        """Do what is asked; OSError if it is refused."""
        words = value.decode("ascii", "replace").split()
        mds = self._session.mds
        verb = words[0] if words else ""
        answer: Queued
        if verb in ("set", "clear"):
            flags, archive = 0, 0
            for word in words[1:]:
                if word.startswith("archive=") and word[8:].isdigit():
                    archive = int(word[8:])
                elif word.upper() in HsmFlag.__members__:
                    flags |= int(HsmFlag[word.upper()])
                else:
                    raise OSError(errno.EINVAL, f"there is no flag {word!r}")
            answer = await mds.call(
                SetHsm((fid,), flags if verb == "set" else 0, flags if verb == "clear" else 0, archive)
            )
        elif verb == "cancel":
            answer = await mds.call(HsmCancel((fid,)))
        elif verb.upper() in HsmAction.__members__ and verb != "transition":
            archive = int(words[1]) if len(words) > 1 and words[1].isdigit() else 0
            inode = self._session.cache.inodes.get(fid)
            uid = inode.attr.uid if inode is not None and inode.attr is not None else 0
            answer = await self._order(HsmAction[verb.upper()], fid, archive, uid)
        else:
            raise OSError(errno.EINVAL, f"{verb!r} is nothing that can be done")
        ((number, text),) = answer.errors
        self._refused.pop(fid, None)
        if number:
            self._refused[fid] = text
            if len(self._refused) > _REFUSALS_MAX:
                self._refused.popitem(last=False)
            raise OSError(number, text or os.strerror(number))


def flag_names(flags: int) -> list[str]:
    """The flags in the order and with the words of `lfs hsm_state`."""
    order = (
        HsmFlag.RELEASED, HsmFlag.EXISTS, HsmFlag.DIRTY, HsmFlag.ARCHIVED, HsmFlag.NORELEASE, HsmFlag.NOARCHIVE,
        HsmFlag.LOST,
    )  # fmt: skip
    words = {HsmFlag.NORELEASE: "never_release", HsmFlag.NOARCHIVE: "never_archive", HsmFlag.LOST: "lost_from_hsm"}
    return [words.get(flag, str(flag.name).lower()) for flag in order if flags & flag]
