"""ETags as checksums: what fits, what is fetched again, and servers whose ETags are none."""

import hashlib

from nacrefs.oss.store.etags import EtagSums


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def test_what_fits_is_taken_and_what_does_not_is_fetched_again() -> None:
    sums, etag = EtagSums(), md5(b"bytes")
    assert sums.fits("k", memoryview(b"bytes"), etag)
    assert not sums.fits("k", memoryview(b"bytez"), etag)
    assert not sums.fits("k", memoryview(b"tybes"), etag)
    assert not sums.fits("k", memoryview(b"bytez"), etag)
    assert sums.fits("k", memoryview(b"bytes"), etag)
    assert not sums.fits("k", memoryview(b"bytez"), etag)


def test_the_same_bytes_three_times_are_the_object() -> None:
    sums = EtagSums()
    answers = [sums.fits("k", memoryview(b"bytes"), "0" * 32) for _ in range(4)]
    assert answers == [False, False, True, False]


def test_where_etags_are_no_sums_they_are_not_looked_at_any_more() -> None:
    sums = EtagSums()
    for number in range(8):
        assert sums.says_something("0" * 32)
        while not sums.fits(str(number), memoryview(b"bytes"), "0" * 32):
            pass
    assert not sums.says_something("0" * 32)
    for _ in range(8):
        sums.fits("k", memoryview(b"bytes"), md5(b"bytes"))
    assert sums.says_something("0" * 32)


def test_etags_of_objects_sent_in_parts_say_nothing() -> None:
    assert not EtagSums().says_something("0" * 32 + "-2")
    assert not EtagSums().says_something("")
