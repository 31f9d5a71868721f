"""Journals in a SQLite file: the store for everything that is to outlive its process, on one machine."""

import asyncio
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic_core import from_json

from spanflow.errors import RunConflict, RunNotFound, StoreError
from spanflow.events import Entry, RunIds
from spanflow.ports import FoundRun, Message, RunQuery, RunRecord
from spanflow.schema import to_json
from spanflow.stores.codec import (
    decode_batch,
    decode_message,
    decode_record,
    encode_batch,
    encode_message,
    encode_record,
)
from spanflow.stores.header import HeaderChange, earliest, header_change, labels, metadata_of
from spanflow.stores.sqlite_file import prepare, transaction

if TYPE_CHECKING:  # takes a while to import, and many who import spanflow keep no run in a file
    import sqlite3

T = TypeVar("T")

_BLOCKED = 0.005  # s that a lock of somebody else may hold up the event loop; after that others run meanwhile
_PAUSES = (0.001, 0.05)  # s between two tries, from the first to the longest
_MANY = 10_000  # runs whose numbers are remembered
_SEQ = (1 << 32) - 1
_AT_ONCE = 50  # runs that are deleted in one transaction

# The body is NULL, which the table refuses, where the journal does not end at the seq that is expected.
_APPEND = """
    INSERT INTO batches VALUES (?1, ?2, CASE
        WHEN (SELECT last_seq FROM batches WHERE id >= ?4 AND id < ?1 ORDER BY id DESC LIMIT 1) = ?5 THEN ?3
    END)
"""
_READ = """
    SELECT id, body FROM batches
    WHERE id <= ?2 AND id >= coalesce((SELECT max(id) FROM batches WHERE id >= ?1 AND id <= ?3), ?1)
    ORDER BY id
"""
_FOUND = """
    SELECT run_id, workflow_id, status, trace_id, metadata, created_at, ended_at, wake_at, owner, number FROM runs
"""


class SQLiteStore:
    """Keeps runs in a SQLite file, which any number of processes of one machine may use at once.

    What was stored survives the death of the process. When the machine loses its power, the last moments may be lost,
    but the file stays sound. The file is created, or brought up to date, when it is first used. Not for network file
    systems, and not for ``":memory:"``: that is ``MemoryStore``.

    Args:
        path: the file. SQLite keeps a ``-wal`` and a ``-shm`` beside it while it is in use.
        lock_timeout: seconds for which a lock that another process holds is waited for.

    Example:
        >>> import asyncio, tempfile
        >>> from pydantic import BaseModel
        >>> from spanflow import Runtime, SQLiteStore, Workflow, step
        >>> class Greeting(BaseModel):
        ...     text: str
        >>> @step
        ... async def greet(name: str) -> Greeting:
        ...     return Greeting(text=f"Hello {name}")
        >>> greeting = Workflow("greeting", input=str).then(greet)
        >>> async def main(file: str) -> None:
        ...     async with Runtime(store=SQLiteStore(file), workflows=[greeting]) as runtime:
        ...         run = await runtime.create_run(greeting)
        ...         await run.start("Ada")
        ...     async with Runtime(store=SQLiteStore(file), workflows=[greeting]) as runtime:
        ...         again = await runtime.get_run(run.run_id)
        ...         print((await again.wait()).unwrap())
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     asyncio.run(main(f"{directory}/runs.db"))
        text='Hello Ada'
    """

    is_live = False

    def __init__(self, path: str | os.PathLike[str], *, lock_timeout: float = 30.0) -> None:
        import sqlite3

        given = os.fspath(path)
        if given in ("", ":memory:"):
            raise StoreError(f"SQLiteStore({given!r}): a store in memory is MemoryStore().", store=given)
        self.path = os.path.abspath(given)
        self._lock_timeout = lock_timeout
        self._connections: dict[tuple[int, int], sqlite3.Connection] = {}
        self._numbers: dict[str, int] = {}
        self._sqlite_error = sqlite3.Error
        self._refused = sqlite3.IntegrityError

    # --- writing

    async def create(
        self, record: RunRecord, entries: Sequence[Entry], *, owner: str | None = None, lease_until: int = 0
    ) -> None:
        body, batch = encode_record(record), encode_batch(entries)
        change = header_change(entries) or HeaderChange("running", record.created_at, None, None, False)
        metadata = metadata_of(record)
        if change.releases:
            owner, lease_until = None, 0
        header = (
            record.run_id,
            record.workflow_id,
            change.status or "running",
            record.trace.trace_id,
            record.created_at,
            change.ended_at,
            change.wake_at,
            owner,
            lease_until,
            to_json(metadata),
        )

        def work(connection: "sqlite3.Connection") -> None:
            with transaction(connection):
                number = connection.execute(
                    "INSERT INTO runs (run_id, workflow_id, status, trace_id, created_at, ended_at, wake_at, owner,"
                    " lease_until, metadata) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    header,
                ).lastrowid
                assert number is not None
                connection.execute("INSERT INTO records VALUES (?, ?)", (number, body))
                connection.execute("INSERT INTO batches VALUES (?, ?, ?)", (number << 32 | 1, len(entries), batch))
                rows = [(key, value, number) for key, value in labels(metadata).items()]
                connection.executemany("INSERT INTO labels VALUES (?, ?, ?)", rows)
            self._remember(record.run_id, number)

        try:
            await self._do(work)
        except self._refused:
            raise RunConflict(
                f"Run {record.run_id!r} already exists. Leave run_id out for a new one, or continue it with get_run().",
                run_id=record.run_id,
            ) from None

    async def append(self, run_id: str, entries: Sequence[Entry], *, expected_seq: int) -> None:
        if not entries:
            return
        body, change = encode_batch(entries), header_change(entries)
        number = self._numbers.get(run_id)
        if change is None and number is not None:
            base = number << 32
            try:
                self._connection().execute(
                    _APPEND, (base + expected_seq + 1, expected_seq + len(entries), body, base, expected_seq)
                )
                return
            except self._sqlite_error as error:
                if not isinstance(error, self._refused) and not _is_lock(error):
                    raise self._explained(error) from error
        await self._do(lambda connection: self._append(connection, run_id, body, expected_seq, len(entries), change))

    def _append(
        self,
        connection: "sqlite3.Connection",
        run_id: str,
        body: str,
        expected_seq: int,
        count: int,
        change: HeaderChange | None,
    ) -> None:
        with transaction(connection):
            number, wake_at = self._header(connection, run_id, "number, wake_at")
            base = number << 32
            try:
                row = (base + expected_seq + 1, expected_seq + count, body, base, expected_seq)
                connection.execute(_APPEND, row)
            except self._refused:
                (last,) = connection.execute(
                    "SELECT max(last_seq) FROM batches WHERE id >= ? AND id <= ?", (base, base | _SEQ)
                ).fetchone()
                raise RunConflict(
                    f"Run {run_id!r} stands at event {last}, not {expected_seq}: somebody else drives it.",
                    run_id=run_id,
                ) from None
            if change is not None:
                connection.execute(*_header_update(number, wake_at, change))
        if change is not None and change.releases:
            self._numbers.pop(run_id, None)
        else:
            self._remember(run_id, number)

    async def post(self, run_id: str, message: Message) -> None:
        body = encode_message(message)

        def work(connection: "sqlite3.Connection") -> None:
            done = connection.execute(
                "INSERT INTO messages (run, body) SELECT number, ? FROM runs WHERE run_id = ?", (body, run_id)
            )
            if not done.rowcount:
                raise RunNotFound(run_id)

        await self._do(work)

    async def delete(self, run_id: str) -> None:
        def work(connection: "sqlite3.Connection") -> None:
            with transaction(connection):
                number, metadata = self._header(connection, run_id, "number, metadata")
                _forget(connection, number, metadata)
            self._numbers.pop(run_id, None)

        await self._do(work)

    async def delete_ended(self, before: int) -> int:
        def work(connection: "sqlite3.Connection") -> int:
            with transaction(connection):
                old = connection.execute(
                    "SELECT number, metadata FROM runs WHERE ended_at < ? LIMIT ?", (before, _AT_ONCE)
                ).fetchall()
                for number, metadata in old:
                    _forget(connection, number, metadata)
            return len(old)

        total = 0
        while deleted := await self._do(work):
            total += deleted
            await asyncio.sleep(0)
        return total

    # --- owning

    async def claim(self, run_id: str, owner: str, *, now: int, lease_until: int) -> bool:
        def work(connection: "sqlite3.Connection") -> bool:
            done = connection.execute(
                "UPDATE runs SET owner = ?1, lease_until = ?2"
                " WHERE run_id = ?3 AND (owner IS NULL OR owner = ?1 OR lease_until < ?4)",
                (owner, lease_until, run_id, now),
            )
            if not done.rowcount:
                self._header(connection, run_id, "number")
            return bool(done.rowcount)

        return await self._do(work)

    async def renew(self, owner: str, *, lease_until: int) -> frozenset[str]:
        def work(connection: "sqlite3.Connection") -> frozenset[str]:
            with transaction(connection):
                connection.execute("UPDATE runs SET lease_until = ? WHERE owner = ?", (lease_until, owner))
                return frozenset(
                    run_id for (run_id,) in connection.execute("SELECT run_id FROM runs WHERE owner = ?", (owner,))
                )

        return await self._do(work)

    async def release(self, run_id: str, owner: str) -> None:
        def work(connection: "sqlite3.Connection") -> None:
            connection.execute(
                "UPDATE runs SET owner = NULL, lease_until = 0 WHERE run_id = ? AND owner = ?", (run_id, owner)
            )

        await self._do(work)

    async def orphans(self, now: int, limit: int = 100) -> Sequence[str]:
        def work(connection: "sqlite3.Connection") -> Sequence[str]:
            found = connection.execute(
                "SELECT run_id FROM runs WHERE status = 'running' AND lease_until < ? ORDER BY number LIMIT ?",
                (now, limit),
            )
            return [run_id for (run_id,) in found]

        return await self._do(work)

    # --- reading

    async def load(self, run_id: str) -> RunRecord:
        def work(connection: "sqlite3.Connection") -> str:
            found = connection.execute(
                "SELECT body FROM records WHERE run = (SELECT number FROM runs WHERE run_id = ?)", (run_id,)
            ).fetchone()
            if found is None:
                raise RunNotFound(run_id)
            body: str = found[0]
            return body

        return decode_record(await self._do(work))

    async def read(self, run_id: str, *, after: int = 0, limit: int = 1000) -> Sequence[Entry]:
        def work(connection: "sqlite3.Connection") -> Sequence[Entry]:
            number, trace_id = self._header(connection, run_id, "number, trace_id")
            ids, base = RunIds(run_id, trace_id), number << 32
            found: list[Entry] = []
            for id, body in connection.execute(_READ, (base, base | _SEQ, base + after + 1)):
                found += (entry for entry in decode_batch(body, ids, id & _SEQ) if entry.seq > after)
                if len(found) >= limit:
                    break
            return found[:limit]

        return await self._do(work)

    async def find(self, query: RunQuery) -> Sequence[FoundRun]:
        statement, values = _select(query)

        def work(connection: "sqlite3.Connection") -> Sequence[FoundRun]:
            return [
                FoundRun(run_id, workflow_id, status, trace_id, from_json(metadata), *rest)
                for run_id, workflow_id, status, trace_id, metadata, *rest in connection.execute(statement, values)
            ]

        return await self._do(work)

    async def messages(self, run_id: str) -> Sequence[Message]:
        def work(connection: "sqlite3.Connection") -> Sequence[Message]:
            (number,) = self._header(connection, run_id, "number")
            found = connection.execute("SELECT body FROM messages WHERE run = ? ORDER BY number", (number,))
            return [decode_message(body) for (body,) in found]

        return await self._do(work)

    async def aclose(self) -> None:
        """Close the file. The store may be used again: it then opens the file anew."""
        own = [key for key in self._connections if key[0] == os.getpid()]
        for key in own:
            self._connections.pop(key).close()

    # --- the file

    async def _do(self, work: Callable[["sqlite3.Connection"], T]) -> T:
        """Work on the file, as soon as no other process has it locked. The event loop goes on meanwhile."""
        pause, longest = _PAUSES
        until = time.monotonic() + self._lock_timeout
        while True:
            try:
                return work(self._connection())
            except self._refused:
                raise
            except self._sqlite_error as error:
                if not _is_lock(error):
                    raise self._explained(error) from error
                if time.monotonic() >= until:
                    raise StoreError(
                        f"{self.path} has been locked by another process for {self._lock_timeout:g} s."
                        " End what holds it, e.g. a transaction left open in a SQLite shell, or raise lock_timeout.",
                        store=self.path,
                    ) from error
            await asyncio.sleep(pause)
            pause = min(2 * pause, longest)

    def _connection(self) -> "sqlite3.Connection":
        """Return this thread's own connection. One that came here by a fork is the parent's: not to be touched."""
        key = (os.getpid(), threading.get_ident())
        connection = self._connections.get(key)
        if connection is None:
            connection = self._connections[key] = self._open()
        return connection

    def _open(self) -> "sqlite3.Connection":
        import sqlite3

        connection = sqlite3.connect(self.path, timeout=_BLOCKED, isolation_level=None, check_same_thread=False)
        try:
            prepare(connection, self.path)
        except BaseException:
            connection.close()
            raise
        return connection

    def _header(self, connection: "sqlite3.Connection", run_id: str, columns: str) -> tuple[Any, ...]:
        found: tuple[Any, ...] | None = connection.execute(
            f"SELECT {columns} FROM runs WHERE run_id = ?", (run_id,)
        ).fetchone()
        if found is None:
            self._numbers.pop(run_id, None)
            raise RunNotFound(run_id)
        return found

    def _remember(self, run_id: str, number: int) -> None:
        if len(self._numbers) >= _MANY:
            self._numbers.clear()
        self._numbers[run_id] = number

    def _explained(self, error: Exception) -> StoreError:
        code: int = getattr(error, "sqlite_errorcode", 0)
        what, advice = _MEANING.get(code & 0xFF, ("failed", "See the SQLite error it comes from"))
        return StoreError(f"{self.path} {what}: {error}. {advice}.", store=self.path)


# Primary result codes of SQLite. The module sqlite3 has them as names, but is not imported yet.
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


def _is_lock(error: Exception) -> bool:
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF in _LOCKS


def _header_update(number: int, wake_at: int | None, change: HeaderChange) -> tuple[str, list[Any]]:
    columns: dict[str, Any] = {"wake_at": earliest(wake_at, change)}
    if change.status is not None:
        columns |= {"status": change.status, "ended_at": change.ended_at}
    if change.releases:
        columns |= {"owner": None, "lease_until": 0}
    assignments = ", ".join(f"{column} = ?" for column in columns)
    return f"UPDATE runs SET {assignments} WHERE number = ?", [*columns.values(), number]


def _select(query: RunQuery) -> tuple[str, list[Any]]:
    """Return the statement for a query, and its values."""
    conditions: list[str] = []
    values: list[Any] = []
    compared = {
        "workflow_id = ?": query.workflow,
        "trace_id = ?": query.trace_id,
        "created_at > ?": query.started_after,
        "created_at < ?": query.started_before,
        "wake_at < ?": query.wakes_before,
        "number < ?": query.after,
    }
    for condition, value in compared.items():
        if value is not None:
            conditions.append(condition)
            values.append(value)
    if query.statuses is not None:
        conditions.append(f"status IN ({', '.join('?' * len(query.statuses))})")
        values += query.statuses
    for label in labels(query.metadata).items():
        conditions.append("number IN (SELECT run FROM labels WHERE key = ? AND value = ?)")
        values += label
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    return f"{_FOUND}{where} ORDER BY number DESC LIMIT ?", [*values, query.limit]


def _forget(connection: "sqlite3.Connection", number: int, metadata: str) -> None:
    base = number << 32
    rows = [(key, value, number) for key, value in labels(from_json(metadata)).items()]
    connection.executemany("DELETE FROM labels WHERE key = ? AND value = ? AND run = ?", rows)
    connection.execute("DELETE FROM messages WHERE run = ?", (number,))
    connection.execute("DELETE FROM batches WHERE id >= ? AND id <= ?", (base, base | _SEQ))
    connection.execute("DELETE FROM records WHERE run = ?", (number,))
    connection.execute("DELETE FROM runs WHERE number = ?", (number,))
