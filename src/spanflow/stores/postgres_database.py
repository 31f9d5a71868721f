"""A PostgreSQL database that holds runs: its tables, how they are created, migrated or refused, lost connections."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import LiteralString, TypeAlias, TypeVar

try:
    import psycopg
    import psycopg_pool
    from psycopg import conninfo, errors, sql
except ImportError as missing:
    raise ImportError(
        "PostgresStore needs psycopg: install spanflow with its extra, `spanflow[postgres]`."
    ) from missing

from spanflow.errors import StoreError

T = TypeVar("T")
Connection: TypeAlias = psycopg.AsyncConnection[tuple[object, ...]]
Pool: TypeAlias = psycopg_pool.AsyncConnectionPool[Connection]

Work: TypeAlias = Callable[[Connection, bool], Awaitable[T]]
"""What is done with a connection. The flag says that it was begun before, and may have been done: the connection broke
before the server's answer came."""

_SCHEMA: LiteralString = """
CREATE TABLE {schema}.runs (
    number BIGINT PRIMARY KEY GENERATED ALWAYS AS IDENTITY, -- never given to a second run, a late writer finds none
    run_id TEXT NOT NULL UNIQUE,
    workflow_id TEXT NOT NULL,
    status TEXT NOT NULL,
    trace_id TEXT,
    created_at BIGINT NOT NULL, -- times are ns since the epoch
    ended_at BIGINT,
    wake_at BIGINT,
    owner TEXT,
    lease_until BIGINT NOT NULL, -- in no index, so that renewing it touches none
    metadata TEXT NOT NULL
);
CREATE INDEX runs_by_status ON {schema}.runs (status);
CREATE INDEX runs_by_workflow ON {schema}.runs (workflow_id);
CREATE INDEX runs_by_trace ON {schema}.runs (trace_id) WHERE trace_id IS NOT NULL;
CREATE INDEX runs_by_end ON {schema}.runs (ended_at) WHERE ended_at IS NOT NULL;
CREATE INDEX runs_by_wake ON {schema}.runs (wake_at) WHERE wake_at IS NOT NULL;
CREATE INDEX runs_by_owner ON {schema}.runs (owner) WHERE owner IS NOT NULL;
CREATE TABLE {schema}.records (
    run BIGINT PRIMARY KEY REFERENCES {schema}.runs ON DELETE CASCADE,
    body TEXT NOT NULL -- JSON as text, which stays what it was; JSONB takes no NUL and no number like 1e400
);
CREATE TABLE {schema}.batches (
    run BIGINT REFERENCES {schema}.runs ON DELETE CASCADE,
    first_seq BIGINT,
    last_seq BIGINT NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (run, first_seq) -- a second writer's row is refused
);
CREATE TABLE {schema}.messages (
    number BIGINT PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    run BIGINT NOT NULL REFERENCES {schema}.runs ON DELETE CASCADE,
    body TEXT NOT NULL
);
CREATE INDEX messages_by_run ON {schema}.messages (run);
CREATE TABLE {schema}.labels (
    digest BYTEA, -- of key and value, which may be longer than an index takes
    run BIGINT REFERENCES {schema}.runs ON DELETE CASCADE,
    PRIMARY KEY (digest, run)
);
CREATE INDEX labels_by_run ON {schema}.labels (run);
CREATE TABLE {schema}.spanflow_version (version INTEGER NOT NULL);
INSERT INTO {schema}.spanflow_version VALUES (0);
"""

_TRACES: LiteralString = """
CREATE TABLE {schema}.traces ( -- that a run has begun besides its first
    trace_id TEXT,
    run BIGINT REFERENCES {schema}.runs ON DELETE CASCADE,
    PRIMARY KEY (trace_id, run)
);
CREATE INDEX traces_by_run ON {schema}.traces (run);
"""

_STEPS: tuple[LiteralString, ...] = (_SCHEMA, _TRACES)
"""What leads from each version of the tables to the next; no tables are version 0. Add to the end, change nothing."""

VERSION = len(_STEPS)

_LOCK = 0x7370616E  # of the advisory lock under which tables are made; the second half is a hash of the schema's name
_CONNECT_TIMEOUT = 10  # s, where the DSN names none
_PAUSES = (0.02, 1.0)  # s between two tries, from the first to the longest

_ENDING = ("57P01", "57P02", "57P03")  # the server shuts down, crashed, or is not up yet
_COLLISIONS = ("40001", "40P01")  # nothing was done; the same again may go well
_MEANING = {
    "22": ("cannot hold a value", "Keep large values elsewhere and pass their address; an id may hold no NUL"),
    "25006": ("is read-only", "It may be a replica: add target_session_attrs=read-write to the DSN"),
    "42501": (
        "may not be used",
        "Grant its user USAGE and CREATE on the schema, SELECT, INSERT, UPDATE and DELETE on its tables",
    ),
    "42P01": ("misses a table", "It was dropped while this process was using it. Restore it from a backup"),
    "53100": ("has no room to grow", "Free space on the server's disk, or delete old runs"),
    "53300": ("takes no more connections", "Lower pool_size, or raise the server's max_connections"),
    "54": ("cannot hold a value of this size", "Keep large values elsewhere and pass their address"),
}


@dataclass(slots=True)
class _Opened:
    """What an event loop has open: a connection is of the loop it was opened on."""

    opening: asyncio.Lock = field(default_factory=asyncio.Lock)
    pool: Pool | None = None


class PostgresDatabase:
    """The connections of this process to a database, a pool for each event loop.

    Attributes:
        address: where it is, without the password.
        refused: the class of the error that says that a key is taken.
    """

    refused = errors.UniqueViolation

    def __init__(self, dsn: str, *, schema: str, pool_size: int, reconnect_timeout: float, create: bool = True) -> None:
        try:
            given = conninfo.conninfo_to_dict(dsn)
        except psycopg.Error:  # its text may quote a part of the password
            raise StoreError(
                "The DSN given to PostgresStore cannot be read. Write postgresql://user:password@host:5432/database,"
                " with characters like @ / : # % in the password percent-encoded.",
                store="postgresql",
            ) from None
        given = {"connect_timeout": _CONNECT_TIMEOUT, "application_name": "spanflow", **given}
        self._dsn = conninfo.make_conninfo("", **given)
        self.address = _address(given)
        self._schema = schema
        self._pool_size = pool_size
        self._reconnect_timeout = reconnect_timeout
        self._create = create
        self._statements: dict[str, bytes] = {}
        self._opened: dict[asyncio.AbstractEventLoop, _Opened] = {}
        self._was_there = False

    def sql(self, statement: LiteralString) -> bytes:
        """Return a statement with the name of the schema in the place of ``{schema}``."""
        found = self._statements.get(statement)
        if found is None:
            filled = sql.SQL(statement).format(schema=sql.Identifier(self._schema))
            found = self._statements[statement] = filled.as_bytes()
        return found

    async def do(self, work: Work[T]) -> T:
        """Work on the database. Where its connection breaks, wait for the server to be back, and do it again.

        Raises:
            StoreError: the database cannot be used, or stayed away.
        """
        begun_before = False
        until: float | None = None
        while True:
            pool = await self._pool()
            try:
                connection = await pool.getconn()
            except psycopg_pool.PoolClosed:
                continue  # somebody else has noticed that the server went away, and opens another
            except psycopg_pool.PoolTimeout as error:
                raise StoreError(
                    f"{self.address} gave no connection for {self._reconnect_timeout:g} s: all {self._pool_size} of"
                    " this process are busy, or the server takes no more. Raise pool_size, or see in pg_stat_activity"
                    " what they wait for.",
                    store=self.address,
                ) from error
            try:
                return await work(connection, begun_before)
            except psycopg.Error as error:
                lost = connection.closed or error.sqlstate in _ENDING
                if not lost and error.sqlstate not in _COLLISIONS:
                    raise self.explained(error) from error
                now = time.monotonic()
                until = now + self._reconnect_timeout if until is None else until
                if now >= until:
                    raise self.explained(error) from error
                begun_before = begun_before or lost
            finally:
                await pool.putconn(connection)
            if lost:
                await self._drop(pool)

    def explained(self, error: psycopg.Error) -> StoreError:
        """Return an error of PostgreSQL in words that say what to do."""
        state = error.sqlstate or ""
        what, advice = _MEANING.get(state) or _MEANING.get(state[:2]) or ("failed", "See the error it comes from")
        return StoreError(f"{self.address} {what}: {_one_line(error)}. {advice}.", store=self.address)

    async def aclose(self) -> None:
        opened = self._opened.pop(asyncio.get_running_loop(), None)
        if opened is not None and opened.pool is not None:
            await opened.pool.close()

    async def _pool(self) -> Pool:
        loop = asyncio.get_running_loop()
        opened = self._opened.get(loop)
        if opened is None:
            for ended in [loop for loop in self._opened if loop.is_closed()]:
                del self._opened[ended]
            opened = self._opened[loop] = _Opened()
        if opened.pool is None:
            async with opened.opening:
                if opened.pool is None:  # another task may have been faster
                    opened.pool = await self._open()
        return opened.pool

    async def _drop(self, pool: Pool) -> None:
        opened = self._opened.get(asyncio.get_running_loop())
        if opened is not None and opened.pool is pool:
            opened.pool = None
        await pool.close()

    async def _open(self) -> Pool:
        """Open a pool on a database that is ready for use. A server that was there before is waited for.

        Its first connection is made outside of the pool, which keeps the reason to itself where it cannot connect.
        """
        until = time.monotonic() + self._reconnect_timeout
        pause, longest = _PAUSES
        while True:
            try:
                await self._prepare_once()
                break
            except psycopg.OperationalError as error:
                if not self._was_there or time.monotonic() >= until:
                    raise self._unreachable(error) from error
            except psycopg.Error as error:
                raise self.explained(error) from error
            await asyncio.sleep(pause)
            pause = min(2 * pause, longest)
        self._was_there = True
        pool: Pool = psycopg_pool.AsyncConnectionPool(
            self._dsn,
            kwargs={"autocommit": True},
            min_size=1,
            max_size=self._pool_size,
            timeout=self._reconnect_timeout,
            name="spanflow",
            open=False,
        )
        await pool.open()
        return pool

    async def _prepare_once(self) -> None:
        async with await psycopg.AsyncConnection.connect(self._dsn, autocommit=True) as connection:
            await self._prepare(connection)

    def _unreachable(self, error: psycopg.Error) -> StoreError:
        how_long = f" for {self._reconnect_timeout:g} s" if self._was_there else ""
        return StoreError(
            f"PostgreSQL at {self.address} cannot be reached{how_long}: {_one_line(error)}. Check that the server runs"
            " there and lets this machine in, and that user, password and database of the DSN are right.",
            store=self.address,
        )

    # --- tables

    async def _prepare(self, connection: Connection) -> None:
        """Make the tables ready for use. Doing it again, or in two processes at once, does no harm.

        Raises:
            StoreError: they are not ours, newer than this program, or missing although not to be created; nothing was
                changed.
        """
        found = await self._version(connection)
        if found == VERSION:
            return
        if found == 0 and not self._create:
            raise StoreError(
                f"There is no store at {self.address}: the schema {self._schema!r} has no tables. Check the DSN and the"
                " schema; a program that keeps its runs there makes them when it is first used.",
                store=self.address,
            )
        async with connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock(%s, hashtext(%s))", (_LOCK, self._schema))
            version = await self._version(connection)  # another process may have been faster
            if version == VERSION:
                return
            is_there = await connection.execute(
                "SELECT 1 FROM pg_namespace WHERE nspname = %s::text::name", (self._schema,)
            )
            if not is_there.rowcount:  # even IF NOT EXISTS takes the right to create schemas
                await connection.execute(self.sql("CREATE SCHEMA {schema}"))
            for step in _STEPS[version:]:
                for statement in step.strip().removesuffix(";").split(";\n"):
                    await connection.execute(self.sql(statement))
            await connection.execute(self.sql("UPDATE {schema}.spanflow_version SET version = %s"), (VERSION,))

    async def _version(self, connection: Connection) -> int:
        """Return the version of the tables, which are ours or not there."""
        found = await connection.execute(
            "SELECT relname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace"
            " WHERE nspname = %s::text::name AND relkind IN ('r', 'p', 'v', 'm', 'f') ORDER BY relname",
            (self._schema,),
        )
        tables = [str(name) for (name,) in await found.fetchall()]
        if not tables:
            return 0
        if "spanflow_version" not in tables:
            raise StoreError(
                f"The schema {self._schema!r} at {self.address} holds tables of another program"
                f" ({', '.join(tables[:5])}). It was left as it is. Give PostgresStore a schema of its own: schema=...",
                store=self.address,
            )
        found = await connection.execute(self.sql("SELECT max(version) FROM {schema}.spanflow_version"))
        row = await found.fetchone()
        version = row[0] if row is not None else None
        if not isinstance(version, int) or version > VERSION:
            raise StoreError(
                f"The schema {self._schema!r} at {self.address} was written by a newer spanflow (version {version};"
                f" this one knows up to {VERSION}). It was left as it is. Upgrade spanflow here, or use another one.",
                store=self.address,
            )
        return version


def _address(given: Mapping[str, object]) -> str:
    """Return where a DSN leads, without the password. What it leaves out is in the environment, as libpq has it."""
    host = given.get("host") or given.get("hostaddr") or os.environ.get("PGHOST") or "the local socket"
    port = given.get("port") or os.environ.get("PGPORT") or 5432
    database = given.get("dbname") or os.environ.get("PGDATABASE")
    return f"{host}:{port}" if database is None else f"{host}:{port}/{database}"


def _one_line(error: psycopg.Error) -> str:
    return " ".join(str(error).split()).removesuffix(".")
