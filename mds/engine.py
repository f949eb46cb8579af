"""The SQL engine under one MDT: SQLite in a file, or PostgreSQL.

A `Store` has two driver connections. The *writer* carries transactions: executed on the event loop's thread, committed
on another, never both at once. The *reader* sees committed state only and may be used while a commit is in flight.
An MDT has one owner: a second server is refused by a lock (SQLite: a lock file; PostgreSQL: an advisory lock), and one
that was replaced while it slept by the epoch, which every transaction checks.
"""

import contextlib
import errno
import fcntl
import functools
import os
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import psycopg
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from nacrefs.mds.statements import Statements

Row: TypeAlias = tuple[Any, ...]

PAGE_CACHE_KIB = 32 * 1024
"""SQLite's page cache per connection."""
CHECKPOINT_PAGES = 4096
"""SQLite moves its log into the database when it has this many pages: a page that changes often is moved once."""
OWNER_ATTEMPTS = 5
OWNER_WAIT_S = 0.2
_ADVISORY_CLASS = 0x6E616372
"""First half of the advisory lock's key on PostgreSQL ("nacr"); the second is the schema's hash."""


_statements = functools.cache(Statements)


class Cursor(Protocol):
    """What both drivers' cursors can do."""

    def execute(self, query: Any, params: Any = ..., /) -> object: ...
    def executemany(self, query: Any, params_seq: Any, /) -> object: ...
    def fetchone(self) -> Any: ...
    def fetchall(self) -> list[Any]: ...


class NotTheOwner(OSError):
    """Another server has this MDT (EBUSY), or has taken it over (ESTALE): this one must stop."""


def parse_url(text: str) -> URL:
    """The database's URL: `postgresql://user@host:port/db`, `sqlite:///path` or a plain path; ValueError otherwise."""
    if "://" not in text:
        return URL.create("sqlite", database=text)
    try:
        url = make_url(text)
    except ArgumentError as error:
        raise ValueError(f"not a database URL: {text!r} (sqlite:///PATH or postgresql://USER@HOST:PORT/DB)") from error
    if url.get_backend_name() not in ("sqlite", "postgresql"):
        raise ValueError(f"database URL {text!r} is neither sqlite:///PATH nor postgresql://USER@HOST:PORT/DB")
    if not url.database or url.database == ":memory:":
        raise ValueError(f"database URL {text!r} names no database")
    return url


class Store:
    """An open MDT database.

    Made by `open_store`; raises OSError for all that can go wrong with a database (`failure`).
    """

    def __init__(self, url: URL) -> None:
        self.url = url
        self.backend = url.get_backend_name()
        self.statements = _statements(self.backend)
        self.epoch = 0
        self._lock = -1
        self._closed = False
        self._writer: Any
        self._reader: Any
        try:
            if self.backend == "sqlite":
                self._open_sqlite()
            else:
                self._open_postgresql()
        except (sqlite3.Error, psycopg.Error) as error:
            self._unlock()
            raise self.failure(error) from error
        self.writer: Cursor = self._writer.cursor()
        self.reader: Cursor = self._reader.cursor()

    def _open_sqlite(self) -> None:
        path = Path(str(self.url.database))
        if not path.parent.is_dir():
            raise FileNotFoundError(
                errno.ENOENT, f"there is no directory {path.parent} for the MDT database", str(path)
            )
        self._lock = _lock_file(path)
        self._writer = _sqlite(path)
        self._writer.execute("PRAGMA journal_mode = WAL")
        self._writer.execute("PRAGMA synchronous = FULL")
        self._writer.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        self._reader = _sqlite(path)
        self._reader.execute("PRAGMA query_only = ON")

    def _open_postgresql(self) -> None:
        conninfo = self.url.set(drivername="postgresql").render_as_string(hide_password=False)
        self._writer = psycopg.connect(conninfo, autocommit=True)
        if not self._own_postgresql():
            self._writer.close()
            raise NotTheOwner(errno.EBUSY, f"another MDS is serving this MDT ({self.name}): stop it first")
        self._reader = psycopg.connect(conninfo, autocommit=True)

    def _own_postgresql(self) -> bool:
        """Take the advisory lock. The server may need a moment to notice that a killed owner's connection is gone."""
        question = "SELECT pg_try_advisory_lock(%s, hashtext(current_schema()))"
        for _ in range(OWNER_ATTEMPTS):
            if self._writer.execute(question, (_ADVISORY_CLASS,)).fetchone()[0]:
                return True
            time.sleep(OWNER_WAIT_S)
        return False

    @property
    def name(self) -> str:
        """The database as people may see it, without password."""
        return str(self.url.database) if self.backend == "sqlite" else self.url.render_as_string()

    @property
    def lost(self) -> bool:
        """Whether the connection to the engine is gone, so that nothing can be read or written any more."""
        return self.backend == "postgresql" and bool(self._writer.closed or self._reader.closed)

    def begin(self) -> None:
        """Start a transaction on the writer; NotTheOwner (ESTALE) if another server has taken the MDT over."""
        self.writer.execute("BEGIN IMMEDIATE" if self.backend == "sqlite" else "BEGIN")
        self.writer.execute(self.statements.check_epoch)
        (epoch,) = self.writer.fetchone()
        if epoch != self.epoch:
            raise NotTheOwner(errno.ESTALE, f"another MDS has taken over this MDT ({self.name})")

    def take_over(self) -> None:
        """Become the MDT's owner: from now on no transaction of an earlier owner commits."""
        try:
            self.writer.execute("BEGIN")
            self.writer.execute(self.statements.take_over)
            self.writer.execute(self.statements.mdt)
            self.epoch = self.writer.fetchone()[4]
            self.writer.execute("COMMIT")
        except (sqlite3.Error, psycopg.Error) as error:
            raise self.failure(error) from error

    def execute(self, statements: Sequence[str]) -> None:
        """Run statements that take long in the transaction, from another thread."""
        try:
            for statement in statements:
                self.writer.execute(statement)
        except (sqlite3.Error, psycopg.Error) as error:
            raise self.failure(error) from error

    def commit(self) -> None:
        """Make the transaction durable. Takes as long as the disk does: call it from another thread."""
        try:
            self.writer.execute("COMMIT")
        except (sqlite3.Error, psycopg.Error) as error:
            raise self.failure(error) from error

    def rollback(self) -> None:
        """Undo the transaction, if there is one."""
        try:
            if self.backend == "postgresql" or self._writer.in_transaction:
                self.writer.execute("ROLLBACK")
        except (sqlite3.Error, psycopg.Error):
            pass  # the connection is broken, and the transaction with it

    def pipeline(self) -> Any:
        """A context in which the writer's statements travel together (PostgreSQL: one round trip)."""
        return self._writer.pipeline() if self.backend == "postgresql" else _NO_PIPELINE

    def fetchone(self, statement: str, parameters: Sequence[Any] = ()) -> Row | None:
        """First row of a read of committed state, or None."""
        reader = self.reader
        try:
            reader.execute(statement, parameters)
            row: Row | None = reader.fetchone()
        except (sqlite3.Error, psycopg.Error) as error:
            raise self.failure(error) from error
        return row

    def fetchall(self, statement: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """All rows of a read of committed state."""
        try:
            self.reader.execute(statement, parameters)
            return self.reader.fetchall()
        except (sqlite3.Error, psycopg.Error) as error:
            raise self.failure(error) from error

    def failure(self, error: Exception) -> OSError:
        """A driver's error as an OSError: ENOSPC if the database is full, EIO otherwise."""
        text = str(error).strip().replace("\n", " ") or type(error).__name__
        if isinstance(error, psycopg.errors.DiskFull) or getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL:
            return OSError(errno.ENOSPC, f"no space left for the MDT database {self.name}: {text}")
        if isinstance(error, psycopg.OperationalError) and error.sqlstate is None:
            return OSError(errno.EIO, f"cannot reach the MDT database {self.name}: {text}")
        return OSError(errno.EIO, f"MDT database {self.name}: {text}")

    def close(self) -> None:
        """Undo what is not committed, close the connections, and give up ownership."""
        if self._closed:
            return
        self._closed = True
        self.rollback()
        self._reader.close()
        if self.backend == "postgresql":
            with contextlib.suppress(psycopg.Error):  # closing would give it up too, a moment later
                self._writer.execute("SELECT pg_advisory_unlock_all()")
        self._writer.close()
        self._unlock()

    def _unlock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


class _NoPipeline:
    """SQLite's statements do not travel."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None


_NO_PIPELINE = _NoPipeline()


def _sqlite(path: Path) -> sqlite3.Connection:
    """A connection without Python's own transactions, usable from any one thread at a time."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=256)
    connection.execute("PRAGMA busy_timeout = 10000")
    connection.execute(f"PRAGMA cache_size = -{PAGE_CACHE_KIB}")
    return connection


def _lock_file(path: Path) -> int:
    """An exclusively locked descriptor of `PATH.lock`; NotTheOwner (EBUSY) if another process has it."""
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise NotTheOwner(errno.EBUSY, f"another MDS is serving this MDT ({path}): stop it first") from None
    return lock
