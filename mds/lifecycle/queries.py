"""The SQL of the lifecycle tier's passes: files by age, by directory and by storage class, in pages.

A page is bounded by how many rows are looked at, not by how many match, so that one statement takes about as long as a
few requests of clients. Limits are written into the text: PostgreSQL would plan for a tenth of the table otherwise.
"""

import functools
from typing import Any, Final

from sqlalchemy import ColumnElement, FromClause, Select, bindparam, func, literal_column, select, text
from sqlalchemy.sql import ClauseElement

from nacrefs.mds.lifecycle.indexes import OSTS_BY_USE, RULE_INDEXES, RuleIndex
from nacrefs.mds.schema import IS_DIRECTORY, Int64, dentry, hsm, inode
from nacrefs.mds.statements import dialect_of, sql_text

PAGE: Final = 8
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
        # By index. key, from, until -> a page of files in order of their age, and one more file if there is one
        self.later = {name: self._text(_later(index), "key from until") for name, index in RULE_INDEXES.items()}
        # key, at, fid -> those of the same age, behind a fid. (`(at, fid) > (?, ?)` in one statement would do, but
        # SQLite searches an index on an expression by no more than its first bound.)
        self.same = {name: self._text(_same(index), "key at fid") for name, index in RULE_INDEXES.items()}
        # key, until, limit -> how many there are, at most `limit`
        self.count = {name: self._text(_count(index), "key until limit") for name, index in RULE_INDEXES.items()}
        # place -> the next one (`places.osts_place`) that files have
        self.next_osts = self._text(_next(RULE_INDEXES[OSTS_BY_USE]), "place")
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


def _key(index: RuleIndex) -> ColumnElement[int]:
    return literal_column(index.key, Int64)


def _age(index: RuleIndex) -> ColumnElement[int]:
    return literal_column(index.age, Int64)


def _later(index: RuleIndex) -> Select[Any]:
    age = _age(index)
    return _aged(index, (age, inode.c.fid), age > bindparam("from"), age <= bindparam("until"))


def _same(index: RuleIndex) -> Select[Any]:
    return _aged(index, (inode.c.fid,), _age(index) == bindparam("at"), inode.c.fid > bindparam("fid"))


def _aged(index: RuleIndex, order: tuple[ColumnElement[int], ...], *bounds: ColumnElement[bool]) -> Select[Any]:
    page = (
        select(*(inode.c[name] for name in _FILE), _age(index).label("at"))
        .where(text(index.where), bindparam("key") == _key(index), *bounds)
        .order_by(*order)
        .limit(literal_column(str(PAGE + 1)))
        .offset(literal_column("0"))
        .subquery("p")
    )
    return _named(page, page.c.at).order_by(page.c.at, page.c.fid)


def _count(index: RuleIndex) -> Select[Any]:
    some = (
        select(inode.c.fid)
        .where(text(index.where), bindparam("key") == _key(index), _age(index) <= bindparam("until"))
        .limit(bindparam("limit"))
        .offset(literal_column("0"))
        .subquery("p")
    )
    return select(func.count()).select_from(some)


def _next(index: RuleIndex) -> Select[Any]:
    key = _key(index)
    return (
        select(key)
        .select_from(inode)
        .where(text(index.where), key > bindparam("place"))
        .order_by(key)
        .limit(literal_column("1"))
        .offset(literal_column("0"))
    )


def _named(page: FromClause, at: ColumnElement[int]) -> Select[Any]:
    """A page with the copies and the names of its files: a row for each name."""
    joined = page.outerjoin(hsm, hsm.c.fid == page.c.fid).outerjoin(dentry, dentry.c.fid == page.c.fid)
    return select(*(page.c[name] for name in _FILE), *_COPY, dentry.c.parent, dentry.c.name, at).select_from(joined)


queries_of = functools.cache(Queries)
