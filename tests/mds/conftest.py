"""Every test of the MDT runs on SQLite and on PostgreSQL."""

from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Final

import pytest

from tests.mds.served import Served
from tests.mds.world import World
from tests.postgres import empty_schema, new_database

_CORE: Final = (None, "lost reply", "killed after commit")
"""Faults that are made on PostgreSQL, too, in each run: that an answer is found again, in memory or the database."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Most of what goes wrong around requests is the same on either engine: on PostgreSQL those faults are for
    `make test-slow`."""
    for item in items:
        if isinstance(item, pytest.Function) and hasattr(item, "callspec"):
            given = item.callspec.params
            if given.get("mdt_url") == "postgresql" and given.get("fault") not in _CORE:
                item.add_marker(pytest.mark.slow)


@pytest.fixture(params=["sqlite", "postgresql"])
def mdt_url(request: pytest.FixtureRequest, tmp_path: Path) -> Generator[str]:
    """The URL of a database that does not exist, for `make_mdt`."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/mdt.db"
        return
    with new_database(request.getfixturevalue("postgres_url")) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Generator[str]:
    """The URL of an empty database (on PostgreSQL: of an empty schema in one), for `format_mdt`."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/mdt.db"
        return
    with empty_schema(request.getfixturevalue("postgres_url")) as url:
        yield url


@pytest.fixture
def world(mdt_url: str) -> Generator[World]:
    """An MDT with an empty root and two sessions, 1 and 2."""
    made = World(mdt_url)
    try:
        assert [made.session(), made.session()] == [1, 2]
        yield made
    finally:
        made.close()


@pytest.fixture
async def served(mdt_url: str) -> AsyncGenerator[Served]:
    """An MDS that is being served; a test that ends well leaves nothing parked, recalled or claimed."""
    async with Served(mdt_url) as made:
        yield made
        await made.nothing_leaks()
