"""Journals in a PostgreSQL database: the store for runs that any of many machines may continue. Needs ``psycopg``."""

import asyncio
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any, LiteralString

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
from spanflow.stores.header import HeaderChange, earliest, header_change, labels, metadata_of
from spanflow.stores.postgres_database import Connection, PostgresDatabase

_AT_ONCE = 50  # runs that are deleted in one transaction

_CREATE: LiteralString = """
    WITH run AS (
        INSERT INTO {schema}.runs (run_id, workflow_id, status, trace_id, created_at, ended_at, wake_at, owner,
            lease_until, metadata)
        VALUES (%(run_id)s, %(workflow_id)s, %(status)s, %(trace_id)s, %(created_at)s, %(ended_at)s, %(wake_at)s,
            %(owner)s, %(lease_until)s, %(metadata)s)
        RETURNING number
    ), record AS (
        INSERT INTO {schema}.records SELECT number, %(body)s FROM run
    ), batch AS (
        INSERT INTO {schema}.batches SELECT number, written.* FROM run,
            unnest(%(firsts)s::bigint[], %(lasts)s::bigint[], %(batches)s::text[]) AS written
    )
    INSERT INTO {schema}.labels SELECT digest, number FROM run, unnest(%(labels)s::bytea[]) AS digest
"""
# Adds no row where the run is gone or its journal does not end at the seq that is expected. A row that another writer
# adds at the same moment has the same key.
_APPEND: LiteralString = """
    INSERT INTO {schema}.batches
    SELECT number, %(first)s, %(last)s, %(body)s FROM {schema}.runs
    WHERE run_id = %(run_id)s AND %(expected)s = (
        SELECT last_seq FROM {schema}.batches WHERE run = number ORDER BY first_seq DESC LIMIT 1
    )
"""
_READ: LiteralString = """
    SELECT first_seq, body FROM {schema}.batches
    WHERE run = %(run)s AND first_seq >= coalesce(
        (SELECT max(first_seq) FROM {schema}.batches WHERE run = %(run)s AND first_seq <= %(next)s), 0
    )
    ORDER BY first_seq LIMIT %(most)s
"""
_POST: LiteralString = """
    INSERT INTO {schema}.messages (run, body) SELECT number, %(body)s FROM {schema}.runs WHERE run_id = %(run_id)s
"""
_POSTED: LiteralString = """
    SELECT run_id, count(*) FROM {schema}.runs JOIN {schema}.messages ON run = runs.number
    WHERE owner = %s GROUP BY runs.number
"""
_FIND: LiteralString = """
    SELECT run_id, workflow_id, status, trace_id, metadata, created_at, ended_at, wake_at, owner, number
    FROM {schema}.runs
"""
_DELETE_ENDED: LiteralString = """
    DELETE FROM {schema}.runs WHERE number IN (
        SELECT number FROM {schema}.runs WHERE ended_at < %s LIMIT %s FOR UPDATE SKIP LOCKED
    )
"""


class PostgresStore:
    """Keeps runs in a PostgreSQL database, which any number of processes on any number of machines may use at once.

    The tables are created, or brought up to date, when the store is first used. When the server restarts, what is being
    stored waits until it is back; where it is unknown whether something was stored, the database is asked.

    Args:
        dsn: how to connect, as libpq reads it: ``postgresql://user:password@host:5432/database``, or
            ``host=... user=...``.
        schema: the PostgreSQL schema of the tables, created where it is missing. Nothing else may live in it.
        pool_size: the most connections that this process holds at a time.
        reconnect_timeout: seconds for which a server that went away, or a free connection, is waited for. It may be
            longer than the ``lease`` of a runtime: while the server is away nobody can take a run over, and what is
            stored late is refused where somebody has gone on with the run meanwhile.
        create: whether tables that are missing are made; else it is a StoreError at first use.

    Raises:
        StoreError: the DSN cannot be read. A server that cannot be reached is told at first use.
    """

    is_live = False

    def __init__(
        self,
        dsn: str,
        *,
        schema: str = "spanflow",
        pool_size: int = 10,
        reconnect_timeout: float = 30.0,
        create: bool = True,
    ) -> None:
        self._database = PostgresDatabase(
            dsn, schema=schema, pool_size=pool_size, reconnect_timeout=reconnect_timeout, create=create
        )

    # --- writing

    async def create(
        self, record: RunRecord, entries: Sequence[Entry], *, owner: str | None = None, lease_until: int = 0
    ) -> None:
        body, batches = encode_record(record), encode_batches(entries)
        change = header_change(entries) or HeaderChange("running", record.created_at, None, None, False)
        metadata = metadata_of(record)
        row = {
            "run_id": record.run_id,
            "workflow_id": record.workflow_id,
            "status": change.status or "running",
            "trace_id": record.trace.trace_id,
            "created_at": record.created_at,
            "ended_at": change.ended_at,
            "wake_at": change.wake_at,
            "owner": None if change.releases else owner,
            "lease_until": 0 if change.releases else lease_until,
            "metadata": to_json(metadata),
            "body": body,
            "firsts": [first for first, _, _ in batches],
            "lasts": [last for _, last, _ in batches],
            "batches": [batch for _, _, batch in batches],
            "labels": _digests(metadata),
        }

        async def work(connection: Connection, begun_before: bool) -> None:
            try:
                await self._do(connection, _CREATE, row)
            except self._database.refused:
                known = "SELECT body FROM {schema}.records JOIN {schema}.runs ON number = run WHERE run_id = %s"
                if begun_before and await self._one(connection, known, record.run_id) == (body,):
                    return  # it was done when the connection broke
                raise RunConflict(
                    f"Run {record.run_id!r} already exists."
                    " Leave run_id out for a new one, or continue it with get_run().",
                    run_id=record.run_id,
                ) from None

        await self._database.do(work)

    async def append(self, run_id: str, entries: Sequence[Entry], *, expected_seq: int) -> None:
        if not entries:
            return
        change = header_change(entries)
        row = {
            "run_id": run_id,
            "expected": expected_seq,
            "first": expected_seq + 1,
            "last": expected_seq + len(entries),
            "body": encode_batch(entries),
        }

        async def work(connection: Connection, begun_before: bool) -> None:
            try:
                if change is None:
                    done = bool(await self._do(connection, _APPEND, row))
                else:
                    done = await self._append_and_change(connection, row, change)
            except self._database.refused:
                done = False
            if not done:
                await self._not_appended(connection, row, begun_before)

        await self._database.do(work)

    async def _append_and_change(self, connection: Connection, row: dict[str, Any], change: HeaderChange) -> bool:
        async with connection.transaction():
            header = "SELECT number, wake_at FROM {schema}.runs WHERE run_id = %s FOR NO KEY UPDATE"
            number, wake_at = await self._known(connection, header, row["run_id"])
            done = bool(await self._do(connection, _APPEND, row))
            if done:
                await self._do(
                    connection,
                    "UPDATE {schema}.runs SET wake_at = %(wake_at)s, status = coalesce(%(status)s, status),"
                    " ended_at = CASE WHEN %(status)s::text IS NULL THEN ended_at ELSE %(ended_at)s END,"
                    " owner = CASE WHEN %(releases)s THEN NULL ELSE owner END,"
                    " lease_until = CASE WHEN %(releases)s THEN 0 ELSE lease_until END WHERE number = %(number)s",
                    {**change._asdict(), "wake_at": earliest(wake_at, change), "number": number},
                )
                if change.trace_id is not None:
                    statement = "INSERT INTO {schema}.traces VALUES (%s, %s)"
                    await self._do(connection, statement, (change.trace_id, number))
        return done

    async def _not_appended(self, connection: Connection, row: dict[str, Any], begun_before: bool) -> None:
        """Find out why there is no new row. None is needed where it is there from before the connection broke."""
        run_id, expected = row["run_id"], row["expected"]
        (number,) = await self._known(connection, "SELECT number FROM {schema}.runs WHERE run_id = %s", run_id)
        if begun_before:
            there = "SELECT body FROM {schema}.batches WHERE run = %s AND first_seq = %s"
            if await self._one(connection, there, number, row["first"]) == (row["body"],):
                return
        last = await self._one(connection, "SELECT max(last_seq) FROM {schema}.batches WHERE run = %s", number)
        stands = last[0] if last else None
        raise RunConflict(
            f"Run {run_id!r} stands at event {stands}, not {expected}: somebody else drives it.", run_id=run_id
        )

    async def post(self, run_id: str, message: Message) -> None:
        row = {"run_id": run_id, "body": encode_message(message)}

        async def work(connection: Connection, begun_before: bool) -> None:
            if begun_before:
                (number,) = await self._known(connection, "SELECT number FROM {schema}.runs WHERE run_id = %s", run_id)
                there = "SELECT 1 FROM {schema}.messages WHERE run = %s AND body = %s"
                if await self._one(connection, there, number, row["body"]) is not None:
                    return
            if not await self._do(connection, _POST, row):
                raise RunNotFound(run_id)

        await self._database.do(work)

    async def delete(self, run_id: str) -> None:
        async def work(connection: Connection, begun_before: bool) -> None:
            done = await self._do(connection, "DELETE FROM {schema}.runs WHERE run_id = %s", (run_id,))
            if not done and not begun_before:
                raise RunNotFound(run_id)

        await self._database.do(work)

    async def delete_ended(self, before: int) -> int:
        async def work(connection: Connection, begun_before: bool) -> int:
            return await self._do(connection, _DELETE_ENDED, (before, _AT_ONCE))

        total = 0
        while deleted := await self._database.do(work):
            total += deleted
            await asyncio.sleep(0)
        return total

    # --- owning

    async def claim(self, run_id: str, owner: str, *, now: int, lease_until: int) -> bool:
        async def work(connection: Connection, begun_before: bool) -> bool:
            done = await self._do(
                connection,
                "UPDATE {schema}.runs SET owner = %(owner)s, lease_until = %(lease_until)s WHERE run_id = %(run_id)s"
                " AND (owner IS NULL OR owner = %(owner)s OR lease_until < %(now)s)",
                {"run_id": run_id, "owner": owner, "lease_until": lease_until, "now": now},
            )
            if not done:
                await self._known(connection, "SELECT number FROM {schema}.runs WHERE run_id = %s", run_id)
            return bool(done)

        return await self._database.do(work)

    async def renew(self, owner: str, *, lease_until: int) -> frozenset[str]:
        statement = "UPDATE {schema}.runs SET lease_until = %s WHERE owner = %s RETURNING run_id"
        return frozenset(run_id for (run_id,) in await self._all(statement, lease_until, owner))

    async def release(self, run_id: str, owner: str) -> None:
        async def work(connection: Connection, begun_before: bool) -> None:
            statement = "UPDATE {schema}.runs SET owner = NULL, lease_until = 0 WHERE run_id = %s AND owner = %s"
            await self._do(connection, statement, (run_id, owner))

        await self._database.do(work)

    async def orphans(self, now: int, limit: int = 100) -> Sequence[str]:
        statement = (
            "SELECT run_id FROM {schema}.runs WHERE status = 'running' AND lease_until < %s ORDER BY number LIMIT %s"
        )
        return [run_id for (run_id,) in await self._all(statement, now, limit)]

    # --- reading

    async def load(self, run_id: str) -> RunRecord:
        statement = "SELECT body FROM {schema}.records JOIN {schema}.runs ON number = run WHERE run_id = %s"
        found = await self._all(statement, run_id)
        if not found:
            raise RunNotFound(run_id)
        return decode_record(found[0][0])

    async def read(self, run_id: str, *, after: int = 0, limit: int = 1000) -> Sequence[Entry]:
        async def work(connection: Connection, begun_before: bool) -> tuple[str | None, Sequence[tuple[Any, ...]]]:
            header = "SELECT number, trace_id FROM {schema}.runs WHERE run_id = %s"
            number, trace_id = await self._known(connection, header, run_id)
            values = {"run": number, "next": after + 1, "most": limit + 1}  # a batch holds an event at least
            found = await connection.execute(self._database.sql(_READ), values)
            return trace_id, await found.fetchall()

        trace_id, batches = await self._database.do(work)
        ids = RunIds(run_id, trace_id)
        entries: list[Entry] = []
        for first_seq, body in batches:
            entries += (entry for entry in decode_batch(body, ids, first_seq) if entry.seq > after)
            if len(entries) >= limit:
                break
        return entries[:limit]

    async def find(self, query: RunQuery) -> Sequence[FoundRun]:
        conditions: list[LiteralString] = []
        values: list[Any] = []
        compared: dict[LiteralString, Any] = {
            "workflow_id = %s": query.workflow,
            "created_at > %s": query.started_after,
            "created_at < %s": query.started_before,
            "wake_at < %s": query.wakes_before,
            "number < %s": query.after,
            "status = ANY(%s)": None if query.statuses is None else list(query.statuses),
        }
        for condition, value in compared.items():
            if value is not None:
                conditions.append(condition)
                values.append(value)
        if query.trace_id is not None:
            conditions.append(
                "number IN (SELECT number FROM {schema}.runs WHERE trace_id = %s"
                " UNION SELECT run FROM {schema}.traces WHERE trace_id = %s)"
            )
            values += [query.trace_id, query.trace_id]
        for digest in _digests(query.metadata):
            conditions.append("number IN (SELECT run FROM {schema}.labels WHERE digest = %s)")
            values.append(digest)
        where: LiteralString = " WHERE " + " AND ".join(conditions) if conditions else ""
        found = await self._all(_FIND + where + " ORDER BY number DESC LIMIT %s", *values, query.limit)
        return [
            FoundRun(run_id, workflow_id, status, trace_id, from_json(metadata), *rest)
            for run_id, workflow_id, status, trace_id, metadata, *rest in found
        ]

    async def messages(self, run_id: str) -> Sequence[Message]:
        async def work(connection: Connection, begun_before: bool) -> Sequence[tuple[Any, ...]]:
            (number,) = await self._known(connection, "SELECT number FROM {schema}.runs WHERE run_id = %s", run_id)
            statement = self._database.sql("SELECT body FROM {schema}.messages WHERE run = %s ORDER BY number")
            return await (await connection.execute(statement, (number,))).fetchall()

        return [decode_message(body) for (body,) in await self._database.do(work)]

    async def posted(self, owner: str) -> Mapping[str, int]:
        return dict(await self._all(_POSTED, owner))

    async def aclose(self) -> None:
        """Close the connections. The store may be used again: it then opens them anew."""
        await self._database.aclose()

    # --- statements

    async def _do(self, connection: Connection, statement: LiteralString, values: Any) -> int:
        """Execute a statement, and return how many rows it wrote."""
        return (await connection.execute(self._database.sql(statement), values)).rowcount

    async def _one(self, connection: Connection, statement: LiteralString, *values: Any) -> tuple[Any, ...] | None:
        return await (await connection.execute(self._database.sql(statement), values)).fetchone()

    async def _known(self, connection: Connection, statement: LiteralString, run_id: str) -> tuple[Any, ...]:
        found = await self._one(connection, statement, run_id)
        if found is None:
            raise RunNotFound(run_id)
        return found

    async def _all(self, statement: LiteralString, *values: Any) -> Sequence[tuple[Any, ...]]:
        """Execute a statement that does no harm when done twice, and return its rows."""

        async def work(connection: Connection, begun_before: bool) -> Sequence[tuple[Any, ...]]:
            return await (await connection.execute(self._database.sql(statement), values)).fetchall()

        return await self._database.do(work)


def _digests(metadata: Any) -> list[bytes]:
    """Return what metadata is found by: keys and values, each pair of one length."""
    return [sha256(to_json([key, value]).encode()).digest() for key, value in labels(metadata).items()]
