"""Lifecycle rules as values, and what they say about a file at a moment. Pure: no clock, no SQL, no tree.

The model is S3's lifecycle configuration (PutBucketLifecycleConfiguration) with what a filesystem can add: a directory
instead of a bucket, time since the last *use*, owner and extended attributes in filters, release, schedule and limits.
Ages are seconds, times nanoseconds since 1970. The last use of a file is the later of atime and mtime.
"""

import enum
import functools
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Final, NamedTuple

import msgspec

NS: Final = 1_000_000_000
DEFAULT_SCHEDULE: Final = "0 3 * * *"
STORAGE_CLASSES: Final = (
    "STANDARD", "REDUCED_REDUNDANCY", "STANDARD_IA", "ONEZONE_IA", "INTELLIGENT_TIERING", "GLACIER_IR", "GLACIER",
    "DEEP_ARCHIVE",
)  # fmt: skip
"""S3's classes, warmest first. Objects never move to a warmer one by a rule."""
COLD_CLASSES: Final = frozenset({"GLACIER", "DEEP_ARCHIVE"})
"""Classes whose objects must be restored inside S3 before they can be read."""


class Since(enum.Enum):
    """What an age is counted from."""

    ACCESS = "last access"
    MODIFICATION = "modification"


class Age(msgspec.Struct, frozen=True):
    """How long ago something must be."""

    seconds: float
    since: Since

    def due_ns(self, file: "File") -> int:
        """When a file gets this old."""
        begin_ns = file.mtime_ns if self.since is Since.MODIFICATION else file.used_ns
        return begin_ns + round(self.seconds * NS)


class Transition(msgspec.Struct, frozen=True):
    """From an age on, a copy lies in `archive`, in `storage_class` ("": the archive's own)."""

    age: Age
    archive: str = ""
    storage_class: str = ""


class Limits(msgspec.Struct, frozen=True):
    """How much one run of a rule may do; 0: no limit."""

    files: int = 0
    bytes: int = 0
    rate_mibps: float = 0.0
    suspend_on_error_percent: float = 0.0


class Thaw(msgspec.Struct, frozen=True):
    """How objects of cold classes are asked for when files are read; 0 and "": as the MDS's configuration says."""

    days: int = 0
    tier: str = ""


class Filter(msgspec.Struct, frozen=True):
    """Which files a rule is about. Sizes are exclusive, as in S3; `xattrs` maps a name to "present", "absent" or
    "=VALUE"."""

    prefix: bytes = b""
    name_pattern: bytes = b""
    larger_than: int = -1
    smaller_than: int = -1
    owner: str = ""
    group: str = ""
    xattrs: tuple[tuple[bytes, str], ...] = ()


class Rule(msgspec.Struct, frozen=True):
    """One rule. `directory` is an absolute path from the filesystem's root, without a slash at its end ("" is the
    root)."""

    id: str
    directory: bytes
    enabled: bool = True
    filter: Filter = Filter()
    transitions: tuple[Transition, ...] = ()
    release: Age | None = None
    expiration: Age | None = None
    schedule: str = DEFAULT_SCHEDULE
    limits: Limits = Limits()
    line: int = 0
    """where it stands in its document"""
    thaw: Thaw = Thaw()


class Watermarks(msgspec.Struct, frozen=True):
    """When an OST is `high` percent full, least recently used archived files are released until it is at `low`."""

    high: float = 85.0
    low: float = 75.0
    every_s: float = 60.0
    pools: tuple[tuple[str, float, float], ...] = ()
    """pools with marks of their own: name, high, low"""


class Configuration(msgspec.Struct, frozen=True):
    """All rules, in the order of their document."""

    rules: tuple[Rule, ...] = ()
    watermarks: Watermarks | None = None


class File(NamedTuple):
    """What a rule needs to know of a regular file. `path` is relative to the rule's directory."""

    path: bytes
    size: int
    atime_ns: int
    mtime_ns: int
    archived: bool = False
    released: bool = False
    dirty: bool = False
    pinned: bool = False
    noarchive: bool = False
    archive: str = ""
    storage_class: str = ""

    @property
    def used_ns(self) -> int:
        """When it was last read or written."""
        return max(self.atime_ns, self.mtime_ns)


class Act(enum.Enum):
    """What is to be done with a file."""

    ARCHIVE = "archive"
    TRANSITION = "transition"
    RELEASE = "release"
    EXPIRE = "expire"
    RECALL = "recall"
    """not of a rule: of its removal"""


class Decision(NamedTuple):
    """What a rule wants done with a file. `act` None: nothing now; then `at_ns` is when that will change by itself
    (None: never). `reason` is for people."""

    act: Act | None
    reason: str
    at_ns: int | None = None
    archive: str = ""
    storage_class: str = ""


def matches(filter_: Filter, file: File, xattrs: Mapping[bytes, bytes]) -> str:
    """Why the filter does not let a file through ("" if it does), but for owner and group, which SQL compares."""
    if not file.path.startswith(filter_.prefix):
        return f"its path does not begin with {_shown(filter_.prefix)}"
    name = file.path.rpartition(b"/")[2]
    if filter_.name_pattern and not fnmatchcase(name.decode("latin-1"), filter_.name_pattern.decode("latin-1")):
        return f"its name does not match {_shown(filter_.name_pattern)}"
    if filter_.larger_than >= 0 and file.size <= filter_.larger_than:
        return f"its size {file.size} is not above {filter_.larger_than}"
    if filter_.smaller_than >= 0 and file.size >= filter_.smaller_than:
        return f"its size {file.size} is not below {filter_.smaller_than}"
    for key, wanted in filter_.xattrs:
        value = xattrs.get(key)
        if wanted == "absent" and value is not None:
            return f"it has the attribute {_shown(key)}"
        if wanted == "present" and value is None:
            return f"it does not have the attribute {_shown(key)}"
        if wanted.startswith("=") and (value is None or value != wanted[1:].encode()):
            return f"its attribute {_shown(key)} is not {wanted[1:]!r}"
    return ""


def applicable(rules: Iterable[Rule], path: bytes) -> list[Rule]:
    """The rules of the nearest directory above an absolute path that has any, in their order. A rule that is switched
    off counts as not there. Rules further up do not apply, whatever the filters of these say."""
    nearest: list[Rule] = []
    for rule in rules:
        if not rule.enabled or not path.startswith(rule.directory + b"/"):
            continue
        if nearest and len(rule.directory) < len(nearest[0].directory):
            continue
        if nearest and len(rule.directory) > len(nearest[0].directory):
            nearest = []
        nearest.append(rule)
    return nearest


def decide(rule: Rule, file: File, now_ns: int) -> Decision:
    """What the rule wants done with a file that its filter lets through, now. One thing at a time: a file is archived
    first and released when it is next looked at."""
    coming: list[int] = []
    expiration = rule.expiration
    if expiration is not None:
        at_ns = expiration.due_ns(file)
        if at_ns <= now_ns:
            return Decision(Act.EXPIRE, _because(expiration))
        coming.append(at_ns)
    target = _target(rule.transitions, file, now_ns, coming)
    copied = file.archived and not file.dirty
    waits = "" if target is None else _hindrance(target, file)
    if target is not None and not waits and not copied:
        return Decision(Act.ARCHIVE, _because(target.age), None, target.archive, target.storage_class)
    release = rule.release
    if release is not None and not file.released:
        at_ns = release.due_ns(file)
        if at_ns > now_ns:
            coming.append(at_ns)
        elif not copied:
            waits = waits or "it is not archived yet"
        elif file.pinned:
            waits = waits or "it is pinned (norelease)"
        else:
            return Decision(Act.RELEASE, _because(release))
    # Last, so that a copy which the archive cannot move to another class does not keep the file's space.
    if target is not None and not waits and copied and is_colder(target.storage_class, file.storage_class):
        return Decision(Act.TRANSITION, _because(target.age), None, target.archive, target.storage_class)
    next_ns = min(coming, default=None)
    if not coming:
        rest = "all is done"
    elif file.archived and not file.dirty:
        rest = "what was due is done"
    else:
        rest = "it is not old enough"
    return Decision(None, waits or rest, next_ns)


def _target(steps: Sequence[Transition], file: File, now_ns: int, coming: list[int]) -> Transition | None:
    """Where the file's copy should lie by now: the last step that is due, in the archive that it or one before names.
    The times of those to come are added to `coming`."""
    target: Transition | None = None
    archive = ""
    for step in steps:
        at_ns = step.age.due_ns(file)
        if at_ns > now_ns:
            coming.append(at_ns)
            continue
        archive = step.archive or archive
        target = Transition(step.age, archive, step.storage_class)
    return target


def _hindrance(target: Transition, file: File) -> str:
    if file.archived and not file.dirty:
        if target.archive and file.archive and target.archive != file.archive:
            return f"its copy lies in archive {file.archive}, not in {target.archive}"
        return ""
    return "it is marked noarchive" if file.noarchive else ""


def is_colder(wanted: str, has: str) -> bool:
    """Whether a storage class is colder than another (empty: STANDARD)."""
    if not wanted or wanted == has:
        return False
    order = {name: rank for rank, name in enumerate(STORAGE_CLASSES)}
    return order[wanted] > order.get(has or "STANDARD", 0)


@functools.lru_cache(256)
def _because(age: Age) -> str:
    return f"its {age.since.value} was more than {format_age(age.seconds)} ago"


def format_age(seconds: float) -> str:
    """An age as people write it: 30d, 6h, 90s."""
    for unit, factor in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= factor and seconds % factor == 0:
            return f"{seconds / factor:.0f}{unit}"
    return f"{seconds:g}s"


def _shown(text: bytes) -> str:
    return repr(text.decode(errors="backslashreplace"))
