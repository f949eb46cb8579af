"""What people write to mount, and what is made of it."""

from pathlib import Path

import pytest

from nacrefs.client.mount.spec import KEYRING_VARIABLE, find_keyring, make_spec, parse_source
from nacrefs.common.config import ConfigError, Duration


@pytest.fixture
def keyring(tmp_path: Path) -> str:
    path = tmp_path / "key.toml"
    path.touch(0o600)
    return str(path)


@pytest.mark.parametrize(
    ("text", "addresses", "subtree"),
    [
        ("tcp://host:9600", "tcp://host:9600", "/"),
        ("tcp://host:9600/", "tcp://host:9600", "/"),
        ("tcp://host:9600/a/b", "tcp://host:9600", "/a/b"),
        ("tcp://host:9600/a/b/", "tcp://host:9600", "/a/b"),
        ("tcp://a:1,tcp://b:2", "tcp://a:1,tcp://b:2", "/"),
        ("tcp://a:1,tcp://b:2/data", "tcp://a:1,tcp://b:2", "/data"),
        ("tcp://[::1]:9600/x", "tcp://[::1]:9600", "/x"),
    ],
)
def test_sources(text: str, addresses: str, subtree: str) -> None:
    assert parse_source(text) == (addresses, subtree)


@pytest.mark.parametrize(
    "text",
    ["", "host:9600", "tcp://", "tcp://host", "tcp://host:0", "tcp://host:99999", "tcp://:1", "tcp://a:1/x,tcp://b:2"],
)
def test_what_is_no_source_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"HOST:PORT|after the last"):
        parse_source(text)


def test_options_reach_the_client_and_the_kernel(keyring: str, tmp_path: Path) -> None:
    spec = make_spec(
        "tcp://h:1/sub",
        str(tmp_path),
        ["ro,nosuid,memory=64MiB,_netdev", "inodes=1000,ahead=0,host=me,retry=5s,loglevel=debug,log=/x/y"],
        keyring,
    )
    assert spec.kernel_options == ("ro", "nosuid")
    assert spec.config.cache.memory_bytes == 64 << 20
    assert spec.config.cache.inodes == 1000
    assert spec.config.read.ahead_bytes == 0
    assert spec.config.host == "me"
    assert spec.config.keyring == keyring
    assert spec.retry_s == 5
    assert (spec.log_level, spec.log_file) == ("debug", "/x/y")
    assert spec.source == "tcp://h:1/sub"
    assert spec.directory == str(tmp_path)


def test_sync_reaches_both(keyring: str) -> None:
    spec = make_spec("tcp://h:1", "/mnt", ["sync"], keyring)
    assert spec.config.write.sync
    assert "sync" in spec.kernel_options


def test_subtree_option_outweighs_the_source(keyring: str) -> None:
    assert make_spec("tcp://h:1/a", "/mnt", ["subtree=b/c"], keyring).config.subtree == "/b/c"


@pytest.mark.parametrize(
    ("options", "about"),
    [
        ("colour=red", "unknown mount option 'colour' .known: keyring, memory"),
        ("memory", "memory=VALUE"),
        ("hard=1", "takes no value"),
        ("hard,soft", "exclude"),
        ("soft=1", "takes no value"),
        ("timeo=5s", "timeo is for soft mounts"),
        ("soft,timeo=0", "at least a second"),
        ("soft,timeo=100ms", "at least 1"),
        ("memory=lots", "not a size"),
        ("memory=1K", "below 16 MiB"),
        ("inodes=many", "not a number"),
        ("retry=soon", "not a duration"),
        ("loglevel=loud", "loglevel"),
    ],
)
def test_wrong_options_are_told(keyring: str, options: str, about: str) -> None:
    with pytest.raises(ConfigError, match=about):
        make_spec("tcp://h:1", "/mnt", [options], keyring)


def test_mounts_are_hard_unless_they_are_soft(keyring: str) -> None:
    assert make_spec("tcp://h:1", "/mnt", [], keyring).config.patience_s == Duration(0)
    assert make_spec("tcp://h:1", "/mnt", ["hard"], keyring).config.patience_s == Duration(0)
    assert make_spec("tcp://h:1", "/mnt", ["soft"], keyring).config.patience_s == Duration(60)
    assert make_spec("tcp://h:1", "/mnt", ["soft,timeo=90s"], keyring).config.patience_s == Duration(90)


def test_keyring_is_looked_for_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEYRING_VARIABLE, raising=False)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    own = tmp_path / ".config" / "nacre" / "keyring.toml"
    own.parent.mkdir(parents=True)
    own.touch()
    assert find_keyring(None) == own
    other = tmp_path / "other"
    other.touch()
    monkeypatch.setenv(KEYRING_VARIABLE, str(other))
    assert find_keyring(None) == other
    assert find_keyring(str(own)) == own
    monkeypatch.setenv(KEYRING_VARIABLE, str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match="nothing"):
        find_keyring(None)
