"""An answer that is there at once, or later: how request handlers avoid a task where none is needed. And many answers.

A handler is a plain function. If it can answer from memory it returns the value; otherwise it returns a coroutine that
will. The caller replies in the same event-loop step in the first case and creates a task only in the second.
"""

import asyncio
from collections.abc import Awaitable, Coroutine, Sequence
from types import CoroutineType
from typing import Any, TypeAlias, TypeVar, overload

T = TypeVar("T")

Answer: TypeAlias = T | Coroutine[Any, Any, T]
"""`T` now, or a coroutine that returns `T`."""


def is_later(answer: object) -> bool:
    """Whether an answer must be awaited."""
    return type(answer) is CoroutineType


@overload
async def settle(answer: Coroutine[Any, Any, T]) -> T: ...
@overload
async def settle(answer: "Answer[T]") -> T: ...
async def settle(answer: "Answer[T]") -> T:
    """The value of an answer, waiting for it if need be."""
    if isinstance(answer, CoroutineType):
        return await answer  # type: ignore[no-any-return]
    return answer  # type: ignore[return-value]


async def together(works: Sequence[Awaitable[T]]) -> list[T]:
    """Do all at once. Nothing is under way any more when this ends (or nobody could use the buffers again); the first
    error is raised."""
    if len(works) == 1:
        return [await works[0]]
    done: list[T] = []
    for result in await asyncio.gather(*works, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
        done.append(result)
    return done
