"""Where the MDTs of the tests of the lifecycle tier, links and warmup are: all of them run on SQLite and on PostgreSQL.

On PostgreSQL most are for `make test-slow`; those marked `both_engines` always run there, too.
"""

from collections.abc import Generator

import pytest

from tests.postgres import empty_database, new_database


def _engines(short: bool) -> list[object]:
    return ["sqlite", pytest.param("postgresql", marks=[] if short else pytest.mark.slow)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Choose the engines of tests that have an `mdt_url`."""
    if "mdt_url" in metafunc.fixturenames:
        short = metafunc.definition.get_closest_marker("both_engines") is not None
        metafunc.parametrize("mdt_url", _engines(short), indirect=True)


@pytest.fixture
def mdt_url(request: pytest.FixtureRequest) -> Generator[str | None]:
    """The database of a cluster in this process; None: the cluster's own SQLite file."""
    if request.param == "sqlite":
        yield None
        return
    with new_database(request.getfixturevalue("postgres_url")) as url:
        yield url


@pytest.fixture(scope="module", params=_engines(short=False))
def engine(request: pytest.FixtureRequest) -> Generator[str]:
    """What `nacre dev up --engine` is told for the module's cluster of processes."""
    if request.param == "sqlite":
        yield "sqlite"
        return
    with empty_database(request.getfixturevalue("postgres_url")) as url:
        yield url
