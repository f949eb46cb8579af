"""Real S3 servers for the tests: SeaweedFS for everything, moto for cold classes; a bucket for each test."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from nacrefs.client.dev import s3 as devs3
from nacrefs.client.dev.config import choose_ports, choose_s3_ports
from nacrefs.common.wire import ArchiveSpec
from tests.harness.pace import SLOWER

boto3_client: Any = import_module("boto3").client


class S3Server:
    """A server that can be killed and started again; its data stays."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ports = choose_s3_ports(devs3.PORTS)
        self.access, self.secret = devs3.credentials_of(directory)
        self._process: subprocess.Popen[bytes] | None = None
        self._buckets: list[str] = []
        self._shared = ""

    @property
    def endpoint(self) -> str:
        return f"http://{devs3.HOST}:{self.ports[3]}"

    @property
    def credentials(self) -> str:
        """The file with its keys."""
        return str(self.directory / "credentials")

    def start(self) -> None:
        """Start it, with other ports if somebody else has taken one (but where it was, if it has been there)."""
        for _ in range(3):
            if self._start():
                return
            self.kill()
            if not (self.directory / "data" / "mini.options").exists():
                self.ports = choose_s3_ports(devs3.PORTS)
        pytest.fail(f"SeaweedFS did not start:\n{(self.directory / 'log').read_text()[-3000:]}", pytrace=False)

    def _start(self) -> bool:
        with open(self.directory / "log", "ab") as log:
            self._process = subprocess.Popen(
                devs3.command(self.directory, self.ports),
                env=devs3.environment(self.directory),
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=self.directory,
            )
        watch = os.pidfd_open(self._process.pid)
        try:
            return devs3.wait_ready(self.ports[3], watch, SLOWER * devs3.READY_S)
        finally:
            os.close(watch)

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    @property
    def cpu_s(self) -> float:
        """CPU time that it has used."""
        assert self._process is not None
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def bucket(self) -> str:
        """A new bucket."""
        name = f"test-{uuid.uuid4().hex}"
        devs3.make_bucket(self.ports[3], self.access, self.secret, name)
        self._buckets.append(name)
        return name

    def place(self) -> str:
        """An empty place, `BUCKET/PREFIX`, in the bucket that tests share: one of their own takes two seconds."""
        if not self._shared:
            self._shared = self.bucket()
            self._buckets.remove(self._shared)
        return f"{self._shared}/{uuid.uuid4().hex}/prefix"

    def remove_buckets(self) -> None:
        """Remove those that were made here, with all that is in them: each has volumes of its own, and when there can
        be no more of those, the server answers everything that is written with InternalError."""
        while self._buckets:
            devs3.ask(self.ports[3], self.access, self.secret, "DELETE", f"/{self._buckets.pop()}")

    def client(self) -> Any:
        """Somebody else's S3 client (boto3), as users have it."""
        return boto3_client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access,
            aws_secret_access_key=self.secret,
            region_name="us-east-1",
        )


@contextmanager
def s3_server() -> Generator[S3Server]:
    """A server of its own."""
    home = Path(tempfile.mkdtemp(prefix="nacre-s3-", dir="/var/tmp"))
    server = S3Server(home)
    try:
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(home)


@pytest.fixture(scope="session")
def _seaweedfs() -> Generator[S3Server]:
    with s3_server() as server:
        _start_obstore(server.endpoint, server.access, server.secret)
        yield server


@pytest.fixture
def s3(_seaweedfs: S3Server) -> Generator[S3Server]:
    """SeaweedFS, running; the test's buckets go with it."""
    yield _seaweedfs
    _seaweedfs.remove_buckets()


def _start_obstore(endpoint: str, access: str, secret: str) -> None:
    """obstore has an event loop of its own, made at its first request, for as long as the process lives."""
    import obstore
    from obstore.store import S3Store

    make: Any = S3Store
    head: Any = obstore.head
    store = make(
        "none",
        endpoint=endpoint,
        access_key_id=access,
        secret_access_key=secret,
        client_options={"allow_http": True, "pool_max_idle_per_host": "0"},
    )
    with contextlib.suppress(Exception):
        head(store, "nothing")


@pytest.fixture
def s3_archive(s3: S3Server) -> ArchiveSpec:
    """An archive in an empty place."""
    return ArchiveSpec(1, "cold", "s3", f"s3://{s3.place()}", endpoint=s3.endpoint, credentials=s3.credentials)


@pytest.fixture(scope="session")
def cold_s3() -> Generator[str]:
    """The endpoint of moto, which plays cold classes and restoring."""
    (port,) = choose_ports(1)
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None:
            with socket.socket() as attempt:
                if attempt.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        else:
            pytest.fail("moto did not start", pytrace=False)
        _start_obstore(f"http://127.0.0.1:{port}", "a", "b")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def cold_archive(cold_s3: str, tmp_path: Path) -> ArchiveSpec:
    """An archive in an empty bucket of moto's, in class GLACIER."""
    path = tmp_path / "moto-credentials"
    path.touch(0o600)
    path.write_text("[default]\naws_access_key_id = a\naws_secret_access_key = b\n")
    bucket = f"test-{uuid.uuid4().hex}"
    client = boto3_client(
        "s3", endpoint_url=cold_s3, aws_access_key_id="a", aws_secret_access_key="b", region_name="us-east-1"
    )
    client.create_bucket(Bucket=bucket)
    client.close()
    return ArchiveSpec(
        2, "frozen", "s3", f"s3://{bucket}", endpoint=cold_s3, credentials=str(path), storage_class="GLACIER"
    )
