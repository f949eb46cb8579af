"""Who asks, for an MDS that checks permissions itself (`wire.As`): only under keys whose export says so.

The FUSE session says for each request whose it is. What nobody asked for (write-behind, give-backs) is this process's.
"""

import os
from contextvars import ContextVar
from typing import Any, Final, NamedTuple

from nacrefs.common.authority import OF_CLIENTS, Scope
from nacrefs.common.codec import encode
from nacrefs.common.wire import As, Request


class Caller(NamedTuple):
    """A process that has asked, as the kernel names it."""

    uid: int
    gid: int
    pid: int


asking: Final[ContextVar[Caller | None]] = ContextVar("asking", default=None)
"""For whom what runs now is done."""

NOBODY_IS_SQUASHED: Final = 0
ROOT_IS_SQUASHED: Final = 1
ALL_ARE_SQUASHED: Final = 2


def in_the_name_of(request: Request[Any], body: bytes) -> bytes:
    """A request's encoding with who asks; as it is, if it is not about files."""
    if OF_CLIENTS.get(type(request)) is not Scope.FILES:
        return body
    caller = asking.get()
    if caller is None:
        return encode(As(os.geteuid(), os.getegid(), tuple(os.getgroups()), body))
    return encode(As(caller.uid, caller.gid, groups_of(caller.pid), body))


def groups_of(pid: int) -> tuple[int, ...]:
    """The supplementary groups of a process, which FUSE does not tell; none if it is not to be seen from here."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            status = file.read()
    except OSError:
        return ()
    _, _, rest = status.partition(b"\nGroups:")
    return tuple(int(word) for word in rest.partition(b"\n")[0].split())


def is_squashed(squash: int) -> bool:
    """Whether the MDS takes who asks now for the anonymous user."""
    caller = asking.get()
    uid = os.geteuid() if caller is None else caller.uid
    return squash == ALL_ARE_SQUASHED or (squash == ROOT_IS_SQUASHED and uid == 0)
