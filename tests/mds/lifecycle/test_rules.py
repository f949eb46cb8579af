"""What rules want done with files: decisions as values."""

from hypothesis import given
from hypothesis import strategies as st

from nacrefs.mds.lifecycle.rules import (
    NS,
    STORAGE_CLASSES,
    Act,
    Age,
    File,
    Filter,
    Rule,
    Since,
    Transition,
    applicable,
    decide,
    matches,
)

DAY = 86400
NOW = 1_000_000 * DAY * NS


def aged(days: float, **more: object) -> File:
    """A file last used so many days ago."""
    then = NOW - round(days * DAY * NS)
    return File(b"run-1/model.pt", 1000, then, then, **more)  # type: ignore[arg-type]


def access(days: float) -> Age:
    return Age(days * DAY, Since.ACCESS)


RULE = Rule(
    "r",
    b"/d",
    transitions=(Transition(access(30), "cold", "STANDARD_IA"), Transition(access(90), "", "GLACIER")),
    release=access(35),
    expiration=Age(365 * DAY, Since.MODIFICATION),
)


class TestDecide:
    def test_a_young_file_stays_and_it_is_said_until_when(self) -> None:
        decision = decide(RULE, aged(10), NOW)
        assert (decision.act, decision.at_ns) == (None, NOW + 20 * DAY * NS)

    def test_an_old_one_is_archived_then_released_then_moved_on_then_deleted(self) -> None:
        first = decide(RULE, aged(31), NOW)
        assert (first.act, first.archive, first.storage_class) == (Act.ARCHIVE, "cold", "STANDARD_IA")
        kept = aged(31, archived=True, archive="cold", storage_class="STANDARD_IA")
        assert decide(RULE, kept, NOW).act is None
        stale = aged(36, archived=True, archive="cold", storage_class="STANDARD_IA")
        assert decide(RULE, stale, NOW).act is Act.RELEASE
        gone = aged(91, archived=True, released=True, archive="cold", storage_class="STANDARD_IA")
        moved = decide(RULE, gone, NOW)
        assert (moved.act, moved.storage_class) == (Act.TRANSITION, "GLACIER")
        assert decide(RULE, gone._replace(storage_class="GLACIER"), NOW).act is None
        assert decide(RULE, aged(366), NOW).act is Act.EXPIRE

    def test_a_file_that_is_old_already_goes_to_the_class_of_its_age_at_once(self) -> None:
        decision = decide(RULE, aged(100), NOW)
        assert (decision.act, decision.archive, decision.storage_class) == (Act.ARCHIVE, "cold", "GLACIER")

    def test_reading_counts_as_use_and_deletion_counts_from_the_last_write(self) -> None:
        file = File(b"f", 1, NOW, NOW - 400 * DAY * NS)
        assert decide(RULE, file, NOW).act is Act.EXPIRE
        file = File(b"f", 1, NOW, NOW - 100 * DAY * NS)
        assert decide(RULE, file, NOW).act is None

    def test_what_is_dirty_is_archived_again_before_it_is_released(self) -> None:
        assert decide(RULE, aged(40, archived=True, dirty=True, archive="cold"), NOW).act is Act.ARCHIVE

    def test_a_copy_that_people_made_in_a_warmer_class_is_released_when_due_and_moved_then(self) -> None:
        by_hand = aged(36, archived=True, archive="cold", storage_class="STANDARD")
        assert decide(RULE, by_hand, NOW).act is Act.RELEASE
        moved = decide(RULE, by_hand._replace(released=True), NOW)
        assert (moved.act, moved.storage_class) == (Act.TRANSITION, "STANDARD_IA")

    def test_pins_and_noarchive_are_respected_and_said(self) -> None:
        pinned = decide(RULE, aged(40, archived=True, pinned=True, storage_class="STANDARD_IA"), NOW)
        assert (pinned.act, pinned.reason) == (None, "it is pinned (norelease)")
        kept = decide(RULE, aged(40, noarchive=True), NOW)
        assert (kept.act, kept.reason) == (None, "it is marked noarchive")

    def test_a_copy_in_another_archive_stays_there(self) -> None:
        file = aged(31, archived=True, archive="tape", storage_class="STANDARD")
        assert decide(RULE, file, NOW).reason == "its copy lies in archive tape, not in cold"

    @given(
        days=st.floats(0, 500),
        archived=st.booleans(),
        released=st.booleans(),
        dirty=st.booleans(),
        pinned=st.booleans(),
        noarchive=st.booleans(),
        storage_class=st.sampled_from(("", *STORAGE_CLASSES)),
    )
    def test_never_releases_what_has_no_good_copy_and_never_warms_up(
        self,
        days: float,
        archived: bool,
        released: bool,
        dirty: bool,
        pinned: bool,
        noarchive: bool,
        storage_class: str,
    ) -> None:
        file = aged(
            days, archived=archived, released=released and archived and not dirty, dirty=dirty, pinned=pinned,
            noarchive=noarchive, storage_class=storage_class,
        )  # fmt: skip
        decision = decide(RULE, file, NOW)
        if decision.act is Act.RELEASE:
            assert archived
            assert not dirty
            assert not pinned
        if decision.act is Act.TRANSITION:
            order = STORAGE_CLASSES.index
            assert order(decision.storage_class) > (order(storage_class) if storage_class else 0)
        if decision.act is Act.ARCHIVE:
            assert not noarchive
            assert decision.archive
        if decision.at_ns is not None:
            assert decision.at_ns > NOW
            if decision.act is None and not decision.reason.startswith("it is"):
                assert decide(RULE, file, decision.at_ns) != decision


class TestApplicable:
    RULES = (
        Rule("root", b""),
        Rule("a", b"/a"),
        Rule("a2", b"/a"),
        Rule("off", b"/a/b", enabled=False),
        Rule("deep", b"/a/b/c"),
    )

    def test_the_nearest_directory_that_has_rules_wins(self) -> None:
        def names(path: bytes) -> list[str]:
            return [rule.id for rule in applicable(self.RULES, path)]

        assert names(b"/f") == ["root"]
        assert names(b"/a/f") == ["a", "a2"]
        assert names(b"/a/b/f") == ["a", "a2"]
        assert names(b"/a/b/c/f") == ["deep"]
        assert names(b"/ab/f") == ["root"]


def test_filters_say_why_a_file_does_not_match() -> None:
    file = aged(1)
    assert matches(Filter(b"run-", b"*.pt", 999, 1001), file, {}) == ""
    assert "begin with" in matches(Filter(prefix=b"x"), file, {})
    assert "does not match" in matches(Filter(name_pattern=b"run-*"), file, {})
    assert "not above 1000" in matches(Filter(larger_than=1000), file, {})
    assert "not below 1000" in matches(Filter(smaller_than=1000), file, {})
    assert "has the attribute" in matches(Filter(xattrs=((b"user.a", "absent"),)), file, {b"user.a": b""})
    assert "does not have" in matches(Filter(xattrs=((b"user.a", "present"),)), file, {})
    assert "is not 'x'" in matches(Filter(xattrs=((b"user.a", "=x"),)), file, {b"user.a": b"y"})
    assert matches(Filter(xattrs=((b"user.a", "=x"),)), file, {b"user.a": b"x"}) == ""
