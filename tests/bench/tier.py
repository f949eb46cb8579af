"""The tier next to the best S3 client, on the same server in the same run: `python -m tests.bench.tier`.

One file of 1 GiB over four OSTs goes out and comes back, several times; so do many files of 100 KB. obstore does the
same with plain PUT and GET, in turn with us. What comes back is hashed by whoever reads it, both here and there. CPU
seconds are of each server, of the mount, and of this process with the commands that it starts (`client`).

GET has two forms: into memory, where the bytes are gone when they have been hashed, and into a file that is made
durable and then read: what the tier does, whose bytes are on the OSTs afterwards.
"""

import argparse
import asyncio
import os
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import obstore
import xxhash
from obstore.store import S3Store

from tests.harness.process import NACRE, nacre, succeed, succeed_json

SIZE: Final = 1 << 30
_PART: Final = 8 << 20
_AT_ONCE: Final = 8
_SERVERS: Final = ("s3", "mds", "oss0", "oss1", "mount")


def cpu_s(cluster: Path, name: str) -> float:
    """CPU time of a process of the cluster."""
    pid = (cluster / "run" / f"{name}.pid").read_text().split()[0]
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Timed:
    """Seconds, and CPU seconds of everybody, of a block."""

    def __init__(self, cluster: Path, what: str) -> None:
        self.cluster, self.what = cluster, what
        self.seconds = 0.0
        self.cpu: dict[str, float] = {}

    def _cpu(self) -> dict[str, float]:
        own = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        client = sum(usage.ru_utime + usage.ru_stime for usage in own)
        return {name: cpu_s(self.cluster, name) for name in _SERVERS} | {"client": client}

    def __enter__(self) -> "Timed":
        self._before, self._began_s = self._cpu(), time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.monotonic() - self._began_s
        self.cpu = {name: round(now - self._before[name], 2) for name, now in self._cpu().items()}
        print(f"{self.what}: {self.seconds:.2f} s; CPU {self.cpu}", flush=True)

    def plus(self, other: "Timed") -> "Timed":
        """Both, one after the other."""
        whole = Timed(self.cluster, f"{self.what}, {other.what}")
        whole.seconds = self.seconds + other.seconds
        whole.cpu = {name: used + other.cpu[name] for name, used in self.cpu.items()}
        return whole


class Bench:
    """A cluster, its archive, and obstore on the same server."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.cluster, self.mount = home / "cluster", home / "mnt"
        up = succeed_json("dev", "up", "--dir", self.cluster, "--mount", self.mount, "--s3")
        s3 = up["s3"]
        where = ("--endpoint", s3["endpoint"], "--credentials-file", s3["credentials"])
        succeed("archive", "add", self.mount, "cold", f"s3://{s3['bucket']}/bench", *where)
        keys = dict(line.split(" = ") for line in Path(s3["credentials"]).read_text().splitlines() if " = " in line)
        make: Any = S3Store
        self.store = make(
            s3["bucket"],
            endpoint=s3["endpoint"],
            access_key_id=keys["aws_access_key_id"],
            secret_access_key=keys["aws_secret_access_key"],
            region="us-east-1",
            client_options={"allow_http": True},
            virtual_hosted_style_request=False,
        )

    def timed(self, what: str) -> Timed:
        """A block that is measured."""
        return Timed(self.cluster, what)

    def command(self, *words: str | Path) -> None:
        """A command that may take long."""
        subprocess.run([NACRE, *map(str, words)], check=True, stdout=subprocess.DEVNULL, timeout=3600)

    # ------------------------------------------------------------------------------------------------------ one large

    def large(self, rounds: int, out_rounds: int) -> None:
        """1 GiB out and back."""
        data = os.urandom(64 << 20) * (SIZE >> 26)
        digest = xxhash.xxh3_64_hexdigest(data)
        file = self.mount / "file"
        succeed("setstripe", "-c", "4", "-S", "1M", file)
        file.write_bytes(data)
        os.sync()
        out: list[tuple[Timed, Timed]] = []
        for number in range(out_rounds):
            with self.timed("obstore PUT 1 GiB") as plain:
                asyncio.run(self._send_plain(data))
            if number:
                self.command("hsm", "remove", "--wait", file)
            with self.timed("nacre hsm archive 1 GiB") as ours:
                self.command("hsm", "archive", "--wait", file)
            out.append((plain, ours))
        _ratio("out", [plain for plain, _ in out], [ours for _, ours in out])
        del data
        memory: list[Timed] = []
        durable: list[Timed] = []
        reading: list[Timed] = []
        recall: list[Timed] = []
        back: list[Timed] = []
        first_s: list[float] = []
        for _ in range(rounds):
            with self.timed("obstore GET 1 GiB into memory") as one:
                assert asyncio.run(self._fetch_hashed()) == digest
            memory.append(one)
            plain_file = self.home / "plain"
            with self.timed("obstore GET 1 GiB into a file, fsync") as one:
                asyncio.run(self._fetch_to(plain_file))
            durable.append(one)
            with self.timed("and reading it") as one:
                assert _read(plain_file)[0] == digest
            reading.append(one)
            plain_file.unlink()
            self.command("hsm", "release", "--wait", file)
            with self.timed("nacre hsm restore 1 GiB") as one:
                self.command("hsm", "restore", "--wait", file)
            recall.append(one)
            self.command("hsm", "release", "--wait", file)
            with self.timed("read of the released file") as one:
                found, first = _read(file)
                assert found == digest
            back.append(one)
            first_s.append(first)
        _ratio("recall alone, of GET into memory", memory, recall)
        _ratio("read while it comes back, of GET into memory", memory, back)
        _ratio("recall alone, of GET into a file", durable, recall)
        both = [one.plus(other) for one, other in zip(durable, reading, strict=True)]
        _ratio("read while it comes back, of GET into a file and reading that", both, back)
        print(f"first MiB after {statistics.median(first_s):.3f} s")

    async def _send_plain(self, data: bytes) -> None:
        put: Any = obstore.put_async
        await put(self.store, "plain", data, chunk_size=_PART, max_concurrency=_AT_ONCE)

    async def _fetch(self, use: Callable[[int, Any], None]) -> None:
        get: Any = obstore.get_range_async
        limit = asyncio.Semaphore(_AT_ONCE)

        async def one(at: int) -> None:
            async with limit:
                use(at, await get(self.store, "plain", start=at, end=at + _PART))

        await asyncio.gather(*(one(at) for at in range(0, SIZE, _PART)))

    async def _fetch_hashed(self) -> str:
        """The digest of all bytes; parts that come early wait for those before them."""
        digest = xxhash.xxh3_64()
        early: dict[int, Any] = {}
        done = 0

        def use(at: int, part: Any) -> None:
            nonlocal done
            early[at] = part
            while done in early:
                digest.update(memoryview(early.pop(done)))
                done += _PART

        await self._fetch(use)
        return digest.hexdigest()

    async def _fetch_to(self, path: Path) -> None:
        with path.open("wb") as file:
            await self._fetch(lambda at, part: _write_all(file.fileno(), at, memoryview(part)))
            os.fsync(file.fileno())

    # ---------------------------------------------------------------------------------------------------- many small

    def many(self, count: int) -> None:
        """Files of 100 KB."""
        directory = self.mount / "many"
        directory.mkdir()
        data = os.urandom(100_000)
        names = [str(directory / f"f{number}") for number in range(count)]
        for name in names:
            Path(name).write_bytes(data)
        os.sync()
        listing = self.home / "list"
        listing.write_text("\n".join(names))
        with self.timed(f"obstore PUT {count} × 100 KB"):
            asyncio.run(self._each(count, lambda number: self._put_small(number, data)))
        for verb in ("archive", "release"):
            with self.timed(f"nacre hsm {verb} {count} × 100 KB") as one:
                self.command("hsm", verb, "--wait", "-f", listing)
            _each(one, count)
        with self.timed(f"obstore GET {count} × 100 KB"):
            asyncio.run(self._each(count, self._get_small))
        with self.timed(f"nacre hsm restore {count} × 100 KB") as one:
            self.command("hsm", "restore", "--wait", "-f", listing)
        _each(one, count)
        assert Path(names[0]).read_bytes() == Path(names[-1]).read_bytes() == data

    async def _each(self, count: int, work: Callable[[int], Any]) -> None:
        limit = asyncio.Semaphore(16)

        async def one(number: int) -> None:
            async with limit:
                await work(number)

        await asyncio.gather(*map(one, range(count)))

    async def _put_small(self, number: int, data: bytes) -> None:
        put: Any = obstore.put_async
        await put(self.store, f"many/{number}", data, use_multipart=False)

    async def _get_small(self, number: int) -> None:
        get: Any = obstore.get_async
        await (await get(self.store, f"many/{number}")).bytes_async()


def _read(path: Path) -> tuple[str, float]:
    """The digest of a file, and how long its first MiB took."""
    digest, buffer = xxhash.xxh3_64(), memoryview(bytearray(4 << 20))
    began_s, first_s, size = time.monotonic(), 0.0, 0
    with path.open("rb", buffering=0) as file:
        while got := file.readinto(buffer[: len(buffer) if size else 1 << 20]):
            first_s = first_s or time.monotonic() - began_s
            digest.update(buffer[:got])
            size += got
    assert size == SIZE
    return digest.hexdigest(), first_s


def _write_all(fd: int, at: int, view: memoryview) -> None:
    while view:
        done = os.pwrite(fd, view, at)
        view, at = view[done:], at + done


def _ratio(what: str, plain: Sequence[Timed], ours: Sequence[Timed]) -> None:
    """Medians of the rounds."""
    seconds = [statistics.median(one.seconds for one in some) for some in (plain, ours)]
    print(f"{what}: {seconds[1]:.2f} s / {seconds[0]:.2f} s = {seconds[1] / seconds[0]:.2f}×", flush=True)
    for name, some in (("plain", plain), ("ours", ours)):
        cpu = {who: round(statistics.median(one.cpu[who] for one in some), 2) for who in (*_SERVERS, "client")}
        print(f"    CPU, {name}: {cpu}, together {sum(cpu.values()):.2f} s", flush=True)


def _each(timed: Timed, count: int) -> None:
    parts = ", ".join(f"{who} {seconds / count * 1e3:.2f}" for who, seconds in timed.cpu.items())
    print(f"    ms of CPU for each file: {parts}", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="of bringing back the large file; 0: none")
    parser.add_argument("--out", type=int, default=1, help="of sending it out, which costs the server most")
    parser.add_argument("--files", type=int, default=10_000, help="small ones; 0: none")
    parser.add_argument("--dir", default="/var/tmp", help="where the cluster lies")
    arguments = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="nacre-tier-", dir=arguments.dir))
    try:
        bench = Bench(home)
        if arguments.rounds:
            bench.large(arguments.rounds, arguments.out)
        if arguments.files:
            bench.many(arguments.files)
    finally:
        nacre("dev", "down", "--dir", home / "cluster", "--purge")
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main()
