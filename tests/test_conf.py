"""Every file in conf/ is complete, and equal to the defaults of the code."""

import tomllib
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from nacrefs.client.config import ClientConfig
from nacrefs.client.dev.config import DevConfig
from nacrefs.common.config import load_config
from nacrefs.mds.config import MdsConfig
from nacrefs.oss.config import OssConfig

CONF = Path(__file__).parents[1] / "conf"
FILES: dict[str, type[msgspec.Struct]] = {
    "client.toml": ClientConfig,
    "dev.toml": DevConfig,
    "mds.toml": MdsConfig,
    "oss.toml": OssConfig,
}


def keys_of(config: msgspec.Struct, prefix: str = "") -> set[str]:
    found: set[str] = set()
    for name in config.__struct_fields__:
        value = getattr(config, name)
        found |= keys_of(value, f"{prefix}{name}.") if isinstance(value, msgspec.Struct) else {f"{prefix}{name}"}
    return found


def keys_in(table: dict[str, Any], prefix: str = "") -> set[str]:
    found: set[str] = set()
    for name, value in table.items():
        if isinstance(value, dict):
            found |= keys_in(cast("dict[str, Any]", value), f"{prefix}{name}.")
        else:
            found.add(f"{prefix}{name}")
    return found


def test_every_configuration_has_its_file() -> None:
    assert {path.name for path in CONF.glob("*.toml")} == FILES.keys()


@pytest.mark.parametrize("name", FILES)
def test_file_says_the_defaults(name: str) -> None:
    assert load_config(CONF / name, FILES[name]) == FILES[name]()


@pytest.mark.parametrize("name", FILES)
def test_file_has_every_key(name: str) -> None:
    assert keys_in(tomllib.loads((CONF / name).read_text())) == keys_of(FILES[name]())


@pytest.mark.parametrize("name", FILES)
def test_every_key_is_explained(name: str) -> None:
    lines = (CONF / name).read_text().splitlines()
    for before, line in zip(["", *lines], lines, strict=False):
        if line and not line.startswith(("#", "[")):
            assert before.startswith("#"), f"{name}: {line}"
