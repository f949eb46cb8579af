"""A rule and how it stands, as it is stored."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from croniter import croniter

from nacrefs.mds.lifecycle.document import DocumentError, parse_document
from nacrefs.mds.lifecycle.rules import NS, Rule, Watermarks
from nacrefs.mds.lifecycle.tally import Tally

ACTIVE, PAUSED, SUSPENDED, RECALLING = "active", "paused", "suspended", "recalling"
STATES: Final = (ACTIVE, PAUSED, SUSPENDED, RECALLING)
WATERMARKS: Final = " watermarks"
"""The ID of the row that is no rule: what is to happen when OSTs are full."""


class Counts(msgspec.Struct):
    """What is kept of a rule's runs."""

    put_ns: int = 0
    last: Tally = msgspec.field(default_factory=Tally)
    total: Tally = msgspec.field(default_factory=Tally)


class Standing(msgspec.Struct):
    """A rule and how it stands (a row of `schema.rule`)."""

    rule: Rule
    position: int
    document: str
    state: str = ACTIVE
    reason: str = ""
    last_run_ns: int = 0
    counts: Counts = msgspec.field(default_factory=Counts)
    reckoned: tuple[int, int] = (-1, 0)
    """From when the next run was reckoned last, and when that is: cron costs a tenth of a millisecond."""

    def row(self) -> tuple[Any, ...]:
        """The row."""
        counts = msgspec.json.encode(self.counts).decode()
        return self.rule.id, self.position, self.document, self.state, self.reason, self.last_run_ns, counts

    def next_run_ns(self) -> int | None:
        """When it runs next by itself; None: it does not."""
        if not self.rule.enabled or self.state != ACTIVE:
            return None
        since_ns = max(self.last_run_ns, self.counts.put_ns)
        if self.reckoned[0] != since_ns:
            last = datetime.fromtimestamp(since_ns // NS, UTC).astimezone()
            following: datetime = croniter(self.rule.schedule, last).get_next(datetime)
            self.reckoned = since_ns, round(following.timestamp()) * NS
        return self.reckoned[1]


def standing_of(row: Sequence[Any]) -> Standing:
    """What `Standing.row` stored; ValueError if it cannot be read."""
    _, position, document, state, reason, last_run_ns, counts = row
    try:
        (rule,) = parse_document(json.dumps({"Rules": [json.loads(document)]})).rules
        kept = msgspec.json.decode(counts, type=Counts)
    except (DocumentError, json.JSONDecodeError, msgspec.MsgspecError) as error:
        raise ValueError(str(error)) from None
    return Standing(rule, position, document, state, reason, last_run_ns, kept)


def watermarks_of(document: str) -> Watermarks | None:
    """The watermarks of a document; ValueError if it cannot be read."""
    if not document:
        return None
    try:
        return parse_document(json.dumps({"Rules": [], "Watermarks": json.loads(document)})).watermarks
    except (DocumentError, json.JSONDecodeError) as error:
        raise ValueError(str(error)) from None
