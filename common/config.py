"""Strict configuration: TOML files into typed structs, where every mistake names the file, the key and the reason.

A config struct has `forbid_unknown_fields=True` and a default for everything that can have one. Sizes and durations
may be written with units: `cache = "256MiB"`, `term = "30s"`.
"""

import re
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")


class ConfigError(Exception):
    """A configuration that cannot be used; the text is for the person who wrote it."""


class Size(int):
    """Bytes; in a file, an integer or text with a unit: 4096, "64KiB", "1.5 GiB", "10GB"."""


class Duration(float):
    """Seconds; in a file, a number or text with a unit: 30, "500ms", "30s", "5m", "6h", "30d"."""


_UNITS = {"": 1, "b": 1} | {
    f"{letter}{suffix}": base**power
    for power, letter in enumerate("kmgtp", 1)
    for suffix, base in (("", 1024), ("ib", 1024), ("b", 1000))
}
_SECONDS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_QUANTITY = re.compile(r"\s*([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([A-Za-z]*)\s*")


def parse_size(text: str) -> Size:
    """Bytes from text such as "4096", "64KiB", "1M" (binary, as in `lfs setstripe -S`) or "10GB" (decimal)."""
    match = _QUANTITY.fullmatch(text)
    factor = _UNITS.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise ValueError(f"{text!r} is not a size (examples: 4096, 64KiB, 1M, 10GB)")
    return Size(Fraction(match[1]) * factor)


def parse_duration(text: str) -> Duration:
    """Seconds from text such as "30", "500ms", "5m", "6h", "30d"."""
    match = _QUANTITY.fullmatch(text)
    if match is None or match[2] not in _SECONDS:
        raise ValueError(f"{text!r} is not a duration (examples: 30s, 500ms, 5m, 6h, 30d)")
    return Duration(float(match[1]) * _SECONDS[match[2]])


def format_size(size: float) -> str:
    """Bytes as people read them: 512 B, 1.5 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" or size == int(size) else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} PiB"


def _decode(kind: type, value: Any) -> Any:
    if kind is Size:
        if isinstance(value, str):
            return parse_size(value)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return Size(value)
        raise ValueError(f'{value!r} is not a size (examples: 4096, "64KiB", "1M", "10GB")')
    if kind is Duration:
        if isinstance(value, str):
            return parse_duration(value)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf"):
            return Duration(value)
        raise ValueError(f'{value!r} is not a duration (examples: 30, "500ms", "5m", "6h", "30d")')
    if kind is Path:
        if isinstance(value, str) and value and "\0" not in value:
            return Path(value)
        raise ValueError(f"{value!r} is not a path")
    raise NotImplementedError(kind)


def parse_config(text: str, kind: type[T], source: str) -> T:
    """A config struct from TOML text; ConfigError naming `source`, the key and the reason."""
    try:
        return msgspec.toml.decode(text, type=kind, dec_hook=_decode)
    except msgspec.ValidationError as error:
        reason, _, where = str(error).partition(" - at `$")
        key = where.strip("`").lstrip(".")
        raise ConfigError(f"{source}: {f'{key}: ' if key else ''}{reason}") from None
    except msgspec.DecodeError as error:
        raise ConfigError(f"{source}: not valid TOML: {error}") from None


def load_config(path: Path, kind: type[T]) -> T:
    """A config struct from a TOML file; ConfigError naming the file, the key and the reason."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    return parse_config(text, kind, str(path))
