"""MDTs for tests, as `format_mdt` makes them, in a small part of the time: what it has done once is done again."""

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import Engine, event

from nacrefs.mds.database import format_mdt
from nacrefs.mds.engine import parse_url


def make_mdt(url: str, cluster: str, now_ns: int = 0) -> None:
    """Make an empty MDT 0 in a database, or a schema, where there is none."""
    target = parse_url(url)
    if target.get_backend_name() == "sqlite":
        Path(str(target.database)).write_bytes(_file(cluster, now_ns))
    elif (script := _scripts.get((cluster, now_ns))) is not None:
        with psycopg.connect(url) as connection:
            connection.execute(script)
    else:
        _scripts[cluster, now_ns] = _formatted(url, cluster, now_ns)


_scripts: dict[tuple[str, int], bytes] = {}


@cache
def _file(cluster: str, now_ns: int) -> bytes:
    """The database file of an empty MDT on SQLite."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "mdt")
        format_mdt(str(path), cluster, 0, now_ns)
        return path.read_bytes()


def _formatted(url: str, cluster: str, now_ns: int) -> bytes:
    """Format an MDT on PostgreSQL; all that was changed for that, as one script."""
    statements: list[bytes] = []

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if not statement.lstrip().lower().startswith(("select", "show")):
            text = psycopg.ClientCursor(cursor.connection).mogrify(statement.encode(), parameters or None)
            statements.append(text.encode())

    event.listen(Engine, "before_cursor_execute", note)
    try:
        format_mdt(url, cluster, 0, now_ns)
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    return b";\n".join(statements)
