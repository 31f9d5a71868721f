"""A SQLite file that holds runs: its tables, how it is opened, created, migrated or refused, its locks and errors."""

import asyncio
import os
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from spanflow.errors import StoreError

if TYPE_CHECKING:  # takes a while to import, and many who import spanflow keep no run in a file
    import sqlite3

T = TypeVar("T")

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

_TRACES = """
CREATE TABLE traces ( -- that a run has begun besides its first
    trace_id TEXT NOT NULL,
    run INTEGER NOT NULL,
    PRIMARY KEY (trace_id, run)
) WITHOUT ROWID;
CREATE INDEX traces_by_run ON traces (run);
"""

STEPS: tuple[str, ...] = (_SCHEMA, _TRACES)
"""What leads from each version of the file to the next; an empty file is version 0. Add to the end, change nothing."""


_BLOCKED = 0.005  # s that a lock of somebody else may hold up the event loop; after that others run meanwhile
_LOG = 4000  # pages of 4 KiB: at SQLite's 1000, moving them from the log to the file costs more than writing them
_PAUSES = (0.001, 0.05)  # s between two tries, from the first to the longest

# Primary result codes of SQLite, which the module sqlite3 has names for, but is not imported yet.
_LOCKS = (5, 6)
_MEANING = {
    3: ("may not be used", "Check the permissions of the file and its directory"),
    8: ("cannot be written", "Check the permissions of the file and its directory, and that the disk is not read-only"),
    10: ("cannot be read or written", "Check the disk and the limits of this process; the file itself stays sound"),
    11: ("is damaged", "Restore it from a backup, or save what is readable with `.recover` in a SQLite shell"),
    13: ("has no room to grow", "Free space on the disk, or delete old runs; the file itself stays sound"),
    14: ("cannot be opened", "Check that its directory exists and that this process may write there"),
    18: ("cannot hold a value of this size", "Keep large values elsewhere and pass their address"),
    26: ("is not a SQLite database", "It was left as it is. Give SQLiteStore a file of its own"),
}


class SQLiteFile:
    """The connections of this process to a file, one for each thread.

    Attributes:
        path: of the file, absolute.
        error: the class of all errors of SQLite.
        refused: the class of those that say that a constraint does not hold.
    """

    def __init__(self, path: str | os.PathLike[str], lock_timeout: float, *, create: bool = True) -> None:
        import sqlite3

        given = os.fspath(path)
        if given in ("", ":memory:"):
            raise StoreError(f"SQLiteStore({given!r}): a store in memory is MemoryStore().", store=given)
        self.path = os.path.abspath(given)
        self.error = sqlite3.Error
        self.refused = sqlite3.IntegrityError
        self._lock_timeout = lock_timeout
        self._create = create
        self._cursors: dict[tuple[int, int], sqlite3.Cursor] = {}

    def connection(self) -> "sqlite3.Connection":
        """Return this thread's own connection. One that came here by a fork is the parent's: not to be touched."""
        return self.cursor().connection

    def cursor(self) -> "sqlite3.Cursor":
        """Return the cursor of this thread for what has no rows to give. A new one for each statement takes longer."""
        key = (os.getpid(), threading.get_ident())
        cursor = self._cursors.get(key)
        if cursor is None:
            cursor = self._cursors[key] = self._open().cursor()
        return cursor

    async def do(self, work: "Callable[[sqlite3.Connection], T]") -> T:
        """Work on the file, as soon as no other process has it locked. The event loop goes on meanwhile.

        Raises:
            StoreError: the file cannot be used, or stayed locked.
            sqlite3.IntegrityError: a constraint does not hold.
        """
        pause, longest = _PAUSES
        until = time.monotonic() + self._lock_timeout
        while True:
            try:
                return work(self.connection())
            except self.refused:
                raise
            except self.error as error:
                if not self.is_locked(error):
                    raise self.explained(error) from error
                if time.monotonic() >= until:
                    raise StoreError(
                        f"{self.path} has been locked by another process for {self._lock_timeout:g} s."
                        " End what holds it, e.g. a transaction left open in a SQLite shell, or raise lock_timeout.",
                        store=self.path,
                    ) from error
            await asyncio.sleep(pause)
            pause = min(2 * pause, longest)

    def is_locked(self, error: Exception) -> bool:
        """Tell whether an error only says that somebody else is writing."""
        return _code(error) in _LOCKS

    def explained(self, error: Exception) -> StoreError:
        """Return an error of SQLite in words that say what to do."""
        what, advice = _MEANING.get(_code(error), ("failed", "See the SQLite error it comes from"))
        return StoreError(f"{self.path} {what}: {error}. {advice}.", store=self.path)

    def close(self) -> None:
        own = os.getpid()
        for key in [key for key in self._cursors if key[0] == own]:
            self._cursors.pop(key).connection.close()

    def _open(self) -> "sqlite3.Connection":
        import sqlite3

        if not self._create and not os.path.exists(self.path):
            raise StoreError(
                f"There is no store at {self.path}: no such file. Check the path; a program that keeps its runs there"
                " makes the file when it is first used.",
                store=self.path,
            )
        connection = sqlite3.connect(self.path, timeout=_BLOCKED, isolation_level=None, check_same_thread=False)
        try:
            prepare(connection, self.path, create=self._create)
        except BaseException:
            connection.close()
            raise
        return connection


def _code(error: Exception) -> int:
    extended: int = getattr(error, "sqlite_errorcode", 0)
    return extended & 0xFF


def prepare(connection: "sqlite3.Connection", path: str, steps: Sequence[str] = STEPS, *, create: bool = True) -> None:
    """Make a file that was just opened ready for use. Doing it again, or in two processes at once, does no harm.

    Raises:
        StoreError: it is not ours, newer than this program, or empty although not to be created; it was left as it is.
    """
    found = _version(connection, path, len(steps))
    if found == 0 and not create:
        raise StoreError(f"{path} is empty: no store was made there yet. It was left as it is.", store=path)
    if found < len(steps):
        with transaction(connection):
            version = _version(connection, path, len(steps))  # another process may have been faster
            for step in steps[version:]:
                for statement in step.split(";\n"):
                    connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {len(steps)}")
    # After the file is marked as ours: from here on changes go to the log first, the mark included.
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode == "wal":  # which stays sound whatever happens; without it only FULL does
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(f"PRAGMA wal_autocheckpoint = {_LOG}")


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


def _version(connection: "sqlite3.Connection", path: str, known: int) -> int:
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
    if version > known:
        raise StoreError(
            f"{path} was written by a newer spanflow (file version {version}; this one knows up to {known})."
            " It was left as it is. Upgrade spanflow here, or use another file.",
            store=path,
        )
    return int(version)
