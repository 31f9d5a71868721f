"""The stores that runs are killed on."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import TypedDict

import pytest

from tests.stores.postgres import Postgres, given

AT_ONCE = 4


class Where(TypedDict, total=False):
    """What an order needs to know of a store; nothing for a file in its folder."""

    dsn: str
    schema: str


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def stores(request: pytest.FixtureRequest) -> Iterator[Sequence[Where]]:
    """Stores for runs that are killed at the same time, so that none takes over what another has not yet let die.

    In PostgreSQL the orders of a module share them: each run needs an id of its own.
    """
    if request.param == "sqlite":
        yield [Where()] * AT_ONCE
        return
    dsn = given("SPANFLOW_TEST_POSTGRES", "the address (DSN) of a PostgreSQL for tests")
    with ExitStack() as stack:
        schemas = [stack.enter_context(Postgres(dsn)).schema for _ in range(AT_ONCE)]
        yield [Where(dsn=dsn, schema=schema) for schema in schemas]


@pytest.fixture
def where(stores: Sequence[Where]) -> Where:
    return stores[0]
