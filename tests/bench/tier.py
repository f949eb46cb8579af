"""The tier next to the best S3 client, on the same server in the same run: `python tests/bench/tier.py [FILES]`.

One file of 1 GiB over four OSTs goes out and comes back; so do many files of 100 KB. obstore does the same with plain
PUT and GET. CPU times are of the S3 server and of everything else on its side of the wire that we started.
"""

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import obstore
from obstore.store import S3Store

from tests.harness.process import nacre, succeed, succeed_json

SIZE = 1 << 30


def cpu_s(cluster: Path, name: str) -> float:
    """CPU time of a process of the cluster."""
    pid = (cluster / "run" / f"{name}.pid").read_text().split()[0]
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Timed:
    """Seconds, and CPU of the servers, of a block."""

    def __init__(self, cluster: Path, what: str) -> None:
        self.cluster, self.what = cluster, what

    def _cpu(self) -> dict[str, float]:
        return {name: cpu_s(self.cluster, name) for name in ("s3", "mds", "oss0", "oss1", "mount")}

    def __enter__(self) -> "Timed":
        self.before, self.began_s = self._cpu(), time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.monotonic() - self.began_s
        cpu = {name: round(now - self.before[name], 2) for name, now in self._cpu().items()}
        print(f"{self.what}: {self.seconds:.2f} s; CPU {cpu}", flush=True)


def main(files: int) -> None:
    """Measure and print."""
    home = Path(tempfile.mkdtemp(prefix="nacre-tier-", dir="/var/tmp"))
    cluster, mount = home / "cluster", home / "mnt"
    try:
        up = succeed_json("dev", "up", "--dir", cluster, "--mount", mount, "--s3")
        s3 = up["s3"]
        where = ("--endpoint", s3["endpoint"], "--credentials-file", s3["credentials"])
        succeed("archive", "add", mount, "cold", f"s3://{s3['bucket']}/bench", *where)
        keys = dict(line.split(" = ") for line in Path(s3["credentials"]).read_text().splitlines() if " = " in line)
        make: Any = S3Store
        store = make(
            s3["bucket"],
            endpoint=s3["endpoint"],
            access_key_id=keys["aws_access_key_id"],
            secret_access_key=keys["aws_secret_access_key"],
            region="us-east-1",
            client_options={"allow_http": True},
            virtual_hosted_style_request=False,
        )
        large(cluster, mount, store)
        if files:
            many(cluster, mount, store, files)
    finally:
        nacre("dev", "down", "--dir", cluster, "--purge")
        shutil.rmtree(home, ignore_errors=True)


def large(cluster: Path, mount: Path, store: Any) -> None:
    """1 GiB."""
    data = os.urandom(64 << 20) * (SIZE >> 26)
    put: Any = obstore.put_async
    get: Any = obstore.get_range_async
    succeed("setstripe", "-c", "4", "-S", "1M", mount / "file")
    (mount / "file").write_bytes(data)
    os.sync()

    async def send() -> None:
        await put(store, "plain", data, chunk_size=8 << 20, max_concurrency=8)

    async def fetch() -> None:
        limit = asyncio.Semaphore(8)

        async def one(at: int) -> None:
            async with limit:
                await get(store, "plain", start=at, end=at + (8 << 20))

        await asyncio.gather(*(one(at) for at in range(0, SIZE, 8 << 20)))

    with Timed(cluster, "obstore PUT 1 GiB") as plain_out:
        asyncio.run(send())
    with Timed(cluster, "nacre hsm archive 1 GiB") as out:
        succeed("hsm", "archive", "--wait", mount / "file")
    succeed("hsm", "release", "--wait", mount / "file")
    with Timed(cluster, "obstore GET 1 GiB") as plain_back:
        asyncio.run(fetch())
    began_s = time.monotonic()
    with Timed(cluster, "read of the released file") as back, (mount / "file").open("rb") as file:
        first = file.read(1 << 20)
        first_s = time.monotonic() - began_s
        same = first == data[: 1 << 20]
        at = len(first)
        while part := file.read(4 << 20):
            same = same and part == data[at : at + len(part)]
            at += len(part)
    assert same and at == SIZE
    print(f"out {out.seconds / plain_out.seconds:.2f}×, back {back.seconds / plain_back.seconds:.2f}× of obstore; "
          f"first MiB after {first_s:.3f} s")  # fmt: skip


def many(cluster: Path, mount: Path, store: Any, files: int) -> None:
    """Small files."""
    put: Any = obstore.put_async
    directory = mount / "many"
    directory.mkdir()
    data = os.urandom(100_000)
    names = [str(directory / f"f{number}") for number in range(files)]
    for name in names:
        Path(name).write_bytes(data)
    listing = mount.parent / "list"
    listing.write_text("\n".join(names))

    async def send() -> None:
        limit = asyncio.Semaphore(16)

        async def one(number: int) -> None:
            async with limit:
                await put(store, f"many/{number}", data, use_multipart=False)

        await asyncio.gather(*map(one, range(files)))

    with Timed(cluster, f"obstore PUT {files} × 100 KB"):
        asyncio.run(send())
    for verb in ("archive", "release", "restore"):
        with Timed(cluster, f"nacre hsm {verb} {files} × 100 KB"):
            done = nacre("hsm", verb, "--wait", "-f", listing)
            assert done.returncode == 0, done.stderr[-500:]
    subprocess.run(["cmp", names[0], names[-1]], check=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
