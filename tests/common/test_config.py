from pathlib import Path
from typing import Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacrefs.common.config import (
    ConfigError,
    Duration,
    Size,
    format_size,
    load_config,
    parse_config,
    parse_duration,
    parse_size,
)


class Disk(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    path: Path
    reserve: Size = Size(0)


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    listen: str
    cache: Size = Size(1 << 28)
    term: Duration = Duration(30)
    engine: Literal["sqlite", "postgresql"] = "sqlite"
    threads: int = 4
    disk: Disk | None = None
    disks: tuple[Disk, ...] = ()


def test_values_with_and_without_units() -> None:
    text = """
        listen = "tcp://0.0.0.0:1"
        cache = "1.5GiB"
        term = "500ms"
        engine = "postgresql"
        [disk]
        path = "/srv/ost0"
        reserve = 4096
    """
    settings = parse_config(text, Settings, "mds.toml")
    assert settings == Settings(
        "tcp://0.0.0.0:1", Size(3 << 29), Duration(0.5), "postgresql", 4, Disk(Path("/srv/ost0"), Size(4096))
    )
    assert parse_config('listen = "x"\nterm = 7', Settings, "").term == 7.0


@pytest.mark.parametrize(
    ("line", "key", "reason"),
    [
        ('cach = "1GiB"', "cach", "unknown field"),
        ('cache = "much"', "cache", "'much' is not a size (examples: 4096, 64KiB"),
        ('cache = "-1"', "cache", "'-1' is not a size"),
        ("cache = -1", "cache", "-1 is not a size"),
        ("cache = 1.5", "cache", "1.5 is not a size"),
        ("cache = true", "cache", "True is not a size"),
        ("cache = []", "cache", "[] is not a size"),
        (f'cache = "{"9" * 400}"', "cache", "is not a size"),
        ('term = "30 weeks"', "term", "'30 weeks' is not a duration (examples: 30s"),
        ("term = inf", "term", "inf is not a duration"),
        ("term = nan", "term", "nan is not a duration"),
        ("term = -1", "term", "-1 is not a duration"),
        ("term = false", "term", "False is not a duration"),
        ('engine = "oracle"', "engine", "Invalid enum value 'oracle'"),
        ('threads = "4"', "threads", "Expected `int`, got `str`"),
        ("[disk]\nreserve = 1", "disk", "missing required field `path`"),
        ("[disk]\npath = 7", "disk.path", "7 is not a path"),
        ('[disk]\npath = ""', "disk.path", "'' is not a path"),
        ('[[disks]]\npath = "/a"\n[[disks]]\npath = "/b"\nreserve = "x"', "disks[1].reserve", "'x' is not a size"),
        ("threads = ", "", "not valid TOML"),
        ("threads = 1\nthreads = 2", "line 3", "not valid TOML"),
    ],
)
def test_each_mistake_names_file_key_and_reason(tmp_path: Path, line: str, key: str, reason: str) -> None:
    file = tmp_path / "mds.toml"
    file.write_text(f'listen = "x"\n{line}\n')
    with pytest.raises(ConfigError) as caught:
        load_config(file, Settings)
    text = str(caught.value)
    assert text.startswith(f"{file}: ")
    assert key in text
    assert reason in text
    assert "\n" not in text


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^mds\.toml: .*missing required field `listen`"):
        parse_config("", Settings, "mds.toml")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml: No such file"):
        load_config(tmp_path / "absent.toml", Settings)
    with pytest.raises(ConfigError, match=f"{tmp_path}: Is a directory"):
        load_config(tmp_path, Settings)
    (tmp_path / "latin").write_bytes(b'listen = "\xe9"')
    with pytest.raises(ConfigError, match="latin: 'utf-8' codec"):
        load_config(tmp_path / "latin", Settings)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0), ("4096", 4096), ("1b", 1), ("1K", 1024), ("64KiB", 65536), ("64 kib", 65536), ("10GB", 10**10),
        ("1.5M", 3 << 19), (" 2T ", 2 << 40), ("1PiB", 1 << 50), ("0.1KB", 100), ("9" * 18, 10**18 - 1),
    ],
)  # fmt: skip
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "K", "1X", "1 2", "-1", "1e3", "0x10", "1,5M", "1.M", "٣", "1KiBB", "inf"])
def test_texts_that_are_no_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("30", 30), ("500ms", 0.5), ("5m", 300), ("6h", 21600), ("30d", 2592000)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "1w", "1M", "-1s", "1h30m", "1e3", "inf"])
def test_texts_that_are_no_durations(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)


@given(st.integers(0, 1023), st.integers(0, 5))
def test_sizes_as_people_read_them_are_read_again(number: int, power: int) -> None:
    size = number << 10 * power
    assert parse_size(format_size(size)) == size


def test_sizes_as_people_read_them() -> None:
    sizes = [0, 512, 1024, 1536, 3 << 19, 1 << 30, 5 << 40, 9 << 50, 5000 << 50]
    assert [format_size(size) for size in sizes] == [
        "0 B", "512 B", "1 KiB", "1.5 KiB", "1.5 MiB", "1 GiB", "5 TiB", "9.0 PiB", "5000.0 PiB",
    ]  # fmt: skip


@given(st.integers(0, 10**15), st.sampled_from(["ms", "s", "m", "h", "d"]))
def test_durations_scale(number: int, unit: str) -> None:
    factor = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}[unit]
    assert parse_duration(f"{number}{unit}") == number * factor
