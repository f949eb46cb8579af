"""Warmup jobs as values."""

from typing import Final, NamedTuple

import msgspec

FILLING, WAITING, RUNNING, DONE, FAILED, CANCELED = "filling", "waiting", "running", "done", "failed", "canceled"
OVER: Final = (DONE, FAILED, CANCELED)
STATES: Final = (FILLING, WAITING, RUNNING, *OVER)
VERBS: Final = ("warm", "evict", "check")
HISTORY: Final = 1000
"""Jobs that are over and still shown."""
REASONS_MAX: Final = 100
"""Files of which a job keeps why they failed."""


class Counts(msgspec.Struct):
    """What of a job is done. `moved`: files that were brought or given up; `here`: those for which nothing was to be
    done; `failed`: those for which it could not be, or (check) that are not here; `reasons`: of the first of them."""

    files: int = 0
    moved: int = 0
    here: int = 0
    failed: int = 0
    bytes: int = 0
    seconds: float = 0.0
    reasons: dict[str, str] = msgspec.field(default_factory=dict[str, str])

    def fail(self, path: str, reason: str) -> None:
        """A file could not be done."""
        self.failed += 1
        if len(self.reasons) < REASONS_MAX:
            self.reasons[path] = reason

    def copy(self) -> "Counts":
        """As they are now."""
        return msgspec.structs.replace(self, reasons=dict(self.reasons))


class WarmupRow(NamedTuple):
    """A job (columns of `schema.warmup`, `counts` as a value)."""

    id: int
    verb: str
    state: str
    after: int
    width: int
    uid: int
    created_ns: int
    changed_ns: int
    counts: Counts
    rate_bytes: int = 0

    def columns(self) -> tuple[int, str, str, int, int, int, int, int, str, int]:
        """As it is stored."""
        return (*self[:8], msgspec.json.encode(self.counts).decode(), self.rate_bytes)


def warmup_of(row: tuple[int, str, str, int, int, int, int, int, str, int]) -> WarmupRow:
    """What `columns` stored."""
    return WarmupRow(*row[:8], msgspec.json.decode(row[8], type=Counts), row[9])
