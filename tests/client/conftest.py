"""Fixtures of the client's tests."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.client.world import World, cluster


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A running cluster."""
    async with cluster(tmp_path) as started:
        yield started
