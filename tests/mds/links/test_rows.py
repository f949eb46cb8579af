"""Which key of a bucket is which name."""

import pytest

from nacrefs.common.wire import ArchiveEntry, LinkSpec
from nacrefs.mds.links.rows import Counts, Item, LinkRow, item_of, link_of


@pytest.mark.parametrize(
    ("key", "parts", "directory"),
    [
        ("a", [b"a"], False),
        ("a/b c/é.txt", [b"a", b"b c", "é.txt".encode()], False),
        ("a/b/", [b"a", b"b"], True),
        ("..a/.b/c..", [b"..a", b".b", b"c.."], False),
        ("x" * 255 + "/" + "y" * 255, [b"x" * 255, b"y" * 255], False),
        ("%41~1\\\n", [b"%41~1\\\n"], False),
    ],
)
def test_keys_are_names_as_they_are(key: str, parts: list[bytes], directory: bool) -> None:
    item = item_of(ArchiveEntry(key, 1))
    assert isinstance(item, Item)
    assert (item.parts, item.directory, item.key) == (parts, directory, key.encode())


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("/a", "empty"),
        ("a//b", "empty"),
        ("a//", "empty"),
        ("/", "empty"),
        ("./a", "'.'"),
        ("a/../b", "'..'"),
        ("a/..", "'..'"),
        ("a/.", "'.'"),
        ("a/./", "'.'"),
        ("é" * 128, "256 bytes"),
        ("d/" + "x" * 256 + "/f", "256 bytes"),
        ("a\0b", "NUL"),
    ],
)
def test_keys_that_can_be_no_names_have_a_reason(key: str, why: str) -> None:
    reason = item_of(ArchiveEntry(key, 1))
    assert isinstance(reason, str)
    assert why in reason


def test_rows_come_back_as_they_were_stored() -> None:
    row = LinkRow(3, 77, LinkSpec(3, 77, every_s=30.0), "paused", 5, Counts(keys=9, seconds=1.5), "why")
    assert link_of(row.columns()) == row
