"""The command, and a store with some runs."""

from pathlib import Path

import pytest

from spanflow import SQLiteStore
from tests.cli.command import Spanflow, some_runs


@pytest.fixture
def empty(tmp_path: Path) -> Spanflow:
    """The command where there is no store yet."""
    return Spanflow(tmp_path)


@pytest.fixture
async def spanflow(empty: Spanflow) -> Spanflow:
    """The command, with three runs in its store."""
    await some_runs(SQLiteStore(empty.database))
    return empty
