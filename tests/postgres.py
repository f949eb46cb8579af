"""A real PostgreSQL for the tests that run over both engines."""

import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

OPTIONS = {
    "listen_addresses": "",
    "fsync": "off",  # a killed server keeps its data without it; only a machine that loses power does not
    "max_connections": "200",
    "shared_buffers": "32MB",
    "autovacuum": "off",
}


def _programs() -> Path:
    """The folder of the newest PostgreSQL's programs."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if versions:
        return versions[-1].parent
    found = shutil.which("initdb")
    if found is None:
        pytest.fail(
            "PostgreSQL is not installed, and the tests need it: apt-get install postgresql, "
            "or give a server's URL in NACRE_TEST_POSTGRES",
            pytrace=False,
        )
    return Path(found).resolve().parent


def _unprivileged() -> str | None:
    """The user to run the server as: PostgreSQL refuses to run as root. None: as whoever runs the tests."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in known else "nobody"


def _run(user: str | None, log: Path, *command: str) -> None:
    """Run a program of PostgreSQL's to its end; if it fails, the test fails with what it said."""
    # Into a file, not a pipe: the server that pg_ctl leaves running would hold a pipe open for ever.
    with log.open("ab") as output:
        status = subprocess.run(command, user=user, cwd="/", stdout=output, stderr=output, check=False).returncode
    if status:
        pytest.fail(f"{' '.join(command)} failed:\n{log.read_text()}", pytrace=False)


@pytest.fixture(scope="session")
def postgres_url() -> Generator[str]:
    """The `postgresql://` URL of a server whose role may create databases and schemas.

    It is NACRE_TEST_POSTGRES if that is set. Otherwise a private cluster is started on a Unix socket and stopped
    after the last test.
    """
    given = os.environ.get("NACRE_TEST_POSTGRES")
    if given:
        yield given
        return
    programs, user = _programs(), _unprivileged()
    # Not below pytest's own directory: that is closed to other users. Short, as a socket's path has 107 bytes.
    home = Path(tempfile.mkdtemp(prefix="nacre-pg-", dir="/tmp"))
    try:
        if user is not None:
            shutil.chown(home, user)
        data, log = home / "data", home / "setup.log"
        log.touch()
        control = (str(programs / "pg_ctl"), "-D", str(data), "-w")
        _run(user, log, str(programs / "initdb"), "-D", str(data), "-U", "nacre", "-A", "trust", "-E", "UTF8", "-N")
        with (data / "postgresql.auto.conf").open("a") as settings:
            settings.writelines(f"{key} = '{value}'\n" for key, value in OPTIONS.items())
            settings.write(f"unix_socket_directories = '{home}'\n")
        _run(user, log, *control, "-l", str(home / "server.log"), "start")
        try:
            yield f"postgresql://nacre@/postgres?host={home}"
        finally:
            _run(user, log, *control, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(home)


@contextmanager
def empty_schema(server: str) -> Generator[str]:
    """The URL of an empty schema in a database of that server, for as long as this lasts."""
    schema = f"mdt_{uuid.uuid4().hex}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}".encode())
    try:
        yield f"{server}{'&' if '?' in server else '?'}options=-csearch_path%3D{schema}"
    finally:
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(f"DROP SCHEMA {schema} CASCADE".encode())


@contextmanager
def empty_database(server: str) -> Generator[str]:
    """The URL of an empty database of that server, for as long as this lasts."""
    name = f"mdt_{uuid.uuid4().hex}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    address, _, options = server.partition("?")
    try:
        yield f"{address.rpartition('/')[0]}/{name}" + (f"?{options}" if options else "")
    finally:
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.fixture
def postgres_schema(postgres_url: str) -> Generator[str]:
    """The URL of an empty schema."""
    with empty_schema(postgres_url) as url:
        yield url
