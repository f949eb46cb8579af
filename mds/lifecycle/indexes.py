"""Indexes that only lifecycle rules need: which there are, and how they are made when the first rule needs one.

They are no part of the schema: a file that is made, changed or removed costs a page more for each (docs/adr/0024), and
who has no rules has none. An index is (what the pass is about, age, fid); so a pass meets what it will change, oldest
first, and nothing else. PostgreSQL makes one beside all other work (CONCURRENTLY); SQLite in a batch of its own, in
the committing thread: reads go on meanwhile, changes wait.
"""

import asyncio
import errno
import logging
import time
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple

import psycopg

from nacrefs.mds.engine import Store
from nacrefs.mds.lifecycle.rules import Rule, Since, Watermarks
from nacrefs.mds.schema import IS_FILE
from nacrefs.mds.transactions.journal import Journal

log = logging.getLogger("nacre.mds")

RETRY_S: Final = 60.0
_USE: Final = "(CASE WHEN (atime_ns > mtime_ns) THEN atime_ns ELSE mtime_ns END)"
"""The later of atime and mtime, as Lustre and FSx judge it, in words that both engines know."""
_CHANGE: Final = "mtime_ns"
_COPIED: Final = f"{IS_FILE} AND (flags & 256) <> 0"


class RuleIndex(NamedTuple):
    """An index on `inode`: SQL of its first two columns (the third is the fid), and of which rows it has."""

    key: str
    age: str
    where: str

    def create(self, name: str, how: str = "") -> str:
        """The statement that makes it."""
        return f"CREATE INDEX {how} IF NOT EXISTS {name} ON inode ({self.key}, {self.age}, fid) WHERE {self.where}"


BY_USE, BY_CHANGE = "inode_last_use", "inode_last_change"
CLASS_BY_USE, CLASS_BY_CHANGE, OSTS_BY_USE = "inode_class_use", "inode_class_change", "inode_osts_use"
RULE_INDEXES: Final = {
    # Files of each state (COPIED and RELEASED in `flags`): to archive, to release, to delete.
    BY_USE: RuleIndex("(flags & 384)", _USE, IS_FILE),
    BY_CHANGE: RuleIndex("(flags & 384)", _CHANGE, IS_FILE),
    # Files whose copies lie in one class of one archive.
    CLASS_BY_USE: RuleIndex("copy_class", _USE, _COPIED),
    CLASS_BY_CHANGE: RuleIndex("copy_class", _CHANGE, _COPIED),
    # Files that have bytes on some OSTs and can be released: COPIED, and neither RELEASED nor INLINE.
    OSTS_BY_USE: RuleIndex("copy_osts", _USE, f"{IS_FILE} AND (flags & 386) = 256"),
}
OF_STATES: Final = {Since.ACCESS: BY_USE, Since.MODIFICATION: BY_CHANGE}
OF_CLASSES: Final = {Since.ACCESS: CLASS_BY_USE, Since.MODIFICATION: CLASS_BY_CHANGE}


def needed_by(rule: Rule) -> frozenset[str]:
    """The indexes that a rule's runs read."""
    ages = [rule.release, rule.expiration, *(step.age for step in rule.transitions[:1])]
    classed = [step.age for step in rule.transitions if step.storage_class]
    return frozenset(
        [OF_STATES[age.since] for age in ages if age is not None] + [OF_CLASSES[age.since] for age in classed]
    )


def any_of(rule: Rule) -> Since:
    """In which order files of every state can be gone through with the indexes that a rule has."""
    return Since.ACCESS if BY_USE in needed_by(rule) else Since.MODIFICATION


def needed(rules: Iterable[Rule], marks: Watermarks | None) -> frozenset[str]:
    """The indexes that all of these together read."""
    names: set[str] = {OSTS_BY_USE} if marks is not None else set()
    return frozenset(names.union(*map(needed_by, rules)))


class RuleIndexes:
    """The indexes of an MDT for its rules. `wanted` says which they should be now."""

    def __init__(self, store: Store, journal: Journal, wanted: Callable[[], frozenset[str]]) -> None:
        self._store = store
        self._journal = journal
        self._wanted = wanted
        self.there: set[str] = set()
        """Those that are made."""
        self.busy = False
        """Whether one is being made or dropped."""
        self.problem = ""
        """Why the last attempt failed."""
        self._wake = asyncio.Event()
        self._moved = asyncio.Event()

    def settle(self) -> None:
        """Which are wanted may have changed."""
        self._wake.set()

    async def keep(self) -> None:
        """Make and drop them, for ever."""
        self.there = _present(self._store)
        while True:
            self._wake.clear()
            try:
                self.busy = True
                await self._settle()
                self.problem = ""
            except OSError as error:
                self.problem = error.strerror or str(error)
                log.error("indexes for lifecycle rules, again in %.0f s: %s", RETRY_S, self.problem)
            finally:
                self.busy = False
            self._notify()
            timeout_s = RETRY_S if self.problem else None
            try:
                await asyncio.wait_for(self._wake.wait(), timeout_s)
            except TimeoutError:
                pass

    def _notify(self) -> None:
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    def why(self, names: Collection[str]) -> str:
        """Why these are not there; empty: they are."""
        if self.there.issuperset(names):
            return ""
        return (
            f"an index that it needs cannot be made: {self.problem}"
            if self.problem
            else ("an index that it needs is being made")
        )

    async def have(self, names: Collection[str]) -> None:
        """Wait until these are there; OSError if they cannot be made."""
        while not self.there.issuperset(names):
            moved = self._moved
            self.settle()
            await moved.wait()
            if self.there.issuperset(names):
                return
            if self.problem:
                raise OSError(errno.EIO, f"an index that the rule needs cannot be made: {self.problem}")
            if not self._wanted().issuperset(names):
                raise OSError(errno.ECANCELED, "the rule was removed or changed")

    async def _settle(self) -> None:
        for name in sorted(self.there - self._wanted()):
            self.there.discard(name)
            await self._run(f"DROP INDEX IF EXISTS {name}", f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
            log.info("dropped index %s: no lifecycle rule needs it", name)
        for name in sorted(self._wanted() - self.there):
            index = RULE_INDEXES[name]
            begun_s = time.monotonic()
            log.info("making index %s for lifecycle rules", name)
            # What an attempt has left that was killed is no index that PostgreSQL uses.
            again = f"DROP INDEX CONCURRENTLY IF EXISTS {name}"
            await self._run(index.create(name), again, index.create(name, "CONCURRENTLY"))
            self.there.add(name)
            log.info("made index %s in %.1f s", name, time.monotonic() - begun_s)
            self._notify()

    async def _run(self, sqlite: str, *postgresql: str) -> None:
        if self._store.backend == "sqlite":
            await self._journal.submit_own(lambda step: None)  # what waited for the one before has its turn
            await self._journal.submit_slow(sqlite)
        else:
            await _beside(self._store, postgresql)


def _present(store: Store) -> set[str]:
    """Those that are there, and whole."""
    if store.backend == "sqlite":
        rows = store.fetchall("SELECT name FROM sqlite_master WHERE type = 'index' AND tbl_name = 'inode'")
    else:
        rows = store.fetchall(
            "SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
            " WHERE i.indrelid = 'inode'::regclass AND i.indisvalid"
        )
    return RULE_INDEXES.keys() & {row[0] for row in rows}


async def _beside(store: Store, statements: Iterable[str]) -> None:
    """Run statements on PostgreSQL through a connection of their own, in a thread; if this is cancelled, they end."""
    running: list[psycopg.Connection[Any]] = []
    url = store.url.set(drivername="postgresql").render_as_string(hide_password=False)

    def run() -> None:
        try:
            with psycopg.connect(url, autocommit=True) as connection:
                running.append(connection)
                for statement in statements:
                    connection.execute(statement.encode())
        except psycopg.Error as error:
            raise store.failure(error) from error

    with ThreadPoolExecutor(1, thread_name_prefix="mds-index") as executor:
        try:
            await asyncio.get_running_loop().run_in_executor(executor, run)
        except asyncio.CancelledError:
            for connection in running:
                connection.cancel()
            raise
