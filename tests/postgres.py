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
    "max_wal_size": "128MB",
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


def _place() -> str:
    """Where the server lives: in memory if there is room, where copying a database takes a fifth of the time that it
    takes on a busy disk. Not below pytest's own directory: that is closed to other users. Short, as a socket's path has
    107 bytes."""
    memory = "/dev/shm"
    return memory if os.path.isdir(memory) and shutil.disk_usage(memory).free > 2 << 30 else "/tmp"


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
        for url in _templates:
            _run_sql(given, f"DROP DATABASE {_name(url)} WITH (FORCE)")
        return
    programs, user = _programs(), _unprivileged()
    home = Path(tempfile.mkdtemp(prefix="nacre-pg-", dir=_place()))
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
    _run_sql(server, f"CREATE SCHEMA {schema}")
    try:
        yield f"{server}{'&' if '?' in server else '?'}options=-csearch_path%3D{schema}"
    finally:
        _run_sql(server, f"DROP SCHEMA {schema} CASCADE")


@contextmanager
def new_database(server: str) -> Generator[str]:
    """The URL of a database that does not exist, for `copy`; after this it does not exist again."""
    url = _url(server, f"mdt_{uuid.uuid4().hex}")
    _servers[url] = server
    try:
        yield url
    finally:
        del _servers[url]
        _run_sql(server, f"DROP DATABASE IF EXISTS {_name(url)} WITH (FORCE)")


@contextmanager
def empty_database(server: str) -> Generator[str]:
    """The URL of an empty database of that server, for as long as this lasts."""
    with new_database(server) as url:
        _run_sql(server, f"CREATE DATABASE {_name(url)}")
        yield url


def template(server: str) -> str:
    """The URL of an empty database, to be copied, that lasts until the last test."""
    url = _url(server, f"mdt_template_{uuid.uuid4().hex}")
    _templates.append(url)
    _run_sql(server, f"CREATE DATABASE {_name(url)}")
    return url


def copy(source: str, url: str) -> None:
    """Make a database (of `new_database`) that has what another has, to which nobody may be connected."""
    with psycopg.connect(_servers[url], autocommit=True) as connection:
        # Files are copied in half the time that it takes to log them, and that only since there is another way.
        how = " STRATEGY FILE_COPY" if connection.info.server_version >= 150_000 else ""
        connection.execute(f"CREATE DATABASE {_name(url)} TEMPLATE {_name(source)}{how}".encode())


def server_of(url: str) -> str:
    """The server for which `new_database` made the URL."""
    return _servers[url]


_servers: dict[str, str] = {}
_templates: list[str] = []


def _run_sql(server: str, command: str) -> None:
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(command.encode())


def _url(server: str, database: str) -> str:
    address, _, options = server.partition("?")
    return f"{address.rpartition('/')[0]}/{database}" + (f"?{options}" if options else "")


def _name(url: str) -> str:
    """The name of the database in a URL."""
    return url.partition("?")[0].rpartition("/")[2]
