"""What to mount, where and how, from what people write: a source, a directory, options as in fstab, a keyring.

Nothing here opens a connection, and little is imported: a mistake is told at once.
"""

import errno
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from nacrefs.client.config import CacheConfig, ClientConfig, ReadConfig, WriteConfig
from nacrefs.common.config import ConfigError, Duration, parse_duration, parse_size

KERNEL_OPTIONS: Final = (
    "ro", "rw", "nosuid", "suid", "nodev", "dev", "noexec", "exec", "sync", "async", "dirsync", "noatime", "nodiratime",
    "relatime", "strictatime", "atime", "allow_other", "noallow_other", "default_permissions",
)  # fmt: skip
"""Options that mount(8) and the kernel know; `client.fuse.mounting` carries them out."""

IGNORED: Final = ("_netdev", "auto", "noauto", "defaults", "nofail", "user", "users", "nouser")
"""What stands in fstab for others than us."""

OPTIONS: Final = {
    "keyring": "file with the cluster's client key",
    "memory": "most memory for file data, as in 512MiB",
    "inodes": "most inodes that are remembered",
    "ahead": "how far to read ahead of a sequential reader, as in 8MiB",
    "hard": "wait for servers that are away (the default)",
    "soft": "let operations fail with EIO when servers stay away",
    "timeo": "with soft: how long they may stay away, as in 60s",
    "nolock": "keep fcntl and flock locks within this mount: closing costs less",
    "retry": "how long to wait for the MDS when mounting, as in 30s",
    "subtree": "the directory of the filesystem that is mounted",
    "host": "name of this machine as administrators see it",
    "log": "log file",
    "loglevel": "debug, info, warning or error",
}
"""Our own options, and what they mean."""

FLAGS: Final = ("hard", "soft", "nolock")
"""Those of our options that take no value."""

KEYRING_VARIABLE: Final = "NACRE_KEYRING"
SOFT_TIMEO: Final = "60s"
SYSTEM_KEYRING: Final = "/etc/nacre/keyring.toml"


@dataclass(frozen=True)
class MountSpec:
    """One mount: the client's configuration, the mount point (absolute), the options that the kernel is given."""

    config: ClientConfig
    directory: str
    kernel_options: tuple[str, ...] = ()
    retry_s: float = 0.0
    log_file: str = ""
    log_level: str = "info"
    locks: bool = True
    """fcntl and flock locks hold on all mounts; otherwise they are the kernel's own, for this one"""
    words: tuple[str, ...] = field(default=())
    """the options as they were given"""

    @property
    def source(self) -> str:
        """What /proc/mounts shows as the device."""
        return self.config.mds + (self.config.subtree if self.config.subtree != "/" else "")


def parse_source(text: str) -> tuple[str, str]:
    """The MDS's addresses and the subtree from `tcp://HOST:PORT[,tcp://…][/SUBTREE]`; ConfigError otherwise."""
    addresses: list[str] = []
    subtree = "/"
    parts = text.split(",")
    for index, part in enumerate(parts):
        scheme, separator, rest = part.strip().partition("://")
        place, slash, path = rest.partition("/")
        if not separator or not scheme or not place:
            raise ConfigError(f"{text!r} is not a filesystem: write tcp://HOST:PORT[,tcp://HOST:PORT…][/DIRECTORY]")
        if scheme in ("tcp", "tls"):
            _check_place(text, place)
        if slash and path:
            if index < len(parts) - 1:
                raise ConfigError(f"{text!r}: the directory stands after the last address")
            subtree = "/" + path.strip("/")
        addresses.append(f"{scheme}://{place}")
    return ",".join(addresses), subtree or "/"


def _check_place(text: str, place: str) -> None:
    host, colon, port = place.rpartition(":")
    if not colon or not host or not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ConfigError(f"{text!r}: {place!r} is not HOST:PORT")


def split_options(groups: Iterable[str]) -> list[str]:
    """The words of `-o a,b -o c`."""
    return [word for group in groups for word in group.split(",") if word]


def make_spec(source: str, directory: str, options: Iterable[str], keyring: str | None = None) -> MountSpec:
    """A mount from what was given on a command line or in fstab; ConfigError that says what is wrong.

    The keyring is only located, not read.
    """
    mds, subtree = parse_source(source)
    words = split_options(options)
    kernel: list[str] = []
    given: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals and name in KERNEL_OPTIONS:
            kernel.append(name)
        elif name in OPTIONS:
            if bool(equals) != (name not in FLAGS):
                raise ConfigError(f"mount option {name}: {'takes no value' if equals else f'write {name}=VALUE'}")
            given[name] = value
        elif name not in IGNORED and not name.startswith(("x-", "comment=")):
            known = ", ".join([*OPTIONS, *KERNEL_OPTIONS])
            raise ConfigError(f"unknown mount option {name!r} (known: {known})")
    if "hard" in given and "soft" in given:
        raise ConfigError("mount options hard and soft exclude each other")
    try:
        config = _config_of(mds, given, subtree, keyring, sync="sync" in kernel)
        config.check()
        retry_s = parse_duration(given.get("retry", "0"))
    except ValueError as error:
        raise ConfigError(f"mount options: {error}") from None
    level = given.get("loglevel", "info")
    if level not in ("debug", "info", "warning", "error"):
        raise ConfigError(f"mount option loglevel={level}: write debug, info, warning or error")
    return MountSpec(
        config,
        os.path.realpath(directory),
        tuple(kernel),
        retry_s,
        given.get("log", ""),
        level,
        "nolock" not in given,
        tuple(words),
    )


def _config_of(mds: str, given: dict[str, str], subtree: str, keyring: str | None, sync: bool) -> ClientConfig:
    if "timeo" in given and "soft" not in given:
        raise ConfigError("mount option timeo is for soft mounts: a hard mount waits for ever")
    if "timeo" in given and not parse_duration(given["timeo"]):
        raise ConfigError("mount option timeo=0: a soft mount waits at least a second")
    cache, read, write = CacheConfig(), ReadConfig(), WriteConfig()
    if "memory" in given:
        cache = replace(cache, memory_bytes=parse_size(given["memory"]))
    if "inodes" in given:
        if not (given["inodes"].isascii() and given["inodes"].isdigit()):
            raise ValueError(f"inodes={given['inodes']} is not a number")
        cache = replace(cache, inodes=int(given["inodes"]))
    if "ahead" in given:
        read = replace(read, ahead_bytes=parse_size(given["ahead"]))
    if sync:
        write = replace(write, sync=True)
    return ClientConfig(
        mds=mds,
        keyring=str(find_keyring(keyring or given.get("keyring"))),
        subtree="/" + given["subtree"].strip("/") if "subtree" in given else subtree,
        host=given.get("host", ""),
        patience_s=parse_duration(given.get("timeo", SOFT_TIMEO)) if "soft" in given else Duration(0),
        cache=cache,
        read=read,
        write=write,
    )


def keyring_places(environment: Mapping[str, str] = os.environ) -> list[Path]:
    """Where a keyring is looked for if none is named, in order."""
    home = environment.get("XDG_CONFIG_HOME") or os.path.join(environment.get("HOME", "/"), ".config")
    places = [Path(home, "nacre", "keyring.toml"), Path(SYSTEM_KEYRING)]
    if environment.get(KEYRING_VARIABLE):
        places.insert(0, Path(environment[KEYRING_VARIABLE]))
    return places


def find_keyring(given: str | None) -> Path:
    """The keyring that is named, or the first that is there; ConfigError that names all the places otherwise."""
    if given:
        path = Path(os.path.abspath(given))
        if not path.exists():
            raise ConfigError(f"keyring {path}: {os.strerror(errno.ENOENT)}")
        return path
    if os.environ.get(KEYRING_VARIABLE):
        return find_keyring(os.environ[KEYRING_VARIABLE])
    places = keyring_places()
    for path in places:
        if os.path.exists(path):
            return path
    looked = ", ".join(map(str, places))
    raise ConfigError(f"there is no keyring at {looked}: name one with --keyring, -o keyring= or {KEYRING_VARIABLE}")
