"""What can be set about an object storage server; conf/oss.toml holds the same with the same defaults."""

import os
from pathlib import Path
from typing import Literal

import msgspec

from nacrefs.common.config import Duration, Size, load_config
from nacrefs.common.transport.rdma import RdmaConfig


class OstConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What each OST of this server may use."""

    reserve_bytes: Size = Size(64 << 20)
    """Room on its file system that is never used, so that the disk is never quite full."""
    reserve_percent: float = 1.0
    """The same in percent of the file system; the larger of the two counts."""
    open_objects: int = 4096
    """Most object files that are kept open."""
    dirty_bytes: Size = Size(512 << 20)
    """Most bytes that were written and are not yet on the disk for certain; writers wait when there are more."""
    flush_after: Duration = Duration(5)
    """How long an object that nobody syncs stays marked as changing; after a crash such objects are re-hashed."""


class MirrorConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Making copies of mirrored files equal again."""

    resync_bytes_per_s: Size = Size(200 << 20)
    """So much is compared each second; 0: as fast as the disks are."""


class ScrubConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Reading everything to see whether it is still what was written."""

    bytes_per_s: Size = Size(100 << 20)
    """So much is read each second, unless `nacre scrub` says otherwise; 0: as fast as the disks are."""


class LogConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the server says what it does."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """debug, info, warning or error."""
    file: str = ""
    """The log file; empty: standard error."""


class OssConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that can be set about an OSS."""

    mds: str = ""
    """Addresses of the MDS, best first: tcp://HOST:PORT or rdma://HOST:PORT,tcp://HOST:PORT."""
    keyring: str = "/etc/nacre/server.keyring"
    """File with the cluster's keys, that of servers included; its mode must be 0600."""
    name: str = ""
    """Name of this server as administrators see it; empty: the host's name."""
    listen: tuple[str, ...] = ("tcp://0.0.0.0:9610",)
    """Addresses at which clients are served: tcp://HOST:PORT, rdma://HOST:PORT."""
    advertise: tuple[str, ...] = ()
    """Addresses that clients are told, best first; empty: those of `listen`, with the host's name for 0.0.0.0."""
    osts: tuple[str, ...] = ()
    """Directories of the OSTs, each made with `nacre oss format`."""
    metrics: str = ""
    """HOST:PORT of /metrics and /health; empty: not served."""
    threads: int = 8
    """Threads that wait for the disks."""
    buffer_bytes: Size = Size(256 << 20)
    """Most memory for bytes that arrive or leave; requests wait when it is used up."""
    mover_bytes: Size = Size(128 << 20)
    """Most memory for bytes on their way to and from archives."""
    ost: OstConfig = OstConfig()
    mirror: MirrorConfig = MirrorConfig()
    rdma: RdmaConfig = RdmaConfig()
    scrub: ScrubConfig = ScrubConfig()
    log: LogConfig = LogConfig()

    def check(self) -> None:
        """ValueError, naming the key and what is allowed, unless all values make sense together."""
        self.rdma.check()
        if not self.osts:
            raise ValueError("osts is empty: name at least one directory made with `nacre oss format`")
        if len(set(map(os.path.realpath, self.osts))) != len(self.osts):
            raise ValueError("osts names a directory twice")
        if "://" not in self.mds:
            raise ValueError(f"mds = {self.mds!r} is not an address such as tcp://mds-host:9600")
        if not self.listen:
            raise ValueError("listen is empty: name at least one address such as tcp://0.0.0.0:9610")
        if self.metrics and not self.metrics.rpartition(":")[2].isdigit():
            raise ValueError(f"metrics = {self.metrics!r} is not HOST:PORT")
        if not 1 <= self.threads <= 256:
            raise ValueError(f"threads = {self.threads} is not in 1..256")
        if self.buffer_bytes < 32 << 20:
            raise ValueError(f"buffer_bytes = {self.buffer_bytes} is below 32 MiB")
        if self.ost.reserve_bytes < 0:
            raise ValueError(f"ost.reserve_bytes = {self.ost.reserve_bytes} is below 0")
        if not 0 <= self.ost.reserve_percent < 100:
            raise ValueError(f"ost.reserve_percent = {self.ost.reserve_percent} is not in 0..100")
        if self.ost.open_objects < 64:
            raise ValueError(f"ost.open_objects = {self.ost.open_objects} is below 64")
        if self.ost.dirty_bytes < 16 << 20:
            raise ValueError(f"ost.dirty_bytes = {self.ost.dirty_bytes} is below 16 MiB")
        if self.mirror.resync_bytes_per_s < 0:
            raise ValueError(f"mirror.resync_bytes_per_s = {self.mirror.resync_bytes_per_s} is below 0")
        if self.scrub.bytes_per_s < 0:
            raise ValueError(f"scrub.bytes_per_s = {self.scrub.bytes_per_s} is below 0")
        if self.ost.flush_after <= 0:
            raise ValueError(f"ost.flush_after = {self.ost.flush_after} is not above 0")

    def host_name(self) -> str:
        """What the MDS and administrators are told about which server this is."""
        return self.name or os.uname().nodename


def load_oss_config(path: Path) -> OssConfig:
    """Read a server's configuration; ConfigError naming the file, the key and the reason. It is still to be checked."""
    return load_config(path, OssConfig)
