"""What can be set about an MDS; conf/mds.toml holds the same with the same defaults."""

from pathlib import Path

import msgspec

from nacrefs.common.config import ConfigError, Duration, Size, load_config
from nacrefs.common.layout import INLINE_BYTES_MAX, LayoutSpec
from nacrefs.common.transport.rdma import RdmaConfig


class CacheConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much of the tree is kept in memory, whatever the size of the tree."""

    memory_bytes: Size = Size(256 << 20)
    """Most memory for inodes and names that were used lately (about 1 KiB each)."""


class LeaseConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What clients may cache, and for how long they may be silent."""

    term_s: Duration = Duration(30)
    """How long a session lives without a word; an MDS that restarts waits as long for its clients to come back."""
    per_session: int = 1_000_000
    """Most leases that one session may hold; beyond it, replies bring none until it has given some back."""
    capability_s: Duration = Duration(3600)
    """How long a client may do I/O on a file without asking the MDS again."""


class LayoutConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How new files are laid out where no directory says otherwise."""

    stripe_count: int = 1
    """Over how many OSTs a file is spread; -1: all."""
    stripe_size: Size = Size(1 << 20)
    """Bytes on one OST before the next one's turn; a multiple of 64 KiB."""
    inline_bytes: Size = Size(16 << 10)
    """Files up to this size live in the MDT and come back with `open`; 0 puts all contents on OSTs. A directory may
    have a limit of its own (`nacre setstripe --inline`)."""

    @property
    def spec(self) -> LayoutSpec:
        """The default layout as a specification."""
        return LayoutSpec(self.stripe_count, int(self.stripe_size), inline_bytes=int(self.inline_bytes))


class OstConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is expected of the OSSes."""

    heartbeat_s: Duration = Duration(5)
    """How often an OSS reports; an OST that missed three reports counts as down and gets no new files."""
    reserve_bytes: Size = Size(64 << 20)
    """An OST with less free space than this gets no new files."""


class PricesConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a GiB costs for a month, in any currency: what `nacre lifecycle report` reckons with."""

    ost: float = 0.08
    """On our own disks."""
    standard: float = 0.023
    """STANDARD."""
    standard_ia: float = 0.0125
    """STANDARD_IA."""
    onezone_ia: float = 0.01
    """ONEZONE_IA."""
    intelligent_tiering: float = 0.023
    """INTELLIGENT_TIERING."""
    reduced_redundancy: float = 0.023
    """REDUCED_REDUNDANCY."""
    glacier_ir: float = 0.004
    """GLACIER_IR."""
    glacier: float = 0.0036
    """GLACIER."""
    deep_archive: float = 0.00099
    """DEEP_ARCHIVE."""

    @property
    def by_class(self) -> dict[str, float]:
        """By the names of storage classes, and OST."""
        return {name.upper(): getattr(self, name) for name in self.__struct_fields__}


class TierConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The lifecycle tier: what storage costs, and how cold objects are asked for."""

    prices: PricesConfig = PricesConfig()
    access_s: Duration = Duration(60)
    """How exactly access times are kept: a file that is read gets a new one if its last is older than this."""
    thaw_days: int = 1
    """For how many days an object of a cold class is made readable when its file is read."""
    thaw_tier: str = "Standard"
    """How fast: Expedited, Standard or Bulk."""
    thaw_poll_s: Duration = Duration(60)
    """How often the archive is asked whether it is readable by now."""


class LogConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the log goes."""

    level: str = "info"
    """debug, info, warning or error."""
    file: str = ""
    """The log file; empty: standard error."""


class MdsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that can be set about an MDS."""

    name: str = "mds0"
    """Its name in logs and reports."""
    mdt: int = 0
    """Number of the MDT that it serves; MDT 0 has the root directory."""
    database: str = "sqlite:////var/lib/nacre/mdt0/mdt.sqlite"
    """The MDT: sqlite:///PATH (an absolute path begins with a fourth slash) or postgresql://USER@HOST:PORT/DATABASE."""
    listen: str = "tcp://127.0.0.1:9600"
    """Where clients and OSSes connect: tcp://HOST:PORT, rdma://HOST:PORT; several are separated by commas."""
    metrics: str = "127.0.0.1:9601"
    """HOST:PORT of /metrics and /health over HTTP; empty: none."""
    keyring: str = "/etc/nacre/keyring.toml"
    """File with the cluster's keys; its mode must be 0600."""
    cache: CacheConfig = CacheConfig()
    lease: LeaseConfig = LeaseConfig()
    layout: LayoutConfig = LayoutConfig()
    ost: OstConfig = OstConfig()
    tier: TierConfig = TierConfig()
    rdma: RdmaConfig = RdmaConfig()
    log: LogConfig = LogConfig()

    @property
    def addresses(self) -> tuple[str, ...]:
        """The addresses to listen at, one by one."""
        return tuple(part.strip() for part in self.listen.split(",") if part.strip())

    @property
    def metrics_at(self) -> tuple[str, int] | None:
        """Host and port of the HTTP side, None if there is to be none."""
        if not self.metrics:
            return None
        host, _, port = self.metrics.rpartition(":")
        return host, int(port)

    def check(self) -> None:
        """ValueError, naming the key and what is allowed, unless all values make sense together."""
        self.rdma.check()
        if not 0 <= self.mdt < 1 << 15:
            raise ValueError(f"mdt = {self.mdt} is not in 0..{(1 << 15) - 1}")
        if not self.name:
            raise ValueError("name is empty")
        if not self.addresses:
            raise ValueError('listen is empty; an address is written "tcp://HOST:PORT"')
        for address in self.addresses:
            if "://" not in address:
                raise ValueError(f"listen = {address!r} is not an address; write tcp://HOST:PORT")
        host, _, port = self.metrics.rpartition(":")
        if self.metrics and not (host and port.isascii() and port.isdigit() and int(port) < 65536):
            raise ValueError(f'metrics = {self.metrics!r} is not HOST:PORT (or "" for none)')
        if self.cache.memory_bytes < 4 << 20:
            raise ValueError(f"cache.memory_bytes = {self.cache.memory_bytes} is below 4 MiB")
        if not 0.1 <= self.lease.term_s <= 3600:
            raise ValueError(f"lease.term_s = {self.lease.term_s:g} is not in 0.1..3600 seconds")
        if self.lease.per_session < 100:
            raise ValueError(f"lease.per_session = {self.lease.per_session} is below 100")
        if self.lease.capability_s < 2 * self.lease.term_s:
            raise ValueError("lease.capability_s is below twice lease.term_s")
        if not 0 <= self.layout.inline_bytes <= INLINE_BYTES_MAX:
            raise ValueError(f"layout.inline_bytes = {self.layout.inline_bytes} is not in 0..64 KiB")
        if self.layout.stripe_count == 0:
            raise ValueError("layout.stripe_count = 0: write 1 or more, or -1 for all OSTs")
        try:
            self.layout.spec.check()
        except ValueError as error:
            raise ValueError(f"layout: {error}") from None
        if not 0 <= self.tier.access_s <= 86400:
            raise ValueError(f"tier.access_s = {self.tier.access_s:g} is not in 0..86400 seconds")
        if not 1 <= self.tier.thaw_days <= 365:
            raise ValueError(f"tier.thaw_days = {self.tier.thaw_days} is not in 1..365")
        if self.tier.thaw_tier not in ("Expedited", "Standard", "Bulk"):
            raise ValueError(f"tier.thaw_tier = {self.tier.thaw_tier!r} is none of Expedited, Standard, Bulk")
        if not 0.05 <= self.tier.thaw_poll_s <= 86400:
            raise ValueError(f"tier.thaw_poll_s = {self.tier.thaw_poll_s:g} is not in 0.05..86400 seconds")
        if not 0.05 <= self.ost.heartbeat_s <= 300:
            raise ValueError(f"ost.heartbeat_s = {self.ost.heartbeat_s:g} is not in 0.05..300 seconds")
        if self.log.level.lower() not in ("debug", "info", "warning", "error"):
            raise ValueError(f"log.level = {self.log.level!r} is not debug, info, warning or error")


def load_mds_config(path: Path) -> MdsConfig:
    """The configuration in a TOML file; ConfigError naming the file, the key and the reason."""
    config = load_config(path, MdsConfig)
    try:
        config.check()
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None
    return config
