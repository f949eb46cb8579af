"""A cluster on a network of its own: each party in a network namespace, and any two can be cut off from each other.

The parties are joined by a bridge. A cut gives each of two parties a link address for the other that nobody has, so
that packets vanish without a word, as when a cable is pulled; nobody else notices.
"""

import itertools
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from nacrefs.client.mount import daemon as mounts
from nacrefs.common.auth import new_keyring, save_keyring
from tests.harness.process import need_mounts, processes_under

PARTIES: Final = ("mds", "oss0", "oss1", "one", "two", "rogue")
PORT: Final = 7000
TERM_S: Final = 4.0
HEARTBEAT_S: Final = 0.5
READY_S: Final = 60.0
_NOBODY: Final = "02:00:00:00:00:fe"
_networks: Final = itertools.count()


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def address(party: str) -> str:
    """The party's address."""
    return f"10.77.0.{1 + PARTIES.index(party)}"


class Network:
    """The namespaces and the bridge."""

    def __init__(self) -> None:
        self._prefix = f"nacre{os.getpid()}.{next(_networks)}"  # (a namespace may outlive its test for a moment)
        self._made: list[str] = []
        self._cuts: set[tuple[str, str]] = set()

    def _name(self, party: str) -> str:
        return f"{self._prefix}-{party}"

    def make(self) -> None:
        """Make them; the test is skipped where that is not allowed."""
        try:
            self._namespace("hub")
        except (subprocess.CalledProcessError, FileNotFoundError) as error:
            reason = getattr(error, "stderr", b"").decode().strip() or str(error)
            pytest.skip(f"network namespaces cannot be made here (they need root, and the package iproute2): {reason}")
        hub = self._name("hub")
        _ip("-n", hub, "link", "add", "bridge", "type", "bridge")
        _ip("-n", hub, "link", "set", "bridge", "up")
        for party in PARTIES:
            self._namespace(party)
            place = self._name(party)
            _ip("-n", hub, "link", "add", party, "type", "veth", "peer", "name", "net", "netns", place)
            _ip("-n", hub, "link", "set", party, "master", "bridge", "up")
            _ip("-n", place, "addr", "add", f"{address(party)}/24", "dev", "net")
            _ip("-n", place, "link", "set", "net", "up")
            _ip("-n", place, "link", "set", "lo", "up")

    def _namespace(self, party: str) -> None:
        _ip("netns", "add", self._name(party))
        self._made.append(self._name(party))

    def remove(self) -> None:
        """Take all of it away."""
        for name in self._made:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)

    def within(self, party: str, command: Sequence[str | Path]) -> list[str | Path]:
        """The command, to be run by a party. (Not `ip netns exec`, which hides mounts from others.)"""
        return ["nsenter", f"--net=/run/netns/{self._name(party)}", *command]

    def cut(self, one: str, other: str) -> None:
        """No packet between the two arrives any more."""
        for here, there in ((one, other), (other, one)):
            words = ("neigh", "replace", address(there), "lladdr", _NOBODY, "dev", "net", "nud", "permanent")
            _ip("-n", self._name(here), *words)
            self._cuts.add((here, there))
        assert not self.reaches(one, other), "the network is not cut: this would show nothing"

    def heal(self) -> None:
        """All packets arrive again."""
        for here, there in self._cuts:
            _ip("-n", self._name(here), "neigh", "del", address(there), "dev", "net")
        self._cuts.clear()

    def reaches(self, one: str, other: str) -> bool:
        """Whether a new connection between the two can be made now."""
        attempt = f"import socket; socket.create_connection(('{address(other)}', 9), 0.5)"
        done = subprocess.run(self.within(one, [sys.executable, "-c", attempt]), capture_output=True, check=False)
        return b"refused" in done.stderr


class NetworkCluster:
    """An MDS, two OSSes of one OST each, and mounts `one` and `two`."""

    def __init__(self, base: Path, network: Network) -> None:
        self.base = base
        self.network = network
        self.url = f"tcp://{address('mds')}:{PORT}"
        self.keyring = base / "keyring.toml"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def place(self, mount: str) -> Path:
        """Where a mount is."""
        return self.base / mount

    def start(self) -> None:
        """Start everything."""
        save_keyring(self.keyring, new_keyring("network"))
        self.start_mds()
        for name in ("oss0", "oss1"):
            listen = [f"tcp://{address(name)}:{PORT}"]
            self._serve(name, "oss", {"mds": self.url, "listen": listen, "osts": [str(self.base / f"{name}.ost")]})
        for name in ("one", "two"):
            self.place(name).mkdir()
            options = f"keyring={self.keyring},retry=30,log={self.base / name}.log"
            self._run(name, "mount", self.url, str(self.place(name)), "--foreground", "--json", "-o", options)
        deadline_s = time.monotonic() + READY_S
        while sum(ost["up"] for ost in mounts.ask_json(str(self.place("one")), "df")["osts"]) < 2:
            assert time.monotonic() < deadline_s, "the OSTs have not joined"
            time.sleep(0.05)

    def start_mds(self) -> None:
        """Start the MDS (again)."""
        self._serve("mds", "mds", {
            "database": str(self.base / "mdt.sqlite"), "listen": self.url, "metrics": "",
            "lease": {"term_s": TERM_S}, "ost": {"heartbeat_s": HEARTBEAT_S},
        })  # fmt: skip

    def said(self, name: str) -> str:
        """What a server has logged so far."""
        return (self.base / f"{name}.err").read_text(errors="replace")

    def kill(self, name: str) -> None:
        """kill -9."""
        process = self.processes.pop(name)
        process.kill()
        process.wait(10)
        if process.stdout is not None:
            process.stdout.close()

    def _serve(self, name: str, role: str, values: dict[str, object]) -> None:
        lines: list[str] = []
        tables: list[str] = []
        for key, value in {"name": name, "keyring": str(self.keyring), **values}.items():
            if isinstance(value, dict):
                tables.append(f"[{key}]")
                tables += [f"{inner} = {json.dumps(number)}" for inner, number in value.items()]  # pyright: ignore[reportUnknownVariableType]
            else:
                lines.append(f"{key} = {json.dumps(value)}")
        config = self.base / f"{name}.toml"
        config.write_text("\n".join([*lines, *tables]) + "\n")
        self._run(name, role, "serve", "--format", "--config", str(config))

    def _run(self, name: str, *arguments: str) -> None:
        command = self.network.within(name, [sys.executable, "-P", "-m", "nacrefs.client.cli", *arguments])
        with open(self.base / f"{name}.err", "ab") as errors:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, stdin=subprocess.DEVNULL)
        self.processes[name] = process
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], READY_S)
        said = os.read(process.stdout.fileno(), 4096) if ready else b""
        assert said, f"{name} did not start: {(self.base / f'{name}.err').read_text()[-500:]}"

    def stop(self) -> None:
        """Stop everything."""
        for name in ("one", "two"):
            subprocess.run(["umount", "-l", self.place(name)], check=False, capture_output=True)
        for name in reversed(self.processes):
            process = self.processes[name]
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)
            if process.stdout is not None:
                process.stdout.close()


@contextmanager
def network_cluster(base: Path) -> Generator[NetworkCluster]:
    """A cluster that runs on a network of its own; afterwards nothing of it is left."""
    need_mounts()
    network = Network()
    cluster = NetworkCluster(base, network)
    try:
        network.make()
        cluster.start()
        yield cluster
    finally:
        network.heal()
        cluster.stop()
        network.remove()
    left = processes_under(base)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, f"processes were left: {left}"
