"""File ids: 64-bit, cluster-wide, never reused.

A fid is 16 bits of MDT number above a 48-bit counter, so that it names its metadata server without a look-up. It is
what `stat` shows as `st_ino`, and the node id that the kernel uses in FUSE requests.
"""

from typing import Final

COUNTER_BITS: Final = 48
COUNTER_MAX: Final = (1 << COUNTER_BITS) - 1
MDT_MAX: Final = (1 << 16) - 1

ROOT: Final = 1
"""The root directory: counter 1 of MDT 0, which is also the number that FUSE reserves for a file system's root."""

FIRST_FREE: Final = 16
"""Counters below this are reserved for the filesystem's own directories."""


def make_fid(mdt: int, counter: int) -> int:
    """The fid with this MDT number and counter; ValueError if either is out of range."""
    if not 0 <= mdt <= MDT_MAX:
        raise ValueError(f"MDT number {mdt} is not in 0..{MDT_MAX}")
    if not 0 < counter <= COUNTER_MAX:
        raise ValueError(f"fid counter {counter} is not in 1..{COUNTER_MAX}")
    return mdt << COUNTER_BITS | counter


def fid_mdt(fid: int) -> int:
    """The number of the MDT that owns this fid."""
    return fid >> COUNTER_BITS


def fid_counter(fid: int) -> int:
    """The counter part of a fid."""
    return fid & COUNTER_MAX


def format_fid(fid: int) -> str:
    """A fid as people see it: `[mdt:counter]` in hexadecimal."""
    return f"[{fid_mdt(fid):#x}:{fid_counter(fid):#x}]"


def parse_fid(text: str) -> int:
    """The fid that `format_fid` wrote; ValueError otherwise."""
    try:
        mdt, counter = text.strip().removeprefix("[").removesuffix("]").split(":")
        return make_fid(int(mdt, 16), int(counter, 16))
    except ValueError as error:
        raise ValueError(f"not a fid: {text!r} (expected [mdt:counter] in hexadecimal, as in [0x0:0x2a])") from error
