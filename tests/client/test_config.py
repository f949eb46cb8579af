"""conf/client.toml."""

import re
from pathlib import Path

import pytest

from nacrefs.client.config import CacheConfig, ClientConfig, ReadConfig, WriteConfig, load_client_config
from nacrefs.common.config import ConfigError, Size
from nacrefs.common.transport.rdma import RdmaConfig

FILE = Path(__file__).parents[2] / "conf/client.toml"


def test_the_file_holds_every_key_with_its_default() -> None:
    assert load_client_config(FILE) == ClientConfig()
    keys = re.findall(r"^(\w+) =", FILE.read_text(), re.MULTILINE)
    structs = (ClientConfig, CacheConfig, ReadConfig, WriteConfig, RdmaConfig)
    fields = [name for struct in structs for name in struct.__struct_fields__]
    assert sorted(keys) == sorted(name for name in fields if name not in ("cache", "read", "write", "rdma"))


def test_a_mistake_names_file_key_and_reason(tmp_path: Path) -> None:
    file = tmp_path / "client.toml"
    file.write_text('[cache]\nmemory_bytes = "lots"\n')
    with pytest.raises(ConfigError, match=r"client\.toml.*cache\.memory_bytes|client\.toml.*not a size"):
        load_client_config(file)


@pytest.mark.parametrize(
    ("config", "key"),
    [
        (ClientConfig(cache=CacheConfig(inodes=1)), "cache.inodes"),
        (ClientConfig(cache=CacheConfig(memory_bytes=Size(1))), "cache.memory_bytes"),
        (ClientConfig(read=ReadConfig(unit_bytes=Size(1))), "read.unit_bytes"),
        (ClientConfig(write=WriteConfig(request_bytes=Size(1))), "write.request_bytes"),
        (ClientConfig(write=WriteConfig(in_flight=0)), "write.in_flight"),
        (ClientConfig(write=WriteConfig(retry_s=0)), "write.retry_s"),
    ],
)
def test_values_that_make_no_sense_are_named(config: ClientConfig, key: str) -> None:
    with pytest.raises(ValueError, match=re.escape(key)):
        config.check()
