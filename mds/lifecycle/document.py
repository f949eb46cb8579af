"""Lifecycle documents: YAML or JSON text into a `Configuration`, every mistake with its line.

The format is the JSON form of S3's lifecycle configuration (`aws s3api put-bucket-lifecycle-configuration`), with
fields of our own beside it; docs/tiering.md is its reference. JSON is read by the YAML parser, so it has lines, too.
"""

from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

import yaml
from croniter import croniter

from nacrefs.common.config import parse_duration, parse_size
from nacrefs.mds.lifecycle.rules import (
    DEFAULT_SCHEDULE,
    STORAGE_CLASSES,
    Age,
    Configuration,
    Filter,
    Limits,
    Rule,
    Since,
    Thaw,
    Transition,
    Watermarks,
)

T = TypeVar("T")
TEXT_BYTES_MAX: Final = 1 << 20
NODES_MAX: Final = 100_000
RULES_MAX: Final = 1000
"""As many as S3 takes."""
MISTAKES_SHOWN: Final = 20

_AGES: Final = {
    "Days": Since.MODIFICATION,  # S3 counts from when the object was written
    "DaysAfterModification": Since.MODIFICATION,
    "DaysAfterLastAccess": Since.ACCESS,
}
_UNSUPPORTED: Final = {
    "NoncurrentVersionTransitions": "files have no versions here",
    "NoncurrentVersionExpiration": "files have no versions here",
    "ExpiredObjectDeleteMarker": "files have no versions here",
    "AbortIncompleteMultipartUpload": "movers abort their own uploads",
    "Date": "give an age: rules run again and again",
}


class DocumentError(ValueError):
    """A document that cannot be used; the text names every mistake with its line."""


def parse_document(text: str, source: str = "lifecycle") -> Configuration:
    """The configuration that a document describes; DocumentError with all mistakes, a line each:
    `SOURCE:LINE: WHERE: what is wrong`."""
    if len(text) > TEXT_BYTES_MAX:
        raise DocumentError(f"{source}: a lifecycle document has at most {TEXT_BYTES_MAX >> 20} MiB")
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is None:
            raise DocumentError(f"{source}: the document is empty; to remove all rules write `Rules: []`")
        _check_size(root, source)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else 1
        raise DocumentError(f"{source}:{line}: not valid YAML or JSON: {error.problem or error.context}") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise DocumentError(f"{source}: not valid YAML or JSON: {str(error).splitlines()[0]}") from None
    reader = _Reader(source)
    configuration = reader.configuration(_Place(root, ""))
    if reader.mistakes:
        shown = reader.mistakes[:MISTAKES_SHOWN]
        more = len(reader.mistakes) - len(shown)
        raise DocumentError("\n".join(shown + ([f"… and {more} more"] if more else [])))
    return configuration


def plain_document(text: str) -> Any:
    """What a document that `parse_document` has taken says, as plain data: strings, whole numbers, lists, mappings."""
    return _plain(yaml.compose(text, Loader=yaml.SafeLoader))


def _plain(node: "yaml.Node | None") -> Any:
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item) for item in node.value]
    if isinstance(node, yaml.MappingNode):
        return {str(key.value): _plain(value) for key, value in node.value}
    text = "" if node is None else str(node.value)
    return int(text) if text.isascii() and text.isdigit() and str(int(text)) == text else text


def _check_size(root: yaml.Node, source: str) -> None:
    """Aliases make a small text describe a huge document: count what it describes."""
    stack, seen = [root], 0
    while stack:
        node = stack.pop()
        seen += 1
        if seen > NODES_MAX:
            raise DocumentError(f"{source}: the document describes more than {NODES_MAX} values")
        if isinstance(node, yaml.SequenceNode):
            stack.extend(node.value)
        elif isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                stack += (key, value)


class _Place:
    """A value in the document, and where that is."""

    def __init__(self, node: yaml.Node, where: str) -> None:
        self.node = node
        self.where = where

    @property
    def line(self) -> int:
        return int(self.node.start_mark.line) + 1


class _Reader:
    """Reads values and collects mistakes. What cannot be read becomes the default, so that reading goes on."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.mistakes: list[str] = []

    def wrong(self, place: _Place, text: str) -> None:
        where = f"{place.where}: " if place.where else ""
        self.mistakes.append(f"{self.source}:{place.line}: {where}{text}")

    # ------------------------------------------------------------------------------------------------- building blocks

    def fields(self, place: _Place, known: tuple[str, ...]) -> dict[str, _Place]:
        """The fields of a mapping, all of them known, none twice."""
        if not isinstance(place.node, yaml.MappingNode):
            self.wrong(place, f"must be a mapping with {', '.join(known)}")
            return {}
        found: dict[str, _Place] = {}
        for key_node, value in place.node.value:
            key = str(key_node.value)
            at = _Place(value, f"{place.where}.{key}".lstrip("."))
            at_key = _Place(key_node, at.where)
            if key in _UNSUPPORTED and key not in known:
                self.wrong(at_key, f"is not supported: {_UNSUPPORTED[key]}")
            elif key not in known:
                self.wrong(at_key, f"there is no such field here (there are {', '.join(known)})")
            elif key in found:
                self.wrong(at_key, "is given twice")
            else:
                found[key] = at
        return found

    def items(self, place: _Place) -> Iterator[_Place]:
        if not isinstance(place.node, yaml.SequenceNode):
            self.wrong(place, "must be a list")
            return
        for number, item in enumerate(place.node.value):
            yield _Place(item, f"{place.where}[{number}]")

    def value(self, place: _Place | None, read: Callable[[str], T], default: T) -> T:
        """A scalar, as `read` understands it; its ValueError says what is wrong."""
        if place is None:
            return default
        if not isinstance(place.node, yaml.ScalarNode):
            self.wrong(place, "must be a single value")
            return default
        try:
            return read(str(place.node.value))
        except ValueError as error:
            self.wrong(place, str(error))
            return default

    # ---------------------------------------------------------------------------------------------------- the document

    def configuration(self, root: _Place) -> Configuration:
        fields = self.fields(root, ("Rules", "Watermarks"))
        rules: list[Rule] = []
        seen: dict[str, int] = {}
        if "Rules" not in fields and isinstance(root.node, yaml.MappingNode):
            self.wrong(root, "Rules is missing")
        for place in self.items(fields["Rules"]) if "Rules" in fields else ():
            rule = self.rule(place)
            if rule.id in seen:
                self.wrong(place, f"the ID {rule.id!r} is that of the rule in line {seen[rule.id]}, too")
            seen.setdefault(rule.id, place.line)
            rules.append(rule)
        if len(rules) > RULES_MAX:
            self.wrong(root, f"there are {len(rules)} rules; at most {RULES_MAX} are possible")
        watermarks = self.watermarks(fields["Watermarks"]) if "Watermarks" in fields else None
        return Configuration(tuple(rules), watermarks)

    def rule(self, place: _Place) -> Rule:
        fields = self.fields(
            place,
            (
                "ID", "Status", "Directory", "Filter", "Prefix", "Transitions", "Transition", "Release", "Expiration",
                "Schedule", "Limits", "Recall",
            ),
        )  # fmt: skip
        identity = self.value(fields.get("ID"), _identity, "")
        if "ID" not in fields:
            self.wrong(place, "ID is missing")
        if "Directory" not in fields:
            self.wrong(place, "Directory is missing: the path of a directory, from the filesystem's root")
        where = self.filter(fields["Filter"]) if "Filter" in fields else Filter()
        if "Prefix" in fields:
            where = Filter(prefix=self.value(fields["Prefix"], str.encode, b""))
        if "Prefix" in fields and "Filter" in fields:
            self.wrong(fields["Prefix"], "goes into Filter if there is one")
        transitions: list[Transition] = []
        if "Transitions" in fields:
            transitions = [self.transition(item) for item in self.items(fields["Transitions"])]
        if "Transition" in fields:  # the form of older documents
            transitions.append(self.transition(fields["Transition"]))
        release = self.age_of(fields.get("Release"))
        expiration = self.age_of(fields.get("Expiration"))
        self.check_steps(fields, place, transitions, release, expiration)
        return Rule(
            identity,
            self.value(fields.get("Directory"), _directory, b""),
            self.value(fields.get("Status"), _status, True),
            where,
            tuple(sorted(transitions, key=lambda step: step.age.seconds)),
            release,
            expiration,
            self.value(fields.get("Schedule"), _schedule, DEFAULT_SCHEDULE),
            self.limits(fields["Limits"]) if "Limits" in fields else Limits(),
            place.line,
            self.thaw(fields["Recall"]) if "Recall" in fields else Thaw(),
        )

    def thaw(self, place: _Place) -> Thaw:
        fields = self.fields(place, ("Days", "Tier"))
        return Thaw(self.value(fields.get("Days"), _count, 0), self.value(fields.get("Tier"), _tier, ""))

    def check_steps(
        self,
        fields: dict[str, _Place],
        place: _Place,
        transitions: list[Transition],
        release: Age | None,
        expiration: Age | None,
    ) -> None:
        """The steps of a rule must make sense together."""
        if not transitions and release is None and expiration is None:
            self.wrong(place, "does nothing: give Transitions, Release or Expiration")
        if transitions and not min(transitions, key=lambda step: step.age.seconds).archive:
            at = fields.get("Transitions") or fields.get("Transition") or place
            self.wrong(at, "the first step must name the Archive that files go to (`nacre archive list`)")
        if len({step.age.since for step in transitions}) > 1:
            self.wrong(
                fields.get("Transitions") or place, "all steps must count from the same: last access or modification"
            )
        if release is not None and not transitions:
            self.wrong(fields["Release"], "only what is archived can be released: give Transitions with an Archive")
        if expiration is not None and expiration.seconds <= 0:
            self.wrong(fields["Expiration"], "must be more than 0: it would delete every file at once")

    def transition(self, place: _Place) -> Transition:
        fields = self.fields(place, (*_AGES, "Archive", "StorageClass"))
        age = self.age(place, fields)
        if "Archive" not in fields and "StorageClass" not in fields:
            self.wrong(place, "give an Archive, a StorageClass, or both")
        return Transition(
            age,
            self.value(fields.get("Archive"), _identity, ""),
            self.value(fields.get("StorageClass"), _storage_class, ""),
        )

    def age_of(self, place: _Place | None) -> Age | None:
        return None if place is None else self.age(place, self.fields(place, tuple(_AGES)))

    def age(self, place: _Place, fields: dict[str, _Place]) -> Age:
        given = [name for name in _AGES if name in fields]
        if len(given) != 1:
            self.wrong(place, f"give one of {', '.join(_AGES)}" + (f", not {len(given)}" if given else ""))
            return Age(1.0, Since.ACCESS)
        return Age(self.value(fields[given[0]], _age, 1.0), _AGES[given[0]])

    def filter(self, place: _Place) -> Filter:
        known = (
            "Prefix", "ObjectSizeGreaterThan", "ObjectSizeLessThan", "NamePattern", "Owner", "Group", "Xattr", "Tag",
            "Tags",
        )  # fmt: skip
        fields = self.fields(place, (*known, "And"))
        if "And" in fields:
            if len(fields) > 1:
                self.wrong(fields["And"], "stands alone in a Filter: put the other fields into it")
            fields = self.fields(fields["And"], known)
        xattrs = dict(self.xattrs(fields["Xattr"])) if "Xattr" in fields else {}
        tags = list(self.items(fields["Tags"])) if "Tags" in fields else []
        for tag in [*tags, *([fields["Tag"]] if "Tag" in fields else [])]:
            parts = self.fields(tag, ("Key", "Value"))
            key = self.value(parts.get("Key"), _identity, "")
            xattrs[b"user." + key.encode()] = "=" + self.value(parts.get("Value"), str, "")
        larger = self.value(fields.get("ObjectSizeGreaterThan"), parse_size, -1)
        smaller = self.value(fields.get("ObjectSizeLessThan"), parse_size, -1)
        if 0 <= smaller <= larger + 1:
            self.wrong(
                fields["ObjectSizeLessThan"], f"no file is larger than {larger} and smaller than {smaller} bytes"
            )
        return Filter(
            self.value(fields.get("Prefix"), str.encode, b""),
            self.value(fields.get("NamePattern"), _pattern, b""),
            larger,
            smaller,
            self.value(fields.get("Owner"), _identity, ""),
            self.value(fields.get("Group"), _identity, ""),
            tuple(sorted(xattrs.items())),
        )

    def xattrs(self, place: _Place) -> Iterator[tuple[bytes, str]]:
        if not isinstance(place.node, yaml.MappingNode):
            self.wrong(place, "must be a mapping from attribute names to `present`, `absent` or `=VALUE`")
            return
        for key, value in place.node.value:
            at = _Place(value, f"{place.where}.{key.value}")
            yield str(key.value).encode(), self.value(at, _condition, "present")

    def limits(self, place: _Place) -> Limits:
        fields = self.fields(place, ("MaxFiles", "MaxBytes", "RateMiBps", "SuspendOnErrorPercent"))
        return Limits(
            self.value(fields.get("MaxFiles"), _count, 0),
            self.value(fields.get("MaxBytes"), parse_size, 0),
            self.value(fields.get("RateMiBps"), _rate, 0.0),
            self.value(fields.get("SuspendOnErrorPercent"), _percent, 0.0),
        )

    def watermarks(self, place: _Place) -> Watermarks:
        fields = self.fields(place, ("High", "Low", "Every", "Pools"))
        high, low = self.marks(place, fields, 85.0, 75.0)
        every = self.value(fields.get("Every"), parse_duration, 60.0)
        if every < 1:
            self.wrong(fields["Every"], "must be at least 1s")
        pools: list[tuple[str, float, float]] = []
        if "Pools" in fields:
            if not isinstance(fields["Pools"].node, yaml.MappingNode):
                self.wrong(fields["Pools"], "must be a mapping from pools to their High and Low")
            else:
                for key, value in fields["Pools"].node.value:
                    at = _Place(value, f"Watermarks.Pools.{key.value}")
                    own = self.marks(at, self.fields(at, ("High", "Low")), high, low)
                    pools.append((str(key.value), *own))
        return Watermarks(high, low, float(every), tuple(pools))

    def marks(self, place: _Place, fields: dict[str, _Place], high: float, low: float) -> tuple[float, float]:
        high = self.value(fields.get("High"), _percent, high)
        low = self.value(fields.get("Low"), _percent, min(low, high))
        if low > high:
            self.wrong(place, f"Low ({low:g}) must not be above High ({high:g})")
        return high, low


def _identity(text: str) -> str:
    if not 0 < len(text) <= 255 or not text.isprintable():
        raise ValueError(f"{text[:40]!r} must be 1 to 255 printable characters")
    return text


def _directory(text: str) -> bytes:
    path = text.rstrip("/")
    if not text.startswith("/") or "\0" in text or any(part in (".", "..", "") for part in path.split("/")[1:]):
        raise ValueError(f"{text!r} is not the path of a directory from the filesystem's root, as /scratch/run")
    return path.encode()


def _status(text: str) -> bool:
    if text not in ("Enabled", "Disabled"):
        raise ValueError(f"{text!r} is neither Enabled nor Disabled")
    return text == "Enabled"


def _storage_class(text: str) -> str:
    if text not in STORAGE_CLASSES:
        raise ValueError(f"{text!r} is no storage class (there are {', '.join(STORAGE_CLASSES)})")
    return text


def _tier(text: str) -> str:
    if text not in ("Expedited", "Standard", "Bulk"):
        raise ValueError(f"{text!r} is none of Expedited, Standard, Bulk")
    return text


def _age(text: str) -> float:
    """Seconds; a bare number counts days, as in S3."""
    if text.isascii() and text.isdigit():
        return float(text) * 86400
    try:
        return float(parse_duration(text))
    except ValueError:
        raise ValueError(f"{text!r} is not an age (examples: 30, 30d, 6h, 90s)") from None


def _schedule(text: str) -> str:
    if len(text.split()) != 5 or not croniter.is_valid(text):
        raise ValueError(f'{text!r} is not a schedule of five fields (minute hour day month weekday), as "0 3 * * *"')
    return text


def _condition(text: str) -> str:
    if text not in ("present", "absent") and not text.startswith("="):
        raise ValueError(f"{text!r} is not `present`, `absent` or `=VALUE`")
    return text


def _pattern(text: str) -> bytes:
    if "/" in text:
        raise ValueError(f"{text!r} is compared with a file's name, which has no slash: use Prefix for directories")
    return text.encode()


def _number(text: str, kind: Callable[[str], Any], least: float, what: str) -> Any:
    try:
        number = kind(text)
    except ValueError:
        number = least - 1
    if not least <= number <= 1 << 62:
        raise ValueError(f"{text!r} is not {what}")
    return number


def _count(text: str) -> int:
    return int(_number(text, int, 0, "a number of files"))


def _rate(text: str) -> float:
    return float(_number(text, float, 0, "a rate in MiB per second"))


def _percent(text: str) -> float:
    percent = float(_number(text, float, 0, "a percentage (0 to 100)"))
    if percent > 100:
        raise ValueError(f"{text!r} is not a percentage (0 to 100)")
    return percent
