"""The stores that the contract is held against."""

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from spanflow import MemoryStore, SQLiteStore
from spanflow.ports import Store
from tests.given import given
from tests.stores.postgres import Postgres

Open = Callable[[], Store]
"""Gives another handle on the same runs: what a second process would hold."""

DURABLE = ("sqlite", "postgres")
KINDS = ("memory", *DURABLE)


@pytest.fixture(params=KINDS)
async def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Open]:
    """Opens handles on one store, a new one in each test."""
    async for opened in _opened(request, tmp_path):
        yield opened


@pytest.fixture
def store(open_store: Open) -> Store:
    return open_store()


@pytest.fixture(params=DURABLE)
async def open_durable(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Open]:
    """As ``open_store``, for what only stores outside of this process can show."""
    async for opened in _opened(request, tmp_path):
        yield opened


@pytest.fixture
def durable(open_durable: Open) -> Store:
    return open_durable()


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL for tests, with a schema of its own in each test."""
    with Postgres(given("SPANFLOW_TEST_POSTGRES", "the address (DSN) of a PostgreSQL for tests")) as there:
        yield there


async def _opened(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Open]:
    open_one = _opener(request, tmp_path)
    handles: list[Store] = []

    def opened() -> Store:
        handles.append(open_one())
        return handles[-1]

    yield opened
    for handle in handles:
        await handle.aclose()


def _opener(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    match request.param:
        case "memory":
            memory = MemoryStore()
            return lambda: memory
        case "sqlite":
            return lambda: SQLiteStore(tmp_path / "runs.db")
        case _:
            postgres: Postgres = request.getfixturevalue("postgres")
            return postgres.store
