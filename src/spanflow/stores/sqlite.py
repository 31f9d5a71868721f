"""Journals in a SQLite file: the store for everything that is to outlive its process, on one machine."""

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json

from spanflow.entries import Entry, RunIds
from spanflow.errors import RunConflict, RunNotFound
from spanflow.ports import FoundRun, Message, RunQuery, RunRecord
from spanflow.schema import to_json
from spanflow.stores.codec import (
    decode_batch,
    decode_message,
    decode_record,
    encode_batch,
    encode_batches,
    encode_message,
    encode_record,
)
from spanflow.stores.header import HeaderChange, earliest, header_change, labels, metadata_of, within_int64
from spanflow.stores.sqlite_file import SQLiteFile, transaction

if TYPE_CHECKING:  # takes a while to import, and many who import spanflow keep no run in a file
    import sqlite3

_MANY = 10_000  # runs of which it is remembered where their rows are
_SEQ = (1 << 32) - 1  # the bits of a row's id that hold the seq
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
_POSTED = """
    SELECT run_id, count(*) FROM runs JOIN messages ON run = runs.number WHERE owner = ? GROUP BY runs.number
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
        create: whether a file that is missing is made; else it is a StoreError at first use.

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

    def __init__(self, path: str | os.PathLike[str], *, lock_timeout: float = 30.0, create: bool = True) -> None:
        self._file = SQLiteFile(path, lock_timeout, create=create)
        self._bases: dict[str, int] = {}

    # --- writing

    async def create(
        self, record: RunRecord, entries: Sequence[Entry], *, owner: str | None = None, lease_until: int = 0
    ) -> None:
        body, batches = encode_record(record), encode_batches(entries)
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
                written = [(number << 32 | first, last, batch) for first, last, batch in batches]
                connection.executemany("INSERT INTO batches VALUES (?, ?, ?)", written)
                rows = [(key, value, number) for key, value in labels(metadata).items()]
                connection.executemany("INSERT INTO labels VALUES (?, ?, ?)", rows)
            self._remember(record.run_id, number << 32)

        try:
            await self._file.do(work)
        except self._file.refused:
            raise RunConflict(
                f"Run {record.run_id!r} already exists. Leave run_id out for a new one, or continue it with get_run().",
                run_id=record.run_id,
            ) from None

    async def append(self, run_id: str, entries: Sequence[Entry], *, expected_seq: int) -> None:
        if entries:
            batch = _Batch(run_id, expected_seq, len(entries), encode_batch(entries), header_change(entries))
            await self._file.do(partial(self._append, batch))

    def append_now(self, run_id: str, entries: Sequence[Entry], expected_seq: int) -> bool:
        """Do what ``append`` does, or return False where another process has the file locked."""
        file, body, change = self._file, encode_batch(entries), header_change(entries)
        try:
            cursor, base = file.cursor(), self._bases.get(run_id)
            if change is None and base is not None:
                row = (base + expected_seq + 1, expected_seq + len(entries), body, base, expected_seq)
                try:
                    cursor.execute(_APPEND, row)
                    return True
                except file.refused:
                    pass  # a conflict, or the run is gone and another has its id: the long way tells
            self._append(_Batch(run_id, expected_seq, len(entries), body, change), cursor.connection)
        except file.error as error:
            if file.is_locked(error):
                return False
            raise file.explained(error) from error
        return True

    def _append(self, batch: "_Batch", connection: "sqlite3.Connection") -> None:
        run_id, expected, change = batch.run_id, batch.expected_seq, batch.change
        with transaction(connection):
            number, wake_at = self._header(connection, run_id, "number, wake_at")
            base = number << 32
            try:
                connection.execute(_APPEND, (base + expected + 1, expected + batch.count, batch.body, base, expected))
            except self._file.refused:
                (last,) = connection.execute(
                    "SELECT max(last_seq) FROM batches WHERE id >= ? AND id <= ?", (base, base | _SEQ)
                ).fetchone()
                raise RunConflict(
                    f"Run {run_id!r} stands at event {last}, not {expected}: somebody else drives it.", run_id=run_id
                ) from None
            if change is not None:
                connection.execute(*_header_update(number, wake_at, change))
                if change.trace_id is not None:
                    connection.execute("INSERT INTO traces VALUES (?, ?)", (change.trace_id, number))
        if change is not None and change.releases:
            self._bases.pop(run_id, None)
        else:
            self._remember(run_id, base)

    async def post(self, run_id: str, message: Message) -> None:
        body = encode_message(message)

        def work(connection: "sqlite3.Connection") -> None:
            done = connection.execute(
                "INSERT INTO messages (run, body) SELECT number, ? FROM runs WHERE run_id = ?", (body, run_id)
            )
            if not done.rowcount:
                raise RunNotFound(run_id)

        await self._file.do(work)

    async def delete(self, run_id: str) -> None:
        def work(connection: "sqlite3.Connection") -> None:
            with transaction(connection):
                number, metadata = self._header(connection, run_id, "number, metadata")
                _forget(connection, number, metadata)
            self._bases.pop(run_id, None)

        await self._file.do(work)

    async def delete_ended(self, before: int) -> int:
        def work(connection: "sqlite3.Connection") -> int:
            with transaction(connection):
                old = connection.execute(
                    "SELECT number, metadata FROM runs WHERE ended_at < ? LIMIT ?", (within_int64(before), _AT_ONCE)
                ).fetchall()
                for number, metadata in old:
                    _forget(connection, number, metadata)
            return len(old)

        total = 0
        while deleted := await self._file.do(work):
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

        return await self._file.do(work)

    async def renew(self, owner: str, *, lease_until: int) -> frozenset[str]:
        def work(connection: "sqlite3.Connection") -> frozenset[str]:
            with transaction(connection):
                connection.execute("UPDATE runs SET lease_until = ? WHERE owner = ?", (lease_until, owner))
                return frozenset(
                    run_id for (run_id,) in connection.execute("SELECT run_id FROM runs WHERE owner = ?", (owner,))
                )

        return await self._file.do(work)

    async def release(self, run_id: str, owner: str) -> None:
        def work(connection: "sqlite3.Connection") -> None:
            connection.execute(
                "UPDATE runs SET owner = NULL, lease_until = 0 WHERE run_id = ? AND owner = ?", (run_id, owner)
            )

        await self._file.do(work)

    async def orphans(self, now: int, limit: int = 100) -> Sequence[str]:
        def work(connection: "sqlite3.Connection") -> Sequence[str]:
            found = connection.execute(
                "SELECT run_id FROM runs WHERE status = 'running' AND lease_until < ? ORDER BY number LIMIT ?",
                (now, limit),
            )
            return [run_id for (run_id,) in found]

        return await self._file.do(work)

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

        return decode_record(await self._file.do(work))

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

        return await self._file.do(work)

    async def find(self, query: RunQuery) -> Sequence[FoundRun]:
        statement, values = _select(query)

        def work(connection: "sqlite3.Connection") -> Sequence[FoundRun]:
            return [
                FoundRun(run_id, workflow_id, status, trace_id, from_json(metadata), *rest)
                for run_id, workflow_id, status, trace_id, metadata, *rest in connection.execute(statement, values)
            ]

        return await self._file.do(work)

    async def messages(self, run_id: str) -> Sequence[Message]:
        def work(connection: "sqlite3.Connection") -> Sequence[Message]:
            (number,) = self._header(connection, run_id, "number")
            found = connection.execute("SELECT body FROM messages WHERE run = ? ORDER BY number", (number,))
            return [decode_message(body) for (body,) in found]

        return await self._file.do(work)

    async def posted(self, owner: str) -> Mapping[str, int]:
        def work(connection: "sqlite3.Connection") -> Mapping[str, int]:
            return dict(connection.execute(_POSTED, (owner,)).fetchall())

        return await self._file.do(work)

    async def aclose(self) -> None:
        """Close the file. The store may be used again: it then opens the file anew."""
        self._file.close()

    def _header(self, connection: "sqlite3.Connection", run_id: str, columns: str) -> tuple[Any, ...]:
        found: tuple[Any, ...] | None = connection.execute(
            f"SELECT {columns} FROM runs WHERE run_id = ?", (run_id,)
        ).fetchone()
        if found is None:
            self._bases.pop(run_id, None)
            raise RunNotFound(run_id)
        return found

    def _remember(self, run_id: str, base: int) -> None:
        if len(self._bases) >= _MANY:
            self._bases.clear()
        self._bases[run_id] = base


@dataclass(frozen=True, slots=True)
class _Batch:
    """What one append adds."""

    run_id: str
    expected_seq: int
    count: int
    body: str
    change: HeaderChange | None


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
        "created_at > ?": query.started_after,
        "created_at < ?": query.started_before,
        # asked for again and again, and true of few: not a scan of all runs in their order
        "number IN (SELECT number FROM runs WHERE wake_at < ?)": query.wakes_before,
        "number < ?": query.after,
    }
    for condition, value in compared.items():
        if value is not None:
            conditions.append(condition)
            values.append(within_int64(value) if isinstance(value, int) else value)
    if query.trace_id is not None:
        conditions.append(
            "number IN (SELECT number FROM runs WHERE trace_id = ? UNION SELECT run FROM traces WHERE trace_id = ?)"
        )
        values += [query.trace_id, query.trace_id]
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
    connection.execute("DELETE FROM traces WHERE run = ?", (number,))
    connection.execute("DELETE FROM batches WHERE id >= ? AND id <= ?", (base, base | _SEQ))
    connection.execute("DELETE FROM records WHERE run = ?", (number,))
    connection.execute("DELETE FROM runs WHERE number = ?", (number,))
