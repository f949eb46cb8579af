import asyncio
import errno
import json
import logging
import math
import socket
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from nacrefs.common.observe import Meter, Observatory, Tally, resident_bytes, start_logging
from nacrefs.common.wire import Lookup, Read


async def get(url: str) -> tuple[int, str, str]:
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status, response.headers["Content-Type"], await response.text()


def served(*durations_us: float, failed: int = 0) -> Meter:
    meter = Meter()
    for number, microseconds in enumerate(durations_us):
        meter.record(Lookup, round(microseconds * 1024), failed=number < failed)
    return meter


async def test_metrics_are_what_prometheus_understands() -> None:
    meter = served(0.5, 3, 3, 1000, 5e7, failed=2)
    meter.add("bytes_sent", 700)
    meter.add("bytes_sent", 77)
    observatory = Observatory(meter, list, lambda: {"clients": 3.0})
    url = await observatory.start("127.0.0.1", 0)
    status, content_type, text = await get(f"{url}/metrics")
    await observatory.stop()
    assert status == 200
    assert content_type.startswith("text/plain; version=")
    families = {family.name: family for family in text_string_to_metric_families(text)}
    latency = {
        sample.labels["le"]: sample.value
        for sample in families["nacre_request_seconds"].samples
        if sample.name == "nacre_request_seconds_bucket" and sample.labels["kind"] == "Lookup"
    }
    assert (latency["1e-06"], latency["2e-06"], latency["4e-06"], latency["+Inf"]) == (1, 1, 3, 5)
    assert list(latency.values()) == sorted(latency.values())
    values: dict[str, Any] = {sample.name: sample.value for family in families.values() for sample in family.samples}
    assert values["nacre_request_seconds_count"] == 5
    assert round(values["nacre_request_seconds_sum"], 1) == 51.2
    assert values["nacre_request_failures_total"] == 2
    assert values["nacre_bytes_sent_total"] == 777
    assert values["nacre_clients"] == 3
    assert values["nacre_cpu_seconds_total"] > 0
    assert values["nacre_resident_bytes"] > 1 << 20


async def test_health_says_what_is_wrong() -> None:
    problems: list[str] = []
    observatory = Observatory(Meter(), lambda: problems)
    url = await observatory.start("127.0.0.1", 0)
    status, _, text = await get(f"{url}/health")
    assert (status, json.loads(text)) == (200, {"healthy": True, "problems": []})
    problems.append("OST 3 is full")
    status, _, text = await get(f"{url}/health")
    assert (status, json.loads(text)) == (503, {"healthy": False, "problems": ["OST 3 is full"]})
    assert (await get(f"{url}/other"))[0] == 404
    await observatory.stop()
    await observatory.stop()


async def test_a_taken_port_is_named_and_nothing_is_left() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        observatory = Observatory(Meter(), list)
        with pytest.raises(OSError, match=f"cannot serve metrics at http://127.0.0.1:{port}: ") as caught:
            await observatory.start("127.0.0.1", port)
        assert caught.value.errno == errno.EADDRINUSE
    assert (await observatory.start("127.0.0.1", port)).endswith(f":{port}")
    await observatory.stop()
    await asyncio.sleep(0)


@given(st.lists(st.integers(0, 1 << 32), min_size=1), st.sampled_from([0.01, 0.5, 0.9, 0.99, 1.0]))
def test_a_percentile_is_bounded_from_above_within_a_factor_of_two(nanoseconds: list[int], fraction: float) -> None:
    meter = Meter()
    for duration in nanoseconds:
        meter.record(Read, duration)
    exact = sorted(nanoseconds)[math.ceil(fraction * len(nanoseconds)) - 1]
    bound_us = meter.tallies["Read"].percentile_us(fraction)
    assert exact < bound_us * 1024
    assert bound_us == 1 or exact * 2 >= bound_us * 1024


def test_a_report_is_plain_data() -> None:
    meter = served(2, 2, 2, 900, failed=1)
    meter.add("evictions")
    report = json.loads(json.dumps(meter.report()))
    assert report["requests"] == {
        "Lookup": {"count": 4, "failed": 1, "mean_us": 231.9, "p50_us": 4.0, "p99_us": 1024.0}
    }
    assert report["counters"] == {"evictions": 1}
    assert report["cpu_s"] > 0
    assert report["uptime_s"] >= 0
    assert Tally().percentile_us(0.5) == 0.0
    assert resident_bytes() > 1 << 20


def test_logs_are_one_line_per_event(tmp_path: Path) -> None:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        start_logging("info", str(tmp_path / "log"))
        logging.getLogger("nacre.test").info("%s has come", "client-1")
        logging.getLogger("nacre.test").debug("not wanted")
    finally:
        for handler in root.handlers:
            handler.close()
        root.handlers[:], root.level = before
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert line.endswith(" client-1 has come")
    assert " INFO    nacre.test[" in line
