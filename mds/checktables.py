"""Are the tables beside the tree whole: links, warmup jobs, lifecycle rules, actions, copies? (`check` asks.)"""

from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec

from nacrefs.mds.findings import Finding, Question, Readable
from nacrefs.mds.hsm.rows import CANCELED, FAILED, STARTED, SUCCEED, WAITING
from nacrefs.mds.lifecycle.standing import STATES as RULE_STATES
from nacrefs.mds.lifecycle.standing import WATERMARKS, standing_of, watermarks_of
from nacrefs.mds.links.rows import STATES as LINK_STATES
from nacrefs.mds.links.rows import link_of
from nacrefs.mds.warmup.rows import OVER, warmup_of
from nacrefs.mds.warmup.rows import STATES as WARMUP_STATES


def _words(words: tuple[str, ...]) -> str:
    return ", ".join(f"'{word}'" for word in words)


_ACTION_STATES: Final = (WAITING, STARTED, SUCCEED, FAILED, CANCELED)
QUESTIONS: Final = (
    Question(
        "link-key-without-link",
        "SELECT o.fid, o.link, o.key FROM link_object o LEFT JOIN link l ON l.id = o.link WHERE l.id IS NULL",
        "is key {2!r} of link {1}, which does not exist",
    ),
    Question(
        "link-log-without-link",
        "SELECT 0, g.link, count(*) FROM link_log g LEFT JOIN link l ON l.id = g.link WHERE l.id IS NULL"
        " GROUP BY g.link",
        "the log of link {1}, which does not exist, has {2} lines",
    ),
    Question(
        "link-mark-without-link",
        "SELECT d.fid, d.link FROM link_dirty d LEFT JOIN link l ON l.id = d.link WHERE l.id IS NULL",
        "is to be sent to the bucket of link {1}, which does not exist",
    ),
    Question(
        "link-without-archive",
        "SELECT l.fid, l.id FROM link l LEFT JOIN archive a ON a.id = l.id AND a.gone = 0 WHERE a.id IS NULL",
        "is bound by link {1}, whose bucket is not known",
    ),
    Question(
        "link-twice",
        "SELECT fid, min(id), max(id), count(*) FROM link GROUP BY fid HAVING count(*) > 1",
        "is bound by {3} links, {1} and {2} among them",
    ),
    Question(
        "link-state",
        f"SELECT fid, id, state FROM link WHERE state NOT IN ({_words(LINK_STATES)})",
        "is bound by link {1} in state {2!r}, which there is not",
    ),
    Question(
        "warmup-items-left",
        "SELECT 0, i.job, count(*) FROM warmup_item i LEFT JOIN warmup w ON w.id = i.job"
        f" AND w.state NOT IN ({_words(OVER)}) WHERE w.id IS NULL GROUP BY i.job",
        "warmup job {1} is over or does not exist, but {2} items of it are left",
    ),
    Question(
        "warmup-circle",
        f'SELECT 0, id, "after" FROM warmup WHERE "after" >= id AND state NOT IN ({_words(OVER)})',
        "warmup job {1} waits for job {2}, which is not before it",
    ),
    Question(
        "warmup-state",
        f"SELECT 0, id, state FROM warmup WHERE state NOT IN ({_words(WARMUP_STATES)})",
        "warmup job {1} is in state {2!r}, which there is not",
    ),
    Question(
        "rule-state",
        f"SELECT 0, id, state FROM rule WHERE state NOT IN ({_words(RULE_STATES)})",
        "lifecycle rule {1!r} is in state {2!r}, which there is not",
    ),
    Question(
        "action-state",
        f"SELECT fid, id, state FROM hsm_action WHERE state NOT IN ({_words(_ACTION_STATES)})",
        "has action {1} in state {2!r}, which there is not",
    ),
    # A key of a link may be in use again, by another file, before its bucket has followed.
    Question(
        "copy-to-be-deleted",
        "SELECT h.fid, g.archive, g.key FROM hsm_gone g JOIN hsm h ON h.archive = g.archive AND h.key = g.key"
        " WHERE g.archive NOT IN (SELECT id FROM link)",
        "has its copy in archive {1} under key {2!r}, which is to be deleted",
    ),
    Question(
        "copy-twice",
        "SELECT min(fid), archive, key, count(*) FROM hsm WHERE key <> '' AND archive NOT IN (SELECT id FROM link)"
        " GROUP BY archive, key HAVING count(*) > 1",
        "has its copy in archive {1} under key {2!r}, as {3} files have",
    ),
    Question(
        "deletion-without-archive",
        "SELECT 0, archive, key FROM hsm_gone WHERE archive NOT IN (SELECT id FROM archive)",
        "{2!r} is to be deleted in archive {1}, which does not exist",
    ),
)


def table_findings(store: Readable) -> Iterator[Finding]:
    """What is wrong with them."""
    for question in (*QUESTIONS, *_keys(store.backend)):
        for row in store.fetchall(question.sql):
            yield Finding(question.kind, row[0], question.text.format(*row), tuple(row[1:]))
    statements = store.statements
    yield from _unreadable(store, statements.links, "link", link_of)
    yield from _unreadable(store, statements.warmups, "warmup", warmup_of)
    yield from _unreadable(store, statements.rules, "rule", _rule_of)


def _keys(backend: str) -> tuple[Question, ...]:
    """Files of links and the keys that they are known by: keys are text in one table, bytes in the other."""
    key = "CAST(h.key AS BLOB)" if backend == "sqlite" else "convert_to(h.key, 'UTF8')"
    same = f"h.fid = o.fid AND h.archive = o.link AND o.key = {key}"
    return (
        Question(
            "link-key-wrong",
            f"SELECT o.fid, o.link, o.key FROM link_object o JOIN link l ON l.id = o.link LEFT JOIN hsm h ON {same}"
            " WHERE o.fid <> 0 AND h.fid IS NULL",
            "is key {2!r} of link {1}, but has its copy elsewhere, or none",
        ),
        # (That another file has the key is possible: it was moved there, and the bucket has not followed.)
        Question(
            "link-key-missing",
            f"SELECT h.fid, h.archive, h.key FROM hsm h JOIN link l ON l.id = h.archive"
            f" LEFT JOIN link_object o ON o.link = h.archive AND o.key = {key} WHERE h.key <> '' AND o.key IS NULL",
            "has its copy under key {2!r} of link {1}, which does not know that",
        ),
    )


def _unreadable(store: Readable, sql: str, kind: str, read: Callable[[Any], Any]) -> Iterator[Finding]:
    for row in store.fetchall(sql):
        try:
            read(row)
        except (msgspec.MsgspecError, ValueError) as error:
            fid = row[1] if kind == "link" else 0
            text = "is bound by" if kind == "link" else "there is"
            yield Finding(
                f"{kind}-unreadable", fid, f"{text} {kind} {row[0]!r} that cannot be read: {error}", (row[0],)
            )


def _rule_of(row: Any) -> Any:
    return watermarks_of(row[2]) if row[0] == WATERMARKS else standing_of(row)
