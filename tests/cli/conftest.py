"""The command, and a store with some runs."""

from pathlib import Path

import pytest

from spanflow import SQLiteStore
from tests.cli.command import Spanflow, some_runs

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give tests that call the command several times, each in a process of its own, the time for that."""
    for item in items:
        if item.path.parent == HERE and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(240))


@pytest.fixture
def empty(tmp_path: Path) -> Spanflow:
    """The command where there is no store yet."""
    return Spanflow(tmp_path)


@pytest.fixture
async def spanflow(empty: Spanflow) -> Spanflow:
    """The command, with three runs in its store."""
    await some_runs(SQLiteStore(empty.database))
    return empty
