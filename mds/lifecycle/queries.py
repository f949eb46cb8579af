"""The SQL of the lifecycle tier's passes: files by age, by directory and by storage class, in pages.

A page is bounded by how many rows are looked at, not by how many match, so that one statement takes about as long as a
few requests of clients. Limits are written into the text: PostgreSQL would plan for a tenth of the table otherwise.
"""

import functools
from typing import Any, Final

from sqlalchemy import ColumnElement, FromClause, Select, bindparam, func, literal_column, select, text
from sqlalchemy.sql import ClauseElement

from nacrefs.mds.schema import IS_DIRECTORY, IS_FILE, LAST_USE, TIER_STATE, dentry, hsm, inode
from nacrefs.mds.statements import dialect_of, sql_text

PAGE: Final = 100
"""Files that one statement looks at."""
DIRECTORIES: Final = 500
"""Directories that one statement finds."""
_FILE: Final = ("fid", "uid", "gid", "size", "atime_ns", "mtime_ns", "flags", "data_version")
_COPY: Final = (hsm.c.flags, hsm.c.archive, hsm.c.version, hsm.c.storage_class)


class Queries:
    """The compiled statements for one engine. A page's rows: the columns of `candidates.Candidate`, in its order, and
    then where the next page begins."""

    def __init__(self, backend: str) -> None:
        self._dialect = dialect_of(backend)
        change = inode.c.mtime_ns
        # state, from, until -> a page of files in order of their last use
        self.by_use = self._text(self._later(LAST_USE), "state from until")
        # state, at, fid -> those that were last used at the same moment, behind a fid. (`(at, fid) > (?, ?)` in one
        # statement would do, but SQLite searches an index on an expression by no more than its first bound.)
        self.by_use_same = self._text(self._same(LAST_USE), "state at fid")
        # the same in order of their last change
        self.by_change = self._text(self._later(change), "state from until")
        self.by_change_same = self._text(self._same(change), "state at fid")
        # state, until, limit -> how many there are, at most `limit`
        self.count_by_use = self._text(self._count(LAST_USE), "state until limit")
        self.count_by_change = self._text(self._count(change), "state until limit")
        # archive, storage class, fid -> a page of its copies in order of their fids
        self.by_class = self._text(self._classed(), "archive storage_class fid")
        # parent, name -> a page of a directory's files in order of their names
        self.in_directory = self._text(self._listed(), "parent name")
        # parent, fid -> fid, number of names of subdirectories
        self.directories = self._text(
            select(inode.c.fid, inode.c.entries)
            .where(text(IS_DIRECTORY), inode.c.parent == bindparam("parent"), inode.c.fid > bindparam("fid"))
            .order_by(inode.c.fid)
            .limit(literal_column(str(DIRECTORIES)))
            .offset(literal_column("0")),
            "parent fid",
        )
        # fid -> rows of `hsm` behind it, by archive, class and flags: number, bytes, last fid
        part = (
            select(hsm.c.fid, hsm.c.archive, hsm.c.storage_class, hsm.c.flags, hsm.c.size)
            .where(hsm.c.fid > bindparam("fid"))
            .order_by(hsm.c.fid)
            .limit(literal_column("1000"))
            .offset(literal_column("0"))
            .subquery("p")
        )
        self.copies = self._text(
            select(
                part.c.archive,
                part.c.storage_class,
                part.c.flags,
                func.count(),
                func.sum(part.c.size),
                func.max(part.c.fid),
            ).group_by(part.c.archive, part.c.storage_class, part.c.flags),
            "fid",
        )

    def _text(self, statement: ClauseElement, order: str) -> str:
        return sql_text(statement, order, self._dialect)

    def _later(self, age: ColumnElement[int]) -> Select[Any]:
        return self._aged(age, (age, inode.c.fid), age > bindparam("from"), age <= bindparam("until"))

    def _same(self, age: ColumnElement[int]) -> Select[Any]:
        return self._aged(age, (inode.c.fid,), age == bindparam("at"), inode.c.fid > bindparam("fid"))

    def _aged(
        self, age: ColumnElement[int], order: tuple[ColumnElement[int], ...], *bounds: ColumnElement[bool]
    ) -> Select[Any]:
        page = (
            select(*(inode.c[name] for name in _FILE), age.label("at"))
            .where(text(IS_FILE), bindparam("state") == TIER_STATE, *bounds)
            .order_by(*order)
            .limit(literal_column(str(PAGE)))
            .offset(literal_column("0"))
            .subquery("p")
        )
        return _named(page, page.c.at).order_by(page.c.at, page.c.fid)

    def _count(self, age: ColumnElement[int]) -> Select[Any]:
        some = (
            select(inode.c.fid)
            .where(text(IS_FILE), bindparam("state") == TIER_STATE, age <= bindparam("until"))
            .limit(bindparam("limit"))
            .offset(literal_column("0"))
            .subquery("p")
        )
        return select(func.count()).select_from(some)

    def _classed(self) -> Select[Any]:
        page = (
            select(hsm.c.fid)
            .where(
                hsm.c.archive == bindparam("archive"),
                hsm.c.storage_class == bindparam("storage_class"),
                hsm.c.fid > bindparam("fid"),
            )
            .order_by(hsm.c.fid)
            .limit(literal_column(str(PAGE)))
            .offset(literal_column("0"))
            .subquery("q")
        )
        file = select(*(inode.c[name] for name in _FILE)).join(page, page.c.fid == inode.c.fid).subquery("p")
        return _named(file, file.c.fid).order_by(file.c.fid)

    def _listed(self) -> Select[Any]:
        page = (
            select(dentry.c.fid, dentry.c.parent, dentry.c.name)
            .where(dentry.c.parent == bindparam("parent"), dentry.c.name > bindparam("name"))
            .order_by(dentry.c.name)
            .limit(literal_column(str(PAGE)))
            .offset(literal_column("0"))
            .subquery("d")
        )
        joined = page.join(inode, inode.c.fid == page.c.fid).outerjoin(hsm, hsm.c.fid == page.c.fid)
        columns = (inode.c[name] for name in _FILE)
        return select(*columns, *_COPY, page.c.parent, page.c.name, inode.c.mode).select_from(joined).order_by(
            page.c.name
        )  # fmt: skip


def _named(page: FromClause, at: ColumnElement[int]) -> Select[Any]:
    """A page with the copies and the names of its files: a row for each name."""
    joined = page.outerjoin(hsm, hsm.c.fid == page.c.fid).outerjoin(dentry, dentry.c.fid == page.c.fid)
    return select(*(page.c[name] for name in _FILE), *_COPY, dentry.c.parent, dentry.c.name, at).select_from(joined)


queries_of = functools.cache(Queries)
