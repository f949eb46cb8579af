from collections import defaultdict
from typing import Any, get_args

import msgspec
import pytest

from nacrefs.common import wire
from nacrefs.common.authority import OF_ADMINISTRATORS, OF_CLIENTS, OF_SERVERS
from nacrefs.common.codec import request_types
from tests.common.wire_golden import Row, enumerations, messages, pinned, requests, sample, today

REGENERATE = "if a field was appended, with a default, run: python -m tests.common.wire_golden"

FORMS: dict[str, list[Row]] = defaultdict(list)
for _row in pinned():
    FORMS[_row.name].append(_row)
OLD_AND_NEW = [row for row in pinned() if row.tag != "enum" and row.name in messages()]


def grew_from(old: Any, new: Any) -> bool:
    """Whether msgpack value `new` is `old` with nothing but items appended to its arrays."""
    if isinstance(old, list) and isinstance(new, list):
        return len(old) <= len(new) and all(map(grew_from, old, new))  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    return bool(old == new)


@pytest.mark.parametrize("row", today(), ids=lambda row: row.name)
def test_encoding_is_the_pinned_one(row: Row) -> None:
    assert FORMS[row.name], f"{row.name} is new: run: python -m tests.common.wire_golden"
    assert row == FORMS[row.name][-1], REGENERATE


@pytest.mark.parametrize("name", FORMS)
def test_message_only_ever_grew_at_its_end(name: str) -> None:
    for old, new in zip(FORMS[name], FORMS[name][1:], strict=False):
        assert old.tag == new.tag
        assert new.fields[: len(old.fields)] == old.fields
        if old.tag != "enum":
            assert grew_from(*(msgspec.msgpack.decode(bytes.fromhex(row.encoding)) for row in (old, new)))


@pytest.mark.parametrize("row", OLD_AND_NEW, ids=lambda row: f"{row.name}-{len(row.encoding) // 2}")
def test_every_form_that_a_message_ever_had_is_understood(row: Row) -> None:
    encoding = bytes.fromhex(row.encoding)
    message = msgspec.msgpack.decode(encoding, type=messages()[row.name])
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(message))
    assert grew_from(msgspec.msgpack.decode(encoding), again)


@pytest.mark.parametrize("kind", messages().values(), ids=lambda kind: kind.__name__)
def test_message_without_its_defaulted_fields_is_understood(kind: type[msgspec.Struct]) -> None:
    full = sample(kind)
    fields = msgspec.structs.fields(kind)
    array = msgspec.msgpack.decode(msgspec.msgpack.encode(full))
    defaulted = sum(not field.required for field in fields)
    for dropped in range(1, defaulted + 1):
        message = msgspec.msgpack.decode(msgspec.msgpack.encode(array[:-dropped]), type=kind)
        for field in fields[:-dropped]:
            assert getattr(message, field.name) == getattr(full, field.name)
        for field in fields[-dropped:]:
            assert getattr(message, field.name) == field.default


@pytest.mark.parametrize("kind", messages().values(), ids=lambda kind: kind.__name__)
def test_message_with_fields_from_the_future_is_understood(kind: type[msgspec.Struct]) -> None:
    full = sample(kind)
    array = msgspec.msgpack.decode(msgspec.msgpack.encode(full))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode([*array, "future"]), type=kind) == full


@pytest.mark.parametrize("kind", messages().values(), ids=lambda kind: kind.__name__)
def test_message_with_a_required_field_missing_is_refused(kind: type[msgspec.Struct]) -> None:
    required = sum(field.required for field in msgspec.structs.fields(kind))
    if not required:
        return
    array = msgspec.msgpack.decode(msgspec.msgpack.encode(sample(kind)))
    tags = len(array) - len(kind.__struct_fields__)
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode(array[: tags + required - 1]), type=kind)


def test_no_tag_is_used_twice_even_after_its_message_is_gone() -> None:
    owners: dict[str, set[str]] = defaultdict(set)
    for row in [*pinned(), *today()]:
        owners[row.tag].add(row.name)
    shared = {tag: names for tag, names in owners.items() if tag.isdigit() and len(names) > 1}
    assert not shared


@pytest.mark.parametrize("kind", requests(), ids=lambda kind: kind.__name__)
def test_request_has_a_tag_and_names_its_reply(kind: type[msgspec.Struct]) -> None:
    assert isinstance(kind.__struct_config__.tag, int)
    (base,) = kind.__orig_bases__  # type: ignore[attr-defined]
    (reply,) = get_args(base)
    assert issubclass(reply, wire.Message)


def test_requests_are_told_apart_by_their_tags() -> None:
    union: Any = requests()[0]
    for kind in requests()[1:]:
        union = union | kind
    decoder = msgspec.msgpack.Decoder(union)
    for kind in requests():
        message = sample(kind)
        assert decoder.decode(msgspec.msgpack.encode(message)) == message


@pytest.mark.parametrize("kind", messages().values(), ids=lambda kind: kind.__name__)
def test_message_is_an_immutable_array(kind: type[msgspec.Struct]) -> None:
    assert kind.__struct_config__.frozen
    assert kind.__struct_config__.array_like


def test_every_enumeration_of_the_wire_is_pinned() -> None:
    assert {"Lease", "Want", "Mode", "Right", "Role", "AttrFlag", "Set", "RenameFlag", "XattrFlag"} <= set(
        enumerations()
    )


def test_every_request_says_who_may_send_it() -> None:
    """A new request needs a line in `common/authority.py`: a client's (about what?), an administrator's, a server's."""
    listed = [*OF_CLIENTS, *OF_ADMINISTRATORS, *OF_SERVERS]
    assert {kind.__name__ for kind in request_types()} == {kind.__name__ for kind in listed}
    assert len(listed) == len(set(listed))
