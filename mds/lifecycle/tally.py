"""What came of a rule: counts and bytes by act, and why some files were left as they are."""

from typing import Any, Final

import msgspec

from nacrefs.mds.lifecycle.rules import Act

REASONS_MAX: Final = 20


class Count(msgspec.Struct):
    """Files and their bytes."""

    files: int = 0
    bytes: int = 0

    def add(self, size: int) -> None:
        """One more file."""
        self.files += 1
        self.bytes += size


class Tally(msgspec.Struct):
    """Counts of a run, or of all runs of a rule."""

    started_ns: int = 0
    ended_ns: int = 0
    looked_at: int = 0
    matched: int = 0
    archived: Count = msgspec.field(default_factory=Count)
    transitioned: Count = msgspec.field(default_factory=Count)
    released: Count = msgspec.field(default_factory=Count)
    expired: Count = msgspec.field(default_factory=Count)
    recalled: Count = msgspec.field(default_factory=Count)
    failed: int = 0
    left: int = 0
    """Files that matched and were left as they are: refused, used meanwhile, removed."""
    reasons: dict[str, int] = msgspec.field(default_factory=dict[str, int])
    problem: str = ""
    """Why it ended early."""

    def of(self, act: Act) -> Count:
        """The count of an act."""
        match act:
            case Act.ARCHIVE:
                return self.archived
            case Act.TRANSITION:
                return self.transitioned
            case Act.RELEASE:
                return self.released
            case Act.EXPIRE:
                return self.expired
            case Act.RECALL:
                return self.recalled

    def because(self, reason: str) -> None:
        """A file failed or was left, for this reason."""
        if reason in self.reasons or len(self.reasons) < REASONS_MAX:
            self.reasons[reason] = self.reasons.get(reason, 0) + 1

    def include(self, other: "Tally") -> None:
        """Add another's counts to this one."""
        for act in Act:
            mine, its = self.of(act), other.of(act)
            mine.files += its.files
            mine.bytes += its.bytes
        self.looked_at += other.looked_at
        self.matched += other.matched
        self.failed += other.failed
        self.left += other.left
        self.started_ns = self.started_ns or other.started_ns
        self.ended_ns = max(self.ended_ns, other.ended_ns)

    @property
    def done(self) -> int:
        """Files with which something was done."""
        return sum(self.of(act).files for act in Act)

    def plain(self) -> dict[str, Any]:
        """As plain data."""
        built: dict[str, Any] = msgspec.to_builtins(self)
        return built
