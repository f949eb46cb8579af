"""What the MDS's code needs to know, apart from where its files are (`mds/config.py`)."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from nacrefs.common.layout import LayoutSpec
from nacrefs.mds.transactions.step import DEFAULT_SPEC


class Settings(NamedTuple):
    """Limits and terms of one MDS."""

    term_s: float = 30.0
    heartbeat_s: float = 5.0
    leases_per_session: int = 1_000_000
    capability_s: int = 3600
    reserve_bytes: int = 64 << 20
    layout: LayoutSpec = DEFAULT_SPEC
    prices: Mapping[str, float] = MappingProxyType({})
    """Of a GiB for a month, by storage class; OST: on our own disks."""
    access_s: float = 60.0
    thaw_days: int = 1
    thaw_tier: str = "Standard"
    thaw_poll_s: float = 60.0
