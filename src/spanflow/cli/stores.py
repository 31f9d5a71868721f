"""Open the store that a command is about. One that is not there is never made."""

import re

import spanflow
from spanflow.cli.options import UsageError
from spanflow.ports import Store
from spanflow.stores.sqlite import SQLiteStore

_DSN = re.compile(r"postgres(ql)?://|(host|hostaddr|dbname|service|port|user)\s*=")


def open_store(address: str | None, schema: str) -> Store:
    """Return the store at a path or PostgreSQL DSN. Whether it is there shows when it is first used.

    Raises:
        SpanflowError: none was named, or it cannot be one.
    """
    if not address:
        raise UsageError(
            "Which store? Give --store runs.db or --store postgresql://user@host/database, or set SPANFLOW_STORE."
        )
    if not _DSN.match(address):
        return SQLiteStore(address, create=False)
    try:
        return spanflow.PostgresStore(address, schema=schema, create=False)
    except ImportError as missing:
        raise UsageError(str(missing)) from None
