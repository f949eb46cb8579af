"""A read of the whole MDT while it is being served: one committed state, however long it takes.

A connection of its own, used from a thread of its own; neither batches nor reads of the event loop wait for it. (SQLite
keeps its log growing meanwhile, PostgreSQL its dead rows.)
"""

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

import psycopg

from nacrefs.mds.engine import Row, Store

T = TypeVar("T")
CHUNK: Final = 1000


class Snapshot:
    """What was committed when it was made. It answers as `Store` does; `close` it, from any thread."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.statements = store.statements
        self.backend = store.backend
        self._connection: Any
        try:
            if store.backend == "sqlite":
                self._connection = sqlite3.connect(
                    str(store.url.database), isolation_level=None, check_same_thread=False
                )
                self._connection.execute("PRAGMA busy_timeout = 10000")
                self._connection.execute("PRAGMA query_only = ON")
                self._connection.execute("BEGIN")
            else:
                url = store.url.set(drivername="postgresql").render_as_string(hide_password=False)
                self._connection = psycopg.connect(url, autocommit=True)
                self._connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            self.fetchone(store.statements.mdt)  # the first read decides which state it is
        except (sqlite3.Error, psycopg.Error) as error:
            raise store.failure(error) from error

    def fetchone(self, statement: str, parameters: Sequence[Any] = ()) -> Row | None:
        """First row of a read, or None."""
        return next(self.rows(statement, parameters), None)

    def fetchall(self, statement: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """All rows of a read."""
        return list(self.rows(statement, parameters))

    def rows(self, statement: str, parameters: Sequence[Any] = ()) -> Iterator[Row]:
        """The rows of a read, one after the other."""
        try:
            cursor = self._connection.cursor()
            cursor.execute(statement, parameters)
            while chunk := cursor.fetchmany(CHUNK):
                yield from chunk
        except (sqlite3.Error, psycopg.Error) as error:
            raise self._store.failure(error) from error

    def interrupt(self) -> None:
        """End a read that is under way, with an error where it was asked for."""
        with contextlib.suppress(sqlite3.Error, psycopg.Error):
            if self.backend == "sqlite":
                self._connection.interrupt()
            else:
                self._connection.cancel()

    def close(self) -> None:
        """Give the connection back."""
        with contextlib.suppress(sqlite3.Error, psycopg.Error):
            self._connection.close()


async def read_all(store: Store, work: Callable[[Snapshot], T]) -> T:
    """The result of `work` on a snapshot, in a thread; if this is cancelled, what it reads ends. The thread makes the
    snapshot and closes it: one that stayed open would hold up whoever changes the schema."""
    reading: list[Snapshot] = []
    ended = False

    def read() -> T:
        snapshot = Snapshot(store)
        reading.append(snapshot)
        try:
            if ended:
                raise asyncio.CancelledError
            return work(snapshot)
        finally:
            snapshot.close()

    with ThreadPoolExecutor(1, thread_name_prefix="mds-snapshot") as executor:
        try:
            return await asyncio.get_running_loop().run_in_executor(executor, read)
        except asyncio.CancelledError:
            ended = True
            for snapshot in reading:
                snapshot.interrupt()
            raise
