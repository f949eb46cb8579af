"""Who may talk to a server, and who may do I/O on a file.

Connections open with a mutual HMAC-SHA256 challenge over a shared key, so that the key itself never travels. Keys stand
in a keyring, a TOML file of mode 0600 (docs/security.md; `common.keyfile` changes one):

    cluster = "2c1f…"                # id of the cluster that the keys are for
    [keys.client]
    role = "client"                  # or "admin", or "server"
    secret = "64 hexadecimal digits"
    principal = "…"                  # whose key it is, if he has several; the key's name otherwise
    not_before = 2027-01-01T00:00:00Z
    not_after = 2028-01-01T00:00:00Z
    [keys.client.export]             # what it lets its holder see and be (`common.export`)

A *ticket* is a secret derived from a client key for one session and some time: a mount gives it to programs that talk
to OSTs themselves, so that they need not have the key (docs/adr/0011-native-io.md).

Capabilities are keyed BLAKE2b-128 over what they allow, under a key derived from the cluster's server key; an OST
checks them without asking anybody.
"""

import errno
import fcntl
import hashlib
import hmac
import json
import os
import secrets
import stat
import struct
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from nacrefs.common import faults
from nacrefs.common.config import ConfigError, parse_config
from nacrefs.common.export import Export
from nacrefs.common.tlsfiles import Tls
from nacrefs.common.wire import Capability, Right, Role, Ticket

NONCE_BYTES: Final = 32
SECRET_BYTES: Final = 32
_CAPABILITY: Final = struct.Struct("<QIQBQ")
_TICKET: Final = "/ticket:"


RoleName = Literal["client", "server", "admin"]


class Key(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One shared key, in hexadecimal, and what it lets its holder be, and when."""

    role: RoleName
    secret: str
    principal: str = ""
    """Whose key it is: one who has several, each for its time. Empty: the key's name says it."""
    not_before: datetime | None = None
    not_after: datetime | None = None
    export: Export = Export()

    def __repr__(self) -> str:
        return f"Key(role={self.role!r}, secret=…)"

    @property
    def secret_bytes(self) -> bytes:
        """The key itself."""
        return bytes.fromhex(self.secret)

    @property
    def wire_role(self) -> Role:
        """What a peer with this key is."""
        return Role[self.role.upper()]

    @property
    def since_s(self) -> float:
        """When it begins to be good, in Unix time; 0: always was."""
        return 0.0 if self.not_before is None else self.not_before.timestamp()

    @property
    def until_s(self) -> float:
        """When it ends."""
        return float("inf") if self.not_after is None else self.not_after.timestamp()

    def is_valid(self, now_s: float) -> bool:
        """Whether it is good now."""
        return self.since_s <= now_s < self.until_s


class Keyring(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The keys that a process has, by name."""

    cluster: str
    keys: dict[str, Key]
    tls: Tls | None = None
    """Certificates, where addresses begin with tls://."""

    def find(self, name: str) -> Key | None:
        """The key of this name, if it is good now."""
        key = self.keys.get(name)
        return key if key is not None and key.is_valid(time.time()) else None

    def credentials(self, role: Role) -> "Credentials":
        """The newest good key for this role (an administrator's is one for clients, too); OSError (EACCES) if the
        keyring has none."""
        wanted = (role.name.lower(), *(("admin",) if role is Role.CLIENT else ()))
        for word in wanted:
            if good := self._good(word):
                name, key = good[0]
                return Credentials(self.cluster, name, key.secret_bytes, self.tls)
        outdated = any(key.role in wanted for key in self.keys.values())
        raise OSError(
            errno.EACCES,
            f"the keyring has no key with role {role.name.lower()!r}" + (" that is good now" if outdated else ""),
        )

    def best_credentials(self) -> "Credentials":
        """An administrator's key if there is one, else a client's."""
        return self.credentials(Role.ADMIN if self._good("admin") else Role.CLIENT)

    def _good(self, role: str) -> list[tuple[str, Key]]:
        """The keys of a role that are good now, the newest first."""
        now_s = time.time()
        good = [item for item in self.keys.items() if item[1].role == role and item[1].is_valid(now_s)]
        return sorted(good, key=lambda item: -item[1].since_s)

    def capability_key(self) -> bytes:
        """The key that signs capabilities; only servers' keyrings have it."""
        return _capability_key(self.credentials(Role.SERVER).secret)

    def capability_keys(self) -> tuple[bytes, ...]:
        """The keys under which a capability is good now, the newest first."""
        return tuple(_capability_key(key.secret_bytes) for _, key in self._good("server"))


def _capability_key(secret: bytes) -> bytes:
    return hmac.digest(secret, b"nacre capability", "sha256")


class Credentials(msgspec.Struct, frozen=True):
    """What a connecting process proves itself with."""

    cluster: str
    key: str
    secret: bytes
    tls: Tls | None = None

    def __repr__(self) -> str:
        return f"Credentials(cluster={self.cluster!r}, key={self.key!r}, secret=…)"


CredentialSource = Credentials | Callable[[], Credentials]
"""What to prove oneself with, or where to learn it each time."""


def current(source: CredentialSource) -> Credentials:
    """What to prove oneself with now; OSError (EACCES) if there is nothing."""
    return source if isinstance(source, Credentials) else source()


def revoked(before: Keyring, now: Keyring) -> set[str]:
    """The keys whose holders must go."""
    return {name for name, key in before.keys.items() if is_revoked(key, now.keys.get(name))}


def is_revoked(before: Key, now: Key | None) -> bool:
    """Whether who was greeted with a key must go. One whose time is over only greets nobody any more."""
    return now is None or (now.secret, now.role, now.principal, now.export) != (
        before.secret, before.role, before.principal, before.export,
    )  # fmt: skip


def new_keyring(cluster: str) -> Keyring:
    """A keyring with one fresh key per role."""
    roles: tuple[RoleName, ...] = ("server", "client", "admin")
    return Keyring(cluster, {role: Key(role, secrets.token_hex(SECRET_BYTES)) for role in roles})


def load_keyring(path: Path) -> Keyring:
    """Read a keyring; ConfigError naming the file if it is missing, malformed or readable by others."""
    try:
        with path.open("rb") as file:  # one file from here on, whatever the name stands for
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            text = file.read().decode()
    except OSError as error:
        raise ConfigError(f"keyring {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"keyring {path}: {error}") from None
    if mode & 0o077:
        raise ConfigError(f"keyring {path} can be read by others (mode {mode:04o}); run: chmod 600 {path}")
    keyring = parse_config(text, Keyring, f"keyring {path}")
    for name, key in keyring.keys.items():
        try:
            short = len(key.secret_bytes) < SECRET_BYTES
        except ValueError:
            raise ConfigError(f"keyring {path}: keys.{name}.secret is not hexadecimal") from None
        if short:
            raise ConfigError(f"keyring {path}: keys.{name}.secret is shorter than {SECRET_BYTES} bytes")
        try:
            key.export.check_values()
        except ValueError as error:
            raise ConfigError(f"keyring {path}: keys.{name}.export: {error}") from None
        if key.role != "client" and key.export != Export():
            raise ConfigError(f"keyring {path}: keys.{name}.export: only a client's key can be limited")
        for field, when in (("not_before", key.not_before), ("not_after", key.not_after)):
            if when is not None and when.tzinfo is None:
                raise ConfigError(f"keyring {path}: keys.{name}.{field} has no time zone; write 2027-01-31T12:00:00Z")
    return keyring


def save_keyring(path: Path, keyring: Keyring) -> None:
    """Write a keyring with mode 0600; FileExistsError if the file is there already."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(_keyring_toml(keyring).encode())
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def changing_keyring(path: Path) -> Generator[Keyring]:
    """What a keyring's file says, to be changed: another who wants to change one in this directory waits until the end.
    ConfigError as `load_keyring`."""
    try:
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"keyring {path}: {error.strerror}") from None
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        for left in path.parent.glob(f".{path.name}.{'[0-9a-f]' * 8}"):  # by one who was killed
            left.unlink()
        yield load_keyring(path)
    finally:
        os.close(directory)


def replace_keyring(path: Path, keyring: Keyring) -> None:
    """Put another keyring in the place of a file, in one step, durably; owner and mode 0600 stay."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    save_keyring(beside, keyring)
    try:
        before = path.stat()
        os.chown(beside, before.st_uid, before.st_gid)
        if faults.on:
            faults.hit("keyring.replace.before")
        beside.replace(path)
    except BaseException:
        beside.unlink()
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    if faults.on:
        faults.hit("keyring.replace.after")


def _keyring_toml(keyring: Keyring) -> str:
    quoted = json.dumps  # a TOML basic string, too
    lines = ["# nacrefs keyring: whoever can read this file can join the cluster"]
    lines += [f"cluster = {quoted(keyring.cluster)}"]
    standard = dict(_values(Export()))
    for name, key in keyring.keys.items():
        lines += ["", f"[keys.{quoted(name)}]", f"role = {quoted(key.role)}", f"secret = {quoted(key.secret)}"]
        if key.principal:
            lines += [f"principal = {quoted(key.principal)}"]
        for field, when in (("not_before", key.not_before), ("not_after", key.not_after)):
            if when is not None:
                lines += [f"{field} = {when.astimezone(UTC).strftime('%Y-%m-%dT%H:%M:%SZ')}"]
        limits = [f"{field} = {quoted(value)}" for field, value in _values(key.export) if value != standard[field]]
        if limits:
            lines += ["", f"[keys.{quoted(name)}.export]", *limits]
    if keyring.tls is not None:
        lines += ["", "[tls]"]
        lines += [f"{field} = {quoted(value)}" for field, value in msgspec.to_builtins(keyring.tls).items() if value]
    return "\n".join(lines) + "\n"


def _values(export: Export) -> list[tuple[str, Any]]:
    return list(msgspec.to_builtins(export).items())


def proof(secret: bytes, side: bytes, cluster: str, key: str, client: str, nonces: bytes) -> bytes:
    """What one side of a connection shows the other: HMAC-SHA256 over both nonces and all that was claimed."""
    claims = b"\0".join((b"nacre hello", side, cluster.encode(), key.encode(), client.encode()))
    return hmac.digest(secret, claims + b"\0" + nonces, "sha256")


def same(a: bytes, b: bytes) -> bool:
    """Constant-time equality."""
    return hmac.compare_digest(a, b)


def make_ticket(credentials: Credentials, session: int, expires_s: int) -> Ticket:
    """A ticket for programs that do their own I/O in `session`. It is derived from the key, which it does not reveal,
    so that whoever has the key can check it without asking anybody."""
    key = f"{credentials.key}{_TICKET}{session}:{expires_s}"
    return Ticket(key, _ticket_secret(credentials.secret, key), session, expires_s)


def _ticket_secret(secret: bytes, key: str) -> bytes:
    return hmac.digest(secret, b"nacre ticket\0" + key.encode(), "sha256")


def base_key(key: str) -> str:
    """The key that a Hello's key is, or that the ticket was made from which it names."""
    return key.partition(_TICKET)[0]


def ticket_secret(keyring: Keyring, key: str, client: str, now_s: float) -> bytes | None:
    """The secret of the ticket that a Hello names, if it is for a client called so and not over; None otherwise."""
    name, mark, claims = key.partition(_TICKET)
    session, colon, expires = claims.partition(":")
    known = keyring.find(name)
    if not (mark and colon and known is not None and known.role != "server"):
        return None
    if not (expires.isascii() and expires.isdigit() and len(expires) <= 12 and now_s <= int(expires)):
        return None
    if not (session.isascii() and session.isdigit() and client.startswith(f"{session}.")):
        return None
    return _ticket_secret(known.secret_bytes, key)


def _capability_mac(
    key: bytes, fid: int, generation: int, session: int, rights: int, expires_s: int, holder: str
) -> bytes:
    message = _CAPABILITY.pack(fid, generation, session, rights, expires_s) + holder.encode()
    return hashlib.blake2b(message, key=key, digest_size=16).digest()


def sign_capability(
    key: bytes, fid: int, generation: int, session: int, rights: Right, expires_s: int, holder: str = ""
) -> Capability:
    """A capability that lets `session` do I/O on `fid` in layout generation `generation` until `expires_s`, on
    connections of the principal `holder` (empty: of servers)."""
    mac = _capability_mac(key, fid, generation, session, int(rights), expires_s, holder)
    return Capability(int(rights), expires_s, mac)


def check_capability(
    keys: Sequence[bytes],
    capability: Capability,
    *,
    fid: int,
    generation: int,
    session: int,
    right: Right,
    now_s: float,
    holder: str = "",
) -> None:
    """Whether a capability, signed under one of these keys, allows (any of) `right`.

    OSError EACCES if it is forged, for something else or lacks the right, EKEYEXPIRED if its time is over.
    """
    rights, expires_s = capability.rights, capability.expires_s
    try:
        macs = [_capability_mac(key, fid, generation, session, rights, expires_s, holder) for key in keys]
    except struct.error:
        raise OSError(errno.EACCES, "capability has fields out of range") from None
    if not any(hmac.compare_digest(mac, capability.mac) for mac in macs):
        raise OSError(errno.EACCES, "capability is not the MDS's for this file, layout generation and session")
    if not rights & right:
        raise OSError(errno.EACCES, f"capability does not allow {right.name}")
    if now_s > expires_s:
        raise OSError(errno.EKEYEXPIRED, "capability has expired")
