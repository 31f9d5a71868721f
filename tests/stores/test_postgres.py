"""What only a PostgreSQL store has to do: tables in a shared database, connections that break, several who write."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

import spanflow
from spanflow import PostgresStore, RunConflict, RunNotFound, Runtime, StepContext, StoreError, Workflow, step
from spanflow.events import LinkedTrace, Start
from spanflow.ports import Message, RunQuery
from spanflow.stores.postgres_database import VERSION
from spanflow.tracing.record import TraceRecord
from tests.stores.postgres import Postgres, Wire, restart_command
from tests.stores.support import (
    CREATED_AT,
    appended,
    created,
    everything,
    finish,
    numbered,
    record,
    start,
    step_start,
    waiting,
)
from tests.stores.support import step as step_events

NOBODY_THERE = "postgresql://me:s3cret@127.0.0.1:1/runs"


@pytest.fixture
async def store(postgres: Postgres) -> AsyncIterator[PostgresStore]:
    store = postgres.store()
    yield store
    await store.aclose()


@pytest.fixture
async def wire(postgres: Postgres) -> AsyncIterator[Wire]:
    async with Wire(postgres.dsn) as wire:
        yield wire


@pytest.fixture
async def wired(postgres: Postgres, wire: Wire) -> AsyncIterator[PostgresStore]:
    """A store on a connection that can break."""
    store = postgres.store(wire.dsn)
    yield store
    await store.aclose()


class TestImporting:
    def test_it_is_imported_from_spanflow_when_it_is_asked_for(self) -> None:
        assert spanflow.PostgresStore is PostgresStore

    def test_a_name_that_is_not_there_is_still_an_error(self) -> None:
        with pytest.raises(AttributeError, match="module 'spanflow' has no attribute 'PostgreStore'"):
            getattr(spanflow, "PostgreStore")  # noqa: B009

    def test_without_psycopg_it_names_the_extra(self) -> None:
        code = "import sys; sys.modules['psycopg'] = None; import spanflow; spanflow.PostgresStore"

        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

        assert done.returncode == 1
        assert "ImportError: PostgresStore needs psycopg: install spanflow with its extra" in done.stderr


class TestConnecting:
    async def test_a_server_that_is_not_there_is_named_and_the_password_is_not(self) -> None:
        store = PostgresStore(NOBODY_THERE)

        with pytest.raises(
            StoreError, match=r"PostgreSQL at 127\.0\.0\.1:1/runs cannot be reached: .*refused"
        ) as caught:
            await store.find(RunQuery())

        assert caught.value.store == "127.0.0.1:1/runs"
        assert "Check that the server runs" in str(caught.value)
        assert "s3cret" not in f"{caught.value} {caught.value.__cause__}"

    async def test_a_database_that_is_not_there_is_named(self, postgres: Postgres) -> None:
        store = PostgresStore(make_conninfo(postgres.dsn, dbname="nowhere", password="s3cret"))

        with pytest.raises(StoreError, match=r'/nowhere cannot be reached: .*"nowhere" does not exist') as caught:
            await store.load("r1")

        assert "s3cret" not in str(caught.value)

    @pytest.mark.parametrize("dsn", ["postgresql://me:s3cret%zz@db/runs", "host=db password='s3cret", "s3cret"])
    def test_an_address_that_cannot_be_read_is_refused_without_showing_it(self, dsn: str) -> None:
        with pytest.raises(StoreError, match=r"cannot be read\. Write postgresql://") as caught:
            PostgresStore(dsn)

        assert caught.value.__suppress_context__
        assert "s3cret" not in str(caught.value)

    async def test_a_server_that_takes_no_writes_is_named(self, postgres: Postgres) -> None:
        read_only = make_conninfo(postgres.dsn, options="-c default_transaction_read_only=on")

        with pytest.raises(StoreError, match=r"is read-only: .*target_session_attrs=read-write"):
            await created(postgres.store(read_only))

    async def test_who_waits_too_long_for_a_free_connection_is_told(self, postgres: Postgres) -> None:
        store = postgres.store(pool_size=1, reconnect_timeout=2)
        await created(store)
        async with await psycopg.AsyncConnection.connect(postgres.dsn) as blocker:
            await blocker.execute(f"LOCK TABLE {postgres.schema}.runs".encode())
            waits = asyncio.create_task(store.load("r1"))
            await asyncio.sleep(0)

            with pytest.raises(StoreError, match=r"gave no connection for 2 s: all 1 of this process are busy"):
                await store.load("r1")

        assert (await waits).run_id == "r1"
        await store.aclose()

    def test_a_store_may_be_used_from_one_event_loop_after_another(self, postgres: Postgres) -> None:
        store = postgres.store()

        async def use(work: Callable[[], Awaitable[Any]]) -> Any:
            try:
                return await work()
            finally:
                await store.aclose()

        asyncio.run(use(lambda: created(store)))

        assert len(asyncio.run(use(lambda: everything(store)))) == 1


class TestTables:
    async def test_many_who_open_an_empty_database_at_once_make_the_tables_once(self, postgres: Postgres) -> None:
        stores = [postgres.store() for _ in range(6)]

        await asyncio.gather(*(created(store, f"r{number}") for number, store in enumerate(stores)))

        assert len(await stores[0].find(RunQuery())) == 6
        assert postgres.execute("SELECT version FROM {schema}.spanflow_version") == [(VERSION,)]
        for store in stores:
            await store.aclose()

    async def test_a_schema_made_beforehand_is_used(self, postgres: Postgres, store: PostgresStore) -> None:
        postgres.execute("CREATE SCHEMA {schema}")

        await created(store)

        assert len(await everything(store)) == 1

    async def test_tables_of_another_program_are_refused_by_name_and_left(
        self, postgres: Postgres, store: PostgresStore
    ) -> None:
        postgres.execute("CREATE SCHEMA {schema}")
        postgres.execute("CREATE TABLE {schema}.runs (miles integer)")

        with pytest.raises(StoreError, match=rf"'{postgres.schema}' .* holds tables of another program \(runs\)"):
            await created(store)

        assert postgres.execute("SELECT * FROM {schema}.runs") == []

    async def test_tables_of_a_newer_version_are_refused_and_left(
        self, postgres: Postgres, store: PostgresStore
    ) -> None:
        await created(store)
        await store.aclose()
        postgres.execute("UPDATE {schema}.spanflow_version SET version = 99")

        with pytest.raises(
            StoreError, match=rf"written by a newer spanflow \(version 99; this one knows up to {VERSION}\)"
        ):
            await everything(store)

        assert postgres.execute("SELECT version FROM {schema}.spanflow_version") == [(99,)]
        assert postgres.execute("SELECT run_id FROM {schema}.runs") == [("r1",)]

    async def test_tables_of_version_1_are_brought_up_to_date_with_their_runs(
        self, postgres: Postgres, store: PostgresStore
    ) -> None:
        await created(store)
        await store.aclose()
        postgres.execute("DROP TABLE {schema}.traces")
        postgres.execute("UPDATE {schema}.spanflow_version SET version = 1")
        trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
        linked = LinkedTrace(
            trace_id=trace_id,
            span_id="b7ad6b7169203331",
            trace_flags=1,
            trace_state="",
            started_at=CREATED_AT,
            links=(),
        )

        await appended(store, 1, (Start, "", {"workflow_id": "w", "linked": linked}))

        assert postgres.execute("SELECT version FROM {schema}.spanflow_version") == [(VERSION,)]
        assert [run.run_id for run in await store.find(RunQuery(trace_id=trace_id))] == ["r1"]
        assert (await everything(store))[-1].payload["linked"] == linked

    async def test_schemas_are_kept_apart(self, postgres: Postgres, store: PostgresStore) -> None:
        with Postgres(postgres.dsn) as other_schema:
            other = other_schema.store()
            await created(store)

            with pytest.raises(RunNotFound):
                await other.load("r1")
            await other.aclose()

    async def test_nothing_of_a_deleted_run_is_left(self, postgres: Postgres, store: PostgresStore) -> None:
        at = await created(store, trace=TraceRecord(metadata={"user.id": "u-1"}))
        await appended(store, at, *step_events("a"))
        await store.post("r1", Message(id="m", name="news"))

        await store.delete("r1")

        assert postgres.execute("SELECT run FROM {schema}.batches") == []
        assert postgres.execute("SELECT run FROM {schema}.records") == []
        assert postgres.execute("SELECT run FROM {schema}.messages") == []
        assert postgres.execute("SELECT run FROM {schema}.labels") == []

    async def test_metadata_may_be_long_and_hold_any_character(self, store: PostgresStore) -> None:
        metadata = {"prompt": "x\x00ä" * 10_000, "k\x00ey": "v"}
        at = await created(store, trace=TraceRecord(metadata=metadata))

        await appended(store, at, *step_events("a", "nul \x00"))

        (run,) = await store.find(RunQuery(metadata=metadata))
        assert run.metadata == metadata
        assert (await everything(store))[2].payload["output"] == "nul \x00"

    async def test_an_id_that_postgresql_cannot_hold_is_refused(self, store: PostgresStore) -> None:
        with pytest.raises(StoreError, match="NUL"):
            await created(store, "r\x001")


class TestSeveralWriters:
    async def test_of_two_who_append_at_once_exactly_one_succeeds(self, postgres: Postgres) -> None:
        stores = [postgres.store(), postgres.store()]
        at = await created(stores[0])
        for round in range(20):
            attempts = [appended(store, at, *step_events(f"s{n}-{round}")) for n, store in enumerate(stores)]

            done = await asyncio.gather(*attempts, return_exceptions=True)

            assert [type(each) for each in done if isinstance(each, Exception)] == [RunConflict]
            at += 3

        assert [entry.seq for entry in await everything(stores[0])] == list(range(1, at + 1))
        for store in stores:
            await store.aclose()

    async def test_of_two_who_end_a_run_at_once_exactly_one_succeeds(self, postgres: Postgres) -> None:
        stores = [postgres.store(), postgres.store()]
        at = await created(stores[0])

        ends = [
            appended(store, at, finish(status)) for store, status in zip(stores, ("success", "failed"), strict=True)
        ]
        done = await asyncio.gather(*ends, return_exceptions=True)

        winner = [isinstance(each, int) for each in done].index(True)
        assert isinstance(done[1 - winner], RunConflict)
        (run,) = await stores[0].find(RunQuery())
        assert run.status == ("success", "failed")[winner]
        for store in stores:
            await store.aclose()

    async def test_runs_renewals_and_retention_do_not_stand_in_each_others_way(self, postgres: Postgres) -> None:
        stores = [postgres.store(), postgres.store()]
        await created(stores[0], "first")

        async def drive(store: PostgresStore, run_id: str) -> None:
            at = await created(store, run_id, owner="me", lease_until=1)
            for number in range(5):
                at = await appended(store, at, *step_events(f"s{number}"), waiting("nap", 2**62), run_id=run_id)
            await appended(store, at, finish(), run_id=run_id)

        async def keep_house(store: PostgresStore) -> int:
            deleted = 0
            while deleted < 20:
                await store.renew("me", lease_until=2**62)
                deleted += await store.delete_ended(2**62)
            return deleted

        houses = [asyncio.create_task(keep_house(stores[0]))]
        await asyncio.gather(*(drive(stores[number % 2], f"r{number}") for number in range(20)))

        assert [await house for house in houses] == [20]
        assert [run.run_id for run in await stores[1].find(RunQuery())] == ["first"]
        for store in stores:
            await store.aclose()


class TestLostConnections:
    async def test_connections_that_the_server_has_ended_are_replaced(self, postgres: Postgres) -> None:
        store = postgres.store(make_conninfo(postgres.dsn, application_name=postgres.schema))
        at = await created(store)
        await asyncio.gather(*(store.load("r1") for _ in range(20)))
        assert postgres.cut(postgres.schema) >= 1

        await asyncio.gather(*(store.load("r1") for _ in range(20)))
        assert postgres.cut(postgres.schema) >= 1
        await appended(store, at, *step_events("a"))

        assert len(await everything(store)) == 4
        await store.aclose()

    async def test_a_run_that_waits_is_reached_though_its_connections_were_ended(self, postgres: Postgres) -> None:
        workflow = Workflow("w", input=int).wait_for_event("news", payload=int)
        store = postgres.store(make_conninfo(postgres.dsn, application_name=postgres.schema))
        async with Runtime(store, [workflow]) as owner, Runtime(postgres.store(), [workflow]) as other:
            stream = await (await owner.create_run(workflow, run_id="r1")).stream(1)
            async for event in stream:
                if event.type == "step-waiting":
                    break
            assert postgres.cut(postgres.schema) >= 1
            await (await other.get_run("r1")).send_event("news", 7)

            assert (await stream.get_workflow_state()).unwrap() == 7

    @pytest.mark.parametrize("before_server", [True, False])
    @pytest.mark.parametrize("times", [1, 2])
    async def test_events_are_there_once_whatever_became_of_the_answer(
        self, wire: Wire, wired: PostgresStore, before_server: bool, times: int
    ) -> None:
        at = await created(wired)
        connections = wire.connections

        wire.break_at("batches", times=times, before_server=before_server)
        at = await appended(wired, at, *step_events("a"))
        await appended(wired, at, *step_events("b"))

        assert [entry.path for entry in await everything(wired)] == ["", "a", "a", "a", "b", "b", "b"]
        assert wire.connections > connections

    @pytest.mark.parametrize("before_server", [True, False])
    @pytest.mark.parametrize("word", ["BEGIN", "FOR NO KEY", "batches", "UPDATE", "COMMIT"])
    async def test_the_end_of_a_run_is_there_once_wherever_the_connection_broke(
        self, wire: Wire, wired: PostgresStore, word: str, before_server: bool
    ) -> None:
        at = await created(wired, owner="me", lease_until=100)

        wire.break_at(word, before_server=before_server)
        await appended(wired, at, finish())

        (run,) = await wired.find(RunQuery())
        assert (run.status, run.owner) == ("success", None)
        assert len(await everything(wired)) == 2

    async def test_who_was_overtaken_while_the_connection_was_broken_is_refused(
        self, postgres: Postgres, store: PostgresStore, wire: Wire, wired: PostgresStore
    ) -> None:
        at = await created(wired)

        wire.break_at("batches", before_server=True, meanwhile=lambda: appended(store, at, step_start("other")))
        with pytest.raises(RunConflict, match="stands at event 2, not 1"):
            await appended(wired, at, step_start("mine"))

        assert [entry.path for entry in await everything(store)] == ["", "other"]

    async def test_who_was_overtaken_after_being_stored_is_not_refused(
        self, store: PostgresStore, wire: Wire, wired: PostgresStore
    ) -> None:
        at = await created(wired)

        wire.break_at("batches", meanwhile=lambda: appended(store, at + 1, step_start("other")))
        await appended(wired, at, step_start("mine"))

        assert [entry.path for entry in await everything(store)] == ["", "mine", "other"]

    @pytest.mark.parametrize("before_server", [True, False])
    async def test_a_run_is_created_once(self, wire: Wire, wired: PostgresStore, before_server: bool) -> None:
        await created(wired, "r0")

        wire.break_at("records", before_server=before_server)
        await created(wired, "r1")

        assert [run.run_id for run in await wired.find(RunQuery())] == ["r1", "r0"]
        assert len(await everything(wired)) == 1

    async def test_a_run_that_another_created_meanwhile_is_refused(
        self, store: PostgresStore, wire: Wire, wired: PostgresStore
    ) -> None:
        await created(wired, "r0")

        wire.break_at("records", before_server=True, meanwhile=lambda: created(store, "r1"))
        with pytest.raises(RunConflict, match="'r1' already exists"):
            await wired.create(record(resource_id="mine"), numbered(start()))

        assert (await store.load("r1")).resource_id is None

    @pytest.mark.parametrize("before_server", [True, False])
    async def test_what_is_asked_or_told_besides_is_done_once_too(
        self, wire: Wire, wired: PostgresStore, before_server: bool
    ) -> None:
        await created(wired)
        await created(wired, "r2", finish())

        wire.break_at("messages", before_server=before_server)
        await wired.post("r1", Message(id="m", name="news"))
        assert len(await wired.messages("r1")) == 1

        wire.break_at("UPDATE", before_server=before_server)
        assert await wired.claim("r1", "me", now=5, lease_until=10)
        wire.break_at("UPDATE", before_server=before_server)
        assert await wired.renew("me", lease_until=20) == {"r1"}
        wire.break_at("SELECT", before_server=before_server)
        assert len(await wired.read("r1")) == 1

        wire.break_at("DELETE", before_server=before_server)
        await wired.delete("r1")
        assert [run.run_id for run in await wired.find(RunQuery())] == ["r2"]

    async def test_a_server_that_stays_away_is_named_and_waited_for_again_later(
        self, postgres: Postgres, wire: Wire
    ) -> None:
        store = postgres.store(wire.dsn, reconnect_timeout=2)
        await created(store)
        await wire.close()

        for _ in range(2):
            with pytest.raises(StoreError, match=r"PostgreSQL at 127\.0\.0\.1:\d+/.* cannot be reached for 2 s"):
                await store.load("r1")
        await store.aclose()


class TestCancellation:
    async def test_a_call_that_is_canceled_leaves_a_usable_connection_and_no_half_of_it(
        self, postgres: Postgres
    ) -> None:
        store = postgres.store(pool_size=1)
        at = await created(store)
        async with await psycopg.AsyncConnection.connect(postgres.dsn) as blocker:
            await blocker.execute(f"LOCK TABLE {postgres.schema}.batches".encode())
            end = asyncio.create_task(appended(store, at, finish()))
            await asyncio.to_thread(postgres.wait_until_blocked, "batches")

            end.cancel()
            with pytest.raises(asyncio.CancelledError):
                await end

        assert len(await everything(store)) == 1
        (run,) = await store.find(RunQuery())
        assert run.status == "running"
        assert await appended(store, at, finish()) == 2
        await store.aclose()


class TestSuspending:
    async def test_what_one_process_suspends_another_resumes(self, postgres: Postgres) -> None:
        @step
        async def approve(amount: int, ctx: StepContext) -> str:
            answer = await ctx.suspend({"amount": amount}, resume=bool)
            return f"{amount}: {answer}"

        workflow = Workflow("approval", input=int).then(approve)
        async with Runtime(store=postgres.store(), workflows=[workflow]) as first:
            run = await first.create_run(workflow)
            assert (await run.start(7)).status == "suspended"

        async with Runtime(store=postgres.store(), workflows=[workflow]) as second:
            again = await second.get_run(run.run_id)
            assert (await again.resume(True)).unwrap() == "7: True"


class TestRestart:
    async def test_a_run_goes_on_after_the_server_was_restarted(self, store: PostgresStore) -> None:
        restart = restart_command()

        @step
        async def one(number: int) -> int:
            await restart()
            return number + 1

        @step
        async def two(number: int) -> int:
            return number * 2

        workflow = Workflow("w", input=int).then(one).then(two)
        async with Runtime(store=store, workflows=[workflow]) as runtime:
            run = await runtime.create_run(workflow)
            result = await run.start(1)

            assert result.unwrap() == 4
        entries = await everything(store, run.run_id)
        assert [entry.seq for entry in entries] == list(range(1, len(entries) + 1))
        assert [entry.path for entry in entries if entry.path] == ["one"] * 3 + ["two"] * 3
        await store.aclose()

    async def test_nothing_that_was_acknowledged_while_it_restarted_is_lost(self, postgres: Postgres) -> None:
        restart = restart_command()
        stores = [postgres.store(), postgres.store()]
        for number in range(6):
            await created(stores[number % 2], f"r{number}")
        is_back = asyncio.Event()

        async def drive(store: PostgresStore, run_id: str) -> int:
            at, last = 1, False
            while not last:
                last = is_back.is_set()
                at = await appended(store, at, *step_events(f"s{at}", "x" * 1000), run_id=run_id)
            return at

        drives = [asyncio.create_task(drive(stores[number % 2], f"r{number}")) for number in range(6)]
        await restart()
        is_back.set()

        for number, reached in enumerate(await asyncio.gather(*drives)):
            entries = await everything(stores[0], f"r{number}")
            assert [entry.seq for entry in entries] == list(range(1, reached + 1))
        for store in stores:
            await store.aclose()
