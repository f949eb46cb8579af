"""client/native speaks the messages of common.wire: vectors made by one side are held against the other."""

import subprocess
from pathlib import Path

import msgspec

from nacrefs.common import auth, wire
from nacrefs.common.auth import Credentials
from nacrefs.common.checksum import block_sums
from nacrefs.common.codec import encode
from nacrefs.common.framing import Kind, encode_frame
from nacrefs.common.layout import Layout
from tests.mpi.native import FLAGS, PROGRAMS, SANITIZE, build_program

EXTENTS = ((10, 5), (65530, 20), (1 << 20, 200_000), (1 << 40, 1))
PIECES = (3, 1, 70_000, 65_536, 9)
"""Lengths of the buffers in which the bytes lie; the rest is one more."""
SERVER, CLIENT = "tcp://host.example:4712", "42.client"
OST, NUMBER, VERSION = 4, 1, 1 << 33


def array(name: str, data: bytes) -> str:
    return f"static const uint8_t {name}[] = {{{','.join(map(str, data))}}};\n"


def first_fields(count: int, message: msgspec.Struct) -> bytes:
    """A message without the defaulted fields behind, which C does not send."""
    return msgspec.msgpack.encode(msgspec.msgpack.decode(encode(message))[:count])


def vectors() -> str:
    total = sum(length for _, length in EXTENTS)
    data = bytes(index * 7 % 251 for index in range(total))
    at, parts = 0, list[bytes]()
    for offset, length in EXTENTS:
        parts.append(block_sums(memoryview(data)[at : at + length], offset))
        at += length
    sums = b"".join(parts)
    capability = wire.Capability(3, 1_900_000_000, b"m" * 16)
    layout = Layout(131072, 2, (3, OST), 1, 5)
    credentials = Credentials("cluster", "client", b"k" * 32)
    ticket = auth.make_ticket(credentials, 42, 1_800_000_000)
    osts = (wire.OstInfo(3, "rdma://far:1", True, 1, 1), wire.OstInfo(OST, f"rdma://far:2,{SERVER}", True, 1, 1))
    grant = wire.IoGrant("cluster", 1 << 50, layout, capability, osts, ticket, True)
    nonces = bytes(range(64))
    claims = ("cluster", ticket.key, CLIENT, nonces)
    about = (OST, 1 << 50, NUMBER, 5, capability)
    sync = encode(wire.Sync(*about, VERSION))
    pieces, at = list[str](), 0
    for size in (*PIECES, total - sum(PIECES)):
        pieces.append(f"{{(void *)(BYTES + {at}), {size}}}")
        at += size
    return "".join(
        (
            '#include <stdint.h>\n#include <sys/uio.h>\n#include "wire.h"\n',
            f'#define CLIENT "{CLIENT}"\n#define OST {OST}\n#define NUMBER {NUMBER}\n#define VERSION {VERSION}ull\n',
            f"#define EXTENT_COUNT {len(EXTENTS)}\n",
            "static const struct extent EXTENTS[] = {",
            ",".join(f"{{{offset}ull, {length}ull}}" for offset, length in EXTENTS),
            "};\n",
            array("BYTES", data),
            f"static const struct iovec SCATTERED[] = {{{','.join(pieces)}}};\n",
            array("SUMS", sums),
            array("NONCES", nonces),
            array("GRANT", encode(grant)),
            array("HELLO", encode(wire.Hello(1, "cluster", ticket.key, CLIENT, nonces[:32]))),
            array(
                "CHALLENGE",
                encode(wire.Challenge(1, "oss", nonces[32:], auth.proof(ticket.secret, b"server", *claims))),
            ),
            array("PROOF", first_fields(1, wire.Proof(auth.proof(ticket.secret, b"client", *claims)))),
            array("READ", encode(wire.Read(*about, EXTENTS))),
            array("WRITE", first_fields(9, wire.Write(*about, EXTENTS, sums, True))),
            array("SYNC", sync),
            array("DATA", encode(wire.Data(tuple(length for _, length in EXTENTS), sums, 9))),
            array("WRITTEN", encode(wire.Written(1, 2, VERSION))),
            array("FAILURE", encode(wire.Failure(28, "no room"))),
            array("HEADER", encode_frame(Kind.RESENT, 0x0102030405060708, 77, sync, 1234)[:36]),
        )
    )


def test_c_and_python_agree_on_every_message(tmp_path: Path) -> None:
    (tmp_path / "vectors.h").write_text(vectors())
    parts = ("msgpack", "sha256", "frame", "memory", "sums", "wire")
    program = build_program(
        PROGRAMS / "wire_check.c", tmp_path / "wire_check", *parts, flags=[*FLAGS, *SANITIZE, "-Wno-unused"]
    )
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
