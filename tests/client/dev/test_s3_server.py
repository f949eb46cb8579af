"""The S3 server of a development cluster: its ports, what happens if one of them is taken, and its end."""

import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from nacrefs.client.dev import cluster as dev
from nacrefs.client.dev.config import HOST, choose_s3_ports
from nacrefs.client.dev.process import start_time
from nacrefs.client.dev.s3 import PORTS


def test_ports_and_those_above_are_different_and_no_connection_gets_them() -> None:
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for _ in range(20):
        ports = choose_s3_ports(PORTS)
        assert len({*ports, *(port + 10_000 for port in ports)}) == 2 * PORTS
        assert max(ports) + 10_000 < max(first, 21_240)


def test_a_server_whose_port_is_taken_is_known_to_be_dead(tmp_path: Path) -> None:
    ports = choose_s3_ports(PORTS)
    with socket.socket() as taken:
        taken.bind((HOST, ports[3]))
        taken.listen()
        command = (sys.executable, "-P", "-m", "nacrefs.client.dev.s3", str(tmp_path), *map(str, ports))
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
            assert server.stdout is not None
            assert select.select([server.stdout], [], [], 50)[0], "nobody hears of its end"
            assert server.stdout.read() == b""
    assert server.returncode != 0


def test_a_server_that_hangs_while_it_stops_is_killed_soon_and_nobody_need_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dev, "S3_STOP_S", 0.05)
    cluster = dev.DevCluster.prepare(tmp_path, dev.Wish(s3=True))
    hangs = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint(flush=True)\nsignal.pause()"
    with subprocess.Popen([sys.executable, "-c", hangs], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        server.stdout.readline()
        cluster.s3.pid_file.parent.mkdir()
        cluster.s3.pid_file.write_text(f"{server.pid} {start_time(server.pid)}\n")
        assert cluster.down() == []
    assert server.returncode == -signal.SIGKILL
