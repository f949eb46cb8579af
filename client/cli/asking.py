"""Asking the MDS of a mount or URL: what the administrators' commands have in common."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from nacrefs.common.remote import Remote

T = TypeVar("T")


def ask(where: str, keyring: str | None, work: "Callable[[Remote], Awaitable[T]]") -> T:
    """What `work` learns from the MDS in a session: `client.admin.ask_attached`, loaded only when a command runs."""
    from nacrefs.client import admin

    return admin.ask_attached(where, keyring, work)
