"""What can happen to a file: SQLiteStore says what is wrong, and loses nothing that it has acknowledged."""

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from spanflow import SpanflowError, SQLiteStore, StoreError
from spanflow.events import LinkedTrace, Start
from spanflow.ports import RunQuery
from spanflow.stores.sqlite_file import STEPS, SQLiteFile, prepare
from tests.stores.support import (
    CREATED_AT,
    appended,
    created,
    everything,
    finish,
    numbered,
    record,
    start,
    step,
    waiting,
)

WRITER = Path(__file__).with_name("writer.py")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs.db"


@contextmanager
def writer(what: str, path: Path, *arguments: str) -> Generator[subprocess.Popen[str]]:
    """A process that uses the file."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), *filter(None, sys.path)])}
    with subprocess.Popen(
        [sys.executable, "-W", "error", str(WRITER), what, str(path), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def said(what: str, path: Path, *arguments: str) -> list[str]:
    """What a process said until its end."""
    with writer(what, path, *arguments) as process:
        output, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
    return output.splitlines()


def assert_sound(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def content(path: Path) -> bytes:
    return path.read_bytes()


def overwrite(path: Path, with_what: bytes) -> None:
    path.write_bytes(with_what)


def files(path: Path) -> list[str]:
    """The names of what is in the directory of a file."""
    return os.listdir(path.parent)


async def make(path: Path, *, run_id: str = "r1") -> None:
    store = SQLiteStore(path)
    await created(store, run_id, *step("a"))
    await store.aclose()


class TestOpening:
    async def test_the_file_is_made_when_it_is_first_used(self, path: Path) -> None:
        store = SQLiteStore(path)
        assert files(path) == []

        await created(store)
        await store.aclose()

        assert files(path) == ["runs.db"]
        assert_sound(path)

    @pytest.mark.parametrize("name", ["", ":memory:"])
    def test_a_file_in_memory_is_refused_for_the_store_that_is(self, name: str) -> None:
        with pytest.raises(StoreError, match=r"MemoryStore\(\)") as caught:
            SQLiteStore(name)

        assert caught.value.store == name

    async def test_a_relative_path_is_meant_from_where_the_store_was_made(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(path.parent)
        store = SQLiteStore("runs.db")
        monkeypatch.chdir("/")

        await created(store)
        await store.aclose()

        assert files(path) == ["runs.db"]

    async def test_an_empty_file_is_a_new_one(self, path: Path) -> None:
        overwrite(path, b"")

        await make(path)

        assert len(await everything(SQLiteStore(path))) == 4

    async def test_a_directory_that_is_not_there_is_named_with_what_to_do(self, tmp_path: Path) -> None:
        path = tmp_path / "gone" / "runs.db"

        with pytest.raises(
            StoreError, match=r"gone/runs.db cannot be opened: .* Check that its directory exists"
        ) as caught:
            await created(SQLiteStore(path))

        assert caught.value.store == str(path)
        assert not path.parent.exists()

    async def test_a_directory_is_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(StoreError, match="cannot be opened"):
            await created(SQLiteStore(tmp_path))

    async def test_a_file_is_found_once_its_directory_is_there(self, tmp_path: Path) -> None:
        store = SQLiteStore(tmp_path / "late" / "runs.db")
        with pytest.raises(StoreError):
            await created(store)

        (tmp_path / "late").mkdir()
        await created(store)

        assert len(await everything(store)) == 1
        await store.aclose()


def other_program(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE customers (name TEXT)")


def marked_by_another_program(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA application_id = 42")


def versioned_by_another_program(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 1")


def no_database(path: Path) -> None:
    path.write_bytes(b"Dear diary, " * 100)


def random_bytes(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 64)


def nearly_a_database(path: Path) -> None:
    path.write_bytes(b"SQLite format 3\0" + b"\xff" * 5000)


FOREIGN: list[tuple[Callable[[Path], None], str]] = [
    (other_program, r"of another program \(application_id 0, tables: customers\)"),
    (marked_by_another_program, r"of another program \(application_id 42, tables: none\)"),
    (versioned_by_another_program, "of another program"),
    (no_database, "is not a SQLite database"),
    (random_bytes, "is not a SQLite database"),
    (nearly_a_database, "is not a SQLite database"),
]


class TestRefusedFiles:
    @pytest.mark.parametrize(("make_file", "problem"), FOREIGN)
    async def test_a_file_that_is_not_ours_is_refused_by_name_and_left_as_it_is(
        self, path: Path, make_file: Callable[[Path], None], problem: str
    ) -> None:
        make_file(path)
        before = content(path)
        store = SQLiteStore(path)

        for _ in range(2):
            with pytest.raises(StoreError, match=rf"runs\.db .*{problem}.*It was left as it is.*file of its own"):
                await created(store)
        await store.aclose()

        assert content(path) == before
        assert files(path) == ["runs.db"]

    async def test_a_file_of_a_newer_spanflow_is_refused_by_name_and_left_as_it_is(self, path: Path) -> None:
        await make(path)
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA user_version = 99")
        before = content(path)

        with pytest.raises(StoreError, match=r"runs\.db was written by a newer spanflow \(file version 99; .*Upgrade"):
            await everything(SQLiteStore(path))

        assert content(path) == before

    async def test_a_file_cut_short_is_damaged(self, path: Path) -> None:
        store = SQLiteStore(path)
        at = await created(store)
        for number in range(50):
            at = await appended(store, at, *step(f"s{number}", "x" * 1000))
        await store.aclose()
        os.truncate(path, len(content(path)) // 2)

        with pytest.raises(StoreError, match=r"runs\.db is damaged: .* Restore it from a backup"):
            await everything(SQLiteStore(path))

    async def test_a_page_of_garbage_is_named_where_it_matters(self, path: Path) -> None:
        store = SQLiteStore(path)
        at = await created(store)
        for number in range(50):
            at = await appended(store, at, *step(f"s{number}", "x" * 1000))
        await store.aclose()
        whole = content(path)

        for page in range(1, len(whole) // 4096):
            overwrite(path, whole[: page * 4096] + b"\x5a" * 4096 + whole[(page + 1) * 4096 :])
            store = SQLiteStore(path)
            try:
                read = str(len(await everything(store)))
            except SpanflowError as error:
                read = str(error)
            assert read == str(at) or "damaged" in read
            await store.aclose()


class TestMigration:
    def test_an_older_file_is_brought_up_to_date_with_what_it_holds(self, path: Path) -> None:
        steps = ("CREATE TABLE a (x)", "CREATE TABLE b (x);\nINSERT INTO b SELECT x + 1 FROM a;\n")
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            prepare(connection, "f", steps[:1])
            connection.execute("INSERT INTO a VALUES (1)")
            prepare(connection, "f", steps)
            prepare(connection, "f", steps)

            assert connection.execute("SELECT * FROM b").fetchall() == [(2,)]
            with pytest.raises(StoreError, match="file version 2; this one knows up to 1"):
                prepare(connection, "f", steps[:1])

    def test_a_migration_that_fails_leaves_the_older_file(self, path: Path) -> None:
        steps = ("CREATE TABLE a (x)", "CREATE TABLE b (x);\nINSERT INTO nowhere VALUES (1)")
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            prepare(connection, "f", steps[:1])

            with pytest.raises(sqlite3.OperationalError):
                prepare(connection, "f", steps)

            prepare(connection, "f", steps[:1])
            assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("a",)]

    async def test_runs_of_a_file_of_version_1_are_found_by_the_traces_that_they_begin_later(self, path: Path) -> None:
        await make(path)
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("DROP TABLE traces")
            connection.execute("PRAGMA user_version = 1")
        store = SQLiteStore(path)
        at = len(await everything(store))
        trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
        linked = LinkedTrace(
            trace_id=trace_id,
            span_id="b7ad6b7169203331",
            trace_flags=1,
            trace_state="",
            started_at=CREATED_AT,
            links=(),
        )
        await appended(store, at, (Start, "", {"workflow_id": "w", "linked": linked}))

        assert [run.run_id for run in await store.find(RunQuery(trace_id=trace_id))] == ["r1"]
        assert (await everything(store))[-1].payload["linked"] == linked
        await store.aclose()

    async def test_the_tables_of_version_1_are_what_they_were(self, path: Path) -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            prepare(connection, "f", STEPS[:1])
            columns = {
                name: [column for _, column, *_ in connection.execute(f"PRAGMA table_info({name})")]
                for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
                if not name.startswith("sqlite_")
            }

        assert columns == {
            "runs": [
                "number",
                "run_id",
                "workflow_id",
                "status",
                "trace_id",
                "created_at",
                "ended_at",
                "wake_at",
                "owner",
                "lease_until",
                "metadata",
            ],
            "records": ["run", "body"],
            "batches": ["id", "last_seq", "body"],
            "messages": ["number", "run", "body"],
            "labels": ["key", "value", "run"],
        }


class TestLocks:
    async def test_a_lock_of_another_process_is_waited_for_while_others_go_on(self, path: Path) -> None:
        store = SQLiteStore(path)
        at = await created(store)
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")

        appending = asyncio.create_task(appended(store, at, *step("a")))
        creating = asyncio.create_task(created(store, "r2"))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not appending.done()
        assert not store.append_now("r1", numbered(*step("a"), after=at), at)
        assert not store.append_now("r1", numbered(waiting("nap", 2**62), after=at), at)
        assert len(await everything(store)) == at
        other.execute("ROLLBACK")
        other.close()

        assert (await appending, await creating) == (4, 1)
        assert store.append_now("r1", numbered(*step("b"), after=4), 4)
        await store.aclose()

    async def test_a_lock_that_is_never_given_up_is_an_error_that_changes_nothing(self, path: Path) -> None:
        store = SQLiteStore(path, lock_timeout=0.02)
        at = await created(store)
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")

        with pytest.raises(
            StoreError, match=r"runs\.db has been locked by another process for 0\.02 s\. .*lock_timeout"
        ):
            await appended(store, at, *step("a"))
        other.execute("ROLLBACK")
        other.close()

        assert await appended(store, at, *step("a")) == 4
        await store.aclose()

    async def test_a_file_may_be_made_while_another_process_makes_it(self, path: Path) -> None:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        store = SQLiteStore(path)
        creating = asyncio.create_task(created(store))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not creating.done()
        prepare_later = SQLiteStore(path)

        other.execute("COMMIT")
        other.close()

        assert (await creating, await created(prepare_later, "r2")) == (1, 1)
        await store.aclose()
        await prepare_later.aclose()


class TestManyUsers:
    def test_many_processes_make_one_file(self, path: Path) -> None:
        with writer("create", path, "r0") as a, writer("create", path, "r1") as b, writer("create", path, "r2") as c:
            for process in (a, b, c):
                assert process.stdin is not None
                process.stdin.write("\n")
                process.stdin.flush()
            for process in (a, b, c):
                output, errors = process.communicate(timeout=200)
                assert output == "created\n", errors
        assert_sound(path)

    async def test_of_processes_that_drive_one_run_each_event_is_of_one(self, path: Path) -> None:
        await make(path)
        with writer("race", path, "r1", "150") as one, writer("race", path, "r1", "150") as other:
            for process in (one, other):
                assert process.stdin is not None
                process.stdin.write("\n")
                process.stdin.flush()
            won = [int(process.communicate(timeout=200)[0]) for process in (one, other)]

        entries = await everything(SQLiteStore(path))

        assert [entry.seq for entry in entries] == list(range(1, 5 + 3 * sum(won)))
        assert min(won) > 0
        assert_sound(path)

    async def test_each_thread_has_its_own_connection(self, path: Path) -> None:
        store = SQLiteStore(path)
        await created(store, "of the main thread")
        problems: list[BaseException] = []

        def work(run_id: str) -> None:
            async def use() -> None:
                at = await created(store, run_id)
                for number in range(30):
                    at = await appended(store, at, *step(f"s{number}"), run_id=run_id)
                assert len(await everything(store, run_id)) == 91

            try:
                asyncio.run(use())
            except BaseException as error:
                problems.append(error)

        threads = [threading.Thread(target=work, args=(f"r{number}",)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            await asyncio.to_thread(thread.join)

        assert not problems
        assert len(await everything(store, "r3")) == 91
        await store.aclose()
        assert files(path) == ["runs.db"]

    def test_a_store_may_be_used_on_both_sides_of_a_fork(self, path: Path) -> None:
        assert said("fork", path, "r1") == ["61 61"]
        assert_sound(path)


class TestFaults:
    @pytest.mark.parametrize("acknowledged", [1, 40, 400])
    async def test_nothing_acknowledged_is_lost_by_a_kill(self, path: Path, acknowledged: int) -> None:
        with writer("append", path, "r1") as process:
            assert process.stdout is not None
            last = 0
            while last < acknowledged:
                last = int(process.stdout.readline())
            process.kill()
            rest = process.stdout.read().split()
        last = max(last, int(rest[-1]) if rest else 0)  # the last line may have been cut: to a smaller number

        store = SQLiteStore(path)
        entries = await everything(store)

        assert len(entries) >= last
        assert len(entries) % 3 == 1  # whole appends only
        assert [entry.seq for entry in entries] == list(range(1, len(entries) + 1))
        await appended(store, len(entries), *step("after"), finish())
        await store.aclose()
        assert_sound(path)

    async def test_a_full_disk_is_named_and_nothing_is_lost(self, path: Path) -> None:
        error, stood, after = said("starve", path, "r1")

        assert error.startswith(f"StoreError {path} ")
        assert "the file itself stays sound" in error
        at, read = stood.split()
        assert at == read
        assert int(at) > 3
        assert int(after) == int(at) + 3
        assert len(await everything(SQLiteStore(path))) == int(after)
        assert_sound(path)

    async def test_a_file_that_may_not_grow_is_named(self, path: Path) -> None:
        file = SQLiteFile(path, lock_timeout=1)
        file.connection().execute("PRAGMA max_page_count = 30")

        with pytest.raises(StoreError, match=r"runs\.db has no room to grow: database or disk is full\. Free space"):
            await file.do(
                lambda connection: connection.execute("INSERT INTO batches VALUES (1, 1, ?)", ("x" * 200_000,))
            )
        file.close()

        assert_sound(path)

    @pytest.mark.parametrize(("file", "directory"), [(0o444, 0o777), (0o444, 0o555), (0o644, 0o555), (0o000, 0o755)])
    async def test_a_file_that_may_not_be_written_is_named_and_left_as_it_is(self, file: int, directory: int) -> None:
        place = Path(tempfile.mkdtemp(prefix="spanflow-"))  # not in tmp_path, which only its owner may enter
        try:
            path = place / "runs.db"
            await make(path)
            before = content(path)
            os.chmod(path, file)
            os.chmod(place, directory)

            (line,) = said("unprivileged", path, "r2")

            assert line.startswith(f"StoreError {path} ")
            assert "Check" in line
            assert content(path) == before
        finally:
            os.chmod(place, 0o700)
            shutil.rmtree(place)

    async def test_a_file_that_vanishes_and_comes_back_is_another_file(self, path: Path) -> None:
        await make(path)
        os.unlink(path)

        await make(path, run_id="r2")

        assert len(await everything(SQLiteStore(path), "r2")) == 4


class TestSize:
    async def test_a_run_costs_the_same_to_append_to_however_long_it_is(self, path: Path) -> None:
        store = SQLiteStore(path)
        entries = numbered(start(), *(part for number in range(200) for part in step(f"s{number}")))
        await store.create(record(), entries[:1])
        for first in range(1, len(entries), 3):
            await store.append("r1", entries[first : first + 3], expected_seq=first)
        await store.aclose()

        with closing(sqlite3.connect(path)) as connection:
            sizes = [length for (length,) in connection.execute("SELECT length(body) FROM batches ORDER BY id")]

        assert len(sizes) == 201
        assert max(sizes[1:]) - min(sizes[1:]) < 20
