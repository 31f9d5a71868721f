"""A SQLite file as a store of runs: its tables, and how it is opened, created, migrated or refused."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from spanflow.errors import StoreError

if TYPE_CHECKING:  # takes a while to import, and many who import spanflow keep no run in a file
    import sqlite3

APPLICATION_ID = 0x7370616E
"""Marks a file as ours ("span"), where ``file`` and others look for such marks."""

_SCHEMA = """
CREATE TABLE runs (
    number INTEGER PRIMARY KEY AUTOINCREMENT, -- never given to a second run, so that a late writer finds none
    run_id TEXT NOT NULL UNIQUE,
    workflow_id TEXT NOT NULL,
    status TEXT NOT NULL,
    trace_id TEXT,
    created_at INTEGER NOT NULL, -- times are ns since the epoch
    ended_at INTEGER,
    wake_at INTEGER,
    owner TEXT,
    lease_until INTEGER NOT NULL,
    metadata TEXT NOT NULL
);
CREATE INDEX runs_by_status ON runs (status);
CREATE INDEX runs_by_workflow ON runs (workflow_id);
CREATE INDEX runs_by_trace ON runs (trace_id) WHERE trace_id IS NOT NULL;
CREATE INDEX runs_by_end ON runs (ended_at) WHERE ended_at IS NOT NULL;
CREATE INDEX runs_by_wake ON runs (wake_at) WHERE wake_at IS NOT NULL;
CREATE INDEX runs_by_owner ON runs (owner) WHERE owner IS NOT NULL;
CREATE TABLE records (
    run INTEGER PRIMARY KEY,
    body TEXT NOT NULL
);
CREATE TABLE batches (
    id INTEGER PRIMARY KEY, -- run << 32 | seq of the first event: one tree, and a second writer's row is refused
    last_seq INTEGER NOT NULL,
    body TEXT NOT NULL
);
CREATE TABLE messages (
    number INTEGER PRIMARY KEY,
    run INTEGER NOT NULL,
    body TEXT NOT NULL
);
CREATE INDEX messages_by_run ON messages (run);
CREATE TABLE labels (
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    run INTEGER NOT NULL,
    PRIMARY KEY (key, value, run)
) WITHOUT ROWID;
"""

_STEPS: tuple[str, ...] = (_SCHEMA,)
"""What leads from each version of the file to the next; an empty file is version 0. Add to the end, change nothing."""

VERSION = len(_STEPS)


def prepare(connection: "sqlite3.Connection", path: str) -> None:
    """Make a file that was just opened ready for use. Doing it again, or in two processes at once, does no harm.

    Raises:
        StoreError: it is not ours, or newer than this program; it was left as it is.
    """
    if _version(connection, path) < VERSION:
        with transaction(connection):
            version = _version(connection, path)  # another process may have been faster
            for step in _STEPS[version:]:
                for statement in step.split(";\n"):
                    connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {VERSION}")
    # After the file is marked as ours: from here on changes go to the log first, the mark included.
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode == "wal":  # which stays sound whatever happens; without it only FULL does
        connection.execute("PRAGMA synchronous = NORMAL")


@contextmanager
def transaction(connection: "sqlite3.Connection") -> Generator[None]:
    """All or nothing of what is written inside."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # SQLite has already ended it after some errors
            connection.execute("ROLLBACK")
        raise


def _version(connection: "sqlite3.Connection", path: str) -> int:
    """Return the version of a file that is ours or empty."""
    (mark,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if mark != APPLICATION_ID:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master ORDER BY name")]
        if mark or version or tables:
            listed = ", ".join(tables[:5]) or "none"
            raise StoreError(
                f"{path} is a SQLite database of another program (application_id {mark}, tables: {listed})."
                " It was left as it is. Give SQLiteStore a file of its own.",
                store=path,
            )
        return 0
    if version > VERSION:
        raise StoreError(
            f"{path} was written by a newer spanflow (file version {version}; this one knows up to {VERSION})."
            " It was left as it is. Upgrade spanflow here, or use another file.",
            store=path,
        )
    return int(version)
