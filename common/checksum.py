"""xxh3-64 over checksum blocks: the sums that travel with data and lie beside it on the OSTs.

A *sum string* is the little-endian xxh3-64 values of the blocks that an extent touches, 8 bytes each, in order; where
the extent covers a block only in part, the value covers just that part. Algorithm: XXH3 64-bit, seed 0
(https://github.com/Cyan4973/xxHash, `doc/xxhash_spec.md`).
"""

import struct

import xxhash

from nacrefs.common.layout import BLOCK_BYTES, block_count

SUM_BYTES = 8
_hash = xxhash.xxh3_64_intdigest


def block_sums(data: memoryview, start: int) -> bytes:
    """The sum string of `data`, whose first byte stands at file offset `start`."""
    size = len(data)
    lead = -start % BLOCK_BYTES
    if size <= lead or (not lead and size <= BLOCK_BYTES):
        return _hash(data).to_bytes(SUM_BYTES, "little") if size else b""
    sums = [_hash(data[:lead])] if lead else []
    sums.extend(_hash(data[at : at + BLOCK_BYTES]) for at in range(lead, size, BLOCK_BYTES))
    return struct.pack(f"<{len(sums)}Q", *sums)


def first_mismatch(data: memoryview, start: int, sums: bytes | memoryview) -> int | None:
    """The file offset of the first block of `data` that does not match its sum string, or None if all match.

    Raises ValueError if the sum string is not as long as the extent `[start, start + len(data))` needs.
    """
    wanted = block_count(start, start + len(data)) * SUM_BYTES
    if len(sums) != wanted:
        raise ValueError(f"{len(sums)} bytes of checksums for an extent that needs {wanted}")
    actual = block_sums(data, start)
    if actual == sums:
        return None
    for index in range(0, wanted, SUM_BYTES):
        if actual[index : index + SUM_BYTES] != sums[index : index + SUM_BYTES]:
            return start if not index else (start // BLOCK_BYTES + index // SUM_BYTES) * BLOCK_BYTES
    raise AssertionError("unreachable")
