"""The PostgreSQL that tests run on, and ways to lose the connection to it."""

import asyncio
import shlex
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, LiteralString, Self
from uuid import uuid4

import psycopg
from psycopg import conninfo, sql

from spanflow.stores.postgres import PostgresStore
from tests.given import given


class Postgres:
    """A schema of its own in the database for tests, dropped in the end.

    Attributes:
        dsn: of the database.
        schema: the name of the schema.
    """

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.schema = f"test_{uuid4().hex}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.execute("DROP SCHEMA IF EXISTS {schema} CASCADE")

    def store(self, dsn: str | None = None, **options: Any) -> PostgresStore:
        return PostgresStore(dsn or self.dsn, schema=self.schema, **options)

    def execute(self, statement: LiteralString, *values: Any) -> list[tuple[Any, ...]]:
        """Execute a statement, ``{schema}`` in it filled in, and return its rows."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            found = connection.execute(sql.SQL(statement).format(schema=sql.Identifier(self.schema)), values)
            return found.fetchall() if found.description else []

    def cut(self, application: str) -> int:
        """End all connections of an application on the server's side, and return how many those were."""
        ended = self.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = %s", application
        )
        return len(ended)

    def wait_until_blocked(self, table: str) -> None:
        """Return when somebody waits for a lock of a table."""
        while not self.execute(
            "SELECT 1 FROM pg_locks WHERE NOT granted AND relation = %s::regclass", f"{self.schema}.{table}"
        ):
            pass


def restart_command() -> Callable[[], Awaitable[None]]:
    """Return what restarts the server, without letting anybody finish."""
    command = given("SPANFLOW_TEST_POSTGRES_RESTART", "the command that restarts the PostgreSQL for tests")

    async def restart() -> None:
        process = await asyncio.create_subprocess_exec(*shlex.split(command), stdout=asyncio.subprocess.DEVNULL)
        assert await process.wait() == 0

    return restart


class Wire:
    """What lies between a store and its database: passes all on, until it is told to break.

    Attributes:
        dsn: what leads through it.
        connections: how many were made so far.
    """

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._word = b""
        self._to_break = 0
        self._keeps_request = True
        self._meanwhile: Meanwhile | None = None
        self.dsn = ""
        self.connections = 0

    async def __aenter__(self) -> Self:
        async with await psycopg.AsyncConnection.connect(self._dsn) as connection:
            self._host, self._port = connection.info.host, connection.info.port
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        self.dsn = conninfo.make_conninfo(self._dsn, host=host, hostaddr=None, port=port, sslmode="disable")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Break all connections, and refuse new ones."""
        assert self._server is not None
        self._server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def break_at(
        self, word: str, *, times: int = 1, before_server: bool = False, meanwhile: "Meanwhile | None" = None
    ) -> None:
        """Break the connection when a statement that contains ``word`` passes: its answer gets lost.

        Or, with ``before_server``, the statement itself. ``meanwhile`` is done before the store notices.
        """
        self._word, self._to_break, self._meanwhile = word.encode(), times, meanwhile
        self._keeps_request = not before_server

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        if self._host.startswith("/"):
            path = f"{self._host}/.s.PGSQL.{self._port}"
            there_reader, there_writer = await asyncio.open_unix_connection(path)
        else:
            there_reader, there_writer = await asyncio.open_connection(self._host, self._port)
        doomed = asyncio.Event()
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._forward(reader, there_writer, doomed))
                both.create_task(self._back(there_reader, writer, doomed))
        except* _Over:
            pass
        finally:
            writer.close()
            there_writer.close()
            self._tasks.discard(task)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, doomed: asyncio.Event) -> None:
        while data := await reader.read(1 << 16):
            if self._to_break and self._word in data:
                self._to_break -= 1
                doomed.set()
                if not self._keeps_request:
                    await self._break()
            writer.write(data)
            await writer.drain()
        raise _Over

    async def _back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, doomed: asyncio.Event) -> None:
        while data := await reader.read(1 << 16):
            if doomed.is_set():
                await self._break()  # the server has done it, since it answers
            writer.write(data)
            await writer.drain()
        raise _Over

    async def _break(self) -> None:
        if self._meanwhile is not None:
            await self._meanwhile()
        raise _Over


Meanwhile = Callable[[], Awaitable[object]]


class _Over(Exception):
    """One side has closed, or is to believe that the other has."""
