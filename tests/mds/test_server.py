"""An MDS from start to stop: what it says when something is wrong, and that nothing is left behind."""

import asyncio
import json
import logging
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from msgspec.structs import replace

from nacrefs.common.auth import new_keyring
from nacrefs.common.wire import Inspect, Mkdir, Reclaim
from nacrefs.mds.config import MdsConfig
from nacrefs.mds.database import format_mdt
from nacrefs.mds.server import MdsServer
from tests.mds.served import ROOT, Served


def config_of(path: Path, **changes: object) -> MdsConfig:
    return replace(
        MdsConfig(database=f"sqlite:///{path}/mdt.db", listen="tcp://127.0.0.1:0", metrics=""),
        **changes,
    )


async def test_server_of_another_cluster_s_mdt_does_not_start(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    format_mdt(config.database, "theirs", 0, 0)
    with pytest.raises(ValueError, match="cluster theirs, the keyring of ours"):
        await MdsServer(config, new_keyring("ours")).start()


async def test_server_with_another_mdt_number_does_not_start(tmp_path: Path) -> None:
    config = config_of(tmp_path, mdt=3)
    format_mdt(config.database, "ours", 0, 0)
    with pytest.raises(ValueError, match="is MDT 0, the configuration says 3"):
        await MdsServer(config, new_keyring("ours")).start()


async def test_taken_port_and_missing_database_leave_nothing_behind(tmp_path: Path) -> None:
    keyring = new_keyring("ours")
    with pytest.raises(OSError, match="nacre mds format"):
        await MdsServer(config_of(tmp_path), keyring).start()
    config = config_of(tmp_path)
    format_mdt(config.database, "ours", 0, 0)
    first = MdsServer(config, keyring)
    await first.start()
    (tmp_path / "second").mkdir()
    second = config_of(tmp_path / "second", listen=first.url)
    format_mdt(second.database, "ours", 0, 0)
    try:
        with pytest.raises(OSError, match="in use"):
            await MdsServer(second, keyring).start()
        with pytest.raises(OSError, match="another MDS is serving"):
            await MdsServer(config, keyring).start()
    finally:
        await first.stop()


async def test_health_metrics_and_status_over_http(tmp_path: Path) -> None:
    config = config_of(tmp_path, metrics="127.0.0.1:0")
    format_mdt(config.database, "ours", 0, 0)
    server = MdsServer(config, new_keyring("ours"))
    await server.start()

    def get(path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(server.metrics_url + path, timeout=5) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    try:
        status, health = await asyncio.to_thread(get, "/health")
        assert status == 503
        assert "no OST has joined" in health
        status, report = await asyncio.to_thread(get, "/status")
        assert status == 200
        assert json.loads(report)["role"] == "mds"
        status, metrics = await asyncio.to_thread(get, "/metrics")
        assert "nacre_leases" in metrics
    finally:
        await server.stop()


async def test_nobody_is_served_before_what_an_earlier_run_has_left_is_known(mdt_url: str) -> None:
    async with Served(mdt_url) as served:
        client = await served.client()
        served.config = replace(served.config, metrics="127.0.0.1:0")  # which takes a while to start
        await served.server.stop()
        server = served.server = MdsServer(served.config, served.keyring, served.clock)
        starting = asyncio.ensure_future(server.start())
        turns = 0
        while not starting.done():
            await asyncio.sleep(0)
            if server.url:
                turns += 1
                assert client.number in server.mds.sessions.by_id
                assert server.mds.grace.running
        await starting
        assert turns > 1, "nobody could have connected meanwhile: this shows nothing"


async def test_requests_that_are_queued_when_it_stops_are_durable(mdt_url: str) -> None:
    async with Served(mdt_url) as served:
        client = await served.client()
        calls = [client.call(Mkdir(ROOT, b"d%d" % number, 0o755, 0, 0)) for number in range(300)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await served.server.stop()
        client.reclaims = [Reclaim(())]
        await served.start()
        await asyncio.gather(*calls)
        assert served.mds.mdt.files == 301


async def test_status_and_stats_are_told_and_other_reports_refused(mdt_url: str) -> None:
    async with Served(mdt_url) as served:
        client = await served.client()
        status = json.loads((await client.call(Inspect("status"))).report)
        assert [session["client"] for session in status["sessions"]] == [client.name]
        assert [ost["up"] for ost in status["osts"]] == [True, True]
        stats = json.loads((await client.call(Inspect("stats"))).report)
        assert stats["requests"]["Inspect"]["count"] == 1
        with pytest.raises(OSError, match="there is no report 'nonsense'"):
            await client.call(Inspect("nonsense"))


async def test_an_error_in_the_watch_does_not_end_it(mdt_url: str, caplog: pytest.LogCaptureFixture) -> None:
    async with Served(mdt_url) as served:
        mds = served.mds

        def broken() -> list[tuple[object, str]]:
            raise RuntimeError("a bug")

        mds.sessions.overdue = broken  # type: ignore[method-assign, assignment]
        with caplog.at_level(logging.ERROR):
            mds.watch_once()
        assert "a bug" in caplog.text
