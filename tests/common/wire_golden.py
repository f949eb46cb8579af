"""The pinned encodings of all messages, in `wire_golden.txt` beside this file.

A row is the message's name, its tag (`-` for a reply), its field names, and the encoding of one sample, in
hexadecimal. A message whose encoding grew has a row for each form that it ever had; the last one is today's. An
enumeration's row has its members. Rows are never changed or removed, so a tag stays taken when its message is gone.

    python -m tests.common.wire_golden      # in the checkout, after a field was appended: adds the rows that lack
"""

import enum
import inspect
import sys
import types
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, get_args, get_origin

import msgspec

from nacrefs.common import wire
from nacrefs.common.layout import Layout, LayoutSpec

Struct: TypeAlias = type[msgspec.Struct]

TABLE = Path(__file__).with_name("wire_golden.txt")


class Row(NamedTuple):
    """One line of the table."""

    name: str
    tag: str
    fields: tuple[str, ...]
    encoding: str

    def __str__(self) -> str:
        return f"{self.name} {self.tag} {','.join(self.fields) or '-'} {self.encoding}"


def pinned() -> list[Row]:
    """The table, oldest form of each message first."""
    rows: list[Row] = []
    for line in TABLE.read_text().splitlines():
        name, tag, fields, encoding = line.split(" ")
        rows.append(Row(name, tag, () if fields == "-" else tuple(fields.split(",")), encoding))
    return rows


def _structs(base: Struct) -> list[Struct]:
    """The classes of the wire that stand directly below `base`."""
    kinds: list[Any] = [item for item in vars(wire).values() if inspect.isclass(item)]
    return [kind for kind in kinds if base in kind.__bases__]


def requests() -> list[Struct]:
    """Every request class."""
    return _structs(wire.Request)


def messages() -> dict[str, Struct]:
    """Every struct that travels, by name."""
    kinds: list[Struct] = [*requests(), *_structs(wire.Message), Layout, LayoutSpec]
    return {kind.__name__: kind for kind in kinds}


def enumerations() -> dict[str, type[enum.IntEnum]]:
    """Every set of named numbers that travels, by name."""
    found = inspect.getmembers(
        wire, lambda item: inspect.isclass(item) and issubclass(item, enum.IntEnum | enum.IntFlag)
    )
    return {name: kind for name, kind in found if kind.__module__ == wire.__name__}


def sample(kind: Any, name: str = "", number: int = 1) -> Any:
    """A value of a field's type that differs from its default and from those of the fields beside it."""
    if get_origin(kind) is tuple:
        items = get_args(kind)
        if items[-1] is Ellipsis:
            items = items[:1]
        return tuple(sample(item, name, number + index) for index, item in enumerate(items))
    if get_origin(kind) is types.UnionType:
        return sample(get_args(kind)[0], name, number)
    if issubclass(kind, msgspec.Struct):
        fields = msgspec.structs.fields(kind)
        return kind(*(sample(field.type, field.name, index) for index, field in enumerate(fields, 1)))
    if issubclass(kind, enum.Enum):
        return list(kind)[1]
    if kind is bool:
        return True
    if kind is str:
        return name
    return {int: 1000 + number, float: number + 0.5, bytes: name.encode()}[kind]


def today() -> list[Row]:
    """The rows that the code of today would write."""
    rows: list[Row] = []
    for name, kind in messages().items():
        tag = kind.__struct_config__.tag
        encoding = msgspec.msgpack.encode(sample(kind)).hex()
        rows.append(Row(name, "-" if tag is None else str(tag), kind.__struct_fields__, encoding))
    for name, numbers in enumerations().items():
        rows.append(
            Row(name, "enum", tuple(f"{label}={member.value}" for label, member in numbers.__members__.items()), "-")
        )
    return rows


def main() -> None:
    """Add the rows of today's forms that the table lacks."""
    known = set(pinned()) if TABLE.exists() else set[Row]()
    missing = [row for row in today() if row not in known]
    with TABLE.open("a") as table:
        table.writelines(f"{row}\n" for row in missing)
    sys.stdout.write(f"{len(missing)} rows added to {TABLE}; now read the diff and run tests/common/test_wire.py\n")


if __name__ == "__main__":
    main()
