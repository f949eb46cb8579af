"""What a check of the MDT finds, and how it asks."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from nacrefs.common.fid import format_fid
from nacrefs.mds.engine import Row
from nacrefs.mds.statements import Statements


class Finding(NamedTuple):
    """Something that must not be. `fid`: what it is about (0: nothing in particular); `values`: the rest of the row
    that was found, by which it can be mended."""

    kind: str
    fid: int
    text: str
    values: tuple[Any, ...] = ()

    @property
    def words(self) -> str:
        """As people read it."""
        return f"{format_fid(self.fid)} {self.text}" if self.fid else self.text


class Question(NamedTuple):
    """Finds what must not be: first column the fid, the rest values for the text."""

    kind: str
    sql: str
    text: str


class Readable(Protocol):
    """What answers questions about a committed state: the MDT as it is, or a snapshot of it."""

    @property
    def backend(self) -> str: ...
    @property
    def statements(self) -> Statements: ...
    def fetchone(self, statement: str, parameters: Sequence[Any] = ..., /) -> Row | None: ...
    def fetchall(self, statement: str, parameters: Sequence[Any] = ..., /) -> list[Row]: ...
