"""What a process tells about itself: counters per request kind, logging, and `/metrics` and `/health` over HTTP.

aiohttp and the Prometheus client take 0.2 s to import, so that happens when somebody first asks over HTTP.
"""

import asyncio
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from aiohttp import web
    from prometheus_client.core import Metric

_BUCKETS: Final = 24
"""Latency buckets: bucket n counts what took less than 2^n µs (about; 1024 ns are taken as a µs)."""


class Tally:
    """One kind of request: how many, how many failed, and how long they took."""

    __slots__ = ("buckets", "count", "failed", "nanoseconds")

    def __init__(self) -> None:
        self.count = 0
        self.failed = 0
        self.nanoseconds = 0
        self.buckets = [0] * _BUCKETS

    def percentile_us(self, fraction: float) -> float:
        """An upper bound of this percentile, in µs: a power of two (2^23 for all that took longer than 4 s)."""
        wanted, seen = fraction * self.count, 0
        for power, count in enumerate(self.buckets):
            seen += count
            if seen >= wanted and seen:
                return float(1 << power)
        return 0.0


class Meter:
    """Counters of one process. `record` is on the path of every request and costs well below a microsecond."""

    def __init__(self) -> None:
        self.tallies: dict[str, Tally] = {}
        self.counters: dict[str, int] = {}
        self.started_s = time.time()
        self._by_kind: dict[type, Tally] = {}

    def record(self, kind: type, nanoseconds: int, failed: bool = False) -> None:
        """One request of this kind took this long."""
        tally = self._by_kind.get(kind)
        if tally is None:
            tally = self._by_kind[kind] = self.tallies.setdefault(kind.__name__, Tally())
        tally.count += 1
        tally.nanoseconds += nanoseconds
        power = (nanoseconds >> 10).bit_length()
        tally.buckets[power if power < _BUCKETS else -1] += 1
        if failed:
            tally.failed += 1

    def add(self, counter: str, amount: int = 1) -> None:
        """Count something that is not a request."""
        self.counters[counter] = self.counters.get(counter, 0) + amount

    def report(self) -> dict[str, Any]:
        """Everything, as plain data: requests by kind, other counters, CPU seconds, resident memory."""
        return {
            "uptime_s": round(time.time() - self.started_s, 3),
            "cpu_s": round(time.process_time(), 6),
            "rss_bytes": resident_bytes(),
            "requests": {
                name: {
                    "count": tally.count,
                    "failed": tally.failed,
                    "mean_us": round(tally.nanoseconds / 1000 / tally.count, 1) if tally.count else 0.0,
                    "p50_us": tally.percentile_us(0.5),
                    "p99_us": tally.percentile_us(0.99),
                }
                for name, tally in sorted(self.tallies.items())
            },
            "counters": dict(sorted(self.counters.items())),
        }


def resident_bytes() -> int:
    """This process's resident memory."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class _MeterCollector:
    """A meter in Prometheus's terms."""

    def __init__(self, meter: Meter, gauges: Callable[[], dict[str, float]]) -> None:
        self._meter = meter
        self._gauges = gauges

    def collect(self) -> "Iterable[Metric]":
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        latency = HistogramMetricFamily("nacre_request_seconds", "Time in service, by request kind", labels=["kind"])
        failed = CounterMetricFamily("nacre_request_failures", "Requests answered with an error", labels=["kind"])
        for name, tally in self._meter.tallies.items():
            buckets: list[tuple[str, float]] = []
            seen = 0
            for power, count in enumerate(tally.buckets[:-1]):
                seen += count
                buckets.append((str((1 << power) / 1e6), seen))
            buckets.append(("+Inf", tally.count))
            latency.add_metric([name], buckets, tally.nanoseconds / 1e9)
            failed.add_metric([name], tally.failed)
        yield latency
        yield failed
        for name, value in self._meter.counters.items():
            yield CounterMetricFamily(f"nacre_{name}", name.replace("_", " "), value=value)
        yield CounterMetricFamily("nacre_cpu_seconds", "CPU time of the process", value=time.process_time())
        yield GaugeMetricFamily("nacre_resident_bytes", "Resident memory", value=resident_bytes())
        for name, level in self._gauges().items():
            yield GaugeMetricFamily(f"nacre_{name}", name.replace("_", " "), value=level)


class Observatory:
    """The HTTP side of a server: `/metrics` for Prometheus, `/health` for whoever must know whether it works.

    `health` returns the reasons why the process is not healthy (none: 200, else 503).
    """

    def __init__(
        self,
        meter: Meter,
        health: Callable[[], list[str]],
        gauges: Callable[[], dict[str, float]] = dict,
        extend: "Callable[[web.Application], None] | None" = None,
    ) -> None:
        """`extend` adds further routes to the application."""
        self._collector = _MeterCollector(meter, gauges)
        self._health = health
        self._extend = extend
        self._socket: socket.socket | None = None
        self._runner: web.AppRunner | None = None
        self._building: asyncio.Task[None] | None = None

    async def start(self, host: str, port: int) -> str:
        """Serve; the URL. OSError naming the address if it is taken."""
        loop = asyncio.get_running_loop()
        listening: socket.socket | None = None
        try:
            infos = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            family, _, _, _, address = infos[0]
            listening = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(128)
        except OSError as error:
            if listening is not None:
                listening.close()
            raise OSError(error.errno, f"cannot serve metrics at http://{host}:{port}: {error.strerror}") from None
        self._socket = listening
        loop.add_reader(listening.fileno(), self._visited)
        return f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"

    def _visited(self) -> None:
        """Somebody has connected for the first time."""
        loop = asyncio.get_running_loop()
        if self._socket is not None:
            loop.remove_reader(self._socket.fileno())
            self._building = loop.create_task(self._build(self._socket))

    async def _build(self, listening: socket.socket) -> None:
        with ThreadPoolExecutor(1) as importer:  # importing aiohttp takes 0.2 s: others are served meanwhile
            await asyncio.get_running_loop().run_in_executor(importer, import_module, "aiohttp.web")
        from aiohttp import web

        app = web.Application()
        app.router.add_get("/metrics", self._serve_metrics)
        app.router.add_get("/health", self._serve_health)
        if self._extend is not None:
            self._extend(app)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await self._runner.setup()
        await web.SockSite(self._runner, listening).start()
        self._socket = None  # the runner's now

    async def stop(self) -> None:
        """Stop serving."""
        if self._building is not None:
            await asyncio.gather(self._building, return_exceptions=True)
            self._building = None
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None

    async def _serve_metrics(self, request: "web.Request") -> "web.Response":
        from aiohttp import web
        from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

        registry = CollectorRegistry()
        registry.register(self._collector)
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _serve_health(self, request: "web.Request") -> "web.Response":
        from aiohttp import web

        problems = self._health()
        body = json.dumps({"healthy": not problems, "problems": problems})
        return web.Response(text=body, content_type="application/json", status=503 if problems else 200)


def start_logging(level: str, file: str | None = None) -> None:
    """Log to `file`, or to standard error, one line per event."""
    handler = logging.FileHandler(file) if file else logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s[%(process)d] %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("asyncio").setLevel("WARNING")
