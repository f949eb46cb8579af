"""MDTs for tests, as `format_mdt` makes them, in a small part of the time: copies of one that it made once."""

import tempfile
from functools import cache
from pathlib import Path

from nacrefs.mds.database import format_mdt
from nacrefs.mds.engine import parse_url
from tests import postgres


def make_mdt(url: str, cluster: str, now_ns: int = 0) -> None:
    """Make an empty MDT 0 at the URL of an SQLite file, or of a PostgreSQL database, that does not exist yet."""
    target = parse_url(url)
    if target.get_backend_name() == "sqlite":
        Path(str(target.database)).write_bytes(_file(cluster, now_ns))
    else:
        postgres.copy(_database(postgres.server_of(url), cluster, now_ns), url)


@cache
def _file(cluster: str, now_ns: int) -> bytes:
    """The database file of an empty MDT on SQLite."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "mdt")
        format_mdt(str(path), cluster, 0, now_ns)
        return path.read_bytes()


@cache
def _database(server: str, cluster: str, now_ns: int) -> str:
    """The URL of the database of an empty MDT on PostgreSQL."""
    url = postgres.template(server)
    format_mdt(url, cluster, 0, now_ns)
    return url
