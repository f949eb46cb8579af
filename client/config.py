"""What can be set about a client; conf/client.toml holds the same with the same defaults."""

import os
from pathlib import Path

import msgspec

from nacrefs.common.config import Duration, Size, load_config
from nacrefs.common.transport.rdma import RdmaConfig
from nacrefs.common.wire import LISTING_MAX


class CacheConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the client remembers, and for how many files."""

    inodes: int = 100_000
    """Most inodes that are remembered at a time, each under a lease (about 1 KiB of memory each)."""
    memory_bytes: Size = Size(512 << 20)
    """Most memory for file data (dirty, read ahead, in transfer), all files together."""


class ReadConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much is fetched before it is asked for."""

    ahead_bytes: Size = Size(8 << 20)
    """How far to read ahead of a sequential reader whose pages the kernel does not cache; 0 switches it off."""
    ahead_cached_bytes: Size = Size(2 << 20)
    """The same where the kernel caches pages and reads ahead itself."""
    unit_bytes: Size = Size(1 << 20)
    """Size of one read-ahead request."""
    ahead_entries: int = 256
    """How many names to fetch ahead of a program that looks up one after the other in name order; 0 switches it off."""


class WriteConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When dirty data leaves."""

    behind_bytes: Size = Size(1 << 20)
    """Sending starts when a file has this much dirty data."""
    request_bytes: Size = Size(4 << 20)
    """Most bytes in one write request to an OST."""
    in_flight: int = 8
    """Write requests of one file that may be under way at a time."""
    sync: bool = False
    """Close returns only when data and size are durable (as `mount -o sync`)."""
    retry_s: float = 1.0
    """How long to wait before a write-back that failed is tried again (doubling, up to a minute)."""


class ClientConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that can be set about a client."""

    mds: str = ""
    """Addresses of the MDS, best first: tcp://HOST:PORT or rdma://HOST:PORT,tcp://HOST:PORT."""
    keyring: str = "/etc/nacre/client.keyring"
    """File with the cluster's client key; its mode must be 0600."""
    subtree: str = "/"
    """The directory of the filesystem that becomes the root."""
    host: str = ""
    """Name of this machine as administrators see it; empty: the host's name."""
    patience_s: Duration = Duration(0)
    """How long an operation waits for a server that is away or silent before it fails with EIO (mount option soft);
    0: for ever."""
    cache: CacheConfig = CacheConfig()
    read: ReadConfig = ReadConfig()
    write: WriteConfig = WriteConfig()
    rdma: RdmaConfig = RdmaConfig()

    def check(self) -> None:
        """ValueError, naming the key and what is allowed, unless all values make sense together."""
        self.rdma.check()
        if self.patience_s and self.patience_s < 1:
            raise ValueError(f"patience_s = {self.patience_s:g} is neither 0 nor at least 1")
        if self.cache.inodes < 64:
            raise ValueError(f"cache.inodes = {self.cache.inodes} is below 64")
        if self.cache.memory_bytes < 16 << 20:
            raise ValueError(f"cache.memory_bytes = {self.cache.memory_bytes} is below 16 MiB")
        if not 64 << 10 <= self.write.request_bytes <= 8 << 20:
            raise ValueError(f"write.request_bytes = {self.write.request_bytes} is not in 64 KiB..8 MiB")
        if not 4096 <= self.read.unit_bytes <= 8 << 20:
            raise ValueError(f"read.unit_bytes = {self.read.unit_bytes} is not in 4 KiB..8 MiB")
        if not 0 <= self.read.ahead_entries <= LISTING_MAX:
            raise ValueError(f"read.ahead_entries = {self.read.ahead_entries} is not in 0..{LISTING_MAX}")
        if self.write.in_flight < 1:
            raise ValueError(f"write.in_flight = {self.write.in_flight} is below 1")
        if self.write.retry_s <= 0:
            raise ValueError(f"write.retry_s = {self.write.retry_s} is not above 0")

    def host_name(self) -> str:
        """What the MDS is told about where this client runs."""
        return self.host or os.uname().nodename


def load_client_config(path: Path) -> ClientConfig:
    """Read a client's configuration; ConfigError naming the file, the key and the reason."""
    return load_config(path, ClientConfig)
