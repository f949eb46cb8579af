"""Bytes that are nearly messages: golden encodings, bent."""

import os
import random
from typing import Final

from tests.common.wire_golden import pinned

SECONDS: Final = float(os.environ.get("FUZZ_SECONDS", "2"))
"""How long each test of this folder goes on."""
SEED: Final = int(os.environ.get("FUZZ_SEED") or random.SystemRandom().randrange(1 << 32))
"""Where its bytes come from; a failure names it."""
GOLDEN: Final = tuple(bytes.fromhex(row.encoding) for row in pinned() if row.tag != "enum")
REQUESTS: Final = tuple(bytes.fromhex(row.encoding) for row in pinned() if row.tag not in ("enum", "-"))
_ATOMS: Final = (
    b"\xc0", b"\xc2", b"\xc3", b"\x00", b"\x7f", b"\xff", b"\xcf" + b"\xff" * 8, b"\xd3\x80" + bytes(7),
    b"\xcf\x80" + bytes(7), b"\xcf\x7f" + b"\xff" * 7, b"\xcb\x7f\xf0" + bytes(6), b"\xcb\x7f\xf8" + bytes(6), b"\xa0",
    b"\xc4\x00", b"\xc4\x03a/b", b"\xc4\x02a\x00", b"\xc4\x01.", b"\xc4\x02..", b"\xc5\x01\x01" + b"n" * 257, b"\x90",
    b"\x91\x90", b"\xdc\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff",
    b"\xde\xff\xff", b"\xc1", b"\xd9\x02\xff\xfe", b"\xd4\xff\x00", b"\x80", b"\xa1\x00", b"\x91" * 2000,
    b"\xce\xff\xff\xff\xff", b"\xd0\x80", b"\xa4/../", b"\xa1@", b"\xc4\x04\xff\xfe\x00\x01",
)  # fmt: skip
"""Values that something might trip over: ends of ranges, other types, lengths without contents, names that are none."""


def items_of(body: bytes) -> int:
    """How many fields a message seems to have."""
    return body[0] & 15 if body and body[0] >> 4 == 9 else 0


def mutated(source: random.Random, body: bytes) -> bytes:
    """A message with a few mistakes in it."""
    bent = bytearray(body)
    for _ in range(source.choice((1, 1, 1, 2, 3, 8))):
        at = source.randrange(len(bent) + 1)
        kind = source.randrange(8)
        if kind == 0 and bent:
            bent[at % len(bent)] ^= 1 << source.randrange(8)
        elif kind == 1:
            del bent[at:]
        elif kind == 2:
            bent[at:at] = source.choice(_ATOMS)
        elif kind == 3 and bent:
            bent[at : at + source.randrange(1, 9)] = source.choice(_ATOMS)
        elif kind == 4:
            other = source.choice(GOLDEN)
            bent[at:] = other[source.randrange(len(other)) :]
        elif kind == 5 and len(bent) > 1:
            bent[1:2] = bytes((source.randrange(256),))  # the tag
        elif kind == 6 and bent:
            bent[0] = 0x90 | source.randrange(16)  # the number of fields
        else:
            bent += source.randbytes(source.choice((1, 10, 1000)))
    return bytes(bent)
