"""Lifecycle documents: what is read from them, and how mistakes are named."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacrefs.mds.lifecycle.document import NODES_MAX, DocumentError, parse_document
from nacrefs.mds.lifecycle.rules import Age, Configuration, Filter, Limits, Rule, Since, Transition, Watermarks

WHOLE = """
Rules:
  - ID: checkpoints
    Status: Enabled
    Directory: /scratch/ckpt
    Filter: {Prefix: "run-", ObjectSizeGreaterThan: 131072, NamePattern: "*.pt", Owner: alice,
             Xattr: {user.keep: absent}}
    Transitions:
      - {DaysAfterLastAccess: 90, StorageClass: GLACIER}
      - {DaysAfterLastAccess: 30, Archive: cold, StorageClass: STANDARD_IA}
    Release: {DaysAfterLastAccess: 35}
    Expiration: {DaysAfterModification: 365}
    Schedule: "0 3 * * *"
    Limits: {MaxFiles: 100000, MaxBytes: 10TiB, RateMiBps: 500, SuspendOnErrorPercent: 50}
Watermarks: {High: 85, Low: 75, Every: 60s}
"""
DAY = 86400.0


def rule_with(text: str) -> str:
    """A document of one rule with some lines more, which begin at line 5."""
    return f"Rules:\n  - ID: a\n    Directory: /d\n    Expiration: {{Days: 1}}\n{text}\n"


def test_a_whole_document_is_read_and_its_steps_are_ordered_by_age() -> None:
    assert parse_document(WHOLE) == Configuration(
        (
            Rule(
                "checkpoints",
                b"/scratch/ckpt",
                True,
                Filter(b"run-", b"*.pt", 131072, -1, "alice", "", ((b"user.keep", "absent"),)),
                (
                    Transition(Age(30 * DAY, Since.ACCESS), "cold", "STANDARD_IA"),
                    Transition(Age(90 * DAY, Since.ACCESS), "", "GLACIER"),
                ),
                Age(35 * DAY, Since.ACCESS),
                Age(365 * DAY, Since.MODIFICATION),
                "0 3 * * *",
                Limits(100_000, 10 << 40, 500.0, 50.0),
                3,
            ),
        ),
        Watermarks(85.0, 75.0, 60.0),
    )


def test_json_as_s3_writes_it_is_read() -> None:
    document = {
        "Rules": [
            {
                "ID": "logs",
                "Status": "Disabled",
                "Directory": "/",
                "Filter": {"And": {"Prefix": "logs/", "Tags": [{"Key": "temporary", "Value": "yes"}]}},
                "Transitions": [{"Days": 7, "Archive": "cold", "StorageClass": "GLACIER"}],
                "Expiration": {"Days": 30},
            }
        ]
    }
    (rule,) = parse_document(json.dumps(document, indent=1)).rules
    assert rule.directory == b""
    assert not rule.enabled
    assert rule.filter == Filter(prefix=b"logs/", xattrs=((b"user.temporary", "=yes"),))
    assert rule.transitions == (Transition(Age(7 * DAY, Since.MODIFICATION), "cold", "GLACIER"),)


@pytest.mark.parametrize(("text", "seconds"), [("30", 30 * DAY), ("30d", 30 * DAY), ("6h", 21600.0), ("90s", 90.0)])
def test_ages_go_down_to_seconds_and_bare_numbers_are_days(text: str, seconds: float) -> None:
    (rule,) = parse_document(
        f"Rules: [{{ID: a, Directory: /d, Transitions: [{{DaysAfterLastAccess: {text}, Archive: x}}]}}]"
    ).rules
    assert rule.transitions[0].age.seconds == seconds


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("", "the document is empty"),
        ("Rules: [", "f:1: not valid YAML or JSON"),
        ("Rules: 7", "f:1: Rules: must be a list"),
        ("- a", "f:1: must be a mapping"),
        ("Rulez: []", "f:1: Rulez: there is no such field here (there are Rules, Watermarks)"),
        ("Rules: [{Directory: /d, Expiration: {Days: 1}}]", "f:1: Rules[0]: ID is missing"),
        ("Rules:\n  - ID: a\n    Expiration: {Days: 1}", "f:2: Rules[0]: Directory is missing"),
        ("Rules: [{ID: a, Directory: d, Expiration: {Days: 1}}]", "is not the path of a directory"),
        ("Rules: [{ID: a, Directory: /a/../b, Expiration: {Days: 1}}]", "is not the path of a directory"),
        ("Rules: [{ID: a, Directory: /d}]", "does nothing"),
        (rule_with("    Status: On"), "f:5: Rules[0].Status: 'On' is neither Enabled nor Disabled"),
        (rule_with("    Release: {Days: 1}"), "f:5: Rules[0].Release: only what is archived can be released"),
        (rule_with("    Transitions: [{Days: 1, StorageClass: GLACIER}]"), "the first step must name the Archive"),
        (rule_with("    Transitions: [{Days: 1, Archive: a, StorageClass: X}]"), "'X' is no storage class"),
        (rule_with("    Transitions: [{Archive: a}]"), "give one of Days, DaysAfterModification, DaysAfterLastAccess"),
        (rule_with("    Transitions: [{Days: 1, DaysAfterLastAccess: 1, Archive: a}]"), "not 2"),
        (
            rule_with("    Transitions: [{Days: 1, Archive: a}, {DaysAfterLastAccess: 2, StorageClass: GLACIER}]"),
            "all steps must count from the same",
        ),
        (rule_with("    Transitions: [{Days: soon, Archive: a}]"), "'soon' is not an age (examples: 30, 30d, 6h, 90s)"),
        (rule_with("    Filter: {NamePattern: a/b}"), "use Prefix for directories"),
        (rule_with("    Filter: {ObjectSizeGreaterThan: many}"), "'many' is not a size"),
        (rule_with("    Filter: {ObjectSizeGreaterThan: 9, ObjectSizeLessThan: 10}"), "no file is larger than 9"),
        (rule_with("    Filter: {And: {Prefix: a}, Prefix: b}"), "stands alone in a Filter"),
        (rule_with("    Filter: {Xattr: {user.a: maybe}}"), "f:5: Rules[0].Filter.Xattr.user.a: 'maybe' is not"),
        (rule_with("    Schedule: sometimes"), "is not a schedule of five fields"),
        (rule_with("    Schedule: 61 * * * *"), "is not a schedule of five fields"),
        (rule_with("    Limits: {MaxFiles: -1}"), "f:5: Rules[0].Limits.MaxFiles: '-1' is not a number of files"),
        (rule_with("    Limits: {SuspendOnErrorPercent: 101}"), "is not a percentage"),
        (rule_with("    NoncurrentVersionExpiration: {}"), "is not supported: files have no versions here"),
        (rule_with("    Status: Enabled\n    Status: Enabled"), "f:6: Rules[0].Status: is given twice"),
        (rule_with("  - ID: a\n    Directory: /e\n    Expiration: {Days: 1}"), "f:5: Rules[1]: the ID 'a' is that of"),
        ("Rules: [{ID: a, Directory: /d, Expiration: {Days: 0}}]", "would delete every file at once"),
        ("Rules: []\nWatermarks: {High: 50, Low: 60}", "f:2: Watermarks: Low (60) must not be above High (50)"),
    ],
)
def test_mistakes_are_named_with_line_place_and_reason(text: str, mistake: str) -> None:
    with pytest.raises(DocumentError) as caught:
        parse_document(text, "f")
    assert mistake in str(caught.value)


def test_all_mistakes_are_shown_at_once() -> None:
    with pytest.raises(DocumentError) as caught:
        parse_document(rule_with("    Status: On\n    Schedule: never\n    Limits: {MaxFiles: x}"), "f")
    assert len(str(caught.value).splitlines()) == 3


def test_a_document_that_describes_too_much_is_refused() -> None:
    bomb = "a: &a [1, 2, 3, 4, 5, 6, 7, 8, 9]\n" + "".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(8)
    )
    with pytest.raises(DocumentError, match=f"more than {NODES_MAX} values"):
        parse_document(bomb)


@given(st.text(alphabet="Rules:[]{}-ID \nDirectoy/&*a1\"'%!", max_size=200))
def test_no_text_does_anything_but_parse_or_say_what_is_wrong(text: str) -> None:
    try:
        parse_document(text)
    except DocumentError as error:
        assert str(error).startswith("lifecycle")
