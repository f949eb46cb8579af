"""An MDS's configuration: what is refused, and in which words."""

from pathlib import Path

import pytest

from nacrefs.common.config import ConfigError
from nacrefs.mds.config import MdsConfig, load_mds_config


@pytest.mark.parametrize(
    ("text", "about"),
    [
        ("mdt = 40000", "mdt = 40000"),
        ('name = ""', "name is empty"),
        ('listen = ""', "listen is empty"),
        ('listen = "somewhere"', "tcp://HOST:PORT"),
        ('metrics = "9601"', "HOST:PORT"),
        ('metrics = "host:x"', "HOST:PORT"),
        ("[cache]\nmemory_bytes = 1", "cache.memory_bytes"),
        ("[lease]\nterm_s = 0", "lease.term_s"),
        ("[lease]\nper_session = 1", "lease.per_session"),
        ('[lease]\ncapability_s = "1s"', "lease.capability_s"),
        ('[layout]\ninline_bytes = "1MiB"', "layout.inline_bytes"),
        ("[layout]\nstripe_count = 0", "layout.stripe_count"),
        ("[layout]\nstripe_size = 1000", "multiple of 65536"),
        ("[ost]\nheartbeat_s = 1000", "ost.heartbeat_s"),
        ('[log]\nlevel = "loud"', "log.level"),
        ("[lease]\nterm = 3", "lease"),
        ("nonsense", "not valid TOML"),
    ],
)
def test_mistakes_name_the_file_and_the_key(tmp_path: Path, text: str, about: str) -> None:
    path = tmp_path / "mds.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=about) as caught:
        load_mds_config(path)
    assert str(path) in str(caught.value)


def test_addresses_are_taken_apart() -> None:
    config = MdsConfig(listen="tcp://a:1, tcp://b:2", metrics="127.0.0.1:0")
    assert config.addresses == ("tcp://a:1", "tcp://b:2")
    assert config.metrics_at == ("127.0.0.1", 0)
    assert MdsConfig(metrics="").metrics_at is None
