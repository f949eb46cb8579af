"""Names of a bucket's objects, from LIST into the tree: `python -m tests.bench.links [OBJECTS]`.

The objects are made by a small server that answers LIST as S3 does and counts requests; nothing else of S3 is in the
figures. CPU is that of the MDS process and of both OSSes.
"""

import json
import shutil
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from tests.bench.tier import cpu_s
from tests.harness.process import nacre, succeed, succeed_json

PAGE = 1000


class Listing(BaseHTTPRequestHandler):
    """A bucket of `total` empty-looking objects, 1,000 in each of its directories."""

    total = 0
    version = 0
    """Changes the ETags of every hundredth object."""
    lists = 0
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """LIST."""
        query = parse_qs(urlsplit(self.path).query)
        kind = type(self)
        kind.lists += 1
        after = query.get("start-after", [""])[0]
        first = 0 if not after else int(after.rpartition("-")[2]) + 1
        limit = int(query.get("max-keys", ["1000"])[0])
        last = min(kind.total, first + limit)
        entries = "".join(
            f"<Contents><Key>{quote(key_of(number))}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f'<ETag>"{number:032x}{kind.version if number % 100 == 0 else 0}"</ETag><Size>{100_000 + number}</Size>'
            "<StorageClass>STANDARD</StorageClass></Contents>"
            for number in range(first, last)
        )
        body = (
            '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult><EncodingType>url</EncodingType>'
            f"<IsTruncated>{'true' if last < kind.total else 'false'}</IsTruncated>{entries}</ListBucketResult>"
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing."""


def key_of(number: int) -> str:
    """The key of an object; keys sort as their numbers do."""
    return f"prefix/shard-{number // 1000:05}/sample-{number:08}"


def main(objects: int) -> None:
    """Measure and print."""
    home = Path(tempfile.mkdtemp(prefix="nacre-links-", dir="/var/tmp"))
    cluster, mount = home / "cluster", home / "mnt"
    credentials = home / "credentials"
    credentials.touch(0o600)
    credentials.write_text("[default]\naws_access_key_id = a\naws_secret_access_key = b\n")
    Listing.total = objects
    server = ThreadingHTTPServer(("127.0.0.1", 0), Listing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        succeed("dev", "up", "--dir", cluster, "--mount", mount)

        def timed(what: str, *command: Any) -> None:
            cpu = {name: cpu_s(cluster, name) for name in ("mds", "oss0", "oss1")}
            Listing.lists, began_s = 0, time.monotonic()
            report = succeed_json("link", *command)
            seconds = time.monotonic() - began_s
            used = {name: round(cpu_s(cluster, name) - before, 2) for name, before in cpu.items()}
            last = {name: value for name, value in report["last"].items() if value}
            print(
                f"{what}: {seconds:.2f} s, {Listing.lists} LISTs, CPU {used}, "
                f"{objects / max(used['mds'], 0.01):,.0f} keys per second of MDS CPU; {json.dumps(last)}",
                flush=True,
            )
            assert not report["reason"], report

        where = ("--endpoint", endpoint, "--credentials-file", credentials)
        timed(f"{objects:,} new", "create", mount / "data", "s3://bucket/prefix", *where)
        timed("nothing changed", "refresh", mount / "data")
        Listing.version = 1
        timed("1 % changed", "refresh", mount / "data")
        Listing.total = objects * 99 // 100
        timed("1 % deleted", "refresh", mount / "data")
        shards = len(list((mount / "data").iterdir()))
        assert shards == -(-Listing.total // 1000), shards
    finally:
        nacre("dev", "down", "--dir", cluster, "--purge")
        server.shutdown()
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
