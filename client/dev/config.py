"""What a development cluster is: `DIR/dev.toml`. conf/dev.toml has every key with its default."""

import errno
import itertools
import json
import os
import random
import socket
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import msgspec

from nacrefs.common.config import ConfigError, Duration, load_config

MARKER: Final = "dev.toml"
"""The file that makes a directory a development cluster."""
HOST: Final = "127.0.0.1"
_LOWEST_PORT: Final = 10_240
_HEAD: Final = "# nacrefs development cluster (`nacre dev`); conf/dev.toml explains the keys\n"


class DevConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that can be set about a development cluster."""

    osts: int = 4
    """How many OSTs; more can be added later, none taken away."""
    osts_per_oss: int = 2
    """How many OSTs one OSS serves."""
    engine: str = "sqlite"
    """Where the MDT is: sqlite (a file in the directory) or postgresql://USER@HOST:PORT/DATABASE."""
    transport: str = "tcp"
    """What everything goes over: tcp, or rdma (which needs a device: docs/rdma.md)."""
    mount: str = ""
    """The mount point; empty: none."""
    mount_options: str = ""
    """Options of the mount, as in fstab."""
    term_s: Duration = Duration(10)
    """How long clients may be silent (`lease.term_s` of the MDS): short, since processes here are killed often."""
    heartbeat_s: Duration = Duration(1)
    """How often OSSes report (`ost.heartbeat_s` of the MDS)."""
    ready_s: Duration = Duration(60)
    """How long processes may take to be ready (an OSS may have to re-hash objects after a crash)."""
    log_level: str = "info"
    """debug, info, warning or error."""
    s3: bool = False
    """Whether an S3 server belongs to it, for trying out archives."""
    s3_ports: tuple[int, ...] = ()
    """Chosen when it is first started; the fourth one is where S3 is served."""
    ports: tuple[int, ...] = ()
    """Chosen when first started: the MDS's, that of its metrics, and the same of each OSS."""

    def check(self) -> None:
        """ValueError, naming the key and what is allowed, unless all values make sense together."""
        if not 1 <= self.osts <= 256:
            raise ValueError(f"osts = {self.osts} is not in 1..256")
        if not 1 <= self.osts_per_oss <= 256:
            raise ValueError(f"osts_per_oss = {self.osts_per_oss} is not in 1..256")
        if self.engine != "sqlite" and not self.engine.startswith("postgresql://"):
            raise ValueError(f"engine = {self.engine!r} is neither sqlite nor postgresql://USER@HOST:PORT/DATABASE")
        if self.transport not in ("tcp", "rdma"):
            raise ValueError(f"transport = {self.transport!r} is neither tcp nor rdma")
        if self.mount and not os.path.isabs(self.mount):
            raise ValueError(f"mount = {self.mount!r} is not an absolute path")
        if not 1 <= self.term_s <= 3600:
            raise ValueError(f"term_s = {self.term_s:g} is not in 1..3600 seconds")

    @property
    def servers(self) -> int:
        """How many OSSes."""
        return -(-self.osts // self.osts_per_oss)

    @property
    def url(self) -> str:
        """What is mounted."""
        return self.address(self.ports[0])

    def address(self, port: int) -> str:
        """Where a server listens whose port this is."""
        return f"{self.transport}://{HOST}:{port}"

    @property
    def s3_endpoint(self) -> str:
        """Where S3 is served; empty: nowhere."""
        return f"http://{HOST}:{self.s3_ports[3]}" if self.s3_ports else ""

    def oss_ports(self, number: int) -> tuple[int, int]:
        """An OSS's port, and that of its metrics."""
        return self.ports[2 + 2 * number], self.ports[3 + 2 * number]


def load_dev_config(directory: Path) -> DevConfig:
    """The configuration of a cluster; OSError (ENOENT) if the directory is none, ConfigError if the file is wrong."""
    path = directory / MARKER
    if not path.exists():
        raise OSError(errno.ENOENT, f"there is no development cluster (no {MARKER})", str(directory))
    config = load_config(path, DevConfig)
    try:
        config.check()
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None
    return config


def save_dev_config(directory: Path, config: DevConfig) -> None:
    """Write `DIR/dev.toml`, all at once."""
    write_toml(directory / MARKER, msgspec.structs.asdict(config), _HEAD)


def write_toml(path: Path, values: dict[str, Any], head: str) -> None:
    """Write plain values and one level of tables, which come last, as TOML; the file is replaced in one step."""
    lines = [head] + [f"{key} = {_toml(value)}\n" for key, value in values.items() if not isinstance(value, dict)]
    for name, table in values.items():
        if isinstance(table, dict):
            lines.append(f"\n[{name}]\n")
            lines += [f"{key} = {_toml(value)}\n" for key, value in table.items()]  # pyright: ignore[reportUnknownVariableType]
    temporary = path.with_suffix(".new")
    temporary.write_text("".join(lines))
    temporary.replace(path)


def _toml(value: Any) -> str:
    """A TOML value: the same as JSON for text, numbers, truth values and lists of them."""
    return json.dumps(value)


def choose_ports(count: int, taken: Iterable[int] = ()) -> list[int]:
    """Ports on which nobody listens, below those that the kernel gives to connections, and none of `taken`."""
    used, found = set(taken), list[int]()
    for port in random.sample(range(_LOWEST_PORT, max(_first_ephemeral(), 12288)), 2000):
        if len(found) == count:
            return found
        if port not in used and port_is_free(port):
            found.append(port)
    raise OSError(errno.EADDRINUSE, f"there are no {count} free ports on {HOST}")


def choose_s3_ports(count: int) -> tuple[int, ...]:
    """Ports of which also those 10,000 above are free: SeaweedFS takes both. Those above are no connection's either: it
    takes them seconds after this was asked. And none of them is another's port: it would not start."""
    highest = min(_LOWEST_PORT + 10_000, max(_first_ephemeral() - 10_000, _LOWEST_PORT + 1000))
    candidates = random.sample(range(_LOWEST_PORT, highest), 1000)
    found = tuple(itertools.islice(filter(s3_port_is_free, candidates), count))
    if len(found) < count:
        raise OSError(errno.EADDRINUSE, f"there are no {count} free pairs of ports on {HOST}")
    return found


def _first_ephemeral() -> int:
    """The first port that the kernel gives to connections."""
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError):
        return 32768


def s3_port_is_free(port: int) -> bool:
    """Whether SeaweedFS could listen there, and 10,000 above."""
    return port_is_free(port) and port_is_free(port + 10_000)


def port_is_free(port: int) -> bool:
    """Whether a server could listen there."""
    with socket.socket() as attempt:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind((HOST, port))
        except OSError:
            return False
    return True


def new_cluster_id() -> str:
    """The id of a new cluster."""
    return uuid.uuid4().hex
