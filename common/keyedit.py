"""Changes of a keyring, as values: new keys, keys that take over from others, keys that end."""

import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from msgspec.structs import replace

from nacrefs.common.auth import SECRET_BYTES, Key, Keyring, RoleName
from nacrefs.common.export import Export
from nacrefs.common.tlsfiles import Tls

NAME_CHARACTERS_MAX: Final = 64


def _time(at_s: float) -> datetime:
    """Whole seconds, as they stand in the file."""
    return datetime.fromtimestamp(int(at_s), UTC)


def check_key_name(name: str) -> None:
    """ValueError unless a key can be called so."""
    plain = name.isascii() and all(letter.isalnum() or letter in "-_." for letter in name)
    if not (plain and 0 < len(name) <= NAME_CHARACTERS_MAX):
        raise ValueError(f"{name[:80]!r} cannot be a key's name (1 to 64 letters, digits, '-', '_' and '.')")


def with_new_key(keyring: Keyring, name: str, role: RoleName, export: Export, until_s: float | None = None) -> Keyring:
    """A keyring with one key more; ValueError for a name that is taken or none, or an export that makes no sense."""
    check_key_name(name)
    if name in keyring.keys:
        raise ValueError(f"there is a key {name!r} already: `nacre key rotate` gives it a successor")
    if role != "client" and export != Export():
        raise ValueError("only a client's key can be limited")
    export.check_values()
    until = None if until_s is None else _time(until_s)
    key = Key(role, secrets.token_hex(SECRET_BYTES), not_after=until, export=export)
    return replace(keyring, keys={**keyring.keys, name: key})


def with_export(keyring: Keyring, name: str, export: Export) -> Keyring:
    """A keyring in which a key, and others of its principal, have this export; KeyError, ValueError."""
    export.check_values()
    principal = principal_of(keyring, name)
    keys = dict(keyring.keys)
    for other, key in keyring.keys.items():
        if (key.principal or other) == principal:
            if key.role != "client":
                raise ValueError("only a client's key can be limited")
            keys[other] = replace(key, export=export)
    return replace(keyring, keys=keys)


def principal_of(keyring: Keyring, name: str) -> str:
    """Whose key it is; KeyError if there is no such key or principal."""
    key = keyring.keys.get(name)
    if key is not None:
        return key.principal or name
    if any(key.principal == name for key in keyring.keys.values()):
        return name
    raise KeyError(name)


def rotated(keyring: Keyring, name: str, now_s: float, lead_s: float, overlap_s: float) -> tuple[Keyring, str]:
    """A keyring in which a principal has another key, and its name. The new key is good after `lead_s`, the principal's
    others until `overlap_s` later, or as long as they were anyway. KeyError if nobody is called so."""
    principal = principal_of(keyring, name)
    own = {other: key for other, key in keyring.keys.items() if (key.principal or other) == principal}
    newest = max(own.values(), key=lambda key: key.since_s)
    begins_s, ends_s = now_s + lead_s, now_s + lead_s + overlap_s
    number = 2
    while f"{principal}.{number}" in keyring.keys:
        number += 1
    fresh = f"{principal}.{number}"
    keys = {
        other: replace(key, not_after=_time(ends_s)) if other in own and key.until_s > ends_s else key
        for other, key in keyring.keys.items()
    }
    keys[fresh] = Key(
        newest.role, secrets.token_hex(SECRET_BYTES), principal, _time(begins_s), newest.not_after, newest.export
    )
    return replace(keyring, keys=keys), fresh


def without(keyring: Keyring, names: Sequence[str]) -> Keyring:
    """A keyring without these keys. KeyError if one is not there; ValueError if no server's key would be left."""
    for name in names:
        if name not in keyring.keys:
            raise KeyError(name)
    keys = {name: key for name, key in keyring.keys.items() if name not in names}
    if any(key.role == "server" for key in keyring.keys.values()) and not any(
        key.role == "server" for key in keys.values()
    ):
        raise ValueError("it is the last server's key: rotate it first")
    return replace(keyring, keys=keys)


def without_ended(keyring: Keyring, now_s: float) -> Keyring:
    """A keyring without keys whose time is over."""
    return replace(keyring, keys={name: key for name, key in keyring.keys.items() if now_s < key.until_s})


def only(keyring: Keyring, names: Sequence[str]) -> Keyring:
    """What goes to who has these keys: them, without what servers say about them. KeyError if one is not there."""
    tls = None if keyring.tls is None else Tls(ca=keyring.tls.ca)
    return replace(keyring, keys={name: replace(keyring.keys[name], export=Export()) for name in names}, tls=tls)
