"""`spanflow runs`: what is listed, and how a trace id leads back to its run."""

from pathlib import Path
from typing import Any

import pytest

from spanflow import Runtime, SQLiteStore, TracingOptions, Workflow, step
from tests.cli.command import TRACES, Done, Spanflow, some_runs
from tests.stores.postgres import Postgres, given

LISTED = """\
RUN  WORKFLOW  STATUS     STARTED                DURATION  TRACE                             USER  SESSION
r-3  refunds   suspended  2026-01-01 12:02:00         AGE  33333333333333333333333333333333  u-2   s-1
r-2  crawl     failed     2026-01-01 12:01:00       1 min  00000000000000000000000000000002  u-2   -
r-1  crawl     success    2026-01-01 12:00:00       1 min  11111111111111111111111111111111  u-1   -
"""


def ids(done: Done) -> list[str]:
    assert done.code == 0, done.err
    return [line.split()[0] for line in done.lines[1:]]


def test_runs_are_listed_the_newest_first_as_plain_text_in_a_pipe(spanflow: Spanflow) -> None:
    done = spanflow("runs")
    assert (done.code, done.err) == (0, "")
    age = done.lines[1].split("  ")[-4].strip()
    assert age.endswith("h") or " d" in age
    assert done.out.replace(f"{age:>10}  3", f"{'AGE':>10}  3") == LISTED


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (["--trace", TRACES["r-3"]], ["r-3"]),
        (["--trace", "2"], ["r-2"]),  # some pages leave out leading zeros
        (["--status", "failed"], ["r-2"]),
        (["--status", "failed", "--status", "success"], ["r-2", "r-1"]),
        (["--workflow", "crawl"], ["r-2", "r-1"]),
        (["--metadata", "user.id=u-2"], ["r-3", "r-2"]),
        (["--metadata", "rank=7"], ["r-2", "r-1"]),  # whether it was given as a number or as text
        (["--metadata", "rank=7", "--metadata", "user.id=u-1"], ["r-1"]),
        (["--since", "2026-01-01T12:00:30"], ["r-3", "r-2"]),
        (["--since", "2026-01-01T13:00:30+01:00", "--until", "2026-01-01T12:01:30Z"], ["r-2"]),
    ],
    ids=" ".join,
)
def test_runs_are_found_by(spanflow: Spanflow, wanted: list[str], found: list[str]) -> None:
    assert ids(spanflow("runs", *wanted)) == found


def test_what_nothing_matches_is_said_beside_the_output(spanflow: Spanflow) -> None:
    for wanted in (["--trace", "f" * 32], ["--since", "1h"], ["--metadata", "user.id=nobody"]):
        assert spanflow("runs", *wanted) == Done(0, "", "No runs match.\n")


def test_a_page_says_how_to_get_the_next_one(spanflow: Spanflow) -> None:
    first = spanflow("runs", "--limit", "2")
    assert ids(first) == ["r-3", "r-2"]
    assert first.err == "There are more: --after 2\n"
    second = spanflow("runs", "--limit", "2", "--after", "2")
    assert (ids(second), second.err) == (["r-1"], "")


def test_json_is_one_document_with_the_cursor_of_the_next_page(spanflow: Spanflow) -> None:
    found: dict[str, Any] = spanflow("runs", "--json", "--limit", "1", "--status", "failed").json
    assert found == {
        "runs": [
            {
                "run_id": "r-2",
                "workflow_id": "crawl",
                "status": "failed",
                "trace_id": TRACES["r-2"],
                "started_at": "2026-01-01T12:01:00.000000Z",
                "ended_at": "2026-01-01T12:02:00.000000Z",
                "duration": 60.0,
                "wakes_at": None,
                "metadata": {**found["runs"][0]["metadata"], "user.id": "u-2", "rank": "7"},
                "cursor": 2,
            }
        ],
        "next": None,
    }
    assert spanflow("runs", "--json", "--limit", "1").json["next"] == 3
    assert spanflow("runs", "--json", "--workflow", "none").json == {"runs": [], "next": None}


async def test_text_from_outside_moves_no_cursor_and_changes_no_colour(empty: Spanflow) -> None:
    outside = "x\x1b[2J\nr-5\t\x07"

    @step
    async def fail(text: str) -> str:
        raise ValueError(text)

    failing = Workflow("failing", input=str).then(fail)
    async with Runtime(SQLiteStore(empty.database), workflows=[failing]) as runtime:
        run = await runtime.create_run(failing, run_id="r-1")
        await run.start(outside, tracing_options=TracingOptions(user_id=outside, metadata={outside: outside}))
    listed, shown = empty("runs"), empty("show", "r-1", "--events")
    assert (listed.code, shown.code) == (0, 0)
    assert len(listed.lines) == 2
    assert [line for line in (*listed.lines, *shown.lines) if not line.isprintable()] == []


# --- stores


def test_a_store_that_is_not_there_is_an_error_and_is_not_made(empty: Spanflow) -> None:
    done = empty("runs")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: There is no store at {empty.database}: no such file.")
    assert list(empty.folder.iterdir()) == []


def test_a_file_that_holds_nothing_stays_empty(empty: Spanflow) -> None:
    empty.database.touch()
    done = empty("runs")
    assert (done.code, done.out) == (2, "")
    assert "is empty: no store was made there yet" in done.err
    assert empty.database.stat().st_size == 0


def test_a_file_of_another_kind_is_refused_by_name(empty: Spanflow) -> None:
    empty.database.write_text("no database at all, but long enough to be looked at as one " * 10)
    done = empty("runs")
    assert done.code == 2
    assert done.err.startswith(f"error: {empty.database} is not a SQLite database")
    assert "Traceback" not in done.err


def test_a_store_is_named_by_option_or_variable(spanflow: Spanflow) -> None:
    assert ids(spanflow("runs", "--store", str(spanflow.database), SPANFLOW_STORE="")) == ["r-3", "r-2", "r-1"]
    done = spanflow("runs", SPANFLOW_STORE="")
    assert done.code == 2
    assert done.err.startswith("error: Which store? Give --store")


async def test_runs_in_postgresql_are_listed_and_shown(tmp_path: Path) -> None:
    with Postgres(given("SPANFLOW_TEST_POSTGRES", "the address (DSN) of a PostgreSQL for tests")) as postgres:
        spanflow = Spanflow(tmp_path, {"SPANFLOW_STORE": postgres.dsn, "SPANFLOW_SCHEMA": postgres.schema})
        missing = spanflow("runs")
        assert missing.code == 2
        assert f"the schema '{postgres.schema}' has no tables" in missing.err
        assert postgres.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", postgres.schema) == []
        await some_runs(postgres.store())
        assert ids(spanflow("runs", "--trace", TRACES["r-2"])) == ["r-2"]
        assert spanflow("show", "r-2", "--json").json["status"] == "failed"


@pytest.mark.parametrize(
    ("address", "complaint"),
    [
        ("postgresql://nobody@127.0.0.1:1/none", "PostgreSQL at 127.0.0.1:1/none cannot be reached"),
        ("postgresql://user:secret@[host/x", "The DSN given to PostgresStore cannot be read"),
        ("host=127.0.0.1 port=1", "PostgreSQL at 127.0.0.1:1 cannot be reached"),
    ],
)
def test_a_database_that_cannot_be_used_is_one_line(empty: Spanflow, address: str, complaint: str) -> None:
    done = empty("runs", "--store", address)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: {complaint}")
    assert done.err.count("\n") == 1
    assert "secret" not in done.err


# --- bad input


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        (["--since", "tomorrow"], "error: --since 'tomorrow' is no time."),
        (["--trace", "xyz"], "error: --trace 'xyz' is no trace id"),
        (["--metadata", "user.id"], "error: --metadata 'user.id' was to be KEY=VALUE"),
        (["--status", "lost"], "'lost' is not one of 'running', 'success', 'failed', 'suspended', 'canceled'"),
        (["--limit", "0"], "Invalid value for '--limit'"),
        (["--nonsense"], "No such option: --nonsense"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_meant_is_refused_with_code_2(spanflow: Spanflow, wrong: list[str], complaint: str) -> None:
    done = spanflow("runs", *wrong)
    assert (done.code, done.out) == (2, "")
    assert complaint in done.err
    assert "Traceback" not in done.err
