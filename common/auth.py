"""Who may talk to a server, and who may do I/O on a file.

Connections open with a mutual HMAC-SHA256 challenge over a shared key, so that the key itself never travels. Keys stand
in a keyring, a TOML file of mode 0600:

    cluster = "2c1f…"                # id of the cluster that the keys are for
    [keys.client]
    role = "client"                  # or "server"
    secret = "64 hexadecimal digits"

A *ticket* is a secret derived from a client key for one session and some time: a mount gives it to programs that talk
to OSTs themselves, so that they need not have the key (docs/adr/0011-native-io.md).

Capabilities are keyed BLAKE2b-128 over what they allow, under a key derived from the cluster's server key; an OST
checks them without asking anybody.
"""

import errno
import hashlib
import hmac
import json
import os
import secrets
import stat
import struct
from pathlib import Path
from typing import Final, Literal

import msgspec

from nacrefs.common.config import ConfigError, parse_config
from nacrefs.common.wire import Capability, Right, Role, Ticket

NONCE_BYTES: Final = 32
SECRET_BYTES: Final = 32
_CAPABILITY: Final = struct.Struct("<QIQBQ")
_TICKET: Final = "/ticket:"


class Key(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One shared key, in hexadecimal, and what it lets its holder be."""

    role: Literal["client", "server"]
    secret: str

    def __repr__(self) -> str:
        return f"Key(role={self.role!r}, secret=…)"

    @property
    def secret_bytes(self) -> bytes:
        """The key itself."""
        return bytes.fromhex(self.secret)


class Keyring(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The keys that a process has, by name."""

    cluster: str
    keys: dict[str, Key]

    def credentials(self, role: Role) -> "Credentials":
        """The first key for this role; OSError (EACCES) if the keyring has none."""
        for name, key in self.keys.items():
            if key.role == role.name.lower():
                return Credentials(self.cluster, name, key.secret_bytes)
        raise OSError(errno.EACCES, f"the keyring has no key with role {role.name.lower()!r}")

    def capability_key(self) -> bytes:
        """The key that signs capabilities; only servers' keyrings have it."""
        secret = self.credentials(Role.SERVER).secret
        return hmac.digest(secret, b"nacre capability", "sha256")


class Credentials(msgspec.Struct, frozen=True):
    """What a connecting process proves itself with."""

    cluster: str
    key: str
    secret: bytes

    def __repr__(self) -> str:
        return f"Credentials(cluster={self.cluster!r}, key={self.key!r}, secret=…)"


def new_keyring(cluster: str) -> Keyring:
    """A keyring with one fresh key per role."""
    roles: tuple[Literal["client", "server"], ...] = ("server", "client")
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
    return keyring


def save_keyring(path: Path, keyring: Keyring) -> None:
    """Write a keyring with mode 0600; FileExistsError if the file is there already."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(_keyring_toml(keyring).encode())


def _keyring_toml(keyring: Keyring) -> str:
    quoted = json.dumps  # a TOML basic string, too
    lines = ["# nacrefs keyring: whoever can read this file can join the cluster"]
    lines += [f"cluster = {quoted(keyring.cluster)}"]
    for name, key in keyring.keys.items():
        lines += ["", f"[keys.{quoted(name)}]", f"role = {quoted(key.role)}", f"secret = {quoted(key.secret)}"]
    return "\n".join(lines) + "\n"


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


def ticket_secret(keyring: Keyring, key: str, client: str, now_s: float) -> bytes | None:
    """The secret of the ticket that a Hello names, if it is for a client called so and not over; None otherwise."""
    name, mark, claims = key.partition(_TICKET)
    session, colon, expires = claims.partition(":")
    known = keyring.keys.get(name)
    if not (mark and colon and known is not None and known.role == "client"):
        return None
    if not (expires.isascii() and expires.isdigit() and len(expires) <= 12 and now_s <= int(expires)):
        return None
    if not (session.isascii() and session.isdigit() and client.startswith(f"{session}.")):
        return None
    return _ticket_secret(known.secret_bytes, key)


def _capability_mac(key: bytes, fid: int, generation: int, session: int, rights: int, expires_s: int) -> bytes:
    message = _CAPABILITY.pack(fid, generation, session, rights, expires_s)
    return hashlib.blake2b(message, key=key, digest_size=16).digest()


def sign_capability(key: bytes, fid: int, generation: int, session: int, rights: Right, expires_s: int) -> Capability:
    """A capability that lets `session` do I/O on `fid` in layout generation `generation` until `expires_s`."""
    return Capability(int(rights), expires_s, _capability_mac(key, fid, generation, session, int(rights), expires_s))


def check_capability(
    key: bytes, capability: Capability, *, fid: int, generation: int, session: int, right: Right, now_s: float
) -> None:
    """Whether a capability allows (any of) `right`.

    OSError EACCES if it is forged, for something else or lacks the right, EKEYEXPIRED if its time is over.
    """
    rights, expires_s = capability.rights, capability.expires_s
    try:
        mac = _capability_mac(key, fid, generation, session, rights, expires_s)
    except struct.error:
        raise OSError(errno.EACCES, "capability has fields out of range") from None
    if not hmac.compare_digest(mac, capability.mac):
        raise OSError(errno.EACCES, "capability is not the MDS's for this file, layout generation and session")
    if not rights & right:
        raise OSError(errno.EACCES, f"capability does not allow {right.name}")
    if now_s > expires_s:
        raise OSError(errno.EKEYEXPIRED, "capability has expired")
