"""Layouts as people write them: `stripe_count=2 stripe_size=1M first_ost=0 pool=fast mirrors=1 inline=4K`.

This is the text of the extended attribute `nacre.layout` and what the commands take and show. Fields that are left out
are the default. A file's own layout shows its OSTs, `osts=0,3`, and its generation, which cannot be set.
"""

import errno

from nacrefs.common.layout import CopyState, Layout, LayoutSpec

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_FIELDS = "stripe_count, stripe_size, first_ost, pool, mirrors, inline"


def parse_spec(text: str | bytes) -> LayoutSpec:
    """The specification that the text describes; OSError (EINVAL) that names the field and what is wrong with it."""
    try:
        words = (text if isinstance(text, str) else text.decode("ascii")).split()
        spec = _spec_of(words)
        spec.check()
    except ValueError as error:  # UnicodeDecodeError is one
        raise OSError(errno.EINVAL, f"layout: {error}") from error
    return spec


def _spec_of(words: list[str]) -> LayoutSpec:
    values: dict[str, str] = {}
    for word in words:
        field, equals, value = word.partition("=")
        if not equals or not value:
            raise ValueError(f"{word!r} is not FIELD=VALUE (fields: {_FIELDS})")
        if field in values:
            raise ValueError(f"{field} is given twice")
        values[field] = value
    spec = LayoutSpec(
        stripe_count=_number("stripe_count", values.pop("stripe_count", "0")),
        stripe_bytes=_bytes("stripe_size", values.pop("stripe_size", "0")),
        first_ost=_number("first_ost", values.pop("first_ost", "-1")),
        pool=values.pop("pool", ""),
        mirrors=_number("mirrors", values.pop("mirrors", "1")),
        inline_bytes=_bytes("inline", values.pop("inline")) if "inline" in values else -1,
    )
    if values:
        raise ValueError(f"there is no field {next(iter(values))!r} (fields: {_FIELDS})")
    return spec


def _number(field: str, text: str) -> int:
    sign, digits = (-1, text[1:]) if text.startswith("-") else (1, text)
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 18:
        raise ValueError(f"{field}={text} is not a whole number")
    return sign * int(digits)


def _bytes(field: str, text: str) -> int:
    unit = text[-1:].upper() if text[-1:].isalpha() else ""
    digits = text[: len(text) - len(unit)]
    if unit not in _UNITS or not (digits.isascii() and digits.isdigit()) or len(digits) > 18:
        raise ValueError(f"{field}={text} is not a size in bytes (K, M and G may follow the number)")
    return int(digits) * _UNITS[unit]


def format_spec(spec: LayoutSpec) -> str:
    """The text that `parse_spec` reads back; fields that are the default are left out."""
    words: list[str] = []
    if spec.stripe_count:
        words.append(f"stripe_count={spec.stripe_count}")
    if spec.stripe_bytes:
        words.append(f"stripe_size={spec.stripe_bytes}")
    if spec.first_ost >= 0:
        words.append(f"first_ost={spec.first_ost}")
    if spec.pool:
        words.append(f"pool={spec.pool}")
    if spec.mirrors > 1:
        words.append(f"mirrors={spec.mirrors}")
    if spec.inline_bytes >= 0:
        words.append(f"inline={spec.inline_bytes}")
    return " ".join(words)


def format_layout(layout: Layout) -> str:
    """A file's layout, complete; the object numbers of copies that are not good are named by their state."""
    osts = ",".join(map(str, layout.osts))
    text = (
        f"stripe_count={layout.stripe_count} stripe_size={layout.stripe_bytes} mirrors={layout.mirrors}"
        f" osts={osts} generation={layout.generation}"
    )
    if layout.inline_bytes >= 0:
        text += f" inline={layout.inline_bytes}"
    for state in (CopyState.UNSURE, CopyState.SYNCING, CopyState.LOST):
        numbers = [str(number) for number, held in enumerate(layout.states) if held == state]
        if numbers:
            text += f" {state.name.lower()}={','.join(numbers)}"
    return text
