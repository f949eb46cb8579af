"""Requests, replies and failures from bytes and back: what `common.wire` says, looked up by type and by tag."""

import enum
import errno
from typing import Any, Final, Union, cast, get_args

import msgspec

from nacrefs.common import wire
from nacrefs.common.wire import Failure, Message, Request

encode = msgspec.msgpack.Encoder().encode
"""The encoding of any message."""

_BAD_MESSAGE: Final = (msgspec.MsgspecError, ValueError, OverflowError, RecursionError)


def request_types() -> list[type[Request[Any]]]:
    """Every request class of the wire."""
    return cast("list[type[Request[Any]]]", Request.__subclasses__())


def reply_type(request: type[Request[Any]]) -> type[Message]:
    """What a request class says it is answered with."""
    for base in getattr(request, "__orig_bases__", ()):
        for argument in get_args(base):
            return cast("type[Message]", argument)
    raise TypeError(f"{request.__name__} does not name its reply type")


def _know_combinations() -> None:
    """Make every combination of flags a value that decoders look up: one that is not costs them 4 µs each time."""
    for flags in vars(wire).values():
        if isinstance(flags, type) and issubclass(flags, enum.IntFlag):
            for value in range(1 << len(flags)):
                flags(value)


_know_combinations()
_any_request: Any = Union[tuple(cast("list[Any]", request_types()))]  # noqa: UP007  (one of a list, not of two)
_request_decoder: msgspec.msgpack.Decoder[Request[Any]] = msgspec.msgpack.Decoder(_any_request)
_reply_decoders: Final = {kind: msgspec.msgpack.Decoder(reply_type(kind)) for kind in request_types()}
_failure_decoder: Final = msgspec.msgpack.Decoder(Failure)
_tags: Final = {cast("Any", kind).__struct_config__.tag for kind in request_types()}


def decode_request(body: memoryview | bytes) -> Request[Any]:
    """A request; OSError ENOSYS if its tag is unknown here, EPROTO if it is malformed."""
    try:
        return _request_decoder.decode(body)
    except _BAD_MESSAGE as error:
        tag = _tag(body)
        if tag is not None and tag not in _tags:
            raise OSError(
                errno.ENOSYS, f"request kind {tag} is unknown here; the other side may be a newer version"
            ) from None
        raise OSError(errno.EPROTO, f"request not understood: {error}") from None


def _tag(body: memoryview | bytes) -> int | None:
    """The tag of a message that could not be decoded as a request."""
    try:
        items: Any = msgspec.msgpack.decode(body)
    except _BAD_MESSAGE:
        return None
    return items[0] if isinstance(items, list) and items and isinstance(items[0], int) else None


def decode_reply(request: type[Request[Any]], body: memoryview | bytes) -> Message:
    """The reply to a request of this type; OSError EPROTO if it is malformed."""
    try:
        return _reply_decoders[request].decode(body)
    except _BAD_MESSAGE as error:
        raise OSError(errno.EPROTO, f"reply to {request.__name__} not understood: {error}") from None


def decode_failure(body: memoryview | bytes) -> OSError:
    """The error that a failure stands for; EPROTO if it is malformed."""
    try:
        failure = _failure_decoder.decode(body)
    except _BAD_MESSAGE as error:
        return OSError(errno.EPROTO, f"failure not understood: {error}")
    return OSError(failure.errno or errno.EIO, failure.text)
