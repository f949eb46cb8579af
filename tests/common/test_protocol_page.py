"""docs/protocol.md names every request, and the numbers in it are the code's."""

import re
from pathlib import Path
from typing import Any, cast

from nacrefs.common import framing, handshake, remote, rpc, wire
from nacrefs.common.codec import reply_type, request_types

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()


def test_every_request_has_its_row_and_no_row_is_left_over() -> None:
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \| `(\w+)` \| \S.* \|$", PAGE, re.MULTILINE)
    wanted = {
        (str(cast("Any", kind).__struct_config__.tag), kind.__name__, reply_type(kind).__name__)
        for kind in request_types()
    }
    assert set(rows) == wanted
    assert len(rows) == len(wanted)


def test_every_kind_of_frame_is_named() -> None:
    for kind in framing.Kind:
        assert kind.name in PAGE


def test_the_limits_are_the_codes() -> None:
    assert f"header, {framing.HEADER_BYTES} bytes" in PAGE
    assert f"| 0 | 2 | magic | 0x{framing.MAGIC:X}: " in PAGE
    assert f"| body | {wire.BODY_BYTES_MAX >> 20} MiB; {handshake.HANDSHAKE_BYTES_MAX >> 10} KiB in the" in PAGE
    assert f"| bulk | {wire.BULK_BYTES_MAX >> 20} MiB |" in PAGE
    assert (
        f"in service | {rpc.IN_SERVICE_MAX} | its connection is not read from until {rpc.IN_SERVICE_MAX // 2}" in PAGE
    )
    assert f"queued for one peer | {rpc.BACKLOG_BYTES_MAX >> 20} MiB" in PAGE
    assert f"handshakes at a time | {remote.GREETINGS_MAX} per server" in PAGE
    assert f"more than {handshake.HANDSHAKE_S:.0f} s for a frame" in PAGE
    assert f"version {wire.PROTOCOL_VERSION}." in PAGE
